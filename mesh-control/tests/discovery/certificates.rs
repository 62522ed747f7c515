//! Certificates over the wire: a token gets one, a certificate opens streams, everything else is refused.

use std::sync::Arc;
use std::time::SystemTime;

use mesh_common::ca::IstioCertificateRequest;
use mesh_common::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::{PrivateKey, WorkloadCertificate};
use mesh_common::xds::ResourceType::Listener;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::client::{SERVER_NAME, Stream, connect, node, summary};
use crate::world::{Pod, REVIEWS, WEB, World};

pub(crate) fn identity(pod: Pod) -> SpiffeId {
    SpiffeId::new("cluster.local", "shop", pod.account).unwrap()
}

pub(crate) async fn ask(
    channel: Channel,
    token: Option<&str>,
    csr: String,
    seconds: i64,
) -> Result<Vec<String>, Status> {
    let mut request =
        Request::new(IstioCertificateRequest { csr, validity_duration: seconds, metadata: None });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
    Ok(answer.into_inner().cert_chain)
}

async fn plain(world: &World) -> Channel {
    connect(world.xds(), &world.bundle(), SERVER_NAME, None).await.unwrap()
}

pub(crate) async fn certificate(world: &World, pod: Pod, seconds: i64) -> WorkloadCertificate {
    let key = Arc::new(PrivateKey::generate().unwrap());
    let csr = key.signing_request(&identity(pod)).unwrap();
    let chain = ask(plain(world).await, Some(&world.token(pod)), csr, seconds).await.unwrap();
    WorkloadCertificate::from_chain_pem(&chain, key).unwrap()
}

#[tokio::test]
async fn a_token_gets_a_certificate_and_the_certificate_a_stream() {
    let world = World::start_with(&["--leaf-lifetime", "1h"]).await;
    let own = certificate(&world, WEB, 0).await;
    assert_eq!(own.identity, identity(WEB));
    let lifetime = own.facts.not_after.duration_since(SystemTime::now()).unwrap().as_secs();
    assert!((3500..=3600).contains(&lifetime), "{lifetime}");
    // More than granted is cut, less is given.
    for (asked, most) in [(1_000_000, 3600), (i64::MAX, 3600), (60, 60)] {
        let other = certificate(&world, WEB, asked).await;
        let lifetime = other.facts.not_after.duration_since(SystemTime::now()).unwrap().as_secs();
        assert!(lifetime <= most && lifetime + 20 > most, "{lifetime}");
    }

    let channel = connect(world.xds(), &world.bundle(), SERVER_NAME, Some(own.clone())).await.unwrap();
    let mut stream = Stream::over(channel, None, node(WEB)).await.unwrap();
    assert_eq!(summary(&stream.look_up(Listener, &["inbound/shop/web-1"]).await), "lds inbound/shop/web-1");

    // A certificate is of one identity only, and never signs.
    let channel = connect(world.xds(), &world.bundle(), SERVER_NAME, Some(own.clone())).await.unwrap();
    let mut stream = Stream::over(channel.clone(), None, node(REVIEWS)).await.unwrap();
    stream.subscribe(Listener, &["virtualOutbound"]).await;
    assert_eq!(stream.try_next().await.unwrap_err().code(), Code::PermissionDenied);
    let csr = own.key.signing_request(&own.identity).unwrap();
    assert_eq!(ask(channel, None, csr, 0).await.unwrap_err().code(), Code::Unauthenticated);
    world.stop().await;
}

#[tokio::test]
async fn what_is_not_signed() {
    let world = World::start().await;
    let key = PrivateKey::generate().unwrap();
    let own = key.signing_request(&identity(WEB)).unwrap();
    let foreign = key.signing_request(&identity(REVIEWS)).unwrap();
    let good = world.token(WEB);
    let dead = Pod { name: "dead-1", ..WEB };
    for (token, csr, seconds, code, reason) in [
        (None, own.clone(), 0, Code::Unauthenticated, "need a service-account token"),
        (Some(world.token_for(WEB, "other", 600)), own.clone(), 0, Code::Unauthenticated, "audience"),
        (Some(world.token(dead)), own.clone(), 0, Code::Unauthenticated, "does not run"),
        (
            Some(good.clone()),
            foreign,
            0,
            Code::PermissionDenied,
            "but the caller is spiffe://cluster.local/ns/shop/sa/web",
        ),
        (Some(world.token(REVIEWS)), own.clone(), 0, Code::PermissionDenied, "but the caller is"),
        (Some(good.clone()), String::new(), 0, Code::InvalidArgument, "PKCS#10"),
        (Some(good.clone()), own.clone(), -1, Code::InvalidArgument, "negative"),
        (Some(good), own, i64::MIN, Code::InvalidArgument, "negative"),
    ] {
        let refused = ask(plain(&world).await, token.as_deref(), csr, seconds).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(reason), "{refused}");
    }
    world.stop().await;
}

/// The first field of a signing request, which no string can be.
#[derive(Clone, PartialEq, prost::Message)]
struct NoText {
    #[prost(bytes = "vec", tag = "1")]
    csr: Vec<u8>,
}

#[tokio::test]
async fn a_request_that_is_not_text_or_too_large_is_not_read() {
    let world = World::start().await;
    for (csr, code) in [(vec![0xff, 0xfe, 0x00], Code::Internal), (vec![b'A'; 1 << 20], Code::OutOfRange)] {
        let mut client = tonic::client::Grpc::new(plain(&world).await);
        client.ready().await.unwrap();
        let mut request = Request::new(NoText { csr });
        let token = format!("Bearer {}", world.token(WEB)).parse().unwrap();
        request.metadata_mut().insert("authorization", token);
        let path = "/istio.v1.auth.IstioCertificateService/CreateCertificate".parse().unwrap();
        let codec = tonic_prost::ProstCodec::<NoText, NoText>::default();
        let refused = client.unary(request, path, codec).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    certificate(&world, WEB, 0).await;
    world.stop().await;
}

#[tokio::test]
async fn certificates_of_another_root_are_refused() {
    let (world, other) = (World::start().await, World::start().await);
    let foreign = certificate(&other, WEB, 0).await;
    let outcome = match connect(world.xds(), &world.bundle(), SERVER_NAME, Some(foreign)).await {
        Ok(channel) => Stream::over(channel, None, node(WEB)).await.map(|_| ()).is_err(),
        Err(_) => true,
    };
    assert!(outcome, "TLS 1.3 tells the client only with its first read");
    world.stop().await;
    other.stop().await;
}
