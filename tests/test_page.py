"""The live page, in a real browser: it shows lost races, and runs only our script.

The four shapes that teach (steps, wall, staircase, struck-through names) are made by
real requests to real servers, and what is shown is compared with the file.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import math
import os
import re
import select
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from conftest import Server, require_tool

import ticketboss

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--process-per-site",  # a process for each tab would take a quarter more
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP classroom.test 127.0.0.1",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")
ODD = "it's 50% off? #1 & (only) $HOME *!"  # an id that shells and URLs trip over
PATIENCE_S = 30  # before a silent browser counts as hanging

# What every page of ours is watched with. Nothing of it is the page's own.
WATCH = """
var violations = [], ran = false
addEventListener("securitypolicyviolation", e => violations.push(e.violatedDirective))
var all = (what, scope = document) => [...scope.querySelectorAll(what)]
var texts = what => all(what).map(e => e.textContent.trim())
var buyer = name => all("fieldset").find(f => f.ariaLabel === "Buyer " + name)
var button = (name, what) =>
  all("button", buyer(name)).find(b => b.textContent === what)
"""
# The tape as drawn. Each cell of a track is a version; the last is the newest one.
TAPE = """(() => { const newest = Math.max(1, +texts("#version")[0])
  return all("#tape li").map(row => { const [who, track, said] = row.children
    const cells = [...track.children], marks = {}
    cells.forEach((cell, n) => { for (const kind of ["ring", "disc", "cross"])
      if (cell.classList.contains(kind)) marks[newest - cells.length + 1 + n] = kind })
    return {who: who.textContent, struck: who.tagName === "S", marks,
      spoken: track.ariaLabel, said: said.textContent} }) })()"""
SQUARES = """all("#map b").map(b => [b.textContent,
  getComputedStyle(b).backgroundColor.match(/[0-9.]+/g).map(Number), b.className])"""
DOTS = """Object.fromEntries(all("#partners li").map(li => [li.textContent.trim(),
  getComputedStyle(li.firstChild).backgroundColor.match(/[0-9.]+/g).map(Number)]))"""
# Each text that can be seen, how much it stands out, and where nothing does.
CONTRASTS = """(() => {
  const probe = document.body.appendChild(document.createElement("i"))
  probe.style.background = "Canvas"
  const numbers = colour => colour.match(/[0-9.]+/g).map(Number)
  const canvas = numbers(getComputedStyle(probe).backgroundColor)
  probe.remove()
  const light = colour => colour.slice(0, 3).map(c => c / 255).map(
    c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [.2126, .7152, .0722][n], 0)
  const behind = e => {
    for (; e; e = e.parentElement) {
      const colour = numbers(getComputedStyle(e).backgroundColor)
      if (colour[3] !== 0) return colour
    }
    return canvas
  }
  const found = []
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walk.nextNode()) {
    const text = walk.currentNode, e = text.parentElement
    if (!/[a-z0-9]/i.test(text.data) || !e.getClientRects().length) continue
    if (e.disabled || e.closest("script, style, template")) continue
    const pair = [numbers(getComputedStyle(e).color), behind(e)].map(light)
    pair.sort((a, b) => b - a)
    found.push([text.data.trim(), (pair[0] + .05) / (pair[1] + .05)])
  }
  return found })()"""


class Browser:
    """A headless Chromium, spoken to over two pipes in its DevTools' own protocol."""

    def __init__(self, profile):
        found = require_tool(*NAMES)
        (theirs_in, self.into), (self.out, theirs_out) = os.pipe(), os.pipe()
        # Out of the way of 3 and 4, which is where the browser looks for them.
        far = [
            fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 20)
            for descriptor in (theirs_in, theirs_out)
        ]
        self.pid = os.posix_spawn(
            found,
            [found, *FLAGS, f"--user-data-dir={profile}"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, far[0], 3),
                (os.POSIX_SPAWN_DUP2, far[1], 4),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
        )
        for descriptor in (theirs_in, theirs_out, *far):
            os.close(descriptor)
        self.asked, self.rest, self.events = 0, b"", []

    def hear(self):
        """The browser's next message."""
        while b"\0" not in self.rest:
            assert select.select([self.out], [], [], PATIENCE_S)[0], "it says nothing"
            more = os.read(self.out, 1 << 20)
            assert more, "the browser has ended"
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, session=None, **params):
        """What the browser answers; its events meanwhile are kept."""
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.into, json.dumps(message).encode() + b"\0")
        while (heard := self.hear()).get("id") != self.asked:
            self.events.append(heard)
        assert "error" not in heard, (method, heard)
        return heard["result"]

    def end(self):
        with suppress(AssertionError):
            self.call("Browser.close")
        os.waitpid(self.pid, 0)
        os.close(self.into)
        os.close(self.out)


