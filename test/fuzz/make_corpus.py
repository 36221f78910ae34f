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
"""Files for fuzz_restore.c to start from: make_corpus.py DIRECTORY.

One for each kind of file that restore tells apart, for each geometry of its
list, as raw bytes and as a recipe.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                os.pardir))

import storedfile     # noqa: E402  (the path above finds it)

# As in fuzz_restore.c.
GEOMETRIES = [(4, 3), (1, 1), (0, 5), (64, 0), (200, 10), (1, 130), (7, 65),
              (16, 64), (3, 420), (700, 2), (256, 1), (255, 3)]
RAW, RECIPE, CLEARED, SHORTER = 0, 1, 2, 4
TYPE = "persist+pregrab"


def recipe(num, slots, table, cut=0, added=b"", added_len=0, changes=(),
           trailer=b"\0"):
    parts = [num.to_bytes(2, "big"), bytes([len(slots)]), slots,
             bytes([len(table)]), table, trailer, bytes([cut]),
             bytes([added_len]), bytes([len(added)]), added]
    parts += [off.to_bytes(3, "big") + bytes([value])
              for off, value in changes]
    return b"".join(parts)


def raw_files(size, num):
    """(what, bytes) of files that are small enough to be given whole."""
    def filled(count):
        return storedfile.image(size, count, TYPE, b"\x5a" * (size * count),
                                set(range(0, count, 2)))

    good = filled(num)
    yield "good", good
    yield "followed", good + good[:30]
    yield "cut", good[:-1]
    yield "flipped", good[:-20] + bytes([good[-20] ^ 1]) + good[-19:]
    yield "grown", filled(max(num - 1, 0))
    yield "shrunk", filled(num + 1)
    yield "shrunk-empty", storedfile.image(size, num + 3, TYPE)
    yield "other-size", storedfile.image(size + 1, num, TYPE)
    yield "other-type", storedfile.image(size, num, "persist")
    yield "no-descriptor", good[:-16]
    yield "bare", good[:-32]
    yield "empty", b""
    yield "descriptor", good[-16:]


def recipes(num):
    for what, count in (("same", num), ("fewer", max(num - 1, 0)),
                        ("more", num + 1), ("many-more", num + 70)):
        yield what, recipe(count, b"\1\2\3", b"\1\0")
        yield what + "-zero", recipe(count, b"", b"")
        yield what + "-trailer", recipe(count, b"\1\0\3", b"\1\0",
                                        trailer=b"\1\3\1\2\0")
        yield what + "-cut", recipe(count, b"\1", b"\1", cut=1)
        yield what + "-added", recipe(count, b"\1", b"\0", added=b"x",
                                      added_len=40)
        yield what + "-changed", recipe(count, b"", b"",
                                        changes=[(9, 1), (20, 0)])


def main(folder):
    for index, (size, num) in enumerate(GEOMETRIES):
        inputs = [("recipe-" + what, bytes([index, RECIPE]) + data)
                  for what, data in recipes(num)]
        inputs += [("cleared-" + what, bytes([index, RECIPE | CLEARED]) + data)
                   for what, data in recipes(num)]
        if size * num < 2500:
            inputs += [("raw-" + what, bytes([index, RAW]) + data)
                       for what, data in raw_files(size, num)]
        inputs.append(("shorter", bytes([index, RECIPE | SHORTER])
                       + recipe(num, b"\1", b"\1")))
        for what, data in inputs:
            storedfile.write(os.path.join(folder, f"{size}x{num}-{what}"),
                             data)


if __name__ == "__main__":
    main(sys.argv[1])
