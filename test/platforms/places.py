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
"""Where a system's commands run; each place is made of its root directory.

    Namespace   this machine's kernel and processor, in namespaces of its own
    Machine     an emulated machine with a processor and a kernel of its own

Both are entered by `with`, and left with everything that runs in them ended:

    put_tree(top, names)    the files of the tree, as /src
    run(*command, ...)      (status, output) of a command, run by root, with
                            `environment` and little else

Foreign processors have a whole machine, not qemu-user: that does not get
through threads that fork, fakes /proc, and has this machine's page size.
"""

import base64
import contextlib
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time

class Failed(Exception):
    """This system could not be tried."""


def in_environment(place, command):
    """The command with all that it is to see of an environment."""
    named = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp",
             "LC_ALL": "C.UTF-8", "SLOTMEM_TEST_LIMIT": place.limit,
             **place.environment}
    return ["/usr/bin/env", "-i",
            *(f"{name}={value}" for name, value in named.items()), *command]


# ---------------------------------------------------------------------------
# This machine's kernel
# ---------------------------------------------------------------------------

INSIDE = r"""
set -e
root=$1; shift
ip link set lo up
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
exec chroot "$root" "$@"
"""


class Namespace:
    """Mounts, processes, network and System V memory of its own."""

    limit = 60          # seconds that a wait of the tests may take
    jobs = os.environ.get("JOBS", "2")
    packages = []
    foreign = False

    def __init__(self, root, arch, environment):
        self.root, self.environment = root, environment

    def __enter__(self):
        return self

    def __exit__(self, *why):
        pass            # with each command, all that it started has ended

    def put_tree(self, top, names):
        """What the last run has built stays."""
        source = os.path.join(self.root, "src")
        os.makedirs(source, exist_ok=True)
        keep = os.path.join(source, "build")
        for name in os.listdir(source):
            path = os.path.join(source, name)
            if path != keep:
                shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
        for name in names:
            target = os.path.join(source, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(os.path.join(top, name), target)

    def run(self, *command, log=None, seconds=None):
        # Into the file at once, so that a long run can be followed.
        log = log or self.root + ".last.log"
        with open(log, "w+", errors="replace") as output:
            process = subprocess.Popen(
                ["nice", "unshare", "--mount", "--ipc", "--net", "--pid",
                 "--fork", "--kill-child", "bash", "-c", INSIDE, "bash",
                 self.root, *in_environment(self, command)],
                stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()              # --kill-child ends all below; it
                                            # heeds no SIGTERM
                process.wait()
                output.seek(0, os.SEEK_END)
                output.write(f"\nended after {seconds} s\n")
            output.seek(0)
            text = output.read()
        return process.returncode, text


# ---------------------------------------------------------------------------
# A machine of its own
# ---------------------------------------------------------------------------

class Processor:
    """emulator: its program, of Debian's package `package`; machine: words
    for it; kernel: Debian's package; console: the kernel's name for the
    machine's first serial line."""

    def __init__(self, emulator, package, machine, kernel, console):
        self.emulator, self.package, self.machine = emulator, package, machine
        self.kernel, self.console = kernel, console


PROCESSORS = {
    "ppc64el": Processor(
        "qemu-system-ppc64", "qemu-system-ppc",
        ["-machine", "pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,"
         "cap-ibs=broken", "-cpu", "power9"],
        "linux-image-powerpc64le", "hvc0"),
    "s390x": Processor(
        "qemu-system-s390x", "qemu-system-misc",
        ["-machine", "s390-ccw-virtio"], "linux-image-s390x", "ttysclp0"),
    "arm64": Processor(
        "qemu-system-aarch64", "qemu-system-arm",
        ["-machine", "virt", "-cpu", "cortex-a72"],
        "linux-image-arm64", "ttyAMA0"),
    "armhf": Processor(
        "qemu-system-arm", "qemu-system-arm",
        ["-machine", "virt", "-cpu", "cortex-a15"],
        "linux-image-armmp-lpae", "ttyAMA0"),
}

# What the kernel must load to see its disk and the line to us; what it has
# built in is not among its modules.
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic",
           "ext4")

# The first program, in a root directory of its own with busybox and the
# modules: it goes on to the system's root, which is one of two disks.
FIRST = r"""#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in /modules/*; do insmod "$module"; done
date -s "@$(sed 's/.*seconds=\([0-9]*\).*/\1/' /proc/cmdline)" > /dev/null
mount -t sysfs sys /sys
for i in $(seq 600); do
    [ -b /dev/vdb ] && [ -c /dev/vport*p1 ] && break
    sleep .1
done
# Which of them is first is not the same everywhere.
for disk in vda vdb; do
    case $(cat /sys/block/$disk/serial) in
    root) mount -t ext4 /dev/$disk /root || exit 1 ;;
    tree) tree=/dev/$disk ;;
    esac
done
mkdir -p /root/src
tar -xf $tree -C /root/src
for folder in dev proc sys; do mount --move /$folder /root/$folder; done
mkdir -p /root/dev/shm /root/dev/pts
mount -t devpts devpts /root/dev/pts
for folder in /root/dev/shm /root/tmp /root/run; do
    mount -t tmpfs -o mode=1777 tmpfs $folder
done
ln -s /proc/self/fd /root/dev/fd
ifconfig lo 127.0.0.1 up
cp /commands /root/run/commands
exec switch_root /root /bin/sh /run/commands
"""

# A line is a command in base64; what it says and its status go back.  Reading
# fails until the other side of the line is known to be there.
COMMANDS = r"""
set -- /dev/vport*p1
exec 3<> "$1"
while :; do
    read -r line <&3 || { sleep .1; continue; }
    (eval "$(echo "$line" | base64 -d)") < /dev/null >&3 2>&1 3>&-
    printf '\n\036%d\n' $? >&3
done
"""

BOOT_SECONDS = 240


class Machine:
    """One emulated processor; what its disks are told is lost at the end."""

    limit = 300
    jobs = "0"          # no second process: there is one processor
    foreign = True

    def __init__(self, root, arch, environment):
        self.root, self.environment = root, environment
        self.processor = PROCESSORS[arch]
        self.packages = ["busybox-static", self.processor.kernel]
        self.folder = self.process = None

    def put_tree(self, top, names):
        """An archive, which is a disk; the machine starts when the first
        command is given."""
        subprocess.run(
            ["tar", "-C", top, "--owner=0", "--group=0", "--null",
             "--files-from=-", "-cf", self._file("tree")], check=True,
            input=b"\0".join(map(os.fsencode, names)))

    def run(self, *command, log=None, seconds=None):
        if not self.process:
            self._start()
        with open(log or self.root + ".last.log", "w+b") as output:
            status = self._ask(in_environment(self, command), output, seconds)
            output.seek(0)
            return status, output.read().decode(errors="replace")

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="machine-",
                                       dir=os.path.dirname(self.root))
        return self

    def __exit__(self, *why):
        if self.process:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder)

    # -- its parts --

    def _file(self, name):
        return os.path.join(self.folder, name)

    def _start(self):
        if not shutil.which(self.processor.emulator):
            raise Failed(f"no {self.processor.emulator} (Debian: "
                         f"{self.processor.package})")
        self._first_root()
        console = self.root + ".console.log"
        words = [
            self.processor.emulator, *self.processor.machine,
            "-smp", "1", "-m", "2048", "-nodefaults", "-no-reboot",
            "-display", "none", "-serial", f"file:{console}",
            "-kernel", self._kernel(), "-initrd", self._file("first.cpio"),
            "-append", f"console={self.processor.console} panic=-1 "
            f"seconds={int(time.time())}",
            *a_disk("root", self._disk()), *a_disk("tree", self._file("tree")),
            "-device", "virtio-serial", "-chardev", "stdio,id=line,signal=off",
            "-device", "virtserialport,chardev=line"]
        with open(self.root + ".emulator.log", "w") as log:
            self.process = subprocess.Popen(
                ["nice", "setpriv", "--pdeathsig", "KILL", *words], bufsize=0,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        with open(os.devnull, "wb") as nowhere:
            if self._ask(["true"], nowhere, BOOT_SECONDS):
                raise Failed(f"the machine does not start; see {console}")

    def _disk(self):
        """The root directory as a disk, made when that was."""
        disk = self.root + ".ext4"
        if (not os.path.exists(disk)
                or os.path.getmtime(disk) < os.path.getmtime(self.root)):
            subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", self.root,
                            disk + ".new", "3G"], check=True)
            os.rename(disk + ".new", disk)
        return disk

    def _kernel(self):
        for name in os.listdir(os.path.join(self.root, "boot")):
            if name.startswith("vmlinu"):
                return os.path.join(self.root, "boot", name)
        raise Failed(f"no kernel in {self.root}: remove it, to have it made "
                     "anew")

    def _first_root(self):
        first = self._file("first")
        for folder in "bin", "dev", "proc", "sys", "root", "modules":
            os.makedirs(os.path.join(first, folder))
        shutil.copy(os.path.join(self.root, "usr/bin/busybox"),
                    os.path.join(first, "bin"))
        for number, path in enumerate(modules_in_order(self.root)):
            shutil.copy(path, os.path.join(first, "modules", f"{number:02}"))
        for name, text in ("init", FIRST), ("commands", COMMANDS):
            with open(os.path.join(first, name), "w") as file:
                file.write(text)
            os.chmod(os.path.join(first, name), 0o755)
        names = subprocess.run(["find", ".", "-print0"], cwd=first, check=True,
                               stdout=subprocess.PIPE).stdout
        with open(self._file("first.cpio"), "wb") as file:
            subprocess.run(["cpio", "--quiet", "--null", "-o", "-H", "newc",
                            "-R", "0:0"], cwd=first, input=names, stdout=file,
                           check=True)

    def _ask(self, command, output, seconds):
        """Has a command run, copies what it says, and returns its status."""
        with contextlib.suppress(BrokenPipeError):      # read below
            self.process.stdin.write(
                base64.b64encode(os.fsencode(shlex.join(command))) + b"\n")
        end = time.monotonic() + seconds if seconds else None
        held = b""      # not copied yet: it may belong to the status
        while True:
            left = max(0, end - time.monotonic()) if end else None
            if not select.select([self.process.stdout], [], [], left)[0]:
                output.write(held + b"\nended after %d s\n" % seconds)
                self.process.kill()
                return 1
            read = os.read(self.process.stdout.fileno(), 65536)
            held += read
            match = re.search(rb"\n\x1e(\d+)\n$", held)
            if match:
                output.write(held[:match.start()])
                return int(match[1])
            if not read:
                output.write(held + b"\nthe machine has ended\n")
                return 1
            output.write(held[:-16])
            output.flush()
            held = held[-16:]


def a_disk(name, path):
    return ["-drive", f"file={path},if=none,id={name},format=raw,snapshot=on",
            "-device", f"virtio-blk,drive={name},serial={name}"]


def modules_in_order(root):
    """The files of MODULES and of what they depend on, that first."""
    files, order = {}, []
    for folder, _, names in os.walk(os.path.join(root, "lib/modules")):
        for name in names:
            if name.endswith(".ko"):
                files[name[:-3].replace("-", "_")] = os.path.join(folder, name)

    def add(name):
        path = files.get(name)
        if not path or path in order:
            return
        with open(path, "rb") as file:
            needs = re.search(rb"\0depends=([^\0]*)\0", file.read())
        for need in needs[1].decode().split(",") if needs else ():
            add(need.replace("-", "_"))
        order.append(path)

    for name in MODULES:
        add(name)
    return order
