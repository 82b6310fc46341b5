"""One db.json, many writers: the slower one is refused, and nothing is lost.

Not to another thread, another process, an editor, a bad file, a full folder, or a fork;
and what was refused has changed nothing.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress

import pytest
from conftest import wait_until
from furnished import register

import ticketboss
from ticketboss import (
    Contended,
    Database,
    Document,
    Event,
    InDoubt,
    NotEnoughSeats,
    NotFound,
    Reservation,
    Store,
    Transactions,
    Unavailable,
    Unwritable,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

SEATS = 20


@pytest.fixture
def store(db):
    """A seeded store that does not wait long."""
    store = Store(str(db), timeout_s=0.2)
    store.open(SEATS)
    return store


@pytest.fixture
def other(store):
    """Another process's store, as good as: it shares nothing but the file."""
    return Store(store.path, timeout_s=0.2)


def selling(name, seats=1, event_id=None):
    """A decision: these seats, in this name."""

    def decide(database: Database) -> Database:
        document = database.document(event_id)
        sold = document.reserve(Reservation(name, "abc-corp", seats, "waitlisted"))
        return database.with_document(sold)

    return decide


def sell(store, name, seats=1, event_id=None):
    """A sale through a queue of its own."""
    return Transactions(store, timeout_s=0.2).transact(selling(name, seats, event_id))


def opening(event_id):
    """A decision: one more event, of ten seats."""
    return lambda database: database.with_document(
        Document.open(None, Event(event_id, "Another", 10, 10, version=0))
    )


def told(path):
    """(version, seats left, names) of the seeded event in the file."""
    with open(path) as file:
        whole = json.load(file)
    event = whole["event"]
    return event.get("version", 0), event["availableSeats"], set(whole["reservations"])


def edit(path, **changes):
    """A hand that changes the event in the file, as an editor does it: in place."""
    with open(path) as file:
        whole = json.load(file)
    whole["event"] |= changes
    with open(path, "w") as file:
        json.dump(whole, file)


def hidden(db):
    """What is beside the file, the lock file included."""
    return sorted(set(os.listdir(db.parent)) - {db.name})


# --- Compare and swap ----------------------------------------------------------------


def test_the_slower_of_two_swaps_is_refused(store, other):
    ann, bob = store.load(), other.load()  # both read version 0
    assert store.swap(ann, selling("ann")(ann.database))
    assert not other.swap(bob, selling("bob")(bob.database))
    assert told(store.path) == (1, SEATS - 1, {"ann"})


def test_a_swap_of_one_event_keeps_the_changes_of_another(store, other):
    Transactions(store).transact(opening(7))
    ann, bob = store.load(), other.load()
    assert store.swap(ann, selling("ann")(ann.database))
    assert other.swap(bob, selling("bob", 2, "7")(bob.database))
    database = store.load().database
    assert set(database.document(None).reservations) == {"ann"}
    assert set(database.document("7").reservations) == {"bob"}
    assert [d.event.version for d in database.events()] == [1, 1]


def test_of_two_openings_of_the_same_event_only_one_succeeds(store, other):
    ann, bob = store.load(), other.load()
    assert store.swap(ann, opening(7)(ann.database))
    assert sell(store, "first", 1, "7")
    assert not other.swap(bob, opening(7)(bob.database))
    assert set(store.load().database.document("7").reservations) == {"first"}


def test_a_swap_of_nothing_writes_nothing(store, db):
    before, seen = db.stat(), store.load()
    assert store.swap(seen, seen.database)
    assert db.stat() == before


def test_a_document_that_does_not_add_up_is_never_written(store, db):
    before, seen = db.read_bytes(), store.load()
    event = Event("node-meetup-2025", "Node.js Meet-up", SEATS, SEATS - 1, version=1)
    with pytest.raises(AssertionError, match="do not make"):
        store.swap(seen, seen.database.with_document(Document.of(event, {})))
    assert db.read_bytes() == before
    assert hidden(db) == [".db.json.lock"]
    assert sell(store, "next").changed


@pytest.mark.parametrize("counted", [False, True])
def test_an_edit_by_hand_between_reading_and_swapping_is_not_lost(counted, store, db):
    seen = store.load()
    edit(db, name="Renamed", version=int(counted))
    by_hand = db.read_bytes()
    assert not store.swap(seen, selling("ann")(seen.database))
    assert db.read_bytes() == by_hand
    assert sell(store, "ann").changed
    assert told(db) == (counted + 1, SEATS - 1, {"ann"})
    assert json.loads(db.read_bytes())["event"]["name"] == "Renamed"


