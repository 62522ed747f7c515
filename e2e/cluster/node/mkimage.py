"""Write a docker-archive image of one layer, with no engine.

    mkimage.py OUT.tar ROOTDIR --tag REF [--tag REF ...] [--entrypoint ARG ...]

ROOTDIR's content becomes the layer (gzip, owner root, fixed times, so equal input gives equal output).
"""
import argparse, gzip, hashlib, io, json, os, platform, tarfile

p = argparse.ArgumentParser()
p.add_argument("out"); p.add_argument("root")
p.add_argument("--tag", action="append", required=True)
p.add_argument("--entrypoint", nargs="*", default=[])
a = p.parse_args()

def root_owned(info):
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    return info

class Tee:
    """Hash the uncompressed layer while it is compressed."""
    def __init__(self, sink): self.sink, self.sum = sink, hashlib.sha256()
    def write(self, b): self.sum.update(b); return self.sink.write(b)

packed = io.BytesIO()
with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as z:
    tee = Tee(z)
    with tarfile.open(fileobj=tee, mode="w|", format=tarfile.GNU_FORMAT) as t:
        for base, dirs, files in os.walk(a.root):
            dirs.sort()
            links = [d for d in dirs if os.path.islink(os.path.join(base, d))]
            rel = os.path.relpath(base, a.root)
            if rel != ".":
                t.add(base, rel, recursive=False, filter=root_owned)
            for f in sorted(files + links):
                t.add(os.path.join(base, f), os.path.normpath(os.path.join(rel, f)), recursive=False, filter=root_owned)

config = json.dumps({
    "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()], "os": "linux",
    "config": {"Entrypoint": a.entrypoint,
               "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
    "history": [{"created_by": "mkimage.py"}],
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + tee.sum.hexdigest()]},
}).encode()
name = hashlib.sha256(config).hexdigest() + ".json"
manifest = json.dumps([{"Config": name, "RepoTags": a.tag, "Layers": ["layer.tar"]}]).encode()
with tarfile.open(a.out, "w") as t:
    for n, b in (("layer.tar", packed.getvalue()), (name, config), ("manifest.json", manifest)):
        i = tarfile.TarInfo(n); i.size = len(b)
        t.addfile(i, io.BytesIO(b))
