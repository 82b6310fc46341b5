"""A server with people and bookings in it, and every request that changes something."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import ticketboss

PASSWORD = "correct horse battery"
NAMES = ("root", "ann", "bob")  # the accounts 1, 2 and 3; root is an admin
BOOKER = {"firstName": "Divine", "lastName": "A", "email": "divine@example.com"}


SCRYPT = hashlib.scrypt


def cheap_scrypt(*args: Any, **cost: Any) -> bytes:
    """A hash in 3 ms instead of 100."""
    return SCRYPT(*args, **cost | {"n": min(1024, cost["n"])})


def register(client: Any, name: str, **more: str) -> Any:
    """The answer to a registration."""
    body = {"username": name, "email": f"{name}@example.com", "password": PASSWORD}
    return client.post("/api/v1/auth/register", json=body | more)


def log_in(client: Any, **name: object) -> dict[str, str]:
    """The header that brings the token of that account."""
    answer = client.post("/login", json=name | {"password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json['token']}"}


@functools.cache
def people() -> tuple[bytes, dict[str, dict[str, str]]]:
    """A db.json with an admin and two users in it; and the headers that each sends."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(hashlib, "scrypt", cheap_scrypt),
    ):
        db = Path(folder) / "db.json"
        settings = {"db": str(db), "quiet": True, "standalone": True, "loopback": True}
        app = ticketboss.create_app(ticketboss.Settings(**settings))
        client = app.test_client()
        for name in NAMES:
            assert register(client, name).status_code == 201
        headers = {name: log_in(client, username=name) for name in NAMES}
        return db.read_bytes(), headers


class Change(NamedTuple):
    """A request that would change something."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    event_id: object = 7  # whose version it is about

    def send(self, client: Any, **more: Any) -> Any:
        """The answer to it."""
        if self.body is not None:
            more = {"json": self.body} | more
        return client.open(self.path, method=self.method, **more)


CHANGES = [
    "sale",
    "sale of an event",
    "cancel",
    "cancel in an event",
    "partial return",
    "partial return in an event",
    "opening",
    "removal",
    "ticket",
    "cancelled ticket",
    "dated event",
    "removal of a dated event",
    "booking",
    "cancelled booking",
    "partly cancelled booking",
]
SEEDED = "node-meetup-2025"
REPORT_FIELDS = [
    "eventId",
    "name",
    "totalTickets",
    "ticketsSold",
    "availableTickets",
    "waitingListCount",
    "price",
    "revenue",
]
BOOKING_API = {"book", "cancel", "events", "initialize", "login", "report", "status"}


@functools.cache
def furnished() -> tuple[bytes, dict[str, Change]]:
    """A db.json with people and bookings, and all CHANGES that root could make now."""
    content, headers = people()
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "db.json"
        db.write_bytes(content)
        settings = {"db": str(db), "quiet": True, "standalone": True}
        app = ticketboss.create_app(ticketboss.Settings(**settings))
        found = _furnish(app.test_client(), headers["root"])
        return db.read_bytes(), dict(zip(CHANGES, found, strict=True))


def _furnish(client: Any, root: dict[str, str]) -> list[Change]:
    opened = client.post("/initialize", json={"eventId": 7, "totalTickets": 50})
    assert opened.status_code == 201
    dated = {"name": "Concert", "date": "2024-12-01", "totalTickets": 5}
    number = client.post("/api/v1/event", json=dated, headers=root).json["data"]["id"]
    sale = {"partnerId": "abc-corp", "seats": 9}
    held = client.post("/reservations", json=sale).headers["Location"]
    held_7 = client.post("/events/7/reservations", json=sale).headers["Location"]
    booked = {"eventId": 7, "userId": "ann-of-old"}
    assert client.post("/book", json=booked).status_code == 200
    booking = BOOKER | {"eventId": 7, "ticketsReserved": 9}
    made = client.post("/api/v1/booking", json=booking).json["data"]["id"]
    cancelled = f"/api/v1/booking/{made}"
    return [
        Change("POST", "/reservations", sale, SEEDED),
        Change("POST", "/events/7/reservations", sale),
        Change("DELETE", held, None, SEEDED),
        Change("DELETE", held_7),
        Change("DELETE", f"{held}?seats=2", None, SEEDED),
        Change("DELETE", f"{held_7}?seats=2"),
        Change("POST", "/initialize", {"eventId": 8, "totalTickets": 5}, None),
        Change("DELETE", "/events/7"),
        Change("POST", "/book", {"eventId": 7, "userId": "root"}),
        Change("POST", "/cancel", booked),
        Change("POST", "/api/v1/event", dated, None),
        Change("DELETE", f"/api/v1/event/{number}", None, number),
        Change("POST", "/api/v1/booking", booking),
        Change("DELETE", cancelled),
        Change("DELETE", cancelled, {"ticketsToCancel": 2}),
    ]


def _client(content: bytes, make_app: Any, db: Path, settings: dict[str, Any]) -> Any:
    db.write_bytes(content)
    db.chmod(0o600)
    return make_app(**settings).test_client()


def inhabited(make_app: Any, db: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A client of a server with people, and the headers that each of them sends."""
    content, headers = people()
    return _client(content, make_app, db, settings), headers


def house_of(make_app: Any, db: Path) -> tuple[Any, Any, Any]:
    """A client, the headers of an admin, and all changes that the admin could make."""
    content, todo = furnished()
    return _client(content, make_app, db, {}), people()[1]["root"], todo


@contextmanager
def unchanged(db: Path) -> Iterator[None]:
    """Hold that the file is byte for byte what it was, whatever happens in here."""
    before = db.read_bytes()
    yield
    assert db.read_bytes() == before


def error_of(answer: Any) -> str:
    """The text of an error, in the dialect of its path and in no other shape."""
    body = json.loads(answer.data)
    path = answer.request.path.strip("/").split("/")
    if path[:2] == ["api", "v1"]:
        assert body == {"message": body["message"], "error": True}
        return body["message"]
    if path[0] in BOOKING_API and path[2:3] != ["reservations"]:
        assert body == {"error": body["error"], "message": body["error"]}
    else:
        assert body == {"error": body["error"]}
    return body["error"]
