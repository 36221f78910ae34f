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
"""Fixtures and options; see README.md beside this file."""

import functools
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import httpd as harness     # noqa: E402  (the path above finds it)


def pytest_addoption(parser):
    parser.addoption("--mpm", action="append", choices=harness.MPMS,
                     help="only this MPM (may be given again)")
    parser.addoption("--module", choices=("ours", "stock"), default=None,
                     help="in tests that run against both, only this one")


def pytest_configure(config):
    harness.become_subreaper()
    config.addinivalue_line(
        "markers", "only_ours(reason): the stock module does not promise this")


# pytest keeps a fixture for as long as its parameter is the same object.
TARGETS = {(which, mpm): (which, mpm)
           for which in ("ours", "stock") for mpm in harness.MPMS}


def pytest_generate_tests(metafunc):
    """Parameters mpm, and target: (which module, mpm).

    A target is our module in every MPM, and the stock module in one, since a
    test that the stock module fails may be a wrong test.  A test marked
    only_ours says why the stock module is spared.
    """
    chosen = metafunc.config.getoption("--mpm") or harness.MPMS
    which = metafunc.config.getoption("--module")
    mpms = [mpm for mpm in harness.MPMS if mpm in chosen]
    if "mpm" in metafunc.fixturenames:
        metafunc.parametrize("mpm", mpms, scope="module", indirect=True)
    if "target" in metafunc.fixturenames:
        targets = [TARGETS["ours", mpm] for mpm in mpms]
        targets.append(TARGETS["stock", mpms[0]])
        if metafunc.definition.get_closest_marker("only_ours"):
            targets.pop()
        targets = [t for t in targets if which in (None, t[0])]
        metafunc.parametrize("target", targets, scope="module", indirect=True,
                             ids=["-".join(t) for t in targets])


@pytest.fixture(scope="module")
def mpm(request):
    return request.param


@pytest.fixture(scope="module")
def target(request):
    return request.param


def _make(made, conf="", **options):
    """Makes and, unless start=False, starts a server."""
    start = options.pop("start", True)
    target = options.pop("target", None)
    if target:
        options["mpm"] = target[1]
        options["slotmem_module"] = module_path(target[0])
    elif "slotmem_module" not in options:
        options["slotmem_module"] = module_path("ours")
    server = harness.Httpd(conf, **options)
    made.append(server)
    return server.start() if start else server


def module_path(which):
    return (harness.stock_module() if which == "stock"
            else harness.our_module())


def _close_all(made):
    trouble = []
    for server in reversed(made):
        try:
            server.close()
        except harness.HttpdError as error:
            trouble.append(str(error))
    if trouble:
        pytest.fail("\n".join(trouble), pytrace=False)


@pytest.fixture
def httpd():
    """httpd(conf=..., mpm=..., ...) starts a server that the test owns.

    Arguments are those of harness.Httpd, and start=False, target=.  The
    module under test is loaded unless slotmem_module says otherwise.
    """
    made = []
    yield functools.partial(_make, made)
    _close_all(made)


@pytest.fixture(scope="module")
def shared_httpd():
    """As httpd, for servers that the tests of a file share."""
    made = []
    yield functools.partial(_make, made)
    _close_all(made)


@pytest.fixture
def our_module():
    return harness.our_module()


@pytest.fixture
def stock_module():
    if "mod_slotmem_shm" in harness.static_modules():
        pytest.skip("the module under test is linked into this httpd")
    return harness.stock_module()


@pytest.fixture(autouse=True)
def _no_unannounced_warning(request):
    """Blames a warning on the test during which it was logged."""
    yield
    for server in harness.live_servers():
        server.check_log()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that fails shows what its servers said."""
    report = (yield).get_result()
    if report.failed:
        for server in harness.live_servers():
            report.sections.append(
                (f"error log of {server.root}", server.last_words(60)))
