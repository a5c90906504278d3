#!/bin/sh
# start: a database with pgbench's tables, and pgbench on it until it is stopped. ask: the history must
# hold what the balances say, and every commit that pgbench was told of must be there.
set -eu
bin=$(echo /usr/lib/postgresql/*/bin)
as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
sql() { as psql -qAtX -h /run/postgresql -U postgres "$@"; }
case $1 in
start)
    mkdir -p /srv/data /run/postgresql
    chown postgres:postgres /srv/data /run/postgresql
    as "$bin/initdb" -D /srv/data -A trust >/dev/null
    cat >>/srv/data/postgresql.conf <<CONF
shared_buffers = 32MB
autovacuum_naptime = 1s
max_parallel_workers_per_gather = 2
CONF
    exec setpriv --reuid postgres --regid postgres --clear-groups "$bin/postgres" -D /srv/data -k /run/postgresql
    ;;
load)
    # Runs in the container's tree: started by the database itself would be strange, so beside it.
    as "$bin/pgbench" -h /run/postgresql -U postgres -i -s 1 -q postgres >/dev/null 2>&1
    as createdb -h /run/postgresql -U postgres other
    ;;
main)
    "$0" start >/srv/log 2>&1 &
    until as "$bin/pg_isready" -q -h /run/postgresql; do sleep 0.1; done
    "$0" load
    echo loaded
    # The number of the last commit that somebody was told of goes to a file, after the answer.
    sql -c 'create table told (n bigint primary key)' postgres
    (
        n=0
        while :; do
            n=$((n + 1))
            printf "insert into told values (%d);\\n\\\\echo %d\\n" "$n" "$n"
            sleep 0.01
        done | sql postgres >/srv/told
    ) &
    as "$bin/pgbench" -h /run/postgresql -U postgres -c 4 -j 2 -T 100000 postgres >/srv/pgbench 2>&1 &
    wait
    ;;
ask)
    told=$(tail -n 1 /srv/told)
    told=${told:-0}
    committed=$(sql -c 'select coalesce(max(n), 0) from told' postgres)
    holes=$(sql -c 'select max(n) - count(*) from told' postgres)
    wrong=$(sql -c "begin isolation level repeatable read; select
        (select sum(abalance) from pgbench_accounts) is distinct from (select sum(delta) from pgbench_history)
        or (select sum(tbalance) from pgbench_tellers) is distinct from (select sum(delta) from pgbench_history)
        or (select sum(bbalance) from pgbench_branches) is distinct from (select sum(delta) from pgbench_history);
        commit" postgres)
    rows=$(sql -c 'select count(*) from pgbench_history' postgres)
    [ "$committed" -ge "$told" ] || { echo "told of $told, has $committed"; exit 1; }
    [ "$holes" = 0 ] || { echo "$holes commits are missing"; exit 1; }
    [ "$wrong" = f ] || { echo "balances and history differ"; exit 1; }
    if grep -E 'PANIC|FATAL|ERROR' /srv/log | grep -v 'starting up'; then exit 1; fi
    if grep -iE 'error|aborted' /srv/pgbench; then exit 1; fi
    echo "$rows"
    ;;
esac
