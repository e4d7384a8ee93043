#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::mmio::run, harness::mmio::seeds),
    |data: &[u8]| {
        harness::mmio::run(data);
    }
);
