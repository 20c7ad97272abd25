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

from adaptx.adapters import own_model
from adaptx.adapters.adapter import Adapter
from adaptx.adapters.own_model import Full
from adaptx.data.read import Example, read_examples
from adaptx.encoder.encoder import Encoder
from adaptx.encoder.sites import cast_sites
from adaptx.errors import OptionError, TrainingDiverged, choices
from adaptx.evaluation.metrics import classification_scores
from adaptx.tasks import Classification
from adaptx.training.display import Display
from adaptx.training.plan import Plan, Step
from adaptx.training.probe import fit_probe, pooled_states
from adaptx.training.runlog import RunLog, check_run, method_config
from adaptx.training.settings import Settings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftConfig

PRECISIONS = ("no", "bf16", "fp16")

Data = str | Path | Sequence[Example]


def train(
    encoder: Encoder,
    task: Classification,
    config: PeftConfig | Full | None,
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
    run: str | Path | None = None,
    trackers: Sequence[str] = (),
    **settings: Any,
) -> Adapter:
    """Train an adapter for `task` on a frozen encoder; returns the best on dev.

    `config` is a peft.LoraConfig, or another of PEFT's; Full() trains every weight of a copy of the
    encoder; None fits a probe, a head alone. `train` and `dev` are files (see
    adaptx.data.read) or examples; without `dev` the last epoch's weights are kept. `precision` is
    "no", "bf16" or "fp16" for the forward pass; None takes what `accelerate launch` says.
    `checkpointing` recomputes activations to save memory. `run` is a new folder for a log (see
    adaptx.training.runs), and `trackers` are names that Accelerate knows, such as "tensorboard";
    an `accelerator` of your own brings its own. `settings` are those of `Settings`.

    Everything is checked before any work: raises DataError, SiteError or OptionError. Raises
    TrainingDiverged when the loss becomes NaN or infinite, with the last good adapter.
    """
    options = _settings(settings)
    run = check_run(run, trackers, accelerator)
    columns = {"text_column": text_column, "label_column": label_column}
    train_rows = _examples(train, columns)
    dev_rows = _examples(dev, columns) if dev is not None else []
    task = task.fit(train_rows, dev_rows)
    steps = options.epochs * -(-len(train_rows) // options.batch_size)
    adapter = Adapter.new(
        encoder,
        task,
        config if isinstance(config, Full) else own_model.total_steps(config, steps),
        name=name,
        language=language,
        max_length=options.max_length,
        seed=options.seed,
    )
    accelerator = accelerator or _accelerator(precision, run, trackers)
    if not str(accelerator.distributed_type.value).startswith(("NO", "MULTI_")):
        raise OptionError(
            f"Training by {accelerator.distributed_type.value} isn't there yet: choose no "
            f"distribution, or one process for each GPU (MULTI_GPU), with `accelerate config`."
        )
    encoder.to(accelerator.device)
    adapter.to(accelerator.device)
    job = _Job(encoder, adapter, task, options, accelerator)
    data = _encoded(job, train_rows), _encoded(job, dev_rows)
    with RunLog(run, accelerator, _about(job, data, config)) as log:
        if config is None:
            history = _probe(job, *data)
            log.epoch(history[-1], best=True)
            _record(job, data, history)
        else:
            held = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
            with (
                encoder.checkpointing(adapter.model) if checkpointing else nullcontext(),
                cast_sites(encoder.sites.values(), held if adapter.sites else None),
            ):
                _loop(job, *data, log)
    accelerator.wait_for_everyone()
    return adapter.requires_grad_(False).eval()


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


class _Routed(nn.Module):
    """What Accelerate wraps: the adapter, whose parameters train, on the encoder, which is frozen.

    The encoder isn't a submodule: it has nothing to synchronize, and stays in eval().
    """

    def __init__(self, encoder: Encoder, adapter: Adapter):
        super().__init__()
        self.adapter = adapter
        self.encoder = encoder

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """int64 `[B, S]`, int64 `[B, S]` -> logits `[B, L]`."""
        return self.adapter.logits(self.adapter.hidden(self.encoder, input_ids, mask), mask)


def _loop(job: _Job, train: _Rows, dev: _Rows, log: RunLog) -> None:
    """Train the adapter in place, to its best epoch on dev, and record how it went."""
    from accelerate.utils import set_seed
    from transformers import get_linear_schedule_with_warmup

    options, accelerator, adapter = job.options, job.accelerator, job.adapter
    set_seed(options.seed + accelerator.process_index)  # dropout: each process draws its own
    plan = Plan(
        np.array([len(ids) for ids in train.ids]),
        options.batch_size,
        options.accumulate,
        accelerator.num_processes,
        accelerator.process_index,
        options.seed,
    )
    matrices = [p for p in adapter.trainable() if p.ndim > 1]
    vectors = [p for p in adapter.trainable() if p.ndim <= 1]  # biases, norms: not decayed
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, weight_decay=options.weight_decay)
    total = options.epochs * len(plan)
    schedule = get_linear_schedule_with_warmup(optimizer, int(options.warmup * total), total)
    model, optimizer = accelerator.prepare(_Routed(job.encoder, adapter), optimizer)

    # `accelerate launch --gradient_accumulation_steps` makes backward() divide; `accumulate` is
    # what counts here, and an optimizer step's loss is the global batch's mean whatever was said.
    undivided = accelerator.num_processes * accelerator.gradient_accumulation_steps
    kept = _Kept(job, (train, dev))
    step_number = 0
    with Display(accelerator, total) as display:
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
                        accelerator.backward(micro * undivided)
                        loss += micro.detach()
                seen = torch.stack([loss, _tokens(train, step).to(loss)])
                loss_value, tokens = accelerator.reduce(seen, "sum").tolist()
                norm = accelerator.clip_grad_norm_(adapter.trainable(), options.clip or math.inf)
                scaled = accelerator.scaler is not None  # fp16's scaler skips an overflow itself
                if not math.isfinite(loss_value):
                    raise kept.diverged(f"the loss is {loss_value}", step_number, epoch)
                if not scaled and norm is not None and not torch.isfinite(norm):
                    raise kept.diverged("the gradient isn't finite", step_number, epoch)
                log.step(
                    step_number,
                    epoch,
                    loss=loss_value,
                    lr=schedule.get_last_lr()[0],
                    grad_norm=float(norm) if norm is not None else math.nan,
                    tokens=int(tokens),
                )
                optimizer.step()
                own_model.after_backward(adapter.model, step_number)
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
            # The last step's weights have been through no loss yet.
            weights = (*adapter.weights().values(), *adapter.deltas().values())
            if not all(weight.isfinite().all() for weight in weights):
                raise kept.diverged("a weight isn't finite after it", step_number, epoch)
            if not math.isfinite(entry.get("dev_loss", 0.0)):
                raise kept.diverged(f"the dev loss is {entry['dev_loss']}", step_number, epoch)
            best = kept.offer(entry)
            display.epoch(entry, best)
            log.epoch(entry, best)
            if options.patience and dev.ids and epoch - kept.best["epoch"] >= options.patience:
                display.say(f"No better dev {options.metric} for {options.patience} epochs: done.")
                break
    kept.restore()


