"""The rules about seats, as functions from value to value.

No seat is sold twice, none is lost, and the waiting list is served strictly in order:
case by case first, then in every order of a few steps.
"""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace

from ticketboss import (
    AlreadyExists,
    BadSeatCount,
    Document,
    Event,
    NotEnoughSeats,
    NotFound,
    Origin,
    Reservation,
    TooFewSeats,
)

AT = "2025-01-01T00:00:00.000Z"
LATER = "2025-01-02T00:00:00.000Z"


def event(total, version=0):
    """An event with nobody in it."""
    return Document.of(Event("gig", "Gig", total, total, version), {})


def wish(name, seats=1, user=""):
    """What somebody asks for."""
    return Reservation(name, name, seats, "waitlisted", ts=AT, origin=Origin(user=user))


def sold(total, *orders):
    """An event after these orders, in this order; what does not fit waits."""
    document = event(total)
    for name, seats in orders:
        document = document.reserve(wish(name, seats), "when short")
    return document


def names(document, status):
    """Whose reservations have that status, in order of arrival."""
    return "".join(
        r.reservation_id for r in document.reservations.values() if r.status == status
    )


def line(document):
    """The waiting orders, head first."""
    return "".join(r.reservation_id for r in document.waiting.values())


def numbers(document):
    """Free seats, and the version."""
    return document.event.available_seats, document.event.version


# --- reserve --------------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["never", "when short", "when sold out"])
def test_seats_that_are_free_are_sold(wait):
    before = event(5, version=7)
    after = before.reserve(wish("a", 5), wait)
    assert after == Document.of(
        Event("gig", "Gig", 5, 0, 8),
        {
            "a": replace(
                wish("a", 5), status="confirmed", event_version_at_reservation=8
            )
        },
    )
    assert before == event(5, version=7)


@pytest.mark.parametrize(
    ("taken", "wanted", "wait"),
    [
        (0, 6, "never"),
        (4, 2, "never"),
        (5, 1, "never"),
        (4, 2, "when sold out"),  # one is free, so it is not sold out
        (0, 6, "when short"),
        (5, 6, "when short"),
        (5, 6, "when sold out"),
    ],
)
def test_an_order_of_more_seats_than_are_free_is_refused_and_changes_nothing(
    taken, wanted, wait
):
    before = sold(5, ("a", taken)) if taken else event(5)
    kept = replace(before)
    with pytest.raises(NotEnoughSeats, match=r"^Not enough seats left$"):
        before.reserve(wish("b", wanted), wait)
    assert before == kept


@pytest.mark.parametrize(
    ("taken", "wait"), [(4, "when short"), (5, "when short"), (5, "when sold out")]
)
def test_an_order_that_may_wait_joins_the_end_as_one_change(taken, wait):
    before = sold(5, ("a", taken))
    after = before.reserve(wish("b", 2), wait)
    after = after.reserve(wish("c", 2), wait)
    assert numbers(after) == (5 - taken, 3)
    assert after.reservations["a"] == before.reservations["a"]
    assert after.reservations["b"] == replace(
        wish("b", 2), joined_at=1, event_version_at_reservation=2
    )
    assert after.reservations["c"] == replace(
        wish("c", 2), joined_at=2, event_version_at_reservation=3
    )


@pytest.mark.parametrize("wait", ["never", "when short", "when sold out"])
@pytest.mark.parametrize("seats", [1, 2, 5])
def test_no_order_is_served_before_the_head_of_the_line(seats, wait):
    before = sold(5, ("a", 3), ("b", 3))  # two are free, and kept for b
    assert numbers(before) == (2, 2)
    if wait == "never":
        with pytest.raises(NotEnoughSeats):
            before.reserve(wish("c", seats), wait)
    else:
        after = before.reserve(wish("c", seats), wait)
        assert numbers(after) == (2, 3)
        assert line(after) == "bc"


def test_the_line_is_by_order_of_arrival_and_not_by_clock_or_place_in_the_file():
    document = sold(1, ("a", 1), ("b", 1), ("c", 1), ("d", 1))
    days = {"a": 4, "b": 5, "c": 9, "d": 1}
    records = {
        k: replace(r, ts=f"2025-01-0{days[k]}T00:00:00.000Z")
        for k, r in document.reservations.items()
    }
    turned = Document.of(document.event, dict(reversed(records.items())))
    assert line(turned) == line(document) == "bcd"
    assert names(turned.cancel("a", LATER), "confirmed") == "b"


