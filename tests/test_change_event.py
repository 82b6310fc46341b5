"""An event can be changed: as one change, under the rules of every other change."""

from __future__ import annotations

import json
from contextlib import contextmanager

import programs
import pytest
from conftest import SEEDED

import ticketboss

EVENT = f"/events/{SEEDED}"
BOOKER = {"firstName": "Ann", "email": "ann@example.com"}


@contextmanager
def unchanged(db):
    """Hold that the file is byte for byte what it was, whatever happens in here."""
    before = db.read_bytes()
    yield
    assert db.read_bytes() == before


def sell(client, seats, **more):
    """The answer to an order."""
    body = {"partnerId": "abc-corp", "seats": seats, **more}
    return client.post("/reservations", json=body)


def change(client, headers=None, at=EVENT, **changes):
    """The answer to a change of the event."""
    return client.patch(at, json=changes, headers=headers)


def test_every_fact_can_be_changed_and_is_one_version(client, saved):
    facts = {
        "name": "Node.js Night",
        "totalSeats": 600,
        "price": 250,
        "date": "2026-12-01",
        "sales": "closed",
    }
    answer = change(client, **facts)
    assert (answer.status_code, answer.headers["ETag"]) == (200, '"1"')
    assert answer.headers["X-Attempts"] == "1"
    assert answer.json == {
        "eventId": SEEDED,
        "id": SEEDED,
        "name": "Node.js Night",
        "totalSeats": 600,
        "availableSeats": 600,
        "reservationCount": 0,
        "totalTickets": 600,
        "availableTickets": 600,
        "version": 1,
        "price": 250,
        "date": "2026-12-01T00:00:00.000Z",
        "sales": "closed",
    }
    assert saved()["event"] == {
        "eventId": SEEDED,
        "name": "Node.js Night",
        "totalSeats": 600,
        "availableSeats": 600,
        "version": 1,
        "price": 250,
        "date": "2026-12-01T00:00:00.000Z",
        "sales": "closed",
    }
    assert client.get("/event").json["totalSeats"] == 600


@pytest.mark.parametrize(
    "fact", [{"name": "X"}, {"totalSeats": 501}, {"price": 1}, {"sales": "closed"}]
)
def test_a_change_of_one_fact_leaves_the_others(client, fact):
    before = client.get(EVENT).json
    after = change(client, **fact).json
    name = next(iter(fact))
    assert after[name] == fact[name]
    same = before.keys() - {
        name,
        "version",
        *(
            ["totalTickets", "availableSeats", "availableTickets"]
            if name == "totalSeats"
            else []
        ),
    }
    assert {k: after[k] for k in same} == {k: before[k] for k in same}


def test_a_change_to_the_same_values_counts_no_version(client, db):
    assert change(client, price=5).json["version"] == 1
    with unchanged(db):
        again = change(client, price=5, name="Node.js Meet-up", sales="open")
        assert (again.status_code, again.json["version"]) == (200, 1)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "Send one or more of name, totalSeats, price, date, sales."),
        ({"seats": 5}, "seats"),
        ({"name": "X", "version": 7}, "version"),
        ({"availableSeats": 5}, "availableSeats"),
        ({"eventId": 5, "price": 5}, "eventId"),
        ({"createdBy": 1}, "createdBy"),
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"totalSeats": 0}, "totalSeats"),
        ({"totalSeats": 1_000_001}, "totalSeats"),
        ({"totalSeats": "600"}, "totalSeats"),
        ({"totalSeats": 1.5}, "totalSeats"),
        ({"totalSeats": True}, "totalSeats"),
        ({"price": -1}, "price"),
        ({"price": "free"}, "price"),
        ({"date": "soon"}, "date"),
        ({"date": 20261201}, "date"),
        ({"sales": "shut"}, "sales"),
        ({"sales": True}, "sales"),
    ],
)
def test_an_unusable_change_is_400_that_names_it(client, db, body, named):
    with unchanged(db):
        answer = client.patch(EVENT, json=body)
        assert answer.status_code == 400
        assert named in answer.json["error"]
        assert answer.json["error"] == answer.json["message"]


def test_an_event_that_is_not_there_is_404(client, db):
    with unchanged(db):
        answer = change(client, at="/events/none", price=5)
        assert (answer.status_code, answer.json["error"]) == (404, "Event not found")


def test_more_seats_serve_waiting_orders_in_the_same_change(make_app, saved):
    client = make_app(seats=4).test_client()
    sell(client, 4)
    waits = [sell(client, n, waitlist=True).json["reservationId"] for n in (3, 4, 1)]
    before = client.get("/event").json["version"]
    answer = change(client, totalSeats=8)
    assert answer.json["version"] == before + 1
    statuses = {k: r["status"] for k, r in saved()["reservations"].items()}
    assert [statuses[key] for key in waits] == ["confirmed", "waitlisted", "waitlisted"]
    assert client.get("/event").json["availableSeats"] == 1  # the head needs 4
    assert change(client, totalSeats=12).json["availableSeats"] == 0
    assert client.get(f"/status/{SEEDED}").json["waitingListCount"] == 0


