"""How fast TicketBoss is, beside what is possible and what one would write instead.

    python tests/bench.py                       all of it, five rounds, ten minutes
    python tests/bench.py reads --rounds 1      one part, in less than a minute
    python tests/bench.py --against OLD.py      an older ticketboss.py takes part, too

Everything is measured in turns within one run, so only the ratios mean something on
another machine. Let TMPDIR be on the disk you mean: on a RAM disk an fsync is free.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from statistics import mean, median
from threading import Event as Signal
from threading import Thread
from typing import NamedTuple

import bench_client
from bench_client import CLIENTS, HOST, Load, get, post_sale, run_clients
from bench_peers import reservation_json

TESTS = Path(__file__).resolve().parent
PROGRAM = TESTS.parent / "ticketboss.py"
PEERS = TESTS / "bench_peers.py"
GUNICORN = Path(sys.executable).with_name("gunicorn")
SEATS = 500
BUSY = 0.85  # of a core: more than this, and a process is what limits
CONFIGURATIONS = [(threads, size) for size in (1, 18_000) for threads in (4, 8, 16, 32)]


class Sample(NamedTuple):
    """One measurement: what was measured, and which clients were busy meanwhile."""

    value: float
    server_cores: float = 0.0
    client_cores: float = 0.0
    cpu_ms: float = 0.0  # of the server's processors, for each answer
    limit: str = ""  # where it is known without looking at processors


Measure = Callable[[], Sample]
Found = dict[str, list[Sample]]


class Server(NamedTuple):
    """A server that runs."""

    port: int
    pid: int  # also the number of its process group
    first_answer_s: float


Running = AbstractContextManager[Server]


class Bench:
    """What was asked for on the command line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rounds = 1 if options.small else options.rounds
        self.seconds = 0.1 if options.small else options.seconds
        self.seats = 40 if options.small else SEATS
        self.sizes = (10, 20, 40) if options.small else (100, 10_000, 50_000)
        self.sales_a_round = 2 if options.small else 20
        self.configurations = CONFIGURATIONS[::5] if options.small else CONFIGURATIONS
        self.wrk = options.client == "wrk" and not options.small
        self.program = options.program
        self.against = options.against

    def in_turns(self, measures: dict[str, Measure], rounds: int = 0) -> Found:
        """Measure each once, then each once more: what disturbs one disturbs all."""
        found: Found = {name: [] for name in measures}
        for _ in range(rounds or self.rounds):
            for name, measure in measures.items():
                found[name].append(measure())
        return found

    @functools.cached_property
    def best_configuration(self) -> tuple[int, int]:
        """The threads and the send_bytes with which the bare app answers most GETs."""
        with ExitStack() as stack:
            measures = {
                str(configuration): functools.partial(
                    self.read, stack.enter_context(self.peer("bare", *configuration))
                )
                for configuration in self.configurations
            }
            found = self.in_turns(measures, min(self.rounds, 3))
        return max(self.configurations, key=lambda it: max(found[str(it)]))

    @property
    def best_name(self) -> str:
        """The best configuration, in words."""
        return "{} threads, send_bytes {}".format(*self.best_configuration)

    def ticketboss(self, db: str, program: Path | None = None) -> Running:
        """A TicketBoss on that file."""
        command = [str(program or self.program), "--quiet", "--port=0", f"--db={db}"]
        return running([sys.executable, *command, f"--seats={self.seats}"])

    def peer(self, kind: str, threads: int, send_bytes: int, *more: str) -> Running:
        """One of the servers of bench_peers.py."""
        return running(
            [
                *(sys.executable, str(PEERS), kind),
                *(f"--threads={threads}", f"--send-bytes={send_bytes}"),
                *(f"--records={self.seats}", *more),
            ]
        )

    def read(self, server: Server, path: str = "/event") -> Sample:
        """GETs a second."""
        if self.wrk:
            return self.watch(
                lambda: bench_client.run_wrk(server.port, path, round(self.seconds)),
                server,
            )
        return self.watch(
            lambda: run_clients([server.port], get(path), seconds=self.seconds), server
        )

    def sell(self, *servers: Server) -> Sample:
        """Sales a second, until all seats are sold."""
        ports = [server.port for server in servers]
        return self.watch(
            lambda: run_clients(ports, post_sale(), total=self.seats), *servers
        )

    def watch(self, work: Callable[[], Load], *servers: Server) -> Sample:
        """Answers a second, and how busy clients and servers were."""
        before = sum(cpu_seconds(server) for server in servers)
        load = work()
        cpu_s = sum(cpu_seconds(server) for server in servers) - before
        return Sample(
            load.answers / load.elapsed_s,
            cpu_s / load.elapsed_s,
            load.client_cpu_s / load.elapsed_s,
            1000 * cpu_s / load.answers,
        )


