"""How db.json looks: one record a line, and always as a fresh encoding would be."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ticketboss
from ticketboss import Document, Event, Reservation, Store

AT = "2025-01-01T00:00:00.000Z"
SEEDED = "node-meetup-2025"


def order(name, seats=1):
    return Reservation(name, 'a "partner", {odd}\n', seats, "waitlisted", ts=AT)


def sell(store, name):
    """The document after a sale of one seat."""
    seen = store.load()
    sold = seen.database.document(None).reserve(order(name))
    assert store.swap(seen, seen.database.with_document(sold))
    return sold


def after_step(database, step, which, name):
    """The database after one step; None if it cannot be taken."""
    key = [*database.documents][which % len(database.documents)]
    document = database.documents[key]
    reservations = [*document.reservations]
    chosen = reservations[which % len(reservations)] if reservations else "none"
    try:
        if step == "open":
            event = Event(which, "Another {}", 4, 4, 0)
            existing = database.documents.get(str(which))
            return database.with_document(Document.open(existing, event))
        if document.event.deleted or (step == "close" and key == SEEDED):
            return None
        if step == "close":
            return database.with_document(document.close())
        if step == "order":
            changed = document.reserve(order(name, 1 + which % 3), "when short")
        else:
            seats = 1 if step == "return one" else None
            changed = document.cancel(chosen, AT, seats)
    except ticketboss.TicketBossError:
        return None
    return database.with_document(changed)


STEPS = st.tuples(
    st.sampled_from(["order", "order", "cancel", "return one", "open", "close"]),
    st.integers(0, 5),
    st.integers(0, 1),  # by which of two stores
)


@settings(deadline=None)
@given(steps=st.lists(st.lists(STEPS, min_size=1, max_size=3), max_size=12))
def test_the_file_after_each_commit_equals_a_complete_encoding(steps):
    """Each commit is of one to three steps, as in a group commit."""
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/db.json"
        stores = [Store(path), Store(path)]
        stores[0].open(6)
        for batch in steps:
            store = stores[batch[0][2]]
            seen = store.load()
            wanted = seen.database
            for step, which, _ in batch:
                changed = after_step(wanted, step, which, str(next(numbers)))
                wanted = wanted if changed is None else changed
            assert store.swap(seen, wanted)
            fresh = Store(path).load()
            text = b"".join(Store(path)._encode(fresh.database))
            assert Path(path).read_bytes() == text
            for known in stores:
                assert known.load().database == fresh.database == wanted.settled()


def test_each_record_is_one_line_and_the_rest_is_as_it_was_seeded(tmp_path):
    store = Store(str(tmp_path / "db.json"))
    store.open(5)
    assert (tmp_path / "db.json").read_text() == json.dumps(
        {
            "event": {
                "eventId": SEEDED,
                "name": "Node.js Meet-up",
                "totalSeats": 5,
                "availableSeats": 5,
                "version": 0,
            },
            "reservations": {},
        },
        indent=2,
    ) + "\n"
    seen = store.load()
    document = seen.database.document(None)
    for name in "a", "b":
        document = document.reserve(order(name))
    assert store.swap(seen, seen.database.with_document(document))
    lines = (tmp_path / "db.json").read_text().splitlines()
    records = [line for line in lines if line.startswith('    "a"')]
    assert [json.loads(f"{{{line.rstrip(',')}}}") for line in records] == [
        {
            "a": {
                "reservationId": "a",
                "partnerId": 'a "partner", {odd}\n',
                "seats": 1,
                "status": "confirmed",
                "ts": AT,
                "eventVersionAtReservation": 1,
            }
        }
    ]


def test_a_file_in_another_layout_is_read_and_then_written_in_ours(tmp_path):
    path = tmp_path / "db.json"
    store = Store(str(path))
    store.open(5)
    sold = sell(store, "a")
    ours = json.loads(path.read_text())
    for indent in None, 0, 2, 4, "\t":
        path.write_text(json.dumps(ours, indent=indent))
        assert store.load().database.document(None) == sold
        sell(store, "b")
        lines = path.read_text().splitlines()
        assert sum(line.startswith('    "') for line in lines) == 5 + 2


def test_a_field_that_occurs_twice_in_a_line_of_ours_is_refused(tmp_path):
    path = tmp_path / "db.json"
    store = Store(str(path))
    store.open(5)
    sell(store, "a")
    text = path.read_text()
    assert '"seats": 1' in text
    path.write_text(text.replace('"seats": 1', '"seats": 2, "seats": 1'))
    with pytest.raises(ticketboss.Damaged, match="the field 'seats' occurs twice"):
        store.load()


def test_only_records_that_changed_are_encoded(tmp_path, monkeypatch):
    store = Store(str(tmp_path / "db.json"))
    store.open(500)
    seen = store.load()
    document = seen.database.document(None)
    for number in range(100):
        document = document.reserve(order(f"first {number}"))
    assert store.swap(seen, seen.database.with_document(document))
    encoded = []
    encode = msgspec.json.encode

    def counted(value):
        if isinstance(value, dict):  # the outline, or a record under its key
            encoded.extend(value.keys() - {"event", "reservations"})
        return encode(value)

    monkeypatch.setattr(msgspec.json, "encode", counted)
    seen = store.load()
    changed = seen.database.document(None).reserve(order("new")).cancel("first 7", AT)
    assert store.swap(seen, seen.database.with_document(changed))
    assert encoded == ["new", "first 7"]
    encoded.clear()
    other = Store(store.path)
    other.load()
    store.load()
    sell(other, "by another")
    encoded.clear()
    sell(store, "after that")
    assert encoded == ["by another", "after that"]


def test_a_record_that_cannot_be_encoded_leaves_nothing_in_the_next_text(tmp_path):
    store = Store(str(tmp_path / "db.json"))
    store.open(5)
    seen = store.load()
    sold = seen.database.document(None).reserve(order("a"))
    odd = sold.reserve(order("odd \ud800"))
    with pytest.raises(UnicodeEncodeError):
        store.swap(seen, seen.database.with_document(odd))
    sell(store, "b")
    assert [*Store(store.path).load().database.document(None).reservations] == ["b"]
