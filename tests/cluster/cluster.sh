#!/usr/bin/env bash
# A real one-node Kubernetes cluster on a plain Debian 12 machine: no docker engine, no registry.
#
#   cluster.sh deps | build | built [--api-only] | up [--api-only] | down [--purge] | status | kubeconfig | env
#   cluster.sh kubectl ARGS... | node CMD... (inside the node's namespaces) | load TAR... | pid NS POD [CONTAINER]
#
# --api-only: etcd, API server and controller manager, without node, kubelet, containerd and pods.
#
# The control plane and the node run in one network namespace and one mount namespace of their own
# (joined to the machine by a veth pair), so kube-proxy's rules, the pods' interfaces and the overlay
# mounts never touch the machine's own. PIDs and cgroups are the machine's.
#   CLUSTER_CACHE  binaries and images (default: ~/.cache/tracer-cluster)    CLUSTER_STATE  everything else (default: its state/)
#   CLUSTER_VERSION  default 1.35.4                            CLUSTER_JOBS   compiler jobs, default 2
#   CLUSTER_PROXY  iptables (default) or nftables
set -euo pipefail
BASE=$(cd "$(dirname "$0")" && pwd)
CACHE=${CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tracer-cluster}
STATE=${CLUSTER_STATE:-$CACHE/state}
V=${CLUSTER_VERSION:-1.35.4}
JOBS=${CLUSTER_JOBS:-2}
PROXY=${CLUSTER_PROXY:-iptables}
BIN=$CACHE/bin; IMG=$CACHE/images; PKI=$STATE/pki; LOG=$STATE/log; RUN=$STATE/run; NODE=$STATE/node
NODE_NAME=lab-node
HOST_IP=10.199.0.1; NODE_IP=10.199.0.2; POD_CIDR=10.244.0.0/16; SVC_CIDR=10.96.0.0/16
LINK=labk8s0
KCFG=$STATE/admin.kubeconfig
SOCK=/run/containerd/containerd.sock
export PATH=$BIN:$PATH:/usr/sbin:/sbin

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { say "error: $*"; exit 1; }
# One that was killed may be there a while longer, until somebody asks what became of it.
alive() { [ -s "$RUN/$1.pid" ] && grep -q '^State:.[^Z]' "/proc/$(cat "$RUN/$1.pid")/status" 2>/dev/null; }
innode() { nsenter -t "$(cat "$RUN/holder.pid")" -m -n -- "$@"; }
k() { kubectl --kubeconfig "$KCFG" "$@"; }

API_BINARIES="etcd kube-apiserver kube-controller-manager kubectl"
ALL_BINARIES="$API_BINARIES kube-scheduler kubelet kube-proxy"

# Whether all is there that takes long to build.
built() {
  local b l=$ALL_BINARIES; [ "${1:-}" = --api-only ] && l=$API_BINARIES
  for b in $l; do [ -x "$BIN/$b" ] || return 1; done
}