@contextmanager
def running(command: list[str], **environment: str) -> Iterator[Server]:
    """Start a server in a process group of its own; warm it; end it."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
        start_new_session=True,
    )
    with process:
        try:
            port = announced_port(process.stdout)
            run_clients([port], get("/event"), total=1)
            first_answer_s = time.perf_counter() - began
            run_clients([port], get("/event"), total=3 * CLIENTS)
            yield Server(port, process.pid, first_answer_s)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def announced_port(output: Iterable[bytes]) -> int:
    """The port in a server's banner."""
    lines = []
    for line in output:
        lines.append(line)
        if address := re.search(rb"http://\S+:(\d+)", line):
            return int(address[1])
    raise AssertionError(b"It did not start: " + b"".join(lines))


def cpu_seconds(server: Server) -> float:
    """The processor time of a server and its workers; 0 where there is no /proc."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[2]) == server.pid:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def write_alone(path: str, data: bytes) -> float:
    """Milliseconds to replace a file durably, with no more calls than that takes."""
    began = time.perf_counter()
    with open(f"{path}.new", "wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    return 1000 * (time.perf_counter() - began)


def make_file(path: str, records: int, free: int) -> None:
    """A db.json with so many reservations and so many free seats."""
    event = {
        "eventId": "node-meetup-2025",
        "name": "Node.js Meet-up",
        "totalSeats": records + free,
        "availableSeats": free,
        "version": records,
    }
    reservations = [reservation_json(number) for number in range(records)]
    by_id = {record["reservationId"]: record for record in reservations}
    Path(path).write_text(json.dumps({"event": event, "reservations": by_id}))


@contextmanager
def folder() -> Iterator[str]:
    """A new folder, and in it the path of a db.json that is yet to be made."""
    with tempfile.TemporaryDirectory() as path:
        yield f"{path}/db.json"


# --- Parts ---


def sales(bench: Bench) -> None:
    """Selling all seats, each time from a fresh file."""

    def ticketboss(program: Path) -> Sample:
        with folder() as db, bench.ticketboss(db, program) as server:
            return bench.sell(server)

    def peer(kind: str) -> Sample:
        with (
            folder() as db,
            bench.peer(kind, *bench.best_configuration, f"--db={db}") as server,
        ):
            return bench.sell(server)

    def writes() -> Sample:
        with folder() as db:
            make_file(db, bench.seats, 0)
            data = Path(db).read_bytes()
            times = [write_alone(db, data) for _ in range(bench.seats)]
        return Sample(1000 * len(times) / sum(times), limit="the disk")

    measures: dict[str, Measure] = {
        "TicketBoss": lambda: ticketboss(bench.program),
        f"a bare app ({bench.best_name})": lambda: peer("bare"),
        "an app over SQLite, likewise": lambda: peer("sqlite"),
        f"one durable write of {bench.seats} records each": writes,
    }
    if bench.against:
        measures[f"as it was ({bench.against.name})"] = lambda: ticketboss(
            bench.against
        )
    title = f"Selling {bench.seats} seats to {CLIENTS} clients, sales a second"
    report(title, bench.in_turns(measures))


def reads(bench: Bench) -> None:
    """GET /event, undisturbed, then while orders wait and while others write."""
    best = bench.best_configuration
    with ExitStack() as stack:
        db, old_db, sqlite_db = (stack.enter_context(folder()) for _ in range(3))
        server = stack.enter_context(bench.ticketboss(db))
        bare = stack.enter_context(bench.peer("bare", *best))
        sqlite = stack.enter_context(bench.peer("sqlite", *best, f"--db={sqlite_db}"))
        measures: dict[str, Measure] = {
            "TicketBoss": lambda: bench.read(server),
            f"a bare app ({bench.best_name})": lambda: bench.read(bare),
            "an app over SQLite, likewise": lambda: bench.read(sqlite),
        }
        if bench.against:
            old = stack.enter_context(bench.ticketboss(old_db, bench.against))
            measures[f"as it was ({bench.against.name})"] = lambda: bench.read(old)
        report("GET /event, answers a second", bench.in_turns(measures))


def waiting(bench: Bench) -> None:
    """GET /event while writers wait for a lock, and while another process writes."""
    bench.seconds = min(bench.seconds, 1)  # an order waits two seconds for a lock
    with folder() as db:
        make_file(db, bench.seats, free=100_000)
        with bench.ticketboss(db) as server, bench.ticketboss(db) as neighbour:

            def while_orders_wait() -> Sample:
                with orders_waiting(db, server):
                    return bench.read(server)

            def while_another_sells() -> Sample:
                with steady_sales(neighbour):
                    return bench.read(server)

            found = bench.in_turns(
                {
                    "undisturbed": lambda: bench.read(server),
                    f"while {CLIENTS} orders wait for a lock": while_orders_wait,
                    "while another process sells 100 a second": while_another_sells,
                }
            )
    report("GET /event beside writers, answers a second", found, ours_last=True)


@contextmanager
def orders_waiting(db: str, server: Server) -> Iterator[None]:
    """Hold the lock of the file; meanwhile orders wait for it at the server."""
    (lock_path,) = Path(db).parent.glob(".*.lock")
    with open(lock_path, "rb") as lock, ExitStack() as stack:
        fcntl.flock(lock, fcntl.LOCK_EX)
        orders = [
            stack.enter_context(socket.create_connection((HOST, server.port)))
            for _ in range(CLIENTS)
        ]
        for order in orders:
            order.sendall(post_sale())
        yield
        for order in orders:
            order.setblocking(False)
            try:
                answer = order.recv(1000)
            except BlockingIOError:
                continue
            raise AssertionError(f"An order did not wait: {answer!r}")
        fcntl.flock(lock, fcntl.LOCK_UN)
        for order in orders:
            order.setblocking(True)
            assert b" 201 " in order.recv(1000)


@contextmanager
def steady_sales(server: Server) -> Iterator[None]:
    """Sell a hundred times a second, meanwhile, one after the other."""
    ended = Signal()

    def sell() -> None:
        while not ended.wait(0.01):
            run_clients([server.port], post_sale(), total=1)

    seller = Thread(target=sell)
    seller.start()
    try:
        yield
    finally:
        ended.set()
        seller.join()


def lists(bench: Bench) -> None:
    """GET /reservations with all of them sold."""
    with folder() as db, ExitStack() as stack:
        make_file(db, bench.seats, free=0)
        server = stack.enter_context(bench.ticketboss(db))
        bare = stack.enter_context(bench.peer("bare", *bench.best_configuration))
        measures = {
            "TicketBoss": lambda: bench.read(server, "/reservations"),
            f"a bare app ({bench.best_name})": lambda: bench.read(
                bare, "/reservations"
            ),
        }
        title = f"GET /reservations, {bench.seats} of them, answers a second"
        report(title, bench.in_turns(measures))


class SaleAlone:
    """Sales of one client, and bare writes of the same file, for some size."""

    def __init__(self, bench: Bench, stack: ExitStack, records: int) -> None:
        self.count = bench.sales_a_round
        self.db = stack.enter_context(folder())
        make_file(self.db, records, free=100_000)
        self.server = stack.enter_context(bench.ticketboss(self.db))
        self.bare_path = stack.enter_context(folder())

    def sale(self) -> Sample:
        """Milliseconds from an order to its answer, on a connection that is kept."""
        before = cpu_seconds(self.server)
        load = run_clients([self.server.port], post_sale(), clients=1, total=self.count)
        cpu_s = cpu_seconds(self.server) - before
        return Sample(
            1000 * load.elapsed_s / self.count,
            cpu_s / load.elapsed_s,
            load.client_cpu_s / load.elapsed_s,
            1000 * cpu_s / self.count,
        )

    def write(self) -> Sample:
        """Milliseconds to write the file as it is now, and do nothing else."""
        data = Path(self.db).read_bytes()
        times = [write_alone(self.bare_path, data) for _ in range(self.count)]
        return Sample(mean(times), limit="the disk")


def alone(bench: Bench) -> None:
    """One sale, and nothing else, beside the bare durable write of its bytes."""
    with ExitStack() as stack:
        one = SaleAlone(bench, stack, bench.seats)
        found = bench.in_turns(
            {"TicketBoss, one client": one.sale, "the durable write alone": one.write}
        )
    report(f"One sale beside {bench.seats} others, milliseconds", found)


def sizes(bench: Bench) -> None:
    """What a sale costs the more, the more there are; and what writing costs more."""
    with ExitStack() as stack:
        measures: dict[str, Measure] = {}
        for size in bench.sizes:
            one = SaleAlone(bench, stack, size)
            measures[f"a sale beside {size:,}"] = one.sale
            measures[f"the write alone, of {size:,}"] = one.write
        found = bench.in_turns(measures)
    least, *larger = (f"{size:,}" for size in bench.sizes)
    for size in (least, *larger):
        rows = (f"a sale beside {size}", f"the write alone, of {size}")
        title = f"One sale beside {size} others, milliseconds"
        report(title, {row: found[row] for row in rows})
    for size in larger:
        growth = {
            name: _quotients(found[f"{name} {size}"], found[f"{name} {least}"])
            for name in ("a sale beside", "the write alone, of")
        }
        report(f"How many times as long at {size} as at {least}", growth)


def servers(bench: Bench) -> None:
    """The same seats, sold by one server, by two, and by gunicorn's four workers."""

    def one() -> Sample:
        with folder() as db, bench.ticketboss(db) as server:
            return bench.sell(server)

    def two() -> Sample:
        with (
            folder() as db,
            bench.ticketboss(db) as server,
            bench.ticketboss(db) as neighbour,
        ):
            return bench.sell(server, neighbour)

    def workers(*more: str) -> Sample:
        with folder() as db, gunicorn(bench, db, *more) as server:
            return bench.sell(server)

    measures = {"one server": one, "two servers on one file": two}
    if GUNICORN.exists():
        threads = "--threads", "16"
        measures["gunicorn -w 4 --threads 16"] = functools.partial(workers, *threads)
        measures["gunicorn -w 4, no threads"] = workers
    title = f"Selling {bench.seats} seats to {CLIENTS} clients, sales a second"
    report(title, bench.in_turns(measures), ours_last=True)
    if not GUNICORN.exists():
        print("  gunicorn is not installed here: `pip install gunicorn` to measure it")


