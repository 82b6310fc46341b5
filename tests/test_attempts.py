"""`/attempts` lists each attempt and its outcome; `--unchecked` loses sales."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import SEEDED, Server

import ticketboss

ADMIN = {"username": "boss", "email": "boss@example.com", "password": "long enough 1"}


def attempts(client: Any, event: str = "", **headers: str) -> list[dict[str, Any]]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = client.get(f"{event}/attempts", headers=given)
    assert answer.status_code == 200
    return answer.json["attempts"]


def sell(client: Any, who: str, seats: int = 1, **headers: str) -> Any:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"partnerId": who, "seats": seats}
    return client.post("/reservations", json=body, headers=given)


# --- The list of attempts ----------------------------------------------------


def test_the_list_of_attempts_is_empty_at_the_start(client):
    answer = client.get("/attempts")
    assert (answer.status_code, answer.json) == (
        200,
        {"attempts": [], "unchecked": False},
    )


def test_a_sale_is_listed_with_the_version_it_read_and_the_one_it_made(client):
    made = sell(client, "anna", 3).json
    assert attempts(client) == [
        {
            "who": "anna",
            "seats": 3,
            "action": "reserve",
            "reservationId": made["reservationId"],
            "eventId": SEEDED,
            "reads": [0],
            "ifMatch": "",
            "status": 201,
            "version": 1,
        }
    ]


def test_an_attempt_that_came_too_late_is_listed_with_its_condition(client):
    sell(client, "anna", 3)
    assert sell(client, "ben", If_Match='"0"').status_code == 412
    *_, late = attempts(client)
    assert (late["who"], late["ifMatch"], late["reads"]) == ("ben", '"0"', [1])
    assert (late["status"], late["version"]) == (412, 1)


def test_a_listed_condition_is_cut_to_64_characters(client):
    condition = ", ".join(f'"{n}"' for n in range(100))
    assert sell(client, "anna", If_Match=condition).status_code == 201
    assert attempts(client)[0]["ifMatch"] == condition[:64]


def test_a_refusal_and_a_replay_are_listed(make_app):
    client = make_app(seats=5).test_client()
    first = sell(client, "anna", 4, Idempotency_Key="one")
    again = sell(client, "anna", 4, Idempotency_Key="one")
    assert again.json == first.json
    assert sell(client, "ben", 2).status_code == 409
    told = [(a["who"], a["status"], a["reads"], a["version"]) for a in attempts(client)]
    assert told == [
        ("anna", 201, [0], 1),
        ("anna", 201, [1], 1),
        ("ben", 409, [1], 1),
    ]


def test_a_cancel_is_listed_with_the_seats_returned(client):
    made = sell(client, "anna", 4).json["reservationId"]
    assert client.delete(f"/reservations/{made}?seats=3").status_code == 204
    assert client.delete(f"/reservations/{made}").status_code == 204
    assert client.delete(f"/reservations/{made}").status_code == 404
    _, *cancels = attempts(client)
    assert [
        (a["action"], a["who"], a["seats"], a["status"], a["version"]) for a in cancels
    ] == [
        ("cancel", "anna", 3, 204, 2),
        ("cancel", "anna", 1, 204, 3),
        ("cancel", "anna", 1, 404, 3),
    ]


def test_a_request_that_is_refused_before_a_decision_is_not_listed(client):
    sell(client, "anna", Idempotency_Key="one")
    for answer, status in [
        (sell(client, "anna", 11), 400),
        (sell(client, "anna", If_Match="3"), 400),
        (sell(client, "anna", Authorization="Bearer no"), 401),
        (sell(client, "anna", Origin="http://elsewhere"), 403),
        (
            client.post(
                "/events/nope/reservations", json={"partnerId": "a", "seats": 1}
            ),
            404,
        ),
        (sell(client, "anna", 2, Idempotency_Key="one"), 422),
    ]:
        assert answer.status_code == status
    assert [a["status"] for a in attempts(client)] == [201]


def test_attempts_are_listed_without_names_and_e_mail_addresses(client):
    client.post("/initialize", json={"eventId": 1, "totalTickets": 9})
    client.post("/book", json={"eventId": 1, "userEmail": "anna@example.com"})
    client.post("/cancel", json={"eventId": 1, "userEmail": "anna@example.com"})
    person = {"firstName": "Anna", "lastName": "Blum", "email": "blum@example.com"}
    ordered = {"eventId": "1", "ticketsReserved": "2"}
    made = client.post("/api/v1/booking", json=person | ordered)
    assert made.status_code == 201
    told = json.dumps(attempts(client, "/events/1"))
    assert [a["seats"] for a in json.loads(told)] == [1, 1, 2]
    assert not re.search("anna|blum|@", told, re.IGNORECASE)


def test_each_event_has_its_own_list_of_attempts(client):
    client.post("/initialize", json={"eventId": 7, "totalTickets": 9})
    client.post("/events/7/reservations", json={"partnerId": "seven", "seats": 1})
    sell(client, "anna")
    assert [a["who"] for a in attempts(client)] == ["anna"]
    assert [a["who"] for a in attempts(client, f"/events/{SEEDED}")] == ["anna"]
    assert [(a["who"], a["eventId"]) for a in attempts(client, "/events/7")] == [
        ("seven", "7")
    ]
    assert client.get("/events/8/attempts").status_code == 404


def test_the_last_500_attempts_are_kept_oldest_first(client):
    for number in range(503):
        sell(client, f"p{number}", 10)
    told = attempts(client)
    assert [a["who"] for a in told] == [f"p{number}" for number in range(3, 503)]


def test_the_list_of_attempts_is_304_until_there_is_a_new_one(client):
    first = client.get("/attempts")
    known = {"If-None-Match": first.headers["ETag"]}
    same = client.get("/attempts", headers=known)
    assert (same.status_code, same.data) == (304, b"")
    sell(client, "anna", If_Match='"9"')  # refused: the event has the same version
    assert client.get("/attempts", headers=known).status_code == 200
    assert first.headers["Cache-Control"] == "no-cache"


def test_an_attempt_lists_the_version_that_each_of_its_decisions_read(make_app):
    client = make_app(think_s=0.5).test_client()
    both_have_read = threading.Barrier(2)
    decide_all = ticketboss.Transactions._decide_all

    def read_together(self: Any, batch: Any, database: Any, attempt: int) -> Any:
        if attempt == 1:
            both_have_read.wait(30)
        return decide_all(self, batch, database, attempt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ticketboss.Transactions, "_decide_all", read_together)
        buyers = [
            threading.Thread(target=sell, args=(client, who)) for who in ("anna", "ben")
        ]
        for buyer in buyers:
            buyer.start()
        for buyer in buyers:
            buyer.join()
    assert [(a["reads"], a["version"]) for a in attempts(client)] == [
        ([0], 1),
        ([0, 1], 2),
    ]


# --- Access to the list ------------------------------------------------------


@pytest.mark.usefixtures("cheap_hashes")
def test_where_login_is_required_users_see_their_own_attempts_and_admins_all(make_app):
    app = make_app(require_login=True, loopback=True)
    client = app.test_client()

    def log_in(**account: str) -> dict[str, str]:
        client.post("/api/v1/auth/register", json=account)
        body = {"email": account["email"], "password": account["password"]}
        token = client.post("/login", json=body).json["token"]
        return {"Authorization": f"Bearer {token}"}

    boss = log_in(**ADMIN)
    anna = log_in(username="anna", email="anna@example.com", password="long enough 2")
    ben = log_in(username="ben", email="ben@example.com", password="long enough 3")
    sell(client, "of-anna", **anna)
    sell(client, "of-ben", **ben)
    sell(client, "of-ben-late", If_Match='"0"', **ben)
    refused = client.get("/attempts")
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert [a["who"] for a in attempts(client, **anna)] == ["of-anna"]
    assert [a["who"] for a in attempts(client, **ben)] == ["of-ben", "of-ben-late"]
    assert [a["who"] for a in attempts(client, **boss)] == [
        "of-anna",
        "of-ben",
        "of-ben-late",
    ]
    assert "Authorization" in client.get("/attempts", headers=anna).headers["Vary"]


# --- A server that does not check ----------------------------------------------


@pytest.fixture
def unchecked(serve: Callable[..., Server]) -> Server:
    return serve("--unchecked", "--think", "500ms", "--seats", "40")


def test_an_unchecked_server_confirms_thirty_simultaneous_sales_and_loses_some(
    unchecked,
):
    assert unchecked.order_at_once([f"p{n}" for n in range(30)]) == [201] * 30
    place = re.search(r"stored in (\S+)", unchecked.banner)[1]
    in_file = json.loads(Path(place).read_text())["reservations"]
    told = unchecked.ask("GET", "/attempts")[1]
    assert told["unchecked"] is True
    assert [a["status"] for a in told["attempts"]] == [201] * 30
    assert len(in_file) < 30
    assert in_file.keys() < {a["reservationId"] for a in told["attempts"]}


def test_an_unchecked_server_says_so_and_leaves_no_file(unchecked, db):
    place = Path(re.search(r"stored in (\S+)", unchecked.banner)[1])
    assert "NO CHECK: " in unchecked.banner
    assert "first account" not in unchecked.banner
    assert place.exists()
    assert unchecked.stop()[0] == 0
    assert not place.parent.exists()
    assert [*db.parent.iterdir()] == []


def test_an_unchecked_server_refuses_conditions_and_keys(unchecked):
    body = {"partnerId": "anna", "seats": 1}
    for headers in [{"If_Match": '"0"'}, {"If_Match": "*"}, {"Idempotency_Key": "k"}]:
        status, told, _ = unchecked.ask("POST", "/reservations", body, **headers)
        assert (status, told) == (
            400,
            {
                "error": "This server does not check (--unchecked). Send neither "
                "If-Match nor Idempotency-Key."
            },
        )
    assert unchecked.ask("GET", "/reservations")[1] == []


def test_an_unchecked_server_sends_no_etag_and_no_304(unchecked):
    body = {"partnerId": "anna", "seats": 1}
    answers = [
        unchecked.ask("POST", "/reservations", body),
        *(
            unchecked.ask("GET", path, If_None_Match='"1"')
            for path in ("/event", "/reservations", "/attempts")
        ),
    ]
    assert [status for status, *_ in answers] == [201, 200, 200, 200]
    assert not any("etag" in map(str.lower, headers) for *_, headers in answers)


def test_an_unchecked_server_pauses_for_two_seconds_by_default(serve):
    server = serve("--unchecked")
    assert "NO CHECK: " in server.banner
    began = time.monotonic()
    assert server.order_at_once(["anna", "ben"]) == [201, 201]
    assert time.monotonic() - began >= 2
    assert len(server.ask("GET", "/reservations")[1]) == 1


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--db", "mine.json", "--unchecked"], {}),
        (["--unchecked"], {"TICKETBOSS_DB": "mine.json"}),
        (["--unchecked", "audit"], {}),
        (["--unchecked", "reset", "--yes"], {}),
    ],
    ids=["--db", "variable", "audit", "reset"],
)
def test_an_unchecked_server_refuses_a_named_file_and_leaves_it_alone(
    arguments, variables, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(ticketboss.main, arguments, env=variables)
    assert ended.exit_code == 2
    assert "--unchecked" in ended.stderr.splitlines()[-1]
    assert [*tmp_path.iterdir()] == []


def test_no_variable_makes_a_server_unchecked(serve):
    server = serve(TICKETBOSS_UNCHECKED="1")
    assert "NO CHECK" not in server.banner
    assert server.ask("GET", "/attempts")[1]["unchecked"] is False
    assert "etag" in map(str.lower, server.ask("GET", "/event")[2])


# --- For a class -------------------------------------------------------------


def test_the_banner_of_a_server_for_a_class_shows_the_address_for_the_board(serve):
    server = serve("--host", "0.0.0.0")
    lines = iter(server.process.stdout.readline, "")
    line = next(line for line in lines if "board" in line)
    address = re.search(r"http://(\S+):(\d+)/\?name=anna$", line.strip())
    assert address[1] not in {"0.0.0.0", "127.0.0.1"}
    assert address[2] == server.url.rpartition(":")[2]


def test_on_windows_the_start_is_refused_in_one_line_that_names_wsl(
    monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ticketboss.sys, "platform", "win32")
    ended = CliRunner().invoke(ticketboss.main, ["--port", "0"])
    assert ended.exit_code == 1
    assert ended.output == (
        "Error: TicketBoss needs the file locks of Linux or macOS. On Windows it runs "
        "in WSL: `wsl --install`, then the same commands there.\n"
    )
    assert [*tmp_path.iterdir()] == []
