"""The parity gate: an exported model must answer like the adapter it was made from.

Dimensions: N texts, L labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptx.adapters.adapter import Adapter
from adaptx.data.windows import Input, whole
from adaptx.encoder.encoder import Encoder
from adaptx.errors import ParityError
from adaptx.evaluation.metrics import task_scores
from adaptx.runtime.sessions import EXACT
from adaptx.runtime.verify import BOUNDS, Bounds, compare_outputs, failures
from adaptx.tasks import Task
from adaptx.tasks.base import title

DROP = {"fp32": 0.0, "int8": 0.04}  # largest loss of score on dev, one row more allowed


def torch_logits(encoder: Encoder, adapter: Adapter, texts: Sequence[Input]) -> np.ndarray:
    """fp32 `[N, L]`: the adapter's outputs through the bank, not merged; one row a text, or one a
    token where the task reads every token's state.
    """
    inputs = whole(encoder.text, adapter.prefix, texts, adapter.max_length)
    outputs = [torch_outputs(encoder, adapter, window.ids) for window in inputs]
    return np.concatenate([np.atleast_2d(output) for output in outputs])


@torch.inference_mode()
def torch_outputs(encoder: Encoder, adapter: Adapter, ids: list[int]) -> np.ndarray:
    """The adapter's outputs for one window, fp32 `[L]`, or `[S, L]`."""
    adapter.eval()
    batch = encoder.text.batch([ids], [0])
    mask = torch.from_numpy(batch.attention_mask).to(encoder.device)
    hidden = adapter.hidden(encoder, torch.from_numpy(batch.input_ids).to(encoder.device), mask)
    found: np.ndarray = adapter.outputs(hidden, mask).float().cpu().numpy()[0]
    return found


def head_outputs(task: Task, outputs: np.ndarray) -> np.ndarray:
    """What the head of a merged model gave: similarity's has the task's mean and scale in it."""
    mean, scale = task.scale_of_outputs
    found: np.ndarray = (outputs - mean) / scale
    return found


class MergedSession:
    """A merged model's folder, opened with onnxruntime and tokenizers alone.

    `pooling` makes one vector of the token states, where these are what the model gives.
    """

    def __init__(self, folder: Path, pooling: str = "mean"):
        import onnxruntime
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry(EXACT, "1")
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.pooling = pooling
        self.names = [output.name for output in self.session.get_outputs()]

    def logits(self, texts: Sequence[Input]) -> np.ndarray:
        """fp32 `[N, L]`, one text at a time: int8 activations share their scale within a batch.

        One row a text, or one a token where the task reads every token's state.
        """
        pairs = [(text,) if isinstance(text, str) else text for text in texts]
        found = [self.outputs(self.tokenizer.encode(*pair).ids) for pair in pairs]
        return np.concatenate([np.atleast_2d(output) for output in found])

    def outputs(self, ids: Sequence[int]) -> np.ndarray:
        """What the model gives for one window: `[L]`, or `[S, L]` (QA's start and end beside each
        other); of token states the pooled one.
        """
        ids_1S = np.array([ids], dtype=np.int64)
        feeds = {"input_ids": ids_1S, "attention_mask": np.ones_like(ids_1S)}
        found = [output[0] for output in self.session.run(None, feeds)]
        if self.names == ["last_hidden_state"]:
            return found[0][0] if self.pooling == "cls" else found[0].mean(0)
        return found[0] if len(found) == 1 else np.stack(found, -1)


def compare(
    folder: Path,
    encoder: Encoder,
    adapter: Adapter,
    texts: Sequence[str],
    dev: Sequence[Any],
    kind: str,
    bounds: Bounds | None = None,
) -> dict[str, Any]:
    """The parity report of a merged model's folder; raises ParityError when it is out of bounds.

    `kind` is "fp32" or "int8"; `bounds` are those of BOUNDS unless given. With `dev`, records of
    the adapter's task, its scores too.
    """
    task, bounds = adapter.task, bounds or BOUNDS[kind]
    assert task is not None
    # One text longer than the encoder reads: both must cut it at the same place.
    words = " ".join(texts)
    texts = [*texts, " ".join([words] * (1 + encoder.text.max_length // len(words.split())))]
    inputs: Sequence[Input] = texts
    if task.two_texts:
        inputs = list(pairwise(texts))
    session = MergedSession(folder, task.pooling)
    wanted, found = torch_logits(encoder, adapter, inputs), session.logits(inputs)
    found = head_outputs(task, found)
    exact = kind == "fp32"
    report: dict[str, Any] = {"texts": len(inputs), **compare_outputs(task, wanted, found, bounds)}
    if dev:
        windows = task.windows(encoder.text, adapter.prefix, task.inputs(dev), adapter.max_length)
        ways: dict[str, Callable[[list[int]], np.ndarray]] = {
            "torch": lambda ids: torch_outputs(encoder, adapter, ids),
            "onnx": lambda ids: head_outputs(task, session.outputs(ids)),
        }
        scores = {}
        for way, run in ways.items():
            answers = [
                task.answer(one, its, [run(window.ids) for window in its])
                for one, its in zip(task.inputs(dev), windows, strict=True)
            ]
            scores[way] = task_scores(task, dev, answers)
        report |= {"dev_rows": len(dev), "metric": task.metrics[0], "dev": scores}
    report["bounds"] = dict(vars(bounds))
    failed = failures(report, bounds, exact=exact)
    if "dev" in report:
        metric = report["metric"]
        drop = report["dev"]["torch"][metric] - report["dev"]["onnx"][metric]
        if drop > DROP[kind] + 1 / report["dev_rows"] + 1e-9:  # a tie may fall either way
            failed.append(
                f"{title(metric)} on dev falls by {drop:.1%}, bound {DROP[kind]:.0%} and a row"
            )
    if failed:
        raise ParityError(
            f"The exported model of adapter {adapter.name!r} doesn't answer like torch: "
            f"{'; '.join(failed)}. Nothing was written. {json.dumps(report)}",
            report,
        )
    return report
