#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["click>=8.2.1", "filelock>=4.2.1", "flask>=3.1", "limits>=5",
#   "msgspec>=0.21", "pyjwt>=2.15", "waitress>=3"]
# ///
"""TicketBoss sells the seats of events over HTTP and never sells a seat twice.

Run it:   uv run ticketboss.py
      or  pip install -r requirements.txt, then python ticketboss.py
Try it:   curl -d '{"partnerId":"abc-corp","seats":3}' localhost:3000/reservations

Everything is stored in one readable file, db.json. Any number of threads and
processes can sell from it at once, because of one idea, optimistic concurrency:

    read the event; decide what it should become; save it only if
    nobody has saved meanwhile; otherwise read and decide again.

Section 5 is that idea. The sections above it prepare it, the sections below use it.
No section refers to a later one.

1 Settings, 2 Values, 3 Rules, 4 Store, 5 Transactions, 6 SQL store, 7 Accounts,
8 Box office, 9 HTTP, 10 Partner API, 11 Booking API, 12 /api/v1, 13 Description,
14 Page, 15 Race, 16 Server, 17 Main.

Known limits: db.json is for one machine with POSIX file locks (no network drives),
and each change writes the whole file. If you outgrow it, name a PostgreSQL database
with --db. Without --require-login, anyone who can connect can do everything.
"""

from __future__ import annotations

import codecs
import csv
import ctypes
import errno
import functools
import hashlib
import importlib
import io
import ipaddress
import itertools
import json
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import platform
import queue
import random
import re
import secrets
import select
import shlex
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import unicodedata
import uuid
from collections import ChainMap, Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    cast,
    get_args,
    get_type_hints,
)
from urllib.parse import quote, urlencode, urlsplit

import click
import jwt
import limits
import msgspec
import waitress.adjustments
import waitress.buffers
import waitress.channel
import waitress.parser
import waitress.server
import waitress.task
import waitress.wasyncore
from filelock import FileLock, Timeout
from flask import Blueprint, Flask, Response, abort, current_app, g, request
from msgspec import Meta, Raw, Struct, field
from msgspec.structs import replace
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_accept_header
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter
from werkzeug.security import check_password_hash, generate_password_hash

# === 1. Settings =============================================================
# The configuration of one server, from the command line, from TICKETBOSS_... variables
# or from a test. Only the last section reads the command line and the variables.


class Settings(Struct, frozen=True, kw_only=True):
    """Configuration of one server."""

    host: str = "localhost"  # both loopback addresses
    port: int = 3000  # 0 picks a free one
    db: str = "db.json"
    seats: int = 500  # of the seeded event
    think_s: float = 0.0  # pause between reading and saving
    require_login: bool = False
    require_if_match: bool = False
    rate_limit: str = ""
    rate_storage: str = "memory://"
    login_limit: str = "10 per minute"  # failures for each account from one address
    trust_proxy: bool = False
    trusted_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()  # of other sites that may use this server
    quiet: bool = False
    unchecked: bool = False  # for a class: saves without comparing, so sales get lost
    timeout_s: float = 2.0  # how long a change waits for its turn and for the lock
    jwt_secret: bytes = b""  # if empty, one is generated and kept in the database
    standalone: bool = False  # `python ticketboss.py`, not a worker of another server
    loopback: bool = False  # standalone, and reachable from this machine only


# === 2. Values ===============================================================
# The values in the database, and the refusals. Frozen: a change makes a new value.
# Knows no files, no clock and no HTTP.

Status = Literal["confirmed", "waitlisted", "cancelled"]
Sales = Literal["open", "closed"]
QueueRule = Literal["never", "when short", "when sold out"]  # when an order may wait
NonNegative = Annotated[int, Meta(ge=0)]


class Value(
    Struct,
    frozen=True,
    rename="camel",
    omit_defaults=True,
    gc=False,
    forbid_unknown_fields=True,
):
    """A value as it is stored; an unknown field is refused rather than dropped."""


class KeyUse(Value, frozen=True):
    """The record of a change with an Idempotency-Key, to recognise its repeat."""

    key: str  # digest of the key and of its sender
    request: str  # what the request asked for
    version: NonNegative  # of the event, after the change


MAX_KEY_USES: Final = 100  # kept for each reservation and each event


class Event(Value, frozen=True):
    """An event, and how many of its seats are free."""

    event_id: int | str  # 1 and "1" are the same event
    name: str
    total_seats: NonNegative
    available_seats: NonNegative  # redundant, for readers; `check` verifies it
    version: NonNegative  # how many times the event has changed
    price: NonNegative = 0  # of one seat, in minor units (cents)
    date: str | None = None
    created_by: int | None = None
    created_at: str | None = None
    key_uses: tuple[KeyUse, ...] = ()  # the changes that opened, changed, removed it
    sales: Sales = "open"
    deleted: bool = False  # kept, so that a new event continues to count versions

    def after_change(self, **facts: Any) -> Event:
        """The event after one more change, with these facts."""
        return replace(self, version=self.version + 1, **facts)


class Origin(Value, frozen=True):
    """The user and the request of a reservation; never shown to others."""

    request: str = ""  # digest of the body that came with an Idempotency-Key
    # For users who get one ticket each, "id:..." or "mailto:...". Older versions wrote
    # "email:...", and normalize_name replaced letters of the address.
    user: str = ""
    account: int = 0  # the account whose token made it
    booking: int = 0  # its number in /api/v1; random, because it is enough to cancel
    first_name: str = ""
    last_name: str = ""
    email: str = ""
    key_uses: tuple[KeyUse, ...] = ()  # the changes that returned seats of it


NO_ORIGIN: Final = Origin()  # msgspec omits a field that holds this very object


class Reservation(Value, frozen=True):
    """Seats that one holder has or waits for; kept after it is cancelled."""

    reservation_id: str
    partner_id: str
    seats: Annotated[int, Meta(ge=1)]  # held now, or when it was cancelled
    status: Status
    ts: str | None = None  # RFC 3339, UTC
    event_version_at_reservation: NonNegative | None = None  # unique to this change
    cancelled_at: str | None = None
    event_version_at_cancel: NonNegative | None = None
    seats_returned: NonNegative = 0
    returned_at: str | None = None  # when seats were last returned; never shown
    joined_at: NonNegative = field(default=0, name="position")  # place when it joined
    origin: Origin = NO_ORIGIN


class Account(Value, frozen=True):
    """A user who can log in."""

    id: int
    username: str
    email: str
    password: str  # its scrypt hash
    role: Literal["user", "admin"]
    created_at: str | None = None  # RFC 3339, UTC; never shown to other users


def normalize_text(text: str) -> str:
    """The standard form of a text that can be encoded in several ways."""
    return unicodedata.normalize("NFC", text)


def normalize_email(address: str) -> str:
    """The case-insensitive form of an address; ß does not become ss.

    Normalised twice, because lower() can decompose a character again.
    """
    return normalize_text(normalize_text(address).lower())


def normalize_name(name: str) -> str:
    """The form of a username that is the same for all similar spellings."""
    return unicodedata.normalize("NFKC", name).casefold()


def other_spellings(names: frozenset[str]) -> frozenset[str]:
    """The spellings of a user's names in bookings that older versions wrote."""
    folded = {
        f"email:{normalize_name(name.removeprefix('mailto:'))}"
        for name in names
        if name.startswith("mailto:")
    }
    return frozenset(folded.union(map(normalize_text, names)))


def login_names(account: Account) -> frozenset[str]:
    """The names that an account can log in with, each after its field's name."""
    username = normalize_name(account.username)
    return frozenset(
        {
            f"email {normalize_email(account.email)}",
            f"username {username}",
            f"userId {username}",
            f"userId {account.id}",
        }
    )


class TicketBossError(Exception):
    """Anything TicketBoss refuses. The text says why, and what to do about it."""

    attempts = 1  # how many times the change was decided

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.detail = detail  # only for the operator: a path and its owner


class NotEnoughSeats(TicketBossError):
    """Fewer seats are on sale than were asked for."""


class NotFound(TicketBossError):
    """No such event, or no active reservation."""


class AlreadyExists(TicketBossError):
    """An event, an account or a ticket already exists and must be unique."""


class BadSeatCount(TicketBossError):
    """More seats are to be returned than are held."""

    def __init__(self, held: int) -> None:
        seats = "1 seat" if held == 1 else f"{held} seats"
        super().__init__(f"You hold {seats}, so you can return at most {held}.")
        self.held = held


class KeyReused(TicketBossError):
    """An Idempotency-Key was sent again with a different request."""

    def __init__(self) -> None:
        super().__init__(
            "This Idempotency-Key was used for another request. Send a new key with a "
            "new request, or repeat the first one."
        )


class Stale(TicketBossError):
    """The event is at none of the versions that the caller named."""

    def __init__(self, version: int, named: frozenset[str]) -> None:
        super().__init__(f"The event has changed: it is at version {version}.")
        self.version = version
        self.named = named


class ConditionRequired(TicketBossError):
    """The caller named no version, but this server requires one."""

    def __init__(self, version: int) -> None:
        super().__init__("A change must name the version that it is based on")
        self.version = version


# Where a version is required and none is named. Compared by `is`, because a client may
# send If-Match: "none".
NONE_NAMED: Final = frozenset({"none"})


class SalesClosed(TicketBossError):
    """The event's sales are closed."""


class TooFewSeats(TicketBossError):
    """An event cannot have fewer seats than are confirmed or waited for."""


class LoginRequired(TicketBossError):
    """The caller has to log in first."""


class NotAllowed(TicketBossError):
    """The caller is logged in, but may not do this."""


class Unavailable(TicketBossError):
    """The database, its disk or its lock cannot be used. Nothing was changed."""


class Damaged(Unavailable):
    """The content of the database is at fault. Nothing was changed."""


class Unwritable(Unavailable):
    """The database can perhaps be read, but not be written. Nothing was changed."""


class Contended(TicketBossError):
    """The change did not get its turn in time. Nothing was changed."""


class TooManyLogins(TicketBossError):
    """Too many requests wait for the hash of a password. Nothing was changed."""


class InDoubt(TicketBossError):
    """Perhaps saved: the disk, the database or a thread did not confirm it."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The outcome is unknown: {why}. Read the event before you try again."
        )


# === 3. Rules ================================================================
# The rules about seats, and what they apply to: an event with its reservations, the
# accounts, the whole database and its layout in db.json. Pure functions from value to
# value, because a change may have to be decided again: ids and times are arguments.
# Knows no files, no clock, no randomness and no HTTP.


T = TypeVar("T")


def differences(before: Mapping[str, T], after: Mapping[str, T]) -> dict[str, T | None]:
    """The values of `after` that differ from `before`; None for removed ones."""
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return changed | dict.fromkeys(before.keys() - after.keys())


def find_key_use(
    uses: tuple[KeyUse, ...], key: str | None, request: str
) -> KeyUse | None:
    """The change that was made under this key; KeyReused if it was a different one."""
    for use in uses:
        if use.key == key:
            if use.request != request:
                raise KeyReused
            return use
    return None


def waiting_among(reservations: Iterable[Reservation]) -> dict[str, Reservation]:
    """The waiting ones by id, by version, which is the order of arrival.

    A clock that jumps cannot change it.
    """
    waiting = [r for r in reservations if r.status == "waitlisted"]
    waiting.sort(key=lambda r: r.event_version_at_reservation or 0)
    return {r.reservation_id: r for r in waiting}


class Document(Struct, frozen=True):
    """An event with its reservations: the unit of optimistic concurrency.

    A change copies no reservations. It puts the changed ones in front of the others (a
    ChainMap), so that it costs the same at ten reservations and at fifty thousand, and
    so that a store sees what to write. `settled` merges both into one dict.
    """

    event: Event
    reservations: Mapping[str, Reservation]
    waiting: dict[str, Reservation]  # the waiting list by id, first come first

    @staticmethod
    def of(event: Event, reservations: dict[str, Reservation]) -> Document:
        """A document as it is stored: its waiting list is found in the reservations."""
        return Document(event, reservations, waiting_among(reservations.values()))

    @staticmethod
    def open(existing: Document | None, event: Event) -> Document:
        """Open an event. Raises AlreadyExists.

        A new event under a deleted event's id continues its versions, so that no
        version ever names two states. Repeats of the old one's changes are recognised.
        """
        if existing is None:
            return Document.of(replace(event, version=0), {})
        old = existing.event
        if not old.deleted:
            raise AlreadyExists(f"Event {event.event_id} already exists")
        event = replace(event, version=old.version + 1, key_uses=old.key_uses)
        return Document.of(event, {})

    def close(self) -> Document:
        """Mark the event deleted and drop its bookings."""
        seats = self.event.total_seats
        event = self.event.after_change(deleted=True, available_seats=seats)
        return Document.of(event, {})

    def reserve(self, order: Reservation, queue: QueueRule = "never") -> Document:
        """Sell `order`, or add it to the end of the waiting list; one change.

        While anyone waits, newcomers get nothing: free seats are reserved for the head
        of the list. Raises SalesClosed. Raises NotEnoughSeats if `queue` forbids
        waiting, or if the order exceeds the whole event and would block the list.
        """
        event = self.event
        if event.sales == "closed":
            raise SalesClosed("Sales are closed")
        on_sale = 0 if self.waiting else event.available_seats
        order = replace(order, event_version_at_reservation=event.version + 1)
        if order.seats <= on_sale:
            return self._changed(replace(order, status="confirmed"), -order.seats)
        may_wait = queue == "when short" or (queue == "when sold out" and on_sale == 0)
        if not may_wait or order.seats > event.total_seats:
            text = "Not enough seats left"
            if self.repair() is not self:
                text += (
                    ". Some are held for the waiting list; run `ticketboss.py audit "
                    "--repair` to hand them out."
                )
            raise NotEnoughSeats(text)
        order = replace(order, status="waitlisted", joined_at=len(self.waiting) + 1)
        return self._changed(order, 0)

    def reserve_for_user(
        self, order: Reservation, names: frozenset[str], account_id: int | None = None
    ) -> Document:
        """Sell one ticket to a user who has none, or add them to the waiting list.

        Returns the same object if they already wait. Raises AlreadyExists.
        """
        held = self.find_booking(names, account_id)
        if held is None:
            return self.reserve(order, "when sold out")
        if held.status == "confirmed":
            raise AlreadyExists("You already booked this event")
        return self

    def change(self, changes: dict[str, Any]) -> Document:
        """Change facts of an event, and promote waiting orders; one change.

        Returns the same object if nothing is different. Raises TooFewSeats.
        """
        event = replace(self.event, **changes)
        if event == self.event:
            return self
        confirmed = self.event.total_seats - self.event.available_seats
        if event.total_seats < confirmed:
            raise TooFewSeats(
                f"{confirmed} seats are confirmed, so totalSeats cannot be "
                f"{event.total_seats}"
            )
        largest = max((order.seats for order in self.waiting.values()), default=0)
        if event.total_seats < min(largest, self.event.total_seats):
            raise TooFewSeats(
                f"An order of {largest} seats waits, so totalSeats cannot be "
                f"{event.total_seats}"
            )
        left = event.total_seats - confirmed
        return replace(self, event=event.after_change(available_seats=left)).promote()

    def find_booking(
        self, names: frozenset[str], account_id: int | None = None
    ) -> Reservation | None:
        """Find the active booking of a user, by any of their names.

        A name that is spelt differently counts only if no name is exactly the same.
        With an account, only bookings that were made with its token count.
        """
        spellings = other_spellings(names)
        similar = None
        for reservation in self.settled().reservations.values():  # a ChainMap is slow
            user = reservation.origin.user
            if not user or reservation.status == "cancelled":
                continue
            if account_id not in {None, reservation.origin.account}:
                continue
            if user in names:
                return reservation
            if similar is None and normalize_text(user) in spellings:
                similar = reservation
        return similar

    def has_cancelled(self, names: frozenset[str], key: str | None) -> bool:
        """Whether a user has already cancelled a booking under this key."""
        if key is None:
            return False
        spellings = other_spellings(names)
        return any(
            normalize_text(reservation.origin.user) in spellings
            for reservation in self.settled().reservations.values()
            if any(use.key == key for use in reservation.origin.key_uses)
        )

    def cancel(
        self, reservation_id: str, at: str, seats: int | None = None
    ) -> Document:
        """Return `seats` of a reservation, or all; promote waiting orders; one change.

        Raises NotFound, and BadSeatCount for more seats than it holds.
        """
        held = self.reservations.get(reservation_id)
        if held is None or held.status == "cancelled":
            raise NotFound("Reservation not found or already cancelled")
        returned = held.seats if seats is None else seats
        if not 1 <= returned <= held.seats:
            raise BadSeatCount(held.seats)
        if returned < held.seats:
            after = replace(
                held,
                seats=held.seats - returned,
                seats_returned=held.seats_returned + returned,
                returned_at=at,
            )
        else:
            after = replace(
                held,
                status="cancelled",
                cancelled_at=at,
                event_version_at_cancel=self.event.version + 1,
            )
        freed = returned if held.status == "confirmed" else 0
        return self._changed(after, freed).promote()

    def promote(self) -> Document:
        """Give free seats to the head of the waiting list, as far as they go.

        Strictly first in, first out: stops at the first entry that does not fit, so a
        small order never overtakes a large one. Adds no version, because it is part of
        the change that freed the seats. Returns the same object if nothing changed.
        """
        left = self.event.available_seats
        promoted = {}
        for head in self.waiting.values():
            if head.seats > left:
                break
            left -= head.seats
            promoted[head.reservation_id] = replace(head, status="confirmed")
        if not promoted:
            return self
        return self.with_records(replace(self.event, available_seats=left), promoted)

    def repair(self) -> Document:
        """Promote the waiting orders for which seats are free; one change.

        Returns the same object if there are none. No change of ours leaves any. A
        program that edits the file and knows no waiting list can.
        """
        promoted = self.promote()
        if promoted is self:
            return self
        return replace(promoted, event=promoted.event.after_change())

    def is_replay(self, order: Reservation) -> bool:
        """Whether this key already produced this reservation.

        The key determines the reservation's id, so a retry finds its own reservation
        in the document that it would change. Raises KeyReused for a different order.
        """
        known = self.reservations.get(order.reservation_id)
        if known is not None and known.origin.request != order.origin.request:
            raise KeyReused
        return known is not None

    def remember(
        self, key: str | None, request: str, returned: str | None = None
    ) -> Document:
        """This document with a record of the change just made, to recognise a repeat.

        The record of a return is kept with its reservation, `returned`; every other one
        with the event. Returns the same object without a key.
        """
        if key is None:
            return self
        use = KeyUse(key, request, self.event.version)
        if returned is None:
            uses = (*self.event.key_uses, use)[-MAX_KEY_USES:]
            return replace(self, event=replace(self.event, key_uses=uses))
        held = self.reservations[returned]
        uses = (*held.origin.key_uses, use)[-MAX_KEY_USES:]
        remembering = replace(held, origin=replace(held.origin, key_uses=uses))
        return self.with_records(self.event, {returned: remembering})

    def require_version(self, versions: frozenset[str] | None) -> None:
        """Raise Stale if the caller named versions and the event is at none of them.

        NONE_NAMED raises ConditionRequired.
        """
        if versions is NONE_NAMED:
            raise ConditionRequired(self.event.version)
        if versions is not None and str(self.event.version) not in versions:
            raise Stale(self.event.version, versions)

    def changed_since(
        self, before: Document | None
    ) -> Mapping[str, Reservation | None]:
        """The reservations that differ from those of `before`; None for removed ones.

        Costs nothing if this document was made from `before` by changes.
        """
        if before is None:
            return self.settled().reservations  # which is faster to go through
        changes, found = self._layers()
        if found is before.reservations:
            return changes
        return differences(before.reservations, self.settled().reservations)

    def settled(self) -> Document:
        """The same document, with all its reservations in one dict."""
        changes, found = self._layers()
        return replace(self, reservations=found | changes) if changes else self

    def check(self, before: Document | None = None) -> Iterator[str]:
        """Yield a sentence for each thing that does not add up.

        With `before`, which added up, only the changes since then are checked.
        """
        event = self.event
        changed = self.changed_since(before)
        held = sum([r.seats for r in changed.values() if r and r.status == "confirmed"])
        if before is not None:
            replaced = [before.reservations.get(key) for key in changed]
            held += before.event.total_seats - before.event.available_seats
            held -= sum(r.seats for r in replaced if r and r.status == "confirmed")
        if held + event.available_seats != event.total_seats:
            yield (
                f"{held} seats confirmed and {event.available_seats} available do not "
                f"make {event.total_seats} in total"
            )
        for key, reservation in changed.items():
            if reservation is None:
                continue
            if key != reservation.reservation_id:
                yield f"reservation {reservation.reservation_id} has the key {key}"
            latest = max(
                reservation.event_version_at_reservation or 0,
                reservation.event_version_at_cancel or 0,
            )
            if latest > event.version:
                yield (
                    f"reservation {key} has version {latest}, but the event is at "
                    f"version {event.version}"
                )

    def report(self) -> Report:
        """Add up the sales; cancelled seats do not count."""
        event = self.event
        sold = event.total_seats - event.available_seats
        return Report(
            event_id=event.event_id,
            name=event.name,
            total_tickets=event.total_seats,
            tickets_sold=sold,
            available_tickets=event.available_seats,
            waiting_list_count=len(self.waiting),
            price=event.price,
            revenue=sold * event.price,
        )

    def _changed(self, reservation: Reservation, freed: int) -> Document:
        """Put `reservation` in, add `freed` to the free seats, count one version."""
        left = self.event.available_seats + freed
        event = self.event.after_change(available_seats=left)
        return self.with_records(event, {reservation.reservation_id: reservation})

    def with_records(self, event: Event, changed: dict[str, Reservation]) -> Document:
        """This document with another event, and some other reservations."""
        waiting = waiting_among({**self.waiting, **changed}.values())
        earlier, found = self._layers()
        return Document(event, ChainMap({**earlier, **changed}, found), waiting)

    def _layers(self) -> tuple[dict[str, Reservation], dict[str, Reservation]]:
        """The changed reservations, and those that were found."""
        maps: Any = {}, self.reservations
        if isinstance(self.reservations, ChainMap):
            maps = self.reservations.maps
        changed, found = maps
        return changed, found


class Accounts(Value, frozen=True, dict=True, gc=True):
    """All accounts by id as text, and the secret that signs their tokens."""

    version: NonNegative = 0
    secret: str = ""
    members: dict[str, Account] = {}

    @functools.cached_property
    def by_login_name(self) -> dict[str, Account]:
        """The accounts by all their login names; made once, when first needed."""
        index: dict[str, Account] = {}
        for account in self.members.values():
            for name in login_names(account):
                index.setdefault(name, account)
        return index

    def check(self) -> Iterator[str]:
        """Yield a sentence for each thing that does not add up."""
        if self.members and len(self.secret) < 32:
            yield "accounts need a secret of 32 characters (a new one voids all tokens)"
        names: list[str] = []
        for key, account in self.members.items():
            if key != str(account.id) or not 0 < account.id <= self.version:
                yield f"account {account.id} has a wrong key or an unused id"
            names.append(f"email {normalize_email(account.email)}")
            names.append(f"username {normalize_name(account.username)}")
        if len(names) > len(set(names)):
            yield "two accounts have the same e-mail or username"


NO_ACCOUNTS: Final = Accounts()


class Change(NamedTuple):
    """A value that differs between two databases."""

    event_id: str  # "" for an account
    record_id: str  # "" for the event itself, or for what all accounts share
    value: Event | Reservation | Accounts | Account | None  # None if it was removed


class Database(Struct, frozen=True):
    """Everything that is stored."""

    seeded: str  # the id of the event that the first start opened
    documents: dict[str, Document]  # by the event's id as text; deleted ones too
    accounts: Accounts

    @property
    def has_password_hashes(self) -> bool:
        """Whether it has password hashes, so that only its owner may read it."""
        return bool(self.accounts.members)

    def document(self, event_id: str | None) -> Document:
        """Find an event; None is the seeded one. Raises NotFound."""
        found = self.documents.get(self.key_of(event_id))
        if found is None or found.event.deleted:
            raise NotFound("Event not found")
        return found

    def key_of(self, event_id: str | None) -> str:
        """The key of an event; an old file may encode its id differently."""
        if event_id is None:
            return self.seeded
        if event_id in self.documents:
            return event_id
        wanted = normalize_text(event_id)
        same = (key for key in self.documents if normalize_text(key) == wanted)
        return next(same, wanted)

    def events(self) -> list[Document]:
        """All events that exist, the seeded one first."""
        return [d for d in self.documents.values() if not d.event.deleted]

    def find_opened(self, key: str | None, request: str, event: Event) -> Event | None:
        """`event` as it was opened under this key; None if it was not.

        Raises KeyReused.
        """
        if key is None:
            return None
        for document in self.documents.values():
            use = find_key_use(document.event.key_uses, key, request)
            if use is not None:
                old = document.event
                return replace(
                    event,
                    event_id=old.event_id,
                    created_at=old.created_at,
                    version=use.version,
                )
        return None

    def with_document(self, document: Document) -> Database:
        """This database with that document; the same object if it already has it."""
        key = str(document.event.event_id)
        if self.documents.get(key) is document:
            return self
        return replace(self, documents=self.documents | {key: document})

    def settled(self) -> Database:
        """The same database, with settled documents."""
        documents = {
            key: document.settled() for key, document in self.documents.items()
        }
        return replace(self, documents=documents)

    def changes_since(self, before: Database) -> Iterator[Change]:
        """Yield each value that differs, also the removed ones."""
        for event_id, document in self.documents.items():
            old = before.documents.get(event_id)
            if document is old:
                continue
            yield Change(event_id, "", document.event)
            for key, reservation in document.changed_since(old).items():
                yield Change(event_id, key, reservation)
        for event_id in before.documents.keys() - self.documents.keys():
            for key in ("", *before.documents[event_id].reservations):
                yield Change(event_id, key, None)
        accounts = self.accounts
        if accounts is not before.accounts:
            yield Change("", "", replace(accounts, members={}))
            changed = differences(before.accounts.members, accounts.members)
            for key, account in changed.items():
                yield Change("", key, account)

    def with_changes(self, changes: Iterable[Change]) -> Database:
        """This database with these values. Raises ValueError if it does not add up."""
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        for event_id, record_id, value in changes:
            found[event_id][record_id] = value
        members = found.pop("", {})
        accounts = members.pop("", self.accounts)
        if members or accounts is not self.accounts:
            accounts = replace(accounts, members=self.accounts.members | members)
        documents = dict(self.documents)
        for event_id, records in found.items():
            before = documents.get(event_id)
            event = records.pop("", before and before.event)
            if event is None:
                raise ValueError(f"event {event_id} is missing")
            before = before or Document.of(event, {})
            documents[event_id] = before.with_records(event, records)
        after = Database(self.seeded or next(iter(documents), ""), documents, accounts)
        for problem in after.check(self):
            raise ValueError(problem)
        return after.settled()

    def check(self, before: Database | None = None) -> Iterator[str]:
        """Yield a sentence for each thing that does not add up.

        With `before`, which added up, objects that are also in it are not checked.
        """
        for key, document in self.documents.items():
            known = before.documents.get(key) if before else None
            if document is known:
                continue
            if key != str(document.event.event_id):
                yield f"event {document.event.event_id} has the key {key}"
            for problem in document.check(known):
                yield f"event {key}: {problem}"
        if before is None or self.accounts is not before.accounts:
            yield from self.accounts.check()


class StoredEvent(Value, frozen=True):
    """The layout of an event in db.json."""

    event: Event
    reservations: dict[str, Reservation]


class StoredDatabase(StoredEvent, frozen=True):
    """The layout of db.json: first the seeded event, then everything added later."""

    events: dict[str, StoredEvent] = {}
    accounts: Accounts = NO_ACCOUNTS

    def database(self) -> Database:
        """The database in this layout. Raises ValueError if it does not add up."""
        seeded = str(self.event.event_id)
        if seeded in self.events:
            raise ValueError(f"the event {seeded} occurs twice")
        if self.event.deleted:
            raise ValueError(f"its first event {seeded} is marked deleted")
        documents = {
            key: Document.of(stored.event, stored.reservations)
            for key, stored in {seeded: self, **self.events}.items()
        }
        database = Database(seeded, documents, self.accounts)
        for problem in database.check():
            raise ValueError(problem)
        return database


class Report(Struct, frozen=True, rename="camel"):
    """The sales of one event."""

    event_id: int | str
    name: str
    total_tickets: int
    tickets_sold: int
    available_tickets: int
    waiting_list_count: int
    price: int  # of one seat, in minor units
    revenue: int


def merge(seen: Database, wanted: Database, now: Database) -> Database | None:
    """`now` with the changes from `seen` to `wanted`; None if they conflict with it.

    Compare-and-swap, document by document: changes of other events are kept.
    """
    if wanted is seen:
        return now
    changed = {
        key: document
        for key, document in wanted.documents.items()
        if document is not seen.documents.get(key)
    }
    # If the versions differ, the comparison ends at once. It compares everything else
    # too, to notice an edit by hand that did not change the version.
    for key in changed:
        if now.documents.get(key) != seen.documents.get(key):
            return None
    accounts = now.accounts
    if wanted.accounts is not seen.accounts:
        if now.accounts != seen.accounts:
            return None
        accounts = wanted.accounts
    merged = Database(now.seeded, now.documents | changed, accounts)
    for problem in merged.check(now):
        raise AssertionError(problem)  # this is a bug, and it must not sell anything
    return merged


def seed(seats: int) -> Database:
    """The database that a first start stores: one event without reservations."""
    key = "node-meetup-2025"
    event = Event(key, "Node.js Meet-up", seats, seats, 0)
    return Database(key, {key: Document.of(event, {})}, NO_ACCOUNTS)


# === 4. Store ================================================================
# db.json, replaced whole. Readers take no lock: os.replace() means that they see the
# old file or the new one, never half of each. Knows files, locks and versions; knows no
# rule about seats or accounts, and no HTTP. Comments say what breaks without a step.

POLL_S: Final = 0.002  # filelock polls; at its own 0.05 s another process starves
log: Final = logging.getLogger("ticketboss")


def shown_location(db: str) -> str:
    """How messages name a database: the whole path, or the URL without its secrets."""
    if "://" not in db:
        return os.path.abspath(db)
    # A secret may have an @ in it, and the line end of a file that it was read from.
    db = re.sub("(?s)[?&][a-z_]*(password|secret)=.*", "", db)
    return re.sub("(?s)//([^:@/]*):.*@", r"//\1@", db).partition("?")[0]


class Loaded(Protocol):
    """The result of a store's `load`, with which its `swap` compares."""

    @property
    def database(self) -> Database:
        """The database as it was stored."""


