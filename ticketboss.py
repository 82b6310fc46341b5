#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["click>=8.1", "filelock>=4", "flask>=3.1", "limits>=4",
#   "msgspec>=0.20", "pyjwt>=2.10", "waitress>=3"]
# ///
"""TicketBoss sells the seats of an event over HTTP, and never sells one twice.

Run it:   python ticketboss.py
Try it:   curl -d '{"partnerId":"abc-corp","seats":3}' localhost:3000/reservations

Everything is kept in one readable file, db.json, and any number of threads and
processes may sell from it at once, because of one idea, optimistic concurrency:

    read the event; decide what it should become; swap it in only if
    nobody swapped first; otherwise, again.

Section 4 is that idea; what it stands on is above it, what it is for below.
1 Settings, 2 Tickets, 3 Store, 4 Transactions, 5 Accounts, 6 HTTP, 7 Partner API,
8 Booking API, 9 /api/v1, 10 Page, 11 Race, 12 Main.

Known limits: one machine, with POSIX file locks (no network drives); each change
writes the whole file; and without --require-login it trusts whoever can reach it.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import ipaddress
import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import secrets
import signal
import stat
import sys
import tempfile
import threading
import time
import unicodedata
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NamedTuple, cast, get_args
from urllib.parse import quote, urlencode, urlsplit

import click
import jwt
import limits
import msgspec
import waitress.channel
import waitress.server
import waitress.task
from filelock import FileLock, Timeout
from flask import Blueprint, Flask, Response, abort, current_app, g, request
from msgspec import Meta, Struct
from msgspec.structs import replace
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.routing import BaseConverter
from werkzeug.security import check_password_hash, generate_password_hash

# === 1. Settings =============================================================
# What one server is told. Each field with a help text, and bounds, is an option of the
# command line, and a TICKETBOSS_... variable. Nothing below reads either.


class Settings(Struct, frozen=True, kw_only=True):
    """One server's configuration, whichever way it was given."""

    host: Annotated[str, "The address to listen at."] = "127.0.0.1"
    port: Annotated[int, "0 takes a free one.", 0, 65535] = 3000
    db: Annotated[str, "The file that everything is kept in."] = "db.json"
    seats: Annotated[int, "Seats of the first event, if there is none.", 1, 10**6] = 500
    think_s: Annotated[float, "Wait between read and swap: 200ms."] = 0.0
    require_login: Annotated[bool, "Every change needs a token."] = False
    rate_limit: Annotated[str, 'Per client, as "100 per 15 minutes".'] = ""
    rate_storage: Annotated[str, "Where workers count together."] = "memory://"
    trust_proxy: Annotated[bool, "Believe X-Forwarded-For and kin."] = False
    trusted_hosts: Annotated[tuple[str, ...], "Another name to answer to."] = ()
    quiet: Annotated[bool, "No line for each request."] = False
    patience_s: float = 2.0  # that a change waits for its turn, or for the lock
    jwt_secret: bytes = b""  # none: one made once, and kept in the file
    by_hand: bool = False  # `python ticketboss.py`, not a worker of some other server
    loopback: bool = False  # by hand, and for this machine alone


# === 2. Tickets ==============================================================
# The rules about seats: frozen values, and pure functions from value to value, since a
# change may have to be decided again. Ids and times are arguments. Knows no file, no
# clock, no randomness, no HTTP.

Status = Literal["confirmed", "waitlisted", "cancelled"]
Wait = Literal["never", "when short", "when sold out"]  # when an order may queue
Count = Annotated[int, Meta(ge=0)]


class Value(
    Struct,
    frozen=True,
    rename="camel",
    omit_defaults=True,
    gc=False,
    forbid_unknown_fields=True,
):
    """How all values look in db.json; a field unknown here is refused, not dropped."""


class Event(Value, frozen=True):
    """An event, and how many of its seats are free."""

    event_id: int | str  # 1 and "1" are the same event
    name: str
    total_seats: Count
    available_seats: Count  # kept for whoever reads the file; `faults` proves it
    version: Count  # how many times the event has changed
    price: Count = 0  # of a seat, in minor units (cents)
    date: str | None = None
    created_by: int | None = None
    created_at: str | None = None
    deleted: bool = False  # kept as a stub: made anew, it goes on counting versions


class Origin(Value, frozen=True):
    """Who a reservation is for and which request made it; never shown to others."""

    request: str = ""  # digest of the body that came with an Idempotency-Key
    user: str = ""  # "id:..." or "email:...", where one user has one ticket
    account: int = 0  # the account whose token made it
    booking: int = 0  # its number in /api/v1; random, as whoever knows it may cancel
    first_name: str = ""
    last_name: str = ""
    email: str = ""


NOBODY: Final = Origin()  # msgspec leaves out of the file what is this very object


class Reservation(Value, frozen=True):
    """Seats promised to one holder, or waited for; kept after it is cancelled."""

    reservation_id: str
    partner_id: str
    seats: Annotated[int, Meta(ge=1)]  # what is held, or was when it was cancelled
    status: Status
    ts: str | None = None  # RFC 3339, UTC
    event_version_at_reservation: Count | None = None  # no other change has this one
    cancelled_at: str | None = None
    event_version_at_cancel: Count | None = None
    seats_returned: Count = 0
    position: Count = 0  # when it joined the waiting list; in answers, its place now
    origin: Origin = NOBODY


class Document(Value, frozen=True):
    """An event with its reservations: what one version counts the changes of."""

    event: Event
    reservations: dict[str, Reservation]


class TicketBossError(Exception):
    """Anything TicketBoss refuses. The text says why, and what to do about it."""

    attempts = 1  # how many times it had to be decided


class NotEnoughSeats(TicketBossError):
    """Fewer seats are on sale than were asked for."""


class NotFound(TicketBossError):
    """There is no such event, or no such reservation that is not cancelled."""


class Taken(TicketBossError):
    """There is one already, and there can be only one."""


class WrongNumber(TicketBossError):
    """More seats are to be given back than are held."""


class KeyReused(TicketBossError):
    """An Idempotency-Key came back with another order under it."""


