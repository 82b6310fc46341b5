"""Whatever stops a write half way, the file is the old one or the new one.

Killed at any call to the operating system, refused by any of them, or cut off from
power: what was acknowledged is in the file, what was refused is not, and the next start
is clean. By enumeration: the points are counted, and the counts printed.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import gc
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from os import fstat  # as it is before a test replaces it

import pytest
from conftest import require_tool, skip

import ticketboss
from ticketboss import (
    InDoubt,
    Reservation,
    Store,
    Transactions,
    Unavailable,
)

# Forked while only this thread runs; a leftover of another test's may be idle.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

SEATS = 5
SEEDED = ticketboss.seed(SEATS)
WATCHED = [
    (os, name)
    for name in (
        "open close read pread readv write pwrite writev sendfile fsync fdatasync "
        "sync replace rename renames link symlink unlink remove mkdir rmdir stat lstat "
        "fstat access readlink listdir scandir chmod fchmod chown fchown lchown "
        "truncate ftruncate utime dup dup2 copy_file_range"
    ).split()
] + [(fcntl, name) for name in ("flock", "lockf", "fcntl")]
ERRORS = [
    "ENOSPC",
    "EIO",
    "EDQUOT",
    "EROFS",
    "EMFILE",
    "ENOLCK",
    "ENOMEM",
    "EINTR",
    "EACCES",
]
FEW_ERRORS = ["ENOSPC", "EIO", "EINTR"]


# --- What is done to the disk, and what must be true afterwards ----------------------


def sell(store, name):
    """One durable sale of one seat, named."""

    def decide(database):
        wish = Reservation(name, "abc-corp", 1, "waitlisted")
        return database.with_document(database.document(None).reserve(wish))

    return Transactions(store).transact(decide)


def sold(path):
    """The names of all reservations in the file, if it is whole."""
    return set(json.loads(read(path))["reservations"])


def leftovers(path):
    """Temporary files of this database, and how many there are of the other one."""
    names = set(os.listdir(os.path.dirname(path))) - {
        "db.json",
        ".db.json.lock",
        "other.json",
        ".other.json.lock",
    }
    others = {name for name in names if "other" in name}
    return sorted(names - others), len(others)


def nothing(path):
    """No file at all: what a first start finds."""
    return lambda: Store(path).open(SEATS)


def seeded(path):
    """A file that somebody else has just changed: a commit reads it again."""
    store, other = Store(path), Store(path)
    store.open(SEATS)
    store.load()
    sell(other, "theirs")
    return lambda: sell(store, "mine")


def littered(path):
    """A file, two drafts of killed writers, and one of another database."""
    seeded(path)()
    other = f"{os.path.dirname(path)}/other.json"
    Store(other).open(SEATS)
    drafts = [abandoned(path, "one"), abandoned(path, "two"), abandoned(other, "three")]
    assert all(map(os.path.exists, drafts))
    return lambda: Store(path).open(SEATS)


def abandoned(path, name):
    """A draft with a sale in it, as a killed writer leaves it behind."""
    drafts = []

    def keep(_, what, call, args):
        if what == "replace":
            os.link(args[0], f"{args[0]}.kept")
            drafts.append(args[0])
        return call()

    with between(keep):
        sell(Store(path), name)
    os.rename(f"{drafts[0]}.kept", drafts[0])
    return drafts[0]


WORKS = {"seeding": nothing, "a commit": seeded, "a start": littered}


def check_after_a_crash(what, path, before, *, acknowledged):
    """Old or new, new if acknowledged; the next start clean, the next sale sold."""
    now = read(path)
    if now != before:
        whole = sold(path)
        assert whole == {"seeding": set(), "a commit": {"theirs", "mine"}}[what]
        assert what != "seeding" or now == seed_bytes(path)
    else:
        assert not (acknowledged and what in {"seeding", "a commit"}), "a lost change"
    store = Store(path)
    store.open(SEATS)
    assert read(path) == (now or seed_bytes(path)), "a start changed the file"
    assert leftovers(path) == ([], what == "a start")
    sell(store, "next")
    assert "next" in sold(path)


def read(path):
    """The file's bytes; None if there is none."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        return file.read()
    return None


