"""Configuration: YAML file + environment + flags → one frozen, typed struct per service.

A flag beats the environment, the environment beats the file, the file beats the default. Every
error says where the value was read, which setting it is, what was found and what was expected::

    gateway.yaml: rate_limit.capacity: expected an integer >= 1, got 'ten'
    gateway.yaml: ratelimit: unknown setting; did you mean 'rate_limit'?

Environment names are ``NEXUS_<SERVICE>_<KEY>``, with a double underscore between levels
(``NEXUS_GATEWAY_RATE_LIMIT__CAPACITY=100``); values are read as YAML unless the setting is text.
Strings in a file may hold ``${NAME}`` or ``${NAME:-default}``, taken from the environment.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar, Union

import msgspec
import yaml

from nexus.errors import ConfigError
from nexus.redact import MASK, mask_password

__all__ = [
    "MASK",
    "RESTART",
    "Secret",
    "Settings",
    "decode",
    "dump",
    "keep_restart_only",
    "line_of",
    "load",
    "locate",
    "needs_restart",
    "parse_yaml",
    "read_yaml",
]

#: Text that is never printed: ``--check`` shows :data:`MASK` in its place.
Secret = Annotated[str, msgspec.Meta(extra={"secret": True})]


#: Marks a setting that only a restart can change; a reload keeps its old value and says so.
RESTART: Final = msgspec.Meta(extra={"restart": True})


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every settings struct."""


if typing.TYPE_CHECKING:
    from pathlib import Path

S = TypeVar("S", bound=Settings)
Tree = dict[str, Any]

#: Levels of a settings file; an alias that holds itself would go on for ever.
_MAX_DEPTH: Final = 32

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT)|_PORT_\d+_(TCP|UDP)")
_AT = re.compile(r" - at `(?:key in )?\$?(?P<path>[^`]*)`$")


def load(
    cls: type[S],
    *,
    service: str,
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, Any] | None = None,
) -> S:
    """Read and validate the settings of one service.

    ``flags`` maps dotted setting names to values (``None`` = not given). Raises
    :class:`~nexus.errors.ConfigError`.
    """
    layers: list[tuple[str, Tree]] = []
    if file is not None:
        tree = read_yaml(file)
        layers.append((str(file), _interpolate(tree, environ, str(file), "")))
    layers.extend(_environment(cls, f"NEXUS_{service.upper()}_", environ))
    given = {k: v for k, v in (flags or {}).items() if v is not None}
    layers.append(("command line", _nest(given)))
    merged: Tree = {}
    for source, tree in layers:
        _reject_unknown(cls, tree, source)
        merged = _merge(merged, tree)
    sources = [source for source, _ in layers]
    try:
        return msgspec.convert(merged, cls)
    except msgspec.ValidationError as error:
        message, path = _split(str(error))
        at = next((s for s, t in reversed(layers) if _holds(t, path)), sources[0])
        words = _in_words(message, _look_up(merged, path), _type_at(cls, _steps(path)))
        raise ConfigError(words, source=at, path=path) from None


def decode(cls: type[S], tree: object, *, source: str) -> S:
    """Validate one already parsed document (a policy, ``services.json``) into ``cls``."""
    if not isinstance(tree, dict):
        raise ConfigError(f"expected a mapping, got {_kind(tree)}", source=source)
    _reject_unknown(cls, tree, source)
    try:
        return msgspec.convert(tree, cls)
    except msgspec.ValidationError as error:
        message, path = _split(str(error))
        words = _in_words(message, _look_up(tree, path), _type_at(cls, _steps(path)))
        raise ConfigError(words, source=source, path=path) from None


def read_yaml(file: Path) -> Tree:
    """Parse one YAML mapping; an empty file is an empty mapping. Raises ``ConfigError``."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", source=str(file)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 (byte {error.start})", source=str(file)) from None
    return parse_yaml(text, str(file))


def parse_yaml(text: str, source: str) -> Tree:
    """What :func:`read_yaml` does with a file's text."""
    try:
        tree = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506  (a SafeLoader subclass)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}{error.problem or error.context}", source=source) from None
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # PyYAML lets a date that does not exist, or an endless nesting, out as plain errors.
        raise ConfigError(f"not YAML: {error}", source=source) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"expected a mapping at the top, got {_kind(tree)}", source=source)
    return tree


def locate(file: Path, path: str) -> int:
    """The line of a setting in a YAML file, as :func:`line_of`; 0 where it cannot be read."""
    try:
        return line_of(file.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError):
        return 0


def line_of(text: str, path: str) -> int:
    """The line of a setting in a YAML text, from 1; of the nearest one around it that is there.

    0 for what is no YAML; ``path`` as in errors: ``routes[2].auth.roles``.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return 0
    line = 0
    for step in _steps(path):
        found = _below(node, step)
        if found is None:
            break
        line, node = found
    return line


def _below(node: yaml.Node | None, step: str | int) -> tuple[int, yaml.Node] | None:
    """Line and node of one key or item."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item.start_mark.line + 1, item
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return key.start_mark.line + 1, value
    return None


