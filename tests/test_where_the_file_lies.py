"""Wherever db.json lies, the server works, or prints one line with the remedy.

A container mounts it, root was there first, an editor saved it, a disk is full, a
filesystem has no hard links, a process may open few files, a terminal has no Unicode.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import programs
import pytest
from conftest import wait_until
from deployed import (
    CLOCK,
    ORDER,
    REFUSED_RENAMES,
    Clock,
    Launched,
    Wire,
    ended,
    ended_in_here,
    held,
    one_line,
)
from keepalive import Client
from programs import PROGRAM
from test_readme import can_connect, free_ports

SEED = """{
  "event": {
    "eventId": "node-meetup-2025",
    "name": "Node.js Meet-up",
    "totalSeats": 500,
    "availableSeats": 500,
    "version": 0
  },
  "reservations": {}
}
"""
START = ("--port", "0", "--quiet")
PASSWORD = "securePassword1\n" * 2
# A mount of its own for this process and what it starts: gone when they have ended.
PRIVATE_MOUNTS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def mounted(*arguments):
    if libc.mount(*arguments):
        print("no mounts here", file=sys.stderr)
        os._exit(77)
def private():
    if libc.unshare(0x20000):
        print("no mounts here", file=sys.stderr)
        os._exit(77)
    mounted(None, b"/", None, 0x44000, None)
"""
A_FILE = f"""
{PRIVATE_MOUNTS}
private()
mounted(b"db.json", b"db.json", None, 0x1000, None)
"""
A_FOLDER = f"""
{PRIVATE_MOUNTS}
private()
mounted(os.getcwdb(), os.getcwdb(), None, 0x1000, None)
os.chdir(os.getcwd())
"""
READ_ONLY = f"""
{A_FOLDER}
mounted(None, os.getcwdb(), None, 0x1021, None)
"""
NOBODY = pwd.getpwnam("nobody")
AS_NOBODY = f"""
import encodings.idna, getpass, os
import ticketboss  # all of it while root may still read it
os.setgroups([])
os.setgid({NOBODY.pw_gid})
os.setuid({NOBODY.pw_uid})
"""
NO_LINKS = """
import os
def link(source, target, **more):
    raise OSError({0}, os.strerror({0}), source, None, target)
os.link = link
"""


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """While it is there, renames fail with the error whose number is in it."""
    return tmp_path.with_name(f"{tmp_path.name}.flag")


@pytest.fixture
def launch(db: Path, flag: Path) -> Iterator[Callable[..., Launched]]:
    """launch(first, *options, db=None, **env): a server, ended after the test."""
    with ExitStack() as running:

        def launch(first: str, *options: str, db: Path = db, **env: str) -> Launched:
            try:
                server = Launched(
                    db, *START, *options, first=first, FLAG=str(flag), **env
                )
            except AssertionError as failure:
                if "no mounts here" in str(failure):
                    pytest.skip("this user may not mount anything here")
                raise
            running.callback(server.stop)
            return server

        yield launch


