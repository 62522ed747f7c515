//! The floor: the barest pair of sidecars that tokio, hyper and rustls allow. No routing, no metrics, no policy. It
//! marks what a proxy in Rust can reach on a machine, not what one should be.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{cell::RefCell, io};

use anyhow::{Context as _, Result, bail};
use bench::Local;
use clap::Parser;
use hyper::body::Incoming;
use hyper::client::conn;
use hyper::server::conn as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

#[derive(Debug, Clone, Parser)]
struct Options {
    /// Certificate, PEM.
    #[arg(long)]
    certificate: PathBuf,
    /// Its key, PEM.
    #[arg(long)]
    key: PathBuf,
    /// The root, PEM.
    #[arg(long)]
    root: PathBuf,
    /// DNS name in the server's certificate.
    #[arg(long)]
    name: String,
    /// Threads, each with a runtime and connections of its own.
    #[arg(long, default_value = "2")]
    threads: usize,
    /// Take captured connections at this port: LISTEN of a route is then where the client wanted to go.
    #[arg(long)]
    captured: Option<u16>,
    /// SIDE,KIND,LISTEN,TO: `out` takes plaintext and sends TLS, `in` the other way; KIND is http1, http2 or tcp.
    #[arg(long, value_parser = route)]
    route: Vec<Route>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http1,
    Http2,
    Tcp,
}

#[derive(Debug, Clone)]
struct Route {
    out: bool,
    kind: Kind,
    listen: SocketAddr,
    to: SocketAddr,
}

fn route(text: &str) -> Result<Route> {
    let parts: Vec<_> = text.split(',').collect();
    let [side, kind, listen, to] = parts[..] else { bail!("not SIDE,KIND,LISTEN,TO") };
    let kind = match kind {
        "http1" => Kind::Http1,
        "http2" => Kind::Http2,
        "tcp" => Kind::Tcp,
        other => bail!("no kind {other}"),
    };
    Ok(Route { out: side == "out", kind, listen: listen.parse()?, to: to.parse()? })
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            io::Write::write_fmt(&mut io::stderr(), format_args!("bench-floor: {error:#}\n"))
                .unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads).map(|_| scope.spawn(|| worker(options))).collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread ended"))??;
        }
        Ok(())
    })
}

fn worker(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let mut relays = Vec::new();
        for route in &options.route {
            let relay = Rc::new(Relay {
                tls: Tls::new(options, route.kind)?,
                route: route.clone(),
                upstream: RefCell::default(),
            });
            if options.captured.is_none() {
                tokio::task::spawn_local(listen(listener(route.listen)?, vec![relay]));
            } else {
                relays.push(relay);
            }
        }
        match options.captured {
            Some(port) => listen(listener(SocketAddr::from(([0, 0, 0, 0], port)))?, relays).await,
            None => std::future::pending().await,
        }
    })
}

fn listener(at: SocketAddr) -> Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into()).with_context(|| format!("listen at {at}"))?;
    socket.listen(1024)?;
    Ok(TcpListener::from_std(socket.into())?)
}

struct Tls {
    client: tokio_rustls::TlsConnector,
    server: tokio_rustls::TlsAcceptor,
    name: ServerName<'static>,
}

impl Tls {
    fn new(options: &Options, kind: Kind) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let read = |path| CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
        let certificates = read(&options.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&options.key)?;
        let mut roots = rustls::RootCertStore::empty();
        for root in read(&options.root)? {
            roots.add(root)?;
        }
        let roots = Arc::new(roots);
        let mut client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(certificates.clone(), key.clone_key())?;
        client.resumption = rustls::client::Resumption::disabled();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates, key)?;
        server.send_tls13_tickets = 0;
        let protocols: &[&str] = match kind {
            Kind::Http1 => &["http/1.1"],
            Kind::Http2 => &["h2"],
            Kind::Tcp => &[],
        };
        client.alpn_protocols = protocols.iter().map(|name| (*name).into()).collect();
        server.alpn_protocols.clone_from(&client.alpn_protocols);
        let name = ServerName::try_from(options.name.clone())?;
        Ok(Self { client: Arc::new(client).into(), server: Arc::new(server).into(), name })
    }
}

