"""What the producer and the consumer have in common: options, topics, patience, quiet logs."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from nexus.errors import ConfigError
from nexus.net.settings import KafkaSettings
from nexus.net.tls import client_context

__all__ = [
    "CONNECTION_ERRORS",
    "PARTITIONS",
    "Backoff",
    "brokers",
    "check_settings",
    "client_options",
    "cluster_id",
    "connect_failure",
    "connect_forever",
    "end_tasks",
    "ensure_topics",
    "quiet_client_logs",
    "stop_quietly",
    "summary",
    "unhurried",
]

log = logging.getLogger("nexus.kafka")

#: Partitions of a topic that we create: the most consumers that can share its work. More costs
#: every broker files and memory, fewer cannot be undone without breaking the order of keys.
PARTITIONS: Final = 6

#: What a broker that is away, starting or refusing looks like from here.
CONNECTION_ERRORS: Final = (KafkaError, OSError, TimeoutError)

_CREATE_SECONDS: Final = 10.0

#: Milliseconds between two attempts of the client library.
RETRY_BACKOFF_MS: Final = 250

#: A host name (RFC 1123 §2.1, and the underscore of container networks) or an IPv4 address.
_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})")
_PORT: Final = re.compile(r"[0-9]{1,5}")


class Backoff:
    """Full jitter: ``uniform(0, min(cap, base · 2^n))``, seconds.

    The draw is over the whole range, also at the cap, so that many clients of one broker do not
    come back together (M. Brooker, "Exponential Backoff And Jitter", AWS, 2015).
    """

    def __init__(
        self, base: float = 0.1, cap: float = 5.0, rng: Callable[[], float] = random.random
    ) -> None:
        self._base: Final = base
        self._cap: Final = cap
        self._rng: Final = rng
        self._tries = 0

    def next(self) -> float:
        """The next delay."""
        # 2^30 is far beyond every cap; without the bound the power would grow for ever.
        ceiling = min(self._cap, self._base * 2.0 ** min(self._tries, 30))
        self._tries += 1
        return self._rng() * ceiling

    def reset(self) -> None:
        """Begin again at the base."""
        self._tries = 0


def check_settings(settings: KafkaSettings) -> None:
    """Part of a service's ``validate``: raises ``ConfigError`` for what can never connect."""
    if settings.enabled:
        client_options(settings, "")


def brokers(bootstrap_servers: str) -> list[str]:
    """The addresses of a comma-separated list; raises ``ConfigError``.

    Each is ``host``, ``host:port`` or, for IPv6, ``[address]:port``; without a port it is 9092. The
    client library would find a malformed one only when it connects.
    """
    addresses = [address.strip() for address in bootstrap_servers.split(",")]
    for address in addresses:
        wrong = _fault(address)
        if wrong:
            # Not with an "@": that may be a password.
            shown = "an address with user information" if "@" in address else repr(address)
            raise ConfigError(
                f"expected host:port, comma-separated, got {shown}: {wrong}",
                path="kafka.bootstrap_servers",
            )
    return addresses


def _fault(address: str) -> str:
    """What is wrong with one address; empty where nothing is."""
    if "://" in address:
        return "an address has no scheme"
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket:
            return "the closing bracket is missing"
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            return "not an IPv6 address in brackets"
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = address.partition(":")
        if not host:
            return "the host is missing"
        if not _NAME.fullmatch(host):
            return "not a host name"
        if ":" in port:
            return "an IPv6 address is put in brackets"
    if colon not in ("", ":") or (colon and not (_PORT.fullmatch(port) and 0 < int(port) < 65_536)):
        return "the port must be a number from 1 to 65535"
    return ""


def client_options(settings: KafkaSettings, client_id: str) -> dict[str, Any]:
    """Keyword arguments that every aiokafka client of ours gets; raises ``ConfigError``."""
    return {
        "bootstrap_servers": brokers(settings.bootstrap_servers),
        **_security(settings),
        "client_id": client_id,
        "request_timeout_ms": 15_000,
        "retry_backoff_ms": RETRY_BACKOFF_MS,
        # A topic that grows, or one that another service creates, is seen within half a minute.
        "metadata_max_age_ms": 30_000,
    }


def _security(settings: KafkaSettings) -> dict[str, Any]:
    """The part of :func:`client_options` about who talks to whom; raises ``ConfigError``."""
    protocol, sasl = settings.security_protocol, settings.sasl
    options: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        options["ssl_context"] = client_context(settings.tls, path="kafka.tls")
    elif settings.tls.ca_file or settings.tls.cert_file:
        raise ConfigError(
            f"needs security_protocol SSL or SASL_SSL, it is {protocol}", path="kafka.tls"
        )
    if protocol.startswith("SASL"):
        for name in ("username", "password"):
            if not getattr(sasl, name):
                raise ConfigError(f"{protocol} needs one", path=f"kafka.sasl.{name}")
        options["sasl_mechanism"] = sasl.mechanism
        options["sasl_plain_username"] = sasl.username
        options["sasl_plain_password"] = sasl.password
    elif sasl.username or sasl.password:
        raise ConfigError(
            f"needs security_protocol SASL_PLAINTEXT or SASL_SSL, it is {protocol}",
            path="kafka.sasl",
        )
    return options


