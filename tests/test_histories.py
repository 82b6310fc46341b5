"""Every history of two servers and 32 to 128 clients could have happened one by one.

Linearizability (Herlihy and Wing, 1990) is hard to check, except that each change of an
event has a version of its own: the order is in the answers. So it takes one replay, in
the order of the versions, and one look at the clock for each operation:

- each version from 1 to the last is of exactly one change;
- replayed in this order on a box office as simple as can be, each change gives what its
  client was answered, and no seat is sold twice;
- no change that was called after another returned comes before it;
- each reading matches a version that was current between its call and its return, and
  each refusal was justified at one; and no client sees the time go back;
- a request that a kill -9 left without an answer happened once, or not at all.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import SEEDED
from keepalive import GONE, Answer, Client, Crowd
from test_servers import Fleet


class Op(NamedTuple):
    """One operation of one client: what was asked, when, and what came of it."""

    kind: str  # reserve, book, cancel, resize; or a reading: event, record
    called: float
    returned: float = math.inf  # inf: nobody knows what came of it
    version: int | None = None  # in the answer
    key: str = ""  # the reservation's id
    who: str = ""
    seats: int | None = None  # of a cancel: None gives back all; of a resize: in total
    waits: bool = False  # would rather wait than be refused
    expected: int | None = None  # the version under If-Match
    answer: str = ""  # see CHANGES and Office.refuses; or "seen", "busy", ""
    seen: tuple[Any, ...] | None = None  # the answer to a read


CHANGES = {"confirmed", "waitlisted", "done"}


class Office:
    """A box office as simple as can be, that knows what it was at each version."""

    def __init__(self, total: int) -> None:
        self.total = self.free = total
        self.queue: list[str] = []
        self.records: dict[str, list[tuple[int, str, int]]] = defaultdict(list)
        self.booked: dict[str, list[str]] = defaultdict(list)
        self.history = [(total, 0)]  # free seats and length of the queue, by version
        self.totals = [total]  # by version

    def record(self, key: str, version: float = math.inf) -> tuple[str, int]:
        """Status and seats of a reservation at a version."""
        log = self.records.get(key, [])
        at = bisect_right(log, (version, "~", 0)) - 1
        return ("", 0) if at < 0 else log[at][1:]

    def ticket(self, user: str, version: float = math.inf) -> str:
        """The status of a user's booking at a version, if there is one."""
        states = [self.record(key, version)[0] for key in self.booked[user]]
        return next((s for s in states if s in ("confirmed", "waitlisted")), "")

    def change(self, op: Op) -> str:
        """Make the next version by `op`; what there is to complain of."""
        version, answer = len(self.history), "done"
        status, held = self.record(op.key)
        if op.kind == "resize":
            self.free += op.seats - self.total
            self.total = op.seats
        elif op.kind == "cancel":
            back = held if op.seats is None else op.seats
            if status not in ("confirmed", "waitlisted") or back > held:
                return f"gave back {back} of {held} seats {status}"
            if back == held:
                self.records[op.key].append((version, "cancelled", held))
                self.queue = [key for key in self.queue if key != op.key]
            else:
                self.records[op.key].append((version, status, held - back))
            self.free += back if status == "confirmed" else 0
        elif status or (op.kind == "book" and self.ticket(op.who)):
            return "was sold a second time"
        else:
            fits = not self.queue and op.seats <= self.free
            answer = "confirmed" if fits else "waitlisted"
            if not fits and not op.waits:
                return f"was sold {op.seats} of {self.free} seats"
            if fits:
                self.free -= op.seats
            else:
                self.queue.append(op.key)
            if op.kind == "book":
                self.booked[op.who].append(op.key)
            self.records[op.key].append((version, answer, op.seats))
        while self.queue and (seats := self.record(self.queue[0])[1]) <= self.free:
            self.free -= seats
            self.records[self.queue.pop(0)].append((version, "confirmed", seats))
        self.history.append((self.free, len(self.queue)))
        self.totals.append(self.total)
        if not 0 <= self.free <= self.total:
            return f"left {self.free} of {self.total} seats free"
        if op.answer not in ("", answer):
            return f"was answered {op.answer}, and is {answer}"
        if op.expected not in (None, version - 1):
            return f"was made under If-Match {op.expected}"
        return ""

    def shows(self, op: Op, version: int) -> bool:
        """Whether a reading could be of this version."""
        if op.kind == "record":
            return op.seen == self.record(op.key, version)
        return op.seen is None or all(
            told in (None, was)
            for told, was in zip(op.seen, self.history[version], strict=True)
        )

    def refuses(self, op: Op, version: int) -> bool:
        """Whether this refusal was right at this version."""
        if op.answer == "stale" or op.expected not in (None, version):
            return op.answer == "stale" and op.expected != version
        free, waiting = self.history[version]
        status, held = self.record(op.key, version)
        return {
            "full": waiting > 0 or (op.seats or 0) > free,
            "few": self.totals[version] - free > (op.seats or 0),
            "gone": status in ("", "cancelled"),
            "short": status not in ("", "cancelled") and held < (op.seats or 0),
            "taken": self.ticket(op.who, version) == "confirmed",
            "in line": self.ticket(op.who, version) == "waitlisted",
        }[op.answer]