def seed_bytes(path):
    """What a first start writes, had from an undisturbed one beside."""
    beside = f"{os.path.dirname(path)}.seed"
    if not os.path.exists(beside):
        os.mkdir(beside)
        Store(f"{beside}/db.json").open(SEATS)
    return read(f"{beside}/db.json")


# --- Standing in for the operating system --------------------------------------------


@contextmanager
def between(meddle):
    """Let meddle(number, name, call, args) stand in for each call to the system."""
    numbers, thread = itertools.count(1), threading.get_ident()

    def stand_in(name, call):
        def stood_in(*args, **more):
            if threading.get_ident() != thread:
                return call(*args, **more)
            return meddle(next(numbers), name, partial(call, *args, **more), args)

        return stood_in

    def opened(*args, **more):  # a file object reads and writes without os's functions
        file = kept[builtins, "open"](*args, **more)
        return Meddled(file, stand_in)

    gc.disable()  # what earlier work left would be thrown away, and counted, by chance
    places = [place for place in WATCHED if hasattr(*place)] + [(builtins, "open")]
    kept = {place: getattr(*place) for place in places}
    for module, name in places:
        instead = (
            opened if name == "open" and module is builtins else (kept[module, name])
        )
        setattr(module, name, stand_in(name, instead))
    try:
        yield
    finally:
        for (module, name), call in kept.items():
            setattr(module, name, call)
        gc.enable()


class Meddled:
    """A file object whose reads are counted like system calls."""

    def __init__(self, file, stand_in):
        self.file, self.read = file, stand_in("read", file.read)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def listed(points):
    """'open 5, fsync 2', the most first."""
    return ", ".join(f"{name} {n}" for name, n in Counter(points).most_common())


@pytest.fixture
def place(tmp_path):
    """A folder where fsync costs nothing, if this machine has such a disk."""
    memory = "/dev/shm"
    quick = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=quick) as folder:
        yield folder


@pytest.fixture
def unraised(monkeypatch):
    """Errors that no caller could see: raised while an object was thrown away."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: seen.append(hook.exc_value))
    return seen


def fresh(path):
    """An empty folder for a database, in the place of the last."""
    folder = os.path.dirname(path)
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)


# --- 1. Killed at any call -----------------------------------------------------------


def in_a_child(work, meddle=None, go=None):
    """Fork, do the work there, and have (process id, pipe that says what happened)."""
    pipe, told = os.pipe()
    child = os.fork()
    if child:
        os.close(told)
        return child, pipe
    write, leave = os.write, os._exit  # no cleaning up: that is it
    try:
        if go is not None:
            os.read(go, 1)
        with between(partial(meddle, write, leave, told)) if meddle else nullcontext():
            work()
            write(told, b"acknowledged\n")
    except BaseException:
        traceback.print_exc()
        leave(1)
    leave(0)


def outcome(child, pipe):
    """(exit status, negative for a signal; what the child said, in words)."""
    with open(pipe) as told:
        words = told.read().split()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words


def dying(wanted, moment, write, leave, told, number, name, call, args):
    """Die before, after or in the middle of call number `wanted`."""
    if number != wanted:
        return call()
    if moment == "after":
        with suppress(OSError):
            call()
    elif moment == "amid":
        write(args[0], args[1][: len(args[1]) // 2])
    write(told, f"{moment} {name}\n".encode())
    return leave(9)


@pytest.mark.parametrize("what", WORKS)
def test_a_kill_at_any_call_leaves_the_old_file_or_the_new(what, place, say):
    points, path = [], f"{place}/there/db.json"
    for number in itertools.count(1):
        deaths = []
        for moment in "before", "after", "amid":
            if moment == "amid" and deaths[:1] != [["before", "write"]]:
                continue  # nothing else has a middle
            fresh(path)
            work = WORKS[what](path)
            before = read(path)
            status, words = outcome(*in_a_child(work, partial(dying, number, moment)))
            acknowledged = "acknowledged" in words
            assert status in {0, 9}
            assert status == 9 or acknowledged
            check_after_a_crash(what, path, before, acknowledged=acknowledged)
            deaths += [words[-2:]] if status == 9 else []
        if not deaths:
            break
        points += [" ".join(death) for death in deaths]
    names = Counter(point.split()[1] for point in points if point.startswith("before"))
    say(
        f"{what}: killed at {len(points)} points of {names.total()} calls: "
        f"{listed(names.elements())}"
    )
    assert number - 1 == names.total() == sum("after" in point for point in points)
    assert names["fsync"] >= {"seeding": 2, "a commit": 2, "a start": 0}[what]
    unlinked = names["unlink"] + names["remove"]
    assert unlinked >= {"a start": 2, "a commit": 0}.get(what, 1)
    assert any("amid" in point for point in points) == (what != "a start")


# --- 2. Killed at any real system call -----------------------------------------------


def traceable():
    """In a child: let any process of this user trace this one (Yama may forbid it)."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)


