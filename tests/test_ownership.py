"""Whose booking it is, and whose event: nobody takes over what others made."""

from __future__ import annotations

import pytest
from furnished import BOOKER, REPORT_FIELDS, error_of, inhabited, unchanged

REMOVED = {200, 204}


# --- bookings made without an account -----------------------------------------------


@pytest.fixture
def open_bookings(make_app, db):
    """Bookings made openly under names that bob, account 3, has; and where they are."""
    client, headers = inhabited(make_app, db)
    opened = {"eventId": 7, "totalTickets": 40}
    made = client.post("/initialize", json=opened, headers=headers["root"])
    assert made.status_code == 201
    for name in ({"userId": 3}, {"userId": "bob"}, {"userEmail": "BOB@example.com"}):
        assert client.post("/book", json={"eventId": 7} | name).status_code == 200
    booking = BOOKER | {"eventId": 7, "email": "bob@example.com", "ticketsReserved": 2}
    number = client.post("/api/v1/booking", json=booking).json["data"]["id"]
    sale = {"partnerId": "bob", "seats": 2}
    assert client.post("/events/7/reservations", json=sale).status_code == 201
    places = [
        f"/events/7/reservations/{r['reservationId']}"
        for r in client.get("/events/7/reservations").json
    ]
    assert len(places) == 5
    strict = make_app(require_login=True).test_client()
    return strict, headers, places, f"/api/v1/booking/{number}"


def test_an_open_booking_is_shown_to_admins_alone(open_bookings):
    client, headers, places, _ = open_bookings
    for name in ("ann", "bob"):
        listed = client.get("/events/7/reservations", headers=headers[name])
        assert (listed.status_code, listed.json) == (200, [])
        for place in places:
            assert client.get(place, headers=headers[name]).status_code == 404
    listed = client.get("/events/7/reservations", headers=headers["root"])
    assert len(listed.json) == 5
    for place in places:
        assert client.get(place, headers=headers["root"]).status_code == 200


def test_an_open_booking_is_cancelled_by_admins_alone(open_bookings, db):
    client, headers, places, booking = open_bookings
    with unchanged(db):
        for name in ("ann", "bob"):
            for place in (*places, booking):
                assert client.delete(place, headers=headers[name]).status_code == 403
            part = client.delete(f"{places[-1]}?seats=1", headers=headers[name])
            assert part.status_code == 403
        for own in ({"userId": 3}, {"userId": "bob"}, {"userEmail": "bob@example.com"}):
            ticket = {"eventId": 7} | own
            answer = client.post("/cancel", json=ticket, headers=headers["bob"])
            assert answer.status_code in {403, 404}
    for place in places:
        if place != places[3]:  # which is the booking
            assert client.delete(place, headers=headers["root"]).status_code == 204
    assert client.delete(booking, headers=headers["root"]).status_code == 200
    assert client.get("/events/7").json["reservationCount"] == 0


@pytest.mark.parametrize(
    "own", [{"userId": 3}, {"userId": "bob"}, {"userEmail": "bob@example.com"}]
)
def test_an_open_booking_never_counts_as_the_accounts_ticket(open_bookings, own):
    client, headers, places, _ = open_bookings
    ticket = {"eventId": 7} | own
    before = client.get("/events/7").json["reservationCount"]
    booked = client.post("/book", json=ticket, headers=headers["bob"])
    assert (booked.status_code, booked.json["status"]) == (200, "booked")
    again = client.post("/book", json=ticket, headers=headers["bob"])
    assert again.status_code == 409
    listed = client.get("/events/7/reservations", headers=headers["bob"]).json
    mine = booked.json["reservationId"]
    assert [r["reservationId"] for r in listed] == [mine]
    gone = client.post("/cancel", json=ticket, headers=headers["bob"])
    assert (gone.status_code, gone.json["reservationId"]) == (200, mine)
    assert client.get("/events/7").json["reservationCount"] == before
    for place in places:
        record = client.get(place, headers=headers["root"]).json
        assert record["status"] == "confirmed"


def test_an_admin_still_cancels_an_open_ticket_by_its_name(open_bookings):
    client, headers, _, _ = open_bookings
    before = client.get("/events/7").json["reservationCount"]
    ticket = {"eventId": 7, "userId": "bob"}
    gone = client.post("/cancel", json=ticket, headers=headers["root"])
    assert gone.status_code == 200
    assert client.get("/events/7").json["reservationCount"] == before - 1


def test_a_booking_of_an_account_is_its_own_under_any_of_its_names(make_app, db):
    client, headers = inhabited(make_app, db, require_login=True)
    opened = {"eventId": 7, "totalTickets": 40}
    assert client.post("/initialize", json=opened, headers=headers["root"])
    ticket = {"eventId": 7, "userId": "bob"}
    assert client.post("/book", json=ticket, headers=headers["bob"]).status_code == 200
    other = {"eventId": 7, "userEmail": "bob@example.com"}
    with unchanged(db):
        assert (
            client.post("/book", json=other, headers=headers["bob"]).status_code == 409
        )
        assert (
            client.post("/cancel", json=other, headers=headers["ann"]).status_code
            == 403
        )
    assert client.post("/cancel", json=other, headers=headers["bob"]).status_code == 200


