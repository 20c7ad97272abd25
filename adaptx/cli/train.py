"""`adaptx train`: train one adapter, or fit a probe."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptx.cli.opening import DEFAULT_ENCODER
from adaptx.errors import OptionError, TrainingDiverged

EXAMPLES = """
[bold]Examples[/bold]

  adaptx train --train data/train.tsv --dev data/dev.tsv -o adapters/sw-topics --language sw

  adaptx train --train train.jsonl -o adapters/probe --method probe

  accelerate launch -m adaptx train --train big.csv.gz --dev dev.csv -o adapters/big --r 32

Files are JSONL, TSV or CSV, gzipped or not, in UTF-8.
"""


class Method(str, Enum):
    """How the adapter changes the encoder."""

    lora = "lora"
    probe = "probe"


class Precision(str, Enum):
    """The number format of the forward pass."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


def train(
    train: Annotated[Path, typer.Option("--train", help="Training data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The adapter's new folder.")],
    dev: Annotated[
        Path | None, typer.Option("--dev", help="Development data: chooses the best epoch.")
    ] = None,
    encoder: Annotated[
        str, typer.Option("--encoder", "-e", help="Hub name, local folder, or bundled:… name.")
    ] = DEFAULT_ENCODER,
    prefix: Annotated[
        str | None,
        typer.Option("--prefix", help="Put before every text \\[default: 'query: ' for e5]."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The adapter's name \\[default: the folder's].")
    ] = None,
    language: Annotated[str | None, typer.Option("--language", help="Such as sw.")] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", help="Comma-separated \\[default: those of --train].")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option("--text-column", help="\\[default: text, sentence, tweet …]")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", help="\\[default: label, category, topic …]")
    ] = None,
    method: Annotated[
        Method, typer.Option("--method", help="lora, or a head alone.")
    ] = Method.lora,
    r: Annotated[int, typer.Option("--r", help="LoRA's rank.")] = 16,
    lora_alpha: Annotated[
        float | None, typer.Option("--lora-alpha", help="The scale is alpha / r \\[default: r].")
    ] = None,
    target_modules: Annotated[
        str, typer.Option("--target-modules", help="all-linear, or comma-separated suffixes.")
    ] = "all-linear",
    lora_dropout: Annotated[float, typer.Option("--lora-dropout")] = 0.0,
    use_rslora: Annotated[
        bool, typer.Option("--use-rslora", help="Scale alpha / sqrt(r).")
    ] = False,
    pooling: Annotated[str, typer.Option("--pooling", help="mean or cls.")] = "mean",
    epochs: Annotated[int, typer.Option("--epochs")] = 10,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 1e-3,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Rows of a step, over all processes.")
    ] = 16,
    accumulate: Annotated[
        int, typer.Option("--accumulate", help="Micro-batches of a step: less memory.")
    ] = 1,
    warmup: Annotated[float, typer.Option("--warmup", help="Share of the steps.")] = 0.1,
    weight_decay: Annotated[float, typer.Option("--weight-decay")] = 0.01,
    clip: Annotated[float, typer.Option("--clip", help="Gradient norm; 0 for none.")] = 1.0,
    metric: Annotated[
        str, typer.Option("--metric", help="Best on dev: accuracy, macro_f1, weighted_f1.")
    ] = "accuracy",
    patience: Annotated[
        int | None, typer.Option("--patience", help="Stop after so many epochs without a gain.")
    ] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="In tokens.")] = None,
    precision: Annotated[
        Precision | None, typer.Option("--precision", help="\\[default: accelerate's]")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations: less memory.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The log's new folder \\[default: runs/<name>-<time>]."),
    ] = None,
    track: Annotated[
        str, typer.Option("--track", help="Comma-separated trackers, such as tensorboard,wandb.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")
    ] = False,
) -> None:
    """Train an adapter on a frozen encoder, and keep the best epoch on dev."""
    from adaptx import storage
    from adaptx.data.read import read_examples
    from adaptx.tasks import Classification

    storage.check_output(output, overwrite)
    names = tuple(label.strip() for label in labels.split(",")) if labels else ()
    train_rows = read_examples(train, text_column=text_column, label_column=label_column)
    dev_rows = (
        read_examples(dev, text_column=text_column, label_column=label_column) if dev else None
    )
    task = Classification(names, pooling).fit(train_rows, dev_rows or ())

    from peft import LoraConfig

    import adaptx as ax
    from adaptx.training.runlog import check_run
    from adaptx.training.runs import fresh_folder
    from adaptx.training.settings import Settings

    settings: dict[str, Any] = {
        "epochs": epochs, "lr": lr, "batch_size": batch_size, "accumulate": accumulate,
        "warmup": warmup, "weight_decay": weight_decay, "clip": clip, "metric": metric,
        "patience": patience, "max_length": max_length, "seed": seed,
    }  # fmt: skip
    plan = Settings(**settings)
    trackers = [tracker.strip() for tracker in track.split(",") if tracker.strip()]
    called = name or output.resolve().name
    check_run(run or fresh_folder(called), trackers, None)
    if r < 1:
        raise OptionError(f"--r {r} must be at least 1.")
    asked: Any = [part.strip() for part in target_modules.split(",")]
    config = LoraConfig(
        r=r,
        lora_alpha=lora_alpha if lora_alpha is not None else r,
        target_modules=target_modules if target_modules == "all-linear" else asked,
        lora_dropout=lora_dropout,
        use_rslora=use_rslora,
    )
    opened = ax.Encoder.from_pretrained(encoder, prefix=prefix)
    common: dict[str, Any] = {"name": called, "language": language}
    chosen = config if method is Method.lora else None
    if dry_run:
        adapter = ax.Adapter.new(opened, task, chosen, max_length=max_length, **common)
        steps = plan.epochs * -(-len(train_rows) // plan.batch_size)
        lengths = opened.text.ids([opened.prefix + row.text for row in train_rows], max_length)
        typer.echo(
            f"Would train {adapter.name!r} ({method.value}, {len(adapter.sites)} sites, "
            f"{adapter.parameters_count:,} weights: "
            f"{adapter.parameters_count / opened.parameters:.2%} of the encoder's) on "
            f"{len(train_rows)} rows of at most {max(map(len, lengths))} tokens, "
            f"{len(dev_rows or ())} dev rows, labels {', '.join(task.labels)}, prefix "
            f"{opened.prefix!r}; "
            f"{steps} steps; into {output}."
        )
        return
    run = run or fresh_folder(called)
    try:
        adapter = ax.train(
            opened,
            task,
            chosen,
            train=train_rows,
            dev=dev_rows,
            precision=precision.value if precision else None,
            checkpointing=checkpointing,
            run=run,
            trackers=trackers,
            **common,
            **settings,
        )
    except TrainingDiverged as error:
        if error.adapter is not None and _main_process():
            error.adapter.save(output, overwrite=overwrite)
            typer.echo(f"The last good adapter is in {output}.", err=True)
        raise
    if _main_process():
        adapter.save(output, overwrite=overwrite)
        best = adapter.facts.training["best"]
        score = f", dev accuracy {best['accuracy']:.3f} (epoch {best['epoch']})" if best else ""
        typer.echo(f"Wrote {output}: {adapter.name} ({method.value}){score}. Its log: {run}.")


def _main_process() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)