def under_strace(work, log, *options):
    """The outcome of the work in a child under strace; None where it cannot trace."""
    go, start = os.pipe()
    child, pipe = in_a_child(work, go=go)
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(child), "-o", log, *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    line = tracer.stderr.readline()
    attached = "attached" in line and "rror" not in line
    if not attached:
        os.kill(child, signal.SIGKILL)
    os.write(start, b"!")
    os.close(go)
    os.close(start)
    ended = outcome(child, pipe)
    tracer.communicate(timeout=20)
    return ended if attached else None


@pytest.fixture
def unswept():
    """No older test's files are thrown away meanwhile: a child would be seen to."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("unswept")
def test_a_kill_at_any_real_system_call_leaves_the_old_file_or_the_new(
    place, say, pick
):
    path, log = f"{place}/there/db.json", f"{place}/log"
    trace = pick("trace=%file,%desc", "trace=all", "trace=all")
    require_tool("strace")
    for what in pick(["a commit"], list(WORKS), list(WORKS)):
        fresh(path)
        if (ended := under_strace(WORKS[what](path), log, "-e", trace)) is None:
            skip("strace may not trace here")
        assert ended == (0, ["acknowledged"])
        calls = Counter(re.findall(r"^\d+ +(\w+)\(", read(log).decode(), re.MULTILINE))
        del calls["exit_group"]
        kills = 0
        for name, number in [(n, i + 1) for n in calls for i in range(calls[n])]:
            fresh(path)
            work = WORKS[what](path)
            before = read(path)
            status, words = under_strace(
                work,
                log,
                "-e",
                trace,
                "-e",
                f"inject={name}:signal=SIGKILL:when={number}",
            )
            assert status in {0, -signal.SIGKILL}
            kills += status != 0  # 0: a call fewer than last time, by chance
            check_after_a_crash(what, path, before, acknowledged=bool(words))
        say(f"{what}: killed at {kills} real system calls: {listed(calls.elements())}")
        assert kills > 0.8 * calls.total()


# --- 3. Any call fails ---------------------------------------------------------------


class Failing:
    """Fails call number `wanted` with `error`; knows afterwards which one it was."""

    def __init__(self, wanted, error):
        self.wanted, self.error, self.name, self.in_doubt = wanted, error, "", False
        self.doubtful = 0  # how many calls may still leave the outcome in doubt

    def __call__(self, number, name, call, args):
        if number != self.wanted:
            is_sync = name == "fsync" and stat.S_ISDIR(fstat(args[0]).st_mode)
            self.doubtful = 2 if is_sync else max(0, self.doubtful - 1)
            return call()
        self.name = name
        self.in_doubt = bool(self.doubtful)
        if name == "fsync":
            self.in_doubt = stat.S_ISDIR(fstat(args[0]).st_mode)
        if name == "close":
            call()  # close() may report an error, but has let go all the same
        raise OSError(self.error, os.strerror(self.error))


def in_a_thread(work):
    """Do it as the server would: each request may come to another thread."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(20)
    return results[0]


def descriptors():
    """How many files this process has open."""
    gc.collect()
    return len(os.listdir("/dev/fd"))


