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

# The project as modules/slotmem of an httpd source tree: what configure makes
# of every option, a build with the module shared and one with it static, in
# maintainer mode as well, and the tests of the provider in both httpds.
#
#     test/intree/run.sh [configure|shared|static|maintainer] ...
#
# Everything stays under build/intree.  INTREE_TESTS has the tests to run
# (words for pytest); JOBS, how many compilers run at once.

set -u
cd "$(dirname "$0")/../.." || exit 1
top=$PWD
work=$top/build/intree
tree=$work/httpd
python=${PYTHON:-/usr/bin/python3}
jobs=${JOBS:-2}
tests=${INTREE_TESTS:-test/test_contract.py test/test_status.py test/test_restore.py}
failed=

# What the tests load; everything else of httpd would only take time.
modules="authz_core unixd status watchdog proxy proxy_http proxy_balancer
         proxy_hcheck lbmethod_byrequests lbmethod_bybusyness
         lbmethod_heartbeat heartbeat heartmonitor cgid"
libraries="--with-apr=$(command -v apr-1-config)
           --with-apr-util=$(command -v apu-1-config)
           --with-pcre=$(command -v pcre2-config)"

say() {
    printf '%s\n' "intree: $*"
}

fail() {
    say "FAILED: $*"
    failed="$failed
    $*"
}

# quietly LOG command...: what it said is shown when it fails.
quietly() {
    local log=$1
    shift
    ("$@") > "$log" 2>&1 && return 0
    tail -n 40 "$log"
    return 1
}

need_tools() {
    local tool missing=
    for tool in autoconf automake libtoolize apr-1-config apu-1-config \
                pcre2-config gcc make; do
        command -v "$tool" > /dev/null || missing="$missing $tool"
    done
    [ -z "$missing" ] && return
    say "missing:$missing (Debian: autoconf automake libtool libapr1-dev" \
        "libaprutil1-dev libpcre2-dev gcc make)"
    exit 1
}

# The tree as its authors published it, less the module that ours replaces,
# plus what this project has under version control.
make_tree() {
    local archive
    archive=$("$top/test/intree/source.sh" apache2 "$top/build/source") ||
        exit 1
    say "source: $(basename "$archive")"
    rm -rf "$work"
    mkdir -p "$tree"
    tar -xf "$archive" -C "$tree" --strip-components=1 \
        --exclude='*/modules/slotmem/mod_slotmem_shm.*' || exit 1
    project_files | tar -c --null -T - | tar -x -C "$tree/modules/slotmem" ||
        exit 1
    (cd "$tree" && quietly "$work/buildconf.log" \
        ./buildconf --with-apr="$(command -v apr-1-config)") || exit 1
}

project_files() {
    if git rev-parse --git-dir > /dev/null 2>&1; then
        git ls-files -z --cached --others --exclude-standard
    else
        find . -path ./build -prune -o -path ./.libs -prune -o -type f -print0
    fi
}

# configured NAME options...: configures build/intree/NAME.
configured() {
    local name=$1
    shift
    rm -rf "${work:?}/$name"
    mkdir -p "$work/$name"
    # shellcheck disable=SC2086 # $libraries are words
    (cd "$work/$name" && "${TREE:-$tree}/configure" \
        --cache-file="$work/config.cache" --prefix="$work/$name/installed" \
        --enable-mpms-shared=all $libraries "$@" > configure.log 2>&1)
}

# -- configure: what an httpd builder gets for each option --

# How modules.mk has a module: shared, static or no.
built() {
    local mk=$work/matrix/modules/slotmem/modules.mk
    if grep -q "^shared = .*\bmod_$1\.la" "$mk"; then
        echo shared
    elif grep -q "^static = .*\blibmod_$1\.la" "$mk"; then
        echo static
    else
        echo no
    fi
}

# expect SHM PLAIN options...
expect() {
    local shm=$1 plain=$2 got
    shift 2
    if ! configured matrix "$@"; then
        fail "configure $* ended in an error: $(tail -n 1 \
            "$work/matrix/configure.log")"
        return
    fi
    got="$(built slotmem_shm) $(built slotmem_plain)"
    if [ "$got" = "$shm $plain" ]; then
        say "configure $*: mod_slotmem_shm $shm, mod_slotmem_plain $plain"
    else
        fail "configure $*: wanted $shm $plain, got $got"
    fi
}

# expect_refusal WORDS options...: configure must stop, and say WORDS.
expect_refusal() {
    local words=$1
    shift
    if configured matrix "$@"; then
        fail "configure $* went on"
    elif grep -q "$words" "$work/matrix/configure.log"; then
        say "configure $*: refused: $words"
    else
        fail "configure $* did not say: $words"
    fi
}