def complaints(history: list[Op], office: Office) -> Iterator[str]:
    """What cannot have happened one by one; nothing, if all of it can.

    Takes time in proportion to the history, but for sorting it by the clock.
    """
    changes = sorted(
        (
            op
            for op in history
            if op.version is not None
            and (op.answer in CHANGES or op.returned == math.inf)
        ),
        key=lambda op: op.version,
    )
    for number, op in enumerate(changes, 1):
        if op.version != number:
            among = [other for other in changes if other.version == op.version]
            count = "no" if op.version > number else "more than one"
            yield f"version {number} is of {count} change: {among}"
            return
        if wrong := office.change(op):
            yield f"{op}: {wrong}"
            return
    # A version can be seen when it and all before it were called for.
    called = [*itertools.accumulate((op.called for op in changes), max)]
    returns = sorted(
        (op for op in history if op.returned < math.inf), key=lambda op: op.returned
    )
    known, done, placed = 0, 0, {}  # the last version known to be there at some time
    for op in sorted(history, key=lambda op: op.called):
        while done < len(returns) and returns[done].returned < op.called:
            known = max(known, placed[id(returns[done])])
            done += 1
        last = bisect_right(called, op.returned)
        version = op.version if op.version is not None else known
        if op.version is not None and not (
            known + (op.answer in CHANGES) <= version <= last
        ):
            yield f"{op}: between {known} and {last}, it is of {version}"
        elif op.answer not in CHANGES | {"", "busy"}:
            # The earliest that will do: it leaves the most room to those after it.
            right = office.shows if op.answer == "seen" else office.refuses
            fits = range(known, last + 1) if op.version is None else [version]
            version = next((v for v in fits if right(op, v)), None)
            if version is None:
                yield f"{op}: without a reason from {known} to {last}"
        placed[id(op)] = version if version is not None else known


# --- The checker itself ------------------------------------------------------

SOLD = Op("reserve", 1, 2, 1, "a", "ann", 6, answer="confirmed")
WAITS = Op("reserve", 3, 4, 2, "b", "bob", 5, waits=True, answer="waitlisted")
FULL = Op("reserve", 5, 6, seats=1, answer="full")
READ = Op("event", 6.5, 6.8, 2, answer="seen", seen=(4, 1))
BACK = Op("cancel", 7, 8, 3, "a", answer="done")
THEN = Op("event", 9, 10, 3, answer="seen", seen=(5, 0))
BOOK = Op("book", 11, 12, 4, "c", "cy", 1, waits=True, answer="confirmed")
TWICE = Op("book", 13, 14, who="cy", seats=1, answer="taken")
FEWER = Op("resize", 14.2, 14.4, seats=5, answer="few")
LATER = Op("record", 15, 16, 4, "b", answer="seen", seen=("confirmed", 5))
MORE = Op("resize", 17, 18, 5, seats=20, answer="done")
GOOD = [SOLD, WAITS, FULL, READ, BACK, THEN, BOOK, TWICE, FEWER, LATER]


def test_the_checker_accepts_a_possible_history():
    assert [*complaints(GOOD, Office(10))] == []
    # Nor is one in which what overlaps took effect in another order than it was called.
    early = WAITS._replace(called=0.5, returned=5.5)
    late = FULL._replace(called=0, returned=20)
    unknown = BOOK._replace(returned=math.inf, answer="")
    never = Op("cancel", 11, key="b")
    busy = Op("cancel", 11, 12, key="b", answer="busy")
    stale = Op("reserve", 11, 12, 3, seats=1, expected=2, answer="stale")
    same = Op("event", 6.6, 9, 3, answer="seen")
    assert [
        *complaints(
            [
                late,
                stale,
                early,
                SOLD,
                READ,
                BACK,
                same,
                THEN,
                unknown,
                never,
                busy,
                TWICE,
                LATER,
            ],
            Office(10),
        )
    ] == []


