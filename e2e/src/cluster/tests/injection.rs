//! Which pods get a proxy, what is in it, and what else runs in such pods.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ListParams, LogParams, PostParams};
use mesh_test::app::Tally;
use mesh_test::wait;
use serde_json::json;

use super::{MESH, Settings};
use crate::cluster::client::parse;
use crate::cluster::space::{PATIENCE, PROXY, Space, account, is_ready};

pub(super) async fn injected_and_opted_out(space: &Space, _: &Settings) -> Result<()> {
    let wanted = space.client("wanted").await?;
    let pods = space.cluster.in_namespace::<Pod>(&space.name);
    let pod = pods.get(&wanted.pod).await?;
    let spec = pod.spec.context("no spec")?;
    let init: Vec<&str> =
        spec.init_containers.iter().flatten().map(|container| container.name.as_str()).collect();
    ensure!(init == ["mesh-redirect", PROXY], "init containers are {init:?}");
    let proxy = spec.init_containers.iter().flatten().find(|container| container.name == PROXY);
    let context = serde_json::to_value(proxy.and_then(|proxy| proxy.security_context.clone()))?;
    for (path, expected) in [
        ("/runAsUser", json!(1337)),
        ("/readOnlyRootFilesystem", json!(true)),
        ("/allowPrivilegeEscalation", json!(false)),
        ("/capabilities/drop/0", json!("ALL")),
        ("/seccompProfile/type", json!("RuntimeDefault")),
    ] {
        ensure!(context.pointer(path) == Some(&expected), "{path} of the proxy: {context}");
    }
    ensure!(wanted.page("/readyz").await?.starts_with("ready"));

    let mut refuses = space.client_pod("refuses");
    refuses["metadata"]["labels"]["mesh/inject"] = json!("disabled");
    space.apply(&[account("refuses"), refuses]).await?;
    bare(&space.ready("refuses").await?)?;

    // A namespace that says nothing, and a pod in it that asks for a proxy.
    let other = Space::make(space.cluster.clone(), "asked", false, &space.image).await?;
    let outcome = asked(&other).await;
    other.delete().await?;
    outcome
}

async fn asked(other: &Space) -> Result<()> {
    other.client("bare").await?;
    bare(&other.ready("bare").await?)?;
    let asks =
        other.client_with("asks", |pod| pod["metadata"]["labels"]["mesh/inject"] = json!("enabled")).await?;
    ensure!(asks.page("/readyz").await?.starts_with("ready"));
    Ok(())
}

fn bare(pod: &Pod) -> Result<()> {
    let spec = pod.spec.as_ref().context("no spec")?;
    let init = spec.init_containers.as_ref().map_or(0, Vec::len);
    ensure!(init == 0 && spec.containers.len() == 1, "it got {init} init containers");
    Ok(())
}

pub(super) async fn namespace_just_created(space: &Space, _: &Settings) -> Result<()> {
    // Each time the namespace is as new as can be; no cache can know of it.
    for round in 0..5 {
        let labels = if space.mesh { json!({ "mesh/inject": "enabled" }) } else { json!({}) };
        let name = format!("{}-{round}", space.name);
        let namespace: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels } }))?;
        space.cluster.all::<Namespace>().create(&PostParams::default(), &namespace).await?;
        let fresh = Space { name, ..space.clone() };
        let outcome = first_pod(&fresh).await;
        fresh.delete().await?;
        outcome.with_context(|| format!("in round {round}"))?;
    }
    Ok(())
}

async fn first_pod(fresh: &Space) -> Result<()> {
    fresh.apply(&[account("first"), fresh.client_pod("first")]).await?;
    fresh.ready("first").await?;
    ensure!(fresh.at("first").page("/readyz").await?.starts_with("ready"));
    Ok(())
}

pub(super) async fn init_containers_have_network(space: &Space, _: &Settings) -> Result<()> {
    space.pair("orders").await?;
    let mut pod = space.client_pod("early");
    let mut init = pod["spec"]["containers"][0].clone();
    init["name"] = json!("early");
    init["args"] = json!(["send", "http://orders/", "--count", "20", "--strict"]);
    pod["spec"]["initContainers"] = json!([init]);
    space.apply(&[account("early"), pod]).await?;
    space.ready("early").await?;
    let pods = space.cluster.in_namespace::<Pod>(&space.name);
    let log =
        pods.logs("early", &LogParams { container: Some("early".into()), ..LogParams::default() }).await?;
    parse::<Tally>(&log)?.no_failure()?;
    let secured = space.received("app=orders", "mutual_tls").await?;
    ensure!(secured == 20.0, "{secured} requests of the init container came with mutual TLS");
    Ok(())
}

