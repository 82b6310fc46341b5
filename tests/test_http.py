"""The promises of every route: JSON for any request, conditions, and safe retries."""

from __future__ import annotations

import fcntl
import http.client
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from conftest import SEEDED
from werkzeug.test import create_environ, run_wsgi_app

import ticketboss

ORDER = {"partnerId": "abc-corp", "seats": 3}
RAW = b'{"partnerId":"abc-corp","seats":3}'
ODD_IDS = [
    "x",
    "a/b",
    "a%2Fb",
    "a//b",
    "%2F",
    "..%2F..%2Fetc%2Fpasswd",
    "..",
    ".",
    "a%0Ab",
    "%0D%0AX-Evil:%201",
    "%00",
    "%FF",
    "%zz",
    "%",
    "%20",
    "%3F",
    "%F0%9F%98%80",
    "'%20OR%201=1",
    "a/",
    "0" * 10_000,
    "7d4f36be-ef9b-4bb6-b3a5-6378a9d6a1f9",
]


@contextmanager
def unchanged(db):
    """Hold that the file is byte for byte what it was, whatever happens in here."""
    before = db.read_bytes()
    yield
    assert db.read_bytes() == before


@pytest.fixture(scope="module")
def shared_db(tmp_path_factory):
    """The file of `shared`."""
    return tmp_path_factory.mktemp("shared") / "db.json"


@pytest.fixture(scope="module")
def make_shared(shared_db):
    """Make an app on one file, for all tests that do not care what else is in it."""

    def make_shared(**settings):
        told = {
            "db": str(shared_db),
            "seats": 10_000,
            "quiet": True,
            "standalone": True,
        }
        return ticketboss.create_app(ticketboss.Settings(**told | settings))

    return make_shared


@pytest.fixture(scope="module")
def shared(make_shared):
    """A client of such an app."""
    return make_shared().test_client()


def sell(client, seats=3, *, partner="abc-corp", at="", more=None, **headers):
    """Ask for seats; headers as Idempotency_Key="k"."""
    return client.post(
        f"{at}/reservations",
        json={"partnerId": partner, "seats": seats, **(more or {})},
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


def error_of(answer):
    """The error's text, of an answer that is nothing but a JSON error."""
    assert answer.content_type == "application/json"
    assert list(answer.json) == ["error"]
    return answer.json["error"]


def meanwhile(monkeypatch, think_s, happens):
    """Let something happen once, when somebody is between their reading and swap."""
    waits, todo = time.sleep, [happens]

    def sleep(seconds):
        if seconds != think_s:
            waits(seconds)
        elif todo:
            todo.pop()()

    monkeypatch.setattr(time, "sleep", sleep)


def at_once(asks):
    """What each of these answers, when all are asked at the same time."""
    gate = threading.Barrier(len(asks), timeout=20)

    def ask(one):
        gate.wait()
        return one()

    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(ask, asks))


# --- errors are JSON, and show nothing of the inside -------------------------


def test_every_refusal_of_the_rules_has_a_status():
    def below(kind):
        for each in kind.__subclasses__():
            yield each
            yield from below(each)

    kinds = set(below(ticketboss.TicketBossError))
    assert kinds == set(ticketboss.STATUS)
    assert set(ticketboss.STATUS.values()) <= {
        400,
        401,
        403,
        404,
        409,
        412,
        422,
        428,
        500,
        503,
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/nothing/at/all?x=<script>", 404),
        ("POST", "/nothing", 404),
        ("GET", "/reservations/x", 404),
        ("DELETE", "/reservations/x", 404),
        ("GET", "/events/none/reservations", 404),
        ("POST", "/reservations", 400),
        ("GET", "/reservations?limit=x", 400),
        ("PUT", "/reservations", 405),
        ("BREW", "/event", 405),
    ],
)
def test_an_error_is_json_and_nothing_else(shared, shared_db, method, path, status):
    with unchanged(shared_db):
        answer = shared.open(path, method=method)
    assert answer.status_code == status
    assert re.search(r"\w{3}", error_of(answer))
    assert "<" not in answer.text
    assert str(shared_db.parent) not in answer.text


@pytest.mark.parametrize("path", ["//event", "//", "/event//", "/reservations//"])
def test_a_doubled_slash_leads_to_no_redirect(shared, path):
    answer = shared.get("/", environ_overrides={"PATH_INFO": path})
    assert answer.status_code in {200, 404}
    assert answer.content_type == (
        "application/json" if answer.status_code == 404 else answer.content_type
    )


def test_a_bug_shows_no_traceback(make_app):
    app = make_app()
    app.add_url_rule("/bug", view_func=lambda: {}["the secret"])
    answer = app.test_client().get("/bug")
    assert answer.status_code == 500
    assert error_of(answer)
    assert not re.search(r"secret|KeyError|Traceback|\.py", answer.text)
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize("told", ["Bearer rubbish", "Bearer", "bearer é"])
def test_a_bad_token_is_refused_in_json(shared, shared_db, told):
    for method, path in [("GET", "/event"), ("POST", "/reservations")]:
        with unchanged(shared_db):
            answer = shared.open(
                path, method=method, data=RAW, headers={"Authorization": told}
            )
        assert answer.status_code == 401
        assert error_of(answer) == "Unauthorized. Invalid token."


def test_a_request_over_the_limit_is_refused_in_json(make_app):
    client = make_app(rate_limit="1 per minute").test_client()
    assert client.get("/event").status_code == 200
    answer = client.get("/event")
    assert answer.status_code == 429
    assert answer.json["message"] == (
        "Too many requests from this IP, please try again later."
    )
    assert answer.json["error"]
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("damage", ["{", "[]", "null", "", None])
def test_a_damaged_file_is_503_for_all_and_left_alone(client, db, damage):
    good = db.read_bytes()
    db.unlink()
    if damage is not None:
        db.write_text(damage)
    for method, path in [
        ("GET", "/event"),
        ("GET", "/reservations"),
        ("POST", "/reservations"),
        ("DELETE", "/reservations/x"),
    ]:
        answer = client.open(path, method=method, data=RAW)
        assert answer.status_code == 503
        assert str(db.parent) not in error_of(answer)
        assert int(answer.headers["Retry-After"]) > 0
    assert db.exists() == (damage is not None)
    assert damage is None or db.read_text() == damage
    db.write_bytes(good)
    assert sell(client).status_code == 201


