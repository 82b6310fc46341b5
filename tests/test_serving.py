"""How connections are served: the loop, its threads, and what is read and sent.

The first tests stand for the parts of waitress that are replaced: they fail where a
new version of it makes a replacement needless, or takes it out of use.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import waitress.adjustments
import waitress.channel
import waitress.parser
import waitress.server
import waitress.task
from conftest import wait_until
from programs import PROGRAM

import ticketboss

ORDER = b'{"partnerId":"abc-corp","seats":1}'
EVENT = b"GET /event HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIST = b"GET /reservations HTTP/1.1\r\nHost: localhost\r\n\r\n"
SELL = (
    b"POST /reservations HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Length: %d\r\n\r\n" % len(ORDER) + ORDER
)
TWO_LENGTHS = (
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
)
PATIENCE_S = 20
ROOMY = waitress.adjustments.Adjustments(max_request_header_size=2**20)


# --- What is parsed ----------------------------------------------------------


def blanks(number: int) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: a\r\nA:" + b" " * number + b"y\r\n\r\n"


def folded_blanks(number: int) -> bytes:
    line = b"\r\n" + b" " * 10
    return b"GET / HTTP/1.1\r\nHost: a\r\nA:" + line * (number // 10) + b"y\r\n\r\n"


def digits(number: int) -> bytes:
    return b"GET http://" + b"1" * number + b" x HTTP/1.1\r\nHost: a\r\n\r\n"


def growth(parser: type, head: Callable[[int], bytes], size: int) -> float:
    """How many times as long four times the head takes."""

    def quickest(text: bytes) -> float:
        times = []
        for _ in range(5):
            began = time.thread_time()
            parser(ROOMY).received(text)
            times.append(time.thread_time() - began)
        return min(times)

    return quickest(head(4 * size)) / quickest(head(size))


@pytest.mark.parametrize(
    ("head", "size"), [(blanks, 1000), (folded_blanks, 1000), (digits, 250)]
)
def test_unpatched_waitress_still_takes_quadratic_time_for_a_head(head, size):
    assert growth(waitress.parser.HTTPRequestParser, head, size) > 8


@pytest.mark.parametrize("head", [blanks, folded_blanks, digits])
def test_the_time_for_a_head_is_linear_in_its_length(head):
    assert growth(ticketboss.RequestParser, head, 50_000) < 8


def parsed(parser: type, head: bytes) -> Any:
    request = parser(ROOMY)
    request.received(head)
    if request.error:
        return request.error.code
    names = ("command", "request_uri", "version", "path", "query", "headers")
    return [getattr(request, name) for name in names]


def test_a_head_is_parsed_as_waitress_parses_it():
    rng = random.Random(1)
    pieces = [b" ", b"  ", b"\t", b"a", b"bc", b":", b"\r\n ", b"\r\n", b"\xe9", b'"']
    pieces += [b"\x00", b"\r", b"X-A:", b"\r\nB:", b"\r\nC: \t"]
    starts = [b"GET /a?b=c HTTP/1.1", b"GET  / HTTP/1.1", b"get / HTTP/1.1", b"GET /"]
    starts += [b"GET http://a/ HTTP/1.1 ", b"GET /a b HTTP/1.1", b"GET / HTTP/1", b"G"]
    understood = 0
    for _ in range(20_000):
        rest = b"".join(rng.choices(pieces, k=rng.randrange(9)))
        head = rng.choice(starts) + b"\r\nHost: a\r\nA:" + rest + b"\r\n\r\n"
        expected = parsed(waitress.parser.HTTPRequestParser, head)
        assert parsed(ticketboss.RequestParser, head) == expected, head
        understood += isinstance(expected, list)
    assert understood > 1000


# --- A server in this process, whose loop the test turns ---------------------


class Turned:
    """A server and its clients."""

    def __init__(self, app: Any) -> None:
        addresses = [(socket.AF_INET, "127.0.0.1")]
        self.server = ticketboss.Server(
            app, ticketboss.open_sockets("127.0.0.1", 0, addresses)
        )
        listening = self.server.listeners[0].socket
        # So that what the kernel keeps of an answer does not grow meanwhile.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        self.address = self.server.listeners[0].socket.getsockname()
        self.clients: list[socket.socket] = []

    def connect(self, sent: bytes = b"", buffer: int = 0) -> socket.socket:
        client = socket.socket()
        self.clients.append(client)
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.connect(self.address)
        client.sendall(sent)
        client.setblocking(False)
        before = len(self.server.connections())
        self.until(lambda: len(self.server.connections()) > before)
        return client

    def until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < deadline
            self.server.turn()

    def read(self, client: socket.socket, end: bytes) -> bytes:
        """What the server sends, until it ends like that."""
        got = bytearray()

        def more() -> bool:
            try:
                got.extend(client.recv(2**20))
            except BlockingIOError:
                return False
            return got.endswith(end)

        self.until(more)
        return bytes(got)

    def is_dropped(self, client: socket.socket) -> bool:
        """Whether the server ended it; what it had sent before does not count."""
        try:
            while client.recv(2**20):
                pass
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        return True

    def close(self) -> None:
        self.until(lambda: all(c.waits_for_client for c in self.server.connections()))
        self.server.wake = lambda: None  # a thread may be about to call it
        for client in self.clients:
            client.close()
        for channel in [*self.server.channels.values()]:
            channel.close()


@pytest.fixture
def turn(make_app: Callable[..., Any]) -> Iterator[Callable[..., Turned]]:
    """turn(**settings): a server, closed after the test."""
    turned: list[Turned] = []

    def turn(**settings: Any) -> Turned:
        turned.append(Turned(make_app(**settings)))
        return turned[-1]

    yield turn
    for one in turned:
        one.close()


def large(db: Path, records: int) -> None:
    """Make a database whose list is about 350 bytes for each record."""
    event = {
        "eventId": "node-meetup-2025",
        "name": "Node.js Meet-up",
        "totalSeats": records + 500,
        "availableSeats": 500,
        "version": records,
    }
    reservations = {
        f"r{n}": {
            "reservationId": f"r{n}",
            "partnerId": "x" * 200,
            "seats": 1,
            "status": "confirmed",
            "eventVersionAtReservation": n + 1,
        }
        for n in range(records)
    }
    db.write_text(json.dumps({"event": event, "reservations": reservations}))


# --- What is refused before Flask sees it ------------------------------------


@pytest.mark.parametrize(
    ("sent", "status", "text"),
    [
        (b"GET /event HTTP/1.1\r\n\r\n", 400, "HTTP/1.1 requires a Host header"),
        (b"GET / HTTP/1.1 x\r\nHost: a\r\n\r\n", 400, "Start line is invalid"),
        (b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "Invalid request: .*"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: "
            + b"1" * 5000
            + b"\r\n\r\n",
            400,
            "Invalid request: .*",
        ),
        (
            TWO_LENGTHS,
            400,
            "The length of the body is ambiguous",
        ),
        (
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "The length of the body is ambiguous",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            400,
            "Invalid chunk size",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: zip\r\n\r\n",
            501,
            "Transfer-Encoding requested is not supported.",
        ),
        (
            b"GET / HTTP/1.1\r\nA:" + b"y" * 16_384,
            431,
            "The headers are larger than 16 KiB.",
        ),
    ],
)
def test_a_malformed_request_is_refused_in_json(turn, sent, status, text, capfd):
    served = turn()
    client = served.connect(sent)
    head, _, body = served.read(client, b"}\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.%c %d " % (head[7], status))
    assert b"Content-Type: application/json" in head
    assert re.fullmatch(text, json.loads(body)["error"])
    served.until(lambda: served.is_dropped(client))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("sent", "status", "allowed"),
    [
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 204, b""),
        (
            b"TRACE /event HTTP/1.1\r\nHost: localhost\r\nIf-Match: x\r\n\r\n",
            405,
            b"GET",
        ),
        (b"GET /event HTTP/1.0\r\n\r\n", 200, b""),
    ],
    ids=["about the server", "a method that no route has", "an old client"],
)
def test_a_request_without_a_route_of_its_own_is_answered(turn, sent, status, allowed):
    served = turn()
    client = served.connect(sent)
    head = served.read(client, b"\n")
    assert b" %d " % status in head.splitlines()[0]
    assert allowed in head


# --- What is sent ------------------------------------------------------------


def test_the_head_and_the_body_of_an_answer_are_sent_in_one_piece(turn, monkeypatch):
    pieces = []

    def send(connection: Any, data: bytes, **more: Any) -> Any:
        pieces.append(data)
        return really_send(connection, data, **more)

    really_send = ticketboss.Connection.send
    monkeypatch.setattr(ticketboss.Connection, "send", send)
    served = turn()
    served.read(served.connect(EVENT), b"}\n")
    [piece] = pieces
    assert piece.startswith(b"HTTP/1.1 200 OK\r\n")
    assert piece.endswith(b'"version":0}\n')


def test_pipelined_requests_are_answered_in_order(turn, saved):
    served = turn()
    client = served.connect(EVENT + SELL + EVENT + SELL + LIST)
    got = served.read(client, b"]\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [
        b"200",
        b"201",
        b"200",
        b"201",
        b"200",
    ]
    assert re.findall(rb'"version":(\d+)', got) == [b"0", b"1"]
    assert saved()["event"]["version"] == 2


def test_an_answer_is_sent_while_the_next_one_is_made(turn, db):
    served = turn()
    with ticketboss.Store(str(db)).lock():
        client = served.connect(EVENT + SELL)
        assert served.read(client, b'"version":0}\n').startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 201 " in served.read(client, b"}\n")


def test_a_client_that_reads_nothing_has_one_answer_waiting_at_a_time(turn, db):
    large(db, 60_000)  # more than waitress's mark, above which it waits
    served = turn()
    clients = [served.connect(LIST * 100, buffer=4096) for _ in range(3)]
    other = served.connect(EVENT)
    served.read(other, b"\n")
    served.until(lambda: all(c.is_parked for c in served.server.connections()[:3]))
    assert next(served.server.app.served) == 4
    for connection in served.server.connections()[:3]:
        connection.progress_at -= ticketboss.UNREAD_S + 1
    served.until(lambda: len(served.server.connections()) == 1)
    assert all(served.is_dropped(client) for client in clients)
    assert not served.is_dropped(other)


def test_the_answers_that_wait_for_their_readers_share_one_bound(turn, db, monkeypatch):
    large(db, 20_000)
    served = turn()
    clients = [served.connect(LIST, buffer=4096) for _ in range(3)]
    told: list[int] = [0]

    def is_stuck() -> bool:
        connections = served.server.connections()
        told.append(sum(connection.total_outbufs_len for connection in connections))
        is_made = all(c.total_outbufs_len and not c.requests for c in connections)
        return is_made and len(set(told[-4:])) == 1

    served.until(is_stuck)
    kept = served.server.connections()
    kept[1].progress_at -= 5
    unread = sum(connection.total_outbufs_len for connection in kept)
    monkeypatch.setattr(ticketboss, "MAX_UNREAD_BYTES", unread * 3 // 4)
    served.until(lambda: len(served.server.connections()) == 2)
    assert [served.is_dropped(client) for client in clients] == [False, True, False]


def test_a_large_answer_is_not_kept_once_it_is_sent(turn, db):
    large(db, 5000)
    served = turn()
    client = served.connect(LIST)
    assert served.read(client, b"]\n").count(b'"reservationId"') == 5000
    [connection] = served.server.connections()
    served.until(lambda: not connection.requests)
    assert [len(buffer) for buffer in connection.outbufs] == [0]
    assert connection.outbufs[0].buf is None
    client.sendall(EVENT)
    assert served.read(client, b"\n").startswith(b"HTTP/1.1 200 ")


# --- Connections -------------------------------------------------------------


def test_when_descriptors_run_out_the_longest_idle_connections_are_closed(
    turn, monkeypatch, caplog
):
    served = turn()
    clients = [served.connect() for _ in range(3)]
    served.server.connections()[1].progress_at -= 1
    real = waitress.server.TcpWSGIServer.accept

    def accept(listener: Any) -> Any:
        if len(served.server.connections()) >= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(listener)

    monkeypatch.setattr(waitress.server.TcpWSGIServer, "accept", accept)
    newcomer = socket.socket()
    served.clients.append(newcomer)
    newcomer.connect(served.address)
    newcomer.sendall(EVENT)
    newcomer.setblocking(False)
    assert served.read(newcomer, b"\n").startswith(b"HTTP/1.1 200 ")
    assert [served.is_dropped(client) for client in clients] == [True, True, False]
    assert caplog.text.count("connections are in use") == 1


# --- Threads that answer -----------------------------------------------------


class Task:
    """What a worker sees of a connection."""

    def __init__(self, method: str, work: Callable[[], None]) -> None:
        request = type("Request", (), {"command": method})()
        self.requests, self.service, self.server = [request], work, self
        self.cancelled, self.total_outbufs_len = False, 0

    def cancel(self) -> None:
        self.cancelled = True

    def pull_trigger(self) -> None:
        pass


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_reads_are_answered_while_all_changes_wait(method):
    workers, gate, read = ticketboss.Workers(), threading.Event(), threading.Event()
    begun = threading.Semaphore(0)

    def change() -> None:
        begun.release()
        gate.wait(PATIENCE_S)

    for number in range(200):
        verb = ["POST", "PUT", "PATCH", "DELETE"][number % 4]
        workers.add_task(Task(verb, change))
    for _ in range(ticketboss.CHANGE_THREADS):
        assert begun.acquire(timeout=PATIENCE_S)
    workers.add_task(Task(method, read.set))
    assert read.wait(PATIENCE_S)
    gate.set()
    for _ in range(200 - ticketboss.CHANGE_THREADS):
        assert begun.acquire(timeout=PATIENCE_S)


def test_an_exception_in_an_answer_ends_no_thread(caplog):
    workers, read = ticketboss.Workers(), threading.Event()

    def fail() -> None:
        raise SystemExit

    failing = [Task("GET", fail) for _ in range(2 * ticketboss.READ_THREADS)]
    for task in failing:
        workers.add_task(task)
    workers.add_task(Task("GET", read.set))
    assert read.wait(PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while not all(task.cancelled for task in failing):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert caplog.text.count("A request was not answered") == len(failing)


# --- How it ends -------------------------------------------------------------


def test_a_shutdown_that_cut_no_answer_reports_no_cut(turn):
    served = turn()
    client = served.connect(EVENT)
    served.read(client, b"\n")
    assert served.server.finish() == 0
    assert served.server.connections()[0].requests == []


def heard(process: subprocess.Popen[str], how: signal.Signals) -> bool:
    """Whether a process handles a signal itself."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = re.search(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)[1]
    return bool(int(caught, 16) >> (how - 1) & 1)


