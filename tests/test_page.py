"""The live page, in a real browser: it shows what is so, and runs nothing foreign."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import subprocess
import time
from contextlib import suppress
from urllib.parse import quote, urlsplit

import pytest
from conftest import Server, require_tool

import ticketboss

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
NAMES = ("chromium", "chromium-browser", "google-chrome")
ODD = "it's 50% off? #1 & (only) $HOME *!"  # an id that shells and URLs trip over
PATIENCE_S = 30  # before a browser that says nothing counts as hanging

# What every page of ours is watched with. Nothing of it is the page's own.
WATCH = """
var violations = [], ran = false
addEventListener("securitypolicyviolation", e => violations.push(e.violatedDirective))
var all = (what, scope = document) => [...scope.querySelectorAll(what)]
var texts = what => all(what).map(e => e.textContent.trim())
var buyer = n => all("fieldset").find(f => f.textContent.startsWith("Buyer " + n))
var button = (n, what) => all("button", buyer(n)).find(b => b.textContent === what)
"""
# The seats as drawn, one row of them: the colour in the middle of each square.
SEATS = """(count => { const map = document.querySelector("#map")
  const pen = map.getContext("2d")
  return [...Array(count).keys()].map(n => [...pen.getImageData(
    (n + .5) * map.width / count, map.height / 2, 1, 1).data]) })(%d)"""
DOTS = """all("#partners li").map(li =>
  getComputedStyle(li.firstChild).color.match(/[0-9.]+/g).map(Number))"""
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

    def __init__(self, browser, url):
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
        self.until("texts('#facts').some(text => /seats free|not found/.test(text))")

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
        code = code or {"Tab": 9, "Enter": 13, " ": 32, "ArrowUp": 38}[key]
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
        """Press a buyer's button; what the buyer is told then."""
        told = f"buyer('{who}').querySelector('output').textContent"
        self.run(f"{told} = 'nothing yet'; button('{who}', '{what}').click()")
        self.until(f"{told} !== 'nothing yet'")
        return self.run(told)

    def shows(self, words):
        """Wait until it says so of the event."""
        self.until(f"texts('#facts')[0].includes({json.dumps(words)})")

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

    def visit(event="", at=None):
        query = f"/?event={quote(event, safe='')}" if event else "/"
        pages.append(Page(browser, (at or server).url + query))
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


# --- it shows what is so ----------------------------------------------------------


def test_a_sale_from_another_terminal_shows_within_a_second(server, visit):
    page = visit()
    assert "500 of 500" in page.text("#facts")
    assert (page.texts("#partners li"), page.texts("#changes li")) == ([], [])
    buy(server, "", "abc-corp", 3)
    page.later(1000)
    facts = page.text("#facts")
    assert "497 of 500" in facts
    assert "version 1" in facts
    assert "0 waiting" in facts
    assert page.texts("#partners li") == ["■abc-corp 3"]
    assert page.texts("#changes li") == ["1: abc-corp reserved 3"]
    assert page.text("h1") == page.run("document.title") == "Node.js Meet-up"


def test_the_last_changes_stand_newest_first(server, visit, event):
    shown = event(10)
    page = visit(shown)
    gone = buy(server, shown, "ann", 4)
    buy(server, shown, "bob", 5)
    buy(server, shown, "cid", 2, waitlist=True)
    page.shows("version 3")
    assert "1 of 10" in page.text("#facts")
    assert "1 waiting" in page.text("#facts")
    assert page.texts("#changes li") == [
        "3: cid waits for 2",
        "2: bob reserved 5",
        "1: ann reserved 4",
    ]
    assert page.texts("#partners li") == ["■bob 5", "■ann 4"]
    assert server.ask("DELETE", f"{at(shown)}/reservations/{gone}")[0] == 204
    page.shows("version 4")
    assert "3 of 10" in page.text("#facts")
    assert "0 waiting" in page.text("#facts")
    assert page.texts("#changes li")[0] == "4: ann cancelled 4"
    assert page.texts("#partners li") == ["■bob 5", "■cid 2"]


def test_the_last_change_is_there_of_any_number(server, visit, event):
    shown = event(100)
    for number in range(20):
        buy(server, shown, f"p{number}", 1)
    changes = visit(shown).texts("#changes li")
    newest_first = [f"{n + 1}: p{n} reserved 1" for n in reversed(range(20))]
    assert len(changes) >= 10
    assert changes == newest_first[: len(changes)]