def test_a_request_that_never_reaches_the_app_is_refused_in_json(serve):
    server = serve()
    host, port = urlsplit(server.url).hostname, urlsplit(server.url).port

    def say(told):
        with socket.create_connection((host, port), timeout=20) as wire:
            wire.sendall(told)
            heard = b""
            while more := wire.recv(65536):
                heard += more
        head, _, body = heard.partition(b"\r\n\r\n")
        assert b"application/json" in head, head
        return int(head.split()[1]), json.loads(body)["error"]

    post = b"POST /reservations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
    assert say(b"rubbish\r\n\r\n")[0] == 400
    assert say(post + b"Content-Length: -1\r\n\r\n")[0] == 400
    assert say(post + b"Content-Length: 2000000\r\n\r\n")[0] == 413
    assert say(chunked + b"11170\r\n" + b" " * 70_000 + b"\r\n0\r\n\r\n")[0] == 413
    assert say(post.replace(b"localhost", b"evil.example") + b"\r\n")[0] == 421
    assert say(b"DELETE /reservations/a%2Fb%0A%00 HTTP/1.0\r\n\r\n") == (
        404,
        "Reservation not found or already cancelled",
    )
    assert server.ask("GET", "/event")[1]["version"] == 0


def test_a_request_that_never_reaches_the_app_is_refused_in_its_dialect(serve):
    server = serve()

    def say(told):
        url = urlsplit(server.url)
        with socket.create_connection((url.hostname, url.port), timeout=20) as wire:
            wire.sendall(told)
            answer = http.client.HTTPResponse(wire)
            answer.begin()
            return answer.status, json.loads(answer.read()), answer.headers

    large, known, _ = server.ask("POST", "/reservations", b" " * 70_000)
    assert large == 413
    for path, shape in [
        ("/reservations", lambda words: {"error": words}),
        (f"/events/{SEEDED}/reservations", lambda words: {"error": words}),
        ("/book", lambda words: {"error": words, "message": words}),
        ("/api/v1/booking", lambda words: {"message": words, "error": True}),
    ]:
        post = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode()
        for wrong, status in [
            (b"Content-Length: 2000000\r\n\r\n", 413),
            (b"Transfer-Encoding: chunked\r\n\r\nno size\r\n", 400),
        ]:
            code, told, headers = say(post + wrong)
            words = (
                known["error"]
                if status == 413
                else next(value for value in told.values() if value is not True)
            )
            assert (code, told) == (status, shape(words))
            assert re.search(r"\w{3}", words)
            assert headers["Content-Type"] == "application/json"
            assert re.fullmatch("[A-Za-z0-9._-]{1,128}", headers["X-Request-ID"])
    _, _, headers = say(
        b"POST /book HTTP/1.1\r\nX-Request-ID: my-own.1\r\n"
        b"Content-Length: 2000000\r\n\r\n"
    )
    assert headers["X-Request-ID"] == "my-own.1"
    code, told, headers = say(b"this is no HTTP\r\n\r\n")
    assert (code, list(told)) == (400, ["error"])
    assert headers["X-Request-ID"]


# --- bodies -----------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "rubbish",
    ],
)
def test_a_body_is_json_whatever_its_content_type_says(shared, kind):
    answer = shared.post("/reservations", data=RAW, content_type=kind)
    assert (answer.status_code, answer.json["seats"]) == (201, 3)


def test_a_body_with_a_byte_order_mark_is_read(shared):
    answer = shared.post("/reservations", data=b"\xef\xbb\xbf" + RAW)
    assert (answer.status_code, answer.json["seats"]) == (201, 3)


def deep(depth):
    """An order with a field that nobody asked for, of that many lists."""
    return RAW[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b"true",
        b"3",
        b'"x"',
        b"\x00",
        b"{}{}",
        b"partnerId=abc-corp&seats=3",
        b"{'partnerId':'abc-corp','seats':3}",
        RAW + b"x",
        RAW + RAW,
        RAW[:-1] + b",}",
        RAW.replace(b"3", b"03"),
        RAW.replace(b"3", b"NaN"),
        RAW.replace(b"3", b"Infinity"),
        RAW.replace(b"3", b"-Infinity"),
        RAW.replace(b"3", b"1E400"),
        RAW[:-1] + b',"x":NaN}',
        RAW[:-1] + b',"x":-Infinity}',
        RAW.replace(b"3", b"1" + b"0" * 5000),
        RAW[:-1] + b',"x":1' + b"0" * 5000 + b"}",
        RAW[:-1] + b',"seats":3}',
        RAW[:-1] + b',"x":{"y":1,"y":1}}',
        RAW[:-1] + rb',"se\u0061ts":3}',
        RAW.replace(b"abc", rb"\ud800"),
        RAW.replace(b"abc", rb"\udc00\ud800"),
        RAW[:-1] + rb',"x":"\ud800"}',
        RAW[:-1] + rb',"\udfff":1}',
        RAW.replace(b"abc", b"\xff"),
        RAW.replace(b"abc", b"\xc0\xaf"),
        RAW.replace(b"abc", b"\xed\xa0\x80"),
        RAW[:-1] + b',"x":"\xff"}',
        RAW.replace(b"abc", b"a\tc"),
        *(
            RAW.decode().encode(code)
            for code in (
                "utf-16",
                "utf-16-le",
                "utf-16-be",
                "utf-32",
                "utf-32-le",
                "utf-7",
            )[:5]
        ),
        deep(20_000),
        b"[" * 60_000,
        b'{"a":' * 10_000,
    ],
    ids=lambda body: f"{body[:40]!r}",
)
def test_a_body_that_is_not_valid_json_is_400(shared, shared_db, body):
    with unchanged(shared_db):
        answer = shared.post("/reservations", data=body)
    assert answer.status_code == 400
    assert error_of(answer)


