//! Outbound connections: captured ones, and those to the forward-proxy port with SOCKS5, CONNECT, or plain HTTP
//! requests. A client learns that its target cannot be used in its own protocol and with the reason; nothing is
//! dialled before it is resolved.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use mesh_common::xds::names::BLACK_HOLE_CLUSTER;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::captured;
use super::detect::{Detected, Undecided, detect};
use super::http_connect::{self, Request};
use super::inspect::{self, Verdict, inspect};
use super::refuse::LogBudget;
use super::resolve::{Refused, Resolved, resolve};
use super::socks5::{self, Code, Step};
use crate::config::listener::{FilterChain, Inspect, Listener, NetworkFilter, TcpProxy};
use crate::connection::{Connection, Direction, Prefixed, Target};
use crate::http::{self, Scope};
use crate::tcp;
use crate::telemetry::{ResponseFlags, Security};
use crate::worker::Worker;

/// How long a client may take to say what it wants; some open connections ahead of need.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the rest of its handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a captured client that is refused may take to say that it speaks HTTP.
const FIRST_WORDS: Duration = Duration::from_secs(1);
/// What is read at a time.
const READ: usize = 1024;

static LOG: LogBudget = LogBudget::new();

/// Serves a connection to the forward-proxy port.
pub(super) async fn serve(worker: Rc<Worker>, mut stream: TcpStream, peer: SocketAddr) {
    let mut bytes = BytesMut::new();
    let served = match timeout(FIRST_BYTE_TIMEOUT, read(&mut stream, &mut bytes)).await {
        Ok(Ok(())) => {
            let mut client = Client { worker, stream, peer, bytes };
            match client.bytes.first() {
                Some(&socks5::VERSION) => match client.socks5().await {
                    Ok(Some(resolved)) => client.forward(resolved).await,
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                },
                _ => client.http().await,
            }
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(()),
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "the client of the forward-proxy port went away");
    }
}

/// Serves a connection from the pod that the network rules sent here.
pub(super) async fn captured(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let destination = captured::outbound(&stream);
    let mut client = Client { worker, stream, peer, bytes: BytesMut::new() };
    let served = match destination {
        Ok(address) => match client.resolve(Target::Address(address)).await {
            Ok(resolved) => client.forward(resolved).await,
            Err(refused) => client.tell(&refused).await,
        },
        Err(error) => {
            client.refused(error.label(), &error.to_string());
            Ok(())
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "the client of a captured connection went away");
    }
}

/// A client, until it is known what is to be done with it.
struct Client {
    worker: Rc<Worker>,
    stream: TcpStream,
    peer: SocketAddr,
    /// Read ahead.
    bytes: BytesMut,
}

impl Client {
    /// The SOCKS5 handshake; `None` when it was refused.
    async fn socks5(&mut self) -> io::Result<Option<Resolved>> {
        let mut handshake = socks5::Handshake::default();
        let target = loop {
            match handshake.next(&mut self.bytes) {
                Step::NeedMore => self.read_on().await?,
                Step::Send(answer) => self.stream.write_all(answer).await?,
                Step::Connect(target) => break target,
                Step::Refuse { answer, reason } => {
                    self.refused("bad_request", reason);
                    self.answer_and_close(&answer).await?;
                    return Ok(None);
                }
            }
        };
        match self.resolve(target).await {
            Ok(resolved) => {
                self.stream.write_all(&socks5::reply(Code::Succeeded)).await?;
                Ok(Some(resolved))
            }
            Err(refused) => {
                // Late configuration is nobody's rule; everything else is.
                let late = refused.flags == ResponseFlags::NO_CLUSTER;
                let code = if late { Code::GeneralFailure } else { Code::NotAllowed };
                self.answer_and_close(&socks5::reply(code)).await?;
                Ok(None)
            }
        }
    }

    /// CONNECT, or plain requests that name their target each for itself.
    async fn http(mut self) -> io::Result<()> {
        let target = loop {
            match http_connect::parse(&self.bytes) {
                Request::NeedMore => self.read_on().await?,
                Request::Connect { target, length } => {
                    self.bytes.advance(length);
                    break target;
                }
                Request::Other => {
                    // Its own error answer says what is wrong with what is no HTTP either.
                    let worker = Rc::clone(&self.worker);
                    let target = Target::Address(self.stream.local_addr()?);
                    let connection = self.connection(target);
                    Box::pin(http::serve(worker, connection, Scope::Forward)).await;
                    return Ok(());
                }
                Request::Bad(reason) => {
                    self.refused("bad_request", reason);
                    return self.answer_and_close(&http_connect::bad_request(reason)).await;
                }
            }
        };
        match self.resolve(target).await {
            Ok(resolved) => {
                self.stream.write_all(http_connect::ESTABLISHED).await?;
                self.forward(resolved).await
            }
            Err(refused) => self.answer_and_close(&http_connect::refuse(&refused)).await,
        }
    }

