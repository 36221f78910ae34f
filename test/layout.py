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
"""Where things lie in a segment, by what include/ says.

The headers are compiled, so a test that reads or writes a lock, a word of the
table or a field of the header follows them when they change.  The stored file
is another matter: storedfile.py writes its format down a second time.
"""

import ctypes
import functools
import os
import subprocess

import httpd as harness
import sharedmem

SLACK = 64

_SOURCE = r"""
#include "mod_slotmem_shm.h"
#include "slotmem_locks.h"
#include "slotmem_table.h"
#define FIELD(name) \
    if (strcmp(field, #name) == 0) { \
        return offsetof(struct slotmem_shm_header, name); \
    }

size_t table_size(unsigned int num) { return slotmem_table_size(num); }
size_t locks_size(unsigned int num) { return slotmem_locks_size(num); }
size_t lock_size(void) { return sizeof(slotmem_lock_t); }
size_t header_size(void) { return sizeof(struct slotmem_shm_header); }
size_t header_field(const char *field)
{
    FIELD(magic) FIELD(version) FIELD(type) FIELD(item_size) FIELD(item_num)
    FIELD(slots_offset) FIELD(total_size) FIELD(generation) FIELD(pid)
    FIELD(run) FIELD(stored)
    return (size_t)-1;
}
"""


@functools.lru_cache(None)
def _headers():
    folder = os.path.join(harness.BUILD, "layout")
    source = os.path.join(folder, f"layout-{os.getpid()}.c")
    built = os.path.join(folder, f"layout-{os.getpid()}.so")
    os.makedirs(folder, exist_ok=True)
    try:
        with open(source, "w") as file:
            file.write("#include <stddef.h>\n#include <string.h>\n" + _SOURCE)
        subprocess.run([os.environ.get("CC", "cc"), "-std=gnu11", "-shared",
                        "-fPIC", "-I", os.path.join(harness.TOP, "include"),
                        "-o", built, source], check=True)
        library = ctypes.CDLL(built)
    finally:
        for path in source, built:
            if os.path.exists(path):
                os.unlink(path)
    for name in "table_size", "locks_size", "lock_size", "header_size", \
            "header_field":
        getattr(library, name).restype = ctypes.c_size_t
    for name in "table_size", "locks_size":
        getattr(library, name).argtypes = [ctypes.c_uint]
    return library


def lock(num, stripe):
    """Where the lock of a stripe lies, from slot 0 of num slots on."""
    headers = _headers()
    return stripe * headers.lock_size() - headers.locks_size(num)


def table(num):
    """Where the table lies, from slot 0 of num slots on."""
    headers = _headers()
    return -headers.locks_size(num) - headers.table_size(num)


def slots_offset(num):
    """Where slot 0 lies, from the header on."""
    headers = _headers()
    return (headers.header_size() + headers.table_size(num)
            + headers.locks_size(num))


def part_end(end):
    """Where the next part of a segment begins, as a machine of 64 bits
    reckons."""
    return (end + 63) % (1 << 64) // 64 * 64


def field(name):
    """Where a field of the header lies, from the start of the object on."""
    at = _headers().header_field(name.encode())
    assert at != ctypes.c_size_t(-1).value, f"the header has no {name}"
    return sharedmem.header_at() + at


def header_end():
    return sharedmem.header_at() + _headers().header_size()
