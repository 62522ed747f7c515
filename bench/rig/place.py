"""Where a pair of sidecars is measured: two network namespaces, as two pods are, joined by a pair of virtual Ethernet
devices. Client and first proxy in one of them, second proxy and backend in the other."""

import os
import subprocess

CLIENT, SERVER = "10.77.0.1", "10.77.0.2"
# The backend, by what it speaks. The third is HTTP/1.1 for those who do not look into it.
PORTS = {"http1": 18080, "http2": 18081, "tcp": 18082, "bulk": 18083}
NAME = "backend.bench.svc"


def run(*argv):
    subprocess.run(argv, check=True, capture_output=True)


class Place:
    def __init__(self, name):
        self.names = {side: f"bench-{os.getpid()}-{name}-{side}" for side in ("client", "server")}
        for side in self.names:
            run("ip", "netns", "add", self.names[side])
            self.inside(side, "ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "wire", "netns", self.names["client"], "type", "veth",
            "peer", "name", "wire", "netns", self.names["server"])
        for side, own, other in (("client", CLIENT, SERVER), ("server", SERVER, CLIENT)):
            self.inside(side, "ip", "address", "add", own + "/24", "dev", "wire")
            self.inside(side, "ip", "link", "set", "wire", "up")
            self.inside(side, "ip", "route", "add", "default", "via", other)

    def add_control(self):
        """One more namespace, for a control plane, with a wire of its own to each side. Its addresses, by side."""
        self.names["control"] = self.names["client"].replace("client", "control")
        run("ip", "netns", "add", self.names["control"])
        self.inside("control", "ip", "link", "set", "lo", "up")
        addresses = {}
        for net, side in ((78, "client"), (79, "server")):
            run("ip", "link", "add", "control", "netns", self.names[side], "type", "veth",
                "peer", "name", side, "netns", self.names["control"])
            for place, device, own in ((side, "control", 1), ("control", side, 2)):
                self.inside(place, "ip", "address", "add", f"10.{net}.0.{own}/24", "dev", device)
                self.inside(place, "ip", "link", "set", device, "up")
            addresses[side] = f"10.{net}.0.2"
        return addresses

    def prefix(self, side):
        return ["ip", "netns", "exec", self.names[side]]

    def inside(self, side, *argv):
        done = subprocess.run([*self.prefix(side), *argv], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, argv))}: {done.stderr.strip()}")
        return done.stdout

    def close(self):
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def certificates(folder, identities):
    """A root, and a leaf for each side, P-256, with a SPIFFE URI and a DNS name, as a mesh has them."""
    def openssl(*argv):
        subprocess.run(["openssl", *argv], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "root.key", "-out", "root.pem", "-days", "2", "-subj", "/O=bench",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for side, identity in identities.items():
        (folder / f"{side}.ext").write_text(
            f"subjectAltName=critical,URI:{identity},DNS:{NAME}\nkeyUsage=critical,digitalSignature\n"
            "extendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE\n")
        openssl("req", *key, "-keyout", f"{side}.key", "-out", f"{side}.csr", "-subj", "/O=bench")
        openssl("x509", "-req", "-in", f"{side}.csr", "-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial",
                "-days", "1", "-extfile", f"{side}.ext", "-out", f"{side}.pem")
