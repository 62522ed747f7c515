//! The access log: one line for each request or connection, in Istio's default format, as text or JSON. A slow
//! reader of standard output costs lines, which are counted, never traffic.

mod format;
#[cfg(test)]
mod tests;

use std::fmt::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use tokio::sync::{mpsc, oneshot};

use super::flags::ResponseFlags;
use super::names;
use crate::config::listener::AccessLog;

/// One line. Text that is empty and values that are `None` print as `-` (`null` in JSON).
#[derive(Debug, Clone)]
pub struct AccessEntry<'a> {
    /// When the request or connection began.
    pub start: SystemTime,
    /// `GET`; empty for TCP.
    pub method: &'a str,
    /// Path with query as the client sent it.
    pub path: &'a str,
    /// `HTTP/1.1`, `HTTP/2`; empty for TCP.
    pub protocol: &'a str,
    /// Status; 0 when there was none.
    pub code: u16,
    /// Why, in Envoy's names.
    pub flags: ResponseFlags,
    /// What the proxy says of the status: `via_upstream`, `route_not_found`, or a sentence.
    pub code_details: &'a str,
    /// What the proxy says of the end of the connection.
    pub termination_details: &'a str,
    /// Why the connection to the endpoint failed.
    pub upstream_failure: &'a str,
    /// Bytes from the client.
    pub bytes_received: u64,
    /// Bytes to the client.
    pub bytes_sent: u64,
    /// In all.
    pub duration: Duration,
    /// Until the first byte of the upstream's response.
    pub upstream_service_time: Option<Duration>,
    /// Header `x-forwarded-for`.
    pub forwarded_for: &'a str,
    /// Header `user-agent`.
    pub user_agent: &'a str,
    /// Header `x-request-id`.
    pub request_id: &'a str,
    /// Host or `:authority`.
    pub authority: &'a str,
    /// The endpoint.
    pub upstream_host: Option<SocketAddr>,
    /// The cluster's name.
    pub upstream_cluster: &'a str,
    /// Own address of the upstream connection.
    pub upstream_local: Option<SocketAddr>,
    /// The address the client dialled.
    pub downstream_local: Option<SocketAddr>,
    /// The client's address.
    pub downstream_remote: Option<SocketAddr>,
    /// Server name of the client's TLS.
    pub server_name: &'a str,
    /// The route's name.
    pub route_name: &'a str,
}

impl Default for AccessEntry<'_> {
    fn default() -> Self {
        Self {
            start: SystemTime::UNIX_EPOCH,
            method: "",
            path: "",
            protocol: "",
            code: 0,
            flags: ResponseFlags::NONE,
            code_details: "",
            termination_details: "",
            upstream_failure: "",
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            upstream_service_time: None,
            forwarded_for: "",
            user_agent: "",
            request_id: "",
            authority: "",
            upstream_host: None,
            upstream_cluster: "",
            upstream_local: None,
            downstream_local: None,
            downstream_remote: None,
            server_name: "",
            route_name: "",
        }
    }
}

/// Lines that may wait for the writer.
const BOUND: usize = 4096;

#[derive(Debug)]
enum Message {
    Line(String),
    /// Answered once every line before it is written.
    Flush(oneshot::Sender<()>),
}

/// Takes lines and hands them to the thread that writes them.
#[derive(Debug, Clone)]
pub struct AccessLogger {
    queue: mpsc::Sender<Message>,
    dropped: Arc<AtomicU64>,
}

impl AccessLogger {
    /// Starts a thread that writes lines to `output`; it ends when the last logger is dropped.
    ///
    /// # Errors
    /// When no thread can be made.
    pub fn start(output: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (logger, queue) = Self::with_queue(BOUND);
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        thread.spawn(move || write_all(queue, output))?;
        Ok(logger)
    }

    /// Lines go nowhere.
    pub fn detached() -> Self {
        Self::with_queue(1).0
    }

    fn with_queue(bound: usize) -> (Self, mpsc::Receiver<Message>) {
        let (queue, receiver) = mpsc::channel(bound);
        (Self { queue, dropped: Arc::default() }, receiver)
    }

    /// Writes one line, or counts it as dropped when too many wait.
    pub fn log(&self, format: AccessLog, entry: &AccessEntry<'_>) {
        let Ok(place) = self.queue.try_reserve() else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        place.send(Message::Line(match format {
            AccessLog::Text => format::text(entry),
            AccessLog::Json => format::json(entry),
        }));
    }

    /// Resolves when every line logged so far is written, or nobody writes any more.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).await.is_ok() {
            // An error means that the writer ended: there is nothing left to wait for.
            flushed.await.ok();
        }
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Writes until every logger is gone. A reader that went away ends the log, not the process.
fn write_all(mut queue: mpsc::Receiver<Message>, output: impl Write) {
    let mut output = std::io::BufWriter::new(output);
    while let Some(message) = queue.blocking_recv() {
        let written = match message {
            Message::Line(line) if queue.is_empty() => {
                write_line(&mut output, &line).and_then(|()| output.flush())
            }
            Message::Line(line) => write_line(&mut output, &line),
            Message::Flush(done) => output.flush().map(|()| {
                done.send(()).ok(); // whoever asked may have stopped waiting
            }),
        };
        if let Err(error) = written {
            tracing::warn!(%error, "the access log cannot be written and ends");
            return;
        }
    }
}

fn write_line(output: &mut impl Write, line: &str) -> std::io::Result<()> {
    output.write_all(line.as_bytes())
}

impl Collector for AccessLogger {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let (name, help) = names::ACCESS_LOG_DROPPED;
        let dropped = ConstCounter::new(self.dropped());
        dropped.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    }
}
