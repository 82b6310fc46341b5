"""The race: its statements are measured, and it leaves nothing behind.

Without a check sales are lost, with a lock or a comparison none is, whatever is asked;
the interleaving it shows was recorded; and an unsafe "safe" strategy is exit 1.
"""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import programs
import pytest
from click.testing import CliRunner
from programs import PROGRAM

import ticketboss

SEATS = 20
SMALL = ["--clients", "4", "--requests", "40", "--seats", str(SEATS)]
ONCE = ["--events", "1", "--think", "3ms"]
LABELS = {"no check": "none", "lock": "lock", "optimistic": "optimistic"}
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
    env = {"TMPDIR": str(temporary)} | env
    ended = programs.run(here, "race", *arguments, stdin=said, **env)
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


class Row(NamedTuple):
    """A row of the table, as it is shown."""

    strategy: str
    events: int
    think_ms: int
    told: int
    kept: int
    lost: int
    rate: float
    bar: str
    remark: str


def table(out: str) -> list[Row]:
    """The rows of the table, each with what it was measured under."""
    rows = []
    events, think_ms = 1, 0
    for line in out.splitlines():
        if found := re.search(r"thinking (\d+) ms\.", line):
            think_ms = int(found[1])
        elif found := re.fullmatch(r"(\d+) events?, (\d+) ms:", line):
            events, think_ms = int(found[1]), int(found[2])
        elif found := re.fullmatch(
            r"(no check|lock|optimistic) +(\d+) +(\d+) +(\d+) +([\d.]+)  (\S*) *(.*)",
            line,
        ):
            told, kept, lost = map(int, found.groups()[1:4])
            strategy = LABELS[found[1]]
            rows.append(
                Row(
                    strategy,
                    events,
                    think_ms,
                    told,
                    kept,
                    lost,
                    float(found[5]),
                    *found.groups()[5:],
                )
            )
    return rows


def cases(rows: list[Row]) -> list[tuple[str, int, int]]:
    return [(row.strategy, row.events, row.think_ms) for row in rows]


def assert_they_add_up(rows: list[Row]) -> None:
    """Hold each row to itself, and those of safe strategies to their promise."""
    for row in rows:
        assert row.told - row.kept == row.lost
        if row.strategy != "none":
            assert row.lost == 0
            assert row.told > 0


# --- As it comes -------------------------------------------------------------


def test_the_last_screen_of_a_race_fits_24_rows_and_80_columns(plain):
    lines = plain.out.splitlines()
    assert plain.code == 0
    assert len(lines) <= 24
    assert max(map(len, lines + plain.err.splitlines())) <= 80
    assert lines[1].split() == ["confirmed", "saved", "lost", "saved/s"]
    assert any("seats left" in line for line in lines)
    assert lines[-1].startswith("1 event, 0 ms: ")


def test_a_race_shows_three_cases_and_its_progress(plain):
    assert cases(table(plain.out)) == [
        ("none", 1, 5),
        ("lock", 1, 5),
        ("optimistic", 1, 5),
        ("lock", 8, 5),
        ("optimistic", 8, 5),
        ("lock", 1, 0),
        ("optimistic", 1, 0),
    ]
    plan, *progress = plain.err.splitlines()
    assert re.fullmatch(
        r"7 races of 3 rounds: about \d+ seconds\. Ctrl-C shows the results so far\.",
        plan,
    )
    assert progress == [
        "... 1 event, 5 ms: .........",
        "... 8 events, 5 ms: ......",
        "... 1 event, 0 ms: ......",
    ]


def test_only_the_strategy_without_a_check_loses_sales(plain):
    careless, *safe = table(plain.out)
    assert_they_add_up([careless, *safe])
    assert careless.lost > 0
    assert careless.remark.startswith("oversold by ")


def test_each_bar_is_proportional_to_the_sales_kept_per_second(plain):
    eighths = dict(zip(" ▏▎▍▌▋▊▉█", range(9), strict=True))
    for _, group in itertools.groupby(table(plain.out), lambda row: row[1:3]):
        rows = list(group)
        values = [row.rate * row.kept / row.told for row in rows]
        lengths = [sum(eighths[block] for block in row.bar) for row in rows]
        assert lengths == [round(80 * value / max(values)) for value in values]
        assert (
            rows[lengths.index(80)].lost == 0
        )  # a strategy that loses sales is never best


