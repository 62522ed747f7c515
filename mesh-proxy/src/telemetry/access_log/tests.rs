//! Lines as readers see them, and what happens when nobody reads.

use std::sync::mpsc as std_mpsc;

use super::*;

fn entry() -> AccessEntry<'static> {
    AccessEntry {
        start: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
        method: "GET",
        path: "/reviews/0?x=1",
        protocol: "HTTP/1.1",
        code: 503,
        flags: ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
        upstream_failure: "the peer is a, expected b",
        bytes_sent: 91,
        duration: Duration::from_millis(7),
        upstream_service_time: Some(Duration::from_millis(5)),
        user_agent: "curl/8 \"x\"\nfake",
        authority: "reviews:9080",
        upstream_host: Some("10.0.0.2:9080".parse().unwrap()),
        upstream_cluster: "outbound|9080||reviews.shop.svc.cluster.local",
        downstream_local: Some("10.96.0.1:9080".parse().unwrap()),
        downstream_remote: Some("10.0.0.1:40000".parse().unwrap()),
        route_name: "shop/reviews/0",
        ..AccessEntry::default()
    }
}

#[test]
fn text_is_istios_format_and_cannot_be_forged() {
    assert_eq!(
        format::text(&entry()),
        "[2023-11-14T22:13:20.123Z] \"GET /reviews/0?x=1 HTTP/1.1\" 503 UF - - \"the peer is a, expected b\" \
         0 91 7 5 \"-\" \"curl/8 \\\"x\\\"\\nfake\" \"-\" \"reviews:9080\" \"10.0.0.2:9080\" \
         outbound|9080||reviews.shop.svc.cluster.local - 10.96.0.1:9080 10.0.0.1:40000 - shop/reviews/0\n"
    );
}

#[test]
fn json_has_istios_keys() {
    let line = format::json(&entry());
    assert_eq!(line.matches('\n').count(), 1);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    let expected = "authority bytes_received bytes_sent connection_termination_details \
        downstream_local_address downstream_remote_address duration method path protocol request_id \
        requested_server_name response_code response_code_details response_flags route_name start_time \
        upstream_cluster upstream_host upstream_local_address upstream_service_time \
        upstream_transport_failure_reason user_agent x_forwarded_for";
    assert_eq!(keys.join(" "), expected);
    assert_eq!(value["user_agent"], "curl/8 \"x\"\nfake");
    assert_eq!((&value["response_code"], &value["response_flags"]), (&503.into(), &"UF".into()));
    assert!(value["request_id"].is_null());
}

#[test]
fn a_reader_that_does_not_read_costs_lines_not_time() {
    let (logger, mut queue) = AccessLogger::with_queue(2);
    for _ in 0..5 {
        logger.log(AccessLog::Text, &entry());
    }
    assert_eq!(logger.dropped(), 3);
    assert!(queue.try_recv().is_ok());
    logger.log(AccessLog::Json, &entry());
    assert_eq!(logger.dropped(), 3);
}

#[tokio::test]
async fn lines_are_written_in_order_and_at_once() {
    struct Pipe(std_mpsc::Sender<Vec<u8>>);
    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (sender, written) = std_mpsc::channel();
    let logger = AccessLogger::start(Pipe(sender)).unwrap();
    for path in ["/1", "/2"] {
        logger.log(AccessLog::Text, &AccessEntry { path, ..entry() });
    }
    let mut text = String::new();
    while text.matches('\n').count() < 2 {
        let bytes = written.recv_timeout(Duration::from_secs(10)).unwrap();
        text.push_str(std::str::from_utf8(&bytes).unwrap());
    }
    assert!(text.find("/1").unwrap() < text.find("/2").unwrap());

    logger.log(AccessLog::Text, &AccessEntry { path: "/3", ..entry() });
    logger.flush().await;
    let rest: Vec<u8> = written.try_iter().flatten().collect();
    assert!(String::from_utf8(rest).unwrap().contains("/3"));
}