type Http2 = conn::http2::SendRequest<Incoming>;

struct Relay {
    route: Route,
    tls: Tls,
    /// The one HTTP/2 connection upstream.
    upstream: RefCell<Option<Http2>>,
}

/// Accepts for one relay, or for the one of several that the client wanted to reach.
async fn listen(listener: TcpListener, relays: Vec<Rc<Relay>>) -> Result<()> {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let relay = match &relays[..] {
            [only] => Some(only),
            several => {
                let wanted = socket2::SockRef::from(&stream).original_dst_v4().ok();
                let wanted = wanted.and_then(|to| to.as_socket());
                several.iter().find(|relay| Some(relay.route.listen) == wanted)
            }
        };
        if let Some(relay) = relay.map(Rc::clone) {
            // A connection that fails is the client's to see.
            tokio::task::spawn_local(async move { relay.serve(stream).await.unwrap_or_default() });
        }
    }
}

impl Relay {
    async fn connect(&self) -> Result<Io> {
        let stream = TcpStream::connect(self.route.to).await?;
        stream.set_nodelay(true)?;
        if !self.route.out {
            return Ok(Io::Tcp(stream));
        }
        Ok(Io::Client(Box::new(self.tls.client.connect(self.tls.name.clone(), stream).await?)))
    }

    async fn http2(&self) -> Result<Http2> {
        if let Some(sender) = self.upstream.borrow().as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let (sender, connection) = conn::http2::Builder::new(Local)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(self.connect().await?))
            .await?;
        tokio::task::spawn_local(async move { connection.await.unwrap_or_default() });
        *self.upstream.borrow_mut() = Some(sender.clone());
        Ok(sender)
    }

    async fn serve(self: Rc<Self>, stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        let mut down = if self.route.out {
            Io::Tcp(stream)
        } else {
            Io::Server(Box::new(self.tls.server.accept(stream).await?))
        };
        match self.route.kind {
            Kind::Tcp => {
                let mut up = self.connect().await?;
                tokio::io::copy_bidirectional_with_sizes(&mut down, &mut up, 16 << 10, 64 << 10).await?;
            }
            Kind::Http1 => {
                // One upstream connection for each downstream one: without pipelining it is always free.
                let (sender, connection) =
                    conn::http1::handshake(TokioIo::new(self.connect().await?)).await?;
                tokio::task::spawn_local(async move { connection.await.unwrap_or_default() });
                let sender = Rc::new(tokio::sync::Mutex::new(sender));
                let service = service_fn(move |request| {
                    let sender = Rc::clone(&sender);
                    async move {
                        let mut sender = sender.lock().await;
                        sender.ready().await?;
                        sender.send_request(request).await
                    }
                });
                server::http1::Builder::new().serve_connection(TokioIo::new(down), service).await?;
            }
            Kind::Http2 => {
                let relay = Rc::clone(&self);
                let service = service_fn(move |request| {
                    let relay = Rc::clone(&relay);
                    async move {
                        let mut sender = relay.http2().await.map_err(Failed)?;
                        sender.ready().await.map_err(|error| Failed(error.into()))?;
                        sender.send_request(request).await.map_err(|error| Failed(error.into()))
                    }
                });
                server::http2::Builder::new(Local)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .serve_connection(TokioIo::new(down), service)
                    .await?;
            }
        }
        Ok(())
    }
}

/// hyper wants errors that say so of themselves.
#[derive(Debug)]
struct Failed(anyhow::Error);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Failed {}

/// A connection with or without TLS.
enum Io {
    Tcp(TcpStream),
    Client(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Server(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

macro_rules! each {
    ($io:expr, $stream:ident => $call:expr) => {
        match $io.get_mut() {
            Io::Tcp($stream) => $call,
            Io::Client($stream) => $call,
            Io::Server($stream) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