class Page:
    """One tab of the browser, at one address."""

    def __init__(self, browser, url, ready="/[0-9]/.test(texts('#version')[0])"):
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call(
            "Target.attachToTarget", targetId=self.target, flatten=True
        )["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        self.look(1100, 900)
        self.call("Page.navigate", url=url)
        # On a busy machine an answer may be lost. The page asks again: wait for that.
        self.until(ready)

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def run(self, script):
        """What a script in the page comes to."""
        told = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, script):
        """Wait for it to be true, in real time."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.run(script):
            assert time.monotonic() < deadline, (script, self.text("body"))
            time.sleep(0.01)

    def later(self, milliseconds=1000):
        """Let that much of the page's own time pass, however long answers take.

        Its clock stands still while a request is under way, and after this.
        """
        self.call(
            "Emulation.setVirtualTimePolicy",
            budget=milliseconds,
            policy="pauseIfNetworkFetchesPending",
        )
        while not self.heard("Emulation.virtualTimeBudgetExpired"):
            self.browser.events.append(self.browser.hear())
        self.browser.events = [
            e
            for e in self.browser.events
            if e["method"] != "Emulation.virtualTimeBudgetExpired"
        ]

    def heard(self, method):
        """The events of that name so far."""
        return [
            e["params"]
            for e in self.browser.events
            if e["method"] == method and e.get("sessionId") == self.session
        ]

    def answers(self):
        """What this page was answered so far: [(path, status), ...]."""
        self.run("0")
        answers = [e["response"] for e in self.heard("Network.responseReceived")]
        return [
            (urlsplit(a["url"]).path, a["status"])
            for a in answers
            if a["url"].startswith("http")
        ]

    def text(self, what):
        return self.run(f"document.querySelector({json.dumps(what)}).innerText")

    def texts(self, what):
        return self.run(f"texts({json.dumps(what)})")

    def press(self, key, text="", code=0):
        """One key, down and up, as by hand."""
        code = (
            code
            or {"Tab": 9, "Enter": 13, " ": 32, "ArrowUp": 38, "ArrowDown": 40}[key]
        )
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                text=text if kind == "keyDown" else "",
                windowsVirtualKeyCode=code,
            )

    def click(self, who, what):
        """Press a buyer's button; the text that the buyer sees in the end."""
        self.run(f"button('{who}', '{what}').click()")
        self.until(f"buyer('{who}').ariaBusy === 'false'")
        return self.run(f"buyer('{who}').querySelector('output').textContent")

    def shows(self, what, text):
        """Wait until that part of the page has this text."""
        self.until(f"texts('#{what}')[0].includes({json.dumps(text)})")

    def tape(self):
        """The rows of the tape, newest first."""
        return self.run(TAPE)

    def look(self, width, height, **features):
        """How wide it is, and what its reader prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": f"prefers-{name.replace('_', '-')}", "value": value}
                for name, value in features.items()
            ],
        )
        self.run(
            "new Promise(done => requestAnimationFrame("
            "() => requestAnimationFrame(done)))"
        )  # until it is drawn so


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all of these tests."""
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.end()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for all: each test has an event of its own, or the seeded one."""
    db = tmp_path_factory.mktemp("served") / "db.json"
    store = ticketboss.Store(str(db))
    store.open(500)
    seen = store.load()
    assert store.swap(seen, seen.database.with_document(stadium(10**6, 400, 2000)))
    server = Server(db, "--quiet")
    yield server
    server.stop()


def stadium(seats, orders, each):
    """An event with that many orders, of eight partners in turn."""
    records = [
        ticketboss.Reservation(
            f"order-{n}",
            f"partner-{n % 8}",
            each,
            "confirmed",
            "2025-10-28T13:45:00.853Z",
            n,
        )
        for n in range(1, orders + 1)
    ]
    free = seats - orders * each
    event = ticketboss.Event("million", "A Million", seats, free, orders)
    return ticketboss.Document.of(event, {r.reservation_id: r for r in records})


@pytest.fixture
def visit(browser, server):
    """visit(event): a page that shows it; closed after the test."""
    pages = []

    def visit(event="", at=None, query="", **ready):
        if event:
            query = f"{query}&event={quote(event, safe='')}"
        pages.append(Page(browser, f"{(at or server).url}/?{query}", **ready))
        return pages[-1]

    yield visit
    for page in pages:
        browser.call("Target.closeTarget", targetId=page.target)
    browser.events.clear()


@pytest.fixture
def event(server):
    """event(seats, name): the id of a new event."""

    def event(seats=500, name="An Evening", **more):
        status, told, _ = server.ask(
            "POST", "/initialize", {"name": name, "totalTickets": seats, **more}
        )
        assert status == 201
        return str(told["eventId"])

    return event


def at(event):
    return f"/events/{quote(event, safe='')}" if event else ""


def buy(server, event, partner, seats, **more):
    """The id of a new reservation, made from another terminal."""
    status, told, _ = server.ask(
        "POST",
        f"{at(event)}/reservations",
        {"partnerId": partner, "seats": seats, **more},
    )
    assert status in {201, 202}
    return told["reservationId"]


def held(server, event):
    """Who holds how many seats, in order."""
    records = server.ask("GET", f"{at(event)}/reservations")[1]
    return [(r["partnerId"], r["seats"]) for r in records if r["status"] == "confirmed"]


def alike(one, other, least=3):
    """Whether two colours are the same but for rounding."""
    return all(abs(a - b) < least for a, b in zip(one[:3], other[:3], strict=True))


# --- the four shapes ----------------------------------------------------------


CLASS = (
    "anna ben clara david emma finn greta hannes ida jonas klara leon mia noah olga "
    "paul quirin rosa sven tina uwe vera willi xenia yusuf zoe amir bea carl dora"
).split()


def class_saves(server, **headers):
    """Thirty students save at once; how many got which status."""
    return Counter(server.order_at_once(CLASS, **headers))


def test_sales_one_after_another_are_drawn_as_steps(server, visit, event):
    shown = event(50)
    page = visit(shown)
    assert page.tape() == []
    assert (
        page.text("#story")
        == "0 attempts: 0 saved, 0 refused, none lost; 0 saves too late"
    )
    for version, who in enumerate(["anna", "ben", "clara"], 1):
        buy(server, shown, who, version)
        page.shows("version", str(version))
    assert page.tape() == [
        {
            "who": f"{who} {version}",
            "struck": False,
            "marks": {str(version - 1): "ring", str(version): "disc"},
            "spoken": f"read {version - 1}, too late: 0",
            "said": f"201: version {version}",
        }
        for version, who in [(3, "clara"), (2, "ben"), (1, "anna")]
    ]
    assert (
        page.text("#story")
        == "3 attempts: 3 saved, 0 refused, none lost; 0 saves too late"
    )


def test_thirty_sales_with_one_condition_are_drawn_as_a_wall_of_crosses(serve, visit):
    server = serve("--think", "300ms", "--seats", "60")
    for who in ["anna", "ben", "clara", "david"]:
        buy(server, "", who, 2)
    assert class_saves(server, If_Match='"4"') == {201: 1, 412: 29}
    page = visit(at=server)
    rows = page.tape()
    late = [row for row in rows if row["said"] == "412: 4 is old"]
    assert [row["marks"] for row in late] == [{"4": "ring", "5": "cross"}] * 29
    assert [row["marks"] for row in rows[29:]] == [
        {str(v): "ring", str(v + 1): "disc"} for v in (4, 3, 2, 1, 0)
    ]
    assert (
        page.text("#story")
        == "34 attempts: 5 saved, 29 refused, none lost; 29 saves too late"
    )
    assert len(held(server, "")) == 5
    assert page.run("document.querySelector('#gone').hidden")
    picture(page)


def picture(page):
    """README's picture: the wall. TICKETBOSS_PICTURE=1 draws it again."""
    page.look(1280, 820, color_scheme="light")
    page.click("A", "1 Read")
    page.later(1000)
    drawn = base64.b64decode(page.call("Page.captureScreenshot")["data"])
    file = Path(__file__).with_name("page.png")
    if "TICKETBOSS_PICTURE" in os.environ:
        file.write_bytes(drawn)
    kept = file.read_bytes()
    assert kept[:24] == drawn[:24]  # a PNG of the same width and height


