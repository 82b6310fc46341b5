"""Failed logins are limited, good ones are not, and no crowd of logins holds up others.

A class behind one address registers and logs in. Guesses are stopped: at one account
from one address, and at many accounts from one address; but nobody can lock another
out of an account. A limiter never answers 500. A token is void once its account is not
what it was.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import Server
from deployed import Launched, assert_option_is_refused
from keepalive import Answer, Client, Crowd

import ticketboss

PASSWORD = "securePassword1"
SECRET = b"a secret of thirty-two bytes or more"
WAYS = ("/login", "/api/v1/auth/login")


def member(number: int) -> dict[str, str]:
    """What a student registers with."""
    return {
        "username": f"student{number}",
        "email": f"student{number}@example.com",
        "password": PASSWORD,
    }


class Guesser:
    """A client that logs in at a server with two students and a limit."""

    def __init__(self, server: Server) -> None:
        self.server = server
        for number in range(2):
            told = server.ask("POST", "/api/v1/auth/register", member(number))
            assert told[0] == 201

    def ask(
        self,
        name: str = "student0",
        password: str = "wrong",
        address: str = "127.0.0.1",
        way: str = "/login",
    ) -> Answer:
        """The answer; every address that begins with 127 is this machine."""
        body = {"email": f"{name}@example.com", "password": password}
        with Client(self.server.url) as client:
            client.connection.source_address = (address, 0)
            return client.ask("POST", way, body)

    def __call__(self, *who: str, **more: str) -> int:
        """The status."""
        return self.ask(*who, **more).status


# What is counted does not depend on what a hash costs.
CHEAP_SCRYPT = """
import hashlib
def cheap(*args, scrypt=hashlib.scrypt, **cost):
    return scrypt(*args, **cost | {"n": 1024})
