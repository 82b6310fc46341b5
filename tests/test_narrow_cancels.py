"""A cancel that was meant to give back a part never gives back more."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
from urllib.parse import urlsplit

import pytest
from furnished import error_of, unchanged

PARTNER = ["cancel", "cancel in an event"]
REMOVALS = ["removal", "removal of a dated event"]
BOOKING = ["cancelled booking"]


def free(client, change):
    """How many seats of the change's event are free."""
    return client.get(f"/events/{change.event_id}").json["availableSeats"]


# --- the partner API ---------------------------------------------------------------


@pytest.mark.parametrize("name", PARTNER)
def test_seats_in_the_body_count_as_in_the_query(house, name):
    client, _, todo = house
    cancel, before = todo[name], free(house[0], todo[name])
    answer = client.delete(cancel.path, json={"seats": 2})
    assert (answer.status_code, answer.data) == (204, b"")
    record = client.get(cancel.path).json
    assert (record["status"], record["seats"]) == ("confirmed", 7)
    assert record["seatsReturned"] == 2
    assert free(client, cancel) == before + 2


def test_seats_in_the_body_count_whatever_its_content_type_says(house):
    client, _, todo = house
    place = todo["cancel"].path
    for kind in (None, "text/plain", "application/x-www-form-urlencoded"):
        answer = client.delete(place, data=b'{"seats": 2}', content_type=kind)
        assert answer.status_code == 204
    assert client.get(place).json["seats"] == 3


@pytest.mark.parametrize("name", PARTNER)
def test_the_same_number_in_query_and_body_is_given_back_once(house, name):
    client, _, todo = house
    place = todo[name].path
    assert client.delete(f"{place}?seats=2", json={"seats": 2}).status_code == 204
    assert client.get(place).json["seats"] == 7


@pytest.mark.parametrize("name", PARTNER)
def test_different_numbers_in_query_and_body_are_400(house, db, name):
    client, _, todo = house
    with unchanged(db):
        for query, body in ((2, 4), (4, 2), (9, 1), (1, 9)):
            path = f"{todo[name].path}?seats={query}"
            answer = client.delete(path, json={"seats": body})
            assert answer.status_code == 400
            assert "seats" in error_of(answer)


@pytest.mark.parametrize("name", PARTNER)
def test_an_unusable_number_of_seats_in_the_body_is_400(house, db, name):
    client, _, todo = house
    with unchanged(db):
        for seats in ("2", 0, -1, 2.5, True, 10, 2**63, [2], {"seats": 2}, ""):
            answer = client.delete(todo[name].path, json={"seats": seats})
            assert answer.status_code == 400, seats
            assert "seat" in error_of(answer)


@pytest.mark.parametrize("name", [*PARTNER, *BOOKING])
def test_a_number_that_is_null_cancels_nothing(house, db, name):
    client, _, todo = house
    number = "ticketsToCancel" if name in BOOKING else "seats"
    with unchanged(db):
        answer = client.delete(todo[name].path, json={number: None})  # NaN, in a page
        assert answer.status_code == 400
        assert number in error_of(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"rubbish",
        b"[2]",
        b"2",
        b'"seats=2"',
        b"seats=2",
        b'{"seats":2,"seats":4}',
        b'{"seats":NaN}',
        b'{"seats":2} x',
        b"\xff",
        b'{"seats":2}' + b" " * 65_536,
    ],
    ids=lambda body: ascii(body[:24]),
)
def test_a_body_that_is_not_a_json_object_cancels_nothing(house, db, body):
    client, _, todo = house
    with unchanged(db):
        for name in (*PARTNER, *BOOKING):
            answer = client.delete(todo[name].path, data=body)
            assert answer.status_code == (413 if len(body) > 65_536 else 400)
            assert error_of(answer)