def test_thirty_sales_without_a_condition_are_drawn_as_a_staircase(serve, visit):
    server = serve("--think", "300ms", "--seats", "60")
    assert class_saves(server) == {201: 30}
    page = visit(at=server)
    page.look(1920, 1080)
    rows = page.tape()
    attempts = server.ask("GET", "/attempts")[1]["attempts"][::-1]
    assert len(rows) == len(held(server, "")) == 30
    for row, attempt in zip(rows, attempts, strict=True):
        *late, last = attempt["reads"]
        marks = {str(late[0] if late else last): "ring"}
        marks |= {str(version + 1): "cross" for version in late}
        marks |= {str(attempt["version"]): "disc"}
        assert row["marks"] == marks
        assert (row["struck"], row["said"]) == (
            False,
            f"201: version {attempt['version']}",
        )
    tries = sum(len(attempt["reads"]) - 1 for attempt in attempts)
    assert tries > 0
    assert page.text("#story") == (
        f"30 attempts: 30 saved, 0 refused, none lost; {tries} saves too late"
    )


def test_every_sale_that_an_unchecked_server_lost_is_struck_through(serve, visit):
    server = serve("--unchecked", "--think", "300ms", "--seats", "60")
    assert class_saves(server) == {201: 30}
    place = re.search(r"stored in (\S+)", server.banner)[1]
    in_file = json.loads(Path(place).read_text())["reservations"].values()
    gone = 30 - len(in_file)
    page = visit(at=server)
    rows = page.tape()
    assert gone > 0
    assert page.text("#lost") == str(gone)
    assert page.text("#story") == f"30 attempts: 30 saved, 0 refused, {gone} lost"
    kept = sorted(f"{r['partnerId']} 1" for r in in_file)
    assert sorted(row["who"] for row in rows if not row["struck"]) == kept
    struck = [row for row in rows if row["struck"]]
    assert len(struck) == gone
    assert {row["said"] for row in struck} == {"201: but lost"}
    assert all("cross" in row["marks"].values() for row in struck)
    assert page.text("#state") == "No check: the last save wins."
    assert page.run("document.querySelector('#who').hidden")
    page.click("A", "1 Read")
    assert page.click("A", "2 Save") == "✓ 201 confirmed"  # no condition and no key


# --- it shows what is so ----------------------------------------------------------


def test_a_sale_from_another_terminal_shows_within_a_second(server, visit):
    page = visit()
    assert [page.text(f"#{n}") for n in ("version", "free", "waits")] == [
        "0",
        "500",
        "0",
    ]
    assert page.texts("#partners li") == []
    buy(server, "", "abc-corp", 3)
    page.later(1000)
    assert [page.text(f"#{n}") for n in ("version", "free", "waits")] == [
        "1",
        "497",
        "0",
    ]
    assert page.texts("#partners li") == ["abc-corp 3"]
    assert page.text("h1") == page.run("document.title") == "Node.js Meet-up"


def test_refusals_waits_and_cancels_are_on_the_tape_too(server, visit, event):
    shown = event(10)
    page = visit(shown)
    path = f"{at(shown)}/reservations"
    gone = buy(server, shown, "ann", 9)
    assert server.ask("POST", path, {"partnerId": "bob", "seats": 2})[0] == 409
    buy(server, shown, "cid", 2, waitlist=True)
    assert server.ask("DELETE", f"{path}/{gone}?seats=5")[0] == 204
    page.shows("version", "3")
    assert [(row["who"], row["marks"], row["said"]) for row in page.tape()] == [
        ("ann -5", {"2": "ring", "3": "disc"}, "204: version 3"),
        ("cid 2", {"1": "ring", "2": "disc"}, "202: version 2"),
        ("bob 2", {"1": "ring"}, "409: refused"),
        ("ann 9", {"0": "ring", "1": "disc"}, "201: version 1"),
    ]
    assert (page.text("#free"), page.text("#waits")) == ("4", "0")
    assert page.texts("#partners li") == ["ann 4", "cid 2"]


def test_500_attempts_are_counted_and_the_last_40_shown(server, visit, event):
    shown = event(1000)
    for number in range(520):
        buy(server, shown, f"p{number}", 1)
    page = visit(shown)
    rows = page.tape()
    assert [row["who"] for row in rows] == [f"p{n} 1" for n in range(519, 479, -1)]
    assert rows[0]["marks"] == {"519": "ring", "520": "disc"}
    assert rows[-1]["said"] == "201: version 481"
    assert (
        page.text("#story")
        == "500 attempts: 500 saved, 0 refused, none lost; 0 saves too late"
    )


