//! Configuration as bytes of a file: a first line that names format and version, a checksum, the node, and what
//! is held, as the messages in which it was received. Pure. Bytes of any kind are refused with a reason, never
//! with a panic.

use std::sync::Arc;

use bytes::Buf as _;
use mesh_common::xds::ResourceType;
use mesh_common::xds::names::ListenerName;
use mesh_common::xds::proto::config::core::v3::Node;
use mesh_common::xds::proto::service::discovery::v3 as pb;
use prost::Message as _;
use twox_hash::XxHash3_128;

use super::Kept;

/// Changes with the format: another version of it is not read.
const FIRST_LINE: &[u8] = b"mesh-proxy configuration, format 1\n";
const CHECKSUM: usize = size_of::<u128>();

/// Why the bytes cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// They are something else, or of another version of the format.
    #[error("it is not kept configuration of this format")]
    Format,
    /// They are not the bytes that were written.
    #[error("its checksum is wrong")]
    Checksum,
    /// They hold something that cannot be read.
    #[error("it cannot be read: {0}")]
    Message(String),
    /// They were kept by another pod, or by another version of the proxy.
    #[error("it was kept by {kept:?}, this is {id:?}")]
    OtherNode {
        /// Who kept it.
        kept: String,
        /// Who we are.
        id: String,
    },
}

/// What is held, as bytes; at most about `bound` of them. What there is no room for is left out, and counted:
/// least what no connection can be served without.
pub fn encode(node: &Node, mut kept: Vec<Kept>, bound: usize) -> (Vec<u8>, usize) {
    kept.sort_by_cached_key(|kept| (rank(kept), kept.kind, Arc::clone(&kept.name)));
    let mut payload = node.encode_length_delimited_to_vec();
    let mut room = bound.saturating_sub(payload.len());
    let mut left_out = 0;
    let mut message = pb::DeltaDiscoveryResponse::default();
    for kept in kept {
        let size = kept.size();
        if size > room {
            left_out += 1;
            continue;
        }
        room -= size;
        if message.type_url != kept.kind.url() {
            append(&mut payload, &message);
            message =
                pb::DeltaDiscoveryResponse { type_url: kept.kind.url().to_owned(), ..Default::default() };
        }
        match &kept.resource {
            Some(resource) => message.resources.push(pb::Resource::clone(resource)),
            None => message.removed_resources.push(kept.name.to_string()),
        }
    }
    append(&mut payload, &message);
    let checksum = XxHash3_128::oneshot(&payload).to_be_bytes();
    ([FIRST_LINE, &checksum, &payload].concat(), left_out)
}

/// What was held, in the order in which it can be taken in.
///
/// # Errors
/// When the bytes are broken, or not of this node.
pub fn decode(bytes: &[u8], node: &Node) -> Result<Vec<pb::DeltaDiscoveryResponse>, Unusable> {
    let rest = bytes.strip_prefix(FIRST_LINE).ok_or(Unusable::Format)?;
    let (checksum, mut payload) = rest.split_at_checked(CHECKSUM).ok_or(Unusable::Format)?;
    if XxHash3_128::oneshot(payload).to_be_bytes() != checksum {
        return Err(Unusable::Checksum);
    }
    let broken = |error: prost::DecodeError| Unusable::Message(error.to_string());
    let kept = Node::decode_length_delimited(&mut payload).map_err(broken)?;
    if kept != *node {
        return Err(Unusable::OtherNode { kept: named(&kept), id: named(node) });
    }
    let mut messages = Vec::new();
    while payload.has_remaining() {
        messages.push(pb::DeltaDiscoveryResponse::decode_length_delimited(&mut payload).map_err(broken)?);
    }
    Ok(messages)
}

fn append(payload: &mut Vec<u8>, message: &pb::DeltaDiscoveryResponse) {
    if !message.type_url.is_empty() {
        payload.extend(message.encode_length_delimited_to_vec());
    }
}

/// The own pod's listeners and clusters first: without them nothing is served.
fn rank(kept: &Kept) -> u8 {
    match kept.kind {
        ResourceType::Secret => 0,
        ResourceType::Listener => match kept.name.parse() {
            Ok(ListenerName::Inbound { .. } | ListenerName::VirtualOutbound) => 1,
            _ => 3,
        },
        ResourceType::Cluster if !kept.name.starts_with("outbound|") => 2,
        _ => 3,
    }
}

fn named(node: &Node) -> String {
    use mesh_common::xds::proto::config::core::v3::node::UserAgentVersionType::UserAgentVersion;
    match &node.user_agent_version_type {
        Some(UserAgentVersion(version)) => format!("{} {version}", node.id),
        _ => node.id.clone(),
    }
}
