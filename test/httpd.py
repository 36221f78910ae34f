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
"""A private httpd for one test or one file of tests.

It has a ServerRoot, a DefaultRuntimeDir, loopback ports and a process group
of its own; it is started, signalled, killed and reaped by process id only, so
any number of them run beside each other.  What the test is about stands in
the test, as directives; what every server needs is supplied here.

closing a server fails the test if it leaves a process or a shared memory
object (sharedmem.py), or has logged a warning or worse that the test did not announce.
"""

import contextlib
import ctypes
import fcntl
import functools
import glob
import hashlib
import http.client
import json
import os
import pwd
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import urllib.parse

import sharedmem

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
APXS = os.environ.get("APXS", "apxs")
BUILD = os.environ.get("SLOTMEM_TEST_BUILD",     # one for each APXS in use
                       os.path.join(TOP, "build", "test"))
MPMS = ("event", "worker", "prefork")
LIMIT = float(os.environ.get("SLOTMEM_TEST_LIMIT", "30"))   # of any one wait
LOUD = ("emerg", "alert", "crit", "error", "warn")
# What httpd itself complains of now and then, whatever slotmem module it has.
NOISE = (
    # event takes a connection that lingers out of its pollset, which has
    # dropped it already; seen when the machine is busy.
    r"mpm_event:error.* AH03092: process_lingering_close",
    # test/consumer/mod_crash.c; httpd's own line about it is the loud one.
    r"^crash of \d+ by signal \d+: ",
)
# What the module says of a disk that does not answer for half a second may be
# true where a machine has much else to do; a test may still ask for it.
SLOW_DISK = r"checkpoint process \d+ was killed but does not end"
# event closes its workers' sockets when it is told to end at once, and one of
# them may have closed its own just then and given back its memory: with the
# stock module, too.  A child that says that it crashed there may do so.
MPM_CRASH = re.compile(r"crash of (\d+) by signal 11: (libapr\S+ < )+"
                       r"(mod_mpm_event\.so\S* < )+\S+:ap_run_mpm < ")


class HttpdError(AssertionError):
    """The server did not do what was asked, or left something behind."""


# ---------------------------------------------------------------------------
# The httpd under test, and the modules
# ---------------------------------------------------------------------------

@functools.lru_cache(None)
def apxs_query(name):
    return subprocess.run([APXS, "-q", name], check=True, text=True,
                          stdout=subprocess.PIPE).stdout.strip()


def httpd_program():
    return os.path.join(apxs_query("SBINDIR"), apxs_query("PROGNAME"))


@functools.lru_cache(None)
def compiler():
    """What built the httpd under test, for what is loaded into it: its C
    library need not be the one of the programs beside it."""
    try:
        return apxs_query("CC").split() or ["cc"]
    except subprocess.CalledProcessError:
        return ["cc"]


def stock_module():
    """httpd's own mod_slotmem_shm.so."""
    return os.environ.get("SLOTMEM_STOCK") or os.path.join(
        apxs_query("LIBEXECDIR"), "mod_slotmem_shm.so")


def our_module():
    """The module under test; built if it is not there yet."""
    chosen = os.environ.get("SLOTMEM_MODULE")
    path = chosen or os.path.join(TOP, ".libs", "mod_slotmem_shm.so")
    if not chosen and not os.path.exists(path):
        with build_lock():
            if not os.path.exists(path):
                subprocess.run(["make", "-C", TOP, "all", "APXS=" + APXS],
                               check=False, stdout=subprocess.DEVNULL)
    if not os.path.exists(path):
        raise HttpdError(f"no module under test at {path}")
    return os.path.abspath(path)


@functools.lru_cache(None)
def static_modules():
    listing = subprocess.run([httpd_program(), "-l"], check=True, text=True,
                             stdout=subprocess.PIPE).stdout
    return frozenset(re.findall(r"^\s+(\S+)\.c$", listing, re.M))