class Stale(TicketBossError):
    """The caller's own condition failed: the event is at none of their versions."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"The event has changed: it is at version {version}. Read it again; "
            f'if you still want this, resend it with If-Match: "{version}".'
        )
        self.version = version


def waiting(document: Document) -> list[Reservation]:
    """Who waits, head first: by version, the order of arrival no clock can upset."""
    queue = [r for r in document.reservations.values() if r.status == "waitlisted"]
    return sorted(queue, key=lambda r: r.event_version_at_reservation or 0)


def reserve(document: Document, wish: Reservation, wait: Wait = "never") -> Document:
    """Sell `wish`, or let it join the end of the waiting list; one change.

    While somebody waits, nothing is on sale to a newcomer: what is free then is too
    little for the head of the list, and kept for it. Raises NotEnoughSeats where `wait`
    does not let the wish queue, and for more seats than the event has: at the head of
    the list it would block it for ever.
    """
    if queue := waiting(document):
        document = promote(document)
        queue = waiting(document)
    event = document.event
    left = 0 if queue else event.available_seats
    wish = replace(wish, event_version_at_reservation=event.version + 1)
    if wish.seats <= left:
        return _changed(document, replace(wish, status="confirmed"), -wish.seats)
    may_wait = wait == "when short" or (wait == "when sold out" and left == 0)
    if not may_wait or wish.seats > event.total_seats:
        raise NotEnoughSeats("Not enough seats left")
    wish = replace(wish, status="waitlisted", position=len(queue) + 1)
    return _changed(document, wish, 0)


def book(document: Document, wish: Reservation, names: frozenset[str]) -> Document:
    """Sell one ticket to a user who has none, or let them wait.

    The very document, if they wait already. Raises Taken.
    """
    held = booking_of(document, names)
    if held is None:
        return reserve(document, wish, "when sold out")
    if held.status == "confirmed":
        raise Taken("You already booked this event")
    return document


def booking_of(document: Document, names: frozenset[str]) -> Reservation | None:
    """Find what a user, by any of their names, has booked or waits for."""
    return next(
        (
            r
            for r in document.reservations.values()
            if r.origin.user in names and r.status != "cancelled"
        ),
        None,
    )


def cancel(
    document: Document, reservation_id: str, at: str, seats: int | None = None
) -> Document:
    """Give back `seats` of a reservation, or all; whoever waits gets them; one change.

    Raises NotFound, and WrongNumber for more seats than it has.
    """
    record = document.reservations.get(reservation_id)
    if record is None or record.status == "cancelled":
        raise NotFound("Reservation not found or already cancelled")
    back = record.seats if seats is None else seats
    if not 1 <= back <= record.seats:
        raise WrongNumber(f"seats must be between 1 and {record.seats}, what is held")
    if back < record.seats:
        after = replace(
            record,
            seats=record.seats - back,
            seats_returned=record.seats_returned + back,
        )
    else:
        after = replace(
            record,
            status="cancelled",
            cancelled_at=at,
            event_version_at_cancel=document.event.version + 1,
        )
    freed = back if record.status == "confirmed" else 0
    return promote(_changed(document, after, freed))


def promote(document: Document) -> Document:
    """Give free seats to the head of the waiting list, as far as they go.

    Strictly first in, first out: stops at the first that does not fit, so a small
    order never overtakes a large one. Counts no version: it is part of the change
    that freed the seats. The very document, if there is nobody to serve.
    """
    left, served = document.event.available_seats, {}
    for head in waiting(document):
        if head.seats > left:
            break
        left -= head.seats
        served[head.reservation_id] = replace(head, status="confirmed")
    event = replace(document.event, available_seats=left)
    return Document(event, document.reservations | served) if served else document


def _changed(document: Document, record: Reservation, free: int) -> Document:
    """Store `record`, add `free` to the free seats, count one version."""
    event = document.event
    event = replace(
        event, version=event.version + 1, available_seats=event.available_seats + free
    )
    return Document(event, document.reservations | {record.reservation_id: record})


def create(there: Document | None, event: Event) -> Document:
    """Open an event. Raises Taken; an id that was deleted goes on counting versions."""
    if there is not None and not there.event.deleted:
        raise Taken(f"Event {event.event_id} exists already")
    return Document(replace(event, version=there.event.version + 1 if there else 0), {})


def remove(document: Document) -> Document:
    """Close an event: nobody finds it any more, and its bookings are gone."""
    e = document.event
    return Document(
        replace(e, deleted=True, version=e.version + 1, available_seats=e.total_seats),
        {},
    )


def replayed(document: Document, wish: Reservation) -> bool:
    """Whether this very wish was granted before, under the same Idempotency-Key.

    The key makes the reservation's id, so a retry finds its own reservation in the
    document it is about to change. Raises KeyReused if it asked for something else.
    """
    known = document.reservations.get(wish.reservation_id)
    if known is not None and known.origin.request != wish.origin.request:
        raise KeyReused(
            "This Idempotency-Key was used for another order. Send a new "
            "key with a new order, or the first body with this key."
        )
    return known is not None


def expect(document: Document, versions: frozenset[str] | None) -> None:
    """Hold callers to the versions they named: raise Stale if the event moved on."""
    if versions is not None and str(document.event.version) not in versions:
        raise Stale(document.event.version)


def faults(document: Document) -> Iterator[str]:
    """Say what does not add up, with both numbers; nothing when all is well."""
    event, records = document.event, document.reservations
    held = sum([r.seats for r in records.values() if r.status == "confirmed"])
    if held + event.available_seats != event.total_seats:
        yield (
            f"{held} seats confirmed and {event.available_seats} available do not "
            f"make {event.total_seats} in total"
        )
    version = event.version
    for key, r in records.items():
        if key != r.reservation_id:
            yield f"reservation {r.reservation_id} stands under the key {key}"
        if (r.event_version_at_reservation or 0) > version or (
            r.event_version_at_cancel or 0
        ) > version:
            yield f"reservation {key} has a version beyond {version}, the event's"


# === 3. Store ================================================================
# db.json, replaced whole. Readers take no lock: os.replace() means that they see the
# old file or the new one, never half of each. Knows files, locks and versions; knows
# nothing of who may buy what, nor of HTTP. Comments say what breaks without a step.

POLL_S: Final = 0.002  # filelock polls; at its own 0.05 s a neighbour starves
log: Final = logging.getLogger("ticketboss")


class Database(Struct, frozen=True):
    """All that is in db.json."""

    seeded: str  # the id of the event that a first start makes
    documents: dict[str, Document]  # by the event's id as text; deleted ones too
    accounts: Accounts

    def document(self, event_id: str | None) -> Document:
        """Find an event, the seeded one by None. Raises NotFound."""
        found = self.documents.get(event_id or self.seeded)
        if found is None or found.event.deleted:
            raise NotFound("Event not found")
        return found

    def events(self) -> list[Document]:
        """All events there are, the seeded one first."""
        return [d for d in self.documents.values() if not d.event.deleted]

    def having(self, document: Document) -> Database:
        """This database with that document; the very same, if it had it already."""
        key = str(document.event.event_id)
        if self.documents.get(key) is document:
            return self
        return replace(self, documents=self.documents | {key: document})


class _File(Value, frozen=True):
    """The layout of db.json: the seeded event on top, what came later below it."""

    event: Event
    reservations: dict[str, Reservation]
    events: dict[str, Document] = {}
    accounts: Accounts | None = None


class Unavailable(TicketBossError):
    """db.json, its disk or its lock cannot be used. Certainly nothing was changed."""


class InDoubt(TicketBossError):
    """Written and visible, but the disk did not say that it would survive a crash."""


class Contended(TicketBossError):
    """No turn could be had in time. Certainly nothing was changed."""


class Snapshot:
    """A database as read, and its file, kept open for as long as anyone holds this.

    An open file's inode belongs to nobody else, so a path with the same inode, time
    and size leads to the same file. (Not kept open, 300 versions in a row shared two
    inodes on ext4: an old reading may look fresh.)
    """

    def __init__(self, path: str, database: Database | None = None) -> None:
        # Non-blocking, as a FIFO would hang us.
        self._pin = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(self._pin)  # first: an edit while we read makes it differ
        if not stat.S_ISREG(status.st_mode):
            raise Unavailable("db.json is not a regular file")
        self.file = _identity(status)
        if database is None:
            with open(self._pin, "rb", closefd=False) as file:
                database = _decode(file.read())
        self.database = database

    def __del__(self) -> None:
        """Let the file go. Freeing its blocks may take as long as a commit."""
        with suppress(OSError, AttributeError):  # it may not have been opened
            os.close(self._pin)


class Store:
    """One db.json: `load` it, `swap` a change in, `hold` everybody else off."""

    def __init__(self, path: str, patience_s: float = 2.0) -> None:
        # A symbolic link stays one: its target is what is replaced, and locked.
        self.path = os.path.realpath(path)
        self._folder, name = os.path.split(self.path)
        self._hidden = f"{self._folder}/.{name}"  # so begin lock and drafts
        self._patience_s = patience_s
        self._mutex = threading.RLock()
        self._locks: dict[int, FileLock] = {}  # one a process, by its id
        self._locked = -1  # the descriptor of the lock file that we hold
        self._crowded_until = 0.0
        self._written: tuple[int, ...] = ()  # the identity of the file that we wrote
        self._snapshot: Snapshot | None = None
        self.trouble = ""  # why nobody knows whether the last write would survive

    def start(self, seats: int, *, anew: bool = True) -> None:
        """Make the file where there is none, clear away what killed writers left.

        Not `anew`: where a byte in the lock file shows that there was one, its loss is
        refused, as a worker started again must not offer sold seats once more.
        Raises Unavailable if the file is missing or not whole; it is never replaced.
        """
        with self.hold() as folder, _explained("The folder cannot be used"):
            lock, name = f"{self._hidden}.lock", os.path.basename(self._hidden)
            for other in os.listdir(self._folder):  # drafts have no writer meanwhile
                if re.fullmatch(re.escape(name) + r"\.\w{16}\.tmp", other):
                    os.unlink(f"{self._folder}/{other}")
            if (anew or not os.stat(lock).st_size) and not os.path.lexists(self.path):
                with self._draft(seed(seats)) as (draft, _):
                    os.link(draft, self.path)  # complete, and never over another file
                    os.unlink(draft)
                self._settle(folder)
            self.load()
            os.truncate(lock, 1)

    def reset(self, seats: int, kept: str) -> bool:
        """Seed anew; what was there, if anything (True), is called `kept` now."""
        with self.hold() as folder:
            with self._draft(seed(seats)) as (draft, _):
                if there := os.path.lexists(self.path):
                    os.link(self.path, kept)
                os.replace(draft, self.path)
            self._settle(folder)
            return there

    def load(self) -> Snapshot:
        """Read what the file holds now, without a lock; parse it only if it is new.

        Raises Unavailable, with the place in the file where it does not fit.
        """
        with _explained("db.json cannot be read"):
            snapshot = self._snapshot
            if snapshot is None or snapshot.file != _identity(os.stat(self.path)):
                snapshot = self._snapshot = Snapshot(self.path)
            return snapshot

    def swap(self, seen: Snapshot, wanted: Database) -> bool:
        """Put `wanted` in the place of `seen`, unless somebody changed it meanwhile.

        Compare-and-swap, document by document: what others did to other events is
        kept. True: it is on the disk (so is `seen`, if nothing is to be changed).
        False: somebody was first, read again. Raises Contended or Unavailable, with
        nothing changed; InDoubt if only the last step failed.
        """
        with self.hold() as folder:
            now = self.load()
            if self._written not in ((), now.file):  # another process sells, too
                self._crowded_until = time.monotonic() + 1.0
            merged = _merged(seen.database, wanted, now.database)
            if merged is None:
                return False
            if merged is not now.database or self.trouble:
                with self._draft(merged, now) as (draft, snapshot):
                    if not self._undisturbed(now):
                        os.unlink(draft)
                        return False
                    os.replace(draft, self.path)  # the commit point
                self._snapshot, self._written = snapshot, snapshot.file
            self._settle(folder)
            return True

    @contextmanager
    def hold(self) -> Iterator[int]:
        """Keep every other writer, thread or process, away from the file meanwhile.

        Gives the folder, open. The thread that has it may take it again. Raises
        Contended or Unavailable.
        """
        deadline = time.monotonic() + self._patience_s
        # A mutex first: filelock polls, so one process should be one contender.
        if not self._mutex.acquire(timeout=self._patience_s):
            raise Contended("The lock could not be had in time")
        try:
            lock = self._lock()
            if not lock.is_locked and time.monotonic() < self._crowded_until:
                # Without a pause longer than the other process's polling, whoever had
                # the lock last would have it next, again and again.
                time.sleep(random.uniform(1.2, 2.2) * POLL_S)
            with self._open_folder() as folder:
                with _explained("The lock failed"):
                    lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
                try:
                    yield folder
                finally:
                    # What was done is done. But a lock that is kept would shut out
                    # everybody else for good, so a second time, if need be.
                    for _ in range(2):
                        with suppress(OSError):
                            lock.release()
                            break
        finally:
            self._mutex.release()

    @contextmanager
    def _open_folder(self) -> Iterator[int]:
        with _explained(f"The folder {self._folder} cannot be used"):
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield folder
        finally:
            with suppress(OSError):
                os.close(folder)

    def _lock(self) -> FileLock:
        # One a process: inherited over a fork, it guards nothing. A file of its own:
        # db.json is replaced on every write, and a lock on a replaced file guards
        # nothing. Never removed, or two waiters could each hold "the" lock on different
        # inodes. Each thread's own, by default: shared, it lets all of them in.
        if os.getpid() not in self._locks:
            self._locks[os.getpid()] = FileLock(
                f"{self._hidden}.lock",
                mode=0o600,
                poll_interval=POLL_S,
                fallback_to_soft=False,
                on_acquired=lambda descriptor: setattr(self, "_locked", descriptor),
            )
        return self._locks[os.getpid()]

    def _undisturbed(self, now: Snapshot) -> bool:
        """Whether no hand has been at db.json or the lock: else we hold nothing."""
        lock = os.stat(f"{self._hidden}.lock")
        return (
            os.path.samestat(os.fstat(self._locked), lock)
            and _identity(os.stat(self.path)) == now.file
        )

    @contextmanager
    def _draft(
        self, database: Database, old: Snapshot | None = None
    ) -> Iterator[tuple[str, Snapshot]]:
        """All of `database` in a new file on the disk: its name, until it is renamed.

        Raises Unavailable for what goes wrong in here or in the caller's block.
        """
        # Never the same name twice: a draft belongs to one writer. Beside the file,
        # as a rename works within one disk only.
        path = f"{self._hidden}.{secrets.token_hex(8)}.tmp"
        try:
            with _explained("db.json cannot be written"):
                data = memoryview(_encode(database))
                draft = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                try:
                    while data:  # a disk may take less than it is given
                        data = data[os.write(draft, data) :]
                    if old is not None:
                        _liken(draft, os.stat(self.path), database)
                    # Without it, a power cut may leave the new name on an empty file.
                    _sync(draft)
                finally:
                    os.close(draft)
                yield path, Snapshot(path, database)
        except BaseException:
            with suppress(OSError):
                os.unlink(path)
            raise

    def _settle(self, folder: int) -> None:
        """Make the last rename durable: until then a power cut may take it back."""
        try:
            _sync(folder)
        except OSError as error:
            self.trouble = f"The disk did not confirm the last write: {error.strerror}"
            log.critical(self.trouble)
            raise InDoubt(
                "The outcome is not known: it is written, but the disk did "
                "not confirm it. Look before you try again."
            ) from error
        self.trouble = ""


def _merged(seen: Database, wanted: Database, now: Database) -> Database | None:
    """`now`, with what `wanted` changes in `seen`; None if others changed it, too."""
    if wanted is seen:
        return now
    changed = {
        key: document
        for key, document in wanted.documents.items()
        if document is not seen.documents.get(key)
    }
    accounts = None if wanted.accounts is seen.accounts else wanted.accounts
    # Where versions differ this stops at the first field. That it compares the rest too
    # saves an edit by hand that forgot to count the version.
    if (accounts and now.accounts != seen.accounts) or any(
        now.documents.get(key) != seen.documents.get(key) for key in changed
    ):
        return None
    for fault in _faults(changed, accounts):
        raise AssertionError(fault)  # a bug: no sale, then
    return Database(now.seeded, now.documents | changed, accounts or now.accounts)


def seed(seats: int) -> Database:
    """What a first start finds: one event, nobody in it."""
    event = Event("node-meetup-2025", "Node.js Meet-up", seats, seats, 0)
    return Database(
        "node-meetup-2025", {"node-meetup-2025": Document(event, {})}, Accounts()
    )


def _encode(database: Database) -> bytes:
    others = dict(database.documents)
    top = others.pop(database.seeded)
    accounts = database.accounts if database.accounts.version else None
    file = _File(top.event, top.reservations, others, accounts)
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def _decode(data: bytes) -> Database:
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unavailable(f"db.json does not parse, or does not fit: {error}") from None
    top = str(file.event.event_id)
    if top in file.events:
        raise Unavailable(f"db.json has the event {top} twice")
    if file.event.deleted:
        raise Unavailable(f"db.json says that its first event {top} is deleted")
    documents = {top: Document(file.event, file.reservations), **file.events}
    database = Database(top, documents, file.accounts or Accounts())
    for fault in _faults(documents, file.accounts):
        raise Unavailable(f"db.json does not add up: {fault}")
    if _encode(database) != data:  # by hand, then, and a field may come twice
        try:
            ONCE.decode(data.decode())
        except (ValueError, RecursionError) as error:
            raise Unavailable(f"db.json is ambiguous: {error}") from None
    return database


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the field {twice!a:.99} comes twice")
    return found


ONCE: Final = json.JSONDecoder(object_pairs_hook=_once)  # msgspec lets the last win


def _faults(documents: dict[str, Document], accounts: Accounts | None) -> Iterator[str]:
    for key, document in documents.items():
        if key != str(document.event.event_id):
            yield f"event {document.event.event_id} stands under the key {key}"
        yield from (f"event {key}: {fault}" for fault in faults(document))
    if accounts is not None:
        yield from accounts.faults()


def _liken(draft: int, old: os.stat_result, database: Database) -> None:
    """Keep mode and owner; but whoever might read the file must not read hashes."""
    mode = stat.S_IMODE(old.st_mode)
    if mode != 0o600 and not database.accounts.members:
        os.fchmod(draft, mode)
    if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
        with suppress(PermissionError):
            os.fchown(draft, old.st_uid, old.st_gid)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _sync(descriptor: int) -> None:
    if sys.platform == "darwin":  # where fsync stops at the drive's cache
        import fcntl  # noqa: PLC0415 -- for macOS alone

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise Contended("The lock could not be had in time") from None
    except (OSError, MemoryError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise Unavailable(f"{what}: {why}") from error


# === 4. Transactions =========================================================
# The lesson. Read the event, decide what it should become, swap it in only if nobody
# swapped first; otherwise, again. Knows a store's `load`, `swap` and `hold`; no file,
# no HTTP. The idea: Kung and Robinson, 1981. Group commit, which is the same with
# several decisions in one write: DeWitt and others, 1984.

Decision = Callable[[Database], Database]  # pure: asked again, and by any thread
MOST: Final = 256  # decisions in one write
LINGER_S: Final = 0.001  # a write waits for more of a crowd: PostgreSQL's commit_delay
SWITCH_S, USUAL_SWITCH_S = 0.0005, sys.getswitchinterval()  # between Python's threads


class Turn:
    """A decision, and what became of it."""

    def __init__(self, decide: Decision) -> None:
        self.decide = decide
        self.database = cast("Database", None)  # as this decision left it
        self.changed = False  # or was there nothing to do?
        self.attempts = 0  # how many times it had to be decided
        self.refusal: Exception | None = None
        self.done = False
        self.wake = threading.Lock()  # each its own: one for all would wake them all
        self.wake.acquire()


class Transactions:
    """Applies decisions to a store, atomically and durably, in order of arrival."""

    def __init__(self, store: Store, think_s: float = 0, patience_s: float = 2) -> None:
        self._store, self._think_s, self._patience_s = store, think_s, patience_s
        # First optimistic, then sure: whoever loses the race decides again while
        # holding the lock, so two attempts do, and nobody starves. A class that wants
        # to see conflicts gets more of them first.
        self._optimistic = 5 if think_s else 1
        self._mutex = threading.Lock()
        self._queue: deque[Turn] = deque()
        self._led = False  # somebody commits, or is about to
        self._crowd = 0  # how many the last write served

    def transact(self, decide: Decision) -> Turn:
        """Apply `decide` to what is stored; return when the result is on the disk.

        What `decide` refuses is raised here, with nothing written; so are Contended
        and Unavailable: certainly not applied. InDoubt: perhaps.
        """
        turn = Turn(decide)
        if self._think_s:
            self._commit([turn])
        elif self._leads(turn):
            self._lead(turn)
        if turn.refusal is not None:
            if isinstance(turn.refusal, TicketBossError):
                turn.refusal.attempts = turn.attempts
            raise turn.refusal
        return turn

    def _leads(self, turn: Turn) -> bool:
        """Wait in the queue: True when it is on us to commit, False when it is done."""
        with self._mutex:
            if not self._led:
                self._led = True
                return True
            self._queue.append(turn)
        if not turn.wake.acquire(timeout=self._patience_s):
            with self._mutex:
                if turn in self._queue:
                    self._queue.remove(turn)
                    raise Contended("No turn could be had in time")
            turn.wake.acquire()  # it is in a batch: its outcome is on its way
        return not turn.done

    def _lead(self, first: Turn) -> None:
        """Commit for all who wait; pass the lead to the next, and tell the others."""
        if self._crowd > 1:  # so more are on their way
            time.sleep(LINGER_S)
        with self._mutex:
            followers = min(len(self._queue), MOST - 1)
            batch = [first, *(self._queue.popleft() for _ in range(followers))]
        self._crowd = len(batch)
        # A write makes twenty system calls, and waits for Python's own lock after each:
        # at its default of 5 ms, a crowd is sold half as much.
        sys.setswitchinterval(SWITCH_S)
        try:
            replaced = self._commit(batch)
        finally:
            sys.setswitchinterval(USUAL_SWITCH_S)
            with self._mutex:
                heir = self._queue.popleft() if self._queue else None
                self._led = heir is not None
            if heir is not None:
                heir.wake.release()
            for turn in batch:
                turn.done = True
                turn.wake.release()
        del replaced  # the old file's blocks are freed here, when nobody waits for it

    def _commit(self, batch: list[Turn]) -> Snapshot | None:
        """Read, decide, swap; again until nobody was first. Return what was read."""
        deadline = time.monotonic() + self._patience_s
        try:
            for attempt in itertools.count(1):
                sure = attempt > self._optimistic
                with self._store.hold() if sure else nullcontext():
                    seen = self._store.load()
                    wanted = self._decided(batch, seen.database, attempt)
                    if self._think_s and not sure:
                        time.sleep(self._think_s)
                    # Refusals promise nothing; all else must be on the disk first.
                    if all(t.refusal for t in batch) or self._store.swap(seen, wanted):
                        return seen
                if sure and time.monotonic() > deadline:
                    raise Contended("Others were always first")
        except Exception as error:  # noqa: BLE001 -- each of the batch raises it
            for turn in batch:  # refusals too: they may rest on a sale that failed
                turn.refusal = error
        return None

    def _decided(self, batch: list[Turn], database: Database, attempt: int) -> Database:
        for turn in batch:
            turn.refusal, turn.attempts = None, attempt
            try:
                turn.database = turn.decide(database)
            except Exception as error:  # noqa: BLE001 -- raised where it was asked for
                turn.refusal = error
            else:
                turn.changed = turn.database is not database
                database = turn.database
        return database


# === 5. Accounts =============================================================
# Who may log in, and the tokens that say so. Hashes and tokens come from libraries:
# security is not written at home. Knows no HTTP, and not where the key comes from.

TOKEN_S: Final = 3600
HASHING: Final = threading.Semaphore(2)  # a hash takes 32 MB while it is made
DUMMY: Final = "scrypt:32768:8:1$nobodynobody0000$" + "0" * 128


class Account(Value, frozen=True):
    """Somebody who can log in."""

    id: int
    username: str
    email: str
    password: str  # its scrypt hash
    role: Literal["user", "admin"]

    def names(self) -> frozenset[str]:
        """What this user is called in bookings: one and the same for all of these."""
        return frozenset(
            {f"id:{self.id}", f"id:{self.username}", f"email:{folded(self.email)}"}
        )

    def owns(self, record: Reservation) -> bool:
        """Whether a reservation is this account's, by its token or by its names."""
        origin = record.origin
        return (
            self.role == "admin"
            or origin.account == self.id
            or (not origin.account and origin.user in self.names())
        )


