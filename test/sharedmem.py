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
"""Shared memory objects, wherever the APR of the httpd under test makes them.

An object is named by a string, from which everything else is found:

    POSIX      /dev/shm/ShM.1aH2b     two hashes of the path given to APR
    System V   SYSV0102abcd           the key, which ftok() makes of a key file
    file       the path itself

kind() tells which it is; SLOTMEM_SHM_KIND (posix, sysv, file) overrides what
is found out.  A System V object whose key file is not there (not yet, or not
any more) has no key: "SYSV? PATH", which does not exist.
"""

import contextlib
import ctypes
import functools
import os
import re
import struct
import subprocess
import tempfile

FOLDER = "/dev/shm"
_key_files = {}     # System V: object -> key file, for all that were named


@functools.lru_cache(None)
def kind():
    return os.environ.get("SLOTMEM_SHM_KIND") or _kind_of_apr() or "posix"


def _kind_of_apr():
    """What apr_shm_create() makes just now; None if APR cannot be asked."""
    try:
        apr = ctypes.CDLL("libapr-1.so.0")
    except OSError:
        return None
    pool, shm = ctypes.c_void_p(), ctypes.c_void_p()
    with tempfile.TemporaryDirectory(prefix="slotmem-") as folder:
        path = os.fsencode(os.path.join(folder, "key"))
        if apr.apr_initialize() or apr.apr_pool_create_ex(
                ctypes.byref(pool), None, None, None):
            return None
        if apr.apr_shm_create(ctypes.byref(shm), ctypes.c_size_t(4096), path,
                              pool):
            return None
        try:
            if not os.path.exists(path):
                return "posix"
            return "file" if os.path.getsize(path) > 8 else "sysv"
        finally:
            apr.apr_shm_destroy(shm)
            apr.apr_pool_destroy(pool)


@functools.lru_cache(None)
def chars_have_a_sign():
    """APR's second hash adds plain chars, which have none on ARM and s390."""
    return bool(re.match(r"i\d86|x86_64|amd64|mips|sparc",
                         os.uname().machine))


def _first_hash(key_file):
    value = 0
    for byte in os.fsencode(key_file):
        value = (value * 33 + byte) & 0xffffffff
    return value


def _posix_name(key_file):
    value, factor = 0, 63689
    for byte in os.fsencode(key_file):
        if byte > 127 and chars_have_a_sign():
            byte -= 256
        value = (value * factor + byte) & 0xffffffff
        factor = (factor * 378551) & 0xffffffff
    return f"{FOLDER}/ShM.{_first_hash(key_file):x}H{value:x}"


def _sysv_name(key_file):
    """ftok() of the GNU C library and of musl."""
    try:
        found = os.stat(key_file)
    except OSError:
        return f"SYSV? {key_file}"
    key = ((found.st_ino & 0xffff) | (found.st_dev & 0xff) << 16
           | (_first_hash(key_file) & 0xff) << 24)
    name = f"SYSV{key:08x}"
    _key_files[name] = key_file
    return name


def of_key(key_file):
    """The object that APR makes for a path given to it."""
    return {"posix": _posix_name, "sysv": _sysv_name,
            "file": lambda path: path}[kind()](key_file)


def note_keys(folder):
    """Remembers the key files of a runtime directory, so that they are found
    again as leftovers."""
    if kind() == "sysv":
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if name.endswith(".shm"):
                    _sysv_name(os.path.join(folder, name))


# -- what is there --

def _sysv_row(name):
    """The segment under that key, as the kernel lists it; None if none."""
    with open("/proc/sysvipc/shm") as file:
        head = file.readline().split()
        for line in file:
            row = dict(zip(head, line.split()))
            if f"SYSV{int(row['key']) & 0xffffffff:08x}" == name:
                return row
    return None


