"""Every metric that Nexus has, once: name, kind, help, labels, buckets, and how workers add up.

Handles come from :mod:`nexus.observability.registry`, which refuses a name that is not here; the
scrape, the documentation and the tests read the same table. Names follow Prometheus' conventions
(base unit in the name, ``_total`` on counters); milliseconds where the contract says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["CATALOGUE", "LATENCY_MS", "Metric", "find"]

Kind = Literal["counter", "gauge", "histogram"]

#: How the workers' values of one series become one:
#: ``sum`` of all; ``max`` of all; ``last`` written of all; ``worker``: one series for each worker,
#: told apart by a label ``worker``.
Aggregation = Literal["sum", "max", "last", "worker"]

#: Milliseconds; the contract's buckets.
LATENCY_MS: Final = (1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0)

#: Seconds; a turn of the event loop, or a collection, that takes longer than a bucket.
PAUSE_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

#: Seconds; a Redis round trip on one machine is far below the first of the contract's buckets.
REDIS_S: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
)  # fmt: skip

#: Distinct label sets of one metric over all workers, unless the entry says otherwise. Precedent:
#: Prometheus' advice to keep a metric to some hundred series, with headroom for route and status.
MAX_SERIES: Final = 1000


@dataclass(frozen=True, slots=True)
class Metric:
    """One entry. ``buckets`` (histograms only) are upper bounds, rising, without ``+Inf``."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    aggregation: Aggregation = "sum"
    #: Distinct label sets, over all workers; what comes later counts under ``other``.
    max_series: int = MAX_SERIES


def _counter(name: str, text: str, *labels: str, max_series: int = MAX_SERIES) -> Metric:
    return Metric(name, "counter", text, labels, max_series=max_series)


def _gauge(name: str, text: str, *labels: str, over: Aggregation = "sum") -> Metric:
    return Metric(name, "gauge", text, labels, aggregation=over)


def _histogram(
    name: str, text: str, *labels: str, buckets: tuple[float, ...] = LATENCY_MS
) -> Metric:
    return Metric(name, "histogram", text, labels, buckets)