@pytest.mark.parametrize("put", [edit, lambda path, **changes: replaced(path, changes)])
def test_an_edit_by_hand_in_the_middle_of_a_commit_is_not_lost(
    put, store, db, monkeypatch
):
    sync, edits = os.fsync, [{"name": "Renamed"}]

    def fsync(descriptor):
        sync(descriptor)
        if edits:
            put(db, **edits.pop())

    monkeypatch.setattr(os, "fsync", fsync)
    turn = sell(store, "ann")
    assert turn.attempts == 2
    assert told(db) == (1, SEATS - 1, {"ann"})
    assert json.loads(db.read_bytes())["event"]["name"] == "Renamed"
    assert hidden(db) == [".db.json.lock"]


def replaced(path, changes):
    """An edit as other editors do it: a new file in the place of the old."""
    shutil.copy(path, f"{path}.new")
    edit(f"{path}.new", **changes)
    os.replace(f"{path}.new", path)


def swapped(store, name):
    """A change of the event, by the store itself."""
    seen = store.load()
    return store.swap(seen, selling(name)(seen.database))


def test_a_sale_that_loses_the_race_retries_and_is_second(store, other):
    seen = []

    def decide(database):
        seen.append(database.document(None).event.version)
        if len(seen) == 1:
            sell(other, "faster")
        return selling("slower")(database)

    turn = Transactions(store).transact(decide)
    assert (turn.attempts, turn.changed, seen) == (2, True, [0, 1])
    assert told(store.path) == (2, SEATS - 2, {"faster", "slower"})
    sold = store.load().database.document(None).reservations
    assert sold["slower"].event_version_at_reservation == 2


def test_a_second_decision_excludes_all_other_writers(store, other):
    shut_out = []

    def decide(database):
        try:
            sell(other, f"faster {len(shut_out)}")
            shut_out.append("")
        except Contended as error:
            shut_out.append(str(error))
        return selling("slower")(database)

    assert Transactions(store).transact(decide).attempts == 2
    assert shut_out == ["", "Another process holds the lock"]
    assert told(store.path) == (2, SEATS - 2, {"faster 0", "slower"})


# --- Reading -------------------------------------------------------------------------


def test_a_file_that_nobody_touched_is_not_parsed_again(store):
    assert store.load() is store.load()
    sell(store, "ann")
    assert store.load() is store.load()


def test_every_replacement_is_seen_though_size_and_time_are_the_same(store, db):
    text, moment = db.read_text(), db.stat().st_mtime_ns
    for number in range(100):
        for _ in range(2):  # the second may well get the number that the first freed
            new = db.with_name("new")
            new.write_text(text.replace("Node.js Meet-up", f"Number {number:08}"))
            os.utime(new, ns=(moment, moment))
            os.replace(new, db)
        assert store.load().database.document(None).event.name == f"Number {number:08}"


def test_every_edit_in_place_is_seen(store, db):
    for number in range(100):
        edit(db, name=f"Number {number:08}")  # of the same size, in the same file
        os.utime(db, ns=(number, number))  # some disks count time coarsely
        assert store.load().database.document(None).event.name == f"Number {number:08}"


def test_a_restored_file_is_read(store, db):
    good = db.rename(db.with_name("good"))
    with pytest.raises(Unavailable):
        store.load()
    db.write_text("{}")
    with pytest.raises(Unavailable):
        store.load()
    os.replace(good, db)
    assert store.load().database == ticketboss.seed(SEATS)
    assert sell(store, "ann").changed


def test_readers_see_whole_files_only_while_others_write(store, other):
    done, seen = threading.Event(), []

    def look():
        while not done.is_set():
            event = other.load().database.document(None).event
            seen.append((event.version, event.available_seats))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(SEATS):
        sell(store, str(number))
    done.set()
    reader.join(10)
    assert seen == sorted(seen)
    assert {version + left for version, left in seen} == {SEATS}


# --- Where the file is, and whose ----------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays_one_and_its_target_is_replaced(there, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    target, link = tmp_path / "far" / "seats.json", tmp_path / "near" / "db.json"
    link.symlink_to("../far/seats.json")
    if there:
        Store(str(target)).open(SEATS)
        before = target.stat().st_ino
    store = Store(str(link))
    store.open(SEATS)
    sell(store, "ann")
    assert os.readlink(link) == "../far/seats.json"
    assert os.listdir(tmp_path / "near") == ["db.json"]
    assert sorted(os.listdir(tmp_path / "far")) == [".seats.json.lock", "seats.json"]
    assert told(target) == (1, SEATS - 1, {"ann"})
    assert not there or target.stat().st_ino != before