hashlib.scrypt = cheap
"""


@pytest.fixture
def guesser(db: Path) -> Iterator[Callable[[str], Guesser]]:
    """guesser(limit): a client of a server with this limit."""
    with ExitStack() as running:

        def guesser(limit: str) -> Guesser:
            options = ["--db", str(db), "--port", "0", "--quiet"]
            server = Launched(db, *options, "--login-limit", limit, first=CHEAP_SCRYPT)
            running.callback(server.stop)
            return Guesser(server)

        yield guesser


@pytest.fixture
def guess(guesser: Callable[[str], Guesser]) -> Guesser:
    """guess(name, password, address, way): a login where three may fail."""
    return guesser("3 per minute")


def test_a_class_behind_one_address_registers_and_logs_in_all_at_once(
    serve, saved, pick
):
    server, told, students = serve(), [], pick(12, 30, 30)  # ten logins may fail

    def register(number: int) -> None:
        told.append(server.ask("POST", "/api/v1/auth/register", member(number))[0])

    def log_in(number: int) -> None:
        body = {"email": member(number)["email"], "password": PASSWORD}
        told.append(server.ask("POST", WAYS[number % 2], body)[0])

    with Crowd(students, register):
        pass
    assert told == [201] * students
    assert len(saved()["accounts"]["members"]) == students
    told.clear()
    with Crowd(students, log_in):
        pass
    assert told == [200] * students


def test_guesses_at_an_account_from_one_address_are_stopped(guess):
    assert [guess() for _ in range(3)] == [401] * 3
    late = guess.ask()
    assert (late.status, late.body["message"]) == (
        429,
        "Too many requests from this IP, please try again later.",
    )
    assert 0 < int(late.headers["Retry-After"]) <= 60
    assert late.headers["X-RateLimit-Limit"] == "3"
    assert late.headers["X-RateLimit-Remaining"] == "0"
    assert guess(password=PASSWORD) == 429  # too late to be right
    assert guess(password=PASSWORD, way=WAYS[1]) == 429
    assert guess("student1") == 401
    assert guess("student1", PASSWORD) == 200


def test_guesses_from_other_addresses_lock_no_user_out(guess):
    for number in (2, 3):
        address = f"127.0.0.{number}"
        assert [guess(address=address) for _ in range(4)] == [401] * 3 + [429]
    assert guess(password=PASSWORD) == 200


def test_both_login_routes_share_their_count_of_failures(guess):
    told = [guess(way=WAYS[number % 2]) for number in range(4)]
    assert told == [401] * 3 + [429]


def test_good_logins_do_not_count(guess):
    assert [guess(password=PASSWORD) for _ in range(5)] == [200] * 5
    assert [guess() for _ in range(4)] == [401] * 3 + [429]


def test_a_good_login_clears_no_earlier_failure(guess):
    told = [guess(password=p) for p in ("no", "no", PASSWORD, "no", PASSWORD)]
    assert told == [401, 401, 200, 401, 429]


def test_guesses_at_many_accounts_from_one_address_are_stopped(guesser):
    guess = guesser("1 per minute")
    told = [guess(f"nobody{number}") for number in range(11)]
    assert told == [401] * 10 + [429]
    assert guess("nobody", address="127.0.0.2") == 401


@pytest.mark.parametrize("limit", ["nonsense", "10", "", "-1 per minute"])
def test_an_unusable_login_limit_stops_the_start_in_one_line(
    tmp_path, monkeypatch, limit
):
    monkeypatch.chdir(tmp_path)
    assert_option_is_refused("--login-limit", limit)
    assert os.listdir(tmp_path) == []


def test_an_address_registers_sixty_times_a_minute(client):
    def ask(address: str = "192.0.2.1") -> Any:  # without a password: none is hashed
        return client.post(
            "/api/v1/auth/register", json={}, environ_base={"REMOTE_ADDR": address}
        )

    assert [ask().status_code for _ in range(60)] == [400] * 60
    late = ask()
    assert late.status_code == 429
    assert 0 < int(late.headers["Retry-After"]) <= 60
    assert ask("192.0.2.2").status_code == 400


def test_a_crowd_of_logins_delays_neither_reads_nor_sales(serve):
    server, crowd = serve(), 120
    clients = []
    try:
        for number in range(crowd):  # within all limits: ten an address
            client = Client(server.url)
            client.connection.source_address = (f"127.0.0.{2 + number // 10}", 0)
            clients.append(client)
            client.send("POST", "/login", {"username": f"u{number}", "password": "no"})
        for method, path in (("GET", "/_health"), ("GET", "/event")):
            assert server.ask(method, path)[0] == 200
        order = {"partnerId": "abc-corp", "seats": 1}
        assert server.ask("POST", "/reservations", order)[0] == 201
        sockets = [client.connection.sock for client in clients]
        early, _, _ = select.select(sockets, [], [], 0)
        answers = [(c.connection.sock in early, c.receive()) for c in clients]
    finally:
        for client in clients:
            client.connection.close()
    told = Counter(answer.status for _, answer in answers)
    assert set(told) == {401, 503}
    assert told[401] >= 30
    assert all(a.headers["Retry-After"] for _, a in answers if a.status == 503)
    # What the others were answered while most of these still waited for their hash.
    hashed = [was_early for was_early, a in answers if a.status == 401]
    assert sum(hashed) < len(hashed)


# --- The limiter itself ------------------------------------------------------


def test_a_limiter_of_many_clients_under_many_threads_never_answers_500(make_app):
    app, told = make_app(rate_limit="100 per 15 minutes"), []
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def ask(thread: int) -> None:
        client = app.test_client()
        for number in range(20):
            address = {"REMOTE_ADDR": f"10.1.{thread}.{number}"}
            told.append(client.get("/event", environ_base=address).status_code)

    try:
        with Crowd(8, ask):
            pass
    finally:
        sys.setswitchinterval(usual)
    assert told == [200] * 160


def test_a_window_from_the_future_is_forgotten_when_the_clock_is_right_again(
    make_app, monkeypatch
):
    client, real = make_app(rate_limit="3 per 15 minutes").test_client(), time.time
    monkeypatch.setattr(time, "time", lambda: real() + 30 * 86400)
    assert [client.get("/event").status_code for _ in range(4)] == [200] * 3 + [429]
    monkeypatch.undo()
    told = [client.get("/event") for _ in range(4)]
    assert [answer.status_code for answer in told] == [200] * 3 + [429]
    assert int(told[-1].headers["Retry-After"]) <= 900


# --- Many accounts -----------------------------------------------------------


def crowded(db: Path, members: int) -> None:
    """Give a database that many accounts."""
    whole = json.loads(db.read_text())
    whole["accounts"] = {
        "version": members,
        "secret": "0" * 64,
        "members": {
            str(number): {
                "id": number,
                "username": f"student{number}",
                "email": f"student{number}@example.com",
                "password": "nobody's",
                "role": "user",
            }
            for number in range(1, members + 1)
        },
    }
    db.write_text(json.dumps(whole))


@pytest.mark.parametrize("known", [True, False])
def test_a_login_takes_no_longer_where_there_are_more_accounts(
    make_app, db, monkeypatch, known
):
    monkeypatch.setattr(ticketboss, "check_password_hash", lambda *_: False)
    client = make_app().test_client()

    def took(members: int) -> float:
        crowded(db, members)
        assert client.get("/event").status_code == 200  # it is parsed now
        name = f"student{members}" if known else "nobody"
        body, times = {"email": f"{name}@example.com", "password": PASSWORD}, []
        for turn in range(2):
            began = time.perf_counter()
            for number in range(50):
                address = {"REMOTE_ADDR": f"192.0.{turn}.{number}"}
                answer = client.post("/login", json=body, environ_base=address)
                assert answer.status_code in {401, 429}
            times.append(time.perf_counter() - began)
        return min(times)

    assert took(16_000) <= 3 * max(took(1000), 0.1)


# --- What a token names ------------------------------------------------------


@pytest.fixture
def signed(make_app):
    """signed(): an app on this test's file, whose key outlives the file."""
    return lambda: make_app(jwt_secret=SECRET).test_client()