def test_a_body_of_any_depth_is_answered(shared):
    for depth in range(930, 1010, 2):
        answer = shared.post(
            "/reservations",
            data=deep(depth),
            headers={"Idempotency-Key": f"deep-{depth}"},
        )
        assert answer.status_code in {201, 400}
        assert answer.content_type == "application/json"


def test_unknown_fields_are_ignored(client, saved):
    answer = sell(
        client,
        more={
            "status": "cancelled",
            "reservationId": "mine",
            "version": 99,
            "position": 7,
            "x": [{"y": None}],
        },
    )
    assert answer.status_code == 201
    assert answer.json | {"reservationId": 0} == {
        "reservationId": 0,
        "seats": 3,
        "status": "confirmed",
    }
    assert answer.json["reservationId"] != "mine"
    assert saved()["event"]["version"] == 1


class InvalidChunk(Exception):
    """What gunicorn raises, which is no OSError."""


class BrokenOff:
    """A body whose rest never comes, or is no HTTP."""

    def __init__(self, error):
        self.error = error

    def read(self, *_):
        raise self.error

    readline = readinto = read


@pytest.mark.parametrize(
    "length",
    [{"CONTENT_LENGTH": "34"}, {"wsgi.input_terminated": True}],
    ids=["of a known length", "in chunks"],
)
@pytest.mark.parametrize(
    "error",
    [OSError("gone"), ConnectionResetError(), TimeoutError(), InvalidChunk("zz")],
    ids=repr,
)
def test_a_body_that_cannot_be_read_is_400(shared, shared_db, error, length):
    with unchanged(shared_db):
        answer = shared.post(
            "/reservations", environ_overrides={"wsgi.input": BrokenOff(error)} | length
        )
    assert answer.status_code == 400
    assert error_of(answer)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/book", "userEmail"),
        ("/api/v1/auth/register", "email"),
        ("/api/v1/auth/login", "email"),
        ("/api/v1/booking", "email"),
    ],
)
@pytest.mark.parametrize(
    "long",
    ["a@" + "." * 60_000 + "@", "a@" + "." * 60_000, "." * 60_000 + "@", "@" * 60_000],
    ids=ascii,
)
def test_a_long_address_is_400_and_takes_no_time(shared, shared_db, path, field, long):
    body = {
        "eventId": SEEDED,
        "username": "ann",
        "password": "12345678",
        "firstName": "A",
        "lastName": "B",
        "ticketsReserved": 1,
        field: long,
    }
    began = time.process_time()
    with unchanged(shared_db):
        answer = shared.post(path, json=body)
    assert time.process_time() - began < 5  # it was 20 s, and more
    assert (answer.status_code, answer.json["message"]) == (400, "Invalid email format")


def test_a_body_of_64_kib_is_accepted_and_one_byte_more_is_413(client, db):
    padded = RAW[:-1] + b',"x":"%s"}'
    most = padded % (b"x" * (65536 - len(padded) + 2))
    assert client.post("/reservations", data=most).status_code == 201
    with unchanged(db):
        answer = client.post("/reservations", data=most + b" ")
    assert answer.status_code == 413
    assert error_of(answer)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "identity, gzip"])
def test_a_body_with_a_content_encoding_is_415(shared, shared_db, coding):
    with unchanged(shared_db):
        answer = shared.post(
            "/reservations", data=RAW, headers={"Content-Encoding": coding}
        )
    assert answer.status_code == 415
    assert error_of(answer)


@pytest.mark.parametrize("coding", ["identity", "Identity"])
def test_a_body_with_the_encoding_identity_is_accepted(shared, coding):
    assert sell(shared, Content_Encoding=coding).status_code == 201


@pytest.mark.parametrize(
    "partner",
    ["a", "x" * 200, "é" * 200, "😀", "Ann & Bob's <b>", "../../etc", "a\u00a0b"],
)
def test_a_plain_text_is_stored_unchanged(shared, partner):
    assert sell(shared, partner=partner).status_code == 201
    assert shared.get("/reservations").json[-1]["partnerId"] == partner


def test_a_text_is_trimmed_before_it_is_measured(client):
    assert sell(client, partner="  " + "x" * 200 + " \n").status_code == 201
    assert client.get("/reservations").json[0]["partnerId"] == "x" * 200


@pytest.mark.parametrize(
    "partner",
    [
        "",
        " ",
        "\u00a0\t\n",
        "x" * 201,
        "a\x00b",
        "a\nb",
        "a\rb",
        "a\x1b[2Jb",
        "a\x7fb",
        "a\x85b",
        "a\u202eb",
        "a\u2028b",
    ],
    ids=ascii,
)
def test_a_text_that_is_empty_or_long_or_not_one_plain_line_is_400(
    shared, shared_db, partner
):
    with unchanged(shared_db):
        answer = sell(shared, partner=partner)
    assert answer.status_code == 400
    assert "partnerId" in error_of(answer)


# --- methods, paths, headers --------------------------------------------------

