"""Learning curves of runs as one figure: the training loss by step, dev's metric by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from adaptx.errors import OptionError, choices
from adaptx.training.runs import Run, read_log

# Okabe & Ito 2008, "Color Universal Design": told apart by colour-blind eyes, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv*P"
ENDINGS = (".png", ".svg", ".pdf")
NO_SCORES = {"epoch", "step", "seconds"}  # numbers of an epoch that say nothing of dev


def smoothed(values: Sequence[float], weight: float = 0.9) -> np.ndarray:
    """Exponential moving average `[n]` without bias at its start (Kingma & Ba 2015, section 3).

    m_t = weight m_(t-1) + (1 - weight) x_t, divided by 1 - weight^t
    """
    found = np.empty(len(values))
    mean = 0.0
    for t, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        found[t - 1] = mean / (1 - weight**t)
    return found


def plot_runs(runs: Sequence[Run], path: Path, metric: str | None = None) -> None:
    """Draw the runs into a PNG, SVG or PDF file, replacing it.

    `metric` is what dev's panel shows; None takes the one that chose the first run's best epoch.
    Raises OptionError for another ending, a metric that no run has, and runs without a log.
    """
    from matplotlib.figure import Figure

    check_ending(path)
    asked = metric
    metric = asked or str(runs[0].settings.get("metric", "accuracy"))
    steps = [read_log(run, "step") for run in runs]
    epochs = [read_log(run, "epoch") for run in runs]
    if not any([*steps, *epochs]):
        raise OptionError(f"Nothing is logged yet in {choices(run.folder for run in runs)}.")
    scored = [[e for e in log if _number(e.get(metric))] for log in epochs]
    known = {name for log in epochs for e in log for name in e if _number(e[name])} - NO_SCORES
    if asked and metric not in known:
        raise OptionError(
            f"No run has the metric {metric!r}; there is {choices(sorted(known)) or 'none'}."
        )
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    cast(Any, figure.get_layout_engine()).set(w_pad=0.1, h_pad=0.1)
    left, right = figure.subplots(1, 2)
    for i, (run, log, points) in enumerate(zip(runs, steps, scored, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        name = run.folder.resolve().name
        _losses(left, [e for e in log if _number(e.get("loss"))], colour, name)
        _scores(right, run, points, metric, colour, MARKERS[i % len(MARKERS)], name)
    left.set(title="Training loss, smoothed over some ten steps")
    left.set(xlabel="optimizer step", ylabel="mean loss of the batch")
    right.set(title="Development set, the best epoch ringed")
    right.set(xlabel="epoch", ylabel=metric.replace("_", " ").replace("f1", "F1"))
    right.margins(y=0.12)
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes, drawn in ((left, any(steps)), (right, any(scored))):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if not drawn:
            axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center")
    legend = {
        name: handle
        for axes in (left, right)  # a run that is drawn in both shows its marker
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = min(3, len(legend))
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=columns, frameon=False
    )
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    figure.savefig(part, dpi=150)
    part.replace(path)


def check_ending(path: Path) -> None:
    """Raise OptionError for a file that no figure can be written to."""
    if path.suffix.lower() not in ENDINGS:
        raise OptionError(f"{path} must end in {choices(ENDINGS)}.")
    if not path.absolute().parent.is_dir():
        raise OptionError(f"{path} can't be written: there is no folder {path.parent}.")


def _losses(axes: Any, log: list[dict[str, Any]], colour: str, name: str) -> None:
    if not log:
        return
    at, losses = [e["step"] for e in log], [e["loss"] for e in log]
    axes.plot(at, losses, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(at, smoothed(losses), color=colour, linewidth=2, label=name)


def _scores(
    axes: Any,
    run: Run,
    points: list[dict[str, Any]],
    metric: str,
    colour: str,
    marker: str,
    name: str,
) -> None:
    if not points:
        return
    at, scores = [e["epoch"] for e in points], [e[metric] for e in points]
    axes.plot(at, scores, color=colour, marker=marker, markersize=5, linewidth=1.5, label=name)
    best = run.best or {}
    if _number(best.get(metric)):
        axes.plot(
            best["epoch"], best[metric], marker="o", markersize=13, color=colour,
            markerfacecolor="none", markeredgewidth=1.4, linestyle="none",
        )  # fmt: skip
        axes.annotate(
            f"{best[metric]:.3f}", (best["epoch"], best[metric]), color=colour,
            textcoords="offset points", xytext=(0, 10), ha="center", fontsize=9,
        )  # fmt: skip


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