@pytest.mark.parametrize(
    ("was", "told", "complaint"),
    [
        (SOLD, None, "version 1 is of no change"),
        (BACK, None, "version 3 is of no change"),
        (BOOK, None, "without a reason from 3 to 3"),  # a lost last sale
        (WAITS, WAITS._replace(version=1), "more than one"),
        (BOOK, BOOK._replace(version=5), "version 4 is of no change"),
        (WAITS, WAITS._replace(answer="confirmed"), "was answered confirmed"),
        (WAITS, WAITS._replace(waits=False), "was sold 5 of 4"),
        (BOOK, BOOK._replace(key="a"), "second time"),
        (BOOK, BOOK._replace(seats=9, waits=False), "was sold 9 of 5"),
        (BOOK, BOOK._replace(expected=2), "If-Match 2"),
        (FEWER, FEWER._replace(seats=6), "without a reason"),
        (BACK, BACK._replace(key="b"), "without a reason"),
        (BACK, BACK._replace(seats=7), "gave back 7 of 6"),
        (BACK, BACK._replace(key="x"), "gave back 0 of 0"),
        (READ, READ._replace(called=8.5, returned=8.6), "between 3 and 3, it is of 2"),
        (THEN, THEN._replace(called=6, returned=6.9), "between 2 and 2, it is of 3"),
        (READ, READ._replace(seen=(3, 1)), "without a reason"),
        (READ, READ._replace(seen=(4, 0)), "without a reason"),
        (LATER, LATER._replace(seen=("waitlisted", 5)), "without a reason"),
        (LATER, LATER._replace(version=3), "between 4 and 4, it is of 3"),
        (FULL, FULL._replace(called=0, returned=0.5), "without a reason from 0 to 0"),
        (FULL, FULL._replace(called=8.5, returned=8.6), "without a reason from 3 to 3"),
        (TWICE, TWICE._replace(called=9, returned=10), "without a reason"),
        (TWICE, TWICE._replace(answer="in line"), "without a reason"),
        (TWICE, Op("cancel", 13, 14, key="b", answer="gone"), "without a reason"),
        (
            TWICE,
            Op("cancel", 13, 14, key="b", seats=5, answer="short"),
            "without a reason",
        ),
        (TWICE, Op("book", 13, 14, 4, expected=4, answer="stale"), "without a reason"),
        (BOOK, BOOK._replace(called=6, returned=6.1), "between 2 and 2, it is of 4"),
    ],
)
def test_the_checker_rejects_a_history_that_was_tampered_with(was, told, complaint):
    history = [told if op is was else op for op in GOOD]
    found = [*complaints([op for op in history if op is not None], Office(10))]
    assert found
    assert any(part in found[0] for part in complaint.split("|")), found[0]


def test_the_checker_replays_a_change_of_the_seats():
    assert [*complaints([*GOOD, MORE], Office(10))] == []
    less = MORE._replace(seats=5)
    assert "left -1 of 5 seats" in next(complaints([*GOOD, less], Office(10)))


def test_the_checker_wants_the_reasons_of_two_refusals_in_their_order():
    # Sold out only at version 1, and three seats free only at version 2.
    sold = Op("reserve", 0, 10, 1, "a", "ann", 9, answer="confirmed")
    part = Op("cancel", 0, 10, 2, "a", seats=3, answer="done")
    short = Op("cancel", 1, 2, key="a", seats=8, answer="short")
    full = Op("reserve", 3, 4, seats=2, answer="full")
    assert [
        *complaints(
            [sold, part, full, short._replace(called=5, returned=6)], Office(10)
        )
    ] == []
    assert "without a reason" in next(complaints([sold, part, short, full], Office(10)))


# --- Histories ---------------------------------------------------------------