def test_free_seats_beside_a_waiting_head_are_not_sold_to_newcomers():
    document = sold(3, ("a", 3), ("b", 2))
    freed = Document.of(
        replace(document.event, available_seats=3), {"b": document.reservations["b"]}
    )  # as a program without a waiting list may leave the file
    for order in wish("c", 1), wish("c", 2):
        with pytest.raises(NotEnoughSeats):
            freed.reserve(order)
    served = freed.promote()
    assert names(served, "confirmed") == "b"
    assert numbers(served) == (1, 2)


# --- cancel ---------------------------------------------------------------------------


def test_a_cancelled_reservation_stays_and_its_seats_are_free_again():
    before = sold(5, ("a", 3), ("b", 1))
    after = before.cancel("a", LATER)
    assert after == Document.of(
        Event("gig", "Gig", 5, 4, 3),
        {
            "a": replace(
                before.reservations["a"],
                status="cancelled",
                cancelled_at=LATER,
                event_version_at_cancel=3,
            ),
            "b": before.reservations["b"],
        },
    )
    assert before == sold(5, ("a", 3), ("b", 1))


def test_seats_are_returned_in_parts_and_the_last_part_cancels():
    document = sold(9, ("a", 6)).cancel("a", LATER, 1)
    assert document.reservations["a"] == replace(
        sold(9, ("a", 6)).reservations["a"],
        seats=5,
        seats_returned=1,
        returned_at=LATER,
    )
    document = document.cancel("a", LATER, 2)
    record = document.reservations["a"]
    assert (record.status, record.seats, record.seats_returned) == ("confirmed", 3, 3)
    assert numbers(document) == (6, 3)
    document = document.cancel("a", LATER, 3)
    record = document.reservations["a"]
    assert (record.status, record.seats, record.seats_returned) == ("cancelled", 3, 3)
    assert (record.cancelled_at, record.event_version_at_cancel) == (LATER, 4)
    assert numbers(document) == (9, 4)


@pytest.mark.parametrize("seats", [0, -1, 4, 10**6])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_return_of_more_seats_than_are_held_is_wrong(name, seats):
    before = sold(5, ("a", 3), ("b", 3))
    with pytest.raises(BadSeatCount, match=r"\b3\b"):
        before.cancel(name, LATER, seats)
    assert before == sold(5, ("a", 3), ("b", 3))


@pytest.mark.parametrize("seats", [None, 1, 99])
@pytest.mark.parametrize("name", ["a", "z", "", "gig"])
def test_a_cancelled_or_unknown_reservation_cannot_be_cancelled(name, seats):
    before = sold(5, ("a", 3)).cancel("a", LATER)
    kept = replace(before)
    with pytest.raises(NotFound, match=r"^Reservation not found or already cancelled$"):
        before.cancel(name, LATER, seats)
    assert before == kept


# --- the waiting list -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("orders", "back", "served", "waits", "free"),
    [
        # seats that a returns -> orders served, orders waiting, seats free
        ([("b", 1)], None, "b", "", 3),
        ([("b", 4)], None, "b", "", 0),
        ([("b", 1), ("c", 1), ("d", 1)], None, "bcd", "", 1),
        ([("b", 2), ("c", 2), ("d", 2)], None, "bc", "d", 0),
        ([("b", 2), ("c", 3), ("d", 1)], None, "b", "cd", 2),  # d does not pass c
        ([("b", 1), ("c", 3)], 2, "b", "c", 1),
        ([("b", 3), ("c", 1)], 2, "", "bc", 2),  # and c does not pass b
        ([("b", 3), ("c", 1)], 3, "b", "c", 0),
    ],
)
def test_returned_seats_serve_the_line_in_order_as_far_as_they_go(
    orders, back, served, waits, free
):
    before = sold(4, ("a", 4), *orders)
    after = before.cancel("a", LATER, back)
    assert names(after, "confirmed").replace("a", "") == served
    assert line(after) == waits
    assert numbers(after) == (free, len(orders) + 2)  # the promotions count nothing
    for name, _ in orders:
        was = before.reservations[name]
        assert after.reservations[name] == replace(
            was, status="confirmed" if name in served else "waitlisted"
        )


def test_an_order_that_leaves_the_line_frees_no_seat_but_lets_the_next_be_served():
    before = sold(3, ("a", 2), ("b", 2), ("c", 1), ("d", 1))
    assert (line(before), numbers(before)) == ("bcd", (1, 4))
    after = before.cancel("b", LATER)
    assert (names(after, "confirmed"), line(after)) == ("ac", "d")
    assert numbers(after) == (0, 5)
    after = before.cancel("c", LATER)  # from the middle: nobody moves up
    assert (names(after, "confirmed"), line(after)) == ("a", "bd")
    assert numbers(after) == (1, 5)


