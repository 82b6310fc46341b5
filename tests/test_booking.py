"""The booking API: users book one ticket each, wait their turn, and cancel.

Every request of it, in the words of both families (an id, an e-mail); reports that a
spreadsheet may open; and that hundreds of users at once are served in order, from the
one inventory that partners sell from too.
"""

from __future__ import annotations

import csv
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from furnished import REPORT_FIELDS

from ticketboss import (
    Document,
    Event,
    Reservation,
    Transactions,
    open_store,
)

SEEDED = "node-meetup-2025"

# The texts for each form of a user id: booked, waiting, cancelled, not found.
EMAIL = (
    "Ticket booked successfully",
    "Event sold out, you're added to the waiting list",
    "Your booking has been cancelled successfully",
    "You didn't book this event",
)
ID = ("Ticket booked", "Added to waiting list", "Booking canceled", "Booking not found")
FAMILIES = pytest.mark.parametrize(
    ("ann", "bob", "words"),
    [
        pytest.param(
            {"userEmail": "a@x.org"}, {"userEmail": "b@x.org"}, EMAIL, id="email"
        ),
        pytest.param({"userId": 1}, {"userId": 2}, ID, id="number"),
        pytest.param({"userId": "ann"}, {"userId": "bob"}, ID, id="text"),
    ],
)


def ask(client, method, path, body=None, **headers):
    """The status, and the JSON (None where there is none)."""
    answer = client.open(path, method=method, json=body, headers=headers)
    return answer.status_code, answer.get_json(silent=True)


def failure(text):
    """How the booking API words an error."""
    return {"error": text, "message": text}


def make(client, event_id, tickets, **more):
    """A new event."""
    body = {"eventId": event_id, "totalTickets": tickets, **more}
    assert ask(client, "POST", "/initialize", body)[0] == 201
    return event_id


def book(client, event_id, **user):
    """The status and the JSON of /book."""
    return ask(client, "POST", "/book", {"eventId": event_id, **user})


def cancel(client, event_id, **user):
    """The status and the JSON of /cancel."""
    return ask(client, "POST", "/cancel", {"eventId": event_id, **user})


def version(client, event_id):
    """How many times an event has changed."""
    return ask(client, "GET", f"/status/{event_id}")[1]["version"]


def numbers(client, event_id):
    """Tickets free and booked, and how many wait."""
    told = ask(client, "GET", f"/status/{event_id}")[1]
    return told["availableTickets"], told["bookedTickets"], told["waitingListCount"]


def holders(client, event_id, status):
    """The users with a ticket or a place in line, in order of arrival."""
    path = f"/events/{event_id}/reservations?status={status}"
    return [r["partnerId"] for r in ask(client, "GET", path)[1]]


# --- events ---------------------------------------------------------------------------


def test_an_event_created_by_name_gets_a_number_and_is_answered_in_full(client, saved):
    seeded = saved()["event"]
    answer = client.post(
        "/initialize", json={"name": "Tech Conference 2025", "totalTickets": 100}
    )
    event = {
        "eventId": 1,
        "name": "Tech Conference 2025",
        "totalTickets": 100,
        "availableTickets": 100,
    }
    assert answer.status_code == 201
    assert answer.json == {
        "message": "Event initialized",
        "id": 1,
        **event,
        "event": event,
    }
    assert answer.headers["Location"] == "/events/1"
    assert answer.headers["ETag"] == '"0"'
    assert answer.headers["X-Attempts"] == "1"
    assert saved()["event"] == seeded
    assert saved()["events"]["1"]["event"]["name"] == "Tech Conference 2025"


@pytest.mark.parametrize("event_id", [1, 42, "gig", "node meetup", "7"])
def test_an_event_created_by_id_needs_no_name(client, event_id):
    body = {"eventId": event_id, "totalTickets": 100}
    status, told = ask(client, "POST", "/initialize", body)
    assert status == 201
    assert told["message"] == "Event initialized"
    assert told["id"] == told["eventId"] == told["event"]["eventId"] == event_id
    assert type(told["id"]) is type(event_id)
    assert isinstance(told["name"], str)
    assert told["name"]
    assert told["event"] == {
        key: told[key]
        for key in ("eventId", "name", "totalTickets", "availableTickets")
    }


def test_an_event_created_by_id_takes_the_name_that_is_sent(client):
    make(client, "gig", 3, name="  The gig  ")
    assert ask(client, "GET", "/status/gig")[1]["name"] == "The gig"


def test_event_numbers_go_up_from_1_and_a_deleted_one_is_not_reused(client):
    def numbered():
        body = {"name": "Another", "totalTickets": 5}
        return ask(client, "POST", "/initialize", body)[1]["eventId"]

    assert [numbered(), numbered(), numbered()] == [1, 2, 3]
    assert ask(client, "DELETE", "/events/3")[0] == 204
    assert ask(client, "DELETE", "/events/1")[0] == 204
    assert [numbered(), numbered()] == [4, 5]


