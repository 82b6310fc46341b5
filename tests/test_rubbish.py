"""Rubbish gets an answer, and leaves no mark.

Whatever comes in, by request, by wire or by a damaged file: no bug shows (no 5xx),
every answer is JSON, what was refused changed nothing, and the seats add up after each.
By chance, but always the same chance: a failure names its seed and its request.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from urllib.parse import unquote_to_bytes, urlsplit

import jwt
import pytest

import ticketboss
from ticketboss import (
    Account,
    Store,
    Unavailable,
)

SECRET = "not a secret, but long enough for any hash. " * 2
HASH = "scrypt:everybody's"
EVERYBODY = Account(1, "", "", HASH, "user")  # as far as a token says what it was for
DOCUMENTED = {
    200,
    201,
    202,
    204,
    304,
    400,
    401,
    403,
    404,
    405,
    409,
    412,
    413,
    415,
    421,
    422,
    429,
}
SAFE = {"GET", "HEAD", "OPTIONS"}
SETTINGS = [
    {},
    {"require_login": True},
    {"loopback": True, "seats": 12},
    {"trust_proxy": True, "rate_limit": "{most} per hour", "require_login": True},
    {"seats": 3},
]

ORDER = {"partnerId": "abc-corp", "seats": 2, "waitlist": True}
BOOKING = {
    "eventId": "1",
    "firstName": "Ann",
    "lastName": "Lee",
    "email": "a@b.cd",
    "ticketsReserved": "2",
}
ROUTES = [
    ("GET", "/", None),
    ("GET", "/_health", None),
    ("GET", "/event", None),
    ("GET", "/reservations", None),
    ("POST", "/reservations", ORDER),
    ("POST", "/reservations", ORDER),
    ("GET", "/reservations/{held}", None),
    ("DELETE", "/reservations/{held}", None),
    ("GET", "/events", None),
    ("GET", "/events/{event}", None),
    ("DELETE", "/events/{event}", None),
    ("GET", "/events/{event}/reservations", None),
    ("POST", "/events/{event}/reservations", ORDER),
    ("DELETE", "/events/{event}/reservations/{held}", None),
    ("GET", "/events/{event}/report", None),
    ("GET", "/report", None),
    ("POST", "/initialize", {"eventId": 7, "totalTickets": 3, "price": 250}),
    ("POST", "/initialize", {"name": "Tech Conference", "totalTickets": 5}),
    ("POST", "/book", {"eventId": 1, "userId": "user1"}),
    ("POST", "/book", {"eventId": 1, "userEmail": "ann@example.com"}),
    ("POST", "/cancel", {"eventId": 1, "userId": "user1"}),
    ("GET", "/status/{event}", None),
    ("POST", "/login", {"email": "ann@example.com", "password": "12345678"}),
    (
        "POST",
        "/api/v1/auth/register",
        {"username": "bob", "email": "bob@example.com", "password": "12345678"},
    ),
    (
        "POST",
        "/api/v1/auth/login",
        {"email": "ann@example.com", "password": "12345678"},
    ),
    ("GET", "/api/v1/auth/me", None),
    ("GET", "/api/v1/event", None),
    (
        "POST",
        "/api/v1/event",
        {"name": "Fair", "date": "2026-12-01", "totalTickets": 4},
    ),
    ("DELETE", "/api/v1/event/{event}", None),
    ("POST", "/api/v1/booking", BOOKING),
    ("DELETE", "/api/v1/booking/{number}", {"ticketsToCancel": "1"}),
    ("GET", "/api/v1/booking/status/{event}", None),
    ("GET", "/nothing/here", None),
]
METHODS = [
    "GET",
    "HEAD",
    "OPTIONS",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "TRACE",
    "CONNECT",
    "BREW",
    "get",
    "\xe9",
]
IN_PATHS = [
    "",
    ".",
    "..",
    "/",
    "%2F..%2F..%2Fetc%2Fpasswd",
    "%00",
    "%0D%0AX-Evil:1",
    "%zz",
    "%",
    "%FF%FE",
    "%ED%A0%80",
    "%20",
    "%F0%9F%98%80",
    "%C3%BC",
    "~",
    "%E2%80%AE",
    "node-meetup-2025",
    "0",
    "1",
    "-1",
    "9" * 400,
    "x" * 10_000,
    "1.0",
    "%EF%BC%91",
    "9007199254740993",
    "%5B%5D",
    "<script>",
    "'%20OR%201",
]
IN_QUERIES = [
    "limit=2",
    "limit=0",
    "limit=-1",
    "limit=9999999",
    "limit=%D9%A3",
    "limit=1&limit=x",
    "status=confirmed",
    "status=",
    "status=%FF",
    "after=",
    "after=x",
    "partnerId=abc-corp",
    "partnerId=%00",
    "seats=1",
    "seats=1e1",
    "seats=" + "9" * 5000,
    "format=csv",
    "format=json",
    "format=xml",
    "%",
    "=",
    "&&&",
    "event=1",
    "a[]=1",
    "x" * 9000,
    "\xff=\xfe",
    "limit=1&status=%ff",
]
IN_HEADERS = {
    "IF_MATCH": [
        '"0"',
        '"1"',
        "*",
        'W/"1"',
        "1",
        '"',
        '"1","2"',
        "",
        '"\xff"',
        "*,*",
        '"' + "9" * 5000 + '"',
    ],
    "IF_NONE_MATCH": ['"0"', "*", 'W/"3"', "", "\xff", '"', ",,,", '"1" "2"'],
    "IDEMPOTENCY_KEY": ["k"] * 12
    + ["k2", "", " ", "x" * 255, "x" * 256, "\xe9", "\x00", "a b"],
    "ORIGIN": [
        "null",
        "http://localhost",
        "http://evil.example",
        "",
        "\xff",
        "http://[",
    ],
    "CONTENT_ENCODING": ["identity", "gzip", "", "\xff", "identity, gzip"],
    "X_REQUEST_ID": ["a-1", "", "x" * 129, "\xe9", "a\r\nX-Evil: 1", "\x00"],
    "ACCEPT": [
        "text/html",
        "text/csv",
        "application/json",
        "",
        "*/*;q=x",
        "\xff",
        "text/csv;q=nan",
        ";" * 3000,
        "a/b;q=1e400",
    ],
    "X_FORWARDED_FOR": [
        "1.2.3.4",
        "::1",
        "2001:db8::1",
        "",
        "x",
        "1.2.3.4, \xff",
        "[",
        "999.1.1.1",
        "fe80::1%eth0",
        ",",
    ],
    "X_FORWARDED_HOST": ["evil.example", "", "[", "\xff", "a b"],
    "X_FORWARDED_PROTO": ["https", "", "\xff"],
    "X_FORWARDED_PORT": ["1", "x"],
    "X_FORWARDED_PREFIX": ["/x", "\xff"],
    "FORWARDED": ["for=1", "\xff"],
    "HOST": [
        "localhost",
        "evil.example",
        "",
        "[",
        "[::1",
        "a b",
        "\xff",
        "localhost:x",
    ],
    "TRANSFER_ENCODING": ["chunked", "rubbish"],
    "RANGE": ["bytes=0-1", "\xff"],
    "COOKIE": ["session=x", "\xff"],
    "EXPECT": ["100-continue", "x"],
    "IF_MODIFIED_SINCE": ["x"],
    "X_HTTP_METHOD_OVERRIDE": ["DELETE"],
}
OFTEN = {"IDEMPOTENCY_KEY": 0.4, "IF_MATCH": 0.1, "IF_NONE_MATCH": 0.2}
KINDS = [
    "application/json",
    "text/plain",
    "",
    "\xff",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
    "application/json; charset=utf-16",
]
IN_BODIES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    11,
    3.0,
    2.5,
    -0.0,
    1e300,
    10**400,
    -(10**20),
    2**53,
    2**63,
    2**64,
    10**6,
    float("nan"),
    float("inf"),
    "",
    " ",
    "3",
    "-3",
    "\u0663",
    "1e1",
    "true",
    "\ud800",
    "\x00",
    "a\nb",
    "\u202e",
    "x" * 200,
    "x" * 201,
    "x" * 3000,
    "é",
    "\U0001f600",
    "id:1",
    "=1+1",
    "a/b",
    "..",
    "node-meetup-2025",
    "ann@example.com",
    "ANN@EXAMPLE.COM",
    "@",
    "a@b",
    "a@b.c\x00",
    [],
    [1],
    {},
    {"a": {"b": []}},
    "null",
    "2024-12-01",
    "2024-13-01",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
    "2024-W01",
    "9" * 17,
    "\ufeff",
    [[[[[[[[]]]]]]]],
]


class Rubbish:
    """Requests that are almost right; all of them follow from the seed."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.known = {
            "held": ["x"],
            "event": ["node-meetup-2025", "1", "7"],
            "number": ["1"],
        }

    def rarely(self, share=0.15):
        return self.chance.random() < share

    def request(self):
        """(method, path, environ, body) of the next one."""
        choice = self.chance.choice
        method, path, body = choice(ROUTES)
        for name, values in self.known.items():
            odd = self.rarely(0.2)
            path = path.replace(f"{{{name}}}", choice(IN_PATHS if odd else values))
        if self.rarely(0.05):
            path = choice(
                [
                    "/" + choice(IN_PATHS),
                    path + "/",
                    path.upper(),
                    "/" + path,
                    path + "/" + choice(IN_PATHS),
                    path[1:],
                    "",
                ]
            )
        if self.rarely(0.1):
            method = choice(METHODS)
        environ = {
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": choice(IN_QUERIES) if self.rarely() else "",
            "CONTENT_TYPE": choice(KINDS) if self.rarely() else "application/json",
        }
        for name, values in IN_HEADERS.items():
            if self.rarely(OFTEN.get(name, 0.03)):
                environ[f"HTTP_{name}"] = choice(values)
        if self.rarely(0.6):
            environ["HTTP_AUTHORIZATION"] = self.authorization()
        if self.rarely(0.02):
            environ["REMOTE_ADDR"] = choice(["", "x", "::ffff:1.2.3.4", "fe80::1%1"])
        return method, path, environ, self.body(body)

    def authorization(self):
        """Mostly the admin's or a user's token; else something like one."""
        choice, now = self.chance.choice, int(time.time())
        claims = {
            "sub": choice("112"),
            "role": "admin",
            "iat": now,
            "exp": now + 3000,
            "jti": ticketboss.token_id(EVERYBODY, "x"),
        }
        if self.rarely():
            claims[choice([*claims, "nbf", "aud", "crit"])] = choice(
                [None, "", "0", 0, -1, 10**30, 1e300, [], {}, True, "1", "\u0661"]
            )
        key, kind = (
            (choice([SECRET, SECRET + "x"]), choice(["HS256", "HS512"]))
            if (self.rarely(0.1))
            else (SECRET, "HS256")
        )
        encoded = jwt.api_jws.encode(json.dumps(claims).encode(), key, kind)
        if self.rarely(0.1):
            at = self.chance.randrange(len(encoded))
            encoded = encoded[:at] + choice(".A \xff=\x00") + encoded[at + 1 :]
        return (
            choice(["Bearer ", "bearer ", "Basic ", "Bearer", ""]) + encoded
            if (self.rarely(0.1))
            else f"Bearer {encoded}"
        )

    def body(self, fields):
        """The bytes of a body; of a right one, if `fields` are changed in no way."""
        choice, fields = self.chance.choice, dict(fields or {})
        while self.rarely(0.3):
            names = [*fields, "eventId", "userId", "seats", "role", "ticketsToCancel"]
            fields[choice(names)] = choice(IN_BODIES)
        if fields and self.rarely(0.05):
            del fields[choice([*fields])]
        raw = json.dumps(fields, ensure_ascii=self.rarely(0.5)).encode(
            "utf-8", "surrogatepass"
        )
        return self.spoilt(raw) if self.rarely() else raw if fields else b""

    def spoilt(self, raw):
        """Bytes that are no JSON object any more, or a strange one."""
        at = self.chance.randrange(len(raw))
        deep = self.chance.choice([10, 900, 990, 1000, 5000, 30_000])
        as_text = raw.decode("utf-8", "replace")
        return self.chance.choice(
            [
                lambda: raw[:at],
                lambda: raw[at:],
                lambda: raw + raw,
                lambda: b"",
                lambda: self.chance.randbytes(self.chance.randrange(200)),
                lambda: raw[:at] + self.chance.randbytes(1) + raw[at + 1 :],
                lambda: as_text.encode("utf-16"),
                lambda: as_text.encode("utf-32-le"),
                lambda: b"\xef\xbb\xbf" + raw,
                lambda: b"[" + raw + b"]",
                lambda: raw[:-1] + b',"x":' + b"[" * deep + b"]" * deep + b"}",
                lambda: b"[" * deep,
                lambda: b'{"x":' * deep,
                lambda: raw[:-1] + b",}",
                lambda: raw[:-1] + b',"seats":1,"seats":2}',
                lambda: b"null",
                lambda: b"3",
                lambda: raw[:-1] + b',"seats":1' + b"0" * 5000 + b"}",
                lambda: b'"x"',
                lambda: raw[:-1] + b',"x":"' + b"x" * 70_000 + b'"}',
                lambda: raw[:-1] + rb',"x":"\ud800"}',
            ]
        )()

    def learn(self, answer):
        """Remember what the answer names, to ask for it again."""
        told = answer.get_json(silent=True) if answer.status_code < 300 else None
        if isinstance(told, dict):
            within = told.get("data")
            if "reservationId" in told:
                self.known["held"].append(told["reservationId"])
            if "bookingStatus" in (within if isinstance(within, dict) else {}):
                self.known["number"].append(str(within["id"]))


