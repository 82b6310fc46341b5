"""The proof of test_interleavings over PostgreSQL: every order of its clients' steps.

They read, lock the root row, compare, write, and commit.
"""

from __future__ import annotations

import time
from contextlib import contextmanager

import pytest
import test_interleavings
from conftest import SQLPlace
from postgres import psycopg
from test_interleavings import CASES, OF_THREE, counted, stop_before

import ticketboss as t


class Stepped(t.SQLStore):
    """A store that stops before each of its steps."""

    is_swapping = is_locked = False

    def load(self):
        stop_before("read")
        return super().load()

    @contextmanager
    def lock(self):
        if not self.is_locked:  # by this very client
            stop_before("lock")
        with super().lock() as held:
            was_locked, self.is_locked = self.is_locked, True
            try:
                if self.is_swapping:
                    stop_before("compare")
                yield held
            finally:
                self.is_locked = was_locked

    def swap(self, seen, wanted):
        self.is_swapping = True
        try:
            return super().swap(seen, wanted)
        finally:
            self.is_swapping = False


class Blind(Stepped):
    """The planted bug: whatever is there now counts as what was seen."""

    def swap(self, seen, wanted):
        with self.lock():
            return super().swap(t.SQLStore.load(self), wanted)


class Office(test_interleavings.Office):
    """A schema, some clients' stores of it, and a reader who looks in at any step."""

    def __init__(self, place, start, kind, wishes):
        self.wishes = wishes
        self.reader = t.SQLStore(place.url)
        assert self.reader.create(start)
        self.stores = [kind(place.url) for _ in wishes]
        self.probe = psycopg.connect(place.url, autocommit=True)
        self.probe.execute("CREATE TABLE at_first AS TABLE ticketboss")

    def begin(self):
        self.probe.execute(
            "BEGIN; DELETE FROM ticketboss; "
            "INSERT INTO ticketboss TABLE at_first; COMMIT"
        )

    def locked(self):
        try:
            self.probe.execute(t.LOCK_ROOT.format(2000) + " NOWAIT")
        except psycopg.errors.LockNotAvailable:
            return True
        return False


@pytest.fixture
def office(cluster, tmp_path, monkeypatch):
    """Give office(wishes, kind): its clients stop before they write, too."""
    write = t._write_rows

    def write_rows(*arguments):
        stop_before("write")
        write(*arguments)
        stop_before("rename")

    monkeypatch.setattr(t, "_write_rows", write_rows)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # nobody waits
    made = []

    def office(wishes, kind=Stepped):
        place = SQLPlace(cluster, tmp_path)
        made.append(Office(place, test_interleavings.at_the_start(), kind, wishes))
        return made[-1]

    yield office
    for each in made:
        each.probe.close()


QUICK = "two sales, seats for one", "sales of two events"


def test_every_interleaving_of_two_ends_as_a_serial_order_in_sql(office, pick, say):
    for case in pick(QUICK, CASES, CASES):
        say(f"PostgreSQL, {counted(case, office(CASES[case]).explore())}")


def test_every_interleaving_of_three_ends_as_a_serial_order_in_sql(office, pick, say):
    for case, wishes in [*OF_THREE.items()][: pick(0, 1, 3)]:
        say(f"PostgreSQL, {counted(case, office(wishes).explore())}")


def test_without_the_comparison_an_interleaving_in_sql_that_loses_a_sale_is_found(
    office,
):
    with pytest.raises(AssertionError) as told:
        office(CASES["two sales that both fit"], Blind).explore()
    assert "No order of whole clients ends so" in str(told.value)
