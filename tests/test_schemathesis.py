"""The server follows its description in every request that schemathesis generates.

All standard checks, in all phases, on a real server: examples, the edges of each
schema, random requests that fit and that do not, and chains of requests. The edges that
fit are left to the longer runs, and so are those of most paths.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections import Counter
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import programs
from conftest import HERE
from programs import PROGRAM

ADMIN = {  # logs in as in the examples of the description
    "username": "ann",
    "email": "ann@example.com",
    "password": "my long password",
}
LISTED = {  # failures that are none, each by its check and its answer: why
    ("positive_data_acceptance", "400 .*bookingId is not the one in the path"): (
        "No schema can say that two fields are equal."
    ),
    ("positive_data_acceptance", "400 .*is given twice"): (
        "No schema can say that a query and a body agree."
    ),
    ("positive_data_acceptance", "400 .*after must be the last reservationId"): (
        "No schema can say which reservations there are."
    ),
    ("positive_data_acceptance", "400 .*You hold"): (
        "No schema can say how many seats are held."
    ),
    ("positive_data_acceptance", "/initialize 400 .*name .string. is required"): (
        "What is given no id needs a name; the name of others is optional."
    ),
    ("positive_data_acceptance", "400 .*username must not be a number"): (
        "No pattern knows all digits that there are."
    ),
    ("positive_data_acceptance", "400 .*username must not have invisible"): (
        "No pattern knows all characters that are not seen."
    ),
    ("positive_data_acceptance", "400 .*availableTickets must equal"): (
        "No schema can say that two fields are equal."
    ),
    (".*", "400 .*If-Match must be"): (
        "schemathesis drops the quotes of some header values."
    ),
    ("missing_required_header", "400 .*Idempotency-Key must be"): (
        "Of two faults, a missing Authorization and a bad key, one is answered."
    ),
    ("negative_data_rejection", "GET .* 200 "): (
        "An unknown parameter of a GET is ignored, as the contract has it."
    ),
}

# The edges of each schema are quickly drawn where a request must not fit. One that fits
# takes schemathesis most of a minute, for the patterns of the texts in it.
WITHOUT_EDGES = ("--phases", "examples,fuzzing,stateful")
EDGES_THAT_DO_NOT_FIT = ("--phases", "coverage", "--mode", "negative")
OF_A_FEW_PATHS = ("--include-path-regex", "^/(reservations|book|login|api/v1/booking)$")


class Failure(NamedTuple):
    """A check that failed."""

    check: str
    answer: str  # method, path, status and body

    @property
    def path(self) -> str:
        """Where it was asked."""
        return self.answer.split()[1]

    @property
    def is_listed(self) -> bool:
        """Whether there is a reason for it."""
        return any(
            re.search(check, self.check) and re.search(answer, self.answer)
            for check, answer in LISTED
        )


def run(url: str, report: Any, examples: int, *more: str) -> str:
    """Run schemathesis; what it prints."""
    program = [sys.executable, "-m", "schemathesis.cli"]
    told = [
        *("--config-file", HERE / "schemathesis.toml", "run", f"{url}/openapi.json"),
        *("--max-examples", examples, "--no-color", "--workers", 1),
        *("--report", "ndjson", "--report-ndjson-path", report, "--no-shrink"),
        *("--continue-on-failure", "--generation-database", "none"),
        *("--output-sanitize", "false"),
    ]
    shown = subprocess.run(
        [*program, *map(str, told), *more],
        capture_output=True,
        text=True,
        cwd=report.parent,
        check=False,
    )
    return shown.stdout + shown.stderr


def findings(report: Any) -> tuple[int, list[Failure], list[str]]:
    """How many requests were made; the checks that failed; errors of the tool."""
    cases, failures, errors = 0, [], []
    for line in report.read_text().splitlines():
        event = json.loads(line)
        if "NonFatalError" in event or "FatalError" in event:
            errors.append(line)
        recorder = event.get("ScenarioFinished", {}).get("recorder")
        if not recorder or "interactions" not in recorder:
            continue
        cases += len(recorder["interactions"])
        for case, checks in recorder["checks"].items():
            interaction = recorder["interactions"].get(case, {})
            response = interaction.get("response") or {"status_code": "no answer"}
            content = (response.get("content") or {}).get("$base64", "")
            text = base64.b64decode(content).decode(errors="replace")
            request = interaction.get("request", {})
            asked = f"{request.get('method')} {urlsplit(request.get('uri')).path}"
            answer = f"{asked} {response['status_code']} {text}"
            failures += [
                Failure(each["name"], answer)
                for each in checks
                if each["status"] != "success"
            ]
    return cases, failures, errors


def test_schemathesis_finds_nothing_that_is_not_listed(serve, tmp_path, pick, say):
    server = serve("--login-limit", "1000000 per minute")
    server.ask("POST", "/api/v1/auth/register", ADMIN)
    examples, least = pick((1, 300), (20, 2000), (270, 20_000))
    small = [WITHOUT_EDGES, EDGES_THAT_DO_NOT_FIT + OF_A_FEW_PATHS]
    parts = pick(small, [()], [()])
    report, asked = tmp_path / "report.ndjson", 0
    for seed in range(1, 9):  # how many requests one run makes depends on chance
        for part in parts:
            shown = run(server.url, report, examples, "--seed", str(seed), *part)
            cases, failures, errors = findings(report)
            unlisted = Counter(failure for failure in failures if not failure.is_listed)
            say(f"schemathesis: {cases} requests, {len(failures)} listed failures")
            assert unlisted == Counter(), f"seed {seed}"
            assert errors == []
            assert cases > 0, shown[-2000:]
            asked += cases
        if asked >= least:
            break
    assert asked >= least
    assert server.ask("GET", "/_health")[0] == 200


WRONG = [  # (path, what is declared, what is declared instead, the check that fails)
    (
        "/event",
        'EVENT: Final = "eventId, name, totalSeats, availableSeats, ',
        'EVENT: Final = "eventId, name, totalSeats, ',
        "response_schema_conformance",
    ),
    (
        "/reservations",
        "Reserve seats: 201 {",
        "Reserve seats: 200 {",
        "status_code_conformance",
    ),
    (
        "/login",
        "Log in: 200 {token, accessToken, tokenType, expiresIn}",
        "Log in: 200 {token, accessToken, tokenType, lifetime}",
        "response_schema_conformance",
    ),
    (
        "/report",
        "of all events: 200 {events, totals} or",
        "of all events: 200",
        "content_type_conformance",
    ),
]


def test_each_wrong_declaration_is_found(serve, tmp_path, monkeypatch):
    """All of them are in one program, each of another path."""
    program, text, paths = tmp_path / "wrong.py", PROGRAM.read_text(), []
    for path, right, wrong, _ in WRONG:
        assert text.count(right) == 1
        text = text.replace(right, wrong)
        paths += ["--include-path", path]
    program.write_text(text)
    monkeypatch.setattr(programs, "PROGRAM", program)
    monkeypatch.setattr(programs, "forks", False)  # from a process of the right one
    server = serve()
    server.ask("POST", "/api/v1/auth/register", ADMIN)
    report = tmp_path / "report.ndjson"
    run(server.url, report, 2, "--seed", "1", *paths, *WITHOUT_EDGES)
    _, failures, _ = findings(report)
    found = {(f.path, f.check) for f in failures if not f.is_listed}
    assert found == {(path, check) for path, _, _, check in WRONG}