@pytest.fixture(params=[0, 0o022, 0o077])
def mask(request):
    """What the user's shell takes away from the modes of new files."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("mask")
def test_a_new_file_and_its_lock_are_readable_by_their_owner_alone(store, db):
    for name in "ann", "bob":
        assert stat.S_IMODE(db.stat().st_mode) == 0o600
        assert stat.S_IMODE(os.stat(f"{db.parent}/.db.json.lock").st_mode) == 0o600
        sell(store, name)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664])
@pytest.mark.usefixtures("mask")
def test_a_commit_keeps_the_mode_and_the_owner(mode, store, db):
    db.chmod(mode)
    if os.geteuid() == 0:
        os.chown(db, 12345, 54321)
    before = db.stat()
    sell(store, "ann")
    after = db.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert after.st_ino != before.st_ino


def test_a_file_with_passwords_is_readable_by_its_owner_alone(client, db):
    db.chmod(0o644)
    assert register(client, "ann").status_code == 201
    assert stat.S_IMODE(db.stat().st_mode) == 0o600


def test_the_lock_file_is_never_removed_nor_replaced(store, db):
    lock = f"{db.parent}/.db.json.lock"
    first = os.stat(lock).st_ino
    for number in range(5):
        sell(store, str(number))
        Store(store.path).open(SEATS)
        with store.lock():
            pass
        assert os.stat(lock).st_ino == first


def swap_files(path):
    """Put another file in the place of this one."""
    with open(f"{path}.new", "w"):
        os.replace(f"{path}.new", path)


@pytest.mark.parametrize("gone", [os.unlink, swap_files])
def test_a_lock_that_is_lost_while_it_is_held_is_noticed(gone, store, other, db):
    before, lock, seen = db.read_bytes(), f"{db.parent}/.db.json.lock", store.load()
    with store.lock():
        gone(lock)
        with suppress(Unwritable):
            assert not store.swap(seen, selling("ann")(seen.database))
        assert db.read_bytes() == before
        if gone is os.unlink:
            with pytest.raises(Unwritable, match="lock cannot be used: it was deleted"):
                sell(other, "bob")
    assert told(db)[2] == set()


def test_after_a_reset_that_made_a_new_lock_other_servers_sell(store, other, db):
    sell(store, "ann")
    (db.parent / ".db.json.lock").unlink()
    kept = store.reset(SEATS, f"{db}.old")
    assert told(kept)[2] == {"ann"}
    assert sell(other, "bob").changed
    assert told(db)[2] == {"bob"}


def test_a_file_that_becomes_a_link_is_refused_until_the_servers_start_again(
    store, db, tmp_path
):
    sell(store, "ann")
    moved = tmp_path / "moved.json"
    db.rename(moved)
    db.symlink_to(moved)
    for _ in range(2):
        with pytest.raises(Unavailable, match="has become a link"):
            sell(store, "bob")
    assert db.is_symlink()
    started = Store(str(db))
    started.open(SEATS)
    sell(started, "cyd")
    assert db.is_symlink()
    assert told(moved)[2] == {"ann", "cyd"}
    db.unlink()
    moved.rename(db)
    sell(store, "bob")
    assert told(db)[2] == {"ann", "bob", "cyd"}


def test_a_lock_that_was_deleted_stops_all_sales_until_a_start_makes_another(
    store, other, db
):
    sell(store, "ann")
    before = db.read_bytes()
    (db.parent / ".db.json.lock").unlink()
    for seller in store, other, store:
        with pytest.raises(Unwritable, match="lock cannot be used: it was deleted"):
            sell(seller, "bob")
        with pytest.raises(Unwritable, match="it was deleted"):
            seller.health()
    assert db.read_bytes() == before
    Store(store.path).open(SEATS)
    assert sell(store, "bob").changed
    assert sell(other, "cyd").changed
    assert told(db)[2] == {"ann", "bob", "cyd"}
    for seller in store, other:
        seller.health()  # which would raise
    assert hidden(db) == [".db.json.lock"]


@pytest.mark.parametrize("gone", [os.unlink, swap_files])
@pytest.mark.parametrize("moment", ["before the rename", "after it"])
def test_a_lock_that_is_lost_during_a_commit_leaves_it_undone_or_in_doubt(
    gone, moment, store, db, monkeypatch
):
    lock, renamed = f"{db.parent}/.db.json.lock", os.replace

    def replace(temp, path):
        renamed(temp, path)
        monkeypatch.undo()
        gone(lock)

    def fsync(fd, sync=os.fsync):
        sync(fd)
        monkeypatch.undo()
        gone(lock)

    if moment == "after it":
        monkeypatch.setattr(os, "replace", replace)
    else:
        monkeypatch.setattr(os, "fsync", fsync)
    if moment == "after it":
        with pytest.raises(InDoubt):
            sell(store, "bob")
        assert told(db)[2] == {"bob"}
    else:
        with pytest.raises(Unwritable, match="lock cannot be used: it was deleted"):
            sell(store, "bob")
        assert told(db)[2] == set()


# --- Files that are not what was written ---------------------------------------------


def refused(store, db):
    """Whether nobody can read, sell from or start with the file, nor changes it."""
    before = db.read_bytes()
    for use in store.load, lambda: sell(store, "x"), lambda: store.open(SEATS):
        with pytest.raises(Unavailable) as refusal:
            use()
        assert str(db) not in str(refusal.value)
    assert hidden(db) == [".db.json.lock"]
    return db.read_bytes() == before


def test_a_file_cut_at_any_byte_is_refused_and_left_alone(store, db):
    sell(store, "ann", 3)
    whole = db.read_bytes()
    for length in reversed(range(len(whole.rstrip()))):
        os.truncate(db, length)
        for use in store.load, lambda: store.open(SEATS):
            with pytest.raises(Unavailable):
                use()
        assert db.read_bytes() == whole[:length]
    assert refused(store, db)
    db.write_bytes(whole)
    assert sell(store, "bob").changed
    assert told(db) == (2, SEATS - 4, {"ann", "bob"})


SOLD = {
    "event": {
        "eventId": "node-meetup-2025",
        "name": "Node.js Meet-up",
        "totalSeats": 5,
        "availableSeats": 2,
        "version": 1,
    },
    "reservations": {
        "a": {
            "reservationId": "a",
            "partnerId": "x",
            "seats": 3,
            "status": "confirmed",
            "ts": "2025-01-01T00:00:00.000Z",
            "eventVersionAtReservation": 1,
        }
    },
}


def with_event(**changes):
    """The file as it should be, but for this in its event."""
    return json.dumps(SOLD | {"event": SOLD["event"] | changes})


def with_record(key="a", **changes):
    """The file as it should be, but for this in its reservation."""
    record = SOLD["reservations"]["a"] | changes
    return json.dumps(SOLD | {"reservations": {key: record}})


def with_events(free=1, **ids):
    """The file as it should be, and below it these events, by their keys."""
    return json.dumps(
        SOLD
        | {
            "events": {
                key: {
                    "event": {
                        "eventId": event_id,
                        "name": "x",
                        "totalSeats": 1,
                        "availableSeats": free,
                        "version": 0,
                    },
                    "reservations": {},
                }
                for key, event_id in ids.items()
            }
        }
    )


BAD = {
    "empty": "",
    "NULs": "\0" * 300,
    "a list": "[]",
    "null": "null",
    "other keys": '{"a": 1}',
    "no reservations": json.dumps({"event": SOLD["event"]}),
    "reservations as a list": json.dumps(SOLD | {"reservations": []}),
    "unknown on top": json.dumps(SOLD | {"users": {}}),
    "unknown in the event": with_event(colour="red"),
    "NaN": with_event(availableSeats=float("nan")),
    "Infinity": with_event(version=float("inf")),
    "negative": with_event(availableSeats=-1),
    "more than there are": with_event(availableSeats=6),
    "a truth": with_event(availableSeats=True),
    "a float": with_event(availableSeats=2.5),
    "a text": with_event(availableSeats="2"),
    "5,000 digits": with_event().replace('"version": 1', '"version": ' + "1" * 5000),
    "one seat too many": with_event(availableSeats=3),
    "one seat too few": with_event(availableSeats=1),
    "a sale of a later version": with_event(version=0),
    "no seats": with_record(seats=0),
    "an unknown status": with_record(status="perhaps"),
    "under another key": with_record(key="b"),
    "cancelled, but not free": with_record(status="cancelled"),
    "the seeded event twice": with_events(**{"node-meetup-2025": "node-meetup-2025"}),
    "another event twice": with_events(**{"7": 7, "8": 7}),
    "another event with a wrong sum": with_events(**{"7": 7}, free=0),
    "a second file behind it": json.dumps(SOLD) * 2,
    "100,000 lists deep": "[" * 100_000,
    "deep in its place": with_event().replace("1}", '{"a":' * 50_000 + "}" * 50_001),
    "wrong UTF-8": b'{"event": "\xff"}',
    "UTF-16": json.dumps(SOLD).encode("utf-16"),
}


def test_a_byte_order_mark_is_read_and_not_written(store, db):
    marked = b"\xef\xbb\xbf" + json.dumps(SOLD).encode()
    db.write_bytes(marked)
    assert (
        store.load().database.document(None).event.version == SOLD["event"]["version"]
    )
    assert db.read_bytes() == marked  # reading changes nothing
    sell(store, "b")
    assert db.read_bytes().startswith(b"{\n")


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_an_invalid_file_is_refused_and_left_alone(bad, store, db):
    good = json.dumps(SOLD)
    db.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    assert refused(store, db)
    db.write_text(good)
    store.open(SEATS)
    assert db.read_text() == good
    assert sell(store, "bob").changed
    assert told(db) == (2, 1, {"a", "bob"})


def test_a_refusal_names_the_place_in_the_file_and_both_numbers(store, db):
    db.write_text(with_event(availableSeats="2"))
    with pytest.raises(Unavailable, match=r"\$\.event\.availableSeats"):
        store.load()
    db.write_text(with_event(availableSeats=3))
    with pytest.raises(Unavailable, match=r"3 seats confirmed and 3 available .* 5"):
        store.load()


def good_fifo(path):
    """A FIFO out of which a good file can be read, once, while this is open."""
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    os.write(end, json.dumps(SOLD).encode())
    return end


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, good_fifo])
def test_a_path_that_is_not_a_plain_file_is_refused_at_once_and_left_alone(
    make, store, db
):
    db.unlink()
    end = make(db)
    before = db.lstat()
    for use in store.load, lambda: sell(store, "x"), lambda: store.open(SEATS):
        assert isinstance(in_a_thread(use), Unavailable)
    assert (db.lstat().st_mode, db.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert hidden(db) == [".db.json.lock"]
    if end is not None:
        os.close(end)
    os.rmdir(db) if stat.S_ISDIR(before.st_mode) else os.unlink(db)
    store.open(SEATS)
    assert sell(store, "ann").changed


def in_a_thread(use):
    """What it raised; None if it returned, or hangs."""
    raised = []

    def run():
        try:
            use()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    return raised[0] if raised else None


def test_a_file_that_is_gone_is_not_made_again_by_a_running_server(store, db):
    sell(store, "ann")
    kept = db.rename(db.with_name("kept"))
    for use in store.load, lambda: sell(store, "x"):
        with pytest.raises(Unavailable):
            use()
    assert hidden(db) == [".db.json.lock", "kept"]
    assert not db.exists()
    os.replace(kept, db)
    sell(store, "bob")
    assert told(db) == (2, SEATS - 2, {"ann", "bob"})


@contextmanager
def read_only(folder):
    """A folder that nobody may write in, root included."""
    user = os.geteuid()
    os.chmod(folder, 0o555)
    if user == 0:
        for path in [folder, *folder.iterdir()]:
            os.chown(path, 65534, 65534)
        for parent in folder.parents:
            if parent.stat().st_mode & 0o055 != 0o055 and parent.owner() == "root":
                os.chmod(parent, 0o755)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        os.chmod(folder, 0o755)


def test_in_a_folder_that_is_read_only_reads_go_on_and_nothing_changes(store, db):
    sell(store, "ann")
    before = db.read_bytes()
    with read_only(db.parent):
        assert set(store.load().database.document(None).reservations) == {"ann"}
        with pytest.raises(Unavailable):
            sell(store, "bob")
        assert Store(store.path).load().database == store.load().database
        assert db.read_bytes() == before
    assert hidden(db) == [".db.json.lock"]
    assert sell(store, "carl").changed
    assert told(db) == (2, SEATS - 2, {"ann", "carl"})


# --- Starting ------------------------------------------------------------------------


def test_a_first_start_writes_the_seeded_event_and_nothing_else(store, db):
    assert json.loads(db.read_text()) == {
        "event": {
            "eventId": "node-meetup-2025",
            "name": "Node.js Meet-up",
            "totalSeats": SEATS,
            "availableSeats": SEATS,
            "version": 0,
        },
        "reservations": {},
    }
    assert len(db.read_text().splitlines()) > 5  # for people to read
    before = db.stat()
    store.open(7)  # there is a file: its seats stand
    assert db.stat() == before
    assert hidden(db) == [".db.json.lock"]


def abandoned(db, name, monkeypatch):
    """The draft that a writer of this database leaves when it is killed."""
    store, rename, drafts = Store(str(db)), os.replace, []

    def replace(draft, path):
        os.link(draft, f"{draft}.kept")
        drafts.append(draft)
        rename(draft, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        sell(store, name)
    os.rename(f"{drafts[0]}.kept", drafts[0])
    return os.path.basename(drafts[0])


def test_a_start_removes_only_the_drafts_of_its_own_database(store, db, monkeypatch):
    keep = ["db.json", ".db.json.lock", "db.json.2025.old", ".db.json.swp", "notes.tmp"]
    for name in keep[2:]:
        db.with_name(name).write_text("mine")
    for name in "other.json", "json", "db.json.b", "adb.json", "db_json":
        Store(str(db.with_name(name))).open(SEATS)
        keep += [name, f".{name}.lock", abandoned(db.with_name(name), "x", monkeypatch)]
    left = [abandoned(db, name, monkeypatch) for name in "abc"]
    assert sorted(os.listdir(db.parent)) == sorted(keep + left)
    before = db.read_bytes()
    store.open(SEATS)
    assert sorted(os.listdir(db.parent)) == sorted(keep)
    assert db.read_bytes() == before


def test_a_start_leaves_the_draft_of_a_writer_that_lives(store, other, db, monkeypatch):
    rename, starts = os.replace, []

    def replace(draft, path):
        try:
            other.open(SEATS)  # must wait for the lock, in vain
        except Contended:
            starts.append(os.path.exists(draft))
        rename(draft, path)

    monkeypatch.setattr(os, "replace", replace)
    sell(store, "ann")
    assert starts == [True]
    assert told(db) == (1, SEATS - 1, {"ann"})


def test_a_restarted_worker_does_not_offer_sold_seats_again(store, db):
    sell(store, "ann")
    db.unlink()
    with pytest.raises(Unavailable):
        Store(store.path).open(SEATS, may_seed=False)
    assert hidden(db) == [".db.json.lock"]
    assert not db.exists()


def test_a_worker_seeds_a_file_where_there_was_none(db):
    Store(str(db)).open(SEATS, may_seed=False)
    assert told(db) == (0, SEATS, set())


def test_workers_that_start_at_the_same_moment_all_find_the_one_event(db, monkeypatch):
    opened, late = os.open, [Store(str(db))]

    def open_(path, *args, **more):
        descriptor = opened(path, *args, **more)
        if late and str(path).endswith(".lock"):  # made by the first, locked by none
            late.pop().open(SEATS, may_seed=False)
        return descriptor

    monkeypatch.setattr(os, "open", open_)
    Store(str(db)).open(SEATS, may_seed=False)
    assert late == []
    assert told(db) == (0, SEATS, set())
    assert hidden(db) == [".db.json.lock"]


# --- Group commit --------------------------------------------------------------------


class Crowd:
    """Threads that all ask while the first one's commit is under way."""

    def __init__(self, store, decisions, timeout_s=20):
        self.transactions, self.results = Transactions(store, 0, timeout_s), {}
        self.go, self.first = threading.Event(), threading.Event()
        self.threads = [
            threading.Thread(target=self.ask, args=item)
            for item in enumerate([self.wait, *decisions])
        ]

    def wait(self, database):
        """The first one's decision, made when all the others stand in the queue."""
        self.first.set()
        assert self.go.wait(20)
        return selling("first")(database)

    def ask(self, number, decide):
        try:
            self.results[number] = self.transactions.transact(decide)
        except Exception as error:
            self.results[number] = error

    def run(self):
        """What became of each of the decisions but the first."""
        first, *others = self.threads
        first.start()
        assert self.first.wait(20)
        for number, thread in enumerate(others, 1):
            thread.start()
            wait_until(lambda n=number: len(self.transactions._queue) == n)
        self.go.set()
        for thread in self.threads:
            thread.join(20)
        assert not isinstance(self.results[0], Exception)
        return [self.results[number] for number in range(1, len(self.threads))]


