#!/bin/sh
# Licences, bans and sources of the dependencies; advisories where their database can be had.
set -eu
cd "$(dirname "$0")/.."

cargo deny --locked check licenses bans sources
if cargo deny --locked fetch db >/dev/null 2>&1; then
    cargo deny --locked check advisories
else
    echo "deny: the advisory database cannot be had here; advisories were NOT checked" >&2
fi