pub(super) async fn jobs_complete(space: &Space, _: &Settings) -> Result<()> {
    space.pair("orders").await?;
    let mut template = json!({ "spec": space.pod_spec("job", "v1", &["send", "http://orders/", "--count", "30", "--strict"]) });
    template["spec"]["restartPolicy"] = json!("Never");
    let spec = json!({ "backoffLimit": 0, "template": template });
    let job =
        json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "once" }, "spec": spec });
    let cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "often" },
        "spec": { "schedule": "* * * * *", "jobTemplate": { "spec": spec } },
    });
    space.apply(&[account("job"), job, cron]).await?;
    let jobs = space.cluster.in_namespace::<Job>(&space.name);
    wait::until_ok("the Job and one of the CronJob are complete", PATIENCE, async || {
        let all = jobs.list(&ListParams::default()).await?.items;
        let status = |job: &Job| job.status.clone().unwrap_or_default();
        ensure!(
            all.iter().all(|job| status(job).failed.unwrap_or(0) == 0),
            "one failed: {:?}",
            all.iter().map(status).collect::<Vec<_>>()
        );
        let complete = all.iter().filter(|job| status(job).succeeded == Some(1)).count();
        ensure!(complete >= 2, "{complete} of {} are complete", all.len());
        Ok(())
    })
    .await?;
    let secured = space.received("app=orders", "mutual_tls").await?;
    ensure!(secured >= 60.0, "{secured} requests of Jobs came with mutual TLS");
    Ok(())
}

pub(super) async fn invalid_webhook_calls(space: &Space, _: &Settings) -> Result<()> {
    // The API server is the only caller with a way in; what it would send for pods that cannot be.
    for (annotation, value) in [
        ("mesh/proxy-memory", "much"),
        ("mesh/exclude-outbound-ports", "http"),
        ("mesh/exclude-outbound-ranges", "10.0.0.0/64"),
        ("mesh/log-level", "loud"),
    ] {
        let mut pod = space.client_pod("wrong");
        pod["metadata"]["annotations"] = json!({ annotation: value });
        let refused = space.apply(&[account("wrong"), pod]).await;
        let error =
            format!("{:#}", refused.err().with_context(|| format!("{annotation}={value} was taken"))?);
        ensure!(error.contains(annotation), "the refusal does not name {annotation}: {error}");
    }
    for (what, body, kind, expected) in [
        ("no JSON", "{", "application/json", 400),
        ("no review", "{}", "application/json", 400),
        (
            "another version",
            r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}"#,
            "application/json",
            400,
        ),
        ("another type", "x", "text/plain", 415),
    ] {
        let status = post(space, body, kind).await.with_context(|| what.to_owned())?;
        ensure!(status == expected, "{what}: status {status}, not {expected}");
    }
    space.client("after").await?;
    let pods = space.cluster.in_namespace::<Pod>(MESH);
    let injectors =
        pods.list(&ListParams::default().labels("app.kubernetes.io/name=mesh-injector")).await?.items;
    ensure!(injectors.len() >= 2 && injectors.iter().all(is_ready), "not all replicas are ready");
    let restarts = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.clone());
        statuses.unwrap_or_default().iter().map(|status| status.restart_count).sum::<i32>()
    };
    ensure!(injectors.iter().all(|pod| restarts(pod) == 0), "an injector was restarted");
    ensure!(space.at("after").page("/readyz").await?.starts_with("ready"));
    Ok(())
}

/// What the webhook answers to a body, asked through the API server's proxy to services.
async fn post(space: &Space, body: &str, kind: &str) -> Result<u16> {
    let path = format!("/api/v1/namespaces/{MESH}/services/https:mesh-injector:443/proxy/inject");
    let request = http::Request::post(path)
        .header("content-type", kind)
        .body(kube::client::Body::from(body.as_bytes().to_vec()))?;
    Ok(space.cluster.api.send(request).await?.status().as_u16())
}