@pytest.fixture
def renames(monkeypatch):
    """What each rename raises, or None; and how many there were."""
    calls, faults, rename = [], {}, os.replace

    def replace(draft, path):
        calls.append(path)
        if len(calls) in faults:
            raise OSError(faults[len(calls)], os.strerror(faults[len(calls)]))
        rename(draft, path)

    monkeypatch.setattr(os, "replace", replace)
    return calls, faults


def test_orders_that_arrive_during_a_commit_share_the_next_write(store, db, renames):
    results = Crowd(store, [selling(str(number)) for number in range(31)]).run()
    sold = [turn for turn in results if not isinstance(turn, Exception)]
    full = [error for error in results if isinstance(error, NotEnoughSeats)]
    assert (len(sold), len(full)) == (SEATS - 1, 32 - SEATS)
    assert len(renames[0]) == 2  # the first one's, and one for all the others
    versions = [turn.database.document(None).event.version for turn in sold]
    assert sorted(versions) == list(range(2, SEATS + 1))
    records = store.load().database.document(None).reservations.values()
    assert sorted(r.event_version_at_reservation for r in records) == [
        1,
        *sorted(versions),
    ]
    assert told(db)[:2] == (SEATS, 0)
    assert all(turn.changed and turn.attempts == 1 for turn in sold)
    assert all("Not enough" in str(error) for error in full)
    assert len(set(map(id, full))) == len(full)


