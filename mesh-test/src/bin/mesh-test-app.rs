//! An application for tests on a cluster: serves, or sends and prints one line of JSON about what came of it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::{Args, Parser};
use http::{Request, Uri};
use http_body_util::Full;
use mesh_test::app::{Answer, BEGUN, Heard, Seen, Tally, millis};
use mesh_test::client::{Dialer, Http2Client, HttpClient};
use mesh_test::load::{self, End, Load};
use mesh_test::server::Server;
use mesh_test::topology::App;
use mesh_test::wait;
use mesh_test::wire::Packets;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

#[derive(Debug, Parser)]
enum Command {
    /// Serves until SIGTERM, then ends at once, whatever is open. Without ports it only waits for that.
    Serve(Serve),
    /// Waits until HOST:PORT takes connections.
    Reach { target: String },
    /// One request.
    Get(Get),
    /// Many requests.
    Send(Send),
    /// Requests at a steady rate until standard input ends.
    Load(Steady),
    /// gRPC calls over one connection.
    Calls(Calls),
    /// Opaque TCP.
    Tcp(Tcp),
    /// HTTP/1.1 upgraded to something else.
    Upgrade(Upgrade),
    /// Counts markers in the packets of one pod, in the network of its node, until standard input ends.
    Sniff(Sniff),
}

#[derive(Debug, Args)]
struct Serve {
    /// HTTP/1.1, HTTP/2, gRPC and upgrades here.
    #[arg(long)]
    http: Vec<u16>,
    /// Sends back what arrives.
    #[arg(long)]
    echo: Vec<u16>,
    /// Speaks first, then sends back what arrives.
    #[arg(long)]
    banner: Vec<u16>,
    /// Name of the pod.
    #[arg(long, env = "HOSTNAME")]
    pod: String,
    /// Version of the application.
    #[arg(long, env = "VERSION", default_value = "v1")]
    version: String,
    /// Takes this long to start, as many applications do.
    #[arg(long, default_value = "0")]
    start_ms: u64,
    /// Tells this address, IP:PORT by UDP, at the moment before it ends.
    #[arg(long)]
    tell_end: Option<SocketAddr>,
}

#[derive(Debug, Args)]
struct Get {
    url: String,
    /// NAME=VALUE.
    #[arg(long)]
    header: Vec<String>,
}

#[derive(Debug, Args)]
struct Send {
    url: String,
    #[arg(long, default_value = "100")]
    count: u64,
    #[arg(long, default_value = "4")]
    concurrency: u64,
    /// Fails when a request failed: for a Job.
    #[arg(long)]
    strict: bool,
}

#[derive(Debug, Args)]
struct Steady {
    url: String,
    #[arg(long, default_value = "50")]
    rate: u32,
    /// Hears on this port, by UDP, when applications end, and tells apart what they took with them.
    #[arg(long)]
    hear_ends: Option<u16>,
}

#[derive(Debug, Args)]
struct Calls {
    target: String,
    #[arg(long, default_value = "100")]
    count: u64,
}

#[derive(Debug, Args)]
struct Tcp {
    target: String,
    #[arg(long, default_value = "ping")]
    text: String,
    /// Wait for the server to speak first.
    #[arg(long)]
    banner: bool,
}

#[derive(Debug, Args)]
struct Upgrade {
    url: String,
    #[arg(long, default_value = "ping")]
    text: String,
}

#[derive(Debug, Args)]
struct Sniff {
    /// Whose packets.
    pod: IpAddr,
    /// What is looked for.
    markers: Vec<String>,
}

/// How long anything but a load may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(Command::parse())));
    match outcome {
        Ok(line) => {
            writeln!(std::io::stdout().lock(), "{line}").unwrap_or_default();
            ExitCode::SUCCESS
        }
        Err(error) => {
            writeln!(std::io::stderr().lock(), "mesh-test-app: {error:#}").unwrap_or_default();
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<String> {
    let client = HttpClient::with(Dialer::System);
    Ok(match command {
        Command::Serve(options) => return serve(options).await,
        Command::Reach { target } => {
            wait::until_ok(&format!("{target} takes connections"), PATIENCE, || dial(&target)).await?;
            String::new()
        }
        Command::Get(options) => serde_json::to_string(&get(&client, options).await?)?,
        Command::Send(options) => {
            let tally =
                Tally::from(load::send(&client, &options.url, options.count, options.concurrency).await);
            ensure!(!options.strict || tally.failed == 0, "{} failed: {:?}", tally.failed, tally.failures);
            serde_json::to_string(&tally)?
        }
        Command::Load(options) => {
            let load = Load::start(&client, &options.url, options.rate);
            let mut ends = Vec::new();
            let heard = hear_ends(options.hear_ends, &load, &mut ends);
            tokio::select! {
                heard = heard => heard?,
                () = end_of_input() => {}
            }
            serde_json::to_string(&Tally::with_ends(load.stop().await?, &ends))?
        }
        Command::Calls(options) => serde_json::to_string(&calls(&options).await?)?,
        Command::Tcp(options) => serde_json::to_string(&patiently(tcp(&options)).await?)?,
        Command::Upgrade(options) => serde_json::to_string(&patiently(upgrade(&options)).await?)?,
        Command::Sniff(options) => {
            let packets = Packets::of(options.pod)?;
            end_of_input().await;
            let count = |marker: &String| (marker.clone(), packets.count(marker.as_bytes()));
            let markers = options.markers.iter().map(count).collect::<BTreeMap<_, _>>();
            serde_json::to_string(&Seen { markers, bytes: packets.bytes() })?
        }
    })
}

async fn patiently<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, what).await.context("no answer in time")?
}

