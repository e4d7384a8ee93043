#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::entropy::run, harness::entropy::seeds),
    |data: &[u8]| {
        harness::entropy::run(data);
    }
);
