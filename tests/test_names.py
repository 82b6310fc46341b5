"""One user has one name, however it is typed; two users are never one."""

from __future__ import annotations

import json
import re
import unicodedata
from urllib.parse import quote

import pytest
from furnished import (
    BOOKER,
    PASSWORD,
    SEEDED,
    error_of,
    inhabited,
    log_in,
    register,
    unchanged,
)

pytestmark = pytest.mark.usefixtures("cheap_hashes")

COMPOSED = "Jos\u00e9"
DECOMPOSED = "Jose\u0301"
TWO_FORMS = pytest.mark.parametrize(
    ("one", "other"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)], ids=ascii
)
TWO_PEOPLE = [  # each pair was one person, when letters were replaced
    ("wei\u00df@example.com", "weiss@example.com"),
    ("\ufb01fi@example.com", "fifi@example.com"),
    ("\uff41nn@example.com", "ann@example.com"),
    ("\u017fam@example.com", "sam@example.com"),
    ("x\u00b2@example.com", "x2@example.com"),
]
ONE_PERSON = [
    ("jos\u00e9@example.com", "jose\u0301@example.com"),
    ("JOS\u00c9@example.com", "jose\u0301@EXAMPLE.com"),
    ("WEI\u00df@example.com", "wei\u00df@Example.COM"),
]


def record(name, **more):
    """A confirmed ticket as it is in the file."""
    return {
        "reservationId": name,
        "partnerId": "guest",
        "seats": 1,
        "status": "confirmed",
        "ts": "2026-01-01T00:00:00.000Z",
        "eventVersionAtReservation": 1,
    } | more


def event(event_id, free, total=5, version=1):
    """An event as it is in the file."""
    return {
        "eventId": event_id,
        "name": "An Evening",
        "totalSeats": total,
        "availableSeats": free,
        "version": version,
    }


def seeded_file(**more):
    """A file with the seeded event and whatever comes with it."""
    return {"event": event(SEEDED, 500, 500, 0), "reservations": {}} | more


def ask(client, path, **body):
    """The status of a booking request."""
    return client.post(path, json=body).status_code


# --- one user ------------------------------------------------------------------------


@TWO_FORMS
def test_a_user_has_one_ticket_in_either_form_of_their_id(client, db, one, other):
    assert ask(client, "/book", eventId=SEEDED, userId=one) == 200
    with unchanged(db):
        assert ask(client, "/book", eventId=SEEDED, userId=other) == 409
    assert ask(client, "/cancel", eventId=SEEDED, userId=other) == 200
    assert client.get("/event").json["reservationCount"] == 0


@TWO_FORMS
def test_a_waiting_user_has_one_place_in_either_form_of_their_id(
    make_app, db, one, other
):
    client = make_app(seats=1).test_client()
    assert ask(client, "/book", eventId=SEEDED, userId="first") == 200
    assert ask(client, "/book", eventId=SEEDED, userId=one) == 200
    with unchanged(db):
        again = client.post("/book", json={"eventId": SEEDED, "userId": other})
    assert (again.status_code, again.json["position"]) == (200, 1)


@pytest.mark.parametrize(("one", "other"), ONE_PERSON, ids=ascii)
def test_an_address_in_either_form_and_case_is_one_person(client, db, one, other):
    for first, second in ((one, other), (other, one)):
        assert ask(client, "/book", eventId=SEEDED, userEmail=first) == 200
        with unchanged(db):
            assert ask(client, "/book", eventId=SEEDED, userEmail=second) == 409
        assert ask(client, "/cancel", eventId=SEEDED, userEmail=second) == 200


@pytest.mark.parametrize(("one", "other"), TWO_PEOPLE, ids=ascii)
def test_two_addresses_are_two_people(client, db, one, other):
    for first, second in ((one, other), (other, one)):
        assert ask(client, "/book", eventId=SEEDED, userEmail=first) == 200
        with unchanged(db):
            assert ask(client, "/cancel", eventId=SEEDED, userEmail=second) == 404
        assert ask(client, "/book", eventId=SEEDED, userEmail=second) == 200
        assert client.get("/event").json["reservationCount"] == 2
        assert ask(client, "/cancel", eventId=SEEDED, userEmail=first) == 200
        assert ask(client, "/cancel", eventId=SEEDED, userEmail=second) == 200


@pytest.mark.parametrize(
    ("one", "other"), [("wei\u00df", "weiss"), ("\uff41nn", "ann"), ("Ann", "ann")]
)
def test_two_user_ids_are_two_people(client, one, other):
    assert ask(client, "/book", eventId=SEEDED, userId=one) == 200
    assert ask(client, "/cancel", eventId=SEEDED, userId=other) == 404
    assert ask(client, "/book", eventId=SEEDED, userId=other) == 200