class Accounts(Value, frozen=True):
    """All accounts, by id as text; and the key of their tokens."""

    version: int = 0
    secret: str = ""
    members: dict[str, Account] = {}

    def find(self, name: str) -> Account | None:
        """The account of that e-mail, username or id."""
        return next(
            (
                a
                for a in self.members.values()
                if folded(name) in {folded(a.email), folded(a.username), str(a.id)}
            ),
            None,
        )

    def by_email(self, address: str) -> Account | None:
        """The account of that e-mail, and no other whose username looks like it."""
        return next(
            (a for a in self.members.values() if folded(a.email) == folded(address)),
            None,
        )

    def faults(self) -> Iterator[str]:
        """Say what does not add up; nothing when all is well."""
        if self.members and len(self.secret) < 32:
            yield "accounts need a secret of 32 characters (a new one ends all tokens)"
        for key, account in self.members.items():
            if key != str(account.id) or not 0 < account.id <= self.version:
                yield f"account {account.id} stands under another id, or is yet to come"
        named = [
            name
            for account in self.members.values()
            for name in {folded(account.email), folded(account.username)}
        ]
        if len(named) > len(set(named)):
            yield "two accounts have the same e-mail or username"


def folded(name: str) -> str:
    """One form for all ways to write a name."""
    return unicodedata.normalize("NFKC", name).casefold()


def usable(password: str, least: int = 8) -> bool:
    """Whether it is long enough; and not so long that hashing it takes all day."""
    return least <= len(password) <= len(password.encode()) <= 1024


def hashed(password: str) -> str:
    """A scrypt hash, with its salt and cost."""
    with HASHING:
        return generate_password_hash(password)


def proved(account: Account | None, password: str) -> Account | None:
    """The account, if this is its password; as slow for nobody as for somebody."""
    with HASHING, suppress(ValueError):  # of a hash that was damaged by hand
        if check_password_hash(account.password if account else DUMMY, password):
            return account
    return None


def enrolled(database: Database, wish: Account, secret: str) -> Database:
    """The database with an account like `wish`, under an id that was never anybody's.

    Who wishes to be an admin, and has an account, becomes one. `secret` signs tokens
    from now on, if none does yet. Raises Taken.
    """
    accounts = database.accounts
    there = accounts.by_email(wish.email) if wish.role == "admin" else None
    if there is None and (accounts.find(wish.email) or accounts.find(wish.username)):
        raise Taken("This e-mail or username is registered already")
    version = accounts.version + 1
    account = replace(there, role="admin") if there else replace(wish, id=version)
    return replace(
        database,
        accounts=Accounts(
            version,
            accounts.secret or secret,
            accounts.members | {str(account.id): account},
        ),
    )


def token(account: Account, key: str | bytes, at: int) -> str:
    """A JWT that names the account for an hour from `at`, in Unix time."""
    return jwt.encode(
        {
            "sub": str(account.id),
            "role": account.role,
            "iat": at,
            "exp": at + TOKEN_S,
            "jti": secrets.token_hex(8),
        },
        key,
        "HS256",
    )


def bearer(accounts: Accounts, encoded: str, key: str | bytes) -> Account | None:
    """The account that a token names, as it is today; None if the token is not good."""
    try:
        claims = jwt.decode(
            encoded, key, ["HS256"], options={"require": ["sub", "iat", "exp", "jti"]}
        )
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        return None
    made, ends = claims["iat"], claims["exp"]
    if not (type(made) is type(ends) is int and ends - made <= TOKEN_S):
        return None
    return accounts.members.get(claims["sub"])


# === 6. HTTP =================================================================
# What all routes share: JSON bodies, errors, conditions, safe retries. Knows no rule
# about seats. A route is three moves: read, commit, answer.

STATUS: Final[dict[type[TicketBossError], int]] = {
    WrongNumber: 400,
    NotFound: 404,
    NotEnoughSeats: 409,
    Taken: 409,
    Stale: 412,
    KeyReused: 422,
    InDoubt: 500,
    Unavailable: 503,
    Contended: 503,
}
CONTENDED: Final = "Could not {} reservation due to concurrent updates. Please retry."
TEXTS: Final = {
    404: "Not found. GET / lists what to try, README all there is.",
    405: "This method is not allowed here. The Allow header lists those that are.",
    413: "The body is larger than 64 KiB.",
    429: "Too many requests from this IP, please try again later.",
    500: "Something is wrong in TicketBoss. Its log says what.",
}
BOOKING: Final = {"book", "cancel", "events", "initialize", "login", "report", "status"}
LOGINS: Final = {  # open to all, but counted, the two ways to log in together
    "booking.log_in": "login",
    "v1.log_in_by_email": "login",
    "v1.register": "register",
}
ADMINS: Final = {"booking.initialize", "booking.delete_event"}  # if login is required
OPEN: Final = {"partner.health", "partner.welcome"}  # to all, uncounted, unasked
TEN_A_MINUTE: Final = limits.parse("10 per minute")
JSON: Final = "application/json"
PLAIN: Final = r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]{1,200}"
MAIL: Final = r"[^@\s]+@[^@\s]+\.[^@\s]+"
MILLION, SAFE = 10**6, 2**53 - 1  # SAFE: what every reader of JSON gets right
ETAGS: Final = r'\s*(\*|(?:W/)?"[^"]*"(?:\s*,\s*(?:W/)?"[^"]*")*)\s*'


class Office(Flask):
    """The app, with what its routes work with."""

    settings: Settings
    store: Store
    transactions: Transactions
    served: Iterator[int]
    rules: list[limits.RateLimitItem]  # limits on all routes
    counters: limits.strategies.FixedWindowRateLimiter


office: Final = cast("Office", current_app)


def database() -> Database:
    """What is stored now."""
    return office.store.load().database


