"""What people see of the children's lines."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from nexus.demo.console import MAX_LINE, Console, last_words, readable, wants_colour
from nexus.observability.logs import JsonFormatter


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"level": "info", "message": "ready", "port": 3000}, "ready port=3000"),
        (
            {"level": "warning", "message": "slow", "why": "two words"},
            "WARNING slow why='two words'",
        ),
        ({"level": "info", "message": "m", "ratio": 0.123456, "empty": ""}, "m ratio=0.1235"),
        (
            {
                "level": "error",
                "message": "x",
                "error": {"type": "E", "message": "m", "stack": "S"},
            },
            "ERROR x E: m\nS",
        ),
        ({"level": "warning", "message": "m", "error": "why not"}, "WARNING m error='why not'"),
        ({"level": "warning", "message": "m", "cause": "why not"}, "WARNING m cause='why not'"),
        ({"level": "info", "message": "m", "list": [1, "a"]}, 'm list=[1,"a"]'),
        ({"level": "info", "message": "m", "evil": "\x1b[2J"}, r"m evil='\x1b[2J'"),
    ],
)
def test_json_lines_become_text(record, text):
    assert readable(json.dumps(record)) == text


def test_an_access_line_is_short():
    record = {
        "timestamp": "2026-11-21T10:00:00.123Z",
        "level": "info",
        "logger": "nexus.access",
        "message": "GET /api/* 200",
        "method": "GET",
        "target": "/api/products?a=1",
        "status": 200,
        "latency_ms": 1.234,
        "ip": "127.0.0.1",
        "upstream": "http://127.0.0.1:3001",
        "attempts": 1,
        "user_agent": "curl",
    }
    expected = "GET /api/products?a=1 200 1.2 ms upstream=http://127.0.0.1:3001"
    assert readable(json.dumps(record)) == f"{expected} ip=127.0.0.1"
    record["attempts"] = 3
    assert readable(json.dumps(record)) == f"{expected} attempts=3 ip=127.0.0.1"


def test_the_services_own_log_lines_are_understood():
    """The renderer follows the real formatter, not our memory of it."""
    formatter = JsonFormatter("gateway", 0)
    try:
        raise ValueError("of old")
    except ValueError:
        record = logging.LogRecord("nexus.x", 40, "p", 1, "broken %s", ("thing",), sys.exc_info())
    record.port = 3000
    first, *stack = readable(formatter.format(record)).split("\n")
    assert first == "ERROR broken thing port=3000 ValueError: of old"
    assert stack[0] == "Traceback (most recent call last):"
    assert stack[-1] == "ValueError: of old"


@pytest.mark.parametrize("line", ["plain", "{not json", "[1]", "", "{"])
def test_other_lines_pass_unchanged(line):
    assert readable(line) == line


def test_last_words_are_the_trouble_else_the_end():
    def line(level, message):
        return json.dumps({"level": level, "message": message})

    chatter = [line("info", f"line {i}") for i in range(9)]
    assert last_words(chatter, 2) == ["line 7", "line 8"]
    assert last_words([line("error", "it broke"), *chatter, ""], 3) == ["ERROR it broke"]
    assert last_words([*chatter, "Traceback …", "OSError: full"], 9) == [
        "Traceback …",
        "OSError: full",
    ]
    assert last_words([], 3) == []


def test_prefixes_line_up_and_long_lines_are_cut():
    stream = io.StringIO()
    console = Console(stream, colour=False)
    console.know("a", "gateway")
    console.child("a", "x")
    console.child("gateway", "y" * (MAX_LINE + 5))
    first, second = stream.getvalue().splitlines()
    assert first == "a       │ x"
    assert second == f"gateway │ {'y' * MAX_LINE}… (5 more)"


def test_control_characters_do_not_reach_the_terminal():
    stream = io.StringIO()
    console = Console(stream, colour=False)
    console.child("a", "\x1b[2J\tx")
    console.child("a", json.dumps({"message": "\x07é"}))
    assert stream.getvalue() == "a │ \\x1b[2J\tx\na │ \\x07é\n"


def test_colour_only_where_wanted():
    plain, coloured = io.StringIO(), io.StringIO()
    for stream, colour in ((plain, False), (coloured, True)):
        console = Console(stream, colour=colour)
        console.child("a", "x")
        console.error("bad")
    assert "\x1b" not in plain.getvalue()
    assert coloured.getvalue().count("\x1b[0m") == 2


@pytest.mark.parametrize(
    ("stream", "environ", "wanted"),
    [
        (Terminal(), {}, True),
        (io.StringIO(), {}, False),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
    ],
)
def test_a_terminal_without_no_color_gets_colours(stream, environ, wanted):
    assert wants_colour(stream, environ) is wanted


def test_a_closed_output_is_reported_once():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    lost = []
    console = Console(Closed(), colour=False, on_lost=lambda: lost.append(1))
    console.say("a")
    console.say("b")
    assert lost == [1]