def listing(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def seats_free(file: Path) -> int:
    return json.loads(file.read_bytes())["event"]["availableSeats"]


@pytest.fixture
def refused(db: Path, flag: Path) -> Iterator[Callable[..., str]]:
    """refused(*options, first=""): the error of a start that is refused.

    Where it is not, it finds its port taken: no test hangs.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = str(listening.getsockname()[1])

        def refused(*options: str, first: str = "") -> str:
            code, out, err = ended(
                db.parent, *options, "--port", port, first=first, FLAG=str(flag)
            )
            if "no mounts here" in err:
                pytest.skip("this user may not mount anything here")
            assert (code, out) == (1, "")
            return err

        yield refused


# --- A start proves that it can write ----------------------------------------


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV], ids=errno.errorcode.get)
def test_a_file_that_cannot_be_replaced_stops_the_start_and_stays_as_it_is(
    refused, db, flag, number
):
    db.write_text(SEED)
    flag.write_text(str(number))
    err = refused(first=REFUSED_RENAMES)
    one_line(err, str(db), os.strerror(number), "ount the folder")
    assert "reset" not in err
    assert db.read_text() == SEED
    assert listing(db.parent) == [".db.json.lock", "db.json"]


def test_a_file_that_is_a_mount_of_its_own_stops_the_start(refused, db):
    db.write_text(SEED)
    one_line(refused(first=A_FILE), str(db), "ount the folder")
    assert db.read_text() == SEED
    assert listing(db.parent) == [".db.json.lock", "db.json"]


def test_a_folder_that_is_mounted_serves(launch, db):
    server = launch(A_FOLDER)
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    assert server.ask("GET", "/_health")[:2] == (200, {"ok": True})
    assert seats_free(db) == 499


def test_a_start_on_a_file_that_can_be_replaced_changes_no_byte_of_it(launch, db):
    server = launch("")
    sold = server.ask("POST", "/reservations", ORDER)[1]["reservationId"]
    server.stop()
    db.chmod(0o640)
    before = db.read_bytes()
    again = launch("")
    assert again.ask("GET", f"/reservations/{sold}")[0] == 200
    assert db.read_bytes() == before
    assert stat.S_IMODE(db.stat().st_mode) == 0o640
    assert listing(db.parent) == [".db.json.lock", "db.json"]


def test_an_audit_replaces_nothing(db, flag):
    db.write_text(SEED)
    flag.write_text(str(errno.EBUSY))
    code, out, err = ended(db.parent, "audit", first=REFUSED_RENAMES, FLAG=str(flag))
    assert (code, err) == (0, "")
    assert "500 available" in out


@pytest.mark.parametrize(
    "number",
    [errno.ENOSPC, errno.EACCES],
    ids=errno.errorcode.get,
)
def test_reads_are_served_while_nothing_can_be_written(launch, db, flag, number):
    db.write_text(SEED)
    flag.write_text(str(number))
    server = launch(REFUSED_RENAMES)
    assert server.ask("GET", "/event")[1]["availableSeats"] == 500
    status, told, _ = server.ask("GET", "/_health")
    assert (status, told["ok"]) == (503, False)
    assert os.strerror(number) in told["error"]
    status, _, headers = server.ask("POST", "/reservations", ORDER)
    assert status == 503
    assert "Retry-After" in headers
    assert db.read_text() == SEED
    assert listing(db.parent) == [".db.json.lock", "db.json"]
    flag.unlink()
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    assert server.ask("GET", "/_health")[:2] == (200, {"ok": True})
    code, _, err = server.stop()
    assert code == 0
    one_line(err, str(db), os.strerror(number))


def test_a_folder_that_is_mounted_read_only_serves_reads(launch, db):
    db.write_text(SEED)
    server = launch(READ_ONLY)
    assert server.ask("GET", "/event")[1]["availableSeats"] == 500
    assert server.ask("GET", "/_health")[0] == 503
    assert server.ask("POST", "/reservations", ORDER)[0] == 503
    code, _, err = server.stop()
    assert code == 0
    one_line(err, os.strerror(errno.EROFS))
    assert listing(db.parent) == ["db.json"]
    assert db.read_text() == SEED


def test_a_write_that_failed_is_bad_health_until_one_succeeds(launch, db, flag):
    server = launch(REFUSED_RENAMES)
    assert server.ask("GET", "/_health")[:2] == (200, {"ok": True})
    flag.write_text(str(errno.EIO))
    assert server.ask("POST", "/reservations", ORDER)[0] == 503
    status, told, _ = server.ask("GET", "/_health")
    assert (status, told["ok"]) == (503, False)
    assert str(db.parent) not in told["error"]
    assert server.ask("GET", "/event")[:1] == (200,)
    flag.unlink()
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    assert server.ask("GET", "/_health")[:2] == (200, {"ok": True})
    assert seats_free(db) == 499


def test_health_tries_another_write_and_so_recovers(launch, db, flag, tmp_path):
    beside = tmp_path.with_name(f"{tmp_path.name}.clock")
    beside.mkdir()
    clock = Clock(beside)
    server = launch(CLOCK + REFUSED_RENAMES, CLOCK=str(clock.path))
    flag.write_text(str(errno.ENOSPC))
    assert server.ask("POST", "/reservations", ORDER)[0] == 503
    before = db.read_bytes()
    flag.unlink()
    clock.jump(6)  # it is proved once in 5 s at most
    assert server.ask("GET", "/_health")[:2] == (200, {"ok": True})
    assert db.read_bytes() == before
    assert listing(db.parent) == [".db.json.lock", "db.json"]


def test_a_lock_that_another_process_holds_is_good_health(launch, db):
    server = launch("")
    with held(db):
        assert server.ask("POST", "/reservations", ORDER)[0] == 409
        assert server.ask("GET", "/_health")[:2] == (200, {"ok": True})
    assert server.ask("POST", "/reservations", ORDER)[0] == 201


# --- Somebody else was there first -------------------------------------------


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A folder that is nobody's own, for those who run as root."""
    if os.geteuid():
        pytest.skip("only root can be another user")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    try:
        if not nobody_can_run_it():
            pytest.skip("the program lies where only root can read it")
        yield folder
    finally:
        shutil.rmtree(folder)


@functools.cache
def nobody_can_run_it() -> bool:
    """Whether another user may read the program and what it imports."""
    return ended(Path("/"), "--help", first=AS_NOBODY)[0] == 0


def owners(folder: Path) -> dict[str, tuple[int, int]]:
    """Whose the files are."""
    found = ((p.name, p.lstat()) for p in folder.iterdir())
    return {name: (status.st_uid, status.st_gid) for name, status in found}


@pytest.mark.parametrize(
    ("command", "stdin"),
    [(("reset", "--yes"), ""), (("admin", "boss@example.com"), PASSWORD)],
    ids=["reset", "admin"],
)
def test_files_that_root_creates_belong_to_the_owner_of_the_folder(
    launch, theirs, command, stdin
):
    code, _, err = ended_in_here(theirs, *command, stdin=stdin)
    assert code == 0, err
    nobody = (NOBODY.pw_uid, NOBODY.pw_gid)
    assert owners(theirs) == {"db.json": nobody, ".db.json.lock": nobody}
    server = launch(AS_NOBODY, db=theirs / "db.json")
    assert server.ask("POST", "/reservations", ORDER)[0] == 201


def test_files_that_root_creates_beside_db_json_belong_to_its_owner(theirs):
    os.chown(theirs, 0, 0)
    file = theirs / "db.json"
    file.write_text(SEED)
    os.chown(file, NOBODY.pw_uid, NOBODY.pw_gid)
    file.chmod(0o640)
    code, _, err = ended_in_here(theirs, "reset", "--yes", "--seats", "7")
    assert code == 0, err
    found, nobody = owners(theirs), (NOBODY.pw_uid, NOBODY.pw_gid)
    assert len(found) == 3  # the file, the old one, the lock
    assert set(found.values()) == {nobody}
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert seats_free(file) == 7


def test_a_reset_keeps_the_mode_of_the_file(db):
    db.write_text(SEED)
    db.chmod(0o660)
    assert ended_in_here(db.parent, "reset", "--yes", "--seats", "7")[0] == 0
    assert seats_free(db) == 7
    modes = {stat.S_IMODE(p.stat().st_mode) for p in db.parent.iterdir()}
    assert modes == {0o660}  # the new file, the old one, and the lock of both


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("is_link", [False, True])
def test_a_reset_moves_only_a_plain_file(db, make, is_link):
    odd = db.with_name("odd") if is_link else db
    make(odd)
    if is_link:
        db.symlink_to(odd)
    before = os.lstat(odd)
    code, out, err = ended_in_here(db.parent, "reset", "--yes")
    assert (code, out) == (1, "")
    one_line(err, str(odd), "not a regular file")
    assert os.path.samestat(os.lstat(odd), before)
    assert {p for p in db.parent.iterdir() if p.suffix != ".lock"} == {db, odd}


def test_a_lock_is_readable_by_its_owner_alone_where_the_file_holds_accounts(
    launch, db
):
    done = ended_in_here(db.parent, "admin", "boss@example.com", stdin=PASSWORD)
    assert done[0] == 0
    lock = db.parent / ".db.json.lock"
    lock.unlink()
    db.chmod(0o644)
    assert launch("").ask("POST", "/reservations", ORDER)[0] == 201
    modes = [stat.S_IMODE(file.stat().st_mode) for file in (db, lock)]
    assert modes == [0o600, 0o600]


def test_a_refused_lock_is_reported_with_its_path_and_owner(launch, theirs):
    file, lock = theirs / "db.json", theirs / ".db.json.lock"
    file.write_text(SEED)
    os.chown(file, NOBODY.pw_uid, NOBODY.pw_gid)
    lock.touch(0o600)
    code, out, err = ended(theirs, "reset", "--yes", first=AS_NOBODY)
    assert (code, out) == (1, "")
    one_line(err, str(lock), "root")
    server = launch(AS_NOBODY, db=file)
    assert server.ask("GET", "/event")[1]["availableSeats"] == 500
    assert server.ask("GET", "/_health")[0] == 503
    assert server.ask("POST", "/reservations", ORDER)[0] == 503
    code, _, err = server.stop()
    assert code == 0
    one_line(err, str(lock), "root")
    assert file.read_text() == SEED


@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "folder"])
def test_a_lock_that_is_not_a_file_of_ours_is_refused_and_left_alone(
    db, tmp_path, kind
):
    db.write_text(SEED)
    victim = tmp_path / "victim"
    victim.write_text("somebody's own")
    victim.chmod(0o644)
    if kind == "symbolic link":
        (tmp_path / ".db.json.lock").symlink_to(victim)
    elif kind == "hard link":
        (tmp_path / ".db.json.lock").hardlink_to(victim)
    else:
        (tmp_path / ".db.json.lock").mkdir()
    before = victim.stat()
    code, out, err = ended_in_here(tmp_path, "reset", "--yes")
    assert (code, out) == (1, "")
    one_line(err, str(tmp_path / ".db.json.lock"))
    assert "it is not a regular file with one name" in err
    after = victim.stat()
    assert victim.read_text() == "somebody's own"
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)
    assert db.read_text() == SEED


