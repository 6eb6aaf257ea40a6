"""docs/configuration.md: every setting of every service, from its struct."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Final, Union

import msgspec

from nexus.cacheproxy.settings import CacheproxySettings
from nexus.consumer.settings import ConsumerSettings
from nexus.demo.settings import UpSettings, flag_of
from nexus.gateway.settings import GatewaySettings
from nexus.settings import Settings, needs_restart

__all__ = ["render", "setting_rows", "undescribed"]

_SERVICES: Final[dict[str, type[Settings]]] = {
    "gateway": GatewaySettings,
    "cacheproxy": CacheproxySettings,
    "consumer": ConsumerSettings,
}

_INTRODUCTION: Final = """\
# Configuration reference

*Written by `scripts/generate-docs` from the settings structs; edit those instead.*

Every setting can be given in the YAML file named by `--config`, in the environment, or (the most
common ones) as a flag. A flag beats the environment, the environment beats the file, the file
beats the default. The environment name is `NEXUS_<SERVICE>_<KEY>` with a double underscore
between levels: `rate_limit.capacity` of the gateway is `NEXUS_GATEWAY_RATE_LIMIT__CAPACITY`.
Text in the file may hold `${NAME}` or `${NAME:-default}`, taken from the environment.

An unknown key is an error with a suggestion. `--check` validates, prints the resolved settings
with secrets masked, and exits 0 or 2. SIGHUP re-reads the file; a broken file keeps the last good
settings. What is marked ↻ needs a restart: a reload keeps its old value and says so.
"""

_UP: Final = """\
`nexus up`, which is what `make run` calls (`make run ARGS="--once"`). Each flag is also
`NEXUS_UP_<NAME>` in the environment. Settings of the services themselves (`NEXUS_GATEWAY_…`)
reach them through the environment.
"""


def render() -> str:
    """The whole page as Markdown."""
    parts = [_INTRODUCTION]
    for service, struct in _SERVICES.items():
        parts.append(f"\n## {service}\n\n`python -m nexus.{service} --config FILE`\n")
        parts.append("\n| setting | type | default | what |\n|---|---|---|---|\n")
        parts.extend(_rows(struct, ""))
    parts.append("\n## up\n\n" + _UP + "\n| flag | type | default | what |\n|---|---|---|---|\n")
    for row in _rows(UpSettings, ""):
        name = row.split("`")[1]
        parts.append(row.replace(f"`{name}`", f"`{flag_of(name)}`", 1))
    return "".join(parts)


def setting_rows(struct: type[msgspec.Struct]) -> Iterator[str]:
    """A table row for each setting of a struct: name, type, default, what."""
    return _rows(struct, "")


def _rows(struct: type[msgspec.Struct], prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        kind, metas = _unwrap(hints[field.name])
        path = f"{prefix}{field.encode_name}"
        item = _item_struct(kind)
        mark = " ↻" if needs_restart(hints[field.name]) else ""
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            yield f"| **`{path}`**{mark} | | | {_first_line(kind)} |\n"
            yield from _rows(kind, f"{path}.")
            continue
        description = next((m.description for m in reversed(metas) if m.description), "")
        default = _default(field)
        yield f"| `{path}`{mark} | {_type(kind, metas)} | {default} | {description} |\n"
        if item is not None:
            yield from _rows(item, f"{path}[].")


def _unwrap(kind: Any) -> tuple[Any, list[msgspec.Meta]]:
    metas: list[msgspec.Meta] = []
    while typing.get_origin(kind) is Annotated:
        kind, *extras = typing.get_args(kind)
        metas = [e for e in extras if isinstance(e, msgspec.Meta)] + metas
    return kind, metas


def _item_struct(kind: Any) -> type[msgspec.Struct] | None:
    if typing.get_origin(kind) in (tuple, list):
        inner, _ = _unwrap(typing.get_args(kind)[0])
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            return inner
    return None


_NAMES: Final = {int: "integer", float: "number", bool: "true/false", str: "text"}


def _type(kind: Any, metas: list[msgspec.Meta]) -> str:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(kind))
    if origin in (Union, types.UnionType):
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        return " or ".join(_type(*_unwrap(a)) for a in inner)
    if origin is dict:
        key, item = (_type(*_unwrap(argument)) for argument in typing.get_args(kind))
        return f"{key} → {item}"
    if origin in (tuple, list):
        return f"list of {_type(*_unwrap(typing.get_args(kind)[0]))}"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "mappings"
    name = _NAMES.get(kind, str(kind))
    if any((m.extra or {}).get("secret") for m in metas):
        name = "secret"
    bounds = [
        f"{sign} {value}"
        for meta in metas
        for sign, value in (
            (">", meta.gt),
            ("≥", meta.ge),
            ("<", meta.lt),
            ("≤", meta.le),
            ("length ≥", meta.min_length),
            ("length ≤", meta.max_length),
        )
        if value is not None
    ]
    return f"{name} {', '.join(bounds)}" if bounds else name


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "**required**"
    value = field.default
    if value is msgspec.NODEFAULT:
        return "none" if field.default_factory in (dict, list) else ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value in ("", (), None):
        return "none"
    if isinstance(value, tuple):
        return f"`{msgspec.json.encode(value).decode()}`"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"`{value}`"


def _first_line(struct: type) -> str:
    if "__doc__" not in vars(struct) or not struct.__doc__:
        return ""
    return inspect.cleandoc(struct.__doc__).splitlines()[0]


def undescribed() -> list[str]:
    """Settings without a description: ``service.path``."""
    return [
        f"{service}.{row.split('`')[1]}"
        for service, struct in _SERVICES.items()
        for row in _rows(struct, "")
        if row.rstrip().endswith("|  |")
    ]