class AnyStore(Protocol):
    """The operations of a store. Nothing below the stores knows which one it uses."""

    path: str  # how messages name it

    def open(self, seats: int, *, may_seed: bool = True, prove: bool = False) -> None:
        """Seed the store if it is empty, and read it."""

    def create(self, database: Database) -> bool:
        """Store `database` if the store is empty; return whether it was."""

    def reset(self, seats: int, kept: str) -> str:
        """Seed again; return the file that keeps the old content."""

    def load(self) -> Loaded:
        """Read the present content."""

    def swap(self, seen: Any, wanted: Database) -> bool:
        """Replace `seen` by `wanted`; False if somebody saved meanwhile: read again."""

    def lock(self) -> AbstractContextManager[object]:
        """A context in which no other writer can save."""

    def health(self) -> None:
        """Raise the store's present problem, if there is one."""
        self.load()


class Snapshot:
    """A parsed database, and an open descriptor of its file.

    The descriptor pins the inode, so device, inode, time and size identify the
    content. An unpinned inode is reused, and a stale cache looks fresh (300 versions
    in a row shared two inodes on ext4).
    """

    def __init__(self, path: str, database: Database | None = None) -> None:
        """Open the file; read it unless its content is known.

        A damaged file raises nothing here: `problem` says what is wrong.
        """
        if os.path.islink(path):  # others may write, and lock, what it leads to
            raise Unavailable("db.json has become a link. Start all servers again")
        # Non-blocking, because opening a FIFO would hang.
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        status = os.fstat(self._fd)  # before reading, to notice an edit meanwhile
        if not stat.S_ISREG(status.st_mode):
            raise Unavailable("db.json is not a regular file")
        self.file_id = _file_id(status)
        self.problem = ""  # why there is no database in it
        if database is not None:
            self.database = database
            return
        try:
            with open(self._fd, "rb", closefd=False) as file:
                self.database = _decode(file.read())
        except Damaged as error:
            self.problem = str(error)

    def __del__(self) -> None:
        """Release the file. Freeing its blocks may take as long as a commit."""
        with suppress(OSError, AttributeError):  # it may not have been opened
            os.close(self._fd)


class Store:
    """One db.json: `load` it, `swap` a change in, `lock` everybody else out."""

    def __init__(self, path: str, timeout_s: float = 2.0) -> None:
        # A symbolic link stays one: its target is replaced and locked.
        self.path = os.path.realpath(path)
        self._folder, name = os.path.split(self.path)
        self._hidden = f"{self._folder}/.{name}"  # prefix of lock and temporary files
        self._lock_path = f"{self._hidden}.lock"
        self._timeout_s = timeout_s
        self._mutex = threading.RLock()
        self._file_locks: dict[int, FileLock] = {}  # one for each process, by its id
        self._lock_fd = -1  # the descriptor of the lock file that we hold
        self._folder_fd = -1  # the descriptor of the folder, while we hold the lock
        self._parsing = threading.Lock()  # held by the thread that parses a new file
        self._snapshot: Snapshot | None = None  # of the file as last seen
        self._written: Snapshot | None = None  # of the file that we renamed last
        self._encoded = Database("", {}, NO_ACCOUNTS)  # the last one
        self._lines: dict[str, dict[str, bytes]] = defaultdict(dict)  # of its records
        self._accounts = b""  # the text of its accounts
        self._write_error = ""  # why the last write failed, or may not survive a crash
        self._must_write = False  # the last write may not survive a crash
        self._proved_at = -math.inf

    def open(self, seats: int, *, may_seed: bool = True, prove: bool = False) -> None:
        """Seed the file if there is none; remove files that killed writers left.

        may_seed=False (a restarted worker): if the lock file is not empty there was a
        database, so its absence is an error, never a reason to sell its seats again.
        With `prove`, the file is also replaced by a copy, by the steps of a change.
        Raises Unwritable, and Unavailable if the file is missing or damaged; it is
        never replaced by an empty one.
        """
        with self.lock(is_start=True):
            with _writing("The folder cannot be used", self._folder):
                self._remove_leftovers()
                is_new = may_seed or os.fstat(self._lock_fd).st_size == 0
            if is_new:
                self.create(seed(seats))
            self.load()
        if prove:
            self._prove()

    def create(self, database: Database) -> bool:
        """Make the file if there is none; return whether there was none."""
        if os.path.lexists(self.path):  # it may be the one that we copy, and locked
            return False
        with self.lock(is_start=True) as folder_fd:
            if os.path.lexists(self.path):
                return False
            with self._temp_file(self._encode(database)) as temp_path:
                if _link(temp_path, self.path):  # complete, and never over a file
                    os.unlink(temp_path)
                else:  # the lock alone keeps others from seeding
                    os.rename(temp_path, self.path)
            self._sync_folder(folder_fd)
            return True

    def reset(self, seats: int, kept: str) -> str:
        """Seed again; return the file that keeps the old content."""
        with self.lock(is_start=True) as folder_fd:
            if not os.path.isfile(self.path):  # such as /dev/null
                raise Unavailable("db.json is not a regular file", self.path)
            with self._temp_file(self._encode(seed(seats))) as temp_path:
                self._keep(kept)
                try:
                    os.replace(temp_path, self.path)
                except OSError:
                    os.unlink(kept)
                    raise
            self._sync_folder(folder_fd)
            return kept

    def load(self) -> Snapshot:
        """Read the file without a lock; parse it only if it is new.

        Raises Unavailable, which names the place in the file that is wrong.
        """
        with _os_errors_as(Unavailable, "db.json cannot be read", self.path):
            snapshot = self._known()
            if snapshot is None:
                with self._parsing:  # one thread parses, the others wait for it
                    snapshot = self._known() or Snapshot(self.path)
                    self._snapshot = snapshot
        if snapshot.problem:
            raise Damaged(snapshot.problem)
        return snapshot

    def _known(self) -> Snapshot | None:
        """The snapshot of the very file that is at the path now, if we have it."""
        file_id = _file_id(os.lstat(self.path))
        # The one we wrote comes first: while we rename its file, only it is right.
        for snapshot in (self._written, self._snapshot):
            if snapshot is not None and snapshot.file_id == file_id:
                return snapshot
        return None

    def swap(self, seen: Snapshot, wanted: Database) -> bool:
        """Compare-and-swap: replace `seen` by `wanted` unless somebody changed it.

        True: it is on the disk (so is `seen`, if there is nothing to change). False:
        somebody saved first, so read again. Raises Contended or Unavailable, with
        nothing changed; InDoubt if only the last step failed.
        """
        with self.lock() as folder_fd:
            now = self.load()
            merged = merge(seen.database, wanted, now.database)
            if merged is None:
                return False
            if merged is not now.database or self._must_write:
                text = self._encode(merged)
                with self._temp_file(
                    text, is_private=merged.has_password_hashes
                ) as temp_path:
                    snapshot = Snapshot(temp_path, self._encoded)
                    # Both must still be the files that we locked and read.
                    if not (self._holds_lock() and self._known() is now):
                        os.unlink(temp_path)
                        return False
                    self._written = snapshot
                    os.replace(temp_path, self.path)  # the commit point
                self._snapshot = snapshot
            self._sync_folder(folder_fd)
            return True

    def health(self) -> None:
        """Raise the present problem of the file or its disk, if there is one.

        After a failed write it tries another write, at most once in five seconds.
        """
        self.load()
        if self._write_error and time.monotonic() > self._proved_at + 5:
            self._proved_at = time.monotonic()
            with suppress(Contended):  # then another process can write
                self._prove()
        if self._write_error:
            raise Unwritable(self._write_error)

    @contextmanager
    def lock(self, *, is_start: bool = False) -> Iterator[int]:
        """Hold the write lock against threads and processes; re-entrant.

        Yields the folder's descriptor. A start also takes a lock file that is new, and
        marks it. Raises Contended or Unwritable.
        """
        deadline = time.monotonic() + self._timeout_s
        # A mutex first: filelock polls, so one process should be one contender.
        if not self._mutex.acquire(timeout=self._timeout_s):
            raise Contended("The lock was not free in time")
        try:
            if self._folder_fd >= 0:  # this thread holds it already
                yield self._folder_fd
                return
            with _writing("The folder cannot be used", self._folder):
                folder_fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with self._locked_file(deadline, is_start=is_start):
                    self._folder_fd = folder_fd
                    yield folder_fd
            finally:
                self._folder_fd = -1
                with suppress(OSError):
                    os.close(folder_fd)
        except Unwritable as error:
            self._note_write_error(str(error))
            raise
        finally:
            self._mutex.release()

    @contextmanager
    def _locked_file(self, deadline: float, *, is_start: bool) -> Iterator[None]:
        with _writing("The lock cannot be used", self._lock_path):
            file_lock = self._file_lock()
            file_lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
        try:
            if not is_start:
                self._require_marked_lock()
            yield
            if is_start:  # a byte marks the lock as made by a start
                with _writing("The lock cannot be used", self._lock_path):
                    os.ftruncate(self._lock_fd, 1)
        finally:
            # The change is already made. But a lock that is not released shuts out
            # everybody else for ever, so try a second time if need be.
            for _ in range(2):
                with suppress(OSError):
                    file_lock.release()
                    break

    def _file_lock(self) -> FileLock:
        # One FileLock per process (a forked copy guards nothing), on a file that is
        # never replaced or deleted (waiters would lock different inodes), thread-local
        # by default (a shared one admits every thread).
        if not os.path.lexists(self._lock_path):
            folder = _writing("The folder cannot be used", self._folder)
            with folder, suppress(FileExistsError):
                self._create(self._lock_path, [], is_private=self._is_private())
        status = os.lstat(self._lock_path)
        if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EMLINK, "it is not a regular file with one name")
        if os.getpid() not in self._file_locks:
            self._file_locks[os.getpid()] = FileLock(
                self._lock_path,
                poll_interval=POLL_S,
                fallback_to_soft=False,
                on_acquired=lambda fd: setattr(self, "_lock_fd", fd),
            )
        return self._file_locks[os.getpid()]

    def _require_marked_lock(self) -> None:
        """Refuse a lock file that was not made by a start.

        Somebody deleted the earlier one. A process that holds that one may replace
        db.json at any moment.
        """
        with _writing("The lock cannot be used", self._lock_path):
            if os.fstat(self._lock_fd).st_size == 0:
                raise OSError(
                    errno.ENOLCK,
                    "it was deleted or emptied. Stop all servers on this database, "
                    "then start them",
                )

    def _is_private(self) -> bool:
        """Whether only its owner may read db.json."""
        try:
            return self.load().database.has_password_hashes
        except Unavailable:
            return True

    def _create(self, path: str, text: list[bytes], *, is_private: bool) -> None:
        """Create a file with db.json's owner and mode, durably.

        If there is no db.json yet, the file belongs to the folder's owner. Only the
        owner may read it then, or if it is private.
        """
        mode = 0o600
        model = os.stat(self._folder)
        with suppress(FileNotFoundError):
            model = os.stat(self.path)
            if not is_private:
                mode = stat.S_IMODE(model.st_mode)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            if mode != 0o600:
                os.fchmod(fd, mode)
            if (model.st_uid, model.st_gid) != (os.geteuid(), os.getegid()):
                with suppress(PermissionError):
                    os.fchown(fd, model.st_uid, model.st_gid)
            _write(fd, text)
            # Without it, a power cut may leave an empty file under the name.
            _sync(fd)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)

    @contextmanager
    def _temp_file(
        self, text: list[bytes], *, is_private: bool = False
    ) -> Iterator[str]:
        """Write `text` to a new file, durably, and yield its path.

        Raises Unwritable for an OSError in here or in the caller's block.
        """
        # A unique name, because a temporary file belongs to one writer. Beside db.json,
        # because a rename works only within one file system.
        path = f"{self._hidden}.{secrets.token_hex(8)}.tmp"
        try:
            with _writing("db.json cannot be written", self.path):
                self._create(path, text, is_private=is_private)
                yield path
                self._write_error = ""
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise

    def _note_write_error(self, why: str) -> None:
        self._write_error = why
        self._proved_at = time.monotonic()

    def _encode(self, database: Database) -> list[bytes]:
        """The text of db.json; of its records, only those that changed are encoded."""
        try:
            for event_id, key, value in database.changes_since(self._encoded):
                if value is None:
                    self._lines[event_id].pop(key, None)
                elif isinstance(value, Reservation):
                    text = msgspec.json.encode({key: value})
                    line = msgspec.json.format(text, indent=0)[1:-1]
                    self._lines[event_id][key] = line
                elif not (event_id or key):  # the accounts changed
                    text = msgspec.json.encode(database.accounts)
                    text = msgspec.json.format(text, indent=2)
                    self._accounts = text.replace(b"\n", b"\n  ")
            self._encoded = database.settled()
        except BaseException:  # some lines are new, so make all of them next time
            self._encoded = Database("", {}, NO_ACCOUNTS)
            self._lines.clear()
            raise
        return self._text()

    def _text(self) -> list[bytes]:
        """The text in parts, because joining large ones would copy them."""
        seeded = self._encoded.seeded
        events: dict[str, Any] = {
            key: {"event": document.event, "reservations": None}
            for key, document in self._encoded.documents.items()
        }
        layout = events.pop(seeded) | ({"events": events} if events else {})
        outline = msgspec.json.format(msgspec.json.encode(layout), indent=2)
        start, *gaps = outline.removesuffix(b"\n}").split(b'"reservations": null')
        parts = [start]
        for key, gap in zip([seeded, *events], gaps, strict=True):
            newline = b"\n    " if key == seeded else b"\n        "
            listed = (b"," + newline).join(self._lines[key].values())
            text = [newline, listed, newline[:-2]] if listed else []
            parts += [b'"reservations": {', *text, b"}", gap]
        if self._encoded.accounts.version:
            parts += [b',\n  "accounts": ', self._accounts]
        return [*parts, b"\n}\n"]

    def _keep(self, kept: str) -> None:
        """Keep the present file also under another name."""
        if not _link(self.path, kept):
            text = Path(self.path).read_bytes()
            with self._temp_file([text], is_private=True) as temp_path:
                os.rename(temp_path, kept)

    def _prove(self) -> None:
        """Replace the file by a copy of itself; raises what a change would raise."""
        with self.lock() as folder_fd:
            text = Path(self.path).read_bytes()
            with self._temp_file([text], is_private=self._is_private()) as temp_path:
                os.replace(temp_path, self.path)
            self._sync_folder(folder_fd)

    def _remove_leftovers(self) -> None:
        """Remove temporary files; no writer uses them, because we hold the lock."""
        leftover = re.escape(os.path.basename(self._hidden)) + r"\.\w{16}\.tmp"
        for name in os.listdir(self._folder):
            if re.fullmatch(leftover, name):
                os.unlink(f"{self._folder}/{name}")

    def _holds_lock(self) -> bool:
        """Whether the lock file is still at its path; if not, we hold nothing."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._lock_fd), os.stat(self._lock_path))
        return False

    def _sync_folder(self, folder_fd: int) -> None:
        """Make the last rename survive a power cut. Raises InDoubt."""
        try:
            _sync(folder_fd)
            if not self._holds_lock():  # then others may have replaced db.json
                raise OSError(errno.ENOLCK, "the lock file was deleted meanwhile")
        except OSError as error:
            self._must_write = True
            self._note_write_error(
                f"The disk did not confirm the last write: {error.strerror}"
            )
            log.critical(self._write_error)
            raise InDoubt(
                "the change is written, but the disk did not confirm it"
            ) from error
        self._must_write = False


def _link(path: str, other: str) -> bool:
    """Give a file another name. False where there are no hard links.

    exFAT has none, and neither have shared folders of virtual machines.
    """
    try:
        os.link(path, other)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}:
            raise
        return False
    return True


def _write(fd: int, parts: list[bytes]) -> None:
    """Write all parts; small ones together, because each call costs time."""
    small: list[bytes] = []
    for part in [*parts, b""]:
        if part and len(part) < 2**16:
            small.append(part)
            continue
        for piece in (b"".join(small), part):
            unwritten = memoryview(piece)
            while unwritten:  # a write may be partial
                unwritten = unwritten[os.write(fd, unwritten) :]
        small = []


def _decode(text: bytes) -> Database:
    """The database in a text. Raises Damaged."""
    text = text.removeprefix(codecs.BOM_UTF8)  # PowerShell and some editors write one
    try:
        stored = _decode_stored(text)
        database = stored.database()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"db.json is not valid: {error}") from None
    except ValueError as error:
        raise Damaged(f"db.json does not add up: {error}") from None
    if msgspec.json.format(text, indent=-1) == msgspec.json.encode(stored):
        return database
    # It is not what we would write, so it was edited, and a field may occur twice.
    try:
        UNAMBIGUOUS.decode(text.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"db.json is ambiguous: {error}") from None
    return database


def _decode_stored(text: bytes) -> StoredDatabase:
    try:
        return msgspec.json.decode(text, type=StoredDatabase)
    except msgspec.ValidationError as error:
        if "reservations[...]" not in str(error):
            raise
        # Find the record, which the error does not name.
        fields = msgspec.json.decode(text, type=dict[str, Raw])
        more = fields.get("events", b"{}")
        events = msgspec.json.decode(more, type=dict[str, dict[str, Raw]])
        for event in (fields, *events.values()):
            records = event.get("reservations", b"{}")
            for key, raw in msgspec.json.decode(records, type=dict[str, Raw]).items():
                _decode_record(f"the reservation {key!a}", raw, Reservation)
        raise


def _decode_record(place: str, text: bytes | str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"{error}, of {place:.99}") from None


def build_decoders(base: type[Struct]) -> None:
    """Have msgspec build what decodes the subclasses of `base`, in one thread.

    Left alone, it does so when a type is first decoded, and two threads that do it at
    the same moment crash the process (seen with msgspec 0.22).
    """
    for kind in base.__subclasses__():
        msgspec.json.Decoder(kind)
        build_decoders(kind)


build_decoders(Value)


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {twice!a:.99} occurs twice")
    return found


# msgspec takes the last of two fields with the same name.
UNAMBIGUOUS: Final = json.JSONDecoder(object_pairs_hook=_unique_fields)


def _file_id(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _sync(fd: int) -> None:
    if sys.platform == "darwin":  # where fsync stops at the drive's cache
        import fcntl  # noqa: PLC0415 -- for macOS alone

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


@contextmanager
def _os_errors_as(kind: type[Unavailable], what: str, path: str) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise Contended(
            "Another process holds the lock", f"{path}: another process holds the lock"
        ) from None
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        if isinstance(error, PermissionError):
            with suppress(OSError, KeyError):
                path += f", which belongs to {Path(path).owner()}"
        raise kind(f"{what}: {reason}", path) from error


_writing: Final = functools.partial(_os_errors_as, Unwritable)


# === 5. Transactions =========================================================
# The lesson. Read the event; decide what it should become; save it only if nobody has
# saved meanwhile; otherwise read and decide again. Uses only `load`, `swap` and `lock`
# of a store; knows no file and no HTTP. The idea: Kung and Robinson, 1981. Group
# commit saves several decisions in one write: DeWitt and others, 1984.

Decision = Callable[[Database], Database]  # pure: it may run again, in any thread
MAX_BATCH: Final = 256  # decisions in one write


class PendingCommit:
    """A queued change and its result."""

    def __init__(self, decide: Decision) -> None:
        self.decide = decide
        self.database = cast("Database", None)  # the result of this decision
        self.changed = False  # whether the decision changed anything
        self.attempts = 0  # how many times it was decided
        self.error: Exception | None = None
        self.is_decided = False  # it has a result or an error
        self.done = False  # its leader has finished, or died if it is not decided
        self.ready = threading.Lock()  # one each: a shared one would wake everybody
        self.ready.acquire()


class Transactions:
    """Applies decisions to a store, atomically and durably, in order of arrival."""

    def __init__(
        self, store: AnyStore, think_s: float = 0, timeout_s: float = 2
    ) -> None:
        self._store = store
        self._think_s = think_s
        self._timeout_s = timeout_s
        # First optimistic, then sure: after a lost race the decision is made again
        # while holding the lock, so two attempts are enough, and nobody starves. With
        # --think, five optimistic attempts come first, so that conflicts are visible.
        self._optimistic_attempts = 5 if think_s else 1
        self._mutex = threading.Lock()
        self._queue: deque[PendingCommit] = deque()
        self._has_leader = False  # a thread commits, or is about to
        # What the last commit read. Whoever drops it frees the old file's blocks, which
        # takes as long as half a commit; so a server drops it after it has answered.
        self.replaced: object = None

    def transact(self, decide: Decision) -> PendingCommit:
        """Apply `decide` to the database; return the result once it is on the disk.

        Raises what `decide` raises, with nothing written. Contended and Unavailable:
        certainly not applied. InDoubt: perhaps applied.
        """
        pending = PendingCommit(decide)
        if self._think_s:
            self._commit([pending])
        elif self._wait_or_lead(pending):
            self._lead_batch(pending)
        if not pending.is_decided:
            raise InDoubt("the thread that saved the change has died")
        if pending.error is None:
            return pending
        if isinstance(pending.error, TicketBossError):
            pending.error.attempts = pending.attempts
        try:
            raise pending.error
        finally:
            # Its traceback refers to `pending`, so the two would keep each other, and
            # the file that was read, until the garbage collector finds them.
            pending.error = None

    def _wait_or_lead(self, pending: PendingCommit) -> bool:
        """Become leader (True), or wait until a leader has committed us (False)."""
        with self._mutex:
            if not self._has_leader:
                self._has_leader = True
                return True
            self._queue.append(pending)
        if not pending.ready.acquire(timeout=self._timeout_s):
            with self._mutex:
                if pending in self._queue:
                    self._queue.remove(pending)
                    raise Contended("The change did not get its turn in time")
            pending.ready.acquire()  # it is in a batch, whose leader will answer soon
        return not pending.done

    def _lead_batch(self, first: PendingCommit) -> None:
        """Commit all waiting changes, pass the lead to the next, wake the others."""
        with self._mutex:
            followers = min(len(self._queue), MAX_BATCH - 1)
            batch = [first, *(self._queue.popleft() for _ in range(followers))]
        try:
            self.replaced = self._commit(batch)
        finally:
            with self._mutex:
                next_leader = self._queue.popleft() if self._queue else None
                self._has_leader = next_leader is not None
            if next_leader is not None:
                next_leader.ready.release()
            for pending in batch:
                pending.done = True
                pending.ready.release()

    def _commit(self, batch: list[PendingCommit]) -> object:
        """Read, decide and swap until nobody else was first; return what was read."""
        deadline = time.monotonic() + self._timeout_s
        try:
            for attempt in itertools.count(1):
                is_sure = attempt > self._optimistic_attempts
                with self._store.lock() if is_sure else nullcontext():
                    seen = self._store.load()
                    wanted = self._decide_all(batch, seen.database, attempt)
                    if self._think_s and not is_sure:
                        time.sleep(self._think_s)
                    # A batch of refusals needs no write. Anything else, even a replay,
                    # is answered only once it is on the disk.
                    if all(p.error for p in batch) or self._store.swap(seen, wanted):
                        for pending in batch:
                            pending.is_decided = True
                        return seen
                if is_sure and time.monotonic() > deadline:
                    raise Contended("Others always saved first")
        except Exception as error:  # noqa: BLE001 -- every caller in the batch gets it
            for pending in batch:  # refusals too: they may be due to a sale that failed
                pending.error = error
                pending.is_decided = True
        return None

    def _decide_all(
        self, batch: list[PendingCommit], database: Database, attempt: int
    ) -> Database:
        """Apply each decision to the result of the one before it."""
        for pending in batch:
            pending.error = None
            pending.attempts = attempt
            try:
                pending.database = pending.decide(database)
            except Exception as error:  # noqa: BLE001 -- raised to its own caller
                pending.error = error
            else:
                pending.changed = pending.database is not database
                database = pending.database
        return database


# === 6. SQL store ============================================================
# The same protocol over PostgreSQL. One table: a row for each event, reservation and
# account, with the number of the swap that wrote it last. Each swap writes the root row
# too: writers hold its lock, and readers ask for rows with higher numbers than theirs.
# Plain SQL, no state of a session (poolers lose it). Knows no permissions and no HTTP.

CREATE_TABLE: Final = """
    CREATE TABLE ticketboss (
        event text, id text,   -- as in Change; the root row is ('', 'root')
        swap bigint NOT NULL,  -- the number of the swap that wrote this row last
        born bigint NOT NULL,  -- the order in which rows are listed
        body text NOT NULL,    -- JSON; in the root row random marks of the last swaps
        PRIMARY KEY (event, id)); CREATE INDEX ticketboss_swap ON ticketboss (swap)"""
LOCK_ROOT: Final = """
    SET LOCAL lock_timeout = {0}; SET LOCAL idle_in_transaction_session_timeout = {0};
    SELECT 1 FROM ticketboss WHERE event = '' AND id = 'root' FOR UPDATE"""
READ_ROOT: Final = "SELECT swap, body FROM ticketboss WHERE event = '' AND id = 'root'"
READ_ROWS: Final = """
    SELECT event, id, swap, coalesce(body, '') FROM ticketboss
    WHERE swap >= %(known)s AND (swap > %(known)s OR id = 'root') ORDER BY born"""
WRITE_ROWS: Final = """
    INSERT INTO ticketboss (event, id, body, born, swap)
    SELECT *, %s::bigint FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[])
    ON CONFLICT (event, id) DO UPDATE SET body = excluded.body, swap = excluded.swap"""
NO_DRIVER: Final = 'PostgreSQL needs: python -m pip install "psycopg[binary]"'
BAD_URL: Final = "This URL cannot be read. Write postgresql://user@host:5432/name"
UNSURE: Final = "08", "40", "57P"  # SQLSTATEs of a commit that may have happened
TOO_LATE: Final = "23505", "40", "42710", "42P07", "55P03"  # of a writer not first


class Reading(NamedTuple):
    """A database as it was read, and its last swap."""

    database: Database = Database("", {}, NO_ACCOUNTS)
    swap: int = 0
    marks: str = ""  # of the last swaps, the newest first


class SQLStore(AnyStore):
    """One database: `load` it, `swap` a change in, `lock` everybody else out."""

    def __init__(self, url: str, timeout_s: float = 2.0) -> None:
        self.path = shown_location(url)
        try:
            self._driver = importlib.import_module("psycopg")
            # A plain @ or / would make a part of the password the host; %zz is refused.
            strict_url = re.sub("(?s)(?<=[^/:])[@/](?=[^?]*@)", "%zz", url)
            parameters = self._driver.conninfo.conninfo_to_dict(strict_url)
        except ImportError:
            raise Unavailable(NO_DRIVER) from None
        except self._driver.Error:  # whose text may show the password
            raise Unavailable(BAD_URL) from None
        self._options = {
            "client_encoding": "utf8",
            "connect_timeout": 2,
            "tcp_user_timeout": 5000,
            "target_session_attrs": "read-write",  # of several hosts, the primary
            "prepare_threshold": None,  # a pooler would lose prepared statements
            **parameters,
        }
        self._timeout_s = timeout_s
        self._connections: dict[tuple[str, int], Any] = {}  # by use and process
        self._mutexes = {"writer": threading.RLock(), "reader": threading.RLock()}
        self._next_answer: dict[str, Future[Reading]] = {}  # for its atomic setdefault
        self._known = Reading()

    def open(self, seats: int, **_: bool) -> None:
        """Seed if there is no table; a table that lost its rows is not seeded again."""
        with suppress(Contended):  # then another server is doing it
            self.create(seed(seats))
        self.load()

    def create(self, database: Database) -> bool:
        """Make and fill the table if there is none; return whether there was none."""
        with self._connection("writer") as db:
            if db.execute("SELECT to_regclass('ticketboss')").fetchone() != (None,):
                return False
            db.execute(CREATE_TABLE)
            return self._commit(db, Reading(), database)

    def reset(self, seats: int, kept: str) -> str:
        """Seed again; the old content goes to a new db.json in the current folder."""
        with self.lock() as db:
            now = _read_rows(db, Reading())
            aside = Store(os.path.basename(kept))
            if aside.create(now.database) and self._commit(db, now, seed(seats)):
                return aside.path
        raise Contended("Nothing was changed. Try again.")

    def load(self) -> Reading:
        """Read the present rows; threads that wait share the next answer."""
        answer = self._next_answer.setdefault("", mine := Future[Reading]())
        if answer is mine:
            try:
                with self._connection("reader") as db:
                    self._next_answer.clear()  # who comes later needs a later query
                    self._known = _read_rows(db, self._known)
                answer.set_result(self._known)
            except BaseException as error:  # noqa: BLE001 -- all who wait get it
                self._next_answer.clear()
                answer.set_exception(error)
        with suppress(TimeoutError):
            return answer.result(self._timeout_s)
        raise Contended("The database did not answer in time")

    def swap(self, seen: Reading, wanted: Database) -> bool:
        """Replace `seen` by `wanted`, as Store.swap does."""
        if wanted is seen.database:
            return True
        with self.lock() as db:
            now = _read_rows(db, seen)
            merged = merge(seen.database, wanted, now.database)
            return merged is not None and self._commit(db, now, merged)

    @contextmanager
    def lock(self) -> Iterator[Any]:
        """Keep other writers away until the next swap, in no order of arrival."""
        with self._connection("writer") as db:
            db.execute(LOCK_ROOT.format(int(self._timeout_s * 1000)))
            yield db

    def _commit(self, db: Any, now: Reading, wanted: Database) -> bool:
        """Write the differences, and commit. False: certainly not done, read again."""
        mark = secrets.token_hex(4)
        try:
            _write_rows(db, now, wanted, mark)
            db.commit()
        except self._driver.Error as error:
            sqlstate = error.sqlstate or ("08" if db.closed else "")
            if not sqlstate.startswith(UNSURE):
                raise
            return self._was_committed(mark, now)
        return True

    def _was_committed(self, mark: str, now: Reading) -> bool:
        """Find out whether a commit that was not answered has happened."""
        deadline = time.monotonic() + 5 * self._timeout_s
        while time.monotonic() < deadline:
            time.sleep(0.05)
            with suppress(TicketBossError), self.lock() as db:
                # Write, because a commit that was only read may be lost in a failover.
                db.execute("UPDATE ticketboss SET swap = swap WHERE id = 'root'")
                marks = _read_rows(db, now).marks.split()
                db.commit()
                if mark in marks or not set(marks).isdisjoint(now.marks.split()):
                    return mark in marks  # the marks we know are there, so it would be
                break
        raise InDoubt("the database did not answer the commit")

    @contextmanager
    def _connection(self, use: str) -> Iterator[Any]:
        """This process's connection, for one thread; rolls back in the end."""
        key = use, os.getpid()
        if not self._mutexes[use].acquire(timeout=self._timeout_s):
            raise Contended("The database did not answer in time")
        try:
            db = self._connections.get(key)
            # Nothing was asked yet, so readable data means that the server hung up.
            if db is None or db.closed or multiprocessing.connection.wait([db], 0):
                db = self._driver.connect(**self._options, autocommit=use == "reader")
                db.isolation_level = self._driver.IsolationLevel.READ_COMMITTED
                self._connections[key] = db
            yield db
        except self._driver.Error as error:
            if (error.sqlstate or "").startswith(TOO_LATE):
                raise Contended("The lock was not free in time") from error
            log.info("The database cannot be used: %s", str(error).partition("\n")[0])
            raise Unavailable("The database cannot be used") from error  # no host
        finally:
            with suppress(self._driver.Error, KeyError):
                self._connections[key].rollback()
            self._mutexes[use].release()