# --- No hard links -----------------------------------------------------------


@pytest.mark.parametrize(
    "number", [errno.EPERM, errno.ENOTSUP], ids=errno.errorcode.get
)
def test_a_first_start_needs_no_hard_links(launch, db, number):
    server = launch(NO_LINKS.format(number), "--seats", "500")
    assert db.read_text() == SEED
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    assert listing(db.parent) == [".db.json.lock", "db.json"]


def test_a_reset_needs_no_hard_links_and_keeps_the_old_file(db):
    db.write_text(SEED)
    first = NO_LINKS.format(errno.EPERM)
    code, out, err = ended(db.parent, "reset", "--yes", "--seats", "7", first=first)
    assert (code, err) == (0, "")
    assert seats_free(db) == 7
    [kept] = set(listing(db.parent)) - {"db.json", ".db.json.lock"}
    assert str(db.parent / kept) in out
    assert (db.parent / kept).read_text() == SEED


# --- A byte order mark -------------------------------------------------------


def test_a_file_with_a_byte_order_mark_is_written_without_the_mark(launch, db):
    db.write_text(SEED, encoding="utf-8-sig")
    assert ended_in_here(db.parent, "audit")[0] == 0
    server = launch("")
    assert server.ask("POST", "/reservations", ORDER)[0] == 201
    assert seats_free(db) == 499
    assert not db.read_bytes().startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/reservations", ORDER, 201),
        ("/book", {"eventId": "node-meetup-2025", "userId": 1}, 200),
        ("/initialize", {"eventId": 1, "totalTickets": 9}, 201),
    ],
)
def test_a_body_that_begins_with_a_byte_order_mark_is_read(client, path, body, status):
    sent = json.dumps(body).encode("utf-8-sig")
    assert client.post(path, data=sent).status_code == status


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf" * 2 + b"{}", b"{}\xef\xbb\xbf"])
def test_a_byte_order_mark_that_is_not_at_the_start_is_invalid_json(client, db, body):
    before = db.read_bytes()
    assert client.post("/reservations", data=body).status_code == 400
    assert db.read_bytes() == before


