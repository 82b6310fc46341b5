"""The program can be read from top to bottom, and each section knows little.

What a section knows is computed from the names that its code refers to. The checks take
a source text, so that each is also seen to fail on a small program that breaks it.
"""

from __future__ import annotations

import ast
import builtins
import functools
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pytest
from programs import PROGRAM

SOURCE = PROGRAM.read_text()
LONGEST_FUNCTION = 40
PARTS_OF_A_DATABASE = {"Document", "Event", "Reservation", "Origin"}
ACCOUNTS = {"Account", "Accounts"}
NO_RULES = {"of", "changed_since", "settled"}  # of Document: to make it and to keep it
DIALECTS = ("Partner API", "Booking API", "/api/v1")

FILES = {
    *("os", "io", "shutil", "tempfile", "pathlib", "stat", "filelock", "fcntl"),
    "builtins.open",
}
CLOCK = {"time", "datetime"}
RANDOMNESS = {"random", "secrets", "uuid", "os.urandom"}
HTTP = {"flask", "werkzeug", "waitress", "http", "urllib", "socket", "limits"}
JSON = {"json", "msgspec.json"}
COMMAND_LINE = {"click", "sys.argv", "os.environ"}
MAY_NOT_KNOW = {
    "Settings": FILES | CLOCK | RANDOMNESS | HTTP | JSON | COMMAND_LINE,
    "Values": FILES | CLOCK | RANDOMNESS | HTTP | JSON | COMMAND_LINE,
    "Rules": FILES | CLOCK | RANDOMNESS | HTTP | JSON | COMMAND_LINE,
    "Store": HTTP | COMMAND_LINE,
    "Transactions": FILES | RANDOMNESS | HTTP | JSON | COMMAND_LINE,
    "Accounts": FILES | CLOCK | HTTP - {"werkzeug"} | JSON | COMMAND_LINE,
    "Box office": FILES | HTTP | JSON | COMMAND_LINE,
    "HTTP": FILES | COMMAND_LINE,
    "Partner API": FILES | COMMAND_LINE,
    "Booking API": FILES - {"io"} | COMMAND_LINE,
    "/api/v1": FILES | COMMAND_LINE,
}


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Reference(NamedTuple):
    """A name that code refers to, with the attributes that are asked of it."""

    path: tuple[str, ...]  # os.path.join is ("os", "path", "join")
    line: int
    is_annotation: bool


class Program:
    """A source text, and what its sections define and refer to."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tree = ast.parse(source)
        banners = [
            (number, found[1], found[2])
            for number, line in enumerate(source.splitlines(), 1)
            if (found := re.fullmatch(r"# === (\d+)\. (.+?) =+", line))
        ]
        self.numbered = [(number, name) for _, number, name in banners]
        ends = [line for line, _, _ in banners[1:]] + [len(source.splitlines()) + 1]
        self.lines = {
            name: range(line, end)
            for (line, _, name), end in zip(banners, ends, strict=True)
        }
        self.order = [*self.lines]
        self.section_of: dict[str, str] = {}  # where a top-level name is defined
        self.imports: dict[str, str] = {}  # and where an imported one comes from
        for statement in self.tree.body:
            for name in bound_names([statement]):
                if isinstance(statement, ast.Import | ast.ImportFrom):
                    continue
                self.section_of.setdefault(name, self.section_at(statement.lineno))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports |= imported(node)

    def section_at(self, line: int) -> str:
        """The section of a line; "" above the first."""
        for name, lines in self.lines.items():
            if line in lines:
                return name
        return ""

    def statements(self, section: str) -> list[ast.stmt]:
        """The top-level statements of a section."""
        return [
            statement
            for statement in self.tree.body
            if self.section_at(statement.lineno) == section
        ]

    def references(self, section: str) -> list[Reference]:
        """All names outside of itself that a section's code refers to."""
        finder = Finder()
        for statement in self.statements(section):
            finder.visit(statement)
        return finder.found

    def origin(self, reference: Reference) -> str:
        """The full name of what is referred to: os.path.join, flask.abort."""
        first, *attributes = reference.path
        if first in self.section_of:
            first = f"{self.section_of[first]}.{first}"
        elif first in self.imports:
            first = self.imports[first]
        elif hasattr(builtins, first):
            first = f"builtins.{first}"
        return ".".join([first, *attributes])

    def methods(self, of: str, returns: str = "") -> set[str]:
        """The names of the methods of a class, or of those that return such a value."""
        return {
            method.name
            for node in self.tree.body
            if isinstance(node, ast.ClassDef) and node.name == of
            for method in node.body
            if isinstance(method, ast.FunctionDef)
            if not returns
            or (method.returns is not None and ast.unparse(method.returns) == returns)
        }

    def attributes_of_values(self, section: str) -> set[str]:
        """The attributes that a section uses, but for self's and the box office's."""
        return {
            name
            for statement in self.statements(section)
            for node in ast.walk(statement)
            if isinstance(node, ast.Attribute)
            for name in [node.attr]
            if not self.is_import_or_self(node.value)
            and ast.unparse(node.value) != "app.box_office"
        }

    def is_import_or_self(self, node: ast.expr) -> bool:
        while isinstance(node, ast.Attribute):
            node = node.value
            if isinstance(node, ast.Name) and node.id == "self":
                return False  # self.value.attribute
        return isinstance(node, ast.Name) and (
            node.id == "self" or node.id in self.imports
        )


