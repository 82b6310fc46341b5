"""Nobody can do more than their account allows, and no answer contains a secret."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import msgspec
import pytest
from click.testing import CliRunner
from conftest import wait_until
from flask.testing import FlaskClient
from werkzeug.security import generate_password_hash

import ticketboss
from ticketboss import (
    Account,
    Settings,
    create_app,
)

pytestmark = pytest.mark.usefixtures("cheap_hashes")

PASSWORD = "correct horse battery"
HASH = generate_password_hash(PASSWORD, "scrypt:1024:8:1")  # quicker to check
KEY = "a key of more than thirty-two bytes, for the tests"
NAMES = ("root", "ann", "bob")  # the accounts 1, 2 and 3; root is an admin
SEEDED = "node-meetup-2025"
BAD = "Unauthorized. Invalid token."


def look_for_secrets(said, db):
    """Fail if an answer, or a log, has a password, a hash or a key in it."""
    accounts = json.loads(db.read_text()).get("accounts", {}) if db.exists() else {}
    hashes = [m["password"] for m in accounts.get("members", {}).values()]
    hidden = [PASSWORD, "scrypt:", KEY, accounts.get("secret"), *hashes]
    assert not [secret for secret in hidden if secret and secret in said]


class Discreet(FlaskClient):
    """A test client that looks for secrets in each answer it gets."""

    def open(self, *args, **more):
        """Ask, and look."""
        answer = super().open(*args, **more)
        told = f"{answer.status}\n{answer.headers}\n{answer.get_data(as_text=True)}"
        look_for_secrets(told, self.application.config["DB"])
        return answer


def discreet(app, db):
    """A test client of this app that looks for secrets."""
    app.test_client_class = Discreet
    app.config["DB"] = db
    return app.test_client()


def signed_up(client, name, **more):
    """The answer to a registration; `more` goes into the body."""
    return client.post(
        "/api/v1/auth/register",
        json={"username": name, "email": f"{name}@example.com", "password": PASSWORD}
        | more,
    )


def bearer(token):
    """The header that brings a token."""
    return {"Authorization": f"Bearer {token}"}


def outcome(answer):
    """An answer's status and its JSON."""
    return answer.status_code, answer.get_json()


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """db.json with an admin and two users in it; and the headers that each sends."""
    db = tmp_path_factory.mktemp("people") / "db.json"
    client = discreet(
        create_app(Settings(db=str(db), quiet=True, standalone=True, loopback=True)), db
    )
    for name in NAMES:
        assert signed_up(client, name).status_code == 201
    file = json.loads(db.read_text())
    for member in file["accounts"]["members"].values():
        member["password"] = HASH
    db.write_text(json.dumps(file))
    told = {
        name: client.post("/login", json={"username": name, "password": PASSWORD})
        for name in NAMES
    }
    return db.read_bytes(), {n: bearer(a.json["token"]) for n, a in told.items()}


@pytest.fixture
def fresh(make_app, db):
    """fresh(**settings): a client, on a file without accounts to begin with."""
    return lambda **settings: discreet(make_app(**settings), db)


@pytest.fixture
def visit(fresh, db, people):
    """visit(**settings): a client, on a file with accounts."""
    db.write_bytes(people[0])
    return fresh


@pytest.fixture
def root(people):
    """The headers of an admin."""
    return people[1]["root"]


@pytest.fixture
def ann(people):
    """The headers of a user."""
    return people[1]["ann"]


@pytest.fixture
def bob(people):
    """The headers of another user."""
    return people[1]["bob"]


@pytest.fixture
def edit(db, saved):
    """edit(change): change the accounts in the file by hand."""

    def edit(change):
        file = saved()
        change(file["accounts"]["members"])
        db.write_text(json.dumps(file))

    return edit


# --- Registering and logging in -------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        {"email": "ann@example.com"},
        {"email": "ANN@Example.com"},
        {"username": "ann"},
        {"userId": 2},
        {"userId": "2"},
    ],
)
def test_a_login_gives_a_token_for_one_hour_that_holds_nothing_else(visit, name):
    status, told = outcome(visit().post("/login", json=name | {"password": PASSWORD}))
    claims = jwt.decode(told["token"], options={"verify_signature": False})
    lifetime = claims["exp"] - claims["iat"]
    assert status == 200
    assert told == {
        "token": told["token"],
        "accessToken": told["token"],
        "tokenType": "Bearer",
        "expiresIn": 3600,
    }
    assert jwt.get_unverified_header(told["token"])["alg"] == "HS256"
    assert claims.keys() == {"sub", "role", "iat", "exp", "jti"}
    assert (claims["sub"], claims["role"], lifetime) == ("2", "user", 3600)
    assert abs(claims["iat"] - time.time()) < 60


def test_no_two_tokens_are_the_same(visit):
    client, me = visit(), {"username": "ann", "password": PASSWORD}
    tokens = {client.post("/login", json=me).json["token"] for _ in range(5)}
    assert len(tokens) == 5


