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
"""What README.md and doc/ say is so.

Every fenced `sh` block is run, as it stands, in the order of the text, by a
real shell.  What would change the machine meets a stand-in that does the same
within a directory of the test: PROGRAMS says how, and a command that is not in
it fails the test.  The tables of log messages (doc/messages.md) and of ?auto
keys (doc/status.md) are compared with the source and with what the server
answers.
"""

import os
import re
import shlex
import shutil
import subprocess

import httpd as harness
from test_moving import LIBEXEC, MODULE, Debian, digest, needs_dpkg
from test_moving import a2enmod     # noqa: F401  (a fixture)

README = os.path.join(harness.TOP, "README.md")
MESSAGES = os.path.join(harness.TOP, "doc", "messages.md")
MANUAL = os.path.join(harness.TOP, "doc", "manual", "mod_slotmem_shm.xml")
STATUS = os.path.join(harness.TOP, "doc", "status.md")
PAGES = [README, MESSAGES, STATUS,
         os.path.join(harness.TOP, "packaging", "README.md")]
SOURCE = os.path.join(harness.TOP, "mod_slotmem_shm.c")
BESIDE = "/usr/local/lib/apache2/modules"
LOAD = "/etc/apache2/mods-available/slotmem_shm.load"


def read(path):
    with open(path) as file:
        return file.read()


def readme():
    return read(README)


def blocks(text):
    return re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)


