//! The application's metrics and the proxy's as one page.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{Pod, Port, app};

const MINUTE: &str = "x-prometheus-scrape-timeout-seconds: 60\r\n";
const OPEN: &str = "accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3\r\n";

#[tokio::test]
async fn metrics_of_both_are_one_page() {
    let page = |kind: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{kind}connection: close\r\n\r\n{body}");
    let open = "content-type: application/openmetrics-text; version=1.0.0\r\n";
    let (to, _task) = app(vec![
        ("/text", page("content-type: text/plain; version=0.0.4\r\n", "a 1\nb 2")),
        ("/open", page(open, "# TYPE a counter\na_total 1\n# EOF\n")),
        ("/nothing", page("", "")),
        ("/asked", page("", "# SEEN\n")),
        ("/html", page("content-type: text/html\r\n", "<p>")),
        ("/packed", page("content-encoding: gzip\r\n", "a 1\n")),
        ("/error", "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".into()),
        ("/broken", format!("HTTP/1.1 200 OK\r\n{open}content-length: 99\r\n\r\na 1\nb")),
        ("/silent", String::new()),
    ])
    .await;
    let own_text = "# TYPE mesh_proxy_app_scrape_failures_total counter\n";
    let own_open = "# TYPE mesh_proxy_app_scrape_failures counter\n";
    for (path, accept, own, ends, failures) in [
        ("/text", OPEN, own_text, "}} 1\na 1\nb 2\n", 0),
        ("/text", "", own_text, "a 1\nb 2\n", 0),
        ("/open", OPEN, own_open, "# TYPE a counter\na_total 1\n# EOF\n", 0),
        ("/nothing", "", own_text, "\n", 0),
        ("/html", OPEN, own_open, "\n# EOF\n", 1),
        ("/html", "", own_text, "\n", 1),
        ("/packed", OPEN, own_open, "\n# EOF\n", 1),
        ("/error", OPEN, own_open, "\n# EOF\n", 1),
        ("/broken", OPEN, own_open, "\na 1\n# EOF\n", 1),
        ("/silent", "x-prometheus-scrape-timeout-seconds: 0.5\r\n", own_text, "\n", 1),
        ("/asked", OPEN, own_text, "|\n", 0),
    ] {
        let pod = Pod::start("", Some(&format!(r#"{{"port":{},"path":"{path}"}}"#, to.port())));
        let (status, text) = pod.get(Port::Status, "/stats/prometheus", accept).await;
        let ends = ends.trim_start_matches("}} 1\n");
        assert!(status == Some(200) && text.contains(own) && text.ends_with(ends), "{path} {accept}: {text}");
        let kind = if own == own_open { "application/openmetrics-text" } else { "text/plain" };
        assert!(text.contains(&format!("content-type: {kind}")), "{path} {accept}: {text}");
        assert!(text.matches("# EOF").count() == usize::from(own == own_open), "{path} {accept}: {text}");
        assert_eq!(pod.scrape_failures(), failures, "{path} {accept}");
        if path == "/asked" {
            assert!(
                text.contains("|accept: application/openmetrics-text;version=1.0.0;q=0.6,text/plain;q=0.3|")
            );
        }
    }
    let alone = Pod::start("", None);
    for port in [Port::Status, Port::Stats] {
        let (status, text) = alone.get(port, "/stats/prometheus", OPEN).await;
        assert!(status == Some(200) && text.contains(own_open) && text.ends_with("# EOF\n"), "{text}");
    }
}

#[tokio::test]
async fn a_large_page_passes_and_one_without_end_is_cut() {
    const BOUND: usize = 16 << 20;
    // Long lines: how fast they are told apart is not the matter here.
    let line = format!("series_of_an_application{{x=\"{}\"}} 1", "x".repeat(4000));
    let whole = BOUND / (line.len() + 1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    let ten = format!("{line}\n").repeat(10);
    tasks.spawn(async move {
        for lines in [whole - 100, usize::MAX] {
            let (mut stream, _) = listener.accept().await.unwrap();
            // A socket that is closed with bytes unread is reset, and what it sent may be lost.
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await.unwrap();
            for _ in 0..lines / 10 {
                if stream.write_all(ten.as_bytes()).await.is_err() {
                    break;
                }
            }
        }
    });
    let pod = Pod::start("", Some(&format!(r#"{{"port":{port}}}"#)));
    let large = (whole - 100) / 10 * 10;
    for (expected, failures) in [(large..=large, 0), (whole - 40..=whole, 1)] {
        let (_, text) = pod.get(Port::Status, "/stats/prometheus", MINUTE).await;
        let lines = text.lines().filter(|found| *found == line).count();
        assert!(expected.contains(&lines) && text.ends_with(" 1\n"), "{lines} lines, not {expected:?}");
        assert_eq!(pod.scrape_failures(), failures);
    }
}
