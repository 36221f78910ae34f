#!/bin/sh
# Licensed to the Apache Software Foundation (ASF) under one or more
# contributor license agreements.  See the NOTICE file distributed with
# this work for additional information regarding copyright ownership.
# The ASF licenses this file to You under the Apache License, Version 2.0
# (the "License"); you may not use this file except in compliance with
# the License.  You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
#
# The main job of mod_slotmem_shm, shown on live traffic.
#
# A private httpd on loopback balances over live backends while clients load it.
# Its balancer is changed through balancer-manager's own form; then the server
# is restarted gracefully, stopped and started, restarted hard, killed with
# SIGKILL, started beside its predecessor that has a request to finish, and
# restarted while its disk is full (by root: a small tmpfs).  After each, what
# balancer-manager says is compared with what it said before.  Ends with a
# summary; the exit status is 0 if everything was kept.
#
#   APXS             which httpd (default: apxs)
#   SLOTMEM_MODULE   which slotmem module (default: .libs/mod_slotmem_shm.so).
#                    With the stock module the killed server, and the one
#                    beside its predecessor, are expected to have lost their
#                    newest change: it is there for contrast.
#   DEMO_KEEP=1      leave everything running until Enter or ^C
#   DEMO_SCREENSHOT  write a picture of the status page there (needs chromium)
set -u
LC_ALL=C
export LC_ALL
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy

top=$(cd "$(dirname "$0")/../.." && pwd)
APXS=${APXS:-apxs}
SLOTMEM_MODULE=${SLOTMEM_MODULE:-$top/.libs/mod_slotmem_shm.so}

die() {
    echo "demo: $*" >&2
    exit 2
}

for tool in "$APXS" curl awk sed; do
    command -v "$tool" >/dev/null || die "$tool is needed and was not found"
done
[ -r "$SLOTMEM_MODULE" ] || die "no module at $SLOTMEM_MODULE (run make first)"
# httpd started by root gives its children to somebody else.
runas=
if [ "$(id -u)" = 0 ]; then
    for user in nobody daemon apache www-data; do
        id "$user" >/dev/null 2>&1 && runas=$user
    done
fi
modules=$("$APXS" -q LIBEXECDIR)
httpd=$("$APXS" -q SBINDIR)/$("$APXS" -q PROGNAME)
[ -x "$httpd" ] || httpd=$("$APXS" -q SBINDIR)/httpd
[ -x "$httpd" ] || die "no httpd found with $APXS"
python=/usr/bin/python3
[ -x $python ] || python=$(command -v python3) || python=
# What is built into this httpd needs no LoadModule, and refuses one.
builtin=$("$httpd" -l)

dir=$(mktemp -d "${TMPDIR:-/tmp}/slotmem-demo.XXXXXX") || exit 2
chmod 755 "$dir"
for server in front backend; do
    echo "$dir/$server.conf" >"$dir/$server.name"
done
clients=
relay=
holder=
mounted=

# ---------------------------------------------------------------- processes

# The processes of one of our servers: those whose command line names its
# configuration file, which lies in a directory that nobody else uses.  The name
# is read from a file, so that grep does not find itself.
pids_of() {
    grep -laF -f "$dir/$1.name" /proc/[0-9]*/cmdline 2>/dev/null \
        | sed 's|/proc/\([0-9]*\)/.*|\1|'
}

# Runs a command until it succeeds, for at most so many seconds.
wait_for() {
    tries=$(($1 * 50))
    shift
    until "$@"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 0.02
    done
}

gone() { [ -z "$(pids_of "$1")" ]; }

# Again until none is left: one may have been forked since they were listed.
killed_and_gone() {
    victims=$(pids_of "$1")
    [ -z "$victims" ] && return 0
    # shellcheck disable=SC2086
    kill -KILL $victims 2>/dev/null
    return 1
}

kill_all_of() { wait_for 20 killed_and_gone "$1"; }

reaped() { [ ! -d "/proc/$1" ]; }

# Shared memory objects that the front server has mapped by name.
note_shm() {
    for p in $(pids_of front); do
        sed -n 's|.* \(/dev/shm/[^ ]*\)$|\1|p' "/proc/$p/maps" 2>/dev/null
    done >>"$dir/shm.seen"
    sort -u -o "$dir/shm.seen" "$dir/shm.seen"
}

shm_left() {
    while read -r object; do
        [ ! -e "$object" ] || echo "$object"
    done <"$dir/shm.seen"
}

