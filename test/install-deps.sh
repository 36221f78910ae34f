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
# Installs the Debian packages that a target of the Makefile needs, if any of
# them is missing; says first what it will do.  Silent when nothing is.
#
#     test/install-deps.sh build|demo|check|bench|screenshot|manual|deb|check-deb|rpm
#
# Never the package apache2: that would start a server on port 80.  With APXS
# set to an apxs that is there, httpd's own packages are not asked for: it is
# another httpd that is to be used.
set -u
LC_ALL=C
export LC_ALL

usage="usage: $0 build|demo|check|bench|screenshot|manual|deb|check-deb|rpm"
[ $# = 1 ] || { echo "$usage" >&2; exit 2; }

compiler="gcc libc6-dev make"
httpd="apache2-bin apache2-dev"
case ${APXS:-apxs} in
    apxs | apxs2 | /usr/bin/apxs | /usr/bin/apxs2) ;;
    *) command -v "$APXS" >/dev/null 2>&1 && httpd= ;;
esac
build="$compiler $httpd"
demo="$build curl apache2-utils python3"
deb="$compiler apache2-dev debhelper dpkg-dev lintian"
case $1 in
    build) wanted=$build ;;
    demo) wanted=$demo ;;
    check) wanted="$demo python3-pytest python3-pytest-xdist procps strace
                   clang clang-format clang-tidy libclang-rt-dev cppcheck
                   valgrind libcmocka-dev libxml2-utils relacy-dev spin tidy" ;;
    bench) wanted="$demo valgrind wrk" ;;
    screenshot) wanted="$demo chromium fonts-dejavu-core" ;;
    manual) wanted=libxml2-utils ;;
    deb) wanted=$deb ;;
    check-deb) wanted="$deb autopkgtest mmdebstrap" ;;
    rpm) wanted="$build cpio python3 rpm rpmlint" ;;
    *) echo "$usage" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
    command -v "${APXS:-apxs}" >/dev/null && exit 0
    echo "install-deps: no Debian here, and no ${APXS:-apxs}: see \"Other" \
         "systems\" in README.md for the packages to install" >&2
    exit 1
fi

# The names of those that are not installed, of the names given.
missing_of() {
    # shellcheck disable=SC2016 # dpkg-query's variables, not the shell's
    installed=" $(dpkg-query -W -f '${db:Status-Status}:${Package} ' "$@" \
                  2>/dev/null) "
    for package in "$@"; do
        case $installed in
            *" installed:$package "*) ;;
            *) printf '%s ' "$package" ;;
        esac
    done
}

# shellcheck disable=SC2086 # words on purpose
missing=$(missing_of $wanted)
[ -n "$missing" ] || exit 0

install="apt-get install -y --no-install-recommends $missing"
if [ "$(id -u)" != 0 ]; then
    echo "install-deps: \`make $1\` needs packages that are not installed." \
         "As root:" >&2
    echo "    $install" >&2
    exit 1
fi

echo "install-deps: \`make $1\` needs packages that are not installed. Running:"
echo "    apt-get update"
echo "    $install"
DEBIAN_FRONTEND=noninteractive
export DEBIAN_FRONTEND
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT

# Runs a command; what it says is of interest only when it fails.
quietly() {
    "$@" >"$log" 2>&1 && return
    status=$?
    cat "$log" >&2
    echo "install-deps: \"$*\" failed" >&2
    exit $status
}

quietly apt-get update -q
# shellcheck disable=SC2086
quietly apt-get install -q -s --no-install-recommends $missing
if grep -q '^Inst apache2 ' "$log"; then
    echo "install-deps: that would bring in the package apache2, which starts" \
         "a server. Nothing was installed" >&2
    exit 1
fi
# shellcheck disable=SC2086
quietly apt-get install -q -y --no-install-recommends $missing
