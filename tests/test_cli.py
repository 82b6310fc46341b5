"""The command line: its output, its refusals in one line, and its shutdown.

A start that cannot be is one line on stderr (behind the usage, where it was not kept)
and a non-zero exit, never a traceback; an
end by SIGTERM or Ctrl-C finishes what is under way; a running server survives the loss
of its file and of its disk's last free block, and says so meanwhile.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import click
import programs
import pytest
from click.core import ParameterSource
from click.testing import CliRunner
from conftest import SEEDED, Server
from keepalive import Client
from programs import PROGRAM

import ticketboss

ORDER = {"partnerId": "abc-corp", "seats": 3}
CODE = compile(PROGRAM.read_bytes(), str(PROGRAM), "exec")
STATE = {
    "event": {
        "eventId": SEEDED,
        "name": "Node.js Meet-up",
        "totalSeats": 10,
        "availableSeats": 8,
        "version": 3,
    },
    "reservations": {
        "a": {
            "reservationId": "a",
            "partnerId": "p",
            "seats": 2,
            "status": "confirmed",
            "ts": "2025-01-01T00:00:00.000Z",
            "eventVersionAtReservation": 1,
        },
        "b": {
            "reservationId": "b",
            "partnerId": "q",
            "seats": 4,
            "status": "cancelled",
            "ts": "2025-01-01T00:00:00.000Z",
            "eventVersionAtReservation": 2,
            "cancelledAt": "2025-01-01T00:00:01.000Z",
            "eventVersionAtCancel": 3,
        },
    },
}


def changed(**wrong: object) -> str:
    """A database with some fields set wrong, named as a__b__c for a: {b: {c: ...}}."""
    state = json.loads(json.dumps(STATE))
    for path, value in wrong.items():
        *parents, last = path.split("__")
        place = state
        for parent in parents:
            place = place[parent]
        place[last] = value
    return json.dumps(state)


class Ended(NamedTuple):
    """What became of a command."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def run(
    tmp_path: Path,
    taken: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Ended]:
    """run(*arguments, stdin="", **env): the script from top to bottom, in here.

    What it should refuse and serves instead finds its port taken: no test hangs.
    """

    def run(*arguments: str, stdin: str = "", **env: str) -> Ended:
        script = ModuleType("__main__")
        script.__dict__["__file__"] = str(PROGRAM)
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setitem(sys.modules, "__main__", script)
            patch.setattr(sys, "argv", [str(PROGRAM), *arguments])
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            for name, value in ({"PORT": str(taken)} | env).items():
                patch.setenv(name, value)
            code: object = None
            try:
                exec(CODE, script.__dict__)
            except SystemExit as ended:
                code = ended.code
        out, err = capsys.readouterr()
        if isinstance(code, str):  # as the interpreter does
            return Ended(1, out, f"{err}{code}\n")
        return Ended(int(code or 0), out, err)

    return run