def test_fewer_seats_than_are_confirmed_is_409_with_both_numbers(make_app, db):
    client = make_app(seats=10).test_client()
    sell(client, 6)
    with unchanged(db):
        answer = change(client, totalSeats=5, name="X")
        assert answer.status_code == 409
        assert answer.json["error"] == (
            "6 seats are confirmed, so totalSeats cannot be 5"
        )
    assert change(client, totalSeats=6).json["availableSeats"] == 0


def test_a_new_name_is_not_refused_for_a_number_of_seats_that_was_not_sent(
    make_app, db
):
    client = make_app(seats=10).test_client()
    sell(client, 2)
    sell(client, 9, waitlist=True)
    file = json.loads(db.read_text())
    [waiting] = [r for r in file["reservations"].values() if r["seats"] == 9]
    waiting["seats"] = 600  # by hand, more than the event has
    db.write_text(json.dumps(file))
    answer = change(client, name="Another")
    assert (answer.status_code, answer.json["name"]) == (200, "Another")
    assert change(client, totalSeats=9).status_code == 409


def test_fewer_seats_than_a_waiting_order_needs_is_409_with_both_numbers(make_app, db):
    client = make_app(seats=10).test_client()
    sell(client, 2)
    sell(client, 9, waitlist=True)
    with unchanged(db):
        answer = change(client, totalSeats=8)
        assert answer.status_code == 409
        assert answer.json["error"] == (
            "An order of 9 seats waits, so totalSeats cannot be 8"
        )
    assert change(client, totalSeats=9).status_code == 200


def test_while_sales_are_closed_all_orders_are_409_and_cancels_go_on(make_app, db):
    client = make_app(seats=9).test_client()
    held = sell(client, 9).json["reservationId"]
    waits = sell(client, 2, waitlist=True).json["reservationId"]
    assert change(client, sales="closed").status_code == 200
    booking = {"eventId": SEEDED, "ticketsReserved": 1, **BOOKER}
    with unchanged(db):
        for path, body, says in (
            ("/reservations", {"partnerId": "x", "seats": 1}, "error"),
            (
                "/reservations",
                {"partnerId": "x", "seats": 1, "waitlist": True},
                "error",
            ),
            ("/book", {"eventId": SEEDED, "userId": 1}, "error"),
            ("/api/v1/booking", booking, "message"),
        ):
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json[says]) == (409, "Sales are closed")
    assert client.delete(f"/reservations/{held}?seats=3").status_code == 204
    assert client.get(f"/reservations/{waits}").json["status"] == "confirmed"
    with unchanged(db):
        assert sell(client, 1).status_code == 409  # though one is free
    assert change(client, sales="open").status_code == 200
    assert sell(client, 1).status_code == 201


def test_an_order_under_a_key_is_replayed_while_sales_are_closed(client, db):
    body, key = {"partnerId": "a", "seats": 2}, {"Idempotency-Key": "k"}
    first = client.post("/reservations", json=body, headers=key)
    change(client, sales="closed")
    with unchanged(db):
        again = client.post("/reservations", json=body, headers=key)
        assert (again.status_code, again.json) == (201, first.json)


def test_a_change_that_changed_nothing_is_not_made_when_its_key_comes_again(client, db):
    key = {"Idempotency-Key": "k"}
    first = change(client, key, price=0)
    assert (first.json["version"], first.headers["ETag"]) == (0, '"0"')
    assert change(client, price=6).json["version"] == 1
    with unchanged(db):
        again = change(client, key, price=0)
    assert again.status_code == 200
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["ETag"] == '"0"'


def test_a_change_under_a_key_is_made_once(client, db):
    key = {"Idempotency-Key": "k"}
    first = change(client, key, totalSeats=600)
    assert change(client, totalSeats=700).headers["ETag"] == '"2"'
    with unchanged(db):
        again = change(client, key | {"If-Match": '"99"'}, totalSeats=600)
        assert (again.status_code, again.headers["ETag"]) == (200, '"1"')
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.json["totalSeats"] == 700  # as it is now
        assert change(client, key, totalSeats=601).status_code == 422
    assert "Idempotent-Replayed" not in first.headers


@pytest.mark.parametrize("condition", ['"1"', 'W/"0"', '""'])
def test_a_change_at_another_version_is_412(client, db, condition):
    with unchanged(db):
        answer = change(client, {"If-Match": condition}, price=5)
        assert (answer.status_code, answer.headers["ETag"]) == (412, '"0"')
    assert change(client, {"If-Match": '"0"'}, price=5).status_code == 200
    assert change(client, {"If-Match": "*"}, price=6).status_code == 200


# --- --require-if-match ---------------------------------------------------------------


