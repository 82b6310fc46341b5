"""When the leader of a group commit dies, no waiting order is "confirmed"."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import stat
import threading
from collections import deque

import pytest

from ticketboss import InDoubt, NotFound, Reservation, Store, Transactions

SEATS = 20
PATIENCE_S = 20
FOLLOWERS = 6


class Died(BaseException):
    """Something that is no Exception."""


class Line(deque):
    """A queue that counts its members as they join."""

    def __init__(self):
        super().__init__()
        self.joined = threading.Semaphore(0)

    def append(self, pending):
        super().append(pending)
        self.joined.release()

    def wait_for(self, count):
        for _ in range(count):
            assert self.joined.acquire(timeout=PATIENCE_S)


def selling(name):
    """A decision: one seat, in this name."""

    def decide(database):
        order = Reservation(name, "abc-corp", 1, "waitlisted")
        return database.with_document(database.document(None).reserve(order))

    return decide


class Crowd:
    """Threads that all ask while the first one's commit is under way."""

    def __init__(self, db):
        store = Store(str(db), timeout_s=PATIENCE_S)
        store.open(SEATS)
        self.transactions = Transactions(store, 0, PATIENCE_S)
        self.line = self.transactions._queue = Line()
        self.results, self.threads = {}, []
        self.go, self.begun = threading.Event(), threading.Event()

    def ask(self, name, decide):
        try:
            self.results[name] = self.transactions.transact(decide)
        except BaseException as error:
            self.results[name] = error

    def start(self, name, decide):
        self.threads.append(threading.Thread(target=self.ask, args=(name, decide)))
        self.threads[-1].start()

    def run(self, decisions):
        """What became of these decisions, made by one leader for all."""

        def wait(database):
            self.begun.set()
            assert self.go.wait(PATIENCE_S)
            return selling("first")(database)

        self.start("first", wait)
        assert self.begun.wait(PATIENCE_S)
        for name, decide in decisions.items():
            self.start(name, decide)
        self.line.wait_for(len(decisions))
        self.go.set()
        for thread in self.threads:  # also those that are started meanwhile
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert self.results.pop("first").changed
        return self.results


@pytest.fixture
def crowd(db):
    return Crowd(db)


def names_in(db):
    """The names with a seat in the file, whose sums are right."""
    file = json.loads(db.read_text())
    names = set(file["reservations"])
    assert file["event"]["availableSeats"] == SEATS - len(names)
    return names


def die_at(monkeypatch, place, error):
    """Let the second commit die at this system call: the first one's is passed."""
    replaced = []
    replace, write, fsync = os.replace, os.write, os.fsync

    def os_replace(draft, path):
        replaced.append(path)
        if len(replaced) == 2 and place == "before the rename":
            raise error
        replace(draft, path)
        if len(replaced) == 2 and place == "after the rename":
            raise error

    def os_write(descriptor, data):
        if len(replaced) == 1 and place == "writing":
            raise error
        return write(descriptor, data)

    def os_fsync(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if len(replaced) == 1 and place == "file's fsync" and not folder:
            raise error
        if len(replaced) == 2 and place == "folder's fsync" and folder:
            raise error
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", os_replace)
    monkeypatch.setattr(os, "write", os_write)
    monkeypatch.setattr(os, "fsync", os_fsync)


def one_died(results, kind):
    """The leader has its own exception; all others look before they ask again."""
    died = [name for name, result in results.items() if type(result) is kind]
    assert len(died) == 1
    doubtful = [result for name, result in results.items() if name not in died]
    assert [type(result) for result in doubtful] == [InDoubt] * len(doubtful)
    assert len({id(result) for result in doubtful}) == len(doubtful)
    assert all("Read the event before" in str(result) for result in doubtful)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, Died])
def test_orders_of_a_leader_that_died_while_deciding_are_in_doubt(crowd, db, error):
    def dying(_):
        raise error

    decisions = {str(n): selling(str(n)) for n in range(FOLLOWERS)}
    results = crowd.run(decisions | {"dying": dying})
    one_died(results, error)
    assert names_in(db) == {"first"}