@pytest.fixture
def spawn(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """spawn(*arguments, limit=None, **env): a real process, no file over `limit`."""

    def spawn(
        *arguments: str, limit: int | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        few_bytes = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
"""
        first = few_bytes if limit else ""
        return programs.run(tmp_path, *arguments, first=first, **env)

    return spawn


@pytest.fixture
def connect() -> Iterator[Callable[[str], Client]]:
    """connect(url): a client, gone after the test."""
    with ExitStack() as clients:
        yield lambda url: clients.enter_context(Client(url))


def listing(folder: Path) -> list[str]:
    """All files, but for locks."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def in_one_line(ended: Any, *words: str) -> None:
    """Assert that it was refused in one line, with these words in it."""
    assert ended.returncode not in (0, None)
    assert ended.stdout == ""
    usage = r"Usage: .*\nTry '.* --help' for help\.\n\n"
    expected = rf"{usage * (ended.returncode == 2)}Error: .+\n"
    assert re.fullmatch(expected, ended.stderr), ended.stderr
    for word in words:
        assert word in ended.stderr


# --- The start ---------------------------------------------------------------


def test_the_banner_names_the_file_and_has_two_curl_lines_that_work(serve, db, saved):
    server = serve()
    assert server.ask("GET", "/event")[0] == 200  # so all of the banner is out
    server.process.terminate()
    server.process.wait(20)
    banner = server.banner + server.process.stdout.read()
    lines = re.findall(r"^ *(curl .*)$", banner, re.MULTILINE)
    assert str(db) in banner
    assert "Node.js Meet-up" in banner
    look, buy = map(shlex.split, lines)
    assert look == ["curl", f"{server.url}/event"]
    assert buy[:2] == ["curl", "-d"]
    assert buy[3] == f"{server.url}/reservations"
    status, sold, _ = serve().ask("POST", "/reservations", buy[2].encode())
    assert (status, sold["status"]) == (201, "confirmed")
    assert saved()["event"]["availableSeats"] == 500 - sold["seats"]


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["--nope"], {}, ["--nope"]),
        (["nope"], {}, ["nope"]),
        (["--port", "http"], {}, ["--port", "http"]),
        (["--port", "65536"], {}, ["--port", "65536"]),
        (["--seats", "0"], {}, ["--seats"]),
        (["--think", "soon"], {}, ["--think", "soon"]),
        (["--host", "not.an.address.invalid"], {}, ["not.an.address.invalid"]),
        ([], {"TICKETBOSS_SEATS": "many"}, ["--seats", "many"]),
        ([], {"TICKETBOSS_QUIET": "perhaps"}, ["--quiet"]),
        ([], {"JWT_SECRET": "short"}, ["JWT_SECRET", "32"]),
        (["--db", "gone/db.json"], {}, ["gone"]),
        (["--db", "."], {}, []),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else None,
)
def test_a_bad_start_is_refused_in_one_line(run, arguments, env, words):
    in_one_line(run(*arguments, **env), *words)


@pytest.mark.parametrize(
    "arguments",
    [["--nope"], ["--port", "http"], ["--db", "gone/db.json"], ["audit"]],
    ids=" ".join,
)
def test_a_bad_start_of_a_real_process_is_refused_in_one_line(
    spawn, tmp_path, arguments
):
    in_one_line(spawn(*arguments))
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [(["--port", ""], "PORT"), ([], "PORT"), ([], "TICKETBOSS_PORT")],
)
def test_a_taken_port_is_refused_in_one_line(spawn, taken, arguments, variable):
    given = [argument or str(taken) for argument in arguments]
    told = "1" if given else str(taken)  # what is on the command line counts
    in_one_line(spawn(*given, **{variable: told}), str(taken))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        json.dumps(STATE)[:-1],
        "\0" * 20,
        changed(event__availableSeats=9),
        changed(event__totalSeats="10"),
        changed(reservations__a__seats=-2),
    ],
    ids=["empty", "brace", "list", "cut", "zeros", "sum", "type", "negative"],
)
def test_a_bad_file_stops_the_start_in_one_line_and_stays_as_it_is(run, db, text):
    db.write_text(text)
    in_one_line(run(), str(db), "reset")
    assert db.read_text() == text
    assert listing(db.parent) == ["db.json"]


def test_a_file_that_may_not_be_read_stops_the_start_in_one_line(run, tmp_path):
    (tmp_path / "folder").mkdir()  # a mode would not stop root
    in_one_line(run("--db", "folder"), str(tmp_path / "folder"))
    assert listing(tmp_path / "folder") == []


def test_no_free_block_for_the_first_file_is_one_line_and_leaves_nothing(
    spawn, tmp_path
):
    in_one_line(spawn("--port", "0", limit=20), str(tmp_path / "db.json"))
    assert listing(tmp_path) == []