cleanup() {
    trap '' INT TERM HUP
    # shellcheck disable=SC2086
    [ -z "$clients$relay$holder" ] || kill $clients $relay $holder 2>/dev/null
    for server in front backend; do
        # A clean stop lets the server remove what it made.
        if [ -s "$dir/$server.pid" ] && ! gone $server; then
            kill -TERM "$(cat "$dir/$server.pid")" 2>/dev/null
            wait_for 10 gone $server
        fi
        kill_all_of $server
    done
    wait 2>/dev/null
    shm_left | while read -r object; do rm -f "$object"; done
    [ -z "$mounted" ] || wait_for 5 umount "$dir/front.run" 2>/dev/null \
        || umount -l "$dir/front.run"
    rm -rf "$dir"
}
: >"$dir/shm.seen"
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

# ---------------------------------------------------------------- servers

# An address that no other demo has while this one runs: the network 127.0.0.0/8
# is this machine, and its last three bytes are our process id.
host=127.$((64 + $$ / 65536 % 64)).$(($$ / 256 % 256)).$(($$ % 256))

# Ports that nobody uses now.  Below the range from which the kernel draws for
# outgoing connections, so that no client of ours takes one in the meantime.
next_port=$((10000 + ($$ * 37) % 20000))
free_port() {
    while :; do
        next_port=$((next_port + 1))
        hex=$(printf ':%04X ' $next_port)
        cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp 2>/dev/null \
            | grep -qF -e "$hex" && continue
        break
    done
}
free_port; port_front=$next_port
free_port; port_b1=$next_port
free_port; port_b2=$next_port
free_port; port_b3=$next_port
free_port; port_b4=$next_port
free_port; port_udp=$next_port

port_of() {
    case $1 in
        b1) echo "$port_b1" ;;
        b2) echo "$port_b2" ;;
        b3) echo "$port_b3" ;;
        b4) echo "$port_b4" ;;
    esac
}

load() {
    for m in "$@"; do
        case $builtin in *"mod_$m.c"*|*" $m.c"*) continue ;; esac
        [ -e "$modules/mod_$m.so" ] || die "this httpd has no mod_$m"
        echo "LoadModule ${m}_module $modules/mod_$m.so"
    done
}

common_conf() {
    cat <<END
ServerRoot $dir
DefaultRuntimeDir $dir/$1.run
PidFile $dir/$1.pid
ErrorLog $dir/$1.log
ServerName 127.0.0.1
DocumentRoot $dir/htdocs
StartServers 2
ServerLimit 4
ThreadLimit 16
ThreadsPerChild 16
MaxRequestWorkers 64
KeepAliveTimeout $2
END
    [ -z "$runas" ] || printf 'User %s\nGroup %s\n' "$runas" "$(id -gn "$runas")"
    load mpm_event unixd authz_core status watchdog
    mkdir "$dir/$1.run"
}

mkdir "$dir/htdocs"
for b in b1 b2 b3 b4; do
    mkdir "$dir/htdocs/$b"
    echo "backend $b" >"$dir/htdocs/$b/index.html"
    # More than all buffers between a backend and a slow client hold.
    dd if=/dev/zero of="$dir/htdocs/$b/long" bs=1 count=0 seek=256M 2>/dev/null
done

# Four backends: virtual hosts of one httpd, which stays up throughout.
{
    # Longer than the demo takes: a backend that closes an idle connection just
    # when the front sends a request on it costs that request an answer (502).
    common_conf backend 600
    load dir
    if [ -n "$python" ]; then
        load heartbeat
        echo "HeartbeatAddress $host:$port_udp"
    fi
    echo "DirectoryIndex index.html"
    for b in b1 b2 b3 b4; do
        p=$(port_of $b)
        cat <<END
Listen $host:$p
<VirtualHost $host:$p>
    ServerName $host
    DocumentRoot $dir/htdocs/$b
</VirtualHost>
END
    done
} >"$dir/backend.conf" || exit 2

