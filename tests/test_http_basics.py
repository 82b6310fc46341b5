"""The corners of HTTP: Host, OPTIONS *, methods that are not there, and chunks."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import socket
from urllib.parse import urlsplit

import pytest
from furnished import SEEDED, error_of, unchanged

LIMIT = 65_536
ORDER = b'{"partnerId":"abc-corp","seats":3}'


def say(server, request):
    """The status, the parsed body and the headers of the answer to these bytes."""
    at = urlsplit(server.url)
    with socket.create_connection((at.hostname, at.port), timeout=20) as wire:
        wire.sendall(request)
        answer = http.client.HTTPResponse(wire, method=request.split()[0].decode())
        answer.begin()
        body = answer.read()
    return answer.status, json.loads(body) if body else None, answer.headers


# --- Host ----------------------------------------------------------------------------


def test_http_1_1_without_a_host_is_400(serve, db):
    server = serve()
    with unchanged(db):
        lines = (b"GET /event", b"GET /_health", b"GET /", b"GET /api/v1/event")
        for line, host in itertools.product(lines, (b"", b"Host:\r\n")):
            status, told, _ = say(server, line + b" HTTP/1.1\r\n" + host + b"\r\n")
            assert status == 400
            text = told.get("error")
            assert "Host" in (told["message"] if text is True else text)
        length = b"Content-Length: %d\r\n\r\n" % len(ORDER)
        status, told, _ = say(
            server, b"POST /reservations HTTP/1.1\r\n" + length + ORDER
        )
        assert status == 400
        assert "Host" in told["error"]
    assert say(server, b"GET /event HTTP/1.0\r\n\r\n")[0] == 200
    host = urlsplit(server.url).netloc.encode()
    with_host = b"GET /event HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    assert say(server, with_host)[0] == 200


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_request_with_two_hosts_is_400_on_every_address(serve, db, version):
    server = serve("--host", "*")
    hosts = b"Host: localhost\r\nHost: evil.example\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(ORDER)
    line = b"POST /reservations HTTP/" + version + b"\r\n"
    with unchanged(db):
        status, told, _ = say(server, line + hosts + length + ORDER)
    assert status == 400
    assert "Host" in told["error"]


# --- methods -------------------------------------------------------------------------


def test_options_of_the_whole_server_is_answered(serve):
    server = serve()
    line = b"* HTTP/1.1\r\nHost: localhost\r\n\r\n"
    status, told, _ = say(server, b"OPTIONS " + line)
    assert status in {200, 204}
    assert told is None
    assert say(server, b"GET " + line)[0] in {400, 404}


BAD_HEADERS = [
    {},
    {"If-Match": "rubbish"},
    {"If-Match": 'W/"0"'},
    {"If-Match": '"99"'},
    {"Idempotency-Key": "a b"},
]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("TRACE", "/event"),
        ("TRACE", "/reservations"),
        ("TRACE", "/api/v1/booking"),
        ("TRACE", "/"),
        ("PUT", "/event"),
        ("DELETE", "/event"),
        ("POST", "/event"),
        ("DELETE", "/reservations"),
        ("PUT", f"/events/{SEEDED}/reservations"),
        ("GET", "/initialize"),
        ("DELETE", "/book"),
        ("PUT", "/api/v1/booking/1"),
        ("BREW", "/_health"),
    ],
)
def test_an_unknown_method_is_405_whatever_else_is_wrong(house, db, method, path):
    client, _, _ = house
    with unchanged(db):
        for headers in BAD_HEADERS:
            answer = client.open(path, method=method, headers=headers)
            assert answer.status_code == 405, headers
            assert answer.headers["Allow"]
            assert method not in answer.headers["Allow"]
            assert error_of(answer)


@pytest.mark.parametrize("path", ["/nothing", "/api/v1/nothing", "/api/v2/event"])
def test_an_unknown_path_is_404_whatever_else_is_wrong(house, db, path):
    client, _, _ = house
    with unchanged(db):
        for headers in BAD_HEADERS:
            for method in ("POST", "DELETE"):
                answer = client.open(path, method=method, headers=headers)
                assert answer.status_code == 404, headers


# --- bodies in chunks ----------------------------------------------------------------


class Chunks(io.RawIOBase):
    """A body that arrives in small pieces, without a length."""

    def __init__(self, body):
        self.rest = io.BytesIO(body)

    def readable(self):
        return True

    def readinto(self, room):
        return self.rest.readinto(memoryview(room)[:4000])


def in_chunks(client, path, body, method="POST"):
    """What is answered to a body in chunks, under gunicorn and flask."""
    return client.open(
        path,
        method=method,
        environ_overrides={
            "wsgi.input": Chunks(body),
            "wsgi.input_terminated": True,
            "HTTP_TRANSFER_ENCODING": "chunked",
        },
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/reservations"),
        ("POST", f"/events/{SEEDED}/reservations"),
        ("POST", "/book"),
        ("POST", "/initialize"),
        ("POST", "/api/v1/booking"),
        ("POST", "/api/v1/auth/register"),
        ("DELETE", "/api/v1/booking/1"),
    ],
)
def test_a_chunked_body_of_more_than_64_kib_is_413(house, db, method, path):
    client, _, _ = house
    with unchanged(db):
        for more in (b"rubbish", b" ", ORDER, b" " * LIMIT):
            answer = in_chunks(client, path, ORDER.ljust(LIMIT) + more, method)
            assert answer.status_code == 413
            assert "64 KiB" in error_of(answer)


def test_a_chunked_body_is_read_to_its_end(house, db):
    client, _, _ = house
    with unchanged(db):
        inside = ORDER.ljust(LIMIT - 7) + b"rubbish"
        assert in_chunks(client, "/reservations", inside).status_code == 400
        cut = ORDER[:-1].ljust(LIMIT)
        assert in_chunks(client, "/reservations", cut).status_code == 400
    for body in (ORDER, ORDER.ljust(LIMIT)):
        assert in_chunks(client, "/reservations", body).status_code == 201


def test_a_partial_return_in_chunks_gives_back_a_part(house):
    client, _, todo = house
    place = todo["cancel"].path
    answer = in_chunks(client, place, b'{"seats": 2}', "DELETE")
    assert answer.status_code == 204
    assert client.get(place).json["seats"] == 7


# --- What is refused before a route is found ------------------------------------------


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("/api/v1/gr\u00f6\u00dfe", ("message", "error")),
        ("/api/v1/event?name=\u00f6", ("message", "error")),
        ("/status/gr\u00f6\u00dfe", ("error", "message")),
        ("/reservations/\u00f6", ("error",)),
    ],
)
def test_a_url_that_is_not_encoded_is_refused_in_the_format_of_its_path(
    serve, target, named
):
    line = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    status, told, _ = say(serve(), line)
    assert status == 400
    assert tuple(told) == named
    assert "Send the URL percent-encoded, such as %C3%A9." in told.values()


def test_a_header_without_a_colon_is_refused_in_the_format_of_its_path(serve):
    line = b"GET /api/v1/event HTTP/1.1\r\nHost: localhost\r\nodd\r\n\r\n"
    status, told, _ = say(serve(), line)
    assert (status, told["error"]) == (400, True)


# --- Expect ---------------------------------------------------------------------------

EXPECT = b" HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"


@pytest.mark.parametrize(
    ("line", "length", "status"),
    [
        (b"GET /event", b"", 200),
        (b"DELETE /reservations/x", b"", 404),
        (b"POST /reservations", b"Content-Length: 0\r\n", 400),
        (b"POST /reservations", b"Content-Length: x\r\n", 400),
        (b"POST /reservations", b"Content-Length: 99999999\r\n", 413),
    ],
)
def test_a_request_that_announces_no_body_is_answered_at_once(
    serve, line, length, status
):
    server = serve()
    assert say(server, line + EXPECT + length + b"\r\n")[0] == status


def test_a_client_is_asked_for_the_body_that_it_announced(serve):
    server = serve()
    at = urlsplit(server.url)
    head = b"POST /reservations" + EXPECT + b"Content-Length: %d\r\n\r\n" % len(ORDER)
    with socket.create_connection((at.hostname, at.port), timeout=20) as wire:
        wire.sendall(head)
        assert wire.recv(4096).startswith(b"HTTP/1.1 100 Continue\r\n")
        wire.sendall(ORDER)
        assert wire.recv(4096).startswith(b"HTTP/1.1 201 ")


def test_a_request_after_one_that_announced_no_body_is_another_request(serve):
    server = serve()
    at = urlsplit(server.url)
    other = b"GET /_health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with socket.create_connection((at.hostname, at.port), timeout=20) as wire:
        wire.sendall(b"GET /event" + EXPECT + b"\r\n" + other)
        with wire.makefile("rb") as stream:
            told = stream.read()
    assert [line[:12] for line in told.splitlines() if line[:5] == b"HTTP/"] == [
        b"HTTP/1.1 200",
        b"HTTP/1.1 200",
    ]
    assert told.endswith(b'{"ok":true}\n')
