//! The invariants of ARCHITECTURE.md that can be read off the source: who may name what. It must never
//! pass because it found no files.
#![allow(clippy::unwrap_used)] // test code, outside of test functions

use std::fs;
use std::path::{Path, PathBuf};

/// A source file without comments and without its tests.
struct Source {
    path: String,
    lines: Vec<(usize, String)>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    for part in ["mesh-common", "mesh-proxy", "mesh-control", "mesh-injector", "mesh-cli"] {
        collect(&root().join(part).join("src"), &mut files);
    }
    assert!(files.len() > 30, "only {} files found", files.len());
    files.iter().map(|path| read(path)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") && !is_test_file(&path) {
            files.push(path);
        }
    }
}

fn is_test_file(path: &Path) -> bool {
    let in_folder = path.components().any(|c| c.as_os_str() == "tests");
    let name = path.file_stem().unwrap().to_string_lossy();
    in_folder || name == "tests" || name.ends_with("_tests")
}

fn read(path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("#[cfg(test)]") {
            break;
        }
        let code = line.split("//").next().unwrap_or_default();
        lines.push((number + 1, code.to_owned()));
    }
    Source { path: path.strip_prefix(root()).unwrap().to_string_lossy().into_owned(), lines }
}

/// Fails with every place where one of `words` stands in a file chosen by `within`.
fn nobody_names(words: &[&str], within: impl Fn(&str) -> bool) {
    let mut looked_at = 0;
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| within(&s.path)) {
        looked_at += 1;
        for (number, line) in &source.lines {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                found.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    assert!(looked_at > 0, "no file was looked at");
    assert!(found.is_empty(), "these names do not belong there:\n{}", found.join("\n"));
}

fn in_any(path: &str, folders: &[&str]) -> bool {
    folders.iter().any(|folder| path.starts_with(folder))
}

#[test]
fn envoy_protos_stay_in_their_rooms() {
    let rooms = [
        "mesh-common/src/xds/",
        "mesh-proxy/src/xds/",
        "mesh-control/src/translate/",
        "mesh-control/src/serve/",
    ];
    nobody_names(&["envoy_types", "xds::proto", "xds::protobuf"], |path| !in_any(path, &rooms));
}

#[test]
fn kubernetes_types_stay_in_their_rooms() {
    let rooms = [
        "mesh-control/src/api/",
        "mesh-control/src/watch/",
        "mesh-control/src/ingest/",
        "mesh-control/src/status/",
        "mesh-control/src/ca/kubernetes/",
        "mesh-control/src/fault",
        "mesh-control/src/lead/",
        "mesh-injector/src/",
        "mesh-cli/src/",
    ];
    nobody_names(&["k8s_openapi", "gateway_api", "kube::"], |path| !in_any(path, &rooms));
}

#[test]
fn the_data_path_names_no_lock() {
    let data_path = [
        "mesh-proxy/src/listener/",
        "mesh-proxy/src/http/",
        "mesh-proxy/src/tcp/",
        "mesh-proxy/src/cluster/",
        "mesh-proxy/src/connect/",
        "mesh-proxy/src/config/",
    ];
    nobody_names(&["Mutex", "RwLock"], |path| in_any(path, &data_path));
}

#[test]
fn pure_rooms_have_no_clock_and_no_io() {
    let pure = [
        "mesh-proxy/src/config/listener.rs",
        "mesh-proxy/src/config/route.rs",
        "mesh-proxy/src/config/cluster.rs",
        "mesh-proxy/src/http/route",
        "mesh-proxy/src/listener/inspect",
        "mesh-proxy/src/listener/chain",
        "mesh-proxy/src/listener/socks5",
        "mesh-proxy/src/xds/delta",
        "mesh-proxy/src/xds/decode/",
        "mesh-control/src/model/facts.rs",
        "mesh-control/src/model/policy.rs",
        "mesh-control/src/model/route.rs",
        "mesh-control/src/model/service.rs",
        "mesh-control/src/model/workload.rs",
        "mesh-control/src/translate/",
        "mesh-control/src/serve/delta",
        "mesh-control/src/status/conditions",
        "mesh-injector/src/annotations",
        "mesh-injector/src/conflicts",
        "mesh-injector/src/decide",
        "mesh-injector/src/difference",
        "mesh-injector/src/inject/",
        "mesh-injector/src/metrics_merge",
        "mesh-injector/src/probes",
        "mesh-injector/src/quantity",
        "mesh-injector/src/review",
        "mesh-injector/src/settings/",
        "mesh-common/src/identity/schedule",
    ];
    let impure = [
        "Instant::now",
        "SystemTime::now",
        "Timestamp::now",
        "tokio::net",
        "tokio::fs",
        "tokio::spawn",
        "std::fs",
        "TcpStream",
        "TcpListener",
        "sleep(",
        "timeout(Duration",
    ];
    nobody_names(&impure, |path| in_any(path, &pure));
}

#[test]
fn the_model_knows_neither_kubernetes_nor_protos() {
    nobody_names(&["crate::ingest", "crate::watch", "crate::api", "crate::translate", "prost"], |path| {
        path.starts_with("mesh-control/src/model/")
    });
}

#[test]
fn binaries_do_not_depend_on_each_other() {
    for (part, others) in [
        ("mesh-proxy", ["mesh-control", "mesh-injector", "mesh-cli"]),
        ("mesh-control", ["mesh-proxy", "mesh-injector", "mesh-cli"]),
        ("mesh-injector", ["mesh-proxy", "mesh-control", "mesh-cli"]),
        ("mesh-cli", ["mesh-proxy", "mesh-control", "e2e"]),
        ("mesh-common", ["mesh-proxy", "mesh-control", "mesh-injector"]),
    ] {
        let manifest = fs::read_to_string(root().join(part).join("Cargo.toml")).unwrap();
        for other in others {
            assert!(!manifest.lines().any(|l| l.starts_with(other)), "{part} depends on {other}");
        }
    }
}

/// The pure part of the injector, which the command line may use without a cluster, talks to nobody.
#[test]
fn injection_needs_no_cluster() {
    let words = ["kube::", "crate::namespaces", "crate::webhook", "crate::serve", "crate::events"];
    nobody_names(&words, |path| {
        ["inject/", "decide", "annotations", "probes", "metrics_merge", "conflicts", "settings/"]
            .iter()
            .any(|part| path.starts_with(&format!("mesh-injector/src/{part}")))
    });
}

#[test]
fn files_stay_readable() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|s| s.lines.len() > 450)
        .map(|s| format!("{}: {} lines", s.path, s.lines.len()))
        .collect();
    assert!(long.is_empty(), "cut these where it helps the reader:\n{}", long.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut files = Vec::new();
    for part in ["mesh-common", "mesh-proxy", "mesh-control", "mesh-injector", "mesh-cli", "mesh-test", "e2e"]
    {
        collect(&root().join(part).join("src"), &mut files);
    }
    let silent: Vec<_> =
        files.iter().filter(|f| !fs::read_to_string(f).unwrap().starts_with("//!")).collect();
    assert!(silent.is_empty(), "no //! at the top of {silent:?}");
}