def test_an_unknown_user_is_refused_like_a_wrong_password_at_the_same_cost(
    visit, monkeypatch, edit
):
    dear = generate_password_hash(PASSWORD)
    edit(lambda members: members["2"].update(password=dear))
    client, real, costs = visit(), hashlib.scrypt, []

    def scrypt(*args, **cost):
        costs.append({n: v for n, v in cost.items() if n != "salt"})
        return real(*args, **cost)

    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    wrong = client.post("/login", json={"username": "ann", "password": "not this one"})
    nobody = client.post("/login", json={"username": "nobody", "password": PASSWORD})
    assert wrong.status_code == nobody.status_code == 401
    assert wrong.data == nobody.data
    assert {*wrong.headers.keys()} == {*nobody.headers.keys()}
    assert len(costs) == 2
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"username": "ann"},
        {"password": PASSWORD},
        {"username": "ann", "password": ""},
        {"username": "ann", "email": "ann@example.com", "password": PASSWORD},
        {"username": "ann", "password": 12345678},
        {"username": ["ann"], "password": "x"},
        {"username": "ann", "password": "x" * 1025},
        {"userId": True, "password": "x"},
    ],
)
def test_a_login_without_one_name_and_a_password_is_a_bad_request(visit, body):
    status, told = outcome(visit().post("/login", json=body))
    assert status == 400
    assert told == {"error": told["error"], "message": told["error"]}


def test_a_registration_answers_with_the_new_account_and_nothing_else(fresh, saved):
    client = fresh()
    assert outcome(signed_up(client, "divinealph")) == (
        201,
        {
            "message": "User registered successfully.",
            "error": False,
            "data": {
                "id": 1,
                "username": "divinealph",
                "email": "divinealph@example.com",
            },
        },
    )
    assert PASSWORD not in json.dumps(saved())


@pytest.mark.parametrize(
    "password", ["1234567", "", None, 12345678, "x" * 1025, "\u00e9" * 513]
)
def test_a_password_is_refused_below_8_characters_and_above_1024_bytes(
    visit, saved, password
):
    client, before = visit(), saved()
    status, told = outcome(signed_up(client, "carl", password=password))
    assert (status, told["error"], saved()) == (400, True, before)


@pytest.mark.parametrize("password", ["\u00e91345678", "\u00e9" * 512])
def test_a_password_counts_from_its_first_character_to_its_1024th_byte(visit, password):
    client = visit()
    assert signed_up(client, "carl", password=password).status_code == 201
    for tried, status in (password, 200), (password[:-1] + "x", 401):
        body = {"username": "carl", "password": tried}
        assert client.post("/login", json=body).status_code == status


@pytest.mark.parametrize(
    "body",
    [
        {"username": ""},
        {"username": None},
        {"username": "a" * 201},
        {"username": "a\nb"},
        {"username": 7},
        {"email": "carl"},
        {"email": "a b@example.com"},
        {"email": None},
        {"username": "2"},
        {"username": "\u00b2"},
        {"username": "\uff12"},
        {"username": "\uff11\uff12"},
        {"username": "ann@example.com"},
        {"username": "victim\uff20corp.de"},
        {"username": "victim\ufe6bcorp.de"},
        {"username": "ann\u200b"},  # which nobody sees
        {"username": "a\u00adnn"},
        {"username": "ann\U000e0041"},
    ],
)
def test_a_username_or_address_that_is_unusable_or_misleading_is_refused(
    visit, saved, body
):
    client, before = visit(), saved()
    status, told = outcome(signed_up(client, "carl", **body))
    assert (status, told["error"], saved()) == (400, True, before)


@pytest.mark.parametrize(
    "body",
    [
        {"email": "ANN@example.COM"},
        {"username": "Ann"},
        {"username": "\uff41\uff4e\uff4e"},
    ],
)
def test_a_name_in_other_case_or_another_unicode_form_is_the_same_name(
    visit, saved, body
):
    client, before = visit(), saved()
    status, told = outcome(signed_up(client, "carl", **body))
    assert (status, told) == (409, {"message": told["message"], "error": True})
    assert saved() == before


def test_only_one_of_simultaneous_registrations_of_a_name_succeeds(make_app, db, saved):
    clients = [discreet(make_app(loopback=True), db) for _ in range(2)] * 2
    forms = [
        "eve@example.com",
        "EVE@example.com",
        "Eve@Example.com",
        "eve@EXAMPLE.com",
    ]
    start = threading.Barrier(len(forms))

    def sign_up(client, form):
        start.wait()
        return signed_up(client, f"by-{forms.index(form)}", email=form).status_code

    with ThreadPoolExecutor(len(forms)) as pool:
        told = sorted(pool.map(sign_up, clients, forms))
    members = saved()["accounts"]["members"]
    assert told == [201, 409, 409, 409]
    assert [(key, m["id"], m["role"]) for key, m in members.items()] == [
        ("1", 1, "admin")
    ]


def test_only_one_of_simultaneous_first_accounts_is_an_admin(make_app, db, saved):
    client, start = discreet(make_app(loopback=True), db), threading.Barrier(6)

    def sign_up(name):
        start.wait()
        return signed_up(client.application.test_client(), name).status_code

    with ThreadPoolExecutor(6) as pool:
        assert [*pool.map(sign_up, "abcdef")] == [201] * 6
    roles = [m["role"] for m in saved()["accounts"]["members"].values()]
    assert sorted(roles) == ["admin", *["user"] * 5]


def test_a_registration_ignores_role_id_and_version_in_the_body(visit, saved):
    before = saved()["accounts"]
    answer = signed_up(visit(), "carl", role="admin", id=1, createdBy=1, version=99)
    members = saved()["accounts"]["members"]
    assert outcome(answer)[1]["data"]["id"] == 4
    assert {k: members[k] for k in "123"} == before["members"]
    assert members["4"].get("role", "user") == "user"
    assert saved()["accounts"]["version"] == before["version"] + 1
    assert saved()["accounts"]["secret"] == before["secret"]  # tokens stay good


