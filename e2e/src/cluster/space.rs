//! A namespace of its own for each test, and what stands in it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use mesh_test::app::{self, Answer, Heard, Tally};
use mesh_test::metrics::Metrics;
use mesh_test::wait;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::client::{Cluster, Running, parse};

/// How long pods may take to come up when many do at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// The container of an application.
pub(super) const APP: &str = "app";

/// The container of the proxy.
pub(super) const PROXY: &str = "mesh-proxy";

/// A namespace.
#[derive(Clone)]
pub(super) struct Space {
    /// The cluster that it is in.
    pub(super) cluster: Cluster,
    /// Its name.
    pub(super) name: String,
    /// Whether its pods are to be in the mesh.
    pub(super) mesh: bool,
    /// Where images come from, and their tag.
    pub(super) image: String,
}

impl Space {
    /// Makes a namespace whose name nobody else has.
    ///
    /// # Errors
    /// When the API refuses.
    pub(super) async fn make(cluster: Cluster, test: &str, mesh: bool, image: &str) -> Result<Self> {
        let labels = if mesh { json!({ "mesh/inject": "enabled" }) } else { json!({}) };
        let generate = format!("e2e-{}-", test.replace('_', "-"));
        let namespace = serde_json::from_value(json!({
            "metadata": { "generateName": generate, "labels": labels },
        }))?;
        let made = cluster.all::<Namespace>().create(&PostParams::default(), &namespace).await?;
        let name = made.metadata.name.context("the namespace has no name")?;
        Ok(Self { cluster, name, mesh, image: image.to_owned() })
    }

    /// Deletes the namespace; does not wait for its end.
    ///
    /// # Errors
    /// When the API refuses.
    pub(super) async fn delete(&self) -> Result<()> {
        self.cluster.all::<Namespace>().delete(&self.name, &DeleteParams::background()).await?;
        Ok(())
    }

    /// How long the mesh may take for anything; without it, nothing will come.
    pub(super) fn patience(&self) -> Duration {
        if self.mesh { PATIENCE } else { Duration::from_secs(5) }
    }

    /// Applies objects.
    ///
    /// # Errors
    /// When the API refuses one.
    pub(super) async fn apply(&self, objects: &[Value]) -> Result<()> {
        for object in objects {
            self.cluster.apply(&self.name, object).await?;
        }
        Ok(())
    }

