#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::balloon::run, harness::balloon::seeds),
    |data: &[u8]| {
        harness::balloon::run(data);
    }
);