def test_a_new_account_never_takes_the_place_of_another(visit, edit, saved):
    edit(lambda members: members.pop("2"))
    client, before = visit(), saved()["accounts"]["members"]
    new = str(signed_up(client, "carl").json["data"]["id"])
    after = saved()["accounts"]["members"]
    assert new not in before
    assert {k: m for k, m in after.items() if k != new} == before


def test_few_passwords_are_hashed_at_once(visit, monkeypatch):
    client, real, crowd = visit(), hashlib.scrypt, threading.Barrier(5)
    met = []

    def scrypt(*args, **cost):
        with contextlib.suppress(threading.BrokenBarrierError):
            met.append(crowd.wait(0.3))  # until five are in here together, or no more
        return real(*args, **cost)

    def log_in(_):
        body = {"username": "nobody", "password": PASSWORD}
        return client.application.test_client().post("/login", json=body).status_code

    monkeypatch.setattr(hashlib, "scrypt", scrypt)
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(log_in, range(8))] == [401] * 8
    assert crowd.broken
    assert met == []


# --- Tokens ---------------------------------------------------------------------------


def forged(header, claims, key=KEY, digest=hashlib.sha256):
    """A token made by hand, with any header at all."""
    parts = [
        p if isinstance(p, bytes) else json.dumps(p).encode() for p in (header, claims)
    ]
    signed = b".".join(base64.urlsafe_b64encode(p).rstrip(b"=") for p in parts)
    seal = hmac.new(key.encode(), signed, digest).digest() if digest else b""
    return (signed + b"." + base64.urlsafe_b64encode(seal).rstrip(b"=")).decode()


def claimed(**more):
    """The claims of a good token for the admin, with changes; None leaves one out."""
    now = int(time.time())
    jti = ticketboss.token_id(Account(1, "", "", HASH, "admin"), "x")
    claims = {"sub": "1", "role": "admin", "iat": now, "exp": now + 600, "jti": jti}
    return {n: v for n, v in (claims | more).items() if v is not None}


HS256 = {"alg": "HS256", "typ": "JWT"}
DEEP = b"[" * 20_000 + b"]" * 20_000
FORGERIES = {
    "none": lambda: forged({"alg": "none"}, claimed(), digest=None),
    "None, signed": lambda: forged({"alg": "None"}, claimed()),
    "no alg": lambda: forged({"typ": "JWT"}, claimed()),
    "a list for alg": lambda: forged({"alg": ["HS256"]}, claimed()),
    "HS512": lambda: forged({"alg": "HS512"}, claimed(), digest=hashlib.sha512),
    "RS256, signed as HS256": lambda: forged({"alg": "RS256"}, claimed()),
    "HS256, signed as HS512": lambda: forged(HS256, claimed(), digest=hashlib.sha512),
    "unsigned": lambda: forged(HS256, claimed(), digest=None),
    "a wrong key": lambda: forged(HS256, claimed(), KEY[::-1]),
    "an empty key": lambda: forged(HS256, claimed(), ""),
    "a key of its own": lambda: forged(
        HS256 | {"jwk": {"kty": "oct", "k": "AAAA"}, "kid": "../x"}, claimed(), "\0\0\0"
    ),
    "critical": lambda: forged(HS256 | {"crit": ["x"], "x": 1}, claimed()),
    "no exp": lambda: forged(HS256, claimed(exp=None)),
    "past exp": lambda: forged(HS256, claimed(exp=int(time.time()) - 100)),
    "a text for exp": lambda: forged(HS256, claimed(exp=str(int(time.time()) + 600))),
    "true for exp": lambda: forged(HS256, claimed(exp=True)),
    "a word for exp": lambda: forged(HS256, claimed(exp="never")),
    "an endless exp": lambda: forged(HS256, claimed(exp=float("inf"))),
    "an exp that is no number": lambda: forged(HS256, claimed(exp=float("nan"))),
    "an enormous exp": lambda: forged(HS256, claimed(exp=10**400)),
    "a list for exp": lambda: forged(HS256, claimed(exp=[1])),
    "no sub": lambda: forged(HS256, claimed(sub=None)),
    "a number for sub": lambda: forged(HS256, claimed(sub=1)),
    "nobody's sub": lambda: forged(HS256, claimed(sub="99")),
    "a list of claims": lambda: forged(HS256, [claimed()]),
    "deep claims": lambda: forged(HS256, DEEP),
    "a deep header": lambda: forged(DEEP, claimed()),
    "nothing": lambda: "",
    "dots": lambda: "..",
    "one part": lambda: "garbage",
    "four parts": lambda: forged(HS256, claimed()) + ".x",
    "not ASCII": lambda: "\u00e9.\u00e9.\u00e9",
    "huge": lambda: "A" * 60_000,
    "huge, with dots": lambda: ".".join("A" * 20_000 for _ in range(3)),
}


def test_each_forged_token_differs_from_a_good_one_only_as_its_name_says(visit):
    good = forged(HS256, claimed())
    answer = visit(jwt_secret=KEY).get("/api/v1/auth/me", headers=bearer(good))
    assert (answer.status_code, answer.json["data"]["username"]) == (200, "root")


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_token_gives_no_access_in_any_dialect(visit, saved, forgery):
    client, before = visit(jwt_secret=KEY), saved()
    header = bearer(FORGERIES[forgery]())
    sale = {"partnerId": "abc-corp", "seats": 1}
    ticket = {"eventId": SEEDED, "userId": "root"}
    assert outcome(client.get("/event", headers=header)) == (401, {"error": BAD})
    assert outcome(client.post("/reservations", json=sale, headers=header)) == (
        401,
        {"error": BAD},
    )
    assert outcome(client.post("/book", json=ticket, headers=header)) == (
        401,
        {"error": BAD, "message": BAD},
    )
    assert outcome(client.get("/api/v1/auth/me", headers=header)) == (
        401,
        {"message": BAD, "error": True},
    )
    assert saved() == before