def dump(settings: Settings) -> str:
    """The resolved configuration as YAML, secrets masked: what ``--check`` prints."""
    return yaml.safe_dump(_plain(settings), sort_keys=False, default_flow_style=False)


def keep_restart_only(old: S, fresh: S) -> tuple[S, list[str]]:
    """``fresh``, but with old values where only a restart may change them; and which differed.

    What is marked :data:`RESTART` may stand at any depth of structs. Where a list is marked and its
    structs have marks of their own, those decide while there are as many as before.
    """
    hints = _fields(type(old))
    changes: dict[str, Any] = {}
    names: list[str] = []
    for field in msgspec.structs.fields(type(old)):
        before, after = getattr(old, field.name), getattr(fresh, field.name)
        if before == after:
            continue
        if needs_restart(hints[field.encode_name]):
            if _comparable(before, after):
                kept_all = [keep_restart_only(*pair) for pair in zip(before, after, strict=True)]
                changes[field.name] = tuple(kept for kept, _ in kept_all)
                for i, (_, inner) in enumerate(kept_all):
                    names.extend(f"{field.encode_name}[{i}].{name}" for name in inner)
                continue
            changes[field.name] = before
            names.append(field.encode_name)
        elif isinstance(before, Settings):
            kept, inner = keep_restart_only(before, after)
            if inner:
                changes[field.name] = kept
                names.extend(f"{field.encode_name}.{name}" for name in inner)
    return (msgspec.structs.replace(fresh, **changes) if changes else fresh), names


def _comparable(before: Any, after: Any) -> bool:
    """Whether they are as many structs that say themselves what needs a restart."""
    return (
        isinstance(before, tuple)
        and len(before) == len(after)
        and all(
            isinstance(one, Settings) and any(map(needs_restart, _fields(type(one)).values()))
            for one in before
        )
    )


def needs_restart(kind: Any) -> bool:
    """Whether a field of this annotation is marked :data:`RESTART`."""
    if typing.get_origin(kind) is not Annotated:
        return False
    base, *extras = typing.get_args(kind)
    marked = any(isinstance(m, msgspec.Meta) and (m.extra or {}).get("restart") for m in extras)
    return marked or needs_restart(base)


class _UniqueKeyLoader(yaml.SafeLoader):
    """A key that is written twice is a mistake, not 'the last one wins'."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen and key_node.value != "<<":
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"the key {key_node.value!r} is given twice",
                        key_node.start_mark,
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _interpolate(value: Any, environ: Mapping[str, str], source: str, path: str) -> Any:
    if path.count(".") > _MAX_DEPTH:
        raise ConfigError(f"nested deeper than {_MAX_DEPTH} levels", source=source)
    if isinstance(value, dict):
        return {
            k: _interpolate(v, environ, source, f"{path}.{k}" if path else str(k))
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_interpolate(v, environ, source, f"{path}[{i}]") for i, v in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value

    def replace(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name in environ:
            return environ[name]
        if default is not None:
            return str(default)
        raise ConfigError(
            f"the environment variable {name} is not set (for a default: ${{{name}:-default}})",
            source=source,
            path=path,
        )

    return _VARIABLE.sub(replace, value)


def _environment(
    cls: type[Settings], prefix: str, environ: Mapping[str, str]
) -> list[tuple[str, Tree]]:
    layers: list[tuple[str, Tree]] = []
    for name in sorted(environ):
        if not name.startswith(prefix) or name == prefix:
            continue
        path = name.removeprefix(prefix).lower().split("__")
        source = f"environment variable {name}"
        if _SERVICE_LINK.search(name) or environ[name].startswith("tcp://"):
            raise ConfigError(
                "looks like a service link that Kubernetes made, not like a setting; "
                "set `enableServiceLinks: false` in the pod, or rename the Service",
                source=source,
            )
        kind = _type_at(cls, path)
        text = environ[name]
        value: Any = text
        if not _is_text(kind):
            try:
                value = yaml.safe_load(text)
            except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, RecursionError):
                shown = "" if _holds_secret(kind) else f": {text!r}"
                raise ConfigError(f"not a YAML value{shown}", source=source) from None
        layers.append((source, _nest({".".join(path): value})))
    return layers


def _nest(flat: Mapping[str, Any]) -> Tree:
    tree: Tree = {}
    for dotted, value in flat.items():
        *parents, last = dotted.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def _merge(low: Tree, high: Tree) -> Tree:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _merge(typing.cast("Tree", below), value) if both else value
    return merged


def _strip(kind: Any) -> Any:
    """The type behind ``Annotated`` and ``| None``."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (Union, types.UnionType):
        inner = [a for a in typing.get_args(kind) if a is not type(None)]
        if len(inner) == 1:
            return _strip(inner[0])
    return kind