# --- events and partners -----------------------------------------------------------


@TWO_FORMS
def test_an_event_is_one_in_either_form_of_its_id(client, db, saved, one, other):
    opened = client.post("/initialize", json={"eventId": one, "totalTickets": 5})
    assert (opened.status_code, opened.json["eventId"]) == (201, COMPOSED)
    assert COMPOSED in saved()["events"]
    with unchanged(db):
        assert ask(client, "/initialize", eventId=other, totalTickets=5) == 409
        at = quote(other)
        for path in (f"/events/{at}", f"/status/{at}", f"/events/{at}/report"):
            assert client.get(path).json["eventId"] == COMPOSED
        assert client.get(f"/events/{at}/reservations").status_code == 200
        assert client.get(f"/api/v1/booking/status/{at}").status_code == 200
    sale = {"partnerId": "abc-corp", "seats": 2}
    sold = client.post(f"/events/{at}/reservations", json=sale)
    assert sold.status_code == 201
    assert client.get(sold.headers["Location"]).status_code == 200
    booking = BOOKER | {"eventId": other, "ticketsReserved": 1}
    assert client.post("/api/v1/booking", json=booking).status_code == 201
    assert ask(client, "/book", eventId=other, userId="ann") == 200
    assert client.get(f"/events/{quote(one)}").json["reservationCount"] == 4
    assert client.delete(sold.headers["Location"]).status_code == 204
    assert ask(client, "/cancel", eventId=one, userId="ann") == 200
    assert client.delete(f"/events/{at}").status_code == 204
    assert client.get(f"/events/{quote(one)}").status_code == 404


@TWO_FORMS
def test_a_key_is_one_in_either_form_of_the_events_id(client, db, one, other):
    assert ask(client, "/initialize", eventId=one, totalTickets=5) == 201
    sale, key = {"partnerId": "abc-corp", "seats": 2}, {"Idempotency-Key": "k"}
    path = f"/events/{quote(one)}/reservations"
    first = client.post(path, json=sale, headers=key)
    assert first.status_code == 201
    with unchanged(db):
        path = f"/events/{quote(other)}/reservations"
        again = client.post(path, json=sale, headers=key)
    assert (again.status_code, again.json) == (201, first.json)
    assert again.headers["Idempotent-Replayed"] == "true"


@TWO_FORMS
def test_a_partner_is_one_in_either_form(client, one, other):
    sale = {"partnerId": one, "seats": 2}
    sold = client.post("/reservations", json=sale).json["reservationId"]
    for asked in (one, other):
        found = client.get("/reservations", query_string={"partnerId": asked}).json
        assert [r["reservationId"] for r in found] == [sold]
        assert found[0]["partnerId"] == COMPOSED


def test_new_text_is_kept_composed(make_app, db):
    client, _ = inhabited(make_app, db)
    name = f"{DECOMPOSED} in concert"
    assert ask(client, "/initialize", eventId=4, name=name, totalTickets=5) == 201
    booking = {
        "eventId": 4,
        "firstName": DECOMPOSED,
        "lastName": "Mun\u0303oz",
        "email": f"{DECOMPOSED}@example.com",
        "ticketsReserved": 1,
    }
    told = client.post("/api/v1/booking", json=booking).json["data"]
    assert (told["firstName"], told["lastName"]) == (COMPOSED, "Mu\u00f1oz")
    assert told["email"] == f"{COMPOSED}@example.com"
    assert ask(client, "/book", eventId=4, userId=DECOMPOSED) == 200
    mail = f"zoe\u0308@{'x'}.org"
    assert ask(client, "/book", eventId=4, userEmail=mail) == 200
    assert register(client, DECOMPOSED, email=mail).json["data"] == {
        "id": 4,
        "username": COMPOSED,
        "email": "zo\u00eb@x.org",
    }
    text = db.read_text()
    assert text == unicodedata.normalize("NFC", text)
    assert not re.search(r"\\u0303|\\u0301|\\u0308", text)


@pytest.mark.parametrize(
    "invisible", "\u200b \u200e \u200f \u2060 \ufeff \u00ad \u061c \u180e".split()
)
def test_an_event_id_with_an_invisible_character_is_refused(client, db, invisible):
    with unchanged(db):
        for event_id in (f"talk{invisible}", f"{invisible}talk", f"ta{invisible}lk"):
            body = {"eventId": event_id, "totalTickets": 5}
            answer = client.post("/initialize", json=body)
            assert answer.status_code == 400
            assert "eventId" in error_of(answer)
            assert invisible not in error_of(answer)


# --- old files -----------------------------------------------------------------------


