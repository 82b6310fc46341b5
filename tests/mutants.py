"""Whether the tests bite: plant bugs in ticketboss.py, and see them caught.

    python tests/mutants.py            all of mutants.txt
    python tests/mutants.py no lock    those with these words, and what the test says

Each bug is planted alone, in a copy, and only the one test that is meant to catch it is
run. Ends with 1 if a bug is missed, or if its lines are not in ticketboss.py any more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
SOURCE = (TESTS.parent / "ticketboss.py").read_text()
AT_ONCE = 2
PATIENCE_S = 120  # a test that hangs has caught nothing


class Plant(NamedTuple):
    """One bug."""

    name: str
    test: str  # file::function, perhaps with [a parameter]
    changes: list[tuple[str, str]]  # lines that go, and what comes instead

    def planted(self, source: str) -> str:
        """The program with it. Raises ValueError if its lines are not there once."""
        for old, new in self.changes:
            if (times := source.count(f"\n{old}")) != 1:
                raise ValueError(f"found {times} times, not once:\n{old}")
            source = source.replace(f"\n{old}", f"\n{new}")
        return source


def plants(text: str) -> list[Plant]:
    """What a text like mutants.txt says."""
    found = []
    for block in text.split("\n\n")[1:]:
        name, test, lines = f"{block.strip()}\n".split("\n", 2)
        changes = [
            tuple(re.sub("^.", "", part, flags=re.MULTILINE) for part in change)
            for change in re.findall(r"((?:-.*\n)+)((?:\+.*\n)*)", lines)
        ]
        found.append(Plant(name, test, changes))
    return found


PLANTS = plants((TESTS / "mutants.txt").read_text())


def run(source: str, tests: list[str]) -> tuple[str, str]:
    """Whether these tests passed or failed, hung or did not run; and their words."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            TESTS, f"{folder}/tests", ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
        Path(folder, "ticketboss.py").write_text(source)
        env = {
            name: value
            for name, value in os.environ.items()
            if name != "PYTEST_ADDOPTS" and not name.startswith("TICKETBOSS_")
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-n0",
            "--tb=short",
            *(f"tests/{test}" for test in tests),
        ]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=env,
                text=True,
                check=False,
                capture_output=True,
                timeout=PATIENCE_S,
            )
        except subprocess.TimeoutExpired:
            return "hung", f"no end after {PATIENCE_S} s"
    failed = done.returncode == 1 and re.search(
        r"^\d+ failed", done.stdout, re.MULTILINE
    )
    verdict = "passed" if done.returncode == 0 else "failed" if failed else "error"
    return verdict, done.stdout + done.stderr


def check(plant: Plant) -> tuple[bool, float, str]:
    """Whether the bug is caught, in how many seconds, and in which words."""
    began = time.perf_counter()
    try:
        verdict, words = run(plant.planted(SOURCE), [plant.test])
    except ValueError as error:
        verdict, words = "error", str(error)
    return verdict == "failed", time.perf_counter() - began, words


def main(chosen: list[Plant], *, talkative: bool = False) -> int:
    """Print a line for each, and the score; 1 if it is not full."""
    began, score = time.perf_counter(), 0
    verdict, words = run(SOURCE, sorted({plant.test for plant in chosen}))
    if verdict != "passed":
        print(f"{words}\nWithout a bug, their tests do not pass.")
        return 1
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = pool.map(check, chosen)
        for plant, (caught, seconds, words) in zip(chosen, results, strict=True):
            print(
                f"{'caught' if caught else 'MISSED'} {seconds:5.1f} s  {plant.name}: "
                f"{plant.test}",
                flush=True,
            )
            if talkative or not caught:
                print(words)
            score += caught
    print(f"{score} of {len(chosen)} caught, in {time.perf_counter() - began:.0f} s.")
    return 0 if score == len(chosen) else 1


if __name__ == "__main__":
    wanted = " ".join(sys.argv[1:])
    chosen = [plant for plant in PLANTS if wanted in plant.name]
    sys.exit(main(chosen, talkative=bool(wanted)) if chosen else "No bug is called so.")