def test_seats_given_back_do_not_change_what_was_reserved(server, visit, event):
    shown = event(20)
    made = buy(server, shown, "ann", 5)
    assert server.ask("DELETE", f"{at(shown)}/reservations/{made}?seats=3")[0] == 204
    page = visit(shown)
    assert page.texts("#partners li") == ["■ann 2"]
    assert page.texts("#changes li") == ["1: ann reserved 5"]


def test_each_seat_has_its_partners_colour_and_free_ones_have_none(
    server, visit, event
):
    shown = event(20)
    partners = [
        "abc-corp",
        "meetup-berlin",
        "acme",
        "jobs-board",
        "uni-lab",
        "js-ladies",
        "nodeschool",
        "Öresund",
    ]
    for partner in partners:
        buy(server, shown, partner, 2)
    page = visit(shown)
    seats, dots = page.run(SEATS % 20), page.run(DOTS)
    named = dict(zip(page.texts("#partners li"), dots, strict=True))
    assert set(named) == {f"■{partner} 2" for partner in partners}
    for number, seat in enumerate(seats[:16]):
        assert alike(seat, named[f"■{partners[number // 2]} 2"])
        assert seat[3] == 255
    assert all(seat == seats[16] and seat[3] < 64 for seat in seats[16:])
    for one in range(8):
        for other in range(one):  # on a projector, too
            assert not alike(dots[one], dots[other], 40), (one, other)


def test_the_map_has_an_equivalent_in_text(server, visit, event):
    shown = event(100)
    for number in range(40):
        buy(server, shown, f"p{number}", 1 + number % 2)
    page = visit(shown)
    role, label = page.run(
        "['role', 'aria-label'].map(a => "
        "document.querySelector('canvas').getAttribute(a))"
    )
    assert role == "img"
    assert "60 of 100" in label
    lines = page.texts("#partners li")
    assert page.run("document.querySelector('#partners').getAttribute('aria-label')")
    assert sum(int(line.split()[-1]) for line in lines) == 60  # nobody left out


@pytest.mark.parametrize("number", [False, True])
def test_any_event_can_be_shown(server, visit, event, number):
    shown = event(7, "Another", **({} if number else {"eventId": ODD}))
    before = server.ask("GET", "/event")[1]
    page = visit(shown)
    assert page.text("h1") == "Another"
    assert "7 of 7" in page.text("#facts")
    page.click("A", "Read")
    assert page.click("A", "Save").startswith("201")
    assert held(server, shown) == [("buyer-A", 2)]
    assert server.ask("GET", "/event")[1] == before


def test_an_unknown_event_is_said_to_be_unknown(visit):
    page = visit("nope")
    assert "Event not found" in page.text("#facts")
    page.click("A", "Read")
    assert "Event not found" in page.run("buyer('A').innerText")
    assert not re.search("null|undefined|NaN", page.text("body"))
    assert page.run("button('A', 'Save').disabled")
    assert page.run("document.querySelector('canvas').clientHeight") < 200  # no map


def test_what_the_server_cannot_say_the_page_does_not_make_up(server, visit, event):
    shown = event(9)
    page = visit(shown)
    aside = server.db.with_suffix(".aside")
    os.rename(server.db, aside)
    try:
        page.shows("db.json")
        assert "9 of 9" not in page.text("#facts")
    finally:
        os.rename(aside, server.db)
    page.shows("9 of 9")


def test_where_the_list_is_not_for_everybody_taken_seats_are_not_free(serve, visit, db):
    store = ticketboss.Store(str(db))
    store.open(500)
    seen = store.load()
    assert store.swap(seen, seen.database.with_document(stadium(20, 2, 5)))
    page = visit("million", at=serve("--require-login"))
    assert "10 of 20" in page.text("#facts")
    taken = [seat[3] == 255 for seat in page.run(SEATS % 20)]
    assert taken == [True] * 10 + [False] * 10
    assert "partner-" not in page.text("body")
    page.click("A", "Read")
    assert page.click("A", "Save").startswith("401")


def test_a_million_seats_do_not_freeze_it(server, visit):
    page = visit("million")
    page.run("""gap = 0; last = performance.now(); void function frame() {
        gap = Math.max(gap, performance.now() - last); last = performance.now()
        requestAnimationFrame(frame) }()""")
    assert "200000 of 1000000" in page.text("#facts")
    buy(server, "million", "late", 10)
    page.shows("199990 of 1000000")
    assert page.texts("#changes li")[0] == "401: late reserved 10"
    page.look(1100, 900)
    assert page.run("gap") < 2000
    assert page.run("document.querySelector('canvas').clientHeight") < 2000


# --- it asks for little, and of nobody else ---------------------------------------


