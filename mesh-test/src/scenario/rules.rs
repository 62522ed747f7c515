//! Rules of HTTPRoutes: what they match, what they change, where they send the client, how long they wait.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::Request;
use http_body_util::Full;
use tokio::time::Instant;

use super::{MTLS, add_up};
use crate::manifest;
use crate::topology::{NAMESPACE, Topology};
use crate::world::World;

const PODS: [&str; 2] = ["reviews-v1", "reviews-v2"];

fn world(rules: &str) -> Topology {
    Topology::reviews().file("route.yaml", manifest::http_route(NAMESPACE, "rules", "reviews", rules))
}

// All rules begin with a line break: a continued line would lose the first line's indentation.
pub(super) fn matches_world() -> Topology {
    world(
        "
  - matches:
    - path: {type: Exact, value: /exact}
    - path: {type: RegularExpression, value: \"/r/[0-9]+\"}
    - path: {type: PathPrefix, value: /pre}
      method: POST
    - path: {type: PathPrefix, value: /v1}
      queryParams:
      - {name: variant, value: b}
    - path: {type: PathPrefix, value: /v1}
      queryParams:
      - {type: RegularExpression, name: size, value: \"[0-9]+\"}
    - path: {type: PathPrefix, value: /v1}
      headers:
      - {type: RegularExpression, name: x-group, value: \"beta-.*\"}
      - {name: x-user, value: jo}
    backendRefs:
    - {name: reviews-v2, port: 80}
  - matches:
    - path: {type: PathPrefix, value: /v1}
    backendRefs:
    - {name: reviews-v1, port: 80}
",
    )
}

pub(super) async fn matches(world: &World) -> Result<()> {
    let (v1, v2, nobody) = (Some(PODS[0]), Some(PODS[1]), None);
    let groups = |group: &'static str| vec![("x-group", group), ("x-user", "jo")];
    let cases = [
        ("GET", "/exact", vec![], v2),
        ("GET", "/exact/", vec![], nobody),
        // Matched as it will be read.
        ("GET", "/r/../exact", vec![], v2),
        ("GET", "/r/17", vec![], v2),
        ("GET", "/r/17x", vec![], nobody),
        ("POST", "/pre/x", vec![], v2),
        ("GET", "/pre/x", vec![], nobody),
        ("POST", "/prefix", vec![], nobody),
        ("GET", "/v1", vec![], v1),
        ("GET", "/v1?a=1&variant=b", vec![], v2),
        ("GET", "/v1?variant=bb", vec![], v1),
        ("GET", "/v1?size=12", vec![], v2),
        ("GET", "/v1?size=12x", vec![], v1),
        ("GET", "/v1", groups("beta-7"), v2),
        ("GET", "/v1", groups("a-beta-7"), v1),
        // Every condition must hold.
        ("GET", "/v1", vec![("x-group", "beta-7")], v1),
    ];
    let client = world.client("web")?;
    let mut sent = [0; 3];
    for (method, path, headers, expected) in cases {
        let mut request = Request::builder().method(method).uri(format!("http://reviews{path}"));
        for (name, value) in &headers {
            request = request.header(*name, *value);
        }
        let reply = client.send(request.body(Full::default())?).await?;
        let what = format!("{method} {path} {headers:?}");
        let Some(pod) = expected else {
            ensure!(reply.status == 404 && reply.reason().starts_with("NR"), "{what}: {reply}");
            sent[2] += 1;
            continue;
        };
        let echo = reply.echo().context(what.clone())?;
        ensure!(
            echo.pod == pod && echo.path == path.replace("/r/..", "") && echo.method == method,
            "{what}: {echo:?}"
        );
        sent[usize::from(pod == PODS[1])] += 1;
    }
    for (pod, count) in PODS.into_iter().zip(sent) {
        world.counted(pod, "istio_requests_total", &MTLS, count).await?;
    }
    let source = |label| [("reporter", "source"), label];
    world
        .counted("web", "istio_requests_total", &source(("response_code", "200")), sent[0] + sent[1])
        .await?;
    world.counted("web", "istio_requests_total", &source(("response_flags", "NR")), sent[2]).await
}

pub(super) fn changes_world() -> Topology {
    world(
        "
  - matches:
    - path: {value: /old}
    filters:
    - type: URLRewrite
      urlRewrite:
        hostname: inner.example
        path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}
    backendRefs:
    - {name: reviews-v1, port: 80}
  - matches:
    - path: {value: /full}
    filters:
    - type: URLRewrite
      urlRewrite:
        path: {type: ReplaceFullPath, replaceFullPath: /one}
    backendRefs:
    - {name: reviews-v1, port: 80}
  - matches:
    - path: {value: /headers}
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier:
        set: [{name: x-set, value: \"50%\"}]
        add: [{name: x-add, value: rule}]
        remove: [x-gone]
    - type: ResponseHeaderModifier
      responseHeaderModifier:
        set: [{name: x-pod, value: hidden}]
        add: [{name: x-extra, value: one}]
    backendRefs:
    - name: reviews-v1
      port: 80
      filters:
      - type: RequestHeaderModifier
        requestHeaderModifier:
          set: [{name: x-backend, value: v1}]
      - type: ResponseHeaderModifier
        responseHeaderModifier:
          remove: [content-length]
  - matches:
    - path: {value: /gone}
    filters:
    - type: RequestRedirect
      requestRedirect:
        hostname: elsewhere.example
        port: 8443
        scheme: https
        statusCode: 301
        path: {type: ReplacePrefixMatch, replacePrefixMatch: /here}
  - matches:
    - path: {value: /moved}
    filters:
    - type: RequestRedirect
      requestRedirect:
        path: {type: ReplaceFullPath, replaceFullPath: /there}
",
    )
}

pub(super) async fn changes(world: &World) -> Result<()> {
    let client = world.client("web")?;
    for (path, new_path, host) in [
        ("/old/a?q=1", "/new/a?q=1", "inner.example"),
        ("/old", "/new", "inner.example"),
        ("/full/a/b?q=1", "/one?q=1", "reviews"),
    ] {
        let echo = client.get(&format!("http://reviews{path}")).await?.echo()?;
        ensure!(echo.path == new_path && echo.host == host, "{path}: {} at {}", echo.path, echo.host);
    }
    let request = Request::get("http://reviews/headers").header("x-set", "client").header("x-gone", "client");
    let reply = client.send(request.body(Full::default())?).await?;
    let echo = reply.echo()?;
    for (name, value) in
        [("x-set", Some("50%")), ("x-add", Some("rule")), ("x-backend", Some("v1")), ("x-gone", None)]
    {
        ensure!(echo.headers.get(name).map(String::as_str) == value, "{name}: {:?}", echo.headers);
    }
    ensure!(reply.header("x-pod") == "hidden" && reply.header("x-extra") == "one", "{:?}", reply.headers);
    for (path, status, location) in [
        ("/gone/x?q=1", 301, "https://elsewhere.example:8443/here/x?q=1"),
        ("/moved", 302, "http://reviews/there"),
    ] {
        let reply = client.get(&format!("http://reviews{path}")).await?;
        let to = reply.header("location");
        ensure!(reply.status == status && to == location, "{path}: {to:?}, {reply}");
        let code = status.to_string();
        let labels = [("response_code", &*code), ("response_flags", "-")];
        world.counted("web", "istio_requests_total", &labels, 1).await?;
    }
    // A redirect is the client's sidecar's answer; nobody else sees the request.
    world.counted("web", "istio_requests_total", &[("response_code", "200")], 4).await?;
    add_up(world, &PODS, "istio_requests_total", &MTLS, 4).await
}

pub(super) fn slow_world() -> Topology {
    world(
        "
  - matches:
    - path: {value: /delay}
    timeouts: {request: 400ms}
    backendRefs:
    - {name: reviews-v1, port: 80}
  - matches:
    - headers:
      - {name: x-one, value: try}
    timeouts: {backendRequest: 400ms}
    filters:
    - type: URLRewrite
      urlRewrite:
        path: {type: ReplaceFullPath, replaceFullPath: /delay/20000}
    backendRefs:
    - {name: reviews-v2, port: 80}
  - backendRefs:
    - {name: reviews-v2, port: 80}
",
    )
}

pub(super) async fn time_outs(world: &World) -> Result<()> {
    let client = world.client("web")?;
    client.get("http://reviews/delay/10").await?.echo()?;
    client.get("http://reviews/no/limit").await?.echo()?;
    for (path, header) in [("/delay/20000", "no"), ("/whatever", "try")] {
        let before = Instant::now();
        let request = Request::get(format!("http://reviews{path}")).header("x-one", header);
        let reply = client.send(request.body(Full::default())?).await?;
        let took = before.elapsed();
        ensure!(reply.status == 504 && reply.reason().starts_with("UT"), "{path}: {reply}");
        ensure!(took >= Duration::from_millis(400) && took < Duration::from_secs(10), "{path}: {took:?}");
    }
    let ut = [("reporter", "source"), ("response_code", "504"), ("response_flags", "UT")];
    world.counted("web", "istio_requests_total", &ut, 2).await?;
    world.counted("web", "istio_requests_total", &[("response_code", "200")], 2).await?;
    // The servers' sides saw their client, the sidecar, give up.
    for pod in PODS {
        let gone = [MTLS[0], MTLS[1], ("response_code", "0"), ("response_flags", "DC")];
        world.counted(pod, "istio_requests_total", &gone, 1).await?;
        world.counted(pod, "istio_requests_total", &[MTLS[0], MTLS[1], ("response_code", "200")], 1).await?;
    }
    Ok(())
}