def test_a_token_with_any_one_character_changed_is_bad(visit, ann):
    client, good = visit(), ann["Authorization"].removeprefix("Bearer ")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

    def status(token):
        return client.get("/api/v1/auth/me", headers=bearer(token)).status_code

    changed = {good[:-1] + letter for letter in letters}
    for n, letter in enumerate(good):
        near = letters[letters.find(letter) ^ 1]  # differs in the lowest bit alone
        changed |= {good[:n] + other + good[n + 1 :] for other in (near, "=", "+", "")}
        changed.add(good[:n] + "!" + good[n:])
    assert status(good) == 200
    assert {token for token in changed - {good} if status(token) != 401} == set()


def test_a_token_is_accepted_only_under_the_key_that_signed_it(visit, ann):
    assert visit().get("/api/v1/auth/me", headers=ann).status_code == 200
    elsewhere = visit(jwt_secret=KEY)
    assert elsewhere.get("/api/v1/auth/me", headers=ann).status_code == 401


def test_a_token_of_a_missing_account_is_refused(visit, ann, edit):
    client = visit()
    assert client.get("/api/v1/auth/me", headers=ann).status_code == 200
    edit(lambda members: members.pop("2"))
    assert outcome(client.get("/api/v1/auth/me", headers=ann)) == (
        401,
        {"message": BAD, "error": True},
    )


def test_a_role_is_read_from_the_store_and_not_from_the_token(visit, ann, root, edit):
    client, event = visit(require_login=True), {"name": "Talk", "totalTickets": 5}
    assert client.post("/initialize", json=event, headers=root).status_code == 201
    edit(
        lambda members: (
            members["1"].update(role="user"),
            members["2"].update(role="admin"),
        )
    )
    assert client.post("/initialize", json=event, headers=root).status_code == 403
    assert client.post("/initialize", json=event, headers=ann).status_code == 201


@pytest.mark.parametrize("header", ["Bearer", "Basic cm9vdDpyb290", "", "x y z"])
def test_an_authorization_header_without_a_token_gives_no_access(visit, header):
    sent = {"Authorization": header}
    assert visit().get("/api/v1/auth/me", headers=sent).status_code == 401


def test_the_scheme_of_a_token_has_no_case(visit, ann):
    lower = {"Authorization": ann["Authorization"].replace("Bearer", "bearer")}
    assert visit().get("/api/v1/auth/me", headers=lower).status_code == 200


# --- The key --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "starts"),
    [
        ("x" * 31, False),
        ("x", False),
        ("\u00e9" * 15, False),
        ("ssh-rsa " + "A" * 40, False),  # no login would work with it
        (
            "-----BEGIN PUBLIC KEY-----\n" + "A" * 40 + "\n-----END PUBLIC KEY-----",
            False,
        ),
        ("x" * 32, True),
        ("\u00e9" * 16, True),
    ],
)
def test_a_jwt_secret_of_less_than_32_bytes_stops_the_start(
    db, monkeypatch, key, starts
):
    monkeypatch.setenv("TICKETBOSS_DB", str(db))
    monkeypatch.setenv("TICKETBOSS_QUIET", "1")
    monkeypatch.setenv("JWT_SECRET", key)
    if starts:
        assert create_app().test_client().get("/_health").status_code == 200
        return
    with pytest.raises(SystemExit) as stopped:
        create_app()
    assert stopped.value.code not in {0, None}
    assert key not in str(stopped.value.code) or key == "x"
    assert not db.exists()


