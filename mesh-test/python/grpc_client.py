"""A gRPC application without a sidecar: gRPC itself asks the control plane.

Started with a target; for each line "COUNT" on standard input it makes so many calls and writes one line of JSON:
how many answers each pod gave, and what went wrong. Messages are bytes, so that no generated code is needed.
"""

import collections
import json
import sys

import grpc
import grpc.experimental


def main() -> None:
    # Plaintext where the control plane says nothing of TLS.
    plaintext = grpc.experimental.insecure_channel_credentials()
    channel = grpc.secure_channel(sys.argv[1], grpc.xds_channel_credentials(plaintext))
    echo = channel.unary_unary("/echo.Echo/Call")
    for line in sys.stdin:
        pods = collections.Counter()
        errors = collections.Counter()
        for number in range(int(line)):
            message = b"call %d" % number
            try:
                answer, call = echo.with_call(message, timeout=10, wait_for_ready=True)
                if answer != message:
                    raise ValueError(f"another answer: {answer!r}")
                pods[dict(call.initial_metadata())["x-pod"]] += 1
            except grpc.RpcError as error:
                errors[f"{error.code()}: {error.details()}"] += 1
        print(json.dumps({"pods": pods, "errors": errors}), flush=True)


main()