# The server under trial.
{
    # So that a hard restart does not wait for idle keep-alive connections.
    common_conf front 2
    echo "LoadModule slotmem_shm_module $SLOTMEM_MODULE"
    load proxy proxy_http proxy_balancer lbmethod_byrequests \
         heartmonitor lbmethod_heartbeat
    cat <<END
Listen $host:$port_front
ExtendedStatus Off
HeartbeatMaxServers 20
# Nothing is sent to this group.  But the monitor wants one before it heeds
# beats that come by HTTP, and to join this one sends nothing either.
HeartbeatListen 224.0.0.1:$port_udp

BalancerPersist On
ProxyPass "/app" "balancer://cluster"
<Proxy "balancer://cluster">
    BalancerMember http://$host:$port_b1
    BalancerMember http://$host:$port_b2
    BalancerMember http://$host:$port_b3
    ProxySet growth=5
</Proxy>

ProxyPass "/beats" "balancer://beats"
<Proxy "balancer://beats">
    BalancerMember http://$host:$port_b1
    BalancerMember http://$host:$port_b2
    ProxySet lbmethod=heartbeat
</Proxy>

<Location "/server-status">
    SetHandler server-status
</Location>
<Location "/balancer-manager">
    SetHandler balancer-manager
</Location>
<Location "/heartbeat">
    SetHandler heartbeat
</Location>
END
} >"$dir/front.conf" || exit 2

# The front's disk: a small one of its own, if that can be had.
if [ "$(id -u)" = 0 ] \
        && mount -t tmpfs -o size=512k,mode=755 slotmem-demo "$dir/front.run" 2>/dev/null; then
    mounted=yes
fi

base=http://$host:$port_front
manager=$base/balancer-manager

# balancer-manager heeds no parameter that comes without a Referer of its own.
fetch() { curl -s --max-time 10 -H "Referer: $manager" "$@"; }

answers() { fetch -o /dev/null "$base/server-status?auto"; }

show_log() {
    echo "--- the end of the error log of $1:"
    tail -n 15 "$dir/$1.log" 2>/dev/null
}

start_server() {
    "$httpd" -f "$dir/$1.conf" -k start || { show_log "$1"; die "$1 did not start"; }
}

start_front() {
    start_server front
    wait_for 20 answers || { show_log front; die "the server does not answer"; }
    note_shm
}

generation() {
    fetch "$base/server-status?auto" | sed -n 's/^ParentServerConfigGeneration: //p'
}
generation_is_not() { g=$(generation); [ -n "$g" ] && [ "$g" != "$1" ]; }

# What the module says that this server is to its runtime directory; nothing if
# it has no word for it.
relation() {
    fetch "$base/server-status?auto" | sed -n 's/^SlotmemRuntimeDir: //p'
}
owns() { [ "$(relation)" = owner ]; }

restart_gracefully() {
    old=$(generation)
    "$httpd" -f "$dir/front.conf" -k graceful
    wait_for 20 generation_is_not "$old" || { show_log front; die "no graceful restart"; }
}

# Nobody listens on the front's port, and its file of the process is gone.
port_is_free() {
    [ ! -e "$dir/front.pid" ] \
        && ! grep -q "$(printf ':%04X 00000000:0000 0A' "$port_front")" /proc/net/tcp
}

# ---------------------------------------------------------------- the manager

nonce() {
    fetch "$manager" | sed -n 's/.*?b=cluster&amp;nonce=\([^"]*\)".*/\1/p' | head -n 1
}

# The members of balancer://cluster as balancer-manager lists them, one a line:
# url, load factor, status, elected.
members() {
    fetch "$manager?b=cluster&xml=1&nonce=$(nonce)" | awk '
        function text(s) { gsub(/<[^>]*>/, "", s); gsub(/^ +| +$/, "", s); return s }
        /<httpd:name>balancer:/  { wanted = (text($0) == "balancer://cluster") }
        !wanted                  { next }
        /<httpd:worker>/         { url = "" }
        /<httpd:name>http/       { url = text($0) }
        /<httpd:loadfactor>/     { factor = text($0) }
        /<httpd:status>/         { status = text($0); gsub(/ +/, "+", status) }
        /<httpd:elected>/        { elected = text($0) }
        /<\/httpd:worker>/       { print url, factor, status, elected }'
}

# Submits the form that balancer-manager offers for a member (or, with "-", for
# the balancer itself), with the given fields changed.
submit() {
    member=$1
    shift
    form="$manager?b=cluster&nonce=$(nonce)"
    [ "$member" = - ] || form="$form&w=$member"
    fetch "$form" >"$dir/form.html"
    hidden=$(sed -n "s/.*type=hidden name='nonce'.*value='\([^']*\)'.*/\1/p" "$dir/form.html")
    action=$(sed -n "s/.*<form method='POST'.*action=\"\([^\"]*\)\".*/\1/p" "$dir/form.html")
    if [ -z "$hidden" ] || [ -z "$action" ]; then
        die "balancer-manager offers no form for $member"
    fi
    [ "$member" = - ] || set -- "$@" "w=$member"
    for field in "b=cluster" "nonce=$hidden" "$@"; do
        printf '%s\n' "--data-urlencode" "$field"
    done >"$dir/fields"
    # Each line is one argument.
    (
        IFS='
'
        # shellcheck disable=SC2046
        fetch -o "$dir/answer.html" -w '%{http_code}' $(cat "$dir/fields") "$action"
    ) >"$dir/code"
    [ "$(cat "$dir/code")" = 200 ] \
        || die "balancer-manager answered $(cat "$dir/code") to its own form"
}

