#!/bin/sh
# Becomes systemd with a service that counts and a service that is started now and then; `ask` compares.
set -eu
units=/etc/systemd/system
case $1 in
main)
    cat >$units/count.service <<UNIT
[Service]
ExecStart=/bin/sh -c 'n=0; while :; do n=\$\$((n+1)); echo \$\$n >/srv/new; mv /srv/new /srv/count; sleep 0.05; done'
Restart=always
UNIT
    cat >$units/tick.service <<UNIT
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo tick >>/srv/ticks'
UNIT
    mkdir -p $units/multi-user.target.wants $units/systemd-journald.service.d
    ln -s ../count.service $units/multi-user.target.wants/count.service
    # logind lives in namespaces of its own, what is on /dev/hugepages is the host's, and journald's
    # filter of addresses is a BPF program: none of them is carried.
    ln -sf /dev/null $units/systemd-logind.service
    ln -sf /dev/null $units/dev-hugepages.mount
    printf '[Service]\nIPAddressDeny=\n' >$units/systemd-journald.service.d/filter.conf
    exec /lib/systemd/systemd --log-target=console --show-status=0
    ;;
ask)
    [ "$(systemctl is-active count)" = active ] || { systemctl status count; exit 1; }
    [ "$(systemctl is-system-running)" = running ] || { systemctl --failed; exit 1; }
    ticks=$(cat /srv/ticks 2>/dev/null | wc -l)
    systemctl start tick
    [ "$(wc -l </srv/ticks)" = $((ticks + 1)) ] || { echo "no tick after $ticks"; exit 1; }
    cat /srv/count
    ;;
esac
