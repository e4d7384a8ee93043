#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::net::run, harness::net::seeds),
    |data: &[u8]| {
        harness::net::run(data);
    }
);