show_members() {
    printf '      %-28s %-12s %-22s %s\n' member 'load factor' status 'requests served'
    while read -r url factor status elected; do
        printf '      %-28s %-12s %-22s %s\n' "$url" "$factor" "$(echo "$status" | tr + ' ')" "$elected"
    done <"$1"
}

# ---------------------------------------------------------------- traffic

start_clients() {
    for n in 1 2; do
        # One curl makes the requests one after another, whatever becomes of each.
        # Results go to its error stream, which is written at once.
        curl -s --max-time 20 -o /dev/null -w '%{stderr}%{http_code}\n' \
            "$base/app/?[1-100000000]" 2>"$dir/client.$n" &
        clients="$clients $!"
    done
}

# A client may be in the middle of a line, or have been killed there.
codes() { grep -h '^[0-9][0-9][0-9]$' "$dir"/client.*; }
requests() { codes | wc -l; }
# 000 is curl's word for "nobody answered".
refused() { codes | grep -c '^000'; }
failed() { codes | grep -vc -e '^200' -e '^000'; }

# A server that is stopped, restarted hard or killed cuts its requests off: then,
# and until the next one answers, an error is no wonder and is counted apart.
# mod_proxy may note such a request as an error of its backend, too, and so
# answer the first one after it with 503.
cut_off=0
cut_off_begins() { failed_then=$(failed); }
cut_off_ends() {
    [ -z "${failed_then:-}" ] || cut_off=$((cut_off + $(failed) - failed_then))
    failed_then=
}

more_requests_than() { [ "$(requests)" -gt "$1" ]; }

beats_answer() { [ "$(fetch -o /dev/null -w '%{http_code}' "$base/beats/")" = 200 ]; }

# ---------------------------------------------------------------- the story

lost=0
: >"$dir/summary"

verdict() {
    printf '  %-52s %s\n' "$1" "$2" >>"$dir/summary"
    [ "$2" = kept ] || [ "$2" = ok ] || lost=$((lost + 1))
}

# Compares what balancer-manager says now with what it said before.  Settings
# must be the same; counts of served requests must not have gone back.
compare() {
    # Status "Init" says only that the child which answered has used the member.
    awk '
        function settings(s) { gsub(/Init\+?/, "", s); return s }
        NR == FNR { factor[$1] = $2; status[$1] = settings($3); elected[$1] = $4; next }
        {
            seen[$1] = 1
            if (!($1 in factor)) print $1 " was not there before"
            else if ($2 != factor[$1]) print $1 ": load factor " $2 ", was " factor[$1]
            else if (settings($3) != status[$1]) print $1 ": status " $3 ", was " status[$1]
            else if ($4 + 0 < elected[$1] + 0) print $1 ": " $4 " requests served, were " elected[$1]
        }
        END { for (m in factor) if (!(m in seen)) print m " is gone" }' "$1" "$2"
}

check_state() {
    what=$1
    wait_for 20 answers || { show_log front; die "the server does not answer after: $what"; }
    members >"$dir/after"
    cut_off_ends
    note_shm
    show_members "$dir/after"
    differences=$(compare "$dir/before" "$dir/after")
    if [ -z "$differences" ]; then
        echo "   -> kept: settings and counts are as before."
        verdict "$what" kept
    else
        echo "   -> LOST:"
        echo "$differences" | sed 's/^/      /'
        verdict "$what" lost
    fi
    if [ -n "$python" ]; then
        # The table of heartbeats is not meant to outlive a restart: it must
        # fill again from the beats that come in, about one a second.
        if wait_for 10 beats_answer; then
            echo "   -> heartbeats arrive again: /beats/ is balanced by them."
        else
            echo "   -> LOST: no server is known from heartbeats."
            verdict "heartbeats after: $what" lost
        fi
    fi
    # Let the clients go on for a while before the next step.
    wait_for 20 more_requests_than $(($(requests) + 200)) \
        || die "the clients get no further after: $what"
}

