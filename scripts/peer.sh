#!/bin/sh
# The peers that Arctern is compared with: Podman + runc + CRIU, from Debian sid, in a folder.
#
#   peer.sh setup            make the folder (once; half a minute), print its path
#   peer.sh criu ARGS…       CRIU on processes of this machine
#   peer.sh start            a private world (mount, pid, network namespace) for Podman
#   peer.sh in CMD ARGS…     run a command in that world (`peer.sh in podman …`)
#   peer.sh stop             end the world and everything that runs in it
#   peer.sh versions         what there is
#   peer.sh remove           delete the folder
#
# The folder is $ARCTERN_CACHE/peer (ARCTERN_CACHE defaults to /var/cache/arctern). When it cannot
# be had, `setup` says why on stderr and exits 69 (EX_UNAVAILABLE).
set -eu

cache=${ARCTERN_CACHE:-/var/cache/arctern}
root=$cache/peer
run=${ARCTERN_PEER_RUN:-/run/arctern-peer}
mirror=${ARCTERN_PEER_MIRROR:-http://deb.debian.org/debian}

unavailable() {
    echo "peer: not available: $*" >&2
    exit 69
}

setup() {
    if [ -x "$root/usr/sbin/criu" ] && [ -x "$root/usr/bin/podman" ] && [ -e "$root/.complete" ]; then
        return 0
    fi
    [ "$(id -u)" = 0 ] || unavailable "must be root to make the folder"
    command -v mmdebstrap >/dev/null || unavailable "mmdebstrap is not installed (make install-deps)"
    mkdir -p "$cache"
    exec 9>"$cache/peer.lock"
    flock 9
    if [ -e "$root/.complete" ]; then
        return 0
    fi
    rm -rf "$root.tmp" "$root"
    log=$cache/peer-setup.log
    # The archive's valid-until date is not checked: the folder may be made on a machine whose clock
    # is off, and the signatures are checked all the same.
    if ! mmdebstrap --variant=minbase \
        --aptopt='Acquire::Check-Valid-Until "false"' --dpkgopt=force-unsafe-io \
        --include=criu,libcriu2,podman,crun,runc,netavark,iproute2,nftables,iptables,ca-certificates \
        sid "$root.tmp" "$mirror" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -rf "$root.tmp"
        unavailable "mmdebstrap of Debian sid failed ($log)"
    fi
    mkdir -p "$root.tmp/etc/containers"
    cat >"$root.tmp/etc/containers/containers.conf" <<'CONF'
[containers]
pids_limit = 0
default_ulimits = ["nofile=20000:20000", "nproc=9000:9000"]

[engine]
runtime = "runc"
events_logger = "file"

[network]
network_backend = "netavark"
CONF
    touch "$root.tmp/.complete"
    mv "$root.tmp" "$root"
    flock -u 9
    exec 9>&-
}

# CRIU sees the mounts, the /proc and the files of this machine: only its program and libraries
# come from the folder.
criu() {
    lib=$root/usr/lib/x86_64-linux-gnu
    exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$lib:$root/usr/lib" \
        --argv0 criu "$root/usr/sbin/criu" "$@"
}

# Runs as pid 1 of the world.
world() {
    exec 8>"$1"
    mount --make-rprivate /
    mount --bind "$root" "$root"
    cd "$root"
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount --rbind /dev dev
    mount -t tmpfs tmpfs run
    mount -t tmpfs tmpfs tmp
    mkdir -p tmp/share
    if [ -n "${ARCTERN_PEER_SHARE:-}" ]; then
        mount --bind "$ARCTERN_PEER_SHARE" tmp/share
    fi
    mkdir -p .old
    pivot_root . .old
    cd /
    umount -l /.old
    ip link set lo up
    echo ready >&8
    exec 8>&-
    # Pid 1 reaps what is orphaned into it and waits for its end.
    trap 'exit 0' TERM
    while :; do
        sleep 1000000 &
        wait $! || :
    done
}

world_pid() {
    [ -e "$run/pid" ] || unavailable "the world is not started (peer.sh start)"
    cat "$run/pid"
}

start() {
    setup
    if [ -e "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2>/dev/null; then
        return 0
    fi
    mkdir -p "$run"
    rm -f "$run/ready"
    mkfifo "$run/ready"
    unshare --mount --pid --net --ipc --uts --fork --kill-child=KILL \
        sh "$0" _world "$run/ready" </dev/null >"$run/log" 2>&1 9>&- &
    outer=$!
    read -r answer <"$run/ready" || :
    rm -f "$run/ready"
    if [ "${answer:-}" != ready ]; then
        cat "$run/log" >&2
        unavailable "the world did not start"
    fi
    cat "/proc/$outer/task/$outer/children" | tr -d ' ' >"$run/pid"
    echo "$outer" >"$run/outer"
}

stop() {
    if [ -e "$run/pid" ]; then
        kill -KILL "$(cat "$run/pid")" 2>/dev/null || :
        rm -rf "$run"
    fi
}

inside() {
    exec nsenter --target "$(world_pid)" --mount --pid --net --ipc --uts --root --wd \
        env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        LANG=C.UTF-8 PODMAN_IGNORE_CGROUPSV1_WARNING=1 "$@"
}

verb=${1:-setup}
[ $# -gt 0 ] && shift
case $verb in
setup) setup; echo "$root" ;;
criu) setup; criu "$@" ;;
start) start ;;
in) inside "$@" ;;
stop) stop ;;
_world) world "$@" ;;
versions)
    setup
    for package in criu podman runc crun; do
        chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' "$package"
    done
    ;;
remove) stop; rm -rf "$root" "$root.tmp" ;;
*) sed -n '2,14s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac
