"""The proxies that are compared: how each of them is made a pair of sidecars.

    client -> [plaintext in, mutual TLS out] -> [mutual TLS in, plaintext out] -> backend

Each has a pair of network namespaces of its own, with a backend of its own."""

import json
import shutil
import subprocess

from .place import CLIENT, NAME, PORTS, SERVER

# What a lane's proxies understand of what passes.
LANES = ("http1", "http2", "tcp", "bulk")
OUTBOUND = {lane: 15101 + at for at, lane in enumerate(LANES)}
INBOUND = {lane: 15201 + at for at, lane in enumerate(LANES)}


class Peer:
    def __init__(self, name, what):
        self.name, self.what = name, what

    def identities(self):
        return {side: f"spiffe://cluster.local/ns/bench/sa/{side}" for side in ("client", "server")}

    def prepare(self, rig):
        """What is there before the pair starts."""

    def commands(self, rig):
        """The arguments of each side's proxy."""
        return {}

    def target(self, lane):
        return f"127.0.0.1:{OUTBOUND[lane]}"

    def ready(self):
        """Who answers when all is ready: (side, address)."""
        return [("client", f"127.0.0.1:{port}") for port in OUTBOUND.values()]


class Direct(Peer):
    """No proxy at all."""

    def target(self, lane):
        return f"{SERVER}:{PORTS[lane]}"

    def ready(self):
        return []


class Floor(Peer):
    """The barest relay: see bench-floor."""

    def commands(self, rig):
        def argv(side):
            out = side == "client"
            routes = []
            for lane, listen, to in self.routes(out):
                kind = lane if lane in ("http1", "http2") else "tcp"
                routes += ["--route", f"{'out' if out else 'in'},{kind},{listen},{to}"]
            return [rig.program("bench-floor"), "--certificate", rig.folder / f"{side}.pem", "--key", rig.folder / f"{side}.key",
                    "--root", rig.folder / "root.pem", "--name", NAME, *routes]
        return {side: argv(side) for side in ("server", "client")}

    def routes(self, out):
        """(lane, where to listen, where to send)"""
        for lane in LANES:
            yield lane, f"127.0.0.1:{OUTBOUND[lane]}" if out else f"{SERVER}:{INBOUND[lane]}", \
                f"{SERVER}:{INBOUND[lane]}" if out else f"127.0.0.1:{PORTS[lane]}"


class CapturedFloor(Floor):
    """The same, captured as a pod's traffic is: what the kernel's address translation costs any sidecar."""

    def prepare(self, rig):
        for path in (rig.folder, *rig.folder.iterdir()):
            shutil.chown(path, Mesh.UID, Mesh.UID)
        for side in ("client", "server"):
            rig.place.inside(side, rig.program("mesh-proxy"), "redirect", "--verify")

    def commands(self, rig):
        return {side: [*Mesh.AS_USER, *argv, "--captured", 15001 if side == "client" else 15006]
                for side, argv in super().commands(rig).items()}

    def routes(self, out):
        for lane in LANES:
            yield lane, f"{Mesh.SERVICE}:{Mesh.SERVICE_PORTS[lane]}" if out else f"{SERVER}:{PORTS[lane]}", \
                f"{SERVER}:{PORTS[lane]}" if out else f"127.0.0.1:{PORTS[lane]}"

    def target(self, lane):
        return f"{Mesh.SERVICE}:{Mesh.SERVICE_PORTS[lane]}"

    def ready(self):
        return [("client", "127.0.0.1:15001"), ("server", "127.0.0.1:15006")]


