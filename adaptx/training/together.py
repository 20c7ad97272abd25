"""Several tasks at once: one adapter that all of them share, each with its own head.

    adapters = ax.train_together(
        encoder,
        {
            "topics": ax.Part(Classification(), [ax.Source("sw/topics.tsv", "sw/dev.tsv")]),
            "names": ax.Part(TokenClassification(), [ax.Source("sw/ner.conll", "sw/dev.conll")]),
        },
        LoraConfig(r=16, target_modules="all-linear"),
        name="sw",
    )
    adapters["topics"].save("adapters/sw-topics")

A step has rows of every source in their shares (adaptx.training.mixture), which go through the
encoder and the adapter together (adaptx.training.shared); its loss is the mean over its rows of
each one's loss, times its task's weight. What comes of it are plain adapters, one for each task,
whose matrices are the same: everything that takes an adapter takes each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from adaptx.adapters.adapter import Adapter
from adaptx.data.streams import Columns
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError, choices
from adaptx.evaluation.metrics import DEV_LOSS
from adaptx.tasks import Classification, Task
from adaptx.training.checkpoint import check_interval
from adaptx.training.distributed import check_distribution, place
from adaptx.training.mixture import Sampling
from adaptx.training.record import Job
from adaptx.training.resuming import find_checkpoint
from adaptx.training.rows import Data, EncodedRows, open_data
from adaptx.training.runlog import RunLog, check_run
from adaptx.training.settings import Settings
from adaptx.training.shared import MEAN, MixedJob, MixedRows, Shared
from adaptx.training.train import accelerator_for, in_steps

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import LoraConfig


@dataclass(frozen=True)
class Source:
    """Rows of a task, of one language where that is known: files or records, as in `ax.train`."""

    train: Data
    dev: Data | None = None
    language: str | None = None
    text_column: str | None = None
    other_column: str | None = None
    label_column: str | None = None

    def rows(self, task: Task) -> tuple[list[Any], list[Any]]:
        """The records of train and dev; DataError for bad ones."""
        columns = Columns(self.text_column, self.label_column, self.other_column)
        train = list(open_data(self.train, task, columns))
        dev = list(open_data(self.dev, task, columns)) if self.dev is not None else []
        return train, dev


@dataclass(frozen=True)
class Part:
    """One task of several: where its rows come from, and what its loss counts."""

    task: Task
    sources: Sequence[Source]
    weight: float = 1.0

    def __post_init__(self) -> None:
        languages = [source.language for source in self.sources]
        if not languages:
            raise OptionError("A task of several has no source: give its training data.")
        if len(languages) > 1 and (None in languages or len(set(languages)) < len(languages)):
            raise OptionError(
                f"A task with several sources needs a language of its own for each; these have "
                f"{choices(map(str, languages))}."
            )
        if not (isinstance(self.weight, (int, float)) and 0 < self.weight < 1e6):
            raise OptionError(f"weight={self.weight!r} must be a number above 0.")


def train_together(
    encoder: Encoder,
    parts: Mapping[str, Part],
    config: LoraConfig,
    *,
    name: str,
    sampling: str = "temperature",
    temperature: float = 2.0,
    passes: float | None = None,
    precision: str | None = None,
    checkpointing: bool = False,
    fast: bool = True,
    accelerator: Accelerator | None = None,
    run: str | Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 300.0,
    trackers: Sequence[str] = (),
    **settings: Any,
) -> dict[str, Adapter]:
    """Train one LoRA for several tasks; returns an adapter for each, named "<name>-<task>".

    `parts` are the tasks by name. `sampling` is how often each source is read: "proportional",
    "uniform", "temperature" (with `temperature`) or "unimax" (none more than `passes` times; None:
    twice the epochs). An epoch is as many rows as the sources have together; `batch_size` counts
    the rows of all. `metric` chooses the best epoch: "mean", of each task's first metric;
    "<task>.<metric>" of one task; "<task>.<language>.<metric>"; or "dev_loss". `probe_first` solves
    the heads of the classification tasks; others begin at random. All else is as in `ax.train`:
    many processes, resuming, runs.

    Raises DataError, SiteError or OptionError before any work, TrainingDiverged and
    TrainingInterrupted.
    """
    options, mixing = Settings.of(settings), Sampling(sampling, temperature, passes)
    check_interval(checkpoint_every)
    run = check_run(run, trackers, accelerator, resume)
    accelerator = accelerator or accelerator_for(precision, run, trackers)
    check_distribution(accelerator)
    job = mixed_job(encoder, parts, config, name, mixing, options, accelerator)
    for adapter in cast(Any, job.adapter).each:
        place(encoder, adapter, accelerator)
    found = find_checkpoint(job, run) if resume and run is not None else None
    with RunLog(run, accelerator, job.about(config), found) as log:
        in_steps(job, log, run, found, checkpoint_every, checkpointing=checkpointing, fast=fast)
    accelerator.wait_for_everyone()
    return {
        part: adapter.to(encoder.device).requires_grad_(False).eval()
        for part, adapter in zip(parts, job.adapter.each, strict=True)
    }


def mixed_job(
    encoder: Encoder,
    parts: Mapping[str, Part],
    config: LoraConfig,
    name: str,
    sampling: Sampling,
    options: Settings,
    accelerator: Accelerator,
) -> MixedJob:
    """Read and encode every source's rows, and make the adapter. Raises as `train_together`."""
    if sum(len(part.sources) for part in parts.values()) < 2:
        raise OptionError("Training together needs two sources or more; for one there is ax.train.")
    if options.micro_tokens:
        raise OptionError("micro_tokens is for one source alone: say accumulate instead.")
    classified = any(isinstance(part.task, Classification) for part in parts.values())
    if options.probe_first and not classified:
        raise OptionError(
            "probe_first is for classification, and none of these tasks is one: leave it out."
        )
    adapters: dict[str, Adapter] = {}
    members: list[Job] = []
    names: list[tuple[str, ...]] = []
    for part, given in parts.items():
        if not part or "." in part:
            raise OptionError(f"{part!r} can't be a task's name: it must be text without a point.")
        try:
            read = [source.rows(given.task) for source in given.sources]
        except OptionError as error:  # a DataError names its file
            raise OptionError(f"{part}: {error}") from None
        every = [[row for rows in split for row in rows] for split in zip(*read, strict=True)]
        task = given.task.fit(*every)
        first = next(iter(adapters.values()), None)
        adapter = _adapter(encoder, task, config, f"{name}-{part}", given, options, first)
        adapters[part] = adapter
        for source, (train, dev) in zip(given.sources, read, strict=True):
            rows, held_out = (EncodedRows.of(encoder, adapter, task, one) for one in (train, dev))
            members.append(Job(encoder, adapter, task, options, accelerator, rows, held_out))
            several = len(given.sources) > 1
            names.append((part, str(source.language)) if several else (part,))
    shared = Shared(name, adapters)
    heads = [shared.each.index(member.adapter) for member in members]
    train_rows, dev_rows = (
        MixedRows(
            [cast(EncodedRows, rows) for rows in split],
            [" in ".join(name) for name in names],
            heads,
            encoder.text.pad_id,
        )
        for split in zip(*((member.train, member.dev) for member in members), strict=True)
    )
    options.check_use([member.task for member in members], len(dev_rows) > 0)
    options = replace(options, metric=_metric(options.metric, members, names))
    job = MixedJob(
        encoder,
        cast(Adapter, shared),
        members[0].task,
        options,
        accelerator,
        train_rows,
        dev_rows,
        members,
        names,
        [parts[name].weight for name, *_ in names],
        sampling,
    )
    job.plan()  # OptionError for micro-batches too small for retrieval
    return job


