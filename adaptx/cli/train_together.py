"""`adaptx train --config together.yaml`: several tasks on one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from adaptx.cli.opening import DEFAULT_ENCODER
from adaptx.cli.run import already_done, main_process
from adaptx.cli.train_many import lora_of, task_of
from adaptx.errors import OptionError, TrainingDiverged
from adaptx.training.together_file import Together


def train_together(
    job: Together,
    output: Path,
    *,
    encoder: str | None,
    prefix: str | None,
    precision: str | None,
    fast: bool,
    checkpointing: bool,
    run: Path | None,
    resume: bool,
    checkpoint_every: float,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Train them, and write each task's adapter into a folder of its own."""
    from adaptx import storage

    name = job.name or output.resolve().name
    folders = [output / f"{name}-{task}" for task in job.tasks]
    if resume and run is not None and not overwrite and already_done(run, folders):
        return
    for folder in folders:
        storage.check_output(folder, overwrite, "adapter")
    if resume and run is None:
        raise OptionError("--resume needs --run: which run's folder? `adaptx runs list` has them.")

    import adaptx as ax
    from adaptx.tasks.base import title
    from adaptx.training.checkpoint import check_interval
    from adaptx.training.runs import fresh_folder

    check_interval(checkpoint_every)
    parts = {
        task: ax.Part(
            task_of(one), [ax.Source(**source) for source in one["sources"]], one.get("weight", 1.0)
        )
        for task, one in job.tasks.items()
    }
    lora = lora_of(name, job.lora)
    opened = ax.Encoder.from_pretrained(
        encoder or job.encoder or DEFAULT_ENCODER, prefix=prefix or job.prefix
    )
    if dry_run:
        _say(opened, parts, lora, name, job, output)
        return
    run = run or fresh_folder(name)
    try:
        adapters = ax.train_together(
            opened,
            parts,
            lora,
            name=name,
            precision=precision or job.precision,
            fast=fast,
            checkpointing=checkpointing,
            run=run,
            resume=resume,
            checkpoint_every=checkpoint_every,
            **job.mixture,
            **job.settings,
        )
    except TrainingDiverged as error:
        if error.adapter is not None and main_process():
            error.adapter.save(output, overwrite=overwrite)
            typer.echo(f"The last good adapters are in {output}.", err=True)
        raise
    if not main_process():
        return
    for task, adapter in adapters.items():
        adapter.save(output / adapter.name, overwrite=overwrite)
        best, metric = adapter.facts.training["best"], parts[task].task.metrics[0]
        score = f", dev {title(metric)} {best[metric]:.3f} (epoch {best['epoch']})" if best else ""
        typer.echo(f"Wrote {output / adapter.name}{score}.")
    typer.echo(f"Their log: {run}.")


def _say(
    encoder: Any, parts: dict[str, Any], lora: Any, name: str, job: Together, output: Path
) -> None:
    """What would be trained, after everything was read and checked."""
    from adaptx.training.mixture import Sampling
    from adaptx.training.settings import Settings
    from adaptx.training.together import mixed_job
    from adaptx.training.train import accelerator_for

    found = mixed_job(
        encoder,
        parts,
        lora,
        name,
        Sampling(**job.mixture),
        Settings.of(job.settings),
        accelerator_for(job.precision),
    )
    plan = found.plan()
    rows = found.options.epochs * len(plan) * found.options.batch_size
    for source, member, share in zip(found.names, found.members, plan.shares, strict=True):
        typer.echo(
            f"{' in '.join(source)}: {len(member.train)} rows, {len(member.dev)} dev rows, a share "
            f"of {share:.0%}: each row read {share * rows / len(member.train):.1f} times; labels "
            f"{', '.join(member.task.labels) or 'none'}"
        )
    typer.echo(
        f"Would train {len(parts)} tasks on one adapter of {len(found.adapter.sites)} sites, "
        f"{found.options.epochs * len(plan)} steps of {found.options.batch_size} rows, the best "
        f"epoch by {found.options.metric}; into {output}."
    )
