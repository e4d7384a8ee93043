#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::http::run, harness::http::seeds),
    |data: &[u8]| {
        harness::http::run(data);
    }
);
