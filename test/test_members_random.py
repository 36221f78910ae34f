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
"""Random edits, restarts and kills: no member that nobody named is served, and
none is lost.  MEMBERS_SEEDS says how many sequences (30)."""

import os

import pytest

import balancer
import members_random
from conftest import module_path
from members_model import LETTERS

SEEDS = int(os.environ.get("MEMBERS_SEEDS", "30"))
GROUPS = [range(first, min(first + members_random.GROUP, SEEDS))
          for first in range(0, SEEDS, members_random.GROUP)]


@pytest.fixture(scope="module")
def backends(shared_httpd):
    return balancer.Backends(shared_httpd, len(LETTERS),
                             **members_random.BACKENDS)


@pytest.mark.parametrize("seeds", GROUPS, ids=lambda s: f"{s[0]}-{s[-1]}")
def test_random_edits_do_what_an_administrator_expects(httpd, backends, seeds):
    """Fails when some order of edits, restarts and kills serves a member that
    neither configuration nor manager named, or loses one that they did."""
    group = members_random.Group(httpd, backends, list(seeds), True)
    group.run()
    assert not group.report(), "\n" + group.report()
    assert group.looks > len(seeds) * members_random.ROUNDS


@pytest.mark.parametrize("seeds", GROUPS[:3],
                         ids=lambda s: f"{s[0]}-{s[-1]}")
def test_positive_control_the_stock_module_deviates(httpd, backends, seeds):
    """Fails when the judge finds nothing, whatever happens: the stock module
    loses members and state in each of these groups."""
    group = members_random.Group(httpd, backends, list(seeds), False,
                                 slotmem_module=module_path("stock"))
    group.run()
    faults = sum(map(len, group.faults.values()))
    print(f"stock: {faults} deviations in {group.looks} looks")
    assert faults > 0
