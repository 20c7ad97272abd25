"""An explanation in words and figures: what the terminal and the page have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adaptx.explaining.explain import Explanation, Part

SITES = 8  # that are shown: those that change most
Rows = tuple[tuple[str, ...], list[tuple[object, ...]]]


def strengths(words: Sequence[Part]) -> list[float | None]:
    """What each word contributes, as a share of the most that one does; None where unknown."""
    most = max((abs(word.gradients) for word in words if word.gradients is not None), default=0)
    return [None if w.gradients is None else w.gradients / (most or 1) for w in words]


def headline(found: Explanation) -> str:
    """What is explained, in a line."""
    said = f"{found.unit} of {found.label}" if found.unit != found.label else found.unit
    probability = "" if found.probability is None else f", probability {found.probability:.3f}"
    return (
        f"Answer: {found.answer}. Explained: {said} = {found.score:+.3f}{probability}; "
        f"{found.baseline:+.3f} without any of the text's words."
    )


def notes(found: Explanation) -> list[str]:
    """What a reader must know beside the figures."""
    said = [
        f"Integrated gradients over {found.steps} steps; what they add up to misses the score by "
        f"{found.gap:+.4f}."
    ]
    if not found.close:
        said.append("That is much beside what there is to explain: take more --steps.")
    if found.windows > 1:
        said.append(
            f"The text is read in {found.windows} windows; the score is read from number "
            f"{found.window}, and words outside of it have no figures."
        )
    elif any(word.gradients is None for word in found.words):
        said.append("The text is longer than the adapter reads: its end has no figures.")
    if not found.layers:
        said.append("A probe changes no layer.")
    return said


def word_rows(found: Explanation) -> Rows:
    """Each word's figures."""
    columns = ("word", "integrated gradients", "left out")
    odds = found.probability is not None
    rows: list[tuple[object, ...]] = [
        (
            word.text,
            signed(word.gradients),
            signed(word.left_out),
            *([signed(word.left_out_probability)] if odds else []),
        )
        for word in found.words
    ]
    return (*columns, *(["left out, probability"] if odds else [])), rows


def layer_rows(found: Explanation) -> Rows:
    """Each layer's relative change."""
    rows = [(f"layer {i}", f"{change:.3f}") for i, change in enumerate(found.layers, 1)]
    return ("layer", "relative change"), list(rows)


def site_rows(found: Explanation) -> Rows:
    """The sites that change most."""
    most = sorted(found.sites, key=lambda site: -site.output)[:SITES]
    rows = [(site.site, f"{site.output:.3f}", f"{site.weight:.3f}") for site in most]
    return ("site", "its output on this text", "its weight"), list(rows)


def signed(value: float | None) -> str | None:
    """A figure with its sign; None stays."""
    return None if value is None else f"{value:+.3f}"
