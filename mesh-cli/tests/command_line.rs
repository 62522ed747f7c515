//! What a user can get wrong ends in one clear sentence that says what to do.
#![allow(clippy::unwrap_used)] // test code, outside of test functions

use std::process::Command;

fn refused(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_meshctl")).args(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?} must be refused");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn no_control_plane_is_said_with_its_address() {
    // Bound and dropped: nobody listens there.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for command in ["status", "routes"] {
        let said = refused(&[command, "--control-admin", &address]);
        assert!(said.contains(&address) && said.lines().count() <= 2, "{command}: {said}");
    }
    let said = refused(&["config", &address]);
    assert!(said.contains(&address), "{said}");
}

#[test]
fn a_token_needs_the_signers_folder() {
    let said = refused(&[
        "token",
        "--state-dir",
        "/nonexistent",
        "--namespace",
        "shop",
        "--pod",
        "web-1",
        "--service-account",
        "web",
    ]);
    assert!(said.contains("/nonexistent"), "{said}");
}

#[test]
fn bad_flags_are_named() {
    let said = refused(&["demo", "--seconds", "soon"]);
    assert!(said.contains("--seconds"), "{said}");
}