def gunicorn(bench: Bench, db: str, *more: str) -> Running:
    """README's line, on a port of its own."""
    program = bench.program.resolve()
    return running(
        [
            *(str(GUNICORN), "-b", f"{HOST}:0", "-w", "4", *more, "--preload"),
            *("--chdir", str(program.parent), f"{program.stem}:create_app()"),
        ],
        TICKETBOSS_DB=db,
        TICKETBOSS_SEATS=str(bench.seats),
        TICKETBOSS_QUIET="1",
    )


def start(bench: Bench) -> None:
    """From the command to the first answer; and how much memory it has then."""
    memory = []

    def first_answer() -> Sample:
        with folder() as db:
            make_file(db, bench.seats, free=100_000)
            with bench.ticketboss(db) as server:
                run_clients([server.port], post_sale(), total=bench.seats)
                run_clients([server.port], get("/reservations"), total=CLIENTS)
                memory.append(Sample(resident_mb(server.pid), limit="the libraries"))
                return Sample(server.first_answer_s, limit="the imports")

    def imports(modules: str) -> Sample:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
        return Sample(time.perf_counter() - began, limit="the imports")

    found = bench.in_turns(
        {
            "start to the first answer": first_answer,
            "importing Flask and waitress": lambda: imports("flask, waitress"),
        }
    )
    report("Start, seconds", found)
    report("Memory, MB", {f"after {bench.seats} sales": memory})