@pytest.mark.parametrize(
    ("there", "again"),
    [(1, 1), (1, "1"), ("1", 1), ("gig", "gig"), ("gig", " gig "), (None, SEEDED)],
)
def test_an_id_that_is_taken_is_refused(client, saved, there, again):
    if there is not None:
        make(client, there, 10, name="The first")
    before = saved()
    status, told = ask(
        client,
        "POST",
        "/initialize",
        {"eventId": again, "name": "The second", "totalTickets": 5},
    )
    assert status == 409
    assert told["error"] == told["message"]
    assert saved() == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"totalTickets": 5}, "name"),
        ({"name": "", "totalTickets": 5}, "name"),
        ({"name": 5, "totalTickets": 5}, "name"),
        ({"name": "x" * 201, "totalTickets": 5}, "name"),
        ({"name": "a\nb", "totalTickets": 5}, "name"),
        ({"name": "x"}, "totalTickets"),
        ({"name": "x", "totalTickets": 0}, "totalTickets"),
        ({"name": "x", "totalTickets": -1}, "totalTickets"),
        ({"name": "x", "totalTickets": 1_000_001}, "totalTickets"),
        ({"name": "x", "totalTickets": "5"}, "totalTickets"),
        ({"name": "x", "totalTickets": 5.5}, "totalTickets"),
        ({"name": "x", "totalTickets": True}, "totalTickets"),
        ({"name": "x", "totalTickets": None}, "totalTickets"),
        ({"name": "x", "totalTickets": 5, "price": -1}, "price"),
        ({"name": "x", "totalTickets": 5, "price": 9.99}, "price"),
        ({"name": "x", "totalTickets": 5, "price": "10"}, "price"),
        ({"eventId": True, "totalTickets": 5}, "eventId"),
        ({"eventId": 1.5, "totalTickets": 5}, "eventId"),
        ({"eventId": [1], "totalTickets": 5}, "eventId"),
        ({"eventId": {}, "totalTickets": 5}, "eventId"),
        ({"eventId": "", "totalTickets": 5}, "eventId"),
        ({"eventId": "  ", "totalTickets": 5}, "eventId"),
        ({"eventId": "a\tb", "totalTickets": 5}, "eventId"),
        ({"eventId": "x" * 201, "totalTickets": 5}, "eventId"),
    ],
)
def test_an_impossible_event_is_refused_with_the_name_of_the_field(
    client, saved, body, field
):
    before = saved()
    status, told = ask(client, "POST", "/initialize", body)
    assert status == 400
    assert field in told["error"]
    assert told["error"] == told["message"]
    assert saved() == before


@pytest.mark.parametrize(
    "event_id",
    [
        0,
        -1,
        2**53 - 1,
        2**53,
        2**63,
        2**64,
        10**30,
        "0",
        "01",
        "1.0",
        "-1",
        "null",
        "x" * 200,
        "../../etc/passwd",
        "/",
        "a/b",
        "a//b",
        ".",
        "..",
        "...",
        "C:\\temp",
        "%2e%2e",
        "%2F",
        "a?b",
        "a#b",
        "a&b=c",
        "a;b",
        "a+b",
        "é ü",
        "日本",
        "🎫",
        "'; --",
        "<script>",
        "__proto__",
        "reservations",
        "report",
        "=1+1",
        "9" * 200,
        "\N{ARABIC-INDIC DIGIT THREE}",
    ],
)
def test_an_odd_id_works_everywhere_or_is_refused_clearly(client, saved, event_id):
    before = saved()
    status, told = ask(
        client, "POST", "/initialize", {"eventId": event_id, "totalTickets": 1}
    )
    if status != 201:
        assert status == 400
        assert "eventId" in told["error"]
        assert saved() == before
        return
    assert told["eventId"] == told["id"] == event_id
    at = quote(str(event_id), safe="")
    assert book(client, event_id, userId=1)[1]["eventId"] == event_id
    assert book(client, str(event_id), userId=2)[1]["position"] == 1
    assert numbers(client, at) == (0, 1, 1)
    assert cancel(client, event_id, userId=1)[0] == 200
    assert ask(client, "GET", f"/events/{at}")[1]["id"] == event_id
    assert ask(client, "GET", f"/events/{at}/report")[1]["ticketsSold"] == 1
    assert holders(client, at, "confirmed") == ["2"]
    assert ask(client, "GET", f"/api/v1/booking/status/{at}")[0] == 200
    assert ask(client, "DELETE", f"/events/{at}") == (204, None)
    assert saved()["event"] == before["event"]
    assert ask(client, "GET", "/_health") == (200, {"ok": True})


@pytest.mark.parametrize("taken", [2**53 - 1, str(2**53 - 1), str(2**64), "9" * 200])
def test_the_next_event_number_is_always_below_2_to_the_53(client, make_app, taken):
    ask(client, "POST", "/initialize", {"eventId": taken, "totalTickets": 1})
    status, told = ask(client, "POST", "/initialize", {"name": "x", "totalTickets": 1})
    assert status == 201
    assert 1 <= told["eventId"] < 2**53
    assert ask(make_app().test_client(), "GET", f"/status/{told['eventId']}")[0] == 200


@pytest.mark.usefixtures("cheap_hashes")
@pytest.mark.parametrize("event_id", [0, "0", "", ".", "accounts", "event", "null"])
def test_no_event_replaces_the_accounts(make_app, saved, event_id):
    client = make_app().test_client()
    ann = {"username": "ann", "email": "ann@x.org", "password": "correct horse"}
    assert ask(client, "POST", "/api/v1/auth/register", ann)[0] == 201
    accounts = saved()["accounts"]
    ask(client, "POST", "/initialize", {"eventId": event_id, "totalTickets": 1})
    ask(client, "DELETE", f"/events/{event_id}")
    assert saved()["accounts"] == accounts


