//! The strict layer above hyper: what a request's head must be before anything looks at it, and which headers
//! pass. Hop-by-hop headers never pass, nor headers by which a client could claim to be somebody else.

use std::borrow::Cow;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, InvalidHeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};
use rand::RngCore;

/// Headers of one request, at most.
pub const MAX_HEADERS: usize = 100;
/// Bytes of all headers of one request, at most.
pub const MAX_HEADER_BYTES: usize = 60 * 1024;

/// A server's sidecar says to a client's sidecar, with an answer of its own: the application has not seen this
/// request, another endpoint may have it. It never comes from an application, and never reaches one.
pub const UNPROCESSED: HeaderName = HeaderName::from_static("x-mesh-unprocessed");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Why a request's head is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many or too large headers.
    #[error("the request has more than {MAX_HEADERS} headers or more than {MAX_HEADER_BYTES} bytes of them")]
    TooLarge,
    /// HTTP/1.1 asks for exactly one Host.
    #[error("the request has {0} Host headers instead of one")]
    Host(usize),
    /// A Host or authority that is not one.
    #[error("the request's Host is not a host with an optional port")]
    InvalidHost,
    /// Two readers could disagree where the body ends.
    #[error("the request has both Content-Length and Transfer-Encoding")]
    Framing,
    /// CONNECT inside an HTTP connection.
    #[error("CONNECT is not taken here; use the forward-proxy port")]
    Connect,
}

impl Refused {
    /// The status that answers it.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Connect => StatusCode::FORBIDDEN,
            Self::Host(_) | Self::InvalidHost | Self::Framing => StatusCode::BAD_REQUEST,
        }
    }
}

/// The authority of a request, when its head is one that every reader understands in the same way.
///
/// # Errors
/// When the head must be refused.
pub fn check<B>(request: &Request<B>) -> Result<Authority, Refused> {
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(Refused::TooLarge);
    }
    if request.method() == Method::CONNECT {
        return Err(Refused::Connect);
    }
    if headers.contains_key(TRANSFER_ENCODING) && headers.contains_key(CONTENT_LENGTH) {
        return Err(Refused::Framing);
    }
    authority(request)
}

fn authority<B>(request: &Request<B>) -> Result<Authority, Refused> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refused::Host(request.headers().get_all(HOST).iter().count()));
    }
    if host.is_none() && request.version() == Version::HTTP_11 {
        return Err(Refused::Host(0));
    }
    // An absolute URI wins over Host (RFC 9112 3.2.2).
    let authority = match (request.uri().authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(|_| Refused::InvalidHost)?,
        (None, None) => return Err(Refused::Host(0)),
    };
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return Err(Refused::InvalidHost);
    }
    Ok(authority)
}

/// The protocol that an HTTP/1.1 request wants to change to, if it does.
pub fn upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let wanted = request.version() == Version::HTTP_11
        && tokens(request.headers(), &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    // HTTP/2 by upgrade is not taken up: the request goes on as what it is (RFC 9110 7.8 allows that).
    request.headers().get(UPGRADE).filter(|to| wanted && !to.as_bytes().eq_ignore_ascii_case(b"h2c")).cloned()
}

