"""Envoy with the configuration of a sidecar: beside the router the filters that Istio puts there, as far as the stock
build has them (Istio's own for statistics and metadata are not in it), the default retry policy, resumed TLS sessions."""

import json

from .peers import INBOUND, LANES, OUTBOUND, Peer
from .place import NAME, PORTS, SERVER

TYPE = "type.googleapis.com/envoy.extensions."


class Envoy(Peer):
    def __init__(self, name, what, groups=("X25519MLKEM768",)):
        super().__init__(name, what)
        self.groups = list(groups)

    def commands(self, rig):
        out = {}
        for side in ("server", "client"):
            path = rig.folder / f"{side}.json"
            path.write_text(json.dumps(self.configuration(rig, side), indent=1))
            out[side] = [rig.program("envoy"), "-c", path, "--concurrency", "2", "--disable-hot-restart", "-l", "error"]
        return out

    def configuration(self, rig, side):
        listeners, clusters = [], []
        for lane in LANES:
            out = side == "client"
            chain = {"filters": [self.http(side, lane) if lane in ("http1", "http2") else proxy(lane)]}
            at = ("127.0.0.1", OUTBOUND[lane]) if out else (SERVER, INBOUND[lane])
            listener = {"name": lane, "address": address(*at), "filter_chains": [chain]}
            to = (SERVER, INBOUND[lane]) if out else ("127.0.0.1", PORTS[lane])
            limits = {"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 1000000, "max_retries": 1000}
            cluster = {"name": lane, "type": "STATIC", "connect_timeout": "5s", "circuit_breakers": {"thresholds": [limits]},
                       "load_assignment": {"cluster_name": lane, "endpoints": [
                           {"lb_endpoints": [{"endpoint": {"address": address(*to)}}]}]}}
            if out:
                cluster["transport_socket"] = self.tls(rig, side, lane)
            else:
                chain["transport_socket"] = self.tls(rig, side, lane)
                chain["filter_chain_match"] = {"transport_protocol": "tls"}
                listener["listener_filters"] = [typed("envoy.filters.listener.tls_inspector",
                                                      "filters.listener.tls_inspector.v3.TlsInspector")]
            if lane in ("http1", "http2"):
                version = "http_protocol_options" if lane == "http1" else "http2_protocol_options"
                kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
                cluster["typed_extension_protocol_options"] = {
                    kind: {"@type": f"type.googleapis.com/{kind}", "explicit_http_config": {version: {}}}}
            listeners.append(listener)
            clusters.append(cluster)
        return {"node": {"id": side, "cluster": "bench"}, "static_resources": {"listeners": listeners, "clusters": clusters}}

    def tls(self, rig, side, lane):
        other = self.identities()["server" if side == "client" else "client"]
        common = {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3",
                           "ecdh_curves": self.groups},
            "tls_certificates": [{"certificate_chain": {"filename": str(rig.folder / f"{side}.pem")},
                                  "private_key": {"filename": str(rig.folder / f"{side}.key")}}],
            "validation_context": {"trusted_ca": {"filename": str(rig.folder / "root.pem")},
                                   "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": other}}]}}
        alpn = {"http1": ["http/1.1"], "http2": ["h2"]}.get(lane)
        if alpn:
            common["alpn_protocols"] = alpn
        if side == "client":
            return typed("envoy.transport_sockets.tls", "transport_sockets.tls.v3.UpstreamTlsContext",
                         sni=NAME, common_tls_context=common)
        return typed("envoy.transport_sockets.tls", "transport_sockets.tls.v3.DownstreamTlsContext",
                     require_client_certificate=True, common_tls_context=common)

    def http(self, side, lane):
        route = {"cluster": lane, "timeout": "0s"}
        filters = [typed("envoy.filters.http.grpc_stats", "filters.http.grpc_stats.v3.FilterConfig", emit_filter_state=True)]
        if side == "client":
            route["retry_policy"] = {
                "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
                "num_retries": 2, "retriable_status_codes": [503]}
            filters += [typed("envoy.filters.http.fault", "filters.http.fault.v3.HTTPFault"),
                        typed("envoy.filters.http.cors", "filters.http.cors.v3.Cors")]
        else:
            everyone = {"permissions": [{"any": True}], "principals": [{"any": True}]}
            filters.insert(0, typed("envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC",
                                    rules={"action": "ALLOW", "policies": {"everyone": everyone}}))
        filters.append(typed("envoy.filters.http.router", "filters.http.router.v3.Router"))
        hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]
        kind = "filters.network.http_connection_manager.v3.HttpConnectionManager"
        return typed("envoy.filters.network.http_connection_manager", kind, stat_prefix=f"{side}_{lane}", codec_type="AUTO",
                     route_config={"name": "routes", "virtual_hosts": hosts}, http_filters=filters)


def proxy(lane):
    return typed("envoy.filters.network.tcp_proxy", "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=lane, cluster=lane)


def typed(name, kind, **configuration):
    return {"name": name, "typed_config": {"@type": TYPE + kind, **configuration}}


def address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}
