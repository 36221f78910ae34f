#!/bin/bash
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

# The Debian package as an administrator meets it, with apt, in a root of its
# own where apache2 serves a balancer: installed, upgraded, reinstalled, removed
# and purged, before and after the server's own upgrade.  After each step: which
# file is where (by digest), which one the running server has mapped, whether
# the server was reloaded as it should be, and whether the state that an
# administrator set in balancer-manager is still there.
#
#     test/packaging/run.sh [autopkgtest]
#
# With autopkgtest, that alone: the package's own tests, in another such root.
# Everything stays under build/packaging, and in namespaces that end with this
# script; the server listens on a port of 127.0.0.1.
#
#   DEBIAN_SUITE                      bookworm
#   DEBIAN_MIRROR, DEBIAN_SECURITY    where to fetch it from
#   AUTOPKGTEST=no                    without the package's own tests

set -u
LC_ALL=C
export LC_ALL
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy

top=$(cd "$(dirname "$0")/../.." && pwd)
work=$top/build/packaging
root=$work/root
base=$work/${DEBIAN_SUITE:-bookworm}.tar
suite=${DEBIAN_SUITE:-bookworm}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
security=${DEBIAN_SECURITY:-http://deb.debian.org/debian-security}
package=libapache2-mod-slotmem-shm
modules=/usr/lib/apache2/modules
module=$modules/mod_slotmem_shm.so
run_dir=/run/apache2

say() {
    printf 'packaging: %s\n' "$*"
}

die() {
    say "FAILED: $*"
    exit 1
}

# quietly NAME command...: what it says goes to a log that is shown if it fails.
quietly() {
    local log=$work/$1.log
    shift
    "$@" >"$log" 2>&1 && return
    tail -n 40 "$log"
    die "$*"
}

# ---------------------------------------------------------------- preparation

# Two versions that differ as two versions do: in their code, too.
build_packages() {
    local new
    new=$(dpkg-parsechangelog -l "$top/packaging/debian/changelog" -S Version)
    quietly build-1 sh "$top/packaging/make-deb.sh" "$work/1"
    DEB_CFLAGS_APPEND=-O1 quietly build-2 \
        sh "$top/packaging/make-deb.sh" "$work/2" "${new%1}2"
    deb1=$(echo "$work/1/$package"_*.deb)
    deb2=$(echo "$work/2/$package"_*.deb)
}

# The release as it came out, so that its updates can be installed later.
make_base() {
    [ -s "$base" ] && return
    say "fetching $suite"
    quietly base mmdebstrap --variant=apt --include=apache2 "$suite" \
        "$work/new.tar" "deb $mirror $suite main"
    mv "$work/new.tar" "$base"
}

# unpack DIR: a fresh root, with what this run has mounted in it.
unpack() {
    # A mount itself: tests that mount look for one at /.
    mkdir -p "$1" && mount --bind "$1" "$1" &&
        tar -C "$1" --numeric-owner -xf "$base" &&
        cp /etc/resolv.conf "$1/etc/resolv.conf" &&
        mount -t proc proc "$1/proc" &&
        mount -t tmpfs -o mode=755 tmpfs "$1/run" && mkdir -p "$1/run/lock" &&
        mkdir -p "$1/dev/shm" "$1/dev/pts" &&
        mount -t devpts -o newinstance,ptmxmode=666 devpts "$1/dev/pts" &&
        mount -t tmpfs -o mode=1777,size=64m tmpfs "$1/dev/shm" ||
        die "no root in $1"
}

with_updates() {
    cat >"$1/etc/apt/sources.list" <<END
deb $mirror $suite main
deb $mirror $suite-updates main
deb $security $suite-security main
END
}

# ---------------------------------------------------------------- in the root

within() {
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
}

# apt WORDS...: what an administrator types, less the questions.
apt() {
    within apt-get -q -y "$@" </dev/null >"$work/apt.log" 2>&1
}

must_apt() {
    apt "$@" && return
    tail -n 40 "$work/apt.log"
    die "apt-get $*"
}

digest() {
    [ -f "$root$1" ] || { echo none; return; }
    sha256sum <"$root$1" | cut -c 1-64
}

# Of the .so in a package.
digest_in() {
    dpkg-deb --fsys-tarfile "$1" | tar -xO ".$module" | sha256sum | cut -c 1-64
}

called() {
    case $1 in
        "$stock") echo "apache2-bin's" ;;
        "$first") echo "version 1" ;;
        "$second") echo "version 2" ;;
        *) echo "$1" ;;
    esac
}