def _loss_sum(job: _Job, model: nn.Module, train: _Rows, rows: np.ndarray) -> Tensor:
    """The sum of the rows' losses; 0 with a gradient of zeros when this process has none."""
    chosen = rows if len(rows) else np.zeros(1, dtype=np.int64)
    batch = job.encoder.text.batch(train.ids, chosen)
    logits = model(_tensor(job, batch.input_ids), _tensor(job, batch.attention_mask))
    losses = job.task.losses(logits, _tensor(job, train.targets[chosen]))
    pull = own_model.regularization(job.adapter.model)
    return (losses.sum() + pull * len(chosen)) * (1.0 if len(rows) else 0.0)


class _Kept:
    """The epochs so far, and the best: by dev's metric, then its loss; without dev, the last."""

    def __init__(self, job: _Job, data: tuple[_Rows, _Rows]):
        self.job, self.data, self.started = job, data, time.perf_counter()
        self.best: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.weights: dict[str, Tensor] = {}

    def offer(self, entry: dict[str, Any]) -> bool:
        """Keep the adapter as it is now if the epoch is the best so far; whether it is."""
        self.history.append(entry)
        if self.best and self._rank(entry) <= self._rank(self.best):
            return False
        self.best, self.weights = entry, copy.deepcopy(self.job.adapter.weights())
        return True

    def _rank(self, entry: Mapping[str, Any]) -> tuple[float, float]:
        if "dev_loss" not in entry:
            return float(entry["epoch"]), 0.0
        return entry[self.job.options.metric], -entry["dev_loss"]

    def restore(self) -> None:
        """Put the best epoch's weights back, and record the training."""
        self.job.adapter.load_state_dict(self.weights, strict=False)
        seconds = time.perf_counter() - self.started
        _record(self.job, self.data, self.history, self.best, seconds)

    def diverged(self, what: str, step: int, epoch: int) -> TrainingDiverged:
        """The error for a training that left the numbers, with the last good adapter."""
        if self.best:
            self.restore()
            good = f"The adapter of epoch {self.best['epoch']} is kept"
        else:
            good = "No epoch was finished, so there is no adapter to keep"
        return TrainingDiverged(
            f"Training diverged at step {step} (epoch {epoch}): {what}. {good}. Lower the learning "
            f"rate (now {self.job.options.lr:g}), or raise the warm-up.",
            step,
            self.job.adapter.requires_grad_(False) if self.best else None,
        )