def test_without_required_login_anybody_can_cancel_an_open_booking(make_app, db):
    client, headers = inhabited(make_app, db)
    ticket = {"eventId": "node-meetup-2025", "userId": "bob"}
    for sent in ({}, headers["bob"]):
        assert client.post("/book", json=ticket).status_code == 200
        assert client.post("/cancel", json=ticket, headers=sent).status_code == 200


# --- events --------------------------------------------------------------------------


@pytest.fixture
def house(make_app, db):
    """A client of an open server with people, and their headers."""
    return inhabited(make_app, db)


def opened(client, headers=None):
    """Open event 7; where it is."""
    body = {"eventId": 7, "totalTickets": 9}
    made = client.post("/initialize", json=body, headers=headers)
    assert made.status_code == 201
    return "/events/7"


def dated(client, headers):
    """Make an event by /api/v1; where it is."""
    body = {"name": "Concert", "date": "2024-12-01", "totalTickets": 5}
    made = client.post("/api/v1/event", json=body, headers=headers)
    assert made.status_code == 201
    return f"/events/{made.json['data']['id']}"


BOUGHT = {
    "a reservation": ("/events/7/reservations", {"partnerId": "ann", "seats": 2}),
    "all seats": ("/events/7/reservations", {"partnerId": "ann", "seats": 9}),
    "a ticket": ("/book", {"eventId": 7, "userId": "ann"}),
    "a booking": ("/api/v1/booking", BOOKER | {"eventId": 7, "ticketsReserved": 2}),
}


@pytest.mark.parametrize("bought", BOUGHT)
def test_an_event_with_bookings_made_by_token_is_removed_by_admins_alone(
    house, db, bought
):
    client, headers = house
    event = opened(client)
    path, body = BOUGHT[bought]
    sold = client.post(path, json=body, headers=headers["ann"])
    assert sold.status_code in {200, 201}
    with unchanged(db):
        nobody = client.delete(event)
        assert nobody.status_code == 401
        assert nobody.headers["WWW-Authenticate"].startswith("Bearer")
        assert error_of(nobody)
        for name in ("ann", "bob"):
            assert client.delete(event, headers=headers[name]).status_code == 403
    assert client.delete(event, headers=headers["root"]).status_code == 204
    assert client.get(event).status_code == 404


def test_an_event_with_an_order_waiting_by_token_is_removed_by_admins_alone(house, db):
    client, headers = house
    event = opened(client)
    sale = {"partnerId": "x", "seats": 9, "waitlist": True}
    assert client.post(f"{event}/reservations", json=sale).status_code == 201
    waits = client.post(f"{event}/reservations", json=sale, headers=headers["ann"])
    assert waits.status_code == 202
    with unchanged(db):
        assert client.delete(event).status_code == 401
        assert client.delete(event, headers=headers["bob"]).status_code == 403
    assert client.delete(event, headers=headers["root"]).status_code == 204


@pytest.mark.parametrize("sold", [False, True])
def test_an_event_without_an_owner_is_removed_by_anybody(house, sold):
    client, headers = house
    for sent in ({}, headers["bob"], headers["root"]):
        event = opened(client)
        if sold:
            sale = {"partnerId": "x", "seats": 2}
            assert client.post(f"{event}/reservations", json=sale).status_code == 201
        assert client.delete(event, headers=sent).status_code == 204


@pytest.mark.parametrize("sold", [False, True])
def test_an_event_opened_with_a_token_is_removed_by_its_maker_or_an_admin(
    house, db, sold
):
    client, headers = house
    event = opened(client, headers["ann"])
    if sold:
        sale = {"partnerId": "x", "seats": 2}
        sent = headers["bob"]
        made = client.post(f"{event}/reservations", json=sale, headers=sent)
        assert made.status_code == 201
    with unchanged(db):
        assert client.delete(event).status_code == 401
        assert client.delete(event, headers=headers["bob"]).status_code == 403
        stale = {"If-Match": '"999"'}  # the owner comes first: no version is shown
        refused = client.delete(event, headers=stale)
        assert (refused.status_code, refused.headers.get("ETag")) == (401, None)
    assert client.delete(event, headers=headers["ann"]).status_code == 204
    event = opened(client, headers["ann"])
    assert client.delete(event, headers=headers["root"]).status_code == 204


def test_a_dated_event_is_removed_by_its_maker_or_an_admin_by_either_path(house, db):
    client, headers = house
    event = dated(client, headers["root"])
    with unchanged(db):
        for path in (event, f"/api/v1{event.replace('events', 'event')}"):
            assert client.delete(path).status_code == 401
            assert client.delete(path, headers=headers["ann"]).status_code == 403
    assert client.delete(event, headers=headers["root"]).status_code == 204


def test_no_answer_about_an_event_shows_its_maker(house):
    client, headers = house
    event = opened(client, headers["ann"])
    shown = client.get(event).json
    other = client.get("/events/node-meetup-2025").json
    assert shown.keys() == other.keys()
    assert client.get(f"{event}/report").json.keys() == set(REPORT_FIELDS)


def test_where_login_is_required_an_event_without_an_owner_is_removed_by_admins(
    make_app, house, db
):
    client, headers = house
    event = opened(client)
    strict = make_app(require_login=True).test_client()
    with unchanged(db):
        assert strict.delete(event).status_code == 401
        assert strict.delete(event, headers=headers["ann"]).status_code == 403
    assert strict.delete(event, headers=headers["root"]).status_code == 204
