"""A PostgreSQL server of our own: on a socket in a temporary folder, ended by its id.

The programs come with `apt-get install postgresql`. Root may not run them, so they run
as the user who comes with them.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

import ticketboss

try:
    import psycopg
except ImportError:
    psycopg = None

FOUND = [
    *filter(None, [shutil.which("initdb")]),
    *sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb")),
]
BINARIES = os.environ.get("TICKETBOSS_TESTS_POSTGRESQL") or os.path.dirname(
    (FOUND or [""])[-1]
)
OWNER = "postgres" if os.geteuid() == 0 else None


def missing() -> str:
    """Why the tests of the SQL store cannot run here; nothing if they can."""
    if psycopg is None:
        return "no psycopg (pip install 'psycopg[binary]')"
    return "" if BINARIES else "no PostgreSQL (apt-get install postgresql)"


def require() -> None:
    """Skip the test where there is no PostgreSQL; fail where it is insisted on."""
    if why := missing():
        insists = os.environ.get("TICKETBOSS_TESTS_INSIST")
        (pytest.fail if insists else pytest.skip)(f"The SQL store is not tested: {why}")


class Postgres:
    """One server, that can be killed and started again."""

    unused: tempfile.TemporaryDirectory[str] | None = None  # data to copy

    def __init__(self, *options: str, like: Postgres | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tb-pg-"))
        self.data = self.folder / "data"
        self.options = options
        if OWNER:
            shutil.chown(self.folder, OWNER)
        if like is None:
            self.create()
        else:
            self.copy(like)
        self.start()

    def create(self) -> None:
        """Make its data: by initdb; each later time in a process, as a quick copy."""
        if Postgres.unused is None:
            self.run("initdb", "-A", "trust", "-U", "tb", "-E", "UTF8", "--no-sync")
            Postgres.unused = tempfile.TemporaryDirectory(prefix="tb-pg-")
            if OWNER:
                shutil.chown(Postgres.unused.name, OWNER)
            source, target = self.data, Path(Postgres.unused.name, "data")
        else:
            source, target = Path(Postgres.unused.name, "data"), self.data
        # By their owner, to whom the copies belong, too.
        subprocess.run(
            ["cp", "-pR", source, target], user=OWNER, cwd=self.folder, check=True
        )

    @staticmethod
    def forget() -> None:
        """Take away the data that is copied."""
        if Postgres.unused is not None:
            Postgres.unused.cleanup()
            Postgres.unused = None

    def copy(self, other: Postgres) -> None:
        """Become a replica of a running one."""
        shutil.rmtree(self.data, ignore_errors=True)
        self.run("pg_basebackup", "-R", "-c", "fast", "-d", other.url())

    def run(self, program: str, *arguments: str) -> str:
        """Let one of PostgreSQL's programs do something to the data."""
        return subprocess.run(
            [f"{BINARIES}/{program}", "-D", str(self.data), *arguments],
            user=OWNER,
            cwd=self.folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.process = subprocess.Popen(
            [
                f"{BINARIES}/postgres",
                *("-D", str(self.data), "-k", str(self.folder)),
                *("-c", "listen_addresses=", "-c", "max_connections=200"),
                *("-c", "fsync=off"),  # no power is cut here
                # In its folder, or a killed one would leave it in /dev/shm.
                *("-c", "dynamic_shared_memory_type=mmap"),
                *(part for option in self.options for part in ("-c", option)),
            ],
            user=OWNER,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        self.execute("SELECT 1")

    def url(self, schema: str = "") -> str:
        """Where it is, with a schema of the test's own."""
        where = f"postgresql://tb@/postgres?host={self.folder}"
        return f"{where}&options=-csearch_path%3D{schema}" if schema else where

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run one statement as an administrator; retry while the server recovers."""
        deadline = time.monotonic() + 30
        while True:
            try:
                with psycopg.connect(self.url(), autocommit=True) as db:
                    answer = db.execute(statement)
                    return answer.fetchall() if answer.description else []
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def kill(self) -> None:
        """End it as a power cut of its machine would; wait until it is gone."""
        kill(self.process.pid)
        self.process.wait()

    def stop(self) -> None:
        """End it, and take its folder away."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def kill(server: int) -> None:
    """End a server's process and those that serve its clients; wait for it."""
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    group = [server, *map(int, children)]
    for process in group:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    while any(map(is_alive, group)):  # else the next start finds its memory in use
        time.sleep(0.005)


def is_alive(process: int) -> bool:
    """Whether a process is there, and not only waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2][1] != "Z"
    except FileNotFoundError:
        return False


def as_file(url: str, folder: Path) -> bytes:
    """The content of a database, in the form of a db.json."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        path = Path(beside, "db.json")
        database = ticketboss.open_store(url).load().database
        assert ticketboss.Store(str(path)).create(database)
        return path.read_bytes()


def from_file(text: bytes, url: str, folder: Path) -> None:
    """Put the content of a db.json into an empty database."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        path = Path(beside, "db.json")
        path.write_bytes(text)
        database = ticketboss.Store(str(path)).load().database
    assert ticketboss.open_store(url).create(database)
