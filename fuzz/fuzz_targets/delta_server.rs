//! See `mesh_fuzz::delta_server`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::delta_server::run(bytes));