def resident_mb(pid: int) -> float:
    """What a process has in memory."""
    kilobytes = subprocess.check_output(["ps", "-o", "rss=", "-p", str(pid)])
    return int(kilobytes) / 1024


def ceiling(bench: Bench) -> None:
    """What the clients can do, at a server that does not even read."""
    command = [sys.executable, str(PEERS), "responder"]
    with running(command) as server:
        measures = {"one Python client": lambda: _own(server, bench)}
        if bench.wrk:
            measures["wrk"] = lambda: bench.read(server)
        report("The clients' ceiling, GETs a second", bench.in_turns(measures))


def _own(server: Server, bench: Bench) -> Sample:
    return bench.watch(
        lambda: run_clients([server.port], get("/event"), seconds=bench.seconds), server
    )


# --- The table ---


def report(title: str, found: Found, *, ours_last: bool = False) -> None:
    """Print a block of rows. A ratio is the first row's median to this row's.

    `ours_last`: the other way round, where the first row is what the others want to be.
    """
    print(f"\n{title}")
    first = _middle(next(iter(found.values())))
    for name, samples in found.items():
        middle, values = _middle(samples), [sample.value for sample in samples]
        ratio = middle / first if ours_last else first / middle
        spread = f"{_short(min(values))} to {_short(max(values))}"
        print(
            f"  {name:<48}  {_short(middle):>8}  {spread:<18}  {ratio:>6.2f}  "
            f"{limited_by(samples)}",
            flush=True,
        )


