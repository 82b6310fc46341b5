"""`updatedAt` of an event is the time of its last change, whatever changed."""

from __future__ import annotations

import json

import pytest
from furnished import BOOKER, furnished, people

LONG_AGO = "2025-01-01T00:00:00.000Z"
PATH = "/events/7/reservations"


def aged(value):
    """All times of a JSON value set back."""
    if isinstance(value, dict):
        return {key: aged(each) for key, each in value.items()}
    if isinstance(value, list):
        return [aged(each) for each in value]
    if isinstance(value, str) and value.startswith("202") and value.endswith("Z"):
        return LONG_AGO
    return value


@pytest.fixture
def old(make_app, db):
    """A client of a server in which nothing has happened for long, and its changes."""
    content, todo = furnished()
    db.write_text(json.dumps(aged(json.loads(content))))
    return make_app().test_client(), todo


def times(client, event_id=7):
    """createdAt and updatedAt of an event."""
    root = people()[1]["root"]
    for event in client.get("/api/v1/event", headers=root).json["data"]:
        if event["id"] == event_id:
            return event["createdAt"], event["updatedAt"]
    raise AssertionError(event_id)


def test_an_event_without_a_change_keeps_its_time_of_update(old):
    client, _ = old
    assert times(client) == (LONG_AGO, LONG_AGO)
    client.get("/events/7")
    client.post(PATH, json={"partnerId": "a", "seats": 11})
    assert times(client) == (LONG_AGO, LONG_AGO)


@pytest.mark.parametrize(
    "name",
    [
        "sale of an event",
        "partial return in an event",
        "cancel in an event",
        "ticket",
        "cancelled ticket",
        "booking",
        "cancelled booking",
        "partly cancelled booking",
    ],
)
def test_every_change_updates_its_event(old, make_app, name):
    client, todo = old
    root = people()[1]["root"]
    answer = todo[name].send(client, headers=root)
    assert answer.status_code in {200, 201, 204}
    created, updated = times(client)
    assert created == LONG_AGO
    assert updated > "2026"
    assert len(updated) == len(LONG_AGO)
    assert times(make_app().test_client()) == (created, updated)


@pytest.mark.parametrize("leave", ["?seats=1", ""])
def test_a_waiting_order_that_shrinks_or_leaves_updates_its_event(
    old, make_app, db, leave
):
    client, _ = old
    full = BOOKER | {"eventId": 7, "ticketsReserved": 31}
    assert client.post("/api/v1/booking", json=full).status_code == 201
    waits = {"partnerId": "a", "seats": 9, "waitlist": True}
    joined = client.post(PATH, json=waits)
    assert joined.status_code == 202
    db.write_text(json.dumps(aged(json.loads(db.read_text()))))
    client = make_app().test_client()
    assert times(client) == (LONG_AGO, LONG_AGO)
    assert client.delete(joined.headers["Location"] + leave).status_code == 204
    assert times(client)[1] > "2026"


def test_a_replay_updates_nothing(old, make_app, db):
    client, todo = old
    key = {"Idempotency-Key": "k"}
    assert todo["partial return in an event"].send(client, headers=key)
    db.write_text(json.dumps(aged(json.loads(db.read_text()))))
    client = make_app().test_client()
    again = todo["partial return in an event"].send(client, headers=key)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert times(client) == (LONG_AGO, LONG_AGO)


def test_the_time_of_a_partial_return_is_shown_to_no_partner(old):
    client, todo = old
    change = todo["partial return in an event"]
    place = change.path.partition("?")[0]
    before = client.get(place).json
    assert change.send(client).status_code == 204
    after = client.get(place).json
    assert after == before | {"seats": 7, "seatsReturned": 2}
