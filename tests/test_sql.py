"""The store in PostgreSQL: what it promises, and each of its failures.

What both stores promise is tested by --store=postgresql. Here is what only a database
does: it goes away and comes back, loses an answer, fails over to a server that is
behind, fills its disk, is shared, is edited by hand.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import socket
import subprocess
import threading
import uuid
from pathlib import Path

import postgres
import programs
import pytest
from conftest import HERE, SQLPlace, require_tool, wait_until
from deployed import ended_in_here
from keepalive import Crowd
from postgres import psycopg

import ticketboss as t

SEATS = 500


@pytest.fixture
def database(cluster, tmp_path):
    """A schema of this test's own."""
    return SQLPlace(cluster, tmp_path)


@pytest.fixture
def store(database):
    """A store of it, with the first event."""
    store = t.open_store(database.url)
    store.open(SEATS)
    return store


@pytest.fixture
def other(store, database):
    """The store of another process on the same database."""
    return t.open_store(database.url)


def order(name, seats=1):
    return t.Reservation(name, name, seats, "waitlisted")


def wanting(seen, *names, event=None):
    """What was seen, with a sale to each of these."""
    document = seen.database.document(event)
    for name in names:
        document = document.reserve(order(name))
    return seen.database.with_document(document)


def sell(store, *names, event=None):
    """Whether these have their seats now."""
    seen = store.load()
    return store.swap(seen, wanting(seen, *names, event=event))


def sold(store):
    """The names with a seat of the first event, in the order of the list."""
    return [*store.load().database.document(None).reservations]


def version(store):
    return store.load().database.document(None).event.version


# --- what it promises ----------------------------------------------------------------


def test_a_first_start_stores_the_same_content_as_a_file(store, tmp_path):
    file = t.open_store(str(tmp_path / "db.json"))
    file.open(SEATS)
    assert store.load().database == file.load().database
    store.open(7)  # a second start changes nothing
    assert store.load().database == file.load().database


def test_the_slower_of_two_swaps_is_refused(store, other):
    ann, bob = store.load(), other.load()
    assert store.swap(ann, wanting(ann, "ann"))
    assert not other.swap(bob, wanting(bob, "bob"))
    assert sold(store) == sold(other) == ["ann"]
    assert version(other) == 1


def test_a_swap_of_one_event_keeps_the_changes_of_another(store, other):
    seen = store.load()
    event = t.Document.open(None, t.Event(2, "Another", 5, 5, 0))
    assert store.swap(seen, seen.database.with_document(event))
    ann, bob = store.load(), other.load()
    assert store.swap(ann, wanting(ann, "ann"))
    assert other.swap(bob, wanting(bob, "bob", event="2"))
    for each in store, other:
        database = each.load().database
        assert [*database.document(None).reservations] == ["ann"]
        assert [*database.document("2").reservations] == ["bob"]


def test_each_process_sees_the_sales_of_another_at_its_next_read(store, other):
    for number in range(100):
        assert sell((store, other)[number % 2], str(number))
        assert sold(store) == sold(other) == [str(n) for n in range(number + 1)]


def test_a_sale_writes_and_a_reading_fetches_only_the_rows_that_changed(
    store, other, database
):
    sell(store, *(str(n) for n in range(100)))
    other.load()
    sell(store, "new")
    fetched = database.cluster.execute(
        f"SELECT id FROM {database.schema}.ticketboss WHERE swap = 3 ORDER BY born"
    )
    assert [key for (key,) in fetched] == ["root", "", "new"]
    known = other.load().database.document(None).reservations
    assert len(known) == 101


def test_a_closed_event_leaves_no_row_of_a_booking_behind(store, other, database):
    seen = store.load()
    event = t.Document.open(None, t.Event(2, "Another", 5, 5, 0))
    assert store.swap(seen, seen.database.with_document(event))
    assert sell(store, "ann", event="2")
    assert "ann" in other.load().database.document("2").reservations
    seen = store.load()
    closed = seen.database.document("2").close()
    assert store.swap(seen, seen.database.with_document(closed))
    assert other.load().database == store.load().database
    assert other.load().database.documents["2"] == closed
    rows = f"SELECT count(*) FROM {database.schema}.ticketboss WHERE id = 'ann'"
    assert database.cluster.execute(rows) == [(0,)]


