//! mesh-control's side of state-of-the-world xDS against a client that does as it likes: as the incremental one.

use std::collections::HashMap;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use mesh_common::xds::ResourceType;
use mesh_control::serve::cache::Answer;
use mesh_control::serve::delta::Limits;
use mesh_control::serve::sotw::{SotwRequest, SotwState};
use tokio::time::Instant;

use crate::delta_server::{NAMES, Nonce, Watched, list};
use crate::{kind, name};

#[derive(Debug, Arbitrary)]
enum Step {
    Request(Request),
    Changed(u8, u8),
    List(Vec<u8>),
    Respond,
}

#[derive(Debug, Arbitrary)]
struct Request {
    kind: u8,
    names: Vec<u8>,
    version: String,
    nonce: Nonce,
    refused: bool,
}

/// The bytes are steps.
pub fn run(bytes: &[u8]) {
    let Ok((everything, steps)) = <(bool, Vec<Step>)>::arbitrary_take_rest(Unstructured::new(bytes)) else {
        return;
    };
    let mut state = SotwState::new(Limits { names: NAMES, ..Limits::default() }, everything);
    let mut last: HashMap<ResourceType, String> = HashMap::new();
    let mut watched = Watched::default();
    let now = Instant::now();
    for step in steps {
        match step {
            Step::Request(Request { kind: number, names, version, nonce, refused }) => {
                let kind = kind(number);
                let request = SotwRequest {
                    names: names.into_iter().map(name).collect(),
                    version,
                    nonce: nonce.text(kind, &last),
                    error: refused.then(|| "no good".to_owned()),
                };
                let Ok(effects) = state.request(kind, request) else { return };
                watched.apply(effects);
            }
            Step::Changed(k, n) => state.changed(&(kind(k), Arc::from(name(n)))),
            Step::List(names) => {
                let Some(kind) = state.stale_list() else { continue };
                let Ok(effects) = state.take_list(kind, list(names), now) else { return };
                watched.apply(effects);
            }
            Step::Respond => {
                let Some(response) = state.next_response(now, |_| Some(Answer::Missing)) else { continue };
                assert!(state.waiting_since().is_some(), "nobody waits for the answer");
                last.insert(response.kind, response.nonce);
            }
        }
        watched.is(state.subscriptions());
    }
}