def commands(block):
    """The simple commands of a block, as lists of words."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for word in words:
            if word in ("&&", "||", "|", ";"):
                found.append([])
            elif word is words[0]:
                found.append([word])
            else:
                found[-1].append(word)
    return [command for command in found if command]


# -- how each program is run.  A function gives the stand-in's text in sh, with
#    $ROOT the directory that stands for /, $TOP the project and $HERE the
#    sandbox; None lets the program itself run.

ROOTED = """
for argument do
    shift
    case $argument in
        /usr/l* | /etc/* | /run/* | /var/*)
            for path in "$ROOT"$argument; do set -- "$@" "$path"; done ;;
        *) set -- "$@" "$argument" ;;
    esac
done
exec {program} "$@"
"""


def rooted(name):
    """The program itself, on the paths within $ROOT."""
    return ROOTED.format(program=shutil.which(name))


def make(name):
    """`make` and `make install` are run.  `make demo` has a test of its own,
    `make check` runs this one, and the others take long: they must exist."""
    return f"""
        target=build where=$ROOT{LIBEXEC}
        for argument do
            case $argument in
                APXS=*) where=$ROOT${{argument#*LIBEXECDIR=}} ;;
                *) target=$argument ;;
            esac
        done
        set -- {shutil.which(name)} -C "$TOP"
        case $target in
            build) exec "$@" ;;
            install) exec "$@" install "APXS=$APXS -S LIBEXECDIR=$where" ;;
            help) exec "$@" $target ;;
            *) exec "$@" -n $target ;;
        esac
    """


def dpkg_divert(name):
    return f'exec {shutil.which(name)} --root="$ROOT" "$@"'


def switch(name):
    """a2enmod on a configuration within $ROOT."""
    return f"""
        APACHE_CONFDIR=$ROOT/etc/apache2 APACHE_STATE_DIRECTORY=$HERE/state
        export APACHE_CONFDIR APACHE_STATE_DIRECTORY
        unset APACHE_ENVVARS
        exec "$A2ENMOD/{name}" "$@"
    """


def systemctl(name):
    """Noted; the module that apache2 would load then is looked at."""
    return 'echo "$@" >>"$HERE/systemctl"'


def curl(name):
    """Of the private server of the test."""
    return f"""
        for argument do
            shift
            case $argument in
                http://localhost/*)
                    argument=http://127.0.0.1:$PORT/${{argument#*localhost/}} ;;
                http*) echo "the test knows no $argument" >&2; exit 1 ;;
            esac
            set -- "$@" "$argument"
        done
        exec {shutil.which(name)} "$@"
    """


def apt(name):
    """Of the package that packaging/ makes; test/packaging/run.sh does it."""
    return """
        package=$(sed -n 's/^Package: //p' "$TOP/packaging/debian/control")
        case $1,$2 in
            install,./build/deb/${package}_* | purge,$package) ;;
            *) echo "the test knows no apt $*" >&2; exit 1 ;;
        esac
    """


def apxs(name):
    return 'exec "$APXS_PROGRAM" "$@"'


PROGRAMS = {
    "make": make, "dpkg-divert": dpkg_divert, "a2enmod": switch,
    "a2dismod": switch, "systemctl": systemctl, "curl": curl, "apxs": apxs, "apt": apt,
    "rm": rooted, "mkdir": rooted, "sed": rooted, "install": rooted,
    "cp": rooted, "ls": rooted, "sh": None, "cd": None, "grep": None,
}


def test_positive_control_unknown_commands_are_found():
    """And what is quoted, piped or commented is taken for what it is."""
    assert commands("a b 'c && d'  # e\nf |g\nf | g h && i\n\n# j\n") == [
        ["a", "b", "c && d"], ["f", "|g"], ["f"], ["g", "h"], ["i"]]
    assert unknown("make && halt\nM=/x\nM=/x rm y\n") == [["halt"]]


def unknown(block):
    found = []
    for command in commands(block):
        words = [word for word in command
                 if not re.fullmatch(r"[A-Z]\w*=.*", word)]
        if words and words[0] not in PROGRAMS:
            found.append(words)
    return found


def test_every_command_is_known():
    """A command that no test runs may be wrong, and nobody would know."""
    text = readme()
    assert len(blocks(text)) >= 5, "no commands in README.md?"
    for block in blocks(text):
        assert unknown(block) == []


class Sandbox(Debian):
    """Debian's files as far as the README touches them, and the stand-ins."""

    def __init__(self, path, server, a2enmod):
        super().__init__(path)
        self.here = str(path)
        self.install("2.4.62-1")
        for name in ("mods-available", "mods-enabled"):
            os.makedirs(self.file("/etc/apache2/" + name))
        for name in ("/run/apache2", "/var/lib/apache2"):
            os.makedirs(self.file(name))
        open(self.file("/etc/apache2/envvars"), "w").close()
        with open(self.file(LOAD), "w") as file:
            file.write(f"LoadModule slotmem_shm_module {MODULE}\n")
        with open(self.file("/etc/apache2/apache2.conf"), "w") as file:
            file.write("DefaultRuntimeDir ${APACHE_RUN_DIR}\n")
        with open(self.file("/run/apache2/slotmem-shm-x.shm.persist"),
                  "w") as file:
            file.write("state")
        self._stand_ins(server, a2enmod)

    def _stand_ins(self, server, a2enmod):
        shutil.copytree(os.path.join(harness.TOP, "test", "example"),
                        self.here + "/test/example")
        shutil.copy(os.path.join(harness.TOP, "test", "install-deps.sh"),
                    self.here + "/test")
        bin_dir = self.here + "/bin"
        os.makedirs(bin_dir)
        for name, how in PROGRAMS.items():
            if how is not None:
                path = os.path.join(bin_dir, name)
                with open(path, "w") as file:
                    # What a stand-in calls meets no stand-in.
                    file.write("#!/bin/sh\nPATH=$REAL_PATH\n" + how(name))
                os.chmod(path, 0o755)
        self.environment = dict(
            os.environ, PATH=bin_dir + ":" + os.environ["PATH"],
            REAL_PATH=os.environ["PATH"],
            ROOT=self.path, TOP=harness.TOP, HERE=self.here,
            APXS=harness.APXS, APXS_PROGRAM=shutil.which(harness.APXS),
            A2ENMOD=a2enmod, PORT=str(server.port))
        for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
            self.environment.pop(name, None)

    def run(self, block):
        done = subprocess.run(["sh", "-euc", block], cwd=self.here, text=True,
                              env=self.environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=500)
        assert done.returncode == 0, \
            f"{block}\nended with:\n{done.stdout[-3000:]}"
        return done.stdout

    def loaded(self):
        """The module that apache2 would load now: ours, or the stock one."""
        with open(self.file("/etc/apache2/mods-enabled/slotmem_shm.load")) as f:
            path = self.file(f.read().split()[2])
        built = os.path.join(harness.TOP, ".libs", "mod_slotmem_shm.so")
        if digest(path) == digest(built):
            return "ours"
        with open(path) as file:
            assert file.read().startswith("stock ")
        return "stock"


@needs_dpkg
def test_every_block_does_what_it_says(httpd, tmp_path, a2enmod):  # noqa: F811
    """From the first to the last, as a reader would who tries all of it."""
    server = httpd("SlotmemTestCreate seg 64 4 0", modules=["status"])
    sandbox = Sandbox(tmp_path, server, a2enmod)
    modules = []
    for block in blocks(readme()):
        said = sandbox.run(block)
        if "systemctl" in block:
            modules.append(sandbox.loaded())
        if "curl" in block:
            assert "SlotmemSegments: 1" in said
        if "apxs -c" in block:
            assert os.path.exists(tmp_path / "test/example/.libs"
                                  / "mod_slotmem_example.so")
    assert modules[:4] == ["ours", "stock"] * 2
    assert sandbox.text("/etc/apache2/apache2.conf") \
        == "DefaultRuntimeDir /var/lib/apache2/slotmem\n"
    assert sandbox.text("/var/lib/apache2/slotmem/slotmem-shm-x.shm.persist") \
        == "state"
    # What was diverted is back, and nothing of ours is left there.
    assert os.listdir(sandbox.file(LIBEXEC)) == ["mod_slotmem_shm.so"]
    assert sandbox.text(MODULE).startswith("stock ")


def test_make_demo_ends_well():
    """The command that a newcomer tries first."""
    done = subprocess.run(["make", "-C", harness.TOP, "demo"], text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Everything was kept." in done.stdout


# -- the tables

def first_column(path):
    """Of the tables of a page, less their heads."""
    return [row.split("|")[1] for row in read(path).splitlines()
            if row.startswith("| ") and "`" in row.split("|")[1]]


def loud_messages():
    """The literal text of each log call that may be at warn or above."""
    with open(SOURCE) as file:
        text = file.read()
    found = []
    for call in re.findall(r"ap_log_error\((.*?)\);\n", text, re.S):
        if re.search(r"APLOG_(WARNING|ERR|CRIT|ALERT|EMERG)\b", call):
            found.append("".join(re.findall(r'"((?:[^"\\]|\\.)*)"', call)))
    return found


def helper_messages():
    """Texts that are handed to a function that logs them."""
    with open(SOURCE) as file:
        text = file.read()
    found = []
    for call in re.findall(r"(?:log_create_failed|store_put_aside)\((.*?)\);\n",
                           text, re.S):
        found.append("".join(re.findall(r'"((?:[^"\\]|\\.)*)"', call)))
    return found


def told_messages():
    """The words in backticks of the first column of the table."""
    return [re.findall(r"`([^`]+)`", cell) for cell in first_column(MESSAGES)]


def test_every_loud_message_is_in_the_table():
    """Who finds one in the log at night must find it in doc/messages.md."""
    messages = loud_messages()
    assert len(messages) > 12, "the source is not read as it should be"
    generic = [text for text in messages if "apr_shm_create(%s) of" in text]
    assert len(generic) == 1, "the one whose end is handed to it"
    told = [words for row in told_messages() for words in row]
    missing = [text for text in messages if text not in generic
               and not any(words in text for words in told)]
    assert missing == []


def test_every_message_in_the_table_is_in_the_source():
    """And none that was reworded since."""
    literal = loud_messages() + helper_messages()
    missing = [row for row in told_messages()
               if not any(all(words in text for words in row)
                          for text in literal)]
    assert missing == []


def test_every_key_of_auto_is_in_the_table_and_the_other_way_round(httpd):
    """The key scheme is a promise: what is told there is what is served."""
    told = set(re.findall(r"`(Slotmem\w+)`", "".join(first_column(STATUS))))
    server = httpd("SlotmemTestCreate seg 64 4 persist", modules=["status"])
    text = server.get("/server-status?auto")[1]
    assert set(re.findall(r"^(Slotmem\w+): ", text, re.M)) == told


def test_the_manual_has_the_same_numbers_and_keys():
    """It tells of each numbered message, in fewer words, and of some keys."""
    text = read(MANUAL)
    assert set(re.findall(r"AH\d+", text)) == set(re.findall(
        r"AH\d+", "".join(first_column(MESSAGES))))
    keys = set(re.findall(r"\bSlotmem\w+", text))
    assert keys and keys <= set(re.findall(r"\bSlotmem\w+", read(STATUS)))


def test_links_lead_somewhere():
    """Files that the pages name exist."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", read(page)):
            if not target.startswith("http"):
                path = os.path.join(os.path.dirname(page), target)
                assert os.path.exists(path), f"{target} of {page}"


def test_the_readme_leads_to_what_was_moved_out_of_it():
    for page in PAGES[1:]:
        assert os.path.relpath(page, harness.TOP) in readme()
