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
"""Whoever edits a balancer's members finds afterwards what they expected.

CASES is the table of doc/members.md.  Each case is one balancer; all of them
stand in one server, for each MPM and each kind of restart, and are edited at
the same time, since restarts are what takes time.  Whatever the case, at its
end it is restarted once more with nothing edited, the room that growth left is
filled up in balancer-manager, and it is restarted again: what a case leaves in
disorder is overwritten by that, or comes back.
"""

import os
import sys
import typing

import pytest

import balancer
import httpd as harness
from members_model import (LETTERS, RESTARTS, Configuration, Model, Site,
                           State, parse_member)


class Step(typing.NamedTuple):
    """A configuration, read by a restart; what is there then; what is set in
    balancer-manager after that."""
    configuration: str
    there: str = ""
    manager: str = ""
    warns: bool = False


class Case(typing.NamedTuple):
    title: str
    steps: typing.Tuple[Step, ...]
    alone: bool = False         # in a virtual host of its own


def case(title, before, manager, *steps, alone=False):
    return Case(title, (Step(before, before.partition("growth")[0]
                             if before != "none" else "", manager),
                        *(Step(*step) for step in steps)), alone)


CASES = [
    case("nothing is edited",
         "a b c growth=2", "b- c*3@1 +d",
         ("a b c growth=2", "a b- c*3@1 +d")),

    case("first member removed",
         "a b c growth=0", "b- c*3",
         ("b c growth=0", "b- c*3")),
    case("first member removed, growth",
         "a b c growth=2", "b- c*3",
         ("b c growth=2", "b- c*3")),
    case("middle member removed",
         "a b c growth=0", "a*3 c-",
         ("a c growth=0", "a*3 c-")),
    case("middle member removed, growth",
         "a b c growth=2", "a*3 c-",
         ("a c growth=2", "a*3 c-")),
    case("last member removed",
         "a b c growth=0", "a*3 b-",
         ("a b growth=0", "a*3 b-")),
    case("last member removed, growth",
         "a b c growth=2", "a*3 b-",
         ("a b growth=2", "a*3 b-")),
    case("two members removed",
         "a b c d growth=1", "b- d*3",
         ("b d growth=1", "b- d*3")),
    case("member removed, and put back later",
         "a b c growth=1", "a*3 b-",
         ("a c growth=1", "a*3 c"),
         ("a b c growth=1", "a*3 b c")),
    case("all members removed, one was added at run time",
         "a b growth=2", "a- +c*3",
         ("growth=2", "+c*3")),

    case("first member replaced",
         "a b c growth=0", "b- c*3",
         ("d b c growth=0", "d b- c*3")),
    case("middle member replaced, growth",
         "a b c growth=2", "a- b- c*3",
         ("a d c growth=2", "a- d c*3")),
    case("last member replaced",
         "a b c growth=0", "a- b*3 c-",
         ("a b d growth=0", "a- b*3 d")),
    case("every member replaced",
         "a b growth=1", "a- b*3",
         ("c d growth=1", "c d")),
    case("member moved to another port, another one added",
         "a b c growth=0", "a- b- c*3",
         ("e a d c growth=0", "e a- d c*3")),

    case("member added as the first",
         "a b growth=0", "a- b*3",
         ("c a b growth=0", "c a- b*3")),
    case("member added in the middle, growth",
         "a b growth=2", "a- b*3",
         ("a c b growth=2", "a- c b*3")),
    case("member added as the last",
         "a b growth=0", "a- b*3",
         ("a b c growth=0", "a- b*3 c")),
    case("member added as the first, the last one removed",
         "a b c growth=2", "b-",
         ("d a b growth=2", "d a b-")),
    case("members sorted the other way round",
         "a b c growth=0", "b- c*3@1",
         ("c b a growth=0", "c*3@1 b- a")),
    case("members sorted, growth",
         "c a b growth=2", "a- c*3",
         ("a b c growth=2", "a- b c*3")),
    case("member renamed: it is another one",
         "a b c growth=1", "a- b*3 c-",
         ("A b c growth=1", "A b*3 c-")),

    case("two added at run time, later one more",
         "a b growth=4", "b- +c +d*3",
         ("a b growth=4", "a b- +c +d*3", "+e"),
         ("a b growth=4", "a b- +c +d*3 +e")),
    case("one added at run time, a member removed, one more at run time",
         "a b c growth=2", "b- +d-",
         ("a c growth=2", "a c +d-", "+e*3"),
         ("a c growth=2", "a c +d- +e*3")),
    case("two added at run time, a member added as the first",
         "a b growth=2", "b- +c +d*3",
         ("e a b growth=2", "e a b- +c +d*3")),
    case("two added at run time, a member added as the last",
         "a b growth=2", "b- +c +d*3",
         ("a b e growth=2", "a b- e +c +d*3")),
    case("one added at run time, a member replaced",
         "a b c growth=1", "b- c- +d*3",
         ("a e c growth=1", "a e c- +d*3")),
    case("two added at run time, members sorted",
         "c a b growth=3", "a- +d +e*3",
         ("a b c growth=3", "a- b c +d +e*3")),
    case("member added at run time is written into the configuration",
         "a b growth=2", "b- +c*3 +d",
         ("c a b growth=2", "c*3 a b- +d")),
    case("member added at run time is written down, and taken out later",
         "a b growth=2", "b- +c-",
         ("a b c growth=2", "a b- c-"),
         ("a b growth=2", "a b-")),
    case("member removed, then added again at run time",
         "a b c growth=2", "b-*3 c-",
         ("a c growth=2", "a c-", "+b"),
         ("a c growth=2", "a c- +b")),
    case("member removed, and put back while one added at run time stays",
         "a b growth=2", "b- +c*3",
         ("a growth=2", "a +c*3"),
         ("b a growth=2", "b a +c*3")),

    case("growth raised from 0",
         "a b growth=0", "b-",
         ("a b growth=2", "a b-", "+c*3"),
         ("a b growth=2", "a b- +c*3")),
    case("growth raised, one was added at run time",
         "a b growth=1", "b- +c*3",
         ("a b growth=3", "a b- +c*3", "+d"),
         ("a b growth=3", "a b- +c*3 +d")),
    case("growth lowered, all fits",
         "a b growth=4", "b- +c*3 +d-",
         ("a b growth=2", "a b- +c*3 +d-")),
    case("growth lowered to 0, none was added at run time",
         "a b growth=3", "a- b*3",
         ("a b growth=0", "a- b*3")),
    case("growth lowered, there is room for one of two",
         "a b growth=4", "b- +c*3 +d-",
         ("a b growth=1", "a b- +c*3|+d-", "", True)),
    case("growth lowered to 0, one was added at run time",
         "a b growth=2", "b- +c*3",
         ("a b growth=0", "a b-", "", True)),
    case("growth lowered by the members added",
         "a b growth=2", "b- +c*3 +d",
         ("e a b f growth=0", "e a b- f", "", True)),
    case("growth lowered by one, for a member that was added at run time",
         "a b growth=2", "b- +c*3 +d-",
         ("a b c growth=1", "a b- c*3 +d-")),

    case("balancer added",
         "none", "",
         ("a b growth=2", "a b", "b- +c*3"),
         ("a b growth=2", "a b- +c*3")),
    case("balancer removed, and put back later",
         "a b growth=2", "b- +c*3",
         ("none",),
         ("a b growth=2", "a b- +c*3")),
    case("balancer put back with other members",
         "a b c growth=2", "b- c*3 +d-",
         ("none",),
         ("b e c growth=2", "b- e c*3 +d-")),
    case("virtual host removed, and put back later",
         "a b growth=2", "b- +c*3",
         ("none",),
         ("a b growth=2", "a b- +c*3"), alone=True),
    case("virtual host added",
         "none", "",
         ("a b growth=2", "a b", "b- +c*3"),
         ("b d growth=2", "b- d +c*3"), alone=True),
]
NAME = {one.title: f"c{i:02}" for i, one in enumerate(CASES)}
BY_NAME = {NAME[one.title]: one for one in CASES}
STEPS = max(len(one.steps) for one in CASES)
STICKY = "SESSION"


