//! Every scenario on loopback: real processes, explicit ports, no capture.

use mesh_test::scenario;
use mesh_test::world::Way;

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() -> anyhow::Result<()> {
                scenario::play(stringify!($name), Way::Loopback).await
            }
        )*

        #[test]
        fn every_scenario_is_played() {
            let played = [$(stringify!($name)),*];
            let all: Vec<&str> = scenario::ALL.iter().map(|scenario| scenario.name).collect();
            assert_eq!(played.as_slice(), all);
        }
    };
}

scenarios! {
    split_by_weight,
    split_edited_under_load,
    canary_by_header,
    metrics_are_exact,
    a_broken_file_changes_nothing,
    plaintext_to_strict,
    clients_without_right,
    servers_without_right,
    certificates_rotate_under_load,
    bytes_are_tls,
    control_killed_under_load,
    killed_without_control,
    callers_without_right,
    two_controls_agree,
    figures,
    external_addresses_cause_no_look_up,
    server_speaks_first,
    idle_then_http,
    opaque_tcp,
    grpc_per_call,
    web_socket,
    endpoints_removed_under_load,
    drained_under_load,
    applications_exit_under_load,
    outbound_while_draining,
    pages_of_the_pod,
    pods_by_address,
    external_name,
    registry_only,
    several_ports,
    without_selector,
    consumer_routes,
    matches,
    changes,
    time_outs,
    policies_by_level,
    own_tls_passes,
    issuer_below_the_root,
    slow_clients,
    malformed_http,
    headers_of_one_hop,
}