def test_each_seat_has_its_partners_colour_and_initial(server, visit, event):
    shown = event(20)
    partners = ["abc", "berlin", "čapek", "déjà", "ελ", "foo", "🎟️", "über", "ninth"]
    for partner in partners:
        buy(server, shown, partner, 2)
    page = visit(shown)
    squares, dots = page.run(SQUARES), page.run(DOTS)
    assert [letter for letter, *_ in squares[:18:2]] == [*"ABČD\u0395F🎟ÜN"]
    assert len(squares) == 20
    for number, (_, colour, _) in enumerate(squares[:18]):
        partner = partners[number // 2]
        assert colour[:3] == dots[f"{partner} 2"][:3] == OKABE_ITO[number // 2 % 8]
    assert [mark for *_, mark in squares] == [""] * 16 + ["new"] * 2 + [""] * 2
    assert squares[18] == squares[19] == ["", squares[18][1], ""]
    again = visit(shown)
    assert again.run(DOTS) == dots  # all devices agree


def test_a_seat_keeps_its_place_when_others_give_theirs_back(server, visit, event):
    shown = event(12)
    first = buy(server, shown, "ann", 3)
    buy(server, shown, "bob", 2)
    page = visit(shown)
    assert server.ask("DELETE", f"{at(shown)}/reservations/{first}")[0] == 204
    page.shows("version", "3")
    assert "".join(letter or "." for letter, *_ in page.run(SQUARES)) == "...BB......."
    buy(server, shown, "cid", 4)
    page.shows("version", "4")
    assert "".join(letter or "." for letter, *_ in page.run(SQUARES)) == "CCCBBC......"


OKABE_ITO = [
    [0, 114, 178],
    [230, 159, 0],
    [0, 158, 115],
    [204, 121, 167],
    [86, 180, 233],
    [213, 94, 0],
    [240, 228, 66],
    [0, 0, 0],
]
# Vision without one kind of cone: Machado and others, 2009, at full severity.
CONES = {
    "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colour, cones):
    """A colour as somebody with these cones sees it, in CIELAB."""
    linear = [
        c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4
        for c in colour
    ]
    r, g, b = (
        min(1, max(0, sum(a * c for a, c in zip(row, linear, strict=True))))
        for row in cones
    )
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.0888
    x, y, z = (
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("cones", CONES)
def test_the_seat_colours_differ_for_colour_blind_viewers(cones, say):
    seen = [lab(colour, CONES[cones]) for colour in OKABE_ITO]
    least = min(math.dist(*pair) for pair in itertools.combinations(seen, 2))
    assert least >= 15  # 2.3 is a difference that can just be seen
    say(f"seat colours, {cones}: at least {least:.0f} apart (2 can be told)")


def test_the_map_has_an_equivalent_in_text(server, visit, event):
    shown = event(100)
    for number in range(40):
        buy(server, shown, f"p{number}", 1 + number % 2)
    page = visit(shown)
    assert page.run("document.querySelector('#map').role") == "img"
    assert page.run("document.querySelector('#map').ariaLabel") == (
        "60 of 100 seats are taken"
    )
    lines = page.texts("#partners li")
    assert sum(int(line.split()[-1]) for line in lines) == 60  # nobody left out


@pytest.mark.parametrize(
    ("seats", "squares", "scale"),
    [
        (600, 600, "Seats"),
        (601, 61, "Seats: a square stands for 10"),
        (10_000, 100, "Seats: a square stands for 100"),
    ],
)
def test_the_map_of_many_seats_states_the_seats_per_square(
    server, visit, event, seats, squares, scale
):
    shown = event(seats)
    buy(server, shown, "abc", 1)
    page = visit(shown)
    drawn = page.run(SQUARES)
    assert (len(drawn), page.text("#scale")) == (squares, scale)
    assert [letter for letter, *_ in drawn[:2]] == ["A", ""]  # one sale shows


@pytest.mark.parametrize("width", [390, 1280])
def test_a_long_name_is_cut_and_its_seats_are_still_seen(server, visit, event, width):
    shown = event(500)
    buy(server, shown, "customer-service-department-of-a-company", 10)
    page = visit(shown)
    page.look(width, 844)
    page.run("dispatchEvent(new Event('resize'))")
    for row in "#tape .entry", "#partners .entry":
        name, seats = f"{row} > .who", f"{row} > :last-child"
        assert page.run(f"all('{name}')[0].scrollWidth > all('{name}')[0].clientWidth")
        assert page.run(
            f"all('{seats}')[0].getBoundingClientRect().right <= "
            f"all('{row}')[0].getBoundingClientRect().right"
        )
        assert page.text(seats).strip() == "10"


def test_a_million_seats_do_not_freeze_the_page(server, visit):
    page = visit("million")
    page.run("""gap = 0; last = performance.now(); void function frame() {
        gap = Math.max(gap, performance.now() - last); last = performance.now()
        requestAnimationFrame(frame) }()""")
    assert page.text("#free") == "200000"
    buy(server, "million", "late", 10)
    page.shows("free", "199990")
    assert page.tape()[0]["who"] == "late 10"
    page.look(1100, 900)
    assert page.run("gap") < 2000
    assert page.run("document.querySelector('#map').clientHeight") < 2000


@pytest.mark.parametrize("number", [False, True])
def test_the_page_shows_and_sells_any_event(server, visit, event, number):
    shown = event(7, "Another", **({} if number else {"eventId": ODD}))
    before = server.ask("GET", "/event")[1]
    page = visit(shown)
    assert page.text("h1") == "Another"
    assert page.text("#free") == "7"
    page.click("A", "1 Read")
    assert page.click("A", "2 Save") == "✓ 201 confirmed"
    assert held(server, shown) == [("anna", 1)]
    assert server.ask("GET", "/event")[1] == before


# --- it survives ------------------------------------------------------------------


FAILS = {"ready": "texts('#state').some(text => text.includes('not found'))"}


def test_the_page_reports_an_unknown_event(visit):
    page = visit("nope", **FAILS)
    assert page.text("#state") == (
        "Event not found. Without ?event= in its address, this page shows the first "
        "event."
    )
    assert page.click("A", "1 Read") == "Event not found"
    assert not re.search("null|undefined|NaN", page.text("body"))
    assert page.run("button('A', '2 Save').disabled")
    assert page.run(SQUARES) == []


def test_the_page_marks_its_figures_as_old_when_the_server_has_no_file(
    server, visit, event
):
    shown = event(9)
    page = visit(shown)
    aside = server.db.with_suffix(".aside")
    os.rename(server.db, aside)
    try:
        page.shows("state", "db.json")
        assert page.text("#state").endswith(" What you see is old.")
    finally:
        os.rename(aside, server.db)
    page.until("texts('#state')[0] === ''")
    assert page.text("#free") == "9"


def test_the_page_reports_a_server_that_is_down(serve, visit):
    server = serve()
    page = visit(at=server)
    page.click("A", "1 Read")
    server.stop()
    page.shows("state", "The server does not answer. What you see is old.")
    told = page.click("A", "2 Save")
    assert told == "No answer: saved or not? Look at the tape."


def test_after_a_restored_backup_the_page_strikes_lost_sales_through(serve, visit):
    server = serve("--seats", "20")
    buy(server, "", "ann", 1)
    backup = server.db.read_bytes()
    buy(server, "", "bob", 2)
    buy(server, "", "cid", 3)
    page = visit(at=server)
    assert page.text("#version") == "3"
    put_back = server.db.with_suffix(".back")
    put_back.write_bytes(backup)
    os.replace(put_back, server.db)
    page.shows("version", "1")
    assert [(row["who"], row["struck"]) for row in page.tape()] == [
        ("cid 3", True),
        ("bob 2", True),
        ("ann 1", False),
    ]
    assert (
        page.text("#story")
        == "3 attempts: 3 saved, 0 refused, 2 lost; 0 saves too late"
    )
    assert page.texts("#partners li") == ["ann 1"]
    buy(server, "", "dan", 4)  # version 2 for the second time
    page.shows("version", "2")
    assert page.tape()[0]["marks"] == {"1": "ring", "2": "disc"}


def test_where_login_is_required_a_user_logs_in_and_sees_their_own_sales(
    serve, visit, db
):
    store = ticketboss.Store(str(db))
    store.open(500)
    seen = store.load()
    assert store.swap(seen, seen.database.with_document(stadium(20, 2, 5)))
    server = serve("--require-login")
    account = {"username": "ann", "email": "ann@example.com", "password": "long enough"}
    for number in ("", "2"):  # the first one is an admin, and sees all
        body = {
            "username": f"ann{number}",
            "email": f"ann{number}@example.com",
            "password": account["password"],
        }
        assert server.ask("POST", "/api/v1/auth/register", body)[0] == 201
    page = visit("million", at=server)
    assert page.text("#state") == "Log in to see who saved."
    assert page.text("#free") == "10"
    colours = [colour for _, colour, _ in page.run(SQUARES)]
    assert colours[0] == colours[9] != colours[10]  # taken, without the names
    assert "partner-" not in page.text("body")
    page.click("A", "1 Read")
    assert page.click("A", "2 Save").startswith("\xd7 401: ")
    fill = "document.querySelector('#login').elements"
    for password, state in [
        ("wrong, that", "Wrong name or password"),
        ("long enough", ""),
    ]:
        page.run(f"""{fill}[0].value = 'ann2'; {fill}[1].value = '{password}'
            document.querySelector('#login').requestSubmit()""")
        page.until(f"texts('#state')[0] === {json.dumps(state)}")
    assert page.run("document.querySelector('#login').hidden")
    assert page.click("A", "2 Save") == "✓ 201 confirmed"
    page.shows("version", "3")
    assert [row["who"] for row in page.tape()] == ["anna 1"]
    assert page.texts("#partners li") == ["(hidden) 10", "anna 1"]


# --- it asks for little, and of nobody else ---------------------------------------


def test_the_page_gets_304_while_nothing_changes(visit, event):
    shown = event()
    page = visit(shown)
    page.later(1000)
    page.run("0")
    before = len(page.heard("Network.responseReceivedExtraInfo"))
    page.later(5000)
    page.run("0")
    quiet = page.heard("Network.responseReceivedExtraInfo")[before:]
    assert len(quiet) >= 10
    assert {answer["statusCode"] for answer in quiet} == {304}
    asked = {path for path, _ in page.answers()[-len(quiet) :]}
    assert asked == {at(shown), f"{at(shown)}/attempts"}


def test_a_hidden_page_sends_no_requests(server, browser, visit, event):
    shown = event(50)
    page = visit(shown)
    page.later(100)
    asked = len(page.answers())
    other = browser.call("Target.createTarget", url="about:blank")["targetId"]
    page.until("document.hidden")
    buy(server, shown, "abc-corp", 3)
    page.later(60_000)
    assert len(page.answers()) == asked
    assert page.text("#free") == "50"
    browser.call("Target.closeTarget", targetId=other)
    browser.call("Target.activateTarget", targetId=page.target)
    page.until("!document.hidden")
    page.later(1000)
    assert page.text("#free") == "47"


def test_the_page_loads_nothing_from_another_host_and_keeps_to_its_policy(
    server, visit, event
):
    shown = event()
    buy(server, shown, "abc-corp", 3)
    page = visit(shown)
    for who in "AB":
        page.click(who, "1 Read")
        page.click(who, "2 Save")
    page.shows("version", "3")
    asked = {
        urlsplit(e["request"]["url"])[:2]
        for e in page.heard("Network.requestWillBeSent")
    }
    assert asked <= {urlsplit(server.url)[:2], ("data", "")}
    assert page.run("violations") == []


def test_a_script_that_is_not_ours_does_not_run(visit, event):
    page = visit(event())
    page.run("""document.body.insertAdjacentHTML("beforeend",
        '<img src="x:" onerror="ran = true"><a href="javascript:ran = true">x</a>')
        const script = document.createElement("script")
        script.textContent = "ran = true"
        document.body.append(script)
        all("a")[0].click()""")
    page.until("violations.length >= 4")  # the image's source, too
    assert page.run("ran") is False
    assert set(page.run("violations")) == {
        "img-src",
        "script-src-attr",
        "script-src-elem",
    }


def test_the_policy_allows_this_server_and_one_script_of_one_answer(server):
    def policy():
        _, body, headers = server.ask("GET", "/", Accept="text/html")
        given = {
            name: rest
            for name, *rest in map(
                str.split, headers["Content-Security-Policy"].split(";")
            )
        }
        nonces = set(re.findall(r'nonce="([^"]*)"', body))
        assert len(nonces) == 1
        return given, f"'nonce-{nonces.pop()}'", headers

    given, nonce, headers = policy()
    assert given == {
        "default-src": ["'none'"],
        "connect-src": ["'self'"],
        "img-src": ["data:"],
        "script-src": [nonce],
        "style-src": [nonce],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'none'"],
    }
    assert len(nonce) > 20
    assert policy()[1] != nonce
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "evil",
    [
        '<img src=x onerror="ran = true">',
        "</script><script>ran = true</script>",
        "${ran = true}<b>bold</b>&amp;",
        "עברית אנה",
        "W" * 200,
    ],
    ids=["image", "script", "template", "right to left", "long"],
)
def test_a_name_is_shown_as_text_and_runs_nothing(server, visit, event, evil):
    shown = event(50, name=evil)
    buy(server, shown, evil, 3)
    page = visit(shown)
    assert page.run("document.querySelector('h1').textContent") == evil
    assert page.run("document.title") == evil
    assert page.texts("#partners li") == [f"{evil} 3"]
    assert [row["who"] for row in page.tape()] == [f"{evil} 3"]
    assert page.run("all('img').length") == 0
    assert page.run("[ran, violations]") == [False, []]
    assert page.run("document.scrollingElement.scrollWidth") <= 1100


# --- the lesson -------------------------------------------------------------------


def label(page, who):
    return page.run(f"buyer('{who}').querySelector('span').textContent")


def test_the_slower_of_two_buyers_gets_412_reads_again_and_sells(server, visit, event):
    shown = event(50)
    page = visit(shown)
    assert page.run("button('A', '2 Save').disabled && button('B', '2 Save').disabled")
    assert label(page, "A") == "nothing read yet"
    for who in "AB":
        page.click(who, "1 Read")
        assert label(page, who) == "you read version 0"
    assert page.click("A", "2 Save") == "✓ 201 confirmed"
    assert page.click("B", "2 Save") == ("\xd7 412: too late. Read again, then save.")
    page.shows("version", "1")
    assert label(page, "B") == "you read version 0, now it is 1"
    assert page.run("buyer('B').querySelector('span').className") == "old"
    assert held(server, shown) == [("anna", 1)]
    assert page.click("B", "1 Read") == ""  # the refusal is no longer shown
    assert label(page, "B") == "you read version 1"
    assert page.click("B", "2 Save") == "✓ 201 confirmed"
    assert held(server, shown) == [("anna", 1), ("ben", 1)]
    page.shows("version", "2")
    assert [(row["who"], row["said"]) for row in page.tape()] == [
        ("ben 1", "201: version 2"),
        ("ben 1", "412: 0 is old"),
        ("anna 1", "201: version 1"),
    ]


def test_with_server_retries_an_outdated_read_does_not_matter(server, visit, event):
    shown = event(50)
    page = visit(shown)
    page.click("A", "1 Read")
    page.click("B", "1 Read")
    page.run("document.querySelector('#server').click()")
    assert page.click("A", "2 Save") == "✓ 201 confirmed"
    assert page.click("B", "2 Save") == "✓ 201 confirmed"
    assert held(server, shown) == [("anna", 1), ("ben", 1)]
    page.run("document.querySelector('#careful').click()")
    assert page.click("B", "2 Save").startswith("\xd7 412: ")


def test_the_lesson_is_shown_step_by_step_and_asks_before_each_change(
    server, visit, event
):
    shown = event(50)
    page = visit(shown)

    def step():
        button = "document.querySelector('#next')"
        page.run(f"{button}.click()")
        page.until(f"{button}.ariaBusy === 'false'")
        return page.text("#lesson"), page.text("#next"), held(server, shown)

    anna, ben = ("anna", 1), ("ben", 1)
    told = [step() for _ in range(8)]
    assert [(button, sold) for _, button, sold in told] == [
        ("Do it", []),
        ("Do it", []),
        ("Do it", []),
        ("Do it", [anna]),
        ("Do it", [anna]),
        ("Do it", [anna]),
        ("End", [anna, ben]),
        ("Show me, step by step", [anna, ben]),
    ]
    captions = [caption for caption, *_ in told]
    assert captions[0] == "anna reads. How many seats are free, and in which version?"
    assert captions[4].startswith("Too late: nothing was sold, nothing was lost.")
    assert captions[7] == ""


def test_a_refusal_is_shown_in_the_servers_words(server, visit, event):
    shown = event(8)
    page = visit(shown)
    page.click("A", "1 Read")
    seats = "buyer('A').querySelector('[type=number]')"
    for number, told in [
        ("9", "\xd7 409: Not enough seats left"),
        ("11", "\xd7 400: seats must be between 1 and 10"),
        ("", "\xd7 400: seats must be between 1 and 10"),
        ("1.5", "\xd7 400: seats must be an integer"),
    ]:
        page.run(f"{seats}.value = '{number}'")
        assert page.click("A", "2 Save") == told
    page.run(f"{seats}.value = 1; buyer('A').querySelector('input').value = ' '")
    assert page.click("A", "2 Save") == "\xd7 400: partnerId (string) is required"
    assert held(server, shown) == []


def test_a_press_while_a_request_waits_does_nothing_and_each_has_its_own_key(
    serve, visit
):
    server = serve("--think", "400ms")
    page = visit(at=server)
    page.click("A", "1 Read")
    page.run("document.querySelector('#server').click()")
    progress = "buyer('A').querySelector('progress').getClientRects().length"
    assert page.run(progress) == 0
    page.run("for (const _ of '123') button('A', '2 Save').click()")
    assert page.run(progress) == 1
    page.until("buyer('A').ariaBusy === 'false'")
    page.click("A", "2 Save")
    assert held(server, "") == [("anna", 1), ("anna", 1)]
    sent = [
        e["request"]["headers"]
        for e in page.heard("Network.requestWillBeSent")
        if e["request"]["method"] == "POST"
    ]
    keys = [headers["Idempotency-Key"] for headers in sent]
    assert len(set(keys)) == len(keys) == 2
    assert min(map(len, keys)) > 20


def test_the_page_works_behind_a_proxy_that_changes_the_etag(server, visit, event):
    shown = event(50)
    page = visit(shown)
    page.call(
        "Fetch.enable",
        patterns=[{"urlPattern": f"*{at(shown)}", "requestStage": "Response"}],
    )
    page.run("button('A', '1 Read').click()")
    page.until("buyer('A').ariaBusy === 'true'")
    while page.run("buyer('A').ariaBusy") == "true":
        for paused in page.heard("Fetch.requestPaused"):
            with suppress(AssertionError):  # answered already
                page.call(
                    "Fetch.continueResponse",
                    requestId=paused["requestId"],
                    responseCode=200,
                    responseHeaders=[
                        {"name": "ETag", "value": 'W/"0-gzip"'},
                        {"name": "Content-Type", "value": "application/json"},
                    ],
                )
    page.call("Fetch.disable")
    assert page.click("A", "2 Save") == "✓ 201 confirmed"
    [sent] = [
        e["request"]["headers"]
        for e in page.heard("Network.requestWillBeSent")
        if e["request"]["method"] == "POST"
    ]
    assert sent["If-Match"] == '"0"'


def test_the_page_sells_on_a_plain_network_address(serve, visit):
    server = serve("--trusted-host", "classroom.test")  # http, so no secure context
    server.url = f"http://classroom.test:{urlsplit(server.url).port}"
    page = visit(at=server)
    assert page.run("isSecureContext") is False
    page.click("A", "1 Read")
    assert page.click("A", "2 Save") == "✓ 201 confirmed"


def test_the_curl_line_repeats_the_request_of_the_page(server, visit, event):
    require_tool("curl")
    shown = event(50, eventId=f"{ODD} 2")
    page = visit(shown)
    page.run("""buyer('A').querySelector('input').value = "o'neil $HOME `id` \\\\"
        buyer('B').querySelector('input').value = "ben" """)
    odd = "o'neil $HOME `id` \\"

    def curled():
        line = page.text("#curl")
        assert line.startswith("curl ")
        done = subprocess.run(
            ["sh", "-c", line.replace("curl ", "curl -s ", 1)],
            capture_output=True,
            text=True,
            check=True,
        )
        head, body = done.stdout.split("\n\n", 1)
        return int(head.split()[1]), json.loads(body)

    assert curled()[1]["totalSeats"] == 50  # before anything was done
    page.click("A", "1 Read")
    page.click("B", "1 Read")
    status, told = curled()
    assert (status, told["version"], told["availableSeats"]) == (200, 0, 50)
    page.click("B", "2 Save")
    assert page.click("A", "2 Save").startswith("\xd7 412")
    assert curled()[0] == 412
    assert held(server, shown) == [("ben", 1)]
    page.run("document.querySelector('#server').click()")
    page.run("buyer('A').querySelector('[type=number]').value = '7'")
    page.click("A", "2 Save")
    assert curled()[0] == 201
    assert held(server, shown) == [("ben", 1), (odd, 7), (odd, 7)]


def test_the_curl_line_is_selected_by_one_click(visit, event):
    page = visit(event())
    box = page.run("""(({x, y}) => [x, y])(
        document.querySelector("#curl").getBoundingClientRect())""")
    for kind in ("mousePressed", "mouseReleased"):
        page.call(
            "Input.dispatchMouseEvent",
            type=kind,
            x=box[0] + 40,
            y=box[1] + 15,
            button="left",
            clickCount=1,
        )
    page.until("String(getSelection()).trim() === texts('#curl')[0]")


# --- for everybody ----------------------------------------------------------------


def test_a_students_page_has_one_pane_with_their_name(server, visit, event):
    shown = event(50)
    page = visit(shown, query="name=Zo%C3%AB")
    visible = """all("fieldset").filter(f => f.getClientRects().length)
        .map(f => f.querySelector("input").value)"""
    assert page.run(visible) == ["Zoë"]
    assert page.run("document.querySelector('#next').getClientRects().length") == 0
    page.click("A", "1 Read")
    assert page.click("A", "2 Save") == "✓ 201 confirmed"
    assert held(server, shown) == [("Zoë", 1)]


def test_a_phone_has_one_pane_without_a_name_and_then_the_tape(server, visit, event):
    shown = event(50)
    buy(server, shown, "ann", 3)
    page = visit(shown)
    page.look(390, 844)
    page.call("Page.reload")
    page.until("all('#tape li').length === 1")
    visible = """all("fieldset").filter(f => f.getClientRects().length)
        .map(f => f.querySelector("input").value)"""
    assert page.run(visible) == [""]
    places = page.run("""["#panes", "#tape", "#map"].map(what =>
        document.querySelector(what).getBoundingClientRect().top)""")
    assert places == sorted(places)
    assert page.run("document.scrollingElement.scrollWidth") <= 390


def test_the_whole_page_works_by_keyboard(server, visit, event):
    shown = event(50)
    page = visit(shown)
    page.click("A", "1 Read")
    page.click("B", "1 Read")

    def focus():
        return page.run("""(e => [
            e.id || e.closest("fieldset")?.ariaLabel,
            e.tagName === "BUTTON" ? e.textContent.trim() : e.type,
            getComputedStyle(e).outlineStyle !== "none"])(document.activeElement)""")

    def go(*there):
        for _ in range(20):
            page.press("Tab")
            if focus()[:2] == list(there):
                return
        raise AssertionError(there)

    order = []
    for _ in range(10):
        page.press("Tab")
        order.append(focus())
    assert order == [
        ["next", "Show me, step by step", True],
        *(
            [who, what, True]
            for who in ("Buyer A", "Buyer B")
            for what in ("text", "number", "1 Read", "2 Save")
        ),
        ["careful", "radio", True],
    ]
    go("Buyer A", "number")
    page.press("ArrowUp")
    go("Buyer A", "2 Save")
    page.press("Enter", "\r")
    page.shows("free", "48")
    page.press("Enter", "\r")  # the button still has the focus
    page.until("buyer('A').innerText.includes('412')")
    go("Buyer B", "2 Save")
    page.press(" ", " ")
    page.until("buyer('B').innerText.includes('412')")
    assert held(server, shown) == [("anna", 2)]
    go("careful", "radio")
    page.press("ArrowDown")
    go("Buyer B", "2 Save")
    page.press(" ", " ")
    page.shows("free", "47")
    assert held(server, shown) == [("anna", 2), ("ben", 1)]


def test_every_control_has_a_name_and_every_change_is_announced(server, visit, event):
    shown = event()
    buy(server, shown, "ann", 1)
    page = visit(shown)
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"]
        in {"button", "radio", "spinbutton", "textbox", "group", "image"}
    ]
    assert all(name for _, name in named)
    assert [name for role, name in named if role == "group"] == ["Buyer A", "Buyer B"]
    assert {name for role, name in named if role == "image"} == {
        "read 0, too late: 0",
        "1 of 500 seats are taken",
    }
    assert sorted(role for role, _ in named) == [
        *["button"] * 5,
        *["group"] * 2,
        *["image"] * 2,
        *["radio"] * 2,
        *["spinbutton"] * 2,
        *["textbox"] * 2,
    ]
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    assert roles.count("status") == 5  # state, story, lesson, and what buyers are told


@pytest.fixture(scope="module")
def full(server):
    """An event with everything that the page can show."""
    shown = str(
        server.ask("POST", "/initialize", {"name": "N" * 200, "totalTickets": 50})[1][
            "id"
        ]
    )
    for partner in ["W" * 200, *"abcdefgh"]:
        buy(server, shown, partner, 3)
    body = {"partnerId": "late", "seats": 1}
    server.ask("POST", f"{at(shown)}/reservations", body, If_Match='"0"')
    return shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable_in_either_theme_and_on_a_phone(visit, full, scheme):
    page = visit(full)
    page.click("A", "1 Read")
    page.click("B", "1 Read")
    page.click("A", "2 Save")
    assert page.click("B", "2 Save").startswith("\xd7 412")
    page.run("document.querySelector('#next').click()")
    page.until("texts('#lesson')[0] !== ''")
    for width in (1920, 1280, 390, 320):
        page.look(width, 800, color_scheme=scheme, reduced_motion="reduce")
        assert page.run("document.scrollingElement.scrollWidth") <= width
        found = page.run(CONTRASTS)
        assert len(found) > 60
        assert not [pair for pair in found if pair[1] < 4.5]
    assert page.run("document.getAnimations().length") == 0
    paper = page.run("getComputedStyle(document.documentElement).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")


def test_on_a_projector_all_text_has_two_percent_of_the_height(visit, full, say):
    page = visit(full)
    page.click("A", "1 Read")
    page.look(1920, 1080)
    sizes = page.run("""(() => { const found = {}
        const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
        while (walk.nextNode()) { const text = walk.currentNode, e = text.parentElement
          if (text.data.trim() && e.getClientRects().length && !e.closest("template"))
            found[text.data.trim()] = parseFloat(getComputedStyle(e).fontSize) }
        for (const e of all("input:not([type=radio])")) if (e.getClientRects().length)
          found[e.value] = parseFloat(getComputedStyle(e).fontSize)
        return found })()""")
    assert len(sizes) > 40
    assert {text: size for text, size in sizes.items() if size < 21.6} == {}
    say(f"smallest type at 1920 x 1080: {min(sizes.values()):.1f} pixels")


def test_on_a_projector_a_class_of_thirty_and_four_sales_before_it_fit(serve, visit):
    server = serve("--seats", "60")
    for who in CLASS[:4]:
        buy(server, "", who, 1)
    assert class_saves(server, If_Match='"4"') == {201: 1, 412: 29}
    page = visit(at=server)
    page.look(1920, 1080)
    bottom = page.run("all('#tape li').at(-1).getBoundingClientRect().bottom")
    assert len(page.tape()) == 34
    assert bottom <= 1080
