"""`adaptx tune`: search over learning rates, ranks and sites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptx.cli.opening import DEFAULT_ENCODER
from adaptx.cli.options import LabelColumn, OtherColumn, Repair, Scheme, TextColumn
from adaptx.cli.run import main_process
from adaptx.errors import OptionError

EXAMPLES = """
[bold]Examples[/bold]

  adaptx tune --train train.tsv --dev dev.tsv -o adapters/topics

  adaptx tune --train train.tsv --dev dev.tsv -o adapters/topics --lr 3e-4,1e-3 --r 4,16 --dry-run

  adaptx tune --train train.tsv --dev dev.tsv -o adapters/topics --sites 'all-linear;query,value'
"""


def tune(
    train: Annotated[str, typer.Option("--train", help="Training data: a file, or hf:….")],
    dev: Annotated[str, typer.Option("--dev", help="Development data: chooses.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The best adapter's new folder.")],
    lr: Annotated[
        str, typer.Option("--lr", help="Learning rates, comma-separated.")
    ] = "3e-4,5e-4,1e-3,2e-3",
    r: Annotated[str, typer.Option("--r", help="Ranks, comma-separated.")] = "8,16",
    sites: Annotated[
        str, typer.Option("--sites", help="all-linear, or suffixes; sets apart by semicolons.")
    ] = "all-linear",
    encoder: Annotated[
        str, typer.Option("--encoder", "-e", help="Hub name, local folder, or bundled:… name.")
    ] = DEFAULT_ENCODER,
    name: Annotated[
        str | None, typer.Option("--name", help="The adapter's.", show_default="the folder's")
    ] = None,
    language: Annotated[str | None, typer.Option("--language", help="Such as sw.")] = None,
    text_column: TextColumn = None,
    other_column: OtherColumn = None,
    label_column: LabelColumn = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Of the last rung.")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Rows of a step.")] = 16,
    task: Annotated[
        str, typer.Option("--task", help="classification, token-classification …")
    ] = "classification",
    scheme: Scheme = None,
    repair: Repair = False,
    metric: Annotated[
        str | None, typer.Option("--metric", help="On dev.", show_default="the task's first")
    ] = None,
    slots: Annotated[int, typer.Option("--slots", help="Trials that train at a time.")] = 8,
    precision: Annotated[
        str | None,
        typer.Option("--precision", help="no, bf16 or auto.", show_default="accelerate's"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The logs' new folder.", show_default="runs/<name>-<time>"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --run where it was cut off.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All trials as JSON.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run.")] = False,
) -> None:
    """Train many trials by successive halving, chosen on dev, and keep the best."""
    from adaptx import storage

    lrs, ranks = _numbers("--lr", lr, float), _numbers("--r", r, int)
    sets: list[Any] = [
        one.strip() if one.strip() == "all-linear" else [s.strip() for s in one.split(",")]
        for one in sites.split(";")
    ]
    storage.check_output(output, overwrite, "adapter")
    if resume and run is None:
        raise OptionError("--resume needs --run: the folder with the trials' runs.")

    from peft import LoraConfig

    import adaptx as ax
    from adaptx.data.large import open_records
    from adaptx.data.streams import Columns
    from adaptx.evaluation.metrics import metric_of
    from adaptx.training.runs import fresh_folder
    from adaptx.training.settings import Settings
    from adaptx.training.tune import combinations_of, rungs
    from adaptx.training.tune import tune as search

    settings = {"epochs": epochs, "batch_size": batch_size, "metric": metric, "seed": seed}
    Settings.of(settings)
    asked = ax.tasks.make_task(task, scheme=scheme, repair=repair or None)
    columns = Columns(text_column, label_column, other_column)
    rows, dev_rows = (open_records(source, asked.kind, columns) for source in (train, dev))
    fitted = asked.fit(rows, dev_rows)
    chosen = metric_of(fitted, metric)
    if slots < 1:
        raise OptionError(f"--slots {slots} must be at least 1.")
    opened = ax.Encoder.from_pretrained(encoder)
    around = LoraConfig(r=8, lora_alpha=8)  # its scale, 1, at every rank
    plan = rungs(len(combinations_of(opened, around, lrs, ranks, sets)), epochs)
    if dry_run:
        steps = sum(count * many * -(-len(rows) // batch_size) for count, many in plan)
        said = ", then ".join(f"{count} for {many} epochs" for count, many in plan)
        typer.echo(f"Would train {said}: {steps} steps in all; into {output}.")
        return
    called = name or output.resolve().name
    runs = run or fresh_folder(called)
    found = search(
        opened,
        fitted,
        around,
        name=called,
        language=language,
        train=rows,
        dev=dev_rows,
        lrs=lrs,
        ranks=ranks,
        sites=sets,
        slots=slots,
        precision=precision,
        runs=runs,
        resume=resume,
        settings=settings,
    )
    if not main_process():
        return
    found.adapter.save(output, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(found.adapter.facts.training["search"]))
    else:
        _show(found.trials, chosen)
        typer.echo(f"Wrote {output}. The trials' logs: {runs}.")


def _numbers(option: str, text: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"{option} {text!r} must be numbers, comma-separated.") from None


def _show(trials: list[Any], metric: str) -> None:
    """Every trial, the best of each rung first."""
    from adaptx.cli.show import print_table

    rows = []
    for one in trials:
        scores = one.scores or {}
        rows.append(
            [
                str(one.rung),
                str(one.epochs),
                f"{one.lr:g}",
                str(one.r),
                one.sites if isinstance(one.sites, str) else ", ".join(one.sites),
                f"{scores[metric]:.3f}" if scores else "diverged",
                f"{scores['dev_loss']:.4f}" if scores else "",
            ]
        )
    print_table(["rung", "epochs", "lr", "r", "sites", metric, "dev loss"], rows)
