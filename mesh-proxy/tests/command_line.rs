//! What a user can get wrong on the command line ends in one clear sentence that says what to do.
#![allow(clippy::unwrap_used)] // test code, outside of test functions

use std::process::Command;

/// Runs the proxy, which must refuse; gives what it said.
fn refused(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_mesh-proxy")).args(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?} must be refused");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn run<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec![
        "run",
        "--control",
        "127.0.0.1:1",
        "--trust-bundle",
        "/nonexistent/root.pem",
        "--token-file",
        "/nonexistent/token",
        "--namespace",
        "shop",
        "--pod",
        "web-1",
        "--service-account",
        "web",
        "--pod-ip",
        "127.0.0.1",
    ];
    arguments.extend_from_slice(extra);
    arguments
}

#[test]
fn a_bad_value_is_named_with_its_flag() {
    for (extra, told) in [
        (vec!["--inbound", "8080"], "--inbound"),
        (vec!["--outbound", "nowhere"], "--outbound"),
        (vec!["--lookup-timeout", "5"], "--lookup-timeout"),
        (vec!["--workers", "0"], "--workers"),
        (vec!["--no-such-flag"], "--no-such-flag"),
    ] {
        let said = refused(&run(&extra));
        assert!(said.contains(told), "{extra:?}: {said}");
    }
}

#[test]
fn a_missing_trust_bundle_is_named() {
    let said = refused(&run(&["--admin", "127.0.0.1:0"]));
    assert!(said.contains("/nonexistent/root.pem"), "{said}");
}

#[test]
fn a_taken_port_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root.pem");
    let key = mesh_common::trust::PrivateKey::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let signer = rcgen::KeyPair::from_pem(&key.to_pem()).unwrap();
    std::fs::write(&root, params.self_signed(&signer).unwrap().pem()).unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "x").unwrap();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let said = refused(&[
        "run",
        "--control",
        "127.0.0.1:1",
        "--trust-bundle",
        root.to_str().unwrap(),
        "--token-file",
        token.to_str().unwrap(),
        "--namespace",
        "shop",
        "--pod",
        "web-1",
        "--service-account",
        "web",
        "--pod-ip",
        "127.0.0.1",
        "--admin",
        "127.0.0.1:0",
        "--outbound",
        &taken,
    ]);
    assert!(said.contains(&taken) && said.contains("another process"), "{said}");
}
