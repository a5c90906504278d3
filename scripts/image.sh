#!/bin/sh
# Root file systems for tests and the demo, from Debian's packages: made once, kept, printed.
#
#   image.sh nginx|redis|python     print the path of the tar
#
# They lie in $ARCTERN_CACHE/images (ARCTERN_CACHE defaults to /var/cache/arctern).
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
cache=${ARCTERN_CACHE:-/var/cache/arctern}/images
mirror=${ARCTERN_MIRROR:-http://deb.debian.org/debian}
suite=bookworm

case ${1:-} in
nginx) include=nginx-light,curl ;;
redis) include=redis-server ;;
python) include=python3-minimal,libpython3-stdlib ;;
*) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac

# The name carries what the image is made from, so that a change makes a new one.
stamp=$(cat "$0" "$here/tests/images/"* | cksum | cut -d' ' -f1)
tar=$cache/$1-$stamp.tar
mkdir -p "$cache"
exec 9>"$cache/$1.lock"
flock 9
if [ ! -e "$tar" ]; then
    rm -f "$cache/$1"-*.tar
    # No documentation, no translations. nginx's errors go to the container's output, its accesses to
    # a file: both kinds of log are worth a restore.
    set -- "$1" --variant=minbase --include="$include" \
        --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*'
    case $1 in
    nginx)
        set -- "$@" \
            --customize-hook='ln -sf /dev/stderr "$1/var/log/nginx/error.log"' \
            --customize-hook="copy-in $here/tests/images/nginx.html /var/www/html" \
            --customize-hook='mv "$1/var/www/html/nginx.html" "$1/var/www/html/index.html"'
        ;;
    python)
        set -- "$@" --customize-hook="copy-in $here/tests/images/server.py /srv"
        ;;
    esac
    name=$1
    shift
    if ! mmdebstrap "$@" "$suite" "$tar.tmp.tar" "$mirror" >"$cache/$name.log" 2>&1; then
        tail -n 20 "$cache/$name.log" >&2
        rm -f "$tar.tmp.tar"
        echo "image: $name cannot be made (log: $cache/$name.log)" >&2
        exit 69
    fi
    mv "$tar.tmp.tar" "$tar"
fi
echo "$tar"