def token(client: Any, body: dict[str, str]) -> dict[str, str]:
    """Register, if need be, and log in; the header with the token."""
    client.post("/api/v1/auth/register", json=body)
    login = {"email": body["email"], "password": body["password"]}
    told = client.post("/login", json=login)
    return {"Authorization": f"Bearer {told.json['token']}"}


def is_good(client: Any, headers: dict[str, str]) -> bool:
    """Whether a token opens anything."""
    status = client.get("/api/v1/auth/me", headers=headers).status_code
    assert status in {200, 401}
    return status == 200


@pytest.mark.usefixtures("cheap_hashes")
def test_a_token_is_void_after_a_reset_though_its_number_is_given_again(signed, db):
    old = token(signed(), member(1))
    db.unlink()
    again = signed()
    new = token(again, member(2))  # account 1, too
    assert is_good(again, new)
    assert not is_good(again, old)


@pytest.mark.usefixtures("cheap_hashes")
def test_a_token_is_void_after_a_backup_was_put_back(signed, db):
    client = signed()
    token(client, member(1))
    backup = db.read_bytes()
    late = token(client, member(2))
    assert is_good(client, late)
    db.write_bytes(backup)
    assert not is_good(client, late)
    assert is_good(client, token(client, member(3)))  # account 2, too
    assert not is_good(client, late)


@pytest.mark.usefixtures("cheap_hashes")
def test_a_token_is_void_after_a_new_password(signed, db):
    client = signed()
    headers = [token(client, member(number)) for number in (1, 2)]
    whole = db.read_text()
    members = json.loads(whole)["accounts"]["members"]
    first, second = [account["password"] for account in members.values()]
    db.write_text(whole.replace(first, second))
    assert not is_good(client, headers[0])
    assert is_good(client, headers[1])


@pytest.mark.usefixtures("cheap_hashes")
def test_a_good_token_stays_good_over_a_restart(signed):
    headers = token(signed(), member(1))
    assert is_good(signed(), headers)
