//! The small values of settings and annotations: ports, ranges, levels. Parsed strictly; what is wrong is quoted.

use std::time::Duration;

use ipnet::IpNet;
use mesh_common::capture::PortRange;
use mesh_common::options::duration;
use serde::{Deserialize, Deserializer};

use crate::quantity::Quantity;

/// YAML has numbers where people mean text: `cpu: 2`, `- 22`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Whole(u64),
    Number(f64),
    Text(String),
}

impl Scalar {
    fn text(&self) -> String {
        match self {
            Self::Whole(number) => number.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

pub(super) fn amount<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Quantity>, D::Error> {
    let given = Option::<Scalar>::deserialize(deserializer)?;
    given.map(|it| it.text().parse().map_err(serde::de::Error::custom)).transpose()
}

pub(super) fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PortRange>, D::Error> {
    let given = Vec::<Scalar>::deserialize(deserializer)?;
    given.iter().map(|it| it.text().parse().map_err(serde::de::Error::custom)).collect()
}

pub(super) fn ranges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let given = Vec::<String>::deserialize(deserializer)?;
    given.iter().map(|it| range(it).map_err(serde::de::Error::custom)).collect()
}

pub(super) fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    duration(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
}

/// A CIDR, or one address, without bits beyond its length.
///
/// # Errors
/// With a sentence for the author.
pub fn range(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<std::net::IpAddr>().map(IpNet::from);
    let range: IpNet =
        text.parse().or(address).map_err(|_| format!("{text:?} is no CIDR such as 10.0.0.0/8"))?;
    if range != range.trunc() {
        return Err(format!("{text:?} has bits beyond its length; did you mean {}?", range.trunc()));
    }
    Ok(range)
}

/// A level, or `target=level`, separated by commas.
///
/// # Errors
/// With a sentence for the author.
pub fn log_level(text: &str) -> Result<String, String> {
    let target =
        |it: &str| !it.is_empty() && it.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':');
    let fits = text.split(',').all(|part| {
        let (name, level) = part.split_once('=').map_or((None, part), |(name, level)| (Some(name), level));
        name.is_none_or(target) && matches!(level, "error" | "warn" | "info" | "debug" | "trace" | "off")
    });
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is none of error, warn, info, debug, trace, off, nor target=level,..."))
    }
}

/// Whether this can be an image's name; what is in it, only the registry knows.
pub(crate) fn is_image(text: &str) -> bool {
    (1..=512).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}
