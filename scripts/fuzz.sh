#!/bin/sh
# Fuzzes the decoders, one after the other.
#
#   fuzz.sh [DECODER …]      all of them without a name
#
# FUZZ_SECONDS (3600) is the time for all together; each starts from fuzz/corpus/DECODER and keeps
# what it finds in FUZZ_CORPUS/DECODER (target/fuzz-corpus). An empty FUZZ_FEATURES
# leaves out what needs the crates of containers and moves, which take long to build. Ends with the first input that a decoder fails on; the
# input is in fuzz/artifacts/DECODER.
set -eu

cd "$(dirname "$0")/.."
# cargo-fuzz drives libFuzzer. Without a sanitizer the pinned compiler is enough: the decoders are
# safe code, and what is looked for is panics, overflows and hangs.
if [ $# -eq 0 ]; then
    set -- answers archive elf image_archive images layer manifest network_status pagemap plan proc \
        registry sealed
    if [ "${FUZZ_FEATURES-documents}" = documents ]; then
        set -- conversation documents pages podman users "$@"
    fi
fi
seconds=$((${FUZZ_SECONDS:-3600} / $#))
kept=${FUZZ_CORPUS:-$PWD/target/fuzz-corpus}
for decoder in "$@"; do
    features=
    case $decoder in
    conversation | documents | pages | podman | users) features=documents ;;
    esac
    mkdir -p "$kept/$decoder" "fuzz/corpus/$decoder"
    echo "fuzz: $decoder for $seconds s"
    # One input takes 10 s at most, and 2 GiB of memory.
    (cd fuzz && cargo fuzz run --sanitizer none --features "$features" "$decoder" \
        "$kept/$decoder" "corpus/$decoder" -- \
        -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1)
done
