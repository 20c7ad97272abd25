"""The README of a folder of .onnx_adapter files: how onnxruntime answers with them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptx.errors import choices
from adaptx.runtime.sessions import EXACT

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter
    from adaptx.tasks import Task

ADAPTER, HEADS = ".onnx_adapter", "heads"  # an adapter's file, and the folder of its head
# An answer in the README's Python, by the task's kind; of the others it is _LABEL.
_LABEL = 'about["labels"][logits[0].argmax()]'
_ANSWERS = {
    "multi-label": (
        '[label for label, logit in zip(about["labels"], logits[0])'
        ' if 1 / (1 + np.exp(-logit)) >= about["task"]["threshold"]]'
    ),
    "similarity": 'about["task"]["mean"] + about["task"]["scale"] * logits[0, 0]',
    "retrieval": "vector / np.linalg.norm(vector)",
}


def _texts(task: Task | None) -> str:
    """What is encoded for a task, in Python."""
    two = task is not None and task.two_texts
    return 'about["prefix"] + "Habari za leo"' + ', "Hujambo"' * two


def _answer(task: Task | None) -> str:
    """A task's answer, in Python."""
    return "vector" if task is None else _ANSWERS.get(task.kind, _LABEL)


def ort_readme(adapters: Sequence[Adapter], about: Mapping[str, Mapping[str, Any]]) -> str:
    """What stands beside the files: code that answers, by task, and what onnxruntime won't say.

    `about` is what the manifest says of each adapter.
    """
    shown = max(adapters, key=lambda a: (bool(a.sites), a.head is not None))
    routed, headed = bool(shown.sites), about[shown.name]["head"] is not None
    tasks = {a.task.kind if a.task else "null": a.task for a in adapters}
    lines = [
        "import json",
        "from pathlib import Path",
        "",
        "import numpy as np",
        "import onnxruntime as ort",
        "from tokenizers import Tokenizer",
        "",
        'folder = Path("path/to/this/folder").absolute()',
        'manifest = json.loads((folder / "adaptx.json").read_text(encoding="utf-8"))',
        f'about = manifest["adapters"][{json.dumps(shown.name, ensure_ascii=False)}]',
        "",
        "quiet = ort.SessionOptions()",
        "quiet.log_severity_level = 3  # it warns of every input with a default",
        f'quiet.add_session_config_entry("{EXACT}", "1")  # int8 without VNNI',
        'encoder = ort.InferenceSession(folder / "model.onnx", quiet)',
        *['head = ort.InferenceSession(folder / about["head"])'] * headed,
        "options = ort.RunOptions()",
        *[
            "adapter = ort.LoraAdapter()  # keep it: once it is gone, the run is plain",
            'adapter.Load(str(folder / about["adapter"]))',
            "options.add_active_adapter(adapter)",
        ]
        * routed,
        "",
        'tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))',
        'tokenizer.enable_truncation(about["max_length"])',
        f"ids = np.array([tokenizer.encode({_texts(shown.task)}).ids], dtype=np.int64)",
        'feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}',
        'states = encoder.run([about["output"]], feeds, options)[0]',
        *['logits = head.run(["logits"], {about["output"]: states})[0]'] * headed,
        *['vector = states[0, 0] if about["output"] == "hidden" else states[0]'] * (not headed),
        f"print({_answer(shown.task)})",
    ]
    example = "\n".join(lines)
    kinds = "\n".join(
        f"| {kind} | `{_texts(task)}` | `{_answer(task)}` |" for kind, task in tasks.items()
    )
    return f"""# One encoder, and adapters in onnxruntime's own format

`{adapters[0].facts.encoder}` with {choices(adapter.name for adapter in adapters)}.

```python
{example}
```

| file | what it is |
|---|---|
| `model.onnx`, `model.onnx.data` | the encoder: `input_ids`, `attention_mask` -> `hidden`, `mean` |
| `<name>{ADAPTER}` | an adapter; a run without one is the plain encoder |
| `{HEADS}/<name>.onnx` | its head: the encoder's output `hidden` or `mean` -> `logits` |
| `tokenizer.json` | its padding goes to the right, with 0 in `attention_mask` |
| `adaptx.json` | all that an adapter's user must know, and the sha256 of every file |

Of each adapter, `adaptx.json` says its files (null where it has none), the encoder's `output` that
its head takes, its task, its labels in the order of the logits, the prefix to put before a text, of
two before the first, and how many tokens it reads at most. What it reads and answers depends on
its task:

| `about["task"]` | what `encode` takes | the answer |
|---|---|---|
{kinds}

An active adapter counts for the whole run: rows of one batch can't have different ones (in a
bundle they can). Of two that are active at once the first alone counts, without a word, and with
IoBinding none does.

onnxruntime checks little of an adapter: a tensor that is missing counts as zeros or fails in the
middle of a run, NaN passes, and nothing tells that an adapter belongs to another encoder. In
Python, `adaptx.onnx.ort_adapters.load_ort_adapter` refuses such a file; elsewhere compare the
sha256 in `adaptx.json`.

In other languages:

- C++: `Ort::LoraAdapter::CreateLoraAdapter(path, nullptr)`, `options.AddActiveLoraAdapter(adapter)`
- C#: `OrtLoraAdapter.Create(path, null)`, `options.AddActiveLoraAdapter(adapter)`
- Java: `OrtLoraAdapter.create(path)`, `options.addActiveLoraAdapter(adapter)`
- JavaScript: `await LoraAdapter.create(url)`, `{{activeLoraAdapters: [adapter]}}` of a run;
  WebAssembly alone, and not yet in onnxruntime-web 1.30, which runs the plain encoder
"""
