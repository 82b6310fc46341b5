"""Two servers on a PostgreSQL that is killed under load: nothing lost, nothing twice.

The database dies whole or in part, and fails over to a replica; the servers stay, and
each client asks again with its Idempotency-Key until it is answered.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import uuid
from collections import Counter
from pathlib import Path

import postgres
import programs
import pytest
from conftest import HERE, skip, wait_until
from keepalive import GONE, Client, Crowd
from managed import Managed, missing

import ticketboss as t

BUSY = 500, 503  # in doubt, or certainly not done


class Sales:
    """Clients that buy and return seats at two servers, with the answers they got."""

    def __init__(self, serve, url):
        self.servers = [serve("--seats", "1000000", db=At(url)) for _ in range(2)]
        self.sold, self.returned = {}, {}
        self.answers, self.over = threading.Semaphore(0), threading.Event()

    def under_load(self, answers):
        """Wait for that many more answers to clients."""
        for _ in range(answers):
            assert self.answers.acquire(timeout=120)

    def buy_and_return(self, number):
        """Buy and give back, again and again, as one client."""
        client = Client(self.servers[number % 2].url)
        while not self.over.is_set():
            key = str(uuid.uuid4())
            body = {"partnerId": key, "seats": 1 + number % 3}
            answer, _ = self.ask(
                client, "POST", "/reservations", body, Idempotency_Key=key
            )
            assert answer.status == 201, answer.body
            reservation = answer.body["reservationId"]
            self.sold[reservation] = answer.version
            if number % 4:
                path = f"/reservations/{reservation}"
                answer, was_asked_before = self.ask(client, "DELETE", path)
                assert answer.status == 204 or (
                    answer.status == 404 and was_asked_before
                )
                version = answer.version if answer.status == 204 else None
                self.returned[reservation] = version
        client.connection.close()

    def ask(self, client, *question, **headers):
        """The answer that is one, and whether it is that to a repeated question."""
        was_asked_before = False
        while True:
            try:
                answer = client.ask(*question, **headers)
            except GONE:
                client.connection.close()
            else:
                busy = "concurrent updates" in str(answer.body)
                if answer.status not in BUSY and not busy:
                    self.answers.release()
                    return answer, was_asked_before
                if busy:  # certainly not done, so as if it was not asked
                    continue
            was_asked_before = True
            self.over.wait(0.02)

    def prove(self, url):
        """Each answer is in the database, and nothing else; each version once.

        And all of it is by the servers that were started in the beginning.
        """
        assert [server.process.poll() for server in self.servers] == [None, None]
        document = t.open_store(url).load().database.document(None)
        event, records = document.event, document.reservations
        assert set(records) == set(self.sold)
        cancelled = {key for key, r in records.items() if r.status == "cancelled"}
        assert set(self.returned) == cancelled
        for key, version in self.sold.items():
            assert records[key].event_version_at_reservation == version
        for key, version in self.returned.items():
            assert version in (None, records[key].event_version_at_cancel)
        versions = Counter(r.event_version_at_reservation for r in records.values())
        versions.update(records[key].event_version_at_cancel for key in cancelled)
        assert versions == Counter(range(1, event.version + 1))
        held = sum(r.seats for r in records.values() if r.status == "confirmed")
        assert held + event.available_seats == event.total_seats
        audit = programs.run(Path.cwd(), "--db", url, "audit")
        assert audit.returncode == 0
        assert audit.stdout.endswith("Everything adds up.\n")


class At:
    """A URL where a server expects a path."""

    def __init__(self, url):
        self.url, self.parent = url, HERE

    def __str__(self):
        return self.url


def kill_a_backend(own, rng):
    """Kill a process that serves one of ours: all others are ended, too."""
    sessions = own.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = 'postgres' "
        "AND pid <> pg_backend_pid()"
    )
    if sessions:
        os.kill(rng.choice(sessions)[0], signal.SIGKILL)
        own.wait()


def end_a_session(own, rng):
    """Let the server end one session, as an administrator can."""
    own.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
        "datname = 'postgres' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
    )


def kill_it_whole(own, rng):
    """Kill all of it; it recovers when it is started."""
    own.kill()
    own.start()


def test_a_database_that_dies_under_load_loses_nothing_and_sells_nothing_twice(
    serve, own, pick, say
):
    kills, rng = pick(3, 50, 500), random.Random(0)
    sales = Sales(serve, own.url())
    with Crowd(16, sales.buy_and_return):
        try:
            for number in range(kills):
                sales.under_load(rng.randint(1, 60))
                [kill_it_whole, kill_a_backend, end_a_session][number % 3](own, rng)
            sales.under_load(50)
        finally:
            sales.over.set()
    sales.prove(own.url())
    say(
        f"killed the database {kills} times under load: {len(sales.sold)} sales and "
        f"{len(sales.returned)} cancels, none lost, none twice"
    )


REPLICATED = (
    "synchronous_standby_names=ANY 1 (*)",  # no answer before one replica has it
    "wal_keep_size=256MB",
)


@pytest.fixture
def nodes():
    """A primary and two replicas of it."""
    postgres.require()
    nodes = [postgres.Postgres(*REPLICATED)]
    nodes += [postgres.Postgres(*REPLICATED, like=nodes[0]) for _ in range(2)]
    yield nodes
    for node in nodes:
        if node.process.poll() is None:
            node.kill()
        node.stop()


def fail_over(nodes):
    """Kill the primary, promote the most recent standby, and let the others follow."""
    primary, *replicas = nodes
    primary.kill()
    received = "SELECT pg_last_wal_receive_lsn() - '0/0'"
    replicas.sort(key=lambda replica: replica.execute(received), reverse=True)
    promoted, other = replicas
    promoted.execute("SELECT pg_promote()")
    other.execute(
        f"ALTER SYSTEM SET primary_conninfo = 'user=tb host={promoted.folder}'"
    )
    other.execute("SELECT pg_reload_conf()")
    primary.copy(promoted)
    primary.start()
    nodes[:] = [promoted, other, primary]


def test_three_nodes_fail_over_under_load_and_lose_nothing(serve, nodes, pick, say):
    failovers = pick(1, 5, 20)
    folders = ",".join(str(node.folder) for node in nodes)
    url = f"postgresql://tb@/postgres?host={folders}"
    sales = Sales(serve, url)
    with Crowd(16, sales.buy_and_return):
        try:
            for _ in range(failovers):
                sales.under_load(100)
                fail_over(nodes)
            sales.under_load(100)
        finally:
            sales.over.set()
    sales.prove(url)
    say(
        f"failed over {failovers} times, of three nodes: {len(sales.sold)} sales and "
        f"{len(sales.returned)} cancels, none lost, none twice"
    )


@pytest.fixture
def managed():
    """Three nodes under Patroni, all well."""
    postgres.require()
    if why := missing():
        skip(f"The failover under Patroni is not tested: {why}")
    managed = Managed()
    try:
        wait_until(managed.leader, 120)
        yield managed
    finally:
        managed.stop()


def test_three_nodes_under_patroni_whose_leader_is_killed_lose_nothing(
    serve, managed, say
):
    kills = 5
    sales = Sales(serve, managed.url)
    with Crowd(16, sales.buy_and_return):
        try:
            for _ in range(kills):
                sales.under_load(500)
                leader = wait_until(managed.leader, 120)  # a busy one may step down
                leader.kill()
                sales.under_load(500)  # so another one leads
                leader.start()
                wait_until(managed.leader, 120)
            sales.under_load(500)
        finally:
            sales.over.set()
    sales.prove(managed.url)
    say(
        f"killed the leading one of three nodes under Patroni {kills} times: "
        f"{len(sales.sold)} sales and {len(sales.returned)} cancels, none lost, none "
        "twice"
    )