def expectation(step, before):
    """A Model of what a step promises, told by its words alone."""
    model = Model()
    model.configuration = Configuration.parse(step.configuration)
    model.sticky = STICKY
    if before is None or before.configuration is None:
        model.sticky = None
    if model.configuration is None:
        return model
    for word in step.there.split():
        choice = word.split("|")
        model.may_lose += len(choice) - 1
        for one in choice:
            letter, state, runtime = parse_member(one)
            (model.add if runtime else model.name)(letter, state)
    return model


def words(text):
    return [parse_member(word) for word in text.split()]


# ---------------------------------------------------------------------------
# One server for all of them
# ---------------------------------------------------------------------------

class Run:
    """All cases in one server, restarted in one way; wrong[name] is a list
    of what was not as it should be."""

    def __init__(self, httpd, backends, names, kind, **options):
        self.restart = RESTARTS[kind]
        self.wrong = {name: [] for name in names}
        self.site = Site(httpd, backends, names,
                         [name for name in names if BY_NAME[name].alone],
                         **options)
        self.models = dict.fromkeys(names)
        self.site.server.allow_log(r"slotmem_shm: .*_c\d\d\b")
        self.trouble = None

    def sound(self):
        return [name for name, wrong in self.wrong.items() if not wrong]

    def all_steps(self):
        try:
            for i in range(STEPS):
                self.step(i)
            self.again("nothing edited")
            self.fill()
            self.again("the room that was left has been filled")
            self.site.server.close()
        except harness.HttpdError as error:
            self.trouble = str(error)

    def step(self, i):
        steps = {name: BY_NAME[name].steps[min(i, len(BY_NAME[name].steps)
                                               - 1)]
                 for name in self.sound()}
        logged = len(self.site.server.log())
        self.site.configure({name: Configuration.parse(step.configuration)
                             for name, step in steps.items()}, self.restart)
        for name, step in steps.items():
            if i < len(BY_NAME[name].steps):
                self.models[name] = expectation(step, self.models[name])
                self.check_warnings(name, logged, step.warns)
        self.check(f"configured {i + 1} times")
        changed = [name for name, step in steps.items()
                   if i < len(BY_NAME[name].steps)]
        for name in changed:
            self.guarded(name, self.change, name, steps[name].manager, i)

    def guarded(self, name, act, *args):
        """What fails for one balancer is told of that, and of no other."""
        if self.wrong[name]:
            return
        try:
            act(*args)
        except AssertionError as error:
            self.wrong[name].append(str(error))

    def change(self, name, text, i):
        model = self.models[name]
        if model.configuration is None:
            return
        if model.sticky != STICKY:
            self.site.set_sticky(name, STICKY)
            model.sticky = STICKY
        for letter, state, runtime in words(text):
            if runtime:
                self.site.add(name, letter, state)
                model.add(letter, state)
            else:
                self.site.change(name, letter, state)
                model.change(letter, state)

    def fill(self):
        """So many members as growth leaves room for, and no more."""
        for name in self.sound():
            model = self.models[name]
            spare = [letter for letter in reversed(LETTERS)
                     if letter not in model.members]
            for letter in spare[:model.room]:
                self.guarded(name, self.site.add, name, letter, State())
                model.add(letter, State())
        self.check("filled up")

    def again(self, what):
        logged = len(self.site.server.log())
        self.site.configure({}, self.restart)
        for name in self.sound():
            self.check_warnings(name, logged, False)
        self.check(what)

    def check(self, what):
        models = {name: self.models[name] for name in self.sound()
                  if self.models[name].configuration is not None}
        for name, seen in self.site.look(models).items():
            if isinstance(seen, Exception):
                self.wrong[name].append(f"{what}: {seen!r}")
                continue
            complaints = models[name].complaints(seen)
            self.wrong[name] += [f"{what}: {one}" for one in complaints]
            if complaints:
                self.wrong[name].append(f"it shows: {seen}")
            else:
                models[name].adopt(seen)       # of two, the one that is there

    def check_warnings(self, name, logged, expected):
        lines = self.site.warnings(name, logged)
        if bool(lines) != expected or len(lines) > 1:
            self.wrong[name].append(
                f"one warning was expected: {lines}" if expected
                else f"no warning was expected: {lines}")


