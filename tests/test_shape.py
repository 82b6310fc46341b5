"""The file stays a lesson: within its budget, in its order, each section on its own."""

import ast
import itertools
import re

import pytest
from conftest import PROGRAM

SOURCE = PROGRAM.read_text()
TREE = ast.parse(SOURCE)
SECTIONS = re.findall(r"^# === (\d+)\. (.+?) =+$", SOURCE, re.MULTILINE)
BUDGET = 1600  # lines of code: not blank, not said, not the page


def spoken() -> set[int]:
    """The lines of docstrings, and of the page."""
    lines: set[int] = set()
    for node in ast.walk(TREE):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines |= {*range(first.lineno, first.end_lineno + 1)}
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PAGE":
            lines |= {*range(node.lineno, node.end_lineno + 1)}
    return lines


def section(name: str) -> str:
    return SOURCE.split(f". {name} =", 1)[1].split("\n# === ", 1)[0].partition("\n")[2]


def used(name: str) -> set[str]:
    """The names that a section's code asks for."""
    return {
        node.id
        for node in ast.walk(ast.parse(section(name)))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def test_the_program_keeps_its_budget():
    said = spoken()
    lines = [
        line.strip() for n, line in enumerate(SOURCE.splitlines(), 1) if n not in said
    ]
    assert sum(1 for line in lines if line and not line.startswith("#")) <= BUDGET


def test_no_function_is_longer_than_a_screen():
    long = [
        (node.name, node.end_lineno - node.lineno + 1)
        for node in ast.walk(TREE)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 30
    ]
    assert long == []


def test_the_sections_stand_in_the_order_that_the_docstring_gives():
    contents = " ".join(ast.get_docstring(TREE).split())
    told = re.findall(r"(\d+) ([A-Z/][\w/ ]+?)[,.]", contents)
    assert told == SECTIONS


def made(name: str) -> set[str]:
    return {
        node.name
        for node in ast.parse(section(name)).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }


def test_the_rules_about_seats_know_no_file_no_clock_no_chance_and_no_http():
    foreign = {
        "os",
        "time",
        "datetime",
        "random",
        "secrets",
        "uuid",
        "request",
        "g",
        "open",
        "json",
        "abort",
        "office",
    }
    assert used("Tickets") & foreign == set()


def test_the_store_knows_nothing_of_who_may_buy_nor_of_http():
    foreign = {
        "reserve",
        "book",
        "cancel",
        "promote",
        "waiting",
        "request",
        "g",
        "abort",
        "office",
        "Response",
    }
    assert used("Store") & foreign == set()


def test_the_transactions_know_no_file_and_no_http():
    assert (
        used("Transactions")
        & {"os", "open", "json", "request", "g", "abort", "office", "Response"}
        == set()
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [*itertools.permutations(["Partner API", "Booking API", "/api/v1"], 2)],
)
def test_no_dialect_knows_another(one, other):
    assert made(one) & used(other) == set()