def test_an_old_event_with_a_decomposed_id_is_found_in_either_form(make_app, db):
    old = {DECOMPOSED: {"event": event(DECOMPOSED, 5), "reservations": {}}}
    text = json.dumps(seeded_file(events=old))
    db.write_text(text)
    client = make_app().test_client()
    for asked in (DECOMPOSED, COMPOSED):
        told = client.get(f"/events/{quote(asked)}").json
        assert (told["eventId"], told["availableSeats"]) == (DECOMPOSED, 5)
        assert ask(client, "/initialize", eventId=asked, totalTickets=5) == 409
    assert db.read_text() == text
    for user, asked in enumerate((DECOMPOSED, COMPOSED)):
        assert ask(client, "/book", eventId=asked, userId=user) == 200
    assert client.get(f"/events/{quote(COMPOSED)}").json["reservationCount"] == 2
    assert len(client.get("/events").json) == 2


def test_two_old_events_that_look_the_same_are_each_found_exactly(make_app, db):
    old = {
        DECOMPOSED: {"event": event(DECOMPOSED, 4, 4), "reservations": {}},
        COMPOSED: {"event": event(COMPOSED, 7, 7), "reservations": {}},
    }
    db.write_text(json.dumps(seeded_file(events=old)))
    client = make_app().test_client()
    for asked, seats in ((DECOMPOSED, 4), (COMPOSED, 7)):
        told = client.get(f"/events/{quote(asked)}").json
        assert (told["eventId"], told["totalSeats"]) == (asked, seats)
        assert ask(client, "/book", eventId=asked, userId="ann") == 200
        told = client.get(f"/events/{quote(asked)}").json
        assert told["reservationCount"] == 1


def test_an_old_event_with_an_invisible_character_is_found_exactly(make_app, db):
    hidden = "talk\u200b"
    old = {hidden: {"event": event(hidden, 5), "reservations": {}}}
    db.write_text(json.dumps(seeded_file(events=old)))
    client = make_app().test_client()
    assert client.get(f"/events/{quote(hidden)}").json["eventId"] == hidden
    assert client.get("/events/talk").status_code == 404
    assert client.delete(f"/events/{quote(hidden)}").status_code == 204


def test_an_old_partner_with_a_decomposed_name_is_found_in_either_form(make_app, db):
    old = {"r": record("r", partnerId=DECOMPOSED)}
    db.write_text(json.dumps({"event": event(SEEDED, 4), "reservations": old}))
    client = make_app().test_client()
    for asked in (DECOMPOSED, COMPOSED):
        found = client.get("/reservations", query_string={"partnerId": asked}).json
        assert [r["partnerId"] for r in found] == [DECOMPOSED]


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        (f"id:{DECOMPOSED}", {"userId": COMPOSED}),
        (f"id:{DECOMPOSED}", {"userId": DECOMPOSED}),
        ("email:jos\u00e9@example.com", {"userEmail": "Jose\u0301@example.com"}),
        ("email:weiss@example.com", {"userEmail": "weiss@example.com"}),
        ("email:weiss@example.com", {"userEmail": "Wei\u00df@example.com"}),
        ("email:ann@example.com", {"userEmail": "\uff41nn@example.com"}),
    ],
    ids=ascii,
)
def test_an_old_booking_is_found_by_the_name_it_was_made_with(
    make_app, db, stored, name
):
    old = {"r": record("r", origin={"user": stored})}
    db.write_text(json.dumps({"event": event(SEEDED, 4), "reservations": old}))
    client = make_app().test_client()
    with unchanged(db):
        assert ask(client, "/book", eventId=SEEDED, **name) == 409
    assert ask(client, "/cancel", eventId=SEEDED, **name) == 200
    assert client.get("/event").json["reservationCount"] == 0


# --- accounts ------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), TWO_PEOPLE, ids=ascii)
def test_two_addresses_are_two_accounts(make_app, db, one, other):
    client = make_app().test_client()
    assert register(client, "one", email=one).status_code == 201
    assert register(client, "two", email=other).status_code == 201
    headers = [log_in(client, email=address) for address in (one, other)]
    me = [
        client.get("/api/v1/auth/me", headers=each).json["data"]["username"]
        for each in headers
    ]
    assert me == ["one", "two"]
    ticket = {"eventId": SEEDED, "userEmail": one}
    assert client.post("/book", json=ticket, headers=headers[0]).status_code == 200
    with unchanged(db):
        stolen = client.post("/cancel", json=ticket, headers=headers[1])
        assert stolen.status_code == 403
        mine = client.post(
            "/cancel", json=ticket | {"userEmail": other}, headers=headers[1]
        )
        assert mine.status_code == 404


