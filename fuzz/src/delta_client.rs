//! The proxy's side of incremental xDS against a server that does as it likes: nothing that was not asked for is
//! taken, every response is answered, and the names stay those that were asked for.

use std::collections::BTreeSet;

use arbitrary::{Arbitrary, Unstructured};
use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use mesh_common::xds::protobuf::Any;
use mesh_proxy::xds::delta::Delta;

use crate::{kind, name};

#[derive(Debug, Arbitrary)]
enum Step {
    Subscribe(u8, u8),
    Unsubscribe(u8, u8),
    Open,
    Send,
    Receive(Response),
    Strange(String),
}

#[derive(Debug, Arbitrary)]
struct Response {
    kind: u8,
    resources: Vec<(u8, u8)>,
    good: bool,
    removed: Vec<u8>,
    nonce: u8,
}

/// What was asked for.
type Wanted = BTreeSet<(ResourceType, String)>;

/// The bytes are steps.
pub fn run(bytes: &[u8]) {
    let Ok(steps) = Vec::<Step>::arbitrary_take_rest(Unstructured::new(bytes)) else { return };
    let mut delta = Delta::new(Node::default());
    let mut wanted = Wanted::new();
    for step in steps {
        match step {
            Step::Subscribe(k, n) => {
                delta.subscribe(kind(k), &name(n));
                wanted.insert((kind(k), name(n)));
            }
            Step::Unsubscribe(k, n) => {
                delta.unsubscribe(kind(k), &name(n));
                wanted.remove(&(kind(k), name(n)));
            }
            Step::Open => delta.stream_opened(),
            Step::Send => drop(delta.next_request()),
            Step::Receive(response) => receive(&mut delta, &wanted, &response),
            Step::Strange(type_url) => {
                let response = DeltaDiscoveryResponse { type_url, ..Default::default() };
                drop(delta.receive(response, |_, _, _| Ok(())));
            }
        }
        for kind in ResourceType::ALL {
            for (name, _) in delta.names(kind) {
                assert!(wanted.contains(&(kind, name.to_string())), "{name} is kept");
            }
        }
    }
}

fn receive(delta: &mut Delta, wanted: &Wanted, response: &Response) {
    let Response { kind: number, resources, good, removed, nonce } = response;
    let kind = kind(*number);
    let resource = |(number, version): &(u8, u8)| Resource {
        name: name(*number),
        version: version.to_string(),
        resource: Some(Any { type_url: kind.url().to_owned(), value: vec![*version] }),
        ..Default::default()
    };
    let message = DeltaDiscoveryResponse {
        type_url: kind.url().to_owned(),
        nonce: nonce.to_string(),
        resources: resources.iter().map(resource).collect(),
        removed_resources: removed.iter().copied().map(name).collect(),
        ..Default::default()
    };
    let decode = |_, _: &str, _: &Any| if *good { Ok(()) } else { Err(vec!["no good".to_owned()]) };
    let Ok(received) = delta.receive(message, decode) else { return };
    assert!(*good || received.applied.is_empty(), "a resource that is no good was taken");
    for (name, ()) in &received.applied {
        assert!(wanted.contains(&(kind, name.to_string())), "{name} was not asked for");
    }
    assert!(delta.has_request(), "the response is not answered");
}