def ending(server: Any, how: signal.Signals) -> None:
    """Send it the first signal, while an order is under way."""
    parts = server.url.removeprefix("http://").rpartition(":")
    client = socket.create_connection((parts[0], int(parts[2])))
    client.sendall(SELL)
    for _ in range(3):
        assert server.ask("GET", "/event")[0] == 200
    server.process.send_signal(how)
    deadline = time.monotonic() + PATIENCE_S
    while heard(server.process, how):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert server.process.poll() is None
    client.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_that_has_answered_keeps_no_file_that_was_replaced(serve):
    server = serve()

    def replaced_files() -> list[str]:
        paths = []
        for each in Path(f"/proc/{server.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                paths.append(os.readlink(each))
        return [path for path in paths if path.endswith("(deleted)")]

    for number in range(3):
        sale = {"partnerId": f"p{number}", "seats": 1}
        assert server.ask("POST", "/reservations", sale)[0] == 201
        wait_until(lambda: not replaced_files())


@pytest.mark.parametrize(
    ("first", "second"),
    [("SIGTERM", "SIGINT"), ("SIGHUP", "SIGTERM"), ("SIGINT", "SIGTERM")],
)
def test_a_second_signal_of_another_kind_ends_the_server_at_once(
    serve, saved, first, second
):
    server = serve("--think", "60s")
    ending(server, signal.Signals[first])
    server.process.send_signal(signal.Signals[second])
    assert server.process.wait(PATIENCE_S) == -signal.Signals[second]
    assert saved()["reservations"] == {}


def test_a_second_sighup_does_not_cut_the_shutdown_short(serve, saved):
    server = serve("--think", "2s")
    ending(server, signal.SIGHUP)
    server.process.send_signal(signal.SIGHUP)
    assert server.process.wait(PATIENCE_S) == 0
    assert len(saved()["reservations"]) == 1


# --- Where it listens --------------------------------------------------------


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(ticketboss.click.ClickException) as refused:
        work()
    return refused.value.format_message()


def test_an_unknown_host_is_refused_in_one_line():
    text = refusal(lambda: ticketboss.addresses_of("nosuch.invalid"))
    assert text == "Cannot listen on nosuch.invalid: name not known. Check --host."


@pytest.mark.parametrize(
    ("address", "is_taken", "reason"),
    [
        ("127.0.0.1", True, "address already in use. Check --port."),
        ("192.0.2.1", False, "cannot assign requested address. Check --host."),
    ],
)
def test_an_address_that_cannot_be_bound_is_refused_in_one_line(
    address, is_taken, reason
):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1] if is_taken else 0
        places = [(socket.AF_INET, address)]
        text = refusal(lambda: ticketboss.open_sockets("box", port, places))
    assert text == f"Cannot listen on box, port {port}: {reason}"


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("localhost", True),
        ("127.1", True),
        ("127.0.0.2", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("*", False),
        ("192.0.2.1", False),
    ],
)
def test_the_bound_addresses_decide_whether_a_server_is_loopback_only(
    host, is_loopback
):
    assert ticketboss.are_loopback(ticketboss.addresses_of(host)) == is_loopback


# --- Memory ------------------------------------------------------------------

ARENAS = """
import ctypes, threading
import ticketboss
ticketboss.limit_arenas()
gate = threading.Barrier(33)
def work():
    gate.wait()
    kept = [bytes(1000) for _ in range(1000)]
    gate.wait()
threads = [threading.Thread(target=work) for _ in range(32)]
for thread in threads:
    thread.start()
gate.wait()
gate.wait()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is not glibc")
def test_all_threads_share_a_few_arenas():
    assert hasattr(ctypes.CDLL(None), "mallopt")
    said = subprocess.run(
        [sys.executable, "-c", ARENAS],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(PROGRAM.parent)},
    ).stdout
    assert 1 <= said.count("<heap nr=") <= ticketboss.ARENAS
