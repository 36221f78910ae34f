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

# Builds and runs the tests of unit.c: run.sh [BUILD ...] [-- PATTERN]
#
# BUILD is plain, thread (ThreadSanitizer, gcc), thread-clang, address
# (AddressSanitizer and UBSan, clang), valgrind, or coverage (of
# test/coverage); plain, thread, address and valgrind without any.  Valgrind,
# which sees what is read before it was set, lets one thread run at a time: it
# gets those tests that do not hammer.
# CC and CLANG name the compilers.  A sanitizer that says anything fails.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
apxs=${APXS:-apxs}
gcc=${CC:-gcc}
clang=${CLANG:-$(command -v clang-14 || command -v clang || true)}
apr=$($apxs -q APR_CONFIG 2>/dev/null || command -v apr-1-config)
apu=$($apxs -q APU_CONFIG 2>/dev/null || command -v apu-1-config)
out=$top/build/unit
mkdir -p "$out"

build()     # NAME COMPILER FLAG ...
{
    name=$1
    cc=$2
    shift 2
    # shellcheck disable=SC2046  # the tools answer with words
    $cc -std=gnu11 -g -Wall -Wextra -Wno-unused-function -D_GNU_SOURCE "$@" \
        $($apr --cppflags) -I"$($apxs -q INCLUDEDIR)" $($apr --includes) \
        $($apu --includes) -I"$top/include" -I"$top" -o "$out/$name" \
        "$top/test/unit/unit.c" $($apr --link-ld) $($apu --link-ld) \
        -lcmocka -pthread
}

builds=
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    builds="$builds $1"
    shift
done
[ $# -eq 0 ] || shift

for name in ${builds:-plain thread address valgrind}; do
    case $name in
    plain) build plain "$gcc" -O2 ;;
    thread) build thread "$gcc" -O1 -fsanitize=thread -Wno-tsan ;;
    thread-clang) build thread-clang "$clang" -O1 -fsanitize=thread ;;
    address) build address "$clang" -O1 -fsanitize=address,undefined \
                 -fno-sanitize-recover=all ;;
    valgrind) build valgrind "$gcc" -O1 ;;
    coverage) build coverage "$clang" -O1 -fprofile-instr-generate \
                  -fcoverage-mapping -fprofile-update=atomic \
                  -mllvm -runtime-counter-relocation ;;
    *) echo "run.sh: no build $name" >&2; exit 2 ;;
    esac
    case $name in
    plain) kills=${UNIT_KILLS:-400} ;;
    *) kills=${UNIT_KILLS:-100} ;;
    esac
    echo "unit: $name"
    if [ "$name" = valgrind ]; then
        for tests in 'test_layout_*' 'test_names' 'test_the_last_slot_*' \
            'test_grab_*' 'test_no_slots_*' 'test_hints_*' 'test_release_*' \
            'test_no_hint_*' 'test_no_word_*' 'test_no_lock_word_*' \
            'test_lock_word_*' 'test_put_and_get' 'test_doall_*' \
            'test_a_put_*' 'test_mending_*' 'test_whether_*' 'test_marker_*' \
            'test_claims_*' 'test_pace_*' 'test_search_*'; do
            valgrind --quiet --error-exitcode=67 --child-silent-after-fork=yes \
                "$out/$name" "$tests"
        done
        continue
    fi
    UNIT_KILLS=$kills TSAN_OPTIONS="halt_on_error=1:exitcode=66:die_after_fork=0" \
    ASAN_OPTIONS="detect_leaks=0:allow_user_segv_handler=1" \
    UBSAN_OPTIONS="print_stacktrace=1" \
        "$out/$name" "$@"
done
[ -n "$builds" ] || bash "$top/test/unit/run-platform.sh"
