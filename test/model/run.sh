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


# Checks the models with spin, every order of their steps, and shows that what
# they check can fail: each mutation must be caught.
#
#     run.sh              all
#     run.sh -v           and each model's report
#
# MODEL_DEEP=1 adds runs that take minutes; MODEL_JOBS says how many runs go
# on at once (2).  CC names the compiler.  Every run is to the end: a search
# that was cut short fails.
set -u
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/slotmem-model.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
export here work
[ "${1:-}" = -v ] && export VERBOSE=1

command -v spin >/dev/null || { echo "run.sh: no spin; apt-get install spin"; exit 1; }

# holds|caught  safety|progress  MODEL  -DNAME ...
cat > "$work/runs" <<'RUNS'
holds safety table -DNP=2 -DDEATHS=2
holds safety table -DNP=2 -DSLOTS=3
holds safety table -DNP=2 -DLEVELS=3 -DSLOTS=8 -DOPS=1 -DONE_START=1
holds safety table -DNP=3 -DSLOTS=3 -DOPS=1 -DONE_START=1
holds progress table -DNP=2 -DSLOTS=3 -DONE_START=1
holds safety lock -DNP=2
holds safety lock -DNP=2 -DSTOPS=1 -DDEATHS=1
holds safety lock -DNP=2 -DSLOTS=2 -DDEATHS=1
holds safety lock -DNP=3 -DOPS=1
holds progress lock -DNP=2 -DDEATHS=1
holds safety span -DNP=2
holds safety span -DNP=3 -DOPS=1 -DDEATHS=1
holds progress span -DNP=2 -DOPS=1
caught safety table -DLOOK_BEFORE_SET
caught safety table -DNO_SECOND_LOOK
caught safety table -DHINT_BEFORE_LEAF
caught safety table -DHINT_STORED
caught safety table -DSTOP_AT_LEVEL_1 -DLEVELS=3 -DSLOTS=8 -DONE_START=1
caught safety table -DNO_MEND
caught safety table -DTAKE_BY_STORE
caught safety lock -DBYTES_FIRST
caught safety lock -DLOOK_EARLY
caught safety lock -DUNLOCK_EARLY
caught safety lock -DREAD_EARLY
caught safety lock -DCLEAR_EARLY
caught safety lock -DNOTE_LATE
caught safety lock -DUNLOCK_THEN_CLEAR
caught safety lock -DNO_SECOND_LOOK
caught safety lock -DSAME_SEQUENCE -DNP=3 -DOPS=1
caught safety lock -DNO_TORN_BIT
caught safety lock -DHEAL_BY_PART
caught safety lock -DHEALED_WITH_OTHERS -DSLOTS=2
caught safety lock -DMARK_BEFORE_TAKE -DNP=3 -DOPS=1
caught safety lock -DCLEAR_BEFORE_FREE
caught safety lock -DUNDER_A_MUTEX
caught safety span -DANY_ORDER
caught safety span -DNOTE_WHILE_LOCKING
caught safety span -DNO_NOTE
RUNS
[ -z "${MODEL_DEEP:-}" ] || cat >> "$work/runs" <<'RUNS'
holds safety table -DNP=2 -DOPS=3 -DDEATHS=2
holds safety table -DNP=3 -DOPS=1 -DDEATHS=2
holds safety table -DNP=3 -DOPS=2 -DSLOTS=3 -DONE_START=1
holds safety table -DNP=2 -DLEVELS=3 -DSLOTS=8 -DONE_START=1
holds progress table -DNP=2
holds progress table -DNP=2 -DLEVELS=3 -DSLOTS=8 -DOPS=1 -DONE_START=1
holds safety lock -DNP=2 -DOPS=3
holds safety lock -DNP=3 -DOPS=1 -DSTOPS=1
holds safety lock -DNP=2 -DSLOTS=2
holds progress lock -DNP=2
holds progress lock -DNP=3 -DOPS=1
holds safety span -DNP=3 -DOPS=1
holds progress span -DNP=2
RUNS

cat > "$work/one" <<'ONE'
#!/bin/sh
# NUMBER holds|caught safety|progress MODEL -DNAME ...
number=$1 expected=$2 kind=$3 model=$4
shift 4
mkdir "$work/$number" && cd "$work/$number" || exit 255
cp "$here/$model.pml" . || exit 255
# Without optimisation: the compiler would take longer than the search.
if [ "$kind" = safety ]; then
    flags=-DSAFETY options=-n
else
    flags=-DNP options='-n -l'
fi
spin -a "$@" "$model.pml" > report 2>&1 \
    && ${CC:-gcc} -O0 -w $flags -DCOLLAPSE -DVECTORSZ=512 -o pan pan.c >> report 2>&1 \
    && ./pan -m1000000 $options > report 2>&1
states=$(sed -n 's/^ *\([0-9][0-9]*\) states, stored.*/\1/p' report)
error=$(sed -n 's/^pan:1: \(.*\) (at depth [0-9]*).*/\1/p' report | cut -c1-50)
if grep -q 'errors: 0' report && ! grep -q 'max search depth\|out of memory\|Search not completed' report; then
    found=holds
elif [ -n "$error" ] && ! echo "$error" | grep -q 'out of memory\|search depth'; then
    found=caught
else
    found=broken
fi
verdict=ok
[ $found = "$expected" ] || verdict=FAILED
echo "$verdict $found: $model $kind $* (${states:-no} states${error:+; $error})"
[ $verdict = ok ] && [ -z "${VERBOSE:-}" ] || cat report
if [ $verdict = FAILED ] && [ $found = caught ]; then
    spin -t -p -g "$@" "$model.pml" 2>/dev/null | tail -150
fi
echo "$verdict ${states:-0}" > "$work/$number.done"
cd "$work" && rm -rf "$number"
ONE
chmod +x "$work/one"

nl -w1 -s' ' "$work/runs" | xargs -P "${MODEL_JOBS:-2}" -L 1 "$work/one"

wanted=$(wc -l < "$work/runs")
good=$(cat "$work"/*.done | grep -c '^ok')
states=$(cat "$work"/*.done | awk '{ n += $2 } END { print n }')
echo "models: $good of $wanted runs as they should be, $states states"
[ "$good" -eq "$wanted" ]