def complaint(method, path, answer, secrets):
    """What is wrong with an answer; "" if nothing is."""
    status, kind, body = answer.status_code, answer.content_type, answer.data
    here = path.strip("/")
    if status not in DOCUMENTED:
        return f"status {status}"
    if not re.fullmatch("[A-Za-z0-9._-]{1,128}", answer.headers["X-Request-ID"]):
        return "no X-Request-ID"
    if "X-Evil" in answer.headers or any(secret in answer.text for secret in secrets):
        return "it says too much"
    if status in {204, 304} or method == "HEAD" or (method, status) == ("OPTIONS", 200):
        return "a body" if body else ""
    if (status == 200 and (here == "" and kind.startswith("text/"))) or (
        here.endswith("report") and kind == "text/csv; charset=utf-8"
    ):
        return ""
    if kind != "application/json":
        return f"Content-Type {kind}"
    told = json.loads(body, parse_constant=pytest.fail)
    named = status < 400 or (
        isinstance(told, dict) and told["error"] and set(told) <= {"error", "message"}
    )
    return "" if named else f"an error without its words: {told}"


def added_up(path):
    """{event's id: version}, once all the sums in the file were done by hand."""
    whole = json.loads(path.read_text())
    documents = [whole, *whole.get("events", {}).values()]
    for document in documents:
        event = document["event"]
        held = [
            r["seats"]
            for r in document["reservations"].values()
            if r["status"] == "confirmed"
        ]
        assert sum(held) + event["availableSeats"] == event["totalSeats"], event
        assert event["availableSeats"] >= 0 <= min(held, default=0), event
    return {str(d["event"]["eventId"]): d["event"].get("version", 0) for d in documents}


