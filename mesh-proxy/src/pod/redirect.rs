//! Where a redirect leads, and whether a probe follows it: as kubelet, only on the same host and not for ever. Pure.

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

/// Redirects that are followed; one more is a failure.
pub(super) const MAX: usize = 10;

/// What is to be done with a redirect.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask there.
    Follow(Uri),
    /// It leads to another host: the application has answered, that is enough.
    Elsewhere,
}

/// Where `location` leads, seen from the absolute URI `from`. `None` when it is no URI.
pub(super) fn next(from: &Uri, location: &str) -> Option<Next> {
    let (scheme, authority) = (from.scheme()?.clone(), from.authority()?.clone());
    let location = location.split('#').next().unwrap_or_default();
    let to: Uri = if location.starts_with("//") {
        format!("{scheme}:{location}").parse().ok()?
    } else if location.contains("://") {
        location.parse().ok()?
    } else {
        build(scheme, authority, &path(from, location))?
    };
    let known = to.scheme() == Some(&Scheme::HTTP) || to.scheme() == Some(&Scheme::HTTPS);
    let same = to.host().is_some_and(|host| Some(host) == from.host());
    if !known || !same {
        return Some(Next::Elsewhere);
    }
    let target = to.path_and_query().map_or("/", PathAndQuery::as_str).to_owned();
    Some(Next::Follow(build(to.scheme()?.clone(), to.authority()?.clone(), &target)?))
}

fn path(from: &Uri, location: &str) -> String {
    match location.as_bytes().first() {
        Some(b'/') => location.to_owned(),
        Some(b'?') => format!("{}{location}", from.path()),
        None => from.path_and_query().map_or("/", PathAndQuery::as_str).to_owned(),
        Some(_) => {
            let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{folder}/{location}")
        }
    }
}

fn build(scheme: Scheme, authority: Authority, path: &str) -> Option<Uri> {
    Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_host_is_asked_again() {
        let from: Uri = "http://10.0.0.1:8080/a/b?c".parse().unwrap();
        let follow = |text: &str| Some(Next::Follow(text.parse().unwrap()));
        for (location, expected) in [
            ("/x", follow("http://10.0.0.1:8080/x")),
            ("/x?y#z", follow("http://10.0.0.1:8080/x?y")),
            ("x", follow("http://10.0.0.1:8080/a/x")),
            ("?y", follow("http://10.0.0.1:8080/a/b?y")),
            ("", follow("http://10.0.0.1:8080/a/b?c")),
            ("https://10.0.0.1:8443/x", follow("https://10.0.0.1:8443/x")),
            ("//10.0.0.1/x", follow("http://10.0.0.1/x")),
            ("http://10.0.0.1", follow("http://10.0.0.1/")),
            ("http://10.0.0.2:8080/x", Some(Next::Elsewhere)),
            ("//metadata.internal/x", Some(Next::Elsewhere)),
            ("ftp://10.0.0.1/x", Some(Next::Elsewhere)),
            ("http://", None),
            ("/a b", None),
        ] {
            assert_eq!(next(&from, location), expected, "{location}");
        }
    }
}