def test_all_events_and_each_of_them_can_be_read(client):
    make(client, 1, 10, name="One", price=250)
    make(client, "two", 20, name="Two")
    book(client, 1, userId="ann")
    one = {
        "eventId": 1,
        "id": 1,
        "name": "One",
        "totalSeats": 10,
        "availableSeats": 9,
        "reservationCount": 1,
        "version": 1,
        "totalTickets": 10,
        "availableTickets": 9,
        "price": 250,
    }
    status, told = ask(client, "GET", "/events")
    assert status == 200
    assert [e["eventId"] for e in told] == [SEEDED, 1, "two"]
    assert told[1] == one == ask(client, "GET", "/events/1")[1]
    assert told[0]["totalTickets"] == told[0]["availableTickets"] == 500
    assert told[2] == ask(client, "GET", "/events/two/")[1]


def test_an_unchanged_event_is_304(client):
    make(client, 1, 10)
    etag = client.get("/events/1").headers["ETag"]
    assert etag == '"0"'
    assert client.get("/events/1", headers={"If-None-Match": etag}).status_code == 304
    book(client, 1, userId=1)
    again = client.get("/events/1", headers={"If-None-Match": etag})
    assert again.status_code == 200
    assert again.headers["ETag"] == '"1"'


def test_a_status_shows_the_event_in_both_spellings(client):
    make(client, 1, 2, name="One")
    for user in range(5):
        book(client, 1, userId=user)
    cancel(client, 1, userId=3)
    assert ask(client, "GET", "/status/1") == (
        200,
        {
            "id": 1,
            "eventId": 1,
            "name": "One",
            "totalTickets": 2,
            "total_tickets": 2,
            "availableTickets": 0,
            "available_tickets": 0,
            "bookedTickets": 2,
            "waitingListCount": 2,
            "version": 6,
        },
    )


def test_the_seeded_event_is_listed_with_the_others(client):
    assert ask(client, "GET", f"/status/{SEEDED}") == (
        200,
        {
            "id": SEEDED,
            "eventId": SEEDED,
            "name": "Node.js Meet-up",
            "totalTickets": 500,
            "total_tickets": 500,
            "availableTickets": 500,
            "available_tickets": 500,
            "bookedTickets": 0,
            "waitingListCount": 0,
            "version": 0,
        },
    )
    assert book(client, SEEDED, userId=1)[1]["message"] == "Ticket booked"
    assert ask(client, "GET", "/event")[1]["reservationCount"] == 1


def test_a_deleted_event_is_gone_with_all_its_bookings(client, saved):
    make(client, 1, 1)
    make(client, 2, 1)
    ticket = book(client, 1, userId="ann")[1]["reservationId"]
    book(client, 1, userId="bob")
    other = saved()["events"]["2"]
    answer = client.delete("/events/1")
    assert (answer.status_code, answer.data) == (204, b"")
    assert answer.headers["X-Attempts"] == "1"
    for method, path in [
        ("GET", "/status/1"),
        ("GET", "/events/1"),
        ("DELETE", "/events/1"),
        ("GET", "/events/1/report"),
    ]:
        assert ask(client, method, path) == (404, failure("Event not found"))
    for path in ("/events/1/reservations", f"/events/1/reservations/{ticket}"):
        assert ask(client, "GET", path) == (404, {"error": "Event not found"})
    assert book(client, 1, userId="cyd") == (404, failure("Event not found"))
    assert cancel(client, 1, userId="ann") == (404, failure("Event not found"))
    assert [e["id"] for e in ask(client, "GET", "/events")[1]] == [SEEDED, 2]
    assert [e["eventId"] for e in ask(client, "GET", "/report")[1]["events"]] == [
        SEEDED,
        2,
    ]
    assert saved()["events"]["2"] == other
    assert "ann" not in json.dumps(saved())


def test_a_recreated_event_is_empty_and_matches_no_old_version(client):
    make(client, 1, 1)
    book(client, 1, userId="ann")
    before = version(client, 1)
    ask(client, "DELETE", "/events/1")
    make(client, "1", 3)
    assert numbers(client, 1) == (3, 0, 0)
    assert version(client, 1) > before + 1
    stale = ask(
        client,
        "POST",
        "/book",
        {"eventId": 1, "userId": 2},
        **{"If-Match": f'"{before}"'},
    )
    assert stale[0] == 412
    assert book(client, 1, userId="ann")[1]["status"] == "booked"


def test_the_seeded_event_cannot_be_deleted(client, saved):
    before = saved()
    status, told = ask(client, "DELETE", f"/events/{SEEDED}")
    assert status == 409
    assert told["error"] == told["message"]
    assert saved() == before


# --- bookings -------------------------------------------------------------------------


@FAMILIES
def test_each_form_of_a_user_id_is_answered_in_its_own_words(client, ann, bob, words):
    booked, waiting, cancelled, missing = words
    make(client, 1, 1)
    first = book(client, 1, **ann)[1]
    assert first == {
        "message": booked,
        "status": "booked",
        "eventId": 1,
        "reservationId": first["reservationId"],
    }
    status, second = book(client, 1, **bob)
    assert (status, second) == (
        200,
        {
            "message": waiting,
            "status": "waitlisted",
            "eventId": 1,
            "position": 1,
            "reservationId": second["reservationId"],
        },
    )
    assert first["reservationId"] != second["reservationId"]
    assert cancel(client, 1, **ann) == (
        200,
        {
            "message": cancelled,
            "status": "cancelled",
            "eventId": 1,
            "reservationId": first["reservationId"],
        },
    )
    assert cancel(client, 1, **ann) == (404, failure(missing))
    assert book(client, 1, **bob) == (409, failure("You already booked this event"))
    assert numbers(client, 1) == (0, 1, 0)
    assert cancel(client, 1, **bob)[1]["message"] == cancelled
    assert numbers(client, 1) == (1, 0, 0)