def _adapter(
    encoder: Encoder,
    task: Task,
    config: LoraConfig,
    name: str,
    part: Part,
    options: Settings,
    first: Adapter | None,
) -> Adapter:
    """A task's adapter; but for the first one, with the first one's sites."""
    languages = {source.language for source in part.sources}
    made = Adapter.new(
        encoder,
        task,
        config if first is None else None,
        name=name,
        language=languages.pop() if len(languages) == 1 else None,
        max_length=options.max_length,
        seed=options.seed,
    )
    if first is not None:
        return Adapter.of(encoder, made.facts, first.config, made.head, task, sites=first.sites)
    if not made.sites:
        raise OptionError(
            f"{made.facts.method} can't be shared by several tasks: LoRA as a bank has it can. "
            f"Train one for each task with ax.train."
        )
    return made


def _metric(asked: str | None, members: Sequence[Job], names: Sequence[tuple[str, ...]]) -> str:
    """What chooses the best epoch; OptionError for what no dev rows give."""
    pairs = list(zip(members, names, strict=True))
    pairs = [pair for pair in pairs if len(pair[0].dev)] or pairs
    known = [MEAN] if any(member.task.answers for member, _ in pairs) else []
    known.append(DEV_LOSS)
    for member, name in pairs:
        for prefix in (name[:1], name):
            known += [".".join((*prefix, metric)) for metric in member.task.metrics]
    if asked is not None and asked not in known:
        raise OptionError(
            f"metric={asked!r} is none of those that the dev rows give: "
            f"{choices(dict.fromkeys(known))}."
        )
    return asked or known[0]