free_port() {
    /usr/bin/python3 -c 'import socket
s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

configure() {
    # There is no init here; its absence would forbid all, and a machine has one.
    printf '#!/bin/sh\nexit 0\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    port=$(free_port)
    echo "Listen 127.0.0.1:$port" >"$root/etc/apache2/ports.conf"
    cat >"$root/etc/apache2/conf-available/balancer.conf" <<END
ServerName localhost
BalancerPersist On
<Proxy balancer://app>
    BalancerMember http://127.0.0.1:1
    BalancerMember http://127.0.0.1:2
</Proxy>
<Location /balancer-manager>
    SetHandler balancer-manager
    Require local
</Location>
END
    within a2enmod -q proxy_balancer proxy_http lbmethod_byrequests >/dev/null
    within a2enconf -q balancer >/dev/null
    # The state of a balancer that is not configured today.
    mkdir -p "$root$run_dir"
    echo "of another balancer" >"$root$run_dir/$other"
}
other=slotmem-shm-other.shm.persist

manager() {
    local url=http://127.0.0.1:$port/balancer-manager
    curl -sS --max-time 10 -H "Referer: $url" "$@" "$url"
}

# The load factor of the first member, as balancer-manager shows it.
factor() {
    manager | sed -n 's/<[^>]*>/ /g;s|^ *http://127\.0\.0\.1:1 ||p' |
        awk '{ print $1; exit }'
}

set_factor() {
    local nonce
    nonce=$(manager | sed -n 's/.*nonce=\([0-9a-f-]*\).*/\1/p' | head -n 1)
    manager -o /dev/null -d b=app -d w=http://127.0.0.1:1 -d "w_lf=$1" \
        -d "nonce=$nonce"
}

server_pid() {
    cat "$root$run_dir/apache2.pid" 2>/dev/null
}

# The file that the running server has mapped as its module: a digest.  One
# that was replaced since is mapped still, but is at no path any more.
mapped() {
    local inode
    inode=$(awk '/mod_slotmem_shm/ { print $5; exit }' \
        "/proc/$(server_pid)/maps" 2>/dev/null)
    if [ -n "$inode" ] && [ "$inode" = "$(stat -c %i "$root$module")" ]; then
        digest "$module"
    else
        echo another
    fi
}

wait_for() {
    local end=$((SECONDS + 30))
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.05
    done
}

serves() {
    [ "$(mapped)" = "$1" ] && [ "$(factor 2>/dev/null)" = "$2" ]
}

# step TEXT: the state is changed, so that each step has one of its own to keep.
step() {
    now=$1
    state=$((state + 1))
    set_factor "$state"
    wait_for factor_is "$state.00" || die "$now: balancer-manager took no change"
    pid=$(server_pid)
}
state=10

factor_is() {
    [ "$(factor)" = "$1" ]
}

# expect MODULE DISTRIB reloaded|restarted|untouched: after a step.
expect() {
    local is
    is=$(digest "$module")
    [ "$is" = "$1" ] || die "$now: at $module is $(called "$is")"
    is=$(digest "$module.distrib")
    [ "$is" = "$2" ] || die "$now: at $module.distrib is $(called "$is")"
    is=$(within dpkg-divert --list "$module")
    case $2,$is in
        none, | none) ;;
        none,*) die "$now: there is still $is" ;;
        *,"diversion of $module to $module.distrib by $package") ;;
        *) die "$now: diversion is: ${is:-none}" ;;
    esac
    wait_for serves "$1" "$state.00" ||
        die "$now: the server has $(called "$(mapped)") and load factor" \
            "$(factor), not $(called "$1") and $state.00"
    case $3 in
        restarted) [ "$(server_pid)" != "$pid" ] ;;
        *) [ "$(server_pid)" = "$pid" ] ;;
    esac || die "$now: server is $(server_pid), was $pid, should be $3"
    [ "$(cat "$root$run_dir/$other")" = "of another balancer" ] ||
        die "$now: $other was not left alone"
    within dpkg --audit | grep . && die "$now: dpkg --audit"
    say "ok  $now: $(called "$1") runs, server $3, state kept"
}

# All files, and packages with their state.  What apt keeps for itself, and
# what the server writes, is not the package's.
snapshot() {
    (cd "$root" && find . -xdev \( -path ./var/lib/apt -o -path ./var/cache \
        -o -path ./var/log -o -path ./var/lib/dpkg/info -o -path ./tmp \
        -o -name '*-old' \) -prune -o -print | sort
    find run/apache2 ! -name 'slotmem-shm-*.persist' | sort
    ls var/lib/dpkg/info)
    within dpkg-query -W -f '${db:Status-Abbrev} ${Package} ${Version}\n'
}