@FAMILIES
def test_a_user_who_has_booked_is_not_sold_another_ticket(
    client, saved, ann, bob, words
):
    make(client, 1, 5)
    book(client, 1, **ann)
    before = saved()
    assert book(client, 1, **ann) == (409, failure("You already booked this event"))
    assert saved() == before
    assert book(client, 1, **bob)[1]["message"] == words[0]


@FAMILIES
def test_a_waiting_user_who_books_again_keeps_their_place(
    client, saved, ann, bob, words
):
    make(client, 1, 1)
    book(client, 1, userId="somebody")
    book(client, 1, **ann)
    place = book(client, 1, **bob)
    before = saved()
    assert place[1]["position"] == 2
    assert book(client, 1, **bob) == place
    assert place[1]["message"] == words[1]
    assert saved() == before
    cancel(client, 1, **ann)
    assert book(client, 1, **bob) == (200, {**place[1], "position": 1})
    assert numbers(client, 1) == (0, 1, 1)


@FAMILIES
def test_a_waiting_user_who_cancels_leaves_the_list(client, ann, bob, words):
    make(client, 1, 1)
    book(client, 1, userId="somebody")
    book(client, 1, **ann)
    book(client, 1, **bob)
    status, told = cancel(client, 1, **ann)
    assert (status, told["message"], told["status"]) == (200, words[2], "cancelled")
    assert numbers(client, 1) == (0, 1, 1)
    assert cancel(client, 1, **ann) == (404, failure(words[3]))
    assert book(client, 1, **bob)[1]["position"] == 1
    assert book(client, 1, **ann)[1]["position"] == 2


@FAMILIES
def test_a_user_who_cancelled_may_book_again(client, ann, bob, words):
    make(client, 1, 1)
    first = book(client, 1, **ann)[1]
    cancel(client, 1, **ann)
    again = book(client, 1, **ann)[1]
    assert (again["message"], again["status"]) == (words[0], "booked")
    assert again["reservationId"] != first["reservationId"]
    assert cancel(client, 1, **bob) == (404, failure(words[3]))
    assert numbers(client, 1) == (0, 1, 0)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ({"userId": 1}, {"userId": "1"}),
        ({"userId": "1"}, {"userId": 1}),
        ({"userId": "ann"}, {"userId": " ann "}),
        ({"userId": 0}, {"userId": "0"}),
        ({"userEmail": "ann@x.org"}, {"userEmail": "ANN@X.org"}),
        ({"userEmail": "Straße@x.org"}, {"userEmail": " STRAßE@X.org"}),
    ],
)
def test_one_user_written_in_two_ways_has_one_ticket(client, one, same):
    make(client, 1, 5)
    assert book(client, 1, **one)[0] == 200
    assert book(client, 1, **same) == (409, failure("You already booked this event"))
    assert cancel(client, 1, **same)[0] == 200
    assert numbers(client, 1) == (5, 0, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"userId": 1}, {"userId": "01"}),
        ({"userId": "ann"}, {"userId": "bob"}),
        ({"userId": "a@x.org"}, {"userEmail": "a@x.org"}),
        ({"userId": "email:a@x.org"}, {"userEmail": "a@x.org"}),
        ({"userEmail": "a@x.org"}, {"userEmail": "a@x.com"}),
        ({"userEmail": "Straße@x.org"}, {"userEmail": "STRASSE@x.org"}),
    ],
)
def test_two_users_have_a_ticket_each(client, one, other):
    make(client, 1, 5)
    assert book(client, 1, **one)[0] == 200
    assert cancel(client, 1, **other)[0] == 404
    assert book(client, 1, **other)[0] == 200
    assert numbers(client, 1) == (3, 2, 0)


def test_a_user_may_book_every_event_once(client):
    make(client, 1, 1)
    make(client, 2, 1)
    assert book(client, 1, userId=1)[0] == book(client, 2, userId=1)[0] == 200
    assert cancel(client, 1, userId=1)[0] == 200
    assert numbers(client, 1) == (1, 0, 0)
    assert numbers(client, 2) == (0, 1, 0)


@pytest.mark.parametrize("asked", [1, "1", " 1 "])
@pytest.mark.parametrize("made", [1, "1"])
def test_answers_show_an_id_in_the_type_it_was_created_with(client, made, asked):
    make(client, made, 1)
    shown = [
        book(client, asked, userId=1)[1],
        book(client, asked, userId=2)[1],
        book(client, asked, userId=2)[1],
        cancel(client, asked, userId=1)[1],
        ask(client, "GET", "/status/1")[1],
        ask(client, "GET", "/events/1")[1],
        ask(client, "GET", "/events/1/report")[1],
    ]
    assert [told["eventId"] for told in shown] == [made] * len(shown)


