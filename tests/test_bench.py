"""bench.py prints each of its figures. No test checks how fast anything is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCH = Path(__file__).with_name("bench.py")
PROGRAM = BENCH.parent.parent / "ticketboss.py"
ROWS = {  # the parts, and how their rows begin
    "sales": [
        "TicketBoss",
        "a bare app",
        "an app over SQLite",
        "one durable write of 40 records each",
        "as it was",
    ],
    "reads": ["TicketBoss", "a bare app", "an app over SQLite", "as it was"],
    "waiting": [
        "undisturbed",
        "while 32 orders wait for a lock",
        "while another process sells 100 a second",
    ],
    "lists": ["TicketBoss", "a bare app"],
    "alone": ["TicketBoss, one client", "the durable write alone"],
    "sizes": [
        "a sale beside 10",
        "the write alone, of 10",
        "a sale beside 20",
        "the write alone, of 20",
        "a sale beside 40",
        "the write alone, of 40",
        "a sale beside",
        "the write alone, of",
        "a sale beside",
        "the write alone, of",
    ],
    "servers": ["one server", "two servers on one file"],
    "start": [
        "start to the first answer",
        "importing Flask and waitress",
        "after 40 sales",
    ],
    "ceiling": ["one Python client"],
}
NUMBER = r"[\d.,e+-]+"
ROW = re.compile(
    rf"  (?P<name>\S.*?)  +(?P<median>{NUMBER})"
    rf"  (?P<least>{NUMBER}) to (?P<most>{NUMBER})"
    r" +(?P<ratio>[\d.]+)  (?P<limit>\S.*)"
)


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_each_row_is_printed_with_positive_figures(pick: Any) -> None:
    parts = pick(["alone", "ceiling"], [], [])
    finished = run_bench("--small", "--against", str(PROGRAM), *parts)
    assert finished.returncode == 0, finished.stderr
    lines = [line for line in finished.stdout.splitlines() if line.startswith("  ")]
    lines = [line for line in lines if not line.startswith("  gunicorn")]
    expected = [f"  {row}" for part in parts or ROWS for row in ROWS[part]]
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)
        row = ROW.fullmatch(line)
        assert row, line
        least, middle, most, ratio = (
            float(row[field].replace(",", ""))
            for field in ("least", "median", "most", "ratio")
        )
        assert 0 < least <= middle <= most
        assert ratio > 0


def test_a_part_that_does_not_exist_is_refused() -> None:
    finished = run_bench("--small", "speed")
    assert finished.returncode == 2
    assert "no such part: speed" in finished.stderr
    assert finished.stdout == ""
