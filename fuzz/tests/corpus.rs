//! Every target takes its corpus: what a fuzzer once found stays found.
#![allow(clippy::unwrap_used)] // test code

use std::fs;
use std::path::Path;

use mesh_fuzz::TARGETS;

#[test]
fn every_target_takes_its_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, run) in TARGETS {
        let inputs: Vec<_> =
            fs::read_dir(corpus.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(inputs.len() > 2, "the corpus of {name} is empty");
        for input in inputs {
            run(&fs::read(&input).unwrap());
        }
    }
    let folders = fs::read_dir(corpus).unwrap().count();
    assert_eq!(folders, TARGETS.len(), "a corpus without a target");
}