class _Reasons(logging.Handler):
    """Keeps why aiokafka could not connect: its exception does not say it, only its log does."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.CRITICAL:
            logging.getLogger().handle(record)
        elif record.msg.startswith("Unable connect"):
            self.last = " ".join(record.getMessage().split())

    def taken(self) -> str:
        """The last reason; it is given once."""
        reason, self.last = self.last, ""
        return reason


_reasons: Final = _Reasons(logging.ERROR)


def quiet_client_logs() -> None:
    """Keep aiokafka's own lines to what nobody else reports.

    While a broker is away it writes several errors a second; whoever uses it logs one line when the
    connection is lost and one when it is back.
    """
    library = logging.getLogger("aiokafka")
    library.setLevel(logging.ERROR)
    library.propagate = False
    if _reasons not in library.handlers:
        library.addHandler(_reasons)


def unhurried(client: AIOKafkaProducer) -> AIOKafkaProducer:
    """The same producer; while its broker refuses connections it asks four times a second.

    aiokafka asks for the leader of a waiting batch again as soon as it was told that nobody
    answers, thousands of times a second where the port is closed, and takes a third of a core from
    whoever shares the loop. Its ``retry_backoff_ms`` is not applied there.
    """
    network = client.client
    update = network._metadata_update  # noqa: SLF001  (no public seam; absent, tests would say so)

    async def slowly(*arguments: Any) -> Any:
        found = await update(*arguments)
        if not found:
            await asyncio.sleep(RETRY_BACKOFF_MS / 1000)
        return found

    network._metadata_update = slowly  # noqa: SLF001
    return client


def summary(error: BaseException) -> str:
    """One line for a log: the class of the error and its text."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return text if text.startswith(name) else f"{name}: {text}" if text else name


def connect_failure(error: BaseException) -> str:
    """Why a client did not start: what the library said of it, else its ``error``."""
    return _reasons.taken() or summary(error)


async def connect_forever(make: Callable[[], Any], what: str, bootstrap: str) -> Any:
    """A started aiokafka client from ``make``; tries until it can or is cancelled.

    The first failure is logged at once, then one line for every doubling of the wait at most.
    """
    backoff = Backoff(base=0.25, cap=10.0)
    failures = 0
    while True:
        client = make()
        try:
            await client.start()
        except CONNECTION_ERRORS as error:
            await stop_quietly(client)
            failures += 1
            if failures & (failures - 1) == 0:  # 1, 2, 4, 8, …: a day of silence is a few lines
                log.warning(
                    "Kafka at %s does not answer, %s waits for it: %s",
                    bootstrap,
                    what,
                    connect_failure(error),
                    extra={"attempt": failures},
                )
            await asyncio.sleep(max(0.05, backoff.next()))
        except BaseException:
            await stop_quietly(client)
            raise
        else:
            return client


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel and await ``tasks``, whatever they end with.

    Cancelled more than once if need be: library code between us and the loop may swallow the first
    (``asyncio.wait_for`` of Python 3.11 does, when what it waits for is done in the same turn).
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=6.0)


async def stop_quietly(client: Any, seconds: float = 5.0) -> None:
    """Release a client whatever state it is in; its own errors say nothing new."""
    closer = client.close if isinstance(client, AIOKafkaAdminClient) else client.stop
    with contextlib.suppress(*CONNECTION_ERRORS):
        async with asyncio.timeout(seconds):
            await closer()


async def cluster_id(settings: KafkaSettings, client_id: str) -> str:
    """The id that the cluster gave itself; empty where it tells none."""
    admin = AIOKafkaAdminClient(**client_options(settings, client_id))
    try:
        await admin.start()
        async with asyncio.timeout(_CREATE_SECONDS):
            described = await admin.describe_cluster()
        return str(described.get("cluster_id") or "")
    finally:
        await stop_quietly(admin)


async def ensure_topics(settings: KafkaSettings, topics: Iterable[str], client_id: str) -> None:
    """Create what is missing; never raises, because a broker may well forbid it.

    Where creating is refused or unknown (a broker without CreateTopics, an ACL), the topics are
    expected to be made by an operator or by the broker itself on first use.
    """
    admin = AIOKafkaAdminClient(**client_options(settings, client_id))
    try:
        await admin.start()
        # Replication -1 is the broker's own default (KIP-464); aiokafka lets it pass only beside a
        # replica assignment, which may be empty.
        wanted = [NewTopic(topic, PARTITIONS, -1, {}) for topic in topics]
        async with asyncio.timeout(_CREATE_SECONDS):
            reply = await admin.create_topics(wanted)
        for name, code, *_ in reply.topic_errors:
            error = for_code(code)
            if code == 0:
                log.info("topic %s created", name, extra={"partitions": PARTITIONS})
            elif error is not TopicAlreadyExistsError:
                log.warning("topic %s cannot be created: %s", name, error.__name__)
    except (*CONNECTION_ERRORS, AttributeError) as error:
        # AttributeError: aiokafka's answer to a broker that names no controller (librdkafka's mock)
        log.debug("topics not created by us: %s", summary(error))
    finally:
        await stop_quietly(admin)
