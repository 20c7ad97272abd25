"""Training one adapter: one Accelerate loop, to be read from top to bottom.

Dimensions: B rows of a micro-batch, S tokens, L labels.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from adaptx.adapters.adapter import Adapter
from adaptx.adapters.bank import Bank
from adaptx.data.read import Example, read_examples
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError, TrainingDiverged, choices
from adaptx.evaluation.metrics import METRICS, classification_scores, score_line
from adaptx.tasks import Classification
from adaptx.training.plan import Plan
from adaptx.training.probe import fit_probe, pooled_states

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import LoraConfig

PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class Settings:
    """How to train.

    epochs        passes over the training data
    lr            AdamW's peak learning rate: linear warm-up, then linear decay to 0
    batch_size    rows of an optimizer step, over all processes and micro-batches: results don't
                  depend on how many GPUs there are
    accumulate    micro-batches of a step (less memory, the same gradient)
    warmup        share of the steps that warm up
    weight_decay  AdamW's
    clip          largest norm of the gradient; 0 for no clipping
    metric        what is best on dev: accuracy, macro_f1 or weighted_f1
    patience      stop after so many epochs without a better dev score; None for never
    max_length    longest text in tokens; None for the encoder's own limit
    seed          of the initialization, the shuffles and the dropout
    """

    epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 16
    accumulate: int = 1
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    metric: str = "accuracy"
    patience: int | None = None
    max_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "patience", "max_length"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(f"{name}={value!r} must be a whole number, at least 1.")
        if not 0 < self.lr <= 1e30:
            raise OptionError(f"lr={self.lr!r} must be above 0 (and not absurd).")
        if not 0 <= self.warmup < 1 or self.weight_decay < 0 or self.clip < 0:
            raise OptionError("warmup must be from 0 to below 1; weight_decay and clip at least 0.")
        if self.metric not in METRICS:
            raise OptionError(f"metric={self.metric!r} is none of {choices(METRICS)}.")
        if self.accumulate > self.batch_size:
            raise OptionError(
                f"accumulate={self.accumulate} cuts a batch of {self.batch_size} into nothing."
            )


Data = str | Path | Sequence[Example]


def train(
    encoder: Encoder,
    task: Classification,
    config: LoraConfig | None,
    *,
    name: str,
    train: Data,
    dev: Data | None = None,
    language: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    precision: str | None = None,
    checkpointing: bool = False,
    accelerator: Accelerator | None = None,
    **settings: Any,
) -> Adapter:
    """Train an adapter for `task` on a frozen encoder; returns the best on dev.

    `config` is a peft.LoraConfig; None fits a probe, a head alone. `train` and `dev` are files (see
    adaptx.data.read) or examples; without `dev` the last epoch's weights are kept. `precision` is
    "no", "bf16" or "fp16" for the forward pass; None takes what `accelerate launch` says.
    `checkpointing` recomputes activations to save memory. `settings` are those of `Settings`.

    Everything is checked before any work: raises DataError, SiteError or OptionError. Raises
    TrainingDiverged when the loss becomes NaN or infinite, with the last good adapter.
    """
    options = _settings(settings)
    columns = {"text_column": text_column, "label_column": label_column}
    train_rows = _examples(train, columns)
    dev_rows = _examples(dev, columns) if dev is not None else []
    task = task.fit(train_rows, dev_rows)
    adapter = Adapter.new(
        encoder,
        task,
        config,
        name=name,
        language=language,
        max_length=options.max_length,
        seed=options.seed,
    )
    accelerator = accelerator or _accelerator(precision)
    encoder.to(accelerator.device)
    adapter.to(accelerator.device)
    job = _Job(encoder, adapter, task, options, accelerator, checkpointing)
    data = _encoded(job, train_rows), _encoded(job, dev_rows)
    started = time.perf_counter()
    history = _probe(job, *data) if config is None else _loop(job, *data)
    best = max(history, key=lambda e: (e.get(options.metric, 0), -e.get("dev_loss", 0)))
    facts = {
        "settings": asdict(options),
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "train_rows": len(train_rows),
        "dev_rows": len(dev_rows),
        "seconds": round(time.perf_counter() - started, 1),
        "best": best if dev_rows else None,
        "history": history,
    }
    return adapter.with_training(facts).requires_grad_(False)


@dataclass(frozen=True)
class _Rows:
    """Encoded examples: token ids, and targets int64 `[rows]`."""

    ids: list[list[int]]
    targets: np.ndarray


@dataclass(frozen=True)
class _Job:
    encoder: Encoder
    adapter: Adapter
    task: Classification
    options: Settings
    accelerator: Accelerator
    checkpointing: bool


class _Routed(nn.Module):
    """What Accelerate wraps: the adapter, whose parameters train, on the encoder, which is frozen.

    The encoder isn't a submodule: it has nothing to synchronize, and stays in eval().
    """

    def __init__(self, encoder: Encoder, adapter: Adapter):
        super().__init__()
        self.adapter = adapter
        self.encode = encoder.hidden
        self.encoder = encoder

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """int64 `[B, S]`, int64 `[B, S]` -> logits `[B, L]`."""
        bank = Bank.of([self.adapter], self.encoder)
        route = bank.route([1], training=self.training) if bank.sites else None
        return self.adapter.logits(self.encode(input_ids, mask, route), mask)


def _loop(job: _Job, train: _Rows, dev: _Rows) -> list[dict[str, Any]]:
    """Train the adapter in place, to its best epoch on dev; the history, one entry an epoch."""
    from accelerate.utils import set_seed
    from transformers import get_linear_schedule_with_warmup

    options, accelerator, adapter = job.options, job.accelerator, job.adapter
    set_seed(options.seed + accelerator.process_index)  # dropout: each process draws its own
    if job.checkpointing:
        job.encoder.use_checkpointing()
    plan = Plan(
        len(train.ids),
        options.batch_size,
        options.accumulate,
        accelerator.num_processes,
        accelerator.process_index,
        options.seed,
    )
    optimizer = torch.optim.AdamW(
        adapter.parameters(), lr=options.lr, weight_decay=options.weight_decay
    )
    total = options.epochs * len(plan)
    schedule = get_linear_schedule_with_warmup(optimizer, int(options.warmup * total), total)
    model, optimizer = accelerator.prepare(_Routed(job.encoder, adapter), optimizer)

    history: list[dict[str, Any]] = []
    best: dict[str, Any] | None = None
    best_weights: dict[str, Tensor] | None = None
    step_number = 0
    with _Display(accelerator, total) as display:
        for epoch in range(1, options.epochs + 1):
            model.train()
            losses, started = [], time.perf_counter()
            for step in plan.steps(epoch):
                step_number += 1
                loss = torch.zeros((), device=accelerator.device)
                for i, rows in enumerate(step.micro_batches):
                    last = i == len(step.micro_batches) - 1
                    with nullcontext() if last else accelerator.no_sync(model):
                        # The mean over the *global* batch, whoever holds its rows: DDP averages
                        # the processes' gradients, so each counts its own rows that many times.
                        micro = _loss_sum(job, model, train, rows) / step.rows
                        accelerator.backward(micro * accelerator.num_processes)
                        loss += micro.detach()
                loss_value = float(accelerator.reduce(loss, "sum"))
                norm = accelerator.clip_grad_norm_(adapter.parameters(), options.clip or math.inf)
                _check_finite(job, loss_value, norm, step_number, epoch, best_weights, history)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss_value)
                display.step(epoch, loss_value)
            entry: dict[str, Any] = {
                "epoch": epoch,
                "loss": float(np.mean(losses)),
                "seconds": round(time.perf_counter() - started, 2),
            }
            if dev.ids:
                entry |= _evaluate(job, model, dev)
            history.append(entry)
            if best is None or _rank(entry, options) > _rank(best, options):
                best, best_weights = entry, copy.deepcopy(adapter.state_dict())
            display.epoch(entry, best is entry)
            if options.patience and dev.ids and epoch - best["epoch"] >= options.patience:
                display.say(f"No better dev {options.metric} for {options.patience} epochs: done.")
                break
    if dev.ids and best_weights is not None:
        adapter.load_state_dict(best_weights)
    return history


def _loss_sum(job: _Job, model: nn.Module, train: _Rows, rows: np.ndarray) -> Tensor:
    """The sum of the rows' losses; 0 with a gradient of zeros when this process has none."""
    chosen = rows if len(rows) else np.zeros(1, dtype=np.int64)
    batch = job.encoder.text.batch(train.ids, chosen)
    logits = model(_tensor(job, batch.input_ids), _tensor(job, batch.attention_mask))
    losses = job.task.losses(logits, _tensor(job, train.targets[chosen]))
    return losses.sum() * (1.0 if len(rows) else 0.0)


