#!/bin/sh
# What people do at a desk: `desk.sh tmux|gcc|sqlite|python` runs it, `desk.sh ask NAME` compares and
# prints a number that grows.
set -eu
cd /srv
fail() { echo "$*"; exit 1; }
# Waits until a file holds a line, which the program writes when it gets to it.
until_says() {
    for _ in $(seq 300); do
        [ "$(cat "$1" 2>/dev/null)" = "$2" ] && return
        sleep 0.1
    done
    fail "$1 says $(cat "$1"), not $2"
}
writer() {
    n=0
    while :; do
        n=$((n + 1))
        echo "begin immediate; insert into t values ($1, $n); commit; select $n;"
        sleep 0.01
    done | sqlite3 -cmd '.timeout 30000' "$2" >"/srv/told$1" 2>>/srv/errors
}
case $1 in
tmux)
    export TERM=screen SHELL=/bin/sh ENV=/srv/rc PS1='$ '
    echo 'N=0' >rc
    tmux new-session -d -s work -n shell -x 80 -y 24
    tmux new-window -t work -n editor 'vi -u NONE text'
    # Somebody looks at it.
    script -qfc 'tmux attach -t work' /dev/null >/dev/null 2>&1 &
    until [ "$(tmux list-clients | wc -l)" = 1 ]; do sleep 0.1; done
    echo ready
    wait
    ;;
gcc)
    mkdir build
    cd build
    for i in $(seq 4); do
        {
            echo '#include <stdio.h>'
            echo '#include <stdlib.h>'
            echo '#include <string.h>'
            for j in $(seq 20); do
                echo "int f${i}_$j(int x) { char b[32]; snprintf(b, sizeof b, \"%d\", x * $j + $i);"
                echo "  for (size_t k = 0; k < strlen(b); k++) x += b[k] % ($j + 1); return x; }"
            done
            echo "int g$i(void) { int s = 0; for (int x = 0; x < 9; x++) s += f${i}_1(x) + f${i}_20(x); return s; }"
        } >"part$i.c"
    done
    {
        echo '#include <stdio.h>'
        for i in $(seq 4); do echo "int g$i(void);"; done
        echo 'int main(void) {'
        for i in $(seq 4); do printf 'printf("%%d\\n", g%d());\n' "$i"; done
        echo 'return 0; }'
    } >main.c
    {
        echo 'objects = main.o' $(seq -f "part%g.o" 4)
        echo 'program: $(objects)'
        printf '\tgcc -o $@ $(objects)\n'
        echo '%.o: %.c'
        printf '\tgcc -O2 -pipe -c -o $@ $<\n'
    } >Makefile
    n=0
    while rm -f ./*.o program && make -j2 >../log 2>&1 && ./program >../result; do
        [ -e ../expected ] || cp ../result ../expected
        cmp ../result ../expected || break
        n=$((n + 1))
        echo $n >../count.new
        mv ../count.new ../count
    done
    echo "broken after $n" >../count.new
    mv ../count.new ../count
    sleep infinity
    ;;
sqlite)
    sqlite3 one 'create table t (w int, n int)'
    sqlite3 two 'pragma journal_mode = wal; create table t (w int, n int)' >/dev/null
    writer 1 one &
    writer 2 one &
    writer 3 two &
    writer 4 two &
    echo ready
    wait
    ;;
python) exec python3 /srv/desk.py ;;
ask)
    case $2 in
    tmux)
        n=$(($(cat asks 2>/dev/null || echo 0) + 1))
        echo $n >asks
        # The shell counts in a variable of its own, the editor in a text that nobody saves for it.
        tmux send-keys -t work:shell 'N=$((N+1)); echo $N >/srv/n' Enter
        tmux send-keys -t work:editor "oline $n" Escape ':w' Enter
        until_says n $n
        for _ in $(seq 300); do
            [ "$(tail -n 1 text 2>/dev/null)" = "line $n" ] && break
            sleep 0.1
        done
        [ "$(grep -c line text)" = $n ] || fail "the text has $(grep -c line text) lines, not $n"
        [ "$(tmux list-clients | wc -l)" = 1 ] || fail "nobody is attached"
        [ "$(tmux list-windows | wc -l)" = 2 ] || fail "a window is gone"
        echo $n
        ;;
    gcc | python)
        count=$(cat count 2>/dev/null || echo 0)
        [ "$count" -ge 0 ] 2>/dev/null || fail "$count $(tail -n 3 log)"
        echo "$count"
        ;;
    sqlite)
        [ ! -s errors ] || fail "$(cat errors)"
        least=
        for w in 1 2 3 4; do
            db=one
            [ $w -lt 3 ] || db=two
            told=$(tail -n 1 "told$w")
            set -- $(sqlite3 -cmd '.timeout 30000' -separator ' ' $db \
                "select count(*), coalesce(max(n), 0) from t where w = $w")
            [ "$1" = "$2" ] || fail "writer $w: $1 rows, the last is $2"
            [ "$2" -ge "${told:-0}" ] || fail "writer $w was told of $told, there is $2"
            [ -n "$least" ] && [ "$least" -lt "$2" ] || least=$2
        done
        for db in one two; do
            [ "$(sqlite3 -cmd '.timeout 30000' $db 'pragma integrity_check')" = ok ] || fail "$db is damaged"
        done
        echo "$least"
        ;;
    esac
    ;;
esac
