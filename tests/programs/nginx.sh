#!/bin/sh
# main: a server, a client that asks for a page over and over on kept-open connections, and one that gets a
# large file slowly. ask: every answer was right, and the server's own log has each.
set -eu
fail() { echo "$*"; exit 1; }
case $1 in
main)
    : >/srv/errors
    head -c 3000000 /dev/urandom >/var/www/html/large
    large=$(cksum </var/www/html/large)
    nginx -g 'daemon off;' >/srv/log 2>&1 &
    until curl -so /dev/null http://127.0.0.1/; do sleep 0.1; done
    while :; do
        curl -sS -o /dev/null -w '%{http_code}\n' 'http://127.0.0.1/?[1-1000000]' 2>>/srv/errors
    done | {
        n=0
        while read -r code; do
            [ "$code" = 200 ] || echo "the answer is $code" >>/srv/errors
            n=$((n + 1))
            echo $n >/srv/new
            mv /srv/new /srv/served
        done
    } &
    while :; do
        got=$(curl -sS --limit-rate 2M http://127.0.0.1/large 2>>/srv/errors | cksum)
        [ "$got" = "$large" ] || echo "the large file is $got, not $large" >>/srv/errors
    done &
    wait
    ;;
ask)
    [ ! -s /srv/errors ] || fail "$(tail -n 3 /srv/errors)"
    if grep -E '\[(error|crit|alert|emerg)\]' /srv/log; then exit 1; fi
    served=$(cat /srv/served 2>/dev/null || echo 0)
    logged=$(grep -c '"GET /?.*" 200 ' /var/log/nginx/access.log)
    [ "$logged" -ge "$served" ] || fail "$served answers came, the log has $logged"
    curl -sS http://127.0.0.1/ | grep -q 'This page comes from a container.' || fail "another page"
    echo "$served"
    ;;
esac