@pytest.fixture(scope="module")
def backends(shared_httpd):
    # The other name of a backend is one that httpd is strict about.
    return balancer.Backends(shared_httpd, len(LETTERS),
                             conf="\nHttpProtocolOptions Unsafe\n")


@pytest.fixture(scope="module", params=list(RESTARTS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def run(request, shared_httpd, backends, mpm, kind):
    """The cases that are asked for, all at once."""
    asked = {item.callspec.params["title"] for item in request.session.items
             if "title" in getattr(getattr(item, "callspec", None), "params",
                                   {})}
    names = [NAME[title] for title in NAME if title in asked or not asked]
    done = Run(shared_httpd, backends, names, kind, mpm=mpm)
    done.all_steps()
    return done


def test_server_lives_through_all_edits(run):
    """Fails when it does not start, or a child crashes, or the log has a
    warning that is about none of the balancers."""
    assert run.trouble is None, run.trouble


@pytest.mark.parametrize("title", list(NAME))
def test_edit(run, title):
    """Fails when a member gets requests that nobody names, or one loses what
    was set of it, or its place."""
    wrong = run.wrong[NAME[title]]
    steps = map(str, BY_NAME[NAME[title]].steps)
    assert not wrong, "\n".join([NAME[title], *steps, *wrong])
    assert run.trouble is None, "the server did not live through all edits"


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.title)
def test_table_agrees_with_the_model(one):
    """Fails when the model, which judges random edits, and the table, which
    was written by hand, do not expect the same."""
    model = Model()
    for step in one.steps:
        model.configure(Configuration.parse(step.configuration))
        if model.configuration is None:
            continue
        told = expectation(step, None)
        if model.may_lose:
            assert step.warns
            told.may_lose = model.may_lose
        for letter, entry in told.members.items():
            assert model.members[letter] == entry
        lost = set(model.members) - set(told.members)
        assert all(model.members[letter].runtime for letter in lost)
        assert len(lost) <= model.may_lose
        for letter in lost:
            del model.members[letter]
        for letter, state, runtime in words(step.manager):
            (model.add if runtime else model.change)(letter, state)


def table():
    """The cases, as Markdown."""
    lines = ["| edit | configuration and what is set in balancer-manager, "
             "step by step | members then |", "| --- | --- | --- |"]
    for one in CASES:
        left = " → ".join(
            f"`{step.configuration}`" + (f", set `{step.manager}`"
                                         if step.manager else "")
            for step in one.steps)
        there = one.steps[-1].there.replace("|", "` or `")
        lines.append(f"| {one.title} | {left} | `{there}`"
                     + (", and a warning" if one.steps[-1].warns else "")
                     + " |")
    return "\n".join(lines) + "\n"


def test_documentation_has_this_table():
    """Fails when doc/members.md promises something else than is tested."""
    path = os.path.join(harness.TOP, "doc", "members.md")
    with open(path) as file:
        assert table() in file.read(), "print it: python3 test/test_members.py"


if __name__ == "__main__":
    sys.stdout.write(table())
