//! Handshakes between two ends in memory: who is let in, who is refused and with which words, what is resumed.

use std::sync::Arc;

use mesh_common::spiffe::SpiffeId;
use mesh_common::trust::provider;
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::{TlsConnector, client, server};

use super::read_ahead::ReadAhead;
use super::test_mesh::{Leaf, Mesh};
use super::{PeerError, TlsContext, TlsError};
use crate::config::cluster::MeshTls;
use crate::config::listener::DownstreamTls;

const ALPN: &str = "istio-h2";

struct Outcome {
    client: Result<client::TlsStream<ReadAhead<DuplexStream>>, TlsError>,
    server: Result<(server::TlsStream<ReadAhead<DuplexStream>>, SpiffeId), TlsError>,
}

fn sni() -> MeshTls {
    MeshTls { sni: "outbound_.9042_._.db-0.shop.pod.cluster.local".to_owned() }
}

fn offered() -> DownstreamTls {
    DownstreamTls { alpn: vec![ALPN.to_owned(), "istio-http/1.1".to_owned()] }
}

async fn handshake(client: &TlsContext, server: &TlsContext, expected: &str) -> Outcome {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (expected, sni, offered) = (expected.parse().unwrap(), sni(), offered());
    let (client, server) =
        tokio::join!(client.connect(near, &sni, &expected, ALPN), server.accept(far, &offered));
    Outcome { client, server }
}

/// Sends a word each way, so that tickets arrive and late alerts show.
async fn talk(outcome: Outcome) -> (HandshakeKind, SpiffeId) {
    let (mut client, (mut server, peer)) = (outcome.client.unwrap(), outcome.server.unwrap());
    let mut word = [0; 4];
    server.write_all(b"ping").await.unwrap();
    client.read_exact(&mut word).await.unwrap();
    client.write_all(b"pong").await.unwrap();
    server.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"pong");
    (client.get_ref().1.handshake_kind().unwrap(), peer)
}

#[tokio::test]
async fn each_side_proves_who_it_is() {
    let mesh = Mesh::new("cluster.local");
    let (web, db) = (mesh.context("shop", "web"), mesh.context("shop", "db"));
    let outcome = handshake(&web, &db, &mesh.uri("shop", "db")).await;
    let session = outcome.client.as_ref().unwrap().get_ref().1;
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), rustls::NamedGroup::X25519MLKEM768);
    let (kind, peer) = talk(outcome).await;
    assert_eq!((kind, peer.as_str()), (HandshakeKind::Full, mesh.uri("shop", "web").as_str()));
}