def test_while_nothing_changes_it_is_told_so_in_304(visit, event):
    shown = event()
    page = visit(shown)
    page.later(100)
    started = page.answers()
    assert set(started[1:]) == {(at(shown), 200), (f"{at(shown)}/reservations", 200)}
    page.later(5000)
    quiet = page.answers()[len(started) :]
    assert len(quiet) >= 5
    assert set(quiet) == {(at(shown), 304)}


def test_it_asks_nothing_while_nobody_looks(server, browser, visit, event):
    shown = event(50)
    page = visit(shown)
    page.later(100)
    asked = len(page.answers())
    other = browser.call("Target.createTarget", url="about:blank")["targetId"]
    page.until("document.hidden")
    buy(server, shown, "abc-corp", 3)
    page.later(60_000)
    assert len(page.answers()) == asked
    assert "50 of 50" in page.text("#facts")
    browser.call("Target.closeTarget", targetId=other)
    browser.call("Target.activateTarget", targetId=page.target)
    page.until("!document.hidden")
    page.later(1000)
    assert "47 of 50" in page.text("#facts")


def test_nothing_comes_from_another_host_and_no_rule_of_its_own_is_broken(
    server, visit, event
):
    shown = event()
    buy(server, shown, "abc-corp", 3)
    page = visit(shown)
    for who in "AB":
        page.click(who, "Read")
        page.click(who, "Save")
    page.shows("version 3")
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
    ],
)
def test_a_name_is_shown_as_text_and_runs_nothing(server, visit, event, evil):
    shown = event(50, name=evil)
    buy(server, shown, evil, 3)
    page = visit(shown)
    assert page.text("h1") == page.run("document.title") == evil
    assert page.texts("#partners li") == [f"■{evil} 3"]
    assert page.texts("#changes li") == [f"1: {evil} reserved 3"]
    assert page.run("all('img, b').length") == 0
    assert page.run("[ran, violations]") == [False, []]


# --- the lesson -------------------------------------------------------------------


def test_the_slower_of_two_buyers_gets_412_reads_again_and_sells(server, visit, event):
    shown = event(50)
    page = visit(shown)
    assert page.run("button('A', 'Save').disabled && button('B', 'Save').disabled")
    for who in "AB":
        page.click(who, "Read")
        assert '"0": 50 seats free' in page.run(f"buyer('{who}').innerText")
    assert page.click("A", "Save").startswith("201")
    refusal = page.click("B", "Save")
    assert refusal.startswith("412")
    told = server.ask(
        "POST",
        f"{at(shown)}/reservations",
        {"partnerId": "buyer-B", "seats": 2},
        If_Match='"0"',
    )
    assert told[1]["error"] in refusal
    assert held(server, shown) == [("buyer-A", 2)]
    assert page.click("B", "Read") == ""  # what was refused is no longer said
    assert '"1": 48 seats free' in page.run("buyer('B').innerText")
    assert page.click("B", "Save").startswith("201")
    assert held(server, shown) == [("buyer-A", 2), ("buyer-B", 2)]
    page.shows("46 of 50")
    assert page.texts("#changes li") == [
        "2: buyer-B reserved 2",
        "1: buyer-A reserved 2",
    ]


def test_without_if_match_what_was_read_does_not_matter(server, visit, event):
    shown = event(50)
    page = visit(shown)
    page.click("A", "Read")
    page.click("B", "Read")
    page.run("document.querySelector('#careful').click()")
    assert page.click("A", "Save").startswith("201")
    assert page.click("B", "Save").startswith("201")
    assert held(server, shown) == [("buyer-A", 2), ("buyer-B", 2)]
    page.run("document.querySelector('#careful').click()")
    assert page.click("B", "Save").startswith("412")


def test_a_refusal_is_shown_in_the_servers_words(server, visit, event):
    shown = event(8)
    page = visit(shown)
    page.click("A", "Read")
    for seats, status, words in [
        ("9", "409", "Not enough seats left"),
        ("11", "400", "seats must be between 1 and 10"),
        ("", "400", "seats must be between 1 and 10"),
        ("1.5", "400", "seats must be an integer"),
    ]:
        page.run(f"buyer('A').querySelector('input').value = '{seats}'")
        told = page.click("A", "Save")
        assert told.startswith(status)
        assert words in told
        assert "null" not in told
    assert held(server, shown) == []
    assert "8 of 8" in page.text("#facts")