def test_a_call_that_fails_changes_nothing_or_leaves_only_durability_in_doubt(
    place, say, unraised, monkeypatch, pick
):
    errors = pick(FEW_ERRORS, ERRORS, ERRORS)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # no manners among neighbours
    path, said = f"{place}/db.json", Counter()
    undo, _ = f"{path}.copy", seeded(path)
    before, store = read(path), Store(path)
    open_before = descriptors()
    for code in errors:
        for number in itertools.count(1):
            with open(undo, "wb") as file:
                file.write(before)
            os.replace(undo, path)  # somebody else's write: it has to be read again
            failing = Failing(number, getattr(errno, code))
            with between(failing):
                try:
                    result = sell(store, "mine")
                except (Unavailable, InDoubt) as refusal:
                    result = refusal
            where = f"{code} from {failing.name}, call {number}"
            assert isinstance(result, InDoubt) == failing.in_doubt, where
            if isinstance(result, Unavailable):
                assert read(path) == before, where
                assert path not in str(result)
            else:
                assert sold(path) == {"theirs", "mine"}, where
            assert leftovers(path) == ([], 0), where
            assert bool(store._must_write) == failing.in_doubt, where
            in_a_thread(partial(sell, store, "next"))
            assert "next" in sold(path), where
            assert not store._must_write, where
            assert unraised == [], where
            said[type(result).__name__] += 1
            if not failing.name:
                break
    del result
    assert descriptors() <= open_before + 1  # the one of what the store has read
    # The folder's fsync, and the two calls that see whether the lock is still ours.
    assert said["InDoubt"] == 3 * len(errors)
    assert said["Unwritable"] > 10 * len(errors)
    say(f"a commit, each call failing in {len(errors)} ways: {dict(said)}")


def test_a_commit_syncs_the_folder_that_holds_the_file(place):
    path, synced = f"{place}/there/db.json", []
    fresh(path)
    work = seeded(path)
    os.rename(f"{place}/there", f"{place}/backup")
    shutil.copytree(f"{place}/backup", f"{place}/there")

    def see(_, name, call, args):
        synced.extend([os.fstat(args[0]).st_ino] if name == "fsync" else [])
        return call()

    with between(see):
        work()
    assert sold(path) == {"theirs", "mine"}
    assert synced == [os.stat(path).st_ino, os.stat(f"{place}/there").st_ino]


@pytest.mark.parametrize("what", ["seeding", "a start"])
def test_a_start_that_fails_leaves_no_half_of_a_file_and_the_next_one_works(
    what, place, say, unraised, pick
):
    errors = pick(FEW_ERRORS, ERRORS, ERRORS)
    path, said = f"{place}/there/db.json", Counter()
    open_before = descriptors()
    for code in errors:
        for number in itertools.count(1):
            fresh(path)
            work = WORKS[what](path)
            before, failing = read(path), Failing(number, getattr(errno, code))
            with between(failing):
                try:
                    result = work()
                except (Unavailable, InDoubt) as refusal:
                    result = refusal
                    assert path not in str(refusal)
            where = f"{code} from {failing.name}, call {number}"
            assert isinstance(result, InDoubt) == failing.in_doubt, where
            if what == "a start" or isinstance(result, Unavailable):
                assert read(path) in {before, seed_bytes(path)}, where
            else:
                assert read(path) == seed_bytes(path), where
            assert unraised == [], where
            check_after_a_crash(what, path, before, acknowledged=result is None)
            said[type(result).__name__] += 1
            if not failing.name:
                break
    assert descriptors() <= open_before
    say(f"{what}, each call failing in {len(errors)} ways: {dict(said)}")


def test_a_request_whose_system_call_fails_gets_the_documented_answer(
    client, db, saved, unraised
):
    order, answers = {"partnerId": "abc-corp", "seats": 1}, Counter()
    for number in itertools.count(1):
        before, failing = db.read_bytes(), Failing(number, errno.ENOSPC)
        with between(failing):
            answer = client.post("/reservations", json=order)
        answers[answer.status_code] += 1
        assert answer.status_code in {201, 503, 500 if failing.in_doubt else 201}
        if answer.status_code == 503:
            assert answer.json["error"].endswith("Nothing was changed.")
            assert db.read_bytes() == before
        if answer.status_code != 201:
            assert list(answer.json) == ["error"]
            assert answer.headers["Retry-After"]
            assert str(db) not in answer.text
        if answer.status_code == 500:
            assert "unknown" in answer.json["error"]
            assert client.get("/_health").status_code == 503
            assert db.read_bytes() != before
        assert client.post("/reservations", json=order).status_code == 201
        assert client.get("/_health").json == {"ok": True}
        if not failing.name:
            break
    assert answers[500] == 3
    assert answers[503] > 10
    assert unraised == []
    event = saved()["event"]
    assert (
        event["version"] == answers[201] + answers[500] + number
    )  # each sale, and no more
    assert event["totalSeats"] - event["availableSeats"] == event["version"]