@pytest.mark.parametrize("path", ["/book", "/cancel"])
@pytest.mark.parametrize(
    ("user", "says"),
    [
        ({}, "userId"),
        ({"userId": None}, "userId"),
        ({"userId": ""}, "userId"),
        ({"userId": "  "}, "userId"),
        ({"userId": True}, "userId"),
        ({"userId": 1.5}, "userId"),
        ({"userId": [1]}, "userId"),
        ({"userId": {}}, "userId"),
        ({"userId": "x" * 201}, "userId"),
        ({"userId": "a\x00b"}, "userId"),
        ({"userId": 10**30}, "userId"),
        ({"userId": 1, "userEmail": "a@x.org"}, "userEmail"),
        ({"userEmail": ""}, "Invalid email format"),
        ({"userEmail": "ann"}, "Invalid email format"),
        ({"userEmail": "ann@"}, "Invalid email format"),
        ({"userEmail": "@x.org"}, "Invalid email format"),
        ({"userEmail": "a b@x.org"}, "Invalid email format"),
        ({"userEmail": "a@b@x.org"}, "Invalid email format"),
        ({"userEmail": 5}, "Invalid email format"),
        ({"userEmail": False}, "Invalid email format"),
        ({"userEmail": "a@x.org\nBcc: b@x.org"}, "Invalid email format"),
        ({"userEmail": "a" * 200 + "@x.org"}, "mail"),
    ],
)
def test_an_unusable_user_is_refused_with_the_name_of_the_field(
    client, saved, path, user, says
):
    make(client, 1, 1)
    before = saved()
    status, told = ask(client, "POST", path, {"eventId": 1, **user})
    assert status == 400
    assert says in told["error"]
    assert told["error"] == told["message"]
    assert saved() == before


@pytest.mark.parametrize("path", ["/book", "/cancel"])
@pytest.mark.parametrize("event_id", [None, True, 1.5, "", " ", [], 10**30])
def test_an_unusable_event_id_is_refused_with_the_name_of_the_field(
    client, saved, path, event_id
):
    before = saved()
    status, told = ask(client, "POST", path, {"eventId": event_id, "userId": 1})
    assert status == 400
    assert "eventId" in told["error"]
    assert saved() == before


@pytest.mark.parametrize("user", [{"userId": 1}, {"userEmail": "a@x.org"}])
@pytest.mark.parametrize("event_id", [99, "99", "none", "../db.json", -1, 0])
def test_an_unknown_event_is_not_found(client, saved, event_id, user):
    before = saved()
    missing = (404, failure("Event not found"))
    assert book(client, event_id, **user) == missing
    assert cancel(client, event_id, **user) == missing
    assert saved() == before


@pytest.mark.parametrize("path", ["/status/{}", "/events/{}", "/events/{}/report"])
@pytest.mark.parametrize("event_id", ["99", "none", "%2e%2e", "0", "%00", "x" * 500])
def test_an_unknown_event_has_no_status_and_no_report(client, path, event_id):
    assert ask(client, "GET", path.format(event_id)) == (
        404,
        failure("Event not found"),
    )


def test_every_change_raises_the_version_by_one_and_nothing_else_does(client):
    make(client, 1, 2)
    steps = [
        (book, 1, 1),
        (book, 2, 2),
        (book, 3, 3),
        (book, 4, 4),  # 3 and 4 wait
        (book, 3, 4),
        (book, 1, 4),
        (cancel, 9, 4),  # nothing to do, or refused
        (cancel, 1, 5),  # and 3 has the ticket
        (cancel, 4, 6),
        (cancel, 4, 6),  # 4 leaves the list
        (cancel, 2, 7),
        (cancel, 3, 8),
        (book, 1, 9),
    ]
    for do, user, after in steps:
        do(client, 1, userId=user)
        assert version(client, 1) == after
    assert version(client, SEEDED) == 0


def test_every_booking_change_has_the_number_of_attempts_in_its_answer(client):
    answers = [
        client.post("/initialize", json={"eventId": 1, "totalTickets": 1}),
        client.post("/book", json={"eventId": 1, "userId": 1}),
        client.post("/book", json={"eventId": 1, "userId": 2}),
        client.post("/cancel", json={"eventId": 1, "userId": 1}),
        client.delete("/events/1"),
    ]
    assert [a.headers["X-Attempts"] for a in answers] == ["1"] * 5


def test_a_booking_is_made_only_at_the_version_that_the_request_names(client, saved):
    make(client, 1, 5)
    body = {"eventId": 1, "userId": "ann"}
    book(client, 1, userId="bob")
    before = saved()
    late = client.post("/book", json=body, headers={"If-Match": '"0"'})
    assert (late.status_code, late.headers["ETag"]) == (412, '"1"')
    assert saved() == before
    sold = client.post("/book", json=body, headers={"If-Match": '"1"'})
    assert (sold.status_code, sold.headers["ETag"]) == (200, '"2"')


@FAMILIES
def test_a_booking_under_a_key_is_made_once(client, saved, ann, bob, words):
    make(client, 1, 1)
    key = {"Idempotency-Key": "try-1"}
    first = ask(client, "POST", "/book", {"eventId": 1, **ann}, **key)
    waits = ask(client, "POST", "/book", {"eventId": 1, **bob}, **key)
    assert (first[1]["message"], waits[1]["message"]) == words[:2]
    cancel(client, 1, **ann)
    before = saved()
    for user, said in ((ann, first), (bob, waits)):
        again = client.post("/book", json={"eventId": 1, **user}, headers=key)
        assert (again.status_code, again.json) == said
        assert again.headers["Idempotent-Replayed"] == "true"
    assert saved() == before