check_configure() {
    local bare=$work/bare lacking='mod_slotmem_shm needs a C11 compiler'
    # As a compiler for a processor without such instructions has it.
    local old='CPPFLAGS=-U__GCC_ATOMIC_LLONG_LOCK_FREE -D__GCC_ATOMIC_LLONG_LOCK_FREE=1'

    expect shared no
    expect static no --enable-slotmem-shm=static
    expect shared no --enable-modules=few --enable-slotmem-shm=shared
    expect no no --enable-slotmem-shm=no
    expect no no --enable-modules=few
    expect static shared --enable-mods-static=slotmem_shm \
        --enable-slotmem-plain=shared
    expect shared shared --enable-modules=all

    mv "$work/config.cache" "$work/config.cache.good"
    expect no no "$old"
    grep -q "$lacking" "$work/matrix/configure.log" ||
        fail "configure left mod_slotmem_shm out without saying why"
    expect_refusal "$lacking" --enable-slotmem-shm "$old"
    mv "$work/config.cache.good" "$work/config.cache"

    cp -a "$tree" "$bare"
    rm "$bare/modules/slotmem/mod_slotmem_plain.c"
    TREE=$bare expect shared no --enable-modules=all
    TREE=$bare expect_refusal 'mod_slotmem_plain has been requested but' \
        --enable-slotmem-plain
    rm -rf "$bare" "$work/matrix"
}

# -- builds and tests --

# build NAME options...: configures, makes and installs build/intree/NAME.
build() {
    local name=$1 module options=(--enable-modules=none)
    shift
    for module in $modules; do
        options+=("--enable-${module//_/-}=shared")
    done
    if ! configured "$name" "${options[@]}" "$@"; then
        tail -n 20 "$work/$name/configure.log"
        fail "$name: configure"
        return 1
    fi
    quietly "$work/$name/make.log" make -C "$work/$name" -j"$jobs" &&
        quietly "$work/$name/install.log" make -C "$work/$name" install ||
        { fail "$name: make"; return 1; }
    if grep -n 'mod_slotmem_shm.*warning' "$work/$name/make.log"; then
        fail "$name: warnings"
    fi
}

# run_tests NAME MODULE words-for-pytest...
run_tests() {
    local name=$1 module=$2 parallel=
    shift 2
    "$python" -c 'import xdist' 2> /dev/null && parallel="-n $jobs --dist loadfile"
    # shellcheck disable=SC2086 # words
    APXS=$work/$name/installed/bin/apxs SLOTMEM_MODULE=$module \
        SLOTMEM_TEST_BUILD=$work/$name/test \
        "$python" -B -m pytest -p no:cacheprovider -q --module ours \
        $parallel $tests "$@" || fail "$name: tests"
}

check_shared() {
    local installed=$work/shared/installed stock
    say "mod_slotmem_shm and mod_slotmem_plain shared"
    build shared --enable-slotmem-shm=shared --enable-slotmem-plain=shared ||
        return
    [ -f "$installed/modules/mod_slotmem_plain.so" ] ||
        fail "shared: no mod_slotmem_plain.so"
    # httpd's own module, to move to and back: Debian's, this tree has none.
    stock=$(apxs -q LIBEXECDIR 2> /dev/null)/mod_slotmem_shm.so
    SLOTMEM_STOCK=$stock run_tests shared \
        "$installed/modules/mod_slotmem_shm.so"
}

# A static module is not unloaded at a restart: its variables keep what they
# held.  There is no module to load; the harness is given a file that exists.
check_static() {
    local installed=$work/static/installed
    say "mod_slotmem_shm static"
    build static --enable-slotmem-shm=static || return
    "$installed/bin/httpd" -l | grep -q '^ *mod_slotmem_shm\.c$' ||
        fail "static: httpd -l does not list mod_slotmem_shm.c"
    run_tests static "$installed/bin/httpd"
}

# -std=c89 -Werror and AP_DEBUG, which httpd's maintainers build with.
check_maintainer() {
    say "maintainer mode"
    configured maintainer --enable-maintainer-mode --enable-slotmem-shm \
        --enable-slotmem-plain || { fail "maintainer: configure"; return; }
    quietly "$work/maintainer/make.log" \
        make -C "$work/maintainer/modules/slotmem" shared-build ||
        fail "maintainer: make"
}

renice -n 5 -p $$ > /dev/null
need_tools
make_tree
[ $# -gt 0 ] || set -- configure maintainer shared static
for part; do
    "check_$part"
done
if [ -n "$failed" ]; then
    say "failed:$failed"
    exit 1
fi
say "all is well"
