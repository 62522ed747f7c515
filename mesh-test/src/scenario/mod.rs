//! What the mesh does, as a table of scenarios. Each says what it shows, what world it needs, and plays the
//! story in it. They see a world as an application in a pod does, and read both proxies' counters; nothing
//! here knows how the traffic was captured.

mod abuse;
mod balance;
mod control;
mod destinations;
mod detect;
pub mod envoy;
pub mod grpc;
mod identity;
mod lifecycle;
mod modes;
mod restart;
mod routing;
mod rules;
mod wire;

use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::topology::{App, Topology};
use crate::wait;
use crate::world::{Way, World};

/// What a server's sidecar counts of a client that has proven who it is.
const MTLS: [(&str, &str); 2] = [("reporter", "destination"), ("connection_security_policy", "mutual_tls")];

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
    scenario!(
        restart::killed_without_control,
        "serves with mutual TLS within 2 s, nothing is sent again",
        identity::strict_world()
    ),
    scenario!(control::callers_without_right, "CSR, stream, tokens: refused", routing::split_world()),
    scenario!(control::two_controls_agree, "equal versions from one folder", routing::split_world()),
    scenario!(control::figures, "memory, start, first request, edit to effect", routing::split_world()),
    scenario!(
        detect::external_addresses_cause_no_look_up,
        "10,000 of them",
        Topology::pair("echo", App::TcpEcho, "tcp")
    ),
    scenario!(detect::server_speaks_first, "less than 200 ms", detect::banner_world()),
    scenario!(detect::idle_then_http, "gets its route after 5 s", detect::quiet_world()),
    scenario!(detect::opaque_tcp, "both reporters count bytes", Topology::pair("echo", App::TcpEcho, "tcp")),
    scenario!(balance::grpc_per_call, "one connection, every pod", balance::grpc_world()),
    scenario!(balance::web_socket, "an upgrade passes", Topology::pair("chat", App::Http, "http")),
    scenario!(balance::endpoints_removed_under_load, "no failure", balance::pool_world()),
    scenario!(
        balance::drained_under_load,
        "SIGTERM to a server's sidecar: no failure, exit 0",
        balance::pool_world()
    ),
    scenario!(
        lifecycle::applications_exit_under_load,
        "at once, with their sidecars still there: nothing is lost that they had not seen",
        balance::pool_world()
    ),
    scenario!(
        lifecycle::outbound_while_draining,
        "told by preStop and by SIGTERM: the application finishes, exit 0",
        Topology::pair("reviews", App::Http, "http")
    ),
    scenario!(
        lifecycle::pages_of_the_pod,
        "readiness, probes, merged metrics at their ports",
        lifecycle::pages_world()
    ),
    scenario!(
        destinations::pods_by_address,
        "headless or not: mutual TLS with the pod's own identity",
        destinations::stateful_world()
    ),
    scenario!(destinations::external_name, "by DNS, without TLS", destinations::partner_world()),
    scenario!(
        destinations::registry_only,
        "nothing but what is registered, and why",
        destinations::registry_world()
    ),
    scenario!(
        destinations::several_ports,
        "named ports at other numbers; a route for one port",
        destinations::ports_world()
    ),
    scenario!(
        destinations::without_selector,
        "endpoints that somebody else says",
        destinations::bare_world()
    ),
    scenario!(
        destinations::consumer_routes,
        "a namespace's own route replaces the service's",
        destinations::consumer_world()
    ),
    scenario!(rules::matches, "path, method, query, header, by value and expression", rules::matches_world()),
    scenario!(rules::changes, "rewrites, header changes, redirects", rules::changes_world()),
    scenario!(rules::time_outs, "504, UT; the server's side counts too", rules::slow_world()),
    scenario!(
        modes::policies_by_level,
        "mesh, namespace, workload, port: the nearest counts",
        modes::modes_world()
    ),
    scenario!(modes::own_tls_passes, "the certificate is the application's", modes::vault_world()),
    scenario!(
        modes::issuer_below_the_root,
        "an intermediate CA signs",
        Topology::pair("reviews", App::Http, "http").intermediate()
    ),
    scenario!(
        abuse::slow_clients,
        "who reads nothing costs little",
        Topology::pair("reviews", App::Http, "http")
    ),
    scenario!(
        abuse::malformed_http,
        "what two readers would read differently is refused",
        Topology::pair("reviews", App::Http, "http")
    ),
    scenario!(
        abuse::headers_of_one_hop,
        "they go no further, nor what a client claims to be",
        Topology::pair("reviews", App::Http, "http")
    ),
];

/// Plays the scenario of this name in a world of its own.
///
/// # Errors
/// When the story goes otherwise.
pub async fn play(name: &str, way: Way) -> Result<()> {
    let scenario = ALL.iter().find(|scenario| scenario.name == name).context("no such scenario")?;
    let world =
        Box::pin(World::start(&(scenario.topology)(), way)).await.context("the world did not start")?;
    let played = (scenario.play)(&world).await;
    played.with_context(|| format!("{name}: {}", scenario.shows))
}

/// Waits until the sum of a metric over some pods' sidecars is `expected`, exactly.
async fn add_up(
    world: &World,
    pods: &[&str],
    name: &str,
    labels: &[(&str, &str)],
    expected: u64,
) -> Result<()> {
    let what = format!("{name}{labels:?} of {pods:?} is {expected}");
    wait::until_ok(&what, Duration::from_secs(10), async || {
        let mut sum = 0.0;
        for pod in pods {
            sum += world.pod(pod)?.sidecar()?.metrics().await?.sum(name, labels);
        }
        ensure!(sum == expected as f64, "it is {sum}");
        Ok(())
    })
    .await
}

/// Prints a figure, past the test runner that keeps what tests print.
pub(crate) fn figure(name: &str, value: impl std::fmt::Display) {
    // Nobody may be reading.
    writeln!(std::io::stderr().lock(), "figure: {name}: {value}").unwrap_or_default();
}