def _tokens(train: _Rows, step: Step) -> Tensor:
    """How many tokens of a step this process holds, without padding."""
    return torch.tensor(sum(len(train.ids[row]) for rows in step.micro_batches for row in rows))


def _about(
    job: _Job, data: tuple[_Rows, _Rows], config: PeftConfig | Full | None
) -> dict[str, Any]:
    """What a run's log says of the training before it begins."""
    facts = job.adapter.facts
    return {
        "name": facts.name,
        "encoder": facts.encoder,
        "method": facts.method,
        "task": facts.task,
        "config": method_config(config),
        **_facts(job, data),
    }


def _facts(job: _Job, data: tuple[_Rows, _Rows]) -> dict[str, Any]:
    train, dev = data
    probe = job.adapter.facts.method == "probe"  # fitted, not trained: few settings are its own
    settings = asdict(job.options)
    used = ("seed", "max_length", "metric") if probe else tuple(settings)
    return {
        "settings": {name: settings[name] for name in used},
        "precision": "no" if probe else job.accelerator.mixed_precision,
        "processes": job.accelerator.num_processes,
        "train_rows": len(train.ids),
        "dev_rows": len(dev.ids),
    }


def _record(
    job: _Job,
    data: tuple[_Rows, _Rows],
    history: list[dict[str, Any]],
    best: dict[str, Any] | None = None,
    seconds: float | None = None,
) -> None:
    """Write into the adapter how it was trained."""
    best = best or history[-1]
    facts = {
        **_facts(job, data),
        "best": best if data[1].ids else None,
        "history": history,
    }
    job.adapter.with_training(facts | ({"seconds": round(seconds, 1)} if seconds else {}))


@torch.no_grad()
def _evaluate(job: _Job, model: nn.Module, dev: _Rows) -> dict[str, float]:
    """Loss and scores on dev; the processes share the rows and all get the answer."""
    from accelerate.utils import gather_object

    model.eval()
    accelerator, text = job.accelerator, job.encoder.text
    mine = np.arange(len(dev.ids))[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[int, list[float]]] = []
    # Twice a training micro-batch: no gradients are kept.
    share = job.options.accumulate * accelerator.num_processes
    rows_at_once = 2 * max(1, job.options.batch_size // share)
    for batch in text.batches([dev.ids[row] for row in mine], rows_at_once):
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
    entry["strength"] = fit_probe(
        job.adapter, (x_train, train.targets), held, job.options.metric, job.options.seed
    )
    if x_dev is not None and job.adapter.head is not None:
        with torch.no_grad():
            logits = job.adapter.head(torch.from_numpy(x_dev).to(job.accelerator.device)).cpu()
        entry["dev_loss"] = float(job.task.losses(logits, torch.from_numpy(dev.targets)).mean())
        entry |= classification_scores(dev.targets, logits.argmax(1).numpy())
    return [entry]


def _accelerator(precision: str | None, run: Path | None, trackers: Sequence[str]) -> Accelerator:
    from accelerate import Accelerator

    if precision is not None and precision not in PRECISIONS:
        raise OptionError(f"precision={precision!r} is none of {choices(PRECISIONS)}.")
    try:
        return Accelerator(
            mixed_precision=precision, log_with=list(trackers) or None, project_dir=run
        )
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
    if not len(data):
        raise OptionError("There are no examples: give rows, or None for no dev set.")
    return list(data)


def _encoded(job: _Job, examples: list[Example]) -> _Rows:
    texts = [job.adapter.prefix + example.text for example in examples]
    return _Rows(job.encoder.text.ids(texts, job.options.max_length), job.task.targets(examples))


def _tensor(job: _Job, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(job.accelerator.device)