def _rank(entry: Mapping[str, Any], options: Settings) -> tuple[float, float]:
    """Better entries are larger: the metric on dev, then the dev loss; without dev, the epoch."""
    if options.metric not in entry:
        return float(entry["epoch"]), 0.0
    return entry[options.metric], -entry["dev_loss"]


def _check_finite(
    job: _Job,
    loss: float,
    norm: Tensor | None,
    step: int,
    epoch: int,
    best_weights: dict[str, Tensor] | None,
    history: list[dict[str, Any]],
) -> None:
    scaled = job.accelerator.scaler is not None  # fp16's scaler skips an overflowing step itself
    if math.isfinite(loss) and (scaled or norm is None or bool(torch.isfinite(norm))):
        return
    what = f"the loss is {loss}" if not math.isfinite(loss) else "the gradient isn't finite"
    kept = None
    if best_weights is not None:
        job.adapter.load_state_dict(best_weights)
        best = max(history, key=lambda entry: _rank(entry, job.options))
        kept = job.adapter.with_training(
            {"settings": asdict(job.options), "best": best, "history": history}
        )
    good = f"The adapter of epoch {best['epoch']} is kept" if kept else "No epoch was finished"
    raise TrainingDiverged(
        f"Training diverged at step {step} (epoch {epoch}): {what}. {good}. "
        f"Lower the learning rate (now {job.options.lr:g}), or raise the warm-up.",
        step,
        kept,
    )


