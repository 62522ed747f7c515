//! The webhook on loopback, and a client of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_common::listen::listen;
use mesh_common::process::{DrainGuard, DrainTrigger, Readiness, drain};
use mesh_common::trust::{PrivateKey, TrustBundle, WorkloadCertificate, provider};
use mesh_injector::certificate::{ServingCertificate, server_config};
use mesh_injector::events;
use mesh_injector::metrics::Metrics;
use mesh_injector::namespaces::Namespaces;
use mesh_injector::roots::Roots;
use mesh_injector::serve::{Limits, Server};
use mesh_injector::settings::Settings;
use mesh_injector::version::Version;
use mesh_injector::webhook::Webhook;
use mesh_test::certs::{Authority, Leaf};
use mesh_test::wait::{self, PATIENCE};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, namespace};

pub(crate) const NAME: &str = "mesh-injector.mesh-system.svc";

pub(crate) struct World {
    pub(crate) api: Api,
    pub(crate) address: SocketAddr,
    pub(crate) authority: Authority,
    pub(crate) serving: Arc<ServingCertificate>,
    pub(crate) metrics: Metrics,
    pub(crate) trigger: Option<DrainTrigger>,
    pub(crate) leaving: CancellationToken,
    _tasks: JoinSet<()>,
}

impl World {
    pub(crate) async fn start() -> Result<Self> {
        Self::with(Limits::default()).await
    }

    pub(crate) async fn with(limits: Limits) -> Result<Self> {
        let authority = Authority::new("mesh")?;
        let roots = TrustBundle::from_pem(authority.root_pem())?;
        Self::of(Api::new(), authority, Some(roots), limits).await
    }

    /// Before this API; with the roots that are known, if any.
    pub(crate) async fn of(
        api: Api,
        authority: Authority,
        known: Option<TrustBundle>,
        limits: Limits,
    ) -> Result<Self> {
        let enabled = namespace("shop", &json!({ "mesh/inject": "enabled" }));
        let plain = namespace("plain", &json!({}));
        api.0.lock().unwrap().namespaces.extend([("shop".to_owned(), enabled), ("plain".to_owned(), plain)]);
        let (metrics, readiness) = (Metrics::new(), Readiness::default());
        let (events, writer) = events::events(api.client(), metrics.clone());
        let (namespaces, roots, version) =
            (Namespaces::new(api.client()), Roots::default(), Version::default());
        known.into_iter().for_each(|bundle| roots.set(bundle));
        let serving = Arc::new(ServingCertificate::default());
        let listener = listen("127.0.0.1:0".parse()?).await?;
        let address = listener.local_addr()?;
        let webhook = Webhook {
            settings: Arc::new(ArcSwap::from_pointee(Settings::parse("proxy: {image: mesh-proxy:test}")?)),
            namespaces: namespaces.clone(),
            roots,
            version: version.clone(),
            events,
            metrics: metrics.clone(),
            control: "mesh-control.mesh-system.svc:15012".to_owned(),
            control_name: "mesh-control.mesh-system.svc".to_owned(),
            own_namespace: "mesh-system".to_owned(),
        };
        let (trigger, guard): (DrainTrigger, DrainGuard) = drain();
        let (tls, leaving) = (server_config(Arc::clone(&serving))?, CancellationToken::new());
        let server = Server::new(listener, tls, webhook, limits, leaving.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(guard));
        tasks.spawn(writer.run());
        tasks.spawn(namespaces.follow(readiness.condition("namespaces")));
        tasks.spawn(version.follow(api.client(), readiness.condition("version")));
        let world = Self {
            api,
            address,
            authority,
            serving,
            metrics,
            trigger: Some(trigger),
            leaving,
            _tasks: tasks,
        };
        world.renew()?;
        wait::until("the watches are in sync", PATIENCE, async || {
            readiness.missing().is_empty().then_some(())
        })
        .await?;
        Ok(world)
    }

