//! A folder of manifests, a server on it, and the tokens of its pods.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use clap::Parser as _;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use mesh_common::trust::TrustBundle;
use mesh_control::app::App;
use mesh_control::options::Options;
use serde_json::json;

/// A pod of the shop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pod {
    pub(crate) name: &'static str,
    pub(crate) account: &'static str,
    pub(crate) ip: &'static str,
}

pub(crate) const WEB: Pod = Pod { name: "web-1", account: "web", ip: "127.0.21.1" };
pub(crate) const REVIEWS: Pod = Pod { name: "reviews-1", account: "reviews", ip: "127.0.21.2" };
pub(crate) const RATINGS: Pod = Pod { name: "ratings-1", account: "ratings", ip: "127.0.21.3" };

/// A mesh of one control plane.
pub(crate) struct World {
    config: tempfile::TempDir,
    state: tempfile::TempDir,
    app: App,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(flags: &[&str]) -> Self {
        let (config, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for pod in [WEB, REVIEWS, RATINGS] {
            write(config.path(), &format!("{}.yaml", pod.name), &pod_manifest(pod, ""));
        }
        for (service, address, pods) in [
            ("web", "10.96.0.1", &[WEB][..]),
            ("reviews", "10.96.0.2", &[REVIEWS]),
            ("ratings", "10.96.0.3", &[RATINGS]),
        ] {
            write(config.path(), &format!("{service}-service.yaml"), &service_manifest(service, address));
            write(config.path(), &format!("{service}-slice.yaml"), &slice_manifest(service, pods));
        }
        let app = serve(config.path(), state.path(), flags).await;
        Self { config, state, app }
    }

    /// Another server on the same folders.
    pub(crate) async fn second_server(&self) -> App {
        serve(self.config.path(), self.state.path(), &[]).await
    }

    pub(crate) fn xds(&self) -> SocketAddr {
        self.app.xds
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.app.admin
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::from_pem(&std::fs::read_to_string(self.state.path().join("root-cert.pem")).unwrap())
            .unwrap()
    }

    /// The token that the pod's proxy would have.
    pub(crate) fn token(&self, pod: Pod) -> String {
        self.token_for(pod, "mesh-ca", 600)
    }

    pub(crate) fn token_for(&self, pod: Pod, audience: &str, seconds: i64) -> String {
        let now = i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
        let claims = json!({
            "iss": "mesh", "aud": [audience], "iat": now, "nbf": now - 300, "exp": now + seconds,
            "sub": format!("system:serviceaccount:shop:{}", pod.account),
            "kubernetes.io": {
                "namespace": "shop",
                "pod": { "name": pod.name, "uid": "" },
                "serviceaccount": { "name": pod.account, "uid": "" },
            },
        });
        let key = std::fs::read(self.state.path().join("token-signer.pem")).unwrap();
        let key = EncodingKey::from_ec_pem(&key).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap()
    }

    /// Changes one file, as an editor would: by renaming a new one over it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        write(self.config.path(), name, text);
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.config.path().join(name)).unwrap();
    }

    pub(crate) async fn stop(self) {
        assert!(self.app.stop(Duration::from_secs(10)).await, "everything ends in time");
    }

    /// A page of the admin server.
    pub(crate) async fn page(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut socket = tokio::net::TcpStream::connect(self.admin()).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin());
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        socket.read_to_string(&mut page).await.unwrap();
        page
    }
}

async fn serve(config: &Path, state: &Path, flags: &[&str]) -> App {
    let fixed = ["mesh-control", "--xds-address", "127.0.0.1:0", "--admin-address", "127.0.0.1:0"];
    let folders = ["--config-dir", config.to_str().unwrap(), "--state-dir", state.to_str().unwrap()];
    let options = Options::try_parse_from(fixed.iter().chain(&folders).chain(flags)).unwrap();
    App::start(&options, None).await.unwrap()
}

fn write(folder: &Path, name: &str, text: &str) {
    let draft = folder.join(format!(".{name}.tmp"));
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(&draft, folder.join(name)).unwrap();
}

pub(crate) fn pod_manifest(pod: Pod, annotation: &str) -> String {
    let Pod { name, account, ip } = pod;
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: shop
  labels:
    app: {account}
    security.istio.io/tlsMode: istio
  annotations:
    note: \"{annotation}\"
spec:
  serviceAccountName: {account}
  nodeName: node-1
  containers:
  - name: app
    image: app
status:
  phase: Running
  podIP: {ip}
  podIPs:
  - ip: {ip}
"
    )
}

pub(crate) fn service_manifest(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: shop
spec:
  clusterIP: {address}
  clusterIPs: [{address}]
  selector:
    app: {name}
  ports:
  - name: http
    port: 80
    targetPort: 8080
"
    )
}

pub(crate) fn slice_manifest(service: &str, pods: &[Pod]) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {service}-1
  namespace: shop
  labels:
    kubernetes.io/service-name: {service}
addressType: IPv4
ports:
- name: http
  port: 8080
  protocol: TCP
endpoints:
"
    );
    for Pod { name, ip, .. } in pods {
        text.push_str(&format!(
            "- addresses: [{ip}]
  conditions: {{ready: true, serving: true, terminating: false}}
  nodeName: node-1
  targetRef: {{kind: Pod, name: {name}, namespace: shop}}
"
        ));
    }
    text
}