before() {
    members >"$dir/before"
    [ "$(wc -l <"$dir/before")" -ge 3 ] || die "balancer-manager lists no members"
    note_shm
}

url_of() { echo "http://$host:$(port_of "$1")"; }

echo "mod_slotmem_shm on live traffic"
echo
echo "   module    $SLOTMEM_MODULE"
echo "   httpd     $("$httpd" -v | sed -n 's/^Server version: //p'), event MPM, everything on loopback"
echo "   look at   $manager"
echo "             $base/server-status"
echo "             $base/app/     (balanced by requests, over three backends)"
[ -z "$python" ] || echo "             $base/beats/   (balanced by heartbeats)"
echo

start_server backend
start_front
if [ -n "$python" ]; then
    "$python" "$top/test/demo/beats.py" "$host" "$port_udp" "$base/heartbeat" &
    relay=$!
    wait_for 15 beats_answer || { show_log front; die "no heartbeat arrived"; }
else
    echo "   (no python3: heartbeats are left out)"
fi
start_clients
wait_for 20 more_requests_than 500 || die "the clients do not get going"

echo "1. Three members are up, and clients keep them busy:"
members >"$dir/after"
show_members "$dir/after"
echo

echo "2. An administrator disables $(url_of b2) and gives it load factor 7,"
echo "   with balancer-manager's form.  Then a graceful restart, under load:"
submit "$(url_of b2)" w_lf=7 w_status_D=1
before
failed_before=$(($(refused) + $(failed)))
restart_gracefully
check_state "graceful restart, under load"
failed_now=$(($(refused) + $(failed) - failed_before))
if [ $failed_now = 0 ]; then
    echo "   -> no client noticed: every request was answered."
    verdict "requests during the graceful restart" ok
else
    echo "   -> $failed_now requests failed."
    verdict "requests during the graceful restart" "$failed_now failed"
fi
echo

echo "3. $(url_of b3) is set to drain, with load factor 5."
echo "   Then the server is stopped, and started:"
submit "$(url_of b3)" w_lf=5 w_status_N=1
before
cut_off_begins
"$httpd" -f "$dir/front.conf" -k stop
wait_for 30 gone front || { show_log front; die "the server does not stop"; }
start_front
check_state "stop and start"
echo

echo "4. A fourth member, $(url_of b4), which no configuration file names,"
echo "   is added and enabled.  Then a hard restart:"
submit - "b_nwrkr=$(url_of b4)" b_wyes=1
submit "$(url_of b4)" w_lf=2 w_status_D=0
before
old=$(generation)
cut_off_begins
"$httpd" -f "$dir/front.conf" -k restart
wait_for 20 generation_is_not "$old" || { show_log front; die "no restart"; }
check_state "hard restart"
echo

echo "5. $(url_of b2) is enabled again, and $(url_of b1) gets load factor 9."
echo "   Then every process of the server is killed at once (kill -9), and it is started:"
submit "$(url_of b2)" w_status_D=0
submit "$(url_of b1)" w_lf=9
before
parent=$(cat "$dir/front.pid")
cut_off_begins
kill_all_of front || die "some process of the server survives kill -9"
# In a container whose first process reaps nobody the dead parent stays in the
# process table, and httpd would take it for a running server.
wait_for 3 reaped "$parent" || rm -f "$dir/front.pid"
start_front
check_state "kill -9 of every process, and start"
echo

echo "6. $(url_of b3) gets load factor 3.  While a client is still loading something"
echo "   long, the server is told to stop gracefully, and the next one is started"
echo "   at once: two servers on one runtime directory."
submit "$(url_of b3)" w_lf=3
before
curl -s --limit-rate 1k "$base/app/long" >"$dir/long" 2>/dev/null &
holder=$!
wait_for 20 test -s "$dir/long" || die "no answer to hold on to"
parent=$(cat "$dir/front.pid")
"$httpd" -f "$dir/front.conf" -k graceful-stop
wait_for 20 port_is_free || { show_log front; die "no graceful stop"; }
start_front
if [ ! -d "/proc/$parent" ] || ! kill -0 $holder 2>/dev/null; then
    die "the first server ended before its request did"
fi
check_state "graceful-stop with a request open, and start"
relation=$(relation)
[ -z "$relation" ] || echo "   -> to its runtime directory the new server is: $relation"
echo "   $(url_of b1) gets load factor 4, the long request ends, the first server with it."
echo "   Then a graceful restart of the new one:"
submit "$(url_of b1)" w_lf=4
kill $holder
wait $holder 2>/dev/null
holder=
wait_for 30 reaped "$parent" || [ ! -s "/proc/$parent/cmdline" ] \
    || { show_log front; die "the first server does not end"; }