def _read_rows(db: Any, known: Reading) -> Reading:
    """The present content: the known one, with the rows of later swaps."""
    if db.execute(READ_ROOT).fetchall() == [(known.swap, known.marks)]:
        return known
    rows = db.execute(READ_ROWS, {"known": known.swap}).fetchall()
    # If the newest mark that we know is not in its place, rows were removed, or a
    # failover or a backup brought back an older state. Then read everything again.
    _, key, swap, marks = rows[0] if rows else ("", "", 0, "")
    if known.swap and marks.split()[swap - known.swap :][:1] != known.marks.split()[:1]:
        return _read_rows(db, Reading())
    if key != "root":
        raise Unavailable("The table ticketboss has no root row")
    changes = []
    try:
        for event, key, _, body in rows[1:]:
            kinds: Any = (Event, Reservation) if event else (Accounts, Account)
            value = _decode_record(f"row {event, key}", body, kinds[key != ""])
            changes.append(Change(event, key, value))
        database = known.database.with_changes(changes)
    except (ValueError, msgspec.DecodeError) as error:
        raise Unavailable(
            f"Restore a backup of the table ticketboss: {error}"
        ) from None
    return Reading(database, swap, marks)


def _write_rows(db: Any, now: Reading, wanted: Database, mark: str) -> None:
    """Write the rows in which `wanted` differs from `now`."""
    changes = [*wanted.changes_since(now.database)]
    has_gone = any(change.value is None for change in changes)
    # After a mark alone, all servers read everything again.
    marks = [mark] if has_gone else [mark, *now.marks.split()[:64]]
    rows: list[tuple[str, ...]] = [("", "root", " ".join(marks))]
    rows += [(*at, msgspec.json.encode(value).decode()) for *at, value in changes]
    swap = now.swap + 1
    born = range(swap << 24, (swap << 24) + len(rows))
    db.execute(WRITE_ROWS, [swap, *map(list, zip(*rows, strict=True)), [*born]])
    if has_gone:
        db.execute("DELETE FROM ticketboss WHERE body = 'null'")


def open_store(db: str, timeout_s: float = 2.0) -> AnyStore:
    """The store that `db` names: a file's path, or the URL of a database."""
    return SQLStore(db, timeout_s) if "://" in db else Store(db, timeout_s)


# === 7. Accounts =============================================================
# Users who can log in, and the tokens that prove it. Hashes and tokens come from
# libraries: we write no security code. Knows no HTTP, and not where the key comes from.

TOKEN_LIFETIME_S: Final = 3600
CLOCK_LEEWAY_S: Final = 30  # a clock may be set back a little
HASHING: Final = threading.Semaphore(2)  # making a hash takes 32 MB
HASHING_QUEUE: Final = threading.Semaphore(40)  # keeps threads for reads and sales
DUMMY_HASH: Final = "scrypt:32768:8:1$nobodynobody0000$" + "0" * 128
NameKind = Literal["email", "username", "userId"]  # a userId is an id or a username


def account_names(account: Account) -> frozenset[str]:
    """All identifiers that count as this user in bookings."""
    return frozenset(
        {
            f"id:{account.id}",
            f"id:{normalize_text(account.username)}",
            f"mailto:{normalize_email(account.email)}",
        }
    )


def owns(account: Account, maker_id: int | None) -> bool:
    """Whether what the token of `maker_id` made is this account's; admins own all."""
    return account.role == "admin" or maker_id == account.id


def find_account(accounts: Accounts, kind: NameKind, name: str) -> Account | None:
    """Find the account that has this name, of this kind."""
    normalized = normalize_email(name) if kind == "email" else normalize_name(name)
    return accounts.by_login_name.get(f"{kind} {normalized}")


def register_account(database: Database, order: Account, secret: str) -> Database:
    """Add an account like `order`, under an id that was never used.

    `secret` signs the tokens if there is no other secret yet. Raises AlreadyExists.
    """
    accounts = database.accounts
    if find_account(accounts, "email", order.email) or find_account(
        accounts, "username", order.username
    ):
        raise AlreadyExists("This e-mail or username is already registered")
    version = accounts.version + 1
    members = accounts.members | {str(version): replace(order, id=version)}
    grown = Accounts(version, accounts.secret or secret, members)
    return replace(database, accounts=grown)


def promote_account(database: Database, seen: Account, password: str) -> Database:
    """Make an account an admin, with the hash of a new password unless it is empty.

    Raises NotFound if the account has changed since it was seen.
    """
    accounts = database.accounts
    if accounts.members.get(str(seen.id)) != seen:
        raise NotFound("The account has changed meanwhile. Run the command again.")
    admin = replace(seen, role="admin", password=password or seen.password)
    members = accounts.members | {str(seen.id): admin}
    version = accounts.version + 1
    return replace(
        database, accounts=replace(accounts, version=version, members=members)
    )


def is_valid_password(password: str) -> bool:
    """Whether the length is allowed; hashing a very long one takes too much time."""
    return 8 <= len(password) <= len(password.encode()) <= 1024


@contextmanager
def turn_to_hash() -> Iterator[None]:
    """Wait for a turn to hash a password. Raises TooManyLogins if many others wait."""
    if not HASHING_QUEUE.acquire(blocking=False):
        raise TooManyLogins("Too many logins at once. Try again in a few seconds.")
    try:
        with HASHING:
            yield
    finally:
        HASHING_QUEUE.release()


def hash_password(password: str) -> str:
    """A scrypt hash, with its salt and cost."""
    with turn_to_hash():
        return generate_password_hash(password)


def authenticate(account: Account | None, password: str) -> Account | None:
    """Verify the password; as slow for unknown users, so that timing reveals nothing.

    Returns the account, or None.
    """
    expected = account.password if account else DUMMY_HASH
    with turn_to_hash(), suppress(ValueError):  # a hash may have been edited by hand
        if check_password_hash(expected, password):
            return account
    return None


def issue_token(account: Account, key: str | bytes, at: int) -> str:
    """A JWT that names the account for an hour from `at`, in Unix time."""
    claims = {
        "sub": str(account.id),
        "role": account.role,
        "iat": at,
        "exp": at + TOKEN_LIFETIME_S,
        "jti": token_id(account, secrets.token_hex(8)),
    }
    return jwt.encode(claims, key, "HS256")


def token_id(account: Account, nonce: str) -> str:
    """A token's id, which also identifies its account's password.

    The ids of accounts are used again after a reset or when a backup is restored. So
    the token's id contains a digest of the password hash. The token becomes invalid if
    its account is replaced or gets a new password.
    """
    digest = hashlib.sha256(f"{nonce} {account.password}".encode()).hexdigest()
    return f"{nonce}-{digest[:16]}"


def verify_token(accounts: Accounts, token: str, key: str | bytes) -> Account | None:
    """The account that a token names, as stored now; None if the token is invalid."""
    options: Any = {"require": ["sub", "iat", "exp", "jti"]}
    try:
        claims = jwt.decode(token, key, ["HS256"], options, leeway=CLOCK_LEEWAY_S)
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        return None
    issued, expires = claims["iat"], claims["exp"]
    if not type(issued) is type(expires) is int:
        return None
    if expires - issued > TOKEN_LIFETIME_S:
        return None
    account = accounts.members.get(claims["sub"])
    nonce = str(claims["jti"]).partition("-")[0]
    if account is None or claims["jti"] != token_id(account, nonce):
        return None
    return account


# === 8. Box office ===========================================================
# The use cases, once for all three APIs: sell, book, cancel, open and close events,
# register, log in. Each change is one transaction. Knows no Flask and no JSON.


class ChangeAttempt(Struct):
    """An attempt to change an event, refused or not, and the versions that it read."""

    action: Literal["reserve", "cancel", "change"]
    reservation: Reservation | None = None  # the one to make or to cancel
    seats: int = 0
    event_id: str = ""
    reads: list[int] = []  # the event's version at each decision
    version: int = 0  # the event's version after the attempt
    first_version: int | None = None  # for a replay, the version that it first made


class Caller(Struct, frozen=True):
    """The sender of a request, their condition, and their attempts so far."""

    account: Account | None
    if_match: frozenset[str] | None  # the versions named; None without a condition
    key: str | None = None  # digest of the Idempotency-Key and of its sender
    attempts: list[ChangeAttempt] = []


class Outcome(Struct, frozen=True):
    """The result of a change."""

    document: Document  # after the change
    attempts: int  # how many times it was decided
    reservation: Reservation | None = None  # as in the first answer
    position: int = 0  # in the waiting list; 0 if it does not wait
    first_version: int | None = None  # for a replay, the version that it first made


class BoxOffice:
    """The use cases over one store."""

    def __init__(self, store: AnyStore, settings: Settings) -> None:
        self._store = store
        self.transactions = Transactions(store, settings.think_s, settings.timeout_s)
        self._require_login = settings.require_login
        self._jwt_secret = settings.jwt_secret

    def database(self) -> Database:
        """The present database. Raises Unavailable."""
        return self._store.load().database

    def sell(
        self,
        event_id: str | None,
        order: Reservation,
        queue: QueueRule,
        caller: Caller,
    ) -> Outcome:
        """Sell an order, or find the earlier sale under the same key.

        The outcome has the reservation as first answered. Raises NotEnoughSeats,
        Stale, KeyReused or NotFound.
        """
        return self._sell(event_id, order, lambda d: d.reserve(order, queue), caller)

    def book(
        self,
        event_id: str,
        order: Reservation,
        names: frozenset[str],
        caller: Caller,
    ) -> Outcome:
        """Sell one ticket to the user who has these names, or let them wait.

        For a user who already waits, the outcome has their place in the list. Raises
        AlreadyExists and what `sell` raises.
        """
        account_id = self._only_account(names, caller)
        outcome = self._sell(
            event_id,
            order,
            lambda d: d.reserve_for_user(order, names, account_id),
            caller,
        )
        if outcome.reservation is not None:
            return outcome
        found = outcome.document.find_booking(names, account_id)
        waiting = cast("Reservation", found)
        position = [*outcome.document.waiting].index(waiting.reservation_id) + 1
        return replace(outcome, reservation=waiting, position=position)

    def _sell(
        self,
        event_id: str | None,
        order: Reservation,
        change: Callable[[Document], Document],
        caller: Caller,
    ) -> Outcome:
        def decide(document: Document) -> Document:
            if document.is_replay(order):
                known = document.reservations[order.reservation_id]
                attempt.first_version = known.event_version_at_reservation or 0
                return document
            document.require_version(caller.if_match)
            return change(document)

        attempt = ChangeAttempt("reserve", order, order.seats)
        outcome = self._change(event_id, decide, caller, attempt)
        sold = outcome.document.reservations.get(order.reservation_id)
        if sold is None:
            return outcome
        first_answer = replace(
            sold,
            seats=sold.seats + sold.seats_returned,
            status="waitlisted" if sold.joined_at else "confirmed",
        )
        return replace(outcome, reservation=first_answer, position=sold.joined_at)

    def cancel(
        self,
        event_id: str | None,
        reservation_id: str,
        seats: int | None,
        caller: Caller,
    ) -> Outcome:
        """Cancel all seats of a reservation, or some, once for each key.

        Raises NotFound, also for a repeated full cancel; BadSeatCount, Stale,
        KeyReused, LoginRequired or NotAllowed.
        """
        at = timestamp()
        wanted = "all seats" if seats is None else f"{seats} seats"
        attempt = ChangeAttempt("cancel")

        def decide(document: Document) -> Document:
            held = document.reservations.get(reservation_id)
            attempt.reservation = held
            attempt.seats = seats or (held.seats if held else 0)
            self._require_owner(held, caller)
            uses = held.origin.key_uses if held else ()
            earlier = find_key_use(uses, caller.key, wanted)
            if earlier is None:
                document.require_version(caller.if_match)
            elif seats is not None:
                attempt.first_version = earlier.version
                return document
            after = document.cancel(reservation_id, at, seats)
            return after.remember(caller.key, wanted, reservation_id)

        return self._change(event_id, decide, caller, attempt)

    def cancel_booking(
        self, event_id: str, names: frozenset[str], not_found: str, caller: Caller
    ) -> Outcome:
        """Cancel a user's booking, confirmed or waiting.

        Raises NotFound with the text `not_found`, and what `cancel` raises.
        """
        account_id = self._only_account(names, caller)
        at = timestamp()
        attempt = ChangeAttempt("cancel", seats=1)

        def decide(document: Document) -> Document:
            held = document.find_booking(names, account_id)
            attempt.reservation = held
            self._require_owner(held, caller)
            if document.has_cancelled(names, caller.key):
                raise NotFound(not_found)
            document.require_version(caller.if_match)
            if held is None:
                raise NotFound(not_found)
            after = document.cancel(held.reservation_id, at)
            return after.remember(caller.key, "a ticket", held.reservation_id)

        outcome = self._change(event_id, decide, caller, attempt)
        held = cast("Reservation", attempt.reservation)
        cancelled = outcome.document.reservations[held.reservation_id]
        return replace(outcome, reservation=cancelled)

    def _require_owner(self, reservation: Reservation | None, caller: Caller) -> None:
        """Raise unless the caller may change a reservation.

        The account whose token made a reservation may change it, and admins. If login
        is required, only admins may change reservations that were made without a token.
        """
        if reservation is None:
            return
        if not (self._require_login or reservation.origin.account):
            return
        if caller.account is None:
            raise LoginRequired("No token provided")
        if not owns(caller.account, reservation.origin.account):
            raise NotAllowed("Only its owner or an admin may change this reservation.")

    def _only_account(self, names: frozenset[str], caller: Caller) -> int | None:
        """The account that must have made a user's tickets; None if any may have.

        If login is required, a ticket that was booked without one belongs to no user.
        Only an admin who acts for somebody else finds it.
        """
        account = caller.account
        if not self._require_login or account is None:
            return None
        return account.id if names == account_names(account) else None

    def _require_event_owner(self, document: Document, caller: Caller) -> None:
        """Raise unless the caller may change or remove an event.

        The account that opened the event may, and admins. An event without an owner is
        open to all, unless login is required or somebody booked with a token.
        """
        event = document.event
        account = caller.account
        is_booked = any(
            r.origin.account and r.status != "cancelled"
            for r in document.settled().reservations.values()
        )
        if not (event.created_by or is_booked or self._require_login):
            return
        if account is None:
            raise LoginRequired("No token provided")
        if not owns(account, event.created_by):
            raise NotAllowed("Only its owner or an admin may change this event.")

    def names_of(
        self, name: str, caller: Caller, *, admins_for_others: bool
    ) -> frozenset[str]:
        """All names of the user who is called `name`.

        Raises NotAllowed if the caller is logged in as somebody else; with
        `admins_for_others`, an admin may act for anybody.
        """
        account = caller.account
        if account is None:
            return frozenset({name})
        if name in account_names(account):
            return account_names(account)
        if not (admins_for_others and account.role == "admin"):
            raise NotAllowed(
                "This booking is for another user. Send your own userId or userEmail."
            )
        kind, _, text = name.partition(":")
        accounts = self.database().accounts
        other = find_account(accounts, "userId" if kind == "id" else "email", text)
        if other is not None and name in account_names(other):
            return account_names(other)
        return frozenset({name})

    def open_event(
        self, event: Event, event_id: int | str | None, caller: Caller
    ) -> Outcome:
        """Open an event, under the first number never used if no id is given.

        If the key has already opened an event, the outcome has that event as it was
        then. Raises AlreadyExists, KeyReused or Stale.
        """
        facts = [event_id, event.name, event.total_seats, event.price, event.date]
        wanted = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        key = ""

        def decide(database: Database) -> Database:
            nonlocal key
            if database.find_opened(caller.key, wanted, event) is not None:
                return database
            used = database.documents
            own_id = event_id
            if own_id is None:
                own_id = next(n for n in itertools.count(1) if str(n) not in used)
            key = database.key_of(str(own_id))
            existing = used.get(key)
            if key != str(own_id):  # in NFC, or as an old file encodes it
                own_id = key
            maker = caller.account.id if caller.account else None
            opened = replace(event, event_id=own_id, created_by=maker)
            if caller.if_match is not NONE_NAMED:  # it may not exist yet
                (existing or Document.of(opened, {})).require_version(caller.if_match)
            document = Document.open(existing, opened)
            return database.with_document(document.remember(caller.key, wanted))

        pending = self.transactions.transact(decide)
        after = pending.database
        if not pending.changed:
            first = cast("Event", after.find_opened(caller.key, wanted, event))
            document = Document.of(first, {})
            return Outcome(document, pending.attempts, first_version=first.version)
        return Outcome(after.documents[key], pending.attempts)

    def close_event(self, event_id: str, caller: Caller) -> Outcome:
        """Remove an event with all its bookings; never the seeded one.

        A repeat under the same key finds nothing, also where another event was opened
        under its id. Raises NotFound, AlreadyExists (the seeded event), Stale,
        LoginRequired or NotAllowed.
        """
        database = self.database()
        if database.key_of(event_id) == database.seeded:
            raise AlreadyExists(
                "The seeded event cannot be removed. `python ticketboss.py reset` "
                "replaces it with a fresh one."
            )

        key = caller.key and f"remove {caller.key}"

        def decide(document: Document) -> Document:
            self._require_event_owner(document, caller)
            if find_key_use(document.event.key_uses, key, "removal"):
                raise NotFound(
                    "The event that this Idempotency-Key has removed is gone. Another "
                    "one is open under its id."
                )
            document.require_version(caller.if_match)
            return document.close().remember(key, "removal")

        return self._change(event_id, decide, caller, ChangeAttempt("change"))

    def repair(self) -> None:
        """Promote the waiting orders for which seats are free; one change an event."""

        def decide(database: Database) -> Database:
            for document in database.events():
                database = database.with_document(document.repair())
            return database

        self.transactions.transact(decide)

    def change_event(
        self, event_id: str, changes: dict[str, Any], caller: Caller
    ) -> Outcome:
        """Change facts of an event, by their names in Event, once for each key.

        Raises NotFound, TooFewSeats, Stale, KeyReused, LoginRequired or NotAllowed.
        """
        key = caller.key and f"change {caller.key}"  # not the key of its opening
        wanted = hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest()[:32]
        attempt = ChangeAttempt("change")

        def decide(document: Document) -> Document:
            self._require_event_owner(document, caller)
            earlier = find_key_use(document.event.key_uses, key, wanted)
            if earlier is not None:
                attempt.first_version = earlier.version
                return document
            document.require_version(caller.if_match)
            return document.change(changes).remember(key, wanted)

        return self._change(event_id, decide, caller, attempt)

    def register(
        self, account: Account, *, first_is_admin: bool
    ) -> tuple[Account, int]:
        """Register an account; return it, and how many times this was decided.

        With `first_is_admin`, the first one is an admin. Raises AlreadyExists.
        """
        account = replace(account, created_at=timestamp())
        admin = replace(account, role="admin")
        secret = secrets.token_hex(32)

        def decide(database: Database) -> Database:
            is_first = not database.accounts.members
            wanted = admin if first_is_admin and is_first else account
            return register_account(database, wanted, secret)

        pending = self.transactions.transact(decide)
        accounts = pending.database.accounts
        registered = find_account(accounts, "email", account.email)
        return cast("Account", registered), pending.attempts

    def promote(self, account: Account, password: str) -> None:
        """Make this account an admin, with the hash of a new password if there is one.

        Raises NotFound if it has changed meanwhile.
        """
        self.transactions.transact(lambda d: promote_account(d, account, password))

    def log_in(self, kind: NameKind, name: str, password: str) -> str:
        """A token for the account with this name. Raises LoginRequired.

        A wrong name and a wrong password get the same text after the same time.
        """
        accounts = self.database().accounts
        account = authenticate(find_account(accounts, kind, name), password)
        if account is None:
            what = "e-mail" if kind == "email" else "name"
            raise LoginRequired(f"Wrong {what} or password")
        return issue_token(account, self._signing_key(accounts), int(time.time()))

    def account_of(self, token: str) -> Account | None:
        """The account that a token names; None if the token is invalid."""
        accounts = self.database().accounts
        key = self._signing_key(accounts)
        return verify_token(accounts, token, key) if key else None

    def _signing_key(self, accounts: Accounts) -> str | bytes:
        """The key that signs tokens; empty if there are no accounts yet."""
        return self._jwt_secret or accounts.secret

    def _change(
        self,
        event_id: str | None,
        decide: Callable[[Document], Document],
        caller: Caller,
        attempt: ChangeAttempt,
    ) -> Outcome:
        """Change one event in one transaction; note the version at each decision."""

        def decide_database(database: Database) -> Database:
            document = database.document(event_id)
            attempt.event_id = str(document.event.event_id)
            attempt.first_version = None
            attempt.version = document.event.version
            attempt.reads.append(attempt.version)
            return database.with_document(decide(document))

        caller.attempts.append(attempt)
        pending = self.transactions.transact(decide_database)
        document = pending.database.documents[pending.database.key_of(event_id)]
        attempt.version = document.event.version
        first_version = None if pending.changed else attempt.first_version
        return Outcome(document, pending.attempts, first_version=first_version)


