"""What the tests of deployment share: servers in odd surroundings, and raw wires."""

from __future__ import annotations

import fcntl
import json
import socket
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import programs
from click.testing import CliRunner
from conftest import SEEDED, Server

import ticketboss

ORDER = {"partnerId": "abc-corp", "seats": 1}
PATIENCE_S = 30  # before a silent server counts as hanging
# Both of a program's clocks run ahead by as many seconds as a file has bytes.
CLOCK = """
import os, time
def ahead(clock, path=os.environ["CLOCK"]):
    return lambda: clock() + os.path.getsize(path)
time.time, time.monotonic = ahead(time.time), ahead(time.monotonic)
"""
# While a file is there, it holds the number of the error that ends each rename to
# db.json, as a mount of its own, a full disk or a missing right would end it.
REFUSED_RENAMES = """
import os
def refused(call):
    def rename(source, target, **more):
        if os.path.basename(target) == "db.json" and os.path.exists(os.environ["FLAG"]):
            number = int(open(os.environ["FLAG"]).read())
            raise OSError(number, os.strerror(number), source, None, target)
        return call(source, target, **more)
    return rename
os.replace, os.rename = refused(os.replace), refused(os.rename)
"""


def ended(
    folder: Path, *arguments: str, first: str = "", stdin: str = "", **env: str
) -> tuple[int, str, str]:
    """The exit status of a command, and what it printed."""
    done = programs.run(folder, *arguments, first=first, stdin=stdin, **env)
    return done.returncode, done.stdout, done.stderr


def ended_in_here(
    folder: Path, *arguments: str, stdin: str = "", **env: str
) -> tuple[int, str, str]:
    """As `ended`, for what a process of its own is not needed for."""
    with chdir(folder):
        ended = CliRunner().invoke(ticketboss.main, arguments, input=stdin, env=env)
    return ended.exit_code, ended.stdout, ended.stderr


class Launched(Server):
    """A server whose whole command line is given, and what runs before it."""

    def __init__(self, db: Path, *arguments: str, first: str = "", **env: str) -> None:
        self.db = db
        self.process = programs.start(db.parent, *arguments, first=first, **env)
        self._read_banner()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port


class Clock:
    """The clock of a server that was started with `CLOCK` as its `first`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clock"
        self.path.touch()

    def jump(self, seconds: int) -> None:
        """Let that much time pass."""
        with self.path.open("ab") as file:
            file.write(bytes(seconds))


class Wire:
    """A connection on which any bytes can be sent."""

    def __init__(
        self, address: tuple[str, int], sent: bytes = b"", *, buffer: int = 0
    ) -> None:
        self.socket = socket.socket(
            socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        )
        self.socket.settimeout(PATIENCE_S)
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.rest = b""
        try:
            self.socket.connect(address)
            self.send(sent)
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Wire:
        """Use it; closed at the end."""
        return self

    def __exit__(self, *failed: object) -> None:
        """Hang up."""
        self.socket.close()

    def send(self, sent: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(sent)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: its status, its headers (names in lower case), its body."""
        head = self._until(b"\r\n\r\n").decode("latin-1")
        first, *lines = head.splitlines()
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        status, length = int(first.split()[1]), int(headers.get("content-length", "0"))
        while len(self.rest) < length:
            self._more()
        body, self.rest = self.rest[:length], self.rest[length:]
        return status, headers, body

    def ask(self, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """The answer to a request with these lines."""
        lines = [head, "Host: localhost", f"Content-Length: {len(body)}", "", ""]
        self.send("\r\n".join(lines).encode("latin-1") + body)
        return self.answer()

    def is_dropped(self) -> bool:
        """Whether the server ends it, sooner or later, without a good answer."""
        with_an_error = b""
        try:
            while more := self.socket.recv(1 << 20):
                with_an_error += more[:99]
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return with_an_error == b"" or b" 408 " in with_an_error

    def _until(self, end: bytes) -> bytes:
        while end not in self.rest:
            self._more()
        found, self.rest = self.rest.split(end, 1)
        return found

    def _more(self) -> None:
        more = self.socket.recv(1 << 16)
        if not more:
            raise ConnectionResetError("the server hung up")
        self.rest += more


@contextmanager
def held(db: Path) -> Iterator[None]:
    """Hold the lock of a database, as another process that sells does."""
    with open(f"{db.parent}/.{db.name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def large(db: Path, records: int, width: int = 200) -> None:
    """Make a database of that many reservations, each of about `width` bytes."""
    document: dict[str, Any] = {
        "event": {
            "eventId": SEEDED,
            "name": "Node.js Meet-up",
            "totalSeats": records + 500,
            "availableSeats": 500,
            "version": records,
        },
        "reservations": {
            f"r{n}": {
                "reservationId": f"r{n}",
                "partnerId": "x" * (width - 150),
                "seats": 1,
                "status": "confirmed",
                "ts": "2025-01-01T00:00:00.000Z",
                "eventVersionAtReservation": n + 1,
            }
            for n in range(records)
        },
    }
    db.write_text(json.dumps(document))


def one_line(text: str, *words: str) -> None:
    """Assert that a text is one line, a usage before it aside, with these words."""
    assert "Traceback" not in text
    *usage, line = text.splitlines()
    assert not usage or usage[0].startswith("Usage: "), text
    for word in words:
        assert word in line, (word, text)


def assert_option_is_refused(option: str, value: str) -> None:
    """Assert that a value of an option stops the start in one line that names it.

    The port is taken, so that a start which goes on ends as well.
    """
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, err = ended_in_here(Path.cwd(), "--port", port, option, value)
    assert code in {1, 2}
    assert out == ""
    one_line(err, option)