def test_a_failed_decision_fails_only_its_own_order(store, db, renames):
    def fail(_):
        raise ZeroDivisionError

    results = Crowd(
        store,
        [selling("a"), fail, selling("huge", SEATS), lambda same: same, selling("b")],
    ).run()
    assert [type(result).__name__ for result in results] == [
        "PendingCommit",
        "ZeroDivisionError",
        "NotEnoughSeats",
        "PendingCommit",
        "PendingCommit",
    ]
    assert [result.changed for result in results if hasattr(result, "changed")] == [
        True,
        False,
        True,
    ]
    assert told(db) == (3, SEATS - 3, {"first", "a", "b"})
    assert len(renames[0]) == 2


def test_a_swap_that_writes_nothing_is_no_proof_that_the_disk_can_be_written(
    store, monkeypatch
):
    def full(_file, _data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Unwritable, match="No space"):
        sell(store, "ann")
    seen = store.load()
    assert store.swap(seen, seen.database)  # as a replay does
    with pytest.raises(Unwritable, match="No space"):
        store.health()
    monkeypatch.undo()
    sell(store, "ann")
    store.health()  # which would raise


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_fails_all_orders_that_share_it_and_changes_nothing(
    code, store, db, renames
):
    renames[1][2] = code
    results = Crowd(
        store,
        [
            selling("a"),
            selling("huge", SEATS),
            lambda _: _.cancel("never", ""),
            selling("b"),
        ],
    ).run()
    assert [type(result) for result in results] == [Unwritable] * 4
    assert told(db) == (1, SEATS - 1, {"first"})
    assert len(renames[0]) == 2
    assert hidden(db) == [".db.json.lock"]
    assert sell(store, "next").changed


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_the_whole_file(
    store, db, monkeypatch
):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, bytes(data[:7])))
    sell(store, "ann")
    monkeypatch.undo()
    assert told(db) == (1, SEATS - 1, {"ann"})
    assert store.load().database == Store(store.path).load().database


