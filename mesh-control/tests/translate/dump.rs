//! Resources as text that people can read and compare: the pretty `Debug` form without what is unset, packed
//! messages unpacked, maps sorted.

use std::fmt::Write as _;

use mesh_common::xds::proto::config::cluster::v3::Cluster;
use mesh_common::xds::proto::config::endpoint::v3::ClusterLoadAssignment;
use mesh_common::xds::proto::config::listener::v3::Listener;
use mesh_common::xds::proto::config::route::v3::RouteConfiguration;
use mesh_common::xds::proto::extensions::access_loggers::stream::v3::StdoutAccessLog;
use mesh_common::xds::proto::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use mesh_common::xds::proto::extensions::filters::network::set_filter_state::v3::Config as SetFilterState;
use mesh_common::xds::proto::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use mesh_common::xds::proto::extensions::transport_sockets::tls::v3::{
    DownstreamTlsContext, Secret, UpstreamTlsContext,
};
use mesh_common::xds::proto::extensions::upstreams::http::v3::HttpProtocolOptions;
use mesh_common::xds::protobuf::Any;
use prost::Message;

/// The text of a resource.
pub fn dump(any: &Any) -> String {
    let mut out = String::new();
    render_all(&unpack(&any.type_url, &any.value), 0, &mut out);
    out
}

#[derive(Debug, Clone)]
enum Tree {
    Leaf { key: String, value: String },
    Block { key: String, label: String, open: char, children: Vec<Tree> },
}

impl Tree {
    fn key(&self) -> &str {
        match self {
            Self::Leaf { key, .. } | Self::Block { key, .. } => key,
        }
    }

    fn with_key(mut self, new: String) -> Self {
        match &mut self {
            Self::Leaf { key, .. } | Self::Block { key, .. } => *key = new,
        }
        self
    }
}

fn unpack(type_url: &str, value: &[u8]) -> Vec<Tree> {
    fn show<M: Message + Default + std::fmt::Debug>(value: &[u8]) -> String {
        format!("{:#?}", M::decode(value).unwrap())
    }
    let name = type_url.rsplit('.').next().unwrap();
    let text = match name {
        "Cluster" => show::<Cluster>(value),
        "ClusterLoadAssignment" => show::<ClusterLoadAssignment>(value),
        "Listener" => show::<Listener>(value),
        "RouteConfiguration" => show::<RouteConfiguration>(value),
        "Secret" => show::<Secret>(value),
        "Address" => show::<mesh_common::workload::Address>(value),
        "HttpConnectionManager" => show::<HttpConnectionManager>(value),
        "TcpProxy" => show::<TcpProxy>(value),
        "StdoutAccessLog" => show::<StdoutAccessLog>(value),
        "UpstreamTlsContext" => show::<UpstreamTlsContext>(value),
        "DownstreamTlsContext" => show::<DownstreamTlsContext>(value),
        "Config" => show::<SetFilterState>(value),
        "HttpProtocolOptions" => show::<HttpProtocolOptions>(value),
        "Router" | "RawBuffer" | "OriginalDst" | "TlsInspector" | "HttpInspector" if value.is_empty() => {
            name.to_owned()
        }
        other => panic!("{other} is not known to the dump"),
    };
    let kind = Tree::Leaf { key: "@type".to_owned(), value: name.to_owned() };
    let fields = match parse(&mut text.lines()).pop() {
        Some(Tree::Block { children, .. }) => children,
        _ => Vec::new(),
    };
    [vec![kind], fields].concat()
}

fn parse(lines: &mut std::str::Lines<'_>) -> Vec<Tree> {
    let mut trees = Vec::new();
    while let Some(line) = lines.next() {
        let line = line.trim().trim_end_matches(',');
        if line.starts_with(['}', ')', ']']) {
            break;
        }
        let split = match line.strip_prefix('"') {
            // Either a text, or a key of a map.
            Some(rest) => rest.find("\": ").map(|at| (&line[1..=at], &line[at + 4..])),
            None => line.split_once(": "),
        };
        let (key, value) = split.unwrap_or(("", line));
        let key = key.to_owned();
        trees.push(match value.chars().last() {
            Some(open @ ('{' | '(' | '[')) => {
                let label = value[..value.len() - 1].trim().to_owned();
                fold(Tree::Block { key, label, open, children: parse(lines) })
            }
            _ => Tree::Leaf { key, value: value.to_owned() },
        });
    }
    trees
}

