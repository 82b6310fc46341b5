"""The first account is an admin only where nobody else could have registered it."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from urllib.parse import urlsplit

import pytest
from furnished import PASSWORD, inhabited, people, register

pytestmark = pytest.mark.usefixtures("cheap_hashes")

AT_HOME = {"loopback": True}
PATH = "/api/v1/auth/register"
EVE = {"username": "eve", "email": "eve@example.com", "password": PASSWORD}


@pytest.fixture
def role(saved):
    """role(): of the first account."""
    return lambda: saved()["accounts"]["members"]["1"].get("role", "user")


def test_the_first_account_over_loopback_is_an_admin_and_the_second_is_not(
    make_app, saved, role
):
    client = make_app(**AT_HOME).test_client()
    assert register(client, "eve").status_code == 201
    assert register(client, "mallory").status_code == 201
    assert role() == "admin"
    assert saved()["accounts"]["members"]["2"].get("role", "user") == "user"


@pytest.mark.parametrize(
    "origin", ["http://localhost", "http://localhost:3000", "http://127.0.0.1"]
)
def test_our_own_page_may_make_the_first_admin_over_loopback(make_app, role, origin):
    client = make_app(**AT_HOME).test_client()
    host = origin.partition("://")[2]
    headers = {"Origin": origin, "Host": host}
    assert client.post(PATH, json=EVE, headers=headers).status_code == 201
    assert role() == "admin"


@pytest.mark.parametrize(
    "settings",
    [
        {"trust_proxy": True},
        {"trusted_hosts": ("box.example",)},
        {"trusted_hosts": ("localhost",)},
        {"trust_proxy": True, "trusted_hosts": ("box.example",)},
    ],
)
def test_where_a_proxy_is_configured_the_first_account_is_no_admin(
    make_app, role, settings
):
    client = make_app(**AT_HOME, **settings).test_client()
    assert client.post(PATH, json=EVE).status_code == 201
    assert role() == "user"


@pytest.mark.parametrize(
    "header",
    [
        "Via",
        "Forwarded",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Server",
        "X-Real-IP",
        "CF-Connecting-IP",
        "CF-Ray",
        "CF-Visitor",
        "x-forwarded-for",
    ],
)
def test_a_first_account_through_a_proxy_is_no_admin(make_app, role, header):
    client = make_app(**AT_HOME).test_client()
    value = "" if header in {"Via", "Forwarded", "CF-Ray"} else "127.0.0.1"
    assert client.post(PATH, json=EVE, headers={header: value}).status_code == 201
    assert role() == "user"


def test_a_first_account_over_http_1_0_is_no_admin(make_app, role):
    client = make_app(**AT_HOME).test_client()
    asked = {"SERVER_PROTOCOL": "HTTP/1.0"}
    assert client.post(PATH, json=EVE, environ_overrides=asked).status_code == 201
    assert role() == "user"


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1", "", "unix:"])
def test_a_first_account_from_another_machine_is_no_admin(make_app, role, address):
    client = make_app(**AT_HOME).test_client()
    asked = {"REMOTE_ADDR": address}
    assert client.post(PATH, json=EVE, environ_overrides=asked).status_code == 201
    assert role() == "user"


@pytest.mark.parametrize("settings", [{"loopback": False}, {"standalone": False}])
def test_a_first_account_is_no_admin_on_a_public_address_or_another_server(
    make_app, role, settings
):
    client = make_app(**settings).test_client()
    for host in ("localhost", "127.0.0.1"):
        name = host.replace(".", "-")
        body = EVE | {"username": f"x{name}", "email": f"{name}@example.com"}
        answer = client.post(PATH, json=body, headers={"Host": host})
        assert answer.status_code == 201
    assert role() == "user"


def test_the_log_names_the_account_that_became_an_admin(make_app, caplog):
    client = make_app(**AT_HOME).test_client()
    with caplog.at_level(logging.INFO, logger="ticketboss"):
        register(client, "eve")
        register(client, "mallory")
    told = [r.getMessage() for r in caplog.records if "admin" in r.getMessage()]
    assert len(told) == 1
    assert "eve" in told[0]
    assert PASSWORD not in caplog.text


def test_the_log_names_no_admin_when_no_account_became_one(make_app, caplog):
    client = make_app(**AT_HOME, trust_proxy=True).test_client()
    with caplog.at_level(logging.INFO, logger="ticketboss"):
        register(client, "eve")
    assert not [r for r in caplog.records if "admin" in r.getMessage()]


# --- a real server -------------------------------------------------------------------


def banner_of(server):
    """All that it printed before it was stopped."""
    _, out, _ = server.stop()
    return server.banner + out


def test_the_banner_announces_that_the_first_account_will_be_an_admin(serve):
    said = [line for line in banner_of(serve()).splitlines() if "admin" in line]
    assert len(said) == 1
    assert "first" in said[0]


def test_the_banner_warns_that_others_can_do_everything_unless_they_need_a_token(serve):
    warning = "Anyone who can connect can do everything."
    everywhere = ["--host", "0.0.0.0"]
    assert warning in banner_of(serve(*everywhere))
    assert warning not in banner_of(serve(*everywhere, "--require-login"))
    assert warning not in banner_of(serve())


def test_the_banner_announces_no_admin_with_trust_proxy(serve):
    assert "first account" not in banner_of(serve("--trust-proxy"))


def test_the_banner_announces_no_admin_once_there_is_an_account(serve, db, make_app):
    inhabited(make_app, db)
    assert len(people()[1]) == 3
    assert "first account" not in banner_of(serve())


@pytest.mark.parametrize(
    ("version", "extra", "became"),
    [
        ("1.1", "", "admin"),
        ("1.0", "", "user"),
        ("1.1", "Via: 1.1 box\r\n", "user"),
    ],
)
def test_a_real_server_distinguishes_a_proxy_from_its_owner(
    serve, role, version, extra, became
):
    server = serve()
    at, body = urlsplit(server.url), json.dumps(EVE)
    with socket.create_connection((at.hostname, at.port), timeout=20) as wire:
        wire.sendall(
            f"POST {PATH} HTTP/{version}\r\nHost: {at.netloc}\r\n{extra}"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        answer = http.client.HTTPResponse(wire)
        answer.begin()
        answer.read()
        assert answer.status == 201
    assert role() == became
