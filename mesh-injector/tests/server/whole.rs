//! The whole program but its `main`: certificate from mesh-control, roots and namespaces from the API, readiness.

use std::sync::Arc;

use anyhow::Result;
use clap::Parser as _;
use mesh_common::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use mesh_common::ca::{IstioCertificateRequest, IstioCertificateResponse};
use mesh_injector::app::App;
use mesh_injector::options::Options;
use mesh_test::certs::{Authority, Leaf};
use mesh_test::client::HttpClient;
use mesh_test::wait::{self, PATIENCE};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status};

use crate::api::{Api, namespace};
use crate::world::{NAME, connect};

/// mesh-control, as far as certificates go.
struct Control {
    authority: Arc<Authority>,
    name: &'static str,
}

#[tonic::async_trait]
impl IstioCertificateService for Control {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        if request.metadata().get("authorization").and_then(|it| it.to_str().ok()) != Some("Bearer a.b.c") {
            return Err(Status::unauthenticated("no token"));
        }
        let leaf = self.authority.sign_with(&request.get_ref().csr, &[self.name]);
        let leaf = leaf.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: vec![leaf, self.authority.root_pem().to_owned()],
        }))
    }
}

async fn control(authority: &Arc<Authority>, name: &'static str) -> Result<std::net::SocketAddr> {
    let leaf = authority.leaf(&Leaf { dns: &["mesh-control.mesh-system.svc"], ..Leaf::default() })?;
    let acceptor = TlsAcceptor::from(leaf.server_config(&["h2"])?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let authority = Arc::clone(authority);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(tls) = acceptor.accept(tcp).await else { continue };
            let service =
                IstioCertificateServiceServer::new(Control { authority: Arc::clone(&authority), name });
            let incoming = futures_util::stream::iter([Ok::<_, std::io::Error>(tls)]);
            tokio::spawn(
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
            );
        }
    });
    Ok(address)
}

async fn start(name: &'static str) -> Result<(App, Arc<Authority>, tempfile::TempDir)> {
    let (api, authority) = (Api::new(), Arc::new(Authority::new("mesh")?));
    {
        let mut held = api.0.lock().unwrap();
        held.roots = authority.root_pem().to_owned();
        held.namespaces.insert("shop".to_owned(), namespace("shop", &json!({})));
    }
    let control = control(&authority, name).await?;
    let dir = tempfile::tempdir()?;
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).map(|()| path.display().to_string())
    };
    let token = file("token", "a.b.c\n")?;
    let config = file("settings.yaml", "proxy: {image: mesh-proxy:test}")?;
    let control = control.to_string();
    let options = Options::try_parse_from([
        "mesh-injector",
        "--control",
        &control,
        "--token-file",
        &token,
        "--config",
        &config,
        "--address",
        "127.0.0.1:0",
        "--admin-address",
        "127.0.0.1:0",
    ])?;
    Ok((Box::pin(App::start(&options, api.client(), None)).await?, authority, dir))
}

async fn ready(app: &App) -> Result<String> {
    let admin = app.addresses().admin;
    let page = HttpClient::new(admin).get(&format!("http://{admin}/readyz")).await?;
    Ok(String::from_utf8(page.body.to_vec())?)
}

#[tokio::test]
async fn it_becomes_ready_with_a_certificate_for_its_service() -> Result<()> {
    let (app, authority, _dir) = start(NAME).await?;
    wait::until("it is ready", PATIENCE, async || (ready(&app).await.ok()? == "ready\n").then_some(()))
        .await?;
    connect(app.addresses().webhook, &authority, "h2", &[&rustls::version::TLS13]).await?;
    assert!(app.stop(std::time::Duration::ZERO, PATIENCE).await);
    Ok(())
}

#[tokio::test]
async fn a_certificate_of_another_name_is_none() -> Result<()> {
    let (app, authority, _dir) = start("other.mesh-system.svc").await?;
    wait::until("all else is there", PATIENCE, async || {
        (ready(&app).await.ok()? == "not ready, waiting for: certificate\n").then_some(())
    })
    .await?;
    assert!(connect(app.addresses().webhook, &authority, "h2", &[&rustls::version::TLS13]).await.is_err());
    Ok(())
}
