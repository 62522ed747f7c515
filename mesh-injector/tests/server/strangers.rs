//! Whatever else comes to the webhook's port: anybody in the cluster can reach it.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use mesh_injector::serve::Limits;
use mesh_test::wait::{self, PATIENCE};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{World, connect, pod, post, review_of};

#[tokio::test]
async fn what_is_no_review_gets_a_status_and_a_reason() -> Result<()> {
    let world = World::start().await?;
    let good = review_of("shop", &pod()).to_string();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut review = review_of("shop", &pod());
        change(&mut review);
        review.to_string()
    };
    let of = |method: &str, path: &str, kind: &str| {
        let request =
            Request::builder().method(method).uri(path).header("host", "x").header("content-type", kind);
        request.body(Full::new(Bytes::from(good.clone()))).unwrap()
    };
    for (request, status, words) in [
        (of("GET", "/inject", "application/json"), 405, "POST"),
        (of("DELETE", "/inject", "application/json"), 405, "POST"),
        (of("POST", "/", "application/json"), 404, "/inject"),
        (of("POST", "/inject/more", "application/json"), 404, "/inject"),
        (of("POST", "/inject", "text/plain"), 415, "application/json"),
        (of("POST", "/inject", "application/yaml"), 415, "application/json"),
        (post("{"), 400, "not an AdmissionReview"),
        (post(""), 400, "not an AdmissionReview"),
        (post("[]"), 400, "not an AdmissionReview"),
        (post("null"), 400, "not an AdmissionReview"),
        (post("[".repeat(100_000)), 400, "not an AdmissionReview"),
        (post(vec![0xff; 100]), 400, "not an AdmissionReview"),
        (post(with(&|it| it["apiVersion"] = json!("admission.k8s.io/v1beta1"))), 400, "v1beta1"),
        (post(with(&|it| it["kind"] = json!("Pod"))), 400, "AdmissionReview"),
        (post(with(&|it| it["request"] = Value::Null)), 400, "no request"),
        (post(with(&|it| it["request"]["uid"] = json!(""))), 400, "no uid"),
        (post(with(&|it| it["request"]["uid"] = json!("u".repeat(257)))), 400, "no uid"),
        (post(with(&|it| _ = it["request"].as_object_mut().unwrap().remove("uid"))), 400, "no uid"),
        (post(with(&|it| it["request"]["uid"] = json!(5))), 400, "not an AdmissionReview"),
    ] {
        let what = format!("{} {}", request.method(), request.uri());
        let (found, body) = world.send(request).await?;
        assert_eq!(found.as_u16(), status, "{what}: {body}");
        assert!(body.contains(words), "{what}: {body}");
    }
    assert_eq!(world.send(of("POST", "/inject", "application/json; charset=utf-8")).await?.0, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn a_review_of_something_else_is_answered_no() -> Result<()> {
    let world = World::start().await?;
    let cases: [(&str, Value, u16); 9] = [
        ("/request/kind", json!({ "group": "apps", "version": "v1", "kind": "Deployment" }), 400),
        ("/request/kind", Value::Null, 400),
        ("/request/operation", json!("DELETE"), 400),
        ("/request/operation", json!("UPDATE"), 400),
        ("/request/subResource", json!("ephemeralcontainers"), 400),
        ("/request/namespace", Value::Null, 400),
        ("/request/object", Value::Null, 400),
        ("/request/object", json!([]), 400),
        ("/request/object/spec/containers", json!("web"), 400),
    ];
    for (path, value, code) in cases {
        let mut review = review_of("shop", &pod());
        match review.pointer_mut(path) {
            Some(place) => *place = value.clone(),
            None => review["request"]["subResource"] = value.clone(),
        }
        let response = world.review(&review).await?;
        assert_eq!(
            (&response["allowed"], &response["status"]["code"]),
            (&json!(false), &json!(code)),
            "{path}: {value}"
        );
        assert!(
            response["status"]["message"].as_str().is_some_and(|it| it.contains("mesh-injector: ")),
            "{response}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn large_bodies_are_refused_however_they_come() -> Result<()> {
    let world = World::start().await?;
    let (status, body) = world.send(post(vec![b' '; 10 << 20])).await?;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{body}");
    // At once, before any of it has come.
    let mut tls = world.tls("http/1.1").await?;
    tls.write_all(
        b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10485760\r\n\r\n",
    )
    .await?;
    let answer = head(&mut tls).await?;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // In chunks, without saying how much.
    let mut tls = world.tls("http/1.1").await?;
    tls.write_all(b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        .await?;
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    let (mut reader, mut writer) = tokio::io::split(tls);
    let writing = tokio::spawn(async move { while writer.write_all(&chunk).await.is_ok() {} });
    let answer = head(&mut reader).await?;
    writing.abort();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn slow_clients_are_cut_and_hold_nobody_up() -> Result<()> {
    let short = Duration::from_millis(200);
    let world =
        World::with(Limits { handshake: short, head: short, body: short, ..Limits::default() }).await?;
    // The body never comes.
    let mut tls = world.tls("http/1.1").await?;
    tls.write_all(
        b"POST /inject HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{",
    )
    .await?;
    let answer = head(&mut tls).await?;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("did not come"), "{answer}");
    // The head never ends.
    let mut tls = world.tls("http/1.1").await?;
    tls.write_all(b"POST /inject HTTP/1.1\r\nhost:").await?;
    ends(&mut tls).await?;
    // No handshake; and what is no TLS at all.
    let mut tcp = TcpStream::connect(world.address).await?;
    ends(&mut tcp).await?;
    let mut tcp = TcpStream::connect(world.address).await?;
    tcp.write_all(b"POST /inject HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    ends(&mut tcp).await?;
    assert_eq!(world.review(&review_of("shop", &pod())).await?["allowed"], json!(true));
    for line in ["result=\"tls_timeout\"} 1", "result=\"tls_failed\"} 1"] {
        assert!(world.page().contains(line), "{}", world.page());
    }
    Ok(())
}

#[tokio::test]
async fn connections_and_bodies_are_bounded() -> Result<()> {
    let world = World::with(Limits { connections_each: 2, bodies_kib: 64, ..Limits::default() }).await?;
    let (one, two) = (world.tls("h2").await?, world.tls("h2").await?);
    assert!(world.tls("h2").await.is_err(), "a third connection of one address");
    drop((one, two));
    let answer = wait::until_ok("a place is free again", PATIENCE, async || {
        world.send(post(vec![b' '; 100 << 10])).await
    })
    .await?;
    assert_eq!(answer.0, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.1);
    wait::until_ok("a place is free again", PATIENCE, async || {
        world.review(&review_of("shop", &pod())).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn tls_1_2_is_enough_and_a_renewed_certificate_is_shown_at_once() -> Result<()> {
    let world = World::start().await?;
    let tls = connect(world.address, &world.authority, "http/1.1", &[&rustls::version::TLS12]).await?;
    let first = tls.get_ref().1.peer_certificates().unwrap()[0].clone();
    world.renew()?;
    let second = world.tls("h2").await?.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_ne!(first, second);
    Ok(())
}

/// All that comes until the connection ends or the head and first line of the body are there.
async fn head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<String> {
    let mut text = Vec::new();
    let read = async {
        let mut buffer = [0; 4096];
        while !text.ends_with(b"\n") || text.ends_with(b"\r\n\r\n") && text.len() < 20 {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => text.extend_from_slice(&buffer[..count]),
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

async fn ends(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<()> {
    let mut rest = Vec::new();
    // Closed or reset: both are an end.
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await?.ok();
    Ok(())
}
