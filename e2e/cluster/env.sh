# Sourced by the scripts here: versions, and where everything goes. WORK is given by `e2e`.
: "${WORK:?the folder for everything that is made}"
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
KIND_VERSION=v0.33.0
HELM_VERSION=v4.3.1
K8S_VERSION=v1.35.4
COREDNS_VERSION=v1.15.0
GATEWAY_API_VERSION=v1.5.1
mkdir -p "$WORK"/{bin,img,log,podman}
export GOBIN=$WORK/bin CGO_ENABLED=0
export PATH=$WORK/bin:$PATH:/usr/local/go/bin:/usr/sbin:/sbin
say() { echo "[$SECONDS s] $*" >&2; }
need_go() {
    command -v go >/dev/null || { echo "$1 is missing, and there is no Go to build it with: install $1, or Go 1.25 or later" >&2; exit 1; }
}
install_packages() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "install these programs first: $*" >&2; exit 1; }
    say "installing $*"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "$@"; } >"$WORK/log/packages.log" 2>&1 ||
        { tail -5 "$WORK/log/packages.log" >&2; exit 1; }
}