def limited_by(samples: list[Sample]) -> str:
    """What was busy all the time; if nothing was, what was busy most."""
    if samples[0].limit:
        return samples[0].limit
    server = median(sample.server_cores for sample in samples)
    client = median(sample.client_cores for sample in samples)
    cost = f"{median(sample.cpu_ms for sample in samples):.2f} ms each"
    if client > BUSY:
        return f"the client, busy {client:.0%}; the server {server:.0%}, {cost}"
    if server > BUSY:
        return f"the server's processor, busy {server:.0%}, {cost}"
    return f"waiting (disk, lock, clients); the server is busy {server:.0%}, {cost}"


def _middle(samples: list[Sample]) -> float:
    return median(sample.value for sample in samples)


def _quotients(over: list[Sample], under: list[Sample]) -> list[Sample]:
    return [
        Sample(large.value / small.value, limit="as in the rows above")
        for large, small in zip(over, under, strict=True)
    ]


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


PARTS: dict[str, Callable[[Bench], None]] = {
    "sales": sales,
    "reads": reads,
    "waiting": waiting,
    "lists": lists,
    "alone": alone,
    "sizes": sizes,
    "servers": servers,
    "start": start,
    "ceiling": ceiling,
}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1, help="for each GET figure")
    parser.add_argument("--against", type=Path, help="an older ticketboss.py")
    parser.add_argument("--program", type=Path, default=PROGRAM)
    parser.add_argument("--client", choices=["wrk", "own"], default="wrk")
    parser.add_argument("--small", action="store_true", help="to see that it works")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if bench_client.WRK is None:
        options.client = "own"
    bench = Bench(options)
    reader = "wrk, in C" if bench.wrk else "one Python process"
    cores, load = os.cpu_count(), os.getloadavg()[0]
    print(f"GETs are sent by {reader}, sales by one Python process.")
    print(f"{bench.rounds} rounds on {cores} cores, whose load was {load:.1f} before.")
    print("Columns: median, range, the first row's ratio to this one, limited by what.")
    for name in options.parts or PARTS:
        PARTS[name](bench)


if __name__ == "__main__":
    main()