ROUTES = [
    ("/event", {"GET"}),
    ("/_health", {"GET"}),
    ("/", {"GET"}),
    ("/reservations", {"GET", "POST"}),
    ("/reservations/x", {"GET", "DELETE"}),
    (f"/events/{SEEDED}/reservations", {"GET", "POST"}),
    (f"/events/{SEEDED}/reservations/x", {"GET", "DELETE"}),
]


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(("path", "methods"), ROUTES)
def test_an_unknown_method_is_405_with_the_allowed_ones(
    shared, shared_db, path, methods, slash
):
    path = path.rstrip("/") + (slash or ("/" if path == "/" else ""))
    with unchanged(shared_db):
        for method in {"POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - methods:
            answer = shared.open(path, method=method, json=ORDER)
            assert answer.status_code == 405
            assert error_of(answer)
            allowed = {m.strip() for m in answer.headers["Allow"].split(",")}
            assert allowed == methods | {"HEAD", "OPTIONS"}
        answer = shared.options(path)
    assert answer.status_code == 200
    assert {m.strip() for m in answer.headers["Allow"].split(",")} == allowed
    assert answer.data == b""


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/event",
        "/reservations",
        "/_health",
        f"/events/{SEEDED}",
        f"/events/{SEEDED}/reservations",
        "/reservations/x",
        "/nothing",
    ],
)
def test_head_answers_like_get_without_the_body(shared, shared_db, path):
    sell(shared)
    with unchanged(shared_db):
        get, head = shared.get(path), shared.head(path)
    assert head.data == b"" != get.data
    assert head.status_code == get.status_code
    for name in ("Content-Type", "Content-Length", "ETag", "Cache-Control"):
        assert head.headers.get(name) == get.headers.get(name)


@pytest.mark.parametrize("at", ["", f"/events/{SEEDED}"])
def test_a_trailing_slash_makes_no_difference(shared, at):
    made = shared.post(f"{at}/reservations/", json=ORDER)
    assert made.status_code == 201
    one = f"{at}/reservations/{made.json['reservationId']}"
    assert shared.get(f"{one}/").json == shared.get(one).json
    for path in ("/event", f"{at}/reservations", f"/events/{SEEDED}", "/_health"):
        assert shared.get(f"{path}/").status_code == 200
        assert shared.get(f"{path}/").json == shared.get(path).json
    assert shared.delete(f"{one}/").status_code == 204
    assert shared.get(one).json["status"] == "cancelled"


@pytest.mark.parametrize("odd", ODD_IDS, ids=lambda odd: odd[:30])
@pytest.mark.parametrize("at", ["", f"/events/{SEEDED}"])
def test_an_odd_unknown_id_is_the_404_of_its_route(shared, shared_db, at, odd):
    with unchanged(shared_db):
        gone = shared.delete(f"{at}/reservations/{odd}")
        shown = shared.get(f"{at}/reservations/{odd}")
    assert gone.status_code == shown.status_code == 404
    assert error_of(gone) == "Reservation not found or already cancelled"
    assert error_of(shown)
    assert "X-Evil" not in gone.headers


@pytest.mark.parametrize("odd", ODD_IDS, ids=lambda odd: odd[:30])
def test_an_odd_unknown_event_is_404(shared, shared_db, odd):
    with unchanged(shared_db):
        for method, path in [
            ("GET", ""),
            ("GET", "/reservations"),
            ("POST", "/reservations"),
            ("DELETE", "/reservations/x"),
        ]:
            answer = shared.open(f"/events/{odd}{path}", method=method, data=RAW)
            # An odd id may as well look like a path with other methods.
            assert answer.status_code == 404 or (answer.status_code, method) == (
                405,
                "POST",
            )
            assert answer.json["error"]


@pytest.mark.parametrize("path", ["/event", "/nothing", "/reservations/x"])
@pytest.mark.parametrize("name", ["a", "0", "A-b_c.9", "x" * 128])
def test_an_answer_repeats_the_request_id(shared, path, name):
    answer = shared.get(path, headers={"X-Request-ID": name})
    assert answer.headers.getlist("X-Request-ID") == [name]


@pytest.mark.parametrize("name", [None, "", "a b", "x" * 129, "é", "<b>", "a,b", "a/b"])
def test_a_request_without_a_usable_request_id_gets_a_new_one(shared, name):
    headers = {} if name is None else {"X-Request-ID": name}
    given = [
        shared.get(path, headers=headers).headers["X-Request-ID"]
        for path in ("/event", "/event", "/nothing")
    ]
    assert len({*given, name}) == 4
    assert all(re.fullmatch("[A-Za-z0-9._-]{1,128}", each) for each in given)


# --- whose request it is --------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "http://localhost:8080",
        "http://localhost.evil.example",
        "http://evil.example/localhost",
        "http://evil@localhost.example",
        "null",
        "",
        "*",
        "localhost",
        "http://[",
        "http://[::1",
        "http://é",
        "file://",
        "http://localhost, http://evil.example",
    ],
)
def test_a_page_of_another_site_changes_nothing(shared, shared_db, origin):
    key = sell(shared).json["reservationId"]
    headers = {"Origin": origin}
    with unchanged(shared_db):
        for method, path in [
            ("POST", "/reservations"),
            ("DELETE", f"/reservations/{key}"),
        ]:
            answer = shared.open(path, method=method, data=RAW, headers=headers)
            assert answer.status_code == 403
            assert error_of(answer)
    for method in ("GET", "HEAD", "OPTIONS"):
        answer = shared.open("/reservations", method=method, headers=headers)
        assert answer.status_code == 200
        assert not any(name.startswith("Access-Control-") for name, _ in answer.headers)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:3000", "127.0.0.1:3000", "[::1]:3000", "box.example"],
)
def test_our_own_page_may_make_changes(shared, host):
    assert sell(shared, Host=host, Origin=f"http://{host}").status_code == 201


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:3000",
        "LOCALHOST",
        "[::1]",
        "127.0.0.1",
        "127.0.0.1:3000",
        "[::1]:3000",
        "box.example",
        "box.example:3000",
    ],
)
def test_a_loopback_server_accepts_its_own_host_names(make_shared, host):
    app = make_shared(loopback=True, trusted_hosts=("box.example",))
    assert sell(app.test_client(), Host=host).status_code == 201


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:3000",
        "localhost.evil.example",
        "notlocalhost",
        "127.0.0.1.evil.example",
        "0.0.0.0:3000",
        "192.168.1.5:3000",
        "2130706433",
        "[",
        "[::1",
        "a b",
        "é",
        "..",
        "box.example",
    ],
)
def test_a_loopback_server_refuses_a_foreign_host_name_with_421(
    make_shared, shared_db, host
):
    client = make_shared(loopback=True).test_client()
    with unchanged(shared_db):
        for method, path in [
            ("GET", "/event"),
            ("GET", "/"),
            ("GET", "/reservations"),
            ("POST", "/reservations"),
            ("DELETE", "/reservations/x"),
        ]:
            answer = client.open(path, method=method, data=RAW, headers={"Host": host})
            assert answer.status_code == 421
            assert error_of(answer)


