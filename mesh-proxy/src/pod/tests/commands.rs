//! `wait` and `drain`, before an admin page that says what a test wants.

use std::time::Duration;

use tokio::net::TcpListener;

use super::app;
use crate::options::{DrainOptions, WaitOptions};
use crate::pod::command::{drain, wait};

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn wait_ends_well_only_when_the_proxy_is_ready() {
    let waiting = async |admin| {
        let waited = wait(&WaitOptions { admin, timeout: Duration::from_secs(1) }).await;
        waited.err().map(|error| error.to_string()).unwrap_or_default()
    };
    for (ready, words) in [
        (answer("200 OK", "ready"), ""),
        (
            answer("503 No", "not ready, waiting for: certificate"),
            "waiting for: certificate; its log says why",
        ),
        (answer("404 No", "none"), "status 404 Not Found: none; is it the admin address"),
        // It says nothing.
        (String::new(), "no proxy answers"),
    ] {
        let (admin, _app) = app(vec![("/readyz", ready)]).await;
        let said = waiting(admin).await;
        assert!(said.contains(words) && said.is_empty() == words.is_empty(), "{words}: {said}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(waiting(nobody).await.contains("no proxy answers"));
}

#[tokio::test]
async fn drain_says_whether_it_was_heard() {
    let draining = async |admin| drain(&DrainOptions { admin }).await.err().map(|error| error.to_string());
    let (admin, _app) = app(vec![("/drain", answer("202 Accepted", "draining"))]).await;
    assert_eq!(draining(admin).await, None);
    let (admin, _app) = app(vec![]).await;
    assert!(draining(admin).await.unwrap().contains("status 404 Not Found: none"));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert!(draining(nobody).await.unwrap().contains("no proxy answers"));
}
