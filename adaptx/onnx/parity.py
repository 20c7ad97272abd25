"""The parity gate: an exported model must answer like the adapter it was made from.

Dimensions: N texts, L labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptx.adapters.adapter import Adapter
from adaptx.data.read import Example
from adaptx.encoder.encoder import Encoder
from adaptx.errors import ParityError
from adaptx.evaluation.metrics import classification_scores
from adaptx.runtime.verify import BOUNDS, Bounds, compare_logits, failures

DROP = {"fp32": 0.0, "int8": 0.04}  # largest loss of accuracy on dev, one row more allowed


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
    kind: str,
    bounds: Bounds | None = None,
) -> dict[str, Any]:
    """The parity report of a merged model's folder; raises ParityError when it is out of bounds.

    `kind` is "fp32" or "int8"; `bounds` are those of BOUNDS unless given.
    """
    bounds = bounds or BOUNDS[kind]
    # One text longer than the encoder reads: both must cut it at the same place.
    words = " ".join(texts)
    texts = [*texts, " ".join([words] * (1 + encoder.text.max_length // len(words.split())))]
    session = MergedSession(folder)
    wanted, found = torch_logits(encoder, adapter, texts), session.logits(texts)
    report: dict[str, Any] = {"texts": len(texts), **compare_logits(wanted, found, bounds)}
    if dev and adapter.task is not None:
        targets, rows = adapter.task.targets(dev), [example.text for example in dev]
        scores = {
            "torch": classification_scores(targets, torch_logits(encoder, adapter, rows).argmax(1)),
            "onnx": classification_scores(targets, session.logits(rows).argmax(1)),
        }
        report |= {"dev_rows": len(dev), "dev": scores}
    report["bounds"] = dict(vars(bounds))
    failed = failures(report, bounds, exact=kind == "fp32")
    if "dev" in report:
        drop = report["dev"]["torch"]["accuracy"] - report["dev"]["onnx"]["accuracy"]
        if drop > DROP[kind] + 1 / report["dev_rows"] + 1e-9:  # a tie may fall either way
            failed.append(f"accuracy on dev falls by {drop:.1%}, bound {DROP[kind]:.0%} and a row")
    if failed:
        raise ParityError(
            f"The exported model of adapter {adapter.name!r} doesn't answer like torch: "
            f"{'; '.join(failed)}. Nothing was written. {json.dumps(report)}",
            report,
        )
    return report
