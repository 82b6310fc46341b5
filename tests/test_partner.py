"""The partner API: exact bodies and texts, lists, the waiting list, seed files."""

from __future__ import annotations

import json
import re
import uuid

import pytest
from conftest import SEEDED

import ticketboss

FRESH = {
    "event": {
        "eventId": SEEDED,
        "name": "Node.js Meet-up",
        "totalSeats": 500,
        "availableSeats": 500,
        "version": 0,
    },
    "reservations": {},
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
GONE = {"error": "Reservation not found or already cancelled"}
FULL = {"error": "Not enough seats left"}
WAIT = {"waitlist": True}

# As the program that db.json comes from wrote it, and what its README shows.
CONFIRMED = {
    "reservationId": "7d4f36be-ef9b-4bb6-b3a5-6378a9d6a1f9",
    "partnerId": "abc-corp",
    "seats": 3,
    "status": "confirmed",
    "ts": "2025-10-28T13:45:00.853Z",
    "eventVersionAtReservation": 2,
}
CANCELLED = {
    "reservationId": "b2a68c77-fc83-4a9b-bb2b-24d91e4083e0",
    "partnerId": "xyz-ltd",
    "seats": 2,
    "status": "cancelled",
    "cancelledAt": "2025-10-28T14:20:11.923Z",
}
CANCELLED_WITH_TS = CANCELLED | {
    "reservationId": "0c7ee8f1-3c9a-4d53-9c6d-0e8f9f0f6a10",
    "ts": "2025-10-28T13:44:00.000Z",
    "eventVersionAtReservation": 1,
}


def sell(client, seats=3, partner="abc-corp", at="", **more):
    """Ask for seats."""
    return client.post(
        f"{at}/reservations", json={"partnerId": partner, "seats": seats, **more}
    )


def bought(client, seats=3, partner="abc-corp", at="", **more):
    """The id of a new reservation."""
    answer = sell(client, seats, partner, at, **more)
    assert answer.status_code in {201, 202}
    return answer.json["reservationId"]


def numbers(client, at="/event"):
    """Seats free, seats reserved, version."""
    told = client.get(at).json
    return told["availableSeats"], told["reservationCount"], told["version"]


def statuses(client):
    """Each reservation's partner, seats and status (or position), in order."""
    return [
        (r["partnerId"], r["seats"], r.get("position") or r["status"])
        for r in client.get("/reservations").json
    ]


# --- the file -------------------------------------------------------------------


def test_the_first_start_writes_exactly_the_documented_file(client, db):
    text = json.dumps(FRESH, indent=2)
    assert db.read_text().rstrip("\n") == text
    assert client.get("/event").json["version"] == 0
    assert client.get("/reservations").json == []
    assert db.read_text().rstrip("\n") == text


def test_the_first_start_seeds_the_given_number_of_seats(make_app, saved):
    make_app(seats=7)
    assert saved()["event"] == FRESH["event"] | {"totalSeats": 7, "availableSeats": 7}
    make_app(seats=9)
    assert saved()["event"]["totalSeats"] == 7


def test_a_sale_adds_its_record_and_nothing_else(client, saved):
    key = bought(client)
    record = saved()["reservations"].get(key)
    assert TIME.fullmatch(record["ts"])
    assert saved() == {
        "event": FRESH["event"] | {"availableSeats": 497, "version": 1},
        "reservations": {
            key: CONFIRMED
            | {"reservationId": key, "ts": record["ts"], "eventVersionAtReservation": 1}
        },
    }


def seed_000(**odd):
    """A db.json of the program that this API comes from; `odd`: partnerIds by id."""
    records = [CONFIRMED, CANCELLED, CANCELLED_WITH_TS]
    records += [
        CONFIRMED | {"reservationId": key, "partnerId": partner}
        for key, partner in odd.items()
    ]
    free = 500 - 3 * (len(odd) + 1)
    return {
        "event": FRESH["event"] | {"availableSeats": free, "version": 9},
        "reservations": {r["reservationId"]: r for r in records},
    }


ODD = {
    "blank": "",
    "spaces": "  ",
    "lines": "a\nb\tc",
    "long": "x" * 1000,
    "null": "a\0b",
    "html": "<b>&\"'",
    "emoji": "😀é",
}


@pytest.mark.parametrize("file", [FRESH, seed_000(), seed_000(**ODD)])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_of_seed_000_loads_unchanged(db, make_app, file, indent):
    db.write_text(json.dumps(file, indent=indent, ensure_ascii=False))
    before = db.read_bytes()
    client = make_app().test_client()
    assert client.get("/_health").json == {"ok": True}
    assert client.get("/reservations").json == list(file["reservations"].values())
    assert client.get("/event").json == file["event"] | {
        "reservationCount": 500 - file["event"]["availableSeats"]
    }
    assert db.read_bytes() == before


def test_a_file_of_seed_000_can_be_sold_from_and_cancelled_in(db, make_app, saved):
    file = seed_000(**ODD)
    db.write_text(json.dumps(file))
    client = make_app().test_client()
    new = bought(client, 10)
    assert client.delete(f"/reservations/{CANCELLED['reservationId']}").json == GONE
    for key in ["blank", CONFIRMED["reservationId"]]:
        assert client.delete(f"/reservations/{key}").status_code == 204
        old, now = file["reservations"][key], saved()["reservations"][key]
        assert TIME.fullmatch(now["cancelledAt"])
        file["reservations"][key] = old | {
            "status": "cancelled",
            "cancelledAt": now["cancelledAt"],
            "eventVersionAtCancel": saved()["event"]["version"],
        }
    file["reservations"][new] = saved()["reservations"][new]
    file["event"] |= {
        "availableSeats": file["event"]["availableSeats"] - 4,
        "version": 12,
    }
    assert saved() == file


@pytest.mark.parametrize("key", ["a/b", "a\nb", "..", "ü?#%", " ", "a/b/c.d"])
def test_a_record_with_any_id_is_found(db, make_app, key):
    file = seed_000(**{key: "odd"})
    db.write_text(json.dumps(file))
    client = make_app().test_client()
    path = "/reservations/" + "".join(f"%{byte:02X}" for byte in key.encode())
    assert client.get(path).json == file["reservations"][key]
    assert client.delete(f"{path}?seats=2").status_code == 204
    assert client.delete(path).status_code == 204
    assert client.delete(path).json == GONE


# --- reserving --------------------------------------------------------------------


def test_a_sale_is_answered_with_exactly_the_documented_fields(client):
    answer = sell(client, 3)
    key = answer.json.pop("reservationId")
    assert str(uuid.UUID(key)) == key
    assert (answer.status_code, answer.content_type) == (201, "application/json")
    assert answer.json | {"reservationId": key} == {
        "reservationId": key,
        "seats": 3,
        "status": "confirmed",
    }
    assert numbers(client) == (497, 3, 1)


NO_PARTNER = "partnerId (string) is required"
NO_INTEGER = "seats must be an integer"
NO_RANGE = "seats must be between 1 and 10"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, NO_PARTNER),
        ({"seats": 3}, NO_PARTNER),
        ({"seats": 11}, NO_PARTNER),
        ({"seats": "x", "waitlist": 3}, NO_PARTNER),
        *(
            ({"partnerId": p, "seats": 3}, NO_PARTNER)
            for p in (None, 7, True, ["a"], {"a": 1}, "")
        ),
        ({"partnerId": "a"}, NO_INTEGER),
        *(
            ({"partnerId": "a", "seats": s}, NO_INTEGER)
            for s in (None, True, False, "3", "", 3.5, 0.1, [3], {"seats": 3}, "11")
        ),
        *(
            ({"partnerId": "a", "seats": s}, NO_RANGE)
            for s in (0, -1, 11, 1000, 2**63, -(2**64), 10**400)
        ),
    ],
)
def test_an_unusable_order_is_400_with_the_documented_text(client, saved, body, error):
    answer = client.post("/reservations", json=body)
    assert (answer.status_code, answer.json) == (400, {"error": error})
    assert saved() == FRESH


