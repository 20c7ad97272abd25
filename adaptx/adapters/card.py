"""The model card, README.md of an adapter's folder: written for someone who has never seen it.

Its front matter is the Hub's (huggingface_hub writes it), with the scores as a `model-index`. The
card says only what the facts say; `adaptx eval --card` gives it the scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from adaptx import hub
from adaptx.errors import FolderError, choices
from adaptx.tasks import Classification, QuestionAnswering, Task, task_from_json
from adaptx.tasks.base import TITLES, title

if TYPE_CHECKING:
    from adaptx.adapters.folder import Facts

_WHAT = {
    "lora": (
        "The encoder stays as it is; LoRA adds low-rank updates at {sites} of its linear layers"
    ),
    "probe": "The encoder stays as it is, and nothing is added inside it",
    "full": "All of the encoder's weights were trained",
}
_OTHER = "The encoder stays as it is; PEFT's `{method}` weights are added to it"
_FEW = 500  # rows of a test set below which the card warns
_UNEVEN = 3  # so many times the rows of the rarest label, for the commonest, is an imbalance


def model_card(facts: Facts) -> str:
    """The card as Markdown; raises FolderError when the recorded scores aren't as adaptx writes."""
    task = task_from_json(facts.task) if facts.task else None
    try:
        scores = _scores(facts.evaluation)
        sections = [
            _front_matter(facts, task),
            f"# {_text(facts.name)}\n\n{_summary(facts, task)}",
            f"## Scores\n\n{scores or _unevaluated(facts)}" if task else "",
            f"## How it was trained\n\n{_training(facts)}" if facts.training else "",
            f"## How to use it\n\n{_usage(facts, task)}",
            f"## Limits\n\n{_bullets(_limits(facts, task))}" if task else "",
            f"## Which encoder\n\n`{facts.encoder}`, with just the weights and vocabulary of this "
            f"fingerprint; adaptx refuses any other:\n\n`{facts.fingerprint}`",
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FolderError(
            f"The training or evaluation recorded for {facts.name!r} isn't as adaptx writes it "
            f"({type(error).__name__}: {error}): train it again, or restore its folder."
        ) from error
    return "\n\n".join(section for section in sections if section) + "\n"


def name_lines(name: str) -> list[str]:
    """The lines of a card that are an adapter's name and nothing else: its titles."""
    from huggingface_hub.utils import yaml_dump

    unscored, scored = (yaml_dump({key: name}).strip() for key in ("model_name", "name"))
    return [unscored, f"- {scored}", f"# {_text(name)}"]


def _front_matter(facts: Facts, task: Task | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    # The Hub knows languages by their ISO 639 code: swh of swh_Latn.
    language = re.match(r"[a-z]{2,3}(?![^_-])", facts.language or "")
    results = [
        EvalResult(
            task_type=task.hub if task else "feature-extraction",
            dataset_type=name,
            dataset_name=f"{name}: {entry['file']}",
            metric_type=_hub_metric(metric),
            metric_name=title(metric),
            metric_value=round(entry[metric], 4),
        )
        for name, entry in facts.evaluation.items()
        if "file" in entry
        for metric in (task.metrics if task else ())
    ]
    data = ModelCardData(
        language=language.group() if language else None,
        library_name="adaptx" if facts.method in ("probe", "full") else "peft",
        base_model=facts.encoder if hub.is_repository(facts.encoder) else None,
        pipeline_tag=task.hub if task else None,
        tags=["adaptx", facts.method],
        metrics=sorted({_hub_metric(name) for name in task.metrics}) if task else None,
        model_name=facts.name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _hub_metric(name: str) -> str:
    return "f1" if "f1" in name else name


def _summary(facts: Facts, task: Task | None) -> str:
    text = _OTHER if facts.way == "own pass" else _WHAT.get(facts.method, _OTHER)
    what = text.format(sites=len(facts.scales), method=facts.method)
    if task is None:
        return f"An adapter for the text encoder `{facts.encoder}`. {what}. It has no head."
    read = [_inputs(task)]
    if facts.language:
        read += [f"it was trained on texts in `{facts.language}`"]
    if facts.max_length:
        more = "what is longer is read in several windows" if task.slides else "the rest is cut off"
        read += [f"{facts.max_length} tokens at {'a time' if task.slides else 'most'}, {more}"]
    top = "; a linear head stands on top" if task.has_head and task.answers else ""
    answers = []
    if isinstance(task, Classification):
        answers = [
            f"**Answers** one of: {choices(map(_text, task.labels))}; with a score for each."
        ]
    elif task.labels and task.hub != "question-answering":
        answers = [f"**Labels**: {choices(map(_text, task.labels))}."]
    return (
        f"{task.reads}. It is an adapter: trained "
        f"weights that work together with the text encoder `{facts.encoder}`, and adaptx, which "
        f"made it, runs the two. {what}{top}.\n\n"
        + _bullets([f"**Reads** {'; '.join(read)}.", *answers])
    )


def _inputs(task: Task) -> str:
    """What one row is."""
    if isinstance(task, QuestionAnswering):
        return "a question and a passage"
    return "two texts" if task.two_texts else "one text"


def _scores(evaluation: dict[str, Any]) -> str:
    if not evaluation:
        return ""
    whole = _whole(evaluation)
    first, *others = [name for name in whole if name in TITLES]
    commonest = "commonest" in whole
    header = ["data", "rows", title(first), "95% interval", *map(title, others)]
    by_language = _table(
        [*header, "commonest label"] if commonest else header,
        (
            (
                f"{name} ({entry['file']})" if "file" in entry else "all of them",
                entry["rows"],
                f"{entry[first]:.3f}",
                "{:.3f} to {:.3f}".format(*entry["interval"]),
                *(f"{entry[other]:.3f}" for other in others),
                *([f"{entry['commonest']:.3f}"] if commonest else []),
            )
            for name, entry in evaluation.items()
        ),
    )
    way = "Wilson's score" if commonest else "the bootstrap"
    said = (
        f"{by_language}\n\nThe interval says how far the {title(first)} might move on other test "
        f"rows of the same kind ({way}). "
    )
    if commonest:
        said += "The last column is the accuracy of always answering the commonest label. "
    said += "`adaptx.json` has the test files' checksums."
    if not whole["labels"]:
        return said
    by_label = _table(
        ("label", "rows", "precision", "recall", "F1"),
        (
            (label, entry["rows"], *(f"{entry[key]:.3f}" for key in ("precision", "recall", "f1")))
            for label, entry in whole["labels"].items()
        ),
    )
    return f"{said}\n\nBy label, over all test rows:\n\n{by_label}"


def _unevaluated(facts: Facts) -> str:
    said = "It hasn't been evaluated on test data; `adaptx eval` with `--card` writes scores here."
    if best := facts.training.get("best"):
        said += (
            f" On the development data it reached {_dev(best)}; these rows also chose what was "
            f"kept, so expect less of new texts."
        )
    return said


def _dev(best: dict[str, Any]) -> str:
    return ", ".join(f"{title(name)} {best[name]:.3f}" for name in best if name in TITLES)


def _training(facts: Facts) -> str:
    training = facts.training
    said = []
    if "train_rows" in training:
        dev = f", {training['dev_rows']} development rows" if training.get("dev_rows") else ""
        said += [f"Data: {training['train_rows']} training rows{dev}"]
    if best := training.get("best"):
        solved = "Solved at once, with the regularization that was best"  # a probe's strength
        how = solved if "strength" in best else f"Kept: epoch {best['epoch']}, the best"
        said += [f"{how} on the development rows ({_dev(best)})"]
    if settings := training.get("settings"):
        named = (f"{name} {value}" for name, value in settings.items() if value is not None)
        said += [f"Settings: {', '.join(named)}"]
    if "precision" in training:
        numbers = {"no": "fp32"}.get(training["precision"], training["precision"])
        said += [f"Precision: {numbers}; processes: {training.get('processes', 1)}"]
    if "seconds" in training:
        said += [f"Time: {training['seconds']:.0f} seconds"]
    return _bullets(said)


def _usage(facts: Facts, task: Task | None) -> str:
    if task is not None and not task.answers:
        return (
            "It answers no text by itself. `ax.Adapter.load(folder, encoder)` opens it, and its "
            "`merged_model(encoder)` is the encoder with it folded in."
        )
    bundled = facts.encoder.startswith("bundled:")
    extras = "train,bundled" if bundled else "train"
    two = task is not None and task.two_texts
    passage, one = (' --passage "…"', '("…", "…")') if two else ("", '"…"')
    which = "the first of two texts" if two else "every text"
    prefix = (
        f" adaptx puts `{facts.prefix}` before {which} by itself." if facts.prefix.strip() else ""
    )
    return f"""\
With this folder downloaded, and adaptx installed (`pip install 'adaptx[{extras}]'`):

```
adaptx predict "…"{passage} --adapter path/to/this/folder
```

```python
import adaptx as ax

encoder = ax.Encoder.from_pretrained({facts.encoder!r})
adapter = ax.Adapter.load("path/to/this/folder", encoder)
encoder.predict([{one}], adapter)
```

One encoder serves many adapters: each row of a batch may take its own.{prefix}"""


def _limits(facts: Facts, task: Task | None) -> list[str]:
    evaluation = facts.evaluation
    tested = {name: entry["rows"] for name, entry in evaluation.items() if "file" in entry}
    said = []
    if tested:
        said += [f"Nothing is known of it on other data than {choices(tested)}."]
    else:
        said += ["How well it does on new texts isn't known: it hasn't been evaluated."]
    if few := [f"{name} ({rows} rows)" for name, rows in tested.items() if rows < _FEW]:
        said += [f"Small test sets: {choices(few)}. Small differences there mean nothing."]
    if evaluation and _whole(evaluation)["labels"]:
        sizes = {label: entry["rows"] for label, entry in _whole(evaluation)["labels"].items()}
        rare, common = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        if absent := [_text(label) for label, rows in sizes.items() if not rows]:
            said += [f"Never seen in the test data: {choices(absent)}."]
        elif sizes[common] >= _UNEVEN * sizes[rare]:
            said += [
                f"The labels are uneven: {_text(common)} has {sizes[common]} test rows, "
                f"{_text(rare)} {sizes[rare]}. Read the labels' own scores beside the first "
                f"one."
            ]
    if isinstance(task, Classification):
        said += [
            "It always answers one of its labels, also for a text that none of them fits. The "
            "scores sum to 1 over the labels and haven't been calibrated: 0.9 needn't be right 9 "
            "times of 10."
        ]
    return said


def _whole(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The entry of all rows: the last one, pooled where there are several data sets."""
    return list(evaluation.values())[-1]


def _text(value: object) -> str:
    """A name as Markdown text on one line, in a table too."""
    return " ".join(str(value).split()).replace("|", r"\|").replace("<", "&lt;")


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_text, line))} |" for line in lines)