administrator() {
    unpack "$root"
    cp "$deb1" "$root/tmp/1.deb"
    cp "$deb2" "$root/tmp/2.deb"
    first=$(digest_in "$deb1")
    second=$(digest_in "$deb2")
    stock=$(digest "$module")
    [ "$first" != "$second" ] || die "the two versions are the same"
    configure
    must_apt update
    within service apache2 start >/dev/null || die "apache2 does not start"
    wait_for factor_is 1.00 || { manager; die "no balancer to look at"; }
    step "before"
    within service apache2 reload >/dev/null
    expect "$stock" none reloaded
    before=$(snapshot)

    step "apt install ./1.deb"
    must_apt install /tmp/1.deb
    expect "$first" "$stock" reloaded

    step "apt install --reinstall ./1.deb"
    must_apt install --reinstall /tmp/1.deb
    expect "$first" "$stock" reloaded

    step "apt install --reinstall apache2-bin"
    must_apt install --reinstall apache2-bin
    expect "$first" "$stock" untouched

    step "apt install ./2.deb, an upgrade"
    must_apt install /tmp/2.deb
    expect "$second" "$stock" reloaded

    step "apt remove"
    must_apt remove "$package"
    expect "$stock" none reloaded

    step "apt install ./2.deb, after a removal"
    must_apt install /tmp/2.deb
    expect "$second" "$stock" reloaded

    step "apt purge"
    must_apt purge "$package"
    expect "$stock" none reloaded
    wait_for nothing_left || {
        diff <(echo "$before") <(snapshot)
        die "$now: that is left, or lacking"
    }
    say "ok  $now: the root is as it was before the first step"

    local_diversion
    fails_to_unpack
    with_the_servers_upgrade
    while_it_is_stopped
    after_a_kill
    quiet_log
    with_apache2_gone
}

# The server's log, which goes with apache2.
quiet_log() {
    local log=$root/var/log/apache2/error.log
    grep -q 'resuming normal operations' "$log" || die "no log of the server"
    ! grep -E 'slotmem_shm:(warn|error|crit|alert|emerg)' "$log" ||
        die "that was in the server's log"
}

nothing_left() {
    [ "$(snapshot)" = "$before" ]
}

# The README's way without a package: not undone behind an administrator's back.
local_diversion() {
    step "apt install ./1.deb beside a local diversion"
    within dpkg-divert --quiet --local --rename --divert "$module.distrib" \
        --add "$module"
    dpkg-deb --fsys-tarfile "$deb2" | tar -xO ".$module" >"$root$module"
    if apt install /tmp/1.deb; then
        die "$now: it was installed over it"
    fi
    grep -q 'diverted by the administrator' "$work/apt.log" ||
        die "$now: it does not say why"
    [ "$(digest "$module")" = "$second" ] || die "$now: the file was touched"
    # The commands that it told.
    within rm "$module"
    within dpkg-divert --quiet --local --rename --remove "$module"
    must_apt install /tmp/1.deb
    expect "$first" "$stock" reloaded
    step "apt purge, again"
    must_apt purge "$package"
    expect "$stock" none reloaded
}

# Another package has one of its files: dpkg runs preinst, then takes it back.
fails_to_unpack() {
    local tree=$work/obstacle
    step "an installation that fails half-way"
    rm -rf "$tree"
    mkdir -p "$tree/DEBIAN" "$tree/usr/share/doc/$package"
    echo obstacle >"$tree/usr/share/doc/$package/copyright"
    cat >"$tree/DEBIAN/control" <<END
Package: obstacle
Version: 1
Architecture: all
Maintainer: nobody <nobody@localhost>
Description: has a file that another package has
END
    quietly obstacle dpkg-deb --root-owner-group -b "$tree" "$root/tmp/o.deb"
    must_apt install /tmp/o.deb
    if apt install /tmp/1.deb; then
        die "$now: it was installed over it"
    fi
    grep -q 'trying to overwrite' "$work/apt.log" || die "$now: not so"
    expect "$stock" none untouched
    must_apt purge obstacle
}

