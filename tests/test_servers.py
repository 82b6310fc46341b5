"""Two real servers on one db.json: no seat twice, nobody starved, nothing lost.

32 clients on kept connections, half of them at each server. Whatever was answered 201
or 204 is in the file, also after any number of kill -9.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import threading
import uuid
from collections import Counter
from pathlib import Path

from conftest import wait_until
from keepalive import GONE, Answer, Client, Crowd

ONE = {"partnerId": "abc-corp", "seats": 1}


def test_two_servers_sell_exactly_all_seats_and_refuse_only_when_sold_out(serve, saved):
    servers, sold, refused = [serve(), serve()], [], []

    def buy(number: int) -> None:
        with Client(servers[number % 2].url) as client:
            for _ in range(100):  # far more than its share
                answer = client.ask("POST", "/reservations", ONE)
                if answer.status == 201:
                    sold.append((answer.version, answer.body["reservationId"]))
                    continue
                seen = client.ask("GET", "/event").body
                refused.append((answer.status, answer.body, seen["availableSeats"]))
                return

    with Crowd(32, buy):
        pass
    assert sorted(version for version, _ in sold) == [*range(1, 501)]
    # Nothing is given back: what was justified is so still when the client looks.
    assert refused == [(409, {"error": "Not enough seats left"}, 0)] * 32
    file = saved()
    assert file["event"]["availableSeats"] == 0
    assert file["event"]["version"] == 500
    assert {
        r["eventVersionAtReservation"]: key for key, r in file["reservations"].items()
    } == dict(sold)


def test_no_client_of_two_servers_is_starved(serve, saved, request):
    # Buying and giving back, so that it never ends by itself: 40 turns are enough to
    # be far from chance, and every turn is a commit.
    servers, turns, enough = [serve(), serve()], [0] * 32, threading.Event()

    def buy_and_return(number: int) -> None:
        with Client(servers[number % 2].url) as client:
            while not enough.is_set():
                sold = client.ask("POST", "/reservations", ONE)
                assert sold.status == 201
                path = f"/reservations/{sold.body['reservationId']}"
                assert client.ask("DELETE", path).status == 204
                turns[number] += 1
                if sum(turns) >= 32 * 20:
                    enough.set()

    with Crowd(32, buy_and_return):
        pass
    # A row's lock in PostgreSQL is no queue: on busy cores one server may come first
    # several times in a row, and sell more. The clients of each are served in order.
    is_file = request.config.getoption("--store") == "file"
    for group in [turns] if is_file else [turns[::2], turns[1::2]]:
        # The high one: if a whole server is starved, the others are half of all.
        assert min(group) * 2 >= statistics.median_high(group), turns
    assert min(turns) > 0, turns
    event = saved()["event"]
    assert (event["availableSeats"], event["version"]) == (500, 2 * sum(turns))


def is_stopped(server) -> bool:
    """Whether a SIGSTOP has reached all its threads."""
    threads = Path(f"/proc/{server.process.pid}/task").iterdir()
    return all(") T " in (thread / "stat").read_text() for thread in threads)


class Fleet:
    """Two servers on one file, that are killed and started again."""

    def __init__(self, serve, db: Path, *options: str) -> None:
        self.start, self.folder = lambda: serve(*options, db=db), db.parent
        self.servers = [self.start(), self.start()]
        self.changes = threading.Condition()
        self.answers = threading.Semaphore(0)

    def halt_in_a_write(self) -> None:
        """Stop both while one of them writes: a kill now leaves a draft behind.

        Where the data is in a database, that is while they may hold its lock.
        """
        for _ in range(200):
            self.under_load(1)
            for server in self.servers:
                server.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: all(map(is_stopped, self.servers)))
            if len(os.listdir(self.folder)) != 2:  # not just the file and its lock
                return
            for server in self.servers:
                server.process.send_signal(signal.SIGCONT)

    def kill(self, *which: int) -> None:
        """End these by kill -9, all of them before the first starts again."""
        for number in which:
            self.servers[number].process.kill()
        for number in which:
            dead, self.servers[number] = self.servers[number], self.start()
            dead.stop()
            with self.changes:
                self.changes.notify_all()

    def another(self, number: int, url: str) -> str:
        """The url of the server that stands where the one at `url` was killed."""
        with self.changes:
            assert self.changes.wait_for(lambda: self.servers[number].url != url, 20)
        return self.servers[number].url

    def under_load(self, answers: int) -> None:
        """Wait for that many more answers to clients."""
        for _ in range(answers):
            assert self.answers.acquire(timeout=20)


class Survivor:
    """A client that asks again, with its Idempotency-Key, until it is answered."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet, self.number = fleet, number % 2
        self.client = Client(fleet.servers[self.number].url)

    def ask(self, *question: object, **headers: str) -> tuple[Answer, bool]:
        """The answer, and whether it is that to the first asking."""
        first = True
        while True:
            try:
                answer = self.client.ask(*question, **headers)
            except GONE:
                first = False
                old = f"http://{self.client.connection.host}:{self.client.connection.port}"
                self.client.connection.close()
                self.client = Client(self.fleet.another(self.number, old))
                continue
            self.fleet.answers.release()
            if "concurrent updates" not in str(answer.body):  # no turn: nothing done
                return answer, first


