#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::block::run, harness::block::seeds),
    |data: &[u8]| {
        harness::block::run(data);
    }
);