def test_a_head_that_shrinks_is_served_at_once_with_the_orders_that_fit_after_it():
    before = sold(4, ("a", 2), ("b", 4), ("c", 1))
    after = before.cancel("b", LATER, 3)
    assert (names(after, "confirmed"), line(after)) == ("abc", "")
    assert numbers(after) == (0, 4)
    record = after.reservations["b"]
    assert (record.seats, record.seats_returned) == (1, 3)
    less = before.cancel("b", LATER, 1)  # still too many: the place is kept
    assert (names(less, "confirmed"), line(less)) == ("a", "bc")
    assert numbers(less) == (2, 4)


def test_promote_returns_the_same_document_when_no_order_fits():
    for document in (
        event(3),
        sold(3, ("a", 2)),
        sold(3, ("a", 2), ("b", 2), ("c", 1)),
        sold(0),
    ):
        assert document.promote() is document


def test_promote_serves_all_orders_that_fit_and_counts_no_version():
    full = sold(4, ("a", 4), ("b", 1), ("c", 2), ("d", 2), ("e", 1))
    freed = Document.of(
        replace(full.event, available_seats=4),
        {k: r for k, r in full.reservations.items() if k != "a"},
    )
    after = freed.promote()
    assert (names(after, "confirmed"), line(after)) == ("bc", "de")
    assert numbers(after) == (1, full.event.version)
    assert after.promote() is after


# --- one ticket a user ----------------------------------------------------------------


ANN = frozenset({"id:1", "id:ann", "email:ann@x.org"})


@pytest.mark.parametrize("name", sorted(ANN))
def test_a_user_has_one_ticket_by_whatever_name(name):
    document = event(5).reserve_for_user(wish("a", 1, name), frozenset({name}))
    assert document.find_booking(ANN) == document.reservations["a"]
    with pytest.raises(AlreadyExists, match=r"^You already booked this event$"):
        document.reserve_for_user(wish("b", 1, "id:ann"), ANN)
    other = document.reserve_for_user(wish("c", 1, "id:bob"), frozenset({"id:bob"}))
    assert names(other, "confirmed") == "ac"


def test_a_waiting_user_who_books_again_changes_nothing():
    document = sold(1, ("z", 1)).reserve_for_user(wish("a", 1, "id:ann"), ANN)
    assert line(document) == "a"
    assert document.reserve_for_user(wish("b", 1, "id:1"), ANN) is document


def test_a_user_who_cancelled_and_books_again_waits_at_the_end():
    document = sold(1, ("z", 1)).reserve_for_user(wish("a", 1, "id:ann"), ANN)
    document = document.reserve_for_user(wish("b", 1, "id:bob"), frozenset({"id:bob"}))
    document = document.cancel("a", LATER)
    assert document.find_booking(ANN) is None
    document = document.reserve_for_user(wish("c", 1, "id:ann"), ANN)
    assert line(document) == "bc"
    assert document.reservations["c"].joined_at == 2


def test_a_reservation_without_a_user_is_nobodys_booking():
    document = sold(5, ("a", 1))
    assert document.find_booking(ANN) is None
    assert (
        names(document.reserve_for_user(wish("b", 1, "id:ann"), ANN), "confirmed")
        == "ab"
    )


# --- events ---------------------------------------------------------------------------


def test_an_event_is_created_once():
    made = Document.open(None, event(5).event)
    assert made == event(5)
    with pytest.raises(AlreadyExists):
        Document.open(made, event(9).event)
    assert made == event(5)


def test_a_removed_event_keeps_only_its_id_and_goes_on_counting():
    before = sold(3, ("a", 2), ("b", 2))
    gone = before.close()
    assert gone.reservations == {}
    assert (gone.event.deleted, gone.event.version) == (True, 3)
    assert [*gone.check()] == []
    assert Document.open(gone, event(9).event) == event(9, version=4)
    assert before == sold(3, ("a", 2), ("b", 2))


@pytest.mark.parametrize(
    "document",
    [
        event(0),
        event(5, version=9),
        sold(5, ("a", 5), ("b", 1), ("c", 5)),
        sold(5, ("a", 5), ("b", 1), ("c", 5)).cancel("a", LATER),
        event(1).close(),
    ],
)
def test_a_document_made_by_the_rules_has_no_faults(document):
    assert [*document.check()] == []


GOOD = sold(5, ("a", 3), ("b", 2), ("c", 1), ("d", 1)).cancel("b", LATER, 1)