@functools.cache
def program_of(source: str) -> Program:
    """The same for all tests that ask for the same text: it takes a while to make."""
    return Program(source)


class Finder(ast.NodeVisitor):
    """Collects the names that are not bound where they stand."""

    def __init__(self) -> None:
        self.found: list[Reference] = []
        self.scopes: list[set[str]] = []  # the names that inner scopes bind
        self.is_annotation = False

    def add(self, path: tuple[str, ...], line: int) -> None:
        if not any(path[0] in scope for scope in self.scopes):
            self.found.append(Reference(path, line, self.is_annotation))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, COMPREHENSIONS):
            self.comprehension(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self.inner_import(node)
        else:
            super().visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self.add((node.id,), node.lineno)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        attributes: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            attributes.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            self.add((inner.id, *attributes), node.lineno)
        else:
            self.visit(inner)

    def visit_Constant(self, node: ast.Constant) -> None:
        if self.is_annotation and isinstance(node.value, str):
            quoted = ast.parse(node.value, mode="eval")
            for name in ast.walk(quoted):
                if isinstance(name, ast.Name):
                    self.add((name.id,), node.lineno)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        kind = ast.unparse(node.value)
        if kind == "Annotated" and isinstance(node.slice, ast.Tuple):
            annotated, *facts = node.slice.elts  # of which texts are no names
            self.visit(annotated)
            before, self.is_annotation = self.is_annotation, False
            for fact in facts:
                self.visit(fact)
            self.is_annotation = before
        elif kind != "Literal":  # which has texts too
            self.visit(node.slice)

    def inner_import(self, node: ast.Import | ast.ImportFrom) -> None:
        for origin in imported(node).values():
            self.found.append(Reference((origin,), node.lineno, False))

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "cast":
            self.annotation(node.args[0])
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.annotation(node.annotation)
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = every_argument(node.args)
        for argument in arguments:
            self.annotation(argument.annotation)
        self.annotation(node.returns)
        for before in (
            *node.decorator_list,
            *node.args.defaults,
            *filter(None, node.args.kw_defaults),
        ):
            self.visit(before)
        own = {argument.arg for argument in arguments} | bound_names(node.body)
        self.inside(own, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(default)
        self.inside(
            {argument.arg for argument in every_argument(node.args)}, [node.body]
        )

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for before in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(before)
        fields: set[str] = set()  # of which methods see none
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef):
                self.visit(statement)
            else:
                self.inside(set(fields), [statement])
            fields |= bound_names([statement])

    def comprehension(self, node: Any) -> None:
        self.inside(
            {
                name.id
                for generator in node.generators
                for name in ast.walk(generator.target)
                if isinstance(name, ast.Name)
            },
            [*ast.iter_child_nodes(node)],
        )

    def inside(self, own: set[str], nodes: Iterable[ast.AST]) -> None:
        self.scopes.append(own)
        for node in nodes:
            self.visit(node)
        self.scopes.pop()

    def annotation(self, node: ast.expr | None) -> None:
        if node is not None:
            before, self.is_annotation = self.is_annotation, True
            self.visit(node)
            self.is_annotation = before


def bound_names(statements: Iterable[ast.AST]) -> set[str]:
    """The names that statements bind in their own scope."""
    found: set[str] = set()
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {*imported(node)}
        elif isinstance(node, ast.ExceptHandler):
            found |= {node.name or ""} | bound_names(node.body)
        elif isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                found.add(node.id)
        elif not isinstance(node, (ast.Lambda, *COMPREHENSIONS)):
            found |= bound_names(ast.iter_child_nodes(node))
    return found


def every_argument(arguments: ast.arguments) -> list[ast.arg]:
    others = (arguments.vararg, arguments.kwarg)
    return [
        *arguments.posonlyargs,
        *arguments.args,
        *arguments.kwonlyargs,
        *filter(None, others),
    ]


def imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """What an import binds, and the full name of each."""
    if isinstance(node, ast.ImportFrom):
        return {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return {
        alias.asname or alias.name.split(".")[0]: (
            alias.name if alias.asname else alias.name.split(".")[0]
        )
        for alias in node.names
    }


# --- The checks, each for any source -------------------------------------------------


def announced_sections(source: str) -> list[tuple[str, str]]:
    """The sections that the docstring lists."""
    contents = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    return re.findall(r"(\d+) ([A-Z/][\w/ ]+?)[,.]", contents)


def long_functions(source: str) -> list[str]:
    """The functions with more lines than a screen has."""
    return [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]


def upward_references(source: str) -> list[str]:
    """The references to a name of a later section, in annotations and bodies too."""
    program = program_of(source)
    place = {section: number for number, section in enumerate(program.order)}
    return [
        f"line {reference.line}: {section} refers to {reference.path[0]} of {defined}"
        for section in program.order
        for reference in program.references(section)
        if (defined := program.section_of.get(reference.path[0]))
        and place[defined] > place[section]
    ]


def foreign_imports(source: str, section: str, foreign: set[str]) -> list[str]:
    """The references of a section to modules that it may not know."""
    program = program_of(source)
    return [
        f"line {reference.line}: {origin}"
        for reference in program.references(section)
        for origin in [program.origin(reference)]
        if any(f"{origin}.".startswith(f"{name}.") for name in foreign)
    ]


def references_to(source: str, section: str, other: str) -> list[str]:
    """The names of another section that a section's code uses; annotations aside."""
    program = program_of(source)
    return [
        f"line {reference.line}: {reference.path[0]}"
        for reference in program.references(section)
        if program.section_of.get(reference.path[0]) == other
        and not reference.is_annotation
    ]


def rules_about_seats(source: str, section: str) -> set[str]:
    """The rules of the Document, whatever they are called, that a section uses."""
    program = program_of(source)
    rules = program.methods("Document") - NO_RULES
    return program.attributes_of_values(section) & rules


def values_named(source: str, section: str, values: set[str]) -> set[str]:
    """Which of these values a section's code names, in annotations too."""
    return {name.path[0] for name in program_of(source).references(section)} & values


def asked_of_the_store(source: str, section: str) -> set[str]:
    """What a section asks of `self._store`."""
    return {
        node.attr
        for statement in program_of(source).statements(section)
        for node in ast.walk(statement)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._store"
    }


# --- What holds of the program -------------------------------------------------------


def test_the_sections_are_in_the_order_that_the_docstring_gives():
    sections = program_of(SOURCE).numbered
    assert sections == announced_sections(SOURCE)
    assert [number for number, _ in sections] == [
        str(number) for number in range(1, len(sections) + 1)
    ]


def test_no_function_is_longer_than_a_screen():
    assert long_functions(SOURCE) == []


def test_no_section_refers_to_a_later_one():
    assert upward_references(SOURCE) == []


@pytest.mark.parametrize("section", MAY_NOT_KNOW)
def test_no_section_knows_a_module_that_it_may_not_know(section):
    assert foreign_imports(SOURCE, section, MAY_NOT_KNOW[section]) == []


def test_the_store_knows_neither_seats_nor_accounts():
    assert rules_about_seats(SOURCE, "Store") == set()
    # It writes a line for each reservation, so it knows that there are some.
    parts = PARTS_OF_A_DATABASE - {"Event", "Reservation"} | ACCOUNTS
    assert values_named(SOURCE, "Store", parts) == set()


def test_the_transactions_know_of_a_store_only_how_to_load_swap_and_lock():
    assert asked_of_the_store(SOURCE, "Transactions") == {"load", "swap", "lock"}
    assert references_to(SOURCE, "Transactions", "Store") == []
    assert rules_about_seats(SOURCE, "Transactions") == set()
    assert values_named(SOURCE, "Transactions", PARTS_OF_A_DATABASE | ACCOUNTS) == set()


@pytest.mark.parametrize("section", ["HTTP", *DIALECTS])
def test_no_section_about_http_decides_about_seats(section):
    decisions = program_of(SOURCE).methods("Document", returns="Document")
    assert {"reserve", "reserve_for_user", "cancel", "promote"} <= decisions
    assert rules_about_seats(SOURCE, section) & decisions == set()


@pytest.mark.parametrize(("one", "other"), [*itertools.permutations(DIALECTS, 2)])
def test_no_dialect_knows_another(one, other):
    assert references_to(SOURCE, one, other) == []


# --- And that these checks find what they look for -----------------------------------

HEADS = """\
# === 1. Rules ================================================================
class Document:
    def reserve(self): ...

# === 2. Store ================================================================
class Store: ...

# === 3. Box office ===========================================================
def sell(document): ...
"""


def put(section: str, *lines: str) -> str:
    """HEADS with some more code at the end of a section, and imports on top."""
    before, head, after = HEADS.partition(f". {section} =")
    own, banner, others = after.partition("\n# === ")
    imports = "import os\nimport msgspec\nfrom time import sleep as rest\n"
    code = "\n".join(lines)
    return f"{imports}{before}{head}{own.rstrip()}\n{code}\n{banner}{others}"


@pytest.mark.parametrize(
    "lines",
    [
        ["later = sell"],
        ["@sell", "def f(): ..."],
        ["def f(document=sell): ..."],
        ["def f():", "    return sell(None)"],
        ["def f(x: sell): ..."],
        ["def f() -> sell: ..."],
        ["x: 'list[sell]' = []"],
        ["def f(y):", "    x = cast('sell', y)"],
        ["class A(sell): ..."],
        ["class A:", "    sell: int", "    def f(self):", "        return sell"],
        ["f = lambda x: sell"],
        ["x = [sell for y in sell]"],
    ],
)
def test_a_reference_to_a_later_section_is_found_wherever_it_is(lines):
    found = upward_references(put("Rules", *lines))
    assert found
    assert all("Rules refers to sell of Box office" in line for line in found)


@pytest.mark.parametrize(
    "lines",
    [
        ["def f(sell):", "    return sell"],
        ["def f():", "    sell = 1", "    return lambda: sell"],
        ["f = lambda sell: sell"],
        ["x = [sell for sell in range(3)]"],
        ["x: Literal['sell'] = 'sell'"],
        ["x = document.sell"],
        ["# sell", "'sell'"],
    ],
)
def test_a_name_that_is_bound_where_it_is_used_is_no_reference(lines):
    assert upward_references(put("Rules", *lines)) == []


def test_a_reference_to_an_earlier_section_is_allowed():
    assert upward_references(put("Box office", "x: Document = Store()")) == []


@pytest.mark.parametrize(
    ("lines", "foreign", "found"),
    [
        (["def f():", "    return os.path.join"], {"os"}, ["os.path.join"]),
        (["x = rest(1)"], {"time"}, ["time.sleep"]),
        (["x = msgspec.json.encode"], {"msgspec.json"}, ["msgspec.json.encode"]),
        (["x = msgspec.jsonify"], {"msgspec.json"}, []),
        (["with open('x') as file: ..."], {"builtins.open"}, ["builtins.open"]),
        (["def f():", "    import fcntl"], {"fcntl"}, ["fcntl"]),
        (["def f(os):", "    return os.path"], {"os"}, []),
        (["x = self.os"], {"os"}, []),
    ],
)
def test_a_module_that_a_section_may_not_know_is_found(lines, foreign, found):
    told = foreign_imports(put("Rules", *lines), "Rules", foreign)
    assert [line.partition(": ")[2] for line in told] == found


@pytest.mark.parametrize(
    ("check", "lines", "found"),
    [
        (rules_about_seats, ["x = y.document.reserve()"], {"reserve"}),
        (rules_about_seats, ["x = os.reserve()"], set()),
        (rules_about_seats, ["app.box_office.reserve()"], set()),
        (lambda *at: values_named(*at, {"Document"}), ["x: Document"], {"Document"}),
        (
            lambda *at: references_to(*at, "Rules"),
            ["x = Document"],
            ["line 10: Document"],
        ),
        (lambda *at: references_to(*at, "Rules"), ["x: Document"], []),
        (asked_of_the_store, ["self._store.path.name"], {"path"}),
    ],
)
def test_the_names_that_a_section_uses_of_another_are_found(
    check: Callable[[str, str], object], lines, found
):
    assert check(put("Store", *lines), "Store") == found


def test_a_long_function_is_found():
    body = "    pass\n" * (LONGEST_FUNCTION - 1)
    assert long_functions(f"def f():\n{body}") == []
    assert long_functions(f"def f():\n{body}    pass\n") == ["f: 41 lines"]


def test_sections_that_are_missing_or_in_another_order_are_found():
    announced = '"""One.\n\n1 Rules, 2 Box office, 3 Store.\n"""\n' + HEADS
    assert announced_sections(announced) == [
        ("1", "Rules"),
        ("2", "Box office"),
        ("3", "Store"),
    ]
    assert program_of(announced).numbered != announced_sections(announced)
