"""Faults of the catalogue that belong to no other promise.

Each of them is made to happen, by the operating system where that can be: the answer
is the documented one, the file is what it was, and afterwards all goes on.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import jwt
import pytest
from furnished import register

import ticketboss
from ticketboss import (
    Store,
    Unavailable,
)

ORDER = {"partnerId": "abc-corp", "seats": 3}


def sell(client, seats=3):
    """Ask for seats."""
    return client.post("/reservations", json=ORDER | {"seats": seats})


@pytest.mark.parametrize(
    "double",
    [
        ('"version": 0', '"version": 0, "version": 0'),
        ('"reservations": {}', '"reservations": {}, "reservations": {}'),
        ('{"reservationId": "a"', '{"reservationId": "a", "reservationId": "a"'),
        (
            '"a": {',
            (
                '"a": {"reservationId": "a", "partnerId": "x", "seats": 2, '
                '"status": "cancelled"}, "a": {'
            ),
        ),
    ],
)
def test_a_file_in_which_a_field_comes_twice_is_refused(client, db, double):
    whole = json.loads(db.read_text())
    if '"a"' in double[0]:
        whole["reservations"] = {
            "a": {
                "reservationId": "a",
                "partnerId": "x",
                "seats": 2,
                "status": "cancelled",
            }
        }
    good = json.dumps(whole)
    assert double[0] in good
    db.write_text(good)
    assert client.get("/_health").status_code == 200
    db.write_text(good.replace(*double))
    assert sell(client).status_code == 503
    assert db.read_text() == good.replace(*double)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ('"version": 0', "version"),
        ('"reservations": {}', "reservations"),
        ('"name": "Node.js Meet-up"', "name"),
    ],
)
def test_the_refusal_of_a_field_that_comes_twice_names_it(client, db, field, name):
    double = db.read_text().replace(field, f"{field}, {field}")
    db.write_text(double)
    told = client.get("/_health")
    assert told.status_code == 503
    assert f"'{name}'" in told.json["error"]
    with pytest.raises(Unavailable, match=f"'{name}'"):
        Store(str(db)).load()
    assert db.read_text() == double


def with_members(**changes):
    """Accounts as they should be, but for this in the second one."""
    ann, bob = (
        {
            "id": number,
            "username": name,
            "email": f"{name}@example.com",
            "password": "x",
            "role": "user",
        }
        for number, name in ((1, "ann"), (2, "bob"))
    )
    return {"version": 2, "secret": "x" * 32, "members": {"1": ann, "2": bob | changes}}


BAD_ACCOUNTS = {
    "no secret": with_members() | {"secret": ""},
    "a short secret": with_members() | {"secret": "x" * 31},
    "an id yet to come": with_members() | {"version": 1},
    "no version": {k: v for k, v in with_members().items() if k != "version"},
    "a negative version": {"version": -5},
    "another id": with_members(id=3),
    "an id of nobody": with_members()
    | {"members": {"0": with_members(id=0)["members"]["2"]}},
    "under another key": with_members()
    | {"members": {"02": with_members()["members"]["2"]}},
    "under its address": with_members()
    | {"members": {"bob@example.com": with_members()["members"]["2"]}},
    "one address": with_members(email="ann@example.com"),
    "one address in two cases": with_members(email="ANN@example.com"),
    "one name": with_members(username="ann"),
    "one name in two forms": with_members(username="\uff21nn"),
    "an unknown role": with_members(role="boss"),
    "an unknown field": with_members(phone="7"),
}


@pytest.mark.parametrize("accounts", BAD_ACCOUNTS.values(), ids=BAD_ACCOUNTS)
def test_accounts_that_do_not_add_up_are_refused_and_left_alone(
    client, make_app, db, accounts
):
    whole = json.loads(db.read_text())
    db.write_text(json.dumps(whole | {"accounts": with_members()}))
    assert client.get("/_health").json == {"ok": True}
    bad = json.dumps(whole | {"accounts": accounts}, ensure_ascii=False)
    db.write_text(bad)
    told = client.get("/_health")
    assert (told.status_code, told.json["ok"]) == (503, False)
    with pytest.raises(Unavailable) as refusal:
        make_app()
    for words in told.json["error"], str(refusal.value), sell(client).json["error"]:
        assert "account" in words
        assert not re.search("@|\uff20|example|xxx", words)
    assert db.read_text() == bad


def test_a_file_whose_first_event_is_deleted_is_refused_and_left_alone(
    client, make_app, db
):
    whole = json.loads(db.read_text())
    whole["event"]["deleted"] = True
    bad = json.dumps(whole)
    db.write_text(bad)
    told = client.get("/_health")
    assert (told.status_code, told.json["ok"]) == (503, False)
    assert "deleted" in told.json["error"]
    with pytest.raises(Unavailable, match="deleted"):
        make_app()
    for path in ("/event", "/events", "/report", "/reservations"):
        assert client.get(path).status_code == 503
    assert db.read_text() == bad


def test_a_file_of_a_newer_layout_is_refused_and_left_alone(client, db):
    newer = json.dumps(json.loads(db.read_text()) | {"schema": 99})
    db.write_text(newer)
    assert sell(client).status_code == client.get("/event").status_code == 503
    assert db.read_text() == newer


@pytest.mark.parametrize(
    "make", [lambda lock: os.symlink("db.json", lock), os.mkdir, os.mkfifo]
)
def test_a_lock_that_is_no_plain_file_is_refused_or_does_no_harm(db, make):
    Store(str(db)).open(5)
    lock, before = db.with_name(".db.json.lock"), db.read_bytes()
    lock.unlink()
    make(lock)
    refusals = []

    def start():
        try:
            Store(str(db), timeout_s=0.2).open(5)
        except ticketboss.TicketBossError as error:
            refusals.append(error)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert [str(db) in str(error) for error in refusals] == [False]
    assert db.read_bytes() == before


def test_a_server_without_free_descriptors_reports_it_and_recovers(make_app, db):
    client = make_app().test_client()
    assert sell(client).status_code == 201
    before, (soft, hard) = db.read_bytes(), resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        stack.callback(gc.enable)
        gc.disable()  # it may close files of earlier tests
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                stack.enter_context(open(os.devnull))
        answer = sell(client)
        assert (answer.status_code, answer.is_json) == (503, True)
        assert client.get("/event").json["availableSeats"] == 497
    assert db.read_bytes() == before
    assert sell(client).status_code == 201
    assert client.get("/event").json["availableSeats"] == 494


@pytest.mark.parametrize("fault", [MemoryError, OSError(errno.ENOMEM, "no memory")])
def test_a_write_without_memory_changes_nothing(client, db, monkeypatch, fault):
    before = db.read_bytes()

    def write(*_):
        raise fault

    monkeypatch.setattr(os, "write", write)
    answer = sell(client)
    monkeypatch.undo()
    assert (answer.status_code, answer.is_json) == (503, True)
    assert db.read_bytes() == before
    assert {p.name for p in db.parent.iterdir()} == {"db.json", ".db.json.lock"}
    assert sell(client).status_code == 201


def test_a_bug_in_one_decision_fails_that_request_alone(client, db):
    office, before = client.application, db.read_bytes()
    with pytest.raises(ZeroDivisionError):
        office.box_office.transactions.transact(lambda _: 1 // 0)
    assert db.read_bytes() == before
    assert sell(client).status_code == 201


@pytest.mark.parametrize("jump_s", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_that_jumps_changes_no_order_and_no_wait(
    make_app, saved, monkeypatch, jump_s
):
    client, real = make_app(seats=4).test_client(), time.time
    held = sell(client).json["reservationId"]
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    waits = [
        client.post(
            "/reservations", json={"partnerId": name, "seats": 2, "waitlist": True}
        ).json
        for name in "ab"
    ]
    monkeypatch.undo()
    waits.append(
        client.post(
            "/reservations", json={"partnerId": "c", "seats": 2, "waitlist": True}
        ).json
    )
    assert [each["position"] for each in waits] == [1, 2, 3]
    assert client.delete(f"/reservations/{held}").status_code == 204
    kept = saved()["reservations"]
    assert [kept[each["reservationId"]]["status"] for each in waits] == [
        "confirmed",
        "confirmed",
        "waitlisted",
    ]


@pytest.mark.usefixtures("cheap_hashes")
@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "x",
        "scrypt:7:8:1$salt$00",
        "plain$a$b",
        "scrypt:x:8:1$a$b",
        "pbkdf2:sha0:1$a$b",
        "$$",
    ],
)
def test_a_damaged_password_hash_matches_no_password(make_app, db, saved, damaged):
    client = make_app().test_client()
    client.post(
        "/api/v1/auth/register",
        json={"username": "ann", "email": "ann@example.com", "password": "12345678"},
    )
    whole = saved()
    whole["accounts"]["members"]["1"]["password"] = damaged
    db.write_text(json.dumps(whole))
    answer = client.post("/login", json={"username": "ann", "password": "12345678"})
    assert answer.status_code in {401, 503}
    assert answer.is_json


@pytest.mark.parametrize(
    "iat", ["0", 0.5, True, None, [], 10**400, "\u0661"], ids=lambda iat: str(iat)[:9]
)
def test_a_token_whose_age_is_no_whole_number_is_bad(make_app, iat):
    secret = "thirty-two bytes are enough for this"
    client = make_app(jwt_secret=secret).test_client()
    claims = {"sub": "1", "iat": iat, "exp": int(time.time()) + 60, "jti": "x"}
    encoded = jwt.api_jws.encode(json.dumps(claims).encode(), secret, "HS256")
    answer = client.get("/event", headers={"Authorization": f"Bearer {encoded}"})
    assert (answer.status_code, answer.json["error"]) == (
        401,
        "Unauthorized. Invalid token.",
    )


@pytest.mark.parametrize("query", ["\xff", "limit=\xff", "\xe9=1"], ids=ascii)
@pytest.mark.parametrize("path", ["/reservations", "/report", "/event", "/nothing"])
def test_a_query_that_is_not_utf_8_causes_no_500(client, path, query):
    answer = client.get(path, environ_overrides={"QUERY_STRING": query})
    assert answer.status_code in {200, 400, 404}
    assert answer.is_json


def test_a_refused_options_request_has_the_content_type_json(make_app):
    client = make_app(rate_limit="1 per hour").test_client()
    assert client.options("/event").status_code == 200
    answer = client.options("/event")
    assert (answer.status_code, answer.content_type) == (429, "application/json")


def test_slow_clients_do_not_block_other_clients(serve, db):
    server = serve()
    address = urlsplit(server.url).hostname, urlsplit(server.url).port
    with ExitStack() as stack:
        for _ in range(200):
            wire = stack.enter_context(socket.create_connection(address, timeout=20))
            wire.sendall(
                b"POST /reservations HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Length: 33\r\n\r\n{"
            )
        assert server.ask("POST", "/reservations", ORDER)[0] == 201
        assert server.ask("GET", "/event")[1]["version"] == 1


def test_no_administration_path_and_no_file_is_served(client):
    for path in (
        "/metrics",
        "/admin",
        "/debug",
        "/console",
        "/static/x",
        "/db.json",
        "/.db.json.lock",
        "/ticketboss.py",
        "/..%2fdb.json",
    ):
        answer = client.get(path)
        assert (answer.status_code, answer.is_json) == (404, True)


def test_a_refusal_of_a_damaged_file_names_no_path_to_strangers(client, db):
    db.write_text("{")
    with pytest.raises(Unavailable):
        Store(str(db)).load()
    for path in ("/event", "/_health", "/reservations", "/report"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert str(db.parent) not in answer.text


@pytest.mark.parametrize(
    "odd", ["%0d%0aGET /forged 200", "\x1b[2J", "\u2028x", "\xff"], ids=ascii
)
def test_a_request_is_one_line_in_the_log_whatever_its_path(make_app, caplog, odd):
    client = make_app().test_client()
    with caplog.at_level("INFO", "ticketboss"):
        client.get(f"/reservations/{odd}")
    (line,) = (
        record.getMessage() for record in caplog.records if record.name == "ticketboss"
    )
    assert line.startswith("GET /reservations/")
    assert line.isascii()
    assert line.isprintable()


def test_the_log_says_why_a_request_failed_and_under_which_id(make_app, caplog, db):
    client = make_app().test_client()
    with caplog.at_level("INFO", "ticketboss"):
        client.get("/event")
        client.get("/attempts")  # whose ETag is no version
        db.write_text('{"event": 1}')
        answer = client.get("/event", headers={"X-Request-ID": "mine-7"})
    lines = [
        re.sub(r"[0-9.]+ms", "ms", record.getMessage())
        for record in caplog.records
        if record.name == "ticketboss"
    ]
    assert answer.status_code == 503
    assert lines == [
        "GET /event 200 ms version=0",
        "GET /attempts 200 ms",
        f"GET /event 503 ms id=mine-7 {answer.text.strip()}",
    ]


HOLDER = """
import sys
from ticketboss import Store
with Store(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_free_again_once_its_holder_is_killed(make_app, db):
    client = make_app(timeout_s=0.1).test_client()
    before = db.read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(db)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(ticketboss.__file__).parent,
    ) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            holder.send_signal(signal.SIGSTOP)
            assert sell(client).status_code == 409
            assert client.get("/event").status_code == 200
            assert db.read_bytes() == before
        finally:
            holder.kill()
    assert sell(client).status_code == 201