@pytest.mark.parametrize("arrived", [b"", b"{}", b'{"reason": "ill"}'])
def test_a_truncated_body_cancels_nothing(house, db, arrived):
    client, root, todo = house
    lost = {  # as gunicorn gives it, where a client hangs up
        "CONTENT_LENGTH": str(len(arrived) + 11),
        "wsgi.input": io.BytesIO(arrived),
        "wsgi.input_terminated": True,
    }
    with unchanged(db):
        for name in (*PARTNER, *BOOKING, *REMOVALS):
            answer = todo[name].send(client, headers=root, environ_overrides=lost)
            assert answer.status_code == 400
            assert "incomplete" in error_of(answer)


@pytest.mark.parametrize("name", PARTNER)
@pytest.mark.parametrize("body", [None, b"", b"{}", b'{"reason": "ill"}'])
def test_a_cancel_without_a_number_cancels_all_seats(house, name, body):
    client, _, todo = house
    place = todo[name].path
    answer = client.delete(place, data=body, content_type="application/json")
    assert (answer.status_code, answer.data) == (204, b"")
    assert client.get(place).json["status"] == "cancelled"


def test_a_number_in_the_body_is_given_back_by_a_real_server(serve):
    server = serve()
    sale = {"partnerId": "abc-corp", "seats": 5}
    place = server.ask("POST", "/reservations", sale)[2]["Location"]
    assert server.ask("DELETE", place, {"seats": 2})[0] == 204
    assert server.ask("GET", place)[1]["seats"] == 3


# --- /api/v1 -------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", [int, str])
def test_tickets_in_the_query_count_as_in_the_body(house, spelled):
    client, _, todo = house
    cancel = todo["cancelled booking"]
    before = free(client, cancel)
    answer = client.delete(f"{cancel.path}?ticketsToCancel=2")
    assert answer.status_code == 200
    assert answer.json == {"message": "Booking cancelled successfully.", "error": False}
    assert free(client, cancel) == before + 2
    both = {"ticketsToCancel": spelled(3)}
    answer = client.delete(f"{cancel.path}?ticketsToCancel=3", json=both)
    assert answer.status_code == 200
    assert free(client, cancel) == before + 5


@pytest.mark.parametrize("spelled", [int, str])
def test_different_numbers_of_tickets_in_query_and_body_are_400(house, db, spelled):
    client, _, todo = house
    path = todo["cancelled booking"].path
    with unchanged(db):
        for query, body in ((2, 4), (4, 2), (9, 1)):
            sent = {"ticketsToCancel": spelled(body)}
            answer = client.delete(f"{path}?ticketsToCancel={query}", json=sent)
            assert answer.status_code == 400
            assert "ticketsToCancel" in error_of(answer)


def test_an_unusable_number_of_tickets_in_the_query_is_400(house, db):
    client, _, todo = house
    with unchanged(db):
        for number in ("", "0", "-1", "x", "1.5", "10", "all", "%D9%A3"):
            path = f"{todo['cancelled booking'].path}?ticketsToCancel={number}"
            answer = client.delete(path)
            assert answer.status_code == 400, number
            assert "ticketsToCancel" in error_of(answer)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/xml"])
@pytest.mark.parametrize("length", [{}, {"Content-Length": "0"}])
def test_a_content_type_without_a_body_cancels_no_booking(house, db, kind, length):
    client, _, todo = house
    path = todo["cancelled booking"].path
    headers = {"Content-Type": kind} | length
    with unchanged(db):
        answer = client.delete(path, headers=headers)
        assert answer.status_code == 400
        text = error_of(answer)
        assert "Content-Type" in text
        assert "{}" in text  # the body that cancels all
    answer = client.delete(path, headers={"Content-Type": kind}, data=b"{}")
    assert answer.status_code == 200
    assert client.delete(path).status_code == 404


def test_without_content_type_and_body_all_of_a_booking_is_cancelled(house):
    client, _, todo = house
    cancel = todo["cancelled booking"]
    before = free(client, cancel)
    assert client.delete(cancel.path).status_code == 200
    assert free(client, cancel) == before + 9


