"""How fast TicketBoss is, beside what is possible and what one would write instead.

    python tests/bench.py

All in one run, in turns, with one client; medians, whose ratios alone mean something
elsewhere. Let TMPDIR be on the disk you mean: on a RAM disk every fsync is free.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import selectors
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from urllib.request import urlretrieve

import flask
import waitress

PROGRAM = str(Path(__file__).resolve().parent.parent / "ticketboss.py")
CLIENTS, SEATS, READS, LISTS, ROUNDS = 32, 500, 1000, 250, 5
SIZES, SIZE_ROUNDS = (100, 1_000, 10_000, 50_000), 15
HOST, AT = "127.0.0.1", "2025-10-28T13:45:00.853Z"
LENGTH = re.compile(rb"\r\nContent-Length: (\d+)", re.IGNORECASE)
GET_EVENT = b"GET /event HTTP/1.1\r\nHost: localhost\r\n\r\n"
GET_LIST = b"GET /reservations HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = (
    b"POST /reservations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 34\r\n\r\n"
    b'{"partnerId":"abc-corp","seats":1}'
)
LOADS = ("POST", POST, SEATS), ("GET", GET_EVENT, READS), ("list", GET_LIST, LISTS)
found: dict[str, list[float]] = defaultdict(list)


def bare_app(app: flask.Flask, folder: str) -> None:
    """Do nothing: answer with bytes that TicketBoss left in `folder`."""
    event, records = (Path(folder, name).read_bytes() for name in ("GET", "list"))
    sold = b'{"reservationId":"%s","seats":1,"status":"confirmed"}' % (b"x" * 36)
    app.get("/event")(lambda: flask.Response(event))
    app.get("/reservations", endpoint="list")(lambda: flask.Response(records))
    app.post("/reservations", endpoint="sell")(lambda: flask.Response(sold, 201))


def sqlite_app(app: flask.Flask, folder: str, lock: object = None) -> None:
    """Sell over SQLite; its writers wait in it, or in line at `lock`."""
    own = threading.local()

    def db() -> sqlite3.Connection:
        if not hasattr(own, "db"):
            own.db = sqlite3.connect(f"{folder}/db", timeout=30, isolation_level=None)
            own.db.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
        return own.db

    db().executescript(f"""CREATE TABLE event (name, total, available, version);
        INSERT INTO event VALUES ('Node.js Meet-up', {SEATS}, {SEATS}, 0);
        CREATE TABLE reservation (id PRIMARY KEY, partner, seats, status, ts, at)""")
    app.get("/event")(lambda: list(db().execute("SELECT * FROM event").fetchone()))

    @app.post("/reservations")
    def sell() -> object:
        order, new = flask.request.get_json(force=True), str(uuid.uuid4())
        with lock or nullcontext(), db() as tx:
            tx.execute("BEGIN IMMEDIATE")
            _, _, left, version = tx.execute("SELECT * FROM event").fetchone()
            if left < order["seats"]:
                return {"error": "Not enough seats left"}, 409
            tx.execute(
                "UPDATE event SET available = ?, version = version + 1",
                [left - order["seats"]],
            )
            tx.execute(
                "INSERT INTO reservation VALUES (?, ?, ?, 'confirmed', ?, ?)",
                [new, order["partnerId"], order["seats"], time.time(), version + 1],
            )
        return {"reservationId": new, "seats": order["seats"], "status": "sold"}, 201


def serve(which: str, folder: str) -> None:
    """Serve one of these, as ticketboss.py does it, with as many threads."""
    app = flask.Flask(__name__)
    {
        "bare": bare_app,
        "SQLite": sqlite_app,
        "SQLite, locked": lambda *args: sqlite_app(*args, threading.Lock()),
    }[which](app, folder)
    threads = int(re.search(r"threads=(\d+)", Path(PROGRAM).read_text())[1])
    server = waitress.create_server(
        app,
        host=HOST,
        port=0,
        threads=threads,
        connection_limit=900,
        asyncore_use_poll=True,
        clear_untrusted_proxy_headers=False,
    )
    print(f"http://{HOST}:{server.effective_port}", flush=True)
    logging.disable()
    server.run()


def commit_each(path: str) -> float:
    """Sales per second, each a commit of its own, with nothing around it."""
    sys.path.insert(0, os.path.dirname(PROGRAM))
    import ticketboss as t  # noqa: PLC0415 -- here alone; the rest sees it from outside

    store = t.Store(path)
    store.open(SEATS)
    began = time.perf_counter()
    for _ in range(SEATS):
        seen, new = store.load(), str(uuid.uuid4())
        document = t.reserve(
            seen.database.document(None),
            t.Reservation(new, "abc-corp", 1, "waitlisted", ts=AT),
        )
        assert store.swap(seen, seen.database.with_document(document))
    return SEATS / (time.perf_counter() - began)


def write_alone(path: str, data: bytes) -> float:
    """Seconds to replace a file durably, with no more calls than that takes."""
    began = time.perf_counter()
    with open(f"{path}.new", "wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    return time.perf_counter() - began


def rate(port: int, request: bytes, total: int) -> float:
    """Answers a second to keep-alive clients. As little work as can be is theirs."""
    with ExitStack() as stack:
        ready = stack.enter_context(selectors.DefaultSelector())
        for _ in range(min(CLIENTS, total)):
            at = stack.enter_context(socket.create_connection((HOST, port)))
            ready.register(at, selectors.EVENT_READ, bytearray())
        began, left, unsent = time.perf_counter(), total, total - len(ready.get_map())
        for key in ready.get_map().values():
            key.fileobj.sendall(request)
        while left:
            for key, _ in ready.select(30) or sys.exit("No answer for 30 seconds"):
                (got := key.data).extend(key.fileobj.recv(1 << 20) or sys.exit("Gone"))
                end = got.find(b"\r\n\r\n") + 4
                if end < 4 or len(got) < end + int(LENGTH.search(got)[1]):
                    continue
                assert got[9:12] == (b"201" if request is POST else b"200"), got
                got.clear()
                left, unsent = left - 1, unsent - 1
                if unsent >= 0:
                    key.fileobj.sendall(request)
        return total / (time.perf_counter() - began)


@contextmanager
def running(*command: str) -> Iterator[tuple[int, int, float]]:
    """Start a server: its port, its process, the time to its first answer. End it."""
    began = time.perf_counter()
    with subprocess.Popen((sys.executable, *command), stdout=subprocess.PIPE) as it:
        try:
            lines = (re.search(rb"http://\S+:(\d+)", line) for line in it.stdout)
            port = int(next(filter(None, lines))[1])
            rate(port, GET_EVENT, 1)
            first_answer = time.perf_counter() - began
            rate(port, GET_EVENT, 3 * CLIENTS)  # warm
            yield port, it.pid, first_answer
        finally:
            it.kill()


def measure_once() -> None:
    """Each variant once, on fresh files."""
    with tempfile.TemporaryDirectory() as folder:
        with running(PROGRAM, "--quiet", "--port=0", f"--db={folder}/db.json") as (
            port,
            process,
            first_answer,
        ):
            found["first answer"].append(first_answer)
            for name, request, total in LOADS:
                found[name].append(rate(port, request, total))
            memory = subprocess.check_output(["ps", "-o", "rss=", "-p", f"{process}"])
            found["memory"].append(int(memory) / 1024)
            urlretrieve(f"http://{HOST}:{port}/event", f"{folder}/GET")
            urlretrieve(f"http://{HOST}:{port}/reservations", f"{folder}/list")
            with open(f"{folder}/.db.json.lock", "rb") as lock, ExitStack() as stack:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for _ in range(CLIENTS):
                    writer = socket.create_connection((HOST, port))
                    stack.enter_context(writer).sendall(POST)
                found["GET, locked"].append(rate(port, GET_EVENT, READS))
        with running(__file__, "bare", folder) as (port, *_):
            for name, request, total in LOADS:
                found[f"bare {name}"].append(rate(port, request, total))
        for name in "SQLite", "SQLite, locked":
            with (
                tempfile.TemporaryDirectory() as other,
                running(__file__, name, other) as (port, *_),
            ):
                found[name].append(rate(port, POST, SEATS))
        found["commit each"].append(commit_each(f"{folder}/each.json"))
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import flask, waitress"], check=True)
    found["import"].append(time.perf_counter() - began)


def measure_sizes() -> None:
    """One sale beside others of each number; and the bare write of such a file."""
    with ExitStack() as stack:
        servers = {}
        for size in SIZES:
            path = f"{stack.enter_context(tempfile.TemporaryDirectory())}/db.json"
            event = {
                "eventId": "node-meetup-2025",
                "name": "Node.js Meet-up",
                "totalSeats": 2 * size,
                "availableSeats": size,
                "version": size,
            }
            one = {"partnerId": "abc-corp", "seats": 1, "status": "confirmed", "ts": AT}
            sold = {
                key: {"reservationId": key, **one}
                for key in (f"{n:036}" for n in range(size))
            }
            Path(path).write_text(json.dumps({"event": event, "reservations": sold}))
            command = PROGRAM, "--quiet", "--port=0", f"--db={path}"
            servers[size] = path, stack.enter_context(running(*command))[0]
        for _ in range(SIZE_ROUNDS):
            for size, (path, port) in servers.items():
                found[f"sale {size}"].append(1 / rate(port, POST, 1))
                data = Path(path).read_bytes()
                found[f"write {size}"].append(write_alone(f"{path}.bare", data))


def main() -> None:
    """Measure all, and print the table."""
    for _ in range(ROUNDS):
        measure_once()
    measure_sizes()
    m = {name: median(figures) for name, figures in found.items()}
    most = max(4, 1.6 * m["write 10000"] / m["write 100"])
    rows = [
        ("POST: a bare app", "POST", "bare POST", "0.5 or more"),
        ("POST: a commit for each sale", "POST", "commit each", "2 or more"),
        ("POST: an app over SQLite", "POST", "SQLite", "1.5 or more"),
        ("  its writers in line at a lock", "POST", "SQLite, locked", ""),
        ("GET /event: a bare app", "GET", "bare GET", "0.85 or more"),
        ("  while orders wait", "GET, locked", "bare GET", "0.85 or more"),
        ("GET /reservations: a bare app", "list", "bare list", ""),
        ("first answer, s: the imports", "first answer", "import", "3 or less"),
    ]
    for size in SIZES:
        goal = f"{most:.1f} or less" if size == 10_000 else ""
        rows += [
            (f"a sale at {size:,}, s: at 100", f"sale {size}", "sale 100", goal),
            ("  the write alone", f"sale {size}", f"write {size}", ""),
        ]
    table = "{:34}{:>11}{:>10}{:>7}  {}".format
    print(table("answers a second", "TicketBoss", "other", "ratio", "goal"))
    for label, ours, other, goal in rows:
        ratio = f"{m[ours] / m[other]:.2f}"
        print(table(label, f"{m[ours]:.4g}", f"{m[other]:.4g}", ratio, goal).rstrip())
    print(table("memory at 500 records, MB", f"{m['memory']:.0f}", "", "", "under 80"))


if __name__ == "__main__":
    serve(*sys.argv[1:]) if sys.argv[1:] else main()
