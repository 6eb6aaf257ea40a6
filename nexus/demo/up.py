"""``nexus up``: the whole system on this machine, from one command.

::

    preflight ► redis, kafka, upstreams ► cacheproxy, consumer, gateway ► first requests ► table
       │                │                            │                          │           │
       └── exit 1       └────────────── a child dies or is not healthy ─────────┘        Ctrl-C
                                                     │                                      │
                                        stop, newest first, exit 1 ◄────────────── the same, exit 0

Nothing is done by a shell, nothing outlives this process, and what it writes is under one
directory (``.nexus``).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec
import yaml

from nexus.demo import firstrequest
from nexus.demo.console import Console, wants_colour
from nexus.demo.embedded import (
    check_kafka,
    check_redis,
    kafka_spec,
    redis_executable,
    redis_spec,
)
from nexus.demo.preflight import claim_ports
from nexus.demo.process import Child, ChildError, ChildSpec, NotReady, Stack, death_of
from nexus.demo.resolved import GatewayFacts, RefusedError, gateway_facts, resolve
from nexus.demo.settings import UpSettings, read_settings
from nexus.demo.summary import Facts, summary
from nexus.errors import ConfigError, NexusError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

__all__ = ["main"]

CLIENT_ID: Final = "gateway-client"

#: Seconds that open requests get when the demo is stopped: a person is waiting for the prompt.
DRAIN_SECONDS: Final = 2.0

#: Seconds until the event of the first request must have gone through Kafka to the consumer;
#: joining a new consumer group alone takes about three.
EVENT_SECONDS: Final = 60.0

#: Exit codes besides 0: could not run, wrong flag or variable, interrupted before it was up.
FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C; returns the exit code."""
    try:
        settings, arguments = read_settings(sys.argv[1:] if argv is None else argv)
    except ConfigError as error:
        print(f"nexus up: {error}", file=sys.stderr)
        return MISUSED
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is no UTF-8 shows what it cannot as an escape; it is no reason to stop.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    console = Console(sys.stdout, colour=wants_colour(sys.stdout))
    state = Path(settings.state_dir).resolve()
    try:
        with _only_one(state):
            return asyncio.run(_run(settings, state, console, once=arguments.once))
    except (NexusError, OSError) as error:
        for line in str(error).splitlines():
            print(f"nexus up: {line}" if line[:1] != " " else line, file=sys.stderr)
        return FAILED


async def _run(settings: UpSettings, state: Path, console: Console, *, once: bool) -> int:
    system = System(settings, state, console)
    stack = system.stack
    stop, hurry = asyncio.Event(), asyncio.Event()
    console.on_lost = stop.set

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
            stack.kill()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    try:
        if not await _unless(stop, system.bring_up(), hurry):
            return INTERRUPTED
        if not once:
            console.say("Ctrl-C stops everything.\n", dim=True)
            await _unless(stop, _until_a_death(stack), hurry)
        return 0
    finally:
        if stack.children:
            console.say("stopping…", dim=True)
        await stack.stop(_reporter(console))


