"""A client that asks too often gets 429, and is not mistaken for another."""

from __future__ import annotations

import time
from collections import Counter

import click
import pytest
from limits.storage import Storage

import ticketboss
from ticketboss import (
    create_app,
)

TEXT = "Too many requests from this IP, please try again later."
TOLD = {"message": TEXT, "error": TEXT}
SEEDED = "node-meetup-2025"


@pytest.fixture
def limited(make_app):
    """limited(limit, **settings): a client of an app with that limit."""
    return lambda limit="3 per minute", **settings: make_app(
        rate_limit=limit, **settings
    ).test_client()


def statuses(client, count, path="/event", address="192.0.2.1", **headers):
    """How `count` requests of one client are answered."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return [
        client.get(
            path, headers=sent, environ_base={"REMOTE_ADDR": address}
        ).status_code
        for _ in range(count)
    ]


def test_the_101st_request_is_429_with_the_time_to_retry(limited, saved):
    client = limited("100 per 15 minutes")
    sale, at = {"partnerId": "abc-corp", "seats": 1}, time.time()
    first = client.get("/event")
    assert first.headers["X-RateLimit-Limit"] == "100"
    assert first.headers["X-RateLimit-Remaining"] == "99"
    paths = [
        "/event",
        "/events",
        "/reservations",
        f"/status/{SEEDED}",
        "/report",
        f"/api/v1/booking/status/{SEEDED}",
        f"/events/{SEEDED}/reservations",
    ]
    for n in range(98):
        assert client.get(paths[n % len(paths)]).status_code == 200
    assert client.post("/reservations", json=sale).status_code == 201
    before, late = saved(), client.post("/reservations", json=sale)
    assert (late.status_code, late.get_json()) == (429, TOLD)
    assert late.content_type == "application/json"
    assert 0 < int(late.headers["Retry-After"]) <= 900
    assert late.headers["X-RateLimit-Limit"] == "100"
    assert late.headers["X-RateLimit-Remaining"] == "0"
    assert at < int(late.headers["X-RateLimit-Reset"]) <= time.time() + 901
    assert "X-Request-ID" in late.headers
    assert saved() == before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/event"),
        ("POST", "/reservations"),
        ("DELETE", "/reservations/x"),
        ("POST", "/book"),
        ("GET", "/events"),
        ("GET", "/report"),
        ("POST", "/login"),
    ],
)
def test_every_route_is_refused_once_the_limit_is_reached(limited, method, path):
    client = limited()
    assert statuses(client, 3, address="127.0.0.1") == [200] * 3
    answer = client.open(path, method=method)
    assert (answer.status_code, answer.get_json()) == (429, TOLD)


def test_the_field_error_of_a_429_of_v1_is_a_boolean(limited):
    client = limited()
    statuses(client, 3, address="127.0.0.1")
    answer = client.get(f"/api/v1/booking/status/{SEEDED}")
    assert (answer.status_code, answer.get_json()) == (
        429,
        {"message": TEXT, "error": True},
    )
    assert int(answer.headers["Retry-After"]) > 0


def test_health_and_the_front_page_never_count_and_are_never_refused(limited):
    client, free = limited(), ["/_health", "/", "/_health/"]
    for path in free:
        assert statuses(client, 10, path) == [200] * 10
    assert statuses(client, 4) == [200, 200, 200, 429]
    for path in free:
        assert statuses(client, 10, path) == [200] * 10


def test_no_client_is_limited_by_default(client):
    assert statuses(client, 150) == [200] * 150


def test_a_client_is_served_again_when_the_window_is_over(limited, monkeypatch):
    client, real = limited("3 per 15 minutes"), time.time
    assert statuses(client, 4) == [200, 200, 200, 429]
    monkeypatch.setattr(time, "time", lambda: real() + 901)
    assert statuses(client, 4) == [200, 200, 200, 429]


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer bad"}, {"Authorization": "Bearer"}]
)
def test_requests_with_guessed_tokens_count(limited, headers):
    assert statuses(limited(), 4, **headers) == [401, 401, 401, 429]


def test_refused_requests_count_like_successful_ones(limited):
    client = limited()
    told = [
        client.post("/reservations", data=data).status_code
        for data in (b"{", b"{}", b'{"partnerId":"abc-corp","seats":11}', b"{")
    ]
    assert told == [400, 400, 400, 429]


@pytest.mark.parametrize(
    "limit",
    ["nonsense", "100", "many per minute", "-1 per minute", "100 per fortnight"],
)
def test_an_unusable_rate_limit_stops_the_start(db, monkeypatch, limit):
    monkeypatch.setenv("TICKETBOSS_DB", str(db))
    monkeypatch.setenv("TICKETBOSS_QUIET", "1")
    monkeypatch.setenv("TICKETBOSS_RATE_LIMIT", limit)
    monkeypatch.delenv("JWT_SECRET", raising=False)
    with pytest.raises(SystemExit) as stopped:
        create_app()
    assert "limit" in str(stopped.value.code)
    assert not db.exists()


class Elsewhere(Storage):
    """Counters that are kept elsewhere, as in redis: no program can measure them."""

    STORAGE_SCHEME = ("elsewhere",)
    base_exceptions = ()

    def __init__(self, uri, **more):
        super().__init__(uri)
        self.storage, self.counts = object(), Counter()

    def incr(self, key, expiry, amount=1):
        self.counts[key] += amount
        return self.counts[key]

    def get(self, key):
        return self.counts[key]

    def get_expiry(self, key):
        return time.time() + 60

    def check(self):
        return True

    def reset(self):
        self.counts.clear()

    def clear(self, key):
        del self.counts[key]


def test_clients_are_counted_in_the_shared_storage(limited):
    away = limited(rate_storage="elsewhere://")
    assert statuses(away, 4) == [200, 200, 200, 429]
    assert statuses(away, 1, address="192.0.2.2") == [200]
    assert sum(away.application.limiter.storage.counts.values()) == 5
    logins = [away.post("/login", json={}).status_code for _ in range(4)]
    assert logins == [400, 400, 400, 429]


# --- What counts as one client --------------------------------------------------------


def test_each_client_has_a_limit_of_its_own(limited):
    client = limited()
    assert statuses(client, 4) == [200, 200, 200, 429]
    assert statuses(client, 4, address="192.0.2.2") == [200, 200, 200, 429]


@pytest.mark.parametrize(
    "name",
    ["X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Host", "X-Client-IP"],
)
def test_a_forged_address_gives_no_second_limit(limited, name):
    client = limited()
    told = [
        client.get(
            "/event",
            headers={
                name: f"for=198.51.100.{n}"
                if name == "Forwarded"
                else f"198.51.100.{n}"
            },
        )
        for n in range(4)
    ]
    assert [answer.status_code for answer in told] == [200, 200, 200, 429]


def test_behind_a_trusted_proxy_the_address_that_the_proxy_saw_counts(limited):
    client = limited(trust_proxy=True)
    one = {"X_Forwarded_For": "198.51.100.1"}
    assert statuses(client, 4, **one) == [200, 200, 200, 429]
    assert statuses(client, 1, X_Forwarded_For="198.51.100.2") == [200]
    forged = {"X_Forwarded_For": "203.0.113.9, 198.51.100.1"}  # the proxy adds the last
    assert statuses(client, 1, **forged) == [429]
    assert statuses(client, 3) == [200] * 3


@pytest.mark.parametrize(
    "seen",
    [
        "unknown",
        "_hidden",
        "198.51.100.1:4711",
        "[2001:db8::1]:80",
        "",
        " ",
        "1.2.3",
        "fe80::1%eth0",
        "x" * 5000,
        "\u00e9",
    ],
)
def test_all_unreadable_addresses_count_as_one_client(limited, seen):
    client = limited(trust_proxy=True)
    assert statuses(client, 4, X_Forwarded_For=seen) == [200, 200, 200, 429]
    login = client.post("/login", json={}, headers={"X-Forwarded-For": seen})
    assert login.status_code in {400, 429}


def test_one_ipv6_client_has_the_addresses_of_its_network_and_no_others(limited):
    client = limited()
    network = [f"2001:db8:0:1::{n}" for n in range(1, 5)]
    told = [statuses(client, 1, address=address)[0] for address in network]
    assert told == [200, 200, 200, 429]
    assert statuses(client, 1, address="2001:db8:0:2::1") == [200]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("198.51.100.1:{}", "198.51.100.2:1"),  # with the port, as some proxies add it
        ("[2001:db8:0:1::1]:{}", "[2001:db8:0:2::1]:1"),
        ("[2001:db8:0:1::{}]", "2001:db8:0:2::1"),
    ],
)
def test_a_port_after_a_forwarded_address_makes_no_other_client(limited, one, other):
    client = limited(trust_proxy=True)
    told = [statuses(client, 1, X_Forwarded_For=one.format(n))[0] for n in range(1, 5)]
    assert told == [200, 200, 200, 429]
    assert statuses(client, 1, X_Forwarded_For=other) == [200]


@pytest.mark.parametrize("spelled", ["::FFFF:192.0.2.{}", "::ffff:c000:20{}"])
def test_an_ipv4_address_in_ipv6_counts_as_ipv4_in_any_spelling(limited, spelled):
    client = limited()
    assert statuses(client, 3, address="192.0.2.1") == [200] * 3
    assert statuses(client, 1, address=spelled.format(1)) == [429]
    assert statuses(client, 1, address=spelled.format(2)) == [200]


def test_ipv4_clients_of_an_ipv6_socket_are_counted_apart(limited):
    client = limited()
    assert statuses(client, 4, address="::ffff:192.0.2.1") == [200, 200, 200, 429]
    assert statuses(client, 1, address="::ffff:192.0.2.2") == [200]


def test_a_server_without_client_addresses_answers(limited):
    client = limited()  # behind a Unix socket there are none
    assert statuses(client, 1, address="") == [200]


# --- Logins ---------------------------------------------------------------------------


WRONG = {  # in each of the two ways
    "/login": {"username": "nobody", "password": "wrong"},
    "/api/v1/auth/login": {"email": "nobody@example.com", "password": "wrong"},
}


@pytest.fixture
def quick(monkeypatch):
    """Take every password for wrong, without a hash."""
    monkeypatch.setattr(ticketboss, "check_password_hash", lambda *_: False)


@pytest.mark.parametrize("settings", [{}, {"rate_limit": "100 per 15 minutes"}])
@pytest.mark.parametrize("path", WRONG)
def test_ten_failed_logins_a_minute_are_allowed_and_the_eleventh_is_429(
    make_app, quick, path, settings
):
    client = make_app(**settings).test_client()

    def ask(address="192.0.2.1"):
        origin = {"REMOTE_ADDR": address}
        return client.post(path, json=WRONG[path], environ_base=origin)

    assert [ask().status_code for _ in range(10)] == [401] * 10
    late = ask()
    assert late.status_code == 429
    assert late.get_json()["message"] == TEXT
    assert 0 < int(late.headers["Retry-After"]) <= 60
    assert late.headers["X-RateLimit-Limit"] == "10"
    assert late.headers["X-RateLimit-Remaining"] == "0"
    assert ask("192.0.2.2").status_code == 401
    assert statuses(client, 5) == [200] * 5


@pytest.mark.parametrize("path", WRONG)
def test_an_options_request_and_a_bad_body_do_not_count_as_logins(
    make_app, quick, path
):
    client = make_app().test_client()
    assert [client.options(path).status_code for _ in range(15)] == [200] * 15
    assert [client.post(path, json={}).status_code for _ in range(15)] == [400] * 15
    told = [client.post(path, json=WRONG[path]) for _ in range(11)]
    assert [answer.status_code for answer in told] == [401] * 10 + [429]
    assert told[0].headers["X-RateLimit-Remaining"] == "9"


class Broken(Elsewhere):
    """Counters in a storage that cannot be reached."""

    STORAGE_SCHEME = ("broken",)
    base_exceptions = (ConnectionError,)

    def __init__(self, uri, **more):
        super().__init__(uri)
        self.wrap_exceptions = more["wrap_exceptions"]

    def incr(self, key, expiry, amount=1):
        raise ConnectionRefusedError


def test_each_server_counts_by_itself_while_the_shared_storage_fails(limited, caplog):
    client = limited(rate_storage="broken://")
    assert statuses(client, 4) == [200, 200, 200, 429]
    assert "--rate-storage failed" in caplog.text


def test_the_memory_of_the_limiter_is_bounded(limited, monkeypatch, pick):
    client, real, clients = limited(), time.time, pick(300, 1500, 1500)
    counters = client.application.limiter._memory
    for later in range(0, 600, 120):
        monkeypatch.setattr(time, "time", lambda later=later: real() + later)
        for number in range(clients):
            address = {"REMOTE_ADDR": f"10.{later // 60}.{number >> 8}.{number & 255}"}
            assert client.get("/event", environ_base=address).status_code == 200
    assert len(counters._windows) <= 2 * clients
    assert statuses(client, 4) == [200, 200, 200, 429]


# --- A real server --------------------------------------------------------------------


def test_a_server_can_require_login_and_limit_its_clients(serve):
    server = serve(
        "--require-login",
        "--rate-limit",
        "100 per 15 minutes",
        JWT_SECRET="a secret of thirty-two bytes or more",
    )
    me = {"username": "ann", "email": "ann@example.com", "password": "securePassword1"}
    assert server.ask("POST", "/api/v1/auth/register", me)[0] == 201
    login = {"userId": 1, "password": "securePassword1"}
    status, session, _ = server.ask("POST", "/login", login)
    token = {"Authorization": f"Bearer {session['accessToken']}"}
    assert status == 200
    event = {"eventId": 1, "totalTickets": 100}
    status, told, _ = server.ask("POST", "/initialize", event, **token)
    assert (status, told["message"]) == (201, "Event initialized")
    assert told["event"].items() >= {**event, "availableTickets": 100}.items()
    ticket = {"userId": 1, "eventId": 1}
    assert server.ask("POST", "/book", ticket)[1]["error"] == "No token provided"
    for path, said in ("/book", "Ticket booked"), ("/cancel", "Booking canceled"):
        status, told, _ = server.ask("POST", path, ticket, **token)
        assert (status, told["message"]) == (200, said)
    assert server.ask("GET", "/status/1")[1]["availableTickets"] == 100
    asked = 7
    for n in range(100 - asked):
        forged = {"X_Forwarded_For": f"198.51.100.{n}"}
        assert server.ask("GET", "/event", **forged)[0] == 200
    status, told, headers = server.ask("GET", "/event", **token)
    assert (status, told) == (429, TOLD)
    assert 0 < int(headers["Retry-After"]) <= 900
    assert server.ask("GET", "/_health")[0] == 200


@pytest.mark.parametrize("option", ["--rate-limit", "--login-limit"])
@pytest.mark.parametrize("limit", ["0 per minute", "5/hour;0/day"])
def test_a_rate_limit_of_zero_requests_stops_the_start(option, limit):
    with pytest.raises(click.ClickException, match=option) as refused:
        ticketboss.check_rate_limit(option, limit)
    assert "100 per 15 minutes" in refused.value.message