@pytest.mark.parametrize("seats", [1, 10])
def test_an_order_may_have_one_to_ten_seats(client, seats):
    assert sell(client, seats).json["seats"] == seats
    assert numbers(client) == (500 - seats, seats, 1)


def test_an_order_of_3_0_seats_gets_three(client, saved):
    answer = client.post("/reservations", data='{"partnerId":"a","seats":3.0}')
    assert answer.status_code == 201
    (record,) = saved()["reservations"].values()
    assert (type(record["seats"]), record["seats"]) == (int, 3)


@pytest.mark.parametrize("waitlist", [1, "true", "false", [True]])
def test_waitlist_is_true_or_false(client, saved, waitlist):
    answer = sell(client, waitlist=waitlist)
    assert (answer.status_code, list(answer.json)) == (400, ["error"])
    assert saved() == FRESH


def test_too_few_seats_are_409_and_nothing_changes(make_app, db):
    client = make_app(seats=5).test_client()
    bought(client, 3)
    before = db.read_bytes()
    for answer in (sell(client, 3), sell(client, 10), sell(client, 3, waitlist=False)):
        assert (answer.status_code, answer.json) == (409, FULL)
    assert db.read_bytes() == before
    assert sell(client, 2).status_code == 201
    assert numbers(client) == (0, 5, 2)
    assert sell(client, 1).json == FULL