def exists(name):
    """Is anything left of the object: memory under that name, or its key
    file?"""
    if not name.startswith("SYSV"):
        return os.path.exists(name)
    if name.startswith("SYSV?"):
        return os.path.exists(name[6:])
    if _sysv_row(name):
        return True
    path = _key_files.get(name)
    return path is not None and _sysv_name(path) == name


def remove(name):
    """Takes it from the system, as a reboot would; no error if it is gone."""
    if not name.startswith("SYSV"):
        with contextlib.suppress(OSError):
            os.unlink(name)
        return
    row = _sysv_row(name)
    if row:
        subprocess.run(["ipcrm", "-m", row["shmid"]], check=True)
    path = _key_files.get(name)
    if path and _sysv_name(path) == name:
        os.unlink(path)


def owner(name):
    """The uid."""
    if name.startswith("SYSV"):
        return int(_sysv_row(name)["uid"])
    return os.stat(name).st_uid


def modes(name):
    """Permissions of the object, and of its key file."""
    if not name.startswith("SYSV"):
        return {os.stat(name).st_mode & 0o777}
    found = {int(_sysv_row(name)["perms"], 8) & 0o777}
    if name in _key_files:
        found.add(os.stat(_key_files[name]).st_mode & 0o777)
    return found


def mapped(maps):
    """The objects in the text of a /proc/PID/maps."""
    if kind() == "posix":
        return set(re.findall(rf" ({FOLDER}/\S+)", maps))
    if kind() == "sysv":
        return set(re.findall(r" /(SYSV[0-9a-f]{8})", maps))
    return set(re.findall(r" (/\S.*\.shm)$", maps, re.M))


def is_named(line):
    """Does that line of a /proc/PID/maps show an object that has a name?"""
    return bool(re.search(r"ShM\.|/SYSV[0-9a-f]{8}|\.shm$", line))


def is_in_line(name, line):
    return os.path.basename(name) in line


# -- what lies in it --

def _attach(name, flags):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    row = _sysv_row(name)
    base = libc.shmat(int(row["shmid"]), None, flags)
    if base in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"shmat {name}")
    return libc, base, int(row["size"])


def read(name):
    if not name.startswith("SYSV"):
        with open(name, "rb") as file:
            return file.read()
    libc, base, size = _attach(name, 0o10000)       # SHM_RDONLY
    try:
        return ctypes.string_at(base, size)
    finally:
        libc.shmdt(ctypes.c_void_p(base))


def write(name, data):
    """Puts data into an object; a System V one keeps its size."""
    if not name.startswith("SYSV"):
        with open(name, "wb") as file:
            file.write(data)
        return
    libc, base, size = _attach(name, 0)
    try:
        ctypes.memmove(base, bytes(data), min(size, len(data)))
    finally:
        libc.shmdt(ctypes.c_void_p(base))


def header_at():
    """Where the module's header begins in read(): APR's own word comes first,
    but not in a System V segment."""
    return 0 if kind() == "sysv" else 64


# -- the machine --

def word_size(program):
    """Bytes in a size_t of an ELF file: 4 or 8."""
    with open(program, "rb") as file:
        head = file.read(5)
    if head[:4] != b"\x7fELF":
        return struct.calcsize("P")
    return 4 if head[4] == 1 else 8


# -- tests --

def need_posix(why):
    """Skips a test that is about /dev/shm."""
    import pytest
    if kind() != "posix":
        pytest.skip(why)


def only_posix(why):
    """The same as a mark."""
    import pytest
    return pytest.mark.skipif(kind() != "posix", reason=why)


def needs_root(test):
    """Marks a test in which a file is given to another user, or in which
    httpd's parent must have rights that its children have not."""
    import pytest
    return pytest.mark.skipif(os.geteuid() != 0, reason="needs root")(test)


def needs_64_bits(test):
    """Marks a test whose figures are more than a size_t of 32 bits holds;
    test/portability/test_word_size.py has the counterparts."""
    import pytest
    return pytest.mark.skipif(struct.calcsize("P") < 8,
                              reason="needs a size_t of 64 bits")(test)
