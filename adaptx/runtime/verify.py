"""Does a graph answer like torch? Figures, bounds, and the check that needs no torch.

A bundle brings the token ids of its probe texts and what torch answered to them in fp32: `verify`
compares, wherever the bundle is. N texts, L labels, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptx import storage
from adaptx.errors import FolderError
from adaptx.runtime.layout import PROBE
from adaptx.tasks.base import TOKENS

if TYPE_CHECKING:
    from adaptx.runtime.runtime import Runtime
    from adaptx.tasks import Task

PLAIN = "(no adapter)"


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from torch.

    difference  largest |logit - torch's logit|, as a share of torch's largest |logit|; in int8, of
                a task that reads every token's state, the mean over tokens of each one's largest
    tie         labels whose logits in torch are closer than this (a share as above) are as good as
                each other: an adapter that has learnt little has many
    agreement   smallest share of the probe texts with torch's label, or one as good
    vectors     smallest mean cosine of pooled states to torch's, the mean state taken away
    """

    difference: float
    tie: float
    agreement: float
    vectors: float


BOUNDS = {
    "fp32": Bounds(difference=1e-4, tie=2e-4, agreement=1.0, vectors=0.9999),
    "int8": Bounds(difference=0.3, tie=0.1, agreement=0.9, vectors=0.9),
}


def compare_logits(wanted_NL: np.ndarray, found_NL: np.ndarray, bounds: Bounds) -> dict[str, float]:
    """How far logits are from torch's."""
    difference, largest = np.abs(found_NL - wanted_NL).max(), max(np.abs(wanted_NL).max(), 1e-6)
    chosen = found_NL.argmax(1)[:, None]
    behind = wanted_NL.max(axis=1) - np.take_along_axis(wanted_NL, chosen, axis=1)[:, 0]
    return {
        "max_difference": float(difference),
        "max_relative_difference": float(difference / largest),
        "agreement": float((behind == 0).mean()),
        "agreement_but_for_ties": float((behind <= bounds.tie * largest).mean()),
    }


def compare_outputs(
    task: Task | None, wanted: np.ndarray, found: np.ndarray, bounds: Bounds
) -> dict[str, float]:
    """By what they are: logits of labels, of which one is chosen, other numbers, or vectors."""
    if task is None or not task.has_head:
        return compare_vectors(wanted, found)
    report = compare_logits(wanted, found, bounds)
    if not task.chooses:
        del report["agreement"], report["agreement_but_for_ties"]
    if task.pooling == TOKENS:  # of so many, the one that is furthest off says little
        worst_N = np.abs(found - wanted).max(1)
        report["mean_relative_difference"] = float(worst_N.mean() / max(np.abs(wanted).max(), 1e-6))
    return report


def compare_vectors(wanted_NH: np.ndarray, found_NH: np.ndarray) -> dict[str, float]:
    """How far pooled states are from torch's."""
    middle = wanted_NH.mean(0)
    a, b = wanted_NH - middle, found_NH - middle
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    difference = np.abs(found_NH - wanted_NH).max()
    return {
        "max_difference": float(difference),
        "max_relative_difference": float(difference / max(np.abs(wanted_NH).max(), 1e-6)),
        "cosine": float(((a * b).sum(1) / np.maximum(lengths, 1e-12)).mean()),
    }


def failures(report: Mapping[str, float], bounds: Bounds, *, exact: bool) -> list[str]:
    """What of a report is out of bounds, in words. `exact`: fp32, so vectors differ as little."""
    failed = []
    measure = "largest"
    difference = report["max_relative_difference"]
    if not exact and "mean_relative_difference" in report:
        measure, difference = "mean", report["mean_relative_difference"]
    if (exact or "cosine" not in report) and not difference <= bounds.difference:  # NaN fails too
        failed.append(
            f"{measure} relative difference {difference:.2g}, bound {bounds.difference:g}"
        )
    agreement = report.get("agreement_but_for_ties", 1.0)
    if not agreement >= bounds.agreement:
        failed.append(f"agreement but for ties {agreement:.1%}, bound {bounds.agreement:.0%}")
    cosine = report.get("cosine", 1.0)
    if not cosine >= bounds.vectors:
        failed.append(f"mean cosine {cosine:.4f}, bound {bounds.vectors:g}")
    return failed


@dataclass(frozen=True)
class Probe:
    """Token ids of N texts, and torch's fp32 outputs: pooled states `[N, H]` under PLAIN and each
    adapter without a head, logits `[N, L]` under each adapter with one.
    """

    ids: list[list[int]]
    outputs: dict[str, np.ndarray]


def write_probe(folder: Path, probe: Probe) -> None:
    """Write a bundle's probe.safetensors."""
    from safetensors.numpy import save_file

    longest = max(map(len, probe.ids))
    padded = np.array([[*row, *[-1] * (longest - len(row))] for row in probe.ids], np.int64)
    tensors = {"input_ids": padded}
    tensors |= {f"output/{name}": array.astype(np.float32) for name, array in probe.outputs.items()}
    save_file(tensors, folder / PROBE)


def read_probe(folder: Path) -> Probe:
    """Read a bundle's probe.safetensors; FolderError where it isn't whole."""
    tensors = storage.read_tensors(folder / PROBE, integers=True)
    padded = tensors.pop("input_ids", None)
    if padded is None or padded.ndim != 2 or padded.dtype != np.int64:
        raise FolderError(f"{folder / PROBE} has no token ids: export the bundle again.")
    ids = [[int(token) for token in row if token >= 0] for row in padded]
    return Probe(ids, {name.removeprefix("output/"): array for name, array in tensors.items()})


def verify(runtime: Runtime) -> dict[str, dict[str, Any]]:
    """The report of each adapter that the bundle was exported with, and of PLAIN.

    Each has its figures, and under "failed" what is out of the bounds of its quantization.
    """
    probe = read_probe(runtime.folder)
    bounds = BOUNDS[runtime.facts.quantization]
    exact = runtime.facts.quantization == "fp32"
    found: dict[str, dict[str, Any]] = {}
    for name in (PLAIN, *runtime.facts.adapters):
        answers = runtime.pooled(probe.ids, None if name == PLAIN else name)
        task = runtime.task(name) if name != PLAIN else None
        if name != PLAIN and runtime.has_head(name):
            answers = runtime.logits(answers, name)
        wanted = probe.outputs.get(name)
        if wanted is None or wanted.shape != answers.shape:
            raise FolderError(
                f"{runtime.folder / PROBE} lacks torch's answers of {name}: export the bundle "
                f"again."
            )
        report: dict[str, Any] = dict(compare_outputs(task, wanted, answers, bounds))
        found[name] = {**report, "failed": failures(report, bounds, exact=exact)}
    return found
