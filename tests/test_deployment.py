"""However it is deployed: variables, addresses, signals, kept connections, tokens."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import click
import jwt
import pytest
from deployed import ORDER, Launched, Wire, ended, ended_in_here, held, one_line
from keepalive import Client

import ticketboss

ANN = {"username": "ann", "email": "ann@example.com", "password": "securePassword1"}
SECRET = b"a secret of thirty-two bytes or more"
CLUSTER = "tcp://10.96.0.12:3000"  # set by Kubernetes for a Service of our name


@pytest.fixture
def launch(db: Path) -> Iterator[Callable[..., Launched]]:
    """launch(*arguments, first="", **env): a server, killed after the test."""
    with ExitStack() as running:

        def launch(*arguments: str, first: str = "", **env: str) -> Launched:
            server = Launched(db, *arguments, first=first, **env)
            running.callback(server.stop, signal.SIGKILL)
            return server

        yield launch


@pytest.fixture
def taken() -> Iterator[str]:
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield str(listening.getsockname()[1])


# --- Variables ---------------------------------------------------------------


def variables(command: click.Command, prefix: str | None) -> dict[str, set[str]]:
    """The variables of each option of a command, those that click makes up included."""
    found = {}
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        named = option.envvar or []
        names = {named} if isinstance(named, str) else {*named}
        if not names and prefix and option.allow_from_autoenv:
            names = {f"{prefix}_{option.name.upper()}"}
        found[option.opts[0]] = names
    return found


def test_only_the_listed_options_have_a_variable():
    prefix = ticketboss.main.context_settings.get("auto_envvar_prefix")
    assert set().union(*variables(ticketboss.main, prefix).values()) == {
        "PORT",
        "TICKETBOSS_ALLOW_ORIGIN",
        "TICKETBOSS_DB",
        "TICKETBOSS_HOST",
        "TICKETBOSS_LOGIN_LIMIT",
        "TICKETBOSS_PORT",
        "TICKETBOSS_QUIET",
        "TICKETBOSS_RATE_LIMIT",
        "TICKETBOSS_RATE_STORAGE",
        "TICKETBOSS_REQUIRE_IF_MATCH",
        "TICKETBOSS_REQUIRE_LOGIN",
        "TICKETBOSS_SEATS",
        "TICKETBOSS_THINK",
        "TICKETBOSS_TRUSTED_HOST",
        "TICKETBOSS_TRUST_PROXY",
    }
    for name, command in ticketboss.main.commands.items():
        own = variables(command, prefix and f"{prefix}_{name.upper()}")
        assert set().union(*own.values()) == set(), name
    assert "--yes" in variables(ticketboss.main.commands["reset"], None)


@pytest.mark.parametrize("name", ["TICKETBOSS_YES", "TICKETBOSS_RESET_YES", "YES"])
def test_no_variable_confirms_a_reset(db, name):
    assert ended_in_here(db.parent, "reset", "--yes", "--seats", "7")[0] == 0
    before = db.read_bytes()
    code, _, _ = ended_in_here(db.parent, "reset", "--seats", "9", **{name: "1"})
    assert code == 1
    assert db.read_bytes() == before
    assert sorted(os.listdir(db.parent)) == [".db.json.lock", "db.json"]


def test_our_own_port_goes_before_port(launch, db, taken):
    server = launch("--quiet", TICKETBOSS_PORT="0", PORT=taken)
    assert server.ask("GET", "/event")[0] == 200
    code, out, err = ended(db.parent, "--quiet", TICKETBOSS_PORT=taken, PORT="0")
    assert (code, out) == (1, "")
    one_line(err, taken)


def test_a_port_that_a_cluster_set_is_ignored_with_one_line(launch):
    server = launch("--quiet", TICKETBOSS_PORT=CLUSTER, PORT="0")
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    server.process.terminate()
    _, out, err = server.stop()
    [line] = [li for li in (server.banner + out + err).splitlines() if CLUSTER in li]
    assert "TICKETBOSS_PORT" in line
    assert "ignored" in line


def test_without_a_port_the_server_takes_the_default(db):
    # No server is started: the default port may be in use. The option has it.
    code, out, _ = ended_in_here(db.parent, "--help", TICKETBOSS_PORT=CLUSTER)
    assert code == 0
    assert re.search(r"--port\b.*\b3000\b", re.sub(r"\s+", " ", out))


def test_a_command_ignores_a_port_that_a_cluster_set(db):
    assert ended_in_here(db.parent, "reset", "--yes")[0] == 0
    code, out, err = ended_in_here(db.parent, "audit", TICKETBOSS_PORT=CLUSTER)
    assert code == 0
    assert "500 available" in out
    assert "Traceback" not in err


def test_under_another_server_a_port_that_a_cluster_set_is_ignored(db, monkeypatch):
    monkeypatch.setenv("TICKETBOSS_DB", str(db))
    monkeypatch.setenv("TICKETBOSS_QUIET", "1")
    monkeypatch.setenv("TICKETBOSS_PORT", CLUSTER)
    monkeypatch.delenv("JWT_SECRET", raising=False)
    client = ticketboss.create_app().test_client()
    assert client.get("/event").json["availableSeats"] == 500


@pytest.mark.parametrize("value", ["http", "70000", "tcp"])
def test_any_other_unusable_port_stops_the_start(db, value):
    code, out, err = ended(db.parent, TICKETBOSS_PORT=value)
    assert (code, out) == (2, "")
    one_line(err, "--port", value)
    assert os.listdir(db.parent) == []


# --- Addresses ---------------------------------------------------------------


def has_ipv6() -> bool:
    """Whether this machine has the loopback address of IPv6."""
    try:
        with closing(socket.socket(socket.AF_INET6)) as found:
            found.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_the_default_listens_at_both_loopback_addresses(launch):
    server = launch("--port", "0", "--quiet")
    port = server.address[1]
    for address in ("127.0.0.1", "::1"):
        with Wire((address, port)) as wire:
            assert wire.ask("GET /event HTTP/1.1")[0] == 200
    code, _, err = server.stop()
    assert (code, err) == (0, "")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_a_server_with_an_address_listens_on_that_one_alone(launch):
    server = launch("--port", "0", "--quiet", "--host", "127.0.0.1")
    assert server.ask("GET", "/event")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        Wire(("::1", server.address[1]))


@pytest.mark.parametrize("error", ["EADDRNOTAVAIL", "EADDRINUSE", "EAFNOSUPPORT"])
def test_where_there_is_no_second_loopback_address_one_line_says_so(launch, error):
    server = launch(
        "--port",
        "0",
        "--quiet",
        first=f"""
