//! What a route changes: path, host, headers, and the Location of a redirect. Pure.

use std::borrow::Cow;

use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Uri};

use super::route::{Head, without_port};
use crate::config::route::{HeaderMutation, PathMatch, PathRewrite, Redirect};

/// The path after a rewrite; the query is not part of it.
pub fn path<'a>(rewrite: &'a PathRewrite, matched: &PathMatch, path: &'a str) -> Cow<'a, str> {
    match rewrite {
        PathRewrite::Full(full) => Cow::Borrowed(full),
        PathRewrite::Regex { pattern, substitution } => pattern.replace(path, substitution.as_str()),
        PathRewrite::Prefix(new) => replace_prefix(matched, path, new),
    }
}

/// Replaces the prefix that was matched. The joint never has two slashes, and the result is never empty.
fn replace_prefix<'a>(matched: &PathMatch, path: &'a str, new: &'a str) -> Cow<'a, str> {
    let (length, separated) = match matched {
        PathMatch::PathSeparatedPrefix(prefix) => (prefix.len(), true),
        PathMatch::Prefix(prefix) => (prefix.len(), prefix == "/"),
        PathMatch::Exact(exact) => (exact.len(), false),
        PathMatch::Regex(_) => (path.len(), false),
    };
    let rest = path.get(length..).unwrap_or_default();
    if rest.is_empty() {
        return Cow::Borrowed(if new.is_empty() { "/" } else { new });
    }
    if !separated {
        return Cow::Owned(format!("{new}{rest}"));
    }
    Cow::Owned(format!("{}/{}", new.trim_end_matches('/'), rest.trim_start_matches('/')))
}

/// The Location of a redirect; none when what comes out is not a header's value.
pub fn location(
    redirect: &Redirect,
    matched: &PathMatch,
    head: &Head<'_>,
    scheme: &str,
) -> Option<HeaderValue> {
    let bare = without_port(head.authority);
    let own_port = head.authority.get(bare.len() + 1..).and_then(|port| port.parse::<u16>().ok());
    let new_scheme = redirect.scheme.as_deref().unwrap_or(scheme);
    let host = redirect.host.as_deref().unwrap_or(bare);
    // A new scheme means that scheme's port, unless one is given.
    let port = redirect.port.or(if redirect.scheme.is_some() { None } else { own_port });
    let target = match &redirect.path {
        Some(rewrite) => path(rewrite, matched, head.path),
        None => Cow::Borrowed(head.path),
    };
    let default_port = if new_scheme == "https" { 443 } else { 80 };
    let mut out = format!("{new_scheme}://{host}");
    if let Some(port) = port.filter(|port| *port != default_port) {
        out.push_str(&format!(":{port}"));
    }
    out.push_str(&target);
    if let Some(query) = head.query {
        out.push('?');
        out.push_str(query);
    }
    HeaderValue::try_from(out).ok()
}

/// Applies a route's changes: removed, then set, then added.
pub fn headers(mutation: &HeaderMutation, headers: &mut HeaderMap) {
    for name in &mutation.remove {
        headers.remove(name);
    }
    for (name, value) in &mutation.set {
        headers.insert(name, value.clone());
    }
    for (name, value) in &mutation.add {
        headers.append(name, value.clone());
    }
}

/// Path and query as one.
pub fn path_and_query(path: &str, query: Option<&str>) -> Option<http::uri::PathAndQuery> {
    match query {
        None => http::uri::PathAndQuery::try_from(path).ok(),
        Some(query) => http::uri::PathAndQuery::from_maybe_shared(format!("{path}?{query}")).ok(),
    }
}

/// The target of an upstream request: origin form for HTTP/1.1, absolute for HTTP/2.
pub fn target(http2: bool, authority: &Authority, path: http::uri::PathAndQuery) -> Option<Uri> {
    if !http2 {
        return Some(Uri::from(path));
    }
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = Some(authority.clone());
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).ok()
}