def test_the_command_refuses_a_short_jwt_secret_in_one_line(db):
    program = Path(ticketboss.__file__)
    ended = subprocess.run(
        [sys.executable, str(program), "--db", str(db), "--port", "0"],
        timeout=30,
        env={**os.environ, "JWT_SECRET": "tooshort"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "JWT_SECRET" in ended.stderr
    assert "tooshort" not in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
    assert not db.exists()


def test_tokens_are_signed_with_the_jwt_secret_that_was_given(visit):
    answer = visit(jwt_secret=KEY).post(
        "/login", json={"username": "ann", "password": PASSWORD}
    )
    assert jwt.decode(answer.json["token"], KEY, ["HS256"])["sub"] == "2"


def test_without_jwt_secret_all_workers_share_one_key_in_a_private_file(
    make_app, db, saved
):
    db.unlink(missing_ok=True)
    workers = [discreet(make_app(), db) for _ in range(2)]  # both before there is a key
    db.chmod(0o644)
    assert signed_up(workers[0], "ann").status_code == 201
    key = saved()["accounts"]["secret"]
    me = {"username": "ann", "password": PASSWORD}
    headers = bearer(workers[1].post("/login", json=me).json["token"])
    restarted = discreet(make_app(), db)
    for worker in (*workers, restarted):
        assert worker.get("/api/v1/auth/me", headers=headers).status_code == 200
    sale = {"partnerId": "abc-corp", "seats": 1}
    assert restarted.post("/reservations", json=sale).status_code == 201
    assert len(key) >= 32
    assert saved()["accounts"]["secret"] == key
    assert stat.S_IMODE(db.stat().st_mode) == 0o600


# --- The first account ----------------------------------------------------------------


BY_HAND = {"standalone": True, "loopback": True}


@pytest.mark.parametrize(
    ("settings", "headers", "address", "role"),
    [
        (BY_HAND, {}, "127.0.0.1", "admin"),
        (BY_HAND, {}, "::1", "admin"),
        (BY_HAND, {"Forwarded": "for=127.0.0.1"}, "127.0.0.1", "user"),
        (BY_HAND, {"X-Forwarded-For": "127.0.0.1"}, "127.0.0.1", "user"),
        (BY_HAND, {"X-Forwarded-Host": "localhost"}, "127.0.0.1", "user"),
        (BY_HAND, {"X-Forwarded-Anything": ""}, "127.0.0.1", "user"),
        (
            BY_HAND | {"trust_proxy": True},
            {"X-Forwarded-For": "127.0.0.1"},
            "127.0.0.1",
            "user",
        ),
        (BY_HAND, {}, "192.0.2.1", "user"),
        (BY_HAND | {"loopback": False}, {}, "127.0.0.1", "user"),
        ({"standalone": False}, {}, "127.0.0.1", "user"),
    ],
)
def test_the_first_account_is_an_admin_only_on_a_standalone_server_over_loopback(
    fresh, saved, settings, headers, address, role
):
    answer = fresh(**settings).post(
        "/api/v1/auth/register",
        headers=headers,
        environ_base={"REMOTE_ADDR": address},
        json={"username": "ann", "email": "ann@example.com", "password": PASSWORD},
    )
    assert answer.status_code == 201
    assert saved()["accounts"]["members"]["1"].get("role", "user") == role


def test_a_first_account_under_another_server_is_an_ordinary_one(
    db, saved, monkeypatch
):
    monkeypatch.setenv("TICKETBOSS_DB", str(db))
    monkeypatch.setenv("TICKETBOSS_QUIET", "1")
    monkeypatch.delenv("JWT_SECRET", raising=False)
    assert signed_up(discreet(create_app(), db), "ann").status_code == 201
    assert saved()["accounts"]["members"]["1"].get("role", "user") == "user"


def test_a_real_server_sees_that_a_first_account_came_through_a_proxy(serve, db, saved):
    server = serve()
    status, told, headers = server.ask(
        "POST",
        "/api/v1/auth/register",
        {"username": "ann", "email": "ann@example.com", "password": PASSWORD},
        Forwarded="for=127.0.0.1",
    )
    members = saved()["accounts"]["members"]
    ended = server.stop()
    assert status == 201
    assert members["1"].get("role", "user") == "user"
    look_for_secrets(f"{told} {headers} {ended}", db)


# --- When login is required -----------------------------------------------------------


CHANGES = [
    ("POST", "/reservations"),
    ("DELETE", "/reservations/x"),
    ("POST", f"/events/{SEEDED}/reservations"),
    ("DELETE", f"/events/{SEEDED}/reservations/x"),
    ("POST", "/initialize"),
    ("POST", "/book"),
    ("POST", "/cancel"),
    ("DELETE", "/events/1"),
    ("POST", "/api/v1/event"),
    ("DELETE", "/api/v1/event/1"),
    ("POST", "/api/v1/booking"),
    ("DELETE", "/api/v1/booking/1"),
]


@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_no_change_is_made_without_a_token_where_login_is_required(
    visit, saved, method, path
):
    client, before = visit(require_login=True), saved()
    good = {
        "partnerId": "abc-corp",
        "seats": 1,
        "eventId": SEEDED,
        "userId": "ann",
        "firstName": "A",
        "lastName": "B",
        "email": "a@example.com",
        "name": "Talk",
        "ticketsReserved": 1,
        "date": "2024-12-01",
        "totalTickets": 5,
    }
    answer = client.open(path, method=method, json=good)
    text = "No token provided"
    shape = (
        {"message": text, "error": True}
        if path.startswith("/api/v1")
        else {"error": text}
        if "reservations" in path
        else {"error": text, "message": text}
    )
    assert outcome(answer) == (401, shape)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert saved() == before


@pytest.mark.parametrize(
    "path",
    [
        "/event",
        "/events",
        f"/events/{SEEDED}",
        f"/status/{SEEDED}",
        "/_health",
        "/",
        f"/api/v1/booking/status/{SEEDED}",
    ],
)
def test_events_are_readable_without_a_token_where_login_is_required(visit, path):
    assert visit(require_login=True).get(path).status_code == 200


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/auth/me"),
        ("GET", "/api/v1/event"),
        ("POST", "/api/v1/event"),
        ("DELETE", "/api/v1/event/1"),
    ],
)
def test_a_route_that_always_needs_a_token_answers_401_without_one(
    visit, required, method, path
):
    answer = visit(require_login=required).open(path, method=method)
    assert outcome(answer) == (401, {"message": "No token provided", "error": True})
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_registering_and_logging_in_need_no_token(visit):
    client = visit(require_login=True)
    me = {"email": "ann@example.com", "password": PASSWORD}
    assert signed_up(client, "carl").status_code == 201
    assert client.post("/login", json=me).status_code == 200
    assert client.post("/api/v1/auth/login", json=me).status_code == 200


def test_only_an_admin_makes_and_removes_events(visit, saved, ann, root):
    client, before = visit(require_login=True), saved()
    event = {"eventId": 1, "totalTickets": 5}
    told = client.post("/initialize", json=event, headers=ann)
    assert outcome(told) == (
        403,
        {"error": told.json["error"], "message": told.json["error"]},
    )
    assert saved() == before
    assert client.post("/initialize", json=event, headers=root).status_code == 201
    before = saved()
    assert client.delete("/events/1", headers=ann).status_code == 403
    assert saved() == before
    assert client.delete("/events/1", headers=root).status_code == 204