def test_a_content_type_without_a_body_still_cancels_for_partners_and_admins(house):
    client, root, todo = house
    kind = {"Content-Type": "application/json"}
    for name in (*PARTNER, "removal of a dated event", "removal"):
        answer = todo[name].send(client, headers=root | kind)
        assert answer.status_code in {200, 204}


def test_a_cancel_without_a_content_length_cancels_nothing_by_mistake(serve):
    server = serve()
    assert (
        server.ask("POST", "/initialize", {"eventId": 3, "totalTickets": 10})[0] == 201
    )
    body = {"eventId": 3, "firstName": "A", "lastName": "B", "email": "a@example.com"}
    made = server.ask("POST", "/api/v1/booking", body | {"ticketsReserved": 10})[1]
    host, port = urlsplit(server.url).hostname, urlsplit(server.url).port
    with socket.create_connection((host, port), timeout=20) as wire:
        wire.sendall(  # as Node's http.request does
            f"DELETE /api/v1/booking/{made['data']['id']} HTTP/1.1\r\n"
            f"Host: {host}:{port}\r\nContent-Type: application/json\r\n\r\n".encode()
            + b'{"ticketsToCancel":2}'
        )
        answer = http.client.HTTPResponse(wire, method="DELETE")
        answer.begin()
        told = json.loads(answer.read())
    assert answer.status == 400
    assert "Content-Type" in told["message"]
    assert server.ask("GET", "/status/3")[1]["bookedTickets"] == 10


# --- every DELETE --------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PARTNER, *BOOKING, *REMOVALS])
def test_an_unknown_parameter_of_a_delete_is_400_that_names_it(house, db, name):
    client, root, todo = house
    unknown = {
        "seat": "2",
        "Seats": "2",
        "seats[]": "2",
        "ticketsTocancel": "2",
        "count": "2",
        "limit": "1",
        "eventId": "8",
        "n": "",
    }
    if name not in PARTNER:
        unknown["seats"] = "2"
    if name not in BOOKING:
        unknown["ticketsToCancel"] = "2"
    with unchanged(db):
        for parameter, value in unknown.items():
            answer = todo[name].send(
                client, headers=root, query_string={parameter: value}
            )
            assert answer.status_code == 400, parameter
            assert parameter in error_of(answer)


@pytest.mark.parametrize("name", PARTNER)
def test_an_unknown_parameter_beside_a_known_one_is_400(house, db, name):
    client, _, todo = house
    with unchanged(db):
        answer = client.delete(f"{todo[name].path}?seats=2&notify=no")
        assert answer.status_code == 400
        assert "notify" in error_of(answer)


@pytest.mark.parametrize("name", [*PARTNER, *BOOKING])
def test_a_number_that_comes_twice_is_400(house, db, name):
    client, _, todo = house
    parameter = "ticketsToCancel" if name in BOOKING else "seats"
    with unchanged(db):
        for values in ("24", "42", "22"):
            query = "&".join(f"{parameter}={value}" for value in values)
            answer = client.delete(f"{todo[name].path}?{query}")
            assert answer.status_code == 400
            assert parameter in error_of(answer)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/reservations", "limit=1&limit=2"),
        ("/reservations", "status=confirmed&status=cancelled"),
        ("/reservations", "partnerId=a&partnerId=abc-corp"),
        ("/events/7/reservations", "limit=1&limit=1"),
        ("/report", "format=json&format=csv"),
        ("/events/7/report", "format=csv&format=json"),
    ],
)
def test_a_parameter_that_comes_twice_narrows_no_list_by_its_first(house, path, query):
    client, _, _ = house
    answer = client.get(f"{path}?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in error_of(answer)


@pytest.mark.parametrize("name", [*PARTNER, *BOOKING, *REMOVALS])
def test_a_text_that_names_a_parameter_stays_one_line(house, db, name):
    client, root, todo = house
    with unchanged(db):
        answer = todo[name].send(
            client, headers=root, query_string={"a\r\nb\x1b[2J\u202e": "1"}
        )
        assert answer.status_code == 400
        assert re.fullmatch(r"[^\x00-\x1f\u202e]+", error_of(answer))