    async fn resolve(&self, target: Target) -> Result<Resolved, Refused> {
        let own = self.stream.local_addr().ok();
        let resolved = Box::pin(resolve(&self.worker.store, own, target)).await;
        let allowed = resolved.and_then(|resolved| match black_hole(&resolved.listener) {
            Some(chain) => Err(blocked(&resolved.target, chain)),
            None => Ok(resolved),
        });
        if let Err(refused) = &allowed {
            self.refused(label(refused.flags), &refused.reason);
        }
        allowed
    }

    /// Takes the connection to the filter chain of its target.
    async fn forward(mut self, resolved: Resolved) -> io::Result<()> {
        let Resolved { target, listener } = resolved;
        let dial = |tcp: TcpProxy| {
            let (worker, target) = (Rc::clone(&self.worker), target.clone());
            async move { tcp::dial(&worker, &tcp, &target, None).await }
        };
        let detected = detect(&mut self.stream, &mut self.bytes, &listener, &target, dial).await;
        let Detected { chain, dialled } = match detected {
            Ok(detected) => detected,
            Err(Undecided::Io(error)) => return Err(error),
            Err(undecided) => {
                self.refused("undecided", &undecided.to_string());
                return Ok(());
            }
        };
        let worker = Rc::clone(&self.worker);
        let connection = self.connection(target);
        match &chain.filter {
            NetworkFilter::Http(_) => {
                Box::pin(http::serve(worker, connection, Scope::Chain { listener, chain })).await;
            }
            NetworkFilter::Tcp(_) => Box::pin(tcp::proxy(worker, connection, chain, dialled)).await,
            NetworkFilter::OnDemand => {}
        }
        Ok(())
    }

    fn connection(self, target: Target) -> Connection {
        Connection {
            io: Prefixed::new(self.bytes.freeze(), self.stream).into(),
            direction: Direction::Outbound,
            peer: self.peer,
            target,
            app: None,
            identity: None,
            security: Security::None,
        }
    }

    async fn read_on(&mut self) -> io::Result<()> {
        match timeout(HANDSHAKE_TIMEOUT, read(&mut self.stream, &mut self.bytes)).await {
            Ok(read) => read,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    async fn answer_and_close(&mut self, answer: &[u8]) -> io::Result<()> {
        self.stream.write_all(answer).await?;
        self.stream.shutdown().await?;
        // Closing with unread bytes would reset the connection, and the client might never see the answer.
        let mut rest = [0; 512];
        let drain = async {
            while self.stream.read(&mut rest).await? > 0 {}
            Ok(())
        };
        timeout(Duration::from_secs(1), drain).await.unwrap_or(Ok(()))
    }

    /// Closes a captured connection. A client that turns out to speak HTTP/1 is told why.
    async fn tell(&mut self, refused: &Refused) -> io::Result<()> {
        let http = Inspect { tls: false, http: true, timeout: FIRST_WORDS };
        let speaks_http = async {
            loop {
                match inspect(http, &self.bytes) {
                    Verdict::Decided(seen) => return Ok(seen.protocols.iter().any(|p| p == inspect::HTTP1)),
                    Verdict::NeedMore { .. } => read(&mut self.stream, &mut self.bytes).await?,
                }
            }
        };
        match timeout(FIRST_WORDS, speaks_http).await {
            Ok(Ok(true)) => self.answer_and_close(&http_connect::refuse(refused)).await,
            Ok(Err(error)) => Err(error),
            Ok(Ok(false)) | Err(_) => Ok(()),
        }
    }

    /// Counts and logs; `label` is one of few.
    fn refused(&self, label: &'static str, reason: &str) {
        self.worker.telemetry.proxy().outbound_refused(label);
        if LOG.allow() {
            tracing::info!(peer = %self.peer, reason, "outbound connection refused");
        }
    }
}

async fn read(stream: &mut TcpStream, bytes: &mut BytesMut) -> io::Result<()> {
    bytes.reserve(READ);
    match stream.read_buf(bytes).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Why a target is refused, as a metric's label.
fn label(flags: ResponseFlags) -> &'static str {
    match flags {
        ResponseFlags::NO_CLUSTER => "no_configuration",
        ResponseFlags::NO_ROUTE => "own_port",
        ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR => "bad_request",
        _ => "blocked",
    }
}

/// The chain that refuses every connection, if that is all that a listener does.
fn black_hole(listener: &Listener) -> Option<&FilterChain> {
    let others = listener.chains.iter().any(|chain| !matches!(chain.filter, NetworkFilter::OnDemand));
    let default = listener.default_chain.as_deref().filter(|_| !others)?;
    match &default.filter {
        NetworkFilter::Tcp(tcp) if tcp.clusters.iter().all(|(name, _)| name == BLACK_HOLE_CLUSTER) => {
            Some(default)
        }
        _ => None,
    }
}

fn blocked(target: &Target, chain: &FilterChain) -> Refused {
    let reason = match chain.name.as_str() {
        "no-such-port" => format!("{target}: the service has no such port"),
        "contested-address" => format!("{target}: several pods claim this address; mend their manifests"),
        _ => {
            format!(
                "{target} is not in the mesh, and the outbound traffic policy (REGISTRY_ONLY) lets nothing else through"
            )
        }
    };
    Refused { flags: ResponseFlags::NO_HEALTHY_UPSTREAM, reason }
}