def _fields(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.encode_name: hints[f.name] for f in msgspec.structs.fields(cls)}


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _type_at(cls: Any, path: Sequence[str | int]) -> Any:
    kind: Any = cls
    for part in path:
        kind = _strip(kind)
        if isinstance(part, int):
            kind = next(iter(typing.get_args(kind)), None)
        elif _is_struct(kind):
            kind = _fields(kind).get(part)
        else:
            return None
    return kind


def _is_text(kind: Any) -> bool:
    kind = _strip(kind)
    return kind is str or typing.get_origin(kind) is typing.Literal


def _reject_unknown(kind: Any, value: Any, source: str, path: str = "") -> None:
    kind = _strip(kind)
    if isinstance(value, list):
        arguments = typing.get_args(kind)
        for index, item in enumerate(value):
            if arguments:
                _reject_unknown(arguments[0], item, source, f"{path}[{index}]")
    if not isinstance(value, dict) or not _is_struct(kind):
        return
    known = _fields(kind)
    for key, inner in value.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.55)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"
            raise ConfigError(f"unknown setting{hint}", source=source, path=here)
        _reject_unknown(known[key], inner, source, here)


def _split(message: str) -> tuple[str, str]:
    match = _AT.search(message)
    if match is None:
        return message, ""
    return message[: match.start()], match["path"].lstrip(".")


def _steps(path: str) -> list[str | int]:
    return [
        int(p[1:-1]) if p.startswith("[") else p for p in re.findall(r"\[\d+\]|[^.\[\]]+", path)
    ]


_ABSENT: Final = object()


def _look_up(tree: Any, path: str) -> Any:
    for step in _steps(path):
        try:
            tree = tree[step]
        except (KeyError, IndexError, TypeError):
            return _ABSENT
    return tree


def _holds(tree: Tree, path: str) -> bool:
    return _look_up(tree, path) is not _ABSENT


_WORDS: Final = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


def _in_words(message: str, found: object, kind: object) -> str:
    """A validation message of msgspec as a sentence for people."""
    if typing.get_origin(_strip(kind)) is typing.Literal:
        choices = [str(choice) for choice in typing.get_args(_strip(kind))]
        close = difflib.get_close_matches(str(found), choices, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"expected one of {', '.join(choices)}, got {found!r}{hint}"
    form = _form(kind)
    if form and "matching regex" in message:
        message = f"Expected {form}"
    text = re.sub(r"^Expected", "expected", message)
    text = re.sub(r"`(\w+)`", lambda m: _WORDS.get(m[1], m[1]), text)
    text = re.sub(r"`([^`]*)`", lambda m: _either(m[1]), text)
    text = re.sub(
        r"^(\w+ )?Object missing required field (\S+)$", r"the setting \2 is required", text
    )
    shown = found is not _ABSENT and not isinstance(found, dict | list) and not _holds_secret(kind)
    if shown and text.startswith("expected"):
        text = re.sub(r", got .*$", "", text) + f", got {mask_password(repr(found))}"
    return text


def _either(union: str) -> str:
    """``float | null`` → ``a number or nothing``."""
    return " or ".join(_WORDS.get(word, word) for word in union.split(" | "))


def _form(kind: Any) -> str:
    """What a text must look like, for people; empty where its annotation does not say."""
    while typing.get_origin(kind) is Annotated:
        kind, *extras = typing.get_args(kind)
        for meta in extras:
            if isinstance(meta, msgspec.Meta) and meta.extra and "form" in meta.extra:
                return str(meta.extra["form"])
    return ""


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else repr(value)


def _plain(value: Any, *, secret: bool = False) -> Any:
    if isinstance(value, msgspec.Struct):
        hints = _fields(type(value))
        return {
            f.encode_name: _plain(getattr(value, f.name), secret=_is_secret(hints[f.encode_name]))
            for f in msgspec.structs.fields(value)
        }
    if secret and value:
        return MASK
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return mask_password(value) if isinstance(value, str) else value


def _holds_secret(kind: Any) -> bool:
    """Whether a value of this type is, or has in it, something that is never printed."""
    if kind is None:
        return False
    if _is_secret(kind):
        return True
    inner = _strip(kind)
    if _is_struct(inner):
        return any(_holds_secret(field) for field in _fields(inner).values())
    return any(_holds_secret(a) for a in typing.get_args(inner) if a is not Ellipsis)


def _is_secret(kind: Any) -> bool:
    if typing.get_origin(kind) is Annotated:
        base, *extras = typing.get_args(kind)
        if any(isinstance(m, msgspec.Meta) and (m.extra or {}).get("secret") for m in extras):
            return True
        return _is_secret(base)
    if typing.get_origin(kind) in (Union, types.UnionType):
        return any(_is_secret(a) for a in typing.get_args(kind))
    return False
