"""What the tests share: an app on a file of its own, and real servers."""

from __future__ import annotations

import gc
import hashlib
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from werkzeug.routing import Rule

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import postgres  # noqa: E402 -- only now can they be found
import programs  # noqa: E402
from furnished import cheap_scrypt, house_of  # noqa: E402

import ticketboss  # noqa: E402

SEEDED = "node-meetup-2025"


def wait_until(holds: Callable[[], Any], patience_s: float = 30) -> Any:
    """Wait for a condition of other threads or processes, which no event announces.

    Returns what it came to.
    """
    deadline = time.monotonic() + patience_s
    while not (found := holds()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.002)
    return found


INSIST = "TICKETBOSS_TESTS_INSIST"  # set by .ci/run: a test that is skipped fails


def require_tool(*names: str) -> str:
    """The path of the first of these programs; without any, the test is skipped."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"])
    for name in names:
        found = shutil.which(name, path=path)
        if found is not None:
            return found
    skip(f"needs {' or '.join(names)}")


def skip(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run; fail it where all tests must run."""
    if os.environ.get(INSIST):
        pytest.fail(f"{reason}, and {INSIST} is set")
    pytest.skip(reason)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The sizes of the long proofs."""
    parser.addoption("--middling", action="store_true", help="as .ci/run does")
    parser.addoption("--long", action="store_true", help="the largest sizes")
    parser.addoption(
        "--store",
        choices=["file", "postgresql"],
        default="file",
        help="what keeps the data in the tests that hold for both stores",
    )


MEMORY = Path("/dev/shm")


def pytest_configure(config: pytest.Config) -> None:
    """Let a usual run fork the program, and keep its files in memory, if there is room.

    A middling and a long run start the program, and write to the disk.
    """
    if is_usual(config) and sys.platform == "linux":
        programs.forks = True
        if "TMPDIR" not in os.environ and has_room(MEMORY):
            os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    postgres.Postgres.forget()


def is_usual(config: pytest.Config) -> bool:
    """Whether neither a middling nor a long run was asked for."""
    return not (config.getoption("--middling") or config.getoption("--long"))


def has_room(folder: Path) -> bool:
    """Whether a gigabyte of files fits in there."""
    try:
        return shutil.disk_usage(folder).free > 2**30 and os.access(folder, os.W_OK)
    except OSError:
        return False


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Share the compiling of a fresh clone's tests among the processes of xdist.

    Each imports all tests. If all began with the same one, each would compile them all,
    in 3 s; so each begins elsewhere, and then finds what the others have compiled.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    workers = os.environ.get("PYTEST_XDIST_WORKER_COUNT", "")
    is_all = [Path(path).resolve() for path in session.config.args] == [HERE]
    if worker and is_all:
        names = sorted(path.stem for path in HERE.glob("test_*.py"))
        first = len(names) * int(worker) // int(workers)
        for name in names[first:] + names[:first]:
            with suppress(Exception):  # pytest imports it again, and reports it
                importlib.import_module(name)


@pytest.fixture(scope="session", autouse=True)
def _routes_are_compiled_once() -> Iterator[None]:
    """Compile each route once. werkzeug does so in every app, and tests make 1,700."""
    # Private: a werkzeug that has no such method only makes the tests slower.
    compile_route: Any = getattr(Rule, "_compile_builder", None)
    compiled: dict[tuple[object, ...], Callable[..., Any]] = {}

    def compile_once(rule: Rule, append_unknown: bool = True) -> Callable[..., Any]:
        key = rule.rule, str(rule.defaults), append_unknown
        if key not in compiled:
            compiled[key] = compile_route(rule, append_unknown)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rule, "_compile_builder", compile_once, raising=False)
        yield


# The tests that hold for both stores: those of these files, but for a few.
FOR_BOTH_STORES = {
    "test_accounts",
    "test_booking",
    "test_histories",
    "test_http",
    "test_interleavings",
    "test_limits",
    "test_models",
    "test_partner",
    "test_servers",
    "test_v1",
}


ABOUT_DB_JSON = {
    "test_a_damaged_file_is_503_for_all_and_left_alone",
    "test_a_key_holds_after_a_restart_and_in_another_server",  # no second file
    "test_contention_has_its_own_error_text_and_changes_nothing",  # its lock
    "test_contention_at_a_change_of_an_event_does_not_speak_of_a_reservation",
    "test_a_repeated_cancel_finds_nothing_whatever_it_names",
    "test_an_admin_finds_a_users_names_without_going_through_all_accounts",
    "test_health_is_503_until_a_good_file_is_back",
    "test_the_admin_command_makes_an_account_and_does_not_show_the_password",
    "test_without_jwt_secret_all_workers_share_one_key_in_a_private_file",
}


# What takes long and seldom fails. It runs if it is named, and in a middling run, which
# .ci/run makes.
NOT_USUAL = {
    "test_a_crowd_of_logins_delays_neither_reads_nor_sales",
    "test_a_harmless_change_is_reported_as_missed",
    "test_a_test_that_fails_without_a_bug_catches_none",
    "test_each_wrong_declaration_is_found",
    "test_every_command_of_a_section_does_what_readme_shows[The lesson]",
    "test_schemathesis_finds_nothing_that_is_not_listed",
    "test_the_replaced_patterns_are_still_slow_in_the_libraries",
}


ONLY_LONG = {
    # With Patroni and etcd, which nothing else needs; 15 seconds for each kill.
    "test_three_nodes_under_patroni_whose_leader_is_killed_lose_nothing",
}


# The files that take longest, in seconds of one process on its own: from 29 down to 3.
# They run first, so no process is left alone with one at the end. That of the crashes
# comes early: it forks its process 300 times, which is quicker while that is small.
LONGEST_FIRST = [
    "test_page",
    "test_crash",
    "test_sql",
    "test_cli",
    "test_where_the_file_lies",
    "test_race",
    "test_serving",
    "test_hostile_clients",
    "test_proxies",
    "test_readme",
    "test_login_limits",
    "test_attempts",
    "test_sql_kills",
    "test_description",
    "test_double_click",
    "test_histories",
    "test_deployment",
    "test_mutants",
    "test_booking",
    "test_accounts",
    "test_v1",
    "test_store",
]


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Function]
) -> None:
    """Leave out what is not of this size, or not about this store; order the files."""
    rank = {file: number for number, file in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    is_long = config.getoption("--long")
    is_sql = config.getoption("--store") == "postgresql"
    is_named = any("::" in argument for argument in config.args)

    def is_left_out(item: pytest.Function) -> bool:
        if item.originalname in ONLY_LONG and not is_long:
            return True
        if item.name in NOT_USUAL and is_usual(config) and not is_named:
            return True
        is_for_both = item.path.stem in FOR_BOTH_STORES
        return is_sql and (not is_for_both or item.originalname in ABOUT_DB_JSON)

    left_out = [item for item in items if is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what lasts: the modules and the tests."""
    gc.freeze()


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgres.Postgres]:
    """A PostgreSQL for all tests of this process; each takes a schema of its own."""
    postgres.require()
    cluster = postgres.Postgres()
    yield cluster
    cluster.stop()


