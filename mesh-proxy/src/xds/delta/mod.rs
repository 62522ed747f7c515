//! The client's side of incremental xDS, without I/O: which names are asked for, which versions are held,
//! what is to be sent next. It must never send a request that the server could read as "everything": a type
//! is not opened before it has a name, and `*` is not a name.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use mesh_common::xds::ResourceType;
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::service::discovery::v3 as pb;
use mesh_common::xds::protobuf::Any;

/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;
/// A refusal longer than this is cut: it travels in one message and is read by people.
const REFUSAL_BOUND: usize = 16 * 1024;
/// Requests that may wait to be sent before the caller should stop reading.
const OUTBOX_BOUND: usize = 256;

/// What a response changed, in the order of the response.
#[derive(Debug)]
pub struct Received<T> {
    /// The type it was about.
    pub kind: ResourceType,
    /// Resources that can be used.
    pub applied: Vec<(Arc<str>, T)>,
    /// Names that do not exist, or do not exist any more.
    pub removed: Vec<Arc<str>>,
    /// Why the response was refused in part, as it is told to the server.
    pub refusal: Option<String>,
}

/// A response that cannot be answered: the server and this client do not speak the same protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A type that is not known, so it cannot have been asked for.
    #[error("the server sent the type {0:?}, which is not known")]
    UnknownType(String),
    /// A type of which nothing was asked for on this stream.
    #[error("the server sent {0}, of which nothing was asked for")]
    NotOpened(ResourceType),
}

/// What is known of one name that is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// The version in force; `None` while there is none.
    pub version: Option<Arc<str>>,
    /// The server said that it does not exist.
    pub missing: bool,
    /// Why the newest version was refused, if it was.
    pub refused: Option<Arc<str>>,
}

/// The state of all types of a stream, and of the resources that outlive it.
#[derive(Debug)]
pub struct Delta {
    node: Node,
    node_sent: bool,
    types: BTreeMap<ResourceType, Subscription>,
    outbox: VecDeque<pb::DeltaDiscoveryRequest>,
}

/// The state of one type.
#[derive(Debug, Default)]
struct Subscription {
    names: BTreeMap<Arc<str>, Held>,
    subscribe: BTreeSet<Arc<str>>,
    unsubscribe: BTreeSet<Arc<str>>,
    opened: bool,
}

impl Delta {
    /// Nothing asked for yet. `node` goes out once on each stream.
    pub fn new(node: Node) -> Self {
        let types = ResourceType::ALL.into_iter().map(|kind| (kind, Subscription::default())).collect();
        Self { node, node_sent: false, types, outbox: VecDeque::new() }
    }

    /// Asks for a name. Asking for one that is held already changes nothing.
    pub fn subscribe(&mut self, kind: ResourceType, name: &str) {
        if name.is_empty() || name == "*" {
            return;
        }
        let state = self.types.entry(kind).or_default();
        if state.names.contains_key(name) {
            return;
        }
        let name: Arc<str> = name.into();
        // A withdrawal that has not gone out yet is taken back; a name subscribed again is answered again.
        state.unsubscribe.remove(&name);
        state.subscribe.insert(Arc::clone(&name));
        state.names.insert(name, Held::default());
    }

    /// Asks no longer for a name, and forgets what is held of it.
    pub fn unsubscribe(&mut self, kind: ResourceType, name: &str) {
        let state = self.types.entry(kind).or_default();
        let Some((name, _)) = state.names.remove_entry(name) else { return };
        state.subscribe.remove(&name);
        // Even one that has not been asked for yet: the server may know it from before.
        if state.opened {
            state.unsubscribe.insert(name);
        }
    }

    /// A new stream begins: everything is asked for again, with the versions that are held.
    pub fn stream_opened(&mut self) {
        self.node_sent = false;
        self.outbox.clear();
        for state in self.types.values_mut() {
            state.opened = false;
            state.subscribe.clear();
            state.unsubscribe.clear();
        }
    }

    /// Whether [`Self::next_request`] has something.
    pub fn has_request(&self) -> bool {
        !self.outbox.is_empty() || self.types.values().any(Subscription::is_due)
    }

    /// Whether so much waits to be sent that no more should be read.
    pub fn is_congested(&self) -> bool {
        self.outbox.len() >= OUTBOX_BOUND
    }

    /// The next request to send, if any. Answers go first, then what is asked for.
    pub fn next_request(&mut self) -> Option<pb::DeltaDiscoveryRequest> {
        let mut request = match self.outbox.pop_front() {
            Some(answer) => answer,
            None => {
                let (kind, state) = self.types.iter_mut().find(|(_, state)| state.is_due())?;
                state.request(*kind)
            }
        };
        if !self.node_sent {
            self.node_sent = true;
            request.node = Some(self.node.clone());
        }
        Some(request)
    }

    /// Takes a response in and prepares its answer. `decode` says whether a resource can be used.
    ///
    /// # Errors
    /// When the response cannot belong to this stream; it is not answered then.
    pub fn receive<T>(
        &mut self,
        response: pb::DeltaDiscoveryResponse,
        decode: impl FnMut(ResourceType, &str, &Any) -> Result<T, Vec<String>>,
    ) -> Result<Received<T>, ProtocolError> {
        let kind = ResourceType::from_url(&response.type_url)
            .ok_or_else(|| ProtocolError::UnknownType(response.type_url.clone()))?;
        let state = self.types.entry(kind).or_default();
        if !state.opened {
            return Err(ProtocolError::NotOpened(kind));
        }
        let nonce = response.nonce.clone();
        let received = state.receive(kind, response, decode);
        let mut answer = pb::DeltaDiscoveryRequest {
            type_url: kind.url().to_owned(),
            response_nonce: nonce,
            ..Default::default()
        };
        if let Some(reasons) = &received.refusal {
            let status = answer.error_detail.get_or_insert_default();
            status.code = INVALID_ARGUMENT;
            status.message = reasons.clone();
        }
        self.outbox.push_back(answer);
        Ok(received)
    }

