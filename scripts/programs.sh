#!/bin/sh
# Root file systems with the real programs that tests/harness/tests/programs.rs captures, from Debian's
# packages: made once, kept, printed. They are apart from those of image.sh, which every test uses.
#
#   programs.sh postgres|node|java|desk|systemd     print the path of the tar
#
# They lie in $ARCTERN_CACHE/images (ARCTERN_CACHE defaults to /var/cache/arctern).
set -eu

cache=${ARCTERN_CACHE:-/var/cache/arctern}/images
mirror=${ARCTERN_MIRROR:-http://deb.debian.org/debian}
suite=bookworm

case ${1:-} in
postgres) include=postgresql,postgresql-contrib ;;
node) include=nodejs ;;
java) include=default-jdk-headless ;;
desk) include=tmux,vim-tiny,gcc,libc6-dev,make,sqlite3,python3-minimal,libpython3-stdlib ;;
systemd) include=systemd-sysv,dbus ;;
*) sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
esac

# The name carries what the image is made from, so that a change makes a new one.
stamp=$(cksum <"$0" | cut -d' ' -f1)
tar=$cache/program-$1-$stamp.tar
mkdir -p "$cache"
exec 9>"$cache/program-$1.lock"
flock 9
if [ ! -e "$tar" ]; then
    rm -f "$cache/program-$1"-*.tar
    # Java's packages link manual pages into a directory that has to be there.
    if ! mmdebstrap --variant=minbase --include="$include" \
        --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --essential-hook='mkdir -p "$1"/usr/share/man/man1' \
        --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*' \
        "$suite" "$tar.tmp.tar" "$mirror" >"$cache/program-$1.log" 2>&1; then
        tail -n 20 "$cache/program-$1.log" >&2
        rm -f "$tar.tmp.tar"
        echo "programs: $1 cannot be made (log: $cache/program-$1.log)" >&2
        exit 69
    fi
    mv "$tar.tmp.tar" "$tar"
fi
echo "$tar"
