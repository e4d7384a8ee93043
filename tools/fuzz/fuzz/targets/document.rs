#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::document::run, harness::document::seeds),
    |data: &[u8]| {
        harness::document::run(data);
    }
);
