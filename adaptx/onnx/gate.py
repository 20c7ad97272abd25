"""The parity gate of a bundle: for every adapter, four ways must agree on the probe texts.

    torch with the bank, the reference    torch merged    the fp32 graph    the int8 graph

The graphs answer through adaptx.runtime, as they will when they serve. N texts, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from adaptx.adapters.adapter import Adapter
from adaptx.encoder.encoder import Encoder, mean_pool
from adaptx.encoder.families import model_inputs
from adaptx.errors import OptionError, ParityError
from adaptx.evaluation.report import report_of
from adaptx.onnx.probe_texts import PROBE_TEXTS
from adaptx.onnx.vocabulary import Cut
from adaptx.runtime.runtime import Runtime
from adaptx.runtime.verify import BOUNDS, PLAIN, Probe, compare_vectors, failures, verify
from adaptx.tasks.base import TOKENS, title

ROWS = 16  # at once in torch
LONGEST = 128  # tokens of a corpus's text


def probe_ids(encoder: Encoder, vocabulary: Cut | None = None) -> list[list[int]]:
    """The probe texts' token ids.

    What a cut vocabulary lacks can't be asked: held-out texts of its corpus, as far as it has their
    pieces, take such texts' places. Raises OptionError where fewer than two are there.
    """
    ids = encoder.text.ids([encoder.prefix + text for text in PROBE_TEXTS])
    if vocabulary is not None:
        held_out = [encoder.prefix + text for text in vocabulary.held_out]
        more = encoder.text.ids(held_out, LONGEST)
        rows = [list(row) for row in dict.fromkeys(map(tuple, (*ids, *more)))]
        ids = [row for row in rows if np.isin(row, vocabulary.kept).all()][: len(PROBE_TEXTS)]
    if len(ids) < 2:
        raise OptionError(
            "The cut vocabulary holds fewer than two of the probe texts, so nothing can be "
            "proved: give a larger corpus or --margin."
        )
    return ids


def probe(encoder: Encoder, adapters: Sequence[Adapter], ids: list[list[int]]) -> Probe:
    """What torch answers to rows of token ids, with each adapter and without."""
    outputs = {PLAIN: torch_pooled(encoder, None, ids)}
    for adapter in adapters:
        pooled = torch_pooled(encoder, adapter, ids)
        outputs[adapter.name] = pooled if adapter.head is None else _logits(adapter, pooled)
    return Probe(ids, outputs)


@torch.inference_mode()
def torch_pooled(
    encoder: Encoder, adapter: Adapter | None, ids: Sequence[Sequence[int]], *, merged: bool = False
) -> np.ndarray:
    """Pooled states fp32 `[N, H]`: of the plain encoder, with an adapter in the bank, or merged.

    An adapter whose task reads every token's state has as many for a text as it has tokens.
    """
    model = adapter.merged_model(encoder).eval() if adapter is not None and merged else None
    ragged = adapter is not None and adapter.pooling == TOKENS
    found: list[np.ndarray] = [np.empty(0)] * len(ids)
    for batch in encoder.text.batches(ids, ROWS):
        input_ids = torch.from_numpy(batch.input_ids).to(encoder.device)
        mask = torch.from_numpy(batch.attention_mask).to(encoder.device)
        if model is not None:
            hidden = model(**model_inputs(encoder.config, input_ids, mask))[0]
        elif adapter is not None:
            hidden = adapter.eval().hidden(encoder, input_ids, mask)
        else:
            hidden = encoder.hidden(input_ids, mask)
        pooled = adapter.pool(hidden, mask) if adapter is not None else mean_pool(hidden, mask)
        lengths = batch.attention_mask.sum(1)
        for row, state, length in zip(
            batch.rows, pooled.float().cpu().numpy(), lengths, strict=True
        ):
            found[row] = state[:length] if ragged else state[None]
    return np.concatenate(found)


@torch.inference_mode()
def _logits(adapter: Adapter, pooled: np.ndarray) -> np.ndarray:
    assert adapter.head is not None
    device = adapter.head.weight.device
    found: np.ndarray = adapter.head(torch.from_numpy(pooled).to(device)).float().cpu().numpy()
    return found


def merged_difference(encoder: Encoder, adapter: Adapter, ids: Sequence[Sequence[int]]) -> float:
    """How far torch merged is from torch with the bank, as a share of the largest value."""
    banked = torch_pooled(encoder, adapter, ids)
    merged = torch_pooled(encoder, adapter, ids, merged=True)
    return compare_vectors(banked, merged)["max_relative_difference"]


def check(runtime: Runtime, way: str) -> dict[str, dict[str, Any]]:
    """`verify`'s report; raises ParityError, naming each adapter that is out of bounds."""
    report = verify(runtime)
    raise_failures({name: found["failed"] for name, found in report.items()}, way, report)
    return report


def check_merged(differences: Mapping[str, float]) -> None:
    """Raise ParityError where an adapter merged in torch isn't what it is in the bank."""
    failed = {}
    for name, difference in differences.items():
        found = {"max_relative_difference": difference}
        failed[name] = failures(found, BOUNDS["fp32"], exact=True)
    raise_failures(failed, "torch merged", {n: {"merged": d} for n, d in differences.items()})


def check_drop(
    encoder: Encoder, runtime: Runtime, adapter: Adapter, rows: Sequence[Any], budget: float
) -> dict[str, Any]:
    """The task's first metric on labelled rows in torch and in the bundle, and the drop with its
    95% interval.

    The rows must be the adapter's. "failed" says when even the lower end of the interval is above
    the budget (a share of the rows).
    """
    task = adapter.task
    assert task is not None
    task.check(rows)
    inputs = task.inputs(rows)
    in_torch: Any = report_of(task, rows, encoder.predict(inputs, adapter))
    served = [answer.value for answer in runtime.predict(inputs, adapter.name)]
    in_bundle: Any = report_of(task, rows, served)
    metric = task.metrics[0]
    found = in_torch.less(in_bundle, metric)
    report: dict[str, Any] = {
        "rows": len(rows),
        "metric": metric,
        "torch": in_torch.scores[metric],
        "bundle": in_bundle.scores[metric],
        "drop": found.difference,
        "low": found.low,
        "high": found.high,
    }
    if found.low > budget:
        report["failed"] = (
            f"{title(metric)} on dev falls by {found.difference:.1%} (95% interval from "
            f"{found.low:.1%}), budget {budget:.1%}"
        )
    return report


def raise_failures(
    failed: Mapping[str, Sequence[str]], way: str, report: Mapping[str, Any]
) -> None:
    """Raise ParityError where there is any failure, each with its adapter's name."""
    said = [f"{name}: {'; '.join(reasons)}" for name, reasons in failed.items() if reasons]
    if said:
        raise ParityError(
            f"The bundle ({way}) doesn't answer like torch. {'. '.join(said)}. Nothing was "
            f"written.",
            dict(report),
        )
