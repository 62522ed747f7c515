//! Tests of the graph: what is asked for, and when what comes into force.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::xds::ResourceType;
use mesh_common::xds::names::ListenerName;

use super::{Full, Graph, Limits, Update};
use crate::config::store::Snapshot;
use crate::xds::decode::Decoded;
use crate::xds::testing::{eds_cluster, endpoints, good, http_listener, passthrough, routes, tcp_listener};

const VIP: &str = "10.96.0.1:80";

/// A graph with what it asked for and what it published last.
struct World {
    graph: Graph,
    asked: BTreeSet<(ResourceType, String)>,
    now: u64,
    snapshot: Snapshot,
    published: usize,
}

impl World {
    fn new(limits: Limits) -> Self {
        let inbound = ListenerName::Inbound { namespace: "shop".into(), pod: "web".into() };
        let graph = Graph::new(inbound, String::new(), limits);
        let mut world =
            Self { graph, asked: BTreeSet::new(), now: 0, snapshot: Snapshot::default(), published: 0 };
        world.settle();
        world
    }

    fn looking_up(name: &str) -> Self {
        let mut world = Self::new(Limits::default());
        world.look_up(name).unwrap();
        world
    }

    fn look_up(&mut self, name: &str) -> Result<(), Full> {
        let result = self.graph.want_listener(&name.parse().unwrap(), self.now, true);
        self.settle();
        result
    }

    fn settle(&mut self) {
        let settled = self.graph.settle(self.now);
        for one in settled.unsubscribe {
            assert!(self.asked.remove(&one), "{one:?} was not asked for");
        }
        for one in settled.subscribe {
            assert!(self.asked.insert(one.clone()), "{one:?} was asked for already");
        }
        if let Some(snapshot) = settled.publish {
            self.snapshot = snapshot;
            self.published += 1;
        }
    }

    fn apply(&mut self, update: Update) {
        self.graph.apply(update, self.now);
        self.settle();
    }

    fn listener(&mut self, name: &str, message: &mesh_common::xds::proto::config::listener::v3::Listener) {
        let Decoded::Listener(listener) = good(name, message) else { unreachable!() };
        self.apply(Update::Listener(name.parse().unwrap(), Some(listener)));
    }

    fn routes(&mut self, name: &str, clusters: &[&str]) {
        let Decoded::Route(config) = good(name, &routes(name, clusters)) else { unreachable!() };
        self.apply(Update::Route(name.into(), Some(config)));
    }

    fn cluster(&mut self, name: &str) {
        self.cluster_with(name, |_| {});
    }

    fn cluster_with(
        &mut self,
        name: &str,
        change: impl FnOnce(&mut mesh_common::xds::proto::config::cluster::v3::Cluster),
    ) {
        let mut message = if name == "PassthroughCluster" { passthrough() } else { eds_cluster(name) };
        change(&mut message);
        let Decoded::Cluster(cluster) = good(name, &message) else { unreachable!() };
        self.apply(Update::Cluster(name.into(), Some(cluster)));
    }

    fn endpoints(&mut self, name: &str, ips: &[&str]) {
        let Decoded::Endpoints(all) = good(name, &endpoints(name, ips)) else { unreachable!() };
        self.apply(Update::Endpoints(name.into(), Some(all)));
    }

    fn asks(&self, kind: ResourceType) -> Vec<&str> {
        self.asked.iter().filter(|(k, _)| *k == kind).map(|(_, name)| name.as_str()).collect()
    }

    /// The cluster or routes that a listener in force goes to.
    fn in_force(&self, name: &str) -> Option<String> {
        let listener = self.snapshot.listeners.get(&name.parse().unwrap())?.listener.as_ref()?;
        let chain = listener.chains.first().or(listener.default_chain.as_ref())?;
        Some(chain.name.clone())
    }

    /// Brings a listener with routes `r` to cluster `a` into force.
    fn with_http() -> Self {
        let mut world = Self::looking_up(VIP);
        world.listener(VIP, &http_listener(VIP, "r:80"));
        world.routes("r:80", &["a"]);
        world.cluster("a");
        world.endpoints("a", &["10.0.0.1"]);
        assert_eq!(world.in_force(VIP).as_deref(), Some("r:80"));
        world
    }
}

