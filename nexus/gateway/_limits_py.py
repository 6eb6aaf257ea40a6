# cython: annotation_typing=False
"""Limits by client, header, route or a combination, of which a request may meet several.

::

    check ─► each limit of scope gateway: the table in shared memory ─► refused? 429
          ─► each limit of scope cluster: leased tokens, else Redis is asked (the request is held)
          ─► admitted

They are asked in the order of the configuration, those of the gateway first; tokens that a limit
gave are not given back when a later one refuses. One source, compiled as ``_limits_c``.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import cython  # type: ignore[import-untyped]

from nexus._speedups.buckets import hash_key
from nexus.errors import ConfigError
from nexus.gateway.clients import limit_key
from nexus.policy.limitkeys import ADDRESS, CLIENT, HEADER, ROUTE, KeyPart, parse_key
from nexus.policy.ratelimit import RateLimit

if not cython.compiled:
    from nexus._speedups._buckets_py import BucketTable
    from nexus._speedups._http1_py import RequestHead
    from nexus.gateway._core_py import Core

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nexus.gateway._exchange_py import Exchange
    from nexus.gateway.clusterlimits import ClusterLimits
    from nexus.gateway.settings_limits import LimitRuleSettings

__all__ = ["PENDING", "UNAVAILABLE", "Limit", "LimitSet", "Limiter", "build_limits"]

#: Answers of a cluster limit that are no number of tokens: Redis is being asked; it is away, and
#: the limit is to fail closed.
PENDING: Final = 1 << 62
UNAVAILABLE: Final = PENDING + 1
# The same as C integers in the compiled module.
_PENDING, _UNAVAILABLE = PENDING, UNAVAILABLE
_ADDRESS, _CLIENT, _ROUTE, _HEADER = ADDRESS, CLIENT, ROUTE, HEADER

#: Limits that one request may meet; each costs a bucket and a part of two header fields.
MAX_LIMITS: Final = 16

_address = lru_cache(maxsize=65_536)(limit_key)


class Limit:
    """One limit; ``rule`` is its arithmetic."""

    __slots__ = ("burst", "cluster", "interval", "name", "parts", "prefix", "rule", "settings")

    def __init__(self, settings: LimitRuleSettings) -> None:
        """Raises ``ValueError``."""
        self.settings = settings
        self.name = settings.name
        self.rule = RateLimit(settings.capacity, settings.refill_per_second, name=settings.name)
        self.interval = self.rule.interval_ns
        self.burst = self.rule.burst
        self.parts = [(part.kind, part.header) for part in _parts(settings)]
        self.prefix = settings.name.encode() + b"\0"
        self.cluster = settings.scope == "cluster"
        if settings.lease > settings.capacity:
            raise ValueError(
                f"lease must be at most the capacity ({settings.capacity}), got {settings.lease}"
            )

    def key_of(self, exchange: Exchange, head: RequestHead) -> bytes:
        """The request's bucket; parts carry their length, so no two keys can look alike."""
        key = self.prefix
        for part in self.parts:
            kind = part[0]
            value = None
            if kind == _CLIENT:
                if exchange.client_id:
                    value = exchange.client_id.encode()
            elif kind == _HEADER:
                value = head.named(part[1])
            elif kind == _ROUTE:
                value = b"" if exchange.route is None else exchange.route.template.encode()
            if value is None:
                # An address never looks like a client: nobody can send himself into its bucket.
                value = _address(exchange.ip)
                key += b"a%d:%b" % (len(value), value)
            else:
                key += b"v%d:%b" % (len(value), value)
        return key

    def __repr__(self) -> str:
        return f"<Limit {self.rule!r}>"


def _parts(settings: LimitRuleSettings) -> tuple[KeyPart, ...]:
    return parse_key(settings.key)


def build_limits(lists: Sequence[tuple[str, Sequence[LimitRuleSettings]]]) -> LimitSet | None:
    """The limits of (setting, list) together, ``None`` where there is none.

    Raises ``ConfigError``; two limits of one name would take two tokens from one bucket.
    """
    limits: list[Limit] = []
    names: set[str] = set()
    where = ""
    for setting, rules in lists:
        for i, rule in enumerate(rules):
            where = f"{setting}[{i}]"
            try:
                limits.append(Limit(rule))
            except ValueError as error:
                raise ConfigError(str(error), path=where) from None
            if rule.name in names:
                raise ConfigError(f"the limit {rule.name!r} is named twice", path=f"{where}.name")
            names.add(rule.name)
    if len(limits) > MAX_LIMITS:
        raise ConfigError(
            f"expected at most {MAX_LIMITS} limits for one request, got {len(limits)}",
            path=where.partition("[")[0],
        )
    return LimitSet(limits) if limits else None


class LimitSet:
    """What one route's requests meet, in order."""

    __slots__ = ("cluster", "limits", "local", "policy_field")

    def __init__(self, limits: list[Limit]) -> None:
        self.limits = limits
        self.local = [limit for limit in limits if not limit.cluster]
        self.cluster = [limit for limit in limits if limit.cluster]
        #: ``RateLimit-Policy``: a list of all of them.
        self.policy_field = b", ".join([limit.rule.policy_field for limit in limits])


