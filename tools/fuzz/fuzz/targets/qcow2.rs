#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::qcow2::run, harness::qcow2::seeds),
    |data: &[u8]| {
        harness::qcow2::run(data);
    }
);
