//! Names of Envoy's listeners. Where Istio has a name for the same thing, it is Istio's.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The name of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::translate) enum ListenerName {
    /// `virtualOutbound`: where captured outbound connections arrive.
    VirtualOutbound,
    /// `virtualInbound`: where captured inbound connections arrive.
    VirtualInbound,
    /// `10.96.3.4_80`: captured connections to this address.
    Captured(SocketAddr),
    /// `inbound_10.1.2.3_8080`: a port of the pod, without capture.
    Inbound(SocketAddr),
    /// `http_proxy`: the forward-proxy port.
    HttpProxy,
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VirtualOutbound => f.write_str("virtualOutbound"),
            Self::VirtualInbound => f.write_str("virtualInbound"),
            Self::Captured(address) => write!(f, "{}_{}", address.ip(), address.port()),
            Self::Inbound(address) => write!(f, "inbound_{}_{}", address.ip(), address.port()),
            Self::HttpProxy => f.write_str("http_proxy"),
        }
    }
}

impl FromStr for ListenerName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let name = match text {
            "virtualOutbound" => Self::VirtualOutbound,
            "virtualInbound" => Self::VirtualInbound,
            "http_proxy" => Self::HttpProxy,
            _ => match text.strip_prefix("inbound_") {
                Some(address) => Self::Inbound(parse_address(address).ok_or(())?),
                None => Self::Captured(parse_address(text).ok_or(())?),
            },
        };
        // One spelling for one name.
        if name.to_string() == text { Ok(name) } else { Err(()) }
    }
}

fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.rsplit_once('_')?;
    Some(SocketAddr::new(ip.parse::<IpAddr>().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_print_as_parsed() {
        for text in [
            "virtualOutbound",
            "virtualInbound",
            "10.96.3.4_80",
            "fd00::1_80",
            "inbound_10.1.2.3_8080",
            "inbound_fd00::1_8080",
            "http_proxy",
        ] {
            assert_eq!(text.parse::<ListenerName>().unwrap().to_string(), text);
        }
        for text in
            ["", "*", "10.96.3.4:80", "10.96.3.4_080", "10.96.3.4_", "0:0::1_80", "inbound_8080", "a_80"]
        {
            assert!(text.parse::<ListenerName>().is_err(), "{text:?}");
        }
    }
}
