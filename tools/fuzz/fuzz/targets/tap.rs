#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::tap::run, harness::tap::seeds),
    |data: &[u8]| {
        harness::tap::run(data);
    }
);
