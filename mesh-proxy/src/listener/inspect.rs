//! What the first bytes of a connection are: TLS with its server name and ALPN, HTTP/1, HTTP/2, or none of
//! them. Sans-io and stateless: the verdict on some bytes never changes when more arrive, whatever pieces they
//! arrive in. It never panics and never looks at more than [`MAX_BYTES`].

use crate::config::listener::{Inspect, Transport};

/// Bytes that are looked at before a connection counts as none of the known protocols.
pub const MAX_BYTES: usize = 16 * 1024;

/// Protocol name of plaintext HTTP/1, as Envoy's HTTP inspector sets it.
pub const HTTP1: &str = "http/1.1";
/// Protocol name of plaintext HTTP/2, as Envoy's HTTP inspector sets it.
pub const HTTP2: &str = "h2c";

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// TLS, or anything else.
    pub transport: Transport,
    /// Server name of the ClientHello, in lower case.
    pub server_name: Option<String>,
    /// ALPN of the ClientHello; [`HTTP1`] or [`HTTP2`] in plaintext.
    pub protocols: Vec<String>,
}

/// The verdict on the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Decided; more bytes would not change it.
    Decided(Seen),
    /// They could still be several things.
    NeedMore {
        /// They are the beginning of TLS or HTTP in all likelihood: worth a longer wait than bytes that only
        /// happen to fit so far.
        likely: bool,
    },
}

impl Seen {
    /// None of the known protocols.
    pub fn raw() -> Self {
        Self { transport: Transport::RawBuffer, server_name: None, protocols: Vec::new() }
    }

    fn http(protocol: &str) -> Self {
        Self { protocols: vec![protocol.to_owned()], ..Self::raw() }
    }

    fn tls() -> Self {
        Self { transport: Transport::Tls, ..Self::raw() }
    }
}

/// The verdict on the first bytes of a connection. With neither inspector on, everything is raw.
pub fn inspect(wanted: Inspect, bytes: &[u8]) -> Verdict {
    let full = bytes.len() >= MAX_BYTES;
    let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
    let tls = if wanted.tls { client_hello(bytes) } else { Parsed::No };
    let http = if wanted.http { http(bytes) } else { Parsed::No };
    // TLS begins with a control character and HTTP never does: at most one of them can be under way.
    match (tls, http) {
        (Parsed::Yes(seen), _) | (_, Parsed::Yes(seen)) => Verdict::Decided(seen),
        (Parsed::No, Parsed::No) => Verdict::Decided(Seen::raw()),
        (Parsed::Partial { likely }, _) if full && likely => Verdict::Decided(Seen::tls()),
        _ if full => Verdict::Decided(Seen::raw()),
        (Parsed::Partial { likely: a }, Parsed::Partial { likely: b }) => {
            Verdict::NeedMore { likely: a || b }
        }
        (Parsed::Partial { likely }, _) | (_, Parsed::Partial { likely }) => Verdict::NeedMore { likely },
    }
}

enum Parsed {
    Yes(Seen),
    No,
    Partial { likely: bool },
}

const UNLIKELY: Parsed = Parsed::Partial { likely: false };
const LIKELY: Parsed = Parsed::Partial { likely: true };

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn http(bytes: &[u8]) -> Parsed {
    if bytes.starts_with(PREFACE) {
        return Parsed::Yes(Seen::http(HTTP2));
    }
    if PREFACE.starts_with(bytes) {
        return if bytes.len() > 3 { LIKELY } else { UNLIKELY };
    }
    http1(bytes)
}

/// A request line (RFC 9112, section 3): `method SP request-target SP HTTP/1.x CR? LF`. Empty lines before it
/// are allowed there; no client sends them first.
fn http1(bytes: &[u8]) -> Parsed {
    let method = bytes.iter().take_while(|&&b| is_token(b)).count();
    let Some(&after) = bytes.get(method) else { return UNLIKELY };
    if method == 0 || after != b' ' {
        return Parsed::No;
    }
    let rest = &bytes[method + 1..];
    let target = rest.iter().take_while(|&&b| b > b' ' && b != 0x7f).count();
    let Some(&after) = rest.get(target) else {
        return if looks_like_target(rest) { LIKELY } else { UNLIKELY };
    };
    if target == 0 || after != b' ' {
        return Parsed::No;
    }
    version(&rest[target + 1..])
}

