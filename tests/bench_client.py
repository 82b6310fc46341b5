"""The clients of bench.py: as little work as can be is theirs."""

from __future__ import annotations

import re
import resource
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from math import inf
from typing import NamedTuple

HOST = "127.0.0.1"
CLIENTS = 32
WRK = shutil.which("wrk")
SILENCE_S = 30
CONTENT_LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)
SALE = b'{"partnerId":"abc-corp","seats":1}'


def get(path: str) -> bytes:
    """A GET request, as bytes."""
    return b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode()


def post_sale() -> bytes:
    """An order of one seat, as bytes."""
    head = (
        b"POST /reservations HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    )
    return head % len(SALE) + SALE


class Load(NamedTuple):
    """What some clients did."""

    answers: int
    elapsed_s: float
    client_cpu_s: float  # how long the clients themselves kept a core busy


class Connection:
    """One client: it sends the same request again and again, and reads the answers."""

    def __init__(
        self, port: int, request: bytes, poller: selectors.BaseSelector
    ) -> None:
        self.port, self.request, self.poller = port, request, poller
        self.expected = b" 201 " if request.startswith(b"POST") else b" 200 "
        self.connect()

    def connect(self) -> None:
        """Open a connection."""
        self.answer = bytearray()
        self.length = 0  # of the answer, once its head has come
        self.socket = socket.create_connection((HOST, self.port))
        self.poller.register(self.socket, selectors.EVENT_READ, self)

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def send(self) -> None:
        """Ask. Connect again where the server has hung up after its last answer."""
        if b"\r\nconnection: close" in self.answer.lower():
            self.poller.unregister(self.socket)
            self.close()
            self.connect()
        self.answer.clear()
        self.length = 0
        self.socket.sendall(self.request)

    def is_answered(self) -> bool:
        """Read what has come; True when the answer is complete."""
        part = self.socket.recv(1 << 16)
        assert part, f"The server hung up: {bytes(self.answer)!r}"
        self.answer += part
        if not self.length:
            end_of_head = self.answer.find(b"\r\n\r\n") + 4
            body_length = CONTENT_LENGTH.search(self.answer, 0, end_of_head)
            if end_of_head < 4 or body_length is None:
                return False
            assert self.expected in self.answer[:16], bytes(self.answer)
            self.length = end_of_head + int(body_length[1])
        return len(self.answer) >= self.length


def run_clients(
    ports: Sequence[int],
    request: bytes,
    *,
    clients: int = CLIENTS,
    total: float = inf,
    seconds: float = inf,
) -> Load:
    """Send `total` requests, or as many as `seconds` allow, from keep-alive clients.

    The clients take the ports in turn.
    """
    crowd = int(min(clients, total))
    answers, unsent = 0, total - crowd
    with ExitStack() as stack:
        poller = stack.enter_context(selectors.DefaultSelector())
        connections = [
            Connection(ports[number % len(ports)], request, poller)
            for number in range(crowd)
        ]
        for connection in connections:
            stack.callback(connection.close)
        began, cpu_before = time.perf_counter(), time.process_time()
        for connection in connections:
            connection.send()
        while answers < total and time.perf_counter() < began + seconds:
            ready = poller.select(SILENCE_S)
            assert ready, f"No answer for {SILENCE_S} seconds"
            for key, _ in ready:
                if not key.data.is_answered():
                    continue
                answers += 1
                if unsent > 0:
                    key.data.send()
                    unsent -= 1
                else:
                    poller.unregister(key.fileobj)
                    key.data.close()  # gunicorn waits for it
        elapsed = time.perf_counter() - began
        return Load(answers, elapsed, time.process_time() - cpu_before)


def run_wrk(port: int, path: str, seconds: int) -> Load:
    """The same with wrk, which is written in C."""
    cpu_before = _children_cpu_s()
    report = subprocess.run(
        [WRK, "-t1", f"-c{CLIENTS}", f"-d{seconds}s", f"http://{HOST}:{port}{path}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "Non-2xx" not in report, report
    assert "Socket errors" not in report, report
    rate = float(re.search(r"Requests/sec: *([\d.]+)", report)[1])
    answers = int(re.search(r"(\d+) requests in", report)[1])
    return Load(answers, answers / rate, _children_cpu_s() - cpu_before)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
