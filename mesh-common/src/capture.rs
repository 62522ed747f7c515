//! What the injector tells the proxy to capture, and the control plane reads in the pod: once a pod is made, nobody can
//! change it.

use std::fmt;
use std::str::FromStr;

/// The container that writes the rules of capture.
pub const REDIRECT_CONTAINER: &str = "mesh-redirect";

/// Its flag for ports of the pod at which nobody stands before the application: [`PortRange`]s, separated by commas.
pub const EXCLUDE_INBOUND_PORTS: &str = "--exclude-inbound-ports";

/// An inclusive range of ports, written `80` or `8000-8010`; never empty, and without port 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The lowest.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether the port is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl From<u16> for PortRange {
    fn from(port: u16) -> Self {
        Self { first: port, last: port }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| -> Option<u16> {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|port| digits && *port > 0)
        };
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(format!("{text:?} is neither a port nor a range of ports such as 8000-8010")),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_ranges_are_parsed() {
        assert_eq!("80".parse(), Ok(PortRange { first: 80, last: 80 }));
        assert_eq!("80-90".parse(), Ok(PortRange { first: 80, last: 90 }));
        for wrong in ["", "0", "90-80", "http", "80-", "-80", "+80", "70000", "80-90-100"] {
            assert!(wrong.parse::<PortRange>().is_err(), "{wrong:?}");
        }
    }
}