def test_a_password_is_stored_as_a_hash_that_is_expensive_to_guess(client, saved):
    assert register(client, "ann").status_code == 201
    method, salt, digest = saved()["accounts"]["members"]["1"]["password"].split("$")
    name, *cost = method.split(":")
    assert name == "scrypt"
    assert all(map(int.__ge__, map(int, cost), (2**15, 8, 1)))
    assert len(salt) >= 16
    assert len(digest) == 128


FIRST_USES = """
import contextlib, sys, threading
import msgspec, ticketboss
from werkzeug.exceptions import HTTPException

sys.setswitchinterval(1e-6)

def subclasses(base):
    for kind in base.__subclasses__():
        yield kind
        yield from subclasses(kind)

def decode_each_field(kind, start):
    start.wait()
    for name in reversed(kind.__struct_encode_fields__):
        with contextlib.suppress(msgspec.ValidationError, HTTPException):
            msgspec.json.decode('{"%s": 1}' % name, type=kind)

for base in ticketboss.Value, ticketboss.Fields:
    for kind in subclasses(base):
        start = threading.Barrier(8)
        threads = [
            threading.Thread(target=decode_each_field, args=[kind, start])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
"""


def test_threads_that_decode_a_type_for_the_first_time_do_not_crash_the_process():
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", FIRST_USES],
            cwd=Path(ticketboss.__file__).parent,
            capture_output=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, b"")