_GATEWAY: Final = (
    _counter(
        "nexus_http_requests_total",
        "Requests answered, by route template.",
        "method",
        "route",
        "status_code",
    ),
    _counter(
        "nexus_http_requests_bad_total",
        "What the service level objective counts against itself, by cause: failed (500 and above, "
        "or no answer), slow (later than `metrics.slow_ms`). Both are there from a route's first "
        "request on, so that rate() sees the first bad one.",
        "route",
        "cause",
    ),
    _histogram(
        "nexus_http_request_duration_ms",
        "First byte in to last byte out, milliseconds.",
        "method",
        "route",
        "status_code",
    ),
    _histogram(
        "nexus_upstream_request_duration_ms",
        "One attempt at an upstream, to its response head, milliseconds.",
        "upstream",
        "method",
        "status_code",
    ),
    _counter(
        "nexus_rate_limit_hits_total",
        "Requests refused by the address limit; a bounded number of addresses, then 'other'.",
        "ip",
        max_series=100,
    ),
    _counter(
        "nexus_rate_limit_refusals_total",
        "Requests refused by a limit of `rate_limits`, by its name.",
        "limit",
    ),
    _counter(
        "nexus_rate_limit_shadow_total",
        "Requests that a limit in shadow mode would have refused, by its name.",
        "limit",
    ),
    _counter(
        "nexus_rate_limit_cluster_total",
        "Tokens granted by Redis, requests refused by it, and requests decided without it.",
        "result",
    ),
    _counter(
        "nexus_rate_limit_evictions_total",
        "Live buckets overwritten because their set of the shared table was full.",
    ),
    _counter(
        "nexus_circuit_breaker_opens_total", "Breakers tripped open, by upstream.", "upstream"
    ),
    _counter(
        "nexus_circuit_breaker_overflows_total",
        "Breakers that one worker keeps for itself because the shared table is full.",
    ),
    _gauge(
        "nexus_circuit_breaker_state",
        "Breaker of an upstream: 0 closed, 1 open, 2 half-open.",
        "upstream",
        over="last",
    ),
    _counter(
        "nexus_rejections_total",
        "Replies that the gateway made itself, by machine-readable reason.",
        "reason",
    ),
    _counter("nexus_retries_total", "Further attempts at a request, by upstream.", "upstream"),
    _counter(
        "nexus_retries_skipped_total", "Failures that were not retried, by why not.", "reason"
    ),
    _counter(
        "nexus_upstream_keepalive_races_total",
        "Requests sent again because an idle connection was just being closed, by upstream.",
        "upstream",
    ),
    _gauge("nexus_http_connections", "Open client connections."),
    _gauge("nexus_http_requests_active", "Requests being served."),
    _gauge("nexus_upstream_connections", "Open connections to an upstream.", "upstream", "state"),
    _gauge("nexus_upstream_queue", "Requests waiting for an upstream connection.", "upstream"),
    _gauge("nexus_upstream_healthy", "1 while an upstream is in rotation.", "upstream", over="max"),
    _counter("nexus_discovery_dns_total", "Questions for names of upstreams, by result.", "result"),
    _gauge(
        "nexus_discovery_last_success_timestamp_seconds",
        "When a source of upstreams was last read well, Unix seconds.",
        "source",
        over="max",
    ),
    _gauge("nexus_bulkhead_active", "Requests inside an upstream group's bulkhead.", "group"),
    _gauge("nexus_bulkhead_waiting", "Requests waiting for a place in it.", "group"),
    _counter(
        "nexus_upstream_ejections_total",
        "Upstreams left out for what they answered, by rule.",
        "upstream",
        "cause",
    ),
    _counter(
        "nexus_upstream_health_checks_total",
        "Active checks of upstreams, by result.",
        "upstream",
        "result",
    ),
    _counter(
        "nexus_discovery_reloads_total", "Reads of a changed services file, by result.", "result"
    ),
    _counter("nexus_tls_reloads_total", "Renewed certificate files, by result.", "result"),
    _counter(
        "nexus_proxy_headers_refused_total", "Connections closed for their PROXY protocol header."
    ),
    _gauge("nexus_block_list_entries", "Blocked subjects a worker enforces.", over="max"),
    _gauge("nexus_block_list_connected", "1 while the block list is heard.", over="max"),
    _counter("nexus_auth_tokens_total", "Answers of POST /auth/…, by result.", "result"),
    _gauge("nexus_auth_denylist_entries", "Revoked tokens a worker refuses.", over="max"),
    _gauge("nexus_auth_denylist_connected", "1 while the denylist is heard.", over="max"),
    _counter("nexus_auth_cache_total", "Lookups in the verified-token cache.", "result"),
    _counter(
        "nexus_auth_key_fetches_total",
        "Key sets asked of token providers, by result (fetched, failed).",
        *("issuer", "result"),
        max_series=64,
    ),
)