# --- A copy of itself --------------------------------------------------------


@pytest.mark.parametrize("target", ["db.json", "./db.json", "link.json"])
def test_a_copy_onto_itself_is_refused_at_once_and_changes_nothing(db, target):
    db.write_text(SEED)
    db.with_name("link.json").symlink_to("db.json")
    code, out, err = ended_in_here(db.parent, "copy", "db.json", target)
    assert (code, out) == (1, "")
    one_line(err, target.removeprefix("./"), "already exists")
    assert db.read_text() == SEED


# --- Advice that fits --------------------------------------------------------


def advice(text: str) -> str:
    """The text of a message of one line, in lower case."""
    one_line(text)
    return text.lower()


def test_the_error_for_a_missing_folder_suggests_no_reset(refused, tmp_path):
    err = refused("--db", "gone/db.json")
    assert "reset" not in advice(err)
    assert str(tmp_path / "gone") in err
    assert "--db" in err
    assert listing(tmp_path) == []


def test_the_error_for_a_missing_file_suggests_no_reset(db):
    code, out, err = ended_in_here(db.parent, "audit")
    assert (code, out) == (1, "")
    assert "reset" not in advice(err)
    assert str(db) in err
    assert "--db" in err
    assert listing(db.parent) == []


def test_the_error_for_a_held_lock_names_it_and_suggests_no_repair(db):
    db.write_text(SEED)
    with held(db):
        code, out, err = ended_in_here(db.parent, "reset", "--yes")
    assert (code, out) == (1, "")
    assert "reset" not in advice(err)
    assert "another process" in err
    assert str(db.parent / ".db.json.lock") in err
    assert db.read_text() == SEED


