//! Release builds put the functions that a sidecar runs side by side (see `order.ld`).

#![expect(clippy::disallowed_methods, reason = "cargo speaks to build scripts by the environment")]

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=order.ld");
    let is = |name: &str, value: &str| var(name).is_ok_and(|it| it == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") {
        let folder = var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bin=mesh-proxy=-Wl,-T,{folder}/order.ld");
    }
}
