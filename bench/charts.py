"""Charts of results, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

__all__ = ["bars", "lines"]

#: Same input, same file: no date, no random ids.
_METADATA = {"Date": None, "Creator": None}


def bars(path: Path, title: str, unit: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """A panel of horizontal bars for each group: name → value in ``unit``."""
    mpl.rcParams["svg.hashsalt"] = "nexus"
    heights = [len(values) + 1.2 for values in groups.values()]
    figure, panels = plt.subplots(
        len(groups),
        figsize=(8, 0.32 * sum(heights) + 0.6),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for panel, (name, values) in zip(panels[:, 0], groups.items(), strict=True):
        names = list(values)[::-1]
        colours = ["#d9480f" if "nexus" in target else "#868e96" for target in names]
        drawn = panel.barh(names, [values[target] for target in names], color=colours)
        panel.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
        panel.set_title(name, fontsize=9, loc="left")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.12)
    figure.suptitle(f"{title}: {unit}", fontsize=10, wrap=True)
    figure.savefig(path, format="svg", metadata=_METADATA)
    plt.close(figure)


def lines(
    path: Path,
    title: str,
    across: str,
    up: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    log: bool = False,
) -> None:
    """A curve for each name: (x, y) points, ``across`` and ``up`` name the axes.

    ``log``: the x axis is logarithmic.
    """
    mpl.rcParams["svg.hashsalt"] = "nexus"
    figure, panel = plt.subplots(figsize=(8, 3.6), layout="constrained")
    for name, points in series.items():
        panel.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1.2)
    panel.set_ylim(bottom=0)
    if log:
        panel.set_xscale("log")
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.set_title(title, fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, format="svg", metadata=_METADATA)
    plt.close(figure)
