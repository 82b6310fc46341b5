"""`audit` reports faults that a server tolerates; `audit --repair` serves the line."""

from __future__ import annotations

import copy
import json
import re

import pytest
from click.testing import CliRunner
from furnished import BOOKER, PASSWORD, SEEDED, furnished, people, unchanged

import ticketboss

SOLD_AT = "2026-01-01T00:00:00.000Z"
ENDED_AT = "2026-01-01T00:00:01.000Z"


def record(name, version, seats=1, status="confirmed", **more):
    """A reservation as it is in the file."""
    return {
        "reservationId": name,
        "partnerId": "p",
        "seats": seats,
        "status": status,
        "ts": SOLD_AT,
        "eventVersionAtReservation": version,
    } | more


def document(event_id, total, version, *records):
    """An event as it is in the file, with sums that are right."""
    held = sum(r["seats"] for r in records if r["status"] == "confirmed")
    return {
        "event": {
            "eventId": event_id,
            "name": "An Evening",
            "totalSeats": total,
            "availableSeats": total - held,
            "version": version,
        },
        "reservations": {r["reservationId"]: r for r in records},
    }


def cancelled(name, version, at, **more):
    """A cancelled reservation as it is in the file."""
    end = {"cancelledAt": ENDED_AT, "eventVersionAtCancel": at}
    return record(name, version, status="cancelled", **end | more)


def good():
    """A file in which nothing is wrong, and something of everything."""
    file = document(
        SEEDED,
        10,
        10,
        record("sold", 1, 4, origin={"user": "id:ann"}),
        cancelled("gone", 2, 3, origin={"user": "id:bob"}),
        record("again", 4, origin={"user": "id:bob", "booking": 7}),
        record("part", 5, 5, seatsReturned=2, origin={"booking": 8}),
        record("waits", 6, 10, "waitlisted", position=1),
        cancelled("left", 7, 8, position=2, origin={"user": "id:eve"}),
        record("queues", 9, 1, "waitlisted", position=2, origin={"user": "id:eve"}),
    )
    other = document(
        7,
        5,
        2,
        record("elsewhere", 1, origin={"user": "id:ann", "booking": 9}),
        record("partner", 2, origin={"user": "email:bob@example.com"}),
    )
    return file | {"events": {"7": other}}


def audit(db, *options):
    """The exit status and the output of an audit."""
    arguments = ["--db", str(db), "audit", *options]
    ended = CliRunner().invoke(ticketboss.main, arguments)
    assert "Traceback" not in ended.output
    assert ended.exception is None or isinstance(ended.exception, SystemExit)
    return ended.exit_code, ended.output


def test_an_audit_of_a_good_file_reports_nothing(db):
    db.write_text(json.dumps(good()))
    with unchanged(db):
        status, said = audit(db)
    assert status == 0, said
    assert "FAULT" not in said


def test_an_audit_of_a_file_that_the_server_wrote_reports_nothing(make_app, db):
    content, todo = furnished()
    db.write_bytes(content)
    client = make_app().test_client()
    root, ann = (people()[1][name] for name in ("root", "ann"))
    names = ("partial return", "cancelled ticket", "partly cancelled booking")
    for name in (*names, "cancel in an event", "cancelled booking"):
        assert todo[name].send(client, headers=root).status_code in {200, 204}
    sale = {"partnerId": "ann", "seats": 10, "waitlist": True}
    for _ in range(7):
        answer = client.post("/events/7/reservations", json=sale, headers=ann)
        assert answer.status_code in {201, 202}
    ticket = {"eventId": 7, "userId": "ann"}
    for path in ("/book", "/cancel", "/book"):
        assert client.post(path, json=ticket, headers=ann).status_code == 200
    booking = BOOKER | {"eventId": 7, "ticketsReserved": 20}
    assert client.post("/api/v1/booking", json=booking).status_code == 200
    status, said = audit(db)
    assert status == 0, said


# --- what is wrong, and does not stop a start ---------------------------------------


def without(name, field):
    """Take a field away from a record of the seeded event."""
    return lambda file: file["reservations"][name].pop(field)


def with_(name, event=None, **fields):
    """Set fields of a record of the seeded event, or of another."""

    def change(file):
        top = file["events"][event] if event else file
        top["reservations"][name].update(fields)

    return change