class Waiting:
    """A request that waits for Redis: the limits that are still to be asked, from ``at`` on."""

    __slots__ = ("at", "exchange", "fields", "limiter", "limits", "request_id")

    def __init__(
        self, limiter: Limiter, exchange: Exchange, limits: LimitSet, at: int, fields: Any
    ) -> None:
        self.limiter = limiter
        self.exchange = exchange
        #: An exchange serves one request after the other; this one may be over.
        self.request_id = exchange.request_id
        self.limits = limits
        self.at = at
        self.fields = fields

    def answer(self, taken: int) -> None:
        """What the limit at ``at`` says, as ``BucketTable.take`` does."""
        exchange = self.exchange
        if not exchange.held or exchange.request_id is not self.request_id:
            return  # the client has gone
        head = exchange.held_head
        limiter = self.limiter
        if limiter.judge(exchange, self.limits, self.limits.cluster[self.at], taken, self.fields):
            return
        if not limiter.ask(exchange, head, self.limits, self.at + 1, self.fields):
            exchange.let_go()
            limiter.proceed(exchange, head)


class Limiter:
    """All that limits of a worker need."""

    def __init__(self, core: Core, table: BucketTable, seed: int) -> None:
        self.core = core
        self._table: Any = table
        self._seed = seed
        #: Set by the app where a limit has scope cluster.
        self.shared: ClusterLimits | None = None
        #: What follows once a request that was held is admitted.
        self.proceed: Callable[[Exchange, RequestHead], None] | Any = None
        #: Whether replies say what is left, and not only refusals.
        self.announce = False

    def check(self, exchange: Exchange, head: RequestHead, limits: LimitSet) -> bool:
        """True when the request may not go on: it was refused, or is held."""
        fields: Any = [] if self.announce else None
        for limit in limits.local:
            taken = self.take(limit, limit.key_of(exchange, head), exchange.started)
            if self.judge(exchange, limits, limit, taken, fields):
                return True
        if limits.cluster:
            return self.ask(exchange, head, limits, 0, fields)
        if fields is not None:
            self.tell(exchange, limits, fields)
        return False

    def take(self, limit: Limit, key: bytes, now: int) -> int:
        """One token from the table that the workers share."""
        taken: int = self._table.take(hash_key(key, self._seed), now, limit.interval, limit.burst)
        return taken

    def ask(
        self, exchange: Exchange, head: RequestHead, limits: LimitSet, at: int, fields: Any
    ) -> bool:
        """Ask the cluster's limits from ``at`` on; True when the request may not go on."""
        while at < len(limits.cluster):
            limit = limits.cluster[at]
            key = limit.key_of(exchange, head)
            if self.shared is None:
                taken = self.take(limit, key, exchange.started)
            else:
                waiting = Waiting(self, exchange, limits, at, fields)
                # Redis learns no header values: they may be somebody's API key.
                digest = hashlib.blake2b(key, digest_size=16).digest()
                taken = self.shared.take(limit, key, digest, waiting)
                if taken == _PENDING:
                    exchange.hold()
                    return True
            if self.judge(exchange, limits, limit, taken, fields):
                return True
            at += 1
        if fields is not None:
            self.tell(exchange, limits, fields)
        return False

    def judge(
        self, exchange: Exchange, limits: LimitSet, limit: Limit, taken: int, fields: Any
    ) -> bool:
        """True when ``taken`` refuses the request, which is then answered."""
        core = self.core
        if taken == _UNAVAILABLE:
            if limit.settings.shadow:
                return False
            exchange.reject(
                503, "limit_unavailable", "The limit cannot be checked now.", b"Retry-After: 1\r\n"
            )
            return True
        if taken >= 0:
            if fields is not None:
                fields.append(limit.rule.fields(taken))
            return False
        if limit.settings.shadow:
            core.count("nexus_rate_limit_shadow_total", limit.name)
            exchange.shared = exchange.shared + b"x-ratelimit-shadow: %b\r\n" % limit.name.encode()
            return False
        core.count("nexus_rate_limit_refusals_total", limit.name)
        rule = limit.rule
        extra = b"Retry-After: %d\r\nRateLimit: %b\r\nRateLimit-Policy: %b\r\n" % (
            rule.retry_after(taken),
            rule.fields(taken),
            limits.policy_field,
        )
        message = f"The limit {limit.name} is exceeded; retry later."
        exchange.reject(429, "limit_exceeded", message, extra)
        return True

    def tell(self, exchange: Exchange, limits: LimitSet, fields: list[bytes]) -> None:
        """What is left, on a reply that is no refusal."""
        if fields:
            exchange.shared = exchange.shared + b"RateLimit: %b\r\nRateLimit-Policy: %b\r\n" % (
                b", ".join(fields),
                limits.policy_field,
            )