def stamp(at: datetime | None = None) -> str:
    """A time in UTC, or this very one, as RFC 3339 with milliseconds."""
    at = at or datetime.now(UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read() -> dict[str, Any]:
    """The request's JSON body, whatever its Content-Type says; 400 if it is none."""
    try:
        raw = request.get_data() or b"{}"
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001 -- every server has its own for broken chunks
        abort(400, "The body broke off, or is badly chunked")
    try:
        body = msgspec.json.decode(raw)
        ONCE.decode(raw.decode())
    except (ValueError, RecursionError) as error:
        abort(400, f'The body must be JSON like {{"partnerId":"a","seats":3}}: {error}')
    if not isinstance(body, dict):
        abort(400, 'The body must be a JSON object, like {"seats": 3}')
    return body


def text(body: dict[str, Any], name: str) -> str:
    """A text of the body, trimmed; 400 if there is none, or it is not plain."""
    value = body.get(name)
    if not isinstance(value, str) or not value.strip():
        abort(400, f"{name} (string) is required")
    if not re.fullmatch(PLAIN, value.strip()):
        abort(400, f"{name} must be 1 to 200 characters, none a control character")
    return value.strip()


def whole(body: dict[str, Any], name: str, least: int, most: int) -> int:
    """A whole number of the body, in /api/v1 as a text too; 400 if it is none."""
    value = body.get(name)
    if request.blueprint == "v1" and re.fullmatch("-?[0-9]{1,16}", str(value)):
        value = int(str(value))
    if type(value) is not int:
        abort(400, f"{name} must be an integer")
    if not least <= value <= most:
        abort(400, f"{name} must be between {least} and {most}")
    return value


def identity(body: dict[str, Any], name: str) -> int | str:
    """An id of the body, a number or a text; 400 if it is neither."""
    if type(body.get(name)) is int:
        return whole(body, name, -SAFE, SAFE)
    if not isinstance(body.get(name), str):
        abort(400, f"{name} (number or string) is required")
    return text(body, name)


def email(body: dict[str, Any], name: str) -> str:
    """An e-mail address of the body; 400 if it is none."""
    value = body.get(name)
    if not isinstance(value, str) or not is_email(value.strip()):
        abort(400, "Invalid email format")
    return value.strip()


def is_email(address: str) -> bool:
    """Whether it looks like one. MAIL takes long for a long text, so PLAIN is first."""
    return bool(re.fullmatch(PLAIN, address) and re.fullmatch(MAIL, address))


def password(body: dict[str, Any], least: int) -> str:
    """A password of the body, untrimmed; 400 if it is too short or too long."""
    value = body.get("password")
    if not isinstance(value, str) or not usable(value, least):
        abort(400, f"password (string of {least} characters to 1024 bytes) is required")
    return value


def answer(value: object, status: int = 200, kind: str = JSON) -> Response:
    """JSON, with a line's end for the terminal; or the bytes of another kind."""
    body = value if isinstance(value, bytes) else msgspec.json.encode(value) + b"\n"
    return Response(body, status, content_type=kind)


def versioned(document: Document, render: Callable[[], object]) -> Response:
    """What `render` gives, with the event's version as ETag; or 304."""
    etag = str(document.event.version)
    seen = "HTTP_IF_NONE_MATCH" in request.environ and (
        request.if_none_match.contains_weak(etag)
    )
    g.headers |= {"ETag": f'"{etag}"', "Cache-Control": "no-cache"}
    if office.settings.require_login:
        g.headers["Vary"] = "Authorization"
    return Response(status=304) if seen else answer(render())


def summary(event: Event) -> dict[str, object]:
    """The six facts about an event that partners see."""
    return {
        "eventId": event.event_id,
        "name": event.name,
        "totalSeats": event.total_seats,
        "availableSeats": event.available_seats,
        "reservationCount": event.total_seats - event.available_seats,
        "version": event.version,
    }


def problem(where: str, status: int, words: str) -> dict[str, object]:
    """The body of an error, as the dialect of the path words it."""
    path = where.strip("/").split("/")
    if path[:2] == ["api", "v1"]:
        return {"message": words, "error": True}
    if status == 429 or (path[0] in BOOKING and path[2:3] != ["reservations"]):
        return {"error": words, "message": words}
    return {"error": words}


def refused(error: TicketBossError) -> Response:
    """Answer a refusal of the rules about seats, or of the store."""
    status, words = STATUS[type(error)], str(error)
    if request.method not in {"GET", "HEAD"}:
        g.headers["X-Attempts"] = str(error.attempts)
    if isinstance(error, Stale):
        g.headers["ETag"] = f'"{error.version}"'
    if isinstance(error, Contended):
        status = {"POST": 409, "DELETE": 500}.get(request.method, status)
        words = CONTENDED.format("cancel" if request.method == "DELETE" else "complete")
    if isinstance(error, Unavailable):
        words += ". Nothing was changed."
    if isinstance(error, (Contended, Unavailable, InDoubt)):
        g.headers["Retry-After"] = "1"
    return answer(problem(request.path, status, words), status)


def aborted(error: HTTPException) -> Response:
    """Answer what a route, Flask or a bug broke off."""
    status = error.code or 500
    general = error.description == type(error).description or status in {429, 500}
    if status == 401:
        g.headers["WWW-Authenticate"] = "Bearer"
    g.headers |= dict(error.get_headers()[1:])  # Allow; the first is Content-Type
    words = TEXTS.get(status) if general else error.description
    return answer(problem(request.path, status, words or error.name), status)


def count() -> None:
    """Count the request against its client's limits; 429 when they are used up."""
    endpoint = request.endpoint or ""
    rules = [("", rule) for rule in office.rules if endpoint not in OPEN]
    if endpoint in LOGINS and request.method == "POST":
        rules.append((LOGINS[endpoint], TEN_A_MINUTE))
    for scope, rule in rules:
        client = _client(office.counters.storage)
        allowed = office.counters.hit(rule, scope, client)
        stats = office.counters.get_window_stats(rule, scope, client)
        g.headers |= {
            "X-RateLimit-Limit": str(rule.amount),
            "X-RateLimit-Remaining": str(stats.remaining),
            "X-RateLimit-Reset": str(int(stats.reset_time)),
        }
        if not allowed:
            g.headers["Retry-After"] = str(max(1, int(stats.reset_time - time.time())))
            abort(429)


def _client(storage: object) -> str:
    """Who is counted: an address; of IPv6, all those that one client has."""
    if isinstance(storage, limits.storage.MemoryStorage):
        while len(storage.storage) > 10_000:  # the oldest go: memory stays bounded
            storage.clear(next(iter(storage.storage)))
    address = (request.remote_addr or "").removeprefix("::ffff:")
    with suppress(ValueError):  # not of a proxy that sends no addresses
        if ipaddress.ip_address(address).version == 6:
            return str(ipaddress.ip_network((address, 64), strict=False))
        return address
    return "unknown"


def arrive() -> None:
    """Refuse what no route should see; find out who asks, and on what condition."""
    settings, environ = office.settings, request.environ
    g.headers = {"X-Request-ID": request_id(environ.get("HTTP_X_REQUEST_ID"))}
    g.began, g.condition, g.account = time.perf_counter(), None, None
    count()  # also what is refused at the door
    if not environ.get("QUERY_STRING", "").isascii():
        abort(400, "Send the query percent-encoded, as %C3%A9.")
    host = environ.get("HTTP_HOST", "localhost")
    if settings.loopback and not (
        is_loopback(host)
        or {host.lower(), re.sub(":[0-9]+$", "", host.lower())}
        & {trusted.lower() for trusted in settings.trusted_hosts}
    ):
        abort(421, f"This is not {host!a}. Should it be, start with --trusted-host.")
    authorization = environ.get("HTTP_AUTHORIZATION")
    if authorization is not None and request.endpoint not in OPEN:
        kind, _, encoded = authorization.partition(" ")
        accounts = database().accounts
        if kind.lower() == "bearer" and (key := signing_key(accounts)):
            g.account = bearer(accounts, encoded.strip(), key)
        if g.account is None:
            abort(401, "Unauthorized. Invalid token.")
    if environ["REQUEST_METHOD"] not in {"GET", "HEAD", "OPTIONS"}:
        _admit_change()


def request_id(given: str | None = None) -> str:
    """The client's own, if it is one; else a new one."""
    if given is not None and re.fullmatch("[A-Za-z0-9._-]{1,128}", given):
        return given
    return f"{random.getrandbits(128):032x}"


def _admit_change() -> None:
    environ = request.environ
    origin = environ.get("HTTP_ORIGIN")
    if origin is not None and origin.partition("://")[2] != request.host:
        abort(403, "A page of another site may not change anything here.")
    if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        abort(415, "Send the body as it is, without a Content-Encoding.")
    if (condition := environ.get("HTTP_IF_MATCH")) is not None:
        if not re.fullmatch(ETAGS, condition):
            abort(400, 'If-Match must be "<version>" in double quotes, or *.')
        if condition.strip() != "*":  # which always holds
            g.condition = frozenset(re.findall(r'(?:^|[\s,])"([^"]*)"', condition))
    if office.settings.require_login and request.endpoint not in LOGINS:
        need_login(admin=request.endpoint in ADMINS)


@functools.lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this very machine."""
    with suppress(ValueError):
        bare = (
            host
            if host.count(":") > 1 and "[" not in host
            else (urlsplit(f"//{host}").hostname or "")
        )
        return bare == "localhost" or ipaddress.ip_address(bare).is_loopback
    return False


def need_login(*, admin: bool = False) -> None:
    """Refuse who sent no token (401); or, where it takes an admin, is none (403)."""
    if g.account is None:
        abort(401, "No token provided")
    if admin and g.account.role != "admin":
        abort(403, "Only an admin may do this.")


def guard() -> Callable[[Reservation | None], None]:
    """What holds this caller off reservations made with somebody else's token.

    Where login is required, also off those made without one. Made before the decision,
    which another request's thread may run.
    """
    account, strict = g.account, office.settings.require_login

    def check(record: Reservation | None) -> None:
        if record is None or not (strict or record.origin.account):
            return
        if account is None:
            abort(401, "No token provided")
        if not account.owns(record):
            abort(403, "This reservation belongs to somebody else.")

    return check


def leave(response: Response) -> Response:
    """Finish every answer, and write its line in the log."""
    response.headers.extend(g.headers)
    if not response.content_length:
        response.headers.pop("Content-Type", None)
    next(office.served)
    if log.isEnabledFor(logging.INFO):
        log.info(
            "%s %s %d %.1fms %s x%s",
            request.method,
            ascii(request.path)[1:-1],
            response.status_code,
            (time.perf_counter() - g.began) * 1e3,
            response.headers.get("ETag", "-"),
            g.headers.get("X-Attempts", "-"),
        )
    return response


def wished(
    body: dict[str, Any],
    event_id: str | None,
    caller: str,
    partner_id: str,
    seats: int,
    **origin: Any,
) -> Reservation:
    """What a request asks to buy, not yet decided.

    An Idempotency-Key needs no table: with route, event and caller it makes the
    reservation's id, the same at every retry; a digest tells another `body`.
    """
    key, made = request.headers.get("Idempotency-Key"), uuid.uuid4()
    account = g.account.id if g.account else 0
    if key is not None:
        if not re.fullmatch("[!-~]{1,255}", key):
            abort(400, "Idempotency-Key must be 1 to 255 visible ASCII characters.")
        event_id = event_id or database().seeded
        name = [request.blueprint, event_id, account or caller, key]
        made = uuid.uuid5(uuid.NAMESPACE_URL, msgspec.json.encode(name).decode())
        sent = msgspec.json.encode(body, order="sorted")
        origin["request"] = hashlib.sha256(sent).hexdigest()[:32]
    by = Origin(account=account, **origin) if origin or account else NOBODY
    return Reservation(str(made), partner_id, seats, "waitlisted", stamp(), origin=by)


def commit(
    event_id: str | None,
    change: Callable[[Document], Document],
    wish: Reservation | None = None,
) -> tuple[Document, bool]:
    """Change an event under the caller's If-Match; return it, and whether it changed.

    A `wish` that was granted before is left as it is: a retry gets the first answer.
    """
    condition = g.condition

    def decide(database: Database) -> Database:
        document = database.document(event_id)
        if wish is not None and replayed(document, wish):
            return database
        expect(document, condition)
        return database.having(change(document))

    turn = transact(decide)
    document = turn.database.documents[event_id or turn.database.seeded]
    g.headers["ETag"] = f'"{document.event.version}"'
    return document, turn.changed


def transact(decide: Decision) -> Turn:
    """Apply a decision, and tell the client how many times it had to be decided."""
    turn = office.transactions.transact(decide)
    g.headers["X-Attempts"] = str(turn.attempts)
    return turn


def sell(
    event_id: str | None, wish: Reservation, choose: Callable[[Document], Document]
) -> tuple[Document, Reservation]:
    """Commit a sale, or find that it was made: the event, and the reservation as sold.

    It is as the first answer told it, whatever came of it since; the very `wish` if
    `choose` saw no reason to grant it.
    """
    document, changed = commit(event_id, choose, wish)
    record = document.reservations.get(wish.reservation_id)
    if record is None:
        return document, wish
    if not changed:
        g.headers |= {
            "Idempotent-Replayed": "true",
            "ETag": f'"{record.event_version_at_reservation}"',
        }
    event = "" if event_id is None else f"/events/{quote(event_id, safe='')}"
    g.headers["Location"] = f"{event}/reservations/{record.reservation_id}"
    return document, replace(
        record,
        seats=record.seats + record.seats_returned,
        status="waitlisted" if record.position else "confirmed",
    )


def give_back(event_id: str | None, reservation_id: str, seats: int | None) -> None:
    """Commit a cancel of all seats or some, if the reservation is the caller's."""
    at, check = stamp(), guard()

    def change(document: Document) -> Document:
        check(document.reservations.get(reservation_id))
        return cancel(document, reservation_id, at, seats)

    commit(event_id, change)


def open_event(event: Event, event_id: int | str | None) -> Event:
    """Commit a new event, under the first number never used if no id is given."""
    condition = g.condition

    def decide(database: Database) -> Database:
        used = database.documents
        own = (
            event_id
            if event_id is not None
            else next(n for n in itertools.count(1) if str(n) not in used)
        )
        new, there = replace(event, event_id=own), used.get(str(own))
        expect(there or Document(new, {}), condition)
        return database.having(create(there, new))

    documents = transact(decide).database.documents
    key = str(event_id) if event_id is not None else [*documents][-1]  # the newest
    event = documents[key].event
    g.headers |= {
        "ETag": f'"{event.version}"',
        "Location": f"/events/{quote(key, safe='')}",
    }
    return event


def close_event(event_id: str) -> None:
    """Commit the removal of an event with all its bookings; not of the seeded one."""
    if event_id == database().seeded:
        raise Taken("The seeded event stays; `python ticketboss.py reset` empties it")
    commit(event_id, remove)
    g.headers.pop("ETag")


def open_session(name: str, body: dict[str, Any]) -> str:
    """A token for who knows the password; 401, in the same words, for all others."""
    accounts = database().accounts
    account = proved(accounts.find(name), password(body, 1))
    if account is None:
        abort(401, "Wrong name or password")
    return token(account, signing_key(accounts), int(time.time()))


def signing_key(accounts: Accounts) -> str | bytes:
    """What tokens are signed with, and read by; "" if nobody has one yet."""
    return office.settings.jwt_secret or accounts.secret


# === 7. Partner API ==========================================================
# Partners reserve, cancel and look, at the seeded event or at any other. Errors are
# {"error": text}.

partner: Final = Blueprint("partner", __name__)


class Anything(BaseConverter):
    """The rest of a path, slashes and line ends too: no id is too odd for our 404."""

    part_isolating = False
    regex = r"[\s\S]+"

    def to_python(self, value: str) -> str:
        """Without the trailing slash that every path may have."""
        return value.removesuffix("/")


@partner.get("/_health")
def health() -> Response:
    """{"ok": true}; or 503, and what is wrong with the file or its disk."""
    try:
        database()
        trouble = office.store.trouble
    except TicketBossError as error:
        trouble = str(error)
    if trouble:
        return answer({"ok": False, "error": trouble}, 503)
    return answer({"ok": True})


@partner.get("/event")
def show_event() -> Response:
    """{eventId, name, totalSeats, availableSeats, reservationCount, version}."""
    document = database().document(None)
    return versioned(document, lambda: summary(document.event))


@partner.post("/reservations")
@partner.post("/events/<event_id>/reservations")
def make_reservation(event_id: str | None = None) -> Response:
    """{partnerId, seats, waitlist?} -> 201; 202 with a position, or 409."""
    body = read()
    holder, seats = text(body, "partnerId"), whole(body, "seats", 1, 10)
    if type(waits := body.get("waitlist") or False) is not bool:
        abort(400, "waitlist must be true or false")
    wait: Wait = "when short" if waits else "never"
    wish = wished(body, event_id, holder, holder, seats)
    _, record = sell(event_id, wish, lambda d: reserve(d, wish, wait))
    told = {
        "reservationId": wish.reservation_id,
        "seats": seats,
        "status": record.status,
    }
    if not record.position:
        return answer(told, 201)
    return answer(told | {"position": record.position}, 202)


@partner.delete("/reservations/<anything:reservation_id>")
@partner.delete("/events/<event_id>/reservations/<anything:reservation_id>")
def cancel_reservation(reservation_id: str, event_id: str | None = None) -> Response:
    """204; ?seats=2 gives back part; 404."""
    give_back(event_id, reservation_id, _number("seats"))
    return Response(status=204)


@partner.get("/reservations")
@partner.get("/events/<event_id>/reservations")
def list_reservations(event_id: str | None = None) -> Response:
    """[reservation, ...]; ?partnerId= &status= &limit= &after= narrow it."""
    document, asked = database().document(event_id), request.args
    limit, holder = _number("limit"), asked.get("partnerId")
    status = asked.get("status")
    if office.settings.require_login:
        need_login()
    records = _visible(document.reservations.values())
    if status not in {None, *get_args(Status)}:
        abort(400, f"status must be one of {', '.join(get_args(Status))}")
    if (after := asked.get("after")) is not None:
        ids = [r.reservation_id for r in records]
        if after not in ids:
            abort(400, "after must be the last reservationId of the page before")
        records = records[ids.index(after) + 1 :]
    records = [
        r
        for r in records
        if (status is None or status == r.status)
        and (holder is None or holder == r.partner_id)
    ]
    if limit is not None and limit < len(records):
        more = urlencode(asked.to_dict() | {"after": records[limit - 1].reservation_id})
        g.headers["Link"] = f'<{quote(request.path)}?{more}>; rel="next"'
    return versioned(document, lambda: shown(document, records[:limit]))


@partner.get("/reservations/<anything:reservation_id>")
@partner.get("/events/<event_id>/reservations/<anything:reservation_id>")
def show_reservation(reservation_id: str, event_id: str | None = None) -> Response:
    """One reservation, cancelled or not; 404."""
    document = database().document(event_id)
    record = document.reservations.get(reservation_id)
    if record is None or not _visible([record]):
        abort(404, "Reservation not found")
    return versioned(document, lambda: shown(document, [record])[0])


def shown(document: Document, records: list[Reservation]) -> list[Reservation]:
    """Reservations without what is nobody's business, and with today's positions."""
    place = {r.reservation_id: n for n, r in enumerate(waiting(document), 1)}
    return [
        r
        if r.origin is NOBODY and not r.position
        else replace(r, origin=NOBODY, position=place.get(r.reservation_id, 0))
        for r in records
    ]


def _visible(records: Iterable[Reservation]) -> list[Reservation]:
    if not office.settings.require_login:
        return [*records]
    return [r for r in records if g.account and g.account.owns(r)]


def _number(name: str) -> int | None:
    given = request.args.get(name)
    if given is not None and not re.fullmatch("0{0,99}[1-9][0-9]{0,6}", given):
        abort(400, f"{name} must be a whole number, 1 or more")
    return None if given is None else int(given)


@partner.get("/")
def welcome() -> Response:
    """The live page for a browser; for anybody else what there is to try."""
    if "text/html" in request.headers.get("Accept", ""):
        return page()
    here = f"{request.scheme}://{request.host}"
    return answer(WELCOME.format(here).encode(), kind="text/plain; charset=utf-8")


WELCOME: Final = """Welcome to TicketBoss API

  curl {0}/event
  curl -d '{{"partnerId":"abc-corp","seats":3}}' {0}/reservations
  curl {0}/reservations
  curl -X DELETE {0}/reservations/<reservationId>
  curl {0}/_health
"""


# === 8. Booking API ==========================================================
# Users, known by an id or an e-mail, book one ticket each, or wait for one; organisers
# open events and read reports. Errors are {"error": text, "message": text}.

booking: Final = Blueprint("booking", __name__)
SAID: Final = {  # what a user is told, by the kind of name they gave
    "id": {
        "booked": "Ticket booked",
        "waitlisted": "Added to waiting list",
        "cancelled": "Booking canceled",
        "none": "Booking not found",
    },
    "email": {
        "booked": "Ticket booked successfully",
        "waitlisted": "Event sold out, you're added to the waiting list",
        "cancelled": "Your booking has been cancelled successfully",
        "none": "You didn't book this event",
    },
}


@booking.post("/initialize")
def initialize() -> Response:
    """{name or eventId, totalTickets, price?} -> 201 and the event."""
    body = read()
    total = whole(body, "totalTickets", 1, MILLION)
    price = 0 if body.get("price") is None else whole(body, "price", 0, 10**9)
    event_id = None if body.get("eventId") is None else identity(body, "eventId")
    if re.search(r"/|^\.+$", str(event_id)):
        abort(400, "eventId must not have a / in it, nor be dots alone: it is in paths")
    named = event_id is None or body.get("name") is not None
    name = text(body, "name") if named else f"Event {event_id}"
    event = Event("", name, total, total, 0, price, created_at=stamp())
    event = open_event(event, event_id)
    told = {
        "eventId": event.event_id,
        "name": name,
        "totalTickets": total,
        "availableTickets": total,
    }
    return answer(
        {"message": "Event initialized", "id": event.event_id, **told, "event": told},
        201,
    )


@booking.post("/book")
def book_ticket() -> Response:
    """{eventId, userId or userEmail} -> 200 with a ticket or a place in the list."""
    body = read()
    event_id, (name, names) = str(identity(body, "eventId")), _user(body)
    kind, _, own = name.partition(":")
    wish = wished(body, event_id, name, own if kind == "id" else "guest", 1, user=name)
    document, record = sell(event_id, wish, lambda d: book(d, wish, names))
    if record is wish:  # waiting already
        record = next(
            replace(r, position=place)
            for place, r in enumerate(waiting(document), 1)
            if r.origin.user in names
        )
    if record.position:
        return _said(document, kind, "waitlisted", record, position=record.position)
    return _said(document, kind, "booked", record)


@booking.post("/cancel")
def cancel_ticket() -> Response:
    """{eventId, userId or userEmail} -> 200; who waits first has the ticket; 404."""
    body, at, check = read(), stamp(), guard()
    event_id, (name, names) = str(identity(body, "eventId")), _user(body)
    kind = name.partition(":")[0]

    def change(document: Document) -> Document:
        held = booking_of(document, names)
        if held is None:
            raise NotFound(SAID[kind]["none"])
        check(held)
        return cancel(document, held.reservation_id, at)

    document, _ = commit(event_id, change)
    cancelled = next(
        r
        for r in document.reservations.values()
        if r.event_version_at_cancel == document.event.version
    )
    return _said(document, kind, "cancelled", cancelled)


def _user(body: dict[str, Any]) -> tuple[str, frozenset[str]]:
    """The user's name as given, and all their names.

    403 if that is not the caller: for others, an admin may cancel, and nobody book.
    """
    if (body.get("userEmail") is None) == (body.get("userId") is None):
        abort(400, "Send userId or userEmail: one is required, and not both")
    if body.get("userEmail") is not None:
        name = f"email:{folded(email(body, 'userEmail'))}"
    else:
        name = f"id:{identity(body, 'userId')}"
    if g.account is None:
        return name, frozenset({name})
    if name not in g.account.names() and (
        g.account.role != "admin" or request.endpoint != "booking.cancel_ticket"
    ):
        abort(403, "This is somebody else's booking.")
    everybody = (account.names() for account in database().accounts.members.values())
    return name, next(
        (names for names in everybody if name in names), frozenset({name})
    )


def _said(
    document: Document, kind: str, status: str, record: Reservation, **more: int
) -> Response:
    return answer(
        {
            "message": SAID[kind][status],
            "status": status,
            "eventId": document.event.event_id,
            "reservationId": record.reservation_id,
            **more,
        }
    )


@booking.get("/status/<event_id>")
def show_status(event_id: str) -> Response:
    """How many tickets are left and how many wait, in the words of three systems."""
    document = database().document(event_id)
    e = document.event
    return answer(
        {
            "id": e.event_id,
            "eventId": e.event_id,
            "name": e.name,
            "totalTickets": e.total_seats,
            "total_tickets": e.total_seats,
            "availableTickets": e.available_seats,
            "available_tickets": e.available_seats,
            "bookedTickets": e.total_seats - e.available_seats,
            "waitingListCount": len(waiting(document)),
            "version": e.version,
        }
    )


@booking.get("/events")
def list_events() -> Response:
    """[event, ...], the seeded one first."""
    return answer([_event(d.event) for d in database().events()])


@booking.get("/events/<event_id>")
def show_one_event(event_id: str) -> Response:
    """One event, in the words of partners and of users."""
    document = database().document(event_id)
    return versioned(document, lambda: _event(document.event))


def _event(event: Event) -> dict[str, object]:
    return {
        **summary(event),
        "id": event.event_id,
        "totalTickets": event.total_seats,
        "availableTickets": event.available_seats,
        "price": event.price,
    }


@booking.delete("/events/<event_id>")
def delete_event(event_id: str) -> Response:
    """204: the event is gone, with all its bookings. The seeded one stays: 409."""
    close_event(event_id)
    return Response(status=204)


@booking.get("/events/<event_id>/report")
def show_report(event_id: str) -> Response:
    """What one event has sold, as JSON or CSV."""
    one = report(database().document(event_id))
    return _spreadsheet([one]) if _wants_csv() else answer(one)


@booking.get("/report")
def show_all_reports() -> Response:
    """{events: [report, ...], totals: {...}}, as JSON or CSV."""
    reports = [report(d) for d in database().events()]
    if _wants_csv():
        return _spreadsheet(reports)
    totals = {
        name: sum(r[name] for r in reports)
        for name in reports[0]
        if name not in {"eventId", "name", "price"}
    }
    return answer({"events": reports, "totals": totals})


def report(document: Document) -> dict[str, Any]:
    """Add up what is sold now; what was cancelled counts nowhere."""
    e = document.event
    sold = e.total_seats - e.available_seats
    return {
        "eventId": e.event_id,
        "name": e.name,
        "totalTickets": e.total_seats,
        "ticketsSold": sold,
        "availableTickets": e.available_seats,
        "waitingListCount": len(waiting(document)),
        "price": e.price,
        "revenue": sold * e.price,
    }


def _wants_csv() -> bool:
    given = request.args.get("format")
    if given not in {None, "json", "csv"}:
        abort(400, "format must be json or csv")
    accepted = request.accept_mimetypes.best_match(["application/json", "text/csv"])
    return given == "csv" or (given is None and accepted == "text/csv")


def _spreadsheet(reports: list[dict[str, Any]]) -> Response:
    """CSV in which no text is taken for a formula; nor where ; is between cells."""
    sheet, risky = io.StringIO(), re.compile(r"""(^|[;,\t\r\n"'])(?=[=+\-@])""")
    for row in (reports[0], *map(dict.values, reports)):  # the names first
        csv.writer(sheet).writerow(
            risky.sub(r"\1'", cell) if isinstance(cell, str) else cell for cell in row
        )
    return answer(sheet.getvalue().encode(), kind="text/csv; charset=utf-8")


@booking.post("/login")
def log_in() -> Response:
    """{email | username | userId, password} -> {token, accessToken, ...}."""
    body = read()
    named = [n for n in ("email", "username", "userId") if body.get(n) is not None]
    if len(named) != 1:
        abort(400, "Send email, username or userId (one of them is required)")
    encoded = open_session(str(identity(body, named[0])), body)
    return answer(
        {
            "token": encoded,
            "accessToken": encoded,
            "tokenType": "Bearer",
            "expiresIn": TOKEN_S,
        }
    )


# === 9. /api/v1 ==============================================================
# Accounts, events with a date, bookings of several tickets. Everything is
# {"message": text, "data": ..., "error": false}; numbers may come as strings.

v1: Final = Blueprint("v1", __name__, url_prefix="/api/v1")


def tell(message: str, data: object = None, status: int = 200) -> Response:
    """The envelope; without `data` where there is nothing to tell."""
    body: dict[str, object] = {"message": message, "error": False}
    return answer(body if data is None else {**body, "data": data}, status)


@v1.post("/auth/register")
def register() -> Response:
    """{username, email, password} -> 201 {id, username, email}; 409 if taken."""
    body = read()
    username, address = text(body, "username"), email(body, "email")
    if re.search("@|^[0-9]+$", folded(username)):
        abort(400, "username must not be a number, nor an e-mail address")
    proxied = re.search(r"(?im)^(x-)?forwarded", str(request.headers))
    at_home = office.settings.loopback and is_loopback(request.remote_addr or "")
    wish = Account(0, username, address, hashed(password(body, 8)), "user")
    first = replace(wish, role="admin") if at_home and not proxied else wish
    secret = secrets.token_hex(32)
    turn = transact(
        lambda database: enrolled(
            database, wish if database.accounts.members else first, secret
        )
    )
    account = cast("Account", turn.database.accounts.by_email(address))
    return tell("User registered successfully.", _me(account), 201)


def _me(account: Account) -> dict[str, object]:
    return {"id": account.id, "username": account.username, "email": account.email}


@v1.post("/auth/login")
def log_in_by_email() -> Response:
    """{email, password} -> {token}."""
    body = read()
    encoded = open_session(email(body, "email"), body)
    return tell("Login successful.", {"token": encoded})


@v1.get("/auth/me")
def show_me() -> Response:
    """{id, username, email} of who asks."""
    need_login()
    return tell("User retrieved successfully.", _me(g.account))


@v1.post("/event")
def create_event() -> Response:
    """{name, date, totalTickets, availableTickets?} -> 201, the event; for admins."""
    need_login(admin=True)
    body = read()
    name, total = text(body, "name"), whole(body, "totalTickets", 1, MILLION)
    if body.get("availableTickets") is not None and total != whole(
        body, "availableTickets", 0, MILLION
    ):
        abort(400, "availableTickets must equal totalTickets, or be left out")
    try:
        day = datetime.fromisoformat(text(body, "date"))
        day = day.astimezone(UTC) if day.tzinfo else day.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        abort(400, "date must be a date like 2024-12-01")
    event = Event("", name, total, total, 0, 0, stamp(day), g.account.id, stamp())
    event = open_event(event, None)
    return tell("Event created successfully.", _dated(Document(event, {})), 201)


@v1.get("/event")
def list_dated_events() -> Response:
    """[event, ...], the seeded one last."""
    need_login()
    seeded, *others = map(_dated, database().events())
    return tell("Events retrieved successfully.", [*others, seeded])


def _dated(document: Document) -> dict[str, object]:
    e, records = document.event, document.reservations.values()
    times = [e.created_at, *(at for r in records for at in (r.ts, r.cancelled_at))]
    return {
        "id": e.event_id,
        "name": e.name,
        "date": e.date,
        "totalTickets": e.total_seats,
        "availableTickets": e.available_seats,
        "createdBy": e.created_by,
        "createdAt": e.created_at,
        "updatedAt": max(filter(None, times), default=None),
    }


@v1.delete("/event/<event_id>")
def delete_dated_event(event_id: str) -> Response:
    """For admins."""
    need_login(admin=True)
    close_event(event_id)
    return tell("Event deleted successfully.")


@v1.post("/booking")
def create_booking() -> Response:
    """{eventId, firstName, lastName, email, ticketsReserved} -> 201; 200 waiting."""
    body = read()
    event_id = str(identity(body, "eventId"))
    seats = whole(body, "ticketsReserved", 1, MILLION)
    first, last = text(body, "firstName"), text(body, "lastName")
    mail = email(body, "email")
    account = g.account.id if g.account else None
    holder = f"account-{account}" if account else "guest"
    wish = wished(
        body,
        event_id,
        mail,
        holder,
        seats,
        first_name=first,
        last_name=last,
        email=mail,
        booking=secrets.randbits(52) + 1,
    )  # whole, in all JSON
    try:
        _, record = sell(event_id, wish, lambda d: reserve(d, wish, "when sold out"))
    except NotEnoughSeats:
        abort(409, "Not enough tickets available to fulfill your request.")
    told = {
        "id": record.origin.booking,
        "eventId": body["eventId"],
        "userId": account,
        "firstName": first,
        "lastName": last,
        "email": mail,
        "ticketsReserved": body["ticketsReserved"],
        "bookingStatus": "waitlisted" if record.position else "completed",
        "createdAt": record.ts,
        "updatedAt": record.ts,
    }
    if record.position:
        return tell("Tickets are sold out; you are on the waitlist.", told)
    return tell("Booking created successfully.", told, 201)


@v1.delete("/booking/<number>")
def cancel_booking(number: str) -> Response:
    """{bookingId?, ticketsToCancel?} -> 200; without a number, all that is left."""
    body = read()
    if body.get("bookingId") is not None and str(body["bookingId"]) != number:
        abort(400, "bookingId is not the one in the path")
    seats = (
        None
        if body.get("ticketsToCancel") is None
        else whole(body, "ticketsToCancel", 1, MILLION)
    )
    for document in database().events():
        for key, record in document.reservations.items():
            if record.origin.booking and str(record.origin.booking) == number:
                give_back(str(document.event.event_id), key, seats)
                return tell("Booking cancelled successfully.")
    raise NotFound("Booking not found or already cancelled")


@v1.get("/booking/status/<event_id>")
def show_booking_status(event_id: str) -> Response:
    """{availableTickets, waitlistedCount}."""
    document = database().document(event_id)
    return tell(
        "Event status retrieved successfully.",
        {
            "availableTickets": document.event.available_seats,
            "waitlistedCount": len(waiting(document)),
        },
    )


# === 10. Page ================================================================
# The live seat map at `/`, or `/?event=<id>`: a plain client of the partner API. Two
# panes read, choose and save under If-Match, so that the slower one gets its 412.


def page() -> Response:
    """The page, under a policy that runs its own script and no other."""
    nonce = secrets.token_urlsafe(16)
    html = PAGE.replace("NONCE", nonce).encode()
    response = answer(html, kind="text/html; charset=utf-8")
    response.headers |= {
        "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src "
        f"data:; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; base-uri 'none'"
        "; form-action 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return response


PAGE: Final = r"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>TicketBoss</title>
<style nonce="NONCE">
  :root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif }
  body { max-width: 64rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
  h1, h2 { margin: 1rem 0 .3rem; line-height: 1.15 } h2 { font-size: 1.1rem }
  canvas { width: 100%; display: block } canvas, fieldset, pre { border-radius: .5rem }
  main, #panes { display: grid; gap: 0 1.5rem;
    grid-template-columns: repeat(auto-fit, minmax(var(--least), 1fr)) }
  main { --least: 17rem } #panes { --least: 13rem; gap: 0 .5rem }
  #facts { font-size: 1.25rem; margin: .4rem 0 .8rem }
  ul, ol { list-style: none; margin: 0; padding: 0 }
  #partners li { display: inline-block; margin-right: 1rem }
  #partners span { font-size: 1.3em; margin-right: .25rem }
  fieldset { border: 1px solid GrayText; margin: .4rem 0; padding: .5rem .8rem }
  input[type=number] { width: 4rem } input, button { font: inherit }
  output { display: block; min-height: 3em } .no { color: light-dark(#b00020, #ff8a80) }
  pre { white-space: pre-wrap; margin: .4rem 0; padding: .5rem;
    background: light-dark(#eee, #222) }
</style>
<h1 id="name">TicketBoss</h1>
<p id="facts" role="status">Reading the event</p>
<canvas id="map" height="0" role="img" aria-label="Seat map"></canvas>
<ul id="partners" aria-label="Seats by partner"></ul>
<main>
<section><h2>Two buyers</h2>
  <label><input type="checkbox" id="careful" checked> send If-Match with what was read
  </label>
  <div id="panes"></div>
  <h2>The same with curl</h2>
  <pre id="curl">curl -i /event</pre><button id="copy">Copy</button></section>
<section><h2>Last changes</h2><ol id="changes"></ol></section>
</main>
<template><fieldset><legend></legend>
  <button>Read</button> <span>not read yet</span><br>
  <label>Seats <input type="number" min="1" max="10" value="2"></label>
  <button disabled>Save</button><output></output></fieldset></template>
<script nonce="NONCE">
"use strict"
const $ = id => document.getElementById(id)
const id = new URLSearchParams(location.search).get("event")
const escaped = character => "%" + character.charCodeAt(0).toString(16)  // for shells
const base = id ? "/events/" + encodeURIComponent(id).replace(/['()*!]/g, escaped) : ""
const eventPath = base || "/event", listPath = base + "/reservations"
let etag = "", seats = 0, held = []
const known = new Map()  // partners, in the order they came
const colour = name => {  // by the golden angle, the next is never like those before
  if (!known.has(name)) known.set(name, known.size)
  const n = known.get(name)
  return `hsl(${n * 137.508 % 360} 65% ${38 + n % 3 * 11}%)`
}
const line = (text, mark) => {
  const item = document.createElement("li"), dot = document.createElement("span")
  dot.textContent = mark ? "■" : ""; dot.style.color = mark
  item.append(dot, text)
  return item
}
function draw() {  // at most 1,000 squares, however many seats each then stands for
  const each = Math.ceil(seats / 1000), count = Math.ceil(seats / each), map = $("map")
  const columns = Math.min(count, map.clientWidth < 600 ? 25 : 50)
  const size = map.clientWidth / columns, sharp = devicePixelRatio || 1
  map.height = Math.ceil(count / columns) * size * sharp
  map.width = map.clientWidth * sharp
  const pen = map.getContext("2d"), plain = getComputedStyle(document.body).color
  pen.scale(sharp, sharp)
  const holders = held.flatMap(r => Array(r.seats).fill(r.partnerId))
  for (let square = 0; square < count; square++) {
    const taken = square * each < holders.length
    pen.globalAlpha = taken ? 1 : .15
    pen.fillStyle = taken ? colour(holders[square * each]) : plain
    pen.fillRect(square % columns * size + 1, Math.floor(square / columns) * size + 1,
      size - 2, size - 2)
  }
}
function show(event, records) {
  const waits = records.filter(r => r.status === "waitlisted").length
  const sums = new Map(), most = 30
  held = records.filter(r => r.status === "confirmed")
  seats = event.totalSeats
  for (const r of records) colour(r.partnerId)
  for (const r of held) sums.set(r.partnerId, (sums.get(r.partnerId) || 0) + r.seats)
  $("name").textContent = document.title = event.name
  $("facts").textContent = `${event.availableSeats} of ${seats} seats free · ` +
    `version ${event.version} · ${waits} waiting`
  $("map").setAttribute("aria-label", `${seats - event.availableSeats} of ${seats} ` +
    "seats are taken; the list below says by whom")
  const ranked = [...sums].sort((a, b) => b[1] - a[1])
  const rest = ranked.slice(most).reduce((n, partner) => n + partner[1], 0)
  $("partners").replaceChildren(...ranked.slice(0, most).map(([name, n]) =>
    line(`${name || "(no name)"} ${n}`, colour(name))),
    ...rest ? [line(`${ranked.length - most} others ${rest}`)] : [])
  const changes = records.flatMap(r => [[r.eventVersionAtReservation,
    r.status === "waitlisted" ? "waits for" : "reserved", r],
    [r.eventVersionAtCancel, "cancelled", r]]).filter(c => c[0])
  $("changes").replaceChildren(...changes.sort((a, b) => b[0] - a[0]).slice(0, 15)
    .map(([v, did, r]) => line(`${v}: ${r.partnerId} ${did} ` +
      (did === "reserved" ? r.seats + (r.seatsReturned || 0) : r.seats))))
  draw()
}
let timer = 0
async function live() {  // one reading at a time, none while nobody looks
  clearTimeout(timer)
  if (document.hidden) return
  try {
    const answer = await fetch(eventPath, {cache: "no-store",
      headers: etag ? {"If-None-Match": etag} : {}})
    if (answer.status !== 304) {
      const event = await answer.json()
      if (!answer.ok) throw Error(event.error)
      const list = await fetch(listPath, {cache: "no-store"})
      if (!list.ok && list.status !== 401) throw Error((await list.json()).error)
      const taken = [{partnerId: "(not shown)", status: "confirmed",  // 401
        seats: event.totalSeats - event.availableSeats}]
      show(event, list.ok ? await list.json() : taken)
      etag = answer.headers.get("ETag")
    }
  } catch (error) { etag = ""; $("facts").textContent = error.message }
  clearTimeout(timer)
  timer = setTimeout(live, 700)
}
function pane(name) {
  const box = document.querySelector("template").content.cloneNode(true).firstChild
  const [read, save] = box.querySelectorAll("button"), out = box.querySelector("output")
  const label = box.querySelector("span"), wanted = box.querySelector("input")
  let seen = ""
  box.querySelector("legend").textContent = `Buyer ${name}`
  read.onclick = async () => {
    const answer = await fetch(eventPath, {cache: "no-store"})
    seen = answer.headers.get("ETag")
    const event = await answer.json()
    label.textContent = answer.ok ?
      `version ${seen}: ${event.availableSeats} seats free` : event.error
    out.textContent = ""; save.disabled = !answer.ok
    $("curl").textContent = `curl -i ${location.origin}${eventPath}`
  }
  save.onclick = async () => {
    const body = JSON.stringify({partnerId: `buyer-${name}`, seats: +wanted.value})
    const careful = $("careful").checked, headers = careful ? {"If-Match": seen} : {}
    $("curl").textContent = "curl -i " + (careful ? `-H 'If-Match: ${seen}' ` : "") +
      `-d '${body}' ${location.origin}${listPath}`
    const answer = await fetch(listPath, {method: "POST", body, headers})
    const told = await answer.json()
    out.className = answer.ok ? "" : "no"
    const attempts = answer.headers.get("X-Attempts")
    out.textContent = answer.status + (attempts ? ` (X-Attempts: ${attempts}): ` : ": ")
      + (told.error || told.status)
    live()
  }
  $("panes").append(box)
}
pane("A"); pane("B")
$("copy").onclick = () => navigator.clipboard.writeText($("curl").textContent)
$("curl").textContent = `curl -i ${location.origin}${eventPath}`
addEventListener("visibilitychange", live)
addEventListener("resize", draw)
matchMedia("(prefers-color-scheme: dark)").onchange = draw
live()
</script>
"""


# === 11. Race ================================================================
# The classroom: buyers in processes of their own, on a throwaway file, with no check at
# all, with a lock, and optimistic. What it teaches is computed from what was measured.

STRATEGIES: Final = ("none", "lock", "optimistic")
CELLS: Final = "{:10}{:>6}{:>9}{:>6}{:>10}{:>11}{:>9}{:>8} {}"
HEAD: Final = (
    "strategy",
    "told",
    "in file",
    "lost",
    "oversold",
    "conflicts",
    "sales/s",
    "p95 ms",
    "",
)


class Careless(Store):
    """A store that forgets to compare: the mistake that this program is about."""

    def swap(self, seen: Snapshot, wanted: Database) -> bool:
        """Write what was wanted over whatever is there by now."""
        with self._draft(wanted, seen) as (draft, _):
            os.replace(draft, self.path)
        return True


class Try(NamedTuple):
    """One request of one buyer: what they read, were told, and when."""

    buyer: int
    event_id: str
    told: bool  # that they have a seat
    read_version: int
    read_at: float
    done_at: float
    took_s: float
    conflicts: int
    reservation_id: str


def buy(
    path: str, strategy: str, buyer: int, events: list[str], think_s: float
) -> list[Try]:
    """Ask for a seat of each of these events, one after the other, as one process."""
    store, tries = (Careless if strategy == "none" else Store)(path, 30), []
    for event_id in events:
        wish = Reservation(str(uuid.uuid4()), f"buyer-{buyer}", 1, "waitlisted")
        began, asked, told = time.monotonic(), 0, False
        while not told:
            asked += 1
            with store.hold() if strategy == "lock" else nullcontext():
                seen, read_at = store.load(), time.monotonic()
                document = seen.database.document(event_id)
                if document.event.available_seats == 0:
                    break
                time.sleep(think_s)
                wanted = seen.database.having(reserve(document, wish))
                told = store.swap(seen, wanted)
        done = time.monotonic()
        tries.append(
            Try(
                buyer,
                event_id,
                told,
                document.event.version,
                read_at,
                done,
                done - began,
                asked - 1,
                wish.reservation_id,
            )
        )
    return tries


def run_race(
    strategy: str, sizes: dict[str, int], count: int, think_s: float
) -> tuple[dict[str, Any], list[Try], set[str]]:
    """Race once: the row of the table, the history, and what is in the file."""
    clients, seats = sizes["clients"], sizes["seats"] // count
    ids = [f"event-{n}" for n in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        store = _throwaway(folder, ids, seats)
        plans = [
            (
                store.path,
                strategy,
                n,
                [ids[i % count] for i in range(n, sizes["requests"], clients)],
                think_s,
            )
            for n in range(clients)
        ]
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for one
        fork = multiprocessing.get_context("fork")
        ready = fork.Barrier(clients + 1)
        with fork.Pool(clients, ready.wait) as pool:
            signal.signal(signal.SIGINT, before)
            ready.wait()  # nobody has a start on the others
            began = time.monotonic()
            history = [each for tries in pool.starmap(buy, plans, 1) for each in tries]
            took_s = time.monotonic() - began
        kept = {key for d in store.load().database.events() for key in d.reservations}
    sold = [each for each in history if each.told]
    slow = (
        sorted(each.took_s for each in sold)[int(len(sold) * 0.95) - 1] if sold else 0
    )
    return (
        {
            "strategy": strategy,
            "events": count,
            "think_ms": round(think_s * 1e3),
            "told": len(sold),
            "kept": len(kept),
            "lost": len(sold) - len(kept),
            "oversold": max(0, len(sold) - seats * count),
            "conflicts": sum(each.conflicts for each in history),
            "rate": round(len(sold) / took_s),
            "p95_ms": round(slow * 1e3),
        },
        history,
        kept,
    )


def _throwaway(folder: str, ids: list[str], seats: int) -> Store:
    store = Store(f"{folder}/db.json")
    store.start(seats)
    seen = store.load()
    wanted = seen.database
    for key in ids:
        wanted = wanted.having(create(None, Event(key, key, seats, seats, 0)))
    store.swap(seen, wanted)
    return store


def proof(history: list[Try], kept: set[str]) -> list[str]:
    """The smallest interleaving that lost a sale: two who read the same version."""
    sold = sorted(
        (each for each in history if each.told),
        key=lambda each: (each.event_id, each.read_version, each.done_at),
    )
    for one, other in itertools.pairwise(sold):
        if (
            (one.event_id, one.read_version) == (other.event_id, other.read_version)
            and other.read_at < one.done_at
            and one.reservation_id not in kept
        ):
            steps = [
                (at, each is one, what)
                for each in (one, other)
                for at, what in (
                    (each.read_at, f"reads version {each.read_version}"),
                    (
                        each.done_at,
                        f"writes version {each.read_version + 1}: confirmed",
                    ),
                )
            ]
            return [
                f"buyer {one.buyer:<34}buyer {other.buyer}",
                *(
                    what if left else f"{'':40}{what}"
                    for _, left, what in sorted(steps)
                ),
                f"buyer {one.buyer}'s sale is not in the file any more",
                "",
            ]
    return []


def table(title: str, rows: list[dict[str, Any]]) -> str:
    """The rows in 80 columns, with bars as long as their rates."""
    lines = ["", title, CELLS.format(*HEAD).rstrip()]
    for row in rows:
        bar = "█" * round(10 * row["rate"] / max(each["rate"] or 1 for each in rows))
        cells = [row[key] for key in row if key not in {"events", "think_ms"}]
        lines.append(CELLS.format(*cells, bar))
    return "\n".join(lines)


def lessons(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What the measured rows teach, whichever way they turned out."""
    for row in rows:
        if row["strategy"] == "none":
            yield (
                "No check: {told} told they have a seat, {kept} in the file.\n"
                "{lost} sales vanished; {oversold} seats sold that do not exist."
            ).format_map(row)
    for (events, think), group in itertools.groupby(
        rows, lambda row: (row["events"], row["think_ms"])
    ):
        rates = [
            (row["rate"], row["strategy"]) for row in group if row["strategy"] != "none"
        ]
        if len(rates) == 2:
            (slow, loser), (fast, winner) = sorted(rates)
            yield (
                f"Events: {events}, thinking: {think} ms. There {winner} sells "
                f"{fast / max(slow, 1):.1f} times as fast as {loser}."
            )


# === 12. Main ================================================================
# One app, however it is served, and the command line. Everything is wired here.


def create_app(settings: Settings | None = None) -> Flask:
    """The WSGI app: `flask --app ticketboss run`, `gunicorn "ticketboss:create_app()"`.

    Without `settings` it is told by TICKETBOSS_... variables, and ends the process with
    one line when it cannot start. With them, raises Unavailable.
    """
    if settings is not None:
        return build(settings)
    try:
        with (
            main.make_context("ticketboss", []) as context,
            _in_one_line(context.params["db"]),
        ):
            return build(_settings(context))
    except click.ClickException as error:
        raise SystemExit(f"ticketboss: {error.format_message()}") from None


def build(settings: Settings) -> Office:
    """The app, its file ready. Raises Unavailable."""
    app = Office(__name__, static_folder=None)
    app.settings, app.store = settings, Store(settings.db, settings.patience_s)
    app.store.start(settings.seats, anew=settings.by_hand)
    app.transactions = Transactions(app.store, settings.think_s, settings.patience_s)
    app.served, every = itertools.count(), settings.rate_limit
    app.rules = limits.parse_many(every) if every else []
    app.counters = limits.strategies.FixedWindowRateLimiter(
        limits.storage.storage_from_string(settings.rate_storage)
    )
    app.config.update(MAX_CONTENT_LENGTH=64 * 1024, PROPAGATE_EXCEPTIONS=False)
    app.url_map.strict_slashes = app.url_map.merge_slashes = False
    app.url_map.converters["anything"] = Anything
    app.before_request(arrive)
    app.after_request(leave)
    app.register_error_handler(TicketBossError, refused)
    app.register_error_handler(HTTPException, aborted)
    for blueprint in (partner, booking, v1):
        app.register_blueprint(blueprint)
    if settings.trust_proxy:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_host=1)  # type: ignore[method-assign]
    if not settings.quiet and not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
    return app


def duration(value: object) -> float:
    """Seconds, of 200ms, 1.5s, or plain seconds; at most an hour."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(ms|s|)", str(value))
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else -1
    if not 0 <= seconds <= 3600:
        raise click.BadParameter(f"{value!r} is not a duration like 200ms or 1.5s")
    return seconds


def option(field: msgspec.structs.FieldInfo) -> Callable[[Any], Any]:
    """The option of a setting, with its TICKETBOSS_... variable."""
    help_text, *bounds = field.type.__metadata__
    kinds = {float: duration, int: click.IntRange(*bounds)}
    flag = {"think_s": "think", "trusted_hosts": "trusted_host"}.get(
        field.name, field.name
    )
    variables = [f"TICKETBOSS_{flag.upper()}", *(["PORT"] if flag == "port" else [])]
    return click.option(
        f"--{flag.replace('_', '-')}",
        field.name,
        default=field.default,
        envvar=variables,
        type=kinds.get(type(field.default)),
        is_flag=field.default is False,
        multiple=field.default == (),
        help=help_text,
    )


def _settings(context: click.Context, *, by_hand: bool = False) -> Settings:
    secret = os.environb.get(b"JWT_SECRET", b"")
    if 0 < len(secret) < 32:
        raise click.ClickException("JWT_SECRET must have 32 bytes or more")
    try:
        jwt.encode({}, secret or b"any" * 11, "HS256")
    except jwt.InvalidKeyError as error:
        raise click.ClickException(f"JWT_SECRET is of another kind: {error}") from None
    try:
        limits.parse_many(context.params["rate_limit"] or "1 per day")
        limits.storage.storage_from_string(context.params["rate_storage"])
    except (ValueError, limits.errors.ConfigurationError) as error:
        raise click.ClickException(
            '--rate-limit is like "100 per 15 minutes", and '
            f"--rate-storage like redis://host: {error}"
        ) from None
    return Settings(
        **context.params,
        jwt_secret=secret,
        by_hand=by_hand,
        loopback=by_hand and is_loopback(context.params["host"]),
    )


@contextmanager
def _in_one_line(db: str) -> Iterator[None]:
    """End the command with one line that names the file, if it is refused in here."""
    try:
        yield
    except TicketBossError as error:
        words = f"{os.path.abspath(db)}: {error}"
        if isinstance(error, Unavailable):
            words += (
                ". Mend it, or put a good copy back; `python ticketboss.py --db "
                f"{db} reset` sets it aside and begins afresh."
            )
        raise click.ClickException(words) from None


@click.group(invoke_without_command=True, context_settings={"show_default": True})
@click.pass_context
def main(context: click.Context, /, db: str, **_: object) -> None:
    """Sell the seats of events over HTTP, and never sell one twice."""
    if context.invoked_subcommand is None:
        with _in_one_line(db):
            serve(_settings(context, by_hand=True))


for _field in msgspec.structs.fields(Settings):
    if hasattr(_field.type, "__metadata__"):
        option(_field)(main)


def repeated(name: str) -> Callable[[Any], Any]:
    """The same option once more, behind the command's name."""
    help_text = {"db": "The file.", "seats": "Of the first event."}[name]
    kind = next(option.type for option in main.params if option.name == name)
    return click.option(
        f"--{name}",
        type=kind,
        show_default=False,
        help=f"{help_text} It may stand before the command, too.",
        default=lambda: click.get_current_context().find_root().params[name],
    )


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; finish what is under way, and say what was done.

    64 threads: with waitress's own 4, reads queue behind writers that wait for the
    lock. 900 connections, polled: its own 100 let idle clients shut others out.
    """
    app, channels, ended = build(settings), dict[int, Any](), list[int]()
    server = _listen(app, channels)

    def end(number: int, _: object) -> None:
        # An exception would not do: one that is raised in a __del__ is not heard.
        ended.append(number)
        signal.signal(number, signal.SIG_DFL)  # a second time means at once

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    _announce(app, getattr(server, "effective_port", settings.port))
    while not ended:
        server.asyncore.loop(timeout=0.2, use_poll=True, map=channels, count=1)
    # By itself, waitress drops what no thread has begun, what takes longer than 5 s,
    # and what the sockets have not taken yet.
    while server.task_dispatcher.queue:
        time.sleep(0.02)
    server.task_dispatcher.shutdown(timeout=3600)
    until = time.monotonic() + 30
    while time.monotonic() < until and any(
        getattr(channel, "total_outbufs_len", 0) for channel in channels.values()
    ):
        server.asyncore.loop(timeout=1, use_poll=True, map=channels, count=1)
    click.echo(f"Ended, after {next(app.served)} answers.")


def _listen(app: Office, channels: dict[int, Any]) -> Any:
    host, port = app.settings.host, app.settings.port
    waitress.channel.HTTPChannel.error_task_class = JsonErrorTask
    logging.getLogger("waitress").setLevel(logging.ERROR)
    try:
        return waitress.server.create_server(
            app,
            map=channels,
            host=host,
            port=port,
            threads=64,
            connection_limit=900,
            asyncore_use_poll=True,
            channel_timeout=30,
            ident="TicketBoss",
            max_request_body_size=2**20,
            clear_untrusted_proxy_headers=False,
        )
    except (OSError, ValueError) as error:
        raise click.ClickException(
            f"Cannot listen at {host}, port {port}: {error}. Try another --port."
        ) from None


def _announce(app: Office, port: int) -> None:
    host = f"[{app.settings.host}]" if ":" in app.settings.host else app.settings.host
    url, event = f"http://{host}:{port}", app.store.load().database.document(None).event
    click.echo(
        f"{event.name}: {event.available_seats} of {event.total_seats} seats "
        f"free, kept in {app.store.path}\nServing at {url} (Ctrl-C ends it)\n"
        f'\n  curl {url}/event\n  curl -d \'{{"partnerId":"abc-corp",'
        f'"seats":3}}\' {url}/reservations\n'
    )


class JsonErrorTask(waitress.task.ErrorTask):
    """What waitress refuses before Flask sees it: in JSON, as all else."""

    def execute(self) -> None:
        """Write the answer."""
        error: Any = cast("Any", self.request).error
        words = TEXTS[413] if error.code == 413 else error.body
        where = getattr(self.request, "path", "/")
        body = msgspec.json.encode(problem(where, error.code, words)) + b"\n"
        head = [
            ("Content-Type", JSON),
            (
                "X-Request-ID",
                request_id(getattr(self.request, "headers", {}).get("X_REQUEST_ID")),
            ),
        ]
        error.to_response = lambda _: (f"{error.code} {error.reason}", head, body)
        super().execute()


@main.command()
@repeated("db")
def audit(db: str) -> None:
    """Prove that a db.json adds up: sums, versions, statuses, waiting lists."""
    found = 0
    with _in_one_line(db):
        events = Store(db).load().database.events()
    for document in events:
        event, records = document.event, document.reservations.values()
        counted = Counter(
            version
            for r in records
            for version in (r.event_version_at_reservation, r.event_version_at_cancel)
        )
        wrong = [
            f"version {version} is of two changes"
            for version, times in counted.items()
            if version is not None and times > 1
        ]
        if promote(document) is not document:
            wrong.append("seats are free that the head of the waiting list could have")
        statuses = Counter(r.status for r in records)
        click.echo(
            f"event {event.event_id}: version {event.version}; "
            f"{event.total_seats - event.available_seats} seats confirmed + "
            f"{event.available_seats} available = {event.total_seats}; "
            + ", ".join(f"{statuses[s]} {s}" for s in get_args(Status))
        )
        for fault in wrong:
            click.echo(f"  FAULT: {fault}")
        found += len(wrong)
    click.echo(f"{found} faults." if found else "All of it adds up.")
    sys.exit(1 if found else 0)


@main.command()
@repeated("db")
@repeated("seats")
@click.confirmation_option(prompt="Set everything aside and seed a fresh event?")
def reset(db: str, seats: int) -> None:
    """Seed a fresh event; the old file is kept beside the new one."""
    with _in_one_line(db):
        store = Store(db)
        kept = f"{store.path}.{stamp().replace(':', '-')}.old"
        there = store.reset(seats, kept)
    click.echo(
        f"{seats} seats are free in {store.path}"
        + (f", what was there is in {kept}" if there else "")
    )


@main.command()
@click.argument("address", metavar="EMAIL")
@repeated("db")
@repeated("seats")
def admin(address: str, db: str, seats: int) -> None:
    """Make EMAIL an admin; asks for a password where it has no account."""
    if not is_email(address):
        raise click.UsageError("EMAIL must be an e-mail address")
    with _in_one_line(db):
        store = Store(db)
        store.start(seats)
        known, given = store.load().database.accounts.by_email(address), ""
        while known is None and not usable(given):
            given = click.prompt(
                "Password, 8 characters or more",
                hide_input=True,
                confirmation_prompt=True,
            )
        wish = Account(0, address, address, hashed(given), "admin")
        secret = secrets.token_hex(32)
        Transactions(store).transact(lambda database: enrolled(database, wish, secret))
    click.echo(f"{address} is an admin in {store.path}.")


@main.command()
@click.option("--clients", default=16, type=click.IntRange(1, 64))
@click.option("--seats", default=100, type=click.IntRange(1, 10**4))
@click.option("--requests", default=200, type=click.IntRange(1, 10**5))
@click.option("--think", type=duration, help="Between read and write, as 5ms.")
@click.option("--events", type=click.IntRange(1, 64), help="That buyers spread over.")
@click.option("--strategy", "only", multiple=True, type=click.Choice(STRATEGIES))
@click.option("--json", "as_json", is_flag=True, help="The rows, for a program.")
@click.option("--predict", is_flag=True, help="Let the class guess first.")
def race(
    *,
    think: float | None,
    events: int | None,
    only: tuple[str, ...],
    as_json: bool,
    predict: bool,
    **sizes: int,
) -> None:
    """Race buyers without a check, with a lock, and optimistic, on a throwaway file."""
    plans = [
        (1, 0.005, STRATEGIES),
        (8, 0.005, STRATEGIES[1:]),
        (1, 0.0, STRATEGIES[1:]),
    ]
    if think is not None or events is not None:
        plans = [(events or 1, 0.005 if think is None else think, STRATEGIES)]
    if sizes["seats"] < max(count for count, *_ in plans):
        raise click.UsageError(
            "--seats must be enough for a seat in each event; there "
            "are 8 in one of the races, unless you say --events 1"
        )
    guess = predict and click.prompt("Which loses sales? Which is fastest?", err=True)
    rows: list[dict[str, Any]] = []
    shown: list[str] = []
    for count, think_s, strategies in plans:
        group = []
        for strategy in filter((only or strategies).__contains__, strategies):
            click.echo(f"... {strategy}", err=True)
            row, history, kept = run_race(strategy, sizes, count, think_s)
            shown = shown or (proof(history, kept) if strategy == "none" else [])
            group.append(row)
        rows += group
        if group and not as_json:
            title = f"Events: {count}, thinking: {think_s * 1e3:.0f} ms"
            click.echo(table(title, group))
    click.echo(
        json.dumps(rows, indent=2)
        if as_json
        else "\n".join(
            ["", *shown, *lessons(rows), *([f"You said: {guess}"] if predict else [])]
        )
    )
    sys.exit(
        any(
            (row["lost"] or row["oversold"])
            for row in rows
            if row["strategy"] != "none"
        )
    )


if __name__ == "__main__":
    main()