    /// Takes in what an earlier run received, as [`Self::receive`] does; the next stream says which versions are
    /// held. Nobody waits for an answer.
    ///
    /// # Errors
    /// When its type is not known.
    pub fn restore<T>(
        &mut self,
        kept: pb::DeltaDiscoveryResponse,
        decode: impl FnMut(ResourceType, &str, &Any) -> Result<T, Vec<String>>,
    ) -> Result<Received<T>, ProtocolError> {
        let kind = ResourceType::from_url(&kept.type_url)
            .ok_or_else(|| ProtocolError::UnknownType(kept.type_url.clone()))?;
        Ok(self.types.entry(kind).or_default().receive(kind, kept, decode))
    }

    /// What is known of one name, if it is asked for.
    pub fn held(&self, kind: ResourceType, name: &str) -> Option<&Held> {
        self.types.get(&kind)?.names.get(name)
    }

    /// What is known of each name of a type.
    pub fn names(&self, kind: ResourceType) -> impl Iterator<Item = (&Arc<str>, &Held)> {
        self.types.get(&kind).into_iter().flat_map(|state| &state.names)
    }
}

impl Subscription {
    fn is_due(&self) -> bool {
        if self.opened {
            !self.subscribe.is_empty() || !self.unsubscribe.is_empty()
        } else {
            !self.names.is_empty()
        }
    }

    /// The request that is due. The first one of a stream names everything, with the versions held.
    fn request(&mut self, kind: ResourceType) -> pb::DeltaDiscoveryRequest {
        let mut request = pb::DeltaDiscoveryRequest { type_url: kind.url().to_owned(), ..Default::default() };
        let text = |name: &Arc<str>| name.to_string();
        if self.opened {
            request.resource_names_subscribe = self.subscribe.iter().map(text).collect();
            request.resource_names_unsubscribe = self.unsubscribe.iter().map(text).collect();
        } else {
            self.opened = true;
            request.resource_names_subscribe = self.names.keys().map(text).collect();
            request.initial_resource_versions = self
                .names
                .iter()
                .filter_map(|(name, held)| Some((name.to_string(), held.version.as_deref()?.to_owned())))
                .collect();
        }
        self.subscribe.clear();
        self.unsubscribe.clear();
        request
    }

    fn receive<T>(
        &mut self,
        kind: ResourceType,
        response: pb::DeltaDiscoveryResponse,
        mut decode: impl FnMut(ResourceType, &str, &Any) -> Result<T, Vec<String>>,
    ) -> Received<T> {
        let pb::DeltaDiscoveryResponse {
            system_version_info: _,
            resources,
            type_url: _,
            removed_resources,
            removed_resource_names: _, // only for resources asked for by locator, which this client never does
            nonce: _,
            control_plane: _,
            resource_errors: _, // information beside a removal or an older version
        } = response;
        let mut received = Received { kind, applied: Vec::new(), removed: Vec::new(), refusal: None };
        let mut refusals = Vec::new();
        for resource in resources {
            let Some((name, held)) = self.entry(&resource.name) else { continue };
            match usable(&resource).and_then(|any| decode(kind, &resource.name, any)) {
                Ok(value) => {
                    *held = Held { version: Some(resource.version.into()), missing: false, refused: None };
                    received.applied.push((name, value));
                }
                Err(reasons) => {
                    let text = format!("{kind} {name}: {}", reasons.join("; "));
                    held.refused = Some(text.as_str().into());
                    refusals.push(text);
                }
            }
        }
        for name in removed_resources {
            let Some((name, held)) = self.entry(&name) else { continue };
            *held = Held { version: None, missing: true, refused: None };
            received.removed.push(name);
        }
        received.refusal = (!refusals.is_empty()).then(|| bounded(refusals.join("\n")));
        received
    }

    /// What is known of a name, if it is asked for: whatever else comes is ignored.
    fn entry(&mut self, name: &str) -> Option<(Arc<str>, &mut Held)> {
        let (name, _) = self.names.get_key_value(name)?;
        let name = Arc::clone(name);
        self.names.get_mut(&name).map(|held| (name, held))
    }
}

/// The message of a resource, if nothing around it needs code that is not there.
fn usable(resource: &pb::Resource) -> Result<&Any, Vec<String>> {
    let pb::Resource { name: _, resource_name, aliases, version, resource, ttl, cache_control, metadata: _ } =
        resource;
    let mut reasons = Vec::new();
    let mut unset = |field: &str, is_set: bool| {
        if is_set {
            reasons.push(format!("{field}: this field is not supported"));
        }
    };
    unset("resource_name", resource_name.is_some());
    unset("aliases", !aliases.is_empty());
    unset("ttl", ttl.is_some());
    unset("cache_control", cache_control.is_some());
    if version.is_empty() {
        reasons.push("version: this field must be set".to_owned());
    }
    if resource.is_none() {
        reasons.push("resource: this field must be set".to_owned());
    }
    match resource {
        Some(any) if reasons.is_empty() => Ok(any),
        _ => Err(reasons),
    }
}

fn bounded(mut text: String) -> String {
    if text.len() > REFUSAL_BOUND {
        let mut end = REFUSAL_BOUND;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(" ...");
    }
    text
}
