//! Certificates from a certificate authority in memory, with time that is made to pass.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_common::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use mesh_common::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tonic::{Request, Response, Status};

use super::*;
use crate::telemetry::Telemetry;
use crate::tls::test_mesh::{Leaf, Mesh};
use crate::xds::connect::{ConnectError, Dialled, Dialling};

/// A certificate authority: what it answers, and how often and with which token it was asked.
struct Authority {
    mesh: Mesh,
    /// Signs for this one whatever is asked.
    signs: Mutex<String>,
    /// From and until when, in seconds from now.
    valid: Mutex<(i64, i64)>,
    down: Mutex<bool>,
    asked: AtomicU32,
    token: Mutex<String>,
}

impl Authority {
    fn new(lifetime: i64) -> Arc<Self> {
        let mesh = Mesh::new("cluster.local");
        let signs = Mutex::new(mesh.uri("shop", "web"));
        let (down, token) = (Mutex::new(false), Mutex::default());
        let valid = Mutex::new((0, lifetime));
        Arc::new(Self { mesh, signs, valid, down, asked: AtomicU32::new(0), token })
    }

    fn dial(self: &Arc<Self>) -> Dial {
        let authority = Arc::clone(self);
        Arc::new(move || -> Dialling {
            let authority = Arc::clone(&authority);
            Box::pin(async move {
                if *authority.down.lock().unwrap() {
                    authority.asked.fetch_add(1, Ordering::Relaxed);
                    return Err(ConnectError::Transport("it is away".to_owned()));
                }
                let (near, far) = tokio::io::duplex(64 * 1024);
                let service = IstioCertificateServiceServer::from_arc(authority);
                let server = tonic::transport::Server::builder().add_service(service);
                let incoming = tokio_stream::once(Ok::<_, std::io::Error>(far));
                tokio::spawn(server.serve_with_incoming(incoming));
                Ok(Dialled { io: Box::new(near), token: Some("a.b.c".to_owned()) })
            })
        })
    }

    fn identity(self: &Arc<Self>, tls: &TlsContext, dir: Option<PathBuf>) -> Identity {
        let metrics = Telemetry::detached().proxy().clone();
        let id = self.mesh.uri("shop", "web").parse().unwrap();
        Identity { id, dial: self.dial(), dir, tls: tls.clone(), metrics }
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let token = request.metadata().get("authorization").map(|it| it.to_str().unwrap().to_owned());
        *self.token.lock().unwrap() = token.unwrap_or_default();
        let (from, until) = *self.valid.lock().unwrap();
        let leaf = Leaf { until, from, ..Leaf::of(&self.signs.lock().unwrap()) };
        let chain = self.mesh.sign_request(&request.get_ref().csr, &leaf);
        Ok(Response::new(IstioCertificateResponse { cert_chain: chain }))
    }
}

#[tokio::test]
async fn a_certificate_is_asked_for_with_the_token_and_kept() {
    let (authority, tls, dir) = (Authority::new(3600), TlsContext::new(), tempfile::tempdir().unwrap());
    tls.set_bundle(authority.mesh.bundle());
    let running = tokio::spawn(run(authority.identity(&tls, Some(dir.path().to_owned()))));
    tls.ready().await;
    running.abort();
    assert_eq!((authority.asked(), authority.token.lock().unwrap().as_str()), (1, "Bearer a.b.c"));
    let issued = tls.certificate().unwrap();
    assert_eq!(issued.chain.len(), 1, "the root is not part of what peers are shown");

    // The next start, with the certificate authority away.
    let restarted = TlsContext::new();
    restarted.set_bundle(authority.mesh.bundle());
    load_kept(&authority.identity(&restarted, Some(dir.path().to_owned())));
    assert!(restarted.is_ready());
    assert_eq!(restarted.certificate().unwrap().facts, issued.facts);
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_refused() {
    let (authority, tls) = (Authority::new(3600), TlsContext::new());
    *authority.signs.lock().unwrap() = authority.mesh.uri("shop", "admin");
    let error = renew(&authority.identity(&tls, None)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("sa/admin") && text.contains("sa/web"), "{text}");
    assert!(tls.certificate().is_none());
}

#[tokio::test]
async fn a_certificate_that_is_not_good_now_never_replaces_one_that_is() {
    let (authority, tls, dir) = (Authority::new(3600), TlsContext::new(), tempfile::tempdir().unwrap());
    let identity = authority.identity(&tls, Some(dir.path().to_owned()));
    *authority.valid.lock().unwrap() = (600, 3600);
    renew(&identity).await.expect("without any, it is better than none");
    *authority.valid.lock().unwrap() = (-10, 3600);
    renew(&identity).await.unwrap();
    let good = tls.certificate().unwrap();
    for ((from, until), words) in [((-3600, -60), "ended"), ((600, 3600), "begins in")] {
        *authority.valid.lock().unwrap() = (from, until);
        let error = renew(&identity).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(tls.certificate().unwrap().facts, good.facts);
    }
    load_kept(&identity);
    assert_eq!(tls.certificate().unwrap().facts, good.facts, "nor is it kept");
}

/// The wall clock stands still in this test, so a certificate past its half life stays so: what is seen is that
/// it is kept in use, that the pace of attempts is bounded, and that the first success ends them.
#[tokio::test(start_paused = true)]
async fn the_present_certificate_serves_while_it_cannot_be_renewed() {
    let (authority, tls) = (Authority::new(3600), TlsContext::new());
    tls.set_bundle(authority.mesh.bundle());
    let uri = authority.mesh.uri("shop", "web");
    let past_half = authority.mesh.sign(&Leaf { from: -3000, until: 1000, ..Leaf::of(&uri) });
    tls.set_certificate(past_half.clone()).unwrap();
    *authority.down.lock().unwrap() = true;
    let running = tokio::spawn(run(authority.identity(&tls, None)));
    tokio::time::sleep(Duration::from_secs(120)).await;
    let asked = authority.asked();
    assert!((5..=20).contains(&asked), "attempts in two minutes: {asked}");
    assert_eq!(tls.certificate().unwrap().facts, past_half.facts);

    *authority.down.lock().unwrap() = false;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_ne!(tls.certificate().unwrap().facts, past_half.facts);
    let asked = authority.asked();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(authority.asked(), asked, "the new one is fresh");
    running.abort();
}
