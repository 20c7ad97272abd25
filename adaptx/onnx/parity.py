"""The parity gate: an exported model must answer like the adapter it was made from.

Dimensions: N texts, L labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptx.adapters.adapter import Adapter
from adaptx.data.read import Example
from adaptx.encoder.encoder import Encoder
from adaptx.errors import ParityError
from adaptx.evaluation.metrics import classification_scores


@dataclass(frozen=True)
class Bounds:
    """How far an export may be from torch.

    difference  largest |logit - torch's logit|, as a share of torch's largest |logit|
    tie         labels whose logits in torch are closer than this (a share as above) are as good as
                each other: an adapter that has learnt little has many
    agreement   smallest share of the probe texts with torch's label, or one as good
    drop        largest loss of accuracy on dev, as a share of its rows, one row more allowed: a
                tie may fall either way
    """

    difference: float
    tie: float
    agreement: float
    drop: float


BOUNDS = {
    "fp32": Bounds(difference=1e-4, tie=2e-4, agreement=1.0, drop=0.0),
    "int8": Bounds(difference=0.3, tie=0.1, agreement=0.9, drop=0.04),
}


@torch.inference_mode()
def torch_logits(encoder: Encoder, adapter: Adapter, texts: Sequence[str]) -> np.ndarray:
    """fp32 `[N, L]`: the adapter's logits through the bank, not merged."""
    adapter.eval()
    ids = encoder.text.ids([adapter.prefix + text for text in texts], adapter.max_length)
    rows = []
    for i in range(len(ids)):
        batch = encoder.text.batch(ids, [i])
        mask = torch.from_numpy(batch.attention_mask).to(encoder.device)
        hidden = adapter.hidden(encoder, torch.from_numpy(batch.input_ids).to(encoder.device), mask)
        rows.append(adapter.logits(hidden, mask).cpu().numpy()[0])
    return np.stack(rows)


class MergedSession:
    """A merged model's folder, opened with onnxruntime and tokenizers alone."""

    def __init__(self, folder: Path):
        import onnxruntime
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """fp32 `[N, L]`, one text at a time: int8 activations share their scale within a batch."""
        rows = []
        for text in texts:
            ids = np.array([self.tokenizer.encode(text).ids], dtype=np.int64)
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            rows.append(self.session.run(["logits"], feeds)[0][0])
        return np.stack(rows)


def compare(
    folder: Path,
    encoder: Encoder,
    adapter: Adapter,
    texts: Sequence[str],
    dev: Sequence[Example],
    bounds: Bounds,
) -> dict[str, Any]:
    """The parity report of a merged model's folder; raises ParityError when it is out of bounds."""
    # One text longer than the encoder reads: both must cut it at the same place.
    words = " ".join(texts)
    texts = [*texts, " ".join([words] * (1 + encoder.text.max_length // len(words.split())))]
    session = MergedSession(folder)
    wanted, found = torch_logits(encoder, adapter, texts), session.logits(texts)
    difference, largest = np.abs(found - wanted).max(), max(np.abs(wanted).max(), 1e-6)
    theirs = np.take_along_axis(wanted, found.argmax(1)[:, None], axis=1)[:, 0]
    behind = wanted.max(axis=1) - theirs  # in torch, how far ONNX's label is from the best
    report: dict[str, Any] = {
        "texts": len(texts),
        "max_difference": float(difference),
        "max_relative_difference": float(difference / largest),
        "agreement": float((behind == 0).mean()),
        "agreement_but_for_ties": float((behind <= bounds.tie * largest).mean()),
    }
    if dev and adapter.task is not None:
        targets, rows = adapter.task.targets(dev), [example.text for example in dev]
        scores = {
            "torch": classification_scores(targets, torch_logits(encoder, adapter, rows).argmax(1)),
            "onnx": classification_scores(targets, session.logits(rows).argmax(1)),
        }
        report |= {"dev_rows": len(dev), "dev": scores}
    report["bounds"] = dict(vars(bounds))
    failed = _failures(report, bounds)
    if failed:
        raise ParityError(
            f"The exported model of adapter {adapter.name!r} doesn't answer like torch: "
            f"{'; '.join(failed)}. Nothing was written. {json.dumps(report)}",
            report,
        )
    return report


def _failures(report: dict[str, Any], bounds: Bounds) -> list[str]:
    failed = []
    difference = report["max_relative_difference"]
    if not difference <= bounds.difference:  # NaN fails too
        failed.append(f"largest relative difference {difference:.2g}, bound {bounds.difference:g}")
    agreement = report["agreement_but_for_ties"]
    if not agreement >= bounds.agreement:
        failed.append(f"agreement but for ties {agreement:.1%}, bound {bounds.agreement:.0%}")
    if "dev" in report:
        drop = report["dev"]["torch"]["accuracy"] - report["dev"]["onnx"]["accuracy"]
        if drop > bounds.drop + 1 / report["dev_rows"] + 1e-9:
            failed.append(f"accuracy on dev falls by {drop:.1%}, bound {bounds.drop:.0%} and a row")
    return failed
