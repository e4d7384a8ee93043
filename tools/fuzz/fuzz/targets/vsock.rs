#![no_main]
libfuzzer_sys::fuzz_target!(
    init: harness::seeds::begin(harness::vsock::run, harness::vsock::seeds),
    |data: &[u8]| {
        harness::vsock::run(data);
    }
);