def test_a_refusal_alone_is_not_written(store, db, renames):
    before = db.stat()
    with pytest.raises(NotEnoughSeats) as refusal:
        sell(store, "huge", SEATS + 1)
    assert refusal.value.attempts == 1
    with pytest.raises(NotFound):
        sell(store, "a", 1, "no such event")
    assert (renames[0], db.stat()) == ([], before)


def test_the_next_order_in_line_leads_when_the_leader_has_gone(store, db, renames):
    transactions, results = Transactions(store, timeout_s=20), []
    threads = [
        threading.Thread(
            target=lambda n=n: results.append(
                [transactions.transact(selling(f"{n}-{i}")).attempts for i in range(2)]
            )
        )
        for n in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sum(map(len, results)) == SEATS
    assert told(db)[:2] == (SEATS, 0)
    assert 1 <= len(renames[0]) <= SEATS


def test_a_sale_that_thinks_is_overtaken_and_counts_its_attempts(store, other):
    thinking = Transactions(store, think_s=0.001)
    decided = []

    def decide(database):
        decided.append(database.document(None).event.version)
        if len(decided) < 4:
            sell(other, f"faster {len(decided)}")
        return selling("slow")(database)

    assert thinking.transact(decide).attempts == 4
    assert decided == [0, 1, 2, 3]
    assert told(store.path)[0] == 4


# --- Other processes -----------------------------------------------------------------


HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "a")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(store, db):
    """Another process that has the lock, and does not let it go."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, f"{db.parent}/.db.json.lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_while_another_process_has_the_lock_reads_are_answered_and_sales_are_not(
    store, db, holder
):
    before = db.read_bytes()
    for _ in range(2):
        with pytest.raises(Contended):
            sell(store, "ann")
        assert store.load().database == ticketboss.seed(SEATS)
    with pytest.raises(Contended):
        Store(store.path, 0.05).open(SEATS)
    assert (db.read_bytes(), hidden(db)) == (before, [".db.json.lock"])
    holder.send_signal(signal.SIGKILL)  # the system lets go of a dead one's lock
    holder.wait(10)
    assert sell(store, "bob").attempts == 1
    assert told(db) == (1, SEATS - 1, {"bob"})


def test_an_order_that_times_out_leaves_the_queue_and_buys_nothing(store, db):
    crowd = Crowd(store, [], timeout_s=0.05)
    crowd.threads[0].start()
    assert crowd.first.wait(20)
    with pytest.raises(Contended):
        crowd.transactions.transact(selling("late"))
    crowd.go.set()
    crowd.threads[0].join(20)
    assert told(db) == (1, SEATS - 1, {"first"})
    crowd.transactions.transact(selling("next"))
    assert told(db) == (2, SEATS - 2, {"first", "next"})


def in_a_fork(work):
    """What the work returns in a forked child, as text."""
    pipe, end = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(end, str(work()).encode())
        except BaseException as error:
            os.write(end, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(end)
    with open(pipe) as file:
        said = file.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


def test_a_child_of_a_fork_works_with_the_store_it_was_given(store, db):
    queue = Transactions(store)
    queue.transact(selling("before"))
    for name in "child", "twin":
        assert in_a_fork(lambda n=name: queue.transact(selling(n)).changed) == "True"
        queue.transact(selling(f"after {name}"))
    assert told(db) == (
        5,
        SEATS - 5,
        {"before", "child", "after child", "twin", "after twin"},
    )
    assert hidden(db) == [".db.json.lock"]


def test_a_child_of_a_fork_has_no_part_in_its_parents_lock(store, other, db):
    before = db.read_bytes()
    with store.lock():
        assert in_a_fork(lambda: sell(store, "child")) == "Contended"
        with pytest.raises(Contended):  # nor did the child's end let it go
            sell(other, "stranger")
        assert db.read_bytes() == before
        sell(store, "parent")
    assert sell(other, "stranger").changed
    assert told(db) == (2, SEATS - 2, {"parent", "stranger"})


def test_processes_that_sell_at_once_sell_each_seat_once(store, db):
    def work(name):
        done, queue = 0, Transactions(store, timeout_s=20)
        for number in range(SEATS):
            try:
                queue.transact(selling(f"{name}-{number}"))
                done += 1
            except NotEnoughSeats:
                break
        return done

    said = []
    threads = [
        threading.Thread(target=lambda n=n: said.append(int(in_another(store.path, n))))
        for n in range(2)
    ]
    for thread in threads:
        thread.start()
    mine = work("mine")
    for thread in threads:
        thread.join(30)
    assert sum(said) + mine == SEATS
    assert told(db)[:2] == (SEATS, 0)
    records = store.load().database.document(None).reservations.values()
    assert sorted(r.event_version_at_reservation for r in records) == list(
        range(1, SEATS + 1)
    )


SELLER = """
import sys
sys.path.insert(0, sys.argv[1])
import ticketboss as t
queue, sold = t.Transactions(t.Store(sys.argv[2], 20), timeout_s=20), 0
for number in range(1000):
    wish = t.Reservation(f"{sys.argv[3]}-{number}", "abc-corp", 1, "waitlisted")
    try:
        queue.transact(lambda d: d.with_document(d.document(None).reserve(wish)))
    except t.NotEnoughSeats:
        break
    sold += 1
print(sold)
"""


def in_another(path, name):
    """How many seats a process of its own sold, until there were none."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            SELLER,
            os.path.dirname(ticketboss.__file__),
            path,
            str(name),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_hundreds_of_commits_and_refusals_leave_no_file_open(
    store, other, db, monkeypatch
):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # for speed
    queue, most = Transactions(store), 0
    sell(other, "other")
    queue.transact(selling("mine"))
    before = len(os.listdir("/dev/fd"))
    for number in range(60):
        for transactions in queue, Transactions(other):
            transactions.transact(selling(f"{number}"))
            with pytest.raises(NotEnoughSeats):
                transactions.transact(selling("huge", SEATS + 1))
            with pytest.raises(NotFound):
                transactions.transact(lambda d: d.with_document(d.document("x")))
            transactions.transact(
                lambda d, n=number: d.with_document(
                    d.document(None).cancel(f"{n}", "now")
                )
            )
            most = max(most, len(os.listdir("/dev/fd")))
    assert most <= before + 20
    assert told(db)[:2] == (242, SEATS - 2)
    assert hidden(db) == [".db.json.lock"]
