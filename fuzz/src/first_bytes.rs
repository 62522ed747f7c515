//! The first bytes of a connection: decided, or more are needed; and what was decided stays, whatever follows and in
//! whatever pieces it comes.

use std::time::Duration;

use mesh_proxy::config::listener::Inspect;
use mesh_proxy::listener::inspect::{MAX_BYTES, Verdict, inspect};

/// The first byte says what is looked for, the others are those of the connection.
pub fn run(bytes: &[u8]) {
    let Some((&wanted, bytes)) = bytes.split_first() else { return };
    let wanted = Inspect { tls: wanted & 1 != 0, http: wanted & 2 != 0, timeout: Duration::ZERO };
    let mut decided: Option<Verdict> = None;
    // One byte at a time at the beginning, where it is decided; then in larger steps.
    let mut length = 0;
    while length <= bytes.len() {
        let verdict = inspect(wanted, &bytes[..length]);
        match &decided {
            Some(before) => assert_eq!(&verdict, before, "another verdict after {length} bytes"),
            None if matches!(verdict, Verdict::Decided(_)) => decided = Some(verdict),
            None => assert!(length < MAX_BYTES, "undecided after {length} bytes"),
        }
        length += if length < 64 { 1 } else { 97 };
    }
}
