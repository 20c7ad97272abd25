"""`adaptx train`: train one adapter, or fit a probe."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from adaptx.cli.opening import DEFAULT_ENCODER
from adaptx.cli.options import LabelColumn, OtherColumn, Repair, Scheme, TextColumn
from adaptx.cli.run import already_done, main_process
from adaptx.cli.train_many import train_many
from adaptx.cli.train_options import (
    MANY,
    MANY_KEYS,
    TOGETHER,
    TOGETHER_KEYS,
    Method,
    check_file,
    check_options,
    given,
    method_of,
)
from adaptx.cli.train_together import train_together
from adaptx.errors import OptionError, TrainingDiverged
from adaptx.training.settings import Settings

EXAMPLES = """
[bold]Examples[/bold]

  adaptx train --train data/train.tsv --dev data/dev.tsv -o adapters/sw-topics --language sw

  adaptx train --train train.jsonl -o adapters/probe --method probe

  adaptx train --train train.jsonl --dev dev.jsonl -o models/full --method full --lr 5e-5

  adaptx train --train train.jsonl -o adapters/ia3 --config ia3.json

  adaptx train --config many.yaml -o adapters

  adaptx train --config together.yaml -o adapters

  adaptx train --task token-classification --train train.conll --dev dev.conll -o adapters/sw-ner

  adaptx train --task masked-language --train text.txt.gz --dev dev.txt -o adapters/sw-language

  accelerate launch -m adaptx train --train big.csv.gz --dev dev.csv -o adapters/big --r 32

Data: JSONL, TSV, CSV, Parquet, or hf:<dataset>/<config>:<split> (docs/data.md).
"""

WAYS = {  # what `Facts.way` means to a person
    "head": "a head on the plain encoder",
    "bank": "in the bank: a batch may mix it with others",
    "own pass": "PEFT's layers: batches of its own, exports merged",
    "model": "a whole model: batches of its own, exports alone",
}
LRS = {"full": 5e-5}  # a whole model takes a smaller step than an adapter: 1e-3


class Precision(str, Enum):
    """The number format of the forward pass; auto: bf16 where the device multiplies in it."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"
    auto = "auto"


