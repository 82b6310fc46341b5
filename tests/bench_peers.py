"""What bench.py compares TicketBoss with, each served by waitress.

    python tests/bench_peers.py bare --threads 4 --send-bytes 18000

`bare` answers with fixed bytes, `sqlite` sells over SQLite, `responder` is no HTTP
server at all: it shows how fast the clients are.
"""

from __future__ import annotations

import argparse
import json
import logging
import selectors
import socket
import sqlite3
import threading
import uuid
from datetime import UTC, datetime

import flask
import waitress

EVENT = {
    "eventId": "node-meetup-2025",
    "name": "Node.js Meet-up",
    "totalSeats": 500,
    "availableSeats": 500,
    "reservationCount": 0,
    "version": 0,
}
TABLES = """
CREATE TABLE event (total, available, version);
CREATE TABLE reservation (id PRIMARY KEY, partner, seats, status, ts, version);
"""


def bare_app(records: int) -> flask.Flask:
    """An app that does nothing: it answers with the same bytes each time."""
    app = flask.Flask(__name__)
    event = json.dumps(EVENT).encode()
    sold = json.dumps(sale_json(str(uuid.uuid4()), 1)).encode()
    listed = json.dumps([reservation_json(n) for n in range(records)]).encode()

    @app.get("/event")
    def show_event() -> flask.Response:
        return flask.Response(event, content_type="application/json")

    @app.get("/reservations")
    def list_reservations() -> flask.Response:
        return flask.Response(listed, content_type="application/json")

    @app.post("/reservations")
    def sell() -> flask.Response:
        return flask.Response(sold, 201, content_type="application/json")

    return app


def sale_json(reservation_id: str, seats: int) -> dict[str, object]:
    """The answer to a sale."""
    return {"reservationId": reservation_id, "seats": seats, "status": "confirmed"}


def reservation_json(number: int) -> dict[str, object]:
    """A reservation as TicketBoss stores and lists it."""
    return {
        "reservationId": str(uuid.UUID(int=number)),
        "partnerId": "abc-corp",
        "seats": 1,
        "status": "confirmed",
        "ts": "2025-10-28T13:45:00.853Z",
        "eventVersionAtReservation": number + 1,
    }


def sqlite_app(path: str) -> flask.Flask:
    """An app with two of the routes over SQLite, in its best configuration.

    Writers stand in line at a mutex, as SQLite itself lets them poll.
    """
    app = flask.Flask(__name__)
    connections, write_lock = ThreadConnections(path), threading.Lock()
    connection = connections.get()
    connection.executescript(TABLES)
    connection.execute("INSERT INTO event VALUES (?, ?, 0)", [EVENT["totalSeats"]] * 2)

    @app.get("/event")
    def show_event() -> flask.Response:
        query = "SELECT total, available, version FROM event"
        total, available, version = connections.get().execute(query).fetchone()
        facts = {
            "availableSeats": available,
            "reservationCount": total - available,
            "version": version,
        }
        body = json.dumps(EVENT | facts)
        return flask.Response(body, content_type="application/json")

    @app.post("/reservations")
    def sell() -> flask.Response:
        order = flask.request.get_json(force=True)
        with write_lock:
            sale = sell_in_sqlite(connections.get(), order)
        status = 201 if sale else 409
        body = json.dumps(sale or {"error": "Not enough seats left"})
        return flask.Response(body, status, content_type="application/json")

    return app


class ThreadConnections:
    """A connection for each thread, whose commits are on the disk when they return."""

    def __init__(self, path: str) -> None:
        self.path, self.thread = path, threading.local()

    def get(self) -> sqlite3.Connection:
        """The connection of this thread."""
        if not hasattr(self.thread, "connection"):
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self.thread.connection = connection
        return self.thread.connection


def sell_in_sqlite(
    connection: sqlite3.Connection, order: dict[str, object]
) -> dict[str, object] | None:
    """Sell in one transaction; None if there are too few seats."""
    reservation_id = str(uuid.uuid4())
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        available, version = connection.execute(
            "SELECT available, version FROM event"
        ).fetchone()
        if available < order["seats"]:
            return None
        connection.execute(
            "UPDATE event SET available = ?, version = ?",
            [available - order["seats"], version + 1],
        )
        connection.execute(
            "INSERT INTO reservation VALUES (?, ?, ?, 'confirmed', ?, ?)",
            [
                reservation_id,
                order["partnerId"],
                order["seats"],
                datetime.now(UTC).isoformat(),
                version + 1,
            ],
        )
    return sale_json(reservation_id, order["seats"])


def serve(app: flask.Flask, threads: int, send_bytes: int) -> None:
    """Serve an app with waitress, until the process is killed."""
    logging.disable()
    server = waitress.create_server(
        app,
        host="127.0.0.1",
        port=0,
        threads=threads,
        send_bytes=send_bytes,
        connection_limit=900,
        asyncore_use_poll=True,
    )
    print(f"http://127.0.0.1:{server.effective_port}", flush=True)
    server.run()


def respond() -> None:
    """Send the same bytes for whatever comes, without reading it."""
    body = json.dumps(EVENT).encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        poller = selectors.DefaultSelector()
        poller.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in poller.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    poller.register(connection, selectors.EVENT_READ)
                    continue
                try:
                    is_open = bool(key.fileobj.recv(1 << 16))
                    key.fileobj.send(answer if is_open else b"")
                except ConnectionError:  # the client hung up before its answer came
                    is_open = False
                if not is_open:
                    poller.unregister(key.fileobj)
                    key.fileobj.close()


def main() -> None:
    """Serve what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["bare", "sqlite", "responder"])
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--send-bytes", type=int, default=1)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--db", default="bench.sqlite")
    options = parser.parse_args()
    if options.kind == "responder":
        respond()
    elif options.kind == "bare":
        serve(bare_app(options.records), options.threads, options.send_bytes)
    else:
        serve(sqlite_app(options.db), options.threads, options.send_bytes)


if __name__ == "__main__":
    main()