class Customer:
    """One client, and what it did."""

    def __init__(
        self, fleet: Fleet, number: int, seed: int, known: list[str], partly: bool
    ) -> None:
        self.fleet, self.number, self.known = fleet, number, known
        self.partly = partly  # may give back some seats and keep the others
        self.rng = random.Random(seed * 1000 + number)
        self.client = Client(fleet.servers[number % 2].url)
        self.mine: list[str] = []
        self.version, self.done = 0, 0
        self.history: list[Op] = []

    def act(self) -> None:
        """One operation, whichever."""
        dice, self.done = self.rng.random(), self.done + 1
        if dice < 0.02 and self.partly:
            self.resize()
        elif dice < 0.32:
            self.reserve()
        elif dice < 0.42:
            self.book()
        elif dice < 0.70 and self.known:
            self.cancel()
        elif dice < 0.85 or not self.mine:
            self.look()
        else:
            self.look_up()

    def reserve(self) -> None:
        """Some seats; now and then only on a condition."""
        rng, who = self.rng, f"c{self.number}-{self.done}"
        seats, waits = rng.choice([1, 1, 2, 3, 5, 10]), rng.random() < 0.2
        expected = self.version if rng.random() < 0.1 else None
        op = Op(
            "reserve",
            time.perf_counter(),
            who=who,
            seats=seats,
            waits=waits,
            expected=expected,
        )
        condition = {} if expected is None else {"If_Match": f'"{expected}"'}
        self.finish(
            op,
            self.ask(
                "POST",
                "/reservations",
                {"partnerId": who, "seats": seats, "waitlist": waits},
                **condition,
            ),
        )

    def book(self) -> None:
        """One ticket, for one of a few users."""
        user = f"user{self.rng.randrange(40)}"
        op = Op("book", time.perf_counter(), who=user, seats=1, waits=True)
        self.finish(op, self.ask("POST", "/book", {"eventId": SEEDED, "userId": user}))

    def cancel(self) -> None:
        """All of a reservation or part of it, mostly of one's own."""
        rng = self.rng
        key = rng.choice(self.mine if self.mine and rng.random() < 0.85 else self.known)
        seats = rng.randint(1, 3) if self.partly and rng.random() < 0.2 else None
        op = Op("cancel", time.perf_counter(), key=key, seats=seats)
        part = f"?seats={seats}" if seats else ""
        self.finish(op, self.ask("DELETE", f"/reservations/{key}{part}"))
        if key in self.mine and not seats:
            self.mine.remove(key)

    def resize(self) -> None:
        """More seats or fewer; and another price, so that it is always a change."""
        seats = self.rng.randint(30, 90)
        op = Op("resize", time.perf_counter(), seats=seats)
        changes = {"totalSeats": seats, "price": self.number * 10**5 + self.done}
        self.finish(op, self.ask("PATCH", f"/events/{SEEDED}", changes))

    def look(self) -> None:
        """At the event, perhaps only if it is another than before."""
        condition = self.rng.choice([{}, {}, {"If_None_Match": f'"{self.version}"'}])
        path = self.rng.choice(["/event", f"/status/{SEEDED}"])
        op = Op("event", time.perf_counter())
        self.finish(op, self.ask("GET", path, **condition if path == "/event" else {}))

    def look_up(self) -> None:
        """One reservation."""
        op = Op("record", time.perf_counter(), key=self.rng.choice(self.mine))
        self.finish(op, self.ask("GET", f"/reservations/{op.key}"))

    def ask(self, *question: Any, **headers: str) -> Answer | None:
        """The answer, or None if the server was killed; then on to the next one."""
        try:
            answer = self.client.ask(*question, **headers)
        except GONE:
            connection = self.client.connection
            connection.close()
            self.client = Client(
                self.fleet.another(
                    self.number % 2, f"http://{connection.host}:{connection.port}"
                )
            )
            return None
        self.fleet.answers.release()
        return answer

    def finish(self, op: Op, answer: Answer | None) -> None:
        """Write down what came of it."""
        if answer is not None:
            op = understood(op._replace(returned=time.perf_counter()), answer)
            self.version = op.version or self.version
            if op.answer in ("confirmed", "waitlisted"):
                self.mine.append(op.key)
                self.known.append(op.key)
        self.history.append(op)


