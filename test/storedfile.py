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
"""Stored files, made and read without the module: what the tests compare to.

The layout is that of include/mod_slotmem_shm.h, written down a second time on
purpose.
"""

import hashlib
import os
import struct

import httpd as harness

PERSIST, NOTMPSAFE, PREGRAB, CLEARINUSE = 1, 2, 4, 8
# A number, in the byte order of the machine, as all that the file holds.
TRAILER_MAGIC = int.from_bytes(b"slotkind", "little")


def flags(text):
    """The number that a type such as "persist+pregrab" stands for."""
    bits = {"persist": PERSIST, "notmpsafe": NOTMPSAFE, "pregrab": PREGRAB,
            "clearinuse": CLEARINUSE, "0": 0}
    return sum(bits[word] for word in text.split("+"))


def image(size, num, type, slots=None, used=(), free=None):
    """A stored file's bytes; slots is {number: bytes} or all of them."""
    if free is None:
        free = num - len(used)
    if isinstance(slots, bytes):
        content = slots
    else:
        content = bytearray(size * num)
        for slot, data in (slots or {}).items():
            content[slot * size:slot * size + len(data)] = data
    table = bytes(int(slot in used) for slot in range(num))
    body = struct.pack("=II", free, 0) + bytes(content) + table
    return (body + hashlib.md5(body).digest()
            + harness.file_descriptor().pack(size, num, flags(type)))


def split_trailer(raw):
    """The image, which is what the stock module knows, and the kinds of its
    slots if they follow it, else None.  ValueError if those are not whole."""
    if raw[-8:] != struct.pack("=Q", TRAILER_MAGIC):
        return raw, None
    length = struct.unpack("=Q", raw[-16:-8])[0]
    if not 48 <= length <= len(raw) - 40:
        raise ValueError(f"a trailer of {length} bytes")
    whole, kinds = raw[:-length], raw[-length:-48]
    if raw[-48:-32] != whole[-32:-16]:
        raise ValueError("the trailer is that of another image")
    if hashlib.md5(kinds + raw[-48:-32]).digest() != raw[-32:-16]:
        raise ValueError("the trailer's MD5 is wrong")
    return whole, kinds


class Stored:
    """A stored file taken apart; raises ValueError if it is not whole."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.raw, self.kinds = split_trailer(file.read())
        raw = self.raw
        if len(raw) < 40:
            raise ValueError(f"{path}: {len(raw)} bytes")
        self.size, self.num, self.type = harness.file_descriptor().unpack(
            raw[-16:])
        if len(raw) != 40 + self.num * (self.size + 1):
            raise ValueError(f"{path}: {len(raw)} bytes do not hold "
                             f"{self.num} slots of {self.size}")
        if self.kinds is not None and len(self.kinds) != self.num:
            raise ValueError(f"{path}: {len(self.kinds)} kinds")
        if hashlib.md5(raw[:-32]).digest() != raw[-32:-16]:
            raise ValueError(f"{path}: the MD5 is wrong")
        end = 8 + self.size * self.num
        self.free = struct.unpack("=I", raw[:4])[0]
        self.slots = [raw[8 + i * self.size:8 + (i + 1) * self.size]
                      for i in range(self.num)]
        self.used = [i for i, one in enumerate(raw[end:end + self.num]) if one]


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def identity(path):
    """Changes when the file is written or replaced."""
    info = os.stat(path)
    return info.st_ino, info.st_mtime_ns, info.st_ctime_ns