FAULTY = {
    "cancelled without a time": (without("gone", "cancelledAt"), ["gone"]),
    "cancelled without a version": (without("gone", "eventVersionAtCancel"), ["gone"]),
    "confirmed with a time": (with_("sold", cancelledAt=ENDED_AT), ["sold"]),
    "confirmed with a version": (with_("sold", eventVersionAtCancel=10), ["sold"]),
    "waiting with a time": (with_("waits", cancelledAt=ENDED_AT), ["waits"]),
    "cancelled before it was made": (
        with_("left", eventVersionAtReservation=8, eventVersionAtCancel=7),
        ["left"],
    ),
    "a user with two tickets": (
        with_("part", origin={"user": "id:ann", "booking": 8}),
        ["sold", "part"],
    ),
    "a user with a ticket who waits": (
        with_("waits", origin={"user": "id:ann"}),
        ["sold", "waits"],
    ),
    "a user who waits twice": (
        with_("waits", origin={"user": "id:eve"}),
        ["waits", "queues"],
    ),
    "a user under two forms of one name": (
        lambda file: (
            with_("sold", origin={"user": "id:Jos\u00e9"})(file),
            with_("part", origin={"user": "id:Jose\u0301", "booking": 8})(file),
        ),
        ["sold", "part"],
    ),
    "an account under two names": (
        lambda file: (
            with_("sold", origin={"user": "id:2", "account": 2})(file),
            with_("part", origin={"user": "id:ann", "account": 2})(file),
        ),
        ["sold", "part"],
    ),
    "a number of two bookings": (
        with_("again", origin={"booking": 8}),
        ["again", "part"],
    ),
    "a number of bookings of two events": (
        with_("elsewhere", "7", origin={"booking": 8}),
        ["elsewhere", "part"],
    ),
    "a number of a cancelled booking": (
        with_("gone", origin={"booking": 8}),
        ["gone", "part"],
    ),
    "waiting for more than there is": (with_("waits", seats=11), ["waits"]),
}


@pytest.mark.parametrize("name", FAULTY)
def test_an_audit_reports_faults_in_a_file_that_a_server_accepts(make_app, db, name):
    spoil, culprits = FAULTY[name]
    file = good()
    spoil(file)
    db.write_text(json.dumps(file))
    with unchanged(db):
        status, said = audit(db)
        assert make_app().test_client().get("/event").status_code == 200
    assert status == 1
    faults = [line for line in said.splitlines() if "FAULT" in line]
    assert len(faults) == 1
    assert any(culprit in faults[0] for culprit in culprits)
    assert "adds up" not in said


NO_FAULT = {
    "two accounts of one name": (
        with_("sold", origin={"user": "id:2", "account": 2}),
        with_("again", origin={"user": "id:2", "account": 3}),
    ),
    "an account and an open booking of its name": (
        with_("sold", origin={"user": "id:ann", "account": 2}),
        with_("again", origin={"user": "id:ann"}),
    ),
    "an account that reserves again and again": (
        with_("sold", origin={"account": 2}),
        with_("part", origin={"account": 2}),
    ),
    "an account that books several times in v1": (
        with_("sold", origin={"account": 2, "booking": 17}),
        with_("part", origin={"account": 2, "booking": 18}),
    ),
    "one name as id and as e-mail": (
        with_("sold", origin={"user": "id:ann@example.com"}),
        with_("again", origin={"user": "email:ann@example.com"}),
    ),
    "a file of seed 000": (
        without("sold", "origin"),
        without("again", "origin"),
    ),
}


@pytest.mark.parametrize("name", NO_FAULT)
def test_an_audit_does_not_report_what_is_allowed(db, name):
    file = good()
    for change in NO_FAULT[name]:
        change(file)
    db.write_text(json.dumps(file))
    status, said = audit(db)
    assert status == 0, said


def test_an_audit_does_not_take_two_addresses_for_one_person(client, db):
    for address in ("wei\u00df@example.com", "weiss@example.com"):
        ticket = {"eventId": SEEDED, "userEmail": address}
        assert client.post("/book", json=ticket).status_code == 200
    assert client.get("/event").json["reservationCount"] == 2
    status, said = audit(db)
    assert status == 0, said


def test_an_audit_names_each_fault_of_each_event(db):
    file = good()
    for name in ("cancelled without a time", "waiting for more than there is"):
        FAULTY[name][0](file)
    with_("partner", "7", cancelledAt=ENDED_AT)(file)
    db.write_text(json.dumps(file))
    status, said = audit(db)
    faults = [line for line in said.splitlines() if "FAULT" in line]
    assert (status, len(faults)) == (1, 3)
    assert "3 faults" in said


# --- who waits beside free seats ----------------------------------------------------


def left_behind(event_id=SEEDED):
    """What a program without a waiting list leaves: its head waits beside seats."""
    return document(
        event_id,
        10,
        5,
        cancelled("gone", 1, 5, seats=6),
        record("sold", 2, 4),
        record("head", 3, 2, "waitlisted", position=1),
        record("next", 4, 8, "waitlisted", position=2),
    )


