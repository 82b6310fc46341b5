"""Behind any proxy the page works, other sites' pages do not, and nobody is promoted.

The browser says where a request comes from (Sec-Fetch-Site); else its Origin is
compared with the Host that the client sees. A front end of one's own is allowed by
name. The first account is an admin only where nothing hints at a proxy.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Server, require_tool
from deployed import ORDER, Launched, Wire, assert_option_is_refused
from test_page import NAMES, Browser, Page

FRONT_END = "http://localhost:5173"
OTHER_FRONT_END = "https://shop.example"
ANN = {"username": "ann", "email": "ann@example.com", "password": "securePassword1"}


# --- Whose page it is --------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A server that allows two front ends; its tests count no seats."""
    db = tmp_path_factory.mktemp("shared") / "db.json"
    allowed = ("--allow-origin", FRONT_END, "--allow-origin", OTHER_FRONT_END)
    server = Launched(db, "--port", "0", "--quiet", "--seats", "100000", *allowed)
    yield server
    server.stop()


CHANGES = [
    ("POST", "/reservations", ORDER),
    ("DELETE", "/reservations/x", None),
    ("POST", "/book", {"eventId": "node-meetup-2025", "userId": 1}),
    ("POST", "/initialize", {"eventId": 1, "totalTickets": 1}),
    ("DELETE", "/events/1", None),
    ("POST", "/api/v1/booking", {}),
    ("POST", "/login", {}),
]


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8080"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://x:8443", "Host": "x"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "none", "Origin": "null"},
        {"Origin": "http://x:3000", "Host": "x:3000"},
        {"Origin": "http://X:3000", "Host": "x:3000"},
        {"Origin": "https://x", "Host": "x"},
        {"Origin": "http://ticket_boss:3000", "Host": "ticket_boss:3000"},
        {"Origin": "http://[::1]:3000", "Host": "[::1]:3000"},
        {},
    ],
    ids=str,
)
def test_our_own_page_and_programs_may_make_changes(client, saved, headers):
    answer = client.post("/reservations", json=ORDER, headers=headers)
    assert answer.status_code == 201
    assert saved()["event"]["version"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://x", "Host": "x"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:8080"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://x", "Host": "x"},
        {"Sec-Fetch-Site": ""},
        {"Sec-Fetch-Site": "none, cross-site"},
        {"Sec-Fetch-Site": "anything"},
        {"Origin": "http://evil.example"},
        {"Origin": "https://x:8443", "Host": "x"},
        {"Origin": "null"},
        {"Origin": "null", "Host": "ticket_boss:3000"},
        {"Origin": "", "Host": "ticket_boss:3000"},
        {"Origin": "null", "Host": "null"},
        {"Origin": "x", "Host": "x"},
        {"Origin": "http://shop.example", "X-Forwarded-Host": "shop.example"},
        {"Origin": "http://shop.example", "Forwarded": "host=shop.example"},
    ],
    ids=str,
)
def test_a_page_of_another_site_changes_nothing_by_any_route(client, db, headers):
    before = db.read_bytes()
    for method, path, body in CHANGES:
        answer = client.open(path, method=method, json=body, headers=headers)
        assert answer.status_code == 403, path
    assert db.read_bytes() == before
    for path in ("/event", "/reservations", "/"):
        assert client.get(path, headers=headers).status_code == 200


def test_a_cross_origin_refusal_names_both_values_and_the_option(client):
    headers = {"Origin": "http://localhost:8080", "Host": "127.0.0.1:3000"}
    told = client.post("/reservations", json=ORDER, headers=headers).json["error"]
    assert "http://localhost:8080" in told
    assert "127.0.0.1:3000" in told.replace("http://localhost:8080", "")
    assert "--allow-origin http://localhost:8080" in told
    headers["Sec-Fetch-Site"] = "cross-site"
    told = client.post("/reservations", json=ORDER, headers=headers).json["error"]
    assert "cross-site" in told
    assert "--allow-origin http://localhost:8080" in told


def test_a_cross_origin_refusal_repeats_only_a_plain_short_origin(client):
    for origin in ("http://\u00e9\u0080", "http://" + "x" * 5000):
        answer = client.post("/reservations", json=ORDER, headers={"Origin": origin})
        assert answer.status_code == 403
        assert answer.text.isascii()
        assert len(answer.text) < 2000