def test_each_lesson_states_the_figures_of_the_rows_above(plain):
    rows = {(row.strategy, row.events, row.think_ms): row for row in table(plain.out)}
    careless = rows["none", 1, 5]
    assert (
        f"No check: {careless.lost} of {careless.told} confirmed sales are lost, "
        "because the last save wins.\n"
    ) in plain.out
    for events, think_ms in [(1, 5), (8, 5), (1, 0)]:
        lesson = next(
            line
            for line in plain.out.splitlines()
            if re.match(rf"{events} events?, {think_ms} ms: ", line)
        )
        lock, optimistic = (
            rows[strategy, events, think_ms].rate for strategy in ("lock", "optimistic")
        )
        ratio = max(lock, optimistic) / min(lock, optimistic)
        assert f"{ratio:.1f} times" in lesson
        assert ", because " in lesson
        if "too close to call" not in lesson:
            assert ratio >= 1.3
            winner = "lock" if lock > optimistic else "optimistic"
            assert f": {winner} is " in lesson


def test_the_winner_depends_on_how_the_load_is_spread(plain, pick):
    rates = {(r.strategy, r.events, r.think_ms): r.rate for r in table(plain.out)}
    if pick(0, 1, 1):  # at small sizes a slow start of one process decides
        assert rates["optimistic", 8, 5] > rates["lock", 8, 5]


def test_a_race_touches_no_db_json_and_leaves_no_file(plain):
    assert plain.here == {"db.json": DB}
    assert plain.temporary == []


# --- What can be asked -------------------------------------------------------


def test_a_race_with_json_prints_json_and_nothing_else(tmp_path):
    ended = run(tmp_path, *SMALL, "--json", "--events", "3", "--think", "2ms")
    rows = json.loads(ended.out)
    assert ended.code == 0
    assert [list(row) for row in rows] == [KEYS] * 3
    assert [(row["strategy"], row["events"], row["think_ms"]) for row in rows] == [
        ("none", 3, 2),
        ("lock", 3, 2),
        ("optimistic", 3, 2),
    ]
    for row in rows:
        assert row["told"] - row["kept"] == row["lost"]
        assert row["oversold"] == max(0, row["told"] - SEATS // 3 * 3)
        assert row["conflicts"] == 0 or row["strategy"] == "optimistic"
        assert row["strategy"] == "none" or row["lost"] == row["oversold"] == 0
    assert rows[0]["lost"] > 0
    assert (ended.here, ended.temporary) == ({"db.json": DB}, [])


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--events", "2"], [(s, 2, 5) for s in ticketboss.STRATEGIES]),
        (["--think", "1ms", "--strategy", "none"], [("none", 1, 1)]),
        (
            ["--think", "0", "--strategy", "optimistic", "--strategy", "lock"],
            [("lock", 1, 0), ("optimistic", 1, 0)],
        ),
        (["--events", "20", "--think", "0", "--strategy", "lock"], [("lock", 20, 0)]),
    ],
    ids=["events", "think", "strategies", "all three"],
)
def test_a_race_runs_exactly_the_chosen_cases(asked, told):
    ended = CliRunner().invoke(ticketboss.main, ["race", *SMALL, *asked, "--json"])
    rows = json.loads(ended.stdout)
    assert ended.exit_code == 0
    assert [(r["strategy"], r["events"], r["think_ms"]) for r in rows] == told


def test_a_race_prints_no_empty_table():
    ended = CliRunner().invoke(ticketboss.main, ["race", *SMALL, "--strategy", "none"])
    assert ended.exit_code == 0
    assert cases(table(ended.stdout)) == [("none", 1, 5)]
    assert ended.stdout.count("saved/s") == 1


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
def test_an_impossible_race_is_refused_before_the_start(asked):
    ended = CliRunner().invoke(ticketboss.main, ["race", *asked])
    assert ended.exit_code == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 4  # the usage, and why
    assert asked[0] in ended.stderr.splitlines()[-1]


