//! What a resource may depend on: what is not read here is neither in its version nor in its cache key.

use mesh_common::xds::ResourceType;
use mesh_common::xds::protobuf::Any;
use mesh_control::translate::client::ClientKind;
use mesh_control::translate::{ClientView, Request, translate};

use crate::cases::{self, routes};
use crate::dump::dump;
use crate::world::{Client, Unread, World, pod_key};

fn get(kind: ResourceType, name: &str, client: &dyn ClientView, world: &World) -> Option<Any> {
    translate(Request { kind, name }, client, world).unwrap()
}

/// Resources that are the same for every client: nothing about it is read.
#[test]
fn most_resources_do_not_depend_on_the_client() {
    let dependent = [
        "listener-host-short",
        "listener-host-unknown",
        "endpoints-node-local",
        "endpoints-node-local-elsewhere",
        "inbound-cluster",
        "inbound-cluster-no-such-port",
        "inbound-cluster-other-pod",
        "route-producer",
        "route-consumer",
    ];
    let ours = |case: &cases::Case| case.client.kind == ClientKind::MeshProxy;
    for case in cases::all().into_iter().filter(ours).filter(|case| !dependent.contains(&case.name)) {
        let request = Request { kind: case.kind, name: &case.resource };
        let unread = translate(request, &Unread, &case.world);
        let read = translate(request, &case.client, &case.world);
        let text = |any: Option<Any>| any.map(|any| dump(&any));
        assert_eq!(unread.map(text), read.map(text), "{}", case.name);
    }
}

#[test]
fn the_table_is_chosen_by_the_namespace_alone() {
    let world = routes::consumer_world();
    let name = "reviews.shop.svc.cluster.local:80";
    let seen = |client: Client| dump(&get(ResourceType::Route, name, &client, &world).unwrap());
    let consumer = seen(Client { namespace: "client", ..Client::new() });
    let producer = seen(Client { namespace: "shop", ..Client::new() });
    assert_ne!(consumer, producer);
    assert!(consumer.contains("outbound|90||reviews") && !consumer.contains("outbound|80||reviews"));
    let moved = Client { namespace: "client", pod: pod_key("other"), node: "elsewhere", ..Client::new() };
    assert_eq!(seen(moved), consumer);
    for namespace in ["other", "", "clien", "client2"] {
        assert_eq!(seen(Client { namespace, ..Client::new() }), producer, "{namespace:?}");
    }
}

#[test]
#[should_panic(expected = "the client's namespace was read")]
fn a_route_with_consumers_reads_the_namespace() {
    let world = routes::consumer_world();
    get(ResourceType::Route, "reviews.shop.svc.cluster.local:80", &Unread, &world);
}

/// Every way to write a service's name, and what is not its name.
#[test]
fn host_names_mean_what_dns_says() {
    let world = cases::destinations::shop();
    let found = |host: &str| {
        let name = format!("host/{host}:80");
        let listener = get(ResourceType::Listener, &name, &Client::new(), &world)?;
        let text = dump(&listener);
        assert!(text.contains(&format!("name: \"{name}\"")), "the resource has the name that was asked for");
        Some(text.contains("route_config_name: \"reviews.shop.svc.cluster.local:80\""))
    };
    for host in [
        "reviews",
        "reviews.shop",
        "reviews.shop.svc",
        "reviews.shop.svc.cluster.local",
        "reviews.shop.svc.cluster.local.",
    ] {
        assert_eq!(found(host), Some(true), "{host}");
    }
    for host in [
        "review",
        "reviews.other",
        "reviews.svc",
        "reviews.shop.svc.cluster",
        "a.reviews.shop",
        "reviews.svc.cluster.local",
        "cluster.local",
        "svc.cluster.local",
        "shop.svc.cluster.local",
        ".",
        "..",
        ".reviews",
        "xcluster.local",
        "reviews.shop.pod.cluster.local",
    ] {
        assert_eq!(found(host), None, "{host}");
    }
    let elsewhere = Client { namespace: "other", ..Client::new() };
    assert!(get(ResourceType::Listener, "host/reviews:80", &elsewhere, &world).is_none());
}

/// A pod of a headless service, by every name that DNS gives it.
#[test]
fn pods_of_headless_services_have_names() {
    let world = cases::destinations::shop();
    let found = |host: &str| {
        get(ResourceType::Listener, &format!("host/{host}:3306"), &Client::new(), &world)
            .map(|listener| dump(&listener).contains("outbound|3306||mysql-0.shop.pod.cluster.local"))
    };
    for host in [
        "mysql-0.mysql",
        "mysql-0.mysql.shop",
        "mysql-0.mysql.shop.svc",
        "mysql-0.mysql.shop.svc.cluster.local",
    ] {
        assert_eq!(found(host), Some(true), "{host}");
    }
    for host in ["mysql-9.mysql", "reviews-1.mysql.shop", "reviews-1.reviews.shop"] {
        assert_eq!(found(host), None, "{host}");
    }
}

/// Another spelling of a name is another name: it stands for nothing.
#[test]
fn names_have_one_spelling() {
    let world = cases::destinations::shop();
    for (kind, name) in [
        (ResourceType::Listener, "[0:0::1]:80"),
        (ResourceType::Listener, "*"),
        (ResourceType::Cluster, "*"),
        (ResourceType::Cluster, ""),
        (ResourceType::Workload, "10.0.1.1"),
        (ResourceType::Workload, "/10.0.1.1/"),
        (ResourceType::Route, "reviews:80"),
        (ResourceType::Route, "reviews.shop.svc.cluster.local"),
        (ResourceType::Endpoints, "outbound|80||reviews"),
    ] {
        assert!(get(kind, name, &Client::new(), &world).is_none(), "{kind} {name:?}");
    }
}
