//! Response flags: why a request or connection ended as it did, in Envoy's short names. A value is a small
//! copyable set; what it prints goes to metrics and to the access log and must stay Envoy's.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of Envoy's response flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u16);

/// Names in the order of Envoy's `ResponseFlagUtils`, in which they are printed.
const NAMES: [(ResponseFlags, &str); 11] = [
    (ResponseFlags::NO_HEALTHY_UPSTREAM, "UH"),
    (ResponseFlags::UPSTREAM_CONNECTION_FAILURE, "UF"),
    (ResponseFlags::UPSTREAM_REQUEST_TIMEOUT, "UT"),
    (ResponseFlags::LOCAL_RESET, "LR"),
    (ResponseFlags::UPSTREAM_REMOTE_RESET, "UR"),
    (ResponseFlags::UPSTREAM_CONNECTION_TERMINATION, "UC"),
    (ResponseFlags::NO_ROUTE, "NR"),
    (ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION, "DC"),
    (ResponseFlags::STREAM_IDLE_TIMEOUT, "SI"),
    (ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, "DPE"),
    (ResponseFlags::NO_CLUSTER, "NC"),
];

impl ResponseFlags {
    /// No flag: nothing to explain.
    pub const NONE: Self = Self(0);
    /// `UH`: no endpoint that may be used.
    pub const NO_HEALTHY_UPSTREAM: Self = Self(1);
    /// `UF`: the connection to the endpoint failed, or its identity was refused.
    pub const UPSTREAM_CONNECTION_FAILURE: Self = Self(1 << 1);
    /// `UT`: the answer took too long.
    pub const UPSTREAM_REQUEST_TIMEOUT: Self = Self(1 << 2);
    /// `LR`: the proxy itself reset the stream.
    pub const LOCAL_RESET: Self = Self(1 << 3);
    /// `UR`: the upstream reset the stream.
    pub const UPSTREAM_REMOTE_RESET: Self = Self(1 << 4);
    /// `UC`: the upstream closed the connection.
    pub const UPSTREAM_CONNECTION_TERMINATION: Self = Self(1 << 5);
    /// `NR`: no route matches.
    pub const NO_ROUTE: Self = Self(1 << 6);
    /// `DC`: the client went away.
    pub const DOWNSTREAM_CONNECTION_TERMINATION: Self = Self(1 << 7);
    /// `SI`: the stream was idle for too long.
    pub const STREAM_IDLE_TIMEOUT: Self = Self(1 << 8);
    /// `DPE`: the client broke the protocol.
    pub const DOWNSTREAM_PROTOCOL_ERROR: Self = Self(1 << 9);
    /// `NC`: the cluster does not exist, or its configuration did not come in time.
    pub const NO_CLUSTER: Self = Self(1 << 10);

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The set as a number, for packed keys.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// What [`Self::bits`] gave.
    pub(super) const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
}

impl BitOr for ResponseFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("-");
        }
        let mut separator = "";
        for (flag, name) in NAMES {
            if self.contains(flag) {
                write!(f, "{separator}{name}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_envoys_names() {
        assert_eq!(ResponseFlags::NONE.to_string(), "-");
        assert_eq!(ResponseFlags::NO_ROUTE.to_string(), "NR");
        let both = ResponseFlags::UPSTREAM_CONNECTION_FAILURE | ResponseFlags::NO_HEALTHY_UPSTREAM;
        assert_eq!(both.to_string(), "UH,UF");
        let all = NAMES.iter().fold(ResponseFlags::NONE, |all, (flag, _)| all | *flag);
        assert_eq!(all.bits().count_ones() as usize, NAMES.len(), "each flag has its own bit");
    }
}
