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

# Builds the Debian package, source and binary, and looks at it with lintian.
#
#     packaging/make-deb.sh [DIR [VERSION]]
#
# Everything is made in DIR (build/deb); the last line printed is the package.
# VERSION, if given, is put on top of the changelog.
set -eu
LC_ALL=C
export LC_ALL

top=$(cd "$(dirname "$0")/.." && pwd)
dir=${1:-$top/build/deb}
name=libapache2-mod-slotmem-shm
changelog=$top/packaging/debian/changelog

field() {
    dpkg-parsechangelog -l "$1" -S "$2"
}

version=${2:-$(field "$changelog" Version)}
upstream=${version%-*}
tree=$dir/$name-$upstream
log=$dir/build.log

grep -q "^Changes with mod_slotmem_shm $upstream\$" "$top/CHANGES" || {
    echo "make-deb: version $upstream is not in CHANGES" >&2
    exit 1
}

rm -rf "$dir"
mkdir -p "$dir"
sh "$top/packaging/source.sh" "$tree" "$dir/${name}_$upstream.orig.tar.gz"
cp -r "$tree/packaging/debian" "$tree/debian"
if [ $# -gt 1 ]; then
    {
        printf '%s (%s) unstable; urgency=medium\n\n  * Built anew.\n\n' \
            "$name" "$version"
        printf ' -- %s  %s\n\n' "$(field "$changelog" Maintainer)" "$(date -R)"
        cat "$changelog"
    } >"$tree/debian/changelog"
fi

if ! (cd "$tree" && dpkg-buildpackage -us -uc) >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "make-deb: dpkg-buildpackage failed; all it said is in $log" >&2
    exit 1
fi
lintian --allow-root --fail-on info,pedantic,warning,error -I --pedantic \
    "$dir"/*.changes >&2
ls "$dir"/*.deb | grep -v dbgsym