def test_kill_9_under_load_loses_nothing_and_sells_nothing_twice(
    serve, database_in, tmp_path, pick
):
    kills = pick(4, 50, 1000)
    for first in range(0, kills, 10):  # a fresh file now and then: it grows
        folder = tmp_path / str(first)
        folder.mkdir()
        _kill_9(
            serve, database_in(folder), min(10, kills - first), random.Random(first)
        )


def _kill_9(serve, db: Path, kills: int, rng: random.Random) -> None:
    fleet, over = Fleet(serve, db, "--seats", "1000000"), threading.Event()
    sold: dict[str, int | None] = {}  # by id: the version, where the first answer told
    returned: dict[str, int | None] = {}

    def buy_and_return(number: int) -> None:
        survivor = Survivor(fleet, number)
        while not over.is_set():
            key = str(uuid.uuid4())
            answer, first = survivor.ask(
                "POST",
                "/reservations",
                {"partnerId": key, "seats": 1 + number % 3},
                Idempotency_Key=key,
            )
            assert answer.status == 201
            sold[answer.body["reservationId"]] = answer.version
            if number % 8 > 1:
                path = f"/reservations/{answer.body['reservationId']}"
                answer, first = survivor.ask("DELETE", path)
                assert answer.status == 204 or (answer.status == 404 and not first)
                returned[path.removeprefix("/reservations/")] = (
                    answer.version if answer.status == 204 else None
                )
            elif len(sold) % 3 == 0:
                survivor.ask("GET", "/event")
        survivor.client.connection.close()

    with Crowd(16, buy_and_return):
        try:
            for number in range(kills - 1):
                fleet.under_load(rng.randint(1, 40))
                if number % 3 == 2:
                    fleet.halt_in_a_write()
                fleet.kill(*[(0,), (1,), (0, 1)][number % 3])
            fleet.under_load(20)
        finally:
            over.set()
    for server in fleet.servers:  # with nobody to notice: the last kill
        server.process.kill()
        server.stop()

    before = json.loads(db.read_bytes())
    assert serve(db=db).ask("GET", "/_health")[:2] == (200, {"ok": True})
    files = sorted(path.name for path in db.parent.iterdir())
    assert files in ([".db.json.lock", "db.json"], [])
    assert json.loads(db.read_bytes()) == before
    event, records = before["event"], before["reservations"]
    assert set(records) == set(sold)  # every 201, and no retry's twin
    assert set(returned) == {
        key for key, r in records.items() if r["status"] == "cancelled"
    }
    for key, version in sold.items():
        assert records[key]["eventVersionAtReservation"] == version
    for key, version in returned.items():
        assert version in (None, records[key]["eventVersionAtCancel"])
    versions = Counter(r["eventVersionAtReservation"] for r in records.values())
    versions.update(
        r["eventVersionAtCancel"]
        for r in records.values()
        if r["status"] == "cancelled"
    )
    assert versions == Counter(range(1, event["version"] + 1))
    held = sum(r["seats"] for r in records.values() if r["status"] == "confirmed")
    assert held + event["availableSeats"] == event["totalSeats"]
