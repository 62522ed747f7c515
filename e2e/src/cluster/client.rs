//! The cluster's API, for tests.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::future::join;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, AttachedProcess, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::{Client, Config};
use mesh_test::app;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

/// Who applies what the tests apply.
const MANAGER: &str = "mesh-e2e";

/// The API of the cluster; for one runtime.
#[derive(Clone)]
pub(super) struct Cluster {
    /// The client of the API.
    pub(super) api: Client,
}

/// A program that runs in a pod.
pub(super) struct Running {
    process: AttachedProcess,
    output: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    what: String,
}

impl Cluster {
    /// Connects; `kubeconfig`: the user's own without one.
    ///
    /// # Errors
    /// When there is no such configuration.
    pub(super) async fn connect(kubeconfig: Option<&Path>) -> Result<Self> {
        let mut config = match kubeconfig {
            Some(path) => {
                let read = Kubeconfig::read_from(path)
                    .with_context(|| format!("{} cannot be read; run `e2e up` first", path.display()))?;
                Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
            }
            None => Config::infer().await?,
        };
        config.read_timeout = Some(Duration::from_secs(290));
        Ok(Self { api: Client::try_from(config)? })
    }

    /// Objects of a kind in a namespace.
    pub(super) fn in_namespace<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.api.clone(), namespace)
    }

    /// Objects of a kind without namespaces.
    pub(super) fn all<K: kube::Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.api.clone())
    }

    /// Applies an object to a namespace; it wins over what is there.
    ///
    /// # Errors
    /// When the API refuses it.
    pub(super) async fn apply(&self, namespace: &str, object: &Value) -> Result<DynamicObject> {
        let (api, name) = self.dynamic(namespace, object).await?;
        let patched = api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await;
        patched.with_context(|| format!("{} {name} was not applied", kind_of(object)))
    }

    /// Reads an object again.
    ///
    /// # Errors
    /// When it is not there.
    pub(super) async fn read(&self, namespace: &str, object: &Value) -> Result<DynamicObject> {
        let (api, name) = self.dynamic(namespace, object).await?;
        Ok(api.get(&name).await?)
    }

    async fn dynamic(&self, namespace: &str, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let types: TypeMeta = serde_json::from_value(object.clone())?;
        let kind = GroupVersionKind::try_from(&types)?;
        let (resource, _) = kube::discovery::pinned_kind(&self.api, &kind)
            .await
            .with_context(|| format!("the cluster does not know {}", types.kind))?;
        let name = object["metadata"]["name"].as_str().context("it has no name")?.to_owned();
        Ok((Api::namespaced_with(self.api.clone(), namespace, &resource), name))
    }

    /// Starts a program in a container; its standard input stays open until it is told to end.
    ///
    /// # Errors
    /// When the container is not there.
    pub(super) async fn start(&self, at: (&str, &str, &str), command: &[&str]) -> Result<Running> {
        let (namespace, pod, container) = at;
        let what = format!("`{}` in {namespace}/{pod}", command.join(" "));
        let parameters =
            AttachParams::default().container(container).stdin(true).max_stdout_buf_size(1 << 20);
        let pods = self.in_namespace::<Pod>(namespace);
        let mut process =
            pods.exec(pod, command.to_vec(), &parameters).await.with_context(|| what.clone())?;
        let output = process.stdout().context("the API gives no output")?;
        Ok(Running { process, output: BufReader::new(Box::new(output)), what })
    }

    /// Runs a program in a container to its end, and gives what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub(super) async fn exec(&self, at: (&str, &str, &str), command: &[&str]) -> Result<String> {
        self.start(at, command).await?.end().await
    }
}

impl Running {
    /// Waits until it says that it has begun. What it is to see or to outlive must not come before.
    ///
    /// # Errors
    /// When it ends first; with what it said.
    pub(super) async fn begun(mut self) -> Result<Self> {
        let mut line = String::new();
        self.output.read_line(&mut line).await?;
        if line.trim() == app::BEGUN {
            return Ok(self);
        }
        let what = self.what.clone();
        self.end().await?;
        bail!("{what} did not say that it has begun, but {line:?}")
    }

    /// Ends its standard input, waits for it, and gives what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub(super) async fn end(mut self) -> Result<String> {
        if let Some(mut input) = self.process.stdin() {
            input.shutdown().await?;
        }
        let status = self.process.take_status().context("the API tells no status")?;
        let (output, error) = join(all(Some(self.output)), all(self.process.stderr())).await;
        let status = status.await.with_context(|| format!("{} was cut off", self.what))?;
        ensure!(
            status.status.as_deref() == Some("Success"),
            "{} failed: {} {}",
            self.what,
            error.trim(),
            status.message.unwrap_or_default()
        );
        Ok(output)
    }

    /// The same, for a program that prints JSON.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub(super) async fn end_with<T: DeserializeOwned>(self) -> Result<T> {
        parse(&self.end().await?)
    }
}

/// What a program printed as JSON.
///
/// # Errors
/// When it is something else.
pub(super) fn parse<T: DeserializeOwned>(printed: &str) -> Result<T> {
    serde_json::from_str(printed.trim()).with_context(|| format!("not what was expected: {printed}"))
}

async fn all(reader: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut reader) = reader {
        reader.read_to_end(&mut bytes).await.unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn kind_of(object: &Value) -> &str {
    object["kind"].as_str().unwrap_or("object")
}