fn version(rest: &[u8]) -> Parsed {
    const NAME: &[u8] = b"HTTP/1.";
    if rest.len() <= NAME.len() {
        return if NAME.starts_with(rest) { LIKELY } else { Parsed::No };
    }
    let (name, rest) = rest.split_at(NAME.len());
    match rest {
        [minor, ..] if name != NAME || !minor.is_ascii_digit() => Parsed::No,
        [_, b'\n', ..] | [_, b'\r', b'\n', ..] => Parsed::Yes(Seen::http(HTTP1)),
        [_] | [_, b'\r'] => LIKELY,
        _ => Parsed::No,
    }
}

fn looks_like_target(target: &[u8]) -> bool {
    matches!(target, [b'/' | b'*', ..]) || target.starts_with(b"http")
}

/// `tchar` of RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;

/// A ClientHello (RFC 8446, section 4.1.2), possibly in several records.
fn client_hello(bytes: &[u8]) -> Parsed {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        let fits = [Some(0x16), Some(0x03), None, None, None, message.is_empty().then_some(0x01)];
        if rest.iter().zip(fits).any(|(&byte, wanted)| wanted.is_some_and(|wanted| wanted != byte)) {
            return Parsed::No;
        }
        let likely = bytes.len() > RECORD_HEADER;
        let Some((header, body)) = rest.split_at_checked(RECORD_HEADER) else {
            return Parsed::Partial { likely };
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        // RFC 8446, section 5.1: no empty handshake records, no record above 2^14.
        if length == 0 || length > 1 << 14 {
            return Parsed::No;
        }
        let present = body.len().min(length);
        message.extend_from_slice(&body[..present]);
        if let Some(parsed) = whole_hello(&message) {
            return parsed;
        }
        if present < length || body.len() == length {
            return Parsed::Partial { likely };
        }
        rest = &body[length..];
    }
}

/// The hello, once all of it is there; `None` before.
fn whole_hello(message: &[u8]) -> Option<Parsed> {
    let (header, body) = message.split_at_checked(HANDSHAKE_HEADER)?;
    let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
    let body = body.get(..length)?;
    Some(hello_body(body).map_or(Parsed::No, Parsed::Yes))
}

fn hello_body(body: &[u8]) -> Option<Seen> {
    let mut reader = Reader(body);
    reader.take(2 + 32)?; // version and random
    reader.vector8()?; // session id
    reader.vector16()?; // cipher suites
    reader.vector8()?; // compression methods
    let mut seen = Seen::tls();
    if reader.0.is_empty() {
        return Some(seen); // TLS 1.2 without extensions
    }
    let mut extensions = Reader(reader.vector16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector16()?;
        match kind {
            0 => seen.server_name = server_name(content)?,
            16 => seen.protocols = protocols(content)?,
            _ => {}
        }
    }
    Some(seen)
}

/// The host name of a server_name extension (RFC 6066, section 3); a name that is no host name is left out.
fn server_name(content: &[u8]) -> Option<Option<String>> {
    let mut names = Reader(Reader(content).vector16()?);
    while !names.0.is_empty() {
        let kind = names.take(1)?;
        let name = names.vector16()?;
        if kind == [0] {
            let text = std::str::from_utf8(name).ok().filter(|text| is_host(text));
            return Some(text.map(str::to_ascii_lowercase));
        }
    }
    Some(None)
}

