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
"""Moving in and out, with the commands that the README gives.

Nothing here touches the machine: apxs installs into a directory of the test,
dpkg works on a root of its own, a2enmod on a configuration of its own.  The
state that moves along is what an administrator set in balancer-manager.
"""

import glob
import hashlib
import os
import shutil
import subprocess

import pytest

import httpd as harness
from balancer import MODULES, Backends, Manager, cluster

CONF = """
BalancerPersist On
<Location /balancer-manager>
    SetHandler balancer-manager
</Location>
"""
LIBEXEC = "/usr/lib/apache2/modules"        # Debian's, within dpkg's root
MODULE = LIBEXEC + "/mod_slotmem_shm.so"


def run(*command, **options):
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done.stdout


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def make_install(directory):
    """`make install` into a directory, as for a place beside httpd's own."""
    os.makedirs(directory, exist_ok=True)
    with harness.build_lock():
        return run("make", "-C", harness.TOP, "install",
                   f"APXS={harness.APXS} -S LIBEXECDIR={directory}")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The module as `make install` leaves it, in a directory of its own."""
    folder = tmp_path_factory.mktemp("libexec")
    folder.parent.chmod(0o755)
    folder.chmod(0o755)
    before = digest(harness.stock_module())
    said = make_install(folder)
    assert "activating" not in said, "nobody asked for that"
    assert digest(harness.stock_module()) == before
    assert os.listdir(folder) == ["mod_slotmem_shm.so"]
    # As that httpd's own modules have it: Debian's 0644, as built 0755.
    assert (os.stat(folder / "mod_slotmem_shm.so").st_mode
            == os.stat(harness.stock_module()).st_mode)
    return str(folder / "mod_slotmem_shm.so")


@pytest.fixture(scope="module")
def backends(shared_httpd):
    return Backends(shared_httpd, 2)


def change(manager, url, **settings):
    """Changes a member; returns what must be there after the move."""
    manager.change(url, **settings)
    return manager.balancer().settings


def swap(server, module):
    """The administrator edits the LoadModule line."""
    server.slotmem_module = module
    server.write_config()


# A graceful restart loads the other module into the running parent.
def by_stop_and_start(server, module):
    server.stop()
    swap(server, module)
    server.start()


def by_graceful_restart(server, module):
    swap(server, module)
    server.graceful()


@pytest.mark.parametrize("move", [by_stop_and_start, by_graceful_restart])
def test_state_moves_in_and_back_out(httpd, installed, stock_module, backends,
                                     move):
    """A disabled member must not serve again because a module was swapped,
    and going back must cost no more than going there."""
    urls = backends.urls
    server = httpd(conf=CONF + cluster(urls), modules=MODULES,
                   slotmem_module=stock_module, consumer=None)
    manager = Manager(server)
    set_before = change(manager, urls[0], w_status_D="1", w_lf="7")

    move(server, installed)
    assert "Slotmem" in server.get("/server-status?auto")[1], "still the other"
    assert manager.balancer().settings == set_before

    set_since = change(manager, urls[1], w_lf="3")
    move(server, stock_module)
    assert "Slotmem" not in server.get("/server-status?auto")[1]
    assert manager.balancer().settings == set_since

    # What is set now, this module has only the file of: the memory that it had
    # before is of a generation that somebody else has followed.
    set_meanwhile = change(manager, urls[0], w_lf="9")
    move(server, installed)
    assert manager.balancer().settings == set_meanwhile


def test_installing_again_does_not_change_the_file_that_runs(httpd, tmp_path,
                                                             installed):
    """Written in place, the new file would be mapped into the old server, and
    the next page fault there would end it."""
    tmp_path.parent.chmod(0o755)
    tmp_path.chmod(0o755)
    path = str(tmp_path / "mod_slotmem_shm.so")
    shutil.copy(installed, path)
    server = httpd("SlotmemTestCreate seg 64 4 persist", slotmem_module=path)
    held = os.open(path, os.O_RDONLY)
    before = os.fstat(held)
    make_install(tmp_path)
    after = os.fstat(held)
    os.close(held)
    assert after.st_nlink == 0 and os.stat(path).st_ino != before.st_ino
    assert (after.st_size, after.st_mtime) == (before.st_size, before.st_mtime)
    server.graceful()
    assert server.slotmem().info("seg").num_slots == 4


# -- in place, on Debian and its kin

needs_dpkg = pytest.mark.skipif(
    not all(map(shutil.which, ("dpkg", "dpkg-deb", "dpkg-divert"))),
    reason="no dpkg on this system")


class Debian:
    """A root directory with dpkg's database and one package in it, which
    owns the stock module as apache2-bin does."""

    def __init__(self, path):
        self.path = str(path / "root")
        self.work = str(path)
        for name in ("info", "updates", "triggers"):
            os.makedirs(os.path.join(self.path, "var/lib/dpkg", name))
        for name in ("status", "available"):
            open(os.path.join(self.path, "var/lib/dpkg", name), "w").close()

    def file(self, name):
        return self.path + name

    def install(self, version):
        """What apt does when the distribution publishes a version."""
        tree = os.path.join(self.work, f"apache2-bin-{version}")
        os.makedirs(tree + "/DEBIAN")
        os.makedirs(tree + LIBEXEC)
        with open(tree + MODULE, "w") as file:
            file.write(f"stock {version}")
        with open(tree + "/DEBIAN/control", "w") as file:
            file.write("Package: apache2-bin\nArchitecture: all\n"
                       f"Version: {version}\nMaintainer: nobody <n@n>\n"
                       "Description: stands for the real one\n")
        run("dpkg-deb", "--build", "--root-owner-group", tree)
        run("dpkg", "--root=" + self.path, "--log=/dev/null",
            "--force-not-root", "--force-script-chrootless", "-i",
            tree + ".deb")

    def divert(self, *arguments):
        """dpkg-divert with the arguments of the README."""
        return run("dpkg-divert", "--root=" + self.path, *arguments)

    def text(self, name):
        with open(self.file(name), errors="replace") as file:
            return file.read()


@needs_dpkg
def test_diverted_module_outlives_upgrades_and_goes_back(tmp_path, installed):
    """Without the diversion the next upgrade of apache2-bin would silently
    bring the stock module back, with whatever that costs at the next kill."""
    debian = Debian(tmp_path)
    debian.install("2.4.62-1")

    debian.divert("--local", "--rename", "--divert", MODULE + ".distrib",
                  "--add", MODULE)
    assert not os.path.exists(debian.file(MODULE))
    make_install(debian.file(LIBEXEC))
    assert digest(debian.file(MODULE)) == digest(installed)

    debian.install("2.4.62-2")
    assert digest(debian.file(MODULE)) == digest(installed), "overwritten"
    assert debian.text(MODULE + ".distrib") == "stock 2.4.62-2"

    os.unlink(debian.file(MODULE))
    debian.divert("--local", "--rename", "--remove", MODULE)
    assert debian.text(MODULE) == "stock 2.4.62-2"
    assert os.listdir(debian.file(LIBEXEC)) == ["mod_slotmem_shm.so"]


@needs_dpkg
def test_positive_control_an_upgrade_overwrites_what_is_not_diverted(tmp_path):
    """Else the test above would pass without any diversion."""
    debian = Debian(tmp_path)
    debian.install("2.4.62-1")
    make_install(debian.file(LIBEXEC))
    debian.install("2.4.62-2")
    assert debian.text(MODULE) == "stock 2.4.62-2"


@pytest.fixture(scope="module")
def a2enmod():
    """Debian's own, from the package apache2, which is never installed."""
    if shutil.which("a2enmod"):
        return os.path.dirname(shutil.which("a2enmod"))
    if not shutil.which("apt-get"):
        pytest.skip("no a2enmod on this system")
    folder = os.path.join(harness.BUILD, "apache2")
    os.makedirs(folder, exist_ok=True)
    with harness.build_lock():
        if not os.path.exists(folder + "/usr/sbin/a2enmod"):
            done = subprocess.run(["apt-get", "download", "-q", "apache2"],
                                  cwd=folder, text=True,
                                  stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT)
            if done.returncode != 0:
                pytest.skip("the package apache2 cannot be fetched, and "
                            f"a2enmod is in it: {done.stdout[-200:]}")
            for package in glob.glob(folder + "/*.deb"):
                run("dpkg", "-x", package, folder)
    return folder + "/usr/sbin"


