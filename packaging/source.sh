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

# Copies what is under version control (all of it, where there is none) to
# TREE, and packs that as ARCHIVE; the same content gives the same archive.
#
#     packaging/source.sh TREE ARCHIVE
set -eu
LC_ALL=C
export LC_ALL

top=$(cd "$(dirname "$0")/.." && pwd)
tree=$1
archive=$2
mtime=@$(dpkg-parsechangelog -l "$top/packaging/debian/changelog" -S Timestamp)

files() {
    if git ls-files --error-unmatch Makefile >/dev/null 2>&1; then
        git ls-files -z --cached --others --exclude-standard
    else
        find . -path ./build -prune -o -path ./.libs -prune \
            -o -name '*.[ls]o' -prune -o -name '*.la' -prune \
            -o -name '*.o' -prune -o -type f -print0
    fi
}

# Of a list with NUL: a tracked file may have been removed since.
there() {
    xargs -0 sh -c 'for f do [ ! -f "$f" ] || printf "%s\0" "$f"; done' sh
}

mkdir -p "$tree"
(cd "$top" && files | there | tar --no-recursion --null -T - -cf -) |
    tar -C "$tree" -xf -
tar -C "${tree%/*}" --sort=name --owner=0 --group=0 --numeric-owner \
    --mtime="$mtime" -cf - "${tree##*/}" | gzip -n >"$archive"