OWN_NAMES = [
    {"userId": 2},
    {"userId": "2"},
    {"userId": "ann"},
    {"userEmail": "ann@example.com"},
    {"userEmail": "Ann@EXAMPLE.com"},
]


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("name", OWN_NAMES)
def test_all_names_of_an_account_are_one_user(visit, ann, name, required):
    client = visit(require_login=required)

    def ask(path, who):
        return client.post(
            path, json={"eventId": SEEDED} | who, headers=ann
        ).status_code

    assert ask("/book", name) == 200
    assert [ask("/book", other) for other in OWN_NAMES] == [409] * 5
    assert client.get("/event").json["reservationCount"] == 1
    assert [ask("/cancel", other) for other in reversed(OWN_NAMES)] == [
        200,
        404,
        404,
        404,
        404,
    ]
    assert client.get("/event").json["reservationCount"] == 0


@pytest.mark.parametrize(
    "address",
    [
        "re\u0301my@example.com",
        "\uff52emy@example.com",
        "R\u00c9MY@example.com",
        "stra\u00dfe@example.com",
    ],
)
def test_an_account_books_by_the_address_it_registered(fresh, address):
    client = fresh(require_login=True)
    assert signed_up(client, "remy", email=address).status_code == 201
    me = {"username": "remy", "password": PASSWORD}
    headers = bearer(client.post("/login", json=me).json["token"])
    ticket = {"eventId": SEEDED, "userEmail": address}
    assert client.post("/book", json=ticket, headers=headers).status_code == 200


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize(
    "name", [{"userId": 2}, {"userId": "ann"}, {"userEmail": "ann@example.com"}]
)
def test_a_token_books_and_cancels_only_for_its_user(
    visit, saved, ann, bob, name, required
):
    client, ticket = visit(require_login=required), {"eventId": SEEDED} | name
    assert client.post("/book", json=ticket, headers=bob).status_code == 403
    assert client.post("/book", json=ticket, headers=ann).status_code == 200
    before = saved()
    told = client.post("/cancel", json=ticket, headers=bob)
    assert outcome(told) == (
        403,
        {"error": told.json["error"], "message": told.json["error"]},
    )
    assert client.post("/cancel", json=ticket).status_code == 401
    assert saved() == before


@pytest.mark.parametrize(
    "name", [{"userId": 2}, {"userId": "ann"}, {"userEmail": "ann@example.com"}]
)
def test_an_admin_cancels_for_a_user_by_any_of_their_names(visit, ann, root, name):
    client, ticket = visit(require_login=True), {"eventId": SEEDED, "userId": "ann"}
    assert client.post("/book", json=ticket, headers=ann).status_code == 200
    told = client.post("/cancel", json={"eventId": SEEDED} | name, headers=root)
    assert told.status_code == 200
    assert client.get("/event").json["reservationCount"] == 0


@pytest.mark.parametrize(
    "name", [{"userId": "ANN"}, {"userId": "02"}, {"userEmail": "2@example.com"}]
)
def test_an_admin_cancels_nothing_of_a_user_whose_name_is_only_similar(
    visit, ann, root, saved, name
):
    client, ticket = visit(require_login=True), {"eventId": SEEDED, "userId": "ann"}
    assert client.post("/book", json=ticket, headers=ann).status_code == 200
    before = saved()
    told = client.post("/cancel", json={"eventId": SEEDED} | name, headers=root)
    assert told.status_code == 404
    assert saved() == before


class CountedMembers(dict):
    """Accounts by id, which count how often somebody goes through all of them."""

    walks = 0

    def values(self):
        """All of them."""
        self.walks += 1
        return super().values()


def test_an_admin_finds_a_users_names_without_going_through_all_accounts(visit):
    store = visit().application.store
    snapshot = store.load()
    accounts = snapshot.database.accounts
    members = CountedMembers(accounts.members)
    counted = msgspec.structs.replace(accounts, members=members)
    snapshot.database = msgspec.structs.replace(snapshot.database, accounts=counted)
    office = ticketboss.BoxOffice(store, Settings())
    caller = ticketboss.Caller(members["1"], None)
    for name in ["id:2", "id:ann", "mailto:ann@example.com", "id:nobody"] * 3:
        office.names_of(name, caller, admins_for_others=True)
    assert members.walks == 1


def test_requests_that_share_a_write_do_not_share_rights(
    visit, db, people, monkeypatch
):
    client, headers = visit(timeout_s=20), people[1]
    sale = {"partnerId": "abc-corp", "seats": 1}
    sold = client.post("/reservations", json=sale, headers=headers["ann"]).json
    path = f"/reservations/{sold['reservationId']}"
    transactions, batched = client.application.box_office.transactions, []
    commit = transactions._commit

    def counted(batch):
        batched.extend(batch)
        return commit(batch)

    monkeypatch.setattr(transactions, "_commit", counted)

    def ask(who):
        own = discreet(client.application, db)
        if who == "bob":
            return own.delete(path, headers=headers["bob"]).status_code
        return own.post("/reservations", json=sale, headers=headers["root"]).status_code

    with ThreadPoolExecutor(16) as pool:
        with ticketboss.open_store(
            str(db)
        ).lock():  # so that they all wait for one turn
            told = []
            for who in "root", "bob":  # an admin is first in line, and decides for all
                told += [pool.submit(ask, who) for _ in range(8)]
                wait_until(
                    lambda n=len(told): len(batched) + len(transactions._queue) == n
                )
        assert [answer.result() for answer in told] == [201] * 8 + [403] * 8
    assert client.get(path, headers=headers["ann"]).json["status"] == "confirmed"


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("who", ["ann", "root"])
def test_a_reservation_made_with_a_token_is_cancelled_by_its_owner_or_an_admin(
    visit, saved, people, required, who
):
    client, headers = visit(require_login=required), people[1]
    sale = {"partnerId": "abc-corp", "seats": 3}
    sold = client.post("/reservations", json=sale, headers=headers["ann"]).json
    path, before = f"/reservations/{sold['reservationId']}", saved()
    told = client.delete(path, headers=headers["bob"])
    assert outcome(told) == (403, {"error": told.json["error"]})
    assert client.delete(f"{path}?seats=1", headers=headers["bob"]).status_code == 403
    assert outcome(client.delete(path)) == (401, {"error": "No token provided"})
    assert saved() == before
    assert client.delete(path, headers=headers[who]).status_code == 204
    assert saved()["event"]["availableSeats"] == 500