#[test]
fn two_listeners_are_wanted_from_the_start() {
    let world = World::new(Limits::default());
    assert_eq!(world.asks(ResourceType::Listener), ["inbound/shop/web", "virtualOutbound"]);
    assert_eq!(world.asked.len(), 2);
}

#[test]
fn a_listener_comes_into_force_with_all_it_names() {
    let mut world = World::looking_up(VIP);
    world.listener(VIP, &http_listener(VIP, "r:80"));
    assert_eq!(world.asks(ResourceType::Route), ["r:80"]);
    world.routes("r:80", &["a", "b"]);
    assert_eq!(world.asks(ResourceType::Cluster), ["a", "b"]);
    world.cluster("a");
    assert_eq!(world.asks(ResourceType::Endpoints), ["a"]);
    world.endpoints("a", &["10.0.0.1"]);
    assert_eq!(world.in_force(VIP), None);
    // A cluster that does not exist holds nobody up: its share of requests fails, and says why.
    world.apply(Update::Cluster("b".into(), None));
    assert_eq!(world.in_force(VIP).as_deref(), Some("r:80"));
    assert!(world.snapshot.clusters.contains_key("a") && !world.snapshot.clusters.contains_key("b"));
    assert!(world.snapshot.routes.contains_key("r:80"));
}

#[test]
fn fixed_listeners_wait_for_their_clusters_and_stay_when_the_model_forgets_the_pod() {
    let mut world = World::new(Limits::default());
    world.listener("virtualOutbound", &tcp_listener("virtualOutbound", "PassthroughCluster"));
    assert!(world.snapshot.outbound.is_none());
    world.cluster("PassthroughCluster");
    assert!(world.snapshot.outbound.is_some());
    world.apply(Update::Listener(ListenerName::VirtualOutbound, None));
    assert!(world.snapshot.outbound.is_some());
}

#[test]
fn a_name_that_does_not_exist_is_an_answer_and_may_appear_later() {
    let mut world = World::looking_up(VIP);
    world.apply(Update::Listener(VIP.parse().unwrap(), None));
    let known = &world.snapshot.listeners[&VIP.parse().unwrap()];
    assert!(known.listener.is_none());
    world.listener(VIP, &tcp_listener(VIP, "a"));
    world.cluster("a");
    world.endpoints("a", &[]);
    assert_eq!(world.in_force(VIP).as_deref(), Some("a"));
}

#[test]
fn a_changed_listener_waits_while_the_old_one_stays() {
    let mut world = World::looking_up(VIP);
    world.listener(VIP, &tcp_listener(VIP, "a"));
    world.cluster("a");
    world.endpoints("a", &[]);
    world.listener(VIP, &tcp_listener(VIP, "b"));
    assert_eq!(world.asks(ResourceType::Cluster), ["a", "b"]);
    world.cluster("b");
    assert_eq!(world.in_force(VIP).as_deref(), Some("a"));
    world.endpoints("b", &[]);
    assert_eq!(world.in_force(VIP).as_deref(), Some("b"));
    assert_eq!(world.asks(ResourceType::Cluster), ["b"]);
    assert_eq!(world.asks(ResourceType::Endpoints), ["b"]);
    assert!(!world.snapshot.clusters.contains_key("a"));
}

#[test]
fn a_changed_route_waits_for_its_clusters_and_touches_no_other() {
    let mut world = World::with_http();
    let before = Arc::clone(&world.snapshot.clusters["a"]);
    world.routes("r:80", &["a", "b"]);
    world.cluster("b");
    let routes = |world: &World| world.snapshot.routes["r:80"].virtual_hosts[0].routes.len();
    assert_eq!(routes(&world), 1);
    world.endpoints("b", &[]);
    assert_eq!(routes(&world), 2);
    assert!(Arc::ptr_eq(&before, &world.snapshot.clusters["a"]));
}

