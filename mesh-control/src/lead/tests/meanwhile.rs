//! What others wrote between a look of the leader and its write: it is never undone.

use super::*;

/// Somebody writes the lease over a leader: what was written stays, and the leader stops at once.
#[tokio::test(start_paused = true)]
async fn a_lease_that_another_wrote_is_not_overwritten() {
    let api = cluster(&["shop"]);
    let a = Replica::start(&api, "a");
    within(1, "it writes", || bundle_of(&api, "shop")).await;
    let mut lease = api.get("leases", "mesh-system", LEASE).unwrap();
    lease["spec"]["holderIdentity"] = json!("b");
    api.put(lease);
    within(3, "it does not lead any more", || (!a.leads()).then_some(())).await;
    assert_eq!(holder(&api).as_deref(), Some("b"));
    api.remove("configmaps", "shop", "mesh-root-cert");
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(bundle_of(&api, "shop").is_none() && holder(&api).as_deref() == Some("b"));
    within(10, "nobody renews it", || a.leads().then_some(())).await;
}

/// The watch is behind, and a first try has failed: what others wrote meanwhile is not undone.
#[tokio::test(start_paused = true)]
async fn a_config_map_that_changed_hands_meanwhile_is_left_alone() {
    let api = cluster(&["shop"]);
    let mut map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "namespace": "shop", "name": "mesh-root-cert", "labels": { "app.kubernetes.io/managed-by": "mesh-control" },
        },
        "data": { "root-cert.pem": "old" },
    });
    api.put(map.clone());
    api.fail("patch", "configmaps", 500, 1);
    api.forbid("watch", "configmaps");
    let _replica = Replica::start(&api, "a");
    let tried = || {
        api.writes()
            .iter()
            .any(|write| write.starts_with("PATCH") && write.contains("configmaps"))
            .then_some(())
    };
    within(10, "a first try", tried).await;
    map["metadata"]["labels"] = json!({ "app.kubernetes.io/managed-by": "others" });
    map["data"] = json!({ "root-cert.pem": "theirs" });
    let theirs = api.put(map);
    calm().await;
    assert_eq!(api.get("configmaps", "shop", "mesh-root-cert").unwrap(), theirs);
}

#[tokio::test(start_paused = true)]
async fn the_key_is_in_no_other_part_of_the_config_map() {
    let api = cluster(&["shop"]);
    api.put(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "namespace": "shop", "name": "mesh-root-cert", "labels": { "app.kubernetes.io/managed-by": "mesh-control" },
        },
        "binaryData": { "root-cert.pem": "AA==", "other": "AA==" },
    }));
    let _replica = Replica::start(&api, "a");
    let map = within(10, "mended", || bundle_of(&api, "shop")).await;
    assert_eq!(map["binaryData"], json!({ "other": "AA==" }), "the API server takes a key only once");
}

/// A webhook that is gone by now is not made again.
#[tokio::test(start_paused = true)]
async fn a_webhook_that_is_gone_meanwhile_stays_gone() {
    let api = cluster(&[]);
    api.fail("patch", "mutatingwebhookconfigurations", 500, 1);
    api.forbid("watch", "mutatingwebhookconfigurations");
    let _replica = Replica::start(&api, "a");
    let tried = || api.writes().iter().any(|write| write.contains("mutatingwebhook")).then_some(());
    within(10, "a first try", tried).await;
    let mut less = webhook("");
    less["webhooks"].as_array_mut().unwrap().truncate(1);
    api.put(less);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let names = |api: &KubeApi| {
        let webhook = api.get("mutatingwebhookconfigurations", "", "mesh-injector").unwrap();
        webhook["webhooks"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&api), ["namespace.inject.mesh"]);
    api.heal();
    within(60, "the one that is there", || {
        let webhook = api.get("mutatingwebhookconfigurations", "", "mesh-injector")?;
        (webhook["webhooks"][0]["clientConfig"]["caBundle"] != "").then_some(())
    })
    .await;
    assert_eq!(names(&api), ["namespace.inject.mesh"]);
}

/// The watch tells nothing any more: what is written rests on what was read just now, or is not written.
#[tokio::test(start_paused = true)]
async fn a_status_is_never_written_from_what_is_old() {
    let parents = json!([{ "group": "", "kind": "Service", "name": "reviews" }]);
    for successor in [false, true] {
        let api = cluster(&[]);
        let stored = api.put(route("r", 1, &parents));
        let replica = Replica::start(&api, "a");
        within(1, "it leads", || replica.leads().then_some(())).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        api.forbid("watch", "httproutes");
        api.hang_up();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let theirs = json!({ "parentRef": { "name": "edge" }, "controllerName": "example.com/gateway", "conditions": [] });
        if successor {
            api.remove("httproutes", "shop", "r");
            api.put(route("r", 1, &parents));
        } else {
            let mut told = stored;
            told["status"] = json!({ "parents": [theirs] });
            api.put(told);
        }
        replica.knows(&reviews());
        replica.knows(&route("r", 1, &parents));
        tokio::time::sleep(Duration::from_secs(10)).await;
        if successor {
            assert!(ours(&api, "r").is_empty(), "the mesh knows another of this name");
        } else {
            assert_eq!(ours(&api, "r"), GOOD);
            let stored = api.get("httproutes", "shop", "r").unwrap();
            assert_eq!(stored["status"]["parents"][0], theirs);
        }
    }
}
