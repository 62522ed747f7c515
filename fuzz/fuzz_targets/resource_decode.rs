//! See `mesh_fuzz::resource_decode`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mesh_fuzz::resource_decode::run(bytes));
