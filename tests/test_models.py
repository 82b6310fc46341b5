"""All dialects at once, against a model that is too simple to be wrong.

Hypothesis makes up what partners, users and /api/v1 do to a few small events, through
two apps on one file that are restarted at will. After each request the model, a list of
sales in order of arrival, has to agree with every dialect about every number.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ticketboss import (
    Settings,
    create_app,
)

SEEDED = "node-meetup-2025"
SEATS = 4  # of the seeded event; few, so that there is a waiting list most of the time
PRICES = (None, 0, 1, 2_500)
USERS: list[tuple[str, dict[str, Any]]] = [  # one user in two ways, twice
    ("1", {"userId": 1}),
    ("1", {"userId": "1"}),
    ("a@x.org", {"userEmail": "a@x.org"}),
    ("a@x.org", {"userEmail": "A@X.org"}),
    ("ann", {"userId": "ann"}),
]


# What has to have happened before a run counts for anything.
INTERESTING = (
    "served",
    "partner waits",
    "/api/v1 waits",
    "kept for the head",
    "gave back a part",
    "served by more seats",
    "too few seats",
    "another's event",
    "deleted",
    "restarted",
)


# --- the model ------------------------------------------------------------------------


@dataclass
class Sale:
    """What somebody asked for: held, waited for, or over."""

    name: str  # the reservation's id
    seats: int
    version: int
    status: str = "waitlisted"
    user: str = ""
    number: int = 0  # in /api/v1
    returned: int = 0
    ended: int | None = None


@dataclass
class Show:
    """An event, and all that was ever asked of it, in order of arrival."""

    name: int | str
    total: int
    price: int = 0
    version: int = 0
    is_admins: bool = False  # who made it by a token
    sales: list[Sale] = field(default_factory=list)

    @property
    def sold(self) -> int:
        return sum(s.seats for s in self.sales if s.status == "confirmed")

    @property
    def line(self) -> list[Sale]:
        return [s for s in self.sales if s.status == "waitlisted"]

    @property
    def on_sale(self) -> int:
        """For a newcomer: nothing, while somebody waits."""
        return 0 if self.line else self.total - self.sold

    def held_by(self, user: str) -> Sale | None:
        return next(
            (s for s in self.sales if s.user == user and s.status != "cancelled"), None
        )

    def add(self, sale: Sale) -> None:
        """Sell it if it fits; else it waits."""
        fits = sale.seats <= self.on_sale
        self.version += 1
        self.sales.append(sale)
        if fits:
            sale.status = "confirmed"

    def give_back(self, sale: Sale, seats: int) -> int:
        """Take seats back; how many are served by that."""
        self.version += 1
        if seats == sale.seats:
            sale.status, sale.ended = "cancelled", self.version
        else:
            sale.seats, sale.returned = sale.seats - seats, sale.returned + seats
        return self.promote()

    def resize(self, total: int) -> int:
        """Have more seats or fewer; how many are served by that."""
        self.version += 1
        self.total = total
        return self.promote()

    def promote(self) -> int:
        """Serve the head of the line, as far as it goes; how many are served."""
        served = 0
        while self.line and self.line[0].seats <= self.total - self.sold:
            self.line[0].status = "confirmed"
            served += 1
        return served


# --- what is done to both -------------------------------------------------------------

which = st.sampled_from([1, 1, 1, 0, 2])  # an event, modulo those that there are
nth = st.integers(0, 30)  # a sale, likewise
seats = st.sampled_from([1, 2, 3, 1, 4])


class Dialects(RuleBasedStateMachine):
    """Requests of every dialect, each made of the model too."""

    def __init__(self, path: Any, start: bytes, token: str, seen: Counter[str]) -> None:
        super().__init__()
        self.path, self.seen = path, seen
        self.admin = {"Authorization": f"Bearer {token}"}
        path.write_bytes(start)
        self.apps = [self.app(), self.app()]
        self.shows = [Show(SEEDED, SEATS)]
        self.gone: dict[str, int] = {}  # events that were deleted, with their version
        self.touched = self.shows[0]
        self.keyed: list[tuple[Show, str, dict[str, Any], dict[str, str], Any]] = []
        self.asked = 0

    def app(self) -> Any:
        told = Settings(db=str(self.path), quiet=True, standalone=True)
        return create_app(told).test_client()

    def ask(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """The answer of either app, in turn."""
        self.asked += 1
        self.seen[f"{method} requests"] += 1
        return self.apps[self.asked % 2].open(path, method=method, json=body, **more)

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json

    def change(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.ask(method, path, body, headers=sent)
        if answer.status_code < 300:
            assert answer.headers["X-Attempts"] == "1"
        return answer

    def sell(
        self, show: Show, path: str, body: dict[str, Any], *, key: bool, **headers: str
    ) -> Any:
        """Ask for seats, perhaps under a key that may come back."""
        if key:
            headers["Idempotency_Key"] = f"key-{self.asked}"
        self.seen["kept for the head"] += show.total - show.sold >= 1 > show.on_sale
        answer = self.change("POST", path, body, **headers)
        self.touched = show
        if key and answer.status_code < 300:
            told = (answer.status_code, answer.json)
            self.keyed.append((show, path, body, headers, told))
        return answer

    def show(self, which: int) -> Show:
        return self.shows[which % len(self.shows)]

    def reservations(self, show: Show, *, short: bool = True) -> str:
        if show.name == SEEDED and short:
            return "/reservations"
        return f"/events/{show.name}/reservations"

    # --- events

    @initialize(total=st.integers(1, 5), orders=st.lists(seats, min_size=2, max_size=5))
    def begin_with_a_crowd(self, total: int, orders: list[int]) -> None:
        self.open_event("by name", total, 2_500)
        for seats in orders:
            self.reserve(1, seats, waitlist=True, key=False, condition="", short=False)

    @rule(
        how=st.sampled_from(["again", "by name", "by id", "by number", "admin"]),
        total=seats,
        price=st.sampled_from(PRICES),
    )
    def open_event(self, how: str, total: int, price: int | None) -> None:
        if len(self.shows) > 3:
            return
        made = len(self.shows) + len(self.gone)
        body: dict[str, Any] = {"name": "Gig", "totalTickets": total, "price": price}
        if how == "admin":
            body = {"name": "Gig", "totalTickets": str(total), "date": "2024-12-01"}
            answer = self.ask("POST", "/api/v1/event", body, headers=self.admin)
            name, price = answer.json["data"]["id"], 0
        else:
            if how == "by id":
                body["eventId"] = f"gig-{made}"
            elif how == "by number":
                body["eventId"] = 100 + made
            elif how == "again" and self.gone:
                body["eventId"] = min(self.gone)
            answer = self.ask("POST", "/initialize", body)
            name = answer.json["eventId"]
            assert name == body.get("eventId", name)
        assert answer.status_code == 201
        if how == "admin" or "eventId" not in body:  # never one that was there
            assert str(name) not in {*self.gone, *(str(s.name) for s in self.shows)}
        version = self.gone.pop(str(name), -1) + 1
        self.seen["an id came again"] += version > 0
        self.touched = Show(name, total, price or 0, version, how == "admin")
        self.shows.append(self.touched)

    @rule(which=st.integers(0, 3), by_admin=st.booleans())
    def delete_event(self, which: int, by_admin: bool) -> None:
        show = self.show(which)
        path = f"/api/v1/event/{show.name}" if by_admin else f"/events/{show.name}"
        answer = self.ask("DELETE", path, headers=self.admin if by_admin else {})
        if show.name == SEEDED:
            assert answer.status_code == 409
            return
        if show.is_admins and not by_admin:
            assert answer.status_code == 401
            self.seen["another's event"] += 1
            return
        assert answer.status_code == (200 if by_admin else 204)
        self.shows.remove(show)
        self.gone[str(show.name)] = show.version + 1
        self.keyed = [k for k in self.keyed if k[0] is not show]
        self.touched = self.shows[0]
        assert self.ask("GET", f"/status/{show.name}").status_code == 404
        self.seen["deleted"] += 1

    @rule(which=which, total=st.integers(1, 9), price=st.sampled_from([None, 7, 8]))
    def change_event(self, which: int, total: int, price: int | None) -> None:
        self.touched = show = self.show(which)
        changes = {"totalSeats": total, **({"price": price} if price else {})}
        answer = self.ask("PATCH", f"/events/{show.name}", changes, headers=self.admin)
        largest = max((sale.seats for sale in show.line), default=0)
        if total < max(show.sold, largest):
            assert answer.status_code == 409
            assert str(total) in answer.json["error"]
            self.seen["too few seats"] += 1
            return
        assert answer.status_code == 200
        if (total, price or show.price) != (show.total, show.price):
            show.price = price or show.price
            self.seen["served by more seats"] += show.resize(total)
        assert answer.headers["ETag"] == f'"{show.version}"'

    @rule(which=which, nth=nth)
    def sell_nothing_while_sales_are_closed(self, which: int, nth: int) -> None:
        self.touched = show = self.show(which)
        for sales in ("closed", "open"):
            answer = self.ask(
                "PATCH",
                f"/events/{show.name}",
                {"sales": sales},
                headers=self.admin,
            )
            assert (answer.status_code, answer.json["sales"]) == (200, sales)
            show.version += 1
            if sales == "closed":
                order = {"partnerId": "x", "seats": 1, "waitlist": bool(nth % 2)}
                refused = self.ask("POST", self.reservations(show), order)
                assert (refused.status_code, refused.json) == (
                    409,
                    {"error": "Sales are closed"},
                )

    # --- partners

    @rule(
        which=which,
        seats=seats,
        waitlist=st.booleans(),
        key=st.booleans(),
        condition=st.sampled_from(["", "", "*", "now", "old"]),
        short=st.booleans(),
    )
    def reserve(
        self,
        which: int,
        seats: int,
        waitlist: bool,
        key: bool,
        condition: str,
        short: bool,
    ) -> None:
        show = self.show(which)
        headers = {}
        if condition:
            version = show.version + (condition == "old")
            headers = {"If_Match": "*" if condition == "*" else f'"{version}"'}
        answer = self.sell(
            show,
            self.reservations(show, short=short),
            {"partnerId": "abc-corp", "seats": seats, "waitlist": waitlist},
            key=key,
            **headers,
        )
        if condition == "old":
            assert (answer.status_code, answer.headers["ETag"]) == (
                412,
                f'"{show.version}"',
            )
            return
        if seats > show.on_sale and not (waitlist and seats <= show.total):
            assert (answer.status_code, answer.json) == (
                409,
                {"error": "Not enough seats left"},
            )
            return
        name = answer.json["reservationId"]
        show.add(sale := Sale(name, seats, show.version + 1))
        told = {"reservationId": name, "seats": seats, "status": sale.status}
        if sale.status == "confirmed":
            assert (answer.status_code, answer.json) == (201, told)
        else:
            self.seen["partner waits"] += 1
            assert (answer.status_code, answer.json) == (
                202,
                told | {"position": len(show.line)},
            )

    @rule(which=which, nth=nth, part=st.sampled_from([None, None, 1, 1, 2, 3]))
    def give_back(self, which: int, nth: int, part: int | None) -> None:
        show = self.show(which)
        sales = [s for s in show.sales if s.status != "cancelled"]
        if not sales or nth > 25:  # now and then, any
            sales = show.sales
        if not sales:
            return
        sale = sales[nth % len(sales)]
        path = f"{self.reservations(show)}/{sale.name}"
        answer = self.change("DELETE", path if part is None else f"{path}?seats={part}")
        self.gave_back(show, sale, part, answer, 204)

    @rule(nth=st.integers(0, 3))
    def give_back_all_in_the_crowd(self, nth: int) -> None:
        self.give_back(1, nth, None)

    @rule(nth=st.integers(0, 3), part=st.sampled_from([1, 2]))
    def give_back_part_in_the_crowd(self, nth: int, part: int) -> None:
        self.give_back(1, nth, part)

    def gave_back(
        self, show: Show, sale: Sale, part: int | None, answer: Any, done: int
    ) -> None:
        back = sale.seats if part is None else part
        self.touched = show
        if sale.status == "cancelled":
            assert answer.status_code == 404
            assert "not found or already cancelled" in answer.text
        elif back > sale.seats:
            assert answer.status_code == 400
        else:
            assert answer.status_code == done
            waited = sale.status == "waitlisted"
            self.seen["served"] += show.give_back(sale, back)
            self.seen["gave back a part"] += sale.status == "confirmed"
            self.seen["waits for less"] += waited and sale.status != "cancelled"

    # --- users

    @rule(
        which=which,
        user=st.sampled_from(USERS),
        key=st.booleans(),
        as_text=st.booleans(),
    )
    def book(
        self, which: int, user: tuple[str, dict[str, Any]], key: bool, as_text: bool
    ) -> None:
        show, (name, sent) = self.show(which), user
        held = show.held_by(name)
        body = {"eventId": str(show.name) if as_text else show.name, **sent}
        answer = self.sell(show, "/book", body, key=key and held is None)
        if held is not None and held.status == "confirmed":
            assert (answer.status_code, answer.json["error"]) == (
                409,
                "You already booked this event",
            )
            self.seen["booked already"] += 1
            return
        if held is None:
            held = Sale(answer.json["reservationId"], 1, show.version + 1, user=name)
            show.add(held)
        else:
            self.seen["waits already"] += 1
        assert answer.status_code == 200
        assert answer.json["reservationId"] == held.name
        waits = held.status == "waitlisted"
        assert answer.json["status"] == ("waitlisted" if waits else "booked")
        assert answer.json.get("position") == (
            show.line.index(held) + 1 if waits else None
        )
        by_email = "userEmail" in sent
        assert (
            answer.json["message"]
            == {
                (True, True): "Event sold out, you're added to the waiting list",
                (True, False): "Ticket booked successfully",
                (False, True): "Added to waiting list",
                (False, False): "Ticket booked",
            }[by_email, waits]
        )

    @rule(which=which, nth=nth)
    def cancel(self, which: int, nth: int) -> None:
        show = self.show(which)
        users = [u for u in USERS if show.held_by(u[0])]
        if not users or nth > 25:
            users = USERS
        name, sent = users[nth % len(users)]
        held = show.held_by(name)
        answer = self.change("POST", "/cancel", {"eventId": show.name, **sent})
        if held is None:
            assert (answer.status_code, answer.json["error"]) == (
                404,
                "You didn't book this event"
                if "userEmail" in sent
                else "Booking not found",
            )
            return
        assert answer.json["reservationId"] == held.name
        self.gave_back(show, held, None, answer, 200)

    # --- /api/v1

    @rule(which=which, seats=seats, as_text=st.booleans(), key=st.booleans())
    def book_several(self, which: int, seats: int, as_text: bool, key: bool) -> None:
        show = self.show(which)
        asked = str(seats) if as_text else seats
        answer = self.sell(
            show,
            "/api/v1/booking",
            {
                "eventId": str(show.name),
                "firstName": "Ann",
                "lastName": "Lee",
                "email": "a@x.org",
                "ticketsReserved": asked,
            },
            key=key,
        )
        if seats > show.on_sale and (show.on_sale or seats > show.total):
            assert (answer.status_code, answer.json) == (
                409,
                {
                    "message": "Not enough tickets available to fulfill your request.",
                    "error": True,
                },
            )
            return
        told = answer.json["data"]
        name = answer.headers["Location"].rpartition("/")[2]
        show.add(sale := Sale(name, seats, show.version + 1, number=told["id"]))
        assert 0 <= sale.number < 2**53
        assert told["ticketsReserved"] == asked
        assert (answer.status_code, told["bookingStatus"]) == (
            (201, "completed") if sale.status == "confirmed" else (200, "waitlisted")
        )
        self.seen["/api/v1 waits"] += sale.status == "waitlisted"

    @rule(which=which, nth=nth, part=st.sampled_from([None, 1, 2, "1"]))
    def cancel_several(self, which: int, nth: int, part: int | str | None) -> None:
        show = self.show(which)
        sales = [s for s in show.sales if s.number]
        if not sales:
            return
        sale = sales[nth % len(sales)]
        answer = self.change(
            "DELETE",
            f"/api/v1/booking/{sale.number}",
            {"bookingId": sale.number, **({"ticketsToCancel": part} if part else {})},
        )
        self.gave_back(show, sale, int(part) if part else None, answer, 200)

    # --- retries, restarts, refusals

    @rule(
        what=st.sampled_from(["restart", "send again", "send another", "create"]),
        which=which,
        nth=nth,
    )
    def between(self, what: str, which: int, nth: int) -> None:
        """What changes nothing."""
        self.touched = show = self.show(which)
        if what == "restart":
            self.apps[self.asked % 2] = self.app()
            self.seen["restarted"] += 1
        elif what == "create":
            name = str(show.name) if nth % 2 else show.name
            body = {"eventId": name, "totalTickets": 9}
            assert self.ask("POST", "/initialize", body).status_code == 409
        elif self.keyed:
            self.touched, path, body, headers, told = self.keyed[nth % len(self.keyed)]
            if what == "send another":
                body = body | {"note": "not what was sent before"}
            answer = self.change("POST", path, body, **headers | {"If_Match": '"9999"'})
            if what == "send another":
                assert answer.status_code == 422
            else:
                assert (answer.status_code, answer.json) == told
                assert answer.headers["Idempotent-Replayed"] == "true"
                self.seen["sent again"] += 1

    # --- what always holds

    @invariant()
    def all_events_say_what_the_model_says(self) -> None:
        events = [(e["id"], e["version"]) for e in self.get("/events")]
        shows = {str(s.name): s for s in self.shows}
        shows = {str(name): shows[str(name)] for name, _ in events}  # in this order
        assert len(shows) == len(events) == len(self.shows)
        assert events == [(s.name, s.version) for s in shows.values()]
        told = self.get("/report")
        assert [
            (
                e["eventId"],
                e["totalTickets"],
                e["ticketsSold"],
                e["availableTickets"],
                e["waitingListCount"],
                e["price"],
                e["revenue"],
            )
            for e in told["events"]
        ] == [
            (
                s.name,
                s.total,
                s.sold,
                s.total - s.sold,
                len(s.line),
                s.price,
                s.sold * s.price,
            )
            for s in shows.values()
        ]
        assert told["totals"]["revenue"] == sum(s.sold * s.price for s in self.shows)
        assert told["totals"]["ticketsSold"] == sum(s.sold for s in self.shows)

    @invariant()
    def every_dialect_says_the_same_of_the_event(self) -> None:
        show, dialect = self.touched, self.asked % 3  # one at a time, to be quick
        total, sold, waiting = show.total, show.sold, len(show.line)
        if dialect == 0:
            told = self.get(f"/status/{show.name}")
            assert (total, sold, total - sold, waiting, show.version) == (
                told["totalTickets"],
                told["bookedTickets"],
                told["availableTickets"],
                told["waitingListCount"],
                told["version"],
            )
        elif dialect == 1:
            assert self.get(f"/api/v1/booking/status/{show.name}")["data"] == {
                "availableTickets": total - sold,
                "waitlistedCount": waiting,
            }
        else:
            short = show.name == SEEDED
            told = self.get("/event" if short else f"/events/{show.name}")
            assert (
                told["eventId"],
                told["totalSeats"],
                told["availableSeats"],
                told["reservationCount"],
                told["version"],
            ) == (show.name, total, total - sold, sold, show.version)

    @invariant()
    def the_reservations_are_those_of_the_model_and_keep_the_laws(self) -> None:
        show = self.touched
        records = self.get(self.reservations(show))
        place = {s.name: n for n, s in enumerate(show.line, 1)}
        assert [
            (
                r["reservationId"],
                r["seats"],
                r["status"],
                r.get("seatsReturned", 0),
                r["eventVersionAtReservation"],
                r.get("eventVersionAtCancel"),
                r.get("position"),
            )
            for r in records
        ] == [
            (
                s.name,
                s.seats,
                s.status,
                s.returned,
                s.version,
                s.ended,
                place.get(s.name),
            )
            for s in show.sales
        ]

        # And without the model: the sums, the head, the users, the versions.
        free = show.total - sum(
            r["seats"] for r in records if r["status"] == "confirmed"
        )
        heads = [r["seats"] for r in records if r.get("position") == 1]
        assert free >= 0
        assert not heads or heads[0] > free
        users = [
            r["partnerId"]
            for r in records
            if r["status"] != "cancelled" and r["partnerId"] in {"1", "ann"}
        ]
        assert len(users) == len({*users})
        versions = [
            r[name]
            for r in records
            for name in ("eventVersionAtReservation", "eventVersionAtCancel")
            if r.get(name)
        ]
        assert len(versions) == len({*versions})
        assert all(0 < v <= show.version for v in versions)


@pytest.fixture
def start(make_app: Any, db: Any) -> tuple[bytes, str]:
    """A file with one admin in it, and the admin's token."""
    client = make_app(seats=SEATS, loopback=True).test_client()
    admin = {"username": "root", "email": "root@x.org", "password": "correct horse"}
    assert client.post("/api/v1/auth/register", json=admin).status_code == 201
    token = client.post("/api/v1/auth/login", json=admin).json["data"]["token"]
    return db.read_bytes(), token


