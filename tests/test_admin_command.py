"""`admin EMAIL` shows whose account it is, and asks, before it makes it an admin."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner
from furnished import PASSWORD, inhabited, log_in, people, register

import ticketboss

pytestmark = pytest.mark.usefixtures("cheap_hashes")

OTHER = "another long password"


def admin(db, email, *typed):
    """The exit status and all that was printed."""
    ended = CliRunner().invoke(
        ticketboss.main,
        ["--db", str(db), "admin", email],
        input="".join(f"{line}\n" for line in typed),
    )
    assert "Traceback" not in ended.output
    assert ended.exception is None or isinstance(ended.exception, SystemExit)
    for secret in (PASSWORD, OTHER, "scrypt"):
        assert secret not in ended.output
    return ended.exit_code, ended.output


@pytest.fixture
def members(saved):
    """members(): the accounts in the file."""
    return lambda: saved()["accounts"]["members"]


@pytest.mark.parametrize("email", ["ann@example.com", "ANN@Example.com"])
def test_the_admin_command_changes_nothing_after_the_answer_no(
    make_app, db, saved, email
):
    inhabited(make_app, db)
    before = saved()
    for typed in (["n"], [""], []):
        status, said = admin(db, email, *typed)
        assert status != 0
        assert "ann" in said
        assert "is an admin" not in said
        assert saved() == before


def test_the_admin_command_names_the_account_and_its_creation_time(make_app, db):
    client, _ = inhabited(make_app, db)
    body = {"email": "boss@company.example"}
    assert register(client, "squatter", **body).status_code == 201
    status, said = admin(db, "boss@company.example", "n")
    assert status != 0
    assert "squatter" in said
    assert re.search(r"20\d\d-\d\d-\d\d", said)


def test_the_admin_command_says_that_a_creation_time_is_unknown(
    make_app, db, saved, members
):
    client, _ = inhabited(make_app, db)
    assert register(client, "eve").status_code == 201
    file = saved()
    old = {"id", "username", "email", "password", "role"}
    for member in file["accounts"]["members"].values():
        for field in member.keys() - old:  # as an older version left it
            del member[field]
    db.write_text(json.dumps(file))
    status, said = admin(db, "eve@example.com", "n")
    assert status != 0
    assert "eve" in said
    assert "None" not in said
    status, _ = admin(db, "eve@example.com", "y", "")
    assert status == 0
    assert members()["4"]["role"] == "admin"


def test_an_empty_password_keeps_the_old_password_of_a_new_admin(make_app, db, members):
    client, headers = inhabited(make_app, db)
    before = members()
    status, said = admin(db, "ANN@example.com", "y", "")
    assert status == 0, said
    assert "is an admin" in said
    assert members() == before | {"2": before["2"] | {"role": "admin"}}
    assert log_in(client, username="ann")
    event = {"name": "Talk", "date": "2024-12-01", "totalTickets": 5}
    made = client.post("/api/v1/event", json=event, headers=headers["ann"])
    assert made.status_code == 201


def test_a_new_password_replaces_the_old_password_of_a_new_admin(make_app, db, members):
    client, _ = inhabited(make_app, db)
    before = members()
    status, said = admin(db, "ann@example.com", "y", OTHER, OTHER)
    assert status == 0, said
    after = members()
    assert after["2"]["role"] == "admin"
    assert after["2"]["password"] != before["2"]["password"]
    assert {key: after[key] for key in ("1", "3")} == {
        key: before[key] for key in ("1", "3")
    }
    for password, status in ((PASSWORD, 401), (OTHER, 200)):
        me = {"email": "ann@example.com", "password": password}
        assert client.post("/login", json=me).status_code == status


@pytest.mark.parametrize(
    "typed", [["short", "short"], [OTHER, "not the same"], ["x" * 1025, "x" * 1025]]
)
def test_the_admin_command_changes_nothing_after_an_unusable_password(
    make_app, db, saved, typed
):
    inhabited(make_app, db)
    before = saved()
    status, _ = admin(db, "ann@example.com", "y", *typed)
    assert status != 0
    assert saved() == before


def test_the_admin_command_asks_no_question_about_a_new_account(db, members):
    status, said = admin(db, "boss@example.com", PASSWORD, PASSWORD)
    assert status == 0, said
    assert "exists" not in said
    assert [m["role"] for m in members().values()] == ["admin"]


def test_the_creation_time_of_an_account_is_in_no_answer(make_app, db):
    client, headers = inhabited(make_app, db)
    assert register(client, "eve").json["data"].keys() == {"id", "username", "email"}
    me = client.get("/api/v1/auth/me", headers=headers["ann"]).json["data"]
    assert me.keys() == {"id", "username", "email"}
    assert len(people()[1]) == 3