# From the release as it came out to its security updates.
with_the_servers_upgrade() {
    local old new
    must_apt install /tmp/1.deb
    wait_for serves "$first" "$state.00" || die "version 1 does not run"
    step "apt upgrade of apache2 and all"
    old=$(within dpkg-query -W -f '${Version}' apache2-bin)
    with_updates "$root"
    must_apt update
    must_apt upgrade --with-new-pkgs
    new=$(within dpkg-query -W -f '${Version}' apache2-bin)
    if [ "$old" = "$new" ]; then
        say "not tried: $now ($mirror has only $new)"
        return
    fi
    now="$now, $old to $new"
    [ "$(digest "$module.distrib")" != "$stock" ] ||
        die "$now: at $module.distrib is still the old one"
    stock=$(digest "$module.distrib")
    expect "$first" "$stock" restarted
}

# Who stopped it does not want it started by a module.
while_it_is_stopped() {
    step "apt install ./2.deb while the server is stopped"
    within service apache2 stop >/dev/null
    must_apt install /tmp/2.deb
    [ ! -e "/proc/$pid" ] || die "$now: it did not stop"
    [ -z "$(server_pid)" ] || die "$now: the server was started"
    within service apache2 start >/dev/null
    expect "$second" "$stock" restarted
}

# The change is in no file yet, but in the memory of the run that was killed;
# the other version takes it over.
after_a_kill() {
    local victims
    step "apt install ./1.deb, a downgrade, after a kill of the server"
    victims="$pid $(cat /proc/"$pid"/task/*/children)"
    # shellcheck disable=SC2086
    kill -KILL $victims
    wait_for gone "$victims" || die "$now: the server lives on"
    must_apt install --allow-downgrades /tmp/1.deb
    { [ "$(server_pid)" = "$pid" ] && gone "$pid"; } ||
        die "$now: the server was started"
    within service apache2 start >/dev/null
    expect "$first" "$stock" restarted
}

gone() {
    local victim
    for victim in $1; do
        [ ! -e "/proc/$victim" ] || return 1
    done
}

# apache2 first and the module later, or all at once: nothing may stay.
with_apache2_gone() {
    step "apt purge apache2 apache2-bin, the module with them"
    must_apt purge apache2 apache2-bin
    [ ! -e "$root$modules" ] || die "$now: left: $(ls "$root$modules")"
    [ -z "$(within dpkg-divert --list '*slotmem*')" ] ||
        die "$now: the diversion is left"
    say "ok  $now"
    must_apt install --no-install-recommends apache2-bin /tmp/1.deb
    [ "$(digest "$module")" = "$first" ] || die "not without apache2"
    must_apt purge "$package"
    [ "$(digest "$module")" = "$stock" ] || die "not back without apache2"
    say "ok  apt install and purge where apache2-bin is, and apache2 is not"
}

# ---------------------------------------------------------------- autopkgtest

own_tests() {
    root=$work/root.tests
    unpack "$root"
    with_updates "$root"
    must_apt update
    must_apt install apt-utils dpkg-dev
    say "the package's own tests (debian/tests)"
    autopkgtest --output-dir "$work/autopkgtest" "$work/1/$package"_*.dsc \
        "$deb1" -- chroot "$root" >"$work/autopkgtest.log" 2>&1
    local status=$?
    sed 's/^/packaging: autopkgtest: /' "$work/autopkgtest/summary"
    [ $status = 0 ] || {
        tail -n 60 "$work/autopkgtest.log"
        die "autopkgtest ended with $status"
    }
}

# ---------------------------------------------------------------- main

case ${1-} in
    "" | autopkgtest) ;;
    inside)
        mount --make-rprivate /
        mount -t proc proc /proc
        deb1=$(echo "$work/1/$package"_*.deb)
        deb2=$(echo "$work/2/$package"_*.deb)
        [ "$2" = autopkgtest ] || administrator
        [ "${AUTOPKGTEST:-yes}" = no ] || own_tests
        exit 0
        ;;
    *)
        echo "usage: $0 [autopkgtest]" >&2
        exit 2
        ;;
esac

[ "$(id -u)" = 0 ] || die "root is needed to make a root"
for tool in mmdebstrap dpkg-buildpackage lintian autopkgtest curl unshare; do
    command -v "$tool" >/dev/null || die "$tool is needed and was not found"
done
mkdir -p "$work"
rm -rf "$work/root" "$work/root.tests" "$work/autopkgtest"
build_packages
make_base
unshare --mount --pid --ipc --uts --fork --kill-child \
    bash "$0" inside "${1-all}"
status=$?
[ $status = 0 ] || {
    say "what was there is left in $work"
    exit $status
}
rm -rf "$work/root" "$work/root.tests"
say "all is as it should be"
