//! See `mesh_fuzz::delta_client`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::delta_client::run(bytes));