def test_the_strategies_are_explained_before_the_guess(tmp_path):
    ended = run(tmp_path, *SMALL, *ONCE, "--predict", said="none\nlock\n")
    assert ended.code == 0
    places = [
        ended.err.index(text)
        for text in [
            *ticketboss.STRATEGIES.values(),
            "Which loses sales?",
            "Which of the others is fastest?",
            "about",
            "... 1 event, 3 ms: ",
        ]
    ]
    assert places == sorted(places)
    last = ended.out.splitlines()[-1]
    assert last.startswith("You guessed: none loses sales (right), lock is fastest (")
    assert "?" not in last  # and with --json the answer stays JSON


def played(lock: Iterable[float], optimistic: Iterable[float], lost: int = 0) -> Any:
    """Rounds with these rates."""
    return {
        ticketboss.Case("none", 1, 0.005): [result("none", lost=lost, rate=30)],
        ticketboss.Case("lock", 1, 0.005): [result("lock", rate=n) for n in lock],
        ticketboss.Case("optimistic", 1, 0.005): [
            result("optimistic", rate=n) for n in optimistic
        ],
    }


def result(strategy: str, lost: int = 0, rate: float = 10) -> Any:
    """A round that came to this."""
    came_to = ticketboss.Result(strategy, 1, 5, 20, 20 - lost, lost, 0, 0, rate, 5)
    return ticketboss.Round(came_to, [])


@pytest.mark.parametrize(
    ("guesses", "rates", "verdict"),
    [
        (
            ("none", "lock"),
            ([20], [10]),
            "none loses sales (right), lock is fastest (right)",
        ),
        (
            ("lock", "lock"),
            ([10], [20]),
            "lock loses sales (it was none), lock is fastest (it was optimistic)",
        ),
        (
            ("none", "lock"),
            ([10], [12]),
            "none loses sales (right), lock is fastest (it was too close to call)",
        ),
    ],
)
def test_a_guess_is_compared_with_the_result(guesses, rates, verdict):
    rounds = played(*rates, lost=9)
    assert ticketboss.verdict(guesses, rounds) == f"You guessed: {verdict}."


def test_a_race_without_a_guess_does_not_start(tmp_path):
    ended = run(tmp_path, *SMALL, *ONCE, "--predict")
    assert ended.code == 1
    assert ended.out.strip() == ""  # older versions of click print a space
    assert "..." not in ended.err
    assert ended.err.endswith("Aborted!\n")


@pytest.mark.parametrize(
    ("lock", "optimistic", "lesson"),
    [
        ([9, 10, 11], [19, 20, 21], "optimistic is 2.0 times as fast, because "),
        ([0.33, 0.33], [1.32, 1.32], "optimistic is 4.0 times as fast, because "),
        ([26, 26, 26], [20, 20, 20], "lock is 1.3 times as fast, because "),
        ([25, 25, 25], [20, 20, 20], "too close to call (1.2 times), because "),
        ([20, 20, 20], [20, 20, 20], "too close to call (1.0 times), because "),
        ([0, 0, 0], [0, 0, 0], "too close to call (0.0 times), because "),
        (
            [10, 30, 10],
            [20, 20, 20],
            "too close to call (2.0 times), because the rounds ",
        ),
    ],
)
def test_a_winner_is_clearly_faster_and_in_each_round(lock, optimistic, lesson):
    last = [*ticketboss.conclusions(played(lock, optimistic))][-1]
    assert last.startswith(f"1 event, 5 ms: {lesson}")
    assert last.endswith(".")


def test_a_rate_below_ten_is_shown_with_its_hundredths():
    rates = [ticketboss.rounded(rate) for rate in (1 / 3, 12.6)]
    rounds = played(rates[:1], rates[1:])
    _, *shown = table("\n".join(ticketboss.table(rounds)))
    assert [row.rate for row in shown] == rates == [0.33, 13]


def test_the_median_round_is_shown_unless_a_safe_strategy_lost_sales():
    def shown(strategy: str, *rounds: tuple[int, int]) -> tuple[int, int]:
        row = ticketboss.shown_result(
            [result(strategy, lost=lost, rate=rate) for rate, lost in rounds]
        )
        return row.rate, row.lost

    assert shown("lock", (30, 0), (10, 0), (20, 0)) == (20, 0)
    assert shown("none", (30, 7), (10, 9), (20, 8)) == (20, 8)
    assert shown("optimistic", (30, 0), (10, 1), (20, 0)) == (10, 1)


