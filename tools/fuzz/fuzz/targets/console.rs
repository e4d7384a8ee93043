#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::console::run, harness::console::seeds),
    |data: &[u8]| {
        harness::console::run(data);
    }
);
