//! See `mesh_fuzz::first_bytes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::first_bytes::run(bytes));