@pytest.fixture
def quick(monkeypatch):
    """Disks and passwords that cost no time: they are not what is on trial here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(ticketboss, "generate_password_hash", lambda _: HASH)
    monkeypatch.setattr(
        ticketboss, "check_password_hash", lambda _, password: password == "12345678"
    )


def register(client, name):
    """An account; the first one is an admin's."""
    assert (
        client.post(
            "/api/v1/auth/register",
            json={
                "username": name,
                "email": f"{name}@example.com",
                "password": "12345678",
            },
        ).status_code
        == 201
    )


@pytest.fixture
def furnished(make_app, db):
    """furnished(**settings): a client of an app on a new file, with two accounts."""

    def furnished(**settings):
        db.unlink(missing_ok=True)
        home = make_app(
            seats=settings.pop("seats", 40), loopback=True, jwt_secret=SECRET
        ).test_client()
        register(home, "root")
        register(home, "ann")
        return make_app(jwt_secret=SECRET, **settings).test_client()

    return furnished


@pytest.mark.usefixtures("quick")
def test_no_random_request_causes_a_500_or_a_broken_file(furnished, db, pick):
    codes, in_a_round = set(), pick(300, 500, 500)  # to one app with one file
    for seed in range(pick(1500, 10_000, 100_000) // in_a_round):
        settings = dict(SETTINGS[seed % len(SETTINGS)])
        if "rate_limit" in settings:  # is reached within a round
            most = in_a_round * 4 // 5
            settings["rate_limit"] = settings["rate_limit"].format(most=most)
        client, reader = furnished(**settings), Store(str(db))
        rubbish, secrets = Rubbish(seed), [str(db.parent), "Traceback", "scrypt:"]
        versions = added_up(db)
        for number in range(in_a_round):
            method, path, environ, body = rubbish.request()
            asked = (
                f"seed {seed}, request {number}: {method} {path[:300]!r} "
                f"{environ} {body[:300]!r}"
            )
            before = reader.load()
            answer = client.open(
                "/", method=method, data=body, environ_overrides=environ
            )
            assert not complaint(method, path, answer, secrets), (asked, answer.text)
            after = reader.load()  # refused, if it does not add up
            if after is not before:
                assert answer.status_code < 300, asked
                assert method not in SAFE, asked
                now = added_up(db)
                assert all(now[key] >= was for key, was in versions.items()), asked
                versions = now
            rubbish.learn(answer)
            codes.add(answer.status_code)
        assert {p.name for p in db.parent.iterdir()} == {"db.json", ".db.json.lock"}
        assert client.get("/_health").status_code in {200, 421}
    assert not DOCUMENTED - codes  # or it was too tame


# --- On the wire ---------------------------------------------------------------------

HEAD = b"POST /reservations HTTP/1.1\r\nHost: localhost\r\n"
BODY = json.dumps(ORDER).encode()
SOUND = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
READ = b"GET /event HTTP/1.1\r\nHost: localhost\r\n\r\n"
BROKEN = [
    b"\r\n\r\n",
    b"\0" * 300,
    b"rubbish\r\n\r\n",
    b"GET\r\n\r\n",
    b"\x16\x03\x01\x02\0",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /\r\n\r\n",
    b"get /event http/1.1\r\n\r\n",
    b"GET  /event  HTTP/1.1\r\n\r\n",
    b"GET /event HTTP/1.1\n\n",
    b"PRI * HTTP/2.0\r\n\r\n",
    b"GET http://[ HTTP/1.1\r\n\r\n",
    b"GET //[ HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"GET http://evil.example/event HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\xff\xfe /\xff HTTP/1.1\r\n\r\n",
    b"GET /reservations?\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /\xff%zz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /" + b"x" * 300_000 + b" HTTP/1.1\r\n\r\n",
    b"x" * 300_000,
    READ[:-2] + b"X: " + b"x" * 300_000 + b"\r\n\r\n",
    READ[:-2] + b"X: x\r\n" * 1000 + b"\r\n",
    READ[:-2] + b"X: x\r\n" * 60_000 + b"\r\n",
    READ[:-2] + b"no colon\r\n\r\n",
    READ[:-2] + b": no name\r\n\r\n",
    READ[:-2] + b"X : space\r\n\r\n",
    READ[:-2] + b" folded\r\n\r\n",
    READ[:-2] + b"X: \0\x01\xff\r\n\r\n",
    READ[:-2] + b"X: a\rb\r\n\r\n",
    READ[:-2] + b"Host: other\r\n\r\n",
    READ[:-2] + b"Expect: 100-continue\r\n\r\n",
    *(
        HEAD + b"Content-Length: " + length + b"\r\n\r\n" + BODY
        for length in (
            b"-1",
            b"x",
            b"",
            b"1e1",
            b"+5",
            b"0x5",
            b"5, 5",
            b"1" * 5000,
            b"\xd9\xa3",
            b"99",
            b"0",
            b"1",
            b"70000",
            b"2000000",
            b"5\r\nContent-Length: 6",
            b" 42 ",
            b"4_2",
        )
    ),
    *(
        HEAD + b"Transfer-Encoding: " + rest
        for rest in (
            b"chunked\r\n\r\n" + bad
            for bad in (
                b"x\r\n",
                b"-1\r\nx\r\n",
                b"2\r\nabc\r\n0\r\n\r\n",
                b"fffffffff\r\nx",
                b"\r\n\r\n",
                b"2;x=y\r\n{}\r\n0\r\n\r\n",
                b"0\r\nX: x\r\n\r\n",
                b"2\r\n{}",
                b"0x2\r\n{}\r\n0\r\n\r\n",
                b"\0" * 400,
                b"2\n{}\n0\n\n",
                b"1" * 5000 + b"\r\n",
            )
        )
    ),
    *(
        HEAD + b"Transfer-Encoding: " + rest + b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        for rest in (
            b"gzip",
            b"chunked, chunked",
            b"identity",
            b"",
            b"\xff",
            b"xchunked",
            b"chunked\r\nContent-Length: 3",
        )
    ),
    READ * 50,
    SOUND * 5,
    READ + b"rubbish\r\n\r\n" + SOUND,
    READ + SOUND[:-5],
    READ + HEAD + b"Content-Length: -1\r\n\r\n" + READ,
    (READ + SOUND) * 3 + b"\0" * 99,
]


def on_the_wire(number):
    """Each broken request once; then sound ones, spoilt by chance."""
    if number < len(BROKEN):
        return BROKEN[number]
    chance = random.Random(number)
    raw = bytearray(chance.choice([SOUND, READ, SOUND + READ]))
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(raw))
        how = chance.randrange(4)
        raw[at : at + (how < 2)] = [
            chance.randbytes(1),
            b"",
            chance.randbytes(3),
            chance.choice([b"\r\n", b"\n", b" ", b"\0", b":"]),
        ][how]
    return bytes(raw[: chance.randrange(len(raw))] if chance.random() < 0.2 else raw)


