"""Several tasks on one adapter: their rows go through it together, each to its own head.

Dimensions: B windows of a batch, S tokens, H hidden width, L outputs of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from adaptx.adapters.adapter import Adapter
from adaptx.evaluation.metrics import DEV_LOSS
from adaptx.tasks import Classification
from adaptx.training.mixture import MixedPlan, Sampling
from adaptx.training.record import Job
from adaptx.training.rows import MixedRows, Span
from adaptx.training.scoring import dev_scores

MEAN = "mean"  # the metric: the mean of the tasks' first ones


class Shared(nn.Module):
    """Adapters with the same sites, each with its own head, as one thing to train."""

    def __init__(self, name: str, adapters: Mapping[str, Adapter]):
        super().__init__()
        self.each = tuple(adapters.values())
        self.first = self.each[0]
        self.heads = nn.ModuleList(one.head for one in self.each[1:] if one.head is not None)
        tasks = {part: one.facts.task for part, one in adapters.items()}
        self.facts = replace(self.first.facts, name=name, task={"kind": "several", "tasks": tasks})
        self.config, self.sites, self.model = self.first.config, self.first.sites, None

    def weights(self) -> dict[str, Tensor]:
        """All tensors by name, those of the sites once."""
        return dict(self.state_dict())

    def is_finite(self) -> bool:
        """Whether each of the adapters is."""
        return all(one.is_finite() for one in self.each)

    def trainable(self) -> list[nn.Parameter]:
        """What an optimizer takes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write each task's adapter into `<folder>/<its name>`."""
        for one in self.each:
            one.save(Path(folder) / one.name, overwrite=overwrite)

    def hidden(self, *args: Any, **options: Any) -> Tensor:
        """Token states, as an adapter's: `[B, S]` -> `[B, S, H]`."""
        return self.first.hidden(*args, **options)

    def outputs(self, hidden: Tensor, mask: Tensor, spans: Sequence[Span]) -> list[Tensor]:
        """Each span's head on its windows' states: `[B, S, H]`, `[B, S]` -> its `[b, L]` each.

        A head without windows here takes part with a gradient of 0: DDP waits for every parameter.
        """
        found = [
            self.each[head].outputs(hidden[start:end, :tokens], mask[start:end, :tokens])
            for start, end, tokens, head in spans
        ]
        idle = {*range(len(self.each))} - {head for *_, head in spans}
        for head in (self.each[place].head for place in sorted(idle)):
            if head is not None:
                found[0] = found[0] + sum(p.sum() for p in head.parameters()) * 0.0
        return found


@dataclass(frozen=True)
class MixedJob(Job):
    """The training of several tasks on one adapter: `adapter` is Shared, `train` MixedRows.

    members  each source's own job: its task's adapter, its rows; those of a task stand together
    names    what each source's scores are called: (task,), or (task, language)
    weights  of each source's loss
    """

    train: MixedRows
    members: Sequence[Job] = ()
    names: Sequence[tuple[str, ...]] = ()
    weights: Sequence[float] = ()
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def settings(self) -> dict[str, Any]:
        """How it is trained, with the mixture."""
        return {**super().settings, **asdict(self.sampling), "weights": list(self.weights)}

    def classified(self) -> list[list[Job]]:
        """As Job's: the sources of each task of classification."""
        own = [
            [m for m in self.members if m.adapter is one] for one in cast(Any, self.adapter).each
        ]
        return [group for group in own if isinstance(group[0].task, Classification)]

    def plan(self) -> MixedPlan:
        """The steps, with each source in its share."""
        sizes = [len(member.train) for member in self.members]
        return MixedPlan(
            sizes,
            self.sampling.shares(sizes, self.options.epochs),
            self.options.batch_size,
            self.options.accumulate,
            self.accelerator.num_processes,
            self.accelerator.process_index,
            self.options.seed,
            [member.task.contrasts for member in self.members],
        )

    def loss_sum(self, model: nn.Module, rows: np.ndarray, epoch: int) -> tuple[Tensor, int]:
        """The sum of the rows' losses, each with its weight, and their tokens without padding."""
        some = rows if len(rows) else np.zeros(1, np.int64)
        batch, parts, _ = self.train.batch(some, (self.options.seed, epoch))
        spans = [span for _, span, _ in parts]
        ids, mask = self.on_device(batch.input_ids), self.on_device(batch.attention_mask)
        total: Any = 0.0
        for (place, _, targets), outputs in zip(parts, model(ids, mask, spans), strict=True):
            smoothing = self.options.smoothing
            losses = self.members[place].losses(outputs, self.on_device(targets), smoothing)
            total = total + losses.sum() * self.weights[place]
        return (total, int(batch.attention_mask.sum())) if len(rows) else (total * 0.0, 0)

    def dev_scores(
        self, model: nn.Module, between: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Each task's scores, "<task>.<metric>", the means over its languages, each of which has
        its own, "<task>.<language>.<metric>"; the mean of the first metrics, MEAN, of those tasks
        that answer; and the mean of their losses, by their weights.
        """
        model.eval()
        entry: dict[str, float] = {}
        by_task: dict[str, list[tuple[Job, dict[str, float], float]]] = {}
        for place, (member, name) in enumerate(zip(self.members, self.names, strict=True)):
            if len(member.dev):
                alone = partial(_alone, model, self.train.heads[place])
                scores = dev_scores(member, alone, between)
                by_task.setdefault(name[0], []).append((member, scores, self.weights[place]))
                entry |= {".".join((*name, metric)): value for metric, value in scores.items()}
        firsts, losses, weights = [], [], []
        for task, found in by_task.items():
            for metric in found[0][1]:
                each = [scores[metric] for _, scores, _ in found]
                entry[f"{task}.{metric}"] = float(np.mean(each))
            if found[0][0].task.answers:
                firsts.append(entry[f"{task}.{found[0][0].task.metrics[0]}"])
            losses.append(entry[f"{task}.{DEV_LOSS}"])
            weights.append(found[0][2])
        return {
            DEV_LOSS: float(np.average(losses, weights=weights)),
            **({MEAN: float(np.mean(firsts))} if firsts else {}),
            **entry,
        }

    def record(
        self,
        history: list[dict[str, Any]],
        best: dict[str, Any] | None = None,
        seconds: float | None = None,
    ) -> None:
        """Write into each task's adapter how it was trained, and with which others."""
        for adapter in cast(Any, self.adapter).each:
            own = [
                (member, name)
                for member, name in zip(self.members, self.names, strict=True)
                if member.adapter is adapter
            ]
            task = own[0][1][0]
            facts = {
                **self.facts(),
                "train_rows": sum(len(member.train) for member, _ in own),
                "dev_rows": sum(len(member.dev) for member, _ in own),
                "together": sorted({name[0] for name in self.names}),
            }
            entries = [_of_task(entry, task) for entry in history]
            facts["best"] = _of_task(best or history[-1], task) if facts["dev_rows"] else None
            adapter.with_training({**facts, "history": entries, "seconds": round(seconds or 0, 1)})


def _alone(model: nn.Module, head: int, ids: Tensor, mask: Tensor) -> Tensor:
    """One head's outputs."""
    (outputs,) = model(ids, mask, [(0, len(ids), ids.shape[1], head)])
    return outputs


def _of_task(entry: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What an epoch's entry has of one task: its metrics by their own names."""
    start = f"{task}."
    plain = {name: entry[name] for name in ("epoch", "loss", "seconds") if name in entry}
    return plain | {
        name.removeprefix(start): value for name, value in entry.items() if name.startswith(start)
    }
