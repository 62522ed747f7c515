//! See `mesh_fuzz::csr`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::csr::run(bytes));