fn is_host(text: &str) -> bool {
    (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

/// The names of an ALPN extension (RFC 7301, section 3.1).
fn protocols(content: &[u8]) -> Option<Vec<String>> {
    let mut list = Reader(Reader(content).vector16()?);
    let mut names = Vec::new();
    while !list.0.is_empty() {
        names.push(String::from_utf8_lossy(list.vector8()?).into_owned());
    }
    Some(names)
}

/// Reads the front of a slice; `None` when it is too short.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const BOTH: Inspect = Inspect { tls: true, http: true, timeout: Duration::from_millis(100) };

    fn decided(bytes: &[u8]) -> Option<Seen> {
        match inspect(BOTH, bytes) {
            Verdict::Decided(seen) => Some(seen),
            Verdict::NeedMore { .. } => None,
        }
    }

    /// A real ClientHello, as one record.
    fn hello(name: &'static str, alpn: &[&str]) -> Vec<u8> {
        let mut config = rustls::ClientConfig::builder_with_provider(mesh_common::trust::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        let mut connection =
            rustls::ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of `size` bytes each.
    fn fragmented(hello: &[u8], size: usize) -> Vec<u8> {
        let chunks = hello[RECORD_HEADER..].chunks(size);
        chunks.flat_map(|c| [&[22, 3, 1, 0, c.len() as u8][..], c].concat()).collect()
    }

    #[test]
    fn a_table_of_first_bytes() {
        let (h1, h2, raw) = (Seen::http(HTTP1), Seen::http(HTTP2), Seen::raw());
        for (bytes, wanted) in [
            (&b""[..], None),
            (b"G", None),
            (b"GET", None),
            (b"GET ", None),
            (b"GET / HTTP/1.1", None),
            (b"GET / HTTP/1.1\r", None),
            (b"GET / HTTP/1.1\r\n", Some(&h1)),
            (b"GET / HTTP/1.0\nHost: a", Some(&h1)),
            (b"M-SEARCH * HTTP/1.1\r\n", Some(&h1)),
            (b"purge http://a/b?c=d HTTP/1.1\r\n", Some(&h1)),
            (b"CONNECT a:80 HTTP/1.1\r\n", Some(&h1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(&h2)),
            (b"PRI * HTTP/1.1\r\n", Some(&h1)),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Some(&raw)),
            (b"GET / HTTP/2.0\r\n", Some(&raw)),
            (b"GET / HTTP/1.12\r\n", Some(&raw)),
            (b"GET  / HTTP/1.1\r\n", Some(&raw)),
            (b"GET /\r\n", Some(&raw)),
            (b"SET key value\r\n", Some(&raw)),
            (b"PING\r\n", Some(&raw)),
            (b"*1\r\n$4\r\nPING\r\n", Some(&raw)),
            (b" GET / HTTP/1.1", Some(&raw)),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(&raw)), // PostgreSQL's SSLRequest
            (b"\x16\x02", Some(&raw)),
            (b"\x16\x03\x01\0\x10\x02", Some(&raw)), // a ServerHello
            (b"\x16\x03\x01\0\0", Some(&raw)),
            (b"\x16\x03\x01\0\x08\x01\0\0\x04\0\0\0\0", Some(&raw)), // cut short
        ] {
            assert_eq!(decided(bytes).as_ref(), wanted, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn likely_beginnings_are_worth_a_wait() {
        for (bytes, wanted) in
            [(&b""[..], false), (b"GET", false), (b"GET a", false), (b"GET /", true), (b"PRI *", true)]
        {
            assert_eq!(inspect(BOTH, bytes), Verdict::NeedMore { likely: wanted }, "{bytes:?}");
        }
        assert_eq!(inspect(BOTH, &hello("a.b", &[])[..20]), Verdict::NeedMore { likely: true });
    }

    #[test]
    fn client_hellos_in_any_number_of_records() {
        let whole = hello("Reviews.shop", &["istio-h2", "istio"]);
        let wanted = Seen {
            transport: Transport::Tls,
            server_name: Some("reviews.shop".to_owned()),
            protocols: vec!["istio-h2".to_owned(), "istio".to_owned()],
        };
        assert_eq!(decided(&whole), Some(wanted.clone()));
        for size in [1, 2, 7, 100] {
            assert_eq!(decided(&fragmented(&whole, size)), Some(wanted.clone()), "records of {size}");
        }
        assert_eq!(decided(&whole[..whole.len() - 1]), None);
    }

    #[test]
    fn only_what_is_wanted_is_looked_for() {
        let off = Inspect { tls: false, http: false, ..BOTH };
        assert_eq!(inspect(off, b""), Verdict::Decided(Seen::raw()));
        let http = Inspect { tls: false, ..BOTH };
        assert_eq!(inspect(http, &hello("a.b", &[])), Verdict::Decided(Seen::raw()));
    }

    #[test]
    fn the_end_of_patience() {
        let long_target = [b"GET /".to_vec(), vec![b'a'; MAX_BYTES]].concat();
        assert_eq!(decided(&long_target), Some(Seen::raw()));
        let long_hello = [&b"\x16\x03\x01\x40\0\x01\x00\xff\xff"[..], &vec![0; MAX_BYTES]].concat();
        assert_eq!(decided(&long_hello), Some(Seen::tls()));
    }

    fn first_bytes() -> impl Strategy<Value = Vec<u8>> {
        let http = "[A-Z]{0,4} ?[/a*]{0,5} ?(HTTP/[12]\\.[019])?\r?\n?";
        let hello = (1usize..200, 0usize..300, any::<u8>()).prop_map(|(size, position, byte)| {
            let mut bytes = fragmented(&hello("a.b.c", &["istio"]), size);
            if let Some(target) = bytes.get_mut(position) {
                *target = byte; // broken in one place, mostly
            }
            bytes
        });
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..100),
            http.prop_map(String::into_bytes),
            hello,
            (0..PREFACE.len()).prop_map(|cut| [&PREFACE[..cut], b"rest"].concat()),
        ]
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(bytes in first_bytes()) {
            let whole = decided(&bytes);
            let first = (0..=bytes.len()).find_map(|end| decided(&bytes[..end]));
            prop_assert_eq!(whole, first);
        }
    }
}