import errno, os, socket
class Socket(socket.socket):
    def bind(self, address):
        if self.family == socket.AF_INET6:
            raise OSError(errno.{error}, os.strerror(errno.{error}))
        super().bind(address)
socket.socket = Socket
""",
    )
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    code, _, err = server.stop()
    assert code == 0
    one_line(err, "::1")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "[::1]", "::1", "localhost", "*", "::", "127.1"]
)
def test_the_banner_shows_addresses_that_other_machines_can_open(launch, host):
    if ":" in host and not has_ipv6():
        pytest.skip("this machine has no ::1")
    server = launch("--port", "0", "--quiet", "--host", host)
    assert server.ask("GET", "/event")[0] == 200
    urls = set(re.findall(r"http://[^\s/']+", server.banner))
    assert urls
    for url in urls:
        parts = urlsplit(url)
        assert parts.port
        server.url = url
        assert server.ask("GET", "/_health")[:2] == (200, {"ok": True})
    code, rest, err = server.stop()
    assert (code, err) == (0, "")
    nowhere = r"//(0\.0\.0\.0|\[::\]|\*|\[\[)|:0/|:0$"
    assert not re.search(nowhere, server.banner + rest, re.MULTILINE)


# --- Signals -----------------------------------------------------------------


def under_way(server: Launched, number: int, stack: ExitStack) -> list[Client]:
    """Clients whose orders a server works on, unanswered."""
    clients = [stack.enter_context(Client(server.url)) for _ in range(number)]
    for client in clients:
        client.send("POST", "/reservations", ORDER)
    for _ in range(3):  # asked later, answered: so the orders have been taken up
        assert server.ask("GET", "/event")[0] == 200
    return clients


def test_a_closed_terminal_ends_the_server_as_sigterm_does(launch, db):
    server = launch("--port", "0", "--quiet")
    with ExitStack() as stack:
        with held(db):
            clients = under_way(server, 3, stack)
            server.process.send_signal(signal.SIGHUP)
        answers = [client.receive() for client in clients]
        assert [answer.status for answer in answers] == [201] * 3
        assert server.process.wait(20) == 0
        kept = json.loads(db.read_bytes())["reservations"]
        assert set(kept) == {answer.body["reservationId"] for answer in answers}


def test_under_nohup_a_closed_terminal_ends_nothing(launch):
    ignores = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)"
    server = launch("--port", "0", "--quiet", first=ignores)
    server.process.send_signal(signal.SIGHUP)
    for _ in range(3):
        assert server.ask("POST", "/reservations", ORDER)[0] == 201
    assert server.process.poll() is None
    assert server.stop()[0] == 0


# --- Kept connections --------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A server with the default settings, for tests that need no event of their own."""
    folder = tmp_path_factory.mktemp("kept")
    server = Launched(folder / "db.json", "--port", "0", "--quiet")
    yield server
    server.stop(signal.SIGKILL)


