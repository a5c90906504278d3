#!/bin/sh
# Installs what building and testing need, on Debian 12 and later. Does nothing where all is there.
set -eu

packages="
    ca-certificates curl gcc libc6-dev make pkg-config libseccomp-dev
    mmdebstrap debian-archive-keyring
    age catatonit e2fsprogs iproute2 jq nftables iptables openssh-client openssh-server procps util-linux zstd
    docker-registry apache2-utils openssl
"

missing=
for package in $packages; do
    if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed'; then
        missing="$missing $package"
    fi
done
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "install-deps: must be root to install:$missing" >&2
        exit 1
    fi
    apt-get update -q
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
fi

if ! command -v cargo >/dev/null; then
    echo "install-deps: cargo is not installed: see https://rustup.rs" >&2
    exit 1
fi
