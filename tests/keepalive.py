"""What the tests with many clients share: connections that are kept, and crowds."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: Any  # parsed
    headers: http.client.HTTPMessage

    @property
    def version(self) -> int:
        """The event's version, from the ETag."""
        return int(self.headers["ETag"].strip('"'))


class Client:
    """One client, on one connection that it keeps."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)

    def __enter__(self) -> Client:
        """Use it; closed at the end."""
        return self

    def __exit__(self, *failed: object) -> None:
        """Hang up."""
        self.connection.close()

    def send(self, method: str, path: str, body: object = None, **headers: str) -> None:
        """Ask, and do not wait for the answer."""
        data = None if body is None else json.dumps(body).encode()
        self.connection.request(
            method,
            path,
            data,
            {name.replace("_", "-"): value for name, value in headers.items()},
        )

    def receive(self) -> Answer:
        """The answer; raises OSError or HTTPException if the server is gone."""
        answer = self.connection.getresponse()
        raw = answer.read()
        return Answer(answer.status, json.loads(raw) if raw else None, answer.headers)

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> Answer:
        """Both."""
        self.send(method, path, body, **headers)
        return self.receive()


GONE = (OSError, http.client.HTTPException)  # what a killed server's clients see


class Crowd:
    """`size` threads that begin together, each at `work(number)`; ends as a `with`.

    What one of them raises is raised at the end, as if it had been called.
    """

    def __init__(self, size: int, work: Callable[[int], None]) -> None:
        self.failures: list[BaseException] = []
        self.gate = threading.Barrier(size)
        self.threads = [
            threading.Thread(target=self._run, args=(work, number))
            for number in range(size)
        ]

    def __enter__(self) -> Crowd:
        """Begin."""
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *failed: object) -> None:
        """Wait for all of them."""
        for thread in self.threads:
            thread.join(timeout=600)
        if self.failures:
            raise self.failures[0]
        assert not any(thread.is_alive() for thread in self.threads)

    def _run(self, work: Callable[[int], None], number: int) -> None:
        try:
            self.gate.wait(30)
            work(number)
        except BaseException as failure:
            self.failures.append(failure)