@pytest.mark.parametrize(("one", "other"), ONE_PERSON, ids=ascii)
def test_an_address_in_either_form_and_case_is_one_account(make_app, db, one, other):
    client = make_app().test_client()
    assert register(client, "one", email=one).status_code == 201
    with unchanged(db):
        assert register(client, "two", email=other).status_code == 409
    assert log_in(client, email=other)
    shouted = other.upper().replace("SS", "\u1e9e")  # not by two letters for one
    assert log_in(client, email=shouted)


@pytest.mark.parametrize(
    ("one", "other"),
    [("strasse", "Stra\u00dfe"), ("\uff41nna", "Anna"), (COMPOSED, DECOMPOSED)],
    ids=ascii,
)
def test_a_username_that_looks_like_anothers_is_taken(make_app, db, one, other):
    client = make_app().test_client()
    assert register(client, one, email="one@example.com").status_code == 201
    with unchanged(db):
        assert register(client, other, email="two@example.com").status_code == 409


def test_an_old_account_with_a_decomposed_address_is_logged_in(make_app, db, saved):
    client, _ = inhabited(make_app, db)
    file = saved()
    file["accounts"]["members"]["2"]["email"] = f"{DECOMPOSED}@example.com"
    db.write_text(json.dumps(file))
    for asked in (COMPOSED, DECOMPOSED, COMPOSED.upper()):
        assert log_in(client, email=f"{asked}@example.com")
    taken = register(client, "eve", email=f"{COMPOSED}@example.com")
    assert taken.status_code == 409


# --- logging in ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        {"email": "Ann@EXAMPLE.com"},
        {"username": "ANN"},
        {"userId": 2},
        {"userId": "2"},
        {"userId": 2.0},
    ],
)
def test_each_field_of_a_login_finds_the_account_with_that_value(make_app, db, name):
    client, _ = inhabited(make_app, db)
    me = client.get("/api/v1/auth/me", headers=log_in(client, **name))
    assert me.json["data"]["username"] == "ann"


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ({"email": 2}, 400),
        ({"email": "2"}, 400),
        ({"email": "ann"}, 400),
        ({"email": ["ann@example.com"]}, 400),
        ({"username": 2}, 400),
        ({"username": 2.0}, 400),
        ({"username": "2"}, 401),
        ({"username": "ann@example.com"}, 401),
        ({"userId": "ann@example.com"}, 401),
        ({"userId": 2.5}, 400),
    ],
)
@pytest.mark.parametrize("path", ["/login", "/api/v1/auth/login"])
def test_a_field_of_a_login_finds_no_account_by_another_field(
    make_app, db, path, name, status
):
    client, _ = inhabited(make_app, db)
    with unchanged(db):
        answer = client.post(path, json=name | {"password": PASSWORD})
    assert answer.status_code == (400 if path.startswith("/api") else status)
    assert error_of(answer)


# --- one name ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "last", [{}, {"lastName": ""}, {"lastName": "  "}, {"lastName": None}]
)
def test_a_person_with_one_name_may_book(make_app, db, last):
    client = make_app(seats=3).test_client()
    body = {"eventId": SEEDED, "firstName": "Suharto", "email": "s@example.com"}
    for tickets, status, became in ((3, 201, "completed"), (2, 200, "waitlisted")):
        answer = client.post(
            "/api/v1/booking",
            json=body | last | {"ticketsReserved": tickets},
            headers={"Idempotency-Key": f"k{tickets}"},
        )
        assert (answer.status_code, answer.json["error"]) == (status, False)
        told = answer.json["data"]
        assert told["firstName"] == "Suharto"
        assert told.get("lastName") in {None, ""}
        assert told["bookingStatus"] == became
    with unchanged(db):
        again = client.post(
            "/api/v1/booking",
            json=body | last | {"ticketsReserved": 2},
            headers={"Idempotency-Key": "k2"},
        )
        assert again.json == answer.json
        assert again.headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("last", [7, True, ["A"], {}, "a\nb", "x" * 201])
def test_a_last_name_that_is_not_plain_text_is_400(client, db, last):
    with unchanged(db):
        body = BOOKER | {"eventId": SEEDED, "ticketsReserved": 1, "lastName": last}
        answer = client.post("/api/v1/booking", json=body)
        assert answer.status_code == 400
        assert "lastName" in error_of(answer)


@pytest.mark.parametrize("first", [{}, {"firstName": ""}, {"firstName": None}])
def test_a_booking_without_a_first_name_is_400(client, db, first):
    with unchanged(db):
        body = {"eventId": SEEDED, "ticketsReserved": 1, "email": "a@example.com"}
        answer = client.post("/api/v1/booking", json=body | first)
        assert answer.status_code == 400
        assert "firstName" in error_of(answer)