def test_orders_of_a_leader_that_was_interrupted_are_in_doubt(crowd, db):
    def interrupted(database):
        thread = ctypes.c_ulong(threading.get_ident())
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(Died))
        for _ in range(10**7):
            pass
        return selling("never")(database)

    decisions = {str(n): selling(str(n)) for n in range(FOLLOWERS)}
    results = crowd.run(decisions | {"interrupted": interrupted})
    one_died(results, Died)
    assert names_in(db) == {"first"}


BEFORE = ["writing", "file's fsync", "before the rename"]
AFTER = ["after the rename", "folder's fsync"]


@pytest.mark.parametrize("error", [SystemExit, Died])
@pytest.mark.parametrize("place", [*BEFORE, *AFTER])
def test_orders_of_a_leader_that_died_while_writing_are_in_doubt(
    crowd, db, monkeypatch, place, error
):
    die_at(monkeypatch, place, error())
    decisions = {str(n): selling(str(n)) for n in range(FOLLOWERS)}
    results = crowd.run(decisions)
    one_died(results, error)
    written = {"first"} if place in BEFORE else {"first", *decisions}
    assert names_in(db) == written
    assert not [path for path in db.parent.iterdir() if path.suffix == ".tmp"]


def test_a_refused_order_is_in_doubt_if_its_leader_died(crowd, db, monkeypatch):
    die_at(monkeypatch, "before the rename", Died())

    def too_many(database):
        order = Reservation("many", "abc-corp", SEATS + 1, "waitlisted")
        return database.with_document(database.document(None).reserve(order))

    results = crowd.run({"one": selling("one"), "many": too_many})
    one_died(results, Died)
    assert names_in(db) == {"first"}


@pytest.mark.parametrize("place", ["before the rename", "folder's fsync"])
def test_after_a_leader_has_died_the_next_one_sells(crowd, db, monkeypatch, place):
    die_at(monkeypatch, place, Died())
    crowd.run({str(n): selling(str(n)) for n in range(FOLLOWERS)})
    sold = crowd.transactions.transact(selling("after"))
    assert sold.changed
    assert "after" in names_in(db)


def test_an_order_after_the_batch_was_closed_is_served_by_the_next_leader(crowd, db):
    def dying(_):
        crowd.start("late", selling("late"))
        crowd.line.wait_for(1)
        raise Died

    results = crowd.run({"one": selling("one"), "dying": dying})
    late = results.pop("late")
    assert late.changed
    one_died(results, Died)
    assert names_in(db) == {"first", "late"}


def test_a_lone_seller_that_dies_does_not_block_the_next_one(crowd, db):
    def dying(_):
        raise SystemExit

    with pytest.raises(SystemExit):
        crowd.transactions.transact(dying)
    assert crowd.transactions.transact(selling("after")).changed
    assert names_in(db) == {"after"}


def test_a_sale_in_doubt_is_500_with_the_advice_to_look_first(
    make_app, db, monkeypatch
):
    client = make_app().test_client()
    fsync = os.fsync

    def no_folder(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folder)
    answer = client.post("/reservations", json={"partnerId": "a", "seats": 1})
    assert answer.status_code == 500
    assert "Read the event before" in answer.json["error"]


def test_a_refusal_keeps_neither_the_file_that_was_read_nor_its_database(tmp_path):
    store = Store(str(tmp_path / "db.json"))
    store.open(SEATS)
    transactions = Transactions(store)

    def refuse(database):
        raise NotFound("no such event")

    gc.disable()
    try:
        open_before = len(os.listdir("/dev/fd"))
        for number in range(SEATS):
            with pytest.raises(NotFound):
                transactions.transact(refuse)
            transactions.transact(selling(f"r{number}"))
        assert len(os.listdir("/dev/fd")) <= open_before + 1
    finally:
        gc.enable()
