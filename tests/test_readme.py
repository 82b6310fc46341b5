"""README says what happens: its commands are run, and print what it shows."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from conftest import HERE, PROGRAM

README = (HERE.parent / "README.md").read_text()
BLOCKS = re.findall(r"^```(sh|console)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SECRETS = re.compile(  # what is another one each time
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
)


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(port: int, *, up: bool) -> None:
    for _ in range(1000):
        if listening(port) == up:
            return
        time.sleep(0.02)
    raise AssertionError(f"port {port} is {'down' if up else 'up'}")


class Terminals:
    """A fresh clone as README's reader has it: one shell, and servers beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.servers = folder, {}
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
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def serve(self, command: str) -> None:
        found = re.search(r"--port (\d+)", command)
        port = int(found[1]) if found else 3000
        if port in self.servers:  # README says to end both before
            for old in list(self.servers):
                self.end(old)
        self.servers[port] = subprocess.Popen(
            f"exec {command}",
            shell=True,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(port, up=True)

    def end(self, port: int) -> None:
        server = self.servers.pop(port)
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=20) == 0
        wait_until(port, up=False)

    def run(self, command: str) -> str:
        self.shell.stdin.write(f"{command}\necho; echo '=== done'\n")
        self.shell.stdin.flush()
        lines = iter(self.shell.stdout.readline, "=== done\n")
        return "".join(lines).strip("\n")

    def close(self) -> None:
        for server in self.servers.values():
            server.kill()
            server.wait()
        os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.communicate()


@pytest.fixture
def terminals(tmp_path):
    assert not listening(3000), "README's port 3000 is in use on this machine"
    terminals = Terminals(tmp_path)
    yield terminals
    terminals.close()


def test_every_command_of_readme_prints_what_readme_shows(terminals):
    told, shown = [], []
    for kind, block in BLOCKS[2:]:
        if kind == "sh" and not block.strip().endswith("race"):
            terminals.serve(block.strip())
        if kind == "console":
            for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, answer = step.partition("\n")
                shown.append((command, SECRETS.sub("<id>", answer.strip("\n"))))
                answer = terminals.run(command)
                told.append((command, SECRETS.sub("<id>", answer)))
    assert len(shown) > 25
    for mine, theirs in zip(told, shown, strict=True):
        assert mine == theirs


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
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=HERE.parent, check=True, capture_output=True, text=True
    ).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    assert {name for name in top if not name.startswith(".")} == {
        "ticketboss.py",
        "tests",
        "requirements.txt",
        "README.md",
    }