def timestamp(at: datetime | None = None) -> str:
    """A time in UTC as RFC 3339 with milliseconds; by default now."""
    at = at or datetime.now(UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# === 9. HTTP =================================================================
# Everything that all routes share: JSON bodies, errors, conditions, safe retries,
# limits. Knows no rule about seats, and no dialect. A route declares what it reads as
# `sent`, which is parsed before it runs. It has two steps: do, render.

STATUS: Final[dict[type[TicketBossError], int]] = {
    BadSeatCount: 400,
    LoginRequired: 401,
    NotAllowed: 403,
    NotFound: 404,
    NotEnoughSeats: 409,
    AlreadyExists: 409,
    SalesClosed: 409,
    TooFewSeats: 409,
    Stale: 412,
    KeyReused: 422,
    ConditionRequired: 428,
    InDoubt: 500,
    Unavailable: 503,
    Damaged: 503,
    Unwritable: 503,
    Contended: 503,
    TooManyLogins: 503,
}
CONTENDED: Final = "Could not {} reservation due to concurrent updates. Please retry."
ERROR_TEXTS: Final = {
    404: "No such URL. `GET /docs` lists all of them.",
    405: "This method is not allowed here. The Allow header lists those that are.",
    413: "The body is larger than 64 KiB.",
    429: "Too many requests from this IP, please try again later.",
    431: "The headers are larger than 16 KiB.",
    500: "Internal error. See the server's log.",
}
REGISTRATION_RATE: Final = limits.parse("60 per minute")  # for an address
UNDECIDED: Final = {400, 401, 403, 422}  # there was no decision about seats
JSON: Final = "application/json"
NO_CONTROLS: Final = r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
INVISIBLE: Final = (
    r"\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff"
)
NEW_ID: Final = rf"^(?=.*\S)(?!\s*\.+\s*$)[^/\x00-\x1f\x7f-\x9f{INVISIBLE}]{{1,200}}$"
IN_EMAIL: Final = r"[^@\s\x00-\x1f\x7f-\xa0\u2028-\u202e\u2066-\u2069\ufeff]+"
EMAIL: Final = rf"^{IN_EMAIL}@{IN_EMAIL}\.{IN_EMAIL}$"
MAX_SEATS: Final = 10**6
MAX_BODY: Final = 64 * 1024
MAX_SAFE_INTEGER: Final = 2**53 - 1  # every JSON parser reads these exactly
ORIGIN: Final = r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?"
MAX_LOG_LINE: Final = 4000  # a pipe takes this much at once
EXPOSED_HEADERS: Final = (
    "ETag, Location, Link, X-Attempts, Retry-After, Idempotent-Replayed"
)
PREFLIGHT_HEADERS: Final = {  # for a browser that asks before it sends
    "Access-Control-Allow-Methods": "GET, HEAD, POST, PATCH, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match, "
    "If-None-Match, Idempotency-Key, X-Request-ID",
    "Access-Control-Max-Age": "600",
}
ETAGS: Final = r'\s*(\*|(?:W/)?"[^"]*"(?:\s*,\s*(?:W/)?"[^"]*")*)\s*'

Body = dict[str, Any]
View = Callable[..., Response]


class App(Flask):
    """The Flask app, with the objects that its routes use."""

    settings: Settings
    store: AnyStore
    box_office: BoxOffice
    served: Iterator[int]  # counts the answers
    description: bytes = b""  # the body of /openapi.json, after the first request
    rate_limits: list[limits.RateLimitItem]  # on all routes
    login_limits: list[limits.RateLimitItem]
    limiter: Limiter
    attempts: deque[tuple[int, PublicAttempt]]  # the last ones, each with an account


app: Final = cast("App", current_app)


# --- Rules about a route, stated at the route ---


def marked(*marks: str) -> Callable[[View], View]:
    """Mark a route for the hooks below; they see it with `route_has`."""

    def decorate(view: View) -> View:
        view.__dict__.setdefault("marks", set()).update(marks)
        return view

    return decorate


open_to_all: Final = marked("never limited", "no token needed")
is_a_login: Final = marked("no token needed")
is_a_registration: Final = marked("no token needed", "counted as registration")
for_users: Final = marked("for users")
for_admins: Final = marked("for users", "for admins")
for_admins_if_login_is_required: Final = marked("for admins if login is required")


def route_has(mark: str) -> bool:
    """Whether the route of this request has that mark."""
    view = app.view_functions.get(request.endpoint or "")
    return mark in getattr(view, "marks", ())


# --- Requests ---


def camel(name: str) -> str:
    """A name as it is written in JSON."""
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def rule(missing: str, wrong: str = "", **constraints: Any) -> Meta:
    """A rule, and the errors for a field that is missing or breaks it."""
    texts = {"missing": missing, "wrong": wrong or missing}
    return Meta(extra=texts, **constraints)


def between(least: int, most: int, missing: str = "{} must be an integer") -> Meta:
    """The rule of a whole number in a range."""
    wrong = f"{{}} must be between {least} and {most}"
    return rule(missing, wrong, ge=least, le=most)


PLAIN: Final = rule(
    "{} (string) is required",
    "{} must have 1 to 200 characters, none of them a control character",
    pattern=rf"^(?=.*\S){NO_CONTROLS}+$",
    max_length=200,
)
SAFE_INTEGER: Final = between(
    -MAX_SAFE_INTEGER, MAX_SAFE_INTEGER, "{} (number or string) is required"
)
PlainText = Annotated[str, PLAIN]
Id = Annotated[int, SAFE_INTEGER] | PlainText
NewId = (  # it fits in a URL, and looks like no other id
    Annotated[int, SAFE_INTEGER]
    | Annotated[
        str,
        rule(
            "{} (number or string) is required",
            "{} must have 1 to 200 characters, none of them a control or invisible "
            "character or a /, and must not consist only of dots",
            pattern=NEW_ID,
            max_length=200,
        ),
    ]
)
Date = Annotated[PlainText, Meta(extra_json_schema={"format": "date"})]
Email = Annotated[str, rule("Invalid email format", pattern=EMAIL, max_length=200)]
OptionalText = Annotated[
    str,
    rule(
        "{} must be a string",
        "{} must have at most 200 characters, none of them a control character",
        pattern=f"^{NO_CONTROLS}*$",
        max_length=200,
    ),
]
AnyText = Annotated[str, rule("{} must be a string")]
Password = Annotated[
    str,
    rule(
        "{} (string) is required",
        "{} must have at most 1024 characters",
        min_length=1,
        max_length=1024,
    ),
]
Seats = Annotated[int, between(1, MAX_SEATS)]
Price = Annotated[int, between(0, 10**9)]
ONE_OF_STATUS: Final = rule(f"{{}} must be one of {', '.join(get_args(Status))}")
Count = Annotated[int, rule("{} must be a whole number, 1 or more", ge=1, le=10**7)]


class Fields(Struct, rename="camel"):
    """{}."""  # of each subclass, an example of the body; see `example_of`

    numbers_as_text: ClassVar[bool] = False  # whether "2" is also the number 2
    one_of: ClassVar[tuple[str, ...]] = ()  # exactly one of these fields is required

    def __post_init__(self) -> None:
        """Refuse a body with none or several of them."""
        given = [name for name in self.one_of if getattr(self, name) is not None]
        if self.one_of and len(given) != 1:
            names = " or ".join(map(camel, self.one_of))
            abort(400, f"Send {names}: exactly one is required")


F = TypeVar("F", bound=Fields)


class Field(NamedTuple):
    """A field that a route reads. Fields are checked in the order of declaration."""

    name: str  # in JSON
    type: Any
    texts: dict[Any, dict[str, str]]  # see `rule`; for each type that it may have
    required: bool

    def normalize(self, value: object, *, is_number_as_text: bool) -> object:
        """A value as it is compared and stored: text is trimmed, and in NFC."""
        if not isinstance(value, str) or self.name == "password":
            return value
        if is_number_as_text and [*self.texts] == [int]:
            return int(value) if re.fullmatch("-?[0-9]{1,16}", value) else value
        if self.name == "eventId":  # an old id may not be in NFC
            return value.strip()
        return normalize_text(value).strip()

    def refusal(self, value: object) -> str:
        """The error for a wrong or missing value."""
        text = next(iter(self.texts.values()))["missing"]
        if isinstance(value, float) and int in self.texts:
            text = "{} must be an integer"
        elif type(value) in self.texts and value != "":
            text = self.texts[type(value)]["wrong"]
        return text.format(self.name)


@functools.cache
def fields_of(kind: type[Fields]) -> list[Field]:
    """The declared fields."""
    fields = []
    for each in msgspec.structs.fields(kind):
        *types, _ = (each.type | None).__args__  # None is the last
        texts = {t.__origin__: t.__metadata__[0].extra for t in types}
        fields.append(Field(each.encode_name, each.type, texts, each.required))
    return fields


def parse(kind: type[F]) -> F:
    """The fields of a request. GET has them in its query, DELETE in query or body.

    400 for the first of the declared fields that is wrong.
    """
    method = request.method
    given = {} if method in {"GET", "HEAD"} else json_body(example_of(kind))
    if method in {"GET", "HEAD", "DELETE"}:
        given |= query_fields(kind, given)
    if method == "PATCH":
        require_changes(kind, given)
    values = {}
    for each in fields_of(kind):
        value = given.get(each.name)
        if value is not None:
            value = each.normalize(value, is_number_as_text=kind.numbers_as_text)
            try:
                values[each.name] = msgspec.convert(value, each.type)
            except msgspec.ValidationError:
                abort(400, each.refusal(value))
        elif each.required or (method == "DELETE" and each.name in given):
            abort(400, each.refusal(None))  # null on a DELETE: a number may be lost
    return msgspec.convert(values, kind)


def require_changes(kind: type[Fields], given: Body) -> None:
    """Refuse a change without fields, with unknown fields, or with null; 400."""
    known = [each.name for each in fields_of(kind)]
    wrong = [name for name in given if name not in known or given[name] is None]
    if wrong or not given:
        problem = f"{wrong[0]!a:.99} is unknown or has no value. " if wrong else ""
        abort(400, f"{problem}Send one or more of {', '.join(known)}.")


def example_of(kind: type[Fields]) -> str:
    """An example of a body or a query."""
    return str(kind.__doc__).removesuffix(".")


def query_fields(kind: type[Fields], body: Body) -> Body:
    """The declared fields that are in the query; 400 for one that the body contradicts.

    On a DELETE also for an unknown one, because a misspelt limit would cancel more.
    """
    known = {each.name: each for each in fields_of(kind)}
    found: Body = {}
    for name, texts in request.args.lists():
        if name in known:
            in_body = body.get(name)
            if len(texts) > 1 or (in_body is not None and str(in_body) != texts[0]):
                abort(400, f"{name} is given twice. Send it once.")
            found[name] = known[name].normalize(texts[0], is_number_as_text=True)
        elif request.method == "DELETE":
            abort(400, f"Unknown parameter {name!a:.99}. Nothing was changed.")
    return found


def whole_or_float(text: str) -> float:
    """A JSON number with a point or an exponent; 3.0 becomes 3."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text:.20} is too large")
    return int(number) if number.is_integer() else number


JSON_DECODER: Final = msgspec.json.Decoder(float_hook=whole_or_float)
INCOMPLETE: Final = "The request body is incomplete or badly chunked."


def json_body(example: str = "{}") -> Body:
    """The JSON object of a request, of any Content-Type; {} without a body. 400."""
    try:
        raw = request.get_data()
        if len(raw) == MAX_BODY and request.content_length is None:
            raw += request.environ["wsgi.input"].read(1)  # chunked, so more may come
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001 -- each server has its own for broken chunks
        abort(400, INCOMPLETE)
    if len(raw) < (request.content_length or 0):  # gunicorn gives what has come
        abort(400, INCOMPLETE)
    if len(raw) > MAX_BODY:
        abort(413)
    raw = (raw or b"{}").removeprefix(codecs.BOM_UTF8)  # PowerShell, .NET send one
    try:
        body = JSON_DECODER.decode(raw)
        UNAMBIGUOUS.decode(raw.decode())
    except (ValueError, RecursionError) as error:
        abort(400, f"The body must be JSON like {example}: {error}")
    if not isinstance(body, dict):
        abort(400, f"The body must be a JSON object, like {example}")
    return body


def utc_timestamp(date: str) -> str:
    """The time in UTC of a date or a time; 400 if it is neither."""
    try:
        at = datetime.fromisoformat(date)
        return timestamp(at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        abort(400, "date must be a date like 2024-12-01")


def is_email(address: str) -> bool:
    """Whether a text looks like an e-mail address."""
    is_plain = address.isprintable() and len(address) <= 200
    return is_plain and re.search(EMAIL, address) is not None


@functools.cache
def with_request(view: View) -> View:
    """A route that first checks the login, and parses the request as `sent`."""
    kind = get_type_hints(view).get("sent")
    marks = getattr(view, "marks", ())

    @functools.wraps(view)
    def checked(**arguments: Any) -> Response:
        if "for users" in marks:
            require_login(admin="for admins" in marks)
        if kind is not None:
            arguments["sent"] = parse(kind)
        elif request.method == "DELETE":
            parse(Fields)
        return view(**arguments)

    checked.__dict__["kind"] = kind or Fields  # for the description
    return checked


def caller() -> Caller:
    """The sender of this request, and their condition."""
    key = None
    if g.key is not None:
        account_id = g.account.id if g.account else 0
        scope = msgspec.json.encode([request.blueprint, account_id, g.key])
        key = hashlib.sha256(scope).hexdigest()[:32]
    return Caller(g.account, g.if_match, key, g.attempts)


def require_login(*, admin: bool = False) -> None:
    """Refuse a caller without a token (401); with `admin`, any but an admin (403)."""
    if g.account is None:
        raise LoginRequired("No token provided")
    if admin and g.account.role != "admin":
        raise NotAllowed("Admins only. Run `ticketboss.py admin EMAIL` to make one.")


def requested_reservation(
    event_id: str | None,
    holder: str,
    partner_id: str,
    seats: int,
    **origin: Any,
) -> Reservation:
    """The order that a request makes, not decided yet.

    Its id is random; with an Idempotency-Key, it is the same at every retry. So a retry
    finds its own reservation in the document that it would change, and there is no
    table of keys. API, event and caller keep the keys of different callers apart. A
    digest shows whether the body is different.
    """
    account_id = g.account.id if g.account else 0
    reservation_id = uuid.uuid4()
    if g.key is not None:
        event_key = app.box_office.database().key_of(event_id)
        scope = [request.blueprint, event_key, account_id or holder, g.key]
        name = msgspec.json.encode(scope).decode()
        reservation_id = uuid.uuid5(uuid.NAMESPACE_URL, name)
        sorted_body = msgspec.json.encode(json_body(), order="sorted")
        origin["request"] = hashlib.sha256(sorted_body).hexdigest()[:32]
    made_by = NO_ORIGIN
    if origin or account_id:
        made_by = Origin(account=account_id, **origin)
    return Reservation(
        str(reservation_id),
        partner_id,
        seats,
        "waitlisted",
        timestamp(),
        origin=made_by,
    )


# --- Answers ---


def json_response(value: object, status: int = 200) -> Response:
    """An answer in JSON, with a newline at the end for terminals."""
    return bytes_response(msgspec.json.encode(value) + b"\n", JSON, status)


class BytesResponse(Response):
    """A response with a body of bytes, and headers that are complete as they are.

    werkzeug would copy them, and encode a Location that is encoded already.
    """

    def get_wsgi_headers(self, environ: Any) -> Any:  # noqa: ARG002 -- werkzeug's
        """The headers as they are sent."""
        return self.headers


def bytes_response(body: bytes, content_type: str, status: int = 200) -> Response:
    """A body of any kind."""
    return BytesResponse(body, status, content_type=content_type)


def html_response(page: str) -> Response:
    """A page, under a policy that allows only its own script."""
    nonce = secrets.token_urlsafe(16)
    html = page.replace("NONCE", nonce).encode()
    response = bytes_response(html, "text/html; charset=utf-8")
    response.headers |= {
        "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src "
        f"data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; base-uri 'none'"
        "; form-action 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return response


def etag_response(document: Document, render: Callable[[], object]) -> Response:
    """The result of `render`, with the event's version as ETag; or 304."""
    etag = str(document.event.version)
    return conditional_response(etag, lambda: json_response(render()))


def conditional_response(etag: str, answer: Callable[[], Response]) -> Response:
    """The answer, with this ETag; or 304 if the client has it already."""
    g.headers["ETag"] = f'"{etag}"'
    g.headers["Cache-Control"] = "no-cache"
    if app.settings.require_login:
        g.headers["Vary"] = "Authorization"
    known = request.environ.get("HTTP_IF_NONE_MATCH", "")
    # In linear time, unlike the parser of werkzeug before 3.1.9.
    is_known = known.strip() == "*" or etag in re.findall('"([^"]*)"', known)
    # Without a check, two contents may have the same version.
    if is_known and not app.settings.unchecked:
        return Response(status=304)
    return answer()


def set_outcome_headers(outcome: Outcome) -> None:
    """Tell the client the event's version, and how often the change was decided."""
    version = outcome.document.event.version
    if outcome.first_version is not None:
        g.headers["Idempotent-Replayed"] = "true"
        version = outcome.first_version
    g.headers["X-Attempts"] = str(outcome.attempts)
    g.headers["ETag"] = f'"{version}"'


def open_event(event: Event, event_id: int | str | None) -> Event:
    """Open an event, and send its address to the client."""
    outcome = app.box_office.open_event(event, event_id, caller())
    set_outcome_headers(outcome)
    opened = outcome.document.event
    g.headers["Location"] = f"/events/{quote(str(opened.event_id), safe='')}"
    return opened


def set_sale_headers(outcome: Outcome, event_id: str | None) -> None:
    """Tell the client also the reservation's address."""
    set_outcome_headers(outcome)
    sold = cast("Reservation", outcome.reservation)
    event_path = "" if event_id is None else f"/events/{quote(event_id, safe='')}"
    g.headers["Location"] = f"{event_path}/reservations/{sold.reservation_id}"


def event_json(event: Event) -> Body:
    """The six facts about an event that partners see."""
    return {
        "eventId": event.event_id,
        "name": event.name,
        "totalSeats": event.total_seats,
        "availableSeats": event.available_seats,
        "reservationCount": event.total_seats - event.available_seats,
        "version": event.version,
    }


# --- Errors ---

ERROR_FORMATS: Final[dict[str, Callable[[str], Body]]] = {}  # by a pattern of paths


def error_body(path: str, status: int, text: str) -> Body:
    """An error's body in the format of the path's API."""
    for pattern, render in ERROR_FORMATS.items():
        if re.match(pattern, path):
            return render(text)
    if status == 429:
        return {"error": text, "message": text}
    return {"error": text}


def handle_refusal(error: TicketBossError) -> Response:
    """Answer a refusal of the rules, the store or the box office."""
    status = STATUS[type(error)]
    text = str(error)
    if status >= 500:
        g.headers["Retry-After"] = "1"
    if request.method not in {"GET", "HEAD"}:
        g.headers["X-Attempts"] = str(error.attempts)
    if isinstance(error, LoginRequired):
        g.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, (Stale, ConditionRequired)):
        text = condition_text(error)
        g.headers["ETag"] = f'"{error.version}"'
    if isinstance(error, ConditionRequired):
        g.headers["Cache-Control"] = "no-store"
    is_about_seats = any(a.action in {"reserve", "cancel"} for a in g.attempts)
    if isinstance(error, Contended) and is_about_seats:
        status = {"POST": 409, "DELETE": 500}.get(request.method, status)
        text = CONTENDED.format("cancel" if request.method == "DELETE" else "complete")
    elif isinstance(error, (Contended, Unavailable)):
        text += ". Nothing was changed."
    return json_response(error_body(request.path, status, text), status)


def condition_text(error: Stale | ConditionRequired) -> str:
    """Why a change was refused under its If-Match, and which one to send."""
    resend = f'resend it with If-Match: "{error.version}".'
    if isinstance(error, ConditionRequired):
        return (
            f"{error}, so that it does not undo the changes of others. Read the event; "
            f"if you still want this, {resend}"
        )
    if any(re.fullmatch("0|[1-9][0-9]*", each) for each in error.named):
        return f"{error} Read it again; if you still want this, {resend}"
    return (
        "If-Match names no ETag of this server: it is weak, or a proxy that compresses "
        f'has altered it. Read the event again, and send If-Match: "{error.version}".'
    )


def handle_http_error(error: HTTPException) -> Response:
    """Answer HTTP errors and crashes in JSON."""
    status = error.code or 500
    text = error.description
    if status in {429, 500} or text == type(error).description:
        text = ERROR_TEXTS.get(status)
    g.headers |= dict(error.get_headers()[1:])  # Allow; the first is Content-Type
    return json_response(error_body(request.path, status, text or error.name), status)


# --- Before and after each request ---


def before_request() -> Response | None:
    """Check every request's limits, host and token; call more checks for a change."""
    environ = request.environ
    vars(g).update(
        headers={"X-Request-ID": request_id(environ.get("HTTP_X_REQUEST_ID"))},
        started_at=time.perf_counter(),
        if_match=None,
        key=None,
        account=None,
        attempts=[],
    )
    allowed = cors_headers(app, environ.get("HTTP_ORIGIN"))
    g.headers |= allowed
    is_options = environ["REQUEST_METHOD"] == "OPTIONS"
    # A browser asks whether a page of another site may send a request.
    if allowed and is_options and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
        g.headers |= PREFLIGHT_HEADERS
        return Response(status=204)
    enforce_rate_limits()  # also for requests that are refused below
    if not environ.get("QUERY_STRING", "").isascii():
        abort(400, "Send the query percent-encoded, such as %C3%A9.")
    check_host(environ)
    authorization = environ.get("HTTP_AUTHORIZATION")
    if authorization is not None and not route_has("no token needed"):
        check_token(authorization)
    if environ["REQUEST_METHOD"] not in {"GET", "HEAD", "OPTIONS"}:
        check_change(environ)
    if environ.get("PATH_INFO") == "*" and is_options:
        return Response(status=204)  # it is about the server, not about a URL
    return None


def check_token(authorization: str) -> None:
    """Find the account that a token names (401); other schemes are ignored."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() == "bearer":
        g.account = app.box_office.account_of(token.strip())
        if g.account is None:
            raise LoginRequired("Unauthorized. Invalid token.")


def request_id(given: str | None) -> str:
    """The client's own request id if it is usable, otherwise a new one."""
    if given is not None and re.fullmatch("[A-Za-z0-9._-]{1,128}", given):
        return given
    return f"{random.getrandbits(128):032x}"


def check_host(environ: dict[str, Any]) -> None:
    """Refuse other host names (421) while only this machine may connect.

    So another site whose name is made to point here cannot read answers (DNS
    rebinding). This checks the Host that was sent, whatever X-Forwarded-Host says.
    """
    settings = app.settings
    if not environ.get("HTTP_HOST") and environ.get("SERVER_PROTOCOL") == "HTTP/1.1":
        abort(400, "HTTP/1.1 requires a Host header.")
    as_sent = environ.get("werkzeug.proxy_fix.orig", environ)
    host = as_sent.get("HTTP_HOST") or "localhost"
    if not settings.loopback or is_loopback(host):
        return
    trusted = {name.lower() for name in settings.trusted_hosts}
    name = re.sub(":[0-9]+$", "", host.lower())
    if not {host.lower(), name} & trusted:
        abort(
            421,
            f"Host {host!a} is not allowed. Start with --trusted-host {name} "
            "to allow it.",
        )


def cors_headers(served: App, origin: str | None) -> dict[str, str]:
    """What lets a page of this origin read the answer; empty if it is not allowed."""
    if origin is None or origin not in served.settings.allowed_origins:
        return {}
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": EXPOSED_HEADERS,
    }


def check_origin(environ: dict[str, Any]) -> None:
    """Refuse a change that a page of another site sends (403).

    In Sec-Fetch-Site the browser says which site a request comes from, even if a proxy
    changes Host. Without it, the Origin must be the requested host.
    """
    origin = environ.get("HTTP_ORIGIN")
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if origin in app.settings.allowed_origins:
        return
    host = environ.get("HTTP_HOST", "")
    if site is None:
        is_ours = origin is None or is_origin_of(origin, host)
    else:
        is_ours = site in {"same-origin", "none"}
    if not is_ours:
        abort(403, cross_origin_text(site, origin, host))


def is_origin_of(origin: str, host: str) -> bool:
    """Whether an Origin is that Host header, with or without its usual port.

    The header itself: request.host is empty for a name with an underscore.
    """
    scheme, _, authority = origin.lower().partition("://")
    usual_port = ":443" if scheme == "https" else ":80"
    return authority != "" and authority == host.lower().removesuffix(usual_port)


def cross_origin_text(site: str | None, origin: str | None, host: str) -> str:
    """The error with both values that differ, and the options that allow it."""
    named = "URL"
    facts = []
    if site is not None:
        facts.append(f"Sec-Fetch-Site is {site[:64]!a}")
    if origin is not None:
        facts.append(f"Origin is {origin[:200]!a}")
        if len(origin) <= 200 and re.fullmatch(ORIGIN, origin):
            named = origin
    facts.append(f"this server is {host[:200]!a}")
    return (
        f"Cross-origin change refused: {', '.join(facts)}. Start with --allow-origin "
        f"{named} to allow it. If this is a page of this server, its proxy changes "
        "Host: make the proxy send the browser's own (nginx: proxy_set_header Host "
        "$http_host), and start with --trusted-host."
    )


def check_change(environ: dict[str, Any]) -> None:
    """Checks before a change: origin, encoding, If-Match and login."""
    check_origin(environ)
    if request.routing_exception is not None:  # 404 and 405 come before conditions
        raise request.routing_exception
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        abort(415, "Send the body as it is, without a Content-Encoding.")
    g.key = environ.get("HTTP_IDEMPOTENCY_KEY")
    if g.key is not None and not re.fullmatch("[!-~]{1,255}", g.key):
        abort(400, "Idempotency-Key must be 1 to 255 visible ASCII characters.")
    condition = environ.get("HTTP_IF_MATCH")
    if app.settings.unchecked and (condition is not None or g.key is not None):
        abort(
            400,
            "This server does not check (--unchecked). Send neither If-Match nor "
            "Idempotency-Key.",
        )
    if condition is not None:
        if not re.fullmatch(ETAGS, condition):
            abort(400, 'If-Match must be "<version>" in double quotes, or *.')
        if condition.strip() != "*":  # which always matches
            strong_etags = re.findall(r'(?:^|[\s,])"([^"]*)"', condition)
            g.if_match = frozenset(strong_etags)
    elif app.settings.require_if_match:
        g.if_match = NONE_NAMED
    if app.settings.require_login and not route_has("no token needed"):
        require_login(admin=route_has("for admins if login is required"))


@functools.lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is a loopback name or address."""
    with suppress(ValueError):
        name = without_port(host)
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    return False


def without_port(host: str) -> str:
    """The name or the address of a host. Raises ValueError."""
    is_bare_ipv6 = host.count(":") > 1 and "[" not in host
    return host if is_bare_ipv6 else urlsplit(f"//{host}").hostname or ""


def enforce_rate_limits() -> None:
    """Count the request against its client's limits; 429 if they are exceeded."""
    if not route_has("never limited"):
        for rate in app.rate_limits:
            count_request(rate, "", client_key())
    if request.method == "POST" and route_has("counted as registration"):
        count_request(REGISTRATION_RATE, "register", client_key())


def count_request(rate: limits.RateLimitItem, *counted: str) -> None:
    """Add one to a count; 429 if its limit is exceeded."""
    window = app.limiter.add(rate, *counted)
    remaining = max(0, rate.amount - window.hits)
    shown = g.headers.get("X-RateLimit-Remaining")
    if shown is None or remaining <= int(shown):  # show the limit that is nearest
        g.headers |= {
            "X-RateLimit-Limit": str(rate.amount),
            "X-RateLimit-Remaining": str(remaining),
            "X-RateLimit-Reset": str(int(window.reset_at)),
        }
    if window.hits > rate.amount:
        g.headers["Retry-After"] = str(max(1, int(window.reset_at - time.time())))
        abort(429)


def log_in_within_limits(kind: NameKind, name: str, password: str) -> str:
    """A token for the account with this name; LoginRequired; 429 after many failures.

    A login is counted before its password is checked, so that many guesses at once
    are all counted. A login that does not fail takes back its own count only. Failures
    are never counted for an account alone: anybody could lock its owner out.
    """
    account = hashlib.sha256(normalize_name(name).encode()).hexdigest()[:32]
    counts: list[tuple[limits.RateLimitItem, tuple[str, ...]]] = []
    for rate in app.login_limits:
        of_address = type(rate)(10 * rate.amount, rate.multiples)
        counts.append((rate, ("login", client_key(), account)))
        counts.append((of_address, ("login", client_key())))
    for rate, counted in counts:
        count_request(rate, *counted)
    try:
        return app.box_office.log_in(kind, name, password)
    except LoginRequired:
        counts.clear()  # so that the failure stays counted
        raise
    finally:
        for rate, counted in counts:
            app.limiter.add(rate, *counted, amount=-1)


class Window(NamedTuple):
    """A count, and the time at which it ends."""

    hits: int
    reset_at: float  # Unix time


class MemoryCounters:
    """Counters in fixed windows, in this process.

    Not the counters of the package limits: these start a thread that forgets old ones,
    and two requests at once may start it twice, which raises.
    """

    def __init__(self) -> None:
        self._windows: dict[str, Window] = {}
        self._prune_at = 1000
        self._mutex = threading.Lock()

    def add(self, key: str, length_s: int, amount: int) -> Window:
        """Add to a window; to a new one if the old one is over or in the future."""
        now = time.time()
        with self._mutex:
            window = self._windows.get(key)
            if window is None or not now < window.reset_at <= now + length_s:
                self._prune(now)
                window = Window(0, now + length_s)
            window = Window(max(0, window.hits + amount), window.reset_at)
            self._windows[key] = window
        return window

    def _prune(self, now: float) -> None:
        """Forget old windows, once there are twice as many as were left last time."""
        if len(self._windows) >= self._prune_at:
            self._windows = {
                key: window
                for key, window in self._windows.items()
                if window.reset_at > now
            }
            self._prune_at = max(1000, 2 * len(self._windows))


class Limiter:
    """Counts requests, in memory or in a storage that several workers share.

    It never fails: if the shared storage fails, this process counts by itself.
    """

    def __init__(self, storage_url: str) -> None:
        self.storage: Any = None  # the shared one
        if not storage_url.startswith("memory:"):
            self.storage = limits.storage.storage_from_string(
                storage_url, wrap_exceptions=True
            )
        self._memory = MemoryCounters()

    def add(self, rate: limits.RateLimitItem, *counted: str, amount: int = 1) -> Window:
        """Add `amount` to a count; return the count and when it ends."""
        key = rate.key_for(*counted)
        if self.storage is not None:
            try:
                return self._add_shared(key, rate.get_expiry(), amount)
            except limits.errors.StorageError as error:
                log.warning(
                    "--rate-storage failed; this process counts by itself: %s", error
                )
        return self._memory.add(key, rate.get_expiry(), amount)

    def _add_shared(self, key: str, length_s: int, amount: int) -> Window:
        count = self.storage.incr(key, length_s, amount)
        reset_at = self.storage.get_expiry(key)
        if reset_at > time.time() + length_s + 1:  # it began while the clock was ahead
            self.storage.clear(key)
            count = self.storage.incr(key, length_s, amount)
            reset_at = self.storage.get_expiry(key)
        return Window(count, reset_at)


def client_key() -> str:
    """The address that is counted; for IPv6 the client's whole network."""
    try:  # some proxies add the port
        address = ipaddress.ip_address(without_port(request.remote_addr or ""))
    except ValueError:  # the proxy sends no addresses
        return "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    network = ipaddress.IPv6Network((int(address), 64), strict=False)
    return str(address.ipv4_mapped or network)


def after_request(response: Response) -> Response:
    """Add the headers that were collected, and write a line to the log."""
    response.headers.extend(g.headers)
    if app.settings.allowed_origins:
        varies = [*response.headers.getlist("Vary"), "Origin"]
        response.headers["Vary"] = ", ".join(varies)
    if app.settings.unchecked:
        response.headers.pop("ETag", None)
    record_attempts(response.status_code)
    if not response.content_length:
        response.headers.pop("Content-Type", None)
    next(app.served)
    if log.isEnabledFor(logging.INFO):
        log.info("%s", log_line(response))
    return response


class PublicAttempt(Struct, frozen=True, rename="camel"):
    """An attempt to change an event, as `/attempts` shows it."""

    who: str  # the partnerId; never a name or an e-mail
    seats: int
    action: str
    reservation_id: str
    event_id: str
    reads: list[int]
    if_match: str
    status: int  # the HTTP status
    version: int


class AttemptList(Struct, frozen=True):
    """The answer of `/attempts`."""

    attempts: list[PublicAttempt]
    unchecked: bool  # whether this server loses sales, for a class


def record_attempts(status: int) -> None:
    """Keep this request's attempts for `/attempts`, if there was a decision."""
    if status in UNDECIDED:
        return
    account_id = g.account.id if g.account else 0
    for attempt in g.attempts:
        if not attempt.reads:
            continue
        reservation = attempt.reservation
        public = PublicAttempt(
            reservation.partner_id if reservation else "",
            attempt.seats,
            attempt.action,
            reservation.reservation_id if reservation else "",
            attempt.event_id,
            attempt.reads,
            request.environ.get("HTTP_IF_MATCH", "")[:64],
            status,
            attempt.version,
        )
        app.attempts.append((account_id, public))