@pytest.mark.parametrize(
    ("origin", "host", "forwarded", "status"),
    [
        ("https://shop.example", "inside:3000", "shop.example", 201),
        ("https://shop.example:8443", "inside:3000", "shop.example:8443", 201),
        ("https://shop.example", "shop.example", None, 201),
        ("https://evil.example", "inside:3000", "shop.example", 403),
        ("https://evil.example", "inside:3000", "evil.example, shop.example", 403),
        ("null", "inside:3000", "null", 403),
    ],
)
def test_with_trust_proxy_the_forwarded_host_decides_which_page_is_ours(
    make_app, saved, origin, host, forwarded, status
):
    client = make_app(trust_proxy=True).test_client()
    headers = {"Origin": origin, "Host": host}
    if forwarded is not None:
        headers["X-Forwarded-Host"] = forwarded
    answer = client.post("/reservations", json=ORDER, headers=headers)
    assert answer.status_code == status
    assert saved()["event"]["version"] == (1 if status == 201 else 0)


# --- A front end of one's own ------------------------------------------------


def listed(headers: dict[str, str], name: str) -> set[str]:
    """The words of a header with commas, in lower case."""
    return {each.strip().lower() for each in headers.get(name, "").split(",")} - {""}


def allowed(headers: dict[str, str]) -> set[str]:
    """The names of the headers that allow another site something."""
    return {name for name in headers if name.lower().startswith("access-control-")}


@pytest.mark.parametrize("origin", [FRONT_END, OTHER_FRONT_END])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/reservations"),
        ("DELETE", "/reservations/x"),
        ("GET", "/event"),
        ("POST", "/book"),
        ("DELETE", "/events/1"),
        ("POST", "/api/v1/booking"),
    ],
)
def test_a_preflight_of_an_allowed_front_end_is_allowed(shared, origin, method, path):
    status, told, headers = shared.ask(
        "OPTIONS",
        path,
        Origin=origin,
        Sec_Fetch_Site="cross-site",
        Access_Control_Request_Method=method,
        Access_Control_Request_Headers="content-type,if-match",
    )
    assert status in {200, 204}
    assert not told
    assert headers["Access-Control-Allow-Origin"] == origin
    methods = listed(headers, "Access-Control-Allow-Methods")
    assert {"get", "post", "delete"} <= methods
    assert {
        "authorization",
        "content-type",
        "if-match",
        "if-none-match",
        "idempotency-key",
        "x-request-id",
    } <= listed(headers, "Access-Control-Allow-Headers")
    assert "Access-Control-Allow-Credentials" not in headers
    assert "origin" in listed(headers, "Vary")


@pytest.mark.parametrize(
    ("method", "path", "body", "more", "expected"),
    [
        ("POST", "/reservations", ORDER, {}, 201),
        ("GET", "/event", None, {}, 200),
        ("GET", "/event", None, {"If_None_Match": "*"}, 304),
        ("POST", "/reservations", {}, {}, 400),
        ("GET", "/reservations/x", None, {}, 404),
        ("DELETE", "/reservations/x", None, {}, 404),
        ("PUT", "/event", None, {}, 405),
        ("POST", "/reservations", ORDER, {"If_Match": '"999999"'}, 412),
        ("POST", "/reservations", b" " * 70_000, {}, 413),
        ("POST", "/reservations", ORDER, {"Content_Encoding": "gzip"}, 415),
        ("GET", "/event", None, {"Authorization": "Bearer x"}, 401),
        ("GET", "/event", None, {"Host": "evil.example"}, 421),
    ],
)
def test_an_allowed_front_end_can_read_every_answer(
    shared, method, path, body, more, expected
):
    status, _, headers = shared.ask(
        method, path, body, Origin=FRONT_END, Sec_Fetch_Site="cross-site", **more
    )
    assert status == expected
    assert headers["Access-Control-Allow-Origin"] == FRONT_END
    assert {
        "etag",
        "location",
        "link",
        "x-attempts",
        "retry-after",
        "idempotent-replayed",
    } <= listed(headers, "Access-Control-Expose-Headers")
    assert "Access-Control-Allow-Credentials" not in headers
    assert "origin" in listed(headers, "Vary")


BEFORE_FLASK = {  # what is refused while it is read
    "a body beyond 1 MiB": (
        413,
        "HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000",
    ),
    "a bad length": (400, "HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1"),
    "no Host": (400, "HTTP/1.1\r\nContent-Length: 0"),
    "an unknown coding": (
        501,
        "HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip",
    ),
}