async fn serve(options: Serve) -> Result<String> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::time::sleep(Duration::from_millis(options.start_ms)).await;
    let mut servers = Vec::new();
    let wanted =
        [(App::Http, &options.http), (App::TcpEcho, &options.echo), (App::TcpBanner, &options.banner)];
    // The version stands before the pod's name: clients tally both.
    let name = format!("{}/{}", options.version, options.pod);
    for (app, ports) in wanted {
        for port in ports {
            let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), *port);
            let server = match Server::start(app, address, &name, &options.version).await {
                Err(_) => {
                    Server::start(app, SocketAddr::from(([0, 0, 0, 0], *port)), &name, &options.version)
                        .await?
                }
                started => started?,
            };
            servers.push(server);
        }
    }
    terminated.recv().await;
    if let Some(to) = options.tell_end {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let nanos = u64::try_from(now.as_nanos())?;
        let from = if to.is_ipv4() { IpAddr::from([0; 4]) } else { Ipv6Addr::UNSPECIFIED.into() };
        UdpSocket::bind((from, 0)).await?.send_to(&nanos.to_be_bytes(), to).await?;
    }
    // The runtime would take its time to end.
    std::process::exit(0)
}

/// How long an application takes to be gone after it has told so; its process gets little of a busy machine. What comes
/// after that is refused, and never counts as taken by it.
const GONE: Duration = Duration::from_millis(250);

/// Adds the times at which applications end, for ever.
async fn hear_ends(port: Option<u16>, load: &Load, ends: &mut Vec<End>) -> Result<()> {
    let Some(port) = port else { return std::future::pending().await };
    let socket = UdpSocket::bind((IpAddr::from([0; 4]), port)).await?;
    let started = SystemTime::now().checked_sub(load.elapsed()).context("the clock is at its beginning")?;
    loop {
        let mut nanos = [0; 8];
        socket.recv(&mut nanos).await?;
        let told = SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::from_be_bytes(nanos));
        let told = told.duration_since(started).context("an application ended before the load began")?;
        ends.push((told, told + GONE));
    }
}

/// Says that the work has begun, and waits for the end of standard input.
async fn end_of_input() {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{BEGUN}").and_then(|()| output.flush()).unwrap_or_default();
    drop(output);
    let read = || std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    tokio::task::spawn_blocking(read).await.map(drop).unwrap_or_default();
}

async fn get(client: &HttpClient, options: Get) -> Result<Answer> {
    let mut request = Request::get(&options.url);
    for header in &options.header {
        let (name, value) = header.split_once('=').with_context(|| format!("{header} is not NAME=VALUE"))?;
        request = request.header(name, value);
    }
    Ok(client.send(request.body(Full::<Bytes>::default())?).await?.into())
}

async fn calls(options: &Calls) -> Result<Tally> {
    let client = Http2Client::new(dial(&options.target).await?, &options.target).await?;
    let mut tally = Tally::default();
    for _ in 0..options.count {
        tally.sent += 1;
        match client.call("/echo.Echo/Unary", b"hello").await {
            Ok(reply) if reply.trailers.get("grpc-status").is_some_and(|status| status == "0") => {
                let name = reply.header("x-pod");
                let (version, pod) = name.split_once('/').unwrap_or((name, name));
                *tally.by_pod.entry(pod.to_owned()).or_default() += 1;
                *tally.by_version.entry(version.to_owned()).or_default() += 1;
            }
            Ok(reply) => fail(&mut tally, &format!("{reply} {:?}", reply.trailers)),
            Err(error) => fail(&mut tally, &format!("{error:#}")),
        }
    }
    Ok(tally)
}

fn fail(tally: &mut Tally, why: &str) {
    tally.failed += 1;
    tally.failures.push(why.to_owned());
    tally.failures.truncate(10);
}

async fn tcp(options: &Tcp) -> Result<Heard> {
    let started = Instant::now();
    let mut stream = dial(&options.target).await?;
    let mut greeting = Vec::new();
    if options.banner {
        let mut first = [0; 512];
        let length = stream.read(&mut first).await?;
        greeting.extend_from_slice(&first[..length]);
    }
    let heard_first = started.elapsed();
    stream.write_all(options.text.as_bytes()).await?;
    let mut echo = vec![0; options.text.len()];
    stream.read_exact(&mut echo).await?;
    let first_byte = if options.banner { heard_first } else { started.elapsed() };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Heard { greeting: text(&greeting), echo: text(&echo), first_byte_ms: millis(first_byte) })
}

async fn upgrade(options: &Upgrade) -> Result<Heard> {
    let uri: Uri = options.url.parse()?;
    let authority = uri.authority().context("the URL is not absolute")?;
    let started = Instant::now();
    let mut stream = dial(authority.as_str()).await?;
    let head = format!(
        "GET {} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        uri.path()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut greeting = Vec::new();
    while !greeting.ends_with(b"\r\n\r\n") {
        greeting.push(stream.read_u8().await.context("the answer's head broke off")?);
    }
    let first_byte = started.elapsed();
    let greeting = String::from_utf8_lossy(&greeting).into_owned();
    ensure!(greeting.starts_with("HTTP/1.1 101"), "not upgraded: {greeting}");
    stream.write_all(options.text.as_bytes()).await?;
    let mut echo = vec![0; options.text.len()];
    stream.read_exact(&mut echo).await?;
    Ok(Heard {
        greeting,
        echo: String::from_utf8_lossy(&echo).into_owned(),
        first_byte_ms: millis(first_byte),
    })
}

async fn dial(target: &str) -> Result<TcpStream> {
    let target = if target.contains(':') { target.to_owned() } else { format!("{target}:80") };
    let stream = TcpStream::connect(&target).await.with_context(|| format!("cannot connect to {target}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
