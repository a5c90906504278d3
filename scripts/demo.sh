#!/bin/sh
# The walk of the README: nginx and a counter are checkpointed to files and go on from them. Prints
# every command, its answer and its time, cleans up, and exits 0 only if every answer came.
#
# Everything lives in a directory of its own, beside whatever this machine already runs.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
program=${ARCTERN:-$here/target/release/arctern}
port=${PORT:-8080}
if [ "$(id -u)" != 0 ]; then
    echo "demo: must be run as root" >&2
    exit 1
fi

work=$(mktemp -d /var/tmp/arctern-demo.XXXXXX)
failed=0

arctern() {
    "$program" --root "$work/lib" --runroot "$work/run" "$@"
}

cleanup() {
    for name in my-nginx my-nginx-restored counter counter-restored; do
        arctern rm -f -t 0 "$name" >/dev/null 2>&1 || :
    done
    arctern rmi -f nginx >/dev/null 2>&1 || :
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

now() {
    date +%s%N
}

# Runs a command, shows it, its answer and its time.
show() {
    echo
    echo "\$ $*"
    start=$(now)
    if "$@"; then
        echo "  ($(((($(now) - start)) / 1000000)) ms)"
    else
        echo "  FAILED"
        failed=1
    fi
}

# The page that the container serves. Right after its start a server may not listen yet.
page() {
    echo
    echo "\$ curl localhost:$port"
    if answer=$(curl --silent --show-error --fail --max-time 10 --retry 20 --retry-delay 0 \
        --retry-max-time 10 --retry-connrefused "http://localhost:$port/"); then
        echo "$answer" | sed 's/^/  /'
    else
        echo "  NO ANSWER"
        failed=1
    fi
}

echo "Making the image (Debian's nginx, kept for the next time)…"
tar=$("$here/scripts/image.sh" nginx)
show arctern import --change 'CMD ["nginx", "-g", "daemon off;"]' "$tar" nginx

echo
echo "== A web server"
show arctern run -d --name my-nginx nginx
# A server that is asked to stop before it has begun does not hear it.
timeout 10 "$program" --root "$work/lib" --runroot "$work/run" \
    exec my-nginx sh -c 'until [ -s /run/nginx.pid ]; do sleep 0.1; done' || :
show arctern stop my-nginx
show arctern rm my-nginx
show arctern run -d -p "$port:80" --name my-nginx nginx
page
show arctern container checkpoint my-nginx --file "$work/nginx.tar.gz"
show arctern stop my-nginx
echo
echo "\$ curl localhost:$port     (nobody should answer now)"
if curl --silent --max-time 3 "http://localhost:$port/" >/dev/null 2>&1; then
    echo "  AN ANSWER CAME"
    failed=1
else
    echo "  no answer"
fi
show arctern container restore --name my-nginx-restored --file "$work/nginx.tar.gz"
page
show arctern ps

echo
echo "== A counter"
show arctern run -d --name counter nginx \
    sh -c 'i=0; while :; do i=$((i + 1)); echo "$i"; sleep 0.1; done'
sleep 1.5
show arctern container checkpoint counter --file "$work/counter.tar.zst"
before=$(arctern logs counter | tail -n 1)
echo "  it had counted to $before"
show arctern container restore --name counter-restored --file "$work/counter.tar.zst"
sleep 1.5
after=$(arctern logs counter-restored | tail -n 1)
echo "  it went on and has counted to ${after:-nothing}"
# Every number follows the one before: nothing was lost, nothing was counted twice.
if [ "${after:-0}" -le "$before" ] ||
    ! arctern logs counter-restored | awk 'NR > 1 && $1 != last + 1 { bad = 1 } { last = $1 } END { exit bad }'; then
    echo "  THE COUNT DID NOT GO ON"
    failed=1
fi

echo
ls -l "$work"/*.tar.* | awk '{ print "  " $5 " bytes  " $9 }'
if [ "$failed" = 0 ]; then
    echo "Every answer came."
else
    echo "Something did not work: see above." >&2
fi
exit "$failed"