@pytest.mark.parametrize(("status", "head"), BEFORE_FLASK.values(), ids=BEFORE_FLASK)
def test_only_an_allowed_page_can_read_the_refusal_of_a_malformed_request(
    shared, status, head
):
    for origin, expected in ((FRONT_END, FRONT_END), ("http://evil.example", None)):
        with Wire(shared.address) as wire:
            wire.send(f"POST /book {head}\r\nOrigin: {origin}\r\n\r\n".encode())
            told, headers, body = wire.answer()
        assert (told, json.loads(body).keys()) == (status, {"error", "message"})
        assert headers.get("access-control-allow-origin") == expected
        assert ("access-control-expose-headers" in headers) == (expected is not None)
        assert headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:5174",
        "https://localhost:5173",
        "http://localhost",
        "http://localhost:5173/",
        "http://localhost:51730",
        "http://evil.example",
        "http://shop.example",
        "https://shop.example.evil.example",
        "null",
        "*",
    ],
)
def test_any_other_front_end_gets_no_cors_headers(shared, origin):
    before = shared.db.read_bytes()
    headers = {"Origin": origin, "Sec_Fetch_Site": "cross-site"}
    status, _, told = shared.ask("POST", "/reservations", ORDER, **headers)
    assert (status, allowed(told)) == (403, set())
    assert "origin" in listed(told, "Vary")
    status, _, told = shared.ask(
        "OPTIONS", "/reservations", **headers, Access_Control_Request_Method="POST"
    )
    assert status in {200, 204, 403}
    assert allowed(told) == set()
    assert shared.db.read_bytes() == before


def test_a_request_without_an_origin_gets_vary_and_no_cors_headers(shared):
    status, told, headers = shared.ask("GET", "/event")
    assert (status, allowed(headers)) == (200, set())
    assert told["eventId"] == "node-meetup-2025"
    assert "origin" in listed(headers, "Vary")
    assert shared.ask("POST", "/reservations", ORDER)[0] == 201


def test_a_preflight_needs_no_token_where_a_login_is_required(serve):
    server = serve("--require-login", "--allow-origin", FRONT_END)
    status, _, headers = server.ask(
        "OPTIONS",
        "/reservations",
        Origin=FRONT_END,
        Access_Control_Request_Method="POST",
    )
    assert status in {200, 204}
    assert headers["Access-Control-Allow-Origin"] == FRONT_END
    status, _, headers = server.ask("POST", "/reservations", ORDER, Origin=FRONT_END)
    assert status == 401
    assert headers["Access-Control-Allow-Origin"] == FRONT_END


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "localhost:5173",
        "http://",
        "http://localhost:5173/",
        "http://localhost:5173/page",
        "http://localhost:http",
        "http://*.example",
        "http://a b",
        "",
    ],
)
def test_an_unusable_allowed_origin_stops_the_start_in_one_line(
    tmp_path, monkeypatch, origin
):
    monkeypatch.chdir(tmp_path)
    assert_option_is_refused("--allow-origin", origin)
    assert os.listdir(tmp_path) == []


# --- A stock nginx, and a browser --------------------------------------------

