#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::rings::run, harness::rings::seeds),
    |data: &[u8]| {
        harness::rings::run(data);
    }
);
