//! Detection: the first bytes of a connection are read and inspected. When the client says nothing for a short
//! time, the server is dialled tentatively: if it speaks first the connection is opaque TCP; if the client does,
//! with HTTP, the tentative connection is dropped and the request routed. No byte of either side is ever lost,
//! and no byte of the client goes to the server before it is decided.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::chain::{Facts, NoChain, choose};
use super::inspect::{self, Seen, Verdict};
use crate::config::listener::{FilterChain, Listener, NetworkFilter, TcpProxy};
use crate::connection::Target;
use crate::tcp::Dialled;

/// How long a beginning that looks like TLS or HTTP may take to become whole.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// How long a silent client may take where only TLS is accepted.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// How long a silent client may take after the tentative connection failed: it may yet speak HTTP, and its
/// route may lead elsewhere.
const FAILED_PATIENCE: Duration = Duration::from_secs(15);
/// For silent clients where the chain says nothing itself: Envoy's default for idle connections.
const IDLE: Duration = Duration::from_secs(3600);
/// What is read of either side at a time; a ClientHello with a post-quantum key is a little less.
const READ: usize = 2048;

/// A decided connection.
#[derive(Debug)]
pub(super) struct Detected {
    /// The chain for it.
    pub(super) chain: Arc<FilterChain>,
    /// The tentative connection, if it is the one that this chain wants.
    pub(super) dialled: Option<Dialled>,
}

