"""Encoders side by side on one's own languages: tokens, size, latency here, and a probe's score."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adaptx.data.read import Example, find_split, read_examples
from adaptx.data.tokens import Tokenization, tokenization
from adaptx.encoder.encoder import Encoder
from adaptx.errors import DataError
from adaptx.evaluation.metrics import classification_scores
from adaptx.tasks import Classification
from adaptx.training.train import train

TIMED = 32  # texts that are timed, evenly taken from all; the size of the batch, too
WARM_UP = 3


@dataclass(frozen=True)
class Sample:
    """One language's texts; with `train` and `test` (and perhaps `dev`) a probe can be fitted."""

    language: str
    texts: tuple[str, ...]
    train: tuple[Example, ...] = ()
    dev: tuple[Example, ...] = ()
    test: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Size:
    """An encoder's weights in millions and in MB of fp32, those of its vocabulary table, its limit.

    Time goes into the weights that aren't the vocabulary's: a row reads a few rows of that table.
    """

    encoder: str
    family: str
    weights: float
    vocabulary: float
    megabytes: float
    longest: int


@dataclass(frozen=True)
class Figures:
    """An encoder on one language.

    alone     ms for a text, median of at most TIMED texts, one at a time
    batched   ms for a text in a batch of TIMED
    probe     the probe's scores on test, and how many rows that is; None without labelled splits
    """

    encoder: str
    language: str
    tokens: Tokenization
    alone: float
    batched: float
    probe: dict[str, float] | None


def read_sample(
    language: str,
    path: Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Sample:
    """The texts of a file, or of a folder with train and test (dev where there is one).

    A folder without train is read as texts alone. Raises DataError, also for labels of test that
    train lacks.
    """
    columns = {"text_column": text_column, "label_column": label_column}
    if not path.is_dir():
        rows = read_examples(path, **columns, labelled=False)
        return Sample(language, tuple(row.text for row in rows))
    files = {split: found for split in ("train", "dev", "test") if (found := _split(path, split))}
    if not files:
        find_split(path, "test")  # says what the folder has
    labelled = {"train", "test"} <= files.keys()
    splits = {
        split: tuple(read_examples(file, **columns, labelled=labelled))
        for split, file in files.items()
    }
    texts = tuple(row.text for rows in splits.values() for row in rows)
    if not labelled:
        return Sample(language, texts)
    Classification().fit(splits["train"], splits.get("dev", ())).targets(splits["test"])
    return Sample(language, texts, **splits)


def _split(folder: Path, split: str) -> Path | None:
    try:
        return find_split(folder, split)
    except DataError:
        return None


def size_of(encoder: Encoder) -> Size:
    """How large an encoder is."""
    table = encoder.model.get_input_embeddings().weight.numel()
    return Size(
        encoder=encoder.name,
        family=encoder.config.model_type,
        weights=encoder.parameters / 1e6,
        vocabulary=table / 1e6,
        megabytes=encoder.parameters * 4 / 1e6,
        longest=encoder.text.max_length,
    )


def figures_of(encoder: Encoder, sample: Sample, *, seed: int = 0) -> Figures:
    """Measure an encoder on one language; the latency on the CPU, wherever the probe is fitted."""
    alone, batched = latency(encoder.to("cpu"), sample.texts)
    return Figures(
        encoder=encoder.name,
        language=sample.language,
        tokens=tokenization(encoder.text.tokenizer, sample.texts),
        alone=alone,
        batched=batched,
        probe=_probe(encoder, sample, seed) if sample.train else None,
    )


def latency(encoder: Encoder, texts: Sequence[str]) -> tuple[float, float]:
    """Medians in ms for one text, tokenization included: one at a time, and in a batch of TIMED."""
    some = list(texts[:: max(1, len(texts) // TIMED)][:TIMED])

    def ms(batch: Sequence[str]) -> float:
        started = time.perf_counter()
        encoder.embed(batch, batch_size=TIMED)
        return (time.perf_counter() - started) * 1e3

    for text in some[:WARM_UP]:
        ms([text])
    alone = statistics.median(ms([text]) for text in some)
    return alone, statistics.median(ms(some) for _ in range(3)) / len(some)


def _probe(encoder: Encoder, sample: Sample, seed: int) -> dict[str, float]:
    probe = train(
        encoder,
        Classification(),
        None,
        name=f"{sample.language}-probe",
        train=sample.train,
        dev=sample.dev or None,
        seed=seed,
    )
    assert probe.task is not None
    answers: list[Any] = encoder.predict([row.text for row in sample.test], probe)
    predicted = probe.task.targets([Example("", answer.label) for answer in answers])
    scores = classification_scores(probe.task.targets(sample.test), predicted)
    return {**scores, "rows": len(sample.test)}


def as_json(size: Size, figures: Sequence[Figures]) -> dict[str, Any]:
    """One encoder's figures as a JSON object."""
    languages = {}
    for one in figures:
        values = asdict(one)
        del values["encoder"]
        languages[values.pop("language")] = values
    return {**asdict(size), "threads": torch.get_num_threads(), "languages": languages}
