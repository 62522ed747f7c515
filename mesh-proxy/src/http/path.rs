//! The one canonical spelling of a request's path, computed once: it is what routes match and what is forwarded.
//! Two readers of a path must never see two different paths (Envoy: `normalize_path`, `merge_slashes`).

use std::borrow::Cow;

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// It does not begin with a slash.
    #[error("the path does not begin with /")]
    NotAbsolute,
    /// It holds an escaped NUL.
    #[error("the path holds %00")]
    Nul,
    /// A percent sign without two hexadecimal digits.
    #[error("the path holds a % that no two hexadecimal digits follow")]
    Escape,
}

/// The canonical form of `path` (without query): unreserved characters unescaped, escapes in upper case, dot
/// segments resolved (RFC 3986 5.2.4), runs of slashes merged. Escaped slashes stay escaped.
///
/// # Errors
/// When the path has no canonical form.
pub fn canonical(path: &str) -> Result<Cow<'_, str>, InvalidPath> {
    if !path.starts_with('/') {
        return Err(InvalidPath::NotAbsolute);
    }
    if is_canonical(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let unescaped = unescape(path)?;
    Ok(Cow::Owned(resolve_segments(&unescaped)))
}

/// Whether there is nothing to do: no escape, no `//`, no segment that begins with a dot.
fn is_canonical(path: &[u8]) -> bool {
    let mut after_slash = false;
    for &byte in path {
        match byte {
            b'%' | b'\\' => return false,
            b'/' | b'.' if after_slash => return false,
            _ => after_slash = byte == b'/',
        }
    }
    true
}

fn unescape(path: &str) -> Result<String, InvalidPath> {
    let bytes = path.as_bytes();
    let mut out = String::with_capacity(bytes.len());
    let mut rest = path;
    while let Some(at) = rest.find(['%', '\\']) {
        out.push_str(&rest[..at]);
        if rest.as_bytes()[at] == b'\\' {
            out.push('/'); // what Windows servers take it for (Envoy does the same)
            rest = &rest[at + 1..];
            continue;
        }
        let digits = rest.get(at + 1..at + 3).ok_or(InvalidPath::Escape)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidPath::Escape);
        }
        let byte = u8::from_str_radix(digits, 16).map_err(|_| InvalidPath::Escape)?;
        match byte {
            0 => return Err(InvalidPath::Nul),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => {
                out.push('%');
                out.push_str(&digits.to_ascii_uppercase());
            }
        }
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    Ok(out)
}

fn resolve_segments(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | "" if !last => {}
            "." => out.push('/'),
            ".." => {
                out.truncate(out.rfind('/').unwrap_or(0));
                if last {
                    out.push('/');
                }
            }
            _ => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    if out.is_empty() { "/".to_owned() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_for_one_path() {
        for (given, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/a.b/.c", "/a.b/.c"),
            ("//a///b", "/a/b"),
            ("/a//", "/a/"),
            ("/a/./b/.", "/a/b/"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/../../x", "/x"),
            ("/%2e%2E/x", "/x"),
            ("/a/%2e%2e/admin", "/admin"),
            ("/%61dmin", "/admin"),
            ("/a%2fb", "/a%2Fb"),
            ("/a\\..\\b", "/b"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/...", "/..."),
            ("/a/.../b", "/a/.../b"),
        ] {
            assert_eq!(canonical(given).as_deref(), Ok(expected), "{given}");
            assert_eq!(canonical(expected).as_deref(), Ok(expected), "canonical is stable: {given}");
        }
    }

    #[test]
    fn what_has_no_canonical_form_is_refused() {
        for (given, expected) in [
            ("a", InvalidPath::NotAbsolute),
            ("", InvalidPath::NotAbsolute),
            ("*", InvalidPath::NotAbsolute),
            ("/a%00b", InvalidPath::Nul),
            ("/a%", InvalidPath::Escape),
            ("/a%4", InvalidPath::Escape),
            ("/a%zz", InvalidPath::Escape),
            ("/a%+1", InvalidPath::Escape),
            ("/%é", InvalidPath::Escape),
        ] {
            assert_eq!(canonical(given), Err(expected), "{given}");
        }
    }
}