# --- Options -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *ticketboss.main.commands])
def test_every_option_has_a_help_text(name):
    command = ticketboss.main.commands[name] if name else ticketboss.main
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("option", ["--think", "--rate-limit"])
def test_the_help_names_the_default_of_an_option_that_is_off(option):
    text = " ".join(CliRunner().invoke(ticketboss.main, ["--help"]).output.split())
    shown = re.search(rf"{option} [A-Z]+ .*?\[default: (.*?)\]", text)[1]
    assert shown in {"(no pause)", "(no limit)"}


def test_the_option_seats_counts_only_at_the_first_start(serve):
    assert serve("--seats", "7").ask("GET", "/event")[1]["totalSeats"] == 7
    assert serve("--seats", "8").ask("GET", "/event")[1]["totalSeats"] == 7


def test_the_option_db_goes_before_the_environment_and_that_before_the_default(
    run, tmp_path
):
    for name in ("flag.json", "env.json", "db.json"):
        (tmp_path / name).write_text("{")
    env = {"TICKETBOSS_DB": "env.json"}
    in_one_line(run("--db", "flag.json", **env), str(tmp_path / "flag.json"))
    in_one_line(run(**env), str(tmp_path / "env.json"))
    in_one_line(run(), str(tmp_path / "db.json"))


def test_every_option_but_unchecked_has_a_variable(monkeypatch):
    options = {
        flag: option for option in ticketboss.main.params for flag in option.opts
    }
    assert {
        "--host",
        "--port",
        "--db",
        "--seats",
        "--think",
        "--trust-proxy",
        "--quiet",
    } <= set(options)
    for flag in options:  # "1" is a number, a duration, a yes and a name
        name = "TICKETBOSS_" + flag[2:].replace("-", "_").upper()
        is_origin = flag == "--allow-origin"
        monkeypatch.setenv(name, "http://localhost:5173" if is_origin else "1")
    context = ticketboss.main.make_context("ticketboss", [])
    assert {
        flag
        for flag, option in options.items()
        if context.get_parameter_source(option.name) is not ParameterSource.ENVIRONMENT
    } == {"--unchecked"}  # it loses sales: no variable arms it


