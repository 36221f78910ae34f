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

# Builds and runs fuzz_restore.c: run.sh [ARGUMENT ...]
#
# FUZZ_SECONDS says for how long (45), FUZZ_RUNS how often instead; arguments
# go to libFuzzer, a file that crashed it for instance.  CLANG names the
# compiler.  What it learns stays in build/fuzz/restore.corpus, what crashes
# it in build/fuzz/.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
apxs=${APXS:-apxs}
python=${PYTHON:-/usr/bin/python3}
clang=${CLANG:-$(command -v clang-14 || command -v clang)}
apr=$($apxs -q APR_CONFIG 2>/dev/null || command -v apr-1-config)
apu=$($apxs -q APU_CONFIG 2>/dev/null || command -v apu-1-config)
bound="-max_total_time=${FUZZ_SECONDS:-45}"
[ -z "${FUZZ_RUNS:-}" ] || bound="-runs=$FUZZ_RUNS"

mkdir -p "$top/build/fuzz/restore.corpus" "$top/build/fuzz/restore.start"
"$python" "$top/test/fuzz/make_corpus.py" "$top/build/fuzz/restore.start"
cd "$top/build/fuzz"
mkdir -p small-chunks
smaller()   # HEADER CONSTANT
{
    sed "s/^#define $2 .*/#define $2 256u/" "$top/include/$1" > "small-chunks/$1"
    grep -q "^#define $2 256u" "small-chunks/$1"
}
rm -f small-chunks/*
smaller slotmem_store.h SINK_SIZE
smaller slotmem_image.h SLOTMEM_IMAGE_CHUNK
# shellcheck disable=SC2046  # the tools answer with words
$clang -std=gnu11 -g -O1 -Wall -Wextra -Wno-unused-function -D_GNU_SOURCE \
    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    $($apr --cppflags) -I"$($apxs -q INCLUDEDIR)" $($apr --includes) \
    $($apu --includes) -Ismall-chunks -I"$top/include" -I"$top" -o fuzz_restore \
    "$top/test/fuzz/fuzz_restore.c" $($apr --link-ld) $($apu --link-ld)

exec env ASAN_OPTIONS="allow_user_segv_handler=1:detect_leaks=0:${ASAN_OPTIONS:-}" \
    ./fuzz_restore "$bound" -max_len=4096 -timeout=20 -rss_limit_mb=2048 \
    -print_final_stats=1 "$@" restore.corpus restore.start
