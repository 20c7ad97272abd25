"""The README of a merged model: how optimum opens it, and code that answers as the adapter does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from adaptx.tasks import (
    MultiLabel,
    QuestionAnswering,
    Retrieval,
    Similarity,
    Task,
    TokenClassification,
)

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter

# Tasks by their names on the Hub, and the class and pipeline that open each.
LABELS, TAGS = "text-classification", "token-classification"
ANSWERS, VECTORS = "question-answering", "feature-extraction"
CLASSES = {
    LABELS: "ORTModelForSequenceClassification",
    TAGS: "ORTModelForTokenClassification",
    ANSWERS: "ORTModelForQuestionAnswering",
    VECTORS: "ORTModelForFeatureExtraction",
}


def merged_readme(adapter: Adapter, kind: str, report: dict[str, Any]) -> str:
    """What stands beside a merged model: `kind` (fp32, int8), its parity, code that answers."""
    task = adapter.task
    assert task is not None
    labels = f": {', '.join(task.labels)}" if task.labels else ""
    agreement = report.get("agreement")
    said = f"the same answer as torch on {agreement:.1%}, " if agreement is not None else ""
    every = ", ignore_labels=[]" if task.hub == TAGS else ""
    numpy = "import numpy as np\n" if task.hub == VECTORS else ""
    code, note = ASKED.get(task.kind, _one_of_labels)(task)
    which = "the first text of two" if task.two_texts else "each text"
    prefix = f"The tokenizer puts the prefix {adapter.prefix!r} before {which} by itself."
    return f"""# {adapter.name}, merged into its encoder ({kind} ONNX)

Adapter `{adapter.name}` folded into `{adapter.facts.encoder}`{labels}.
On {report["texts"]} probe texts: {said}largest difference {report["max_difference"]:.2g}.

```python
{numpy}from optimum.onnxruntime import {CLASSES[task.hub]}
from transformers import AutoTokenizer, pipeline

folder = "path/to/this/folder"
model = {CLASSES[task.hub]}.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
answer = pipeline("{task.hub}", model, tokenizer=tokenizer{every})
{code}
```

{" ".join([note, *([prefix] if adapter.prefix else [])])}
"""


def _one_of_labels(task: Task) -> tuple[str, str]:
    return _texts(task), "The score is the label's probability."


def _score(task: Task) -> tuple[str, str]:
    note = "The score says how near the texts are, on the scale of the training data."
    return _texts(task), note


def _texts(task: Task) -> str:
    one = '{"text": "…", "text_pair": "…"}' if task.two_texts else '"…"'
    return f"found = answer({one}, truncation=True)"


def _label_set(task: MultiLabel) -> tuple[str, str]:
    code = f"""
found = answer("…", top_k=None, truncation=True)
found = [one for one in found if one["score"] >= {task.threshold}]"""
    return code, f"A text has the labels whose score is at least {task.threshold}."


def _vector(task: Retrieval) -> tuple[str, str]:
    pooled, way = "states.mean(0)", "the mean of its tokens' states"
    if task.pooling == "cls":
        pooled, way = "states[0]", "its first token's state"
    code = f"""
states = np.array(answer("…", truncation=True)[0])  # one for each token
found = {pooled}
found /= np.linalg.norm(found)"""
    return code, f"A text's vector is {way}, with length 1: a product of two is their cosine."


def _span(task: QuestionAnswering) -> tuple[str, str]:
    return 'found = answer(question="…", context="…")', "The answer is a part of the context."


def _tags(task: TokenClassification) -> tuple[str, str]:
    code = """
text = "…"
pieces, found, at = answer(text), [], 0
for word in text.split():
    at = text.index(word, at)
    first = next(one for one in pieces if one["end"] > at)
    found.append((word, first["entity"]))
    at += len(word)"""
    return code, (
        "A word's tag is that of its first piece: the others weren't trained to have one. "
        "Words and punctuation marks need white space between them, and a text that is longer "
        "than the encoder reads comes in parts."
    )


# How the pipeline is asked, as code that makes `found`, and what to know of it.
ASKED: dict[str, Callable[[Any], tuple[str, str]]] = {
    MultiLabel.kind: _label_set,
    QuestionAnswering.kind: _span,
    Retrieval.kind: _vector,
    Similarity.kind: _score,
    TokenClassification.kind: _tags,
}