def test_an_app_without_settings_takes_them_from_the_environment(
    monkeypatch, db, saved
):
    monkeypatch.setenv("TICKETBOSS_DB", str(db))
    monkeypatch.setenv("TICKETBOSS_SEATS", "7")
    monkeypatch.setenv("TICKETBOSS_QUIET", "1")
    workers = [ticketboss.create_app().test_client() for _ in range(2)]
    sold = [worker.post("/reservations", json=ORDER) for worker in workers]
    assert [answer.status_code for answer in sold] == [201, 201]
    assert workers[0].post("/reservations", json=ORDER).status_code == 409
    assert saved()["event"] == {
        "eventId": SEEDED,
        "name": "Node.js Meet-up",
        "totalSeats": 7,
        "availableSeats": 1,
        "version": 2,
    }


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TICKETBOSS_THINK", "soon"),
        ("TICKETBOSS_DB", "gone/db.json"),
        ("JWT_SECRET", "short"),
    ],
)
def test_an_app_that_cannot_start_ends_its_worker_in_one_line(
    monkeypatch, tmp_path, variable, value
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TICKETBOSS_QUIET", "1")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        ticketboss.create_app()
    assert isinstance(ended.value.code, str)  # printed on stderr, and exit status 1
    assert len(ended.value.code.splitlines()) == 1
    named = value.removesuffix("/db.json")  # the folder, if it is at fault
    assert named in ended.value.code or variable in ended.value.code


def test_flask_run_serves_the_app(connect, db, saved):
    env = {
        "TICKETBOSS_DB": str(db),
        "TICKETBOSS_SEATS": "7",
        "PYTHONPATH": str(PROGRAM.parent),
        "PYTHONUNBUFFERED": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "flask", "--app", "ticketboss", "run", "-p", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=db.parent,
        env=os.environ | env,
    ) as process:
        try:
            url = next(
                found[0]
                for line in process.stderr
                if (found := re.search(r"http://\S+", line))
            )
            assert connect(url).ask("POST", "/reservations", ORDER).status == 201
        finally:
            process.kill()
    assert saved()["event"]["availableSeats"] == 4


# --- Thinking, and ending ----------------------------------------------------


@pytest.fixture
def under_way(connect: Callable[[str], Client]) -> Callable[..., list[Client]]:
    """under_way(server, n): n clients whose orders it works on, unanswered."""

    def under_way(server: Server, number: int, **headers: str) -> list[Client]:
        clients = [connect(server.url) for _ in range(number)]
        for client in clients:  # each its first: behind another, it might lie unread
            client.send("POST", "/reservations", ORDER, **headers)
        for _ in range(3):  # asked later, answered: so the orders have been taken up
            assert server.ask("GET", "/_health")[0] == 200
        return clients

    return under_way


def test_a_sale_that_thinks_loses_races_and_counts_its_attempts(
    serve, under_way, saved
):
    server = serve("--think", "300ms")
    answers = [c.receive() for c in under_way(server, 3)]
    assert {a.status for a in answers} == {201}
    assert sorted(a.version for a in answers) == [1, 2, 3]
    assert [
        int(a.headers["X-Attempts"]) for a in sorted(answers, key=lambda a: a.version)
    ] == [1, 2, 3]
    assert saved()["event"]["availableSeats"] == 491


def test_a_sale_that_thinks_under_a_condition_is_not_retried(serve, under_way, saved):
    server = serve("--think", "300ms")
    clients = under_way(server, 2, If_Match='"0"')
    answers = sorted([c.receive() for c in clients], key=lambda a: a.status)
    assert [a.status for a in answers] == [201, 412]
    assert [a.version for a in answers] == [1, 1]
    assert saved()["event"]["availableSeats"] == 497


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Undo what a shell does to jobs in the background: they ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_shutdown_finishes_the_request_under_way(serve, under_way, saved, pick, how):
    # The longer one: no library's own patience may be what ends a request.
    server = serve("--think", f"{pick(1, 7, 7)}s")
    [client] = under_way(server, 1)
    server.process.send_signal(how)
    answer = client.receive()
    assert answer.status == 201
    server.process.wait(20)
    status, out, err = server.stop()
    assert (status, err) == (0, "")
    assert re.findall(r"\b4\b", out)  # what was served: 3 looks and a sale
    assert list(saved()["reservations"]) == [answer.body["reservationId"]]


def test_a_shutdown_finishes_requests_that_wait_for_the_lock(
    serve, under_way, db, saved
):
    server = serve()
    with ticketboss.Store(str(db)).lock():
        clients = under_way(server, 4)
        server.process.send_signal(signal.SIGTERM)
    answers = [client.receive() for client in clients]
    assert [a.status for a in answers] == [201] * 4
    assert server.process.wait(20) == 0
    assert set(saved()["reservations"]) == {a.body["reservationId"] for a in answers}


def test_a_shutdown_finishes_an_answer_to_a_slow_reader(serve, connect, db):
    records = {
        f"r{n}": STATE["reservations"]["a"]
        | {
            "reservationId": f"r{n}",
            "partnerId": "x" * 200,
            "eventVersionAtReservation": n + 1,
        }
        for n in range(20_000)
    }
    db.write_text(
        json.dumps(
            {
                "event": STATE["event"]
                | {"totalSeats": 40_000, "availableSeats": 0, "version": 20_000},
                "reservations": records,
            }
        )
    )
    server = serve()
    client = connect(server.url)
    client.connection.sock = slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect((client.connection.host, client.connection.port))
    client.send("GET", "/reservations")
    answer = client.connection.getresponse()  # its head is here, its body on the way
    server.process.send_signal(signal.SIGTERM)
    assert len(json.loads(answer.read())) == 20_000
    assert server.process.wait(20) == 0


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_a_signal_that_arrives_while_an_object_is_freed_ends_the_server(serve, how):
    # Python ignores an exception of a handler: the signal would be lost.
    server = serve(
        first=f"""
import os, signal
from waitress import wasyncore

class Doomed:
    def __del__(self):
        os.kill(os.getpid(), signal.{how})
        for _ in range(1000):
            pass

def once(*args, loop=wasyncore.loop, **more):
    wasyncore.loop = loop
    Doomed()
    loop(*args, **more)
wasyncore.loop = once
"""
    )
    assert server.process.wait(10) == 0
    assert server.stop()[2] == ""


def test_a_signal_ends_a_server_that_waits_for_its_first_client(serve):
    # Python goes on with such a wait after a signal; here it would last an hour.
    server = serve(
        first="""
import os, signal, threading
from waitress import wasyncore

def loop(wait=wasyncore.loop, **more):
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGTERM]).start()
    wait(**more | {"timeout": 3600})
wasyncore.loop = loop
"""
    )
    assert server.process.wait(20) == 0
    assert server.stop()[2] == ""


def test_a_shutdown_answers_requests_that_no_thread_has_begun(serve, connect, saved):
    crowd = 80
    server = serve(
        "--think",
        "1s",
        first=f"""
import itertools, os, signal
from waitress.channel import HTTPChannel

def received(self, data, receive=HTTPChannel.received, n=itertools.count(1)):
    receive(self, data)
    if self.requests and next(n) == {crowd}:
        os.kill(os.getpid(), signal.SIGTERM)
HTTPChannel.received = received
""",
    )
    clients = [connect(server.url) for _ in range(crowd)]
    for (
        client
    ) in clients:  # under a condition, as a sale that loses a race thinks again
        client.send("POST", "/reservations", ORDER, If_Match='"0"')
    answers = [client.receive() for client in clients]
    assert sorted(a.status for a in answers) == [201] + [412] * (crowd - 1)
    assert server.process.wait(20) == 0
    assert re.search(rf"\b{crowd}\b", server.stop()[1])
    assert saved()["event"]["version"] == 1


def heeds(process: subprocess.Popen[str], how: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    caught = re.search(
        r"^SigCgt:\s*(\w+)$",
        Path(f"/proc/{process.pid}/status").read_text(),
        re.MULTILINE,
    )[1]
    return bool(int(caught, 16) >> (how - 1) & 1)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_server_at_once(serve, under_way, saved, how):
    server = serve("--think", "60s")
    under_way(server, 1)
    server.process.send_signal(how)
    until = time.monotonic() + 10
    while heeds(server.process, how):  # until the first has come: two at once are one
        assert time.monotonic() < until
        time.sleep(0.01)
    assert server.process.poll() is None  # as a request is under way
    server.process.send_signal(how)
    assert server.process.wait(10) == -how
    assert saved()["reservations"] == {}
    assert serve().ask("GET", "/_health")[:2] == (200, {"ok": True})


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT"])
def test_a_shutdown_right_after_the_banner_is_clean(tmp_path, how):
    # The signal comes from within, so that it comes at the worst moment each time.
    program = f"""
import os, signal, sys
import click
import ticketboss
say = click.echo
def echo(text="", **more):
    say(text, **more)
    if "http://" in str(text):
        os.kill(os.getpid(), signal.{how})
click.echo = echo
sys.argv = ["ticketboss.py", "--port", "0", "--quiet"]
ticketboss.main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PROGRAM.parent)},
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


# --- The line per request ----------------------------------------------------


def test_each_request_is_one_line_on_stderr_with_its_version_and_attempts(db):
    server = Server(db)
    try:
        server.ask("POST", "/reservations", ORDER)
        server.ask("GET", "/event?a=secret")
        server.ask("GET", "/no%0aGET%20/such%1b[31m%C2%9b")
    finally:
        status, out, err = server.stop()
    assert status == 0
    sold, looked, odd = err.splitlines()
    assert re.fullmatch(
        r".*POST\b.* /reservations\b.* 201\b.* [0-9.]+ ?ms\b.*\D1\b.*\D1\b.*", sold
    )
    assert re.fullmatch(r".*GET\b.* /event\b.* 200\b.* [0-9.]+ ?ms\b.*\D1\b.*", looked)
    assert re.fullmatch(r".*GET\b.* 404\b.* [0-9.]+ ?ms\b.*", odd)
    assert err.isascii()
    assert err.replace("\n", "").isprintable()
    assert "GET" not in out


def test_a_quiet_server_logs_no_request(serve):
    server = serve()  # with --quiet, as all that the fixture starts
    server.ask("POST", "/reservations", ORDER)
    server.ask("GET", "/nope")
    assert server.stop()[2] == ""


# --- audit and reset ---------------------------------------------------------


def test_an_audit_of_a_good_file_says_so(run, db):
    db.write_text(json.dumps(STATE))
    ended = run("audit")
    assert (ended.returncode, ended.stderr) == (0, "")
    for found in ("node-meetup-2025", "10", "8", "version 3", "1 cancelled"):
        assert found in ended.stdout
    assert db.read_text() == json.dumps(STATE)
    assert listing(db.parent) == ["db.json"]


@pytest.mark.parametrize(
    "text",
    [
        changed(event__availableSeats=9),
        changed(event__availableSeats=-2, event__totalSeats=0),
        changed(event__version=2),
        changed(reservations__a__status="cancelled"),
        changed(reservations__b__status="sold"),
        changed(reservations__b__reservationId="c"),
        changed(reservations__b__eventVersionAtReservation=1),
        changed(reservations__b__eventVersionAtCancel=1),
        changed(reservations__b__eventVersionAtCancel=2),
        changed(reservations__b__status="waitlisted"),  # and 8 seats are free
        "",
        json.dumps(STATE)[:-1],
    ],
    ids=[
        "sum",
        "negative",
        "version",
        "cancelled",
        "status",
        "key",
        "sold at once",
        "cancelled as sold",
        "cancelled when made",
        "waits for nothing",
        "empty",
        "cut",
    ],
)
def test_an_audit_reports_sums_that_are_wrong(run, db, text):
    db.write_text(text)
    ended = run("audit", "--db", str(db))
    assert ended.returncode == 1
    assert ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert db.read_text() == text


def test_an_audit_of_no_file_makes_none(run, tmp_path):
    in_one_line(run("audit"), str(tmp_path / "db.json"))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("said", ["n\n", "", "\n"])
def test_a_reset_that_is_not_confirmed_changes_nothing(run, db, said):
    db.write_text(json.dumps(STATE))
    ended = run("reset", "--seats", "9", stdin=said)
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert db.read_text() == json.dumps(STATE)
    assert listing(db.parent) == ["db.json"]


@pytest.mark.parametrize(("options", "said"), [(["--yes"], ""), ([], "y\n")])
@pytest.mark.parametrize("text", [json.dumps(STATE), "{ cut"], ids=["good", "bad"])
def test_a_reset_seeds_a_new_file_and_keeps_the_old_one(
    run, db, saved, options, said, text
):
    db.write_text(text)
    ended = run("reset", "--seats", "9", *options, stdin=said)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert saved() == {
        "event": {
            "eventId": SEEDED,
            "name": "Node.js Meet-up",
            "totalSeats": 9,
            "availableSeats": 9,
            "version": 0,
        },
        "reservations": {},
    }
    [kept] = set(listing(db.parent)) - {"db.json"}
    assert (db.parent / kept).read_text() == text
    assert kept in ended.stdout


def test_a_reset_where_there_is_no_file_seeds_one(run, tmp_path, saved):
    ended = run("reset", "--yes")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert saved()["event"]["totalSeats"] == 500
    assert listing(tmp_path) == ["db.json"]
    said = ended.stdout.replace(str(tmp_path), "")
    assert not re.search(r"\bold\b|\bkept\b|what was there", said)


@pytest.mark.parametrize("command", [["reset", "--yes"], ["admin", "a@b.co"]])
@pytest.mark.parametrize("seats", ["0", "1000001", "many"])
def test_the_option_seats_has_the_same_bounds_for_a_command(
    run, tmp_path, command, seats
):
    in_one_line(run(*command, "--seats", seats), "--seats", seats)
    assert listing(tmp_path) == []


def test_a_second_reset_keeps_the_old_file_of_the_first(run, db, saved):
    run("reset", "--yes", "--seats", "7")
    first = db.read_text()
    ended = run("reset", "--yes", "--seats", "9")
    [kept] = set(listing(db.parent)) - {"db.json"}
    assert str(db.parent / kept) in ended.stdout
    assert (db.parent / kept).read_text() == first
    assert saved()["event"]["totalSeats"] == 9


def test_a_reset_that_finds_no_free_block_leaves_the_file_where_it_is(spawn, db):
    db.write_text(json.dumps(STATE))
    ended = spawn("reset", "--yes", limit=20)
    assert db.exists()
    assert db.read_text() == json.dumps(STATE)
    in_one_line(ended)


def test_a_running_server_sells_the_seats_of_a_reset_file(serve, run, saved):
    server = serve()
    server.ask("POST", "/reservations", ORDER)
    assert run("reset", "--yes", "--seats", "9").returncode == 0
    assert server.ask("GET", "/event")[1]["availableSeats"] == 9
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    assert saved()["event"]["availableSeats"] == 6


# --- admin, and the key -------------------------------------------------------


@pytest.mark.usefixtures("cheap_hashes")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--seats", "50", "admin", "a@b.co"],
        ["admin", "--seats", "50", "a@b.co"],
        ["--seats", "70", "admin", "a@b.co", "--seats", "50"],
    ],
    ids=" ".join,
)
def test_an_admin_command_before_the_first_start_seeds_the_given_seats(
    db, saved, arguments
):
    typed = "a long password\na long password\n"
    ended = CliRunner().invoke(
        ticketboss.main, ["--db", str(db), *arguments], input=typed
    )
    assert (ended.exit_code, str(db) in ended.stdout) == (0, True)
    assert saved()["event"]["totalSeats"] == saved()["event"]["availableSeats"] == 50
    [account] = saved()["accounts"]["members"].values()
    assert (account["email"], account["role"]) == ("a@b.co", "admin")


@pytest.mark.parametrize(
    "address",
    [
        "a\x1b[2J@b.co",
        "a@b\x07.co",
        "a\x7f@b.co",
        "a\u202e@b.co",
        "a\udcff@b.co",
        "x" * 500 + "@b.co",
        "a@" + "x" * 500 + ".co",
        "a@" + "." * 60_000 + "@",
        "a",
        "",
    ],
    ids=lambda address: ascii(address)[:20],
)
def test_the_admin_command_refuses_an_unusable_address_in_one_line(
    run, tmp_path, address
):
    ended = run("admin", address)
    in_one_line(ended, "EMAIL")
    assert ended.stderr.isascii()
    assert len(ended.stderr) < 500
    assert listing(tmp_path) == []


@pytest.mark.usefixtures("cheap_hashes")
def test_the_admin_command_refuses_an_address_that_is_already_a_username(db, saved):
    admin = ["admin", "a@b.co", "--db", str(db)]
    typed = "a long password\na long password\n"
    assert CliRunner().invoke(ticketboss.main, admin, input=typed).exit_code == 0
    file = saved()
    file["accounts"]["members"]["1"]["email"] = "other@b.co"
    db.write_text(json.dumps(file))
    ended = CliRunner().invoke(ticketboss.main, admin, input=typed)
    assert ended.exit_code == 1
    said = f"Error: {db}: This e-mail or username is already registered\n"
    assert ended.stderr == said
    assert saved() == file


def test_a_jwt_secret_is_any_bytes(serve):
    secret = bytes(range(0xC0, 0xC0 + 40))
    with pytest.raises(UnicodeDecodeError):
        secret.decode()
    me = {"username": "ann", "email": "ann@example.com", "password": "a long password"}
    tokens = []
    for _ in range(2):
        server = serve(JWT_SECRET=os.fsdecode(secret))
        status = server.ask("POST", "/api/v1/auth/register", me)[0]
        assert status == (409 if tokens else 201)
        status, told, _ = server.ask(
            "POST", "/login", {"username": "ann", "password": me["password"]}
        )
        assert status == 200
        tokens.append(told["token"])
        for token in tokens:  # the first one is still good after a new start
            bearer = {"Authorization": f"Bearer {token}"}
            assert server.ask("GET", "/api/v1/auth/me", **bearer)[0] == 200
        assert server.stop()[0] == 0


# --- What happens to a running server ----------------------------------------


@pytest.mark.parametrize(
    "left",
    [None, "", "{ cut", changed(event__availableSeats=9)],
    ids=["gone", "empty", "cut", "sum"],
)
def test_a_server_without_its_file_answers_503_until_it_is_back(serve, db, left):
    server = serve()
    server.ask("POST", "/reservations", ORDER)
    good = db.read_bytes()
    db.unlink()
    if left is not None:
        db.write_text(left)
    for method, path in [
        ("GET", "/event"),
        ("GET", "/reservations"),
        ("POST", "/reservations"),
        ("DELETE", "/reservations/a"),
    ]:
        status, told, _ = server.ask(method, path, ORDER if method == "POST" else None)
        assert (status, list(told)) == (503, ["error"])
    status, told, _ = server.ask("GET", "/_health")
    assert (status, told["ok"]) == (503, False)
    assert told["error"]
    assert listing(db.parent) == ([] if left is None else ["db.json"])
    assert left is None or db.read_text() == left

    db.write_bytes(good)
    assert server.ask("GET", "/_health")[:2] == (200, {"ok": True})
    assert server.ask("GET", "/event")[1]["availableSeats"] == 497
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    assert json.loads(db.read_text())["event"]["version"] == 2


def test_a_full_disk_refuses_changes_alone_and_only_while_it_is_full(serve, db):
    server = serve()
    sold = server.ask("POST", "/reservations", ORDER)[1]
    before, pid = db.read_bytes(), server.process.pid
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (len(before) // 2, most))
    for method, path in [
        ("POST", "/reservations"),
        ("DELETE", f"/reservations/{sold['reservationId']}"),
    ]:
        status, told, headers = server.ask(
            method, path, ORDER if method == "POST" else None
        )
        assert (status, list(told)) == (503, ["error"])
        assert "othing was changed" in told["error"]
        assert "Retry-After" in headers
        assert str(db.parent) not in told["error"]
        assert db.read_bytes() == before
        assert listing(db.parent) == ["db.json"]
    assert server.ask("GET", "/event")[1]["availableSeats"] == 497

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
    assert server.ask("DELETE", f"/reservations/{sold['reservationId']}")[0] == 204
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    assert server.ask("GET", "/_health")[:2] == (200, {"ok": True})
    assert json.loads(db.read_text())["event"]["version"] == 3


def test_one_server_is_stopped_while_another_keeps_selling(serve, saved):
    first, second = serve(), serve()
    assert first.ask("POST", "/reservations", ORDER)[0] == 201
    assert first.stop()[0] == 0
    assert second.ask("POST", "/reservations", ORDER)[0] == 201
    assert saved()["event"] | {"name": ""} == {
        "eventId": SEEDED,
        "name": "",
        "totalSeats": 500,
        "availableSeats": 494,
        "version": 2,
    }


def test_a_command_without_memory_says_why_and_nothing_behind_it():
    with (
        pytest.raises(click.ClickException) as ended,
        ticketboss.exit_with_message("db.json"),
    ):
        text = "db.json cannot be read: MemoryError"
        raise ticketboss.Unavailable(text, "/here/db.json") from MemoryError()
    assert ended.value.message == f"/here/db.json: {text}"