/// Takes out what only Rust needs.
fn fold(tree: Tree) -> Tree {
    let Tree::Block { key, label, open, mut children } = tree else {
        return tree;
    };
    match (label.as_str(), open) {
        ("Some", '(') if children.len() == 1 => {
            let child = children.remove(0);
            let key = if child.key().is_empty() { key } else { format!("{key}.{}", child.key()) };
            child.with_key(key)
        }
        (_, '(') if children.len() == 1 => {
            let variant = format!("{key}.{label}");
            children.remove(0).with_key(variant.trim_start_matches('.').to_owned())
        }
        ("UInt32Value" | "BoolValue", _) => match children.remove(0).with_key(key) {
            Tree::Leaf { key, value } if value == "0" || value == "false" => {
                Tree::Leaf { key, value: format!("{value} (set)") }
            }
            other => other,
        },
        ("Duration", _) => {
            let part = |tree: &Tree| match tree {
                Tree::Leaf { value, .. } => value.parse::<i64>().unwrap(),
                Tree::Block { .. } => 0,
            };
            let ms = part(&children[0]) * 1000 + part(&children[1]) / 1_000_000;
            Tree::Leaf { key, value: format!("{ms}ms") }
        }
        ("Any", _) => {
            let Tree::Leaf { value: url, .. } = &children[0] else { panic!("an Any has a type") };
            let bytes = match &children[1] {
                Tree::Block { children, .. } => children.iter().map(byte).collect(),
                Tree::Leaf { .. } => Vec::new(),
            };
            let children = unpack(url.trim_matches('"'), &bytes);
            Tree::Block { key, label: String::new(), open: '{', children }
        }
        _ => {
            // A map, or a message; fields of messages stay in their order.
            if label.is_empty() && open == '{' {
                children.sort_by(|a, b| a.key().cmp(b.key()));
            }
            children.retain(|child| !is_unset(child));
            Tree::Block { key, label, open, children }
        }
    }
}

fn byte(tree: &Tree) -> u8 {
    match tree {
        Tree::Leaf { value, .. } => value.parse().unwrap(),
        Tree::Block { .. } => panic!("a byte is a number"),
    }
}

fn is_unset(tree: &Tree) -> bool {
    const ZERO: [&str; 8] =
        ["false", "None", "\"\"", "[]", "{}", "0", "Unspecified", "UseConfiguredClusterProtocol"];
    // Enumerations at zero that say nothing about the mesh.
    const DEFAULTS: [(&str, &str); 15] = [
        ("priority", "Default"),
        ("source_type", "Any"),
        ("dns_lookup_family", "Auto"),
        ("codec_type", "Auto"),
        ("server_header_transformation", "Overwrite"),
        ("forward_client_cert_details", "Sanitize"),
        ("path_with_escaped_slashes_action", "ImplementationSpecificDefault"),
        ("proxy_protocol_tlv_merge_policy", "AddIfAbsent"),
        ("upstream_connect_mode", "Immediate"),
        ("internal_redirect_action", "PassThroughInternalRedirect"),
        ("ocsp_staple_policy", "LenientStapling"),
        ("protocol_selection", "UseConfiguredProtocol"),
        ("trust_chain_verification", "VerifyTrustChain"),
        ("protocol", "Tcp"),
        ("drain_type", "Default"),
    ];
    match tree {
        Tree::Leaf { key, value } => {
            let plain = !key.is_empty() && !key.contains('.');
            plain && (ZERO.contains(&value.as_str()) || DEFAULTS.contains(&(key.as_str(), value.as_str())))
        }
        Tree::Block { .. } => false,
    }
}

fn render_all(trees: &[Tree], depth: usize, out: &mut String) {
    for tree in trees {
        render(tree, depth, "", out);
    }
}

fn render(tree: &Tree, depth: usize, bullet: &str, out: &mut String) {
    let indent = "  ".repeat(depth);
    match tree {
        Tree::Leaf { key, value } if key.is_empty() => writeln!(out, "{indent}{bullet}{value}").unwrap(),
        Tree::Leaf { key, value } => writeln!(out, "{indent}{bullet}{key}: {value}").unwrap(),
        Tree::Block { key, open, children, .. } => {
            if !key.is_empty() {
                let empty = if children.is_empty() { " {}" } else { "" };
                writeln!(out, "{indent}{bullet}{key}:{empty}").unwrap();
            } else if !bullet.is_empty() {
                writeln!(out, "{indent}-").unwrap();
            }
            for child in children {
                render(child, depth + 1, if *open == '[' { "- " } else { "" }, out);
            }
        }
    }
}
