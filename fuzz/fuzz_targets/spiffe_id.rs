//! See `mesh_fuzz::spiffe_id`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::spiffe_id::run(bytes));