@torch.no_grad()
def _evaluate(job: _Job, model: nn.Module, dev: _Rows) -> dict[str, float]:
    """Loss and scores on dev; the processes share the rows and all get the answer."""
    from accelerate.utils import gather_object

    model.eval()
    accelerator, text = job.accelerator, job.encoder.text
    mine = np.arange(len(dev.ids))[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[int, list[float]]] = []
    for batch in text.batches([dev.ids[row] for row in mine], 2 * job.options.batch_size):
        logits = model(_tensor(job, batch.input_ids), _tensor(job, batch.attention_mask))
        found += zip(mine[batch.rows].tolist(), logits.float().cpu().tolist(), strict=True)
    gathered = sorted(gather_object(found))
    logits = torch.tensor([row for _, row in gathered])
    losses = job.task.losses(logits, torch.from_numpy(dev.targets))
    return {
        "dev_loss": float(losses.mean()),
        **classification_scores(dev.targets, logits.argmax(1).numpy()),
    }


def _probe(job: _Job, train: _Rows, dev: _Rows) -> list[dict[str, Any]]:
    """Fit the head alone; every process does the same small sum."""
    batch_size = 2 * job.options.batch_size

    def states(rows: _Rows) -> np.ndarray:
        return pooled_states(job.encoder, job.adapter, rows.ids, batch_size)

    x_train = states(train)
    x_dev = states(dev) if dev.ids else None
    held = (x_dev, dev.targets) if x_dev is not None else None
    entry: dict[str, Any] = {"epoch": 1}
    entry["strength"] = fit_probe(job.adapter, (x_train, train.targets), held, job.options.seed)
    if x_dev is not None and job.adapter.head is not None:
        with torch.no_grad():
            logits = job.adapter.head(torch.from_numpy(x_dev).to(job.accelerator.device)).cpu()
        entry["dev_loss"] = float(job.task.losses(logits, torch.from_numpy(dev.targets)).mean())
        entry |= classification_scores(dev.targets, logits.argmax(1).numpy())
    return [entry]


def _accelerator(precision: str | None) -> Accelerator:
    from accelerate import Accelerator

    if precision is not None and precision not in PRECISIONS:
        raise OptionError(f"precision={precision!r} is none of {choices(PRECISIONS)}.")
    try:
        return Accelerator(mixed_precision=precision)
    except ValueError as error:
        raise OptionError(f"Accelerate refuses precision={precision!r}: {error}") from error


def _settings(settings: dict[str, Any]) -> Settings:
    known = Settings.__dataclass_fields__
    if unknown := sorted(settings.keys() - known.keys()):
        raise OptionError(f"Unknown setting {choices(unknown)}; there is {', '.join(known)}.")
    return Settings(**settings)


def _examples(data: Data, columns: dict[str, str | None]) -> list[Example]:
    if isinstance(data, (str, Path)):
        return read_examples(data, **columns)  # type: ignore[arg-type]
    if not data:
        raise OptionError("There are no examples to train on.")
    return list(data)


def _encoded(job: _Job, examples: list[Example]) -> _Rows:
    texts = [job.adapter.prefix + example.text for example in examples]
    return _Rows(job.encoder.text.ids(texts, job.options.max_length), job.task.targets(examples))


def _tensor(job: _Job, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(job.accelerator.device)


class _Display:
    """One display, on the main process: a bar on a terminal, and a line for each epoch."""

    def __init__(self, accelerator: Accelerator, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self.console = Console(stderr=True, quiet=not accelerator.is_main_process)
        self.bar = Progress(
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not accelerator.is_main_process,
        )
        self.task = self.bar.add_task("training", total=total)

    def __enter__(self) -> _Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, epoch: int, loss: float) -> None:
        self.bar.update(self.task, advance=1, description=f"epoch {epoch}  loss {loss:.4f}")

    def epoch(self, entry: dict[str, Any], best: bool) -> None:
        dev = (
            f"  dev loss {entry['dev_loss']:.4f}  {score_line(entry)}"
            if "dev_loss" in entry
            else ""
        )
        mark = "  [best]" if best and dev else ""
        self.say(
            f"epoch {entry['epoch']:>3}  loss {entry['loss']:.4f}{dev}  "
            f"{entry['seconds']:.1f} s{mark}"
        )

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
