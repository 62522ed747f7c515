//! See `mesh_fuzz::sotw_server`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::sotw_server::run(bytes));