/// Takes hop-by-hop headers away. `trailers` keeps `TE: trailers`, which gRPC servers ask for.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, trailers: bool) {
    // Most messages have none; one look at all names costs a quarter of looking for each.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
    if headers.contains_key(CONNECTION) {
        let listed: Vec<HeaderName> =
            tokens(headers, &CONNECTION).filter_map(|token| token.parse().ok()).collect();
        for name in listed.iter().filter(|name| !is_protected(name)) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    if headers.contains_key(TE) {
        let keep = trailers && tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"));
        headers.remove(TE);
        if keep {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
    for name in
        [KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TRANSFER_ENCODING, UPGRADE]
    {
        headers.remove(name);
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Headers that a client cannot have removed by listing them in Connection: the next hop's meaning depends on
/// them.
fn is_protected(name: &HeaderName) -> bool {
    [HOST, CONTENT_LENGTH, CLIENT_CERT, FORWARDED_PROTO, REQUEST_ID].contains(name)
        || name.as_str().starts_with("x-envoy-")
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Makes the headers of an inbound request those that the application may trust. `client_cert` is what the
/// verified peer is, none on plaintext.
pub fn trust_inbound(headers: &mut HeaderMap, client_cert: Option<&HeaderValue>) {
    match client_cert {
        Some(value) => {
            headers.insert(CLIENT_CERT, value.clone());
        }
        None => {
            headers.remove(CLIENT_CERT);
        }
    }
    while let Some(name) = headers.keys().find(|name| name.as_str().starts_with("x-envoy-")).cloned() {
        headers.remove(name);
    }
}

/// What `x-forwarded-client-cert` says of a verified peer, in Istio's form.
pub fn client_cert(own: &str, peer: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("By={own};URI={peer}")).ok()
}

/// Makes Host what is asked for. A client has nearly always written it so.
///
/// # Errors
/// When it is not a header's value.
pub fn set_host(headers: &mut HeaderMap, authority: &Authority) -> Result<(), InvalidHeaderValue> {
    if headers.get(HOST).is_none_or(|host| host.as_bytes() != authority.as_str().as_bytes()) {
        headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
    }
    Ok(())
}

/// Headers that every forwarded request has.
pub fn complete(headers: &mut HeaderMap) {
    headers.remove(EXPECT); // the proxy asks the client for the body itself, when it is wanted
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if !headers.contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::from_maybe_shared(bytes::Bytes::copy_from_slice(&request_id()))
    {
        headers.insert(REQUEST_ID, id);
    }
}

/// The request's id, for the access log.
pub fn id_of(headers: &HeaderMap) -> Cow<'_, str> {
    headers.get(REQUEST_ID).map_or(Cow::Borrowed(""), |id| String::from_utf8_lossy(id.as_bytes()))
}

/// Where the bytes of a UUID stand in its text.
const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A random UUID (version 4).
fn request_id() -> [u8; 36] {
    let mut random = [0; 16];
    rand::rng().fill_bytes(&mut random);
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let mut out = [b'-'; 36];
    for (byte, at) in random.into_iter().zip(PLACES) {
        out[at] = DIGITS[usize::from(byte >> 4)];
        out[at + 1] = DIGITS[usize::from(byte & 0xf)];
    }
    out
}

/// Whether this is a gRPC request or response.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|value| {
        let value = value.as_bytes();
        value.starts_with(b"application/grpc") && matches!(value.get(16), None | Some(b'+' | b';'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri("/x");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn refuses_what_two_readers_read_differently() {
        for (lines, expected) in [
            (vec![("host", "a:80")], Ok("a:80")),
            (vec![], Err(Refused::Host(0))),
            (vec![("host", "a"), ("host", "b")], Err(Refused::Host(2))),
            (vec![("host", "")], Err(Refused::InvalidHost)),
            (vec![("host", "a b")], Err(Refused::InvalidHost)),
            (vec![("host", "u@a")], Err(Refused::InvalidHost)),
            (
                vec![("host", "a"), ("content-length", "1"), ("transfer-encoding", "chunked")],
                Err(Refused::Framing),
            ),
        ] {
            let result = check(&request(&lines));
            assert_eq!(result.as_ref().map(Authority::as_str), expected.as_ref().copied(), "{lines:?}");
        }
        let many: Vec<_> = (0..=MAX_HEADERS).map(|_| ("x", "y")).collect();
        assert_eq!(check(&request(&many)), Err(Refused::TooLarge));
        let large = "y".repeat(MAX_HEADER_BYTES);
        assert_eq!(check(&request(&[("host", "a"), ("x", &large)])), Err(Refused::TooLarge));
    }

    #[test]
    fn absolute_form_wins_over_host() {
        let absolute =
            Request::builder().uri("http://reviews:9080/x").header("host", "evil").body(()).unwrap();
        assert_eq!(check(&absolute).unwrap(), "reviews:9080");
    }

    #[test]
    fn hop_by_hop_headers_do_not_pass() {
        let mut headers = request(&[
            ("host", "a"),
            ("connection", "keep-alive, X-Mine, Host, x-forwarded-client-cert"),
            ("keep-alive", "timeout=5"),
            ("x-mine", "1"),
            ("x-forwarded-client-cert", "URI=x"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "secret"),
            ("accept", "*/*"),
        ])
        .headers()
        .clone();
        strip_hop_by_hop(&mut headers, true);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "host", "te", "x-forwarded-client-cert"]);
        assert_eq!(headers[TE], "trailers");
        strip_hop_by_hop(&mut headers, false);
        assert!(!headers.contains_key(TE));
    }

    #[test]
    fn nobody_claims_to_be_somebody_else() {
        let lines =
            [("x-forwarded-client-cert", "URI=admin"), ("x-envoy-internal", "true"), ("x-envoy-a", "b")];
        let mut headers = request(&lines).headers().clone();
        trust_inbound(&mut headers, None);
        assert!(headers.is_empty(), "{headers:?}");
        let mut headers = request(&lines).headers().clone();
        trust_inbound(&mut headers, client_cert("spiffe://me", "spiffe://you").as_ref());
        assert_eq!(headers[CLIENT_CERT], "By=spiffe://me;URI=spiffe://you");
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn a_request_gets_an_id_once() {
        let mut headers = HeaderMap::new();
        complete(&mut headers);
        let id = id_of(&headers).into_owned();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
        complete(&mut headers);
        assert_eq!(id_of(&headers), id);
    }

    #[test]
    fn only_asked_for_upgrades_count() {
        let upgrade_of =
            |lines: &[(&str, &str)]| upgrade(&request(lines)).map(|v| v.to_str().unwrap().to_owned());
        assert_eq!(
            upgrade_of(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]).as_deref(),
            Some("websocket")
        );
        assert_eq!(upgrade_of(&[("upgrade", "websocket")]), None);
        assert_eq!(upgrade_of(&[("connection", "upgrade"), ("upgrade", "h2c")]), None);
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(request(&[("content-type", value)]).headers()), expected, "{value}");
        }
    }
}
