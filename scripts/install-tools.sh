#!/bin/sh
# Installs cargo-nextest, cargo-deny and cargo-fuzz in fixed versions, unless they are there.
#   install-tools.sh nextest|deny|fuzz …
set -eu

for tool in "$@"; do
    case $tool in
    nextest) version=0.9.143 ;;
    deny) version=0.20.2 ;;
    fuzz) version=0.13.2 ;;
    *) echo "install-tools: $tool is not known" >&2; exit 64 ;;
    esac
    if cargo "$tool" --version >/dev/null 2>&1; then
        continue
    fi
    # Outside of the project's own build directory and of its pinned lints.
    (cd / && cargo install "cargo-$tool" --version "$version" --locked)
done
