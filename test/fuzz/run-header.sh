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

# Builds and runs fuzz_header.c: run-header.sh [SECONDS [ARGUMENT ...]]
#
# FUZZ_SECONDS or the first argument say for how long (20); what follows goes
# to libFuzzer, a file that crashed it for instance.  CLANG names the compiler.
# What it learns stays in build/fuzz/header.corpus, what crashes it in
# build/fuzz/.
set -eu
top=$(cd "$(dirname "$0")/../.." && pwd)
apxs=${APXS:-apxs}
clang=${CLANG:-$(command -v clang-14 || command -v clang)}
apr=$($apxs -q APR_CONFIG 2>/dev/null || command -v apr-1-config)
apu=$($apxs -q APU_CONFIG 2>/dev/null || command -v apu-1-config)
seconds=${1:-${FUZZ_SECONDS:-20}}
[ $# -gt 0 ] && shift

mkdir -p "$top/build/fuzz/header.corpus"
cd "$top/build/fuzz"
# shellcheck disable=SC2046  # the tools answer with words
$clang -std=gnu11 -g -O1 -Wall -Wextra -Wno-unused-function -D_GNU_SOURCE \
    -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    $($apr --cppflags) -I"$($apxs -q INCLUDEDIR)" $($apr --includes) \
    $($apu --includes) -I"$top/include" -o fuzz_header \
    "$top/test/fuzz/fuzz_header.c" $($apr --link-ld) $($apu --link-ld)

exec env ASAN_OPTIONS="allow_user_segv_handler=1:detect_leaks=0:${ASAN_OPTIONS:-}" \
    ./fuzz_header -max_total_time="$seconds" -max_len=512 -len_control=10 \
    -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 "$@" header.corpus