def test_the_curl_line_does_what_was_done(server, visit, event):
    require_tool("curl")
    shown = event(50, eventId=f"{ODD} 2")
    page = visit(shown)

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
    page.click("A", "Read")
    page.click("B", "Read")
    status, told = curled()
    assert (status, told["version"], told["availableSeats"]) == (200, 0, 50)
    page.click("B", "Save")
    refusal = page.click("A", "Save")
    status, told = curled()
    assert refusal.startswith("412")
    assert told["error"] in refusal
    assert status == 412
    assert held(server, shown) == [("buyer-B", 2)]
    page.run("document.querySelector('#careful').click()")
    page.run("buyer('A').querySelector('input').value = '7'")
    page.click("A", "Save")
    assert (curled()[0], held(server, shown)) == (
        201,
        [("buyer-B", 2), ("buyer-A", 7), ("buyer-A", 7)],
    )


def test_the_curl_line_can_be_copied(browser, visit, event):
    page = visit(event())
    browser.call(
        "Browser.grantPermissions",
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
    )
    page.run("document.querySelector('#copy').click()")
    line = page.text("#curl")
    page.until(f"navigator.clipboard.readText().then(t => t === {json.dumps(line)})")


# --- for everybody ----------------------------------------------------------------


def test_all_of_it_works_by_keyboard(server, visit, event):
    shown = event(50)
    page = visit(shown)
    page.click("A", "Read")
    page.click("B", "Read")

    def focus():
        return page.run("""(e => [
            e.id || e.closest("fieldset")?.textContent.slice(0, 7),
            e.type === "submit" ? e.textContent : e.type,
            getComputedStyle(e).outlineStyle !== "none"])(document.activeElement)""")

    def go(*there):
        for _ in range(20):
            page.press("Tab")
            if focus()[:2] == list(there):
                return
        raise AssertionError(there)

    page.press("Tab")
    order = [focus()]
    while len(order) == len({tuple(place) for place in order}) and len(order) < 20:
        page.press("Tab")
        if page.run("document.activeElement === document.body"):
            break
        order.append(focus())
    assert order == [
        ["careful", "checkbox", True],
        *(
            [who, what, True]
            for who in ("Buyer A", "Buyer B")
            for what in ("Read", "number", "Save")
        ),
        ["copy", "Copy", True],
    ]
    assert len(order) == page.run("all('a, button, input, select, [tabindex]').length")
    go("Buyer A", "number")
    page.press("ArrowUp")
    go("Buyer A", "Save")
    page.press("Enter", "\r")
    page.shows("47 of 50")
    go("Buyer B", "Save")
    page.press(" ", " ")
    page.until("buyer('B').innerText.includes('412')")
    assert held(server, shown) == [("buyer-A", 3)]
    go("careful", "checkbox")
    page.press(" ", " ")
    go("Buyer B", "Save")
    page.press(" ", " ")
    page.shows("45 of 50")
    assert held(server, shown) == [("buyer-A", 3), ("buyer-B", 2)]


def test_every_control_has_a_name_and_what_changes_is_announced(visit, event):
    page = visit(event())
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"]
        in {"button", "checkbox", "spinbutton", "group", "image"}
    ]
    assert all(name for _, name in named)
    assert [name for role, name in named if role == "group"] == ["Buyer A", "Buyer B"]
    assert sorted(role for role, _ in named if role != "group") == [
        *["button"] * 5,
        "checkbox",
        "image",
        *["spinbutton"] * 2,
    ]
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    assert roles.count("status") == 3  # the facts, and what each buyer is told


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_either_theme_and_on_a_phone(server, visit, event, scheme):
    shown = event(50, name="N" * 200)
    buy(server, shown, "W" * 200, 3)
    page = visit(shown)
    page.click("A", "Read")
    page.click("B", "Read")
    page.click("A", "Save")
    assert page.click("B", "Save").startswith("412")
    for width in (1100, 390, 320):
        page.look(width, 800, color_scheme=scheme, reduced_motion="reduce")
        assert page.run("document.scrollingElement.scrollWidth") <= width
        assert page.run("document.querySelector('canvas').clientWidth") > width * 0.8
        found = page.run(CONTRASTS)
        assert len(found) > 20
        assert not [pair for pair in found if pair[1] < 4.5]
    assert page.run("document.getAnimations().length") == 0
    for now in (scheme, "light" if scheme == "dark" else "dark"):  # changed meanwhile
        page.look(width, 800, color_scheme=now)
        free = page.run("""(map => [...map.getContext("2d").getImageData(
            map.width - map.width / 50, map.height - map.width / 50, 1, 1).data])(
            document.querySelector("canvas"))""")
        assert (free[0] > 128) == (now == "dark")
        assert 0 < free[3] < 64
