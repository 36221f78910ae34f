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
"""The example for authors of modules, as they would use it.

It is built as its own head says, loaded, and must do what it claims: else the
first thing an author copies is wrong.
"""

import concurrent.futures
import os
import shutil
import subprocess

import pytest

import httpd as harness

SOURCE = os.path.join(harness.TOP, "test", "example", "mod_slotmem_example.c")
CONF = """
LoadModule slotmem_example_module {built}
<Location /visits>
    SetHandler slotmem-example
</Location>
"""


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Built with the command that stands in its head, and no warning."""
    with open(SOURCE) as file:
        command = next(line for line in file
                       if line.startswith(" *     apxs ")).strip("* \n")
    assert command == "apxs -c mod_slotmem_example.c"
    folder = tmp_path_factory.mktemp("example")
    folder.parent.chmod(0o755)
    folder.chmod(0o755)
    shutil.copy(SOURCE, folder)
    done = subprocess.run(
        [harness.APXS, "-Wc,-Wall", *command.split()[1:]], cwd=folder,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and "warning:" not in done.stdout, done.stdout
    return CONF.format(built=folder / ".libs" / "mod_slotmem_example.so")


def visits(server, name):
    status, text = server.get("/visits?" + name)
    assert status == 200, text
    who, _, rest = text.partition(": ")
    assert who == name
    return int(rest.split()[0])


def test_counts_over_children_and_every_kind_of_restart(httpd, target,
                                                        example):
    """Against the stock module, too: the example uses only what both give."""
    server = httpd(example, target=target, consumer=None)
    assert server.get("/visits?jane")[1] \
        == "jane: 1 (99 of 100 slots are free)\n"
    for number, again in enumerate((server.graceful, server.restart), 2):
        again()
        assert visits(server, "jane") == number
    server.stop()
    server.start()
    assert visits(server, "jane") == 4
    assert visits(server, "joe") == 1


def test_no_visit_is_lost_and_no_name_gets_two_slots(httpd, target, example):
    """Many at once, in several children: what the mutex and the atomic are
    for."""
    server = httpd(example, target=target, consumer=None, children=2)
    names = [f"name{i % 5}" for i in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: visits(server, name), names))
    assert [visits(server, f"name{i}") for i in range(5)] == [41] * 5
    assert "(95 of 100 slots are free)" in server.get("/visits?name0")[1]


def test_full_is_answered_with_503(httpd, example):
    server = httpd(example, consumer=None)
    for i in range(100):
        assert visits(server, f"name{i}") == 1
    assert server.get("/visits?onetoomany")[0] == 503
    assert visits(server, "name99") == 2


def test_without_the_provider_it_says_what_is_missing(httpd, example):
    server = httpd(example, consumer=None, slotmem_module=None, loglevel="info",
                   start=False)
    server.expect_log("slotmem_example needs mod_slotmem_shm to be loaded")
    server.allow_log("AH00020")
    said = server.start(expect_failure=True)
    assert "needs mod_slotmem_shm to be loaded" in said