def log_line(response: Response) -> str:
    """Method, path, status, duration; if there are any, version and attempts.

    Of a fault also the request's id, and what the client was told.
    """
    duration_ms = (time.perf_counter() - g.started_at) * 1e3
    line = (
        f"{request.method} {ascii(request.path)[1:-1]} {response.status_code} "
        f"{duration_ms:.1f}ms"
    )
    version = response.headers.get("ETag", "").strip('"')
    if version.isdigit():  # not the digest of a text
        line += f" version={version}"
    if "X-Attempts" in g.headers:
        line += f" attempts={g.headers['X-Attempts']}"
    if response.status_code >= 500:
        said = response.get_data(as_text=True).strip()
        line += f" id={response.headers['X-Request-ID']} {ascii(said)[1:-1]}"
    return line[:MAX_LOG_LINE]


# === 10. Partner API =========================================================
# Partners reserve seats, cancel them and list them, for the seeded event or any other.
# Errors are {"error": text}.

partner: Final = Blueprint("partner", __name__)


class AnyPath(BaseConverter):
    """The rest of a path with slashes and newlines, so that any odd id gets our 404."""

    part_isolating = False
    regex = r"[\s\S]+"

    def to_python(self, value: str) -> str:
        """The value without the trailing slash that every path may have."""
        return value.removesuffix("/")


@partner.get("/_health")
@open_to_all
def health() -> Response:
    """The file and its disk: 200 {ok}; 503 {ok, error}."""
    try:
        app.store.health()
    except TicketBossError as error:
        return json_response({"ok": False, "error": str(error)}, 503)
    return json_response({"ok": True})


@partner.get("/event")
def show_event() -> Response:
    """The seeded event: 200 Event; 304."""
    document = app.box_office.database().document(None)
    return etag_response(document, lambda: event_json(document.event))


class ReservationBody(Fields):
    """{"partnerId":"abc-corp","seats":3}."""

    partner_id: PlainText
    seats: Annotated[int, between(1, 10)]
    waitlist: Annotated[bool, rule("{} must be true or false")] | None = None


@partner.post("/reservations")
@partner.post("/events/<event_id>/reservations")
def create_reservation(sent: ReservationBody, event_id: str | None = None) -> Response:
    """Reserve seats: 201 {reservationId, seats, status}; 409 if too few are left.

    With "waitlist": true, also 202 {reservationId, seats, status, position}.
    """
    queue: QueueRule = "when short" if sent.waitlist else "never"
    holder = sent.partner_id
    order = requested_reservation(event_id, holder, holder, sent.seats)
    sale = app.box_office.sell(event_id, order, queue, caller())
    set_sale_headers(sale, event_id)
    sold = cast("Reservation", sale.reservation)
    answer = {
        "reservationId": sold.reservation_id,
        "seats": sent.seats,
        "status": sold.status,
    }
    if sale.position:
        return json_response(answer | {"position": sale.position}, 202)
    return json_response(answer, 201)


class ReturnedSeats(Fields):
    """{"seats":2}."""

    seats: Count | None = None


@partner.delete("/reservations/<any_path:reservation_id>")
@partner.delete("/events/<event_id>/reservations/<any_path:reservation_id>")
def cancel_reservation(
    sent: ReturnedSeats, reservation_id: str, event_id: str | None = None
) -> Response:
    """Cancel, or return part: 204; 404."""
    outcome = app.box_office.cancel(event_id, reservation_id, sent.seats, caller())
    set_outcome_headers(outcome)
    return Response(status=204)


class ReservationQuery(Fields):
    """?partnerId=abc-corp&status=confirmed&limit=10."""

    partner_id: AnyText | None = None
    status: Annotated[Status, ONE_OF_STATUS] | None = None
    limit: Count | None = None
    after: AnyText | None = None  # the last reservationId of the previous page


@partner.get("/reservations")
@partner.get("/events/<event_id>/reservations")
def list_reservations(sent: ReservationQuery, event_id: str | None = None) -> Response:
    """List reservations: 200 [Reservation]; 304; 404."""
    document = app.box_office.database().document(event_id)
    limit = sent.limit
    if app.settings.require_login:
        require_login()
    selected = selected_reservations(document, sent)
    if limit is not None and limit < len(selected):
        last_id = selected[limit - 1].reservation_id
        next_query = urlencode(request.args.to_dict() | {"after": last_id})
        g.headers["Link"] = f'<{quote(request.path)}?{next_query}>; rel="next"'
    return etag_response(
        document, lambda: public_reservations(document, selected[:limit])
    )


def selected_reservations(
    document: Document, query: ReservationQuery
) -> list[Reservation]:
    """The reservations that the caller may see, narrowed by the query; 400."""
    reservations = own_reservations(document.reservations.values())
    if query.after is not None:
        ids = [r.reservation_id for r in reservations]
        if query.after not in ids:
            abort(400, "after must be the last reservationId of the previous page")
        reservations = reservations[ids.index(query.after) + 1 :]
    if query.status is not None:
        reservations = [r for r in reservations if r.status == query.status]
    if query.partner_id is not None:
        reservations = [
            r for r in reservations if normalize_text(r.partner_id) == query.partner_id
        ]
    return reservations


@partner.get("/reservations/<any_path:reservation_id>")
@partner.get("/events/<event_id>/reservations/<any_path:reservation_id>")
def show_reservation(reservation_id: str, event_id: str | None = None) -> Response:
    """Show a reservation, cancelled or not: 200 Reservation; 304; 404."""
    document = app.box_office.database().document(event_id)
    reservation = document.reservations.get(reservation_id)
    if reservation is None or not own_reservations([reservation]):
        raise NotFound("Reservation not found")
    return etag_response(
        document, lambda: public_reservations(document, [reservation])[0]
    )


@partner.get("/attempts")
@partner.get("/events/<event_id>/attempts")
def list_attempts(event_id: str | None = None) -> Response:
    """The last attempts at this process, oldest first: 200 AttemptList; 304; 404."""
    shown_id = str(app.box_office.database().document(event_id).event.event_id)
    if app.settings.require_login:
        require_login()
    attempts = [
        attempt
        for account_id, attempt in app.attempts.copy()
        if attempt.event_id == shown_id
        and (not app.settings.require_login or owns(g.account, account_id))
    ]
    answer = json_response(AttemptList(attempts, app.settings.unchecked))
    etag = hashlib.sha256(answer.data).hexdigest()[:16]
    return conditional_response(etag, lambda: answer)


def own_reservations(reservations: Iterable[Reservation]) -> list[Reservation]:
    """All reservations; if login is required, those of the caller."""
    if not app.settings.require_login:
        return [*reservations]
    return [r for r in reservations if g.account and owns(g.account, r.origin.account)]


def public_reservations(
    document: Document, reservations: list[Reservation]
) -> list[Reservation]:
    """Reservations as partners see them, with their present positions.

    Without what names a person or a request: `origin` and `returned_at`.
    """
    positions = {key: place for place, key in enumerate(document.waiting, 1)}
    # A reservation that hides nothing and never waited looks the same in public.
    # Without a copy of it, a list of 500 takes a fifth of the time.
    return [
        r
        if r.origin is NO_ORIGIN and not r.joined_at and not r.returned_at
        else replace(
            r,
            origin=NO_ORIGIN,
            returned_at=None,
            joined_at=positions.get(r.reservation_id, 0),
        )
        for r in reservations
    ]


# === 11. Booking API =========================================================
# Users, known by an id or an e-mail, book one ticket each, or wait for one; organisers
# open events and read reports. Errors are {"error": text, "message": text}.

booking: Final = Blueprint("booking", __name__)
MESSAGES: Final = {  # for users, by the kind of name that they sent
    "id": {
        "booked": "Ticket booked",
        "waitlisted": "Added to waiting list",
        "cancelled": "Booking canceled",
        "not found": "Booking not found",
    },
    "mailto": {
        "booked": "Ticket booked successfully",
        "waitlisted": "Event sold out, you're added to the waiting list",
        "cancelled": "Your booking has been cancelled successfully",
        "not found": "You didn't book this event",
    },
}
ERROR_FORMATS[
    r"/+(book|cancel|initialize|login|report|status)(/|$)"
    r"|/+events(/?$|/[^/]+(/?$|/(?!reservations(/|$))))"
] = lambda text: {"error": text, "message": text}


class InitializeBody(Fields):
    """{"name":"Tech Conference 2025","totalTickets":100}."""

    total_tickets: Seats
    price: Price | None = None
    event_id: NewId | None = None
    name: PlainText | None = None

    def __post_init__(self) -> None:
        """Refuse an event without a name."""
        if self.event_id is None and self.name is None:
            abort(400, "name (string) is required")


@booking.post("/initialize")
@for_admins_if_login_is_required
def initialize(sent: InitializeBody) -> Response:
    """Open an event, with a number as its id if none is sent.

    201 {message, id, eventId, name, totalTickets, availableTickets, event}; 409.
    """
    total = sent.total_tickets
    price = sent.price or 0
    name = sent.name or normalize_text(f"Event {sent.event_id}")
    event = Event("", name, total, total, 0, price, created_at=timestamp())
    event = open_event(event, sent.event_id)
    opened = {
        "eventId": event.event_id,
        "name": name,
        "totalTickets": total,
        "availableTickets": total,
    }
    answer = {"message": "Event initialized", "id": event.event_id, **opened}
    return json_response({**answer, "event": opened}, 201)


class UserBody(Fields):
    """{"eventId":"node-meetup-2025","userId":"user1"}."""

    one_of = ("user_id", "user_email")

    event_id: Id
    user_id: Id | None = None
    user_email: Email | None = None

    def user_name(self) -> str:
        """The user's name in bookings, "id:..." or "mailto:..."."""
        if self.user_email is not None:
            return f"mailto:{normalize_email(self.user_email)}"
        return normalize_text(f"id:{self.user_id}")


@booking.post("/book")
def book_ticket(sent: UserBody) -> Response:
    """Book a ticket: 200 Ticket, with a position while waiting; 404; 409."""
    event_id = str(sent.event_id)
    name = sent.user_name()
    names = app.box_office.names_of(name, caller(), admins_for_others=False)
    kind, _, user_id = name.partition(":")
    partner_id = user_id if kind == "id" else "guest"
    order = requested_reservation(event_id, name, partner_id, 1, user=name)
    sale = app.box_office.book(event_id, order, names, caller())
    if cast("Reservation", sale.reservation).reservation_id == order.reservation_id:
        set_sale_headers(sale, event_id)
    else:
        set_outcome_headers(sale)
    if sale.position:
        return booking_response(sale, kind, "waitlisted", position=sale.position)
    return booking_response(sale, kind, "booked")


@booking.post("/cancel")
def cancel_ticket(sent: UserBody) -> Response:
    """Cancel a ticket; the first waiting user gets it: 200 Ticket; 404."""
    event_id = str(sent.event_id)
    name = sent.user_name()
    names = app.box_office.names_of(name, caller(), admins_for_others=True)
    kind = name.partition(":")[0]
    not_found = MESSAGES[kind]["not found"]
    outcome = app.box_office.cancel_booking(event_id, names, not_found, caller())
    set_outcome_headers(outcome)
    return booking_response(outcome, kind, "cancelled")


def booking_response(outcome: Outcome, kind: str, status: str, **more: int) -> Response:
    """The answer to a user about their ticket."""
    return json_response(
        {
            "message": MESSAGES[kind][status],
            "status": status,
            "eventId": outcome.document.event.event_id,
            "reservationId": cast("Reservation", outcome.reservation).reservation_id,
            **more,
        }
    )


@booking.get("/status/<event_id>")
def show_status(event_id: str) -> Response:
    """How many tickets are left, and how many users wait: 200 EventStatus; 404."""
    document = app.box_office.database().document(event_id)
    event = document.event
    return json_response(
        {
            "id": event.event_id,
            "eventId": event.event_id,
            "name": event.name,
            "totalTickets": event.total_seats,
            "total_tickets": event.total_seats,
            "availableTickets": event.available_seats,
            "available_tickets": event.available_seats,
            "bookedTickets": event.total_seats - event.available_seats,
            "waitingListCount": len(document.waiting),
            "version": event.version,
        }
    )


@booking.get("/events")
def list_events() -> Response:
    """List events, the seeded one first: 200 [EventDetail]."""
    documents = app.box_office.database().events()
    return json_response([event_detail_json(d.event) for d in documents])


@booking.get("/events/<event_id>")
def show_one_event(event_id: str) -> Response:
    """Show an event: 200 EventDetail; 304; 404."""
    document = app.box_office.database().document(event_id)
    return etag_response(document, lambda: event_detail_json(document.event))


def event_detail_json(event: Event) -> Body:
    """An event, with the field names of partners and of users."""
    return {
        **event_json(event),
        "id": event.event_id,
        "totalTickets": event.total_seats,
        "availableTickets": event.available_seats,
        "price": event.price,
    }


class EventChanges(Fields):
    """{"totalSeats":600}."""

    name: PlainText | None = None
    total_seats: Seats | None = None
    price: Price | None = None
    date: Date | None = None
    sales: Annotated[Sales, rule("{} must be open or closed")] | None = None


@booking.patch("/events/<event_id>")
def change_event(sent: EventChanges, event_id: str) -> Response:
    """Change an event: 200 ChangedEvent; 404; 409 if too many seats are taken."""
    changes = {
        name: value
        for name, value in msgspec.structs.asdict(sent).items()
        if value is not None
    }
    if sent.date is not None:
        changes["date"] = utc_timestamp(sent.date)
    outcome = app.box_office.change_event(event_id, changes, caller())
    set_outcome_headers(outcome)
    event = outcome.document.event
    answer = event_detail_json(event) | {"date": event.date, "sales": event.sales}
    return json_response(answer)


@booking.delete("/events/<event_id>")
def delete_event(event_id: str) -> Response:
    """Remove an event with all its bookings: 204; 404; 409 for the seeded one."""
    outcome = app.box_office.close_event(event_id, caller())
    g.headers["X-Attempts"] = str(outcome.attempts)
    return Response(status=204)


class ReportQuery(Fields):
    """?format=csv."""

    format: Annotated[Literal["json", "csv"], rule("{} must be json or csv")] | None = (
        None
    )

    def wants_csv(self) -> bool:
        """Whether the client asks for CSV, by ?format= or else by Accept."""
        g.headers["Vary"] = "Accept"
        if self.format is not None:
            return self.format == "csv"
        # Cut short, because the time of werkzeug's parser is quadratic.
        accepted = parse_accept_header(
            request.headers.get("Accept", "")[:999], MIMEAccept
        )
        return accepted.best_match([JSON, "text/csv"]) == "text/csv"


@booking.get("/events/<event_id>/report")
def show_report(sent: ReportQuery, event_id: str) -> Response:
    """Report the sales of one event: 200 Report or text/csv; 404."""
    report = app.box_office.database().document(event_id).report()
    return csv_response([report]) if sent.wants_csv() else json_response(report)


@booking.get("/report")
def show_all_reports(sent: ReportQuery) -> Response:
    """Report the sales of all events: 200 {events, totals} or text/csv."""
    reports = [document.report() for document in app.box_office.database().events()]
    if sent.wants_csv():
        return csv_response(reports)
    totals = {
        "totalTickets": sum(r.total_tickets for r in reports),
        "ticketsSold": sum(r.tickets_sold for r in reports),
        "availableTickets": sum(r.available_tickets for r in reports),
        "waitingListCount": sum(r.waiting_list_count for r in reports),
        "revenue": sum(r.revenue for r in reports),
    }
    return json_response({"events": reports, "totals": totals})


def csv_response(reports: list[Report]) -> Response:
    """CSV with cells escaped against formula injection, also if ; separates cells."""
    formula = re.compile(r"""(^|[;,\t\r\n"'])(?=[=+\-@\uff1d\uff0b\uff0d\uff20])""")
    sheet = io.StringIO()
    writer = csv.writer(sheet)
    rows: list[Body] = [msgspec.to_builtins(report) for report in reports]
    writer.writerow(rows[0])  # the names of the columns
    for row in rows:
        writer.writerow(
            formula.sub(r"\1'", cell) if isinstance(cell, str) else cell
            for cell in row.values()
        )
    g.headers["Content-Disposition"] = 'attachment; filename="report.csv"'
    text = sheet.getvalue().encode("utf-8-sig")  # Excel needs the byte order mark
    return bytes_response(text, "text/csv; charset=utf-8")


class LoginBody(Fields, kw_only=True):
    """{"email":"ann@example.com","password":"my long password"}."""

    one_of = ("email", "username", "user_id")

    email: Email | None = None
    username: PlainText | None = None
    user_id: Id | None = None
    password: Password

    def kind_and_name(self) -> tuple[NameKind, str]:
        """The kind of name that was sent, and the name."""
        if self.email is not None:
            return "email", self.email
        if self.username is not None:
            return "username", self.username
        return "userId", str(self.user_id)


@booking.post("/login")
@is_a_login
def log_in(sent: LoginBody) -> Response:
    """Log in: 200 {token, accessToken, tokenType, expiresIn}; 401."""
    token = log_in_within_limits(*sent.kind_and_name(), sent.password)
    return json_response(
        {
            "token": token,
            "accessToken": token,
            "tokenType": "Bearer",
            "expiresIn": TOKEN_LIFETIME_S,
        }
    )


# === 12. /api/v1 =============================================================
# Accounts, events with a date, bookings of several tickets. Everything is
# {"message": text, "data": ..., "error": false}; numbers may come as strings.

v1: Final = Blueprint("v1", __name__, url_prefix="/api/v1")
ERROR_FORMATS[r"/+api/v1(/|$)"] = lambda text: {"message": text, "error": True}


def envelope(message: str, data: object = None, status: int = 200) -> Response:
    """An answer in the envelope; without `data` if there is none."""
    body: Body = {"message": message, "error": False}
    if data is not None:
        body["data"] = data
    return json_response(body, status)


TEXT_OF_PASSWORDS: Final = "{} must have 8 characters or more (at most 1024 bytes)."


class V1Fields(Fields):
    """{}."""

    numbers_as_text = True


class RegisterBody(V1Fields):
    """{"username":"ann","email":"ann@example.com","password":"my long password"}."""

    username: PlainText
    email: Email
    password: Annotated[str, rule(TEXT_OF_PASSWORDS, min_length=8, max_length=1024)]

    def __post_init__(self) -> None:
        """Refuse names that look like an id or an e-mail, and too long passwords."""
        if re.search("@|^[0-9]+$", normalize_name(self.username)):
            abort(400, "username must not be a number or an e-mail address")
        if re.search(f"[{INVISIBLE}]", self.username):
            abort(400, "username must not have invisible characters")
        if not is_valid_password(self.password):
            abort(400, TEXT_OF_PASSWORDS.format("password"))


@v1.post("/auth/register")
@is_a_registration
def register(sent: RegisterBody) -> Response:
    """Register: 201 {id, username, email}; 409 if taken."""
    password_hash = hash_password(sent.password)
    account, attempts = app.box_office.register(
        Account(0, sent.username, sent.email, password_hash, "user"),
        first_is_admin=comes_from_this_machine(),
    )
    g.headers["X-Attempts"] = str(attempts)
    if account.role == "admin":
        log.warning("The first account, %a, is an admin", account.username)
    return envelope("User registered successfully.", account_json(account), 201)


PROXY_HEADERS: Final = (
    r"(?i)via|forwarded|x-forwarded|x-real-|x-client-|x-cluster-|x-original-|x-envoy-"
    r"|true-client-|cdn-|cf-"
)


def comes_from_this_machine() -> bool:
    """Whether a user of this machine sent the request, certainly not through a proxy.

    Stock proxies speak HTTP/1.0 or add a header. If another one keeps the public Host,
    `check_host` has refused the request; if it does not, a page's Origin is public.
    """
    if not first_is_admin(app.settings):
        return False
    if request.environ["SERVER_PROTOCOL"] != "HTTP/1.1":
        return False
    origin = request.headers.get("Origin", "http://localhost")
    sent_by = (request.remote_addr or "", origin.partition("://")[2])
    if not all(is_loopback(host) for host in sent_by):
        return False
    return not any(re.match(PROXY_HEADERS, name) for name, _ in request.headers)


def first_is_admin(settings: Settings) -> bool:
    """Whether the first account can be an admin: only if no others can connect."""
    return settings.loopback and not settings.trust_proxy and not settings.trusted_hosts


def account_json(account: Account) -> Body:
    """The public fields of an account."""
    return {"id": account.id, "username": account.username, "email": account.email}


class EmailLoginBody(V1Fields):
    """{"email":"ann@example.com","password":"my long password"}."""

    email: Email
    password: Password


@v1.post("/auth/login")
@is_a_login
def log_in_by_email(sent: EmailLoginBody) -> Response:
    """Log in: 200 {token}; 401."""
    token = log_in_within_limits("email", sent.email, sent.password)
    return envelope("Login successful.", {"token": token})


@v1.get("/auth/me")
@for_users
def show_me() -> Response:
    """Show the caller's account: 200 {id, username, email}."""
    return envelope("User retrieved successfully.", account_json(g.account))


class EventBody(V1Fields, kw_only=True):
    """{"name":"Concert","date":"2024-12-01","totalTickets":100}."""

    name: PlainText
    total_tickets: Seats
    available_tickets: Annotated[int, between(0, MAX_SEATS)] | None = None
    date: Date  # or a time

    def __post_init__(self) -> None:
        """Refuse an event with tickets that are already sold."""
        if self.available_tickets not in {None, self.total_tickets}:
            abort(400, "availableTickets must equal totalTickets, or be left out")


@v1.post("/event")
@for_admins
def create_event(sent: EventBody) -> Response:
    """Open an event: 201 DatedEvent."""
    total = sent.total_tickets
    date = utc_timestamp(sent.date)
    event = Event("", sent.name, total, total, 0, 0, date, g.account.id, timestamp())
    event = open_event(event, None)
    answer = v1_event_json(Document.of(event, {}))
    return envelope("Event created successfully.", answer, 201)


@v1.get("/event")
@for_users
def list_v1_events() -> Response:
    """List events, the seeded one last: 200 [DatedEvent]."""
    seeded, *others = map(v1_event_json, app.box_office.database().events())
    return envelope("Events retrieved successfully.", [*others, seeded])


def v1_event_json(document: Document) -> Body:
    """An event as /api/v1 shows it."""
    event = document.event
    times = [event.created_at]
    for reservation in document.reservations.values():
        times += [reservation.ts, reservation.returned_at, reservation.cancelled_at]
    return {
        "id": event.event_id,
        "name": event.name,
        "date": event.date,
        "totalTickets": event.total_seats,
        "availableTickets": event.available_seats,
        "createdBy": event.created_by,
        "createdAt": event.created_at,
        "updatedAt": max(filter(None, times), default=None),
    }


@v1.delete("/event/<event_id>")
@for_admins
def delete_v1_event(event_id: str) -> Response:
    """Remove an event with all its bookings: 200; 404; 409 for the seeded one."""
    outcome = app.box_office.close_event(event_id, caller())
    g.headers["X-Attempts"] = str(outcome.attempts)
    return envelope("Event deleted successfully.")


class BookingBody(V1Fields, kw_only=True):
    """{"eventId":"node-meetup-2025","firstName":"A","email":"a@b.co","ticketsReserved":"2"}."""

    event_id: Id
    tickets_reserved: Seats
    first_name: PlainText
    last_name: OptionalText = ""  # some people have none
    email: Email


@v1.post("/booking")
def create_booking(sent: BookingBody) -> Response:
    """Book tickets: 201 Booking; 200 Booking, waiting if sold out; 404; 409."""
    event_id = str(sent.event_id)
    holder = f"account-{g.account.id}" if g.account else "guest"
    order = requested_reservation(
        event_id,
        sent.email,
        holder,
        sent.tickets_reserved,
        booking=secrets.randbits(52) + 1,  # every JSON parser reads it exactly
        first_name=sent.first_name,
        last_name=sent.last_name,
        email=sent.email,
    )
    try:
        sale = app.box_office.sell(event_id, order, "when sold out", caller())
    except NotEnoughSeats as error:
        error.args = ("Not enough tickets available to fulfill your request.",)
        raise
    set_sale_headers(sale, event_id)
    answer = booking_json(cast("Reservation", sale.reservation))
    if sale.position:
        return envelope("Tickets are sold out; you are on the waitlist.", answer)
    return envelope("Booking created successfully.", answer, 201)


def booking_json(sold: Reservation) -> Body:
    """A booking as /api/v1 shows it; numbers have the type in which they were sent."""
    given = json_body()
    return {
        "id": sold.origin.booking,
        "eventId": given["eventId"],
        "userId": g.account.id if g.account else None,
        "firstName": sold.origin.first_name,
        "lastName": sold.origin.last_name,
        "email": sold.origin.email,
        "ticketsReserved": given["ticketsReserved"],
        "bookingStatus": "waitlisted" if sold.joined_at else "completed",
        "createdAt": sold.ts,
        "updatedAt": sold.ts,
    }


NO_BOOKING: Final = "Booking not found or already cancelled"


class CancelledTickets(V1Fields):
    """{"ticketsToCancel":2}."""

    booking_id: Id | None = None
    tickets_to_cancel: Seats | None = None


@v1.delete("/booking/<number>")
def cancel_booking(sent: CancelledTickets, number: str) -> Response:
    """Cancel tickets; without a number all that are left: 200; 404."""
    if str(number if sent.booking_id is None else sent.booking_id) != number:
        abort(400, "bookingId is not the one in the path")
    if request.content_type and not request.get_data():
        abort(
            400,
            "There is a Content-Type but no body, so the body may have been lost. To "
            "cancel all tickets, send the body {} or no Content-Type.",
        )
    event_id, reservation_id = find_booking(number)
    try:
        outcome = app.box_office.cancel(
            event_id, reservation_id, sent.tickets_to_cancel, caller()
        )
    except BadSeatCount as error:
        range_text = "1 ticket: ticketsToCancel must be 1"
        if error.held > 1:
            range_text = (
                f"{error.held} tickets: ticketsToCancel must be between 1 and "
                f"{error.held}"
            )
        error.args = (f"You hold {range_text}",)
        raise
    except NotFound as error:
        error.args = (NO_BOOKING,)
        raise
    except NotAllowed as error:
        error.args = ("Only its owner or an admin may change this booking.",)
        raise
    set_outcome_headers(outcome)
    return envelope("Booking cancelled successfully.")


def find_booking(number: str) -> tuple[str, str]:
    """The event's and the reservation's id of a booking number. Raises NotFound."""
    for document in app.box_office.database().events():
        for reservation in document.reservations.values():
            booking_number = reservation.origin.booking
            if booking_number and str(booking_number) == number:
                return str(document.event.event_id), reservation.reservation_id
    raise NotFound(NO_BOOKING)


@v1.get("/booking/status/<event_id>")
def show_booking_status(event_id: str) -> Response:
    """How many tickets are left: 200 {availableTickets, waitlistedCount}; 404."""
    document = app.box_office.database().document(event_id)
    return envelope(
        "Event status retrieved successfully.",
        {
            "availableTickets": document.event.available_seats,
            "waitlistedCount": len(document.waiting),
        },
    )


build_decoders(Fields)


# === 13. Description =========================================================
# /openapi.json and /docs. Paths come from the URL map, requests from the declared
# fields, and answers from the docstring of each route: `201 {id, name}; 404`. A name
# with a capital is a shape. Tests check that the server keeps to the description.

description: Final = Blueprint("description", __name__)
EVENT: Final = "eventId, name, totalSeats, availableSeats, reservationCount, version"
EVENT_DETAIL: Final = f"{EVENT}, id, totalTickets, availableTickets, price"
SHAPES: Final = {
    "Event": EVENT,
    "EventDetail": EVENT_DETAIL,
    "EventStatus": "id, eventId, name, totalTickets, total_tickets, availableTickets, "
    "available_tickets, bookedTickets, waitingListCount, version",
    "Ticket": "message, status, eventId, reservationId, position?",
    "ChangedEvent": f"{EVENT_DETAIL}, date, sales",
    "DatedEvent": "id, name, date, totalTickets, availableTickets, createdBy, "
    "createdAt, updatedAt",
    "Booking": "id, eventId, userId, firstName, lastName, email, ticketsReserved, "
    "bookingStatus, createdAt, updatedAt",
}
TYPES: Final = {  # the fields of answers that are not strings
    "integer": "seats position totalSeats availableSeats reservationCount version "
    "totalTickets availableTickets total_tickets available_tickets bookedTickets "
    "waitingListCount waitlistedCount price expiresIn",
    "integer string": "id eventId ticketsReserved",
    "integer null": "userId createdBy",
    "string null": "date createdAt updatedAt",
    "object": "event totals",
    "array": "events",
    "boolean": "ok",
}
REQUEST_HEADERS: Final = {  # a pattern and an example for each
    "GET": {"If-None-Match": (".*", '"0"')},
    "change": {
        "If-Match": (r'^(\*|"[0-9]{1,9}")$', "*"),
        "Idempotency-Key": ("^[!-~]{1,255}$", "my-first-try"),
    },
}
ANSWER_HEADERS: Final = {
    "X-Request-ID": "The client's own, or a new one",
    "ETag": "The version of the event",
    "X-Attempts": "How many times the change was decided",
    "Location": "The address of what was made",
    "Link": "The next page of a list",
    "Retry-After": "Seconds to wait",
    "Idempotent-Replayed": "true for a request that was answered before",
}
ERRORS: Final = {  # possible for every read, and for every change
    "GET": ["400", "401", "421", "429", "500", "503"],
    "change": ["403", "409", "412", "413", "415", "422", "428"],
}