    /// A service account, a Deployment of the test's application and one version of it.
    pub(super) fn server(&self, name: &str, version: &str, replicas: u32) -> [Value; 2] {
        let labels = json!({ "app": name, "version": version });
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": format!("{name}-{version}") },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": labels },
                "template": {
                    "metadata": { "labels": labels },
                    "spec": self.pod_spec(name, version, &["serve", "--http", "8080", "--echo", "9090", "--banner", "9091"]),
                },
            },
        });
        [account(name), deployment]
    }

    /// What runs in a pod of the test's application.
    pub(super) fn pod_spec(&self, account: &str, version: &str, arguments: &[&str]) -> Value {
        let mut container = json!({
            "name": APP, "image": self.image, "imagePullPolicy": "IfNotPresent",
            "args": arguments, "env": [{ "name": "VERSION", "value": version }],
            "resources": { "requests": { "cpu": "1m", "memory": "8Mi" } },
        });
        if arguments.contains(&"--http") {
            let probe = json!({ "httpGet": { "path": "/ready", "port": 8080 }, "periodSeconds": 1 });
            container["readinessProbe"] = probe;
        }
        json!({ "serviceAccountName": account, "terminationGracePeriodSeconds": 20, "containers": [container] })
    }

    /// A service of an application: port 80 HTTP, 81 gRPC, 90 and 91 opaque TCP that echoes, the second speaking first.
    pub(super) fn service(&self, name: &str, selector: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "selector": selector, "ports": [
                { "name": "http", "port": 80, "targetPort": 8080 },
                { "name": "grpc", "port": 81, "targetPort": 8080 },
                { "name": "tcp-echo", "port": 90, "targetPort": 9090 },
                // Nothing tells its protocol.
                { "name": "banner", "port": 91, "targetPort": 9091 },
            ]},
        })
    }

    /// Two versions of `reviews`, a service for both and one for each, and a client.
    ///
    /// # Errors
    /// When they do not come up.
    pub(super) async fn reviews(&self) -> Result<Client> {
        self.apply(&self.server("reviews", "v1", 1)).await?;
        self.apply(&self.server("reviews", "v2", 1)[1..]).await?;
        self.apply(&[
            self.service("reviews", json!({ "app": "reviews" })),
            self.service("reviews-v1", json!({ "app": "reviews", "version": "v1" })),
            self.service("reviews-v2", json!({ "app": "reviews", "version": "v2" })),
        ])
        .await?;
        let client = self.client("client").await?;
        self.deployed("reviews-v1").await?;
        self.deployed("reviews-v2").await?;
        Ok(client)
    }

    /// One server `name` with its service, and a client.
    ///
    /// # Errors
    /// When they do not come up.
    pub(super) async fn pair(&self, name: &str) -> Result<Client> {
        self.apply(&self.server(name, "v1", 1)).await?;
        self.apply(&[self.service(name, json!({ "app": name }))]).await?;
        let client = self.client("client").await?;
        self.deployed(&format!("{name}-v1")).await?;
        Ok(client)
    }

    /// A pod that does what it is told.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) async fn client(&self, name: &str) -> Result<Client> {
        self.client_with(name, |_| {}).await
    }

    /// The same, with a change to its manifest.
    ///
    /// # Errors
    /// When it does not come up.
    pub(super) async fn client_with(&self, name: &str, change: impl Fn(&mut Value)) -> Result<Client> {
        let mut pod = self.client_pod(name);
        change(&mut pod);
        self.apply(&[account(name), pod]).await?;
        self.ready(name).await?;
        Ok(Client { space: self.clone(), pod: name.to_owned() })
    }

    /// The manifest of such a pod.
    pub(super) fn client_pod(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": self.pod_spec(name, "v1", &["serve"]),
        })
    }

    /// A pod of this name, as a client.
    pub(super) fn at(&self, pod: &str) -> Client {
        Client { space: self.clone(), pod: pod.to_owned() }
    }

    /// Waits until a pod is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub(super) async fn ready(&self, name: &str) -> Result<Pod> {
        let pods = self.cluster.in_namespace::<Pod>(&self.name);
        wait::until(&format!("the pod {name} is ready"), PATIENCE, async || {
            let pod = pods.get(name).await.ok()?;
            is_ready(&pod).then_some(pod)
        })
        .await
    }

    /// Waits until a Deployment is as it should be.
    ///
    /// # Errors
    /// When it does not get there.
    pub(super) async fn deployed(&self, name: &str) -> Result<()> {
        let deployments = self.cluster.in_namespace::<Deployment>(&self.name);
        wait::until(&format!("the Deployment {name} is available"), PATIENCE, async || {
            let deployment = deployments.get(name).await.ok()?;
            let (generation, wanted) = (deployment.metadata.generation, deployment.spec?.replicas);
            let status = deployment.status?;
            let all = [status.updated_replicas, status.available_replicas, status.replicas];
            (status.observed_generation >= generation && all.iter().all(|count| *count == wanted))
                .then_some(())
        })
        .await
    }

    /// Waits until a StatefulSet has all its pods.
    ///
    /// # Errors
    /// When it does not get there.
    pub(super) async fn stateful_set(&self, name: &str) -> Result<()> {
        let sets = self.cluster.in_namespace::<StatefulSet>(&self.name);
        wait::until(&format!("the StatefulSet {name} is ready"), PATIENCE, async || {
            let set = sets.get(name).await.ok()?;
            (set.status?.ready_replicas == set.spec?.replicas).then_some(())
        })
        .await
    }

    /// The pods with a label, those that end left out.
    ///
    /// # Errors
    /// When the API does not answer.
    pub(super) async fn pods(&self, label: &str) -> Result<Vec<Pod>> {
        let pods = self.cluster.in_namespace::<Pod>(&self.name);
        let found = pods.list(&ListParams::default().labels(label)).await?.items;
        Ok(found.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// The only pod with a label.
    ///
    /// # Errors
    /// When there is none, or several.
    pub(super) async fn pod(&self, label: &str) -> Result<(String, Pod)> {
        let mut pods = self.pods(label).await?;
        ensure!(pods.len() == 1, "{} pods have the label {label}", pods.len());
        let pod = pods.remove(0);
        Ok((pod.metadata.name.clone().unwrap_or_default(), pod))
    }

    /// What the proxies of all pods with a label count.
    ///
    /// # Errors
    /// When one does not answer.
    pub(super) async fn metrics(&self, label: &str) -> Result<Vec<Metrics>> {
        let mut all = Vec::new();
        for pod in self.pods(label).await? {
            all.push(self.at(&pod.metadata.name.unwrap_or_default()).metrics().await?);
        }
        Ok(all)
    }

    /// Requests that servers' proxies counted, by what they know of the client's identity.
    ///
    /// # Errors
    /// When one does not answer.
    pub(super) async fn received(&self, label: &str, policy: &str) -> Result<f64> {
        let labels = [("reporter", "destination"), ("connection_security_policy", policy)];
        let metrics = self.metrics(label).await?;
        Ok(metrics.iter().map(|metrics| metrics.sum("istio_requests_total", &labels)).sum())
    }

    /// Fails unless at least `at_least` requests came to these pods, all of them with mutual TLS, and the client's proxy
    /// counted as many.
    ///
    /// # Errors
    /// With what was counted.
    pub(super) async fn only_mutual_tls(&self, client: &Client, label: &str, at_least: u64) -> Result<()> {
        wait::until_ok("both proxies count the requests as mutual TLS", self.patience(), async || {
            let secured = self.received(label, "mutual_tls").await?;
            let plain = self.received(label, "none").await?;
            let sent = client.metrics().await?.sum("istio_requests_total", &[("reporter", "source")]);
            ensure!(
                secured >= at_least as f64 && sent >= at_least as f64 && plain == 0.0,
                "{sent} left the client; {secured} came with mutual TLS, {plain} without"
            );
            Ok(())
        })
        .await
    }
}

/// A pod that does what it is told.
#[derive(Clone)]
pub(super) struct Client {
    space: Space,
    /// Its name.
    pub(super) pod: String,
}

impl Client {
    fn place(&self) -> (&str, &str, &str) {
        (&self.space.name, &self.pod, APP)
    }

    async fn told<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let command: Vec<&str> = [app::PATH].iter().chain(arguments).copied().collect();
        parse(&self.space.cluster.exec(self.place(), &command).await?)
    }

    /// One request.
    ///
    /// # Errors
    /// When there is no answer; one of any status is an answer.
    pub(super) async fn get(&self, url: &str) -> Result<Answer> {
        self.told(&["get", url]).await
    }

    /// One request with a header, `NAME=VALUE`.
    ///
    /// # Errors
    /// When there is no answer.
    pub(super) async fn get_with(&self, url: &str, header: &str) -> Result<Answer> {
        self.told(&["get", url, "--header", header]).await
    }

    /// Many requests.
    ///
    /// # Errors
    /// When they were not sent; failed ones are in the tally.
    pub(super) async fn send(&self, url: &str, count: u64) -> Result<Tally> {
        self.told(&["send", url, "--count", &count.to_string()]).await
    }

    /// gRPC calls over one connection.
    ///
    /// # Errors
    /// When they were not sent.
    pub(super) async fn calls(&self, target: &str, count: u64) -> Result<Tally> {
        self.told(&["calls", target, "--count", &count.to_string()]).await
    }

    /// Text sent to a server of opaque TCP, and what comes back.
    ///
    /// # Errors
    /// When nothing does.
    pub(super) async fn tcp(&self, target: &str, banner: bool) -> Result<Heard> {
        let arguments = ["tcp", target, "--banner"];
        self.told(if banner { &arguments } else { &arguments[..2] }).await
    }

    /// A connection upgraded from HTTP.
    ///
    /// # Errors
    /// When it is not.
    pub(super) async fn upgrade(&self, url: &str) -> Result<Heard> {
        self.told(&["upgrade", url]).await
    }

    /// Requests at a steady rate, until it is told to end.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) async fn load(&self, url: &str, rate: u32) -> Result<Running> {
        self.start(&["load", url, &format!("--rate={rate}")]).await
    }

    /// A program of the image that runs until it is told to end; it has begun when this returns.
    ///
    /// # Errors
    /// When it does not begin.
    pub(super) async fn start(&self, arguments: &[&str]) -> Result<Running> {
        let command: Vec<&str> = [app::PATH].iter().chain(arguments).copied().collect();
        self.space.cluster.start(self.place(), &command).await?.begun().await
    }

    /// A page of the proxy's admin port.
    ///
    /// # Errors
    /// When there is none.
    pub(super) async fn page(&self, path: &str) -> Result<String> {
        let answer = self.get(&format!("http://127.0.0.1:15000{path}")).await?;
        ensure!(answer.status == 200, "{path}: {answer}");
        Ok(answer.body)
    }

    /// What its proxy counts.
    ///
    /// # Errors
    /// When it has none.
    pub(super) async fn metrics(&self) -> Result<Metrics> {
        Metrics::parse(&self.page("/metrics").await?)
    }
}

/// A service account.
pub(super) fn account(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } })
}

/// An HTTPRoute of a service with these rules.
pub(super) fn route(name: &str, service: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": { "name": name },
        "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": service, "port": 80 }], "rules": rules },
    })
}

/// A rule that splits between services.
pub(super) fn split(backends: &[(&str, u32)]) -> Value {
    let backend = |(name, weight): &(&str, u32)| json!({ "name": name, "port": 80, "weight": weight });
    json!([{ "backendRefs": backends.iter().map(backend).collect::<Vec<_>>() }])
}

/// A PeerAuthentication for the whole namespace.
pub(super) fn peer_authentication(mode: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": { "name": "default" },
        "spec": { "mtls": { "mode": mode } },
    })
}

/// Whether a pod says that it is ready.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}