    /// Puts a new certificate to use.
    pub(crate) fn renew(&self) -> Result<()> {
        let uri = "spiffe://cluster.local/ns/mesh-system/sa/mesh-injector";
        let leaf = self.authority.leaf(&Leaf { uris: &[uri], dns: &[NAME], expired: false })?;
        let key = Arc::new(PrivateKey::from_pem(&leaf.key_pem)?);
        let chain = [leaf.pem, self.authority.root_pem().to_owned()];
        self.serving.set(&WorkloadCertificate::from_chain_pem(&chain, key)?)?;
        Ok(())
    }

    pub(crate) async fn tls(&self, alpn: &str) -> Result<TlsStream<TcpStream>> {
        connect(self.address, &self.authority, alpn, &[&rustls::version::TLS13]).await
    }

    /// Sends one request over a connection of its own.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, String)> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.tls("http/1.1").await?)).await?;
        let driver = tokio::spawn(connection);
        let response = sender.send_request(request).await?;
        let answer = read(response).await;
        drop(sender);
        driver.abort();
        answer
    }

    /// The answer to a review, by HTTP/2.
    pub(crate) async fn review(&self, review: &Value) -> Result<Value> {
        let io = TokioIo::new(self.tls("h2").await?);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        let driver = tokio::spawn(connection);
        let (status, body) = read(sender.send_request(post(review.to_string())).await?).await?;
        driver.abort();
        anyhow::ensure!(status == StatusCode::OK, "{status}: {body}");
        let answer: Value = serde_json::from_str(&body)?;
        assert_eq!(
            (&answer["apiVersion"], &answer["kind"]),
            (&json!("admission.k8s.io/v1"), &json!("AdmissionReview"))
        );
        assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
        Ok(answer["response"].clone())
    }

    pub(crate) fn page(&self) -> String {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.metrics.registry().lock().unwrap())
            .unwrap();
        page
    }
}

pub(crate) async fn connect(
    address: SocketAddr,
    authority: &Authority,
    alpn: &str,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<TlsStream<TcpStream>> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)?
        .with_root_certificates(mesh_test::certs::root_store(authority.root_pem())?)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let tcp = TcpStream::connect(address).await?;
    // Else a request waits for the acknowledgement of the handshake, and a test for nothing.
    tcp.set_nodelay(true)?;
    let connecting = TlsConnector::from(Arc::new(config)).connect(NAME.try_into()?, tcp);
    tokio::time::timeout(PATIENCE, connecting).await?.context("TLS")
}

pub(crate) async fn read(response: Response<hyper::body::Incoming>) -> Result<(StatusCode, String)> {
    let status = response.status();
    let body =
        tokio::time::timeout(Duration::from_secs(30), response.into_body().collect()).await??.to_bytes();
    Ok((status, String::from_utf8(body.to_vec())?))
}

pub(crate) fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("https://mesh-injector.mesh-system.svc/inject")
        .header("host", NAME)
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

pub(crate) fn pod() -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "generateName": "web-" },
            "spec": { "containers": [{ "name": "web", "image": "shop/web:1" }] } })
}

pub(crate) fn review_of(namespace: &str, pod: &Value) -> Value {
    json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": { "group": "", "version": "v1", "kind": "Pod" },
        "resource": { "group": "", "version": "v1", "resource": "pods" },
        "namespace": namespace, "operation": "CREATE", "userInfo": {}, "object": pod, "dryRun": false,
    } })
}

/// The pod that an answer makes.
pub(crate) fn patched(pod: &Value, response: &Value) -> Result<Value> {
    let patch = response["patch"].as_str().context("there is no patch")?;
    let patch = base64::engine::general_purpose::STANDARD.decode(patch)?;
    let mut pod = pod.clone();
    let patch: json_patch::Patch = serde_json::from_slice(&patch)?;
    json_patch::patch(&mut pod, &patch)?;
    Ok(pod)
}
