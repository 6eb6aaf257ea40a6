"""Nexus: cache intelligence for Redis and a gateway for HTTP, with no change to your code.

Layers, imports point downwards only (``docs/architecture.md``)::

    6  <service>/__main__.py                    argv → settings → net.run
    5  gateway/ cacheproxy/ consumer/ demo/     the services, which never import each other
    4  net/                                     workers, signals, drain, listeners, producer
    3  observability/  tracing/                 metrics, traces, logs, health; spans of functions
    2  policy/                                  pure decisions; `now` is an argument
    1  wire/                                    bytes ↔ values; no I/O, no clock
    0  errors, clock, redact, settings, _speedups/
"""

from nexus._version import __version__

__all__ = ["__version__"]