@description.get("/openapi.json")
def show_description() -> Response:
    """Describe all operations: 200 application/json; 304."""
    if not app.description:
        app.description = msgspec.json.encode(openapi())
    etag = hashlib.sha256(app.description).hexdigest()[:16]
    return conditional_response(etag, lambda: bytes_response(app.description, JSON))


@description.get("/docs")
def show_docs() -> Response:
    """Show all operations, each with a curl line: 200 text/html."""
    return html_response(DOCS)


def openapi() -> Body:
    """The description of all operations."""
    paths: dict[str, Body] = {}
    for url in app.url_map.iter_rules():
        path = re.sub(r"<(?:\w+:)?(\w+)>", lambda m: f"{{{camel(m[1])}}}", url.rule)
        for method in sorted((url.methods or set()) - {"HEAD", "OPTIONS"}):
            described = operation_json(url.endpoint, method, path)
            paths.setdefault(path, {})[method.lower()] = described
    schemas = msgspec.json.schema_components(
        [Reservation, Report, AttemptList],
        ref_template="#/components/schemas/{name}",
    )[1]
    for hidden in ("origin", "returnedAt"):  # see `public_reservations`
        del schemas["Reservation"]["properties"][hidden]
    del schemas["Origin"], schemas["KeyUse"]
    headers = {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in ANSWER_HEADERS.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "TicketBoss", "version": "1"},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas
            | {name: shape_schema(text) for name, text in SHAPES.items()},
            "headers": headers,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


NULL: Final = {"type": "null"}


def operation_json(endpoint: str, method: str, path: str) -> Body:
    """One operation: its parameters, its answers, and a curl line."""
    view: Any = app.view_functions[endpoint]
    dialect = endpoint.partition(".")[0]
    kind = view.kind
    bearer: Body = {"bearer": []}
    must_log_in = "for users" in getattr(view, "marks", ())
    operation: Body = {
        "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_").lower(),
        "tags": [dialect],
        "summary": str(view.__doc__).partition("\n")[0],
        "security": [bearer] if must_log_in else [{}, bearer],
        "parameters": parameters_json(kind, method, path),
        "responses": responses_json(view, method, path, dialect),
        "x-codeSamples": [
            {
                "lang": "curl",
                "source": curl_line(kind, method, path, log_in=must_log_in),
            }
        ],
    }
    if method != "GET" and kind is not Fields:
        schema = fields_schema(kind, may_be_null=method == "POST")  # see `parse`
        if method == "PATCH":
            schema |= {"minProperties": 1, "additionalProperties": False}
        example = msgspec.json.decode(example_of(kind))
        operation["requestBody"] = {
            "required": "required" in schema,
            "content": {JSON: {"schema": schema, "example": example}},
        }
    return operation


def parameters_json(kind: type[Fields], method: str, path: str) -> list[Body]:
    """The parameters of an operation in its path, query and headers."""
    found: list[Body] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    if method in {"GET", "DELETE"}:
        properties = fields_schema(kind, may_be_null=False)["properties"]
        found += [
            {"name": name, "in": "query", "schema": schema["anyOf"][0]}
            for name, schema in properties.items()
        ]
    headers = REQUEST_HEADERS["GET" if method == "GET" else "change"]
    for name, (pattern, example) in headers.items():
        schema = {"type": "string", "pattern": pattern}
        found.append(
            {"name": name, "in": "header", "schema": schema, "example": example}
        )
    return found


def fields_schema(kind: type[Fields], *, may_be_null: bool) -> Body:
    """The JSON Schema of declared fields."""
    schema: Body = msgspec.json.schema_components([kind])[1][kind.__name__]
    del schema["description"]
    for name, declared in schema["properties"].items():
        types = declared.get("anyOf") or [declared]
        kinds = [each.get("type") for each in types]
        if kind.numbers_as_text and "integer" in kinds and "string" not in kinds:
            types = [*types, {"type": "string", "pattern": "^[1-9][0-9]{0,5}$"}]
        types = [each for each in types if may_be_null or each != NULL]
        schema["properties"][name] = {"anyOf": types}
    if kind.one_of:
        present: Body = {"not": NULL}
        names = [camel(name) for name in kind.one_of]
        schema["oneOf"] = [
            {"required": [name], "properties": {name: present}} for name in names
        ]
    return schema


def shape_schema(shape: str) -> Body:
    """The JSON Schema of `id, name, position?`."""
    required = []
    properties = {}
    for name, optional in re.findall(r"(\w+)(\??)", shape):
        types = [types for types, names in TYPES.items() if name in names.split()]
        properties[name] = {"type": (types or ["string"])[0].split()}
        if not optional:
            required.append(name)
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def responses_json(view: View, method: str, path: str, dialect: str) -> Body:
    """The answers of an operation: those in its docstring, and the usual errors."""
    said = dict(re.findall(r"\b([2-5]\d\d)\b([^;.]*)", str(view.__doc__)))
    usual = ERRORS["GET"] + (ERRORS["change"] if method != "GET" else [])
    usual += ["404"] if "{" in path else []
    headers = {
        name: {"$ref": f"#/components/headers/{name}"} for name in ANSWER_HEADERS
    }
    responses: Body = {}
    for status in sorted({*said, *usual}):
        content = content_json(said.get(status, ""))
        if dialect == "v1" and status < "300":
            content = envelope_json(content)
        elif status >= "400" and not content:
            content = error_json(dialect)
        phrase = HTTPStatus(int(status)).phrase
        responses[status] = {"description": phrase, "headers": headers}
        if content:
            responses[status]["content"] = content
    return responses


def content_json(said: str) -> Body:
    """The content of an answer, from a text like `200 Report or text/csv`."""
    content: Body = {}
    for media_type in re.findall(r"(?:text|application)/\w+", said):
        content[media_type] = {"schema": {}}
    if match := re.search(r"(\[?)(?:{(.*?)}|\b([A-Z]\w+))", said):
        schema: Body = {"$ref": f"#/components/schemas/{match[3]}"}
        if match[2]:
            schema = shape_schema(match[2])
        if match[1]:
            schema = {"type": "array", "items": schema}
        content[JSON] = {"schema": schema}
    return content


def envelope_json(content: Body) -> Body:
    """The content of an answer of /api/v1, with this data."""
    schema = shape_schema("message, error")
    schema["properties"]["error"] = {"const": False}
    if content:
        schema["properties"]["data"] = content[JSON]["schema"]
        schema["required"].append("data")
    return {JSON: {"schema": schema}}


def error_json(dialect: str) -> Body:
    """The content of an error."""
    both = dialect in {"booking", "v1"}
    schema = shape_schema("error, message" if both else "error, message?")
    if dialect == "v1":
        schema["properties"]["error"] = {"const": True}
    return {JSON: {"schema": schema}}


def curl_line(kind: type[Fields], method: str, path: str, *, log_in: bool) -> str:
    """A curl line that works as it stands, with ORIGIN for the server.

    It first makes what it shows, cancels or removes.
    """
    seeded = app.box_office.database().seeded

    def send(kind: type[Fields], at: str) -> str:
        body = example_of(kind).replace("node-meetup-2025", seeded)
        return f"-d {shlex.quote(body)} 'ORIGIN{at}'"

    def first(sent: str, pattern: str) -> str:
        return f"$(curl -s {sent} | grep -o '{pattern}' | head -1)"

    at = path.replace("{eventId}", quote(seeded, safe=""))
    if "{reservationId}" in path:
        at = at.removesuffix("/{reservationId}")
        at += "/" + first(send(ReservationBody, at), r"[0-9a-f-]\{36\}")
    elif "{number}" in path:
        at = at.removesuffix("{number}")
        at += first(send(BookingBody, "/api/v1/booking"), r"[0-9]\{9,\}")
    elif method == "DELETE":
        new = first(send(InitializeBody, "/initialize"), r"[0-9]\+")
        at = path.replace("{eventId}", new)
    options = "" if method in {"GET", "POST"} else f"-X {method} "
    before = ""
    if log_in or kind in {LoginBody, EmailLoginBody}:
        account = send(RegisterBody, "/api/v1/auth/register")
        before = f"curl -so /dev/null {account}; "
    if path == "/cancel":
        before = f"curl -so /dev/null {send(UserBody, '/book')}; "
    if log_in:
        token = first(send(LoginBody, "/login"), 'ey[^"]*')
        options += f'-H "Authorization: Bearer {token}" '
    if method in {"POST", "PATCH"}:
        return f"{before}curl {options}{send(kind, at)}"
    return f'{before}curl {options}"ORIGIN{at}"'


