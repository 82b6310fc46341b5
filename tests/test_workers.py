"""README's gunicorn: workers that are killed and replaced lose nothing confirmed."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HERE, skip, wait_until
from furnished import PASSWORD
from keepalive import GONE, Client, Crowd
from programs import PROGRAM

README_LINE = re.compile(r"^([A-Z_]+)=(\S+) \.venv/bin/gunicorn (.+)$", re.MULTILINE)


class Gunicorn:
    """README's gunicorn on a free port, and the workers that it has."""

    def __init__(self, folder: Path) -> None:
        name, value, arguments = README_LINE.search(
            (HERE.parent / "README.md").read_text()
        ).groups()
        assert "127.0.0.1:3000" in arguments
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn"),
                *shlex.split(arguments.replace(":3000", ":0")),
            ],
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(PROGRAM.parent),
                "TICKETBOSS_SEATS": "100000",
                "TICKETBOSS_QUIET": "1",
                name: value,
            },
        )
        self.url = ""
        self.workers: list[int] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        wait_until(lambda: len(self.workers) == 4)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"Listening at: (http://\S+)", line):
                self.url = found[1]
            if found := re.search(r"Booting worker with pid: (\d+)", line):
                self.workers.append(int(found[1]))

    def replace(self, how: signal.Signals, *workers: int) -> None:
        """End these workers, and wait until others have been started."""
        for worker in workers:
            self.workers.remove(worker)
            os.kill(worker, how)
        wait_until(lambda: len(self.workers) == 4)


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Gunicorn]:
    """It, on a database of its own."""
    if importlib.util.find_spec("gunicorn") is None:
        skip("needs gunicorn")
    running = Gunicorn(tmp_path)
    yield running
    running.process.kill()
    for worker in running.workers:  # they notice it only after seconds
        try:
            os.kill(worker, signal.SIGKILL)
        except ProcessLookupError:
            continue
    running.process.wait()
    running.reader.join()
    running.process.stderr.close()


def token_of(url: str) -> str:
    """The token of a new account."""
    ann = {"username": "ann", "email": "ann@example.com", "password": PASSWORD}
    with Client(url) as client:
        assert client.ask("POST", "/api/v1/auth/register", ann).status == 201
        me = {"username": "ann", "password": PASSWORD}
        return client.ask("POST", "/login", me).body["token"]


def test_workers_of_gunicorn_that_are_killed_under_load_lose_nothing_confirmed(
    gunicorn, make_app, tmp_path, saved
):
    sold: dict[str, str] = {}
    answers, over = threading.Semaphore(0), threading.Event()
    token = token_of(gunicorn.url)

    def buy(_: int) -> None:
        with Client(gunicorn.url) as client:
            while not over.is_set():
                key = str(uuid.uuid4())
                headers = {"Authorization": f"Bearer {token}", "Idempotency_Key": key}
                order = {"partnerId": key, "seats": 1}
                while True:
                    try:
                        answer = client.ask("POST", "/reservations", order, **headers)
                    except GONE:
                        client.connection.close()
                        continue
                    if answer.status == 201:
                        break
                    assert "concurrent updates" in answer.body["error"]
                sold[answer.body["reservationId"]] = key
                answers.release()

    def under_load() -> None:
        for _ in range(20):
            assert answers.acquire(timeout=20)

    with Crowd(8, buy):
        try:
            under_load()
            gunicorn.replace(signal.SIGTERM, gunicorn.workers[0])
            under_load()
            gunicorn.replace(signal.SIGKILL, *gunicorn.workers)
            under_load()
        finally:
            over.set()
    gunicorn.process.terminate()
    # A worker that has just been forked misses the signal; after 30 s it is killed.
    assert gunicorn.process.wait(60) == 0
    make_app()  # it removes what killed writers left
    records = saved()["reservations"]
    assert {key: r["partnerId"] for key, r in records.items()} == sold
    assert sorted(os.listdir(tmp_path)) == [".db.json.lock", "db.json"]