def test_all_dialects_together_do_what_a_simple_model_does(
    start: tuple[bytes, str],
    database_in: Any,
    tmp_path: Any,
    pick: Any,
    monkeypatch: Any,
) -> None:
    monkeypatch.setenv("HYPOTHESIS_STORAGE_DIRECTORY", str(tmp_path / "hypothesis"))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what is decided is shown here
    seen: Counter[str] = Counter()

    def dialects() -> Dialects:
        folder = tmp_path / str(len(os.listdir(tmp_path)))
        folder.mkdir()
        return Dialects(database_in(folder), *start, seen)

    first = pick(0, random.getrandbits(32), random.getrandbits(32))
    print("the first seed:", first)
    for number in range(first, first + 20):  # until all that matters has happened
        run_state_machine_as_test(
            seed(number)(dialects),
            settings=settings(
                max_examples=pick(12, 150, 2_000),
                stateful_step_count=pick(30, 40, 50),
                database=None,
                deadline=None,
                # What fails is made short only in the larger runs: it takes minutes.
                phases=(Phase.generate, Phase.shrink)[: pick(1, 2, 2)],
                suppress_health_check=[HealthCheck.too_slow],
            ),
        )
        if all(seen[what] for what in INTERESTING):
            break
    print(seen)
    never = [what for what in INTERESTING if not seen[what]]
    assert not never  # else this has tested less than it claims
