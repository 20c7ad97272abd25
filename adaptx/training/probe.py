"""A probe: logistic regression on the frozen encoder's pooled states, the honest first baseline.

Solved to its optimum by scikit-learn, its regularization chosen on dev (by cross-validation when
there is no dev): a linear head trained for a few epochs would be a handicapped peer. What trains in
steps may begin with a probe's head (Kumar et al. 2022, "LP-FT", arXiv 2202.10054).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from adaptx.adapters.adapter import Adapter
from adaptx.errors import OptionError
from adaptx.evaluation.metrics import classification_scores
from adaptx.tasks import Classification, Task
from adaptx.training.processes import gathered
from adaptx.training.record import Job
from adaptx.training.routed import Routed
from adaptx.training.rows import EncodedRows
from adaptx.training.scoring import rows_at_once
from adaptx.training.settings import Settings

SCORING = {  # scikit-learn's names
    "accuracy": "accuracy",
    "macro_f1": "f1_macro",
    "weighted_f1": "f1_weighted",
    "dev_loss": "neg_log_loss",
}
STRENGTHS = tuple(float(c) for c in np.logspace(-4, 2, 13))  # scikit-learn's C
FIRST_ROWS = 5000  # of train, and of dev: enough to tell where a head had better begin

Pooled = tuple[np.ndarray, np.ndarray]  # states fp32 `[rows, H]`, targets int64 `[rows]`


def check_probe_first(options: Settings, task: Task) -> None:
    """OptionError where a head is to begin as a probe's, and the task has none."""
    if options.probe_first and not isinstance(task, Classification):
        raise OptionError(f"probe_first is for classification, not for {task.kind}: leave it out.")


def begin_heads(
    groups: Sequence[Sequence[Job]], *, fast: bool, dtype: torch.dtype | None, silent: bool
) -> None:
    """Give heads that are to be trained their probes' weights; the jobs of a group share a head.

    A beginning may be rough: it is solved on FIRST_ROWS rows of each job at most, in `dtype` where
    the fast path is taken. Where groups have the same rows, one is solved.
    """
    sizes = [
        sum(len(_first(part, FIRST_ROWS)) for job in group for part in _parts(job))
        for group in groups
    ]
    solved: list[Sequence[Job]] = []
    with Progress(console=Console(stderr=True), transient=True, disable=silent) as bar:
        shown = bar.add_task("Probes' heads", total=sum(sizes))
        for number, group in enumerate(groups, 1):
            twin = next((one for one in solved if _same_rows(one, group)), None)
            if twin is None:
                solve_head(
                    group, fast=fast, dtype=dtype, most=FIRST_ROWS, seen=partial(bar.advance, shown)
                )
                solved.append(group)
            else:
                _head(group).load_state_dict(_head(twin).state_dict())
            bar.update(shown, completed=sum(sizes[:number]))


def solve_head(
    jobs: Sequence[Job],
    *,
    fast: bool = False,
    dtype: torch.dtype | None = None,
    most: int | None = None,
    seen: Callable[[int], object] = lambda rows: None,
) -> tuple[float, np.ndarray | None]:
    """Fit the classification head that the jobs share on all their rows, or `most` of each.

    `seen` is told how many rows are pooled. Returns scikit-learn's C, and dev's pooled states
    `[rows, H]` where there is a dev. Every process calls it: they share out the rows.
    """
    options, task = jobs[0].options, jobs[0].task
    metric = options.metric if options.metric in SCORING else task.metrics[0]
    found: list[list[Pooled]] = [[], []]
    for job in jobs:
        routed = Routed(job.encoder, job.adapter, fast=fast, dtype=dtype).eval()
        for part, rows in zip(found, _parts(job), strict=True):
            if len(rows):
                part.append(_pooled(job, routed, rows, _first(rows, most), seen))
        routed.train()
    train, dev = (
        (np.concatenate([x for x, _ in part]), np.concatenate([y for _, y in part]))
        if part
        else None
        for part in found
    )
    assert train is not None
    strength = fit_probe(jobs[0].adapter, train, dev, str(metric), options.seed)
    return strength, dev[0] if dev else None