def said(address, rubbish):
    """All bytes that a server answers, until it or we close the connection."""
    heard = b""
    with (
        socket.create_connection(address, timeout=20) as wire,
        suppress(ConnectionError),
    ):
        wire.sendall(rubbish)
        wire.settimeout(0.05)  # it may as well wait for the rest
        with suppress(TimeoutError):
            while more := wire.recv(65536):
                heard += more
        wire.settimeout(20)
        with suppress(OSError):  # it may have closed it already
            wire.shutdown(socket.SHUT_WR)
        while more := wire.recv(65536):
            heard += more
    return heard


def statuses(heard, where):
    """Of each answer in these bytes; all of them are whole, and JSON."""
    found = []
    while heard:
        head, gap, heard = heard.partition(b"\r\n\r\n")
        assert gap, where
        assert re.match(rb"HTTP/1\.[01] [1-5]\d\d ", head), where
        found.append(int(head.split()[1]))
        if found[-1] == 100:
            continue
        length = int(re.search(rb"(?i)\r\ncontent-length: (\d+)", head)[1])
        body, heard = heard[:length], heard[length:]
        if b"text/plain" not in head and body:  # which only the welcome is
            assert b"application/json" in head, where
            json.loads(body)
    return found


def test_no_random_bytes_on_the_wire_break_the_server(serve, db, pick):
    server = serve("--seats", "1000000")  # the larger runs would sell out
    address = urlsplit(server.url).hostname, urlsplit(server.url).port
    sent, answers = [on_the_wire(n) for n in range(pick(300, 1000, 10_000))], []
    with ThreadPoolExecutor(16) as pool:
        all_heard = pool.map(partial(said, address), sent)
    for number, (rubbish, heard) in enumerate(zip(sent, all_heard, strict=True)):
        where = f"number {number}: {rubbish[:300]!r} -> {heard[:300]!r}"
        found = statuses(heard, where)
        assert all(code < 500 or code in {501, 505} for code in found), where
        answers += found
    assert set(answers) >= {200, 201, 400, 413, 431}  # or it was too tame
    assert server.ask("GET", "/_health")[0] == 200
    version = server.ask("GET", "/event")[1]["version"]
    assert answers.count(201) <= version
    assert added_up(db) == {"node-meetup-2025": version}
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    code, _, errors = server.stop()
    assert (code, "Traceback" in errors) == (0, False)