SITES = {
    "proxy_pass alone": "",
    "Host $host": "proxy_set_header Host $host;",
    "gzip": "gzip on; gzip_proxied any; gzip_min_length 1; gzip_types *;",
}
NGINX = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  {servers}
}}
"""
SITE = "server {{ listen 127.0.0.1:{port}; {more} location / {{ proxy_pass {url}; }} }}"


class Nginx:
    """A stock nginx without any rights, before a server: one site for each way."""

    def __init__(self, upstream: str) -> None:
        program = require_tool("nginx")
        self.folder = Path(tempfile.mkdtemp())
        # It is given sockets that listen already, as after an upgrade of nginx, so
        # that no port has to be guessed.
        sockets = {name: socket.create_server(("127.0.0.1", 0)) for name in SITES}
        ports = {name: each.getsockname()[1] for name, each in sockets.items()}
        servers = [
            SITE.format(port=ports[name], more=more, url=upstream)
            for name, more in SITES.items()
        ]
        configuration = NGINX.format(servers="\n  ".join(servers))
        (self.folder / "nginx.conf").write_text(configuration)
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user = {
                "user": nobody.pw_uid,
                "group": nobody.pw_gid,
                "extra_groups": [],
            }
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        handed_over = [each.fileno() for each in sockets.values()]
        self.process = subprocess.Popen(
            [program, "-p", self.folder, "-c", "nginx.conf", "-e", "stderr"],
            pass_fds=handed_over,
            env={"NGINX": "".join(f"{number};" for number in handed_over)},
            stderr=subprocess.PIPE,
            text=True,
            **user,
        )
        for each in sockets.values():
            each.close()
        self.urls = {name: f"http://localhost:{port}" for name, port in ports.items()}

    def stop(self) -> None:
        """End it by its own process id."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=20)
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module", params=SITES)
def proxied(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that is asked through an nginx of each kind."""
    db = tmp_path_factory.mktemp("proxied") / "db.json"
    server = Launched(db, "--port", "0", "--quiet")
    nginx = Nginx(server.url)
    server.url = nginx.urls[request.param]
    yield server
    nginx.stop()
    server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all of these tests."""
    require_tool(*NAMES)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.end()


def test_the_first_account_through_a_stock_nginx_is_no_admin(proxied):
    assert proxied.ask("POST", "/api/v1/auth/register", ANN)[0] == 201
    [account] = json.loads(proxied.db.read_bytes())["accounts"]["members"].values()
    assert account.get("role", "user") == "user"


def test_the_page_reads_and_saves_behind_a_stock_nginx(proxied, browser):
    page = Page(browser, proxied.url)
    try:
        page.until("document.querySelector('#free').textContent === '500'")
        page.click("A", "1 Read")
        assert "201" in page.click("A", "2 Save")
        page.until("document.querySelector('#version').textContent === '1'")
        page.click("B", "1 Read")
        assert "412" in page.click("A", "2 Save")  # it read before it saved
        assert "201" in page.click("B", "2 Save")
    finally:
        browser.call("Target.closeTarget", targetId=page.target)
        browser.events.clear()
    assert json.loads(proxied.db.read_bytes())["event"]["version"] == 2


# --- The first account -------------------------------------------------------

HERE = {"Host": "localhost:3000"}


@pytest.mark.usefixtures("cheap_hashes")
@pytest.mark.parametrize(
    ("settings", "headers", "environ", "role"),
    [
        ({}, HERE, {}, "admin"),
        ({}, {"Host": "127.0.0.1"}, {}, "admin"),
        ({}, {"Host": "[::1]:3000"}, {"REMOTE_ADDR": "::1"}, "admin"),
        ({}, HERE | {"Origin": "http://localhost:3000"}, {}, "admin"),
        ({}, HERE, {"REMOTE_ADDR": "192.0.2.1"}, "user"),
        ({}, HERE, {"SERVER_PROTOCOL": "HTTP/1.0"}, "user"),
        ({}, HERE | {"Via": "1.1 proxy"}, {}, "user"),
        ({}, HERE | {"Forwarded": "for=127.0.0.1"}, {}, "user"),
        ({}, HERE | {"X-Forwarded-For": "127.0.0.1"}, {}, "user"),
        ({}, HERE | {"X-Forwarded-Proto": "http"}, {}, "user"),
        ({}, HERE | {"X-Forwarded": ""}, {}, "user"),
        ({}, HERE | {"X-Real-IP": "127.0.0.1"}, {}, "user"),
        ({}, HERE | {"CF-Connecting-IP": "127.0.0.1"}, {}, "user"),
        ({}, HERE | {"CF-Ray": "x"}, {}, "user"),
        (
            {},
            HERE | {"Origin": "https://shop.example", "Sec-Fetch-Site": "same-origin"},
            {},
            "user",
        ),
        ({"trust_proxy": True}, HERE, {}, "user"),
        ({"trusted_hosts": ("shop.example",)}, HERE, {}, "user"),
        (
            {"trusted_hosts": ("shop.example",)},
            {"Host": "shop.example"},
            {},
            "user",
        ),
        ({"loopback": False}, HERE, {}, "user"),
        ({"standalone": False, "loopback": False}, HERE, {}, "user"),
    ],
    ids=str,
)
def test_the_first_account_is_an_admin_only_without_signs_of_a_proxy(
    make_app, saved, settings, headers, environ, role
):
    app = make_app(**{"standalone": True, "loopback": True} | settings)
    answer = app.test_client().post(
        "/api/v1/auth/register",
        json=ANN,
        headers=headers,
        environ_overrides={"SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1"}
        | environ,
    )
    assert answer.status_code == 201
    [account] = saved()["accounts"]["members"].values()
    assert account.get("role", "user") == role


def test_the_banner_announces_an_admin_where_the_first_account_becomes_one(db):
    def banner(*options: str) -> str:
        server = Launched(db, "--port", "0", *options)
        if not options:
            assert server.ask("POST", "/api/v1/auth/register", ANN)[0] == 201
        _, out, err = server.stop()
        logs.append(err)
        return server.banner + out

    logs: list[str] = []
    promise = "first account"
    for options in (("--trust-proxy",), ("--trusted-host", "shop.example")):
        assert promise not in banner(*options)
    promised = banner()
    assert promise in promised
    assert "admin" in promised
    [line] = [line for line in logs[-1].splitlines() if "is an admin" in line]
    assert "ann" in line
    assert json.loads(db.read_bytes())["accounts"]["members"]["1"]["role"] == "admin"
    assert promise not in banner("--quiet")  # there is one already
