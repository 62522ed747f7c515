//! Pods, as the API server sends them.

use anyhow::Result;
use mesh_common::trust::TrustBundle;
use mesh_injector::serve::Limits;
use mesh_test::certs::Authority;
use mesh_test::wait::{self, PATIENCE};
use serde_json::{Value, json};

use crate::api::{Api, namespace};
use crate::world::{World, patched, pod, review_of};

fn is_injected(pod: &Value) -> bool {
    pod["spec"]["initContainers"][1]["name"] == "mesh-proxy"
}

#[tokio::test]
async fn a_pod_gets_its_proxy_and_a_second_call_changes_nothing() -> Result<()> {
    let world = World::start().await?;
    let response = world.review(&review_of("shop", &pod())).await?;
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let injected = patched(&pod(), &response)?;
    assert!(is_injected(&injected), "{injected:#}");
    let environment = injected["spec"]["initContainers"][1]["env"].as_array().unwrap();
    let root = environment.iter().find(|variable| variable["name"] == "MESH_TRUST_BUNDLE").unwrap();
    assert_eq!(
        root["value"],
        json!(mesh_common::trust::TrustBundle::from_pem(world.authority.root_pem())?.to_pem())
    );

    let again = world.review(&review_of("shop", &injected)).await?;
    assert_eq!((&again["allowed"], again.get("patch")), (&json!(true), None));
    for line in [
        "mesh_injector_requests_total{outcome=\"injected\",reason=\"enabled\"} 1",
        "mesh_injector_requests_total{outcome=\"unchanged\",reason=\"enabled\"} 1",
        "mesh_injector_request_duration_seconds_count 2",
    ] {
        assert!(world.page().contains(line), "{line} is not in\n{}", world.page());
    }
    assert!(world.api.0.lock().unwrap().events.is_empty());
    Ok(())
}

#[tokio::test]
async fn skips_and_refusals_say_why() -> Result<()> {
    let world = World::start().await?;
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    let owned = |kind: &str| {
        let mut pod = host.clone();
        pod["metadata"]["ownerReferences"] = json!([{ "apiVersion": "apps/v1", "kind": kind, "name": "web-1", "uid": "u", "controller": true }]);
        review_of("shop", &pod)
    };
    let mut dry = owned("DaemonSet");
    dry["request"]["dryRun"] = json!(true);
    for review in [&dry, &review_of("shop", &host), &review_of("shop", &host)] {
        let response = world.review(review).await?;
        assert_eq!((&response["allowed"], response.get("patch")), (&json!(true), None));
        assert!(response["warnings"][0].as_str().unwrap().contains("hostNetwork"), "{response}");
    }
    world.review(&owned("ReplicaSet")).await?;
    let events = wait::until("two events are written", PATIENCE, async || {
        let events = world.api.0.lock().unwrap().events.clone();
        (events.len() >= 2).then_some(events)
    })
    .await?;
    // The dry run wrote none, and the same was not told twice.
    let about: Vec<_> = events.iter().map(|it| it["involvedObject"]["kind"].as_str().unwrap()).collect();
    assert_eq!(about, ["Namespace", "ReplicaSet"]);
    assert_eq!(events[0]["reason"], "MeshInjectionSkipped");
    assert!(events[0]["message"].as_str().unwrap().contains("hostNetwork"));
    assert_eq!(world.api.0.lock().unwrap().single_reads, 0, "no namespace has a say in that");

    let mut bypass = pod();
    bypass["spec"]["securityContext"] = json!({ "runAsUser": 1337 });
    let response = world.review(&review_of("shop", &bypass)).await?;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(403)));
    assert!(response["status"]["message"].as_str().unwrap().contains("uid 1337"), "{response}");
    Ok(())
}

#[tokio::test]
async fn a_namespace_that_the_watch_does_not_know_is_asked_for() -> Result<()> {
    let world = World::start().await?;
    let enabled = |name| namespace(name, &json!({ "mesh/inject": "enabled" }));
    // Made a moment ago.
    world.api.0.lock().unwrap().fresh.insert("new".to_owned(), enabled("new"));
    assert!(is_injected(&patched(&pod(), &world.review(&review_of("new", &pod())).await?)?));
    // Labelled a moment ago: the watch still has it without the label.
    world.api.0.lock().unwrap().fresh.insert("plain".to_owned(), enabled("plain"));
    assert!(is_injected(&patched(&pod(), &world.review(&review_of("plain", &pod())).await?)?));
    assert_eq!(world.api.0.lock().unwrap().single_reads, 2);

    // Nobody knows it: refused for now, never let through without its proxy.
    for down in [false, true] {
        world.api.0.lock().unwrap().down = down;
        let response = world.review(&review_of("nowhere", &pod())).await?;
        assert_eq!(
            (&response["allowed"], &response["status"]["code"]),
            (&json!(false), &json!(503)),
            "{response}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn remarks_on_an_injected_pod_are_answered_and_written() -> Result<()> {
    let world = World::start().await?;
    let mut odd = pod();
    odd["metadata"]["annotations"] = json!({ "mesh/colour": "blue" });
    let response = world.review(&review_of("shop", &odd)).await?;
    assert!(is_injected(&patched(&odd, &response)?));
    assert!(response["warnings"][0].as_str().unwrap().contains("mesh/colour"), "{response}");
    let event = wait::until("an event is written", PATIENCE, async || {
        world.api.0.lock().unwrap().events.first().cloned()
    })
    .await?;
    assert_eq!(
        (&event["reason"], &event["involvedObject"]["name"]),
        (&json!("MeshInjection"), &json!("shop"))
    );
    assert!(event["message"].as_str().unwrap().contains("mesh/colour"), "{event}");
    Ok(())
}

#[tokio::test]
async fn no_pod_is_injected_before_the_roots_are_known() -> Result<()> {
    let world = World::of(Api::new(), Authority::new("mesh")?, None, Limits::default()).await?;
    let response = world.review(&review_of("shop", &pod())).await?;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(503)));
    assert!(response["status"]["message"].as_str().unwrap().contains("roots"), "{response}");
    Ok(())
}

#[tokio::test]
async fn the_clusters_version_decides_what_kind_of_container_the_proxy_is() -> Result<()> {
    for (minor, list) in [("28", "containers"), ("29", "initContainers")] {
        let (api, authority) = (Api::new(), Authority::new("mesh")?);
        api.0.lock().unwrap().minor = minor.to_owned();
        let roots = TrustBundle::from_pem(authority.root_pem())?;
        let world = World::of(api, authority, Some(roots), Limits::default()).await?;
        let injected = patched(&pod(), &world.review(&review_of("shop", &pod())).await?)?;
        let mut names = injected["spec"][list].as_array().unwrap().iter().map(|it| &it["name"]);
        assert!(names.any(|name| name == "mesh-proxy"), "1.{minor}: {injected:#}");
    }
    Ok(())
}

#[tokio::test]
async fn nobody_is_asked_while_the_watch_says_yes() -> Result<()> {
    let world = World::start().await?;
    // Whoever wanted injection when it created the pod gets it, though the label is gone by now.
    let disabled = namespace("shop", &json!({ "mesh/inject": "disabled" }));
    world.api.0.lock().unwrap().fresh.insert("shop".to_owned(), disabled);
    assert!(is_injected(&patched(&pod(), &world.review(&review_of("shop", &pod())).await?)?));
    assert_eq!(world.api.0.lock().unwrap().single_reads, 0);
    // A namespace that really does not want it.
    let response = world.review(&review_of("plain", &pod())).await?;
    assert_eq!((&response["allowed"], response.get("patch")), (&json!(true), None));
    Ok(())
}