def test_a_refusal_beside_seats_that_fit_the_head_points_to_the_repair(make_app, db):
    file = left_behind() | {"events": {"7": left_behind(7)}}
    db.write_text(json.dumps(file))
    client = make_app().test_client()
    sale = {"partnerId": "new", "seats": 1}
    with unchanged(db):
        for at in ("", "/events/7"):
            answer = client.post(f"{at}/reservations", json=sale)
            assert answer.status_code == 409
            assert list(answer.json) == ["error"]
            assert "Not enough seats" in answer.json["error"]
            assert "audit --repair" in answer.json["error"]
            assert client.get(f"{at}/reservations/head").json["position"] == 1


def test_where_no_order_at_the_head_fits_the_refusal_is_the_usual_one(make_app, db):
    full = document(
        SEEDED,
        10,
        3,
        record("sold", 1, 8),
        record("head", 3, 3, "waitlisted", position=1),
    )
    db.write_text(json.dumps(full))
    client = make_app().test_client()
    with unchanged(db):
        answer = client.post("/reservations", json={"partnerId": "new", "seats": 1})
        assert answer.json == {"error": "Not enough seats left"}
        assert audit(db)[0] == 0
        status, said = audit(db, "--repair")
        assert status == 0, said


def test_a_newcomer_joins_the_end_and_a_cancel_serves_the_head(make_app, db):
    db.write_text(json.dumps(left_behind()))
    client = make_app().test_client()
    sale = {"partnerId": "new", "seats": 1, "waitlist": True}
    joined = client.post("/reservations", json=sale)
    assert (joined.status_code, joined.json["position"]) == (202, 3)
    assert client.get("/reservations/head").json["status"] == "waitlisted"
    assert client.delete("/reservations/sold?seats=1").status_code == 204
    assert client.get("/reservations/head").json["status"] == "confirmed"
    assert client.get("/reservations/next").json["position"] == 1


def test_an_audit_names_orders_that_wait_beside_free_seats_and_the_remedy(db):
    db.write_text(json.dumps(left_behind()))
    with unchanged(db):
        status, said = audit(db)
    assert status == 1
    faults = [line for line in said.splitlines() if "FAULT" in line]
    assert len(faults) == 1
    assert "head" in faults[0]
    assert "audit --repair" in said


def test_a_repair_serves_the_head_as_one_version(make_app, db, saved):
    before = left_behind()
    db.write_text(json.dumps(before | {"events": {"7": left_behind(7)}}))
    running = make_app().test_client()
    status, said = audit(db, "--repair")
    assert status == 0, said
    assert "head" in said
    after = copy.deepcopy(before)
    after["event"] |= {"availableSeats": 4, "version": 6}
    after["reservations"]["head"]["status"] = "confirmed"
    file = saved()
    assert file["event"] == after["event"]
    assert file["reservations"] == after["reservations"]
    assert file["events"]["7"]["event"]["version"] == 6
    assert file["events"]["7"]["reservations"] == after["reservations"]
    with unchanged(db):
        assert audit(db)[0] == 0
        assert audit(db, "--repair")[0] == 0
    told = running.get("/event")
    assert (told.json["availableSeats"], told.headers["ETag"]) == (4, '"6"')


def test_a_repair_serves_all_that_fit_in_their_order(db, saved):
    file = document(
        SEEDED,
        10,
        4,
        record("one", 2, 3, "waitlisted", position=1),
        record("two", 3, 8, "waitlisted", position=2),
        record("three", 4, 1, "waitlisted", position=3),
    )
    db.write_text(json.dumps(file))
    assert audit(db, "--repair")[0] == 0
    became = {r["reservationId"]: r["status"] for r in saved()["reservations"].values()}
    assert became == {"one": "confirmed", "two": "waitlisted", "three": "waitlisted"}
    assert saved()["event"] == file["event"] | {"availableSeats": 7, "version": 5}


def test_a_repair_of_a_good_file_changes_no_byte(db):
    db.write_text(json.dumps(good()))  # not in our own layout
    with unchanged(db):
        status, said = audit(db, "--repair")
    assert status == 0, said


@pytest.mark.parametrize("name", FAULTY)
def test_a_repair_leaves_alone_and_names_what_it_cannot_repair(db, name):
    file = good()
    FAULTY[name][0](file)
    db.write_text(json.dumps(file))
    with unchanged(db):
        status, said = audit(db, "--repair")
    assert status == 1
    assert "FAULT" in said


def test_a_repair_of_no_file_makes_none(db):
    status, said = audit(db, "--repair")
    assert status == 1
    assert re.search("(?i)no such file", said)
    assert not db.exists()


def test_an_audit_shows_no_password(db):
    db.write_bytes(people()[0])
    said = audit(db)[1] + audit(db, "--repair")[1]
    assert "scrypt" not in said
    assert PASSWORD not in said
