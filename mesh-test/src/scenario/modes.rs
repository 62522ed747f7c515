//! Mutual TLS by mesh, namespace, workload and port; TLS that is the application's own; a CA that is the user's.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use mesh_common::trust::parse_certificates;
use mesh_common::xds::names::TOKEN_AUDIENCE;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::MTLS;
use crate::certs::{plain_client_config, signing_request};
use crate::client::{ControlClient, HttpClient};
use crate::manifest;
use crate::server::TLS_NAME;
use crate::topology::{App, NAMESPACE, PodSpec, ServiceSpec, Topology};
use crate::wait::{self, PATIENCE};
use crate::world::World;

/// The port with a mode of its own.
const ADMIN: u16 = 2;

pub(super) fn modes_world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web"))
        .pod(PodSpec::server("reviews", App::Http).also(ADMIN, App::Http))
        .pod(PodSpec::server("ratings", App::Http))
        .service(ServiceSpec::new("reviews", "http").port(81, "http-admin", ADMIN))
        .service(ServiceSpec::new("ratings", "http"))
}

/// What a port does with a client of the mesh, and with one that is outside of it.
#[derive(Debug, Clone, Copy)]
struct Port {
    pod: &'static str,
    url: &'static str,
    at: u16,
    /// The client in the mesh uses mutual TLS.
    mutual: bool,
    /// The client outside is taken.
    plaintext: bool,
}

pub(super) async fn policies_by_level(world: &World) -> Result<()> {
    let port = |pod, url, at, mutual, plaintext| Port { pod, url, at, mutual, plaintext };
    let all = |reviews: (bool, bool), admin: (bool, bool), ratings: (bool, bool)| {
        [
            port("reviews", "http://reviews", 0, reviews.0, reviews.1),
            port("reviews", "http://reviews:81", ADMIN, admin.0, admin.1),
            port("ratings", "http://ratings", 0, ratings.0, ratings.1),
        ]
    };
    let (permissive, strict, disabled) = ((true, true), (true, false), (false, true));
    let admin = world.port() + ADMIN;
    let own = |mode: &str, port_mode: &str| {
        let spec = format!("\n  portLevelMtls:\n    {admin}: {{mode: {port_mode}}}");
        policy(
            NAMESPACE,
            "own",
            &format!("selector:\n    matchLabels: {{app: reviews}}\n  mtls: {{mode: {mode}}}{spec}"),
        )
    };
    let plain = |namespace: &str, mode: &str| manifest::peer_authentication(namespace, mode);
    let steps = [
        ("nothing", vec![], all(permissive, permissive, permissive)),
        ("mesh", vec![("mesh.yaml", plain("mesh-system", "STRICT"))], all(strict, strict, strict)),
        (
            "namespace",
            vec![("namespace-mode.yaml", plain(NAMESPACE, "DISABLE"))],
            all(disabled, disabled, disabled),
        ),
        ("workload", vec![("own.yaml", own("STRICT", "PERMISSIVE"))], all(strict, permissive, disabled)),
        ("port", vec![("own.yaml", own("UNSET", "STRICT"))], all(disabled, strict, disabled)),
    ];
    for (step, (what, files, ports)) in (0_u16..).zip(steps) {
        for (file, text) in files {
            world.edit(file, &text)?;
        }
        for (at, port) in (0_u16..).zip(ports) {
            let mark = 240 + step * 10 + at * 2;
            as_said(world, port, mark).await.with_context(|| format!("{what}: {port:?}"))?;
        }
    }
    Ok(())
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: {name}\n  \
         namespace: {namespace}\nspec:\n  {spec}\n"
    )
}

