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

# Builds and runs a fuzzer, fuzz_NAME.c: run.sh NAME [ARGUMENT ...]
#
# FUZZ_SECONDS says for how long (restore 45, others 20), FUZZ_RUNS how often
# instead (FUZZ_RUNS=10000000 before a release); arguments go to libFuzzer, a
# file that crashed it for instance.  CLANG names the compiler.  What it learns
# stays in build/fuzz/NAME.corpus, what crashes it in build/fuzz/.
set -eu
name=$1
shift
top=$(cd "$(dirname "$0")/../.." && pwd)
apxs=${APXS:-apxs}
python=${PYTHON:-/usr/bin/python3}
clang=${CLANG:-$(command -v clang-14 || command -v clang)}
apr=$($apxs -q APR_CONFIG 2>/dev/null || command -v apr-1-config)
apu=$($apxs -q APU_CONFIG 2>/dev/null || command -v apu-1-config)

mkdir -p "$top/build/fuzz/$name.corpus"
cd "$top/build/fuzz"
corpus=$name.corpus
seconds=20
coverage=
case $name in
    restore)
        # Whole chunks in small files.
        with="SINK_SIZE:slotmem_store.h:256u
            SLOTMEM_IMAGE_CHUNK:slotmem_image.h:256u"
        mkdir -p restore.start
        "$python" "$top/test/fuzz/make_corpus.py" restore.start
        corpus="$corpus restore.start"
        seconds=45
        set -- -max_len=4096 "$@" ;;
    *)
        # As many ways to wait for a lock, less often each: it was most of a run.
        # Stripes that are shared, and images in parts, in small segments.
        with="SLOTMEM_STRIPES_MAX:slotmem_locks.h:32u
            SINK_SIZE:slotmem_store.h:256u
            SLOTMEM_SNAPSHOT_TRIES:slotmem_locks.h:24u
            SLOTMEM_SNAPSHOT_NAPS:slotmem_locks.h:8u
            SLOTMEM_WAIT_SPINS:slotmem_locks.h:4u
            SLOTMEM_WAIT_YIELDS:slotmem_locks.h:4u" ;;
esac
case $name in
    header)
        set -- -max_len=512 -len_control=10 "$@" ;;
    carry)
        # Comparisons are not traced: that is most of a run, and the words are
        # opaque but for a few bits.
        coverage=-fno-sanitize-coverage=trace-cmp
        set -- -max_len=1024 -len_control=10 "$@" ;;
esac
# The source with other constants.
rm -rf "$name.source"
mkdir -p "$name.source"
cp "$top/mod_slotmem_shm.c" "$top"/include/*.h "$name.source"
for one in $with; do
    constant=${one%%:*}
    value=${one##*:}
    header=${one#*:}
    header=$name.source/${header%:*}
    sed -i "s/^#define $constant *[^ ]*/#define $constant $value/" "$header"
    grep -q "^#define $constant $value" "$header"
done
bound=-max_total_time=${FUZZ_SECONDS:-$seconds}
[ -z "${FUZZ_RUNS:-}" ] || bound=-runs=$FUZZ_RUNS
# shellcheck disable=SC2046,SC2086  # the tools answer with words
$clang -std=gnu11 -g -O2 -Wall -Wextra -Wno-unused-function -D_GNU_SOURCE \
    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    $coverage $($apr --cppflags) -I"$($apxs -q INCLUDEDIR)" $($apr --includes) \
    $($apu --includes) "-I$name.source" -o "fuzz_$name" \
    "$top/test/fuzz/fuzz_$name.c" $($apr --link-ld) $($apu --link-ld)

# shellcheck disable=SC2086
exec env ASAN_OPTIONS="allow_user_segv_handler=1:detect_leaks=0:${ASAN_OPTIONS:-}" \
    "./fuzz_$name" "$bound" -timeout=20 -rss_limit_mb=2048 \
    -print_final_stats=1 "$@" $corpus
