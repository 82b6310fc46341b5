"""The tests bite: each bug of mutants.txt is caught by the test that is named there."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import HERE
from mutants import PLANTS, SOURCE, Plant, main

NO_LOCK = PLANTS[0]
QUICK = "test_tickets.py::test_seats_that_are_free_are_sold[never]"


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_bug_is_planted_in_lines_that_are_there_once_and_its_test_is_there(plant):
    assert plant.planted(SOURCE) != SOURCE
    file, name = plant.test.partition("[")[0].split("::")
    functions = [
        node.name
        for node in ast.parse((HERE / file).read_text()).body
        if isinstance(node, ast.FunctionDef)
    ]
    assert functions.count(name) == 1


def test_no_two_bugs_are_the_same():
    assert len({plant.name for plant in PLANTS}) == len(PLANTS) >= 18
    assert len({plant.planted(SOURCE) for plant in PLANTS}) == len(PLANTS)


@pytest.mark.parametrize(
    ("old", "times"),
    [("import no_such_thing\n", 0), ("    event = document.event\n", r"\d")],
)
def test_no_bug_is_planted_in_lines_that_are_gone_or_there_twice(old, times):
    with pytest.raises(ValueError, match=rf"found {times} times, not once:\n{old}"):
        Plant("", QUICK, [("import csv\n", ""), (old, "")]).planted(SOURCE)


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


def test_what_is_no_bug_is_not_caught_and_that_is_said(capsys):
    assert (
        main(
            [
                Plant("nothing", QUICK, [("import csv\n", "import csv\n\n")]),
                Plant(
                    "no program", QUICK, [("import csv\n", "import csv, and more\n")]
                ),
                Plant("no such lines", QUICK, [("import no_such_thing\n", "")]),
            ]
        )
        == 1
    )
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert sum(line.startswith("MISSED") for line in lines) == 3
    assert lines[-1].startswith("0 of 3 caught")
    for why in "1 passed", "SyntaxError", "found 0 times, not once":
        assert why in told


def test_a_test_that_fails_without_a_bug_catches_none(capsys):
    assert main([NO_LOCK._replace(test="test_tickets.py::no_such_test")]) == 1
    assert "caught" not in capsys.readouterr().out