/// Why nothing was decided.
#[derive(Debug, thiserror::Error)]
pub(super) enum Undecided {
    /// No chain takes it.
    #[error(transparent)]
    NoChain(#[from] NoChain),
    /// The client went away before it said anything.
    #[error("the client closed the connection before it sent anything")]
    Closed,
    /// The client said nothing for too long.
    #[error("the client sent nothing for {0:?}")]
    Silent(Duration),
    /// The socket broke.
    #[error("the client's connection broke: {0}")]
    Io(#[from] io::Error),
}

/// Reads from `stream` into `bytes` until the chain of `listener` is decided. `dial` opens the tentative
/// connection of a TCP chain.
pub(super) async fn detect<S, D>(
    stream: &mut S,
    bytes: &mut BytesMut,
    listener: &Listener,
    target: &Target,
    dial: impl FnOnce(TcpProxy) -> D,
) -> Result<Detected, Undecided>
where
    S: AsyncRead + Unpin,
    D: Future<Output = Dialled> + 'static,
{
    let mut client = Client { stream, bytes, listener, target, ended: false };
    let deadline = Instant::now() + listener.inspect.timeout;
    match timeout_at(deadline, client.first_bytes()).await {
        Ok(Ok(())) => {
            let chain = client.decide().await?;
            return Ok(Detected { chain, dialled: None });
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => {}
    }
    let silent = client.chain(&Seen::raw());
    match silent.as_ref().map(|chain| &chain.filter) {
        Ok(NetworkFilter::Tcp(tcp)) => {
            let dial: Pin<Box<dyn Future<Output = Dialled>>> = Box::pin(dial(tcp.clone()));
            client.with_tentative(dial, tcp.idle_timeout.unwrap_or(IDLE)).await
        }
        Ok(NetworkFilter::Http(http)) => client.without_tentative(http.idle_timeout.unwrap_or(IDLE)).await,
        Ok(NetworkFilter::OnDemand) | Err(_) => client.without_tentative(HELLO_PATIENCE).await,
    }
}

/// The client's side of a connection that is being decided.
struct Client<'a, S> {
    stream: &'a mut S,
    bytes: &'a mut BytesMut,
    listener: &'a Listener,
    target: &'a Target,
    /// The client has closed its sending side.
    ended: bool,
}

impl<S: AsyncRead + Unpin> Client<'_, S> {
    fn chain(&self, seen: &Seen) -> Result<Arc<FilterChain>, NoChain> {
        choose(self.listener, &Facts::new(self.target, seen)).map(Arc::clone)
    }

    fn verdict(&self) -> Verdict {
        inspect::inspect(self.listener.inspect, self.bytes)
    }

    async fn read(&mut self) -> io::Result<()> {
        self.bytes.reserve(READ);
        self.ended = self.stream.read_buf(self.bytes).await? == 0;
        Ok(())
    }

    /// Waits until there is something to inspect. Cancel safe: `read_buf` is.
    async fn first_bytes(&mut self) -> Result<(), Undecided> {
        if self.bytes.is_empty() && matches!(self.verdict(), Verdict::NeedMore { .. }) {
            self.read().await?;
        }
        Ok(())
    }

    /// Decides by what the client says, which has said something or is not asked.
    async fn decide(&mut self) -> Result<Arc<FilterChain>, Undecided> {
        let started = Instant::now();
        loop {
            let patience = match self.verdict() {
                Verdict::Decided(seen) => return Ok(self.chain(&seen)?),
                Verdict::NeedMore { .. } if self.ended => break,
                Verdict::NeedMore { likely: true } => HEAD_PATIENCE,
                Verdict::NeedMore { likely: false } => self.listener.inspect.timeout,
            };
            match timeout_at(started + patience, self.read()).await {
                Ok(read) => read?,
                Err(_) => break,
            }
        }
        match self.chain(&Seen::raw()) {
            // Whoever only looks whether the port is open breaks no rule.
            Err(_) if self.bytes.is_empty() => Err(Undecided::Closed),
            // Neither TLS nor HTTP as far as can be seen.
            decided => Ok(decided?),
        }
    }

    async fn without_tentative(mut self, patience: Duration) -> Result<Detected, Undecided> {
        match timeout_at(Instant::now() + patience, self.first_bytes()).await {
            Ok(read) => read?,
            Err(_) => return Err(Undecided::Silent(patience)),
        }
        let chain = self.decide().await?;
        Ok(Detected { chain, dialled: None })
    }

    /// Waits for whoever speaks first. A side that closes without a word has spoken too: that is all there will
    /// be, and the other side must learn of it as it would without the mesh.
    async fn with_tentative(
        mut self,
        mut dial: Pin<Box<dyn Future<Output = Dialled>>>,
        idle: Duration,
    ) -> Result<Detected, Undecided> {
        let silent = self.chain(&Seen::raw())?;
        let mut dialled: Option<Dialled> = None;
        let mut first = BytesMut::new();
        let mut deadline = Instant::now() + idle;
        loop {
            tokio::select! {
                // The client first: when both have spoken, what it said decides.
                biased;
                read = self.first_bytes() => {
                    read?;
                    break;
                }
                made = &mut dial, if dialled.is_none() => {
                    if made.result.is_err() {
                        deadline = deadline.min(Instant::now() + FAILED_PATIENCE);
                    }
                    dialled = Some(made);
                }
                spoke = read_first(&mut dialled, &mut first) => {
                    // An error comes back when the connection is used.
                    spoke.ok();
                    let mut dialled = dialled;
                    if let Some(Dialled { result: Ok(upstream), .. }) = &mut dialled {
                        upstream.io.unread(first.freeze());
                    }
                    return Ok(Detected { chain: silent, dialled });
                }
                () = sleep_until(deadline) => return match dialled {
                    Some(Dialled { result: Err(_), .. }) => Ok(Detected { chain: silent, dialled }),
                    _ => Err(Undecided::Silent(idle)),
                },
            }
        }
        let chain = self.decide().await?;
        if !Arc::ptr_eq(&chain, &silent) {
            return Ok(Detected { chain, dialled: None }); // drops the tentative connection
        }
        let dialled = match dialled {
            None => Some(dial.await),
            // It failed a while ago: another attempt is due.
            Some(Dialled { result: Err(_), .. }) => None,
            open => open,
        };
        Ok(Detected { chain, dialled })
    }
}

/// Waits until an open tentative connection has said something; for ever if there is none.
async fn read_first(dialled: &mut Option<Dialled>, first: &mut BytesMut) -> io::Result<usize> {
    match dialled {
        Some(Dialled { result: Ok(upstream), .. }) => {
            first.reserve(READ);
            upstream.io.read_buf(first).await
        }
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