def test_where_a_version_is_required_a_change_without_is_428(make_app, db):
    client = make_app(require_if_match=True, seats=9).test_client()
    star = {"If-Match": "*"}
    body = {"partnerId": "abc-corp", "seats": 2}
    sold = client.post("/reservations", json=body, headers=star)
    place = sold.headers["Location"]
    with unchanged(db):
        for answer in (
            sell(client, 1),
            client.post("/book", json={"eventId": SEEDED, "userId": 1}),
            client.delete(place),
            client.delete(f"{place}?seats=1"),
            change(client, price=5),
        ):
            assert answer.status_code == 428
            assert answer.headers["ETag"] == '"1"'
            assert answer.headers["Cache-Control"] == "no-store"
            assert 'If-Match: "1"' in answer.json["error"]
    assert client.delete(place, headers={"If-Match": '"1"'}).status_code == 204
    assert change(client, star, price=5).status_code == 200


def test_where_a_version_is_required_a_new_event_needs_none(make_app, db):
    client = make_app(require_if_match=True).test_client()
    opened = {"eventId": 7, "totalTickets": 9}
    assert client.post("/initialize", json=opened).status_code == 201
    with unchanged(db):
        assert client.delete("/events/7").status_code == 428
    assert client.delete("/events/7", headers={"If-Match": "*"}).status_code == 204


def test_where_a_version_is_required_a_replay_is_answered_first(make_app, db):
    client = make_app(require_if_match=True).test_client()
    body, key = {"partnerId": "a", "seats": 2}, {"Idempotency-Key": "k"}
    star = {"If-Match": "*"}
    first = client.post("/reservations", json=body, headers=key | star)
    with unchanged(db):
        again = client.post("/reservations", json=body, headers=key)
        assert (again.status_code, again.json) == (201, first.json)


def test_a_server_that_does_not_check_cannot_require_a_version(tmp_path):
    told = programs.run(tmp_path, "--unchecked", "--require-if-match")
    assert (told.returncode, told.stdout) == (2, "")
    assert "--unchecked takes no If-Match" in told.stderr


# --- whose event ----------------------------------------------------------------------


@pytest.fixture
def house(make_app, db):
    """Clients of an open and a strict server; headers of an admin and two users."""
    app = make_app(loopback=True)
    client, headers = app.test_client(), []
    for name in ("root", "ann", "bob"):
        me = {"username": name, "email": f"{name}@example.com", "password": "12345678"}
        assert client.post("/api/v1/auth/register", json=me).status_code == 201
        answer = client.post("/login", json={"username": name, "password": "12345678"})
        headers.append({"Authorization": f"Bearer {answer.json['token']}"})
    strict = make_app(require_login=True).test_client()
    return client, strict, *headers


def statuses(client, at, *who):
    """What a change and then a removal of an event are answered, for each of these."""
    return [
        [change(client, headers, at, price=n).status_code for headers in who]
        for n in (1,)
    ] + [[client.delete(at, headers=headers).status_code for headers in who]]


@pytest.mark.usefixtures("cheap_hashes")
def test_an_event_with_a_maker_is_changed_by_the_maker_and_admins(house):
    client, strict, root, ann, bob = house
    opened = {"eventId": 7, "totalTickets": 9}
    for server in (client, strict):
        for who in (root, ann):
            made = client.post("/initialize", json=opened, headers=ann)
            assert made.status_code == 201
            assert statuses(server, "/events/7", None, bob, who) == [
                [401, 403, 200],
                [401, 403, 204],
            ]


@pytest.mark.usefixtures("cheap_hashes")
def test_an_event_with_bookings_made_by_token_is_changed_by_admins(house):
    client, _, root, ann, bob = house
    client.post("/initialize", json={"eventId": 7, "totalTickets": 9})
    assert change(client, None, "/events/7", price=3).status_code == 200
    order = {"partnerId": "x", "seats": 1}
    sold = client.post("/events/7/reservations", json=order, headers=ann)
    assert sold.status_code == 201
    assert statuses(client, "/events/7", None, ann, bob, root) == [
        [401, 403, 403, 200],
        [401, 403, 403, 204],
    ]


@pytest.mark.usefixtures("cheap_hashes")
def test_an_event_without_a_maker_is_changed_by_anybody_unless_login_is_required(house):
    client, strict, root, ann, _ = house
    opened = {"eventId": 7, "totalTickets": 9}
    client.post("/initialize", json=opened)
    assert statuses(strict, "/events/7", None, ann, root) == [
        [401, 403, 200],
        [401, 403, 204],
    ]
    client.post("/initialize", json=opened)
    assert statuses(client, "/events/7", None) == [[200], [204]]


# --- the rules ------------------------------------------------------------------------


def test_reopened_sales_leave_no_field_in_the_file(client, db, saved):
    before = json.loads(db.read_text())
    change(client, sales="closed")
    change(client, sales="open")
    assert saved()["event"] == before["event"] | {"version": 2}


def test_change_event_is_pure_and_returns_an_unchanged_document_itself():
    event = ticketboss.Event("gig", "Gig", 5, 5, 0)
    document = ticketboss.Document.of(event, {})
    assert document.change({"name": "Gig"}) is document
    after = document.change({"total_seats": 7})
    assert document.event == event
    assert after.event == ticketboss.Event("gig", "Gig", 7, 7, 1)