_CACHEPROXY: Final = (
    _counter(
        "nexus_cache_commands_total",
        "Commands by group (string, hash, …) and outcome: forwarded (shared connection), pinned "
        "(dedicated connection), local (answered by the proxy), hit (from the near-cache), "
        "coalesced (by another client's read).",
        "command",
        "outcome",
    ),
    _histogram(
        "nexus_cache_command_duration_seconds",
        "Command written to Redis to reply read, seconds, by outcome; sampled: one at a time "
        "on each connection.",
        "outcome",
        buckets=REDIS_S,
    ),
    _gauge("nexus_cache_clients", "Open client connections.", "state"),
    _counter("nexus_cache_clients_total", "Client connections accepted."),
    _counter(
        "nexus_cache_clients_closed_total", "Clients closed by the proxy, by reason.", "reason"
    ),
    _gauge("nexus_cache_upstream_connections", "Connections to Redis, by use.", "kind"),
    _counter("nexus_cache_upstream_lost_total", "Connections to Redis that broke.", "kind"),
    _counter(
        "nexus_cache_pins_total",
        "Clients that needed a dedicated connection: opened, reused, refused (at the limit).",
        "origin",
    ),
    _counter("nexus_cache_bytes_total", "Bytes passed, by direction.", "direction"),
    _counter(
        "nexus_cache_errors_total",
        "Commands answered with an error of the proxy's own: refused (not sent), lost (sent, and "
        "may have run).",
        "reason",
    ),
    _counter(
        "nexus_cache_near_reads_total",
        "Reads that a policy might answer: hit, coalesced (shares another's read), miss (not in "
        "the table), bypassed (in it, but not for this client now).",
        "outcome",
    ),
    _counter(
        "nexus_cache_near_fills_total",
        "Reads on tracking connections: asked; kept in the table; or why not (changed meanwhile, "
        "absent, expired, error, too_big, lost connection).",
        "result",
    ),
    _counter(
        "nexus_cache_near_dropped_total",
        "Entries that left the near-cache, by why: push (changed at Redis), flush, write (through "
        "the proxy), lost connection, expired, evicted.",
        "reason",
    ),
    _counter(
        "nexus_cache_near_waits_total",
        "Reads held for a fence or for another's read; late: the fence did not come in time, so "
        "they were forwarded.",
        "outcome",
    ),
    _counter(
        "nexus_cache_near_staleness_total",
        "Hits by age of the fence that vouches for them, milliseconds at most.",
        "age",
    ),
    _counter(
        "nexus_cache_near_shadow_total",
        "Hits compared with Redis (`shadow.compare_ratio`), and those that differed: none ever "
        "should.",
        "result",
    ),
    _counter("nexus_cache_near_fences_total", "PINGs sent to vouch for hits."),
    _histogram(
        "nexus_cache_near_fence_duration_seconds",
        "Fence sent to answer read, seconds.",
        buckets=REDIS_S,
    ),
    _counter(
        "nexus_cache_near_touched_total",
        "Keys that Redis was told of by TOUCH because they are hit in the proxy.",
    ),
    _gauge("nexus_cache_near_entries", "Replies in the near-cache."),
    _gauge("nexus_cache_near_bytes", "Memory of the near-cache's entries, overhead included."),
    _gauge(
        "nexus_cache_near_connections",
        "Connections by which Redis tells of changes: tracked, or refused (no near-cache there).",
        "state",
    ),
    _counter(
        "nexus_cache_near_lost_total",
        "Such connections that broke: lost, or stalled while Redis answered elsewhere.",
        "reason",
    ),
    _counter("nexus_cache_reconnects_total", "Shared connections that were opened again."),
    _counter("nexus_cache_tagged_keys_total", "Keys added to tags, again or for the first time."),
    _counter("nexus_cache_invalidations_total", "Tags invalidated."),
    _counter("nexus_cache_invalidated_keys_total", "Keys deleted by invalidating tags."),
    _counter(
        "nexus_cache_tags_refused_total",
        "Written keys whose tags Redis refused: no invalidation finds them.",
    ),
    _counter(
        "nexus_cache_hot_keys_prolonged_total",
        "Hot keys whose time to live was to grow, by result: prolonged, refused (by Redis).",
        "result",
    ),
    _counter(
        "nexus_cache_policy_reloads_total",
        "Changes of the policy file in each worker, by result: applied, refused (broken).",
        "result",
    ),
    _counter(
        "nexus_cache_leases_total",
        "Miss leases: granted, early (granted before the expiry), written, handed_over, expired "
        "(unwritten), lock_failed (redis did not answer for the lock).",
        "outcome",
    ),
    _counter(
        "nexus_cache_lease_waits_total",
        "Misses of leased keys: held, served (with the value), released_late (after lease_wait), "
        "released_early (something was sent behind the read), not_leased (the last lease ended "
        "unwritten), stale (an expired value stood in).",
        "outcome",
    ),
    _gauge("nexus_cache_lease_waiting", "Misses held now."),
    _counter(
        "nexus_cache_lease_fills_total",
        "What clients that were sent to load wrote, under rules with stale_fill_guard: stored, "
        "refused (somebody else had written the key since; answered OK), unguarded (the user may "
        "not see to the lock).",
        "outcome",
    ),
    _gauge("nexus_cache_policy_rules", "Rules in force; 0: none, or switched off.", over="max"),
    _counter(
        "nexus_cache_retired_connections_total",
        "Shared connections left to one client, which reads a big reply slowly.",
    ),
)

_EVENTS: Final = (
    _counter("nexus_events_sent_total", "Events acknowledged by the broker.", "topic"),
    _counter("nexus_events_dropped_total", "Events given up, by why.", "topic", "reason"),
    _gauge("nexus_events_queued", "Events waiting for the broker."),
    _gauge("nexus_events_connected", "1 while the producer has a broker.", over="max"),
)

