#!/usr/bin/python3
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
"""Says when a header and the spin model of it have drifted apart.

Each model names its header in its head. The file `modelled` keeps the digest of
each function of that header as it was when it was last recorded, without
comments and layout. After a change: compare the model to it, then

    drift.py --record
"""
import glob
import hashlib
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
KEPT = os.path.join(HERE, "modelled")


def functions(header):
    """{name: digest of the code, without comments and layout}"""
    text = open(os.path.join(TOP, header)).read()
    code = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    found = re.finditer(r"^static inline [^;{]*?\bslotmem_(\w+)\([^;{]*\)\n"
                        r"\{.*?^\}", code, re.M | re.S)
    return {f[1]: hashlib.sha256("".join(f[0].split()).encode()).hexdigest()[:16]
            for f in found}


def modelled():
    rows = []
    for path in sorted(glob.glob(os.path.join(HERE, "*.pml"))):
        text, model = open(path).read(), os.path.basename(path)
        named = re.search(r"include/slotmem_\w+\.h", text)
        if not named:
            sys.exit(f"drift: {model} names no header")
        known = functions(named[0])
        if not known:
            sys.exit(f"drift: no functions found in {named[0]}")
        rows += [f"{model} {named[0]} {n} {known[n]}" for n in known]
    return rows


def main():
    now = modelled()
    if sys.argv[1:] == ["--record"]:
        with open(KEPT, "w") as file:
            file.write("\n".join(now) + "\n")
        return 0
    kept = open(KEPT).read().split("\n")[:-1]
    for row in sorted(set(now) ^ set(kept)):
        print("drift:", "changed or new:" if row in now else "was:", row)
    return now != kept


if __name__ == "__main__":
    sys.exit(main())