#[test]
fn endpoints_change_without_a_new_snapshot() {
    let mut world = World::with_http();
    let (published, cluster) = (world.published, Arc::clone(&world.snapshot.clusters["a"]));
    world.endpoints("a", &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(cluster.endpoints.load().localities[0].endpoints.len(), 2);
    world.apply(Update::Endpoints("a".into(), None));
    assert!(cluster.endpoints.load().localities.is_empty());
    assert_eq!(world.published, published);
}

#[test]
fn an_equal_cluster_stays_the_same_object_and_a_changed_one_keeps_its_endpoints() {
    let mut world = World::with_http();
    let before = Arc::clone(&world.snapshot.clusters["a"]);
    world.cluster_with("a", |cluster| cluster.alt_stat_name = "only a name".into());
    assert!(Arc::ptr_eq(&before, &world.snapshot.clusters["a"]));
    world.cluster_with("a", |cluster| {
        cluster.connect_timeout = Some(mesh_common::xds::protobuf::Duration { seconds: 1, nanos: 0 });
    });
    let after = &world.snapshot.clusters["a"];
    assert!(!Arc::ptr_eq(&before, after));
    assert_eq!(after.endpoints.load().localities[0].endpoints.len(), 1);
}

#[test]
fn a_cluster_with_other_endpoints_warms_while_the_old_one_stays() {
    let mut world = World::with_http();
    let before = Arc::clone(&world.snapshot.clusters["a"]);
    world.cluster_with("a", |cluster| {
        cluster.eds_cluster_config.as_mut().unwrap().service_name = "other".into();
    });
    assert_eq!(world.asks(ResourceType::Endpoints), ["a", "other"]);
    assert!(Arc::ptr_eq(&before, &world.snapshot.clusters["a"]));
    world.endpoints("other", &[]);
    assert!(!Arc::ptr_eq(&before, &world.snapshot.clusters["a"]));
    assert_eq!(world.asks(ResourceType::Endpoints), ["other"]);
}

#[test]
fn idle_look_ups_are_dropped_with_all_that_only_they_named() {
    let mut world = World::with_http();
    world.look_up("10.96.0.2:80").unwrap();
    world.listener("10.96.0.2:80", &tcp_listener("10.96.0.2:80", "a"));
    world.now = 14 * 60;
    world.snapshot.listeners[&"10.96.0.2:80".parse().unwrap()].used.touch(world.now);
    world.now = 15 * 60;
    world.graph.expire(world.now);
    world.settle();
    assert_eq!(world.in_force(VIP), None);
    assert_eq!(world.in_force("10.96.0.2:80").as_deref(), Some("a"));
    assert!(world.asks(ResourceType::Route).is_empty());
    assert_eq!(world.asks(ResourceType::Cluster), ["a"]);
    world.now = 60 * 60;
    world.graph.expire(world.now);
    world.settle();
    assert_eq!(world.asked.len(), 2, "{:?}", world.asked);
    assert!(world.snapshot.clusters.is_empty() && world.snapshot.routes.is_empty());
}

#[test]
fn look_ups_are_bounded_and_the_least_used_makes_room() {
    let mut world = World::new(Limits { listeners: 2, workloads: 1, idle: 900 });
    let names = ["10.0.0.1:1", "10.0.0.2:2", "10.0.0.3:3"];
    for name in &names[..2] {
        world.look_up(name).unwrap();
        world.apply(Update::Listener(name.parse().unwrap(), None));
    }
    world.now = 5;
    world.snapshot.listeners[&names[0].parse().unwrap()].used.touch(5);
    let third: ListenerName = names[2].parse().unwrap();
    assert_eq!(world.graph.want_listener(&third, 5, false), Err(Full));
    world.look_up(names[2]).unwrap();
    assert_eq!(
        world.asks(ResourceType::Listener),
        ["10.0.0.1:1", "10.0.0.3:3", "inbound/shop/web", "virtualOutbound"]
    );
    let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    world.graph.want_workload(a, 5, true).unwrap();
    assert_eq!(world.graph.want_workload(b, 6, false), Err(Full));
    world.graph.want_workload(b, 6, true).unwrap();
    let settled = world.graph.settle(6);
    assert_eq!(settled.subscribe.len(), 2);
    assert_eq!(settled.unsubscribe, [(ResourceType::Workload, "/10.0.0.1".to_owned())]);
}

#[test]
fn a_workload_is_answered_and_nothing_unasked_is_kept() {
    let mut world = World::new(Limits::default());
    let ip: IpAddr = "10.0.0.1".parse().unwrap();
    world.apply(Update::Workload(ip, None));
    assert!(world.snapshot.workloads.is_empty());
    world.graph.want_workload(ip, 0, true).unwrap();
    world.apply(Update::Workload(ip, None));
    assert!(world.snapshot.workloads[&ip].workload.is_none());
    assert!(world.graph.workload(ip).is_some());
    world.cluster("nobody-names-it");
    assert!(world.snapshot.clusters.is_empty());
}