@pytest.mark.parametrize("stored", ["mailto:ann@b.co", "email:ann@b.co"])
def test_a_repeated_cancel_finds_nothing_whatever_it_names(client, db, saved, stored):
    make(client, 1, 5)
    user = {"userEmail": "ann@b.co"}
    book(client, 1, **user)
    db.write_text(db.read_text().replace("mailto:ann@b.co", stored))
    headers = {"Idempotency-Key": "gone", "If-Match": '"1"'}
    body = {"eventId": 1, **user}
    assert client.post("/cancel", json=body, headers=headers).status_code == 200
    book(client, 1, **user)
    before = saved()
    again = client.post("/cancel", json=body, headers=headers)
    assert again.status_code == 404
    assert saved() == before


# --- one inventory --------------------------------------------------------------------


@pytest.mark.parametrize("event_id", [SEEDED, "gig"])
def test_a_seat_sold_in_one_dialect_is_gone_in_the_others(make_app, event_id):
    client = make_app(seats=4).test_client()
    if event_id != SEEDED:
        make(client, event_id, 4)
    here = f"/events/{event_id}/reservations"
    order = {"partnerId": "abc-corp", "seats": 2}
    ticket = book(client, event_id, userId="ann")[1]["reservationId"]
    assert ask(client, "GET", f"{here}/{ticket}")[1]["status"] == "confirmed"
    status, sold = ask(client, "POST", here, order)
    assert status == 201
    assert ask(client, "POST", here, order) == (409, {"error": "Not enough seats left"})
    assert book(client, event_id, userEmail="b@x.org")[1]["status"] == "booked"
    assert book(client, event_id, userId="cyd")[1]["position"] == 1
    status, told = ask(client, "POST", here, {**order, "waitlist": True})
    assert (status, told["position"]) == (202, 2)
    assert book(client, event_id, userId="dan")[1]["position"] == 3
    assert numbers(client, event_id) == (0, 4, 3)

    # Two seats come back: one to cyd; the other is too few for the partner's two, so
    # it is kept for them, and dan still waits.
    assert ask(client, "DELETE", f"{here}/{sold['reservationId']}")[0] == 204
    assert numbers(client, event_id) == (1, 3, 2)
    assert book(client, event_id, userId="eve")[1]["position"] == 3
    assert ask(client, "POST", here, {**order, "seats": 1})[0] == 409
    assert cancel(client, event_id, userId="ann")[0] == 200
    assert numbers(client, event_id) == (0, 4, 2)
    assert holders(client, event_id, "waitlisted") == ["dan", "eve"]
    assert ask(client, "GET", f"/api/v1/booking/status/{event_id}")[1]["data"] == {
        "availableTickets": 0,
        "waitlistedCount": 2,
    }


def test_the_seeded_event_is_the_same_by_every_path(make_app):
    client = make_app(seats=2).test_client()
    book(client, SEEDED, userId="ann")
    ask(client, "POST", "/reservations", {"partnerId": "abc-corp", "seats": 1})
    assert ask(client, "GET", "/reservations") == ask(
        client, "GET", f"/events/{SEEDED}/reservations"
    )
    assert [r["partnerId"] for r in ask(client, "GET", "/reservations")[1]] == [
        "ann",
        "abc-corp",
    ]
    assert ask(client, "GET", "/event")[1]["availableSeats"] == 0
    assert ask(client, "POST", "/reservations", {"partnerId": "x", "seats": 1}) == (
        409,
        {"error": "Not enough seats left"},
    )


def test_partners_see_waiting_bookings_with_their_positions(client):
    make(client, 1, 1)
    book(client, 1, userId="ann")
    waits = book(client, 1, userId="bob")[1]
    records = ask(client, "GET", "/events/1/reservations")[1]
    assert records[1] == {
        "reservationId": waits["reservationId"],
        "partnerId": "bob",
        "seats": 1,
        "status": "waitlisted",
        "ts": records[1]["ts"],
        "position": 1,
        "eventVersionAtReservation": 2,
    }
    assert [r["status"] for r in records] == ["confirmed", "waitlisted"]
    path = f"/events/1/reservations/{waits['reservationId']}"
    assert ask(client, "GET", path)[1] == records[1]


def test_partners_see_no_e_mail_address_of_a_booking(client):
    make(client, 1, 1)
    book(client, 1, userEmail="ann@x.org")
    book(client, 1, userEmail="bob@x.org")
    answer = client.get("/events/1/reservations")
    assert len(answer.json) == 2
    assert b"x.org" not in answer.data


# --- reports --------------------------------------------------------------------------


def test_a_report_counts_the_tickets_that_are_sold_now(client):
    make(client, 1, 5, name="One", price=250)
    for user in range(3):
        book(client, 1, userId=user)
    order = {"partnerId": "abc-corp", "seats": 2}
    ask(client, "POST", "/events/1/reservations", order)
    book(client, 1, userId="late")
    assert ask(client, "GET", "/events/1/report") == (
        200,
        {
            "eventId": 1,
            "name": "One",
            "totalTickets": 5,
            "ticketsSold": 5,
            "availableTickets": 0,
            "waitingListCount": 1,
            "price": 250,
            "revenue": 1250,
        },
    )
    for user in (0, 1, 2, "late"):
        cancel(client, 1, userId=user)
    assert ask(client, "GET", "/events/1/report") == (
        200,
        {
            "eventId": 1,
            "name": "One",
            "totalTickets": 5,
            "ticketsSold": 2,
            "availableTickets": 3,
            "waitingListCount": 0,
            "price": 250,
            "revenue": 500,
        },
    )