@pytest.mark.parametrize(
    ("event_fields", "record_fields", "says"),
    [
        ({"available_seats": 1}, {}, ["5", "1"]),
        ({"total_seats": 4}, {}, ["5", "0", "4"]),
        ({}, {"seats": 4}, ["6", "0", "5"]),
        ({}, {"status": "cancelled"}, ["2", "0", "5"]),
        ({}, {"status": "waitlisted"}, ["2", "0", "5"]),
        ({}, {"reservation_id": "z"}, ["a"]),
        ({"version": 3}, {}, ["d"]),
        ({}, {"event_version_at_reservation": 6}, ["a"]),
        ({}, {"event_version_at_cancel": 7}, ["a"]),
    ],
)
def test_a_fault_of_a_document_is_named_with_its_numbers_or_its_reservation(
    event_fields, record_fields, says
):
    assert [*GOOD.check()] == []
    record = replace(GOOD.reservations["a"], **record_fields)
    wrong = Document.of(
        replace(GOOD.event, **event_fields), GOOD.reservations | {"a": record}
    )
    (fault,) = wrong.check()
    assert {*says} <= {*re.findall(r"\w+", fault)}


# --- every order of a few steps -------------------------------------------------------


def steps(document):
    """Each that can be taken next: its name, and the function that takes it."""
    new = f"r{document.event.version}"
    for wait, sizes in (
        ("never", (1, 2, 3)),
        ("when short", (1, 2, 3)),
        ("when sold out", (2,)),
    ):
        for seats in sizes:
            yield (
                f"reserve {seats} {wait}",
                lambda d, s=seats, w=wait: d.reserve(wish(new, s), w),
            )
    for total in (2, 4):
        yield f"have {total} seats", lambda d, n=total: d.change({"total_seats": n})
    for name in document.reservations:
        yield f"cancel {name}", lambda d, n=name: d.cancel(n, LATER)
        yield f"give back 1 of {name}", lambda d, n=name: d.cancel(n, LATER, 1)


def check(before, after):
    """The laws that hold between an event and what one step makes of it."""
    assert after.event.version == before.event.version + 1
    assert [*after.check()] == []
    assert 0 <= after.event.available_seats <= after.event.total_seats
    was, now = [*before.waiting.values()], [*after.waiting.values()]
    if now:  # no seat is free that the head could have
        assert now[0].seats > after.event.available_seats
    assert [r.joined_at > 0 for r in now] == [True] * len(now)

    # The line keeps its order; the orders that were served were at the head.
    stayed = [
        r.reservation_id
        for r in was
        if after.reservations[r.reservation_id].status == "waitlisted"
    ]
    assert [r.reservation_id for r in now][: len(stayed)] == stayed
    served = [
        r.reservation_id
        for r in was
        if after.reservations[r.reservation_id].status == "confirmed"
    ]
    left = [
        r.reservation_id
        for r in was
        if after.reservations[r.reservation_id].status != "cancelled"
    ]
    assert left[: len(served)] == served

    # A newcomer is served only where nobody waited, and nothing is ever dropped.
    new = [r for k, r in after.reservations.items() if k not in before.reservations]
    assert not (was and new and new[0].status == "confirmed")
    assert [*before.reservations] == [*after.reservations][: len(before.reservations)]
    touched = [
        k
        for k, r in before.reservations.items()
        if after.reservations[k] != r and k not in served
    ]
    assert len(touched) + len(new) <= 1


def test_the_invariants_hold_in_every_order_of_a_few_steps(pick):
    walked = promoted = 0

    def walk(document, path, more):
        nonlocal walked, promoted
        for name, step in steps(document):
            kept = (document.event, dict(document.reservations))
            try:
                after = step(document)
            except (NotEnoughSeats, NotFound, TooFewSeats):
                after = None
            if after is document:  # there are so many already
                continue
            assert kept == (document.event, document.reservations), [*path, name]
            if after is None:
                continue
            walked += 1
            promoted += len(after.waiting) < len(document.waiting)
            try:
                check(document, after)
            except AssertionError as error:
                raise AssertionError(f"after {[*path, name]}: {error}") from error
            if more > 1:
                walk(after, [*path, name], more - 1)

    walk(event(3), [], pick(5, 6, 7))
    assert walked > 10_000
    assert promoted > 1_000


def test_orders_that_join_together_wait_by_version_whatever_order_they_are_read_in():
    full = sold(3, ("a", 3))
    waiting = sold(3, ("a", 3), ("b", 2), ("c", 1), ("d", 2))
    read = {name: waiting.reservations[name] for name in ("d", "b", "c")}
    assert line(full.with_records(waiting.event, read)) == line(waiting) == "bcd"
