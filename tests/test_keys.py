"""An Idempotency-Key is honoured, harmless or refused, but never ignored."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from furnished import (
    BOOKER,
    CHANGES,
    SEEDED,
    error_of,
    inhabited,
    unchanged,
)

KEY = {"Idempotency-Key": "k"}
HONOURED = [
    "sale",
    "sale of an event",
    "partial return",
    "partial return in an event",
    "opening",
    "ticket",
    "dated event",
    "booking",
    "partly cancelled booking",
]
HARMLESS = [name for name in CHANGES if name not in HONOURED]
LISTED = {  # what partners see of a reservation, and nothing else
    "reservationId",
    "partnerId",
    "seats",
    "seatsReturned",
    "status",
    "ts",
    "eventVersionAtReservation",
}


def is_replay(again, first):
    """Whether this is the first answer again, with the header that marks a replay."""
    assert "Idempotent-Replayed" not in first.headers
    assert (again.status_code, again.data) == (first.status_code, first.data)
    for name in ("Location", "Content-Type"):
        assert again.headers.get(name) == first.headers.get(name)
    return again.headers.get("Idempotent-Replayed") == "true"


# --- every change -----------------------------------------------------------------


@pytest.mark.parametrize("name", HONOURED)
def test_a_change_sent_twice_with_one_key_is_made_once(house, db, name):
    client, root, todo = house
    first = todo[name].send(client, headers=root | KEY)
    assert first.status_code in {200, 201, 204}
    with unchanged(db):
        again = [todo[name].send(client, headers=root | KEY) for _ in range(2)]
    assert all(is_replay(each, first) for each in again)


@pytest.mark.parametrize("name", HONOURED)
def test_a_replay_is_given_by_another_worker_after_a_restart(house, make_app, db, name):
    client, root, todo = house
    first = todo[name].send(client, headers=root | KEY)
    with unchanged(db):
        again = todo[name].send(make_app().test_client(), headers=root | KEY)
    assert is_replay(again, first)


@pytest.mark.parametrize("name", HONOURED)
def test_a_replay_is_given_whatever_the_condition(house, db, name):
    client, root, todo = house
    first = todo[name].send(client, headers=root | KEY)
    with unchanged(db):
        for condition in ('"99"', 'W/"0"', "*"):
            headers = root | KEY | {"If-Match": condition}
            assert is_replay(todo[name].send(client, headers=headers), first)


@pytest.mark.parametrize("name", [name for name in HONOURED if name != "ticket"])
def test_another_key_or_none_is_another_change(house, saved, name):
    client, root, todo = house
    change = todo[name]
    if name == "opening":
        change = change._replace(body={"name": "Talk", "totalTickets": 5})
    seen = [saved()]
    for key in (KEY, {"Idempotency-Key": "K"}, {}):
        answer = change.send(client, headers=root | key)
        assert answer.status_code in {200, 201, 204}
        assert "Idempotent-Replayed" not in answer.headers
        assert saved() not in seen
        seen.append(saved())


@pytest.mark.parametrize("name", HARMLESS)
def test_a_change_that_works_only_once_takes_a_key_and_is_404_the_second_time(
    house, db, name
):
    client, root, todo = house
    first = todo[name].send(client, headers=root | KEY)
    assert first.status_code in {200, 204}
    for condition in ({}, {"If-Match": '"99"'}):
        with unchanged(db):
            again = todo[name].send(client, headers=root | KEY | condition)
        assert again.status_code == 404
        assert error_of(again)
        assert "Idempotent-Replayed" not in again.headers


@pytest.mark.parametrize("name", CHANGES)
def test_an_unusable_key_is_400_on_every_change(house, db, name):
    client, root, todo = house
    for key in ("", "a b", "x" * 256, "\u00e9"):
        with unchanged(db):
            answer = todo[name].send(client, headers=root | {"Idempotency-Key": key})
        assert answer.status_code == 400
        assert "Idempotency-Key" in error_of(answer)


@pytest.mark.usefixtures("cheap_hashes")
def test_a_registration_with_one_key_makes_one_account(house, db):
    client, _, _ = house
    body = {"username": "eve", "email": "eve@example.com", "password": "12345678"}
    path = "/api/v1/auth/register"
    assert client.post(path, json=body, headers=KEY).status_code == 201
    with unchanged(db):
        assert client.post(path, json=body, headers=KEY).status_code == 409
        bad = client.post(path, json=body, headers={"Idempotency-Key": "a b"})
    assert bad.status_code == 400
    assert "Idempotency-Key" in error_of(bad)


# --- partial returns --------------------------------------------------------------


def seats_of(client, place):
    """What is still held of a reservation."""
    return client.get(place.partition("?")[0]).json["seats"]


@pytest.mark.parametrize("at", ["", "/events/7"])
@pytest.mark.parametrize("spelled", ["query", "body"])
def test_a_part_is_given_back_once_for_each_key(house, at, spelled):
    client, _, _ = house
    sale = {"partnerId": "abc-corp", "seats": 9}
    place = client.post(f"{at}/reservations", json=sale).headers["Location"]

    def give(seats, key):
        sent = (
            {"query_string": {"seats": seats}}
            if spelled == "query"
            else {"json": {"seats": seats}}
        )
        return client.delete(place, headers={"Idempotency-Key": key}, **sent)

    first = [give(2, "a"), give(2, "b")]
    assert [each.status_code for each in first] == [204, 204]
    assert seats_of(client, place) == 5
    again = [give(2, "a"), give(2, "b")]
    assert all(map(is_replay, again, first))
    assert seats_of(client, place) == 5


@pytest.mark.parametrize("name", ["partial return", "partial return in an event"])
def test_a_key_of_another_partial_return_is_422(house, db, name):
    client, _, todo = house
    change = todo[name]
    first = change.send(client, headers=KEY)
    other = change._replace(path=change.path.replace("seats=2", "seats=1"))
    with unchanged(db):
        answer = other.send(client, headers=KEY)
    assert answer.status_code == 422
    assert "Idempotency-Key" in error_of(answer)
    assert is_replay(change.send(client, headers=KEY), first)


def test_a_key_of_another_partial_cancel_is_422_in_v1(house, db):
    client, _, todo = house
    change = todo["partly cancelled booking"]
    first = change.send(client, headers=KEY)
    with unchanged(db):
        answer = change._replace(body={"ticketsToCancel": 1}).send(client, headers=KEY)
    assert answer.status_code == 422
    assert "Idempotency-Key" in error_of(answer)
    assert is_replay(change.send(client, headers=KEY), first)


def test_a_key_belongs_to_the_reservation_that_it_came_with(house):
    client, _, _ = house
    sale = {"partnerId": "abc-corp", "seats": 5}
    one, other = (
        client.post("/reservations", json=sale).headers["Location"] for _ in range(2)
    )
    for place in (one, other):
        answer = client.delete(f"{place}?seats=2", headers=KEY)
        assert answer.status_code == 204
        assert "Idempotent-Replayed" not in answer.headers
        assert seats_of(client, place) == 3


def test_a_key_of_a_sale_is_free_for_a_partial_return_of_it(house):
    client, _, _ = house
    sale = {"partnerId": "abc-corp", "seats": 5}
    first = client.post("/reservations", json=sale, headers=KEY)
    place = first.headers["Location"]
    assert client.delete(f"{place}?seats=2", headers=KEY).status_code == 204
    assert seats_of(client, place) == 3
    assert is_replay(client.post("/reservations", json=sale, headers=KEY), first)
    assert seats_of(client, place) == 3


def test_a_refused_partial_return_is_not_remembered(house, db):
    client, _, todo = house
    change = todo["partial return"]
    with unchanged(db):
        stale = change.send(client, headers=KEY | {"If-Match": '"99"'})
        large = change._replace(path=change.path.replace("seats=2", "seats=10"))
        too_many = large.send(client, headers=KEY)
    assert (stale.status_code, too_many.status_code) == (412, 400)
    answer = change.send(client, headers=KEY)
    assert answer.status_code == 204
    assert "Idempotent-Replayed" not in answer.headers


def test_a_partial_return_is_replayed_even_after_the_rest_was_cancelled(house, db):
    client, _, todo = house
    first = todo["partial return"].send(client, headers=KEY)
    assert todo["cancel"].send(client).status_code == 204
    with unchanged(db):
        assert is_replay(todo["partial return"].send(client, headers=KEY), first)
        assert todo["partial return"].send(client).status_code == 404


def test_a_replay_is_given_only_to_the_owner(house, db, make_app):
    client, headers = inhabited(make_app, db)
    sale = {"partnerId": "abc-corp", "seats": 5}
    sold = client.post("/reservations", json=sale, headers=headers["ann"])
    part = f"{sold.headers['Location']}?seats=2"
    first = client.delete(part, headers=headers["ann"] | KEY)
    assert first.status_code == 204
    with unchanged(db):
        assert client.delete(part, headers=headers["bob"] | KEY).status_code == 403
        assert client.delete(part, headers=KEY).status_code == 401
        assert is_replay(client.delete(part, headers=headers["ann"] | KEY), first)


def test_a_waiting_order_gives_a_part_back_once_for_each_key(house):
    client, _, _ = house
    sale = {"partnerId": "abc-corp", "seats": 10, "waitlist": True}
    opened = {"eventId": "small", "totalTickets": 10}
    assert client.post("/initialize", json=opened).status_code == 201
    path = "/events/small/reservations"
    assert client.post(path, json=sale).status_code == 201
    place = client.post(path, json=sale).headers["Location"]
    first = client.delete(f"{place}?seats=2", headers=KEY)
    assert is_replay(client.delete(f"{place}?seats=2", headers=KEY), first)
    record = client.get(place).json
    assert (record["status"], record["seats"]) == ("waitlisted", 8)


def test_of_twenty_simultaneous_returns_with_one_key_one_counts(house, make_app):
    _, _, todo = house
    change = todo["partial return"]
    apps = [make_app(), make_app()]
    start = threading.Barrier(20, timeout=20)

    def give_back(app):
        start.wait()
        return change.send(app.test_client(), headers=KEY)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(give_back, apps * 10))
    assert [each.status_code for each in answers] == [204] * 20
    replayed = [each for each in answers if "Idempotent-Replayed" in each.headers]
    assert len(replayed) == 19
    assert seats_of(apps[0].test_client(), change.path) == 7


def lists_in(value):
    """All lists and objects in a JSON value."""
    if isinstance(value, (dict, list)):
        yield value
        for each in value.values() if isinstance(value, dict) else value:
            yield from lists_in(each)


def test_the_last_hundred_keys_of_a_reservation_are_kept_and_no_more(house, saved, db):
    client, _, _ = house
    opened = {"eventId": 9, "totalTickets": 500}
    assert client.post("/initialize", json=opened).status_code == 201
    booking = BOOKER | {"eventId": 9, "ticketsReserved": 300}
    number = client.post("/api/v1/booking", json=booking).json["data"]["id"]

    def cancel_one(key):
        return client.delete(
            f"/api/v1/booking/{number}",
            json={"ticketsToCancel": 1},
            headers={"Idempotency-Key": f"key-{key}"},
        )

    first = [cancel_one(key) for key in range(103)]
    assert {each.status_code for each in first} == {200}
    with unchanged(db):
        assert is_replay(cancel_one(102), first[102])
        assert is_replay(cancel_one(3), first[3])
    records = saved()["events"]["9"]["reservations"]
    assert max(map(len, lists_in(records))) <= 100
    assert client.get("/events/9").json["reservationCount"] == 300 - 103


def test_no_answer_to_partners_shows_the_digest_of_a_key(house, saved):
    client, _, todo = house
    change = todo["partial return"]
    assert change.send(client, headers=KEY).status_code == 204
    place = change.path.partition("?")[0]
    assert client.get(place).json.keys() == LISTED
    assert {key for r in client.get("/reservations").json for key in r} == LISTED
    opened = {"eventId": "keyed", "totalTickets": 5}
    assert client.post("/initialize", json=opened, headers=KEY).status_code == 201
    assert client.get("/events/keyed").json == {
        "eventId": "keyed",
        "id": "keyed",
        "name": "Event keyed",
        "totalSeats": 5,
        "totalTickets": 5,
        "availableSeats": 5,
        "availableTickets": 5,
        "reservationCount": 0,
        "version": 0,
        "price": 0,
    }


def test_a_file_without_keys_has_no_field_for_keys(client, saved):
    opened = {"eventId": 9, "totalTickets": 5}
    assert client.post("/initialize", json=opened).status_code == 201
    assert saved()["events"]["9"]["event"].keys() == {
        "eventId",
        "name",
        "totalSeats",
        "availableSeats",
        "version",
        "createdAt",
    }


# --- opening events ---------------------------------------------------------------


@pytest.mark.parametrize("body", [{"name": "Talk"}, {"eventId": 8}, {"eventId": "x"}])
def test_an_event_opened_twice_with_one_key_is_one_event(client, db, body):
    body |= {"totalTickets": 5}
    first = client.post("/initialize", json=body, headers=KEY)
    assert first.status_code == 201
    with unchanged(db):
        again = client.post("/initialize", json=body, headers=KEY)
    assert is_replay(again, first)
    assert again.headers["ETag"] == first.headers["ETag"] == '"0"'
    assert len(client.get("/events").json) == 2


def test_a_replayed_opening_is_the_first_answer_after_a_sale(client, db):
    body = {"name": "Talk", "totalTickets": 5}
    first = client.post("/initialize", json=body, headers=KEY)
    sale = {"partnerId": "abc-corp", "seats": 3}
    path = f"{first.headers['Location']}/reservations"
    assert client.post(path, json=sale).status_code == 201
    with unchanged(db):
        again = client.post("/initialize", json=body, headers=KEY)
    assert is_replay(again, first)
    assert again.json["availableTickets"] == 5
    assert again.headers["ETag"] == '"0"'


def test_a_replayed_dated_event_is_the_first_answer_after_a_sale(house, db):
    client, root, todo = house
    first = todo["dated event"].send(client, headers=root | KEY)
    number = first.json["data"]["id"]
    booking = BOOKER | {"eventId": number, "ticketsReserved": 3}
    assert client.post("/api/v1/booking", json=booking).status_code == 201
    with unchanged(db):
        again = todo["dated event"].send(client, headers=root | KEY)
    assert is_replay(again, first)
    assert again.headers["ETag"] == first.headers["ETag"] == '"0"'


@pytest.mark.parametrize(
    "other", [{"totalTickets": 6}, {"name": "Walk"}, {"eventId": 9}, {"price": 1}]
)
def test_a_key_of_another_opening_is_422(client, db, other):
    body = {"name": "Talk", "totalTickets": 5}
    first = client.post("/initialize", json=body, headers=KEY)
    with unchanged(db):
        answer = client.post("/initialize", json=body | other, headers=KEY)
    assert answer.status_code == 422
    assert "Idempotency-Key" in error_of(answer)
    assert is_replay(client.post("/initialize", json=body, headers=KEY), first)


def test_a_refused_opening_is_not_remembered(client, db):
    body = {"eventId": SEEDED, "totalTickets": 5}
    with unchanged(db):
        assert client.post("/initialize", json=body, headers=KEY).status_code == 409
    body["eventId"] = "free"
    answer = client.post("/initialize", json=body, headers=KEY)
    assert answer.status_code == 201
    assert "Idempotent-Replayed" not in answer.headers


def test_an_event_that_is_opened_for_the_second_time_is_not_the_first_ones_replay(
    client, db
):
    body = {"eventId": 8, "totalTickets": 5}
    assert client.post("/initialize", json=body, headers=KEY).status_code == 201
    with unchanged(db):
        other = client.post("/initialize", json=body, headers={"Idempotency-Key": "l"})
        none = client.post("/initialize", json=body)
    assert (other.status_code, none.status_code) == (409, 409)


def test_a_key_of_one_dialect_opens_an_event_in_the_other_too(house):
    client, root, _ = house
    dated = {"name": "Concert", "date": "2024-12-01", "totalTickets": 5}
    before = len(client.get("/events").json)
    one = client.post("/initialize", json=dated, headers=root | KEY)
    other = client.post("/api/v1/event", json=dated, headers=root | KEY)
    assert (one.status_code, other.status_code) == (201, 201)
    assert one.json["id"] != other.json["data"]["id"]
    assert len(client.get("/events").json) == before + 2


def test_a_key_belongs_to_the_account_that_opens(house):
    client, root, _ = house
    body = {"name": "Talk", "totalTickets": 5}
    by_root = client.post("/initialize", json=body, headers=root | KEY)
    by_nobody = client.post("/initialize", json=body, headers=KEY)
    assert (by_root.status_code, by_nobody.status_code) == (201, 201)
    assert by_root.json["id"] != by_nobody.json["id"]


def test_of_twenty_simultaneous_openings_with_one_key_one_opens_an_event(
    client, make_app
):
    apps = [client.application, make_app()]
    start = threading.Barrier(20, timeout=20)

    def open_event(app):
        start.wait()
        body = {"name": "Talk", "totalTickets": 5}
        return app.test_client().post("/initialize", json=body, headers=KEY)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(open_event, apps * 10))
    assert {each.status_code for each in answers} == {201}
    assert len({json.dumps(each.json) for each in answers}) == 1
    assert len(client.get("/events").json) == 2


# --- an event that is opened again under its id ---------------------------------------


def successor(client, root, event_id):
    """The answer to opening an event under the id of one that was removed."""
    body = {"eventId": event_id, "name": "The next one", "totalTickets": 5}
    return client.post("/initialize", json=body, headers=root)


@pytest.mark.parametrize("name", ["removal", "removal of a dated event"])
def test_a_repeated_removal_leaves_the_events_successors_alone(house, db, name):
    client, root, todo = house
    removal = todo[name]
    assert removal.send(client, headers=root | KEY).status_code in {200, 204}
    for _ in range(2):
        assert successor(client, root, removal.event_id).status_code == 201
        with unchanged(db):
            again = removal.send(client, headers=root | KEY | {"If-Match": "*"})
        assert again.status_code == 404
        assert "Idempotency-Key" in error_of(again)
        assert removal.send(client, headers=root).status_code in {200, 204}


def test_a_removal_with_another_key_is_another_removal(house):
    client, root, todo = house
    version = client.get("/events/7").json["version"]
    for key in "ab":
        headers = root | {"Idempotency-Key": key}
        assert todo["removal"].send(client, headers=headers).status_code == 204
        assert successor(client, root, 7).status_code == 201
    assert client.get("/events/7").json["version"] == version + 4


def test_a_key_of_one_change_of_an_event_is_free_for_the_others(house):
    client, root, _ = house
    path, body = "/events/talk", {"eventId": "talk", "totalTickets": 5}
    answers = [
        client.post("/initialize", json=body, headers=root | KEY),
        client.patch(path, json={"totalSeats": 6}, headers=root | KEY),
        client.delete(path, headers=root | KEY),
    ]
    assert [each.status_code for each in answers] == [201, 200, 204]
    assert not any("Idempotent-Replayed" in each.headers for each in answers)


def test_a_repeated_change_of_an_event_leaves_its_successor_alone(house, db):
    client, root, todo = house
    change = {"json": {"totalSeats": 60}, "headers": root | KEY}
    first = client.patch("/events/7", **change)
    assert first.status_code == 200
    assert todo["removal"].send(client, headers=root).status_code == 204
    assert successor(client, root, 7).status_code == 201
    with unchanged(db):
        again = client.patch("/events/7", **change)
    assert again.status_code == 200
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["ETag"] == first.headers["ETag"]


def test_a_repeated_opening_opens_no_other_event_beside_a_successor(house, db):
    client, root, _ = house
    body = {"name": "Talk", "totalTickets": 5}
    first = client.post("/initialize", json=body, headers=root | KEY)
    number = first.json["id"]
    assert client.delete(f"/events/{number}", headers=root).status_code == 204
    assert successor(client, root, number).status_code == 201
    with unchanged(db):
        again = client.post("/initialize", json=body, headers=root | KEY)
    assert is_replay(again, first)