def test_a_planned_duration_is_stated_in_minutes_before_the_start(capfd):
    sizes = ticketboss.RaceSizes(16, 200, 100)
    ticketboss.announce_race(sizes, ticketboss.race_cases(5.0, None, ()))
    assert "3 races of 3 rounds: about 53 minutes." in capfd.readouterr().err


def test_a_race_that_can_start_no_process_ends_in_one_line(monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    context = type(multiprocessing.get_context("fork"))
    monkeypatch.setattr(context, "Barrier", refused)
    ended = CliRunner().invoke(ticketboss.main, ["race", *SMALL, *ONCE])
    assert ended.exit_code == 1
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1] == (
        "Error: The race cannot run here: [Errno 30] Read-only file system. It needs a "
        "writable /dev/shm and a writable temporary folder (TMPDIR)."
    )


def test_a_terminal_without_block_characters_gets_other_bars(tmp_path):
    ended = run(tmp_path, *SMALL, *ONCE, PYTHONIOENCODING="iso-8859-1")
    assert ended.code == 0
    assert "##########" in ended.out
    assert (ended.out + ended.err).isascii()


@pytest.mark.parametrize("colours", [True, False])
def test_a_terminal_shows_lost_sales_in_red_unless_no_color_is_set(colours):
    ours, theirs = pty.openpty()
    asked = ["--clients", "2", "--requests", "8", "--strategy", "none", *ONCE]
    ended = subprocess.run(
        [sys.executable, "-c", LOSES, "race", *asked],
        timeout=30,
        check=False,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=PROGRAM.parent,
        env=os.environ
        | {"TERM": "xterm-256color"}
        | ({} if colours else {"NO_COLOR": "1"}),
    )
    told = os.read(ours, 2**16).decode()
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == 0
    assert ("\x1b[31mno check" in told) == colours
    assert ("\x1b" in told) == colours


# A race whose rounds all lose: whether two buyers collide would be luck.
LOSES = """
import ticketboss
lost = ticketboss.Result("none", 1, 3, 8, 5, 3, 0, 0, 9, 5)
ticketboss.run_race = lambda *_: ticketboss.Round(lost, [])
ticketboss.main()
"""


def test_output_that_is_no_terminal_gets_no_escape_codes(plain):
    assert "\x1b" not in plain.out + plain.err


# --- What it proves ----------------------------------------------------------


@pytest.fixture
def collision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Any], set[str], Any]:
    """Two buyers read before either saves, then save one after the other.

    The history, the ids of what is kept, and the store.
    """
    both_have_read = threading.Barrier(2)
    one_has_saved = threading.Event()
    store = ticketboss._throwaway(str(tmp_path), ["event-0"], SEATS)

    def think(_: float) -> None:
        if both_have_read.wait(30) == 1:
            assert one_has_saved.wait(30)

    monkeypatch.setattr(ticketboss.time, "sleep", think)
    with ThreadPoolExecutor(2) as pool:
        buyers = [
            pool.submit(
                ticketboss.buyer_process, store.path, "none", buyer, ["event-0"], 1.0
            )
            for buyer in (3, 7)
        ]
        for buyer in buyers:
            buyer.add_done_callback(lambda _: one_has_saved.set())
        history = [attempt for buyer in buyers for attempt in buyer.result()]
    kept = {*store.load().database.document("event-0").reservations}
    return history, kept, store


def test_of_two_unchecked_sales_at_one_version_both_are_confirmed_and_one_is_lost(
    collision,
):
    history, kept, store = collision
    event = store.load().database.document("event-0").event
    assert [
        (a.confirmed, a.event.version, a.event.available_seats) for a in history
    ] == [(True, 0, SEATS)] * 2
    assert len(kept) == 1
    assert (event.version, event.available_seats) == (1, SEATS - 1)