def understood(op: Op, answer: Answer) -> Op:
    """The operation with the content of its answer."""
    status, body, told = answer.status, answer.body, {}
    if answer.headers["ETag"]:
        told["version"] = answer.version
    error = body.get("error", "") if isinstance(body, dict) else ""
    if "concurrent updates" in error or "Nothing was changed" in error:
        told["answer"] = "busy"
    elif status == 304:
        told["answer"] = "seen"
    elif status == 412:
        told["answer"] = "stale"
    elif op.kind == "resize":
        told["answer"] = {200: "done", 409: "few"}[status]
    elif op.kind == "cancel":
        told["answer"] = {204: "done", 404: "gone", 400: "short"}[status]
    elif op.kind == "record":
        assert status == 200
        told |= {"answer": "seen", "seen": (body["status"], body["seats"])}
    elif op.kind == "event":
        assert status == 200
        assert told.get("version") in (None, body["version"])
        told |= {"answer": "seen", "version": body["version"]}
        # /event does not show the waiting list, /status does.
        told["seen"] = (
            body.get("availableSeats", body.get("availableTickets")),
            body.get("waitingListCount"),
        )
    elif status == 409:
        told["answer"] = {
            "Not enough seats left": "full",
            "You already booked this event": "taken",
        }[error]
    else:
        assert status in (200, 201, 202), (status, body)
        # A waiting user who asks again gets the same answer, and nothing changes.
        told |= {
            "key": body["reservationId"],
            "answer": body["status"].replace("booked", "confirmed"),
        }
    return op._replace(**told)


def settled(history: list[Op], records: dict[str, Any]) -> list[Op]:
    """With what the file alone can tell: what came of requests without an answer.

    And which bookings that wait are new ones, and which the same asked for again: these
    may have the same version, if they were decided together.
    """
    asked, settled = defaultdict(list), {}
    for op in sorted(history, key=lambda op: op.called):
        asked[op.key if op.kind == "cancel" else op.who].append(op)
    for key, record in sorted(
        records.items(), key=lambda item: item[1]["eventVersionAtReservation"]
    ):
        for name, version in (
            (record["partnerId"], record["eventVersionAtReservation"]),
            (key, record.get("eventVersionAtCancel")),
        ):
            if version is None:
                continue
            could = [
                op
                for op in asked[name]
                if id(op) not in settled
                and (not op.answer or (op.answer in CHANGES and op.version == version))
            ]
            # The one that was called first leaves the most room to the others.
            sure = [op for op in could if op.answer in ("confirmed", "done")]
            op = next(iter(sure or could), None)
            assert op is not None, f"nobody asked for {record}"
            settled[id(op)] = op._replace(version=version, key=key)
    history = [settled.get(id(op), op) for op in history]
    return [
        op._replace(answer="in line")
        if op.kind == "book" and op.answer == "waitlisted" and id(op) not in kept
        else op
        for kept in [{id(op) for op in settled.values()}]
        for op in history
    ]


@pytest.mark.parametrize("killed", [False, True], ids=["", "with kill -9 in between"])
def test_the_answers_of_two_servers_are_linearizable(
    serve, database_in, tmp_path, pick, killed
):
    operations = pick(1000, 10_000, 100_000) if killed else pick(3000, 10**5, 10**6)
    for first in range(0, operations, 5000):  # a fresh file now and then: it grows
        folder = tmp_path / str(first)
        folder.mkdir()
        _live(
            serve,
            database_in(folder),
            min(5000, operations - first),
            first,
            kills=3 if killed else 0,
        )


def _live(serve: Any, db: Path, operations: int, seed: int, kills: int) -> None:
    fleet, known = Fleet(serve, db, "--seats", "60"), []
    clients = 32 << seed // 5000 % 3
    customers = [
        Customer(fleet, n, seed, known, partly=not kills) for n in range(clients)
    ]

    def act(number: int) -> None:
        try:
            for _ in range(operations // clients):
                customers[number].act()
        finally:
            customers[number].client.connection.close()

    with Crowd(clients, act):
        for number in range(kills):
            fleet.under_load(operations // (kills + 1) - clients)
            fleet.kill(*[(0,), (1,), (0, 1)][number % 3])
    for server in fleet.servers:
        server.stop()

    file = json.loads(db.read_bytes())
    history = settled([op for c in customers for op in c.history], file["reservations"])
    office = Office(60)
    assert [*complaints(history, office)] == []
    assert office.history[-1][0] == file["event"]["availableSeats"]
    assert len(office.history) - 1 == file["event"]["version"]
    assert {key: office.record(key) for key in file["reservations"]} == {
        key: (r["status"], r["seats"]) for key, r in file["reservations"].items()
    }
    assert set(office.records) == set(file["reservations"])
    # It was a history worth the trouble: all that can be answered was.
    rare = set() if kills else {"gone", "taken", "in line", "stale", "few"}
    assert {op.answer for op in history} >= CHANGES | {"seen", "full"} | rare
    assert any(not op.answer for op in history) == bool(kills)