@contextlib.contextmanager
def build_lock():
    os.makedirs(BUILD, exist_ok=True)
    with open(os.path.join(BUILD, ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@functools.lru_cache(None)
def consumer_module():
    """test/consumer/mod_slotmem_test.c, built once for each source text."""
    return build_module(os.path.join(TOP, "test", "consumer",
                                     "mod_slotmem_test.c"))


@functools.lru_cache(None)
def crash_module():
    """test/consumer/mod_crash.c: children that crash say where."""
    return build_module(os.path.join(TOP, "test", "consumer", "mod_crash.c"))


def build_module(source, *flags):
    """Builds a module for tests with apxs under BUILD; returns it."""
    name = os.path.splitext(os.path.basename(source))[0]
    digest = hashlib.sha256(repr((APXS, flags)).encode())
    for path in [source] + sorted(glob.glob(os.path.join(TOP, "include",
                                                         "*.h"))):
        with open(path, "rb") as text:
            digest.update(text.read())
    folder = os.path.join(BUILD, name)
    stamp = os.path.join(folder, "built")
    built = os.path.join(folder, ".libs", name + ".so")
    with build_lock():
        with contextlib.suppress(OSError), open(stamp) as old:
            if old.read() == digest.hexdigest() and os.path.exists(built):
                return built
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        shutil.copy(source, folder)
        done = subprocess.run(
            [APXS, "-c", "-Wc,-Wall", "-Wc,-Wextra", "-Wc,-Wshadow",
             "-Wc,-Wconversion", *flags, name + ".c"], cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0 or not os.path.exists(built):
            raise HttpdError(f"building {source} failed:\n{done.stdout}")
        with open(stamp, "w") as new:
            new.write(digest.hexdigest())
    return built


# ---------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def become_subreaper():
    """Children of a killed httpd become ours, so they can be reaped."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_pytest():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def process_stat(pid):
    """(state, ppid, session) of a process, or None."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[1]), int(fields[3])


def is_alive(pid):
    stat = process_stat(pid)
    return stat is not None and stat[0] not in "ZX"


def birth(pid):
    """When a process began, in clock ticks; None for one that has ended.

    Its number alone does not name a process: the kernel gives it to another
    process, or thread, within seconds on a busy machine.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def reap(pid):
    """Whether a child of ours is gone with all its threads: its first one may
    be a zombie while others still hold its listening sockets."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def wait_for(condition, what, limit=None, interval=0.01):
    """Waits until condition() is true, and returns it.

    what completes the sentence "gave up waiting for ...".
    """
    end = time.monotonic() + (limit or LIMIT)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise HttpdError(f"gave up after {limit or LIMIT:g} s waiting for "
                             f"{what() if callable(what) else what}")
        time.sleep(interval)


def skip(why):
    """Programs that are no tests use this module, too."""
    import pytest
    pytest.skip(why)


@functools.lru_cache(None)
def file_descriptor():
    """The last 16 bytes of a stored file: slot size, number, type.

    The first is a size_t of the httpd under test.
    """
    word = sharedmem.word_size(consumer_module())
    return struct.Struct("=QII" if word == 8 else "=III4x")


# ---------------------------------------------------------------------------
# Ports
# ---------------------------------------------------------------------------

class Port:
    """A loopback port that is ours, among test runs too, until close().

    It lies below those that the kernel gives to connections and to sockets
    that ask for any port, so no client can sit on it while its server is down.
    What holds it against other test runs is a name of an abstract socket: it
    is as private to a network as the port, and goes with the process.
    """

    def __init__(self):
        for self.number in _ports_in_some_order():
            self._claim = socket.socket(socket.AF_UNIX)
            try:
                self._claim.bind(f"\0slotmem-test-port-{self.number}")
                self._probe()
                return
            except OSError:                 # another run's, or a stranger's
                self._claim.close()
        raise HttpdError("no free port")

    def _probe(self):
        """Whether anybody listens there, on any address."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", self.number))
            probe.listen()

    def close(self):
        self._claim.close()


def _ports_in_some_order():
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            end = int(file.read().split()[0])
    except OSError:
        end = 32768
    # Where that range begins low, the ports are below it all the same.
    first = min(10000, max(1024, end // 2))
    ports = list(range(first, max(end, first + 1000)))
    random.shuffle(ports)
    return ports


class Detached:
    """A server that has detached and is our child since its parent ended;
    what is needed of subprocess.Popen."""

    def __init__(self, pid):
        self.pid, self.returncode = pid, None

    @classmethod
    def find(cls, config):
        """The child of ours that was started on a configuration."""
        for name in os.listdir("/proc"):
            if name.isdigit() and (process_stat(name) or "ZX")[1] == os.getpid():
                with contextlib.suppress(OSError), \
                        open(f"/proc/{name}/cmdline", "rb") as file:
                    if os.fsencode(config) in file.read().split(b"\0"):
                        return cls(int(name))
        return None

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, limit):
        wait_for(lambda: self.poll() is not None, "the parent to end", limit)
        return self.returncode


# ---------------------------------------------------------------------------
# The provider, called in a process of the server
# ---------------------------------------------------------------------------

class Answer(dict):
    """What one operation answered; its keys are attributes as well."""

    def __getattr__(self, key):
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    @property
    def ok(self):
        return self["rv"] == "APR_SUCCESS"

    @property
    def bytes(self):
        return bytes.fromhex(self["data"])


NULL = "NULL"          # as a handle: a NULL instance


def quote_name(name):
    """A segment's name, so that the consumer takes it for what it is."""
    if name is None:
        return "@NULL"
    if name == "":
        return "@EMPTY"
    return urllib.parse.quote(name, safe="/")


def op_line(op, **args):
    """The text of one operation of the consumer module."""
    words = [op]
    for key, value in args.items():
        if key == "name":
            value = quote_name(value)
        elif isinstance(value, (bytes, bytearray)):
            value = value.hex()
        elif isinstance(value, str):
            value = urllib.parse.quote(value, safe="/+@:")
        elif value is None:
            continue
        words.append(f"{key}={value}")
    return " ".join(words)


def parse_answers(text):
    answers = [Answer(json.loads(line)) for line in text.splitlines()]
    for answer in answers:
        if "error" in answer:
            raise HttpdError(f"the consumer module refused: {dict(answer)}")
    return answers


class Slotmem:
    """Calls the provider in one child (pid), or in whichever answers HTTP.

    Each object with a pid is one connection, served by one thread of that
    child.  Names of segments are Python strings or None; a handle is the name
    unless another is given.
    """

    def __init__(self, server, pid=None):
        self.server, self.pid = server, pid
        self._socket = None

    def close(self):
        if self._socket:
            self._socket.close()
            self._socket = None

    def run(self, *lines, limit=None):
        """Runs lines made by op_line() in one request; returns all Answers."""
        text = "".join(line + "\n" for line in lines).encode()
        if self.pid is None:
            status, body = self.server.request("POST", "/slotmem-test", text,
                                               limit=limit)
            if status != 200:
                raise HttpdError(f"/slotmem-test answered {status}")
            answers = body.decode()
        else:
            answers = self._exchange(text, limit)
        self._note_creates(lines, answers)
        answers = parse_answers(answers)
        if len(answers) != len(lines):
            raise HttpdError(f"{len(lines)} operations, but "
                             f"{len(answers)} answers")
        return answers

    def _note_creates(self, lines, answers):
        for line, text in zip(lines, answers.splitlines()):
            answer = Answer(json.loads(text))
            if answer.get("op") != "create" or "error" in answer:
                continue
            if answer.ok:
                self.server.note_segment(line)
            else:
                self.server.skip_if_children_cannot_create(line, answer)

    def _exchange(self, text, limit):
        if self._socket is None:
            path = self.server.control_socket(self.pid)
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(path)
        self._socket.settimeout(limit or LIMIT)
        answers = b""
        # One at a time: the child's thread reads no line before it has
        # answered the last one.
        for line in text.splitlines(True):
            try:
                self._socket.sendall(line)
                answers += self._receive_line()
            except socket.timeout:
                raise HttpdError(f"child {self.pid} did not answer "
                                 f"{line[:200]!r} in time") from None
            except (ConnectionError, EOFError):
                raise HttpdError(f"child {self.pid} ended during "
                                 f"{line[:200]!r}") from None
        return answers.decode()

    def _receive_line(self):
        received = b""
        while not received.endswith(b"\n"):
            piece = self._socket.recv(1 << 20)
            if not piece:
                raise EOFError
            received += piece
        return received

    def call(self, op, limit=None, **args):
        return self.run(op_line(op, **args), limit=limit)[0]

    def ping(self):
        return self.call("ping")

    def provider(self, provider="shm"):
        return self.call("provider", provider=provider)

    def create(self, name, size, num, type="0", **more):
        return self.call("create", name=name, size=size, num=num, type=type,
                         **more)

    def attach(self, name, **more):
        return self.call("attach", name=name, **more)

    def grab(self, h, **more):
        return self.call("grab", h=h, **more)

    def fgrab(self, h, i, **more):
        return self.call("fgrab", h=h, i=i, **more)

    def release(self, h, i, **more):
        return self.call("release", h=h, i=i, **more)

    def dptr(self, h, i, **more):
        return self.call("dptr", h=h, i=i, **more)

    def get(self, h, i, len, **more):
        return self.call("get", h=h, i=i, len=len, **more)

    def put(self, h, i, data, **more):
        return self.call("put", h=h, i=i, data=data, **more)

    def info(self, h):
        return self.call("info", h=h)

    def doall(self, h, **more):
        return self.call("doall", h=h, **more)

    def read(self, h, i, len, off=0):
        """Memory at dptr(i) + off, in whatever it lies."""
        return self.call("read", h=h, i=i, len=len, off=off).bytes

    def write(self, h, i, data, off=0):
        return self.call("write", h=h, i=i, data=data, off=off)

    def mapping(self, h):
        return self.call("mapping", h=h)

    def scribble(self, h, **more):
        return self.call("scribble", h=h, **more)

    def hammer(self, h, kind, threads=1, ops=1000, limit=None, **more):
        return self.call("hammer", h=h, kind=kind, threads=threads, ops=ops,
                         limit=limit or 120, **more)

    def stop(self):
        """Ends the hammers that run in this process."""
        return self.call("stop")

    def in_use(self, h):
        """The slots in use, as doall shows them (PREGRAB)."""
        return self.doall(h).ids


# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------

def unprivileged_user():
    for name in ("www-data", "apache", "daemon", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise HttpdError("no user for httpd's children")


def _group_of(user):
    import grp
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


_MPM_CONFIG = {
    "prefork": """\
StartServers {children}
MinSpareServers {children}
MaxSpareServers 1000
ServerLimit 64
MaxRequestWorkers 64
""",
    "worker": """\
StartServers {children}
ServerLimit 24
ThreadsPerChild 8
ThreadLimit 8
MinSpareThreads 1
MaxSpareThreads 1000
MaxRequestWorkers 128
""",
}
_MPM_CONFIG["event"] = _MPM_CONFIG["worker"]

_live = []          # servers that are not closed, for the checks after a test


class Httpd:
    """One server; see the module's text and README.md.

    conf             directives of the test
    mpm              event, worker or prefork
    slotmem_module   path of the mod_slotmem_shm.so to load, None for none
    modules          names of further modules (without mod_ and .so)
    ports            how many loopback ports it listens on: server.ports,
                     ${PORT}, ${PORT1}, ${PORT2} ... in the configuration
    children         StartServers; none is ended because there is little to do
    consumer         "after" or "before" slotmem_shm in load order; None: none
    loglevel, env, wrapper, user, define   as the names say
    run_as           a user to start httpd as, instead of root
    root             an existing root of an earlier server, to start on what
                     that one left
    shm_size         a /dev/shm of its own, of this size ("1m"), which holds
                     for all starts of this server (needs root)
    strict           a SlotmemTest... directive that fails fails the start
    may_leak         objects that it leaves in /dev/shm are removed, not told
    may_end          children may end unasked (MaxConnectionsPerChild)
    detached         started as an administrator does it, without
                     -DFOREGROUND: its parent is a child of what was started
    slotmem_first    slotmem_shm is loaded before the MPM, not after it
    """

    def __init__(self, conf="", mpm="event", slotmem_module=None, modules=(),
                 ports=1, children=2, consumer="after",
                 loglevel="info slotmem_shm:debug", env=None, wrapper=(),
                 user=None, define=(), root=None, shm_size=None, strict=True,
                 may_leak=False, run_as=None, may_end=False, detached=False,
                 slotmem_first=False):
        self.mpm, self.conf, self.modules = mpm, conf, list(modules)
        self.slotmem_module, self.consumer = slotmem_module, consumer
        self.children_wanted, self.loglevel = children, loglevel
        self.env, self.wrapper = dict(env or {}), list(wrapper)
        self.user = user
        if user is None and os.geteuid() == 0:
            self.user = unprivileged_user()
        self.define, self.strict = list(define), strict
        self.may_leak = may_leak or "SLOTMEM_MAY_LEAK" in os.environ
        self.may_end, self.detached = may_end, detached
        self.slotmem_first = slotmem_first
        self.process = None
        self.pid = None
        self.generation = 0
        self.exit_status = None
        self._owns_root = root is None
        self._announced = []
        self._manual_stages = set()
        self._shm_seen = set()
        self._births = {}           # of processes we knew: pid, when it began
        self._seen = {}             # children of this start: pid, generation
        self._killed = set()
        self._closed = False
        self._gave_up = False       # and a test knows it: no second report
        self._make_root(root)
        self._mount_shm(shm_size)
        self._hold_ports(ports)
        self._run_as(run_as)
        _live.append(self)

    # -- what it stands on

    def _make_root(self, root):
        self.root = root or tempfile.mkdtemp(prefix="slotmem-", dir="/tmp")
        os.chmod(self.root, 0o755)
        self.run_dir = os.path.join(self.root, "run")
        self.ctl_dir = os.path.join(self.root, "ctl")
        for name in ("run", "ctl", "logs", "htdocs", "conf"):
            os.makedirs(os.path.join(self.root, name), exist_ok=True)
        if self.user:
            account = pwd.getpwnam(self.user)
            os.chown(self.ctl_dir, account.pw_uid, account.pw_gid)
        self.error_log = os.path.join(self.root, "logs", "error.log")
        self.stderr_path = os.path.join(self.root, "logs", "stderr.log")
        self.pid_file = os.path.join(self.run_dir, "httpd.pid")
        self._log_read = {path: self._size(path)
                          for path in (self.stderr_path, self.error_log)}

    def _mount_shm(self, size):
        self.shm_dir = "/dev/shm"
        self._mounted = None
        if size is None:
            return
        if sharedmem.kind() != "posix":
            skip("shared memory is not in /dev/shm here")
        self._mounted = self.shm_dir = os.path.join(self.root, "shm")
        os.makedirs(self.shm_dir, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=1777",
                        "tmpfs", self.shm_dir], check=True)
        self.wrapper = ["unshare", "-m", "sh", "-c",
                        f"mount --bind {self.shm_dir} /dev/shm && "
                        'exec "$@"', "sh"] + self.wrapper

    def _hold_ports(self, count):
        """Ports that stay ours over any number of stops and starts."""
        self._holders = [Port() for _ in range(count)]
        self.ports = [holder.number for holder in self._holders]
        self.port = self.ports[0]

    def _run_as(self, user):
        self._run_as_user = user
        if user is None:
            return
        account = pwd.getpwnam(user)
        for folder, _, _ in os.walk(self.root):
            os.chown(folder, account.pw_uid, account.pw_gid)
        self.wrapper += ["setpriv", f"--reuid={account.pw_uid}",
                         f"--regid={account.pw_gid}", "--clear-groups"]

    # -- configuration

    def write_config(self):
        path = os.path.join(self.root, "conf", "httpd.conf")
        with open(path, "w") as file:
            file.write(self.config_text())
        return path

    def config_text(self):
        lines = [f"Define ROOT {self.root}", f"Define RUN {self.run_dir}",
                 f"Define PORT {self.port}"]
        lines += [f"Define PORT{i} {port}"
                  for i, port in enumerate(self.ports)]
        lines += [f"ServerRoot {self.root}",
                  f"DefaultRuntimeDir {self.run_dir}",
                  f"PidFile {self.pid_file}",
                  f"ErrorLog {self.error_log}",
                  f"LogLevel {self.loglevel}",
                  "ServerName 127.0.0.1"]
        lines += [f"Listen 127.0.0.1:{port}" for port in self.ports]
        lines += self._load_lines()
        if self.user:
            lines += [f"User {self.user}", f"Group {_group_of(self.user)}"]
        lines += [f"DocumentRoot {self.root}/htdocs", "KeepAlive Off",
                  "Timeout 60"]
        if "status" in self.modules:
            lines += ["<Location /server-status>",
                      "  SetHandler server-status", "</Location>"]
        lines += [_MPM_CONFIG[self.mpm].format(children=self.children_wanted),
                  self.conf]
        return "\n".join(lines) + "\n"

    def _load_lines(self):
        libexec = apxs_query("LIBEXECDIR")
        static = static_modules()
        wanted = [f"mpm_{self.mpm}", "unixd", "authz_core"] + self.modules
        lines = []
        for name in dict.fromkeys(wanted):
            if f"mod_{name}" not in static and name not in static:
                lines.append(f"LoadModule {name}_module "
                             f"{libexec}/mod_{name}.so")
        lines.append(f"LoadModule crash_module {crash_module()}")
        ours = []
        if self.slotmem_module and "mod_slotmem_shm" not in static:
            ours.append(f"LoadModule slotmem_shm_module {self.slotmem_module}")
        if self.consumer:
            line = f"LoadModule slotmem_test_module {consumer_module()}"
            ours.insert(0 if self.consumer == "before" else len(ours), line)
        return ours + lines if self.slotmem_first else lines + ours

    # -- life

    def start(self, expect_failure=False):
        """Starts the server and waits until a child answers.

        With expect_failure waits for it to give up instead, and returns what
        it said.
        """
        if self.process is not None:
            raise HttpdError("the server runs already")
        config = self.write_config()
        self._clear_control_dir()
        environment = dict(os.environ, SLOTMEM_TEST_DIR=self.ctl_dir)
        environment.update(self.env)
        # What is to be loaded into httpd may not fit the wrapper's programs.
        preloaded = environment.pop("LD_PRELOAD", "")
        command = self.wrapper + (
            ["env", "LD_PRELOAD=" + preloaded] if preloaded else [])
        command += [httpd_program(), "-d", self.root, "-f", config]
        if not self.detached:
            command.append("-DFOREGROUND")
        command += [f"-D{name}" for name in self.define]
        main = threading.current_thread() is threading.main_thread()
        self._stderr_before = self._size(self.stderr_path)
        with open(self.stderr_path, "a") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, env=environment, start_new_session=True,
                cwd=self.root, preexec_fn=_die_with_pytest if main else None)
        if self.detached:
            self._follow(config)
        self.pid = self.process.pid
        self.exit_status = None
        self._births[self.pid] = birth(self.pid)
        self._seen.clear()
        self._killed.clear()
        if expect_failure:
            return self._wait_failed_start()
        self._wait_up(lambda pid, gen: True)
        self.generation = self._newest_generation()
        self._note_shm()
        if self.strict:
            self._check_directives()
        return self

    def _follow(self, config):
        """From what was started to the parent that has detached from it."""
        wait_for(lambda: self.process.poll() is not None,
                 "the server to detach")
        if self.process.returncode == 0:
            self.process = wait_for(lambda: Detached.find(config),
                                    "the server that has detached")

    def _clear_control_dir(self):
        for path in glob.glob(os.path.join(glob.escape(self.ctl_dir), "*")):
            if not path.endswith(".ops"):
                os.unlink(path)

    def _wait_failed_start(self):
        status = self._wait_exit("the server to give up")
        if status == 0:
            raise HttpdError("the server ended well, a failure was expected")
        return self._text(self.stderr_path)[self._stderr_before:] + self.log()

    def _wait_up(self, good):
        """Until enough children that are good(pid, generation) answer."""
        def up():
            if self.process.poll() is not None:
                status = self._note_exit()
                self._gave_up = True
                raise HttpdError(f"the server ended with status {status} "
                                 f"instead of starting:\n{self.last_words()}")
            if self.consumer:
                found = [pid for pid, gen in self._control() if good(pid, gen)]
                return len(found) >= self.children_wanted
            return self.children() and self.port_answers()

        wait_for(up, lambda: "the server to answer:\n" + self.last_words())

    def port_answers(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 5).close()
        except OSError:
            return False
        return True

    def _control(self):
        """(pid, generation) of the live children whose control sockets are.

        A killed child leaves its socket, and its number is soon another's.
        """
        found = []
        for name in os.listdir(self.ctl_dir):
            match = re.fullmatch(r"child-(\d+)-(\d+)-(\d+)\.sock", name)
            if match:
                pid, generation, born = map(int, match.groups())
                if birth(pid) == born:
                    self._births[pid] = born
                    self._seen[pid] = generation
                    found.append((pid, generation))
        return sorted(found)

    def _gone(self, pid):
        """Whether the child of that number that we knew has ended."""
        now = birth(pid)
        return now is None or now != self._births.get(pid, now)

    def ended_unasked(self):
        """Children of this generation that ended while they should serve.

        httpd says nothing of one that exits with status 0.
        """
        if self._newest_generation() != self.generation:
            return []                   # a test has restarted it by itself
        return [pid for pid, generation in self._seen.items()
                if generation == self.generation and self._gone(pid)
                and pid not in self._killed
                and not self.log_lines(rf"AH0005[0-2]: .*\b{pid}\b")]

    def _check_children(self):
        """Before the whole generation is asked to end."""
        if self.may_end or self.process is None or self._gone(self.pid):
            return
        lost = self.ended_unasked()
        self._seen.clear()
        if lost:
            raise HttpdError(f"children {lost} ended unasked:\n"
                             + self.last_words())

    def _newest_generation(self):
        return max((gen for _, gen in self._control()), default=0)

    def control_socket(self, pid):
        found = glob.glob(os.path.join(glob.escape(self.ctl_dir),
                                       f"child-{pid}-*-{birth(pid)}.sock"))
        if not found:
            raise HttpdError(f"child {pid} has no control socket")
        return found[0]

    def children(self, generation=None):
        """pids of the children that serve (of that generation)."""
        if self.consumer:
            return [pid for pid, gen in self._control()
                    if generation is None or gen == generation]
        found = [pid for pid in self.processes()
                 if (process_stat(pid) or ("", 0))[1] == self.pid
                 and self._serves(pid)]
        self._births.update((pid, birth(pid)) for pid in found)
        return found

    def _serves(self, pid):
        """Whether it has become the user that serves; helpers never do."""
        if not self.user:
            return True
        try:
            return os.stat(f"/proc/{pid}").st_uid != os.geteuid()
        except OSError:
            return False

    def processes(self):
        """pids of everything alive in the server's session."""
        if self.pid is None:
            return []
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                stat = process_stat(name)
                if stat and stat[2] == self.pid:
                    ours = int(name) != self.pid and stat[1] == os.getpid()
                    if stat[0] not in "ZX" or (ours and not reap(int(name))):
                        found.append(int(name))
        return found

    def graceful(self, wait_old=True):
        """Graceful restart; waits for the new generation (and the old's end).

        Returns the pids of the old generation's children.
        """
        return self._restart(signal.SIGUSR1, wait_old)

    def restart(self):
        """Hard restart; returns the pids of the old generation's children."""
        return self._restart(signal.SIGHUP, True)

    def _restart(self, number, wait_old):
        self._note_shm()
        self._check_children()
        old = self.children()
        generation = self.generation
        if self.consumer:
            for stage in ("post_config", "child_init", "register",
                          "pre_config"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._stage_path(stage))
        os.kill(self.pid, number)
        if self.consumer:
            self._wait_up(lambda pid, gen: gen > generation)
            self.generation = self._newest_generation()
        else:
            wait_for(lambda: set(self.children()) - set(old),
                     "children of the new generation")
        if wait_old:
            self.wait_gone(old)
        self._note_shm()
        if self.strict and self.consumer:
            self._check_directives()
        return old

    def wait_gone(self, pids, limit=None):
        wait_for(lambda: all(self._gone(pid) for pid in pids),
                 lambda: "the end of processes "
                 f"{[pid for pid in pids if not self._gone(pid)]}", limit)

    def stop(self):
        """Stops at once (SIGTERM) and waits for the end of all processes."""
        return self._end(signal.SIGTERM)

    def graceful_stop(self):
        return self._end(signal.SIGWINCH)

    def _end(self, number, limit=None):
        self._note_shm()
        self._check_children()
        os.kill(self.pid, number)
        status = self._wait_exit("the server to stop", limit)
        if status != 0:
            raise HttpdError(f"the server ended with status {status}:\n"
                             + self.last_words())
        return status

    def _wait_exit(self, what, limit=None):
        wait_for(lambda: self.process.poll() is not None, what, limit)
        status = self._note_exit()
        wait_for(lambda: not self.processes(),
                 lambda: f"processes {self.processes()} to end after their "
                 "parent", limit)
        self.pid = None
        return status

    def _note_exit(self):
        self.exit_status = self.process.returncode
        self.process = None
        return self.exit_status

    def kill_all(self):
        """SIGKILL for the parent and every child, as a power cut is.

        The parent is halted first, so that it sees no child end.
        """
        self._note_shm()
        self.allow_log("AH00098")           # the pid file is left over
        os.kill(self.pid, signal.SIGSTOP)
        os.killpg(self.pid, signal.SIGKILL)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(LIMIT)
        return self._wait_exit("the killed server to end")

    def kill_parent(self):
        """SIGKILL for the parent alone; its children are orphans then.

        end_orphans() ends them.
        """
        self._note_shm()
        self.allow_log("AH00098")           # the pid file is left over
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(LIMIT)
        self._note_exit()

    def end_orphans(self):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.processes(), "orphans to end")
        self.pid = None

    def kill_child(self, pid):
        """SIGKILL for one child; httpd replaces it, which is not awaited."""
        self.allow_log(rf"AH0005[012].*child process {pid}\b|"
                       rf"AH0005[12].*child pid {pid} exit signal Killed")
        if pid not in self.children():
            raise HttpdError(f"child {pid} ended before it was killed:\n"
                             + self.last_words())
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)
        self.wait_gone([pid])

    def wait_children(self, count=None, without=()):
        """Until count children serve, none of them in without; their pids."""
        count = count or self.children_wanted
        return wait_for(
            lambda: (lambda now: now if len(now) >= count else None)(
                [pid for pid in self.children(self.generation)
                 if pid not in without]),
            f"{count} children to serve")

    # -- talking to it

    def request(self, method, path, body=None, headers=None, port=None,
                limit=None):
        """(status, body) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port,
                                                timeout=limit or LIMIT)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path, **more):
        status, body = self.request("GET", path, **more)
        return status, body.decode("utf-8", "replace")

    def slotmem(self, pid=None):
        """The provider, called over HTTP or in the child pid."""
        return Slotmem(self, pid)

    @contextlib.contextmanager
    def held_request(self):
        """A request that is not answered before the end of the block.

        Yields the pid of the child that serves it, which thereby outlives
        graceful restarts.
        """
        until = os.path.join(self.ctl_dir, f"hold-{time.monotonic_ns()}")
        caught = []

        def ask():
            try:
                self.slotmem().call("hold", until=until)
            except Exception as error:      # told to the test below
                caught.append(error)

        asker = threading.Thread(target=ask)
        asker.start()
        try:
            wait_for(lambda: self._size(until + ".reached") > 0 or caught,
                     "the held request to reach a child")
            if caught:
                raise caught[0]
            with open(until + ".reached") as file:
                yield int(file.read())
        finally:
            with open(until, "w"):
                pass
            asker.join()
        if caught:
            raise caught[0]

    # -- stages

    def _stage_path(self, stage, kind="out"):
        return os.path.join(self.ctl_dir, f"{stage}.{kind}")

    def at_stage(self, stage, *lines):
        """Operations to run when httpd next reaches a stage, in that process.

        register, pre_config, post_config_check (the first of httpd's two
        passes over its configuration), post_config: in the parent, once.
        child_init: in every child from now on.
        """
        with open(self._stage_path(stage, "ops"), "w") as file:
            file.write("".join(line + "\n" for line in lines))
        self._manual_stages.add(stage)
        os.chmod(self._stage_path(stage, "ops"), 0o644)

    def stage(self, stage):
        """Answers of a stage since the last start or restart."""
        return parse_answers(self._text(self._stage_path(stage)))

    def _check_directives(self):
        for stage in {"post_config", "child_init"} - self._manual_stages:
            for answer in self.stage(stage):
                if answer["op"] in ("create", "attach") and not answer.ok:
                    raise HttpdError(f"in {stage}: {dict(answer)}\n"
                                     + self.last_words())
        self._manual_stages.discard("post_config")

    # -- shared memory

    def _maps(self, pid):
        try:
            with open(f"/proc/{pid}/maps") as file:
                return file.read()
        except OSError:
            return ""

    def shm_objects(self):
        """Named shared memory that the server's processes have mapped now."""
        found = set()
        for pid in self.processes():
            found |= sharedmem.mapped(self._maps(pid))
        return {self._in_own_shm(path) for path in found}

    def _in_own_shm(self, name):
        """A POSIX object as it is seen from here, if /dev/shm is its own."""
        if name.startswith(sharedmem.FOLDER + "/"):
            return os.path.join(self.shm_dir, os.path.basename(name))
        return name

    def _note_shm(self):
        sharedmem.note_keys(self.run_dir)
        if self.pid:
            self._shm_seen |= self.shm_objects()

    def key_file(self, name, generation=None):
        """The key file of a segment's shared memory."""
        if name.startswith("/"):
            return name
        gen = self.generation if generation is None else generation
        return os.path.join(self.run_dir, f"slotmem-shm-{name}_{gen:x}.shm")

    def shm_path(self, name, generation=None):
        """The shared memory object of a segment; see sharedmem.py."""
        return self._in_own_shm(
            sharedmem.of_key(self.key_file(name, generation)))

    def persist_path(self, name):
        """The file that a segment is stored in."""
        if name.startswith("/"):
            return name + ".persist"
        return os.path.join(self.run_dir, f"slotmem-shm-{name}.shm.persist")

    def note_segment(self, line):
        """What a child made may be gone from its maps before we look again."""
        name = re.search(r"\bname=([^@\s]\S*)", line)
        if name:
            path = self.shm_path(urllib.parse.unquote(name[1]))
            if sharedmem.exists(path):
                self._shm_seen.add(path)

    def skip_if_children_cannot_create(self, line, answer):
        """Where shared memory has a key file, a child of a root httpd cannot
        make one in root's runtime directory, neither with the stock module:
        the test is for an httpd of an ordinary user."""
        if (sharedmem.kind() != "posix" and answer.rv == "APR_EACCES"
                and self.user and os.geteuid() == 0 and not self._run_as_user
                and not re.search(r"\bname=(@|%|/)", line)):
            self.allow_log("AH02611|AH02300")
            skip("a child of root's httpd cannot make a key file")

    def allow_nameless(self):
        """What keeps a file from being made in a directory keeps a segment
        from having a name there, where that takes a key file."""
        if sharedmem.kind() != "posix":
            self.allow_log("AH02611: .*The segment is made without a name")

    def leaked_shm(self):
        return {path for path in self._shm_seen if sharedmem.exists(path)}

    # -- the error log

    def log(self):
        return self._text(self.error_log)

    def log_lines(self, pattern):
        return [line for line in self.log().splitlines()
                if re.search(pattern, line)]

    def expect_log(self, pattern):
        """Announces lines of level warn or above; at least one must come."""
        self._announced.append([re.compile(pattern), True, 0])

    def allow_log(self, pattern):
        """Announces lines that may come."""
        self._announced.append([re.compile(pattern), False, 0])

    @contextlib.contextmanager
    def announced(self, pattern, required=True):
        """expect_log() or allow_log() for the lines logged in the block."""
        self.check_log()
        entry = [re.compile(pattern), required, 0]
        self._announced.append(entry)
        yield
        self.check_log()
        self._announced.remove(entry)
        self._check_entry(entry)

    def check_log(self):
        """Fails on a line since the last check that was not announced."""
        if self._gave_up:
            return
        fresh = self._fresh_lines()
        crashed = [crash[1] for crash in map(MPM_CRASH.match, fresh) if crash]
        bad = [line for line in fresh if self._is_loud(line)
               and not self._is_announced(line)
               and not re.search(SLOW_DISK, line)
               and not any(re.search(rf"AH0005[12]: child pid {pid} exit "
                                     "signal Segmentation", line)
                           for pid in crashed)]
        if bad:
            raise HttpdError("\n".join(
                ["not announced, but logged:", *bad,
                 *(line for line in fresh if line.startswith("crash of "))]))

    def _fresh_lines(self):
        """Whole lines logged since the last call."""
        fresh = []
        for path in (self.stderr_path, self.error_log):
            if self._size(path) > self._log_read[path]:
                with open(path, "rb") as file:
                    file.seek(self._log_read[path])
                    whole, newline, _ = file.read().rpartition(b"\n")
                self._log_read[path] += len(whole) + len(newline)
                fresh += whole.decode("utf-8", "replace").split("\n")
        return fresh

    @staticmethod
    def _is_loud(line):
        if any(re.search(noise, line) for noise in NOISE):
            return False
        match = re.match(r"\[[^\]]*\] \[[^\]:]*:(\w+)\]", line)
        if match is None:
            return bool(line.strip())        # a sanitizer, a stray printf
        return match[1] in LOUD or re.search(r"AH0005[0-2]|AH00060", line)

    def _is_announced(self, line):
        for announcement in self._announced:
            if announcement[0].search(line):
                announcement[2] += 1
                return True
        return False

    def _check_expected(self):
        for entry in self._announced:
            self._check_entry(entry)

    def _check_entry(self, entry):
        pattern, required, count = entry
        if required and count == 0:
            raise HttpdError("announced, but never logged: "
                             f"{pattern.pattern}\n" + self.last_words())

    def last_words(self, count=40):
        text = self._text(self.stderr_path) + self.log()
        return "\n".join(text.splitlines()[-count:])

    @staticmethod
    def _size(path):
        try:
            return os.path.getsize(path)
        except OSError:
            return 0

    @staticmethod
    def _text(path):
        try:
            with open(path, errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    # -- the end

    def close(self, check=True):
        """Stops the server if it runs, judges what it leaves, cleans up."""
        if self._closed:
            return
        self._closed = True
        trouble = []
        try:
            self._stop_for_good(trouble)
            if check and not self._gave_up:
                self._judge(trouble)
        finally:
            self._clean()
            _live.remove(self)
        if trouble:
            raise HttpdError("\n".join(trouble))

    def _stop_for_good(self, trouble):
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except HttpdError as error:
                trouble.append(str(error))
        elif self.process is not None:
            trouble.append(f"the parent had ended with status "
                           f"{self._note_exit()}:\n" + self.last_words())
        left = self.processes()
        if left:
            trouble.append(f"processes left: {left}")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process is not None:
                self.process.wait(LIMIT)
            wait_for(lambda: not self.processes(), "killed processes to end")

    def _judge(self, trouble):
        leaked = self.leaked_shm()
        if leaked and not self.may_leak:
            trouble.append("left in shared memory: " + ", ".join(leaked))
        for check in (self.check_log, self._check_expected):
            try:
                check()
            except HttpdError as error:
                trouble.append(str(error))

    def _clean(self):
        for path in self.leaked_shm():
            sharedmem.remove(path)
        for holder in self._holders:
            holder.close()
        if self._mounted:
            subprocess.run(["umount", "-l", self._mounted], check=False)
        if self._owns_root and not os.environ.get("SLOTMEM_KEEP"):
            shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self):
        try:
            return self.start() if self.process is None else self
        except HttpdError:
            self.close(check=False)
            raise

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.close()
        else:
            # What went wrong first is what the test must show.
            with contextlib.suppress(HttpdError):
                self.close()


def live_servers():
    return list(_live)
