#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::pci::run, harness::pci::seeds),
    |data: &[u8]| {
        harness::pci::run(data);
    }
);
