"""Each dialect refuses in its own words, and names its own fields."""

from __future__ import annotations

import re

import pytest
from furnished import BOOKER, PASSWORD, error_of, inhabited, unchanged

# --- how many are held ---------------------------------------------------------------


def test_a_refused_return_names_the_number_of_seats_that_can_be_returned(house, db):
    client, _, todo = house
    for name in ("cancel", "cancel in an event"):
        place = todo[name].path
        with unchanged(db):
            answer = client.delete(f"{place}?seats=10")
        assert (answer.status_code, answer.json) == (
            400,
            {"error": "You hold 9 seats, so you can return at most 9."},
        )
        assert client.delete(f"{place}?seats=8").status_code == 204
        with unchanged(db):
            answer = client.delete(f"{place}?seats=2")
        assert (answer.status_code, answer.json) == (
            400,
            {"error": "You hold 1 seat, so you can return at most 1."},
        )


def test_a_refused_cancel_names_the_number_of_tickets_that_can_be_cancelled(house, db):
    client, _, todo = house
    path = todo["cancelled booking"].path
    with unchanged(db):
        answer = client.delete(path, json={"ticketsToCancel": 10})
        assert (answer.status_code, answer.headers["X-Attempts"]) == (400, "1")
        text = error_of(answer)
        assert "You hold 9 tickets" in text
        assert re.search("ticketsToCancel.*9", text)
        assert "seat" not in text
    assert client.delete(path, json={"ticketsToCancel": 8}).status_code == 200
    with unchanged(db):
        for sent in (
            {"json": {"ticketsToCancel": 2}},
            {"json": {"ticketsToCancel": "2"}},
        ):
            answer = client.delete(path, **sent)
            assert answer.status_code == 400
            text = error_of(answer)
            assert text == "You hold 1 ticket: ticketsToCancel must be 1"
        none = client.delete(path, json={"ticketsToCancel": 0})
        assert none.status_code == 400
        assert "ticketsToCancel" in error_of(none)
        assert "between 1 and 1." not in f"{error_of(none)}."


# --- what is not there ---------------------------------------------------------------


def test_a_booking_that_is_cancelled_already_is_called_a_booking(house, db):
    client, _, todo = house
    path = todo["cancelled booking"].path
    assert client.delete(path).status_code == 200
    with unchanged(db):
        for gone in (path, "/api/v1/booking/12", "/api/v1/booking/x"):
            for body in (None, {"ticketsToCancel": 1}):
                answer = client.delete(gone, json=body)
                assert answer.status_code == 404
                assert error_of(answer) == "Booking not found or already cancelled"


@pytest.mark.parametrize("required", [False, True])
def test_a_refusal_calls_somebody_elses_booking_a_booking(make_app, db, required):
    client, headers = inhabited(make_app, db, require_login=required)
    opened = {"eventId": 7, "totalTickets": 9}
    made = client.post("/initialize", json=opened, headers=headers["root"])
    assert made.status_code == 201
    body = BOOKER | {"eventId": 7, "ticketsReserved": 5}
    booked = client.post("/api/v1/booking", json=body, headers=headers["ann"])
    number = booked.json["data"]["id"]
    ticket = {"eventId": 7, "userId": "ann"}
    assert client.post("/book", json=ticket, headers=headers["ann"]).status_code == 200
    sale = {"partnerId": "ann", "seats": 1}
    sold = client.post("/reservations", json=sale, headers=headers["ann"])
    with unchanged(db):
        for answer in (
            client.delete(f"/api/v1/booking/{number}", headers=headers["bob"]),
            client.post("/cancel", json=ticket, headers=headers["bob"]),
        ):
            assert answer.status_code == 403
            assert "booking" in error_of(answer)
            assert "eservation" not in error_of(answer)
        answer = client.delete(sold.headers["Location"], headers=headers["bob"])
        assert answer.status_code == 403
        assert "reservation" in error_of(answer)


# --- bodies that are none ------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/auth/register"),
        ("POST", "/api/v1/auth/login"),
        ("POST", "/api/v1/booking"),
        ("POST", "/api/v1/event"),
        ("DELETE", "/api/v1/booking/1"),
        ("POST", "/initialize"),
        ("POST", "/book"),
        ("POST", "/cancel"),
        ("POST", "/login"),
    ],
)
def test_the_example_body_in_a_refusal_is_of_the_same_dialect(house, db, method, path):
    client, root, _ = house
    with unchanged(db):
        for body in (b"{", b"[]", b"null", b'{"a":1,"a":2}', b"\xff", b"x"):
            answer = client.open(path, method=method, data=body, headers=root)
            assert answer.status_code == 400
            assert not re.search("partnerId|seats", error_of(answer))


# --- passwords and logins ------------------------------------------------------------


def test_the_refusal_of_a_password_states_its_true_bounds(house, db):
    client, _, _ = house
    body = {"username": "eve", "email": "eve@example.com"}
    with unchanged(db):
        for password in ({}, {"password": "short"}, {"password": 12345678}):
            answer = client.post("/api/v1/auth/register", json=body | password)
            assert answer.status_code == 400
            assert error_of(answer) == (
                "password must have 8 characters or more (at most 1024 bytes)."
            )
        for path in ("/login", "/api/v1/auth/login"):
            for password in ({}, {"password": ""}, {"password": 1}):
                me = {"email": "ann@example.com"}
                answer = client.post(path, json=me | password)
                assert answer.status_code == 400
                assert "password" in error_of(answer)
                assert not re.search(r"\b1 char|8 char", error_of(answer))


@pytest.mark.parametrize("path", ["/login", "/api/v1/auth/login"])
def test_a_login_by_e_mail_speaks_of_an_e_mail(house, db, path):
    client, _, _ = house
    with unchanged(db):
        for me in (
            {"email": "ann@example.com", "password": "not this one"},
            {"email": "nobody@example.com", "password": PASSWORD},
        ):
            answer = client.post(path, json=me)
            assert answer.status_code == 401
            assert error_of(answer) == "Wrong e-mail or password"


# --- nobody else's words -------------------------------------------------------------


def test_no_refusal_of_v1_speaks_of_partners_or_seats(house, db):
    client, root, todo = house
    booking = BOOKER | {"eventId": 7, "ticketsReserved": 1}
    path = todo["cancelled booking"].path
    with unchanged(db):
        for method, at, body in (
            ("POST", "/api/v1/booking", booking | {"ticketsReserved": 0}),
            ("POST", "/api/v1/booking", booking | {"ticketsReserved": "x"}),
            ("POST", "/api/v1/booking", booking | {"ticketsReserved": 49}),
            ("POST", "/api/v1/booking", booking | {"eventId": "none"}),
            ("POST", "/api/v1/booking", booking | {"email": "x"}),
            ("DELETE", path, {"ticketsToCancel": "x"}),
            ("DELETE", path, {"ticketsToCancel": 10}),
            ("DELETE", path, {"bookingId": 1}),
            ("DELETE", "/api/v1/booking/1", None),
            ("POST", "/api/v1/event", {"name": "x", "date": "2024-12-01"}),
            ("DELETE", "/api/v1/event/none", None),
        ):
            answer = client.open(at, method=method, json=body, headers=root)
            assert 400 <= answer.status_code < 500
            assert not re.search("(?i)seats|partner|reservation ", error_of(answer))
