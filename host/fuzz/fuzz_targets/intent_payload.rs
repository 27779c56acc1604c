//! See `targets::intent_payload`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sluice_fuzz::targets::intent_payload(data);
});
