"""The tests bite: each bug of mutants.txt is caught by the test that is named there."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys

import pytest
from conftest import HERE
from mutants import PLANTS, SOURCE, Change, Plant, main, plants, replaced, span

NO_LOCK = PLANTS[0]
QUICK = "test_tickets.py::test_seats_that_are_free_are_sold[never]"


@functools.cache
def functions_of(file):
    """The names of the functions of a file of tests."""
    tree = ast.parse((HERE / file).read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_each_bug_has_a_text_that_occurs_once_and_a_test_that_exists(plant):
    assert plant.planted(SOURCE) != SOURCE
    for change in plant.changes:
        start, end = span(SOURCE, change.place)
        with_bug = replaced(SOURCE, change)
        place = with_bug[start : end + len(with_bug) - len(SOURCE)]
        ast.parse(f"class Outer:\n{place}" if place.startswith(" ") else place)
    file, name = plant.test.partition("[")[0].split("::")
    assert functions_of(file).count(name) == 1


def test_no_two_bugs_are_the_same():
    assert len({plant.name for plant in PLANTS}) == len(PLANTS) >= 18
    assert len({plant.planted(SOURCE) for plant in PLANTS}) == len(PLANTS)


PROGRAM = """\
class Till:
    @property
    def sell(self):
        total = self.count(1, 2)
        return total

    def close(self):
        self.count(1, 2)
        self.count(1, 2)
"""


@pytest.mark.parametrize(
    ("place", "old", "why"),
    [
        ("Till.sell", "return nothing", "found 0 times, not once, in Till.sell:\n"),
        ("Till.close", "self.count", "found 2 times, not once, in Till.close:\n"),
        ("Till.sell", "self.coun", "found 0 times, not once, in Till.sell:\n"),
        ("Till.open", "self.count", "0 functions or classes, not one: Till.open"),
    ],
)
def test_no_bug_is_planted_in_a_text_that_is_missing_or_occurs_twice(place, old, why):
    with pytest.raises(ValueError, match=why):
        replaced(PROGRAM, Change(place, old, "pass"))


@pytest.mark.parametrize(
    "laid_out",
    [
        "total = self.count(1, 2)",
        "total=self.count( 1,2 )",
        "total = self.count(\n            1,\n            2,\n        )",
        "total = self.count(  # both\n            1, 2\n        )",
    ],
)
def test_a_bug_is_planted_however_the_text_is_laid_out(laid_out):
    source = PROGRAM.replace("total = self.count(1, 2)", laid_out)
    change = Change("Till.sell", "total = self.count(1,\n    2)", "if total:\n    pass")
    assert replaced(source, change) == PROGRAM.replace(
        "        total = self.count(1, 2)\n",
        "        if total:\n            pass\n",
    )


def test_a_bug_is_read_with_all_of_its_changes():
    text = """\
# what it is

one bug
file::test
in Till.sell
- a
-     b
+ c
- d
+
in Till.close
- e
+ f

another bug
file::test[1 2]
in Till
- g
+ h
"""
    assert plants(text) == [
        Plant(
            "one bug",
            "file::test",
            [
                Change("Till.sell", "a\n    b", "c"),
                Change("Till.sell", "d", ""),
                Change("Till.close", "e", "f"),
            ],
        ),
        Plant("another bug", "file::test[1 2]", [Change("Till", "g", "h")]),
    ]
    with pytest.raises(ValueError, match=r"neither in, - nor \+: \* i"):
        plants(f"{text}* i\n")


def test_every_bug_is_caught(pick, say):
    every = [], len(PLANTS)
    asked, size = pick(([NO_LOCK.name], 1), every, every)
    done = subprocess.run(
        [sys.executable, str(HERE / "mutants.py"), *asked],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    score = done.stdout.splitlines()[-1]
    say(f"planted bugs: {score}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert score.startswith(f"{size} of {size} caught")


def test_a_harmless_change_is_reported_as_missed(capsys):
    nothing, broken, gone = (
        Change("seed", "seats, seats", "seats, \\\n    seats"),
        Change("seed", "seats, seats", "seats, and more"),
        Change("seed", "no such text", ""),
    )
    chosen = [
        Plant("nothing", QUICK, [nothing]),
        Plant("no program", QUICK, [broken]),
        Plant("no such text", QUICK, [gone]),
    ]
    assert main(chosen) == 1
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert sum(line.startswith("MISSED") for line in lines) == 3
    assert lines[-1].startswith("0 of 3 caught")
    for why in "1 passed", "SyntaxError", "found 0 times, not once":
        assert why in told


def test_a_test_that_fails_without_a_bug_catches_none(capsys):
    assert main([NO_LOCK._replace(test="test_tickets.py::no_such_test")]) == 1
    assert "caught" not in capsys.readouterr().out
