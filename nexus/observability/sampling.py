"""Which new traces are sampled: the setting, and OpenTelemetry's variables, which beat it.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from nexus.errors import ConfigError

__all__ = ["Sampling", "effective_sampling", "sampling_from"]

#: Name → (share of roots, ``None``: OTEL_TRACES_SAMPLER_ARG says it; whether a caller decides).
_SAMPLERS: Final[dict[str, tuple[float | None, bool]]] = {
    "always_on": (1.0, False),
    "always_off": (0.0, False),
    "traceidratio": (None, False),
    "parentbased_always_on": (1.0, True),
    "parentbased_always_off": (0.0, True),
    "parentbased_traceidratio": (None, True),
}


@dataclass(frozen=True, slots=True)
class Sampling:
    """``ratio``: share of new traces, 0 to 1; ``parent_based``: a caller's decision is followed."""

    ratio: float
    parent_based: bool = True


def effective_sampling(enabled: bool, ratio: float, environ: Mapping[str, str]) -> Sampling | None:
    """As :func:`sampling_from`; ``None`` where no spans are made at all.

    That is by the setting, by ``OTEL_SDK_DISABLED=true`` or by ``OTEL_TRACES_EXPORTER=none``.
    Raises ``ConfigError`` also for an exporter that we do not have.
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", "otlp", "none"):
        raise ConfigError(
            f"expected otlp or none, got {exporter!r}",
            source="environment variable OTEL_TRACES_EXPORTER",
        )
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if not enabled or disabled or exporter == "none":
        return None
    return sampling_from(environ, ratio)


def sampling_from(environ: Mapping[str, str], ratio: float) -> Sampling:
    """``OTEL_TRACES_SAMPLER`` and its ``_ARG``; without them, parent-based ``ratio``.

    Raises ``ConfigError`` for a sampler that is not known or a ratio that is none.
    """
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    if not name:
        return Sampling(ratio)
    if name not in _SAMPLERS:
        raise ConfigError(
            f"expected one of {', '.join(_SAMPLERS)}, got {name!r}",
            source="environment variable OTEL_TRACES_SAMPLER",
        )
    fixed, parent_based = _SAMPLERS[name]
    return Sampling(_ratio(environ) if fixed is None else fixed, parent_based)


def _ratio(environ: Mapping[str, str]) -> float:
    text = environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    if not text:
        return 1.0
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(
            f"expected a number from 0 to 1, got {text!r}",
            source="environment variable OTEL_TRACES_SAMPLER_ARG",
        )
    return ratio