/// Waits until the port does as it should, then asks in earnest. `mark` and the next one are statuses that
/// nothing else has.
async fn as_said(world: &World, port: Port, mark: u16) -> Result<()> {
    let Port { pod, url, at, mutual, plaintext } = port;
    let client = world.client("web")?;
    let address = format!("{}:{}", world.pod(pod)?.ip(), world.port() + at);
    // A connection of its own each time: a kept one has the mode of its first request.
    let straight =
        async |path: &str| HttpClient::new(address.parse()?).get(&format!("http://{address}{path}")).await;
    wait::until_ok("the mode is in force", PATIENCE, async || {
        ensure!(straight("/").await.is_ok() == plaintext, "plaintext is taken: {}", !plaintext);
        let told =
            client.get(&format!("{url}/")).await?.echo()?.headers.contains_key("x-forwarded-client-cert");
        ensure!(told == mutual, "mutual TLS: {told}");
        Ok(())
    })
    .await?;
    for _ in 0..3 {
        client.get(&format!("{url}/status/{mark}")).await?;
    }
    let security = if mutual { "mutual_tls" } else { "none" };
    let count = async |mark: u16, security, count| {
        let code = mark.to_string();
        let labels = [("connection_security_policy", security), ("response_code", &*code)];
        world.counted(pod, "istio_requests_total", &[MTLS[0], labels[0], labels[1]], count).await
    };
    count(mark, security, 3).await?;
    let code = mark.to_string();
    world
        .counted("web", "istio_requests_total", &[("reporter", "source"), ("response_code", &code)], 3)
        .await?;
    if plaintext {
        straight(&format!("/status/{}", mark + 1)).await?;
        count(mark + 1, "none", 1).await?;
    }
    Ok(())
}

pub(super) fn vault_world() -> Topology {
    Topology::default()
        .pod(PodSpec::client("web"))
        .pod(PodSpec::server("vault", App::TlsEcho).at(2))
        .service(ServiceSpec::new("vault", "https"))
}

pub(super) async fn own_tls_passes(world: &World) -> Result<()> {
    let pod = world.pod("vault")?;
    let config = plain_client_config(pod.server()?.root_pem())?;
    let from_the_mesh = world.pod("web")?.dial("vault", 80).await?;
    speak(&config, from_the_mesh).await.context("from a pod of the mesh")?;
    let tcp = "istio_tcp_connections_closed_total";
    world.counted("vault", tcp, &MTLS, 1).await?;
    world.counted("web", tcp, &[("reporter", "source"), ("destination_service_name", "vault")], 1).await?;
    let from_outside = TcpStream::connect(pod.address()).await?;
    speak(&config, from_outside).await.context("from outside of the mesh")?;
    world.counted("vault", tcp, &[MTLS[0], ("connection_security_policy", "none")], 1).await?;
    // STRICT means the mesh's TLS: what is inside of it is the application's.
    world.edit("mode.yaml", &manifest::peer_authentication(NAMESPACE, "STRICT"))?;
    wait::until("the application's own TLS is refused", PATIENCE, async || {
        let stream = TcpStream::connect(pod.address()).await.ok()?;
        speak(&config, stream).await.is_err().then_some(())
    })
    .await?;
    speak(&config, world.pod("web")?.dial("vault", 80).await?).await.context("from a pod, at STRICT")?;
    world.counted("vault", tcp, &MTLS, 2).await
}

/// TLS with the application; its certificate is checked, and nobody else's would do.
async fn speak(config: &Arc<rustls::ClientConfig>, stream: TcpStream) -> Result<()> {
    let name = ServerName::try_from(TLS_NAME)?;
    let mut stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await?;
    stream.write_all(b"secret").await?;
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).await?;
    ensure!(answer == *b"secret", "heard {answer:?}");
    Ok(stream.shutdown().await?)
}

pub(super) async fn issuer_below_the_root(world: &World) -> Result<()> {
    for _ in 0..10 {
        world.client("web")?.get(super::routing::REVIEWS).await?.echo()?;
    }
    world.counted("reviews", "istio_requests_total", &MTLS, 10).await?;
    world.counted("web", "istio_requests_total", &[("reporter", "source")], 10).await?;
    ensure!(!world.state().join("root-key.pem").exists(), "mesh-control made a root of its own");
    // The chain that workloads show is theirs, the issuer's, and the user's root.
    let root = world.root_pem()?;
    let token = world.token("web", "web", TOKEN_AUDIENCE).await?;
    let client = ControlClient::connect(world.addresses().xds, &root, Some(&token)).await?;
    let (csr, _) = signing_request("spiffe://cluster.local/ns/shop/sa/web")?;
    let chain = parse_certificates(&client.sign(&csr).await?.concat())?;
    ensure!(chain.len() == 3, "the chain has {} certificates", chain.len());
    ensure!(chain[2] == parse_certificates(&root)?[0], "the chain does not end with the user's root");
    Ok(())
}