/// Bad certificates, each refused in both roles, with words that say why.
#[tokio::test]
async fn bad_certificates_are_refused_by_either_side() {
    let (mesh, foreign) = (Mesh::new("cluster.local"), Mesh::new("cluster.local"));
    let good = mesh.context("shop", "good");
    let web = mesh.uri("shop", "web");
    let leaf = |uris: &[&str], from, until| {
        let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
        mesh.sign(&Leaf { uris, dns: vec!["web.shop.svc".to_owned()], from, until })
    };
    let elsewhere = "spiffe://other.mesh/ns/shop/sa/web";
    for (what, certificate, reason) in [
        ("foreign root", foreign.workload("shop", "web"), "not signed by a root"),
        ("not yet valid", leaf(&[&web], 3_600, 7_200), "not valid before"),
        ("no identity", leaf(&[], -1, 60), "it has no URI name"),
        ("two identities", leaf(&[&web, &mesh.uri("shop", "db")], -1, 60), "it has 2 URI names"),
        ("not a workload", leaf(&["spiffe://cluster.local/web"], -1, 60), "the path of an identity"),
        ("another trust domain", leaf(&[elsewhere], -1, 60), "spiffe://other.mesh/ns/shop/sa/web"),
    ] {
        let bad = mesh.context_with(certificate);
        let refused = handshake(&bad, &good, &mesh.uri("shop", "good")).await.server.unwrap_err();
        assert!(refused.to_string().contains(reason), "{what}, as client: {refused}");
        let refused = handshake(&good, &bad, &web).await;
        let (error, told) = (refused.client.unwrap_err(), refused.server.unwrap_err());
        assert!(error.to_string().contains(reason), "{what}, as server: {error}");
        assert!(matches!(told, TlsError::RefusedByPeer(_)), "{what}: {told}");
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let mesh = Mesh::new("cluster.local");
    let good = mesh.context("shop", "good");
    let mut expired = mesh.sign(&Leaf { from: -7_200, until: -60, ..Leaf::of(&mesh.uri("shop", "web")) });
    let own = mesh.context_with(expired.clone());
    let error = handshake(&own, &good, &mesh.uri("shop", "good")).await.client.unwrap_err();
    assert!(matches!(error, TlsError::OwnCertificateExpired(_)), "our own is not even tried: {error}");

    // A peer whose own check is missing.
    expired.facts.not_after = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    let peer = mesh.context_with(expired);
    let error = handshake(&peer, &good, &mesh.uri("shop", "good")).await.server.unwrap_err();
    assert!(error.to_string().contains("sa/web expired at"), "{error}");
    let error = handshake(&good, &peer, &mesh.uri("shop", "web")).await.client.unwrap_err();
    assert!(error.to_string().contains("sa/web expired at"), "{error}");
}

#[tokio::test]
async fn another_identity_is_refused_and_both_are_named() {
    let mesh = Mesh::new("cluster.local");
    let (web, db) = (mesh.context("shop", "web"), mesh.context("shop", "db"));
    let error = handshake(&web, &db, &mesh.uri("shop", "cache")).await.client.unwrap_err();
    let (expected, presented) = (mesh.uri("shop", "cache"), mesh.uri("shop", "db"));
    assert_eq!(error.to_string(), format!("the peer is {presented}, expected {expected}"));
    assert_eq!(error.label(), "peer_identity");
}

#[tokio::test]
async fn sessions_are_resumed_but_never_for_another_identity() {
    let mesh = Mesh::new("cluster.local");
    let (web, db) = (mesh.context("shop", "web"), mesh.context("shop", "db"));
    let id = mesh.uri("shop", "db");
    assert_eq!(talk(handshake(&web, &db, &id).await).await.0, HandshakeKind::Full);
    let (kind, peer) = talk(handshake(&web, &db, &id).await).await;
    assert_eq!((kind, peer.as_str()), (HandshakeKind::Resumed, mesh.uri("shop", "web").as_str()));

    // Same server name, same server, tickets at hand: but somebody else is expected.
    let error = handshake(&web, &db, &mesh.uri("shop", "cache")).await.client.unwrap_err();
    assert!(matches!(error, TlsError::Peer(PeerError::WrongIdentity { .. })), "{error}");
}

/// Every change of certificate or bundle, on either side, ends all sessions that could be resumed.
#[tokio::test]
async fn a_new_certificate_or_bundle_ends_resumption() {
    let (mesh, old_root) = (Mesh::new("cluster.local"), Mesh::new("cluster.local"));
    let (web, db) = (mesh.context("shop", "web"), mesh.context("shop", "db"));
    let id = mesh.uri("shop", "db");
    let both = format!("{}{}", mesh.bundle().to_pem(), old_root.bundle().to_pem());
    let both = || mesh_common::trust::TrustBundle::from_pem(&both).unwrap();
    let changes: [(&str, &dyn Fn()); 4] = [
        ("client's certificate", &|| web.set_certificate(mesh.workload("shop", "web")).unwrap()),
        ("server's certificate", &|| db.set_certificate(mesh.workload("shop", "db")).unwrap()),
        ("client's bundle", &|| web.set_bundle(both())),
        ("server's bundle", &|| db.set_bundle(both())),
    ];
    for (what, change) in changes {
        talk(handshake(&web, &db, &id).await).await;
        assert_eq!(talk(handshake(&web, &db, &id).await).await.0, HandshakeKind::Resumed, "{what}: before");
        change();
        assert_eq!(talk(handshake(&web, &db, &id).await).await.0, HandshakeKind::Full, "{what}: after");
    }
    web.set_bundle(both());
    assert_eq!(talk(handshake(&web, &db, &id).await).await.0, HandshakeKind::Resumed, "the same again");
}

#[tokio::test]
async fn a_root_that_is_gone_is_not_trusted_and_open_connections_stay() {
    let (mesh, other) = (Mesh::new("cluster.local"), Mesh::new("cluster.local"));
    let (web, db) = (mesh.context("shop", "web"), mesh.context("shop", "db"));
    let id = mesh.uri("shop", "db");
    let open = handshake(&web, &db, &id).await;
    db.set_bundle(other.bundle());
    let error = handshake(&web, &db, &id).await.server.unwrap_err();
    assert!(matches!(error, TlsError::Peer(PeerError::UnknownIssuer { .. })), "{error}");
    talk(open).await;
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let mesh = Mesh::new("cluster.local");
    let db = mesh.context("shop", "db");
    let config = super::client::control_config(&provider(), Some(&mesh.bundle()), None).unwrap();
    let error = foreign_client(&db, config).await;
    assert_eq!(error.to_string(), "the peer presented no certificate");
}

#[tokio::test]
async fn plaintext_and_old_tls_are_refused() {
    let mesh = Mesh::new("cluster.local");
    let db = mesh.context("shop", "db");
    let (mut near, far) = tokio::io::duplex(4096);
    near.write_all(b"GET / HTTP/1.1\r\nHost: db\r\n\r\n").await.unwrap();
    let error = db.accept(far, &offered()).await.unwrap_err();
    assert_eq!(error.to_string(), "the peer does not speak TLS");

    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(mesh.bundle().root_store())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.into()];
    let error = foreign_client(&db, config).await;
    assert_eq!(error.to_string(), "the peer does not offer TLS 1.3");
}