class Mesh(Peer):
    """mesh-proxy as a pod has it: captured, configured by mesh-control, with a certificate from it. The route splits by
    weight; the server's side asks for the client's identity; all metrics are on. Nothing is set for the benchmark."""

    UID = 1337
    AS_USER = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups")
    SERVICE = "10.96.0.10"
    SERVICE_PORTS = {"http1": 80, "http2": 81, "tcp": 90, "bulk": 91}

    def __init__(self, name, what, workers=2):
        super().__init__(name, what)
        self.workers = workers

    def prepare(self, rig):
        self.folder = rig.folder / "mesh"
        for part in ("manifests", "state", "client", "server"):
            (self.folder / part).mkdir(parents=True)
        (self.folder / "manifests" / "bench.yaml").write_text(manifests(self.SERVICE, self.SERVICE_PORTS))
        for side in ("client", "server"):
            rig.place.inside(side, rig.program("mesh-proxy"), "redirect", "--verify")
        self.control = rig.place.add_control()
        rig.start("control", "control", [rig.program("mesh-control"), "--config-dir", self.folder / "manifests",
                                         "--state-dir", self.folder / "state", "--xds-address", "0.0.0.0:15012",
                                         "--admin-address", "127.0.0.1:15014"])
        rig.wait_for("control", "127.0.0.1:15012", "control")

    def commands(self, rig):
        return {side: self.argv(rig, side, ip) for side, ip in (("server", SERVER), ("client", CLIENT))}

    def argv(self, rig, side, ip):
        own = self.folder / side
        token = subprocess.run([rig.program("meshctl"), "token", "--state-dir", self.folder / "state", "--namespace", "bench",
                                "--pod", side, "--service-account", side], check=True, capture_output=True, text=True).stdout
        (own / "token").write_text(token)
        (own / "token").chmod(0o600)
        shutil.copy(self.folder / "state" / "root-cert.pem", own / "root.pem")
        for path in (own, *own.iterdir()):
            shutil.chown(path, self.UID, self.UID)
        return [*self.AS_USER, rig.program("mesh-proxy"), "run",
                "--capture", f"--control={self.control[side]}:15012", f"--trust-bundle={own / 'root.pem'}", f"--token-file={own / 'token'}",
                "--namespace=bench", f"--pod={side}", f"--service-account={side}", f"--pod-ip={ip}", f"--state-dir={own}",
                f"--workers={self.workers}"]

    def target(self, lane):
        return f"{self.SERVICE}:{self.SERVICE_PORTS[lane]}"

    def ready(self):
        # Only what is ready answers this page with 200; the port opens before.
        return [(side, "http://127.0.0.1:15021/healthz/ready") for side in ("client", "server")]


def manifests(service, ports):
    protocols = {"http1": "http", "http2": "grpc", "tcp": "tcp", "bulk": "tcp"}

    def pod(name, ip):
        return {"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "bench",
                             "labels": {"app": name, "version": "v1", "security.istio.io/tlsMode": "istio"}},
                "spec": {"serviceAccountName": name, "nodeName": "node", "containers": []},
                "status": {"phase": "Running", "podIP": ip}}

    def backend(name, ip):
        named = [(f"{protocols[lane]}-{lane}", port, PORTS[lane]) for lane, port in ports.items()]
        return [
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "bench"},
             "spec": {"clusterIP": ip, "selector": {"app": "server"},
                      "ports": [{"name": port, "port": at, "targetPort": to} for port, at, to in named]}},
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
             "metadata": {"name": f"{name}-1", "namespace": "bench", "labels": {"kubernetes.io/service-name": name}},
             "addressType": "IPv4", "ports": [{"name": port, "port": to} for port, _, to in named],
             "endpoints": [{"addresses": [SERVER], "conditions": {"ready": True},
                            "targetRef": {"kind": "Pod", "name": "server", "namespace": "bench"}}]}]

    def route(lane):
        return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": lane, "namespace": "bench"},
                "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "backend", "port": ports[lane]}],
                         "rules": [{"backendRefs": [{"name": "backend-v1", "port": ports[lane], "weight": 90},
                                                    {"name": "backend-v2", "port": ports[lane], "weight": 10}]}]}}

    policy = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
              "metadata": {"name": "default", "namespace": "bench"}, "spec": {"mtls": {"mode": "STRICT"}}}
    objects = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bench"}}, policy,
               pod("client", CLIENT), pod("server", SERVER), *backend("backend", service),
               *backend("backend-v1", "10.96.0.11"), *backend("backend-v2", "10.96.0.12"), route("http1"), route("http2")]
    return "\n---\n".join(map(json.dumps, objects))
