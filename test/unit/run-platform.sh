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

# Builds and runs platform_tests.c: it needs APR and cmocka, and no httpd.
#
#     run-platform.sh [KIND ...]
#
# KIND is own (the shared memory that APR makes here), sysv or file (as an APR
# makes it that is built for that, other_shm.h); all of them without any.
# CC has the compiler, CFLAGS more for it, APR_CONFIG names another
# apr-1-config, and with it the compiler.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
apr=${APR_CONFIG:-apr-1-config}
[ -z "${APR_CONFIG:-}" ] || CC=${CC:-$("$apr" --cc)}
out=$top/build/unit
mkdir -p "$out"
[ $# -gt 0 ] || set -- own sysv file
for kind in "$@"; do
    case $kind in
    own) other= ;;
    sysv) other="-DOTHER_SHM_SYSV -include $top/test/unit/other_shm.h" ;;
    file) other="-include $top/test/unit/other_shm.h" ;;
    *) echo "run-platform.sh: no kind $kind" >&2; exit 2 ;;
    esac
    # shellcheck disable=SC2046,SC2086  # words
    ${CC:-cc} -std=gnu11 -O2 -g -Wall -Wextra -Wshadow -Wconversion -Werror \
        -Wno-unused-function $($apr --cppflags) $($apr --includes) \
        ${CFLAGS:-} $other -I"$top/include" -o "$out/platform-$kind" \
        "$top/test/unit/platform_tests.c" $($apr --link-ld) -lcmocka
    echo "unit: platform $kind"
    "$out/platform-$kind"
done