def test_a_bad_token_is_refused_even_where_no_token_is_needed(visit, saved):
    client, before = visit(), saved()
    sale, bad = {"partnerId": "abc-corp", "seats": 1}, bearer("bad")
    told = client.post("/reservations", json=sale, headers=bad)
    assert outcome(told) == (401, {"error": BAD})
    assert saved() == before
    assert client.post("/reservations", json=sale).status_code == 201


def test_where_login_is_required_users_see_their_own_reservations_and_admins_all(
    visit, people
):
    client, headers = visit(require_login=True), people[1]
    sold = {
        name: client.post(
            "/reservations", json={"partnerId": name, "seats": 1}, headers=headers[name]
        ).json["reservationId"]
        for name in NAMES
    }
    assert (
        client.delete(
            f"/reservations/{sold['bob']}", headers=headers["bob"]
        ).status_code
        == 204
    )
    for prefix in "", f"/events/{SEEDED}":
        told = {
            name: client.get(f"{prefix}/reservations", headers=headers[name])
            for name in NAMES
        }
        assert {n: [r["partnerId"] for r in a.json] for n, a in told.items()} == {
            "root": [*NAMES],
            "ann": ["ann"],
            "bob": ["bob"],
        }
        assert outcome(client.get(f"{prefix}/reservations")) == (
            401,
            {"error": "No token provided"},
        )
        for name in NAMES:
            path = f"{prefix}/reservations/{sold[name]}"
            seen = {
                who: client.get(path, headers=headers.get(who, {})).status_code
                for who in (*NAMES, "nobody")
            }
            wanted = dict.fromkeys((*NAMES, "nobody"), 404) | {"root": 200, name: 200}
            assert seen == wanted
    beyond = client.get(f"/reservations?after={sold['bob']}", headers=headers["ann"])
    assert beyond.status_code == 400  # as for an id that there never was


def test_no_answer_to_partners_shows_a_name_or_address_of_a_booking(visit, ann, root):
    client = visit()
    concert = {"name": "Concert", "date": "2024-12-01", "totalTickets": 5}
    assert client.post("/api/v1/event", json=concert, headers=root).status_code == 201
    who = {
        "eventId": 1,
        "firstName": "Wilhelmina",
        "lastName": "Quackenbush",
        "email": "mina@example.org",
    }
    for tickets, headers in (1, ann), (2, {}), (2, {}), (1, {}):
        body = who | {"ticketsReserved": tickets}
        told = client.post("/api/v1/booking", json=body, headers=headers)
        assert told.status_code in {200, 201}
    listed = client.get("/events/1/reservations")
    ids = [r["reservationId"] for r in listed.json]
    paths = [
        "/events/1",
        "/events",
        "/status/1",
        "/report",
        "/report?format=csv",
        "/events/1/report",
        *(f"/events/1/reservations/{i}" for i in ids),
    ]
    said = [listed, *map(client.get, paths)]
    assert len(ids) == 4
    assert [answer.status_code for answer in said] == [200] * len(said)
    for answer in said:
        for name in ("Wilhelmina", "Quackenbush", "mina", "example.org", "ann"):
            assert name not in f"{answer.headers}{answer.get_data(as_text=True)}"


def test_the_number_of_a_booking_is_shown_only_in_its_own_answer(make_app, tmp_path):
    # Anybody with the number may cancel; the partner chooses the key and the body.
    body = {
        "eventId": SEEDED,
        "firstName": "Ann",
        "lastName": "Lee",
        "email": "ann@example.com",
        "ticketsReserved": 1,
    }
    numbers, ids = [], []
    for db in tmp_path / "one.json", tmp_path / "other.json":
        client = discreet(make_app(db=str(db)), db)
        made, again = (
            client.post("/api/v1/booking", json=body, headers={"Idempotency-Key": "k"})
            for _ in range(2)
        )
        assert (made.status_code, again.json) == (201, made.json)
        listed = client.get("/reservations")
        [record] = listed.json
        ids.append(record["reservationId"])
        numbers.append(made.json["data"]["id"])
        for answer in (
            listed,
            client.get(f"/reservations/{ids[-1]}"),
            client.get(f"/events/{SEEDED}/reservations"),
            client.get(f"/events/{SEEDED}"),
        ):
            told = f"{answer.headers}{answer.text}"
            assert answer.status_code == 200
            assert str(numbers[-1]) not in told
            assert "booking" not in told
        for guess in uuid.UUID(ids[-1]).int, uuid.UUID(ids[-1]).int % 2**52, ids[-1], 0:
            assert client.delete(f"/api/v1/booking/{guess}").status_code == 404
        assert client.get("/event").json["reservationCount"] == 1
    assert ids[0] == ids[1]  # so that a retry finds its own, in whichever worker
    assert numbers[0] != numbers[1]


