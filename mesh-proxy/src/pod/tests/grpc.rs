//! gRPC's health service as a probe asks it.

use http::HeaderMap;
use tokio::net::TcpListener;

use super::{Pod, Port, app};

#[tokio::test]
async fn grpc_health() {
    use crate::http::LocalExec;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = async {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service =
                hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    use http_body_util::BodyExt as _;
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let body = request.into_body().collect().await?.to_bytes();
                    let name = std::str::from_utf8(body.get(7..).unwrap_or_default()).unwrap().to_owned();
                    let (message, status) = match name.as_str() {
                        "" | "shop" => (&[0, 0, 0, 0, 2, 8, 1][..], "0"),
                        "ill" => (&[0, 0, 0, 0, 2, 8, 2][..], "0"),
                        "odd" => (&[0, 0, 0][..], "0"),
                        _ => (&[][..], "5"),
                    };
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", status.parse().unwrap());
                    let frames = [
                        Ok::<_, std::convert::Infallible>(http_body::Frame::data(bytes::Bytes::from_static(
                            message,
                        ))),
                        Ok(http_body::Frame::trailers(trailers)),
                    ];
                    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
                    Ok::<_, hyper::Error>(http::Response::new(body))
                });
            let served = hyper::server::conn::http2::Builder::new(LocalExec)
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
            tokio::task::spawn_local(async move { served.await.ok() });
        }
    };
    let (plain, _app) = app(vec![]).await;
    let asking = async {
        let probe = |name: &str, port: u16| {
            format!(r#""/app-health/a/{name}":{{"grpc":{{"port":{port},"service":"{name}"}}}},"#)
        };
        let all = ["shop", "ill", "odd", "nobody"].map(|name| probe(name, port)).concat();
        let pod = Pod::start(
            &format!(
                r#"{{{all}{}"/app-health/a/all":{{"grpc":{{"port":{port}}}}}}}"#,
                probe("plain", plain.port())
            ),
            None,
        );
        for (name, status, words) in [
            ("shop", 200, "passed"),
            ("all", 200, "passed"),
            ("ill", 503, "NOT_SERVING"),
            ("odd", 503, "no HealthCheckResponse"),
            ("nobody", 503, "gRPC status 5"),
            ("plain", 503, ""),
        ] {
            let page = pod.get(Port::Status, &format!("/app-health/a/{name}"), "").await;
            assert!(page.0 == Some(status) && page.1.contains(words), "{name}: {page:?}");
        }
    };
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            tokio::select! { () = serve => {}, () = asking => {} }
        })
        .await;
}