def test_the_error_for_a_full_disk_asks_for_space(db, flag):
    db.write_text(SEED)
    flag.write_text(str(errno.ENOSPC))
    code, out, err = ended(
        db.parent, "reset", "--yes", first=REFUSED_RENAMES, FLAG=str(flag)
    )
    assert (code, out) == (1, "")
    assert "`python ticketboss.py" not in advice(err)
    assert "space" in err.replace(os.strerror(errno.ENOSPC), "")
    assert db.read_text() == SEED
    assert listing(db.parent) == [".db.json.lock", "db.json"]


def test_the_error_for_a_missing_right_names_the_owner(theirs):
    file = theirs / "db.json"
    file.write_text(SEED)
    file.chmod(0o600)  # root's
    code, out, err = ended(theirs, "audit", first=AS_NOBODY)
    assert (code, out) == (1, "")
    assert "reset" not in advice(err)
    assert str(file) in err
    assert "root" in err


def test_the_error_for_a_folder_of_another_user_names_that_cause_alone(theirs):
    os.chown(theirs, 0, 0)  # as a container's volume is at first
    code, out, err = ended(theirs, "--port", "0", first=AS_NOBODY)
    assert (code, out) == (1, "")
    text = advice(err)
    assert os.strerror(errno.EACCES).lower() in text
    assert "root" in text
    assert "owner" in text
    assert os.strerror(errno.ENOENT).lower() not in text
    assert listing(theirs) == []


def test_the_error_for_a_file_name_that_is_too_long_names_that_cause(refused):
    err = refused("--db", f"{'x' * 240}.json")
    assert os.strerror(errno.ENAMETOOLONG) in err
    assert os.strerror(errno.ENOENT) not in err


def test_the_error_for_unreadable_content_suggests_a_reset(refused, db):
    db.write_text("{")
    assert "reset" in advice(refused())
    assert db.read_text() == "{"


# --- Few descriptors ---------------------------------------------------------

LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {1}))
"""


NO_THREADS = """
import resource, threading
threading.stack_size(64 * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
"""


def test_a_server_that_gets_no_threads_ends_in_one_line(db):
    code, out, err = ended(db.parent, "--port", "0", first=NO_THREADS)
    assert code == 1
    assert "Serving" not in out
    one_line(err, "thread", "ulimit")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_for_the_log_does_not_stop_sales(db):
    port = str(free_ports(1)[0])
    command = [sys.executable, str(PROGRAM), "--db", str(db), "--port", port]
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(command, stdout=full, stderr=full)
    try:
        wait_until(lambda: process.poll() is not None or can_connect(port))
        with Client(f"http://127.0.0.1:{port}") as client:
            for _ in range(3):
                assert client.ask("POST", "/reservations", ORDER).status == 201
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_low_soft_limit_of_files_is_raised(launch):
    server = launch(LIMIT.format(256, 4096))
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Wire(server.address))
        assert server.ask("POST", "/reservations", ORDER)[0] == 201
        assert server.ask("GET", "/event")[1]["version"] == 1
    assert server.stop()[2] == ""


def test_under_a_low_hard_limit_of_files_new_clients_are_served(launch, db):
    server = launch(LIMIT.format(256, 256))
    with ExitStack() as stack:
        idle = [stack.enter_context(Wire(server.address)) for _ in range(300)]
        for _ in range(3):
            assert server.ask("POST", "/reservations", ORDER)[0] == 201
        assert idle[0].is_dropped()  # idle for longest
        status, _, _ = idle[-1].ask("GET /event HTTP/1.1")
        assert status == 200
    code, _, err = server.stop()
    assert code == 0
    one_line(err, "connections")
    assert seats_free(db) == 497


# --- A terminal without Unicode ----------------------------------------------


def test_a_name_that_the_terminal_cannot_show_is_escaped(db):
    db.write_text(SEED.replace("Node.js Meet-up", "Łź"), encoding="utf-8")
    encoding = "iso-8859-1"
    with ExitStack() as stack:
        server = Launched(
            db, *START, PYTHONIOENCODING=f"{encoding}:strict", PYTHONUTF8="0"
        )
        stack.callback(server.stop)
        assert "\\u0141" in server.banner
        assert server.ask("GET", "/event")[1]["name"] == "Łź"


def test_an_audit_escapes_what_the_terminal_cannot_show(db):
    named = SEED.replace("node-meetup-2025", "Łź")
    db.write_text(named, encoding="utf-8")
    code, out, err = ended(db.parent, "audit", PYTHONIOENCODING="iso-8859-1")
    assert (code, err) == (0, "")
    assert "\\u0141\\u017a" in out


def test_a_refusal_escapes_what_the_terminal_cannot_show(tmp_path):
    code, out, err = ended(
        tmp_path, "audit", "--db", "Łź/db.json", PYTHONIOENCODING="iso-8859-1:strict"
    )
    assert (code, out) == (1, "")
    one_line(err, "\\u0141")


SMALL_RACE = (
    *("race", "--clients", "2", "--seats", "4", "--requests", "4"),
    *("--think", "0", "--events", "1"),
)


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_a_race_is_shown_on_a_terminal_without_unicode(tmp_path, encoding):
    code, out, err = ended(tmp_path, *SMALL_RACE, PYTHONIOENCODING=encoding)
    assert "Traceback" not in err
    assert code == 0
    assert "optimistic" in out


# --- A race where it cannot run ----------------------------------------------


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_a_race_without_shared_memory_is_one_line(tmp_path, number):
    first = f"""
import os, _multiprocessing
class NoSemaphores:
    SEM_VALUE_MAX = 1
    def __init__(self, *arguments, **more):
        raise OSError({number}, os.strerror({number}))
_multiprocessing.SemLock = NoSemaphores
"""
    code, out, err = ended(tmp_path, *SMALL_RACE, first=first)
    plan, *_, error = err.splitlines()
    assert (code, out) == (1, "")
    assert "races" in plan
    assert "Traceback" not in err
    one_line(error, os.strerror(number), "/dev/shm")


def test_a_race_states_its_duration_before_the_start(tmp_path):
    process = programs.start(tmp_path, *SMALL_RACE, "--think", "5")
    try:
        assert process.stderr is not None
        assert re.search(r"about \d+ (seconds|minutes)", process.stderr.readline())
    finally:
        process.kill()
        process.communicate()
