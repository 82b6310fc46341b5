"""Whether the tests bite: plant bugs in ticketboss.py, and see them caught.

    python tests/mutants.py            all of mutants.txt
    python tests/mutants.py no lock    those with these words, and what the test says

Each bug is planted alone, in a copy, and only the one test that is meant to catch it is
run. The exit status is 1 if a bug is missed, or if its text is not in
ticketboss.py exactly once.
"""

from __future__ import annotations

import ast
import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent
SOURCE = (TESTS.parent / "ticketboss.py").read_text()
AT_ONCE = 2
PATIENCE_S = 120  # a test that hangs has caught nothing
PARSING = threading.Lock()


class Change(NamedTuple):
    """One replacement: the place, the text that goes, the text that comes."""

    place: str  # a function or a class, as in Store.swap
    old: str
    new: str


class Plant(NamedTuple):
    """One bug."""

    name: str
    test: str  # file::function, perhaps with [a parameter]
    changes: list[Change]

    def planted(self, source: str) -> str:
        """The program with the bug. Raises ValueError if a text is not there once."""
        for change in self.changes:
            source = replaced(source, change)
        return source


def replaced(source: str, change: Change) -> str:
    """The source with one change. Raises ValueError if its text is not there once."""
    start, end = span(source, change.place)
    found = [*pattern(change.old).finditer(source, start, end)]
    if len(found) != 1:
        raise ValueError(
            f"found {len(found)} times, not once, in {change.place}:\n{change.old}"
        )
    before, after = source[: found[0].start()], source[found[0].end() :]
    margin = re.match(" *", before.rpartition("\n")[2])[0]
    return before + change.new.replace("\n", f"\n{margin}") + after


def pattern(text: str) -> re.Pattern[str]:
    """Match a text in any layout.

    White space and comments may stand between any two words or signs, and a comma in
    front of a closing bracket.
    """
    space = r"(?:\s|#.*)*"
    pieces = [
        rf"\b{piece}\b" if re.match(r"\w", piece) else re.escape(piece)
        for piece in re.findall(r"\w+|[^\w\s]", re.sub(r",(?=\s*[)\]}])", "", text))
    ]
    return re.compile(
        space.join(
            rf"(?:,{space})?{piece}" if piece in {r"\)", r"\]", r"\}"} else piece
            for piece in pieces
        )
    )


@functools.lru_cache(1000)
def span(source: str, place: str) -> tuple[int, int]:
    """Find where a function or class begins and ends. Raises ValueError."""
    first, *inner = place.split(".")
    # Python 3.11 counts the depth of a tree once for all threads, so two that parse
    # at the same moment end with "AST constructor recursion depth mismatch".
    with PARSING:
        tree = parsed(source)
    found = [node for node in tree.body if is_called(node, first)]
    for name in inner:
        found = [n for node in found for n in ast.walk(node) if is_called(n, name)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} functions or classes, not one: {place}")
    node = found[0]
    starts = [0, *(end.end() for end in re.finditer("\n", source))]
    first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
    return starts[first - 1], starts[node.end_lineno]


@functools.lru_cache(4)
def parsed(source: str) -> ast.Module:
    """The tree of a program: the same one for all bugs, which takes a while to make."""
    return ast.parse(source)


def is_called(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name


def plants(text: str) -> list[Plant]:
    """Parse a text like mutants.txt."""
    found = []
    for block in text.split("\n\n")[1:]:
        name, test, *lines = block.strip().split("\n")
        found.append(Plant(name, test, [*changes(lines)]))
    return found


def changes(lines: list[str]) -> Iterator[Change]:
    """Parse the lines of one bug. Raises ValueError for any other line."""
    place = ""
    for sign, group in itertools.groupby(lines, lambda line: line.split(" ")[0]):
        text = "\n".join(line[len(sign) + 1 :] for line in group)
        if sign == "in":
            place = text
        elif sign == "-":
            old = text
        elif sign == "+":
            yield Change(place, old, text)
        else:
            raise ValueError(f"neither in, - nor +: {sign} {text}")


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
