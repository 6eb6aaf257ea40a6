"""Changes to headers and query: whatever comes in, no field begins that nobody configured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus.gateway.cors import Cors
from nexus.gateway.patterns import query_pairs
from nexus.gateway.settings_routes import CorsSettings, HeaderRulesSettings, QueryRulesSettings
from nexus.gateway.transforms import HeaderRules, QueryRules, TransformError

ANY = st.text(st.characters(codec="latin-1"), max_size=12) | st.sampled_from(
    ["\r\n", "a\r\nX-Evil: 1", "a\nb", "\0", "a\r", " x", "{client_id}", "{id}\r\n", "{{", "{"]
)


def exchange(**changed: Any) -> Any:
    values = {"client_id": "c", "ip": "1.2.3.4", "host": b"h", "method": b"GET"}
    route = SimpleNamespace(template="/r")
    return SimpleNamespace(**values | {"request_id": b"nexus-1", "route": route} | changed)


def names(block: bytes) -> list[bytes]:
    assert block == b"" or block.endswith(b"\r\n")
    lines = block.split(b"\r\n")[:-1]
    assert not any(b"\r" in line or b"\n" in line or b"\0" in line for line in lines)
    return [line.partition(b":")[0] for line in lines]


@given(
    setting=st.dictionaries(ANY, ANY, max_size=2),
    adding=st.dictionaries(ANY, ANY, max_size=2),
    remove=st.lists(ANY, max_size=2),
    client=ANY,
    response=st.booleans(),
)
def test_no_field_begins_that_nobody_configured(
    setting: dict[str, str],
    adding: dict[str, str],
    remove: list[str],
    client: str,
    response: bool,
) -> None:
    settings = HeaderRulesSettings(set=setting, add=adding, remove=tuple(remove))
    try:
        rules = HeaderRules(settings, None if response else {"id": 1})
    except ValueError:
        return  # refused at load
    block = b"Accept: x\r\nX-Other: y\r\n"
    path = b"/a/" + client.encode("latin-1")
    try:
        changed = rules.apply(block, exchange(client_id=client), path)
    except TransformError:
        return  # refused at run time
    expected = {b"Accept", b"X-Other", *(n.lower().encode() for n in (*setting, *adding))}
    assert set(names(changed)) <= expected


@given(client=st.text(max_size=20))
def test_what_a_placeholder_brings_is_checked(client: str) -> None:
    rules = HeaderRules(HeaderRulesSettings(set={"x": "<{client_id}>"}), {})
    try:
        changed = rules.apply(b"", exchange(client_id=client))
    except (TransformError, UnicodeEncodeError):
        return
    assert names(changed) == [b"x"]
    assert changed == b"x: <" + client.encode() + b">\r\n"


@pytest.mark.parametrize("client", ["a\r\nX-Evil: 1", "a\nb", "a\0", "\x7f"])
def test_control_characters_are_refused_at_run_time(client: str) -> None:
    rules = HeaderRules(HeaderRulesSettings(add={"x": "{client_id}"}), {})
    with pytest.raises(TransformError, match="control character"):
        rules.apply(b"", exchange(client_id=client))


def test_remove_set_add_in_that_order() -> None:
    rules = HeaderRules(
        HeaderRulesSettings(remove=("A",), set={"B": "1"}, add={"A": "2", "b": "3"}), None
    )
    block = b"HTTP/1.1 200 OK\r\na: x\r\nB: y\r\nb: z\r\nC: w\r\n"
    assert rules.apply(block, exchange()) == (
        b"HTTP/1.1 200 OK\r\nC: w\r\nb: 1\r\na: 2\r\nb: 3\r\n"
    )


@given(
    pairs=st.lists(
        st.tuples(st.text("abx&=%+ é", min_size=1), st.text("ab&=%+ \r\né")), max_size=4
    ),
    query=st.text("ab=&%+x0123456789", max_size=20),
)
def test_queries_keep_their_shape(pairs: list[tuple[str, str]], query: str) -> None:
    added = dict(pairs)
    rules = QueryRules(QueryRulesSettings(set=added, remove=("x",)), {})
    changed = rules.apply(b"?" + query.encode(), exchange(), b"/")
    assert not set(changed) & set(b" \r\n\0#")
    kept = [pair for pair in query_pairs(query.encode()) if pair[0] != b"x"]
    wanted = [pair for pair in kept if pair[0].decode("latin-1").encode() not in
              {name.encode() for name in added}]  # fmt: skip
    found = query_pairs(changed)
    assert found[-len(added) :] == [(n.encode(), v.encode()) for n, v in added.items()] or not added
    assert found[: len(found) - len(added)] == [
        pair for pair in wanted if pair[0] not in {name.encode() for name in added}
    ]


@given(origin=st.binary(max_size=40))
def test_only_allowed_origins_are_echoed(origin: bytes) -> None:
    settings = CorsSettings(origins=("https://a.example", "https://*.b.example"), credentials=True)
    cors = Cors(settings, frozenset((b"GET",)))
    fields = cors.fields(origin)
    assert b"Vary: Origin\r\n" in fields
    if origin != b"https://a.example" and not origin.endswith(b".b.example"):
        assert b"Access-Control-Allow-Origin" not in fields