# --- 4. Power cut --------------------------------------------------------------------
# What a disk may keep, by the rules of no particular file system: of a file that was
# not synced the old, nothing, a part, zeros or all; of the operations on a folder that
# was not synced any subset. What was synced it keeps.


class Disk:
    """One folder, as programs see it and as the disk may have it after a power cut."""

    def __init__(self):
        self.names, self.kept, self.pending = {}, {}, []  # each name: number of a file
        self.files = []  # each: (bytes that were synced, bytes that programs see)

    def do(self, name, *args):
        getattr(self, name)(*args)

    def create(self, name):
        self.files.append((b"", b""))
        self.rename_all({name: len(self.files) - 1})

    def write(self, file, data):
        kept, now = self.files[file]
        self.files[file] = kept, now + data

    def truncate(self, file):
        self.files[file] = self.files[file][0], b""

    def sync(self, file):
        self.files[file] = (self.files[file][1],) * 2

    def sync_folder(self):
        self.kept, self.pending = dict(self.names), []

    def rename(self, old, new):
        self.rename_all({new: self.names[old], old: None})

    def link(self, old, new):
        self.rename_all({new: self.names[old]})

    def unlink(self, name):
        self.rename_all({name: None})

    def acknowledge(self):
        pass

    def rename_all(self, changes):
        self.names |= changes
        self.pending.append(changes)

    def after_a_power_cut(self):
        """All that db.json may be: bytes, or None for no file."""
        for took in itertools.product([False, True], repeat=len(self.pending)):
            names = dict(self.kept)
            for changes in itertools.compress(self.pending, took):
                names |= changes
            if (file := names.get("db.json")) is None:
                yield None
                continue
            kept, now = self.files[file]
            yield from (
                {kept, now}
                if kept == now
                else {
                    kept,
                    now,
                    b"",
                    now[: len(now) // 2],
                    now[:-2],
                    bytes(len(now)),
                    now[: len(now) // 2] + bytes(len(now) - len(now) // 2),
                }
            )


def traced(path):
    """What seeding and two sales do to the disk, as a list for Disk.do."""
    done, open_files, folder = [], {}, os.path.dirname(path)
    names = {}  # as in Disk, to tell which file an opened name is

    def see(_, name, call, args):
        def short(place):
            assert os.path.dirname(place) == folder, place
            return os.path.basename(place)

        result = call()
        if name == "open" and isinstance(result, int) and args[0] != folder:
            if (opened := short(args[0])) not in names:
                names[opened] = len(set(names.values()))
                done.append(("create", opened))
            open_files[result] = names[opened]
            if args[1] & os.O_TRUNC:
                done.append(("truncate", names[opened]))
        elif name == "write":
            done.append(("write", open_files[args[0]], bytes(args[1][:result])))
        elif name in {"fsync", "fdatasync"}:
            done.append(
                ("sync", open_files[args[0]])
                if args[0] in open_files
                else ("sync_folder",)
            )
        elif name in {"replace", "rename"}:
            names[short(args[1])] = names[short(args[0])]
            done.append(("rename", short(args[0]), short(args[1])))
        elif name == "link":
            names[short(args[1])] = names[short(args[0])]
            done.append(("link", short(args[0]), short(args[1])))
        elif name in {"unlink", "remove"}:
            done.append(("unlink", short(args[0])))
        elif name == "close":
            open_files.pop(args[0], None)
        elif name == "ftruncate":
            assert open_files[args[0]] == names[".db.json.lock"]
        else:  # nothing else may change what is in the file, or its name
            assert name in {
                "stat",
                "lstat",
                "fstat",
                "listdir",
                "mkdir",
                "flock",
                "fchmod",
                "fchown",
                "read",
                "open",
                "access",
            } or (str(args[0]).endswith(".lock")), name
        return result

    with between(see):
        store = Store(path)
        store.open(SEATS)
        done.append(("acknowledge",))
        for name in "first", "second":
            sell(store, name)
            done.append(("acknowledge",))
    return done


def version(data, path):
    """The version of a db.json with these bytes; None if a start refuses it."""
    fresh(path)
    with open(path, "wb") as file:
        file.write(data)
    store = Store(path)
    try:
        store.open(SEATS)
    except Unavailable:
        assert read(path) == data
        return None
    return store.load().database.document(None).event.version


def judged(trace, path):
    """(states, unreadable ones, ones that lost what was acknowledged), cut anywhere."""
    disk, acknowledged, versions, found = Disk(), 0, {}, set()
    for step, call in enumerate(trace):
        disk.do(*call)
        acknowledged += call == ("acknowledge",)
        for data in disk.after_a_power_cut():
            if data is not None and data not in versions:
                versions[data] = version(data, path)
            harm = ""
            if data is None:
                harm = "lost" if acknowledged else ""
            elif versions[data] is None:
                harm = "unreadable"
            elif versions[data] + 1 < acknowledged:
                harm = "lost"
            found.add((step, data, harm))
    harms = Counter(harm for _, _, harm in found)
    return len(found), harms["unreadable"], harms["lost"]


def test_a_power_cut_at_any_moment_loses_nothing_acknowledged(tmp_path, say):
    trace = traced(str(tmp_path / "db.json"))
    assert Counter(call[0] for call in trace)["acknowledge"] == 3
    states, unreadable, lost = judged(trace, str(tmp_path / "there" / "db.json"))
    say(
        f"power cut: {states} states of the disk in {len(trace)} steps, "
        f"{unreadable} unreadable, {lost} that lost something"
    )
    assert (unreadable, lost) == (0, 0)
    assert states > 20


def without_sync_of_the_file(trace):
    """The trace of a program that lets the operating system write in its own time."""
    return [call for call in trace if call[0] != "sync"]


def without_sync_of_the_folder(trace):
    """The trace of a program that thinks a rename is durable."""
    return [call for call in trace if call[0] != "sync_folder"]


def renamed_before_it_is_synced(trace):
    """The trace of a program that does both, in the wrong order."""
    trace = list(trace)
    for at, call in enumerate(trace):
        if call[0] in {"rename", "link"}:
            synced = max(i for i in range(at) if trace[i][0] == "sync")
            trace.insert(synced, trace.pop(at))
    return trace


def written_in_place(trace):
    """The trace of a program that opens db.json to write, and syncs it."""
    disk, changed, target = Disk(), [], {}  # a draft's file: the file to write instead
    replaced = {call[1] for call in trace if call[0] == "rename"}
    for call in trace:
        disk.do(*call)
        if call[0] == "create" and call[1] in replaced:
            file = disk.names[call[1]]
            target[file] = target.get(disk.names["db.json"], disk.names["db.json"])
            changed.append(("truncate", target[file]))
            disk.files[target[file]] = b"", b""
        elif call[0] in {"write", "sync"}:
            changed.append((call[0], target.get(call[1], call[1]), *call[2:]))
        elif call[0] != "rename":
            changed.append(call)
    return changed


@pytest.mark.parametrize(
    ("plant", "harms"),
    [
        (without_sync_of_the_file, "unreadable"),
        (without_sync_of_the_folder, "lost"),
        (renamed_before_it_is_synced, "unreadable"),
        (written_in_place, "unreadable"),
    ],
)
def test_the_model_of_a_power_cut_catches_each_faulty_program(
    plant, harms, tmp_path, say
):
    planted = plant(traced(str(tmp_path / "db.json")))
    states, unreadable, lost = judged(planted, str(tmp_path / "there" / "db.json"))
    say(
        f"power cut, {plant.__name__.replace('_', ' ')}: {states} states, "
        f"{unreadable} unreadable, {lost} that lost something"
    )
    assert {"unreadable": unreadable, "lost": lost}[harms] > 0
