"""Grafana's dashboards (deploy/grafana/dashboards), from one table of panels.

A row of the table is a title, a unit and queries with their legends; the JSON around it is the same
for every panel. Tests ask a real Prometheus each of these queries.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["BOARDS", "DASHBOARDS", "Board", "Panel"]

#: Grafana's identifier of the data source that provisioning makes.
_SOURCE: Final = {"type": "prometheus", "uid": "nexus-prometheus"}

_OURS: Final = 'route!~"/health|/ready|/metrics"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel; ``queries``: (PromQL, legend). ``kind``: timeseries or stat."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    #: Whether its data exists only once something went wrong (or Kafka, or a collector, is there).
    may_be_empty: bool = False
    exemplars: bool = False
    help: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    panels: tuple[Panel, ...]


def _panel(title: str, unit: str, *queries: str, **more: Any) -> Panel:
    """``queries``: PromQL and legend in turn."""
    return Panel(title, unit, tuple(zip(queries[::2], queries[1::2], strict=True)), **more)


def _quantile(q: float, metric: str, by: str = "", matchers: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return (
        f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{matchers}}}"
        "[$__rate_interval])))"
    )


_GATEWAY: Final = Board(
    "nexus-gateway",
    "Nexus Gateway",
    (
        _panel(
            "Request rate",
            "reqps",
            "sum by (route, status_code) (rate(nexus_http_requests_total[1m]))",
            "{{route}} {{status_code}}",
        ),
        _panel(
            "p99 request latency",
            "ms",
            _quantile(0.99, "nexus_http_request_duration_ms", "route"),
            "{{route}}",
            exemplars=True,
        ),
        _panel(
            "Rate-limit hits in 5 min",
            "short",
            "sum by (ip) (increase(nexus_rate_limit_hits_total[5m]))",
            "{{ip}}",
            may_be_empty=True,
        ),
        _panel(
            "p95 upstream latency",
            "ms",
            _quantile(0.95, "nexus_upstream_request_duration_ms", "upstream"),
            "{{upstream}}",
            exemplars=True,
        ),
        _panel(
            "Breakers",
            "short",
            "max by (upstream) (nexus_circuit_breaker_state)",
            "{{upstream}}",
            help="0 closed, 1 open, 2 half-open",
        ),
        _panel(
            "Answered by the gateway itself",
            "reqps",
            "sum by (reason) (rate(nexus_rejections_total[$__rate_interval]))",
            "{{reason}}",
            may_be_empty=True,
        ),
        _panel(
            "Retries",
            "reqps",
            "sum by (upstream) (rate(nexus_retries_total[$__rate_interval]))",
            "{{upstream}}",
            "sum by (reason) (rate(nexus_retries_skipped_total[$__rate_interval]))",
            "not: {{reason}}",
            may_be_empty=True,
        ),
        _panel(
            "Connections",
            "short",
            "sum(nexus_http_connections)",
            "clients",
            "sum(nexus_http_requests_active)",
            "requests being served",
            "sum by (state) (nexus_upstream_connections)",
            "upstream, {{state}}",
            "sum(nexus_upstream_queue)",
            "waiting for one",
        ),
        _panel(
            "Events",
            "eps",
            "sum by (topic) (rate(nexus_events_sent_total[$__rate_interval]))",
            "{{topic}}",
            "sum by (reason) (rate(nexus_events_dropped_total[$__rate_interval]))",
            "dropped: {{reason}}",
            may_be_empty=True,
        ),
        _panel(
            "Blocked subjects",
            "short",
            "max(nexus_block_list_entries)",
            "entries",
            "max(nexus_block_list_connected)",
            "list is heard",
            may_be_empty=True,
        ),
    ),
)

_CACHEPROXY: Final = Board(
    "nexus-cacheproxy",
    "Nexus Cacheproxy",
    (
        _panel(
            "Commands",
            "ops",
            "sum by (outcome) (rate(nexus_cache_commands_total[$__rate_interval]))",
            "{{outcome}}",
        ),
        _panel(
            "Commands by group",
            "ops",
            "sum by (command) (rate(nexus_cache_commands_total[$__rate_interval]))",
            "{{command}}",
        ),
        _panel(
            "Redis round trip",
            "s",
            _quantile(0.99, "nexus_cache_command_duration_seconds", "outcome"),
            "p99 {{outcome}}",
            _quantile(0.5, "nexus_cache_command_duration_seconds", "outcome"),
            "p50 {{outcome}}",
        ),
        _panel("Clients", "short", "sum by (state) (nexus_cache_clients)", "{{state}}"),
        _panel(
            "Connections to Redis",
            "short",
            "sum by (kind) (nexus_cache_upstream_connections)",
            "{{kind}}",
        ),
        _panel(
            "Bytes",
            "Bps",
            "sum by (direction) (rate(nexus_cache_bytes_total[$__rate_interval]))",
            "{{direction}}",
        ),
        _panel(
            "Lost and refused",
            "ops",
            "sum by (kind) (rate(nexus_cache_upstream_lost_total[$__rate_interval]))",
            "connection lost: {{kind}}",
            "sum by (reason) (rate(nexus_cache_errors_total[$__rate_interval]))",
            "command {{reason}}",
            "sum by (reason) (rate(nexus_cache_clients_closed_total[$__rate_interval]))",
            "client closed: {{reason}}",
        ),
        _panel(
            "Dedicated connections",
            "ops",
            "sum by (origin) (rate(nexus_cache_pins_total[$__rate_interval]))",
            "{{origin}}",
        ),
    ),
)

_CONSUMER: Final = Board(
    "nexus-consumer",
    "Nexus Consumer",
    (
        _panel(
            "Events handled",
            "eps",
            "sum by (topic, result) (rate(nexus_consumer_events_total[$__rate_interval]))",
            "{{topic}} {{result}}",
            may_be_empty=True,
        ),
        _panel(
            "Lag", "short", "sum by (topic) (nexus_consumer_lag)", "{{topic}}", may_be_empty=True
        ),
        _panel(
            "Blocks and alerts",
            "short",
            "sum(increase(nexus_consumer_blocks_total[5m]))",
            "blocks in 5 min",
            "sum by (kind) (increase(nexus_consumer_alerts_total[5m]))",
            "{{kind}} in 5 min",
            may_be_empty=True,
        ),
        _panel(
            "Duplicates, retries, dead letters",
            "eps",
            "sum(rate(nexus_consumer_duplicates_total[$__rate_interval]))",
            "seen before",
            "sum(rate(nexus_consumer_retries_total[$__rate_interval]))",
            "tried again",
            "sum by (reason) (rate(nexus_consumer_dead_letters_total[$__rate_interval]))",
            "set aside: {{reason}}",
            may_be_empty=True,
        ),
        _panel(
            "Flow",
            "short",
            "sum(nexus_consumer_in_flight)",
            "in flight",
            "sum(nexus_consumer_paused_partitions)",
            "paused partitions",
            "sum(nexus_consumer_members)",
            "members",
            may_be_empty=True,
        ),
        _panel(
            "Commits and webhook calls",
            "ops",
            "sum by (result) (rate(nexus_consumer_commits_total[$__rate_interval]))",
            "commit {{result}}",
            "sum by (result) (rate(nexus_consumer_webhook_total[$__rate_interval]))",
            "webhook {{result}}",
            may_be_empty=True,
        ),
    ),
)

_RUNTIME: Final = Board(
    "nexus-runtime",
    "Nexus Runtime",
    (
        _panel(
            "CPU of a worker",
            "percentunit",
            "rate(nexus_process_cpu_seconds_total[1m])",
            "{{job}} {{worker}}",
        ),
        _panel(
            "Memory of a worker",
            "bytes",
            "nexus_process_resident_memory_bytes",
            "{{job}} {{worker}}",
        ),
        _panel(
            "Event-loop lag, p99",
            "s",
            _quantile(0.99, "nexus_event_loop_lag_seconds", "job, worker"),
            "{{job}} {{worker}}",
            "nexus_event_loop_lag_max_seconds",
            "worst of 15 s, {{job}} {{worker}}",
        ),
        _panel(
            "Garbage collector, p99 pause",
            "s",
            _quantile(0.99, "nexus_gc_pause_seconds", "job, generation"),
            "{{job}} generation {{generation}}",
        ),
        _panel(
            "File descriptors",
            "percentunit",
            "nexus_process_open_fds / nexus_process_max_fds",
            "{{job}} {{worker}}",
        ),
        _panel(
            "Workers",
            "short",
            "sum by (job) (increase(nexus_worker_restarts_total[10m]))",
            "{{job}} restarts in 10 min",
            "time() - nexus_worker_start_time_seconds",
            "age of {{job}} {{worker}}, s",
        ),
        _panel(
            "Spans",
            "ops",
            "sum by (job) (rate(nexus_trace_spans_total[$__rate_interval]))",
            "{{job}} made",
            "sum by (job) (rate(nexus_trace_spans_exported_total[$__rate_interval]))",
            "{{job}} exported",
            "sum by (job, reason) (rate(nexus_trace_spans_dropped_total[$__rate_interval]))",
            "{{job}} dropped: {{reason}}",
            may_be_empty=True,
        ),
        _panel(
            "Lost lines, records, label sets",
            "ops",
            "sum by (job, reason) (rate(nexus_log_lines_dropped_total[$__rate_interval]))",
            "{{job}} lines: {{reason}}",
            "sum by (job) (rate(nexus_records_dropped_total[$__rate_interval]))",
            "{{job}} records",
            "sum by (job, metric) (rate(nexus_metrics_overflow_total[$__rate_interval]))",
            "{{job}} label sets of {{metric}}",
        ),
        _panel(
            "Version",
            "short",
            "nexus_build_info",
            "{{job}} {{version}} {{backend}} {{python}}",
            kind="stat",
        ),
    ),
)

_SLO: Final = Board(
    "nexus-slo",
    "Nexus SLO",
    (
        _panel(
            "Error budget left, 7 days",
            "percentunit",
            "nexus:slo_budget_left:7d",
            "left",
            kind="stat",
        ),
        _panel(
            "Slow or failed",
            "percentunit",
            "nexus:slo_bad_ratio:5m",
            "5 min",
            "nexus:slo_bad_ratio:1h",
            "1 h",
            "nexus:slo_bad_ratio:6h",
            "6 h",
            "nexus:slo_bad_ratio:7d",
            "7 days",
            help="Objective: 0.1 %",
        ),
        _panel(
            "Burn rate",
            "short",
            "nexus:slo_bad_ratio:5m / 0.001",
            "5 min",
            "nexus:slo_bad_ratio:1h / 0.001",
            "1 h",
            help="1: the budget lasts just the seven days. 14.4 for an hour pages.",
        ),
        _panel(
            "Slow and failed, by route",
            "reqps",
            "sum by (route, cause) (rate(nexus_http_requests_bad_total"
            f"{{{_OURS}}}[$__rate_interval]))",
            "{{route}} {{cause}}",
        ),
        _panel(
            "Failed, by status",
            "reqps",
            "sum by (route, status_code) (rate(nexus_http_requests_total"
            f'{{{_OURS}, status_code=~"5..|0"}}[$__rate_interval]))',
            "{{route}} {{status_code}}",
            may_be_empty=True,
        ),
        _panel(
            "Alerts",
            "short",
            'sum by (alertname, severity) (ALERTS{alertname=~"Nexus.*", alertstate="firing"})',
            "{{alertname}} ({{severity}})",
            may_be_empty=True,
        ),
    ),
)

#: Every dashboard, in the order of the folder.
BOARDS: Final = (_GATEWAY, _CACHEPROXY, _CONSUMER, _RUNTIME, _SLO)


def _render(board: Board) -> str:
    panels = [_panel_json(index, panel) for index, panel in enumerate(board.panels)]
    document = {
        "uid": board.uid,
        "title": board.title,
        "tags": ["nexus"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": []},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "Nexus",
                "tags": ["nexus"],
                "asDropdown": True,
                "keepTime": True,
                "includeVars": False,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "panels": panels,
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _panel_json(index: int, panel: Panel) -> dict[str, Any]:
    legend = {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}
    if panel.kind == "stat":
        options: dict[str, Any] = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "textMode": "value_and_name",
        }
    else:
        options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    return {
        "id": index + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "gridPos": {"h": 8, "w": 12, "x": 12 * (index % 2), "y": 8 * (index // 2)},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": query,
                "legendFormat": legend_text,
                "range": panel.kind != "stat",
                "instant": panel.kind == "stat",
                "exemplar": panel.exemplars,
            }
            for number, (query, legend_text) in enumerate(panel.queries)
        ],
    }


def _renderer(board: Board) -> Callable[[], str]:
    return lambda: _render(board)


#: File name under deploy/grafana/dashboards/ → what renders it.
DASHBOARDS: Final[dict[str, Callable[[], str]]] = {
    f"{board.uid}.json": _renderer(board) for board in BOARDS
}
