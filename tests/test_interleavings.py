"""In any order of their steps, clients end as if they had run one after another.

Two or three clients, each with a store and transactions of its own as if it were
another process, are stepped through every order of their reads, lock, comparison, write
and rename. Nobody sleeps: a client runs when it is handed the baton, to its next step.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

import ticketboss as t

RAM = "/dev/shm"
NAMES = "Ann", "Bob", "Cid"
WORDS = {
    "read": "reads",
    "lock": "locks",
    "compare": "compares",
    "write": "writes",
    "rename": "renames",
}
BATON = threading.local()  # .client: the client whose thread this is


class Wish(NamedTuple):
    """What one client wants to become of an event, the seeded one by None."""

    change: Callable[[t.Document], t.Document]
    event: str | None = None

    def decide(self, database: t.Database) -> t.Database:
        """The whole database, changed so."""
        document = self.change(database.document(self.event))
        return database.with_document(document)


class Client(threading.Thread):
    """Transacts once, and stops before each step until it is handed the baton."""

    def __init__(self, store: Stepped, wish: Wish) -> None:
        super().__init__(daemon=True)
        self.store, self.wish = store, wish
        self.next: str | None = None  # the step it stands before; None: it is done
        self.answer: t.Document | str = ""
        self.baton, self.stopped = threading.Lock(), threading.Lock()
        self.baton.acquire()
        self.stopped.acquire()

    def run(self) -> None:
        """Keep the answer: the event as this client left it, or the refusal."""
        BATON.client = self
        try:
            turn = t.Transactions(self.store).transact(self.wish.decide)
            self.answer = turn.database.document(self.wish.event)
        except t.TicketBossError as refusal:
            self.answer = str(refusal)
        self.next = None
        self.stopped.release()

    def stop_before(self, step: str) -> None:
        """Give the baton back, and wait for it."""
        self.next = step
        self.stopped.release()
        self.baton.acquire()

    def go_on(self) -> None:
        """Take the next step, to just before the one after it."""
        self.baton.release() if self.is_alive() else self.start()
        assert self.stopped.acquire(timeout=20), f"stuck after {self.next}"


def stop_before(step: str) -> None:
    """For a client; anybody else goes on."""
    if (client := getattr(BATON, "client", None)) is not None:
        client.stop_before(step)


class Stepped(t.Store):
    """A store that stops before it reads, locks and compares."""

    held = swapping = False

    def load(self) -> t.Snapshot:
        stop_before("compare" if self.swapping and self.held else "read")
        return super().load()

    @contextmanager
    def lock(self) -> Iterator[None]:
        if self.held:  # by this very client
            with super().lock():
                yield
            return
        stop_before("lock")
        with super().lock():
            self.held = True
            try:
                yield
            finally:
                self.held = False

    def swap(self, seen: t.Snapshot, wanted: t.Database) -> bool:
        self.swapping = True
        try:
            return super().swap(seen, wanted)
        finally:
            self.swapping = False


class Blind(Stepped):
    """The planted bug: whatever is there now counts as what was seen."""

    def swap(self, seen: t.Snapshot, wanted: t.Database) -> bool:
        with self.lock():
            return super().swap(t.Store.load(self), wanted)


class Order(NamedTuple):
    """One order of all steps, and what came of it."""

    steps: list[tuple[int, str]]  # the client, and the step
    choices: list[list[int]]  # the clients that could have taken it
    final: t.Database
    answers: list[t.Document | str]
    torn: list[str]  # what is wrong with it

    def side_by_side(self) -> str:
        """A line for each step, a column for each client."""
        width = len(self.answers)
        rows = [list(NAMES[:width])] + [
            [WORDS[step] if who == n else "" for n in range(width)]
            for who, step in self.steps
        ]
        return "\n".join("".join(f"{cell:12}" for cell in row).rstrip() for row in rows)


class Office:
    """A db.json, some clients' stores of it, and a reader who looks in at any step."""

    def __init__(
        self, path: str, start: t.Database, kind: type[Stepped], wishes: list[Wish]
    ) -> None:
        self.path, self.wishes = path, wishes
        self.reader = t.Store(path)
        self.reader.open(4)
        first = self.reader.load()
        assert self.reader.swap(first, start)
        with open(path, "rb") as file:
            self.first = file.read()
        self.stores = [kind(path) for _ in wishes]

    def begin(self) -> None:
        """Put the file back as it was at the start."""
        with open(f"{self.path}.new", "wb") as file:
            file.write(self.first)
        os.replace(file.name, self.path)

    def play(self, orders: list[int]) -> Order:
        """Follow `orders` to their end; then the current client continues."""
        self.begin()
        clients = [Client(*pair) for pair in zip(self.stores, self.wishes, strict=True)]
        for client in clients:
            client.go_on()
        order = Order([], [], self.look(), [], [])
        shown, who = order.final, 0
        while free := [
            n
            for n, client in enumerate(clients)
            if client.next and not (client.next == "lock" and self.locked())
        ]:
            at = len(order.steps)
            who = orders[at] if at < len(orders) else who if who in free else free[0]
            step = clients[who].next
            order.choices.append(free)
            order.steps.append((who, step))
            clients[who].go_on()
            before, shown = shown, self.look()
            if shown != before and step != "rename":
                order.torn.append(f"{NAMES[who]} only {WORDS[step]}, and others see it")
        for client in clients:
            client.join(20)
        answers = [client.answer for client in clients]
        return order._replace(final=shown, answers=answers)

    def locked(self) -> bool:
        """Whether a client that asks for the lock now must wait."""
        folder, name = os.path.split(self.path)
        with open(f"{folder}/.{name}.lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def look(self) -> t.Database:
        """The content of the file; fails if it is incomplete or its sums are wrong."""
        return self.reader.load().database

    def one_by_one(self) -> list[tuple[t.Database, list[t.Document | str]]]:
        """What the wishes give in each order of whole clients, without any store."""
        found = []
        for order in itertools.permutations(range(len(self.wishes))):
            database, answers = self.reader.load().database, [""] * len(order)
            for who in order:
                wish = self.wishes[who]
                try:
                    database = wish.decide(database)
                    answers[who] = database.document(wish.event)
                except t.TicketBossError as refusal:
                    answers[who] = str(refusal)
            found.append((database, answers))
        return found

    def explore(self, most: float = math.inf) -> list[Order]:
        """Play every order once, those with the fewest interruptions first.

        Stops with the first that ends as no order of whole clients does, and leaves
        out those with more than so many interruptions.
        """
        serial, played = self.one_by_one(), []
        to_play: list[tuple[int, int, list[int]]] = [(0, 0, [])]
        while to_play:
            interruptions, _, chosen = heapq.heappop(to_play)
            order = self.play(chosen)
            if (order.final, order.answers) not in serial:
                order.torn.append("No order of whole clients ends so")
            if order.torn:
                raise AssertionError("\n".join([*order.torn, order.side_by_side()]))
            played.append(order)
            takers = [who for who, _ in order.steps]
            for at in range(len(chosen), len(takers)):
                on = takers[at - 1] if at else None
                interrupted = interruptions + (on in order.choices[at])
                for other in order.choices[at]:
                    if other != takers[at] and interrupted <= most:
                        heapq.heappush(
                            to_play, (interrupted, at, [*takers[:at], other])
                        )
        return played


def sale(name: str, seats: int, wait: str = "never", event: str | None = None) -> Wish:
    """Somebody wants seats of an event."""
    return Wish(
        lambda document: document.reserve(
            t.Reservation(name, name, seats, "waitlisted"), wait
        ),
        event,
    )


def give_back(seats: int | None = None) -> Wish:
    """Somebody gives back seats of the one reservation that is there at the start."""
    return Wish(
        lambda document: document.cancel("early", "2025-01-01T00:00:00.000Z", seats)
    )


CASES: dict[str, list[Wish]] = {  # 2 of 4 seats are free at the start
    "two sales that both fit": [sale("a", 1), sale("b", 1)],
    "two sales, seats for one": [sale("a", 2), sale("b", 2)],
    "a sale of seats that another gives back": [sale("a", 3), give_back()],
    "two who give back the same": [give_back(), give_back()],
    "one gives back a part, another all": [give_back(1), give_back()],
    "one joins the waiting list while another gives back": [
        sale("a", 3, "when short"),
        give_back(),
    ],
    "two join the waiting list": [
        sale("a", 3, "when short"),
        sale("b", 4, "when short"),
    ],
    "sales of two events": [sale("a", 2), sale("b", 2, event="2")],
}
OF_THREE: dict[str, list[Wish]] = {
    "a sale, one who waits, one who gives back": [
        sale("a", 1),
        sale("b", 3, "when short"),
        give_back(),
    ],
    "three sales, seats for two": [sale("a", 1), sale("b", 1), sale("c", 1)],
    "two sales and one who gives back": [sale("a", 2), sale("b", 2), give_back()],
}


def at_the_start() -> t.Database:
    """Two of four seats are free, and two of another event."""
    seeded = t.seed(4)
    early = seeded.document(None).reserve(
        t.Reservation("early", "early", 2, "waitlisted")
    )
    another = t.Document.of(t.Event(2, "Another", 2, 2, 0), {})
    return seeded.with_document(early).with_document(another).settled()


@pytest.fixture
def office(monkeypatch):
    """Give office(wishes, kind): its clients stop before they write, too."""
    for name, step in ("write", "write"), ("replace", "rename"):

        def stepped(*args, call=getattr(os, name), step=step):
            stop_before(step)
            return call(*args)

        monkeypatch.setattr(os, name, stepped)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no power is cut here
    monkeypatch.setattr(time, "sleep", lambda _: None)  # nor does anybody wait
    with tempfile.TemporaryDirectory(dir=RAM if os.path.isdir(RAM) else None) as folder:
        yield lambda wishes, kind=Stepped: Office(
            f"{folder}/db.json", at_the_start(), kind, wishes
        )


def counted(case: str, played: list[Order]) -> str:
    """How many orders there were, if they were all different, with all the steps."""
    assert {step for order in played for _, step in order.steps} == set(WORDS)
    assert len({tuple(order.steps) for order in played}) == len(played)
    return f"{case}: {len(played)} orders"


@pytest.mark.parametrize("case", CASES)
def test_every_interleaving_of_two_ends_as_a_serial_order(case, office, say):
    say(counted(case, office(CASES[case]).explore()))


def test_every_interleaving_of_three_ends_as_a_serial_order(office, say, pick):
    cases, most = pick((1, 2), (3, math.inf), (3, math.inf))
    for case, wishes in [*OF_THREE.items()][:cases]:
        say(counted(case, office(wishes).explore(most)))


def test_two_events_never_conflict(office):
    for order in office(CASES["sales of two events"]).explore():
        assert [who for who, step in order.steps if step == "compare"].count(0) == 1
        assert len(order.steps) == 2 * len(WORDS)


def test_without_the_version_check_the_shortest_interleaving_that_loses_a_sale_is_found(
    office, say
):
    with pytest.raises(AssertionError) as told:
        office(CASES["two sales that both fit"], Blind).explore()
    say(f"without the version check: {told.value}")
    assert (
        str(told.value)
        == """\
No order of whole clients ends so
Ann         Bob
reads
            reads
            locks
            compares
            writes
            renames
locks
compares
writes
renames"""
    )
