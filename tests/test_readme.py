"""README is true: its commands are run, and print what it shows.

A block of `sh` is run here; the block of `text` that follows it is what it prints. Each
section has a folder of its own, with nothing in it but the program. What asks for other
programs is in blocks of `bash`. README's ports may be in use on this machine: each is
replaced by a free one.
"""

from __future__ import annotations

import ast
import functools
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from conftest import HERE, require_tool, skip, wait_until
from mutants import PLANTS
from programs import PROGRAM

import ticketboss

README = (HERE.parent / "README.md").read_text()
SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROSE = BLOCK.sub("", README)
RANDOM_IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
DEFAULT_PORT = "3000"
PORT = re.compile(r"(?<=localhost:)\d+|(?<=127\.0\.0\.1:)\d+|(?<=--port )\d+")
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && "
RUN_SERVER = ".venv/bin/python ticketboss.py"
RUN_TESTS = ".venv/bin/python -m pytest tests"
IS_SERVER = re.compile(
    r"\.venv/bin/python (ticketboss\.py( --(?!help)\S+( [^-]\S*)?)*|-m flask .*)"
)
PATIENCE_S = 180  # of a command; a reader would lose theirs sooner


def steps_of(section: str) -> list[tuple[str, str | None]]:
    """The commands of a section, each with what it prints, if README says so."""
    steps: list[tuple[str, str | None]] = []
    for language, block in BLOCK.findall(SECTIONS[section]):
        text = block.rstrip("\n")
        if language == "sh":
            steps.append((text.removeprefix(SET_UP), None))
        elif language == "text":
            command, earlier = steps.pop()
            assert earlier is None, f"{command} prints two things"
            steps.append((command, text))
    return steps


def rows_of(section: str, first_cell: str) -> list[list[str]]:
    """The cells of the table whose head begins with this cell."""
    head = re.escape(f"| {first_cell} |")
    table = re.search(
        rf"^{head}.*\n\|-.*\n((?:\|.*\n)+)", SECTIONS[section], re.MULTILINE
    )
    assert table is not None, f"{section} has no table of {first_cell}"
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table[1].splitlines()
    ]


def coded(cell: str) -> list[str]:
    """What is in code in a cell."""
    return re.findall("`([^`]+)`", cell)