# --- looking ----------------------------------------------------------------------


def test_the_event_is_shown_in_exactly_six_fields(client):
    bought(client, 3)
    bought(client, 5)
    assert client.get("/event").json == {
        "eventId": SEEDED,
        "name": "Node.js Meet-up",
        "totalSeats": 500,
        "availableSeats": 492,
        "reservationCount": 8,
        "version": 2,
    }


def test_a_list_shows_records_in_exactly_the_documented_fields(make_app):
    client = make_app(seats=10).test_client()
    stays, goes, waits = (
        bought(client, n, p, **WAIT) for n, p in ((5, "ann"), (3, "bob"), (9, "cyd"))
    )
    assert client.delete(f"/reservations/{goes}").status_code == 204
    told = client.get("/reservations").json
    for record in told:
        assert TIME.fullmatch(record.pop("ts"))
    assert TIME.fullmatch(told[1].pop("cancelledAt"))
    assert told == [
        {
            "reservationId": stays,
            "partnerId": "ann",
            "seats": 5,
            "status": "confirmed",
            "eventVersionAtReservation": 1,
        },
        {
            "reservationId": goes,
            "partnerId": "bob",
            "seats": 3,
            "status": "cancelled",
            "eventVersionAtReservation": 2,
            "eventVersionAtCancel": 4,
        },
        {
            "reservationId": waits,
            "partnerId": "cyd",
            "seats": 9,
            "position": 1,
            "status": "waitlisted",
            "eventVersionAtReservation": 3,
        },
    ]


def test_a_single_record_is_shown_as_in_the_list(make_app):
    client = make_app(seats=10).test_client()
    ids = [bought(client, 5, **WAIT) for _ in range(4)]
    client.delete(f"/reservations/{ids[0]}?seats=2")
    client.delete(f"/reservations/{ids[3]}")
    listed = client.get("/reservations").json
    assert [client.get(f"/reservations/{key}").json for key in ids] == listed
    assert [r["reservationId"] for r in listed] == ids


def test_an_unknown_record_is_404(client):
    answer = client.get(f"/reservations/{uuid.uuid4()}")
    assert (answer.status_code, list(answer.json)) == (404, ["error"])