@pytest.mark.parametrize("trusted", ["MyBox.Local", "mybox.local", "MYBOX.LOCAL"])
def test_a_trusted_host_is_accepted_in_any_case(make_shared, trusted):
    client = make_shared(loopback=True, trusted_hosts=(trusted,)).test_client()
    for host in ("mybox.local", "MyBox.Local", "MYBOX.local:3000"):
        assert client.get("/event", headers={"Host": host}).status_code == 200
    for host in ("box.local", "mybox.local.evil.example", "mybox"):
        assert client.get("/event", headers={"Host": host}).status_code == 421


def test_a_trusted_address_allows_no_other_address(make_shared):
    client = make_shared(loopback=True, trusted_hosts=("[fe80::1]",)).test_client()
    for host, status in ("[fe80::1]", 200), ("[fe80::1]:3000", 200), ("[fe80::2]", 421):
        assert client.get("/event", headers={"Host": host}).status_code == status


def test_a_server_on_a_public_address_accepts_any_host_name(shared):
    assert sell(shared, Host="tickets.example").status_code == 201


@pytest.mark.parametrize(
    "host",
    [
        "xn--a",
        "xn--a:80",
        "a.xn--\xff",
        "xn--",
        "x" * 70,
        "\xe9.example",
        "a" * 64 + ".example",
        "..",
        "[::1",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("path", ["/", "/event", "/nothing"])
def test_a_server_on_a_public_address_answers_an_odd_host_name(shared, host, path):
    # A test client could not read such a name itself.
    asked = create_environ(path, headers={"Host": host})
    _, status, headers = run_wsgi_app(shared.application, asked, buffered=True)
    assert int(status.split()[0]) in {200, 400, 404}
    assert headers["X-Request-ID"]


@pytest.mark.parametrize("told", ["Basic x", "Bearer rubbish", "Bearer", ""])
def test_health_and_the_front_page_ignore_the_authorization_header(shared, told):
    answer = shared.get("/_health", headers={"Authorization": told})
    assert (answer.status_code, answer.json) == (200, {"ok": True})
    assert shared.get("/", headers={"Authorization": told}).status_code == 200


# --- conditions -----------------------------------------------------------------

VERSIONED = [
    "/event",
    "/reservations",
    f"/events/{SEEDED}",
    f"/events/{SEEDED}/reservations",
]


@pytest.mark.parametrize("path", VERSIONED)
def test_a_second_read_of_an_unchanged_event_is_304(client, path):
    sell(client)
    read = client.get(path)
    assert read.headers["ETag"] == '"1"'
    assert read.headers["Cache-Control"] == "no-cache"
    for seen in ('"1"', 'W/"1"', '"0", "1"', "*"):
        again = client.get(path, headers={"If-None-Match": seen})
        assert (again.status_code, again.data) == (304, b"")
        assert again.headers["ETag"] == '"1"'
        assert again.headers["Cache-Control"] == "no-cache"
    assert client.head(path, headers={"If-None-Match": '"1"'}).status_code == 304
    for seen in ('"0"', '"11"', '"01"', "", "rubbish"):
        again = client.get(path, headers={"If-None-Match": seen})
        assert (again.status_code, again.json) == (200, read.json)


@pytest.mark.parametrize("path", VERSIONED)
def test_each_change_makes_a_new_etag_and_nothing_else_does(client, path):
    def etag():
        return client.get(path).headers["ETag"]

    assert etag() == etag() == '"0"'
    key = sell(client).json["reservationId"]
    assert etag() == '"1"'
    assert sell(client, 11).status_code == 400
    assert etag() == '"1"'
    client.delete(f"/reservations/{key}?seats=1")
    assert etag() == '"2"'
    client.delete(f"/reservations/{key}")
    client.delete(f"/reservations/{key}")
    assert etag() == '"3"'
    assert client.get(path, headers={"If-None-Match": '"2"'}).status_code == 200


def about(condition, client):
    """The header If-Match of that text, in which V is the event's version."""
    version = client.get("/event").json["version"]
    return {"If-Match": condition.replace("V", str(version))}


@pytest.mark.parametrize(
    "condition",
    ['"V"', "*", ' "V" ', '"0", "V"', '"0","V","7"', 'W/"0", "V"', 'W/"V", "V"'],
)
@pytest.mark.parametrize("at", ["", f"/events/{SEEDED}"])
def test_a_change_under_a_condition_that_holds_is_made(shared, at, condition):
    before = shared.get("/event").json
    sold = shared.post(
        f"{at}/reservations", json=ORDER, headers=about(condition, shared)
    )
    assert sold.status_code == 201
    gone = shared.delete(sold.headers["Location"], headers=about(condition, shared))
    assert gone.status_code == 204
    assert shared.get("/event").json == before | {"version": before["version"] + 2}


@pytest.mark.parametrize(
    "condition",
    [
        '"0"',
        '"V0"',
        '"0V"',
        '"-V"',
        '""',
        'W/"V"',
        '"0", W/"V"',
        '"*"',
        '"99999999999999999999"',
    ],
)
@pytest.mark.parametrize("at", ["", f"/events/{SEEDED}"])
def test_a_condition_that_fails_is_412_and_changes_nothing(
    shared, shared_db, at, condition
):
    sold = sell(shared, at=at)
    place, now = sold.headers["Location"], sold.headers["ETag"]
    headers = about(condition, shared)
    with unchanged(shared_db):
        for method, path in [
            ("POST", f"{at}/reservations"),
            ("DELETE", place),
            ("DELETE", f"{place}?seats=3"),
        ]:
            body = RAW if method == "POST" else None
            answer = shared.open(path, method=method, data=body, headers=headers)
            assert answer.status_code == 412
            assert answer.headers["ETag"] == now
            assert re.search(rf"again.*If-Match: {now}", error_of(answer))


@pytest.mark.parametrize(
    "condition",
    [
        "",
        " ",
        "V",
        '"V',
        'V"',
        "'V'",
        '*, "V"',
        '"V" "0"',
        'w/"V"',
        "**",
        "W/V",
        '"V"; "0"',
    ],
)
def test_a_condition_that_does_not_parse_is_400(shared, shared_db, condition):
    place = sell(shared).headers["Location"]
    headers = about(condition, shared)
    with unchanged(shared_db):
        for method, path in [("POST", "/reservations"), ("DELETE", place)]:
            answer = shared.open(path, method=method, data=RAW, headers=headers)
            assert answer.status_code == 400
            assert "If-Match" in error_of(answer)


@pytest.mark.parametrize(
    "body", [{"eventId": 7}, {"eventId": "new"}, {"name": "No id of its own"}]
)
def test_a_new_event_is_not_opened_under_a_condition_that_fails(client, db, body):
    body |= {"totalTickets": 5}
    with unchanged(db):
        answer = client.post("/initialize", json=body, headers={"If-Match": '"9"'})
    assert answer.status_code == 412
    assert answer.json["error"]
    assert len(client.get("/events").json) == 1
    assert client.post("/initialize", json=body).status_code == 201


def test_an_existing_event_id_is_409_under_a_condition_that_holds(client, db):
    body = {"eventId": 7, "totalTickets": 5}
    assert client.post("/initialize", json=body).status_code == 201
    assert sell(client, at="/events/7").headers["ETag"] == '"1"'
    with unchanged(db):
        for condition, status in ('"9"', 412), ('"0"', 412), ('"1"', 409), ("*", 409):
            answer = client.post(
                "/initialize",
                json=body | {"totalTickets": 9},
                headers={"If-Match": condition},
            )
            assert answer.status_code == status
            assert answer.json["error"]
            assert answer.headers.get("ETag") == ('"1"' if status == 412 else None)
    assert client.get("/events/7").json["availableSeats"] == 2


def test_a_failed_condition_is_412_and_missing_seats_are_409(make_app, db):
    client = make_app(seats=2).test_client()
    sell(client, 2)
    with unchanged(db):
        full, stale = (sell(client, 1, If_Match=etag) for etag in ('"1"', '"0"'))
    assert (full.status_code, stale.status_code) == (409, 412)
    assert error_of(full) == "Not enough seats left"


def test_only_one_of_many_simultaneous_orders_with_one_condition_is_sold(
    make_app, saved
):
    apps = [make_app(), make_app()]
    answers = at_once(
        [lambda app=app: sell(app.test_client(), 1, If_Match='"0"') for app in apps * 8]
    )
    assert sorted(a.status_code for a in answers) == [201] + [412] * 15
    assert {a.headers["ETag"] for a in answers} == {'"1"'}
    assert saved()["event"]["availableSeats"] == 499
    assert len(saved()["reservations"]) == 1


def test_a_condition_that_fails_between_read_and_swap_is_412(
    make_app, monkeypatch, saved
):
    slow, quick = make_app(think_s=0.0625), make_app().test_client()
    meanwhile(monkeypatch, 0.0625, lambda: sell(quick, 5))
    answer = sell(slow.test_client(), 3, If_Match='"0"')
    assert (answer.status_code, answer.headers["ETag"]) == (412, '"1"')
    assert [r["seats"] for r in saved()["reservations"].values()] == [5]


def test_a_change_has_the_number_of_attempts_in_its_answer(
    make_app, monkeypatch, saved
):
    slow, quick = make_app(think_s=0.0625).test_client(), make_app().test_client()
    first = sell(slow)
    assert first.headers["X-Attempts"] == "1"
    meanwhile(monkeypatch, 0.0625, lambda: sell(quick))
    second = sell(slow)
    assert (second.status_code, second.headers["X-Attempts"]) == (201, "2")
    meanwhile(monkeypatch, 0.0625, lambda: sell(quick))
    gone = slow.delete(first.headers["Location"])
    assert (gone.status_code, gone.headers["X-Attempts"]) == (204, "2")
    assert sell(quick).headers["X-Attempts"] == "1"
    assert saved()["event"]["version"] == 6


@pytest.mark.usefixtures("cheap_hashes")
def test_every_change_of_every_dialect_has_the_number_of_attempts_in_its_answer(
    make_app,
):
    client = make_app(loopback=True).test_client()
    me = {"username": "ann", "email": "ann@example.com", "password": "12345678"}
    ticket = {"eventId": 7, "userId": "ann"}
    booking = {
        "eventId": 7,
        "firstName": "A",
        "lastName": "B",
        "email": me["email"],
        "ticketsReserved": 1,
    }

    def change(method, path, body=None, **headers):
        answer = client.open(path, method=method, json=body, headers=headers)
        assert answer.status_code in {200, 201, 204}
        assert answer.headers["X-Attempts"] == "1"
        return answer

    change("POST", "/api/v1/auth/register", me)
    login = client.post("/api/v1/auth/login", json=me).json["data"]["token"]
    admin = {"Authorization": f"Bearer {login}"}
    change("POST", "/initialize", {"eventId": 7, "totalTickets": 50})
    change("POST", "/initialize", {"name": "Talk", "totalTickets": 5})
    for at in ("", "/events/7"):
        sold = change("POST", f"{at}/reservations", ORDER).headers["Location"]
        change("DELETE", f"{sold}?seats=1")
        change("DELETE", sold)
    change("POST", "/book", ticket)
    change("POST", "/cancel", ticket)
    number = change("POST", "/api/v1/booking", booking).json["data"]["id"]
    change("DELETE", f"/api/v1/booking/{number}")
    dated = {"name": "Concert", "date": "2024-12-01", "totalTickets": 5}
    event = change("POST", "/api/v1/event", dated, **admin).json["data"]["id"]
    change("DELETE", f"/api/v1/event/{event}", **admin)
    change("DELETE", "/events/7")


@pytest.mark.parametrize("at", ["", f"/events/{SEEDED}"])
def test_a_sale_has_its_location_and_version_in_its_answer(client, at):
    for version in ('"1"', '"2"'):
        made = sell(client, at=at)
        assert made.status_code == 201
        assert made.headers["ETag"] == version
        key = made.json["reservationId"]
        assert made.headers["Location"] == f"{at}/reservations/{key}"
        assert client.get(made.headers["Location"]).json["reservationId"] == key


def test_a_new_event_has_its_location_and_version_in_its_answer(client):
    made = client.post("/initialize", json={"eventId": "a b&ü", "totalTickets": 5})
    assert made.status_code == 201
    shown = client.get(made.headers["Location"])
    assert shown.json["eventId"] == "a b&ü"
    assert shown.headers["ETag"] == made.headers["ETag"] == '"0"'


def test_simultaneous_sales_each_have_their_own_version_in_their_answer(client):
    app = client.application
    answers = at_once([lambda: sell(app.test_client(), 1) for _ in range(24)])
    assert {a.headers["ETag"] for a in answers} == {f'"{n}"' for n in range(1, 25)}
    kept = {
        r["reservationId"]: r["eventVersionAtReservation"]
        for r in client.get("/reservations").json
    }
    for answer in answers:
        version = kept[answer.json["reservationId"]]
        assert answer.headers["ETag"] == f'"{version}"'


def test_contention_has_its_own_error_text_and_changes_nothing(make_app, db):
    client = make_app(timeout_s=0.05).test_client()
    key = sell(client).json["reservationId"]
    with open(db.with_name(".db.json.lock"), "rb") as lock, unchanged(db):
        fcntl.flock(lock, fcntl.LOCK_EX)
        post, gone = sell(client), client.delete(f"/reservations/{key}")
        assert client.get("/event").json["version"] == 1
    assert (post.status_code, error_of(post)) == (
        409,
        "Could not complete reservation due to concurrent updates. Please retry.",
    )
    assert (gone.status_code, error_of(gone)) == (
        500,
        "Could not cancel reservation due to concurrent updates. Please retry.",
    )
    assert int(post.headers["Retry-After"]) > 0 < int(gone.headers["Retry-After"])
    assert sell(client).status_code == 201  # the lock is free again


def test_contention_at_a_change_of_an_event_does_not_speak_of_a_reservation(
    make_app, db
):
    client = make_app(timeout_s=0.05).test_client()
    opened = client.post("/initialize", json={"eventId": "e", "totalTickets": 5})
    assert opened.status_code == 201
    with open(db.with_name(".db.json.lock"), "rb") as lock, unchanged(db):
        fcntl.flock(lock, fcntl.LOCK_EX)
        answers = [
            client.patch("/events/e", json={"name": "other"}),
            client.delete("/events/e"),
            client.post("/initialize", json={"eventId": "f", "totalTickets": 5}),
        ]
    assert {(a.status_code, a.json["error"]) for a in answers} == {
        (503, "Another process holds the lock. Nothing was changed.")
    }
    assert {a.headers["Retry-After"] for a in answers} == {"1"}


# --- safe retries -----------------------------------------------------------------


def is_replay(answer, first):
    """Whether this is the first answer again, with the header that marks a replay."""
    assert answer.headers.get("Idempotent-Replayed") in {None, "true"}
    same = (answer.status_code, answer.json) == (first.status_code, first.json) and all(
        answer.headers.get(n) == first.headers.get(n) for n in ("Location", "ETag")
    )
    return same and "Idempotent-Replayed" in answer.headers


@pytest.mark.parametrize("key", ["k", "x" * 255, "~!\"#$%&'()*+,-./:;<=>?@[]^_`{|}"])
def test_the_same_key_with_the_same_body_sells_once(client, db, key):
    first = sell(client, Idempotency_Key=key)
    assert first.status_code == 201
    assert "Idempotent-Replayed" not in first.headers
    with unchanged(db):
        again = [sell(client, Idempotency_Key=key) for _ in range(3)]
    assert all(is_replay(each, first) for each in again)
    assert all(each.headers["X-Attempts"] == "1" for each in again)
    assert client.get("/event").json["version"] == 1
    assert len(client.get("/reservations").json) == 1


def test_another_key_or_none_sells_again(client):
    ids = {
        sell(client, **key).json["reservationId"]
        for key in ({"Idempotency_Key": "a"}, {"Idempotency_Key": "A"}, {}, {})
    }
    assert len(ids) == 4


@pytest.mark.parametrize(
    "key", ["", " ", "a b", "x" * 256, "é", "a\tb", "\x7f"], ids=ascii
)
def test_an_unusable_idempotency_key_is_400(shared, shared_db, key):
    with unchanged(shared_db):
        answer = sell(shared, Idempotency_Key=key)
    assert answer.status_code == 400
    assert "Idempotency-Key" in error_of(answer)


@pytest.mark.parametrize("other", [{"seats": 2}, {"waitlist": True}])
def test_the_same_key_with_another_body_is_422(client, db, other):
    first = sell(client, Idempotency_Key="k")
    with unchanged(db):
        answer = sell(client, more=other, Idempotency_Key="k")
    assert answer.status_code == 422
    assert error_of(answer)
    assert is_replay(sell(client, Idempotency_Key="k"), first)


def test_a_key_holds_after_a_restart_and_in_another_server(make_app, db):
    first = sell(make_app().test_client(), Idempotency_Key="k")
    later, neighbour = make_app().test_client(), make_app().test_client()
    with unchanged(db):
        assert is_replay(sell(later, Idempotency_Key="k"), first)
        assert is_replay(sell(neighbour, Idempotency_Key="k"), first)
        assert sell(neighbour, 2, Idempotency_Key="k").status_code == 422
    assert {path.name for path in db.parent.iterdir()} == {"db.json", ".db.json.lock"}


def test_of_fifty_simultaneous_orders_with_one_key_one_buys(make_app, saved):
    apps = [make_app(), make_app()]
    answers = at_once(
        [
            lambda app=app: sell(app.test_client(), Idempotency_Key="k")
            for app in apps * 25
        ]
    )
    (first,) = (a for a in answers if "Idempotent-Replayed" not in a.headers)
    assert first.status_code == 201
    assert sum(is_replay(each, first) for each in answers) == 49
    assert saved()["event"]["version"] == 1
    assert saved()["event"]["availableSeats"] == 497
    assert list(saved()["reservations"]) == [first.json["reservationId"]]


def test_a_retried_decision_finds_a_faster_order_with_the_same_key(
    make_app, monkeypatch, saved
):
    slow, quick = make_app(think_s=0.0625).test_client(), make_app().test_client()
    bought = []
    meanwhile(
        monkeypatch, 0.0625, lambda: bought.append(sell(quick, Idempotency_Key="k"))
    )
    answer = sell(slow, Idempotency_Key="k")
    assert is_replay(answer, bought[0])
    assert answer.headers["X-Attempts"] == "2"
    assert saved()["event"]["version"] == 1


@pytest.mark.parametrize("back", ["", "?seats=1", "?seats=3"])
def test_a_replay_is_the_first_answer_after_seats_were_returned(client, db, back):
    first = sell(client, Idempotency_Key="k")
    assert client.delete(first.headers["Location"] + back).status_code == 204
    sell(client, 1)
    with unchanged(db):
        assert is_replay(sell(client, Idempotency_Key="k"), first)
    free = {"": 499, "?seats=1": 497, "?seats=3": 499}[back]
    assert client.get("/event").json["availableSeats"] == free


def test_a_replay_is_the_first_answer_after_a_promotion(make_app, db):
    client = make_app(seats=6).test_client()
    held = [sell(client, 3).headers["Location"] for _ in range(2)]
    waits = {"more": {"waitlist": True}}
    ahead = sell(client, 1, **waits)
    first = sell(client, 2, **waits, Idempotency_Key="k")
    assert (ahead.status_code, first.status_code) == (202, 202)
    assert first.json["position"] == 2
    with unchanged(db):
        assert is_replay(sell(client, 2, **waits, Idempotency_Key="k"), first)
    client.delete(held[0])
    assert client.get(first.headers["Location"]).json["status"] == "confirmed"
    with unchanged(db):
        assert is_replay(sell(client, 2, **waits, Idempotency_Key="k"), first)
    client.delete(first.headers["Location"])
    with unchanged(db):
        assert is_replay(sell(client, 2, **waits, Idempotency_Key="k"), first)


def test_a_replay_is_given_whatever_the_condition(client, db):
    first = sell(client, Idempotency_Key="k", If_Match='"0"')
    assert first.status_code == 201
    sell(client)
    with unchanged(db):
        for condition in ('"0"', '"2"', '"99"', "*"):
            again = sell(client, Idempotency_Key="k", If_Match=condition)
            assert is_replay(again, first)


def test_a_replay_is_given_when_the_event_is_sold_out(make_app, db):
    client = make_app(seats=3).test_client()
    first = sell(client, Idempotency_Key="k")
    assert sell(client, 1).status_code == 409
    with unchanged(db):
        assert is_replay(sell(client, Idempotency_Key="k"), first)


def test_a_refusal_is_not_remembered(make_app, db):
    client = make_app(seats=3).test_client()
    with unchanged(db):
        assert sell(client, 11, Idempotency_Key="k").status_code == 400
        stale = sell(client, 3, Idempotency_Key="k", If_Match='"9"')
        assert stale.status_code == 412
        assert sell(client, 4, Idempotency_Key="k").status_code == 409
    sold = sell(client, 3)
    with unchanged(db):
        assert sell(client, 2, Idempotency_Key="k").status_code == 409
    client.delete(sold.headers["Location"])
    answer = sell(client, 2, Idempotency_Key="k")
    assert answer.status_code == 201
    assert "Idempotent-Replayed" not in answer.headers


def test_a_key_belongs_to_its_caller(client):
    ids = {
        sell(client, partner=partner, Idempotency_Key="k").json["reservationId"]
        for partner in ("ann", "bob", "ann", "bob")
    }
    assert len(ids) == 2
    assert client.get("/event").json["version"] == 2


def test_a_key_belongs_to_its_event(client):
    for event in (1, 2):
        client.post("/initialize", json={"eventId": event, "totalTickets": 9})
    places = ("", "/events/1", "/events/2")
    first = [sell(client, at=at, Idempotency_Key="k") for at in places]
    again = [sell(client, at=at, Idempotency_Key="k") for at in places]
    assert all(each.status_code == 201 for each in first)
    assert len({each.json["reservationId"] for each in first}) == 3
    assert all(map(is_replay, again, first))


@pytest.mark.parametrize("partner", ["abc-corp", "id:abc-corp"])
def test_a_key_belongs_to_its_route(client, partner):
    client.post("/initialize", json={"eventId": 1, "totalTickets": 9})
    body = {"eventId": 1, "userId": "abc-corp", "partnerId": partner, "seats": 1}
    routes, key = ("/book", "/events/1/reservations"), {"Idempotency-Key": "k"}
    first = [client.post(route, json=body, headers=key) for route in routes]
    again = [client.post(route, json=body, headers=key) for route in routes]
    assert [each.status_code for each in first] == [200, 201]
    assert len({each.json["reservationId"] for each in first}) == 2
    assert all(map(is_replay, again, first))
    assert client.get("/events/1").json["availableSeats"] == 7