DOCS: Final = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>TicketBoss: all operations</title>
<style nonce="NONCE">
  :root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif }
  body { max-width: 64rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
  summary { cursor: pointer; padding: .2rem 0 } summary b { font-family: monospace }
  pre { white-space: pre-wrap; padding: .5rem; background: light-dark(#eee, #222) }
  table { border-spacing: 1rem 0 } th { text-align: left; vertical-align: top }
  th, td:nth-child(2) { white-space: nowrap } pre { user-select: all }
</style>
<h1>TicketBoss</h1>
<p>All operations; programs read <a href="/openapi.json">/openapi.json</a>. A line that
needs a reservation, an event or an account makes one first.</p>
<main></main>
<script nonce="NONCE">
"use strict"
const add = (parent, tag, text = "") => {
  const child = parent.appendChild(document.createElement(tag))
  child.textContent = text
  return child
}
const type = s => s.type || s.const || (s.enum || s.anyOf?.map(type) || []).join(" or ")
const TITLES = {partner: "Partner API", booking: "Booking API", v1: "/api/v1",
  description: "This description", page: "Page"}
let schemas, last
const shape = s => s.$ref ? shape(schemas[s.$ref.split("/").pop()]) :
  s.items ? `[${shape(s.items)}]` : s.properties ? `{${members(s.properties)}}` : ""
const members = properties => Object.entries(properties).map(([name, inner]) =>
  name + (shape(inner) && ": " + shape(inner))).join(", ")
function show(path, method, operation) {
  const main = document.querySelector("main"), [tag] = operation.tags
  if (tag !== last) add(main, "h2", TITLES[last = tag])
  const box = add(main, "details")
  const head = add(box, "summary")
  add(head, "b", `${method.toUpperCase()} ${path} `)
  add(head, "span", operation.summary)
  const sample = operation["x-codeSamples"][0].source
  const line = sample.replaceAll("ORIGIN", location.origin)
  add(box, "pre", line)
  if (navigator.clipboard)  // there is none over plain http but to localhost
    add(box, "button", "Copy").onclick = () => navigator.clipboard.writeText(line)
  const table = add(box, "table"), row = (...cells) => {
    const line = add(table, "tr")
    cells.forEach((text, n) => add(line, n ? "td" : "th", text))
  }
  for (const p of operation.parameters) row(p.name, p.in, type(p.schema))
  const body = operation.requestBody?.content["application/json"].schema
  for (const [name, schema] of Object.entries(body?.properties || {}))
    row(name, body.required?.includes(name) ? "body" : "body?", type(schema))
  const errors = []
  for (const [status, answer] of Object.entries(operation.responses))
    if (status < "400") {
      const content = answer.content?.["application/json"]
      row(status, "answer", content && shape(content.schema) || answer.description)
    }
    else errors.push(`${status} ${answer.description}`)
  row("errors", "", errors.join(", "))
}
fetch("/openapi.json").then(answer => answer.json()).then(api => {
  schemas = api.components.schemas
  for (const [path, operations] of Object.entries(api.paths))
    for (const [method, operation] of Object.entries(operations))
      show(path, method, operation)
})
</script>
"""


# === 14. Page ================================================================
# The live page at `/`, or `/?event=<id>`: a plain client of the partner API. Its main
# part is the tape. Rows are attempts and columns are versions. A ring marks the version
# that was read, a disc a save that was first, a cross a save that came too late. Two
# panes (for students one: `/?name=anna`) read, and save under If-Match, so that the
# slower one gets a 412.


page: Final = Blueprint("page", __name__)


@page.get("/")
@open_to_all
def welcome() -> Response:
    """A text with curl lines to try, or the live page: 200 text/plain or text/html."""
    g.headers["Vary"] = "Accept"
    if "text/html" in request.headers.get("Accept", ""):
        return html_response(PAGE)
    host: str = request.environ.get("HTTP_HOST", "")
    if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,255}", host):
        host = "localhost"  # a shell could not take the other
    text = WELCOME.format(f"{request.scheme}://{host}").encode()
    return bytes_response(text, "text/plain; charset=utf-8")


WELCOME: Final = """Welcome to TicketBoss API

  curl {0}/event
  curl -d '{{"partnerId":"abc-corp","seats":3}}' {0}/reservations
  curl {0}/reservations
  curl -X DELETE {0}/reservations/<reservationId>
  curl {0}/_health

{0}/docs lists all operations, {0}/openapi.json describes them to programs.
"""


PAGE: Final = r"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>TicketBoss</title>
<link rel="icon" href="data:,"><style nonce="NONCE">
  :root { color-scheme: light dark; --paper: light-dark(#fff, #14171c);
    --ink: light-dark(#16191d, #eef0f3); --thin: light-dark(#dde0e4, #343a43);
    --good: light-dark(#00694a, #4ade9e); --bad: light-dark(#b3261e, #ff8f86);
    --old: light-dark(#8a5300, #ffc857); background: var(--paper); color: var(--ink);
    --bar: linear-gradient(color-mix(in srgb, currentColor 40%, var(--paper)) 0 0);
    font: clamp(16px, min(1.3vw, 2.35vh), 56px)/1.35 system-ui, sans-serif }
  body { margin: 0; padding: .3rem min(1.2rem, 3vw); overflow-wrap: anywhere }
  h1, dl, dd, ol, ul, p { margin: 0; padding: 0; list-style: none }
  h1 { font-size: 1.6rem; line-height: 1.2 } #story { width: 100% }
  header, header > div, dl, form, #partners { display: flex; flex-wrap: wrap;
    gap: 0 1.6rem } #partners li { width: 7.4rem } [hidden] { display: none !important }
  header > div { flex: 1 20rem; align-items: baseline; align-content: start }
  #story, #lesson { font: 600 1.15rem/1.3 system-ui, sans-serif }
  dt { font-size: .9rem; line-height: 1.1 } dd { font: 700 2.1rem/1.1 system-ui }
  .good { color: var(--good) } .bad { color: var(--bad) } .old { color: var(--old) }
  main { display: grid; grid-template: auto 1fr / minmax(0, 4fr) minmax(0, 3fr);
    gap: .4rem 2rem } #said { grid-area: 1 / 1 / 3 }
  .row, .entry { white-space: nowrap } .row { display: grid; font-size: .92rem;
    line-height: 1.04rem; height: 1.04rem; gap: .4rem; grid-template-columns:
    clamp(5.2rem, 10vw, 7.4rem) 1fr clamp(6.9rem, 10vw, 7.6rem) }
  li.row { border-top: 1px solid var(--thin) } .row > * { overflow: hidden }
  .row > span:first-child { color: var(--ink) } fieldset { min-width: 0; margin: 0 }
  .entry { display: flex; gap: .3em } .who { overflow: hidden; text-overflow: ellipsis }
  .track { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr) }
  .track b { display: flex; justify-content: center; align-items: center }
  .to { background: var(--bar) 0 / 50% .3rem no-repeat; margin-left: -1px }
  .on { background: var(--bar) 100% / 50% .3rem no-repeat; margin-right: -1px }
  .to.on { background-size: 100% .3rem } .disc::before { background: currentColor }
  :is(.ring, .disc)::before { content: ""; box-sizing: border-box; width: .8rem;
    height: .8rem; border: .16rem solid; border-radius: 50%; display: inline-block }
  .ring::before { background: var(--paper) } [type=number] { width: 3.2rem }
  .cross::before { content: "\d7"; font: 700 1.6rem/0 system-ui; color: var(--bad) }
  .dot { flex: none; width: .7em; height: .7em; margin: auto 0; border: 1px solid }
  #panes { display: grid; gap: .8rem; grid-template-columns: 1fr 1fr; margin: .5rem 0 }
  input, button { font: inherit; min-width: 0 } fieldset > * { margin-bottom: .4rem }
  button { background: var(--ink); color: var(--paper); border: 0; border-radius: .3rem;
    padding: .2rem .8rem } button:disabled { opacity: .4 }
  fieldset div { display: flex; gap: .5rem } fieldset div > input { flex: 1 }
  [aria-busy=true] button { opacity: .4 } [aria-busy=false] progress { display: none }
  output { display: block; min-height: 2.7em; font-weight: 600 }
  pre { white-space: pre-wrap; margin: .4rem 0; padding: .4rem; font-size: .95rem;
    border: 1px solid var(--thin); user-select: all } #map { display: grid; gap: 2px;
    grid-template-columns: repeat(auto-fill, 1rem); font: 700 .9rem/1rem system-ui;
    margin: .3rem 0; text-align: center } #map .new { outline: 2px solid var(--ink) }
  #map b { background: var(--thin); height: 1rem; overflow: hidden }
  .alone :is(.B, #next) { display: none } .alone #panes { grid-template-columns: 1fr }
  @media (max-width: 50rem) { main { display: block } }
</style><header><div><h1 id="name">TicketBoss</h1><p id="state" class="bad"
role="status"></p><p id="story" role="status"></p></div><dl><div><dt>version<dd
id="version">-</div><div><dt>seats free<dd id="free">-</div><div><dt>waiting<dd
id="waits">-</div><div id="gone" class="bad" hidden><dt>confirmed, not in the file<dd
id="lost"></div></dl></header><form id="login" hidden><input autocomplete="username"
aria-label="E-mail or user name" placeholder="e-mail or name"><input type="password"
aria-label="Password" placeholder="password" autocomplete="current-password">
<button>Log in</button></form><main><section><p id="lesson" role="status"></p>
<button id="next">Show me, step by step</button><div id="panes"></div><p id="who">
Too late? <label><input type="radio" name="who" id="careful" checked> I decide again
(If-Match)</label> <label><input type="radio" name="who" id="server"> the server does
</label></p><pre id="curl" aria-label="The same with curl"></pre></section>
<section id="said"><p>The last 40 attempts: <span class="ring"></span> read, <span
class="disc good"></span> saved, <b class="cross"></b> too late, or overwritten</p>
<div id="ruler" class="row" aria-hidden="true"></div><ol id="tape"></ol></section>
<section><p id="scale">Seats</p><ul id="partners"></ul><div id="map" role="img"></div>
</section></main><template><fieldset aria-busy="false"><div><input aria-label="Name"
maxlength="60" placeholder="your name"> <label><input type="number" min="1" max="10"
value="1"> seats</label></div><div><button>1 Read</button>
<button disabled>2 Save</button> <progress aria-label="Waiting"></progress></div>
<span></span><output></output></fieldset></template><script nonce="NONCE">
const $ = id => document.getElementById(id)
const fill = texts => { for (const id in texts) $(id).textContent = texts[id] }
function make(tag, className = "", ...content) {
  const made = Object.assign(document.createElement(tag), {className})
  made.append(...content); return made
}
const query = new URLSearchParams(location.search), id = query.get("event")
const base = id ? "/events/" + encodeURIComponent(id).replaceAll("'", "%27") : ""
const eventPath = base || "/event", listPath = base + "/reservations"
const tapePath = base + "/attempts"
// The eight of Okabe and Ito, told apart by those who see fewer colours.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
  "#f0e442", "#000000"], colours = new Map(), seats = []
let event, attempts, held, inFile, unchecked, timer, before, token, step = 0
async function ask(path, options = {}) {
  if (token) options.headers = {...options.headers, Authorization: `Bearer ${token}`}
  const answer = await fetch(path, {cache: "no-cache", ...options})
  return [answer.status, await answer.json()]
}
function entry(tag, who, name, seats) {  // its square is hollow without any seat
  const dot = make("span", "dot"), more = make("span", "", ` ${seats}`)
  dot.style.background = colours.get(who) || "transparent"
  return make(tag, "entry", dot, make("span", "who", name), more)
}
function judge(attempt) {  // on which versions it was decided, and what came of it
  const {status, version, action, reservationId} = attempt, ok = status < 300
  const named = /^"([0-9]+)"$/.exec(attempt.ifMatch)
  const reads = named ? [+named[1]] : attempt.reads, won = ok && version > reads.at(-1)
  const late = reads.filter((v, n) => v < (reads[n + 1] ?? (won ? v : version)))
  const lost = won && action === "reserve" && inFile && !inFile.has(reservationId)
  const text = lost ? "but lost" : won ? `version ${version}` : ok ? "as before" :
    status === 412 ? `${reads[0]} is old` : "refused"
  return {...attempt, reads, won, late, lost, good: won && !lost, text}
}
function tape(judged) {  // rows are attempts, newest first; columns the last versions
  const rem = parseFloat(getComputedStyle(document.body).fontSize)
  const wide = $("tape").clientWidth / rem - 16, rows = judged.slice(-40).reverse()
  const last = Math.max(event.version, 1), least = last - Math.max(6, wide * 1.3 | 0)
  const first = Math.max(0, least, Math.min(last - 1, ...rows.flatMap(a => a.reads)))
  const apart = Math.ceil((`${last}`.length * .6 + .5) * (last - first + 1) / wide)
  const versions = Array.from({length: last - first + 1}, (_, n) => first + n)
  const track = cell => make("span", "track", ...versions.map(cell))
  const numbers = track(v => make("b", "", (last - v) % apart ? "" : v))
  $("ruler").replaceChildren("name, seats", numbers, "← version")
  $("tape").replaceChildren(...rows.map(a => {
    const from = a.reads[0], to = a.won ? a.version : (a.late.at(-1) ?? from - 1) + 1
    const mark = v => v === from ? "ring" : v === to && a.good ? "disc" :
      v === to && a.lost || a.late.includes(v - 1) ? "cross" : ""
    const line = track(v => make("b", `${mark(v)} ${v > from && v <= to ? "to" : ""} ` +
      (v >= from && v < to ? "on" : "")))
    const number = (a.action === "cancel" ? "-" : "") + (a.seats || "")
    const ariaLabel = `read ${a.reads}, too late: ${a.late.length}`
    Object.assign(line, {role: "img", ariaLabel})
    const name = entry(a.lost ? "s" : "span", a.who, a.who || a.action, number)
    const told = make("span", "", `${a.status}: ${a.text}`)
    return make("li", `row ${a.good ? "good" : "bad"}`, name, line, told)
  }))
}
function map(next = 0) {  // at most 600 squares; each may stand for several seats
  const total = event.totalSeats, records = new Map(held.map(r => [r.reservationId, r]))
  const each = 10 ** Math.max(0, Math.ceil(Math.log10(total / 600)))
  const left = new Map(held.map(r => [r.reservationId, r.seats]))
  const take = key => left.get(key) > 0 && left.set(key, left.get(key) - 1)
  seats.forEach((key, n) => take(key) || delete seats[n])  // others keep their place
  for (const key of left.keys()) for (; left.get(key); next++)
    if (!(next in seats)) take(seats[next] = key)
  $("map").replaceChildren(...Array.from({length: Math.ceil(total / each)}, (_, n) => {
    const r = records.get(seats.slice(n * each, n * each + each).find(key => key ?? 0))
    if (!r) return make("b")
    const paint = colours.get(r.partnerId) || "#aaaaaa"
    const square = make("b", r.eventVersionAtReservation === event.version ? "new" : "",
      [...r.partnerId.toUpperCase()][0] || "?")
    square.style = `background: ${paint}; color: ${paint < "#0080" ? "#fff" : "#000"}`
    return square
  }))
  $("map").ariaLabel = `${total - event.availableSeats} of ${total} seats are taken`
  fill({scale: each > 1 ? `Seats: a square stands for ${each}` : "Seats"})
}
function show() {
  const judged = attempts.map(judge), count = test => judged.filter(test).length
  const won = count(a => a.won), no = count(a => a.status > 299)
  const late = judged.flatMap(a => a.late).length, lost = count(a => a.lost)
  const sums = new Map(), {name, version} = event
  const story = `${judged.length} attempts: ${won} saved, ${no} refused, ` +
    `${lost || "none"} lost${unchecked ? "" : `; ${late} saves too late`}`
  fill({name: document.title = name, version, lost, free: event.availableSeats, story})
  $("gone").hidden = !($("who").hidden = $("next").hidden = unchecked)
  for (const r of held) sums.set(r.partnerId, (sums.get(r.partnerId) || 0) + r.seats)
  $("partners").replaceChildren(...[...sums].sort((a, b) => b[1] - a[1]).map(
    ([who, n]) => entry("li", who, who || "(no name)", n)))
  A.compare(); B.compare(); tape(judged); map()
}
async function look() {
  const [status, now] = await ask(eventPath), [may, told] = await ask(tapePath)
  if (status === 401) token = ""
  $("login").hidden = status !== 401 && may !== 401
  if (status !== 200) throw Error(now.error + (status !== 404 ? "" :
    ". Without ?event= in its address, this page shows the first event."))
  unchecked = told.unchecked === true
  fill({state: unchecked ? "No check: the last save wins." :
    may === 401 ? "Log in to see who saved." : ""})
  const changed = JSON.stringify([now, told, token])
  if (changed === before) return
  const [given, list] = await ask(listPath), records = given === 200 ? list : []
  inFile = given === 200 && new Set(records.map(r => r.reservationId))
  colours.clear()
  for (const {partnerId: who} of records)
    if (!colours.has(who)) colours.set(who, COLOURS[colours.size % 8])
  held = records.filter(r => r.status === "confirmed")
  const others = held.reduce((n, r) => n - r.seats, now.totalSeats - now.availableSeats)
  if (others > 0) held.push({reservationId: "-", partnerId: "(hidden)", seats: others})
  fill({waits: records.filter(r => r.status === "waitlisted").length})
  event = now; attempts = told.attempts || []; before = changed; show()
}
async function live() {  // one reading at a time, none while nobody looks
  clearTimeout(timer); if (document.hidden) return
  await look().catch(({name, message}) => fill({state: (name === "Error" ? message :
    "The server does not answer.") + (event ? " What you see is old." : "")}))
  clearTimeout(timer); timer = setTimeout(live, 500)
}
const curl = (path, more = "") =>
  fill({curl: `curl -i ${more}'${location.origin}${path}'`})
function pane(letter, usual, seen = null) {
  const box = document.querySelector("template").content.cloneNode(true).firstChild
  const [name, wanted, read, save] = box.querySelectorAll("input, button")
  const [label, out] = box.querySelectorAll("span, output")
  const tell = (textContent, className) => Object.assign(out, {textContent, className})
  const compare = () => {
    const old = seen !== null && event && event.version !== seen
    label.className = old ? "old" : ""
    label.textContent = seen === null ? "nothing read yet" :
      `you read version ${seen}` + (old ? `, now it is ${event.version}` : "")
  }
  const locked = work => async () => {  // a second press while it waits does nothing
    if (box.ariaBusy === "true") return; box.ariaBusy = true
    await work().catch(() => tell("No answer: saved or not? Look at the tape.", "bad"))
    box.ariaBusy = false; compare(); await live()
  }
  read.onclick = locked(async () => {
    curl(eventPath); const [status, told] = await ask(eventPath)
    seen = told.version ?? null; save.disabled = status !== 200
    tell(told.error || "", "bad")
  })
  save.onclick = locked(async () => {
    const body = JSON.stringify({partnerId: name.value, seats: +wanted.value})
    const key = crypto.getRandomValues(new Uint32Array(4)).join("-")  // for each press
    const headers = unchecked ? {} : {"Idempotency-Key": key}
    const match = $("careful").checked && !unchecked ? `"${seen}"` : ""
    if (match) headers["If-Match"] = match
    tell("", ""); curl(listPath, (match && `-H 'If-Match: ${match}' `) +
      `-d '${body.replaceAll("'", "\\u0027")}' `)
    const [status, told] = await ask(listPath, {method: "POST", headers, body})
    if (status < 300) tell(`✓ ${status} ${told.status}`, "good")
    else tell(`\xd7 ${status}: ` + (status === 412 ?
      "too late. Read again, then save." : told.error), "bad")
  })
  name.value = usual; box.className = letter; box.ariaLabel = `Buyer ${letter}`
  compare(); $("panes").append(box)
  return {name, read: read.onclick, save: save.onclick, compare}
}
const alone = query.has("name") || matchMedia("(max-width: 50rem)").matches
document.body.classList.toggle("alone", alone)
const A = pane("A", query.get("name") || (alone ? "" : "anna")), B = pane("B", "ben")
const STEPS = [["", () => 0, "Show me, step by step"],
  ["{A} reads. How many seats are free, and in which version?", A.read],
  ["{B} reads, too. Which version will it be?", B.read],
  ["{A} saves. What happens to the version?", A.save],
  ["{B} saves, but holds the old version. What will the server say?", B.save],
  ["Too late: nothing was sold, nothing was lost. So {B} reads again.", B.read],
  ["{B} decides again, and knows the new version.", B.save],
  ["Both have their seats, and nobody waited for a lock.", () => 0, "End"]]
$("next").onclick = async ({target}) => {
  if (target.ariaBusy === "true") return
  target.ariaBusy = $("careful").checked = true; await STEPS[step][1]()
  const [text, , next = "Do it"] = STEPS[step = (step + 1) % STEPS.length]
  fill({lesson: text.replace("{A}", A.name.value).replace("{B}", B.name.value), next})
  target.ariaBusy = false
}
$("login").onsubmit = async submitted => {
  submitted.preventDefault()
  const [{value: who}, {value: password}] = submitted.target
  const body = {password, [who.includes("@") ? "email" : "username"]: who}
  const [, told] = await ask("/login", {method: "POST", body: JSON.stringify(body)})
  token = told.token; await live()
  if (!token) fill({state: told.error})
}
addEventListener("resize", () => event && show())
addEventListener("visibilitychange", live); curl(eventPath); live()</script>
"""


# === 15. Race ================================================================
# The lesson in the terminal: buyers in processes of their own race on a throwaway file,
# without a check, with a lock, and optimistic. All conclusions are computed from the
# measurements. The bars show what was kept, not what was confirmed.

STRATEGIES: Final = {
    "none": "read, think, save. Nobody checks whether the event has changed.",
    "lock": "lock, read, think, save, unlock. All others wait.",
    "optimistic": "read, think, save if nobody has saved since; otherwise, again.",
}
ROUNDS: Final = 3  # of each case; the one with the median rate is shown
BAR_LENGTH: Final = 10
ROW: Final = "{:11}{:>9}{:>7}{:>6}{:>8}  {:10} {}"
CLOSE: Final = 1.3  # below this ratio, another run may say the opposite


class UncheckedStore(Store):
    """A store that does not compare: the mistake that this program is about."""

    def swap(self, seen: Snapshot, wanted: Database) -> bool:  # noqa: ARG002 -- that is it
        """Write `wanted` over the present content, changed or not."""
        is_private = wanted.has_password_hashes
        with (
            self._mutex,
            self._temp_file(self._encode(wanted), is_private=is_private) as temp_path,
        ):
            os.replace(temp_path, self.path)
        return True


class Attempt(NamedTuple):
    """One order of one buyer: the version read, whether it was confirmed, and when."""

    buyer: int
    event: Event  # as it was read
    confirmed: bool
    read_at: float
    done_at: float
    took_s: float
    conflicts: int
    reservation_id: str


class RaceSizes(NamedTuple):
    """The numbers of buyers, orders and seats of a race."""

    clients: int
    requests: int
    seats: int


class Case(NamedTuple):
    """A strategy, and the conditions of its race."""

    strategy: str
    events: int
    think_s: float

    def label(self) -> str:
        """The conditions in words, which are the same for strategies to compare."""
        events = "event" if self.events == 1 else "events"
        return f"{self.events} {events}, {self.think_s * 1e3:.0f} ms"


class Result(Struct, frozen=True):
    """The result of one round; its fields are the keys of `race --json`."""

    strategy: str
    events: int
    think_ms: int
    told: int  # confirmed
    kept: int  # in the file
    lost: int
    oversold: int
    conflicts: int
    rate: float  # kept in a second
    p95_ms: int

    def breaks_its_promise(self) -> bool:
        """Whether a strategy that should be safe lost a sale or sold a seat twice."""
        return self.strategy != "none" and self.lost + self.oversold > 0


class Round(NamedTuple):
    """A round, and how it lost a sale."""

    result: Result
    example: list[str]  # see `lost_update_example`


Rounds = dict[Case, list[Round]]  # of each case that was raced, in the table's order


def buyer_process(
    path: str, strategy: str, buyer: int, events: list[str], think_s: float
) -> list[Attempt]:
    """Ask for a seat of each of these events, one after the other, as one process."""
    store_class = UncheckedStore if strategy == "none" else Store
    store = store_class(path, 30)
    attempts = []
    for event_id in events:
        order = Reservation(str(uuid.uuid4()), f"buyer-{buyer}", 1, "waitlisted")
        began = time.monotonic()
        tries = 0
        told = False
        while not told:
            tries += 1
            with store.lock() if strategy == "lock" else nullcontext():
                seen = store.load()
                read_at = time.monotonic()
                document = seen.database.document(event_id)
                if document.event.available_seats == 0:
                    break
                time.sleep(think_s)
                wanted = seen.database.with_document(document.reserve(order))
                told = store.swap(seen, wanted)
        done_at = time.monotonic()
        attempts.append(
            Attempt(
                buyer,
                document.event,
                told,
                read_at,
                done_at,
                done_at - began,
                tries - 1,
                order.reservation_id,
            )
        )
    return attempts


def run_race(sizes: RaceSizes, case: Case) -> Round:
    """Race once. Raises OSError if processes or files cannot be made."""
    strategy, events, think_s = case
    event_ids = [f"event-{n}" for n in range(events)]
    seats = sizes.seats // events
    with tempfile.TemporaryDirectory() as folder:
        store = _throwaway(folder, event_ids, seats)
        orders = [event_ids[order % events] for order in range(sizes.requests)]
        plans = [
            (store.path, strategy, buyer, orders[buyer :: sizes.clients], think_s)
            for buyer in range(sizes.clients)
        ]
        history, took_s = _run_buyers(plans)
        documents = store.load().database.events()
    kept = {key for document in documents for key in document.reservations}
    waits = sorted(attempt.took_s for attempt in history if attempt.confirmed)
    p95_s = waits[int(len(waits) * 0.95) - 1] if waits else 0
    result = Result(
        strategy=strategy,
        events=events,
        think_ms=round(think_s * 1e3),
        told=len(waits),
        kept=len(kept),
        lost=len(waits) - len(kept),
        oversold=max(0, len(waits) - seats * events),
        conflicts=sum(attempt.conflicts for attempt in history),
        rate=rounded(len(kept) / took_s),
        p95_ms=round(p95_s * 1e3),
    )
    return Round(result, lost_update_example(history, kept))


def rounded(rate: float) -> float:
    """A rate for people: a whole number, but to a hundredth below 10."""
    return round(rate, 2 if rate < 10 else None)


def _throwaway(folder: str, event_ids: list[str], seats: int) -> Store:
    store = Store(f"{folder}/db.json")
    store.open(seats)
    seen = store.load()
    wanted = seen.database
    for key in event_ids:
        event = Event(key, key, seats, seats, 0)
        wanted = wanted.with_document(Document.open(None, event))
    store.swap(seen, wanted)
    return store


def _run_buyers(plans: list[tuple[Any, ...]]) -> tuple[list[Attempt], float]:
    """Run a process for each plan, all at once; return their attempts and the time."""
    fork = multiprocessing.get_context("fork")
    ready = fork.Barrier(len(plans) + 1)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process
    try:
        pool = fork.Pool(len(plans), ready.wait)
    finally:
        signal.signal(signal.SIGINT, before)
    with pool:
        ready.wait()  # all buyers start at the same moment
        began = time.monotonic()
        attempts = pool.starmap(buyer_process, plans, 1)
        took_s = time.monotonic() - began
    return list(itertools.chain.from_iterable(attempts)), took_s


def run_rounds(sizes: RaceSizes, cases: list[Case], rounds: Rounds) -> None:
    """Race all cases; add the rounds as they end, and print a dot for each.

    The strategies of a group take turns, so that other load on the machine hits all.
    """
    for label, group in itertools.groupby(cases, Case.label):
        click.echo(f"... {label}: ", nl=False, err=True)
        for case in [*group] * ROUNDS:
            ended = run_race(sizes, case)
            rounds.setdefault(case, []).append(ended)
            click.echo(".", nl=False, err=True)
        click.echo(err=True)


def shown_result(rounds: list[Round]) -> Result:
    """The result with the median rate, or one in which a safe strategy lost sales."""
    results = [each.result for each in rounds]
    by_rate = sorted(results, key=lambda result: result.rate)
    for result in by_rate:
        if result.breaks_its_promise():
            return result
    return by_rate[len(by_rate) // 2]


def estimated_s(sizes: RaceSizes, cases: list[Case]) -> float:
    """About how long these races take: the sales of one event wait for each other."""
    total_s = 0.0
    for strategy, events, think_s in cases:
        if strategy == "none":
            total_s += sizes.requests / sizes.clients * (think_s + 0.01)
        elif strategy == "lock":  # there is one lock for all events
            total_s += min(sizes.seats, sizes.requests) * (think_s + 0.003)
        else:
            total_s += min(sizes.seats, sizes.requests) / events * (think_s + 0.006)
        total_s += 0.3  # for starting the processes
    return total_s * ROUNDS


def lost_update_example(history: list[Attempt], kept: set[str]) -> list[str]:
    """The shortest interleaving that lost a sale: two buyers read the same version."""
    told = sorted(
        (attempt for attempt in history if attempt.confirmed),
        key=lambda each: (each.event.event_id, each.event.version, each.done_at),
    )
    for lost, later in itertools.pairwise(told):
        if (
            lost.event == later.event  # the same version of the same event
            and later.read_at < lost.done_at
            and lost.reservation_id not in kept
        ):
            return _interleaving(lost, later)
    return []


def _interleaving(lost: Attempt, later: Attempt) -> list[str]:
    """The steps of two buyers in order, each with the seats that were left after it."""
    version = lost.event.version
    steps = []
    for attempt in (lost, later):
        left = attempt.event.available_seats
        steps.append((attempt.read_at, attempt, f"reads version {version}", left))
        saved = f"saves version {version + 1}: confirmed"
        steps.append((attempt.done_at, attempt, saved, left - 1))
    columns = "{:30}{:30}{}".format
    lines = [columns(f"buyer {lost.buyer}", f"buyer {later.buyer}", "seats left")]
    for _, attempt, text, left in sorted(steps, key=lambda step: step[0]):
        mine = text if attempt is lost else ""
        theirs = "" if attempt is lost else text
        lines.append(columns(mine, theirs, left))
    lines.append(
        f"Two sales are confirmed, one is in the file: buyer {lost.buyer}'s is lost."
    )
    check = f"still version {version}? No, {version + 1}: read again."
    lines.append(f"A check adds one step before the last: {check}")
    return lines


def table(rounds: Rounds) -> Iterator[str]:
    """The results in 80 columns; the bars show what was kept, see `_bar_value`."""
    yield ROW.format("", "confirmed", "saved", "lost", "saved/s", "", "").rstrip()
    for number, (label, group) in enumerate(itertools.groupby(rounds, Case.label)):
        rows = [shown_result(rounds[case]) for case in group]
        if number:
            yield f"{label}:"
        longest = max(_bar_value(row) for row in rows) or 1
        for row in rows:
            cells = ROW.format(
                "no check" if row.strategy == "none" else row.strategy,
                row.told,
                row.kept,
                row.lost,
                row.rate,
                _bar(_bar_value(row) / longest),
                _remark(row),
            ).rstrip()
            yield click.style(cells, fg="red") if row.lost else cells


def _bar_value(row: Result) -> float:
    """The sales kept in a second, times the share of confirmations that were true.

    So a strategy that loses sales never gets the longest bar, even on a fast machine.
    """
    return row.rate * row.kept / max(row.told, 1)


def _bar(share: float) -> str:
    """A bar in eighths of a character; in # if the terminal has no blocks."""
    eighths = round(share * BAR_LENGTH * 8)
    bar = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    try:
        bar.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * round(share * BAR_LENGTH)
    return bar


def _remark(row: Result) -> str:
    if row.oversold:
        return f"oversold by {row.oversold:,}"
    if row.strategy == "lock":
        return "one at a time"
    if row.strategy == "optimistic":
        return f"{row.conflicts:,} late attempts"
    return ""


def conclusions(rounds: Rounds) -> Iterator[str]:
    """The lessons of these rounds, whatever their results: result, because reason."""
    for case, each in rounds.items():
        if case.strategy == "none":
            result = shown_result(each)
            yield (
                f"No check: {result.lost:,} of {result.told:,} confirmed sales are "
                "lost, because the last save wins."
                if result.lost
                else "No check: nothing is lost, because no two orders collided."
            )
    for label, group in itertools.groupby(rounds, Case.label):
        safe = [rounds[case] for case in group if case.strategy != "none"]
        if len(safe) == 2:
            yield f"{label}: {comparison(*safe)[1]}"


def comparison(one: list[Round], other: list[Round]) -> tuple[str, str]:
    """The faster of two safe strategies, and the lesson; "" if too close to call."""
    slower, faster = sorted((one, other), key=lambda each: shown_result(each).rate)
    ratio = shown_result(faster).rate / (shown_result(slower).rate or 1)
    pairs = zip(slower, faster, strict=False)  # after Ctrl-C one may have a round less
    always = all(fast.result.rate > slow.result.rate for slow, fast in pairs)
    if ratio < CLOSE or not always:
        reason = "both save one at a time" if ratio < CLOSE else "the rounds disagree"
        return "", f"too close to call ({ratio:.1f} times), because {reason}."
    winner = shown_result(faster).strategy
    reasons = {"lock": "no attempt is wasted", "optimistic": "thinking overlaps"}
    return winner, f"{winner} is {ratio:.1f} times as fast, because {reasons[winner]}."


# === 16. Server ==============================================================
# `python ticketboss.py` under waitress: one loop reads and sends for all connections,
# and threads make the answers. No thread ever waits for a client, and no client delays
# another. Knows nothing of seats.

READ_THREADS: Final = 16  # not for changes, which may all wait for the lock
CHANGE_THREADS: Final = 48
MAX_CONNECTIONS: Final = 900
OTHER_DESCRIPTORS: Final = 100  # for files, and for the libraries
UNREAD_S: Final = 10  # how long an answer may wait for its reader, without progress
UNFINISHED_S: Final = 30  # how long a request may take to arrive
IDLE_S: Final = 75  # longer than proxies keep a connection, which is 60 s
END_S: Final = 30  # how long stopping may take
MAX_UNREAD_BYTES: Final = 256 * 2**20  # of all answers together
STALLED_S: Final = 2  # above that, a client without progress is dropped after this time
LARGE_ANSWER: Final = 8192  # bytes; a larger one is never copied
ARENAS: Final = 2  # of glibc's malloc; one for each thread would keep freed memory


class RequestParser(waitress.parser.HTTPRequestParser):
    """Parses a request in linear time; refuses any that other parsers may misread."""

    START_LINE = re.compile(rb"[^ ]++ [^ ]++(?: HTTP/[0-9]\.[0-9])?+")
    # Leading blanks of a value, folded lines included.
    BLANKS = re.compile(rb"^([^\r\n: \t]++:)(?:[ \t]++|\r\n(?=[ \t]))++", re.MULTILINE)

    def __init__(self, adjustments: Any) -> None:
        self.begun_at = time.monotonic()  # when the first byte arrived
        super().__init__(adjustments)

    def parse_header(self, header_plus: bytes) -> None:
        """Parse the start line and the headers.

        Two of waitress's patterns are quadratic: that of a header in the blanks before
        its value, and that of a start line that does not match. This method keeps such
        texts from them.
        """
        start_line = header_plus.partition(b"\r\n")[0].rstrip()
        # If it is refused, the path decides on the format of the error.
        self.path = re.sub(b"^[^ ]* ?|[ ?].*", b"", start_line).decode("latin-1")
        if not start_line.isascii():
            raise waitress.parser.ParsingError(
                "Send the URL percent-encoded, such as %C3%A9."
            )
        if not self.START_LINE.fullmatch(start_line):
            raise waitress.parser.ParsingError("Start line is invalid")
        try:
            super().parse_header(self.BLANKS.sub(rb"\1", header_plus))
        except ValueError as error:  # from urlsplit, or from int with 5,000 digits
            raise waitress.parser.ParsingError(f"Invalid request: {error}") from None
        headers = self.headers
        if self.version == "1.1" and "HOST" not in headers:
            raise waitress.parser.ParsingError("HTTP/1.1 requires a Host header")
        if "," in headers.get("HOST", ""):  # so waitress joins several
            raise waitress.parser.ParsingError("Only one Host header is allowed")
        has_two_lengths = self.chunked and "CONTENT_LENGTH" in headers
        if has_two_lengths or "TRANSFER_ENCODING" in headers:  # the latter in HTTP/1.0
            raise waitress.parser.ParsingError("The length of the body is ambiguous")


class AnswerTask(waitress.task.WSGITask):
    """Makes an answer, and keeps the connection if it has no body."""

    request: Any
    response_headers: Any

    def set_close_on_finish(self) -> None:
        """Close the connection, unless the end of the answer is clear.

        waitress closes it after each answer without a Content-Length, even after a 204
        or 304, which has no body.
        """
        asked = self.request.headers.get("CONNECTION", "").lower()
        may_stay = asked == "keep-alive" or (self.version == "1.1" and asked != "close")
        if self.has_body or not may_stay:
            super().set_close_on_finish()
        elif self.version == "1.0":
            self.response_headers.append(("Connection", "Keep-Alive"))


class JsonErrorTask(waitress.task.ErrorTask):
    """Answers in JSON the requests that waitress refuses before Flask sees them."""

    channel: Any

    def execute(self) -> None:
        """Write the answer."""
        request: Any = self.request
        error = request.error
        text = ERROR_TEXTS.get(error.code, error.body)
        body = msgspec.json.encode(error_body(request.path, error.code, text)) + b"\n"
        sent = request.headers
        served = self.channel.server.owner.app
        headers = [
            ("Content-Type", JSON),
            ("X-Request-ID", request_id(sent.get("X_REQUEST_ID"))),
            *cors_headers(served, sent.get("ORIGIN")).items(),
        ]
        if served.settings.allowed_origins:
            headers.append(("Vary", "Origin"))
        error.to_response = lambda _: (f"{error.code} {error.reason}", headers, body)
        super().execute()


class Connection(waitress.channel.HTTPChannel):
    """One client. The loop reads and sends; a thread makes one answer at a time."""

    parser_class = RequestParser
    task_class = AnswerTask
    error_task_class = JsonErrorTask
    server: Any  # a Listener
    request: Any  # the one that has not arrived completely
    outbufs: Any

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self.progress_at = time.monotonic()  # connected, answered, or read an answer
        self.is_parked = False  # the next request waits until the answers are sent
        super().__init__(*arguments, **more)

    def readable(self) -> bool:
        """Whether the loop may read from it."""
        return not self.server.owner.is_ending and bool(super().readable())

    def service(self) -> None:
        """Answer the first request, in a thread."""
        super().service()
        self.server.owner.app.box_office.transactions.replaced = None

    def send_continue(self) -> None:
        """Ask for the body that a client announced with "Expect: 100-continue".

        waitress would wait for it even if the request is complete or refused.
        """
        if self.request.completed:
            self.request.expect_continue = False
        else:
            super().send_continue()

    def write_soon(self, data: bytes) -> int:
        """Keep the head or the body of an answer until the loop sends them, as one.

        waitress's own method sends at once, for which the thread gives up Python's
        lock, and it waits for the client if much is unsent.
        """
        small = waitress.buffers.OverflowableBuffer(self.adj.outbuf_overflow)
        with self.outbuf_lock:
            if not self.connected:
                raise waitress.channel.ClientDisconnected
            if len(data) > LARGE_ANSWER:
                large = waitress.buffers.ReadOnlyFileBasedBuffer(io.BytesIO(data))
                large.prepare()
                self.outbufs += [large, small]  # waitress needs a small one at the end
            else:
                if not self.outbufs[-1]:  # a new one, so that the sent one is freed
                    self.outbufs.append(small)
                self.outbufs[-1].append(data)
            self.total_outbufs_len += len(data)
            self.progress_at = time.monotonic()
        return len(data)

    def writable(self) -> bool:
        """Whether the loop has something to send."""
        if self.is_parked and not self.total_outbufs_len:
            self.is_parked = False
            self.server.add_task(self)
        return bool(super().writable())

    def handle_write(self) -> None:
        """Send as much as the client takes."""
        unsent = self.total_outbufs_len
        now = time.monotonic()
        super().handle_write()
        if self.total_outbufs_len < unsent:
            self.progress_at = now

    @property
    def waits_for_client(self) -> bool:
        """Whether no thread works for it."""
        return not self.requests or self.is_parked

    def is_overdue(self, now: float) -> bool:
        """Whether its client has done nothing for too long."""
        if not self.waits_for_client:
            return False
        if self.total_outbufs_len:
            return now - self.progress_at > UNREAD_S
        if self.request is not None:  # more of it is no progress
            since: float = max(self.request.begun_at, self.progress_at)
            return now - since > UNFINISHED_S
        return now - self.progress_at > IDLE_S


class Workers:
    """Threads that answer requests; some are kept for reads.

    The queues are SimpleQueues, whose hand-over costs one lock. waitress's own
    dispatcher takes 22 futex calls for an answer.
    """

    def __init__(self) -> None:
        self.reads: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self.changes: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        for waiting, count in (
            (self.reads, READ_THREADS),
            (self.changes, CHANGE_THREADS),
        ):
            for _ in range(count):
                threading.Thread(target=self._work, args=[waiting], daemon=True).start()

    def add_task(self, connection: Connection) -> None:
        """Have its first request answered, once the client has the earlier answers."""
        if connection.total_outbufs_len:
            connection.is_parked = True
            return
        method = getattr(connection.requests[0], "command", "GET")
        is_read = method in {"GET", "HEAD", "OPTIONS"}
        (self.reads if is_read else self.changes).put(connection)

    def _work(self, waiting: queue.SimpleQueue[Connection]) -> None:
        while True:
            connection = waiting.get()
            try:
                connection.service()
            except BaseException:  # a thread that ends is never replaced
                log.exception("A request was not answered")
                connection.cancel()
                connection.server.pull_trigger()


class Listener(waitress.server.TcpWSGIServer):
    """One address where clients connect."""

    channel_class = Connection

    trigger: Any

    def __init__(
        self, owner: Server, listening: socket.socket, adjustments: Any
    ) -> None:
        self.owner = owner
        super().__init__(
            owner.app,
            owner.channels,
            _sock=listening,
            dispatcher=cast("Any", owner.workers),
            adj=adjustments,
            sockinfo=(listening.family, listening.type, 0, listening.getsockname()),
            bind_socket=False,
        )

    def readable(self) -> bool:
        """Whether another client may connect."""
        return self.accepting and not self.owner.is_full

    def accept(self) -> Any:
        """Accept a client; if no descriptor is left, make room for it."""
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
            # One less: a new client is accepted before another one is dropped for it.
            self.owner.limit = max(1, len(self.owner.connections()) - 1)
            return None

    def pull_trigger(self) -> None:
        """Wake the loop."""
        self.owner.wake()


class Server:
    """The loop, its connections and its threads."""

    def __init__(self, app: App, sockets: list[socket.socket]) -> None:
        self.app = app
        self.channels: dict[int, Any] = {}  # connections, listeners and their triggers
        self.is_ending = False
        self.is_full = False
        self.was_full = False
        self.cut = 0  # connections that were cut while stopping
        self.limit = raise_connection_limit()
        self._is_woken = False
        self._next_sweep = 0.0
        limit_arenas()
        self.workers = Workers()
        logging.getLogger("waitress").setLevel(logging.ERROR)
        adjustments = waitress.adjustments.Adjustments(
            ident="TicketBoss",
            max_request_header_size=16 * 1024,
            max_request_body_size=2**20,
            clear_untrusted_proxy_headers=False,
            inbuf_overflow=2**62,  # in memory: no disk and no descriptors
            outbuf_overflow=2**62,
            outbuf_high_watermark=2**62,  # above it, threads would wait for clients
        )
        self.listeners = [Listener(self, one, adjustments) for one in sockets]

    def connections(self) -> list[Connection]:
        """All connections."""
        return [c for c in self.channels.values() if isinstance(c, Connection)]

    def wake(self) -> None:
        """Wake the loop; one call, even if many threads ask for it."""
        if not self._is_woken:
            self._is_woken = True
            self.listeners[0].trigger.pull_trigger()

    def turn(self) -> None:
        """Read, send and accept once, or wait a moment for something to do."""
        self._is_woken = False  # before the loop looks at the channels
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + 1
            self._drop_the_overdue(now)
        self._make_room()
        waitress.wasyncore.loop(timeout=0.2, use_poll=True, map=self.channels, count=1)

    def finish(self) -> int:
        """Answer the accepted requests; return how many connections were cut."""
        deadline = time.monotonic() + END_S
        self.is_ending = True
        for listener in self.listeners:
            waitress.wasyncore.dispatcher.close(listener)  # without its trigger
        while pending := [
            c for c in self.connections() if c.requests or c.total_outbufs_len
        ]:
            if time.monotonic() > deadline:
                return self.cut + len(pending)
            self.turn()
        return self.cut

    def _drop_the_overdue(self, now: float) -> None:
        # Closed here, not by waitress's will_close, which waits until the client reads.
        for connection in self.connections():
            if connection.is_overdue(now):
                self.cut += self.is_ending
                connection.handle_close()
        unread = [c for c in self.connections() if c.total_outbufs_len]
        excess = sum(c.total_outbufs_len for c in unread) - MAX_UNREAD_BYTES
        for connection in sorted(unread, key=lambda c: c.progress_at):
            is_stalled = now - connection.progress_at > STALLED_S
            if excess > 0 and is_stalled and connection.waits_for_client:
                excess -= connection.total_outbufs_len
                connection.handle_close()

    def _make_room(self) -> None:
        """If all connections are used, drop those longest without progress.

        Not while the loop handles events: a new client could get the same descriptor,
        and with it an event of the dropped connection.
        """
        self.is_full = False
        excess = len(self.channels) - 2 * len(self.listeners) - self.limit
        if excess <= 0:
            return
        if not self.was_full:
            self.was_full = True
            log.warning(
                "All %d connections are in use. Each new client replaces the one that "
                "has been idle longest.",
                self.limit,
            )
        idle = [c for c in self.connections() if c.waits_for_client]
        idle.sort(key=lambda c: c.progress_at)
        for connection in idle[:excess]:
            connection.handle_close()
        self.is_full = len(idle) < excess


def can_write(stream: Any) -> bool:
    """Whether a write would not wait, as for a paused terminal or an unread pipe."""
    try:
        return bool(select.select([], [stream], [], 0)[1])
    except (OSError, TypeError, ValueError):  # it is closed, none, or not a file
        return True


class LogHandler(logging.StreamHandler[Any]):
    """Writes the log, but drops lines for which it would have to wait.

    Otherwise one paused terminal would stop all threads that answer requests.
    """

    missing = 0  # lines dropped since the last one

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it as missing."""
        if not can_write(self.stream):
            self.missing += 1
            return
        if self.missing:
            text = f"{self.missing} lines of the log are missing here."
            super().emit(logging.makeLogRecord({"msg": text}))
            self.missing = 0
        super().emit(record)


def raise_connection_limit() -> int:
    """Raise the limit of descriptors; return how many connections fit below it."""
    try:
        import resource  # noqa: PLC0415 -- Windows has none
    except ImportError:
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10240 if hard == resource.RLIM_INFINITY else hard  # macOS takes no more
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(10, min(MAX_CONNECTIONS, soft - OTHER_DESCRIPTORS))


def limit_arenas() -> None:
    """Let all threads share a few of glibc's arenas, if this is glibc."""
    if platform.libc_ver()[0] == "glibc":
        m_arena_max = -8  # of malloc.h
        ctypes.CDLL(None).mallopt(m_arena_max, ARENAS)


def open_sockets(
    host: str, port: int, addresses: list[tuple[int, str]]
) -> list[socket.socket]:
    """Listen on the addresses of a host; only the first one is required."""
    sockets: list[socket.socket] = []
    for family, address in addresses:
        same_port = sockets[0].getsockname()[1] if sockets else port
        try:
            sockets.append(
                socket.create_server((address, same_port), family=family, backlog=1024)
            )
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            if not sockets:
                is_port = error.errno in {errno.EADDRINUSE, errno.EACCES}
                raise click.ClickException(
                    f"Cannot listen on {host}, port {port}: {reason}. "
                    f"Check {'--port' if is_port else '--host'}."
                ) from None
            click.echo(
                f"Not listening on {address}, port {same_port}: {reason}.", err=True
            )
    return sockets


def addresses_of(host: str) -> list[tuple[int, str]]:
    """The family and address of each address of a host.

    "localhost" means both loopback addresses, and * means all addresses.
    """
    name = host.removeprefix("[").removesuffix("]")
    if name == "localhost":
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    if name == "*":
        return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]  # noqa: S104
    try:
        found = socket.getaddrinfo(name, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise click.ClickException(
            f"Cannot listen on {host}: name not known. Check --host."
        ) from None
    return list(dict.fromkeys((family, str(at[0])) for family, *_, at in found))


def are_loopback(addresses: list[tuple[int, str]]) -> bool:
    """Whether only this machine can connect to them."""
    return all(ipaddress.ip_address(address).is_loopback for _, address in addresses)


def urls_of(host: str, sockets: list[socket.socket]) -> list[str]:
    """The URLs that clients can type to connect."""
    if host == "localhost" and len(sockets) > 1:
        return [f"http://localhost:{sockets[0].getsockname()[1]}"]
    urls = []
    for one in sockets:
        address, port = one.getsockname()[:2]
        names = [address]
        if ipaddress.ip_address(address).is_unspecified:
            names = own_addresses(one.family)
        names = [f"[{name}]" if ":" in name else name for name in names]
        urls += [f"http://{name}:{port}" for name in names]
    return urls


def own_addresses(family: int) -> list[str]:
    """The address that other machines see, if there is one, and the loopback one."""
    is_ipv4 = family == socket.AF_INET
    documentation = "192.0.2.1" if is_ipv4 else "2001:db8::1"  # nothing is sent there
    names = ["127.0.0.1" if is_ipv4 else "::1"]
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((documentation, 9))
        names.insert(0, str(probe.getsockname()[0]))
    return names


# === 17. Main ================================================================
# One app for all ways of serving it, and the command line. Connects all other sections.


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI app: `flask --app ticketboss run`, `gunicorn "ticketboss:create_app()"`.

    Without `settings` it reads the TICKETBOSS_... variables, and ends the process with
    one line if it cannot start. With `settings` it raises Unavailable.
    """
    if settings is not None:
        return make_app(settings)
    try:
        context = main.make_context("ticketboss", [])
        with context, exit_with_message(context.params["db"]):
            return make_app(settings_from(context))
    except click.ClickException as error:
        raise SystemExit(f"ticketboss: {error.format_message()}") from None


def make_app(settings: Settings) -> App:
    """The app, with its database open. Raises Unavailable."""
    app = App(__name__, static_folder=None)
    app.settings = settings
    if settings.unchecked:
        app.store = UncheckedStore(settings.db, settings.timeout_s)
    else:
        app.store = open_store(settings.db, settings.timeout_s)
    open_or_read_only(app.store, settings)
    app.box_office = BoxOffice(app.store, settings)
    app.served = itertools.count()
    app.attempts = deque(maxlen=500)
    app.rate_limits = []
    if settings.rate_limit:
        app.rate_limits = limits.parse_many(settings.rate_limit)
    app.login_limits = limits.parse_many(settings.login_limit)
    app.limiter = Limiter(settings.rate_storage)
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY, PROPAGATE_EXCEPTIONS=False)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.converters["any_path"] = AnyPath
    app.before_request(before_request)
    app.after_request(after_request)
    app.register_error_handler(TicketBossError, handle_refusal)
    app.register_error_handler(HTTPException, handle_http_error)
    for blueprint in (partner, booking, v1, description, page):
        app.register_blueprint(blueprint)
    for endpoint, view in app.view_functions.items():
        app.view_functions[endpoint] = with_request(cast("View", view))
    if settings.trust_proxy:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1)  # type: ignore[method-assign]
    if not log.handlers:
        log.addHandler(LogHandler())
    if not settings.quiet:
        log.setLevel(logging.INFO)
    return app


def open_or_read_only(store: AnyStore, settings: Settings) -> None:
    """Open the database; if it can only be read, log that once and go on.

    Raises Unavailable if it cannot be read, or can never be replaced (a mount).
    """
    try:
        store.open(settings.seats, may_seed=settings.standalone, prove=True)
    except Unwritable as error:
        if getattr(error.__cause__, "errno", None) in {errno.EBUSY, errno.EXDEV}:
            raise
        try:
            store.load()
        except Damaged:
            raise
        except Unavailable:  # nothing is there yet, because it cannot be made
            raise error from error.__cause__
        log.warning(
            "%s: %s. Reads are served, changes are refused.", error.detail, error
        )


def duration(value: object) -> float:
    """The seconds in 200ms, 1.5s or a plain number; at most an hour."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(ms|s|)", str(value))
    if match is None:
        raise click.BadParameter(f"{value!r} is not a duration like 200ms or 1.5s")
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1)
    if seconds > 3600:
        raise click.BadParameter(f"{value!r} is more than an hour")
    return seconds


def origin_of_site(value: str) -> str:
    """An origin, exactly as a browser sends it: scheme://host or scheme://host:port."""
    if not re.fullmatch(ORIGIN, value):
        raise click.BadParameter(
            f"{value!r} is not an origin like http://localhost:5173"
        )
    return value


def settings_from(context: click.Context, *, standalone: bool = False) -> Settings:
    """The settings from the command line and the environment."""
    params = dict(context.params)
    secret = os.environb.get(b"JWT_SECRET", b"")
    check_jwt_secret(secret)
    if params["rate_limit"]:
        check_rate_limit("--rate-limit", params["rate_limit"])
    check_rate_limit("--login-limit", params["login_limit"])
    check_rate_storage(params["rate_storage"])
    return Settings(
        think_s=params.pop("think"),
        trusted_hosts=params.pop("trusted_host"),
        allowed_origins=params.pop("allow_origin"),
        jwt_secret=secret,
        standalone=standalone,
        **params,
    )


def check_jwt_secret(secret: bytes) -> None:
    """Refuse a secret that cannot sign tokens safely."""
    if not secret:
        return
    if len(secret) < 32:
        raise click.ClickException(
            "JWT_SECRET must have 32 bytes or more. Set a longer one, or unset it."
        )
    try:
        jwt.encode({}, secret, "HS256")
    except jwt.InvalidKeyError as error:
        raise click.ClickException(
            "JWT_SECRET cannot be used; set 32 random bytes as text, or unset it: "
            f"{error}"
        ) from None


def check_rate_limit(option: str, value: str) -> None:
    """Refuse a rate limit that cannot be enforced, or that refuses everybody."""
    try:
        if not all(rate.amount for rate in limits.parse_many(value)):
            raise ValueError("0 is no limit")
    except ValueError as error:
        raise click.ClickException(
            f'{option} must be like "100 per 15 minutes": {error}'
        ) from None


def check_rate_storage(url: str) -> None:
    """Refuse a storage that cannot be used."""
    try:
        limits.storage.storage_from_string(url)
    except (ValueError, limits.errors.ConfigurationError) as error:
        raise click.ClickException(
            f"--rate-storage must be like redis://host: {error}"
        ) from None


ERRNO_ADVICE: Final = {
    errno.EACCES: "Run as its owner, or let others write it.",
    errno.EPERM: "Run as its owner, or let others write it.",
    errno.EBUSY: "Mount the folder that it is in, not the file alone.",
    errno.EXDEV: "Mount the folder that it is in, not the file alone.",
    errno.ENOENT: "Check the path, or --db.",
    errno.ENOTDIR: "Check the path, or --db.",
    errno.EROFS: "Choose a folder that can be written, with --db.",
    errno.ENOSPC: "Make space on that disk, then try again.",
    errno.EDQUOT: "Make space within your quota, then try again.",
}


@contextmanager
def exit_with_message(db: str) -> Iterator[None]:
    """End the command with one line if it is refused in here; name the file and why."""
    try:
        yield
    except TicketBossError as error:
        place = error.detail or shown_location(db)
        advice = ERRNO_ADVICE.get(getattr(error.__cause__, "errno", 0))
        if isinstance(error, Damaged):
            advice = (
                "Repair or restore it, or run `python ticketboss.py --db "
                f"{shlex.quote(db)} reset`, which keeps the old file."
            )
        if isinstance(error, Contended):
            advice = "Stop that process, or try again when it is done."
        text = f"{place}: {error}"
        cause = error.__cause__
        if not isinstance(cause, (OSError, MemoryError, type(None))):
            text += ": " + str(cause).partition("\n")[0]  # what the database said
        raise click.ClickException(f"{text}. {advice}" if advice else text) from None


class Program(click.Group):
    """The command line. Variables configure only a server, not a command.

    So no variable can set a command's switch, such as --yes.
    """

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command whose options have no variables."""
        for option in cmd.params:
            if isinstance(option, click.Option):
                option.allow_from_autoenv = False
        super().add_command(cmd, name)


DEFAULTS: Final = Settings()
UNCHECKED_THINK_S: Final = 2.0  # without a pause, one process saves in order
COPY_TIMEOUT_S: Final = 600  # a copy may take long, and it keeps other writers away


class PortOption(click.Option):
    """--port; Kubernetes sets its variable for a Service called ticketboss."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The value of the variable, unless it is the address of a Service."""
        value = super().resolve_envvar_value(ctx)
        if value is None or not re.fullmatch("(tcp|udp|sctp)://.+", value):
            return value
        click.echo(
            f"TICKETBOSS_PORT={value} is ignored: it is the address of a Kubernetes "
            "Service, not a port. Use PORT or --port.",
            err=True,
        )
        return os.environ.get("PORT")


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings={"show_default": True, "auto_envvar_prefix": "TICKETBOSS"},
)
@click.option(
    "--host", default=DEFAULTS.host, help="Address to listen on; * for all addresses."
)
@click.option(
    "--port",
    cls=PortOption,
    default=DEFAULTS.port,
    type=click.IntRange(0, 65535),
    envvar=["TICKETBOSS_PORT", "PORT"],
    help="Port to listen on; 0 picks a free one.",
)
@click.option(
    "--db",
    default=DEFAULTS.db,
    help="Database file, or a URL: postgresql://user@host/name.",
)
@click.option(
    "--seats",
    default=DEFAULTS.seats,
    type=click.IntRange(1, MAX_SEATS),
    help="Seats of the first event, if there is no database yet.",
)
@click.option(
    "--think",
    default=DEFAULTS.think_s,
    type=duration,
    show_default="no pause",
    help="Pause between reading and saving, for demonstrations, such as 200ms.",
)
@click.option("--require-login", is_flag=True, help="Every change needs a token.")
@click.option(
    "--require-if-match",
    is_flag=True,
    help="A change must name the version that it is based on.",
)
@click.option(
    "--rate-limit",
    default=DEFAULTS.rate_limit,
    show_default="no limit",
    help='Requests allowed for each client, such as "100 per 15 minutes".',
)
@click.option(
    "--rate-storage",
    default=DEFAULTS.rate_storage,
    help="Storage for the counters of the limits; several processes can share one.",
)
@click.option(
    "--login-limit",
    default=DEFAULTS.login_limit,
    help="Failed logins allowed for each account from one address. For all accounts "
    "together, one address may fail ten times as often.",
)
@click.option(
    "--trust-proxy",
    is_flag=True,
    help="Trust X-Forwarded-* headers. Only behind a proxy that sets them.",
)
@click.option(
    "--trusted-host",
    multiple=True,
    metavar="NAME",
    help="Another host name to accept. May be repeated.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    type=origin_of_site,
    metavar="URL",
    help="Another site whose pages may use this server, such as "
    "http://localhost:5173. May be repeated.",
)
@click.option("--quiet", is_flag=True, help="Do not log requests.")
@click.option(
    "--unchecked",
    is_flag=True,
    allow_from_autoenv=False,  # a forgotten variable must not lose sales
    help="For a class: save without comparing, in a throwaway folder. It loses sales.",
)
@click.pass_context
def main(context: click.Context, /, db: str, *, unchecked: bool, **_: object) -> None:
    """Sell the seats of events over HTTP, and never sell a seat twice.

    Without a command, it starts the server.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters it cannot show
            stream.reconfigure(errors="backslashreplace")
    if sys.platform == "win32" and context.invoked_subcommand is None:
        raise click.ClickException(
            "TicketBoss needs the file locks of Linux or macOS. On Windows it runs in "
            "WSL: `wsl --install`, then the same commands there."
        )
    if unchecked:
        check_unchecked(context)
        with tempfile.TemporaryDirectory(prefix="ticketboss-unchecked-") as folder:
            context.params["db"] = f"{folder}/db.json"
            context.params["think"] = context.params["think"] or UNCHECKED_THINK_S
            serve(settings_from(context, standalone=True))
    elif context.invoked_subcommand is None:
        with exit_with_message(db):
            serve(settings_from(context, standalone=True))


def check_unchecked(context: click.Context) -> None:
    """Refuse --unchecked for a named database, whose sales it would lose."""
    if context.invoked_subcommand is not None:
        raise click.UsageError("--unchecked is for the server, not for a command.")
    if context.get_parameter_source("db") != click.core.ParameterSource.DEFAULT:
        raise click.UsageError(
            "--unchecked loses sales, so it takes no --db (or TICKETBOSS_DB): it uses "
            "a throwaway folder."
        )
    if context.params["require_if_match"]:
        raise click.UsageError(
            "--unchecked takes no If-Match, so it cannot be used with "
            "--require-if-match."
        )


def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGHUP or Ctrl-C; then finish the accepted requests."""
    addresses = addresses_of(settings.host)
    app = make_app(replace(settings, loopback=are_loopback(addresses)))
    sockets = open_sockets(settings.host, settings.port, addresses)
    try:
        server = Server(app, sockets)
    except RuntimeError as error:
        raise click.ClickException(
            f"Not all threads can be started: {error}. Raise the limit of processes or "
            "of memory (ulimit -u, ulimit -v)."
        ) from None
    signals = heard_signals(server.wake)
    with suppress(OSError):  # the terminal may be closed, or a disk full
        print_banner(app, urls_of(settings.host, sockets))
    while not signals:
        server.turn()
    cut = server.finish()
    text = f"Stopped after {next(app.served)} requests."
    if cut:
        connections = "connection" if cut == 1 else "connections"
        text += (
            f"\nCut {cut} {connections} whose answers were not finished within "
            f"{END_S} s."
        )
    with suppress(OSError):  # the terminal may be closed
        if can_write(sys.stdout):
            click.echo(text)


def heard_signals(wake: Callable[[], None]) -> list[int]:
    """The list of stop signals received; a second one ends the process at once."""
    signals: list[int] = []
    heard = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup it is ignored
        heard.append(signal.SIGHUP)

    def stop(number: int, _: object) -> None:
        # Not an exception: Python drops one that is raised in a __del__.
        signals.append(number)
        for one in heard:
            signal.signal(one, signal.SIG_DFL)
        if signal.SIGHUP in heard:  # a closed terminal sends it twice
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        wake()  # after a signal Python goes on waiting for clients

    for number in heard:
        signal.signal(number, stop)
    return signals


def print_banner(app: App, urls: list[str]) -> None:
    """Print the event, the URLs and two commands to try."""
    database = app.box_office.database()
    event = database.document(None).event
    if app.settings.unchecked:
        warning = (
            "NO CHECK: the last save wins, and sales get lost. The server pauses "
            f"{app.settings.think_s:g} s before each save. It keeps nothing when it "
            "stops."
        )
        click.secho(warning, fg="red", bold=True)
    elif first_is_admin(app.settings) and not database.accounts.members:
        click.echo("The first account registered from this machine will be an admin.")
    elif not (app.settings.loopback or app.settings.require_login):
        click.echo(
            "Anyone who can connect can do everything. With --require-login, changes "
            "need a token."
        )
    click.echo(
        f"{event.name}: {event.available_seats} of {event.total_seats} seats free, "
        f"stored in {app.store.path}\n"
        f"Serving at {' and '.join(urls)} (press Ctrl-C to stop)\n\n"
        f"  curl {urls[0]}/event\n"
        f'  curl -d \'{{"partnerId":"abc-corp","seats":3}}\' {urls[0]}/reservations\n'
    )
    if app.settings.host in {"0.0.0.0", "::", "*"}:  # noqa: S104 -- compared, not bound
        click.echo(f"Write on the board:  {urls[0]}/?name=anna\n")


def command_option(name: str, help_text: str = "") -> Callable[[Any], Any]:
    """An option of the group that is also accepted after a command's name."""
    of_group = next(option for option in main.params if option.name == name)
    help_text = help_text or str(cast("click.Option", of_group).help)
    return click.option(
        f"--{name}",
        type=of_group.type,
        show_default=False,
        help=f"{help_text} Also accepted before the command.",
        default=lambda: click.get_current_context().find_root().params[name],
    )


@main.command()
@command_option("db")
@click.option(
    "--repair",
    is_flag=True,
    help="Give free seats to the waiting orders that could have had them.",
)
def audit(db: str, *, repair: bool) -> None:
    """Check that the database adds up.

    It checks sums, versions, statuses and waiting lists.
    """
    with exit_with_message(db):
        store = open_store(db)
        database = store.load().database
        if repair and any(d.repair() is not d for d in database.events()):
            store.open(DEFAULTS.seats, may_seed=False)
            BoxOffice(store, DEFAULTS).repair()
            before, database = database, store.load().database
            for text in served_by_repair(before, database):
                click.echo(text)
    sys.exit(print_audit(database))


def print_audit(database: Database) -> int:
    """Print a line for each event, and its faults; return 1 for faults, else 0."""
    problem_count = 0
    for document in database.events():
        event = document.event
        statuses = Counter(r.status for r in document.reservations.values())
        counts = ", ".join(
            f"{statuses[status]} {status}" for status in get_args(Status)
        )
        click.echo(
            f"event {event.event_id}: version {event.version}; "
            f"{event.total_seats - event.available_seats} seats confirmed + "
            f"{event.available_seats} available = {event.total_seats}; {counts}"
        )
        for problem in audit_problems(document):
            click.echo(f"  FAULT: {problem}")
            problem_count += 1
    for problem in shared_booking_numbers(database):
        click.echo(f"FAULT: {problem}")
        problem_count += 1
    click.echo(f"{problem_count} faults." if problem_count else "Everything adds up.")
    return 1 if problem_count else 0


def audit_problems(document: Document) -> Iterator[str]:
    """Yield a sentence for each thing that no history of sales can produce."""
    versions: Counter[int | None] = Counter()
    active: dict[object, list[str]] = {}  # the ids of the tickets of each user
    for reservation in document.reservations.values():
        versions[reservation.event_version_at_reservation] += 1
        versions[reservation.event_version_at_cancel] += 1
        yield from cancel_problems(reservation)
        origin = reservation.origin
        if origin.user and reservation.status != "cancelled":
            user = origin.account or normalize_text(origin.user)
            active.setdefault(user, []).append(reservation.reservation_id)
    for version, count in versions.items():
        if version is not None and count > 1:
            yield f"version {version} belongs to {count} changes"
    for ids in active.values():
        if len(ids) > 1:
            yield f"one user has more than one ticket: {', '.join(ids)}"
    for waiting in document.waiting.values():
        if waiting.seats > document.event.total_seats:
            yield (
                f"{waiting.reservation_id} waits for {waiting.seats} seats, more than "
                "the event has"
            )
    if document.repair() is not document:
        yield (
            f"{next(iter(document.waiting))}, the head of the waiting list, could have "
            "the free seats; run `audit --repair` to hand them out"
        )


def cancel_problems(reservation: Reservation) -> Iterator[str]:
    """Yield a sentence for each wrong fact about a cancel."""
    name = reservation.reservation_id
    version = reservation.event_version_at_cancel
    if reservation.status != "cancelled":
        if reservation.cancelled_at is not None or version is not None:
            yield f"{name} is {reservation.status}, but has the time of a cancel"
        return
    if reservation.cancelled_at is None:
        yield f"{name} is cancelled, but has no time of the cancel"
    if version is None:
        yield f"{name} is cancelled, but has no version of the cancel"
    elif version <= (reservation.event_version_at_reservation or 0):
        yield f"{name} was cancelled before it was made"


def shared_booking_numbers(database: Database) -> Iterator[str]:
    """Yield a sentence for each number that several bookings share, in any events."""
    ids: defaultdict[int, list[str]] = defaultdict(list)
    for document in database.events():
        for reservation in document.reservations.values():
            if reservation.origin.booking:
                ids[reservation.origin.booking].append(reservation.reservation_id)
    for of_number in ids.values():
        if len(of_number) > 1:  # the number is a secret, so it is not shown
            yield f"several bookings have the same number: {', '.join(of_number)}"


def served_by_repair(before: Database, after: Database) -> Iterator[str]:
    """Yield a line for each reservation that waited before and has seats now."""
    for key, document in before.documents.items():
        now = after.documents[key].reservations
        for reservation_id in document.waiting:
            if reservation_id in now and now[reservation_id].status == "confirmed":
                yield f"event {key}: {reservation_id} has its seats now"


@main.command()
@command_option("db")
@command_option("seats", "Seats of the fresh event.")
@click.confirmation_option(prompt="Set everything aside and seed a fresh event?")
def reset(db: str, seats: int) -> None:
    """Seed a fresh event. The old content is kept in a file."""
    with exit_with_message(db):
        store = open_store(db)
        kept = ""
        if not store.create(seed(seats)):
            kept = f"{store.path}.{timestamp().replace(':', '-')}.old"
            kept = store.reset(seats, kept)
    click.echo(f"Created {store.path} with {seats} seats.")
    if kept:
        click.echo(f"The old file is {kept}.")


@main.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy(source: str, target: str) -> None:
    """Copy everything between a db.json and a database, either way.

    FROM stays as it is. TO must be new, because copy never overwrites anything.
    """
    with exit_with_message(source):
        store = open_store(source, COPY_TIMEOUT_S)
        store.load()  # if there is nothing, fail before a lock file is made
        store.open(DEFAULTS.seats, may_seed=False)
        with store.lock():
            database = store.load().database
            with exit_with_message(target):
                copied = open_store(target, COPY_TIMEOUT_S)
                if not copied.create(database):
                    raise AlreadyExists(
                        "It already exists, so nothing was written. Name a new file "
                        "or an empty database."
                    )
                arrived = copied.load().database
    records = sum(len(d.reservations) for d in database.documents.values())
    click.echo(
        f"Copied {len(database.events())} events, {records} reservations and "
        f"{len(database.accounts.members)} accounts from {store.path} to {copied.path}."
    )
    click.echo(
        f"{store.path} is unchanged. Stop the servers that use it, because both can "
        "sell now."
    )
    if arrived != database:
        raise click.ClickException(
            "The copy differs from the original, because another program has already "
            "changed it. Stop that program, then copy again to a new place."
        )
    sys.exit(print_audit(arrived))


@main.command()
@click.argument("address", metavar="EMAIL")
@command_option("db")
@command_option("seats")
def admin(address: str, db: str, seats: int) -> None:
    """Make EMAIL an admin. If it already has an account, you are asked first."""
    if not is_email(address):
        raise click.UsageError("EMAIL must be an e-mail address")
    with exit_with_message(db):
        store = open_store(db)
        store.open(seats)
        box_office = BoxOffice(store, DEFAULTS)
        accounts = box_office.database().accounts
        existing = find_account(accounts, "email", address)
        if existing is None:
            password_hash = prompt_for_password("Password, 8 characters or more")
            address = normalize_text(address)
            account = Account(0, address, address, password_hash, "admin")
            box_office.register(account, first_is_admin=True)
        else:
            confirm_promotion(existing)
            text = "New password (leave it empty to keep the old one)"
            box_office.promote(existing, prompt_for_password(text, default=""))
    click.echo(f"{address} is an admin in {store.path}.")


def confirm_promotion(account: Account) -> None:
    """Show the account, and end the command unless the user confirms it.

    Anyone may have registered with this e-mail, because it was never verified.
    """
    click.echo(
        f"{account.email} already has an account: {account.username}, "
        f"since {account.created_at or 'an unknown time'}."
    )
    click.confirm("Make this account an admin?", abort=True)


def prompt_for_password(text: str, default: str | None = None) -> str:
    """The hash of a new password, typed twice; empty if the default was taken."""
    while True:
        password = click.prompt(text, default, hide_input=True, show_default=False)
        if password == default:
            return ""
        if not is_valid_password(password):
            click.echo("Use 8 characters or more, and at most 1024 bytes.")
        elif click.prompt("Repeat it", hide_input=True) != password:
            click.echo("The two passwords are not the same.")
        else:
            return hash_password(password)


@main.command()
@click.option(
    "--clients", default=16, type=click.IntRange(1, 64), help="Number of buyers."
)
@click.option(
    "--seats",
    default=100,
    type=click.IntRange(1, 10**4),
    help="Number of seats, spread over the events.",
)
@click.option(
    "--requests",
    default=200,
    type=click.IntRange(1, 10**5),
    help="Number of orders, spread over the buyers.",
)
@click.option(
    "--think",
    type=duration,
    help="Pause between reading and saving, such as 5ms. Without --think and "
    "--events, three cases are raced.",
)
@click.option(
    "--events",
    type=click.IntRange(1, 64),
    help="Number of events to spread the orders over.",
)
@click.option(
    "--strategy",
    "only",
    multiple=True,
    type=click.Choice([*STRATEGIES]),
    help="Race only this strategy. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option(
    "--predict", is_flag=True, help="Ask for a guess first, and compare it at the end."
)
def race(
    *,
    think: float | None,
    events: int | None,
    only: tuple[str, ...],
    as_json: bool,
    predict: bool,
    **numbers: int,
) -> None:
    """Race buyers for the seats of a throwaway file.

    They race without a check, with a lock, and optimistic.
    """
    say_what_is_raced()
    sizes = RaceSizes(**numbers)
    cases = race_cases(think, events, only)
    if sizes.seats < max(case.events for case in cases):
        raise click.UsageError(
            "--seats must give each event at least one seat. One of the races has 8 "
            "events; --events 1 leaves it out."
        )
    guesses = ask_for_guesses() if predict else None
    announce_race(sizes, cases)
    rounds: Rounds = {}
    try:
        run_rounds(sizes, cases, rounds)
    except KeyboardInterrupt:
        click.echo(err=True)
        print_race(sizes, rounds, as_json=as_json)
        raise click.Abort from None
    except OSError as error:
        click.echo(err=True)
        raise click.ClickException(
            f"The race cannot run here: {error}. It needs a writable /dev/shm and a "
            "writable temporary folder (TMPDIR)."
        ) from None
    print_race(sizes, rounds, as_json=as_json)
    if guesses and not as_json:
        click.echo(verdict(guesses, rounds))
    sys.exit(any(shown_result(each).breaks_its_promise() for each in rounds.values()))


def race_cases(
    think_s: float | None, events: int | None, only: tuple[str, ...]
) -> list[Case]:
    """The cases to race, in the order of the table."""
    if think_s is None and events is None:
        safe = ("lock", "optimistic")
        plans = [(1, 0.005, (*STRATEGIES,)), (8, 0.005, safe), (1, 0.0, safe)]
    else:
        plans = [(events or 1, 0.005 if think_s is None else think_s, (*STRATEGIES,))]
    return [
        Case(strategy, count, pause_s)
        for count, pause_s, strategies in plans
        for strategy in strategies
        if not only or strategy in only
    ]


def say_what_is_raced() -> None:
    """If a database was named, say that the race does not use it."""
    db = click.get_current_context().find_root().params["db"]
    if "://" in db:
        click.echo(
            f"The race uses a throwaway file, not {shown_location(db)}.", err=True
        )


def announce_race(sizes: RaceSizes, cases: list[Case]) -> None:
    """Say about how long the race will take."""
    seconds = estimated_s(sizes, cases)
    duration_text = f"{seconds:.0f} seconds"
    if seconds > 120:
        duration_text = f"{seconds / 60:.0f} minutes"
    races = "race" if len(cases) == 1 else "races"
    click.echo(
        f"{len(cases)} {races} of {ROUNDS} rounds: about {duration_text}. Ctrl-C shows "
        "the results so far.",
        err=True,
    )


def print_race(sizes: RaceSizes, rounds: Rounds, *, as_json: bool) -> None:
    """Print the table, the interleaving and the conclusions; or the rows as JSON."""
    results = [shown_result(each) for each in rounds.values()]
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(results), indent=2))
        return
    if not results:
        return
    played = itertools.chain.from_iterable(rounds.values())
    example = next((one.example for one in played if one.example), [])
    head = (
        f"{sizes.clients} buyers, {sizes.requests} orders, {sizes.seats} seats, "
        f"thinking {results[0].think_ms} ms. Medians of {ROUNDS} rounds."
    )
    lines = [head, *table(rounds), "", *example, *conclusions(rounds)]
    may_colour = False if "NO_COLOR" in os.environ else None  # None: in a terminal
    click.echo("\n".join(lines), color=may_colour)


def ask_for_guesses() -> tuple[str, str]:
    """The class's guesses: which strategy loses sales, and which is fastest."""
    for strategy, explanation in STRATEGIES.items():
        click.echo(f"  {strategy:11} {explanation}", err=True)
    choice = click.Choice([*STRATEGIES])
    loses = click.prompt("Which loses sales?", type=choice, err=True)
    wins = click.prompt("Which of the others is fastest?", type=choice, err=True)
    return loses, wins


def verdict(guesses: tuple[str, str], rounds: Rounds) -> str:
    """The guesses beside the results; the first cases decide which is fastest."""
    loses, wins = guesses
    losers = [case.strategy for case in rounds if shown_result(rounds[case]).lost]
    first = "right" if loses in losers else f"it was {', '.join(losers) or 'nothing'}"
    safe = [rounds[case] for case in rounds if case.strategy != "none"][:2]
    winner = comparison(*safe)[0] if len(safe) == 2 else ""
    second = "right" if wins == winner else f"it was {winner or 'too close to call'}"
    return f"You guessed: {loses} loses sales ({first}), {wins} is fastest ({second})."


if __name__ == "__main__":
    main()