if [ -n "$relation" ]; then
    wait_for 20 owns || { show_log front; die "the new server does not get the directory"; }
    echo "   -> and now: $(relation)"
fi
before
restart_gracefully
check_state "what was changed while both were there"
echo

if [ -n "$mounted" ]; then
    echo "7. The disk with the runtime directory is filled up.  $(url_of b2) gets"
    echo "   load factor 8.  Then a graceful restart:"
    dd if=/dev/zero of="$dir/front.run/filler" bs=4k 2>/dev/null
    log_lines=$(wc -l <"$dir/front.log")
    submit "$(url_of b2)" w_lf=8
    before
    restart_gracefully
    check_state "graceful restart with a full disk"
    tail -n +$((log_lines + 1)) "$dir/front.log" | grep -m 1 'AH02334' \
        | sed "s|$dir/||g; s/^.*AH02334: /   log: /; s/\. .*/./"
    echo "   There is room again, and the server is stopped, and started:"
    rm "$dir/front.run/filler"
    before
    cut_off_begins
    "$httpd" -f "$dir/front.conf" -k stop
    wait_for 30 gone front || { show_log front; die "the server does not stop"; }
    start_front
    check_state "stop and start when there is room again"
else
    echo "7. (A full disk is left out: that takes root, and the right to mount one.)"
fi
echo

# Of the segments that the module tells about, the one of balancer://cluster.
status_lines=$(fetch "$base/server-status?auto" | awk -F ': ' '
    /^SlotmemSegment[0-9]+Name: / && $2 ~ /_cluster$/ {
        prefix = substr($1, 1, length($1) - length("Name"))
    }
    prefix != "" && index($1, prefix) == 1 { print }')
if [ -n "$status_lines" ]; then
    echo "8. What the module tells in $base/server-status?auto, among other things:"
    echo "$status_lines" | sed 's/^/      /'
    echo
fi
if [ -n "${DEMO_SCREENSHOT:-}" ]; then
    chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome)
    if [ -z "$chromium" ]; then
        echo "   (no chromium: no picture)"
    elif HOME=$dir "$chromium" --headless --no-sandbox --disable-gpu \
            --user-data-dir="$dir/chromium" --hide-scrollbars --window-size=1400,1400 \
            --screenshot="$DEMO_SCREENSHOT" "$base/server-status" >/dev/null 2>&1; then
        echo "   a picture of the status page is in $DEMO_SCREENSHOT"
        echo
    else
        echo "   (chromium made no picture)"
    fi
fi

if [ "${DEMO_KEEP:-}" = 1 ]; then
    echo "Everything is left running.  Look at"
    echo "   $manager"
    echo "   $base/server-status"
    echo "and press Enter to stop it."
    trap ':' INT
    read -r _ || :
    trap 'exit 130' INT
    echo
fi

# Stopped here, so that what is left behind can be told.
# shellcheck disable=SC2086
kill $clients 2>/dev/null
echo "Now the server is stopped.  It answered $(codes | grep -c '^200') requests; $(refused) came while it was down."
note_shm
"$httpd" -f "$dir/front.conf" -k stop
wait_for 30 gone front || { show_log front; die "the server does not stop"; }
left=$(shm_left | wc -l)
if [ "$left" = 0 ]; then
    verdict "shared memory left behind in /dev/shm: none" ok
else
    verdict "shared memory left behind in /dev/shm: $left objects" left
fi
errors=$(($(failed) - cut_off))
[ "$cut_off" = 0 ] || echo "   ($cut_off were answered with an error as it was cut off.)"
if [ "$errors" = 0 ]; then
    verdict "requests answered with an error: none" ok
else
    verdict "requests answered with an error: $errors" failed
    echo "--- which answer, and after how many others of the same client:"
    grep -nv -e '^200' -e '^000' "$dir"/client.* | sed "s|$dir/||"
    echo "--- what the front server logged, but for heartbeats not in yet:"
    grep -v 'AH01170: balancer://beats' "$dir/front.log" | tail -n 100
    show_log backend
fi

echo
echo "Summary"
cat "$dir/summary"
echo
if [ $lost = 0 ]; then
    echo "Everything was kept."
else
    echo "Not everything was kept."
    exit 1
fi
