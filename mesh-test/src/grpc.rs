//! gRPC's own xDS client in an application without a sidecar: its bootstrap, its process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;

use crate::client::CONTROL_NAME;
use crate::process::Process;
use crate::topology::NAMESPACE;
use crate::wait::PATIENCE;
use crate::world::World;

/// What came of some calls.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Calls {
    /// Answers by pod.
    pub pods: BTreeMap<String, u64>,
    /// Failures by what gRPC said.
    pub errors: BTreeMap<String, u64>,
}

/// A running application.
#[derive(Debug)]
pub struct GrpcClient {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    log: std::path::PathBuf,
    _certificate: Process,
    _way: JoinSet<()>,
}

impl GrpcClient {
    /// Starts one in a pod that runs none of ours. `secured`: its bootstrap names a provider of certificates.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(python: &Path, world: &World, pod: &str, target: &str, secured: bool) -> Result<Self> {
        let (certificates, certificate) = crate::envoy::certificate(world, pod, pod).await?;
        let folder = world.scratch();
        let bootstrap = folder.join(format!("{pod}-grpc.json"));
        std::fs::write(&bootstrap, self::bootstrap(world, pod, &certificates, secured)?.to_string())?;
        let (way, door) = way_to(world.addresses().xds).await?;
        let log = folder.join(format!("{pod}-grpc.log"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/grpc_client.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(target)
            .env("GRPC_XDS_BOOTSTRAP", bootstrap)
            // Nobody here resolves the name of mesh-control. In a cluster, DNS does.
            .env("grpc_proxy", format!("http://{door}"))
            .env("no_grpc_proxy", ".svc.cluster.local")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let input = child.stdin.take().context("no standard input")?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        Ok(Self { child, input, output, log, _certificate: certificate, _way: way })
    }

    /// Makes so many calls, one after the other.
    ///
    /// # Errors
    /// When the application ends or says nothing; with what it logged.
    pub async fn call(&mut self, count: u64) -> Result<Calls> {
        self.input.write_all(format!("{count}\n").as_bytes()).await?;
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await;
        let line = line.with_context(|| format!("no answer; it said:\n{}", self.log()))??;
        let line = line.with_context(|| format!("it ended ({:?}):\n{}", self.child.id(), self.log()))?;
        serde_json::from_str(&line).with_context(|| line.clone())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn bootstrap(world: &World, pod: &str, certificates: &Path, secured: bool) -> Result<Value> {
    let ip = world.pod(pod)?.ip();
    let files = json!({
        "certificate_file": certificates.join("cert-chain.pem"),
        "private_key_file": certificates.join("key.pem"),
        "ca_certificate_file": certificates.join("root-cert.pem"),
        "refresh_interval": "60s",
    });
    let mut bootstrap = json!({
        "xds_servers": [{
            "server_uri": format!("{CONTROL_NAME}:{}", world.addresses().xds.port()),
            "channel_creds": [{ "type": "tls", "config": files }],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": format!("sidecar~{ip}~{pod}.{NAMESPACE}~{NAMESPACE}.svc.cluster.local"),
            "metadata": { "GENERATOR": "grpc" },
        },
    });
    if secured {
        bootstrap["node"]["metadata"]["MESH_CERTIFICATE_PROVIDER"] = "mesh".into();
        bootstrap["certificate_providers"] =
            json!({ "mesh": { "plugin_name": "file_watcher", "config": files } });
    }
    Ok(bootstrap)
}

/// A forward proxy that leads to one address, whatever name is asked for.
async fn way_to(address: SocketAddr) -> Result<(JoinSet<()>, SocketAddr)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let door = listener.local_addr()?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut tunnels = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            tunnels.spawn(async move { tunnel(stream, address).await.unwrap_or_default() });
        }
    });
    Ok((tasks, door))
}

async fn tunnel(mut client: TcpStream, address: SocketAddr) -> Result<()> {
    use tokio::io::AsyncReadExt as _;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 8192, "the request does not end");
        head.push(client.read_u8().await?);
    }
    let mut server = TcpStream::connect(address).await?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
