//! What ends a stream, as a table over time.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::super::binding::{Binding, Broken, Present};
use super::super::node::parse;
use super::node::{ID, node, pod};
use super::*;
use crate::ca::caller::{Caller, PeerCertificate};

const GRACE: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_stream_stands_on_its_credential_and_its_pod() {
    let (start, wall) = (Instant::now(), SystemTime::now());
    let settings = FakeFacts::default().settings;
    let claims = parse(Some(node(ID, &[]))).unwrap();
    let web = pod("web-1", "web", "10.0.0.1");
    let expired = |outcome| matches!(outcome, Err(Broken::Expired("certificate")));
    let at = |seconds: u64| (start + Duration::from_secs(seconds), wall + Duration::from_secs(seconds));
    let present = |seconds: u64, pod, uid| {
        let (now, wall) = at(seconds);
        Present { wall, now, pod, uid, settings: &settings }
    };
    let opened = |uid| {
        let identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let certificate = PeerCertificate { identity, not_after: at(100).1 };
        Binding::new(Caller::Certificate(certificate), &claims, present(0, Some(&web), uid)).unwrap()
    };

    let moved = Workload { node: "n2".into(), ..web.clone() };
    let (account, address) = (pod("web-1", "db", "10.0.0.1"), pod("web-1", "web", "10.0.0.2"));
    let dead = Workload { live: false, ..web.clone() };

    let mut binding = opened(Some("one"));
    let mut check = |seconds, pod, uid| binding.check(&claims, present(seconds, pod, uid), GRACE);
    assert_eq!(check(99, Some(&web), Some("one")), Ok(()));
    assert!(expired(check(100, Some(&web), Some("one"))));
    assert!(expired(check(200, None, None)), "the credential comes first");
    assert!(matches!(check(1, Some(&web), Some("two")), Err(Broken::Replaced { .. })));
    assert!(matches!(check(1, Some(&web), None), Err(Broken::Replaced { .. })));
    assert_eq!(check(1, Some(&moved), Some("one")), Err(Broken::Moved));
    for changed in [&account, &address] {
        assert!(matches!(check(1, Some(changed), Some("one")), Err(Broken::Changed(_))), "{changed:?}");
    }
    // Away for a moment, back, and away for good.
    assert_eq!(check(10, None, None), Ok(()));
    assert_eq!(check(39, Some(&dead), Some("one")), Ok(()));
    assert_eq!(check(39, Some(&web), Some("one")), Ok(()));
    assert_eq!(check(41, None, None), Ok(()));
    assert_eq!(check(70, None, None), Ok(()));
    assert!(matches!(check(71, None, None), Err(Broken::Gone(_))));

    // The kubelet tells the proxy its address first: until the model knows it, there is nothing to compare.
    let unknown = Workload { addresses: Vec::new(), ..web.clone() };
    let certificate = Caller::Certificate(PeerCertificate {
        identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
        not_after: at(100).1,
    });
    let mut binding = Binding::new(certificate, &claims, present(0, Some(&unknown), Some("one"))).unwrap();
    let mut check = |pod| binding.check(&claims, present(1, Some(pod), Some("one")), GRACE);
    assert_eq!((check(&unknown), check(&web)), (Ok(()), Ok(())));
    assert!(matches!(check(&address), Err(Broken::Changed(_))), "the address is another's");

    let mut binding = opened(None);
    assert!(matches!(
        binding.check(&claims, present(1, Some(&web), Some("one")), GRACE),
        Err(Broken::Replaced { .. })
    ));
}
