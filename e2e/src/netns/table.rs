//! Every test in network namespaces, by name.

use std::pin::Pin;

use anyhow::{Context as _, Result};
use mesh_test::scenario;
use mesh_test::topology::Topology;
use mesh_test::world::{Way, World};

use super::{broken, own, stranger, strict};

/// A test as it is played; it stays on the thread that began it.
type Play = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<()>>>> + Send + Sync>;

/// A test.
pub(super) struct Test {
    /// Its name.
    pub(super) name: &'static str,
    /// What it shows.
    pub(super) shows: &'static str,
    /// The test itself.
    pub(super) play: Play,
}

/// A row of what only captured traffic shows.
macro_rules! captured {
    ($path:ident :: $name:ident, $shows:literal, $topology:expr) => {
        captured!($path::$name as stringify!($name), $shows, $topology)
    };
    ($path:ident :: $name:ident as $as:expr, $shows:literal, $topology:expr) => {
        Test {
            name: $as,
            shows: $shows,
            play: Box::new(|| {
                Box::pin(async {
                    let world = start($topology).await?;
                    $path::$name(&world).await
                })
            }),
        }
    };
}

/// All of them.
pub(super) fn all() -> Vec<Test> {
    let scenarios = scenario::ALL.iter().map(|scenario| Test {
        name: scenario.name,
        shows: scenario.shows,
        play: Box::new(|| Box::pin(scenario::play(scenario.name, Way::Namespaces))),
    });
    scenarios.chain(captured()).collect()
}

fn captured() -> Vec<Test> {
    vec![
        captured!(own::calls_itself, "by service, own address, localhost; also at STRICT", own::pair()),
        captured!(own::own_ports_are_refused, "the proxy's ports, by every address", own::pair()),
        captured!(own::says_why, "a refused connection gets its reason, if it speaks HTTP", own::pair()),
        captured!(own::every_family as "dual_stack", "IPv4 and IPv6, side by side", own::dual_stack()),
        captured!(own::every_family as "ipv6_only", "no address of IPv4 in any pod", own::ipv6_only()),
        captured!(
            strict::strict_refuses_plaintext,
            "by every address, to every port",
            strict::strict_world()
        ),
        captured!(strict::neighbours_without_the_mesh, "both ways", strict::legacy_world()),
        captured!(strict::excluded_ports_bypass, "ports and ranges, in and out", strict::excluded_world()),
        captured!(strict::udp_is_untouched, "on every port", own::pair()),
        captured!(broken::a_silent_peer_is_noticed, "requests and idle connections", broken::echo_world()),
        captured!(broken::a_lossy_network, "2 % lost, 50 ms late: nothing breaks", broken::echo_world()),
        captured!(stranger::captured_by_an_envoy, "a stock Envoy, client and server", stranger::world()),
        captured!(broken::proxies_killed, "no plaintext meanwhile; again within 2 s", broken::killed_world()),
    ]
}

async fn start(topology: Topology) -> Result<World> {
    Box::pin(World::start(&topology, Way::Namespaces)).await.context("the world did not start")
}