def test_a_list_shows_neither_the_key_nor_the_user_of_a_reservation(client):
    headers = {"Idempotency-Key": "secret-key"}
    bought(client)
    client.post("/reservations", json={"partnerId": "b", "seats": 1}, headers=headers)
    client.post(
        "/book",
        headers=headers,
        json={"eventId": SEEDED, "userEmail": "ann@example.org"},
    )
    answer = client.get("/reservations")
    assert [set(record) for record in answer.json] == [set(CONFIRMED)] * 3
    assert not re.search("secret|ann|example", answer.text)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A client of an event with all sorts of reservations, for tests that look."""
    app = ticketboss.create_app(
        ticketboss.Settings(
            db=str(tmp_path_factory.mktemp("crowded") / "db.json"),
            seats=10,
            quiet=True,
            standalone=True,
        )
    )
    client = app.test_client()
    ids = [
        bought(client, 1, partner, **WAIT)
        for _ in range(5)
        for partner in ("ann", "bob & co=1", 'ünal"><b>')
    ]
    for key in (ids[0], ids[4], ids[14]):
        client.delete(f"/reservations/{key}")
    return client


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"partnerId": "ann"},
        {"partnerId": "bob & co=1"},
        {"partnerId": 'ünal"><b>'},
        {"partnerId": "nobody"},
        {"partnerId": "AN"},
        {"status": "confirmed"},
        {"status": "cancelled"},
        {"status": "waitlisted"},
        {"status": "confirmed", "partnerId": "bob & co=1"},
        {"status": "waitlisted", "partnerId": "ann"},
    ],
    ids=str,
)
@pytest.mark.parametrize("limit", [1, 2, 5, 15, 100])
def test_pages_joined_by_links_are_the_narrowed_list(crowded, asked, limit):
    whole = crowded.get("/reservations").json
    wanted = [r for r in whole if all(r[name] == asked[name] for name in asked)]
    assert crowded.get("/reservations", query_string=asked).json == wanted
    page = crowded.get("/reservations", query_string=asked | {"limit": limit})
    pages = [page.json]
    while link := page.headers.get("Link"):
        assert len(page.json) == limit
        assert len(pages) <= len(wanted)
        (url,) = re.fullmatch(r'<([!-;=?-~]+)>; rel="next"', link).groups()
        page = crowded.get(url)
        assert page.status_code == 200
        pages.append(page.json)
    assert [record for page in pages for record in page] == wanted
    assert len(pages) == max(1, -(-len(wanted) // limit))  # no empty last page


def test_a_page_with_after_begins_behind_that_record(crowded):
    whole = crowded.get("/reservations").json
    for n in (0, 7, 14):
        after = {"after": whole[n]["reservationId"]}
        told = crowded.get("/reservations", query_string=after)
        assert told.json == whole[n + 1 :]
        assert "Link" not in told.headers


def test_a_page_continues_after_a_record_that_was_cancelled(client):
    ids = [bought(client) for _ in range(3)]
    page = client.get("/reservations?status=confirmed&limit=1")
    client.delete(f"/reservations/{ids[0]}")
    link = re.search("<(.*)>", page.headers["Link"])[1]
    assert client.get(link).json[0]["reservationId"] == ids[1]


@pytest.mark.parametrize(
    "asked",
    [
        "limit=0",
        "limit=-1",
        "limit=x",
        "limit=",
        "limit=1.5",
        "limit=1e3",
        "limit=%2B1",
        "limit=%D9%A3",
        "limit=1%00",
        f"limit={'0' * 5000}1",
        f"limit={'9' * 5000}",
        "status=",
        "status=Confirmed",
        "status=all",
        "status=%FF",
        "after=",
        "after=x",
        "after=%00",
        "status=confirmed&limit=0",
    ],
    ids=lambda asked: asked[:20],
)
@pytest.mark.parametrize("at", ["", f"/events/{SEEDED}"])
def test_an_unusable_parameter_is_400(crowded, at, asked):
    answer = crowded.get(f"{at}/reservations?{asked}")
    assert (answer.status_code, list(answer.json)) == (400, ["error"])


def test_an_unknown_parameter_of_a_list_is_ignored(client):
    bought(client)
    assert (
        client.get("/reservations?x=1&%FF=%FF").json == client.get("/reservations").json
    )


# --- giving back ------------------------------------------------------------------


def test_a_cancel_frees_the_seats_and_keeps_the_record(client, saved):
    key, other = bought(client, 3), bought(client, 2)
    before = saved()
    answer = client.delete(f"/reservations/{key}")
    assert (answer.status_code, answer.data) == (204, b"")
    assert "Content-Type" not in answer.headers
    assert numbers(client) == (498, 2, 3)
    at = saved()["reservations"][key]["cancelledAt"]
    assert TIME.fullmatch(at)
    before["event"] |= {"availableSeats": 498, "version": 3}
    before["reservations"][key] |= {
        "status": "cancelled",
        "cancelledAt": at,
        "eventVersionAtCancel": 3,
    }
    assert saved() == before
    assert saved()["reservations"][other]["status"] == "confirmed"


def test_a_second_cancel_is_404_and_changes_nothing(client, db):
    key = bought(client)
    client.delete(f"/reservations/{key}")
    before = db.read_bytes()
    for path in (key, f"{key}?seats=1", uuid.uuid4(), key.upper(), key[:-1]):
        answer = client.delete(f"/reservations/{path}")
        assert (answer.status_code, answer.json) == (404, GONE)
    assert db.read_bytes() == before


def test_seats_can_be_returned_in_parts_until_none_is_left(client):
    key = bought(client, 7)
    path = f"/reservations/{key}"
    first = client.get(path).json

    def give(seats):
        answer = client.delete(f"{path}?seats={seats}")
        assert (answer.status_code, answer.data) == (204, b"")
        return client.get(path).json

    assert give(2) == first | {"seats": 5, "seatsReturned": 2}
    assert numbers(client) == (495, 5, 2)
    assert give(1) == first | {"seats": 4, "seatsReturned": 3}
    assert numbers(client) == (496, 4, 3)
    gone = give(4)
    assert (gone["status"], gone["eventVersionAtCancel"]) == ("cancelled", 4)
    assert TIME.fullmatch(gone["cancelledAt"])
    assert numbers(client) == (500, 0, 4)
    assert client.delete(f"{path}?seats=1").json == GONE


@pytest.mark.parametrize(
    "seats",
    [
        "0",
        "-1",
        "4",
        "11",
        "x",
        "",
        "1.0",
        "%2B1",
        "1e0",
        "9" * 30,
        "9" * 5000,
        "0" * 5000 + "1",
        "%D9%A3",
        "1%00",
        "0x1",
        "true",
    ],
    ids=lambda s: s[:9],
)
def test_a_return_of_more_seats_than_are_held_is_refused(client, db, seats):
    key = bought(client, 3)
    before = db.read_bytes()
    answer = client.delete(f"/reservations/{key}?seats={seats}")
    assert (answer.status_code, list(answer.json)) == (400, ["error"])
    assert "seats" in answer.json["error"]
    assert db.read_bytes() == before


def test_after_a_partial_return_only_the_rest_can_be_returned(client):
    key = bought(client, 3)
    client.delete(f"/reservations/{key}?seats=2")
    assert client.delete(f"/reservations/{key}?seats=2").status_code == 400
    assert client.delete(f"/reservations/{key}").status_code == 204
    assert numbers(client) == (500, 0, 3)


# --- the waiting list ---------------------------------------------------------------


def test_too_few_seats_with_waitlist_are_202_and_a_place(make_app, db):
    client = make_app(seats=10).test_client()
    assert sell(client, 8, **WAIT).status_code == 201
    for seats, place in [(3, 1), (2, 2), (10, 3)]:
        answer = sell(client, seats, **WAIT)
        assert answer.status_code == 202
        key = answer.json["reservationId"]
        assert str(uuid.UUID(key)) == key
        assert answer.json == {
            "reservationId": key,
            "seats": seats,
            "status": "waitlisted",
            "position": place,
        }
        assert numbers(client) == (2, 8, 1 + place)
    before = db.read_bytes()
    assert sell(client, 1).json == FULL  # the two that are left are owed to the head
    assert db.read_bytes() == before


def test_a_cancel_serves_the_head_in_the_same_change(make_app):
    client = make_app(seats=10).test_client()
    first = bought(client, 7, "first")
    for partner, seats in [("ann", 4), ("bob", 3), ("cyd", 5), ("dan", 1)]:
        bought(client, seats, partner, **WAIT)
    assert numbers(client) == (3, 7, 5)
    client.delete(f"/reservations/{first}")
    assert numbers(client) == (3, 7, 6)
    # cyd does not fit, and dan, who would, does not pass.
    assert statuses(client) == [
        ("first", 7, "cancelled"),
        ("ann", 4, "confirmed"),
        ("bob", 3, "confirmed"),
        ("cyd", 5, 1),
        ("dan", 1, 2),
    ]
    promoted = client.get("/reservations?partnerId=ann").json[0]
    assert set(promoted) == set(CONFIRMED)
    assert promoted["eventVersionAtReservation"] == 2


def test_a_partial_return_serves_the_head(make_app):
    client = make_app(seats=10).test_client()
    first = bought(client, 10, "first")
    for partner in ("ann", "bob"):
        bought(client, 2, partner, **WAIT)
    client.delete(f"/reservations/{first}?seats=3")
    assert numbers(client) == (1, 9, 4)
    assert statuses(client) == [
        ("first", 7, "confirmed"),
        ("ann", 2, "confirmed"),
        ("bob", 2, 1),
    ]


def test_a_waiting_order_that_leaves_lets_the_next_move_up(make_app):
    client = make_app(seats=10).test_client()
    bought(client, 8, "first")
    head = bought(client, 5, "ann", **WAIT)
    bought(client, 2, "bob", **WAIT)
    bought(client, 2, "cyd", **WAIT)
    assert client.delete(f"/reservations/{head}").status_code == 204
    assert numbers(client) == (0, 10, 5)
    assert statuses(client) == [
        ("first", 8, "confirmed"),
        ("ann", 5, "cancelled"),
        ("bob", 2, "confirmed"),
        ("cyd", 2, 1),
    ]
    gone = client.get(f"/reservations/{head}").json
    assert set(gone) == {*CONFIRMED, "cancelledAt", "eventVersionAtCancel"}
    assert client.delete(f"/reservations/{head}").json == GONE


def test_a_waiting_order_that_shrinks_keeps_its_place(make_app):
    client = make_app(seats=10).test_client()
    bought(client, 8, "first")
    head, second = (bought(client, n, p, **WAIT) for n, p in ((5, "ann"), (9, "bob")))
    client.delete(f"/reservations/{second}?seats=8")
    client.delete(f"/reservations/{head}?seats=1")
    assert numbers(client) == (2, 8, 5)
    assert statuses(client) == [("first", 8, "confirmed"), ("ann", 4, 1), ("bob", 1, 2)]
    client.delete(f"/reservations/{head}?seats=3")
    assert numbers(client) == (0, 10, 6)
    assert statuses(client) == [
        ("first", 8, "confirmed"),
        ("ann", 1, "confirmed"),
        ("bob", 1, "confirmed"),
    ]


def test_the_waiting_list_outlives_a_restart(make_app, saved):
    client = make_app(seats=10).test_client()
    first = bought(client, 10, "first")
    for partner in ("zoe", "ann", "mia"):
        bought(client, 5, partner, **WAIT)
    assert set(saved()) == {"event", "reservations"}
    client = make_app().test_client()
    client.delete(f"/reservations/{first}")
    assert statuses(client) == [
        ("first", 10, "cancelled"),
        ("zoe", 5, "confirmed"),
        ("ann", 5, "confirmed"),
        ("mia", 5, 1),
    ]


# --- any event ----------------------------------------------------------------------


@pytest.fixture
def two(client):
    """A client of a service with a second event, 7, of nine seats."""
    made = client.post(
        "/initialize",
        json={"eventId": 7, "name": "Seven", "totalTickets": 9, "price": 250},
    )
    assert made.status_code == 201
    return client


def test_an_event_has_a_summary_with_both_sets_of_names(two):
    bought(two, 4, at="/events/7")
    assert two.get("/events/7").json == {
        "eventId": 7,
        "name": "Seven",
        "totalSeats": 9,
        "availableSeats": 5,
        "reservationCount": 4,
        "version": 1,
        "id": 7,
        "totalTickets": 9,
        "availableTickets": 5,
        "price": 250,
    }
    assert two.get(f"/events/{SEEDED}").json == two.get("/event").json | {
        "id": SEEDED,
        "totalTickets": 500,
        "availableTickets": 500,
        "price": 0,
    }


def test_each_event_sells_its_own_seats(two, saved):
    seeded = saved()["event"]
    keys = [bought(two, n, at="/events/7", **WAIT) for n in (4, 3, 9)]
    assert sell(two, 1, at="/events/7").json == FULL
    assert numbers(two, "/events/7") == (2, 7, 3)
    listed = two.get("/events/7/reservations").json
    assert [(r["reservationId"], r["status"]) for r in listed] == [
        (keys[0], "confirmed"),
        (keys[1], "confirmed"),
        (keys[2], "waitlisted"),
    ]
    path = f"/events/7/reservations/{keys[0]}"
    assert two.get(path).json == listed[0]
    assert two.delete(f"{path}?seats=1").status_code == 204
    assert two.delete(path).status_code == 204
    assert two.delete(path).json == GONE
    assert numbers(two, "/events/7") == (6, 3, 5)
    assert two.get("/reservations").json == []
    assert saved()["event"] == seeded
    assert numbers(two) == (500, 0, 0)


def test_a_reservation_belongs_to_its_event(two, db):
    here, there = bought(two), bought(two, at="/events/7")
    before = db.read_bytes()
    for path in (f"/events/7/reservations/{here}", f"/reservations/{there}"):
        assert two.get(path).status_code == 404
        answer = two.delete(path)
        assert (answer.status_code, answer.json) == (404, GONE)
    assert db.read_bytes() == before


def test_the_seeded_event_is_the_same_by_either_path(client):
    here, there = bought(client), bought(client, at=f"/events/{SEEDED}")
    both = client.get("/reservations").json
    assert [r["reservationId"] for r in both] == [here, there]
    assert client.get(f"/events/{SEEDED}/reservations").json == both
    assert client.get(f"/events/{SEEDED}/reservations/{here}").json == both[0]
    assert client.delete(f"/events/{SEEDED}/reservations/{here}").status_code == 204
    assert client.delete(f"/reservations/{there}").status_code == 204
    assert numbers(client) == (500, 0, 4)


def test_pages_of_an_event_stay_with_that_event(two):
    keys = [bought(two, 1, at="/events/7") for _ in range(3)]
    page = two.get("/events/7/reservations?limit=2")
    link = re.search("<(.*)>", page.headers["Link"])[1]
    assert [r["reservationId"] for r in page.json + two.get(link).json] == keys


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/reservations"),
        ("POST", "/reservations"),
        ("GET", "/reservations/x"),
        ("DELETE", "/reservations/x"),
    ],
)
def test_an_unknown_event_is_404(client, saved, method, path):
    answer = client.open(
        f"/events/none{path}", method=method, json={"partnerId": "a", "seats": 3}
    )
    assert answer.status_code == 404
    assert answer.json["error"] == "Event not found"
    assert saved() == FRESH


# --- health, and the way in -----------------------------------------------------------


def adds_up_wrong(file):
    """The same with a seat that nobody has."""
    return file | {"event": file["event"] | {"availableSeats": 499}}


@pytest.mark.parametrize(
    "damage",
    [
        None,
        "",
        "{",
        "[]",
        "null",
        "\0" * 100,
        json.dumps(FRESH)[:-1],
        json.dumps(adds_up_wrong(FRESH)),
        json.dumps(adds_up_wrong(seed_000())),
        json.dumps({"event": FRESH["event"]}),
        json.dumps(FRESH | {"reservations": []}),
        json.dumps(FRESH).replace("500", "true"),
        json.dumps(FRESH).replace("500", "-1"),
    ],
    ids=lambda damage: f"{damage!r:.40}",
)
def test_health_is_503_until_a_good_file_is_back(client, db, damage):
    answer = client.get("/_health")
    assert (answer.status_code, answer.json) == (200, {"ok": True})
    good = db.read_bytes()
    db.unlink()
    if damage is not None:
        db.write_text(damage)
    answer = client.get("/_health")
    assert answer.status_code == 503
    assert answer.json == {"ok": False, "error": answer.json["error"]}
    assert answer.json["error"]
    assert str(db.parent) not in answer.json["error"]
    assert (db.read_text() if db.exists() else None) == damage
    db.write_bytes(good)
    answer = client.get("/_health")
    assert (answer.status_code, answer.json) == (200, {"ok": True})


@pytest.mark.parametrize("accept", [None, "*/*", "text/plain", "application/json"])
def test_the_front_page_lists_requests_to_try_with_curl(client, accept):
    answer = client.get("/", headers={"Accept": accept} if accept else {})
    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert answer.text.startswith("Welcome to TicketBoss API")
    for told in ("curl", "event", "/reservations", '"partnerId"', "DELETE", "/_health"):
        assert told in answer.text
