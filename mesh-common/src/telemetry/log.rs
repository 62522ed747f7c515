//! The subscriber for our own logs, with a level that can be changed while the process runs.

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt, reload};

use crate::options::{LogFormat, LogOptions};

/// Changes the log level of the running process.
#[derive(Debug, Clone)]
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
}

/// Why a log filter was refused.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter has another syntax.
    #[error("{0:?} is not a log level; write error, warn, info, debug, trace or target=level,...")]
    Filter(String),
    /// Logging was already set up by somebody else in this process.
    #[error("logging is already set up")]
    Taken,
}

/// Sets up logging to standard error, once per process.
///
/// # Errors
/// When the level cannot be parsed, or logging was set up before.
pub fn init(options: &LogOptions) -> Result<LogLevel, LogError> {
    let (filter, handle) = reload::Layer::new(parse(&options.log_level)?);
    let layer = match options.log_format {
        LogFormat::Text => fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().map_err(|_| LogError::Taken)?;
    Ok(LogLevel { handle })
}

impl LogLevel {
    /// The filter in force.
    pub fn get(&self) -> String {
        self.handle.with_current(ToString::to_string).unwrap_or_default()
    }

    /// Puts another filter in force.
    ///
    /// # Errors
    /// When it cannot be parsed; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.handle.reload(parse(filter)?).map_err(|_| LogError::Taken)
    }
}

/// Kubernetes' client complains of what its callers tell with a remedy, also of what is no fault at all.
const SILENCED: &str = "kube_client";

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let error = || LogError::Filter(filter.to_owned());
    let parsed = EnvFilter::builder().parse(filter).map_err(|_| error())?;
    if filter.contains(SILENCED) {
        return Ok(parsed);
    }
    Ok(parsed.add_directive(format!("{SILENCED}=off").parse().map_err(|_| error())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_of_kubernetes_is_silent_unless_asked_for() {
        assert!(parse("info").unwrap().to_string().contains("kube_client=off"));
        assert!(!parse("info,kube_client=debug").unwrap().to_string().contains("off"));
        assert!(parse("a=b=c").is_err());
    }
}
