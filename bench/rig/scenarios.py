"""What is measured, and the figures that are to be reached."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    name: str
    what: str
    lane: str
    load: tuple         # arguments of `bench-load load`
    peers: tuple = ("direct", "envoy", "floor", "mesh")


ONE = ("--bytes", "1024")
RATE = 1000
SCENARIOS = {scenario.name: scenario for scenario in (
    Scenario("http1", "HTTP/1.1, 64 connections, closed loop", "http1", ("--kind", "http1", *ONE),
             ("direct", "envoy", "floor", "floor-captured", "mesh", "mesh-1")),
    Scenario("http1-rate", "HTTP/1.1, 64 connections, 1,000 requests a second", "http1",
             ("--kind", "http1", *ONE, "--rate", str(RATE)),
             ("direct", "envoy", "floor", "floor-captured", "mesh")),
    Scenario("http1-1000", "HTTP/1.1, 1,000 connections, closed loop", "http1",
             ("--kind", "http1", *ONE, "--connections", "1000")),
    Scenario("http1-large", "HTTP/1.1, 16 connections, answers of 1 MiB", "http1",
             ("--kind", "http1", "--bytes", str(1 << 20), "--connections", "16")),
    Scenario("http2", "HTTP/2, 64 connections, closed loop", "http2", ("--kind", "http2", *ONE)),
    Scenario("grpc", "gRPC calls, 64 connections, closed loop", "http2", ("--kind", "grpc", *ONE),
             ("direct", "envoy", "floor", "floor-captured", "mesh", "mesh-1")),
    Scenario("grpc-rate", "gRPC calls, 64 connections, 1,000 calls a second", "http2",
             ("--kind", "grpc", *ONE, "--rate", str(RATE)),
             ("direct", "envoy", "floor", "floor-captured", "mesh")),
    Scenario("grpc-stream", "messages on 64 gRPC streams, closed loop", "http2", ("--kind", "grpc-stream", *ONE)),
    Scenario("tcp", "HTTP/1.1 that nobody looks into, 64 connections, closed loop", "tcp", ("--kind", "http1", *ONE),
             ("direct", "envoy", "floor", "floor-captured", "mesh")),
    Scenario("tcp-rate", "the same at 1,000 requests a second", "tcp", ("--kind", "http1", *ONE, "--rate", str(RATE)),
             ("direct", "envoy", "floor", "floor-captured", "mesh")),
    Scenario("bulk", "bytes from the server to the client, 2 connections", "bulk", ("--kind", "bulk", "--connections", "2")),
    Scenario("connect", "a new connection for each request, 16 at a time", "tcp",
             ("--kind", "connect", *ONE, "--connections", "16"),
             ("direct", "envoy", "envoy-x25519", "floor", "mesh")),
    Scenario("idle", "1,000 HTTP/1.1 connections, 25 s after their only request", "http1",
             ("--kind", "idle", *ONE, "--connections", "1000")),
)}


@dataclass(frozen=True)
class Limit:
    """One figure: of the mesh, as a ratio to another peer unless `of` is None."""
    scenario: str
    figure: str
    of: str
    bound: float
    at_least: bool = False

    def says(self):
        sign = "at least" if self.at_least else "at most"
        of = f" of {self.of}" if self.of else ""
        return f"{self.scenario}: {self.figure} {sign} {self.bound:g}{of}"


LIMITS = (
    Limit("http1", "cost", "floor", 1.35), Limit("http1", "cost", "envoy", 0.65),
    Limit("http1", "speed", "envoy", 1.5, at_least=True),
    Limit("http1-rate", "cost", "floor", 1.35), Limit("http1-rate", "cost", "envoy", 0.45),
    Limit("http1-rate", "added p50", "envoy", 0.6), Limit("http1-rate", "p99", "envoy", 1.0),
    Limit("grpc", "cost", "floor", 1.4), Limit("grpc", "cost", "envoy", 0.8),
    Limit("grpc", "speed", "envoy", 1.4, at_least=True),
    Limit("grpc-rate", "cost", "floor", 1.4), Limit("grpc-rate", "cost", "envoy", 0.6),
    Limit("grpc-rate", "added p50", "envoy", 0.6), Limit("grpc-rate", "p99", "envoy", 1.0),
    Limit("tcp", "cost", "floor", 1.15), Limit("tcp-rate", "cost", "floor", 1.15),
    Limit("bulk", "cost", "envoy", 1.0),
    Limit("connect", "cost", "envoy", 0.65),
    Limit("http1", "cost", "mesh-1", 1.1), Limit("grpc", "cost", "mesh-1", 1.1),
    Limit("http1", "resident MiB", None, 20), Limit("grpc", "resident MiB", None, 20),
    Limit("idle", "KiB per connection", None, 24),
    Limit("start", "resident MiB", None, 12), Limit("start", "ready ms", None, 150),
)
