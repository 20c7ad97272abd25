"""`adaptx train --config many.yaml`: many adapters in one job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from adaptx.cli.opening import DEFAULT_ENCODER
from adaptx.cli.run import first_here, main_process
from adaptx.errors import AdaptxError, OptionError
from adaptx.training.many_file import KEYS, Job, check_keys, check_names


def train_many(
    job: Job,
    output: Path,
    *,
    encoder: str | None,
    prefix: str | None,
    precision: str | None,
    fast: bool,
    run: Path | None,
    resume: bool,
    checkpoint_every: float,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Train those whose folders aren't there yet; exit code 1 where one was dropped."""
    from adaptx import storage

    names = [one["name"] for one in job.adapters]
    check_names(names)
    if resume and run is None:
        raise OptionError("--resume needs --run: the folder with the job's runs.")
    left = []
    for one in job.adapters:
        folder = output / one["name"]
        if not overwrite and (folder / storage.MANIFEST).is_file():
            if first_here():
                typer.echo(f"{one['name']} is there already, in {folder}: skipped.", err=True)
            continue
        storage.check_output(folder, overwrite, "adapter")
        left.append(one)
    if not left:
        if first_here():
            typer.echo(f"All {len(names)} adapters are in {output}.")
        return

    from accelerate.utils import gather_object

    import adaptx as ax
    from adaptx.training.runs import fresh_folder

    members = [_member(one) for one in left]
    opened = ax.Encoder.from_pretrained(
        encoder or job.encoder or DEFAULT_ENCODER, prefix=prefix or job.prefix
    )
    if dry_run:
        said = _what_would_be(opened, members, job.slots, precision or job.precision, output)
        if first_here():
            typer.echo(said)
        return
    runs = run or fresh_folder(output.resolve().name)
    saved = set()

    def save(adapter: ax.Adapter) -> None:
        adapter.save(output / adapter.name, overwrite=overwrite)
        saved.add(adapter.name)

    found = ax.train_many(
        opened,
        members,
        slots=job.slots,
        precision=precision or job.precision,
        fast=fast,
        divide=job.divide,
        runs=runs,
        resume=resume,
        checkpoint_every=checkpoint_every,
        done=save,
    )
    saved |= set(gather_object(sorted(saved)))
    if main_process():
        for name in found.adapters.keys() - saved:  # by an earlier job, and not there now
            save(found.adapters[name])
        typer.echo(f"Wrote {len(found.adapters)} adapters into {output}. Their logs: {runs}.")
        for name, error in found.failed.items():
            typer.echo(f"{name} was dropped: {error}{_last_good(error, save, output)}", err=True)
    if found.failed:
        raise typer.Exit(1)


def _last_good(error: Exception, save: Callable[[Any], None], output: Path) -> str:
    """Save what a training that diverged has kept, and say where it is, or why it isn't there."""
    adapter = getattr(error, "adapter", None)
    if adapter is None:
        return ""
    try:
        save(adapter)
    except (AdaptxError, OSError) as why:
        return f" It isn't saved: {why}"
    return f" It is in {output / adapter.name}."


def _member(one: dict[str, Any]) -> Any:
    import adaptx as ax

    plain = ("language", "dev", "text_column", "other_column", "label_column")
    return ax.Member(
        one["name"],
        lora_of(one["name"], one["lora"]),
        train=one["train"],
        task=task_of(one),
        settings={key: value for key, value in one.items() if key not in KEYS},
        **{key: one.get(key) for key in plain},
    )


def lora_of(name: str, given: Mapping[str, Any]) -> Any:
    """The LoraConfig of a file's `lora`; OptionError, naming the adapter, for what can't be."""
    from peft import LoraConfig

    lora = {"r": 16, "target_modules": "all-linear", **given}
    check_keys(f"{name}: lora", lora, LoraConfig.__dataclass_fields__)
    try:
        return LoraConfig(**{"lora_alpha": lora["r"], **lora})
    except (TypeError, ValueError) as error:
        raise OptionError(f"{name}: lora: {error}") from None


def task_of(one: Mapping[str, Any]) -> Any:
    """The task that a file's values name."""
    from adaptx.tasks import make_task

    options = {key: one.get(key) for key in ("pooling", "scheme", "repair")}
    return make_task(
        one.get("task", "classification"), labels=tuple(one.get("labels") or ()), **options
    )


def _what_would_be(
    encoder: Any, members: list[Any], slots: int, precision: str | None, output: Path
) -> str:
    """What would be trained, after everything was read and checked: by every process, since they
    wait for each other as soon as one asks Accelerate.
    """
    from adaptx.training.train import accelerator_for
    from adaptx.training.waiting import jobs_of

    total, lines = 0, []
    for job in jobs_of(encoder, members, accelerator_for(precision)):
        steps = job.options.epochs * -(-len(job.train) // job.options.batch_size)
        total += steps
        lines.append(
            f"{job.adapter.name}: {len(job.train)} rows, {len(job.dev)} dev rows, {steps} steps, "
            f"{job.adapter.parameters_count:,} weights, labels {', '.join(job.task.labels)}"
        )
    lines.append(
        f"Would train {len(members)} adapters, {slots} at a time, {total} steps in all; into "
        f"{output}."
    )
    return "\n".join(lines)
