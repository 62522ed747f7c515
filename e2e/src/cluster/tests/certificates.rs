//! Callers of mesh-control that have no right to what they ask for.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ServiceAccount};
use kube::api::{ListParams, PostParams};
use mesh_common::xds::ResourceType;
use mesh_test::certs::signing_request;
use mesh_test::client::{ControlClient, NodeName};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{MESH, Settings};
use crate::cluster::space::{Space, account, is_ready};

/// What tokens for the mesh are made for.
const AUDIENCE: &str = "mesh-ca";

pub(super) async fn strangers_are_refused(space: &Space, _: &Settings) -> Result<()> {
    space.apply(&[account("web"), account("reviews")]).await?;
    for name in ["web", "reviews"] {
        space.client(name).await?;
    }
    let roots = space.cluster.in_namespace::<ConfigMap>(&space.name).get("mesh-root-cert").await?;
    let root = roots.data.unwrap_or_default().remove("root-cert.pem").context("no root in mesh-root-cert")?;
    let (_way, door) = way_to_control(space).await?;
    let good = token(space, "web", json!(AUDIENCE), Some("web")).await?;
    let client = ControlClient::connect(door, &root, Some(&good)).await?;

    // A request for another identity is signed with the caller's own, or not at all.
    let (csr, _) = signing_request(&format!("spiffe://cluster.local/ns/{}/sa/reviews", space.name))?;
    if let Ok(chain) = client.sign(&csr).await {
        let leaf = &mesh_common::trust::parse_certificates(&chain.concat())?[0];
        let signed = mesh_common::trust::identity_of(leaf)?;
        ensure!(signed.service_account() == "web", "another's identity was signed: {signed}");
    }
    let (web, reviews) = (address(space, "web").await?, address(space, "reviews").await?);
    let node = NodeName { namespace: &space.name, pod: "web", service_account: "web", ip: web };
    let name = format!("inbound/{}/web", space.name);
    client.ask(&node, ResourceType::Listener, &name).await.context("an honest caller")?;
    for (what, node) in [
        ("another pod", NodeName { pod: "reviews", service_account: "reviews", ip: reviews, ..node }),
        ("another's name", NodeName { pod: "reviews", ..node }),
        ("another's account", NodeName { service_account: "reviews", ..node }),
        ("another's address", NodeName { ip: reviews, ..node }),
        ("another namespace", NodeName { namespace: "kube-system", ..node }),
    ] {
        match client.ask(&node, ResourceType::Listener, &name).await {
            Ok(answer) => bail!("a stream for {what} got {answer:?}"),
            Err(status) => refusal(what, &status)?,
        }
    }
    let tokens = [
        ("no token", None),
        ("no token at all", Some("a.b.c".to_owned())),
        ("another audience", Some(token(space, "web", json!("somebody-else"), Some("web")).await?)),
        ("the API server's audience", Some(token(space, "web", Value::Null, Some("web")).await?)),
        ("no pod in it", Some(token(space, "web", json!(AUDIENCE), None).await?)),
        ("another pod's", Some(token(space, "reviews", json!(AUDIENCE), Some("reviews")).await?)),
    ];
    for (what, token) in tokens {
        let client = ControlClient::connect(door, &root, token.as_deref()).await?;
        match client.ask(&node, ResourceType::Listener, &name).await {
            Ok(answer) => bail!("a stream with {what} got {answer:?}"),
            Err(status) => refusal(what, &status)?,
        }
        if what != "another pod's" {
            let (csr, _) = signing_request(&format!("spiffe://cluster.local/ns/{}/sa/web", space.name))?;
            ensure!(client.sign(&csr).await.is_err(), "a certificate was signed with {what}");
        }
    }
    Ok(())
}

fn refusal(what: &str, status: &tonic::Status) -> Result<()> {
    let code = matches!(status.code(), tonic::Code::Unauthenticated | tonic::Code::PermissionDenied);
    ensure!(code && !status.message().is_empty(), "{what}: {status}");
    Ok(())
}

/// A token of a service account, bound to a pod if one is named.
async fn token(space: &Space, account: &str, audience: Value, pod: Option<&str>) -> Result<String> {
    let audiences = if audience.is_null() { json!([]) } else { json!([audience]) };
    let mut spec = json!({ "audiences": audiences, "expirationSeconds": 3600 });
    if let Some(pod) = pod {
        spec["boundObjectRef"] = json!({ "apiVersion": "v1", "kind": "Pod", "name": pod });
    }
    let request: TokenRequest = serde_json::from_value(json!({ "metadata": {}, "spec": spec }))?;
    let accounts = space.cluster.in_namespace::<ServiceAccount>(&space.name);
    let made = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    Ok(made.status.context("no token")?.token)
}

async fn address(space: &Space, pod: &str) -> Result<IpAddr> {
    let pod = space.cluster.in_namespace::<Pod>(&space.name).get(pod).await?;
    Ok(pod.status.and_then(|status| status.pod_ip).context("no address")?.parse()?)
}

/// A port of this machine that leads to a replica of mesh-control.
async fn way_to_control(space: &Space) -> Result<(JoinSet<()>, SocketAddr)> {
    let pods = space.cluster.in_namespace::<Pod>(MESH);
    let found = pods.list(&ListParams::default().labels("app.kubernetes.io/name=mesh-control")).await?.items;
    let pod = found.iter().find(|pod| is_ready(pod)).context("no replica of mesh-control is ready")?;
    let name = pod.metadata.name.clone().unwrap_or_default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let door = listener.local_addr()?;
    let mut way = JoinSet::new();
    way.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let (pods, name) = (pods.clone(), name.clone());
            connections.spawn(async move {
                let Ok(mut forward) = pods.portforward(&name, &[15012]).await else { return };
                let Some(mut far) = forward.take_stream(15012) else { return };
                tokio::io::copy_bidirectional(&mut near, &mut far).await.map(drop).unwrap_or_default();
            });
        }
    });
    Ok((way, door))
}