def test_a_reservation_comes_after_all_that_were_there_in_every_list(store, database):
    for name in "c", "a", "b":
        sell(store, name)
    assert sold(t.open_store(database.url)) == ["c", "a", "b"]


def test_waiting_threads_share_one_query_that_began_after_they_arrived(store, other):
    answers = []
    # Each sells in turn, so that no sale is refused by another's.
    turn = threading.Lock()

    def in_turn(name):
        for number in range(25):
            with turn:
                assert sell(other, f"{name}-{number}")
            answers.append(f"{name}-{number}" in sold(store))

    threads = [threading.Thread(target=in_turn, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [True] * 200


class Joined(dict):
    """The answers that threads wait for; counts who asked for one."""

    asked = 0

    def setdefault(self, *arguments):
        answer = super().setdefault(*arguments)
        self.asked += 1
        return answer


def test_who_comes_during_a_query_shares_the_next_one_with_all_who_wait(
    store, other, monkeypatch
):
    store.load()
    store._next_answer = joined = Joined()
    has_read, may_answer, queries, answers = (
        threading.Event(),
        threading.Event(),
        [],
        [],
    )
    read_rows = t._read_rows

    def read_slowly(db, known):
        found = read_rows(db, known)
        if db is store._connections["reader", os.getpid()]:
            queries.append(found)
            has_read.set()
            assert may_answer.wait(30)
        return found

    monkeypatch.setattr(t, "_read_rows", read_slowly)
    threads = [threading.Thread(target=lambda: answers.append(sold(store)))]
    threads[0].start()
    assert has_read.wait(30)
    assert sell(other, "ann")
    for _ in range(5):
        threads.append(threading.Thread(target=lambda: answers.append(sold(store))))
        threads[-1].start()
    wait_until(lambda: joined.asked == 6)
    may_answer.set()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [[]] + [["ann"]] * 5
    assert len(queries) == 2


def test_all_who_wait_for_a_query_that_fails_are_refused_and_the_next_is_answered(
    store, monkeypatch, caplog
):
    caplog.set_level("INFO", "ticketboss")
    store.load()
    store._next_answer = joined = Joined()
    errors = []

    def fail(db, known):
        wait_until(lambda: joined.asked == 5)
        raise psycopg.OperationalError("the server closed the connection")

    def read():
        with pytest.raises(t.Unavailable) as error:
            store.load()
        errors.append(str(error.value))

    with monkeypatch.context() as patched:
        patched.setattr(t, "_read_rows", fail)
        threads = [threading.Thread(target=read) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert errors == ["The database cannot be used"] * 5
    assert "The database cannot be used: the server closed the conn" in caplog.text
    assert sold(store) == []


def test_a_lock_excludes_every_other_writer(store, database):
    impatient = t.open_store(database.url, 0.2)
    with store.lock():
        seen = impatient.load()  # a reader is let in
        with pytest.raises(t.Contended):
            impatient.swap(seen, wanting(seen, "ann"))
        assert sell(store, "bob")
    assert sell(impatient, "ann")
    assert sold(store) == ["bob", "ann"]


def test_a_seller_that_stops_in_the_middle_does_not_block_the_others(store, database):
    # The server ends the transaction of a client that is silent while it has the lock.
    stopped = t.open_store(database.url, 0.3)
    with stopped.lock():
        assert sell(store, "ann")
        assert sell(stopped, "bob")
    assert sold(store) == ["ann", "bob"]


# --- its failures --------------------------------------------------------------------


def test_a_database_that_comes_back_is_used_again_without_a_restart(own, serve):
    place = own.url()
    server = serve(db=Here(place))
    assert server.ask("POST", "/reservations", ONE)[0] == 201
    own.kill()
    for method, path in ("GET", "/event"), ("POST", "/reservations"):
        status, body, _ = server.ask(method, path, ONE if method == "POST" else None)
        assert status == 503
        assert "cannot be used" in body["error"]
    assert server.ask("GET", "/_health")[0] == 503
    own.start()
    assert server.ask("GET", "/_health")[0] == 200
    assert server.ask("GET", "/event")[1]["version"] == 1
    assert server.ask("POST", "/reservations", ONE)[0] == 201


ONE = {"partnerId": "abc-corp", "seats": 1}


class Here:
    """A URL where a server expects a path."""

    def __init__(self, url: str) -> None:
        self.url, self.parent = url, HERE

    def __str__(self) -> str:
        return self.url


class Cut:
    """Stands between a store and its server; cuts the line in the next commit."""

    def __init__(self, store, monkeypatch):
        self.when, self.then = "", lambda: None
        write = t._write_rows

        def write_rows(db, *args):
            write(db, *args)
            if self.when:
                when, self.when = self.when, ""
                monkeypatch.setattr(t, "_write_rows", write)
                if when == "after":
                    db.commit()
                db.pgconn.finish()
                self.then()
                monkeypatch.setattr(t, "_write_rows", write_rows)
                raise psycopg.OperationalError("server closed the connection")

        monkeypatch.setattr(t, "_write_rows", write_rows)


@pytest.mark.parametrize("others", [0, 1, 5, 30])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_commit_whose_answer_is_lost_is_looked_up(
    store, other, monkeypatch, when, others
):
    sell(store, "early")
    seen = store.load()
    cut = Cut(store, monkeypatch)

    def follow():
        for number in range(others):
            assert sell(other, f"other-{number}")

    cut.when, cut.then = when, follow
    told = store.swap(seen, wanting(seen, "ann"))
    assert told == (when == "after")
    assert ("ann" in sold(other)) == told
    assert sold(store) == sold(other)
    assert version(store) == 1 + others + told


@pytest.mark.parametrize("when", ["before", "after"])
def test_only_a_database_that_stays_away_leaves_a_commit_in_doubt(
    own, monkeypatch, when
):
    store = t.open_store(own.url(), 0.2)
    store.open(SEATS)
    seen = store.load()
    cut = Cut(store, monkeypatch)
    cut.when, cut.then = when, own.kill
    with pytest.raises(t.InDoubt, match=r"outcome is unknown.*Read the event"):
        store.swap(seen, wanting(seen, "ann"))
    own.start()
    assert ("ann" in sold(store)) == (when == "after")


def test_a_commit_that_more_swaps_followed_than_are_remembered_is_in_doubt(
    store, other, monkeypatch
):
    seen = store.load()
    cut = Cut(store, monkeypatch)

    def follow():
        for number in range(64 + 2):
            assert sell(other, f"other-{number}")

    cut.when, cut.then = "after", follow
    with pytest.raises(t.InDoubt):
        store.swap(seen, wanting(seen, "ann"))
    assert "ann" in sold(store)


@pytest.mark.parametrize("later", [0, 1, 3, 5, 80])
def test_a_failover_that_loses_swaps_discards_the_documents_read_from_them(
    store, other, database, later
):
    # Played with a copy of the table: the new primary is the old one of a while ago.
    table = f"{database.schema}.ticketboss"
    for number in range(8):
        assert sell(store, f"kept-{number}")
    database.cluster.execute(f"CREATE TABLE {database.schema}.b AS TABLE {table}")
    for number in range(3):
        assert sell(store, f"lost-{number}")
    seen = store.load()
    stale = wanting(seen, "stale")
    database.cluster.execute(
        f"DELETE FROM {table}; INSERT INTO {table} TABLE {database.schema}.b"
    )
    fresh = t.open_store(database.url)
    for number in range(later):  # the same numbers again, with other contents
        assert sell(fresh, f"new-{number}")
    assert not store.swap(seen, stale)
    expected = [f"kept-{n}" for n in range(8)] + [f"new-{n}" for n in range(later)]
    assert sold(store) == sold(fresh) == expected
    assert store.load().database == fresh.load().database


@pytest.mark.parametrize("level", ["repeatable%5C%20read", "serializable"])
def test_a_database_whose_default_is_stricter_refuses_no_sale(cluster, level):
    url = SQLPlace(cluster, Path()).url
    url += f"%20-cdefault_transaction_isolation%3D{level}"
    stores = [t.open_store(url, 20) for _ in range(4)]
    stores[0].open(SEATS)

    def buy(store):
        for _ in range(10):
            t.Transactions(store, timeout_s=20).transact(
                lambda database: database.with_document(
                    database.document(None).reserve(order(str(uuid.uuid4())))
                )
            )

    with Crowd(4, lambda number: buy(stores[number])):
        pass
    assert len(sold(stores[0])) == version(stores[0]) == 40


def failing(database, code, text):
    """Let each write fail with this error of PostgreSQL's; how to end that."""
    schema = database.schema
    database.cluster.execute(
        f"CREATE FUNCTION {schema}.fail() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE '{text}' USING ERRCODE = '{code}'; END $$"
    )
    database.cluster.execute(
        f"CREATE TRIGGER fail BEFORE INSERT ON {schema}.ticketboss "
        f"EXECUTE FUNCTION {schema}.fail()"
    )
    return f"DROP TRIGGER fail ON {schema}.ticketboss"


@pytest.mark.parametrize("code", ["serialization_failure", "deadlock_detected"])
def test_a_serialization_failure_is_no_sale_and_asks_to_read_again(
    store, database, code
):
    end = failing(database, code, "could not serialize access")
    assert not sell(store, "ann")
    assert sold(store) == []
    database.cluster.execute(end)
    assert sell(store, "ann")


def test_a_full_disk_of_the_database_is_a_refusal_and_changes_nothing(store, database):
    end = failing(database, "disk_full", "No space left on device")
    with pytest.raises(t.Unavailable) as refused:
        sell(store, "ann")
    assert str(refused.value) == "The database cannot be used"
    assert "No space left on device" in str(refused.value.__cause__)
    assert sold(store) == []
    database.cluster.execute(end)
    assert sell(store, "ann")


def test_servers_that_start_at_the_same_moment_make_one_event(cluster, tmp_path):
    place = SQLPlace(cluster, tmp_path)
    stores = [t.open_store(place.url, 20) for _ in range(6)]
    ready, failed = threading.Barrier(6), []

    def start(store):
        ready.wait()
        try:
            store.open(SEATS)
            assert len(store.load().database.documents) == 1
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=start, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert sell(stores[0], "ann")
    assert all(sold(store) == ["ann"] for store in stores)


def test_a_start_never_takes_the_place_of_sales_that_another_start_made_possible(
    cluster, tmp_path
):
    place = SQLPlace(cluster, tmp_path)
    early, late = t.open_store(place.url), t.open_store(place.url)
    early.open(SEATS)
    assert sell(early, "ann")
    assert not late.create(t.seed(SEATS))
    assert sold(late) == ["ann"]


def test_a_table_created_during_a_start_is_left_as_it_is(
    cluster, tmp_path, monkeypatch
):
    place = SQLPlace(cluster, tmp_path)
    early, late = t.open_store(place.url), t.open_store(place.url)

    def execute(db, statement, *arguments):
        answer = psycopg.Connection.execute(db, statement, *arguments)
        if "to_regclass" in statement:
            monkeypatch.undo()
            early.open(SEATS)
            assert sell(early, "ann")
        return answer

    with late._connection("writer") as db:
        monkeypatch.setattr(db, "execute", lambda *told: execute(db, *told))
    late.open(SEATS)
    assert sold(late) == sold(early) == ["ann"]


def test_a_table_that_lost_its_rows_is_not_seeded_again(store, database):
    sell(store, "ann")
    rows = f"SELECT count(*) FROM {database.schema}.ticketboss"
    database.cluster.execute(f"DELETE FROM {database.schema}.ticketboss")
    with pytest.raises(t.Unavailable, match="no root row"):
        store.load()
    for may_seed in False, True:
        with pytest.raises(t.Unavailable, match="no root row"):
            t.open_store(database.url).open(SEATS, may_seed=may_seed)
    assert database.cluster.execute(rows) == [(0,)]


def test_a_user_who_may_not_create_tables_can_use_one_that_is_there(store, database):
    schema = database.schema
    database.cluster.execute(
        f"CREATE ROLE r{schema} LOGIN; GRANT USAGE ON SCHEMA {schema} TO r{schema}; "
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.ticketboss TO r{schema}"
    )
    limited = t.open_store(database.url.replace("//tb@", f"//r{schema}@"))
    limited.open(SEATS)
    assert sell(limited, "ann")
    database.cluster.execute(f"DROP OWNED BY r{schema}; DROP ROLE r{schema}")


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        ("SET body = 'no' WHERE id = 'ann'", "truncated.*'ann'"),
        ("SET body = '{}' WHERE event <> '' AND id = ''", "missing required field"),
        ("SET body = replace(body, 'confirmed', 'lost')", "lost"),
        ("SET body = replace(body, '\"seats\":1', '\"seats\":9')", "do not make 500"),
        ("SET event = 'x' WHERE id = 'ann'", "x is missing"),
        ("SET id = 'bob' WHERE id = 'ann'", "has the key bob"),
        ("SET body = NULL WHERE id = 'ann'", "truncated.*'ann'"),
    ],
)
def test_a_table_that_was_damaged_by_hand_is_refused_and_left_alone(
    store, other, database, edit, complaint
):
    sell(store, "ann")
    table = f"{database.schema}.ticketboss"
    database.cluster.execute(f"ALTER TABLE {table} ALTER body DROP NOT NULL")
    before = database.cluster.execute(f"TABLE {table}")
    database.cluster.execute(f"UPDATE {table} {edit}")
    database.cluster.execute(f"UPDATE {table} SET swap = 9 WHERE id <> 'root'")
    damaged = database.cluster.execute(f"TABLE {table} ORDER BY 1, 2")
    fresh = t.open_store(database.url)
    for each in other, fresh:
        with pytest.raises(t.Unavailable, match=complaint):
            each.load()
    with pytest.raises(t.Unavailable, match=complaint):
        fresh.open(SEATS)
    assert database.cluster.execute(f"TABLE {table} ORDER BY 1, 2") == damaged
    database.cluster.execute(f"DELETE FROM {table}")
    for row in before:
        values = ", ".join(f"'{value}'" for value in row)
        database.cluster.execute(f"INSERT INTO {table} VALUES ({values})")
    assert sold(fresh) == sold(other) == ["ann"]


@pytest.mark.parametrize("body", ["NULL", "''", "'{]'"])
def test_a_root_row_without_marks_causes_a_complete_read(store, other, database, body):
    sell(store, "ann")
    other.load()
    table = f"{database.schema}.ticketboss"
    database.cluster.execute(
        f"ALTER TABLE {table} ALTER body DROP NOT NULL; "
        f"UPDATE {table} SET body = {body} WHERE id = 'root'"
    )
    assert sell(store, "bob")
    assert sell(other, "cyd")
    fresh = t.open_store(database.url)
    assert sold(store) == sold(other) == sold(fresh) == ["ann", "bob", "cyd"]


def test_an_edit_by_hand_that_raises_the_roots_number_is_seen_by_all(
    store, other, database
):
    sell(store, "ann")
    other.load()
    seen = store.load()
    table = f"{database.schema}.ticketboss"
    database.cluster.execute(
        f"UPDATE {table} SET body = replace(body, 'Node.js Meet-up', 'Renamed') "
        f"WHERE event <> '' AND id = ''; "
        f"UPDATE {table} SET swap = swap + 1 WHERE id = 'root'"
    )
    assert not store.swap(seen, wanting(seen, "bob"))
    for each in store, other:
        assert each.load().database.document(None).event.name == "Renamed"
    assert sell(other, "bob")
    assert sold(store) == ["ann", "bob"]


def test_a_connection_that_the_server_ends_is_replaced_unnoticed(store, database):
    for number in range(5):
        assert sell(store, str(number))
        for db in store._connections.values():
            database.cluster.execute(f"SELECT pg_terminate_backend({backend(db)})")
            assert multiprocessing.connection.wait([db], 20)
    assert sold(store) == ["0", "1", "2", "3", "4"]


def backend(db):
    return db.info.backend_pid


def test_a_fork_has_connections_of_its_own(store, database):
    sell(store, "before")
    child = os.fork()
    if not child:
        os._exit(0 if sell(store, "in the child") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sold(store) == ["before", "in the child"]
    assert sell(store, "after")


def can_connect(path):
    """Whether somebody listens: a socket is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@pytest.fixture
def pooled(own):
    """The URL of a pooler in transaction mode, with few connections to share."""
    pgbouncer = require_tool("pgbouncer")
    settings = own.folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\npostgres = host={own.folder} user=tb\n[pgbouncer]\n"
        f"listen_addr =\nunix_socket_dir = {own.folder}\nlisten_port = 6432\n"
        "auth_type = any\npool_mode = transaction\ndefault_pool_size = 8\n"
    )
    pooler = subprocess.Popen(
        [pgbouncer, "-q", settings],
        user=postgres.OWNER,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    path = str(own.folder / ".s.PGSQL.6432")
    wait_until(lambda: pooler.poll() is not None or can_connect(path))
    assert pooler.poll() is None
    yield f"{own.url()}&port=6432"
    pooler.terminate()
    pooler.wait()


def test_servers_behind_a_pooler_in_transaction_mode_sell_as_others_do(own, pooled):
    stores = [t.open_store(pooled, 20) for _ in range(4)]
    stores[0].open(SEATS)

    def buy(number):
        for _ in range(25):
            t.Transactions(stores[number], timeout_s=20).transact(
                lambda database: database.with_document(
                    database.document(None).reserve(order(str(uuid.uuid4())))
                )
            )

    with Crowd(4, buy):
        pass
    assert [len(sold(store)) for store in stores] == [100] * 4
    own.kill()
    own.start()
    for store in stores:  # no store learns that another server answers now
        try:
            store.load()
        except t.Unavailable:
            store.load()
    assert version(stores[0]) == 100
    assert sell(stores[1], "after")


# --- messages ------------------------------------------------------------------------


def run(*arguments, **env):
    """Run the program; its exit status, and all its output."""
    done = programs.run(Path.cwd(), *arguments, **env)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def guarded():
    """A PostgreSQL that asks for a password, on a port of this machine."""
    postgres.require()
    guarded = postgres.Postgres("password_encryption=scram-sha-256")
    guarded.execute("ALTER ROLE tb PASSWORD 'right'")
    access = guarded.data / "pg_hba.conf"
    access.write_text("local all postgres trust\nlocal all all scram-sha-256\n")
    guarded.process.send_signal(signal.SIGHUP)
    yield guarded
    guarded.stop()


def test_no_text_shows_the_password(guarded):
    url = f"postgresql://tb:sesame%40x@/postgres?host={guarded.folder}"
    for arguments in ["audit"], ["--port", "0"], ["reset", "--yes"]:
        status, said = run("--db", url, *arguments)
        assert status == 1
        assert "password authentication failed" in said
        assert "sesame" not in said
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:ses%zzame@host/x",
        "postgresql://u:sesame@[::1/x",
        "postgresql://u@host/x?password=sesame&foo=1",
        "postgresql://u:se@same@host/x?foo=1",
        "postgresql://u:ses@ame@host/x",
        "postgresql://u:ses/same@host/x",
        "postgresql://u:12/same@host/x",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url, tmp_path):
    postgres.require()
    status, out, err = ended_in_here(tmp_path, "--db", url, "audit")
    said = out + err
    assert status == 1
    assert "This URL cannot be read" in said
    assert "same" not in said
    assert "ses" not in said


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ann:secret@h:5432/x", "postgresql://ann@h:5432/x"),
        ("postgresql://ann@h/x?password=secret", "postgresql://ann@h/x"),
        ("postgresql://ann:s@cr:et?@h1,h2:2/x", "postgresql://ann@h1,h2:2/x"),
        ("postgresql://h:5432/x?password=se@cret", "postgresql://h:5432/x"),
        ("postgresql://h:1/x?a=b&sslpassword=s@t", "postgresql://h:1/x"),
        ("postgresql://ann:sec\nret@h/x", "postgresql://ann@h/x"),
        ("postgresql://ann:secret@[::1]:5432/x", "postgresql://ann@[::1]:5432/x"),
        ("postgresql://ann:s%40t@%2Frun%2Fpg/x", "postgresql://ann@%2Frun%2Fpg/x"),
        ("postgres://h/x", "postgres://h/x"),
        ("postgresql://:secret@h/x", "postgresql://@h/x"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert t.shown_location(url) == shown


def test_without_psycopg_one_line_says_how_to_install_it(tmp_path):
    (tmp_path / "psycopg.py").write_text("raise ImportError")
    status, said = run("--db", "postgresql://host/x", "audit", PYTHONPATH=str(tmp_path))
    assert status == 1
    assert 'python -m pip install "psycopg[binary]"' in said
    assert said.count("\n") == 1


def test_a_file_needs_no_psycopg(tmp_path):
    (tmp_path / "psycopg.py").write_text("raise ImportError")
    file = str(tmp_path / "db.json")
    assert run("copy", file, f"{file}2", PYTHONPATH=str(tmp_path))[0] == 1
    t.open_store(file).open(SEATS)
    assert run("copy", file, f"{file}2", PYTHONPATH=str(tmp_path))[0] == 0


def test_the_race_says_that_it_leaves_the_database_alone(tmp_path):
    status, said = run(
        "--db", "postgresql://u:secret@host/x", "race", "--clients", "2",
        "--requests", "4", "--think", "1ms", "--json",
    )  # fmt: skip
    assert status == 0
    assert "The race uses a throwaway file, not postgresql://u@host/x." in said


def test_a_reset_of_a_database_keeps_the_old_content_in_a_file(
    database, store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    sell(store, "ann")
    before = store.load().database
    status, said = run("--db", database.url, "reset", "--yes", "--seats", "7")
    assert status == 0, said
    assert store.load().database == t.seed(7)
    [kept] = tmp_path.glob("postgres*.old")
    assert str(kept) in said
    assert kept.stat().st_mode & 0o777 == 0o600
    assert t.open_store(str(kept)).load().database == before


def test_a_reset_where_there_is_no_table_seeds_one(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = run("--db", database.url, "reset", "--yes", "--seats", "7")
    assert (status, said) == (
        0,
        f"Created {t.shown_location(database.url)} with 7 seats.\n",
    )
    assert t.open_store(database.url).load().database == t.seed(7)
    assert [*tmp_path.glob("*.old")] == []


# --- copy ----------------------------------------------------------------------------


def test_a_copy_to_sql_and_back_equals_the_original(database, tmp_path):
    here, back = tmp_path / "db.json", tmp_path / "back.json"
    app = t.create_app(t.Settings(db=str(here), quiet=True, standalone=True))
    client = app.test_client()
    for number in range(5):
        body = {"partnerId": f"p{number}", "seats": 10, "waitlist": True}
        client.post("/reservations", json=body)
    client.post("/initialize", json={"eventId": 7, "totalTickets": 1})
    client.post("/book", json={"eventId": 7, "userId": "ann"})
    client.post("/book", json={"eventId": 7, "userEmail": "bob@x.org"})
    client.post("/initialize", json={"eventId": 8, "totalTickets": 1})
    client.delete("/events/8")
    person = {"username": "ann", "email": "ann@x.org", "password": "correct horse"}
    client.post("/api/v1/auth/register", json=person)
    before = here.read_bytes()

    status, said = run("copy", str(here), database.url)
    assert status == 0, said
    assert "Copied 2 events, 7 reservations and 1 accounts" in said
    assert f"{here} is unchanged. Stop the servers that use it, because" in said
    assert said.endswith("Everything adds up.\n")
    assert here.read_bytes() == before
    status, said = run("copy", database.url, str(back))
    assert status == 0, said
    assert back.read_bytes() == before
    assert back.stat().st_mode & 0o777 == 0o600


def test_a_copy_is_never_written_over_anything(database, store, tmp_path):
    sell(store, "ann")
    here = tmp_path / "db.json"
    file = t.open_store(str(here))
    file.open(3)
    before = here.read_bytes(), store.load().database
    for pair in (str(here), database.url), (database.url, str(here)):
        status, said = run("copy", *pair)
        assert status == 1
        assert "It already exists, so nothing was written." in said
    assert (here.read_bytes(), store.load().database) == before


def test_a_copy_of_nothing_leaves_nothing_behind(database, tmp_path):
    status, _ = run("copy", str(tmp_path / "db.json"), database.url)
    assert status == 1
    assert [*tmp_path.iterdir()] == []
    assert not database.exists()


def test_a_copy_of_what_sql_cannot_store_says_so_at_once(database, tmp_path):
    here = tmp_path / "db.json"
    file = t.open_store(str(here))
    file.open(3)
    assert sell(file, "a\0")
    status, said = run("copy", str(here), database.url)  # which ends within a minute
    assert status == 1
    assert "The database cannot be used: " in said
    assert "NUL" in said
    assert said.count("\n") == 1
    assert not database.exists()


def test_a_copy_waits_for_a_running_write(database, store, tmp_path):
    with store.lock():
        copying = programs.start(tmp_path, "copy", database.url, f"{tmp_path}/db.json")
        until_somebody_waits(database)
        assert sell(store, "ann")
    copying.communicate(timeout=60)
    assert copying.returncode == 0
    assert sold(t.open_store(f"{tmp_path}/db.json")) == ["ann"]


def until_somebody_waits(database):
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while database.cluster.execute(waits) == [(0,)]:
        pass