# --- The command that makes admins ----------------------------------------------------


def make_admin(db, email, *typed, answered=0):
    """Run `admin EMAIL`, typing these lines; its output, if it ended as it should."""
    ran = CliRunner().invoke(
        ticketboss.main,
        ["--db", str(db), "admin", email],
        input="".join(f"{line}\n" for line in typed),
    )
    assert (ran.exit_code == 0) == (answered == 0), ran.output
    assert "Traceback" not in ran.output
    look_for_secrets(ran.output, db)
    return ran.output


def test_the_admin_command_makes_an_account_and_does_not_show_the_password(
    db, fresh, saved
):
    make_admin(db, "boss@example.com", PASSWORD, PASSWORD)
    me = {"email": "boss@example.com", "password": PASSWORD}
    client = fresh(require_login=True)
    headers = bearer(client.post("/login", json=me).json["token"])
    event = {"name": "Talk", "totalTickets": 5}
    assert client.post("/initialize", json=event, headers=headers).status_code == 201
    assert saved()["accounts"]["members"]["1"]["role"] == "admin"
    assert stat.S_IMODE(db.stat().st_mode) == 0o600


def test_the_admin_command_promotes_an_existing_account_after_a_question(
    visit, db, ann, saved
):
    client, event = visit(require_login=True), {"name": "Talk", "totalTickets": 5}
    before = saved()["accounts"]["members"]
    assert client.post("/initialize", json=event, headers=ann).status_code == 403
    make_admin(db, "ANN@example.com", "y", "")  # the password stays
    assert saved()["accounts"]["members"] == before | {
        "2": before["2"] | {"role": "admin"}
    }
    assert client.post("/initialize", json=event, headers=ann).status_code == 201


def test_the_admin_command_makes_an_account_though_its_short_name_is_taken(
    visit, db, saved
):
    visit()
    make_admin(db, "ann@example.org", PASSWORD, PASSWORD)
    make_admin(db, "2@example.org", PASSWORD, PASSWORD)
    members = [*saved()["accounts"]["members"].values()]
    assert [(m["email"], m["role"]) for m in members[3:]] == [
        ("ann@example.org", "admin"),
        ("2@example.org", "admin"),
    ]
    names = [m["username"].casefold() for m in members]
    assert len({*names}) == 5
    assert not [name for name in names if name.isdecimal()]


@pytest.mark.parametrize(
    ("email", "typed"),
    [
        ("boss@example.com", ["1234567", "1234567"]),
        ("boss@example.com", ["x" * 1025, "x" * 1025]),
        ("boss@example.com", []),
        ("boss", [PASSWORD, PASSWORD]),
        ("ann", []),
    ],
)
def test_the_admin_command_follows_the_rules_of_registration(
    visit, db, saved, email, typed
):
    visit()
    before = saved()
    make_admin(db, email, *typed, answered=1)
    assert saved() == before


@pytest.mark.parametrize(
    "lookalike", ["boss@example.com", "BOSS@example.com", "boss\uff20example.com"]
)
def test_the_admin_command_promotes_no_account_whose_username_is_the_address(
    visit, db, edit, saved, lookalike
):
    visit()
    edit(lambda members: members["3"].update(username=lookalike))
    before = saved()
    make_admin(db, "boss@example.com", PASSWORD, PASSWORD, answered=1)
    assert saved() == before


def test_the_account_with_the_e_mail_is_promoted_and_not_the_one_with_the_username():
    called, owner = (
        ticketboss.Account(number, name, address, "x", "user")
        for number, name, address in (
            (1, "boss\uff20example.com", "mallory@example.com"),
            (2, "boss", "boss@example.com"),
        )
    )
    there = ticketboss.replace(
        ticketboss.seed(5),
        accounts=ticketboss.Accounts(2, KEY, {"1": called, "2": owner}),
    )
    found = ticketboss.find_account(there.accounts, "email", "Boss@Example.com")
    members = ticketboss.promote_account(there, found, "").accounts.members
    assert members == {"1": called, "2": ticketboss.replace(owner, role="admin")}


def test_an_account_that_changed_meanwhile_is_not_promoted():
    seen = ticketboss.Account(1, "boss", "boss@example.com", "x", "user")
    for other in (
        {},
        {"1": ticketboss.replace(seen, password="y")},
        {"1": ticketboss.replace(seen, email="eve@example.com")},
        {"2": ticketboss.replace(seen, id=2)},
    ):
        there = ticketboss.replace(
            ticketboss.seed(5), accounts=ticketboss.Accounts(2, KEY, other)
        )
        with pytest.raises(ticketboss.NotFound, match="changed"):
            ticketboss.promote_account(there, seen, "z")


# --- The log --------------------------------------------------------------------------


def test_no_log_line_contains_a_secret_or_a_token(visit, db, ann, monkeypatch, caplog):
    log = logging.getLogger("ticketboss")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", log.level)
    caplog.set_level(logging.DEBUG)
    client = visit(quiet=False)
    me = {"username": "ann", "password": PASSWORD}
    for answer in (
        client.post("/login", json=me),
        client.post("/login", data=PASSWORD),
        client.get("/api/v1/auth/me", headers=ann),
        client.get("/api/v1/auth/me", headers=bearer(PASSWORD)),
    ):
        assert answer.status_code < 500
    assert "/login" in caplog.text
    assert "eyJ" not in caplog.text
    look_for_secrets(caplog.text, db)