def test_the_sale_that_the_example_calls_lost_is_lost(collision):
    history, kept, _ = collision
    [lost] = [a for a in history if a.reservation_id not in kept]
    [saved] = [a for a in history if a.reservation_id in kept]
    head, *steps, gone, check = ticketboss.lost_update_example(history, kept)
    assert head.split() == [
        "buyer",
        str(lost.buyer),
        "buyer",
        str(saved.buyer),
        "seats",
        "left",
    ]
    side = head.rindex("buyer")
    told = [(step.startswith(" "), *re.split(" {2,}", step.strip())) for step in steps]
    assert sorted(told[:2]) == [
        (False, "reads version 0", str(SEATS)),
        (True, "reads version 0", str(SEATS)),
    ]
    assert told[2:] == [
        (False, "saves version 1: confirmed", str(SEATS - 1)),
        (True, "saves version 1: confirmed", str(SEATS - 1)),
    ]
    assert all(step[side] != " " for step in steps if step.startswith(" "))
    assert gone == (
        f"Two sales are confirmed, one is in the file: buyer {lost.buyer}'s is lost."
    )
    assert check == (
        "A check adds one step before the last: still version 0? No, 1: read again."
    )


def test_a_sale_that_is_in_the_file_is_not_called_lost(collision):
    history, kept, _ = collision
    [lost] = [a.reservation_id for a in history if a.reservation_id not in kept]
    assert ticketboss.lost_update_example(history, {lost}) == []


def test_without_a_lost_sale_no_interleaving_is_shown(collision):
    history, _, _ = collision
    everything = {attempt.reservation_id for attempt in history}
    assert ticketboss.lost_update_example(history, everything) == []
    assert ticketboss.lost_update_example([], set()) == []


def test_a_race_that_lost_nothing_says_so():
    asked = ["--clients", "1", "--requests", "5", "--seats", "5", "--strategy", "none"]
    ended = CliRunner().invoke(ticketboss.main, ["race", *asked, *ONCE])
    [row] = table(ended.stdout)
    assert ended.exit_code == 0
    assert (row.told, row.kept, row.lost) == (5, 5, 0)
    assert "seats left" not in ended.stdout
    assert ended.stdout.endswith(
        "No check: nothing is lost, because no two orders collided.\n"
    )


@pytest.mark.parametrize("strategy", ["optimistic", "lock"])
def test_a_safe_strategy_that_loses_a_sale_is_exit_1(monkeypatch, strategy):
    here = os.getpid()
    lock = ticketboss.Store.lock

    def lock_here(*how: Any, **options: Any) -> Any:  # the buyers lock nothing
        return lock(*how, **options) if os.getpid() == here else nullcontext()

    monkeypatch.setattr(ticketboss.Store, "swap", ticketboss.UncheckedStore.swap)
    monkeypatch.setattr(ticketboss.Store, "lock", lock_here)
    ended = CliRunner().invoke(
        ticketboss.main,
        ["race", *SMALL, *ONCE, "--seats", "400", "--strategy", strategy],
    )
    [row] = table(ended.stdout)
    assert (ended.exit_code, type(ended.exception)) == (1, SystemExit)
    assert row.told - row.kept == row.lost > 0


def test_ctrl_c_shows_the_finished_rows_and_leaves_no_file(tmp_path):
    asked = ["--clients", "4", "--requests", "400", "--seats", "400"]
    pause = ["--events", "1", "--think", "30ms"]
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), "race", *asked, *pause],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=0,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as race:
        try:
            heard = ""
            while ": ." not in heard:  # so the first case has its row
                heard += race.stderr.read(1)
            for _ in range(1000):  # until a seat is sold with a lock
                files = [*tmp_path.glob("*/db.json")]
                if any('"confirmed"' in path.read_text() for path in files):
                    break
                time.sleep(0.02)
            os.killpg(race.pid, signal.SIGINT)  # as a terminal does: to all of it
            out, err = race.communicate(timeout=20)
        finally:
            if race.poll() is None:
                os.killpg(race.pid, signal.SIGKILL)
    assert race.returncode == 1
    assert err.splitlines()[-1] == "Aborted!"
    assert cases(table(out)) == [("none", 1, 30)]
    assert list(tmp_path.iterdir()) == []