def train(
    ctx: typer.Context,
    output: Annotated[Path, typer.Option("--output", "-o", help="The adapter's new folder.")],
    train: Annotated[
        str | None, typer.Option("--train", help="Training data: a file, or hf:….")
    ] = None,
    dev: Annotated[
        str | None, typer.Option("--dev", help="Development data: chooses the best epoch.")
    ] = None,
    encoder: Annotated[
        str, typer.Option("--encoder", "-e", help="Hub name, local folder, or bundled:… name.")
    ] = DEFAULT_ENCODER,
    prefix: Annotated[
        str | None,
        typer.Option("--prefix", help="Put before every text.", show_default="'query: ' for e5"),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The adapter's.", show_default="the folder's")
    ] = None,
    language: Annotated[str | None, typer.Option("--language", help="Such as sw.")] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", help="Comma-separated, in order.", show_default="--train's"),
    ] = None,
    text_column: TextColumn = None,
    other_column: OtherColumn = None,
    label_column: LabelColumn = None,
    method: Annotated[
        Method,
        typer.Option("--method", help="LoRA, DoRA, a head alone (probe), or every weight (full)."),
    ] = Method.lora,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            help="Any of PEFT's methods: its adapter_config.json. Or many adapters, or several "
            "tasks on one: a YAML file.",
        ),
    ] = None,
    r: Annotated[int, typer.Option("--r", help="LoRA's rank.")] = 16,
    lora_alpha: Annotated[
        float | None,
        typer.Option("--lora-alpha", help="The scale is alpha / r.", show_default="r"),
    ] = None,
    target_modules: Annotated[
        str, typer.Option("--target-modules", help="all-linear, or comma-separated suffixes.")
    ] = "all-linear",
    dropout: Annotated[
        float | None,
        typer.Option("--dropout", help="LoRA's, or a whole model's.", show_default="0; full: 0.1"),
    ] = None,
    use_rslora: Annotated[
        bool, typer.Option("--use-rslora", help="Scale alpha / sqrt(r).")
    ] = False,
    task: Annotated[
        str, typer.Option("--task", help="classification, token-classification …")
    ] = "classification",
    pooling: Annotated[
        str | None, typer.Option("--pooling", help="mean or cls.", show_default="mean")
    ] = None,
    scheme: Scheme = None,
    repair: Repair = False,
    epochs: Annotated[int, typer.Option("--epochs")] = 10,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Peak learning rate.", show_default="1e-3; full: 5e-5"),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Rows of a step, over all processes.")
    ] = 16,
    accumulate: Annotated[
        int, typer.Option("--accumulate", help="Micro-batches of a step: less memory.")
    ] = 1,
    micro_tokens: Annotated[
        int | None,
        typer.Option(
            "--micro-tokens", help="Most tokens of a micro-batch: cuts up long rows' steps."
        ),
    ] = None,
    probe_first: Annotated[
        bool, typer.Option("--probe-first", help="Begin with a probe's head: fewer epochs needed.")
    ] = False,
    warmup: Annotated[float, typer.Option("--warmup", help="Share of the steps.")] = 0.1,
    weight_decay: Annotated[float, typer.Option("--weight-decay")] = 0.01,
    clip: Annotated[float, typer.Option("--clip", help="Gradient norm; 0 for none.")] = 1.0,
    smoothing: Annotated[
        float, typer.Option("--smoothing", help="Label smoothing: the share all labels have alike.")
    ] = 0.0,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="On dev: accuracy, macro_f1 …", show_default="the task's"),
    ] = None,
    patience: Annotated[
        int | None, typer.Option("--patience", help="Stop after so many epochs without a gain.")
    ] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="In tokens.")] = None,
    precision: Annotated[
        Precision | None, typer.Option("--precision", show_default="accelerate's")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations: less memory.")
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast/--no-fast", help="The fast path, where it fits; or the plain.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="The log's new folder.", show_default="runs/<name>-<time>"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --run where it was cut off.")
    ] = False,
    checkpoint_every: Annotated[
        float, typer.Option("--checkpoint-every", help="Seconds between checkpoints.")
    ] = 300.0,
    track: Annotated[
        str, typer.Option("--track", help="Comma-separated trackers, such as tensorboard,wandb.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, and stop.")
    ] = False,
) -> None:
    """Train an adapter on a frozen encoder, and keep the best epoch on dev."""
    from adaptx.training.many_file import many_of
    from adaptx.training.many_file import read_config as read_file
    from adaptx.training.together_file import together_of

    if config is not None and {"adapters", "tasks"} & (file := read_file(config)).keys():
        common_: dict[str, Any] = {
            "encoder": encoder if given(ctx, "encoder") else None,
            "prefix": prefix,
            "precision": precision.value if precision else None,
            "fast": fast,
            "run": run,
            "resume": resume,
            "checkpoint_every": checkpoint_every,
            "overwrite": overwrite,
            "dry_run": dry_run,
        }
        if "adapters" in file:
            check_file(ctx, MANY, MANY_KEYS, "there, under defaults or an adapter")
            train_many(many_of(config, file), output, **common_)
        else:
            check_file(ctx, TOGETHER, TOGETHER_KEYS, "there")
            train_together(
                together_of(config, file),
                output,
                checkpointing=checkpointing,
                **common_,
            )
        return
    if train is None:
        raise OptionError("--train is missing: a file with training data, or hf:….")
    check_options(ctx, method, config, task)
    from adaptx import storage
    from adaptx.data.large import open_records
    from adaptx.data.streams import Columns
    from adaptx.tasks import make_task
    from adaptx.tasks.base import title

    if resume and run is not None and not overwrite and already_done(run, [output]):
        return
    storage.check_output(output, overwrite, "adapter")
    names = tuple(label.strip() for label in labels.split(",")) if labels else ()
    columns = Columns(text_column, label_column, other_column)
    asked = make_task(task, labels=names, pooling=pooling, scheme=scheme, repair=repair or None)
    train_rows = open_records(train, asked.kind, columns)
    dev_rows = open_records(dev, asked.kind, columns) if dev else None
    fitted = asked.fit(train_rows, dev_rows or ())

    import adaptx as ax
    from adaptx.adapters.peft_config import read_config
    from adaptx.training.runlog import check_run
    from adaptx.training.runs import fresh_folder
    from adaptx.training.train import check_asked

    settings: dict[str, Any] = {
        "epochs": epochs, "lr": LRS.get(method.value, 1e-3) if lr is None else lr,
        "batch_size": batch_size, "accumulate": accumulate, "micro_tokens": micro_tokens,
        "probe_first": probe_first, "warmup": warmup, "weight_decay": weight_decay,
        "clip": clip, "smoothing": smoothing, "metric": metric, "patience": patience,
        "max_length": max_length, "seed": seed,
    }  # fmt: skip
    plan = Settings(**settings).for_task(fitted, dev is not None)
    trackers = [tracker.strip() for tracker in track.split(",") if tracker.strip()]
    called = name or output.resolve().name
    if resume and run is None:
        raise OptionError("--resume needs --run: which run's folder? `adaptx runs list` has them.")
    check_run(run or fresh_folder(called), trackers, None, resume)
    if config:
        chosen = read_config(config)
    else:
        chosen = method_of(method, r, lora_alpha, target_modules, dropout, use_rslora)
    check_asked(fitted, chosen, train_rows, plan, checkpoint_every)
    opened = ax.Encoder.from_pretrained(encoder, prefix=prefix)
    common: dict[str, Any] = {"name": called, "language": language}
    if dry_run:
        from adaptx.adapters.own_model import total_steps

        adapter = ax.Adapter.new(opened, fitted, chosen, max_length=max_length, **common)
        sites = f"{len(adapter.sites)} sites; " if adapter.sites else ""
        some = adapter.windows(opened.text, fitted.training_inputs(train_rows[:1000]))
        longest = max(len(window.ids) for windows in some for window in windows)
        many = 1 if fitted.together else sum(map(len, some)) / len(some)  # rows of a record
        steps = plan.epochs * -(-round(many * len(train_rows)) // plan.batch_size)
        total_steps(adapter.config, steps)
        typer.echo(
            f"Would train {adapter.name!r} ({adapter.facts.method}; {sites}"
            f"{WAYS[adapter.facts.way]}; {adapter.parameters_count:,} weights: "
            f"{adapter.parameters_count / opened.parameters:.2%} of the encoder's) on "
            f"{len(train_rows)} rows, of at most {longest} tokens among the first {len(some)}, "
            f"{len(dev_rows or ())} dev rows, {_labels(fitted.labels)}prefix "
            f"{opened.prefix!r}; {steps} steps; into {output}."
        )
        return
    run = run or fresh_folder(called)
    try:
        adapter = ax.train(
            opened,
            fitted,
            chosen,
            train=train_rows,
            dev=dev_rows,
            precision=precision.value if precision else None,
            checkpointing=checkpointing,
            fast=fast,
            run=run,
            resume=resume,
            checkpoint_every=checkpoint_every,
            trackers=trackers,
            **common,
            **settings,
        )
    except TrainingDiverged as error:
        if error.adapter is not None and main_process():
            error.adapter.save(output, overwrite=overwrite)
            typer.echo(f"The last good adapter is in {output}.", err=True)
        raise
    if main_process():
        adapter.save(output, overwrite=overwrite)
        best = adapter.facts.training["best"]
        first = fitted.metrics[0]
        score = f", dev {title(first)} {best[first]:.3f}" if best else ""
        if best and "strength" not in best:  # a probe that was solved has no epochs
            score += f" (epoch {best['epoch']})"
        typer.echo(
            f"Wrote {output}: {adapter.name} ({adapter.facts.method}; {WAYS[adapter.facts.way]})"
            f"{score}. Its log: {run}."
        )


def _labels(labels: Sequence[str]) -> str:
    return f"labels {', '.join(labels)}, " if labels else ""