# --- In the file ---------------------------------------------------------------------


@pytest.fixture
def rich(furnished, db):
    """A client, and a file with all that can be in one, as bytes."""
    client = furnished(seats=4)
    for path, body in [
        ("/reservations", {"partnerId": "abc-corp", "seats": 3}),
        ("/reservations", {"partnerId": "xyz", "seats": 1}),
        ("/reservations", {"partnerId": "waits", "seats": 2, "waitlist": True}),
        ("/initialize", {"eventId": 1, "totalTickets": 1, "price": 250}),
        ("/book", {"eventId": 1, "userId": "user1"}),
        ("/book", {"eventId": 1, "userEmail": "eve@example.com"}),
    ]:
        answer = client.post(path, json=body, headers={"Idempotency-Key": "k"})
        assert answer.status_code < 300
    held = client.get("/reservations?status=confirmed").json
    assert client.delete(f"/reservations/{held[1]['reservationId']}").status_code == 204
    whole = json.loads(db.read_text())
    assert {r["status"] for r in whole["reservations"].values()} == {
        "confirmed",
        "cancelled",
        "waitlisted",
    }
    assert whole["events"]
    assert len(whole["accounts"]["members"]) == 2
    assert '"request"' in db.read_text()
    return client, db.read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_complete_file_cut_at_any_byte_is_refused(rich, db):
    client, whole = rich
    for length in range(len(whole.rstrip())):
        db.write_bytes(whole[:length])
        with pytest.raises(Unavailable):
            Store(str(db)).load()
    assert client.get("/event").status_code == 503
    assert db.read_bytes() == whole[:length]
    db.write_bytes(whole)
    assert client.get("/_health").status_code == 200


