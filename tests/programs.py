"""The program as a process: started, or forked from a process that has imported it.

A start takes 0.3 s, most of it for imports, and the usual run of the tests needs 200 of
them. So that run forks instead, which takes 0.02 s. A middling and a long run start
`python ticketboss.py`, as a user does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Final

HERE: Final = Path(__file__).resolve().parent
PATIENCE_S: Final = 60  # before a command counts as hanging
PROGRAM = HERE.parent / "ticketboss.py"
# Variables that the interpreter reads before it runs anything.
OF_THE_INTERPRETER: Final = ("PYTHON", "LC_", "LANG")
BEFORE: Final = """
import os, sys
exec(os.environ.pop("FIRST"))
import ticketboss
sys.argv = [os.environ.pop("PROGRAM"), *sys.argv[1:]]
ticketboss.main()
"""
FORK_SERVER: Final = """
import gc, json, os, signal, socket, sys
sys.path.insert(0, sys.argv[1])
import ticketboss
# Else the garbage collector, which runs when a copy ends, would write to all that the
# copies share, so each would get its own: 0.1 s.
gc.freeze()

def next_order():
    # Returns in a copy of this process; the process itself goes on.
    orders = socket.socket(fileno=0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    while True:
        text, fds, _, _ = socket.recv_fds(orders, 1 << 16, 4)
        while text and not text.endswith(b"\\n"):
            text += orders.recv(1 << 16)
        if not text:
            sys.exit()
        if not os.fork():
            break
        for fd in fds:
            os.close(fd)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=fds.pop()) as status:
        # Only a parent learns how a process ends, so this copy makes and watches one.
        if child := os.fork():
            for fd in fds:
                os.close(fd)
            status.sendall(b"%d\\n" % child)
            ended = os.waitpid(child, 0)[1]
            status.sendall(b"%d\\n" % os.waitstatus_to_exitcode(ended))
            os._exit(0)
    orders.close()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    return json.loads(text)

order = next_order()
os.chdir(order["folder"])
os.environ.clear()
os.environ.update(order["env"])
sys.argv = order["argv"]
exec(order["first"])
ticketboss.main()
"""


class Forked:
    """A program that was forked, with the methods of a Popen."""

    server: subprocess.Popen[bytes] | None = None
    orders: socket.socket
    turn = threading.Lock()  # to send an order

    def __init__(
        self, arguments: list[str], folder: Path, first: str, env: Mapping[str, str]
    ) -> None:
        self.args = [str(PROGRAM), *arguments]
        self.returncode: int | None = None
        self._printed: tuple[str, str] | None = None
        order = {
            "argv": self.args,
            "folder": str(folder),
            "env": dict(env),
            "first": first,
        }
        text = json.dumps(order).encode() + b"\n"
        (stdin, self.stdin), (self.stdout, stdout), (self.stderr, stderr) = (
            self._pipe() for _ in range(3)
        )
        status, self._watcher = socket.socketpair()
        with stdin, stdout, stderr, status, self.turn:
            fds = [end.fileno() for end in (stdin, stdout, stderr, status)]
            self._start_server()
            sent = socket.send_fds(self.orders, [text], fds)
            self.orders.sendall(text[sent:])
        self._status = self._watcher.makefile()
        self.pid = int(self._status.readline())

    @classmethod
    def _start_server(cls) -> None:
        """Start the process that forks, for all tests of this process."""
        if cls.server is None:
            cls.orders, orders = socket.socketpair()
            command = [sys.executable, "-c", FORK_SERVER, str(PROGRAM.parent)]
            with orders:
                cls.server = subprocess.Popen(
                    command,
                    stdin=orders,
                    stdout=subprocess.PIPE,  # not a file: Python would seek in it
                    stderr=subprocess.PIPE,
                    env=os.environ | {"PYTHONUNBUFFERED": "1"},
                )

    @staticmethod
    def _pipe() -> tuple[IO[str], IO[str]]:
        read, write = os.pipe()
        return os.fdopen(read), os.fdopen(write, "w")

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        if self.returncode is None and wait([self._watcher], 0):
            self.returncode = int(self._status.readline())
            self._status.close()
            self._watcher.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended."""
        if self.returncode is None:
            wait([self._watcher], timeout)
            if self.poll() is None:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, how: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ended, and its status is on its way
                os.kill(self.pid, how)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def communicate(
        self, stdin: str = "", timeout: float | None = None
    ) -> tuple[str, str]:
        """Give it all its input; what it prints until it ends."""
        if self._printed is None:
            pipes = self.stdout, self.stderr
            printed: list[Future[str]] = [Future() for _ in pipes]
            for arguments in zip(pipes, printed, strict=True):
                # A daemon: it waits for ever if another process has the pipe, too.
                threading.Thread(target=_read, args=arguments, daemon=True).start()
            with suppress(BrokenPipeError), self.stdin:  # it may end without reading
                self.stdin.write(stdin)
            self.wait(timeout)
            out, err = (text.result(timeout) for text in printed)
            for pipe in pipes:
                pipe.close()
            self._printed = out, err
        return self._printed


def _read(pipe: IO[str], text: Future[str]) -> None:
    try:
        text.set_result(pipe.read())
    except Exception as error:  # raised to who asked for the text
        text.set_exception(error)


forks = False  # whether `start` forks; conftest says so for the usual run


def start(
    folder: Path, *arguments: str, first: str = "", **env: str
) -> subprocess.Popen[str] | Forked:
    """A process of the program in that folder; its standard streams are pipes of text.

    `first` is Python that runs before the program.
    """
    is_of_interpreter = any(name.startswith(OF_THE_INTERPRETER) for name in env)
    if forks and not is_of_interpreter:
        return Forked([*arguments], folder, first, os.environ | env)
    command = [str(PROGRAM)]
    added = {"PYTHONUNBUFFERED": "1"}
    if first:
        command = ["-c", BEFORE]
        paths = [str(PROGRAM.parent), os.environ.get("PYTHONPATH", "")]
        added["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        added |= {"FIRST": first, "PROGRAM": str(PROGRAM)}
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=os.environ | added | env,
    )


def run(
    folder: Path, *arguments: str, first: str = "", stdin: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """A process of the program that has ended: its status, and what it printed."""
    process = start(folder, *arguments, first=first, **env)
    try:
        out, err = process.communicate(stdin, timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
