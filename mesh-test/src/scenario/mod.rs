//! What the mesh does, as a table of scenarios. Each says what it shows, what world it needs, and plays the
//! story in it. They see a world as an application in a pod does, and read both proxies' counters; nothing
//! here knows how the traffic was captured.

mod balance;
mod control;
mod detect;
mod identity;
mod routing;
mod wire;

use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;

use anyhow::{Context as _, Result};

use crate::topology::Topology;
use crate::world::World;

/// A story as it is played. It stays on one thread.
type Play = for<'a> fn(&'a World) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A story.
pub struct Scenario {
    /// Its name; the test has the same.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// The world that it plays in.
    pub topology: fn() -> Topology,
    /// The story itself.
    pub play: Play,
}

/// A row of the table.
macro_rules! scenario {
    ($path:ident :: $name:ident, $shows:literal, $topology:expr) => {
        Scenario {
            name: stringify!($name),
            shows: $shows,
            topology: || $topology,
            play: |world| Box::pin($path::$name(world)),
        }
    };
}

/// Every scenario.
pub const ALL: &[Scenario] = &[
    scenario!(routing::split_by_weight, "90/10 over 20,000 requests, within a point", routing::split_world()),
    scenario!(
        routing::split_edited_under_load,
        "an edit takes effect, no request fails",
        routing::split_world()
    ),
    scenario!(routing::canary_by_header, "a header chooses the version", routing::canary_world()),
    scenario!(routing::metrics_are_exact, "both reporters count what was sent", routing::split_world()),
    scenario!(
        routing::a_broken_file_changes_nothing,
        "named by line; the last good one stays",
        routing::split_world()
    ),
    scenario!(identity::plaintext_to_strict, "refused with the reason", identity::strict_world()),
    scenario!(identity::clients_without_right, "wrong certificates are refused", identity::strict_world()),
    scenario!(identity::servers_without_right, "impostors get no byte", identity::impostor_world()),
    scenario!(identity::certificates_rotate_under_load, "a minute each, no failure", identity::short_world()),
    scenario!(wire::bytes_are_tls, "the marker is seen only with the mesh off", wire::relay_world()),
    scenario!(
        control::control_killed_under_load,
        "nothing fails, nothing is sent again",
        routing::split_world()
    ),
    scenario!(control::callers_without_right, "CSR, stream, tokens: refused", routing::split_world()),
    scenario!(control::two_controls_agree, "equal versions from one folder", routing::split_world()),
    scenario!(control::figures, "memory, start, first request, edit to effect", routing::split_world()),
    scenario!(
        detect::external_addresses_cause_no_look_up,
        "10,000 of them",
        Topology::pair("echo", crate::topology::App::TcpEcho, "tcp")
    ),
    scenario!(detect::server_speaks_first, "less than 200 ms", detect::banner_world()),
    scenario!(detect::idle_then_http, "gets its route after 5 s", detect::quiet_world()),
    scenario!(
        detect::opaque_tcp,
        "both reporters count bytes",
        Topology::pair("echo", crate::topology::App::TcpEcho, "tcp")
    ),
    scenario!(balance::grpc_per_call, "one connection, every pod", balance::grpc_world()),
    scenario!(
        balance::web_socket,
        "an upgrade passes",
        Topology::pair("chat", crate::topology::App::Http, "http")
    ),
    scenario!(balance::endpoints_removed_under_load, "no failure", balance::pool_world()),
    scenario!(
        balance::drained_under_load,
        "SIGTERM to a server's sidecar: no failure, exit 0",
        balance::pool_world()
    ),
];

/// Plays the scenario of this name in a world of its own.
///
/// # Errors
/// When the story goes otherwise.
pub async fn play(name: &str) -> Result<()> {
    let scenario = ALL.iter().find(|scenario| scenario.name == name).context("no such scenario")?;
    let world = Box::pin(World::start(&(scenario.topology)())).await.context("the world did not start")?;
    let played = (scenario.play)(&world).await;
    played.with_context(|| format!("{name}: {}", scenario.shows))
}

/// Prints a figure, past the test runner that keeps what tests print.
pub(crate) fn figure(name: &str, value: impl std::fmt::Display) {
    // Nobody may be reading.
    writeln!(std::io::stderr().lock(), "figure: {name}: {value}").unwrap_or_default();
}