def test_the_report_of_all_events_adds_them_up(client):
    make(client, 1, 2, price=1)
    make(client, 2, 3, price=1000)
    for user in range(3):
        book(client, 1, userId=user)
        book(client, 2, userId=user)
    status, told = ask(client, "GET", "/report")
    assert status == 200
    assert told["events"] == [
        ask(client, "GET", f"/events/{e}/report")[1] for e in (SEEDED, 1, 2)
    ]
    assert told["totals"] == {
        "totalTickets": 505,
        "ticketsSold": 5,
        "availableTickets": 500,
        "waitingListCount": 1,
        "revenue": 3002,
    }


@pytest.mark.parametrize("price", [None, 0, 1, 999_999_999])
def test_a_price_is_kept_to_the_last_unit(client, price):
    make(client, 1, 1_000_000, price=price)
    order = {"partnerId": "abc-corp", "seats": 10}
    for _ in range(3):
        ask(client, "POST", "/events/1/reservations", order)
    told = ask(client, "GET", "/events/1/report")[1]
    assert (told["price"], told["revenue"]) == (price or 0, 30 * (price or 0))


def test_an_event_may_have_a_million_tickets(client, make_app):
    make(client, 1, 1_000_000, price=100)
    assert book(client, 1, userId=1)[1]["message"] == "Ticket booked"
    body = {
        "eventId": 1,
        "firstName": "A",
        "lastName": "B",
        "email": "a@x.org",
        "ticketsReserved": 999_998,
    }
    assert ask(client, "POST", "/api/v1/booking", body)[0] == 201
    assert book(client, 1, userId=2)[1]["status"] == "booked"
    assert book(client, 1, userId=3)[1]["position"] == 1
    for reader in (client, make_app().test_client()):
        assert numbers(reader, 1) == (0, 1_000_000, 1)
        told = ask(reader, "GET", "/events/1/report")[1]
        assert (told["ticketsSold"], told["revenue"]) == (1_000_000, 100_000_000)


def sheet(answer):
    """The rows of a CSV, as a spreadsheet reads them."""
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/csv")
    text = answer.data.decode("utf-8-sig")
    return [*csv.reader(io.StringIO(text, newline=""))]


@pytest.mark.parametrize(
    "how", [{"query_string": "format=csv"}, {"headers": {"Accept": "text/csv"}}]
)
def test_a_report_opens_in_a_spreadsheet(client, how):
    make(client, 1, 2, name='Say "hello", twice', price=250)
    for user in range(3):
        book(client, 1, userId=user)
    one = ["1", 'Say "hello", twice', "2", "2", "0", "1", "250", "500"]
    assert sheet(client.get("/events/1/report", **how)) == [REPORT_FIELDS, one]
    assert sheet(client.get("/report", **how)) == [
        REPORT_FIELDS,
        [SEEDED, "Node.js Meet-up", "500", "0", "500", "0", "0", "0"],
        one,
    ]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"query_string": "format=json"},
        {"headers": {"Accept": "*/*"}},
        {"headers": {"Accept": "text/csv;q=0.1, application/json"}},
    ],
)
def test_a_report_is_json_unless_csv_is_asked_for(client, how):
    assert client.get("/report", **how).json["totals"]["totalTickets"] == 500


@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_no_text_in_a_spreadsheet_is_a_formula(client, start):
    evil = start + "cmd|' /C calc'!A0"
    make(client, start + "1", 1, name=evil)
    row = sheet(client.get("/report?format=csv"))[2]
    assert row == ["'" + start + "1", "'" + evil, "1", "0", "1", "0", "0", "0"]
    told = ask(client, "GET", "/report")[1]["events"][1]  # JSON says what it is
    assert (told["eventId"], told["name"]) == (start + "1", evil)


@pytest.mark.parametrize("start", ["\t", "\r"])
def test_a_report_escapes_a_formula_that_was_written_into_the_file(
    client, db, saved, start
):
    file = saved()
    file["event"]["name"] = start + "=1+1"
    db.write_text(json.dumps(file))
    row = sheet(client.get("/report?format=csv"))[1]
    assert row[:2] == [SEEDED, start + "'=1+1"]


def test_no_text_is_a_formula_where_semicolons_are_between_cells(client):
    make(client, 1, 1, name='x;=1+1; "=2+2";-3 - 4')
    row = sheet(client.get("/report?format=csv"))[2]
    assert row[1] == """x;'=1+1; "'=2+2";'-3 - 4"""  # a sign amid words is none


def test_a_negative_number_stays_a_number_in_a_spreadsheet(client):
    make(client, -1, 1)
    assert sheet(client.get("/events/-1/report?format=csv"))[1][0] == "-1"


# --- many at once ---------------------------------------------------------------------


def at_once(do, each):
    """What do(x) gives for each of them, all started at the same moment."""
    each = [*each]
    gate = threading.Barrier(len(each))

    def start(one):
        gate.wait(30)
        return do(one)

    with ThreadPoolExecutor(len(each)) as pool:
        return [*pool.map(start, each)]