#[tokio::test]
async fn the_application_protocol_must_be_the_one_asked_for() {
    let mesh = Mesh::new("cluster.local");
    let (web, db) = (mesh.context("shop", "web"), mesh.context("shop", "db"));
    let (id, sni) = (mesh.uri("shop", "db").parse().unwrap(), sni());
    for offered in [vec!["istio".to_owned()], Vec::new()] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let offered = DownstreamTls { alpn: offered };
        let (client, _server) = tokio::join!(web.connect(near, &sni, &id, ALPN), db.accept(far, &offered));
        assert!(client.is_err(), "{offered:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_costs_ten_seconds() {
    let mesh = Mesh::new("cluster.local");
    let (_near, far) = tokio::io::duplex(4096);
    let error = mesh.context("shop", "db").accept(far, &offered()).await.unwrap_err();
    assert!(matches!(error, TlsError::Timeout(_)), "{error}");
}

#[tokio::test]
async fn nothing_works_before_certificate_and_bundle_are_there() {
    let mesh = Mesh::new("cluster.local");
    let (db, web) = (mesh.context("shop", "db"), TlsContext::new());
    let id = mesh.uri("shop", "db");
    let error = handshake(&web, &db, &id).await.client.unwrap_err();
    assert!(matches!(error, TlsError::NoCertificate) && !web.is_ready(), "{error}");
    web.set_certificate(mesh.workload("shop", "web")).unwrap();
    let error = handshake(&web, &db, &id).await.client.unwrap_err();
    assert!(matches!(error, TlsError::NoBundle) && !web.is_ready(), "{error}");
    web.set_bundle(mesh.bundle());
    web.ready().await;
    talk(handshake(&web, &db, &id).await).await;

    let mut mixed = mesh.workload("shop", "web");
    mixed.key = mesh.workload("shop", "web").key;
    assert!(web.set_certificate(mixed).is_err(), "a key that does not fit");
    talk(handshake(&web, &db, &id).await).await;
}

/// Any pod has a certificate of the root: toward the control plane it is the DNS name that counts.
#[tokio::test]
async fn a_pod_cannot_pose_as_the_control_plane() {
    let mesh = Mesh::new("cluster.local");
    let name = "mesh-control.mesh-system.svc";
    let control = |dns: &str| {
        let leaf = Leaf { dns: vec![dns.to_owned()], ..Leaf::of(&mesh.uri("mesh-system", "mesh-control")) };
        mesh.context_with(mesh.sign(&leaf))
    };
    for (server, good) in
        [(control(name), true), (control("web.shop.svc"), false), (mesh.context("shop", "web"), false)]
    {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let config = mesh.context("shop", "web").control_client_config().unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let h2 = DownstreamTls { alpn: vec!["h2".to_owned()] };
        let (client, _server) =
            tokio::join!(connector.connect(name.try_into().unwrap(), near), server.accept(far, &h2));
        assert_eq!(client.is_ok(), good);
    }
}

async fn foreign_client(server: &TlsContext, mut config: rustls::ClientConfig) -> TlsError {
    let (near, far) = tokio::io::duplex(64 * 1024);
    config.alpn_protocols = vec![ALPN.into()];
    let verifier = super::verify::PeerVerifier {
        roots: Arc::new(rustls::RootCertStore::empty()),
        algorithms: provider().signature_verification_algorithms,
        expected: super::verify::Expected::TrustDomain("nowhere".to_owned()),
    };
    config.dangerous().set_certificate_verifier(Arc::new(Anybody(verifier)));
    let connector = TlsConnector::from(Arc::new(config));
    let offered = offered();
    let (_client, server) =
        tokio::join!(connector.connect("db".try_into().unwrap(), near), server.accept(far, &offered));
    server.unwrap_err()
}

/// A client that trusts every server, as an attacker would.
#[derive(Debug)]
struct Anybody(super::verify::PeerVerifier);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls_pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
