"""A number is whole by its value and not by its spelling: 3.0 is 3, and 3.5 is none."""

from __future__ import annotations

import re

import pytest
from furnished import BOOKER, SEEDED, error_of, unchanged


@pytest.mark.parametrize(
    ("spelled", "seats"),
    [("3.0", 3), ("3.000", 3), ("3e0", 3), ("1e1", 10), ("10", 10)],
)
@pytest.mark.parametrize("at", ["", "/events/7"])
def test_whole_seats_are_sold_however_they_are_spelled(
    house, saved, at, spelled, seats
):
    client, _, _ = house
    body = f'{{"partnerId": "a", "seats": {spelled}}}'
    answer = client.post(f"{at}/reservations", data=body)
    assert answer.status_code == 201
    assert type(answer.json["seats"]) is int
    assert answer.json["seats"] == seats
    top = saved()["events"]["7"] if at else saved()
    kept = top["reservations"][answer.json["reservationId"]]
    assert (type(kept["seats"]), kept["seats"]) == (int, seats)


@pytest.mark.parametrize(
    ("spelled", "text"),
    [
        ("3.5", "seats must be an integer"),
        ("0.1", "seats must be an integer"),
        ("1e-1", "seats must be an integer"),
        ("11.0", "seats must be between 1 and 10"),
        ("0.0", "seats must be between 1 and 10"),
        ("-0.0", "seats must be between 1 and 10"),
        ("-3.0", "seats must be between 1 and 10"),
        ("1e300", "seats must be between 1 and 10"),
        ('"3.0"', "seats must be an integer"),
        ("true", "seats must be an integer"),
    ],
)
def test_an_unusable_number_of_seats_is_400_with_the_documented_text(
    house, db, spelled, text
):
    client, _, _ = house
    with unchanged(db):
        body = f'{{"partnerId": "a", "seats": {spelled}}}'
        answer = client.post("/reservations", data=body)
        assert (answer.status_code, answer.json) == (400, {"error": text})


def test_a_whole_number_opens_an_event_and_names_it(client, saved):
    body = '{"eventId": 4.0, "totalTickets": 1e2, "price": 250.0}'
    opened = client.post("/initialize", data=body)
    assert opened.status_code == 201
    for field, value in (("eventId", 4), ("id", 4), ("totalTickets", 100)):
        assert (type(opened.json[field]), opened.json[field]) == (int, value)
    assert opened.headers["Location"] == "/events/4"
    assert saved()["events"]["4"]["event"]["price"] == 250
    assert client.get("/events/4").json["totalTickets"] == 100
    body = '{"eventId": 4, "totalTickets": 100}'
    assert client.post("/initialize", data=body).status_code == 409


def test_a_user_and_an_event_are_found_by_a_whole_number(client, db):
    opened = {"eventId": 4, "totalTickets": 5}
    assert client.post("/initialize", json=opened).status_code == 201
    first = client.post("/book", data='{"eventId": 4.0, "userId": 1.0}')
    assert first.status_code == 200
    assert (type(first.json["eventId"]), first.json["eventId"]) == (int, 4)
    with unchanged(db):
        again = client.post("/book", json={"eventId": "4", "userId": "1"})
        assert again.status_code == 409
    gone = client.post("/cancel", data='{"eventId": 4e0, "userId": 1}')
    assert gone.status_code == 200


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/initialize", "eventId"),
        ("/book", "eventId"),
        ("/cancel", "eventId"),
        ("/book", "userId"),
        ("/cancel", "userId"),
        ("/api/v1/booking", "eventId"),
        ("/login", "userId"),
    ],
)
def test_a_number_that_is_not_an_id_is_400_with_a_true_text(house, db, path, field):
    client, _, _ = house
    others = {
        "/initialize": '"totalTickets": 5',
        "/book": '"userId": 1' if field == "eventId" else '"eventId": 7',
        "/cancel": '"userId": 1' if field == "eventId" else '"eventId": 7',
        "/login": '"password": "12345678"',
        "/api/v1/booking": '"firstName": "A", "lastName": "B", "email": "a@b.co", '
        '"ticketsReserved": 1',
    }
    with unchanged(db):
        for number in ("1.5", "1e300", "-1e300", "9007199254740993.0"):
            body = f'{{"{field}": {number}, {others[path]}}}'
            answer = client.post(path, data=body)
            assert answer.status_code == 400
            text = error_of(answer)
            assert field in text
            assert "required" not in text  # it was sent
            assert re.search("whole|integer|between", text)


def test_whole_tickets_are_booked_and_cancelled_however_they_are_spelled(client):
    body = {"eventId": SEEDED, **BOOKER, "ticketsReserved": 5.0}
    booked = client.post("/api/v1/booking", json=body)
    assert booked.status_code == 201
    assert booked.json["data"]["ticketsReserved"] == 5
    number = booked.json["data"]["id"]
    part = f'{{"bookingId": {number}.0, "ticketsToCancel": 2.0}}'
    assert client.delete(f"/api/v1/booking/{number}", data=part).status_code == 200
    assert client.get("/event").json["reservationCount"] == 3


def test_a_whole_number_of_seats_is_given_back_however_it_is_spelled(house):
    client, _, todo = house
    place = todo["cancel"].path
    assert client.delete(place, data=b'{"seats": 2.0}').status_code == 204
    assert client.get(place).json["seats"] == 7
    assert client.delete(f"{place}?seats=2", data=b'{"seats": 2.0}').status_code == 204
    assert client.get(place).json["seats"] == 5


@pytest.mark.parametrize("tickets", ["1.5", "0.0", "true", '"1.5"', "-1.0", "1e300"])
def test_an_unusable_number_of_tickets_is_400(house, db, tickets):
    client, _, todo = house
    with unchanged(db):
        booking = (
            '{"eventId": 7, "firstName": "A", "lastName": "B", "email": "a@b.co", '
            f'"ticketsReserved": {tickets}}}'
        )
        answer = client.post("/api/v1/booking", data=booking)
        assert answer.status_code == 400
        assert "ticketsReserved" in error_of(answer)
        body = f'{{"ticketsToCancel": {tickets}}}'
        answer = client.delete(todo["cancelled booking"].path, data=body)
        assert answer.status_code == 400
        assert "ticketsToCancel" in error_of(answer)


def test_a_dated_event_takes_whole_numbers_in_any_spelling(house):
    client, root, _ = house
    body = (
        '{"name": "Concert", "date": "2024-12-01", "totalTickets": 5.0, '
        '"availableTickets": 5}'
    )
    made = client.post("/api/v1/event", data=body, headers=root)
    assert made.status_code == 201
    assert (
        made.json["data"]["totalTickets"],
        made.json["data"]["availableTickets"],
    ) == (
        5,
        5,
    )