@needs_dpkg
def test_a2enmod_switches_it_on_and_off(tmp_path, a2enmod, installed):
    """Debian's `slotmem_shm.load` serves either module: what it names is the
    path, and a2enmod brings it in for mod_proxy_balancer by itself."""
    conf = tmp_path / "apache2"
    for name in ("mods-available", "mods-enabled"):
        (conf / name).mkdir(parents=True)
    (conf / "envvars").touch()
    (conf / "mods-available/slotmem_shm.load").write_text(
        f"LoadModule slotmem_shm_module {harness.stock_module()}\n")
    (conf / "mods-available/proxy_balancer.load").write_text(
        "# Depends: slotmem_shm\n")
    environment = dict(os.environ, APACHE_CONFDIR=str(conf),
                       APACHE_STATE_DIRECTORY=str(tmp_path / "state"),
                       PATH=a2enmod + ":" + os.environ["PATH"])
    environment.pop("APACHE_ENVVARS", None)
    enabled = conf / "mods-enabled/slotmem_shm.load"

    run("a2enmod", "slotmem_shm", env=environment)
    assert enabled.resolve() == conf / "mods-available/slotmem_shm.load"
    # The one line that is edited for a module beside the distribution's.
    run("sed", "-i", f"s|{harness.apxs_query('LIBEXECDIR')}/"
        f"|{os.path.dirname(installed)}/|",
        str(conf / "mods-available/slotmem_shm.load"))
    assert enabled.read_text() \
        == f"LoadModule slotmem_shm_module {installed}\n"
    run("a2dismod", "-f", "slotmem_shm", env=environment)
    assert not enabled.exists()
    run("a2enmod", "proxy_balancer", env=environment)
    assert enabled.exists(), "what depends on it did not bring it in"
