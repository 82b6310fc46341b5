"""README says what happens: its commands are run, and print what it shows.

README's ports may be in use on this machine: each is replaced by a free one.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import HERE, PROGRAM, require_tool, skip

README = (HERE.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(sh|console)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
RANDOM_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
DEFAULT_PORT = "3000"
PORT = re.compile(r"(?<=localhost:)\d+|(?<=127\.0\.0\.1:)\d+|(?<=--port )\d+")


def can_listen(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Free ports below those that the system gives to outgoing connections."""
    candidates = random.sample(range(10_000, 30_000), 1000)
    free = [port for port in candidates if can_listen(port)]
    return free[:count]


class Terminals:
    """A fresh clone as README's reader has it: one shell, and servers beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: dict[str, subprocess.Popen[bytes]] = {}  # by README's port
        named = sorted({*PORT.findall(README), DEFAULT_PORT})
        self.ports = dict(zip(named, map(str, free_ports(len(named))), strict=True))
        self.env = os.environ | {"TICKETBOSS_PORT": self.ports[DEFAULT_PORT]}
        shutil.copy(PROGRAM, folder)
        (folder / ".venv/bin").mkdir(parents=True)
        python = folder / ".venv/bin/python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        self.shell = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env=self.env,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def with_free_ports(self, command: str) -> str:
        return PORT.sub(lambda found: self.ports[found[0]], command)

    def with_readme_ports(self, answer: str) -> str:
        ours = {free: named for named, free in self.ports.items()}
        return PORT.sub(lambda found: ours.get(found[0], found[0]), answer)

    def serve(self, command: str) -> None:
        """Start a server, as README says, and wait until it listens."""
        found = PORT.search(command)
        port = found[0] if found else DEFAULT_PORT
        if port in self.servers:  # README says to stop both before
            for old in list(self.servers):
                self.stop(old)
        server = subprocess.Popen(
            f"exec {self.with_free_ports(command)}",
            shell=True,
            cwd=self.folder,
            env=self.env | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.servers[port] = server
        for line in server.stdout:
            if f":{self.ports[port]}".encode() in line:
                return
        raise AssertionError(f"{command} has ended")

    def stop(self, port: str) -> None:
        server = self.servers.pop(port)
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=20)
        assert server.returncode == 0

    def run(self, command: str) -> str:
        self.shell.stdin.write(
            f"{self.with_free_ports(command)}\necho; echo '=== done'\n"
        )
        self.shell.stdin.flush()
        lines = iter(self.shell.stdout.readline, "=== done\n")
        return self.with_readme_ports("".join(lines).strip("\n"))

    def close(self) -> None:
        for server in self.servers.values():
            server.kill()
            server.communicate()
        os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.communicate()


@pytest.fixture
def terminals(tmp_path):
    for tool in "bash", "curl":
        require_tool(tool)
    terminals = Terminals(tmp_path)
    yield terminals
    terminals.close()


def test_every_command_of_readme_prints_what_readme_shows(terminals):
    printed, shown = [], []
    for kind, block in BLOCKS[2:]:
        if kind == "sh" and not block.strip().endswith("race"):
            terminals.serve(block.strip())
        if kind == "console":
            for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, answer = step.partition("\n")
                shown.append((command, RANDOM_IDS.sub("<id>", answer.strip("\n"))))
                answer = terminals.run(command)
                printed.append((command, RANDOM_IDS.sub("<id>", answer)))
    assert len(shown) > 25
    for ours, theirs in zip(printed, shown, strict=True):
        assert ours == theirs


def test_the_first_two_blocks_are_the_two_commands_that_do_all_the_set_up():
    set_up = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && "
    assert [block for _, block in BLOCKS[:2]] == [
        f"{set_up}.venv/bin/python ticketboss.py\n",
        f"{set_up}.venv/bin/python -m pytest tests\n",
    ]


def test_the_script_and_requirements_name_the_same_packages():
    script = re.search(
        r"^# /// script\n(.*?)^# ///$", PROGRAM.read_text(), re.MULTILINE | re.DOTALL
    )[1]
    wanted = tomllib.loads(re.sub(r"^# ?", "", script, flags=re.MULTILINE))
    ours = (HERE.parent / "requirements.txt").read_text().split("#")[0].split()
    assert sorted(ours) == sorted(wanted["dependencies"])


def test_nothing_else_is_visible_at_the_top():
    if not (HERE.parent / ".git").exists():
        skip("needs a git clone")
    tracked = subprocess.run(
        [require_tool("git"), "ls-files"],
        cwd=HERE.parent,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    assert {name for name in top if not name.startswith(".")} == {
        "ticketboss.py",
        "tests",
        "requirements.txt",
        "README.md",
    }