deps() {
  local need=()
  if [ "${1:-}" = --api-only ]; then
    command -v ip >/dev/null || need+=(iproute2)
    command -v openssl >/dev/null || need+=(openssl)
    [ ${#need[@]} = 0 ] && return 0
    say "apt-get install ${need[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${need[@]}" >/dev/null
    return 0
  fi
  command -v containerd >/dev/null || need+=(containerd)
  command -v runc >/dev/null || need+=(runc)
  [ -x /usr/lib/cni/bridge ] || need+=(containernetworking-plugins)
  command -v iptables >/dev/null || need+=(iptables)
  command -v nft >/dev/null || need+=(nftables)
  command -v conntrack >/dev/null || need+=(conntrack)
  command -v ip >/dev/null || need+=(iproute2)
  command -v busybox >/dev/null || need+=(busybox-static)
  command -v socat >/dev/null || need+=(socat)
  command -v openssl >/dev/null || need+=(openssl)
  command -v gcc >/dev/null || need+=(gcc libc6-dev)
  [ ${#need[@]} = 0 ] && return 0
  say "apt-get install ${need[*]}"
  # keep the packages' own daemons from starting (only matters where an init system runs)
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends "${need[@]}" >/dev/null
}

# Kubernetes itself, from its Go modules: k8s.io/kubernetes with every staging module replaced by
# its published version (the module's own replaces point into a source tree the module leaves out).
# etcd comes from the same module graph: Debian's 3.4.23 lacks progress requests, so that a watch with
# bookmarks and without a resourceVersion, and a watch with sendInitialEvents, would answer 500.
build() {
  mkdir -p "$BIN" "$CACHE/src"
  local want=() b l=$ALL_BINARIES; [ "${1:-}" = --api-only ] && l=$API_BINARIES
  for b in $l; do
    [ -x "$BIN/$b" ] || want+=("$b"); done
  [ ${#want[@]} = 0 ] && return 0
  command -v go >/dev/null || die "go is needed to build ${want[*]}"
  local d=$CACHE/src/k8s-$V sv=v0.${V#1.} src gm; mkdir -p "$d"; cd "$d"
  src=$(go mod download -json "k8s.io/kubernetes@v$V" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p'); gm=$src/go.mod
  { echo "module lab/k8s"; echo; grep -E '^go ' "$gm"; grep -E '^godebug ' "$gm" || true; echo
    awk '/^require \(/{p=1} p{print} /^\)/{p=0}' "$gm" | sed -E "s#(k8s.io/[a-z-]+) v0.0.0( |\$)#\1 $sv\2#"
    echo; echo "require k8s.io/kubernetes v$V"; echo; echo "replace ("
    grep -oE '^	k8s.io/[a-z-]+ => ./staging' "$gm" | awk -v s="$sv" '{print "\t" $1 " => " $1 " " s}'; echo ")"; } > go.mod
  [ -f go.sum ] || install -m 644 "$src/go.sum" go.sum
  local p=k8s.io/component-base/version q=k8s.io/client-go/pkg/version minor=${V#1.}; minor=${minor%%.*}
  local ld="-s -w" x; for x in "$p" "$q"; do
    ld+=" -X $x.gitVersion=v$V -X $x.gitMajor=1 -X $x.gitMinor=$minor -X $x.gitTreeState=clean -X $x.gitCommit=module -X $x.buildDate=1970-01-01T00:00:00Z"; done
  for b in "${want[@]}"; do
    local t=$SECONDS
    CGO_ENABLED=0 go build -mod=mod -buildvcs=false -p "$JOBS" -trimpath -ldflags "$ld" -o "$BIN/$b" "$([ $b = etcd ] && echo go.etcd.io/etcd/server/v3 || echo k8s.io/kubernetes/cmd/$b)"
    say "built $b in $((SECONDS-t)) s, $(stat -c %s "$BIN/$b") bytes"
  done
  cd "$BASE"
}

images() {
  mkdir -p "$IMG"
  if [ ! -s "$IMG/pause.tar" ]; then
    gcc -static -Os -s -o "$IMG/pause" "$BASE/lib/pause.c"
    python3 "$BASE/lib/mkimage.py" "$IMG/pause.tar" localhost/pause:1 --entry '["/pause"]' "$IMG/pause:/pause" >&2
  fi
  if [ ! -s "$IMG/busybox.tar" ]; then
    local l=() x; for x in $(busybox --list); do [ "$x" = busybox ] || l+=(--link "bin/$x=busybox"); done
    python3 "$BASE/lib/mkimage.py" "$IMG/busybox.tar" localhost/busybox:1 --entry '["/bin/sh"]' --dir www --dir root "${l[@]}" "$(command -v busybox):/bin/busybox" >&2
  fi
}

cert() { # name CN O SANs
  local n=$1 cn=$2 o=$3 san=${4:-}
  [ -s "$PKI/$n.crt" ] && return 0
  openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/$n.key" 2>/dev/null
  openssl req -new -key "$PKI/$n.key" -subj "/${o:+O=$o/}CN=$cn" -out "$PKI/$n.csr" 2>/dev/null
  { echo "keyUsage=critical,digitalSignature,keyEncipherment"; echo "extendedKeyUsage=clientAuth,serverAuth"
    [ -z "$san" ] || echo "subjectAltName=$san"; } > "$PKI/$n.ext"
  openssl x509 -req -in "$PKI/$n.csr" -CA "$PKI/ca.crt" -CAkey "$PKI/ca.key" -CAcreateserial -days 3650 -extfile "$PKI/$n.ext" -out "$PKI/$n.crt" 2>/dev/null
}
kubeconf() { # file cert
  cat > "$1" <<Y
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://$NODE_IP:6443", certificate-authority-data: "$(base64 -w0 "$PKI/ca.crt")"}}]
users: [{name: u, user: {client-certificate-data: "$(base64 -w0 "$PKI/$2.crt")", client-key-data: "$(base64 -w0 "$PKI/$2.key")"}}]
contexts: [{name: lab, context: {cluster: lab, user: u}}]
current-context: lab
Y
  chmod 600 "$1"
}
pki() {
  mkdir -p "$PKI"; chmod 700 "$PKI"
  if [ ! -s "$PKI/ca.crt" ]; then
    openssl ecparam -name prime256v1 -genkey -noout -out "$PKI/ca.key" 2>/dev/null
    openssl req -x509 -new -key "$PKI/ca.key" -subj /CN=lab-ca -days 3650 -out "$PKI/ca.crt" -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature 2>/dev/null
    openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null; openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub" 2>/dev/null
  fi
  cert apiserver kube-apiserver "" "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:10.96.0.1,IP:127.0.0.1,IP:$NODE_IP"
  cert apiserver-kubelet-client kube-apiserver-kubelet-client system:masters
  cert admin lab-admin system:masters
  cert controller-manager system:kube-controller-manager ""
  cert scheduler system:kube-scheduler ""
  cert proxy system:kube-proxy ""
  cert kubelet "system:node:$NODE_NAME" system:nodes "DNS:$NODE_NAME,IP:$NODE_IP"
  kubeconf "$KCFG" admin
  local c; for c in controller-manager scheduler proxy kubelet; do kubeconf "$STATE/$c.kubeconfig" $c; done
}

holder() {
  alive holder && return 0
  mkdir -p "$RUN" "$LOG" "$NODE"/{kubelet,containerd-root,containerd-run,cni-conf,pods,containers,netns,lib-cni,etcd}
  mkdir -p /var/lib/kubelet /var/lib/containerd /run/containerd /etc/cni/net.d /var/log/pods /var/log/containers /run/netns /var/lib/cni
  setsid unshare -m -n --propagation private -- sh -c 'mount --make-rshared / && exec sleep 1000000' </dev/null >/dev/null 2>&1 &
  echo $! > "$RUN/holder.pid"
  local p; p=$(cat "$RUN/holder.pid"); for _ in $(seq 50); do grep -q ' / / .*shared:' /proc/$p/mountinfo && break; sleep 0.1; done
  local m; for m in kubelet:/var/lib/kubelet containerd-root:/var/lib/containerd containerd-run:/run/containerd cni-conf:/etc/cni/net.d \
    pods:/var/log/pods containers:/var/log/containers netns:/run/netns lib-cni:/var/lib/cni; do innode mount --bind "$NODE/${m%%:*}" "${m#*:}"; done
  ip link del $LINK 2>/dev/null || true
  ip link add $LINK type veth peer name eth0 netns "$p"
  ip addr add $HOST_IP/24 dev $LINK; ip link set $LINK up
  innode sh -ec "ip link set lo up; ip addr add $NODE_IP/24 dev eth0; ip link set eth0 up; ip route add default via $HOST_IP
    echo 1 > /proc/sys/net/ipv4/ip_forward
    for f in /proc/sys/net/bridge/bridge-nf-call-iptables /proc/sys/net/bridge/bridge-nf-call-ip6tables; do [ -e \$f ] && echo 1 > \$f; done; true"
  ip route replace $POD_CIDR via $NODE_IP dev $LINK; ip route replace $SVC_CIDR via $NODE_IP dev $LINK
}

start() { # name cmd...
  local n=$1; shift
  alive "$n" && return 0
  setsid nsenter -t "$(cat "$RUN/holder.pid")" -m -n -- "$@" </dev/null >"$LOG/$n.log" 2>&1 &
  echo $! > "$RUN/$n.pid"
}
waitfor() { # seconds what cmd...
  local end=$((SECONDS+$1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || die "$what not ready"; sleep 0.3; done
}

configs() {
  cat > "$STATE/containerd.toml" <<T
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "$SOCK"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true   # works without CAP_SYS_RESOURCE too
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
T
  cat > "$NODE/cni-conf/10-lab.conflist" <<J
{"cniVersion": "0.4.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
  cat > "$STATE/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$SOCK
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $PKI/kubelet.crt
tlsPrivateKeyFile: $PKI/kubelet.key
evictionHard: {nodefs.available: 300Mi, imagefs.available: 300Mi, memory.available: 100Mi}
imageGCHighThresholdPercent: 100   # images are loaded before anybody uses them, and there is nowhere to get them again
syncFrequency: 5s
nodeStatusUpdateFrequency: 5s
Y
}

up() {
  local t0=$SECONDS
  deps "${1:-}"; build "${1:-}"; [ "${1:-}" = --api-only ] || images
  mkdir -p "$STATE" "$RUN" "$LOG"
  pki; holder; configs
  start etcd etcd --data-dir "$NODE/etcd/data" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
  [ "${1:-}" = --api-only ] || start containerd containerd -c "$STATE/containerd.toml"
  start kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address=$NODE_IP --secure-port=6443 \
    --service-cluster-ip-range=$SVC_CIDR --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file="$PKI/sa.pub" --service-account-signing-key-file="$PKI/sa.key" \
    --kubelet-client-certificate="$PKI/apiserver-kubelet-client.crt" --kubelet-client-key="$PKI/apiserver-kubelet-client.key" \
    --kubelet-certificate-authority="$PKI/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true --v=1
  waitfor 90 kube-apiserver k get --raw /readyz
  say "API server ready after $((SECONDS-t0)) s"
  start kube-controller-manager kube-controller-manager --kubeconfig="$STATE/controller-manager.kubeconfig" --leader-elect=false \
    --allocate-node-cidrs=true --cluster-cidr=$POD_CIDR --service-cluster-ip-range=$SVC_CIDR --root-ca-file="$PKI/ca.crt" \
    --service-account-private-key-file="$PKI/sa.key" --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
    --use-service-account-credentials=true --v=1
  if [ "${1:-}" = --api-only ]; then waitfor 30 "default service account" k -n default get sa default; say "API only, ready after $((SECONDS-t0)) s; export KUBECONFIG=$KCFG"; return 0; fi
  start kube-scheduler kube-scheduler --kubeconfig="$STATE/scheduler.kubeconfig" --authentication-kubeconfig="$STATE/scheduler.kubeconfig" \
    --authorization-kubeconfig="$STATE/scheduler.kubeconfig" --leader-elect=false --v=1
  waitfor 30 containerd innode ctr --address $SOCK version
  local i; for i in "$IMG"/*.tar; do load "$i"; done
  start kubelet kubelet --config="$STATE/kubelet.yaml" --kubeconfig="$STATE/kubelet.kubeconfig" --hostname-override=$NODE_NAME \
    --node-ip=$NODE_IP --root-dir=/var/lib/kubelet --v=2
  start kube-proxy kube-proxy --kubeconfig="$STATE/proxy.kubeconfig" --hostname-override=$NODE_NAME --cluster-cidr=$POD_CIDR \
    --proxy-mode="$PROXY" --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 --v=1
  waitfor 90 "node $NODE_NAME" sh -c "'$BIN/kubectl' --kubeconfig '$KCFG' get node $NODE_NAME -o jsonpath='{.status.conditions[?(@.type==\"Ready\")].status}' | grep -q True"
  waitfor 30 "default service account" k -n default get sa default
  say "node Ready after $((SECONDS-t0)) s; export KUBECONFIG=$KCFG"
}

pid() { # namespace pod [container]: the PID, as the machine sees it, of a container's first process
  local id; id=$(k -n "$1" get pod "$2" -o json | python3 -c 'import json,sys; s=json.load(sys.stdin)["status"]["containerStatuses"]; print(next(c["containerID"].split("//")[1] for c in s if len(sys.argv)<2 or c["name"]==sys.argv[1]))' ${3:+"$3"})
  innode ctr --address $SOCK -n k8s.io tasks ls | awk -v c="$id" '$1==c{print $2}'
}
load() { local f; f=$(realpath "$1"); set -- "$f"; innode ctr --address $SOCK -n k8s.io images import --digests=false "$1" >/dev/null || die "import of $1"; say "loaded $(basename "$1")"; }

down() {
  if alive holder; then
    local h mnt p; h=$(cat "$RUN/holder.pid"); mnt=$(readlink /proc/$h/ns/mnt)
    for p in kubelet kube-proxy kube-scheduler kube-controller-manager kube-apiserver; do alive $p && kill "$(cat "$RUN/$p.pid")" || true; done
    sleep 1
    if alive containerd; then
      for p in $(innode ctr --address $SOCK -n k8s.io tasks ls -q 2>/dev/null); do innode ctr --address $SOCK -n k8s.io tasks kill -a -s KILL "$p" 2>/dev/null || true; done
      kill "$(cat "$RUN/containerd.pid")" || true
    fi
    alive etcd && kill "$(cat "$RUN/etcd.pid")" || true
    sleep 1
    # whatever is left of this cluster: processes in its pod cgroups, then those in its mount namespace
    for p in $(cat $(find /sys/fs/cgroup/*/kubepods -name cgroup.procs 2>/dev/null) /dev/null 2>/dev/null | sort -un); do kill -9 "$p" 2>/dev/null || true; done
    for p in $(ls /proc | grep -E '^[0-9]+$'); do [ "$(readlink /proc/$p/ns/mnt 2>/dev/null)" = "$mnt" ] && [ "$p" != "$h" ] && kill -9 "$p" 2>/dev/null || true; done
    kill -9 "$h" 2>/dev/null || true
    sleep 0.5
  fi
  rm -f "$RUN"/*.pid
  ip link del $LINK 2>/dev/null || true
  find /sys/fs/cgroup/*/kubepods /sys/fs/cgroup/*/system.slice/containerd.service -depth -type d -exec rmdir {} + 2>/dev/null || true
  if [ "${1:-}" = --purge ]; then rm -rf "$STATE"; else rm -rf "$NODE"; fi
  say "down"
}

status() {
  local n; for n in holder etcd kube-apiserver kube-controller-manager kube-scheduler containerd kubelet kube-proxy; do
    if alive $n; then printf '%-26s pid %-7s rss %s MiB\n' $n "$(cat "$RUN/$n.pid")" "$(( $(awk '/VmRSS/{print $2}' /proc/$(cat "$RUN/$n.pid")/status) / 1024 ))"; else printf '%-26s down\n' $n; fi; done
  if alive kube-apiserver; then k get nodes,pods -A -o wide; fi
}

case "${1:-}" in
  deps) deps ;; build) deps; build; images ;; built) shift; built "$@" ;; up) shift; up "$@" ;; down) shift; down "$@" ;; status) status ;;
  kubeconfig) echo "$KCFG" ;; env) echo "export KUBECONFIG=$KCFG PATH=$BIN:\$PATH" ;;
  kubectl) shift; k "$@" ;; node) shift; innode "$@" ;; pid) shift; pid "$@" ;; load) shift; for i in "$@"; do load "$i"; done ;;
  *) sed -n '2,15p' "$0"; exit 2 ;;
esac