@pytest.fixture
def own() -> Iterator[postgres.Postgres]:
    """A PostgreSQL that this test may kill."""
    postgres.require()
    own = postgres.Postgres()
    yield own
    if own.process.poll() is None:
        own.kill()
    own.stop()


@pytest.fixture
def database_in(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    """database_in(folder): where a database can be made that belongs to this folder."""

    def database_in(folder: Path) -> Any:
        if request.config.getoption("--store") == "file":
            return folder / "db.json"
        return SQLPlace(request.getfixturevalue("cluster"), folder)

    return database_in


class SQLPlace:
    """A schema of its own in a PostgreSQL, with what tests do to a db.json."""

    def __init__(self, cluster: postgres.Postgres, folder: Path) -> None:
        self.parent = folder
        self.name = "db.json"
        self.cluster = cluster
        self.schema = f"s{uuid.uuid4().hex}"
        self.url = cluster.url(self.schema)
        cluster.execute(f"CREATE SCHEMA {self.schema}")

    def __str__(self) -> str:
        return self.url

    def exists(self) -> bool:
        """Whether there is a table."""
        [[table]] = self.cluster.execute(
            f"SELECT to_regclass('{self.schema}.ticketboss')"
        )
        return table is not None

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Drop the table."""
        assert missing_ok or self.exists()
        self.cluster.execute(f"DROP TABLE IF EXISTS {self.schema}.ticketboss")

    def read_bytes(self) -> bytes:
        """Its content, in the form of a db.json."""
        return postgres.as_file(self.url, self.parent)

    def read_text(self) -> str:
        """The same as text."""
        return self.read_bytes().decode()

    def write_text(self, text: str) -> None:
        """Replace its content with that of a db.json."""
        self.write_bytes(text.encode())

    def write_bytes(self, text: bytes) -> None:
        """The same of bytes."""
        self.unlink(missing_ok=True)
        postgres.from_file(text, self.url, self.parent)


@pytest.fixture
def pick(request: pytest.FixtureRequest) -> Callable[[int, int, int], int]:
    """pick(small, middling, large): the size that this run was asked for."""

    def pick(small: int, middling: int, large: int) -> int:
        if request.config.getoption("--long"):
            return large
        return middling if request.config.getoption("--middling") else small

    return pick


@pytest.fixture(autouse=True)
def _as_quiet_as_before() -> Iterator[None]:
    """Restore the logger after each test: later tests would log millions of lines."""
    level, handlers = ticketboss.log.level, [*ticketboss.log.handlers]
    yield
    ticketboss.log.setLevel(level)
    ticketboss.log.handlers[:] = handlers


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """say(text): a figure of a proof, printed when the tests have ended."""
    return lambda text: request.node.user_properties.append(("figure", text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of the proofs, and why tests were skipped."""
    for report in itertools.chain(*terminalreporter.stats.values()):
        for name, text in getattr(report, "user_properties", []):
            if name == "figure" and report.when == "call":
                terminalreporter.write_line(f"  {text}")
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    for reason, count in reasons.items():
        terminalreporter.write_line(f"  {count} skipped: {reason}")


@pytest.fixture
def db(database_in: Callable[[Path], Any], tmp_path: Path) -> Any:
    """Where this test's database is, once somebody makes it."""
    return database_in(tmp_path)


@pytest.fixture
def make_app(db: Path) -> Callable[..., Any]:
    """make_app(**settings): an app on this test's database; again: another on it."""

    def make_app(**settings: Any) -> Any:
        told = {"db": str(db), "quiet": True, "standalone": True} | settings
        return ticketboss.create_app(ticketboss.Settings(**told))

    return make_app


@pytest.fixture
def client(make_app: Callable[..., Any]) -> Any:
    """A test client of an app with the default settings."""
    return make_app().test_client()


@pytest.fixture
def house(make_app: Callable[..., Any], db: Path) -> tuple[Any, Any, Any]:
    """A client, the headers of an admin, and all changes that the admin could make."""
    return house_of(make_app, db)


@pytest.fixture
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a password hash take 3 ms, not 100. Another test checks its real cost."""
    monkeypatch.setattr(hashlib, "scrypt", cheap_scrypt)


@pytest.fixture
def saved(db: Path) -> Callable[[], dict[str, Any]]:
    """saved(): the parsed content of the file."""
    return lambda: json.loads(db.read_text())


class Server:
    """A real `python ticketboss.py` at a free port, and a small client of it."""

    def __init__(self, db: Path, *options: str, first: str = "", **env: str) -> None:
        self.db = db
        file = ["--db", str(db)]
        if "--unchecked" in options:  # its folder stays if it is killed
            file, env = [], {"TMPDIR": str(db.parent), **env}
        self.process = programs.start(
            db.parent, *file, "--port", "0", *options, first=first, **env
        )
        self._read_banner()

    def _read_banner(self) -> None:
        """Read what it prints, up to the line with its URL."""
        self.banner = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.banner += line
            if found := re.search(r"http://\S+", line):
                self.url = found[0]
                return
        raise AssertionError(self.banner + self.process.communicate()[1])

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """The status, the parsed JSON (or text, or None), and the headers."""
        data = (
            body
            if isinstance(body, bytes)
            else (None if body is None else json.dumps(body).encode())
        )
        request = urllib.request.Request(
            self.url + path,
            data,
            {k.replace("_", "-"): v for k, v in headers.items()},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, raw, head = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            status, raw, head = error.code, error.read(), error.headers
            error.close()
        is_json = "json" in (head.get("Content-Type") or "")
        told = json.loads(raw) if is_json else (raw.decode() or None)
        return status, told, dict(head)

    def order_at_once(self, buyers: list[str], **headers: str) -> list[int]:
        """The status that each buyer gets, when all order a seat at the same time."""

        def order(buyer: str) -> int:
            body = {"partnerId": buyer, "seats": 1}
            return self.ask("POST", "/reservations", body, **headers)[0]

        with ThreadPoolExecutor(len(buyers)) as pool:
            return [*pool.map(order, buyers)]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """End it; its exit status, and what it printed since the banner."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture
def serve(db: Path) -> Iterator[Callable[..., Server]]:
    """serve(*options, db=None, first="", **env): a server, ended after the test.

    `first` is Python that its process runs before ours.
    """
    running: list[Server] = []

    def serve(*options: str, db: Path = db, **env: str) -> Server:
        running.append(Server(db, "--quiet", *options, **env))
        return running[-1]

    yield serve
    for server in running:
        server.stop(signal.SIGKILL)
