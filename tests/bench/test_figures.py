"""No figure in README or docs is typed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import figures, record
from bench.figures import BLOCKS, PAGES, written
from bench.report import Row, write


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_pages_say_what_the_results_say(page: Path) -> None:
    assert written(page) == page.read_text(), "make figures"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(
        "".join(f"<!-- figures: {name} -->\nold\n<!-- end of figures -->\n" for name in BLOCKS)
    )
    return path


def test_results_become_tables(tmp_path: Path, page: Path) -> None:
    assert "old" not in written(page, tmp_path)
    assert written(page, tmp_path).count("Nothing is measured yet.") == len(BLOCKS)
    about = record.about() | {
        "rounds": 1,
        "seconds": 0.5,
        "in_turns": 1.5,
        "quick": False,
        "left_out": {},
    }
    peers = about | {"scenario": "redis", "title": "t", "reference": "twemproxy"}
    for_load = [
        Row("twemproxy", "GET", 1.0, 4.0, 4.0, 4.0, 10.0, 1.0, 1.0),
        Row("nexus", "GET", 1.0, 4.0, 4.0, 4.0, 7.5, 1.0, 1.0),
        Row("twemproxy", "at 9/s", 1.0, 1.0, 2.0, 3.0, 10.0, 1.0, 1.0, open_loop=True),
        Row("nexus", "at 9/s", 1.0, 0.5, 1.5, 2.5, 9.5, 1.0, 1.0, open_loop=True),
    ]
    write(tmp_path, peers, for_load)
    run = {"case": "redis alone", "loads": 11_990, "slowest_seconds": 3.2}
    (tmp_path / "stampede.json").write_text(json.dumps(about | {"clients": 12_000, "runs": [run]}))
    row = {"on": "bare", "cpu_us": 20.0, "multiple": 1.0, "share": 1.0}
    (tmp_path / "pillars-gateway.json").write_text(json.dumps(about | {"rows": [row]}))
    text = written(page, tmp_path)
    assert "| 7.50 | twemproxy | 10.00 | **0.75** (0.75 to 0.75) |" in text
    assert "| 0.50 / 1.50 / 2.50 | twemproxy | 1.00 / 2.00 / 3.00 |" in text
    assert "9.50" not in text, "CPU at a fixed rate is no figure to compare"
    assert "4.00 / 4.00" not in text, "nor are latencies of who keeps its connections busy"
    assert "| redis alone | **11,990** | 3.20 s |" in text
    assert "| bare | 20.0 | 1.00 | 100% |" in text


def test_a_page_that_differs_is_named(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "PAGES", (page,))
    monkeypatch.setattr(figures, "_ROOT", page.parent)
    assert figures.main(["--check"]) == 1
    assert "page.md: differs" in capsys.readouterr().out
    assert figures.main([]) == 0
    assert figures.main(["--check"]) == 0
