#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::mmds::run, harness::mmds::seeds),
    |data: &[u8]| {
        harness::mmds::run(data);
    }
);
