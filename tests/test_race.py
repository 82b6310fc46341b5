"""The race: what it says of itself is measured, and it leaves nothing behind.

Without a check sales are lost, with a lock or a comparison none is, whatever is asked;
the interleaving it shows was recorded; and an unsafe "safe" strategy is exit 1.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from conftest import PROGRAM
from filelock import FileLock

import ticketboss

SEATS = 20
SMALL = ["--clients", "4", "--requests", "40", "--seats", str(SEATS)]
ONCE = ["--events", "1", "--think", "3ms"]
COLUMNS = [
    "strategy",
    "told",
    "in file",
    "lost",
    "oversold",
    "conflicts",
    "sales/s",
    "p95 ms",
]
KEYS = [
    "strategy",
    "events",
    "think_ms",
    "told",
    "kept",
    "lost",
    "oversold",
    "conflicts",
    "rate",
    "p95_ms",
]
DB = b"somebody's own file, which a race has no business with"


class Ended(NamedTuple):
    """What became of a race, and what it left."""

    code: int
    out: str
    err: str
    here: dict[str, bytes]
    temporary: list[str]


def run(folder: Path, *arguments: str, said: str = "", **env: str) -> Ended:
    """Race as a real process, in a folder with a db.json of its own."""
    here, temporary = folder / "here", folder / "temporary"
    here.mkdir()
    temporary.mkdir()
    (here / "db.json").write_bytes(DB)
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), "race", *arguments],
        cwd=here,
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"TMPDIR": str(temporary)} | env,
    )
    return Ended(
        ended.returncode,
        ended.stdout,
        ended.stderr,
        {p.name: p.read_bytes() for p in here.iterdir()},
        [p.name for p in temporary.iterdir()],
    )


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Ended:
    """A race as it comes: small here, and at its own sizes in the longer runs."""
    options = request.config.getoption
    sizes = [] if options("--middling") or options("--long") else SMALL
    return run(tmp_path_factory.mktemp("race"), *sizes, NO_COLOR="1")


def tables(out: str) -> list[dict[str, Any]]:
    """The rows as the tables show them, each with what it was measured under."""
    rows, under = [], ("", "")
    for line in out.splitlines():
        if found := re.fullmatch(r"Events: (\d+), thinking: (\d+) ms", line):
            under = found.groups()
        elif line.startswith(ticketboss.STRATEGIES):
            name, *numbers = line.replace("█", "").split()
            rows.append(
                dict(zip(KEYS, [name, *map(int, [*under, *numbers])], strict=True))
            )
    return rows


def cases(rows: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    return [(row["strategy"], row["events"], row["think_ms"]) for row in rows]


def assert_they_add_up(rows: list[dict[str, Any]], seats: int = SEATS) -> None:
    """Hold each row to itself, and those of safe strategies to their promise."""
    for row in rows:
        assert row["told"] - row["kept"] == row["lost"]
        assert row["oversold"] == max(
            0, row["told"] - seats // row["events"] * row["events"]
        )
        assert row["conflicts"] == 0 or row["strategy"] == "optimistic"
        if row["strategy"] != "none":
            assert (row["lost"], row["oversold"]) == (0, 0)
            assert row["told"] > 0


# --- As it comes -------------------------------------------------------------


def test_it_ends_well_and_fits_in_80_columns(plain):
    assert plain.code == 0
    assert max(map(len, (plain.out + plain.err).splitlines())) <= 80
    heads = [line for line in plain.out.splitlines() if line.startswith("strategy")]
    assert [re.split(r"(?<! p95) +(?!file|ms)", head.strip()) for head in heads] == [
        COLUMNS
    ] * 3


def test_it_shows_three_cases_and_its_progress(plain):
    assert cases(tables(plain.out)) == [
        ("none", 1, 5),
        ("lock", 1, 5),
        ("optimistic", 1, 5),
        ("lock", 8, 5),
        ("optimistic", 8, 5),
        ("lock", 1, 0),
        ("optimistic", 1, 0),
    ]
    assert re.findall(r"\w+", plain.err) == [
        row["strategy"] for row in tables(plain.out)
    ]


def test_who_does_not_check_loses_sales_and_who_does_loses_none(plain, pick):
    careless, *safe = tables(plain.out)
    assert_they_add_up([careless, *safe], pick(SEATS, 100, 100))
    assert careless["lost"] > 0
    assert careless["oversold"] > 0


def test_its_bars_are_as_long_as_its_rates(plain):
    for table in plain.out.split("strategy  ")[1:]:
        lines = [
            line
            for line in table.splitlines()
            if line.startswith(ticketboss.STRATEGIES)
        ]
        rates = [int(line.rstrip("█ ").split()[-2]) for line in lines]
        assert [line.count("█") for line in lines] == [
            round(10 * rate / max(rates)) for rate in rates
        ]


def test_its_lessons_are_of_the_rows_above_them(plain):
    rows = {case: row for row in tables(plain.out) for case in cases([row])}
    careless = rows["none", 1, 5]
    assert (
        "No check: {told} told they have a seat, {kept} in the file.\n"
        "{lost} sales vanished; {oversold} seats sold that do not exist.\n"
    ).format_map(careless) in plain.out
    compared = re.findall(
        r"^Events: (\d), thinking: (\d) ms. There (\w+) sells (\S+) "
        r"times as fast as (\w+)\.$",
        plain.out,
        re.MULTILINE,
    )
    assert [found[:2] for found in compared] == [("1", "5"), ("8", "5"), ("1", "0")]
    for events, think, winner, times, loser in compared:
        fast, slow = (rows[who, int(events), int(think)] for who in (winner, loser))
        assert {winner, loser} == {"lock", "optimistic"}
        assert times == f"{fast['rate'] / slow['rate']:.1f}"
        assert float(times) >= 1


def test_who_wins_depends_on_thinking_and_on_how_the_load_is_spread(plain, pick):
    rates = {case: row["rate"] for row in tables(plain.out) for case in cases([row])}
    if pick(0, 1, 1):  # at small sizes a slow start of one process decides
        assert rates["optimistic", 8, 5] > rates["lock", 8, 5]
        assert rates["lock", 1, 0] > rates["optimistic", 1, 0]


def test_it_touches_no_db_json_and_leaves_nothing_behind(plain):
    assert plain.here == {"db.json": DB}
    assert plain.temporary == []


# --- What can be asked -------------------------------------------------------


def test_rows_for_a_program_are_json_and_nothing_else(tmp_path):
    ended = run(tmp_path, *SMALL, "--json", "--events", "3", "--think", "2ms")
    rows = json.loads(ended.out)
    assert ended.code == 0
    assert [list(row) for row in rows] == [KEYS] * 3
    assert cases(rows) == [("none", 3, 2), ("lock", 3, 2), ("optimistic", 3, 2)]
    assert_they_add_up(rows)
    assert rows[0]["lost"] > 0
    assert (ended.here, ended.temporary) == ({"db.json": DB}, [])


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--events", "2"], [(s, 2, 5) for s in ticketboss.STRATEGIES]),
        (["--think", "1ms", "--strategy", "none"], [("none", 1, 1)]),
        (
            ["--think", "0", "--strategy", "optimistic", "--strategy", "lock"],
            [("optimistic", 1, 0), ("lock", 1, 0)],
        ),
        (["--events", "20", "--think", "0", "--strategy", "lock"], [("lock", 20, 0)]),
    ],
    ids=["events", "think", "strategies", "all three"],
)
def test_what_is_asked_is_what_is_raced(asked, told):
    ended = CliRunner().invoke(ticketboss.main, ["race", *SMALL, *asked])
    rows = tables(ended.stdout)
    assert ended.exit_code == 0
    assert sorted(cases(rows)) == sorted(told)
    assert_they_add_up(rows)
    assert ("No check:" in ended.stdout) == ("none" in {told[0] for told in told})


def test_no_table_is_shown_of_nothing():
    ended = CliRunner().invoke(ticketboss.main, ["race", *SMALL, "--strategy", "none"])
    assert ended.exit_code == 0
    assert cases(tables(ended.stdout)) == [("none", 1, 5)]
    assert ended.stdout.count("strategy  ") == 1


@pytest.mark.parametrize(
    "asked",
    [
        ["--clients", "0"],
        ["--seats", "0"],
        ["--requests", "0"],
        ["--events", "0"],
        ["--think", "soon"],
        ["--strategy", "hope"],
        ["--seats", "4", "--events", "8"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_raced_is_refused_before_it_starts(asked):
    ended = CliRunner().invoke(ticketboss.main, ["race", *asked])
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 4  # the usage, and why
    assert asked[0] in ended.stderr.splitlines()[-1]


def test_the_class_guesses_before_anything_is_measured(tmp_path):
    ended = run(tmp_path, *SMALL, *ONCE, "--predict", said="the lock, surely\n")
    assert ended.code == 0
    assert ended.err.index("?") < ended.err.index("...")  # asked, then measured
    assert ended.out.index("strategy") < ended.out.index("You said: the lock, surely")
    assert "?" not in ended.out  # so that --json stays JSON


def test_without_a_guess_nothing_is_raced(tmp_path):
    ended = run(tmp_path, *SMALL, *ONCE, "--predict")
    assert ended.code == 1
    assert "strategy" not in ended.out
    assert ended.err.endswith("? \nAborted!\n") or ended.err.endswith("?: Aborted!\n")


def test_a_terminal_that_wants_no_colour_gets_no_escape_codes():
    ours, theirs = pty.openpty()
    asked = ["--clients", "2", "--requests", "4", "--strategy", "lock", *ONCE]
    ended = subprocess.run(
        [sys.executable, str(PROGRAM), "race", *asked],
        timeout=30,
        check=False,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"NO_COLOR": "1", "TERM": "xterm-256color"},
    )
    told = os.read(ours, 2**16).decode()
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == 0
    assert tables(told)[0]["told"] == 4
    assert "\x1b" not in told


def test_no_terminal_no_escape_codes(plain):
    assert (plain.out + plain.err).replace("\n", "").replace("█", "").isprintable()


# --- What it proves ----------------------------------------------------------


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, Any, Any]]:
    """watched(*asked): what a race without a check said, recorded, and left."""
    histories: list[Any] = []
    left: list[ticketboss.Database] = []
    race, clean = ticketboss.run_race, tempfile.TemporaryDirectory.cleanup

    def raced(*arguments: Any) -> Any:
        measured = race(*arguments)
        histories.append(measured[1])
        return measured

    def cleaned(folder: Any) -> None:
        left.append(ticketboss.Store(f"{folder.name}/db.json").load().database)
        clean(folder)

    def watched(*asked: str) -> tuple[str, Any, Any]:
        ended = CliRunner().invoke(
            ticketboss.main, ["race", *asked, "--strategy", "none", *ONCE]
        )
        assert ended.exit_code == 0
        return ended.stdout, histories.pop(), left.pop()

    monkeypatch.setattr(ticketboss, "run_race", raced)
    monkeypatch.setattr(tempfile.TemporaryDirectory, "cleanup", cleaned)
    return watched


def interleaving(out: str) -> tuple[list[int], list[tuple[int, str, int]], str]:
    """The two buyers, their four steps (buyer, what, version), and the conclusion."""
    head, *steps, end = out[out.index("\nbuyer ") + 1 :].splitlines()[:6]
    buyers = [
        int(found) for found in re.fullmatch(r"buyer (\d+) +buyer (\d+)", head).groups()
    ]
    side = head.rindex("buyer")
    told = []
    for step in steps:
        found = re.fullmatch(
            r"(reads|writes) version (\d+)(: confirmed)?", step.strip()
        )
        assert step.strip() == step[side * step.startswith(" ") :].rstrip()
        assert (found[1] == "writes") == (found[3] is not None)
        told.append((buyers[step.startswith(" ")], found[1], int(found[2])))
    return buyers, told, end


def test_the_interleaving_it_shows_was_recorded(watched):
    out, history, _ = watched(*SMALL)
    buyers, told, _ = interleaving(out)
    version = told[0][2]
    assert len(set(buyers)) == 2
    one, other = (
        [
            each
            for each in history
            if (each.buyer, each.read_version) == (buyer, version)
        ]
        for buyer in buyers
    )
    assert any(
        told
        == [
            step
            for _, step in sorted(
                (at, (each.buyer, what, number))
                for each in (a, b)
                for at, what, number in (
                    (each.read_at, "reads", version),
                    (each.done_at, "writes", version + 1),
                )
            )
        ]
        and a.told
        and b.told
        and a.event_id == b.event_id
        for a in one
        for b in other
    )
    assert [what for _, what, _ in told] == ["reads", "reads", "writes", "writes"]


def test_the_sale_it_says_is_gone_is_gone(watched):
    for _ in range(6):
        out, _, left = watched("--clients", "2", "--requests", "20", "--seats", "20")
        buyers, told, end = interleaving(out)
        there = {
            r.partner_id
            for d in left.events()
            for r in d.reservations.values()
            if r.event_version_at_reservation == told[0][2] + 1
        }
        gone = [buyer for buyer in buyers if f"buyer-{buyer}" not in there]
        assert int(re.search(r"buyer (\d+)'s sale is not in the file", end)[1]) in gone


def test_a_race_that_lost_nothing_shows_no_interleaving(watched):
    out, history, _ = watched("--clients", "1", "--requests", "5", "--seats", "5")
    assert [each.told for each in history] == [True] * 5
    assert "buyer" not in out
    assert "0 sales vanished; 0 seats sold that do not exist." in out


@pytest.mark.parametrize("strategy", ["optimistic", "lock"])
def test_a_safe_strategy_that_loses_a_sale_is_exit_1(monkeypatch, strategy):
    here = os.getpid()

    def locked(path: str, **how: Any) -> FileLock:  # each buyer has one of their own
        return FileLock(path if os.getpid() == here else f"{path}.{os.getpid()}", **how)

    monkeypatch.setattr(ticketboss.Store, "swap", ticketboss.UncheckedStore.swap)
    if strategy == "lock":
        monkeypatch.setattr(ticketboss, "FileLock", locked)
    ended = CliRunner().invoke(
        ticketboss.main,
        ["race", *SMALL, *ONCE, "--seats", "400", "--strategy", strategy],
    )
    [row] = tables(ended.stdout)
    assert (ended.exit_code, type(ended.exception)) == (1, SystemExit)
    assert row["told"] - row["kept"] == row["lost"] > 0 == row["oversold"]


def test_ctrl_c_ends_it_in_one_line_and_leaves_nothing(tmp_path):
    asked = [
        "--clients",
        "4",
        "--requests",
        "400",
        "--seats",
        "400",
        "--strategy",
        "lock",
        "--events",
        "1",
        "--think",
        "100ms",
    ]
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), "race", *asked],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as race:
        try:
            for _ in range(1000):  # until the first seat is sold
                if any(
                    '"confirmed"' in path.read_text()
                    for path in tmp_path.glob("*/db.json")
                ):
                    break
                time.sleep(0.02)
            os.killpg(race.pid, signal.SIGINT)  # as a terminal does: to all of it
            _, err = race.communicate(timeout=20)
        finally:
            if race.poll() is None:
                os.killpg(race.pid, signal.SIGKILL)
    assert race.returncode == 1
    assert err.split() == ["...", "lock", "Aborted!"]
    assert list(tmp_path.iterdir()) == []
