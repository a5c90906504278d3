#!/bin/sh
# main: a server with an append-only file, clients that read as fast as they can, one that writes and notes
# every answer, and now and then a snapshot by a child. ask: every answer that was noted must be true.
set -eu
fail() { echo "$*"; exit 1; }
case $1 in
main)
    mkdir /srv/data
    redis-server --dir /srv/data --appendonly yes --save '' --logfile /srv/log &
    until [ "$(redis-cli ping 2>/dev/null)" = PONG ]; do sleep 0.1; done
    : >/srv/errors
    n=0
    while :; do
        n=$((n + 1))
        printf 'SET key:%d %d\nINCR n\n' $n $((n * 7))
        sleep 0.01
    done | redis-cli >/srv/told 2>>/srv/errors &
    while :; do
        redis-cli bgsave >/dev/null 2>>/srv/errors
        sleep 0.3
    done &
    redis-benchmark -l -q -c 10 -t get -r 1000 >/dev/null 2>>/srv/errors &
    wait
    ;;
ask)
    [ ! -s /srv/errors ] || fail "$(tail -n 3 /srv/errors)"
    # The last answer may be half written.
    told=$(grep -v OK /srv/told | sed '$d' | tail -n 1)
    hole=$(grep -v OK /srv/told | sed '$d' | awk '$1 != NR { print NR; exit }')
    [ -z "$hole" ] || fail "answer $hole is wrong"
    n=$(redis-cli get n)
    [ "${n:-0}" -ge "${told:-0}" ] || fail "told of $told, has $n"
    wrong=$(redis-cli eval "for i = 1, ARGV[1] do
        if redis.call('GET', 'key:' .. i) ~= string.format('%d', i * 7) then return i end
    end return 0" 0 "${n:-0}")
    [ "$wrong" = 0 ] || fail "key:$wrong is not what was written"
    redis-cli info persistence | grep -q 'rdb_last_bgsave_status:ok' || fail "a snapshot failed"
    echo "${n:-0}"
    ;;
esac
