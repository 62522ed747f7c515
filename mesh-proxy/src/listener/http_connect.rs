//! HTTP's CONNECT (RFC 9110, section 9.3.6) as a forward proxy's server side reads and answers it. Sans-io; it
//! never panics, and nothing that a client wrote gets into a response's header unescaped.

use std::net::{IpAddr, SocketAddr};

use super::resolve::Refused;
use crate::connection::Target;

/// The head of a request may not be longer.
pub const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

/// The answer to a CONNECT that goes through.
pub const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// What a client asked of the forward-proxy port in HTTP/1.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// The head is not complete yet.
    NeedMore,
    /// CONNECT; the bytes after the head belong to the connection.
    Connect {
        /// Where to.
        target: Target,
        /// Length of the head.
        length: usize,
    },
    /// Another method, or not HTTP/1 at all: for the HTTP filter.
    Other,
    /// CONNECT, but not a correct one.
    Bad(&'static str),
}

/// Reads what the client asked for.
pub fn parse(bytes: &[u8]) -> Request {
    const METHOD: &[u8] = b"CONNECT ";
    if bytes.len() < METHOD.len() && METHOD.starts_with(bytes) {
        return Request::NeedMore;
    }
    if !bytes.starts_with(METHOD) {
        return Request::Other;
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => match request.path.and_then(authority) {
            Some(target) => Request::Connect { target, length },
            None => Request::Bad("the target of CONNECT must be host:port"),
        },
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => Request::NeedMore,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            Request::Bad("the head of the request is too long")
        }
        Err(_) => Request::Bad("not a correct HTTP/1.1 request"),
    }
}

/// `host:port`, `1.2.3.4:port` or `[::1]:port`.
fn authority(text: &str) -> Option<Target> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then_some(Target::Address(address));
    }
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse::<u16>().ok().filter(|&port| port != 0 && !text.contains('@'))?;
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => None, // needs brackets
        Ok(ip) => Some(Target::Address(SocketAddr::new(ip, port))),
        Err(_) if host.is_empty() || host.contains([':', '/', '[', ']']) => None,
        Err(_) => Some(Target::Host { host: host.to_ascii_lowercase(), port }),
    }
}

/// The answer to a CONNECT whose target is refused.
pub fn refuse(refused: &Refused) -> Vec<u8> {
    use crate::telemetry::ResponseFlags;
    // Late configuration or no endpoint: try again. A refusal for good: do not.
    let status = match refused.flags {
        ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR => "400 Bad Request",
        ResponseFlags::NO_CLUSTER | ResponseFlags::NO_HEALTHY_UPSTREAM => "503 Service Unavailable",
        _ => "502 Bad Gateway",
    };
    let Refused { flags, reason } = refused;
    answer(status, &format!("{flags}; {reason}"), &format!("mesh: {flags}: {reason}\n"))
}

/// The answer to what is not a correct CONNECT.
pub fn bad_request(reason: &str) -> Vec<u8> {
    answer("400 Bad Request", &format!("DPE; {reason}"), &format!("mesh: DPE: {reason}\n"))
}

fn answer(status: &str, reason: &str, body: &str) -> Vec<u8> {
    let reason: String =
        reason.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    format!(
        "HTTP/1.1 {status}\r\nx-mesh-reason: {reason}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::telemetry::ResponseFlags;

    #[test]
    fn a_table_of_requests() {
        let bad = |text: &'static str| Err(text);
        let form = "the target of CONNECT must be host:port";
        for (target, wanted) in [
            ("reviews.shop:9080", Ok("reviews.shop:9080")),
            ("Reviews:80", Ok("reviews:80")),
            ("10.1.2.3:80", Ok("10.1.2.3:80")),
            ("[fd00::1]:443", Ok("[fd00::1]:443")),
            ("fd00::1:443", bad(form)),
            ("reviews", bad(form)),
            ("reviews:", bad(form)),
            ("reviews:0", bad(form)),
            ("reviews:99999", bad(form)),
            ("user@reviews:80", bad(form)),
            ("http://reviews:80", bad(form)),
            (":80", bad(form)),
        ] {
            let head = format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            match (parse(format!("{head}early").as_bytes()), wanted) {
                (Request::Connect { target, length }, Ok(wanted)) => {
                    assert_eq!((target.to_string().as_str(), length), (wanted, head.len()));
                }
                (Request::Bad(reason), Err(wanted)) => assert_eq!(reason, wanted),
                (got, wanted) => panic!("{target}: {got:?}, not {wanted:?}"),
            }
        }
        assert_eq!(parse(b""), Request::NeedMore);
        assert_eq!(parse(b"CONN"), Request::NeedMore);
        assert_eq!(parse(b"CONNECT a:80 HTTP/1.1\r\n"), Request::NeedMore);
        assert_eq!(parse(b"GET http://a/ HTTP/1.1\r\n\r\n"), Request::Other);
        assert_eq!(parse(b"CONNECT a b c d\r\n\r\n"), Request::Bad("not a correct HTTP/1.1 request"));
        let long = [&b"CONNECT a:80 HTTP/1.1\r\nx: "[..], &vec![b'x'; MAX_HEAD]].concat();
        assert_eq!(parse(&long), Request::Bad("the head of the request is too long"));
    }

    #[test]
    fn a_refusal_says_why_and_splits_no_header() {
        let refused = Refused { flags: ResponseFlags::NO_CLUSTER, reason: "late\r\nx: é".to_owned() };
        let text = String::from_utf8(refuse(&refused)).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 503 Service Unavailable\r\nx-mesh-reason: NC; late??x: ?\r\n"),
            "{text}"
        );
        assert!(text.ends_with("\r\n\r\nmesh: NC: late\r\nx: é\n"), "{text}");
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(tail in prop::collection::vec(any::<u8>(), 0..60)) {
            parse(&tail);
            let bytes = [b"CONNECT ", &tail[..]].concat();
            let decided = (0..=bytes.len()).map(|end| parse(&bytes[..end])).find(|r| *r != Request::NeedMore);
            prop_assert_eq!(decided.unwrap_or(Request::NeedMore), parse(&bytes));
        }
    }
}
