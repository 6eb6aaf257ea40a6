"""The growth benchmark's own parts; its points need real servers and time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import growth, record
from bench.growth import AXES, Point, markdown, points_of
from bench.scenarios import SCENARIOS


@pytest.mark.parametrize("name", AXES)
def test_axes_are_whole(name: str) -> None:
    axis = AXES[name]
    assert axis.scenario in SCENARIOS
    assert list(axis.points) == sorted(set(axis.points))
    names = {axis.point(n)[1].name for n in axis.points}
    peers = {axis.point(n)[0] for n in axis.points}
    assert len(names) == len(axis.points) or len(peers) == len(axis.points)


def test_results_are_written(tmp_path: Path) -> None:
    about = {**record.about(), "rounds": 1, "seconds": 1.0}
    points = [
        Point("proxy-workers", 1, 1000.0, 8.0, 1.0, 40.0),
        Point("proxy-workers", 2, 2e3, 8.4, 1.05, 50),
    ]
    assert "| 2 | 2,000 | 8.40 | 1.05 | 50 |" in markdown(about | {"quick": False}, points)
    growth._write(tmp_path, about | {"quick": True}, points)
    assert points_of(json.loads((tmp_path / "growth-quick.json").read_text())) == points
    assert "<svg" in (tmp_path / "growth-quick.svg").read_text()
    assert "measures nothing" in (tmp_path / "growth-quick.md").read_text()


def test_unknown_axes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        growth.main(["proxy-colours"])
    assert "unknown axis 'proxy-colours'; there are: proxy-connections" in capsys.readouterr().err