@pytest.mark.usefixtures("quick")
def test_a_file_with_any_bit_flipped_is_refused_or_its_sums_hold(rich, db, pick):
    (client, whole), taken = rich, 0
    every = [(at, bit) for at in range(len(whole)) for bit in range(8)]
    one_in_two_bytes = [
        (at, 0 if whole[at] in b"0123456789" else at // 2 % 8)
        for at in range(0, len(whole), 2)
    ]
    bits = pick(one_in_two_bytes, every, every)
    for at, bit in bits:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        db.write_bytes(damaged)
        where = f"byte {at}, bit {bit}: {bytes(damaged[max(at - 30, 0) : at + 30])}"
        try:
            Store(str(db)).load()
        except Unavailable:
            if at % 7 == 0:
                assert client.post("/reservations", json=ORDER).status_code == 503
                assert db.read_bytes() == damaged, where
            continue
        taken += 1
        added_up(db)
        method, path, body = USES[taken % len(USES)]
        answer = client.open(path, method=method, json=body)
        assert answer.status_code < 500, (where, path)
        assert answer.is_json, (where, path)
        added_up(db)
    assert taken > 100
    db.write_bytes(whole)
    assert client.get("/_health").json == {"ok": True}


USES = [
    ("GET", "/reservations", None),
    ("GET", "/report", None),
    ("POST", "/reservations", ORDER),
    ("GET", "/events", None),
    ("POST", "/cancel", {"eventId": 1, "userId": "user1"}),
]
