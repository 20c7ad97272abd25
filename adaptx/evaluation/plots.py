"""Reports as PNG files: the confusion matrix of one, and the scores of several by language.

Figures are drawn without pyplot (no global state, no display), and the same report gives the same
bytes under the same matplotlib. Colours: Okabe & Ito's, for colour-blind readers, and Blues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adaptx.evaluation.report import Report
from adaptx.evaluation.side_by_side import ALL, SideBySide
from adaptx.tasks.base import title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
HATCHES = ("", "//", "..", "xx")  # a ninth adapter has the first's colour, and a hatch
_LONGEST = 30  # characters of a name
_COUNTED = 40  # labels up to which a matrix shows its counts
_DARK = "#333333"
COMMONEST = "always the commonest label"


def confusion_plot(report: Report, path: Path, adapter: str, language: str) -> None:
    """Write the confusion matrix: counts, coloured by their share of the true label's rows."""
    families, (*labels, adapter, language) = _drawable([*report.labels, adapter, language])
    counts, rows = report.confusion, report.confusion.sum(axis=1)
    share = counts / np.maximum(rows, 1)[:, None]
    cell = 0.45 if len(labels) <= _COUNTED else 0.2
    side = min(1.8 + cell * max(len(labels), 5) + 0.075 * max(map(len, labels)), 40)
    with _figure(path, families, side + 0.8, side) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        places = range(len(labels))
        axes.set_xticks(places, labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, [f"{name} ({n})" for name, n in zip(labels, rows, strict=True)])
        axes.set_xlabel("answered")
        axes.set_ylabel("true label (rows)")
        figure.suptitle(
            f"{adapter} on {language}\n{report.rows} rows, "
            f"accuracy {report.scores['accuracy']:.3f}, macro F1 {report.scores['macro_f1']:.3f}"
        )
        between = np.arange(0.5, len(labels) - 1)
        axes.set_xticks(between, minor=True)
        axes.set_yticks(between, minor=True)
        axes.grid(which="minor", color="#dddddd", linewidth=0.8)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_color("#dddddd")
        for i, j in np.argwhere(counts) if len(labels) <= _COUNTED else ():
            colour = "white" if share[i, j] > 0.5 else _DARK
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour)
        bar = figure.colorbar(image, ax=axes, shrink=min(0.6, 4 / side), label="share of its row")
        bar.outline.set_visible(False)


def scores_plot(compared: SideBySide, path: Path) -> None:
    """Write the first metric by language, a bar for each adapter, with its 95% interval."""
    adapters, languages, metric = compared.adapters, compared.languages, compared.metrics[0]
    families, names = _drawable([*adapters, *languages])
    width = max(5.0, 1.4 + len(languages) * (0.5 + 0.35 * len(adapters)))
    with _figure(path, families, min(width, 60), 4.4 + 0.22 * len(adapters)) as figure:
        axes = figure.add_subplot()
        # A gap sets the pooled rows apart from the languages.
        places = np.arange(len(languages)) + [0.35 * (name == ALL) for name in languages]
        bar = min(0.8 / len(adapters), 0.45)
        for i, adapter in enumerate(adapters):
            reports = [compared.report(adapter, language) for language in languages]
            scores = np.array([report.scores[metric] for report in reports])
            low, high = np.array([report.interval for report in reports]).T
            axes.bar(
                places + (i - (len(adapters) - 1) / 2) * bar,
                scores,
                width=bar * 0.9,
                yerr=np.maximum([scores - low, high - scores], 0),
                color=COLOURS[i % len(COLOURS)],
                hatch=HATCHES[i // len(COLOURS) % len(HATCHES)],
                edgecolor="white",
                error_kw={"elinewidth": 1.2, "capsize": 3, "ecolor": _DARK},
                label=names[i],
            )
        reports = [compared.report(adapters[0], language) for language in languages]
        if commonest := [report.commonest for report in reports if isinstance(report, Report)]:
            axes.hlines(
                commonest,
                places - 0.46,
                places + 0.46,
                color=_DARK,
                linestyle=(0, (3, 2)),
                linewidth=1.2,
                label=COMMONEST,
            )
        named = zip(names[len(adapters) :], reports, strict=True)
        axes.set_xticks(places, [f"{name}\n{report.rows} rows" for name, report in named])
        axes.set_xlim(places[0] - 0.6, places[-1] + 0.6)
        axes.set_ylim(0, 1)
        axes.set_ylabel(title(metric))
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.tick_params(axis="x", length=0)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        name = title(metric)
        figure.suptitle(f"{name[0].upper()}{name[1:]} by language, with 95% intervals")
        keys = sorted(
            zip(*axes.get_legend_handles_labels(), strict=True), key=lambda one: one[1] == COMMONEST
        )
        handles, shown = zip(*keys, strict=True)
        figure.legend(
            handles, shown, loc="outside lower center", ncols=min(4, len(keys)), frameon=False
        )


@contextmanager
def _figure(path: Path, families: list[str], width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches, written to `path` when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure

    # Labels are data: a `$` in one starts no formula.
    with matplotlib.rc_context({"font.family": families, "text.parse_math": False}):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        yield figure
        figure.savefig(path, format="png", metadata={"Software": None})


def _drawable(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The font families that draw the texts, and the texts, made short enough for a plot.

    matplotlib's own font lacks Ethiopic, Devanagari, Chinese …: installed fonts fill in. A text
    that none of them can draw becomes its number.
    """
    from matplotlib.font_manager import findfont, fontManager
    from matplotlib.ft2font import FT2Font

    short = [" ".join(text.split()) for text in texts]
    short = [text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text in short]
    families = ["DejaVu Sans"]
    missing = {ord(c) for text in short for c in text} - set(
        FT2Font(findfont(families[0])).get_charmap()
    )
    for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        usual = font.style == "normal" and font.weight in (400, "normal", "regular")
        if missing and usual and not font.name.startswith("Last Resort"):  # which draws boxes
            found = missing & set(FT2Font(font.fname).get_charmap())
            families += [font.name] if found else []
            missing -= found
    return families, [
        f"#{i}" if missing & set(map(ord, text)) else text for i, text in enumerate(short, 1)
    ]