def test_a_connection_is_kept_after_an_answer_without_a_body(launch):
    server = launch("--port", "0", "--quiet")
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    with closing(connection):
        connection.request("GET", "/event")
        answer = connection.getresponse()
        etag, _ = answer.headers["ETag"], answer.read()
        first = connection.sock
        assert first is not None
        for _ in range(3):
            connection.request("POST", "/reservations", json.dumps(ORDER))
            sold = json.loads(connection.getresponse().read())
            path = f"/reservations/{sold['reservationId']}"
            connection.request("DELETE", path)
            gone = connection.getresponse()
            assert (gone.status, gone.read()) == (204, b"")
            assert gone.headers.get("Connection", "").lower() != "close"
            assert "Transfer-Encoding" not in gone.headers
            assert "Content-Length" not in gone.headers
            connection.request("GET", "/event", headers={"If-None-Match": "*"})
            same = connection.getresponse()
            assert (same.status, same.read()) == (304, b"")
            assert same.headers.get("Connection", "").lower() != "close"
        assert connection.sock is first
        assert etag == '"0"'


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/event", 200),
        ("HEAD", "/event", 200),
        ("GET", "/event", 304),
        ("OPTIONS", "/event", 200),
        ("GET", "/nothing", 404),
        ("DELETE", "/reservations/x", 404),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_two_requests_on_one_connection_are_both_answered(
    server, method, path, status, version
):
    condition = "If-None-Match: *\r\n" if status == 304 else ""
    question = (
        f"{method} {path} HTTP/{version}\r\nHost: localhost\r\n{condition}"
        f"Connection: keep-alive\r\n\r\n"
    ).encode()
    with Wire(server.address) as wire:
        for _ in range(2):
            wire.send(question)
            if method == "HEAD":
                head = wire._until(b"\r\n\r\n")
                assert head.startswith(f"HTTP/{version} {status} ".encode())
                assert b"close" not in head.lower()
                continue
            code, headers, _ = wire.answer()
            assert code == status
            assert headers.get("connection", "keep-alive").lower() == "keep-alive"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_connection_is_closed_when_the_client_asks_for_that(server, version):
    with Wire(server.address) as wire:
        wire.send(
            f"GET /event HTTP/{version}\r\nHost: localhost\r\nIf-None-Match: *\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        status, headers, _ = wire.answer()
        assert (status, headers["connection"].lower()) == (304, "close")
        assert wire.is_dropped()


# --- Tokens ------------------------------------------------------------------


@pytest.fixture
def client(make_app, client):
    """A test client of an app with one account, whose key is known."""
    client = make_app(jwt_secret=SECRET).test_client()
    assert client.post("/api/v1/auth/register", json=ANN).status_code == 201
    return client


def claims(client) -> dict[str, object]:
    """The claims of a good token of this account."""
    session = client.post(
        "/login", json={"username": "ann", "password": ANN["password"]}
    )
    return jwt.decode(session.json["token"], SECRET, ["HS256"])


def bearer(said: dict[str, object]) -> dict[str, str]:
    """The header with a token of these claims."""
    return {"Authorization": f"Bearer {jwt.encode(said, SECRET, 'HS256')}"}


@pytest.mark.usefixtures("cheap_hashes")
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/login", {"username": "ann", "password": ANN["password"]}, 200),
        (
            "/api/v1/auth/login",
            {"email": ANN["email"], "password": ANN["password"]},
            200,
        ),
        (
            "/api/v1/auth/register",
            {"username": "bob", "email": "bob@example.com", "password": "12345678"},
            201,
        ),
    ],
)
def test_a_login_does_not_look_at_old_tokens(client, path, body, status):
    said = claims(client)
    expired = bearer(said | {"iat": said["iat"] - 9000, "exp": said["exp"] - 9000})
    answer = client.post(path, json=body, headers=expired)
    assert answer.status_code == status
    assert client.get("/event", headers=expired).status_code == 401


@pytest.mark.usefixtures("cheap_hashes")
@pytest.mark.parametrize(
    "scheme", ["Basic YW5uOnNlY3JldA==", "Digest x", "Token x", "Basic", "rubbish"]
)
def test_a_header_of_another_scheme_is_not_taken_for_a_token(client, saved, scheme):
    headers = {"Authorization": scheme}
    assert client.get("/event", headers=headers).status_code == 200
    answer = client.post("/reservations", json=ORDER, headers=headers)
    assert answer.status_code == 201
    answer = client.get("/api/v1/auth/me", headers=headers)
    assert answer.status_code == 401
    assert answer.json["message"] == "No token provided"


def test_a_header_of_another_scheme_is_401_where_login_is_required(make_app, db):
    strict = make_app(require_login=True).test_client()
    before = db.read_bytes()
    headers = {"Authorization": "Basic YW5uOnNlY3JldA=="}
    answer = strict.post("/reservations", json=ORDER, headers=headers)
    assert (answer.status_code, answer.json["error"]) == (401, "No token provided")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert db.read_bytes() == before


@pytest.mark.usefixtures("cheap_hashes")
@pytest.mark.parametrize(("ahead_s", "status"), [(5, 200), (25, 200), (60, 401)])
def test_a_clock_that_went_back_a_little_leaves_tokens_good(client, ahead_s, status):
    made = int(time.time()) + ahead_s
    headers = bearer(claims(client) | {"iat": made, "exp": made + 3600})
    assert client.get("/api/v1/auth/me", headers=headers).status_code == status
