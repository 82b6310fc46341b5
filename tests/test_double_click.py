"""The page, in a real browser: a button that is pressed twice acts once."""

# ruff: noqa: F811 -- fixtures that are imported here are arguments below
from __future__ import annotations

import pytest
from test_page import (  # noqa: F401 -- fixtures are used by their names
    at,
    browser,
    event,
    held,
    server,
    visit,
)

# Answers wait until go() lets them through. What is asked is counted, and as nobody
# looks at the page it asks nothing by itself.
HOLD = """
Object.defineProperty(document, "hidden", {get: () => true})
var asked = 0, waiting = [], real = fetch
var go = () => { window.fetch = real; waiting.splice(0).forEach(f => f()) }
window.fetch = (...request) => {
  asked++
  return new Promise(done => waiting.push(() => done(real(...request))))
}
"""
# What a compressing proxy makes of our answers.
MANGLE = """
var whole = fetch
window.fetch = async (...request) => {
  const answer = await whole(...request)
  const headers = new Headers(answer.headers), tag = headers.get("ETag")
  if (tag) headers.set("ETag", `W/${tag.replace(/"$/, '-gzip"')}`)
  const body = answer.status === 304 ? null : await answer.text()
  return new Response(body, {status: answer.status, headers})
}
"""
FAIL = 'var real = fetch; window.fetch = async () => { throw Error("the net is gone") }'
OUT = "buyer('A').querySelector('output').textContent"


def posts(page):
    """The Idempotency-Keys of the orders that the page has sent."""
    page.run("0")
    return [
        {name.lower(): v for name, v in e["request"]["headers"].items()}.get(
            "idempotency-key"
        )
        for e in page.heard("Network.requestWillBeSent")
        if e["request"]["method"] == "POST"
    ]


@pytest.mark.parametrize("careful", [True, False])
def test_a_double_click_on_save_is_one_sale(server, visit, event, careful):
    shown = event(50)
    page = visit(shown)
    page.click("A", "1 Read")
    if not careful:
        page.run("document.querySelector('#server').click()")
    page.run(
        f"{OUT} = ''; button('A', '2 Save').click(); button('A', '2 Save').click()"
    )
    page.until(f"{OUT} !== '' && buyer('A').ariaBusy === 'false'")
    assert page.run(OUT).startswith("✓ 201")
    assert held(server, shown) == [("anna", 1)]
    assert len(posts(page)) == 1


@pytest.mark.parametrize("what", ["1 Read", "2 Save"])
def test_a_waiting_button_is_locked_until_the_answer_arrives(visit, event, what):
    page = visit(event(50))
    page.click("A", "1 Read")
    page.run(HOLD)
    page.run(f"button('A', '{what}').click()")
    assert page.run("buyer('A').ariaBusy") == "true"
    twice = f"(n => (button('A', '{what}').click(), asked - n))(asked)"
    assert page.run(twice) == 0
    assert page.run("buyer('B').ariaBusy") == "false"
    page.run("go()")
    page.until("buyer('A').ariaBusy === 'false'")


def test_each_press_of_save_has_a_key_of_its_own(server, visit, event):
    shown = event(50)
    page = visit(shown)
    page.run("document.querySelector('#server').click()")
    for who in "AB":
        page.click(who, "1 Read")
        for _ in range(2):
            assert page.click(who, "2 Save").startswith("✓ 201")
            page.until(f"buyer('{who}').ariaBusy === 'false'")
    keys = posts(page)
    assert len(keys) == len(set(keys)) == 4
    assert all(key and 16 <= len(key) <= 255 for key in keys)
    assert held(server, shown) == [("anna", 1)] * 2 + [("ben", 1)] * 2


def test_a_failed_request_frees_its_button_and_shows_the_failure(server, visit, event):
    shown = event(50)
    page = visit(shown)
    page.click("A", "1 Read")
    page.run(FAIL)
    for what in ("2 Save", "1 Read"):
        page.run(f"{OUT} = ''; button('A', '{what}').click()")
        page.until("buyer('A').innerText.includes('No answer')")
        page.until("buyer('A').ariaBusy === 'false'")
    page.run("window.fetch = real")
    page.click("A", "1 Read")
    assert page.click("A", "2 Save").startswith("✓ 201")
    assert held(server, shown) == [("anna", 1)]


def test_the_page_sells_behind_a_proxy_that_mangles_etags(server, visit, event):
    shown = event(50)
    page = visit(shown)
    page.run(MANGLE)
    for who in "AB":
        page.click(who, "1 Read")
    assert page.click("A", "2 Save").startswith("✓ 201")
    assert page.click("B", "2 Save").startswith("\xd7 412")
    page.click("B", "1 Read")
    assert page.click("B", "2 Save").startswith("✓ 201")
    assert held(server, shown) == [("anna", 1), ("ben", 1)]
    page.until("document.querySelector('#free').textContent === '48'")
    sale = {"partnerId": "other", "seats": 3}
    assert server.ask("POST", f"{at(shown)}/reservations", sale)[0] == 201
    page.until("document.querySelector('#free').textContent === '45'")