async def _unless(stop: asyncio.Event, work: Awaitable[None], hurry: asyncio.Event) -> bool:
    """Do ``work`` unless ``stop`` comes first; true where it was done.

    The end of work that was given up is waited for until ``hurry``.
    """
    task = asyncio.ensure_future(work)
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return False
        task.result()
        return True
    finally:
        for pending in (task, waiting):
            pending.cancel()
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait({task, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if task.done() and not task.cancelled():
            task.exception()  # of work that was given up: nobody asks for it


async def _until_a_death(stack: Stack) -> None:
    raise death_of(await stack.first_exit())


def _reporter(console: Console) -> Callable[[Child, bool], None]:
    def report(child: Child, gently: bool) -> None:
        if not gently:
            console.error(f"{child.name} did not stop in time and was killed")

    return report


class System:
    """The parts, their addresses and their order."""

    def __init__(self, settings: UpSettings, state: Path, console: Console) -> None:
        self.settings: Final = settings
        self.console: Final = console
        self.stack: Final = Stack(
            console.child,
            start_seconds=settings.start_seconds,
            stop_seconds=settings.stop_seconds,
        )
        self._state: Final = state
        self._ports: dict[str, int] = {}
        self._redis_server = ""
        self._redis_url = settings.redis_url
        self._kafka = settings.kafka
        self._gateway_facts = GatewayFacts()
        own = os.environ.get("NEXUS_CLIENT_SECRET")
        self._client_secret = own or secrets.token_urlsafe(18)
        self._made_client_secret: Final = not own
        own = os.environ.get("NEXUS_JWT_SECRET")
        self._jwt_secret = own or secrets.token_urlsafe(48)
        self._made_jwt_secret: Final = not own

    async def _preflight(self) -> None:
        """Everything that can be refused before a process exists."""
        settings = self.settings
        if settings.redis_url:
            await check_redis(settings.redis_url)
        else:
            self._redis_server = redis_executable()
        if settings.kafka:
            await check_kafka(settings.kafka)
        self._ports = claim_ports(settings)
        if not settings.redis_url:
            self._redis_url = f"redis://127.0.0.1:{self._ports['redis_port']}"
        (self._state / "run").mkdir(parents=True, exist_ok=True)
        (self._state / "redis").mkdir(exist_ok=True)
        await self._check_services()

    async def _check_services(self) -> None:
        """Every service accepts its settings; the gateway's decide what it is asked later."""
        self._write_configuration()
        specs = self._services()
        try:
            settings = await asyncio.gather(*(resolve(s.argv, s.env, s.name) for s in specs))
        except RefusedError as error:
            raise RefusedError(f"{error}{self._origin(str(error))}") from None
        gateway = settings[[spec.name for spec in specs].index("gateway")]
        self._gateway_facts = gateway_facts(gateway)

    def _origin(self, refusal: str) -> str:
        """Where a secret came from that the gateway does not take; empty for other refusals."""
        if "auth.jwt_secret" in refusal and not self._made_jwt_secret:
            return " (here it is the value of NEXUS_JWT_SECRET)"
        if "client_secret" in refusal and not self._made_client_secret:
            return " (here it is the value of NEXUS_CLIENT_SECRET)"
        return ""

    async def bring_up(self) -> None:
        """Start all, make the first requests, print the table. Raises ``NexusError``."""
        await self._preflight()
        console = self.console
        async with aiohttp.ClientSession() as session:
            self._session = session
            ground = self._ground()
            services = ("cacheproxy", "consumer", "gateway")
            console.know(*(spec.name for spec in ground), *services)
            console.say(f"starting {', '.join(spec.name for spec in ground)}…", dim=True)
            await self.stack.start(ground)
            console.say(f"starting {', '.join(services)}…", dim=True)
            self._write_configuration()  # the development broker has chosen its port
            await self.stack.start(self._services())
            console.say("first request through each path…", dim=True)
            await self.stack.guard(self._first_requests())

    # -- the parts -----------------------------------------------------------------------------

    def _ground(self) -> list[ChildSpec]:
        """What the services stand on."""
        specs = []
        if not self.settings.redis_url:
            port = self._ports["redis_port"]
            specs.append(redis_spec(self._redis_server, port, self._state / "redis"))
        if not self.settings.kafka:
            specs.append(kafka_spec(self._use_kafka))
        specs += [self._upstream("a"), self._upstream("b")]
        return specs

    def _use_kafka(self, bootstrap: str) -> None:
        self._kafka = bootstrap

    def _upstream(self, letter: str) -> ChildSpec:
        port = self._ports[f"upstream_{letter}_port"]
        return ChildSpec(
            f"upstream-{letter}",
            (sys.executable, "-m", "nexus.demo.upstream", "--port", str(port)),
            ready=self._answers(f"http://127.0.0.1:{port}/health"),
        )

    def _services(self) -> list[ChildSpec]:
        workers = self.settings
        return [
            self._service("cacheproxy", "--workers", str(workers.cacheproxy_workers)),
            self._service("consumer"),
            self._service("gateway", "--workers", str(workers.gateway_workers)),
        ]

    def _service(self, name: str, *arguments: str) -> ChildSpec:
        admin = self._ports[f"{name}_admin_port"]
        argv = [sys.executable, "-m", f"nexus.{name}"]
        argv += ["--config", str(self._state / "run" / f"{name}.yaml")]
        argv += ["--admin-port", str(admin)]
        if f"{name}_port" in self._ports:
            argv += ["--port", str(self._ports[f"{name}_port"])]
        if name == "gateway":
            argv += ["--host", self.settings.gateway_host]
        return ChildSpec(
            name,
            (*argv, *arguments),
            env={
                "NEXUS_JWT_SECRET": self._jwt_secret,
                "NEXUS_CLIENT_SECRET": self._client_secret,
                "PYTHONUNBUFFERED": "1",
            },
            ready=self._answers(f"http://127.0.0.1:{admin}/ready"),
        )

    def _answers(self, url: str) -> Callable[[Child], Awaitable[None]]:
        async def ready(_child: Child) -> None:
            try:
                timeout = aiohttp.ClientTimeout(total=2)
                async with self._session.get(url, timeout=timeout) as response:
                    if response.status != 200:
                        text = (await response.text())[:200]
                        raise NotReady(f"GET {url} answers {response.status}: {text}")
            except (aiohttp.ClientError, TimeoutError) as error:
                raise NotReady(f"GET {url}: {str(error) or 'no answer'}") from None

        return ready

    # -- their configuration ---------------------------------------------------------------------

    def _write_configuration(self) -> None:
        """Complete files that also run by hand, once the two secrets are in the environment."""
        run = self._state / "run"
        ports = self._ports
        upstreams = [ports["upstream_a_port"], ports["upstream_b_port"]]
        services = {
            "services": [{"url": f"http://127.0.0.1:{port}", "weight": 1} for port in upstreams]
        }
        (run / "services.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(services), indent=2) + b"\n"
        )
        _write_private(run / "policy.yaml", _POLICY)
        common = {"drain_seconds": DRAIN_SECONDS, "log": {"format": "json"}}
        kafka = {"bootstrap_servers": self._kafka} if self._kafka else {}
        redis = {"url": self._redis_url}
        # The in-memory broker does not end the transactions of exactly-once delivery.
        actions = {"delivery": "exactly-once" if self.settings.kafka else "at-least-once"}
        otlp = self.settings.otlp_endpoint
        tracing = {"enabled": True, "otlp_endpoint": otlp} if otlp else {"enabled": False}
        client = {"client_id": CLIENT_ID, "client_secret": "${NEXUS_CLIENT_SECRET}"}
        trees: dict[str, dict[str, Any]] = {
            "gateway": {
                "services_file": str(run / "services.json"),
                "auth": {"jwt_secret": "${NEXUS_JWT_SECRET}", "clients": [client]},
                "kafka": kafka,
                "redis": redis,
                "tracing": tracing,
                **common,
            },
            "cacheproxy": {"redis": redis, "policy_file": str(run / "policy.yaml"), **common},
            "consumer": {
                "kafka": kafka,
                "redis": redis,
                "actions": actions,
                # The demo upstreams answer in about a millisecond, where thrice the mean is noise.
                "spike": {"floor_ms": 25},
                **common,
            },
        }
        for name, tree in trees.items():
            text = yaml.safe_dump(tree, sort_keys=False)
            _write_private(run / f"{name}.yaml", f"# Written by `nexus up` at each start.\n{text}")

    # -- the first requests ------------------------------------------------------------------------

    async def _first_requests(self) -> None:
        ports, session = self._ports, self._session
        host = self.settings.gateway_host
        shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
        gateway = f"http://{shown}:{ports['gateway_port']}"
        proxy = f"redis://127.0.0.1:{ports['cacheproxy_port']}"
        marker = firstrequest.new_marker()
        expected = self._gateway_facts
        # Metrics, not log lines: what a service logs is the user's to choose.
        sent = self._counter("gateway", "nexus_events_sent_total")
        handled = self._counter("consumer", "nexus_consumer_events_total")
        await asyncio.gather(sent.look(), handled.look())
        token = ""
        if expected.auth:
            secret = self._client_secret
            token = await firstrequest.fetch_token(session, gateway, CLIENT_ID, secret)
        server = await firstrequest.request_products(
            session, gateway, token, marker, enveloped=expected.enveloped
        )
        redis = os.environ.get("NEXUS_CACHEPROXY_REDIS__URL") or self._redis_url
        await firstrequest.round_trip(proxy, redis, marker)
        if expected.events:
            await sent.rises(EVENT_SECONDS, "Kafka did not acknowledge an event of the gateway")
            await handled.rises(EVENT_SECONDS, "the consumer did not handle an event")
        facts = Facts(
            gateway=gateway,
            proxy=proxy,
            ports=ports,
            redis=self._redis_url,
            redis_server=self._redis_server,
            kafka=self._kafka,
            own_kafka=not self.settings.kafka,
            expected=expected,
            everywhere=host in ("0.0.0.0", "::"),
            otlp=self.settings.otlp_endpoint,
            made_jwt_secret=self._made_jwt_secret,
            client_id=CLIENT_ID,
            client_secret=self._client_secret if self._made_client_secret else "",
            token=token,
            answered_by=server,
            run=self._state / "run",
        )
        for line in summary(facts):
            self.console.say(line, bold=line.startswith("Nexus "))

    def _counter(self, service: str, name: str) -> firstrequest.Counter:
        port = self._ports[f"{service}_admin_port"]
        return firstrequest.Counter(self._session, f"http://127.0.0.1:{port}/metrics", name)


#: Edit it while the system runs; each start writes it anew.
_POLICY: Final = """\
# Written by `nexus up` at each start; read again when it changes. docs/policy.md
policies:
  - match: GET          # hot keys are kept in the cacheproxy, and live longer at Redis
    ttl: 60
    enabled: true
  - match: SET
    ttl: 0
    enabled: false
"""


def _write_private(file: Path, text: str) -> None:
    """Replace ``file`` by one that only its owner may read, at no moment anybody else.

    A Redis URL may hold a password. What is there may be open to others, so it is not reused.
    """
    file.unlink(missing_ok=True)
    file.touch(0o600, exist_ok=False)
    file.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _only_one(state: Path) -> Iterator[None]:
    """Hold ``<state>/up.lock``; raises ``ChildError`` where another run holds it."""
    state.mkdir(parents=True, exist_ok=True)
    with (state / "up.lock").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ChildError(
                f"another nexus up (pid {lock.read().strip() or 'unknown'}) uses {state}; stop it, "
                "or choose another directory: --state-dir or NEXUS_UP_STATE_DIR"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