def can_listen(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def can_connect(port: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(port)), 5).close()
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

    def as_here(self, command: str) -> str:
        """A command with free ports, which lets nobody else connect."""
        ours = command.replace("--host 0.0.0.0", "--host 127.0.0.1")
        return PORT.sub(lambda found: self.ports[found[0]], ours)

    def as_in_readme(self, answer: str) -> str:
        ours = {free: named for named, free in self.ports.items()}
        with_ports = PORT.sub(lambda found: ours.get(found[0], found[0]), answer)
        return RANDOM_IDS.sub("<id>", with_ports)

    def serve(self, command: str) -> None:
        """Start a server, and wait until it listens; first stop what has its port."""
        found = PORT.search(command)
        port = found[0] if found else DEFAULT_PORT
        if port in self.servers:
            for old in list(self.servers):
                self.stop(old)
        server = subprocess.Popen(
            f"exec {self.as_here(command)}",
            shell=True,
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.servers[port] = server
        wait_until(
            lambda: server.poll() is not None or can_connect(self.ports[port]), 60
        )
        assert server.poll() is None, f"{command} has ended"

    def stop(self, port: str) -> None:
        server = self.servers.pop(port)
        server.send_signal(signal.SIGINT)
        status = server.wait(timeout=60)
        assert status == 0 or "flask" in server.args  # which may say "Aborted!"

    def run(self, commands: str) -> str:
        """Paste commands line by line; what they print. The last one must succeed."""
        watchdog = threading.Timer(PATIENCE_S, self.kill_shell)
        watchdog.start()
        self.shell.stdin.write(
            f"{self.as_here(commands)}\nSTATUS=$?; echo; echo === $STATUS\n"
        )
        self.shell.stdin.flush()
        printed = ""
        for line in self.shell.stdout:
            if line.startswith("=== "):
                break
            printed += line
        else:
            raise AssertionError(f"{commands} did not end")
        watchdog.cancel()
        assert line == "=== 0\n", f"{commands} failed: {printed}"
        return self.as_in_readme(printed.strip("\n"))

    def kill_shell(self) -> None:
        os.killpg(self.shell.pid, signal.SIGKILL)

    def close(self) -> None:
        for server in self.servers.values():
            server.kill()
            server.wait()
        self.kill_shell()
        self.shell.communicate()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    for tool in "bash", "curl":
        require_tool(tool)
    terminals = Terminals(tmp_path)
    yield terminals
    terminals.close()


@pytest.mark.parametrize("section", [name for name in SECTIONS if steps_of(name)])
def test_every_command_of_a_section_does_what_readme_shows(terminals, section, pick):
    few = pick(" --clients 4", "", "")
    for command, shown in steps_of(section):
        if command == RUN_TESTS:
            continue  # these are the tests
        if IS_SERVER.fullmatch(command):
            assert shown is None
            terminals.serve(command)
            continue
        is_race = " race" in command
        short = f"{command} --requests 20 --seats 10{few}" if is_race else command
        printed = terminals.run(short)
        if shown is not None:
            assert (command, printed) == (command, RANDOM_IDS.sub("<id>", shown))


def test_the_commands_of_beyond_one_machine_do_what_readme_says(terminals, own):
    """There and back, and the copies are the same; then a server sells from there."""
    section = SECTIONS["Beyond one machine"]
    asked = [block for kind, block in BLOCK.findall(section) if kind == "bash"]
    commands = "".join(asked).splitlines()
    url = shlex.quote(own.url())
    install, serve, *copies = [
        command.replace("postgresql://user@host/name", url) for command in commands
    ]
    assert install == '.venv/bin/pip install "psycopg[binary]"'
    assert len(copies) == 2
    terminals.serve(RUN_SERVER)
    order = BLOCK.findall(SECTIONS["Quick start"])[2][1]
    terminals.run(order)
    terminals.stop(DEFAULT_PORT)
    for copy in copies:
        assert terminals.run(copy).endswith("Everything adds up.")
    kept, back = terminals.folder / "db.json", terminals.folder / "back.json"
    assert back.read_bytes() == kept.read_bytes()
    terminals.serve(serve)
    assert terminals.run(order).endswith('"status":"confirmed"}\n201')
    count = "SELECT count(*) FROM ticketboss WHERE body LIKE '%abc-corp%'"
    assert own.execute(count) == [(2,)]
    assert back.read_bytes() == kept.read_bytes()


def test_commands_and_their_output_are_in_separate_blocks():
    languages = [language for language, _ in BLOCK.findall(README)]
    assert languages.count("sh") > languages.count("text") > 20
    assert {*languages} == {"sh", "text", "bash", "dockerfile", "nginx"}
    for language, block in BLOCK.findall(README):
        assert not re.search(r"^\$ ", block, re.MULTILINE)
        if language == "bash":  # what is not run here
            assert re.search("docker|gunicorn|admin|psycopg|postgresql:", block)


def test_the_contents_name_every_section_and_all_links_lead_somewhere():
    heads = re.findall(r"^##+ (.*)$", PROSE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    assert {*re.findall(r"\]\(#(.*?)\)", README)} <= anchors
    after = [*SECTIONS][[*SECTIONS].index("Contents") + 1 :]
    assert re.findall(r"\[(.*?)\]", SECTIONS["Contents"]) == after


def test_the_first_two_blocks_are_the_two_commands_that_do_all_the_set_up():
    blocks = [block for language, block in BLOCK.findall(README) if language == "sh"]
    assert blocks[:2] == [f"{SET_UP}{RUN_SERVER}\n", f"{SET_UP}{RUN_TESTS}\n"]


def variables_of(option: click.Parameter) -> list[str]:
    if isinstance(option.envvar, list):
        return option.envvar
    if not option.allow_from_autoenv:
        return []
    return [f"TICKETBOSS_{option.name.upper()}"]


def default_of(option: click.Parameter) -> str:
    if option.is_flag:
        return "off"
    if option.multiple or option.default == "":
        return "none"
    if isinstance(option.show_default, str):
        return option.show_default
    return f"`{option.default}`"


def test_the_table_of_options_matches_the_program():
    expected = [
        [[option.opts[0]], variables_of(option), default_of(option)]
        for option in ticketboss.main.params
    ]
    rows = rows_of("Running it", "option")
    shown = [[coded(cells[0]), coded(cells[1]), cells[2]] for cells in rows]
    assert sorted(shown) == sorted([*expected, [[], ["JWT_SECRET"], "generated"]])


def test_the_table_of_commands_matches_the_program():
    rows = [coded(cells[0])[0].split() for cells in rows_of("Running it", "command")]
    assert {row[0] for row in rows} == {*ticketboss.main.commands}
    for name, *rest in rows:
        options = {o for p in ticketboss.main.commands[name].params for o in p.opts}
        assert {word for word in rest if word.startswith("--")} <= options


def test_the_tables_of_requests_match_the_routes_of_the_program(client):
    shown = [
        re.sub("<.*?>", "<>", span)
        for line in SECTIONS["The APIs"].splitlines()
        for span in coded(line.split("|")[1] if line.startswith("| `") else "")
        if re.match("[A-Z]+ /", span)
    ]
    served = [
        f"{method} {re.sub('<.*?>', '<>', rule.rule)}"
        for rule in client.application.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    ]
    assert sorted(shown) == sorted(served)


KINDS = {  # the tables of fields, and the program's names of what has them
    "a reservation": ["Reservation"],
    "a report": ["Report"],
    "an attempt": ["PublicAttempt"],
    "a booking (`/api/v1`)": ["Booking"],
    "an event": ["Event", "EventDetail", "EventStatus", "ChangedEvent", "DatedEvent"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_fields_has_every_field_that_the_program_answers(kind):
    answered: set[str] = set()
    for name in KINDS[kind]:
        if name in ticketboss.SHAPES:
            answered.update(ticketboss.SHAPES[name].split(", "))
        else:
            answered.update(getattr(ticketboss, name).__struct_encode_fields__)
    answered -= {"origin", "returnedAt"}  # of a reservation, and never answered
    rows = rows_of("The APIs", f"field of {kind}")
    assert sorted(n for cells in rows for n in coded(cells[0])) == sorted(answered)


@functools.cache
def texts_of(source: str) -> list[str]:
    """All texts in a program, with … for what it fills in."""
    texts = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [getattr(part, "value", None) for part in node.values]
            texts.append(
                "".join(part if isinstance(part, str) else "…" for part in parts)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(re.sub(r"\{\w*\}", "…", node.value))
    return texts


@pytest.mark.parametrize(
    "message",
    [m for cells in rows_of("Troubleshooting", "message") for m in coded(cells[0])],
)
def test_every_message_that_readme_explains_is_in_the_program(message):
    """Its first words, up to what the program fills in, and its last ones."""
    texts = texts_of(PROGRAM.read_text())
    for part in message.split("…"):
        assert any(part.strip(" :.,") in text for text in texts), part


def test_readme_states_the_number_of_planted_bugs():
    assert re.findall(r"(\d+) bugs", README) == [str(len(PLANTS))]


def test_the_script_and_requirements_name_the_same_packages():
    script = re.search(
        r"^# /// script\n(.*?)^# ///$", PROGRAM.read_text(), re.MULTILINE | re.DOTALL
    )[1]
    wanted = tomllib.loads(re.sub(r"^# ?", "", script, flags=re.MULTILINE))
    ours = (HERE.parent / "requirements.txt").read_text().split("#")[0].split()
    assert sorted(ours) == sorted(wanted["dependencies"])


def test_the_top_folder_shows_only_the_listed_files():
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
