"""A report opens in a spreadsheet: its letters are right, and none of it is run."""

from __future__ import annotations

import csv
import io
import re

import pytest
from furnished import SEEDED
from werkzeug.http import parse_options_header, parse_set_header

ASKED = [{"query_string": "format=csv"}, {"headers": {"Accept": "text/csv"}}]
MARK = b"\xef\xbb\xbf"  # by which Excel knows UTF-8


def rows(answer):
    """The rows of a CSV, as a spreadsheet reads them."""
    assert answer.status_code == 200
    text = answer.data.decode("utf-8-sig")
    return [*csv.reader(io.StringIO(text, newline=""))]


def attached(answer):
    """The file name that a browser saves it under."""
    kind, options = parse_options_header(answer.headers["Content-Disposition"])
    assert kind == "attachment"
    return options["filename"]


@pytest.mark.parametrize("how", ASKED)
def test_a_spreadsheet_shows_every_letter_as_it_was_written(client, how):
    name = "Gr\u00f6\u00dfe \u0141\u00f3d\u017a \u65e5\u672c"
    client.post("/initialize", json={"eventId": 7, "name": name, "totalTickets": 5})
    for path in ("/report", "/events/7/report"):
        answer = client.get(path, **how)
        assert answer.data.startswith(MARK)
        assert answer.data.count(MARK) == 1
        assert answer.content_type == "text/csv; charset=utf-8"
        assert rows(answer)[0][0] == "eventId"
        assert rows(answer)[-1][:2] == ["7", name]


@pytest.mark.parametrize("how", ASKED)
def test_a_spreadsheet_is_a_file_with_a_name(client, how):
    for path in ("/report", f"/events/{SEEDED}/report"):
        name = attached(client.get(path, **how))
        assert re.fullmatch(r"[A-Za-z0-9._-]+\.csv", name)


@pytest.mark.parametrize(
    "event_id",
    ['a"b', "a\\b", "a;b", "\u65e5\u672c", "x" * 200, "a b", "caf\u00e9"],
)
def test_a_report_of_an_event_with_any_id_has_a_file_name(client, event_id):
    made = client.post("/initialize", json={"eventId": event_id, "totalTickets": 5})
    assert made.status_code == 201
    answer = client.get(f"{made.headers['Location']}/report?format=csv")
    name = attached(answer)
    assert name.endswith(".csv")
    assert not re.search(r'[/\\"\x00-\x1f]', name)
    assert answer.headers["Content-Disposition"].isascii()
    assert rows(answer)[1][0] == event_id


def test_a_report_in_json_has_no_mark_and_no_file_name(client):
    for path in ("/report", f"/events/{SEEDED}/report"):
        answer = client.get(path)
        assert answer.data.startswith(b"{")
        assert "Content-Disposition" not in answer.headers


@pytest.mark.parametrize("sign", ["\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_wide_sign_begins_a_formula(client, sign):
    evil = sign + "1+1"
    body = {"eventId": evil, "name": evil, "totalTickets": 5}
    assert client.post("/initialize", json=body).status_code == 201
    row = rows(client.get("/report?format=csv"))[2]
    assert row[:2] == ["'" + evil, "'" + evil]
    told = client.get("/report").json["events"][1]
    assert (told["eventId"], told["name"]) == (evil, evil)


@pytest.mark.parametrize("sign", ["\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_wide_sign_begins_a_formula_behind_a_semicolon(client, sign):
    body = {"eventId": 7, "name": f'x;{sign}1; "{sign}2', "totalTickets": 5}
    assert client.post("/initialize", json=body).status_code == 201
    row = rows(client.get("/report?format=csv"))[2]
    assert row[1].startswith(f"x;'{sign}1;")
    assert f"'{sign}2" in row[1]


def test_a_wide_sign_amid_words_stays_as_it_is(client):
    name = "a\uff1db \uff0d c"
    body = {"eventId": 7, "name": name, "totalTickets": 5}
    assert client.post("/initialize", json=body).status_code == 201
    assert rows(client.get("/report?format=csv"))[2][1] == name


# --- answers that depend on Accept ----------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/report", f"/events/{SEEDED}/report"])
def test_an_answer_that_depends_on_accept_varies_by_it(client, path):
    for accept in ("text/html", "text/csv", "application/json", "*/*", None):
        for method in ("GET", "HEAD"):
            sent = {} if accept is None else {"Accept": accept}
            answer = client.open(path, method=method, headers=sent)
            assert answer.status_code == 200
            assert "accept" in parse_set_header(answer.headers.get("Vary"))


def test_an_answer_that_does_not_depend_on_accept_has_no_vary_accept(client):
    for path in ("/event", "/reservations", "/_health", f"/status/{SEEDED}"):
        assert "accept" not in parse_set_header(client.get(path).headers.get("Vary"))