def _parts(job: Job) -> tuple[EncodedRows, EncodedRows]:
    return cast(EncodedRows, job.train), cast(EncodedRows, job.dev)


def _first(rows: EncodedRows, most: int | None) -> np.ndarray:
    """The places of so many rows, drawn at random, one of each label first; or of all."""
    if most is None or len(rows) <= most:
        return np.arange(len(rows))
    order = np.random.default_rng(0).permutation(len(rows))
    _, ones = np.unique(rows.targets[order], return_index=True)
    return np.sort(np.concatenate([order[ones], np.delete(order, ones)])[:most])


@torch.no_grad()
def _pooled(
    job: Job, routed: Routed, rows: EncodedRows, places: np.ndarray, seen: Callable[[int], object]
) -> Pooled:
    """The states at these rows as training begins with them, pooled as the task says."""
    accelerator, adapter = job.accelerator, job.adapter
    # As many rows, and so forward passes, for each process, some of them twice: FSDP waits in each.
    share = -(-len(places) // accelerator.num_processes)
    mine = np.arange(share) * accelerator.num_processes + accelerator.process_index
    mine %= len(places)
    states = np.empty((share, job.encoder.hidden_size), dtype=np.float32)
    ids = [rows.ids[place] for place in places[mine]]
    for batch in job.encoder.text.batches(ids, rows_at_once(job, rows)):
        mask = job.on_device(batch.attention_mask)
        hidden = routed.hidden(job.on_device(batch.input_ids), mask)
        states[batch.rows] = adapter.pool(hidden.float(), mask).cpu().numpy()
        seen(len(batch.rows) * accelerator.num_processes)
    found = np.empty((len(places), states.shape[1]), dtype=np.float32)
    for its, theirs in gathered(accelerator, (mine, states)):
        found[its] = theirs
    return found, rows.targets[places]


def _same_rows(one: Sequence[Job], other: Sequence[Job]) -> bool:
    """Whether the groups' heads are solved from the same rows, by the same metric."""

    def seen(group: Sequence[Job]) -> list[Any]:
        parts = [part for job in group for part in _parts(job)]
        how = [(job.options.metric, job.adapter.pooling, job.task.outputs) for job in group]
        return [how, [(part.ids, part.targets.tolist()) for part in parts]]

    return len(one) == len(other) and seen(one) == seen(other)


def _head(group: Sequence[Job]) -> nn.Linear:
    head = group[0].adapter.head
    assert head is not None  # of a classification
    return head


def fit_probe(
    adapter: Adapter,
    train: Pooled,
    dev: Pooled | None,
    metric: str,
    seed: int,
) -> float:
    """Fit the adapter's head.

    Returns the C that `metric` chose. The features' standardization is folded into the head.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import cross_val_score
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train[0])
    x, y = scaler.transform(train[0]), train[1]
    counts = np.bincount(y)[y]  # of each row's label
    several = counts > 1  # a label's only row can't be both learnt and held out

    def score(strength: float) -> float:
        model = LogisticRegression(C=strength, max_iter=2000, random_state=seed)
        if dev is None:
            if len(np.unique(y[several])) < 2:
                return 0.0
            folds = int(min(5, counts[several].min()))
            given = {"cv": folds, "scoring": SCORING[metric]}
            return float(cross_val_score(model, x[several], y[several], **given).mean())
        model.fit(x, y)
        x_dev = scaler.transform(dev[0])
        if metric == "dev_loss":
            return -float(log_loss(dev[1], model.predict_proba(x_dev), labels=model.classes_))
        return classification_scores(dev[1], model.predict(x_dev))[metric]

    best = max(STRENGTHS, key=score)  # ties: the strongest regularization
    model = LogisticRegression(C=best, max_iter=2000, random_state=seed).fit(x, y)
    weight, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row for two classes: the log odds of the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    assert adapter.head is not None
    # A label that train lacks stays far below the others.
    adapter.head.weight.data.zero_()
    adapter.head.bias.data.fill_(float(bias.min()) - 30)
    adapter.head.weight.data[model.classes_] = torch.tensor(weight).to(adapter.head.weight)
    adapter.head.bias.data[model.classes_] = torch.tensor(bias).to(adapter.head.bias)
    return best