def test_of_a_hundred_simultaneous_bookings_ten_are_sold_and_ninety_wait(serve, client):
    make(client, 1, 10)
    servers = [serve(), serve()]

    def book_one(user):
        body = {"eventId": 1, "userId": user}
        status, told, _ = servers[user % 2].ask("POST", "/book", body)
        assert status == 200
        return told

    answers = at_once(book_one, range(100))
    booked = [a for a in answers if a["status"] == "booked"]
    assert [a["message"] for a in booked] == ["Ticket booked"] * 10
    positions = [a["position"] for a in answers if a["status"] == "waitlisted"]
    assert sorted(positions) == [*range(1, 91)]
    assert len({a["reservationId"] for a in answers}) == 100
    assert numbers(client, 1) == (0, 10, 90)
    assert version(client, 1) == 100
    line = ask(client, "GET", "/events/1/reservations?status=waitlisted")[1]
    assert {r["reservationId"]: r["position"] for r in line} == {
        a["reservationId"]: a["position"] for a in answers if "position" in a
    }


def test_of_twenty_simultaneous_cancels_of_a_booking_one_counts(make_app):
    clients = [make_app(), make_app()]  # two stores, as two processes have
    client = clients[0].test_client()
    make(client, 1, 2)
    for user in ("ann", "bob", "cyd", "dan"):
        book(client, 1, userId=user)
    answers = at_once(
        lambda n: cancel(clients[n % 2].test_client(), 1, userId="ann"), range(20)
    )
    assert [a[0] for a in answers].count(200) == 1
    assert [a for a in answers if a[0] != 200] == [
        (404, failure("Booking not found"))
    ] * 19
    assert holders(client, 1, "confirmed") == ["bob", "cyd"]  # one seat, one promoted
    assert holders(client, 1, "waitlisted") == ["dan"]
    assert version(client, 1) == 5


def test_fifty_simultaneous_cancels_serve_the_first_fifty_in_line(make_app):
    clients = [make_app(), make_app()]
    client = clients[0].test_client()
    make(client, 1, 50)
    for user in range(120):
        book(client, 1, userId=user)
    answers = at_once(
        lambda user: cancel(clients[user % 2].test_client(), 1, userId=user), range(50)
    )
    assert [a[0] for a in answers] == [200] * 50
    assert holders(client, 1, "confirmed") == [str(user) for user in range(50, 100)]
    assert holders(client, 1, "waitlisted") == [str(user) for user in range(100, 120)]
    assert numbers(client, 1) == (0, 50, 20)
    assert version(client, 1) == 170
    assert book(client, 1, userId=100)[1]["position"] == 1
    assert book(client, 1, userId=119)[1]["position"] == 20


def test_simultaneous_bookings_of_one_user_give_one_ticket(make_app):
    clients = [make_app(), make_app()]
    client = clients[0].test_client()
    make(client, 1, 50)
    answers = at_once(
        lambda n: book(clients[n % 2].test_client(), 1, userId=["7", 7][n % 3 == 0]),
        range(20),
    )
    assert sorted(a[0] for a in answers) == [200] + [409] * 19
    assert numbers(client, 1) == (49, 1, 0)
    assert version(client, 1) == 1


# --- events do not disturb each other -------------------------------------------------


def sale(event_id, reservation_id):
    """A decision to sell one seat of an event."""

    def decide(database):
        wish = Reservation(reservation_id, "p", 1, "waitlisted")
        return database.with_document(database.document(event_id).reserve(wish))

    return decide


@pytest.mark.parametrize(("changed", "attempts"), [("quiet", 2), ("busy", 1)])
def test_only_a_change_of_the_same_event_makes_a_sale_retry(db, changed, attempts):
    here, there = open_store(str(db)), open_store(str(db))  # as two processes have them
    here.open(5)
    for name in ("quiet", "busy"):
        Transactions(here).transact(
            lambda database, name=name: database.with_document(
                Document.of(Event(name, name, 5, 5, 0), {})
            )
        )
    decided = []

    def decide(database):  # between our reading and our swap, the other one sells
        if not decided:
            Transactions(there).transact(sale(changed, "theirs"))
        decided.append(database.document("busy").event.version)
        return sale("quiet", "ours")(database)

    turn = Transactions(here).transact(decide)
    assert turn.attempts == len(decided) == attempts
    found = there.load().database
    assert found.document("quiet").reservations.keys() == (
        {"ours", "theirs"} if changed == "quiet" else {"ours"}
    )
    assert found.document("busy").reservations.keys() == (
        {"theirs"} if changed == "busy" else set()
    )


def test_a_busy_event_causes_no_retries_at_a_quiet_one(serve, make_app):
    client = make_app(think_s=0.03).test_client()  # time to be overtaken
    make(client, "quiet", 1_000)
    make(client, "busy", 1_000_000)
    server, enough = serve(), threading.Event()

    def hammer():
        body = {"partnerId": "crowd", "seats": 1}
        while not enough.is_set():
            assert server.ask("POST", "/events/busy/reservations", body)[0] == 201

    def attempts(event_id, user):
        body = {"eventId": event_id, "userId": user}
        answer = client.post("/book", json=body)
        assert answer.status_code == 200
        return int(answer.headers["X-Attempts"])

    with ThreadPoolExecutor(2) as pool:
        crowd = [pool.submit(hammer), pool.submit(hammer)]
        try:
            overtaken = tries = 0
            while overtaken < 10 and tries < 500:
                before = version(client, "busy")
                assert attempts("quiet", tries) == 1
                tries += 1
                overtaken += version(client, "busy") > before + 1
            noticed = any(attempts("busy", user) > 1 for user in range(100))
        finally:
            enough.set()
    for one in crowd:
        one.result()
    assert overtaken == 10
    assert noticed  # so there was something to notice
    assert version(client, "quiet") == tries
