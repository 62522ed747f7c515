//! Pieces of command lines that several binaries share, parsed into types that cannot be wrong.

use std::time::Duration;

use clap::Args;

use crate::spiffe::is_kubernetes_name;

/// Options of logging, the same for every binary.
#[derive(Debug, Clone, Args)]
pub struct LogOptions {
    /// What to log: a level (error, warn, info, debug, trace) or tracing's filter syntax.
    #[arg(long, env = "MESH_LOG", default_value = "info")]
    pub log_level: String,
    /// How log lines look.
    #[arg(long, env = "MESH_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// One sentence for a command line that cannot be used; `help` is the command that lists all flags.
pub fn sentence(error: &clap::Error, help: &str) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    // What may stand there is a paragraph of its own, and needed.
    let possible = text.split("\n\n").flat_map(str::lines).find(|line| line.contains("[possible values:"));
    let possible = possible.filter(|line| !first.contains(*line)).unwrap_or_default();
    let words: Vec<&str> =
        first.trim_start_matches("error: ").split_whitespace().chain(possible.split_whitespace()).collect();
    format!("{}; `{help}` lists all flags", words.join(" "))
}

/// The name of an object of Kubernetes.
///
/// # Errors
/// With a sentence for the user when it is none.
pub fn kubernetes_name(text: &str) -> Result<String, String> {
    if is_kubernetes_name(text) {
        Ok(text.to_owned())
    } else {
        Err("a name of Kubernetes holds lower-case letters, digits, dashes and dots".to_owned())
    }
}

/// Where mesh-control is: a host and a port.
///
/// # Errors
/// With a sentence for the user when it is not written so.
pub fn host_port(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err("write it as HOST:PORT, such as mesh-control.mesh-system.svc:15012".to_owned());
    }
    Ok(text.to_owned())
}

/// A name as it stands in a certificate.
///
/// # Errors
/// With a sentence for the user when it is none.
pub fn dns_name(text: &str) -> Result<String, String> {
    if is_kubernetes_name(text) { Ok(text.to_owned()) } else { Err("it is not a DNS name".to_owned()) }
}

/// Parses `90s`, `5m`, `24h`, `250ms`, or a sum such as `1h30m`.
///
/// # Errors
/// With a sentence for the user when the text is not a duration or is zero.
pub fn duration(text: &str) -> Result<Duration, String> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let number: u64 = number.parse().map_err(|_| malformed(text))?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(malformed(text)),
        };
        let part = number.checked_mul(millis).ok_or_else(|| malformed(text))?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(|| malformed(text))?;
        rest = tail;
    }
    if total.is_zero() { Err(malformed(text)) } else { Ok(total) }
}

fn malformed(text: &str) -> String {
    format!("{text:?} is not a duration above zero; write it like 30s, 5m, 24h or 1h30m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [("250ms", 250), ("1s", 1_000), ("1h30m", 5_400_000), ("24h", 86_400_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis));
        }
        for text in
            ["", "0s", "5", "s", "-1s", "1d", "1.5s", " 1s", "99999999999999999999h", "18446744073709551615h"]
        {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