_CONSUMER: Final = (
    _counter("nexus_consumer_events_total", "Events handled, by result.", "topic", "result"),
    _counter("nexus_consumer_duplicates_total", "Events that were seen before.", "topic"),
    _counter("nexus_consumer_dead_letters_total", "Events set aside, by why.", "topic", "reason"),
    _counter("nexus_consumer_retries_total", "Further attempts at an event.", "topic"),
    _counter("nexus_consumer_commits_total", "Offset commits, by result.", "result"),
    _counter("nexus_consumer_alerts_total", "Alerts raised, by kind.", "kind"),
    _counter("nexus_consumer_blocks_total", "Addresses blocked automatically."),
    _counter("nexus_consumer_actions_total", "Actions in nexus.actions, by type.", "type"),
    _counter("nexus_consumer_webhook_total", "Webhook calls, by result.", "result"),
    _gauge("nexus_consumer_lag", "Events behind the end of a topic.", "topic"),
    _gauge("nexus_consumer_in_flight", "Events received and not yet finished."),
    _gauge("nexus_consumer_paused_partitions", "Partitions paused under pressure."),
    _gauge("nexus_consumer_members", "Workers that are in the consumer group."),
)

_OBSERVABILITY: Final = (
    _counter(
        "nexus_records_dropped_total", "Request records lost because the recorder's ring was full."
    ),
    _counter("nexus_sink_errors_total", "Batches of records that a sink could not take.", "sink"),
    _counter(
        "nexus_log_lines_dropped_total",
        "Log lines lost: buffer full, output closed, or too late at shutdown.",
        "stream",
        "reason",
    ),
    _counter("nexus_trace_spans_total", "Spans made."),
    _counter("nexus_trace_spans_exported_total", "Spans that the collector accepted."),
    _counter("nexus_trace_spans_dropped_total", "Spans lost, by why.", "reason"),
    _counter("nexus_trace_exports_total", "Export attempts, by result.", "result"),
    _counter(
        "nexus_metrics_overflow_total",
        "Look-ups of a label set that found no room; counted under 'other'.",
        "metric",
    ),
)

_RUNTIME: Final = (
    _gauge(
        "nexus_build_info",
        "1; version, kernels and Python.",
        "version",
        "backend",
        "python",
        over="max",
    ),
    _gauge("nexus_worker_start_time_seconds", "Unix time of a worker's start.", over="worker"),
    _counter("nexus_worker_restarts_total", "Workers replaced because they died."),
    Metric(
        "nexus_process_cpu_seconds_total",
        "counter",
        "CPU time of a worker, user and system, over all its incarnations.",
        aggregation="worker",
    ),
    _gauge("nexus_process_resident_memory_bytes", "Memory of a worker in RAM.", over="worker"),
    _gauge("nexus_process_open_fds", "Open file descriptors of a worker.", over="worker"),
    _gauge("nexus_process_max_fds", "Limit of file descriptors of a worker.", over="worker"),
    Metric(
        "nexus_event_loop_lag_seconds",
        "histogram",
        "How late a due timer ran: the time that other callbacks held the loop, seconds.",
        buckets=PAUSE_S,
        aggregation="worker",
    ),
    _gauge(
        "nexus_event_loop_lag_max_seconds",
        "Worst lag since a worker's last sample window of 15 s, seconds.",
        over="worker",
    ),
    Metric(
        "nexus_gc_pause_seconds",
        "histogram",
        "Pauses of the garbage collector, seconds.",
        ("generation",),
        PAUSE_S,
    ),
    _counter("nexus_gc_collected_objects_total", "Objects freed by the collector.", "generation"),
)

#: Every metric by name, in the order of the scrape.
CATALOGUE: Final[dict[str, Metric]] = {
    metric.name: metric
    for section in (_GATEWAY, _CACHEPROXY, _EVENTS, _CONSUMER, _OBSERVABILITY, _RUNTIME)
    for metric in section
}


def find(name: str, kind: Kind) -> Metric:
    """The entry of ``name``. Raises ``LookupError`` when it is absent or of another kind."""
    metric = CATALOGUE.get(name)
    if metric is None:
        raise LookupError(f"{name} is not in nexus/observability/catalogue.py")
    if metric.kind != kind:
        raise LookupError(f"{name} is a {metric.kind}, not a {kind}")
    return metric
