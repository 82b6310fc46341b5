"""The service describes itself: truly, validly, and with lines that work."""

from __future__ import annotations

import re
import subprocess
from urllib.parse import urlsplit

import pytest
from test_page import Browser, Page


def described(client):
    """The content of /openapi.json."""
    return client.get("/openapi.json").json


def operations(api):
    """(method, path, operation) of all of them."""
    return [
        (method.upper(), path, operation)
        for path, item in api["paths"].items()
        for method, operation in item.items()
    ]


def test_the_description_is_valid(client):
    # Not above: every process of a run imports this file, and that would take 0.3 s.
    from openapi_spec_validator import validate  # noqa: PLC0415

    validate(described(client))


def test_the_operations_are_those_of_the_url_map(client):
    routes = {
        (method, re.sub(r"<(?:\w+:)?\w+>", "{}", rule.rule))
        for rule in client.application.url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    told = {
        (method, re.sub(r"{\w+}", "{}", path))
        for method, path, _ in operations(described(client))
    }
    assert told == routes
    assert len(told) > 30


def test_the_description_is_made_once_and_read_again_only_when_it_changes(client):
    assert client.application.description == b""  # nothing at the start
    first = client.get("/openapi.json")
    etag = {"If-None-Match": first.headers["ETag"]}
    again = client.get("/openapi.json", headers=etag)
    assert (again.status_code, again.data) == (304, b"")
    assert client.get("/openapi.json").data is not None
    assert client.get("/openapi.json").headers["ETag"] == first.headers["ETag"]


def test_every_operation_describes_its_answers(client):
    for method, path, operation in operations(described(client)):
        statuses = operation["responses"]
        assert any(status < "300" for status in statuses), (method, path)
        assert len(operation["summary"]) > 10
        assert {"400", "429", "503"} <= statuses.keys()
        assert operation["x-codeSamples"][0]["source"].startswith("curl ")


def test_every_body_that_is_given_as_an_example_is_taken(client):
    for method, path, operation in operations(described(client)):
        if "requestBody" not in operation or "{" in path:
            continue
        body = operation["requestBody"]["content"]["application/json"]["example"]
        answer = client.open(path, method=method, json=body)
        assert answer.status_code != 400, (path, answer.json)


def test_every_line_to_copy_works_as_it_stands(serve, db):
    server = serve()
    _, api, _ = server.ask("GET", "/openapi.json")
    fresh = db.read_bytes()
    for method, path, operation in operations(api):
        line = operation["x-codeSamples"][0]["source"].replace("ORIGIN", server.url)
        before, _, last = line.rpartition("; ")
        last = last.replace("curl ", "curl -sS --fail-with-body ", 1)
        shown = subprocess.run(
            ["bash", "-c", f"{before or ':'}; {last}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert shown.returncode == 0, (method, path, line, shown.stdout, shown.stderr)
        assert '"error": true' not in shown.stdout
        db.write_bytes(fresh)


@pytest.mark.parametrize("path", ["/nothing", "/api/v1/nothing", "/events/1/nothing"])
def test_a_404_points_to_the_docs(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert "No such URL. `GET /docs` lists all of them." in answer.json.values()
    assert client.get("/docs").status_code == 200
    assert "/docs" in client.get("/").text


def test_the_docs_load_nothing_from_elsewhere(client):
    answer = client.get("/docs")
    assert answer.content_type == "text/html; charset=utf-8"
    nonce = re.search("script-src 'nonce-([^']+)'", str(answer.headers))[1]
    assert answer.text.count(f'nonce="{nonce}"') == 2
    assert not re.search(r"(?i)innerHTML|https?://|\bsrc=", answer.text)
    assert client.get("/docs").text != answer.text  # another nonce


def test_the_docs_show_every_operation_with_its_line_in_a_browser(serve, tmp_path):
    server, browser = serve(), Browser(tmp_path / "profile")
    try:
        page = Page(browser, f"{server.url}/docs", ready="all('details').length > 0")
        told = operations(server.ask("GET", "/openapi.json")[1])
        assert page.run("texts('summary b')") == [
            f"{method} {path}" for method, path, _ in told
        ]
        assert page.run("all('pre').map(line => line.textContent)") == [
            operation["x-codeSamples"][0]["source"].replace("ORIGIN", server.url)
            for _, _, operation in told
        ]
        assert page.run("texts('h2')") == [
            "Partner API",
            "Booking API",
            "/api/v1",
            "This description",
            "Page",
        ]
        rows = page.run("texts('tr')")
        assert "201answer{reservationId, seats, status}" in rows
        assert any(
            row.startswith("200answer[{reservationId, partnerId") for row in rows
        )
        assert "200answer{message, error, data: {token}}" in rows
        assert any(re.match("errors400 Bad Request, .*409 Conflict", r) for r in rows)
        page.run("all('summary')[0].click()")
        assert page.run("all('details')[0].open")
        assert page.run("violations") == []
        assert {urlsplit(url).path for url, _ in page.answers()} == {
            "/docs",
            "/openapi.json",
        }
        count = page.run("all('button').length")
        assert count == len(told)
        # Over plain http from another machine there is no clipboard.
        page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.run(
            "fetch('/openapi.json').then(a => a.json()).then(api => show('/event',"
            "'get', api.paths['/event'].get))"
        )
        page.until(f"all('details').length === {len(told) + 1}")
        assert page.run("all('button').length") == count
    finally:
        browser.end()
