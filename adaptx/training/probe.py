"""A probe: logistic regression on the frozen encoder's pooled states, the honest first baseline.

Solved to its optimum by scikit-learn, its regularization chosen on dev (by cross-validation when
there is no dev): a linear head trained for a few epochs would be a handicapped peer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from adaptx.adapters.adapter import Adapter
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError
from adaptx.evaluation.metrics import classification_scores
from adaptx.tasks import Classification, Task
from adaptx.training.record import Job
from adaptx.training.rows import EncodedRows
from adaptx.training.settings import Settings

SCORING = {  # scikit-learn's names
    "accuracy": "accuracy",
    "macro_f1": "f1_macro",
    "weighted_f1": "f1_weighted",
    "dev_loss": "neg_log_loss",
}
STRENGTHS = tuple(float(c) for c in np.logspace(-4, 2, 13))  # scikit-learn's C


def check_probe_first(options: Settings, task: Task) -> None:
    """OptionError where a head is to begin as a probe's, and the task has none."""
    if options.probe_first and not isinstance(task, Classification):
        raise OptionError(f"probe_first is for classification, not for {task.kind}: leave it out.")


def solve_head(jobs: Sequence[Job], metric: str) -> tuple[float, np.ndarray | None]:
    """Fit the classification head that the jobs share on all their rows, its strength by `metric`.

    Returns scikit-learn's C, and dev's pooled states `[rows, H]` where there is a dev.
    """
    options = jobs[0].options

    def states(rows: Sequence[EncodedRows]) -> tuple[np.ndarray, np.ndarray]:
        pooled = [
            pooled_states(job.encoder, job.adapter, one.ids, 2 * options.batch_size)
            for job, one in zip(jobs, rows, strict=True)
        ]
        return np.concatenate(pooled), np.concatenate([one.targets for one in rows])

    train = states([cast(EncodedRows, job.train) for job in jobs])
    dev = [cast(EncodedRows, job.dev) for job in jobs]
    held_out = states(dev) if any(len(one) for one in dev) else None
    strength = fit_probe(jobs[0].adapter, train, held_out, metric, options.seed)
    return strength, held_out[0] if held_out else None


@torch.inference_mode()
def pooled_states(
    encoder: Encoder, adapter: Adapter, ids: list[list[int]], batch_size: int
) -> np.ndarray:
    """fp32 `[rows, H]`: the plain encoder's states, pooled as the adapter's task says."""
    pooled = np.empty((len(ids), encoder.hidden_size), dtype=np.float32)
    for batch in encoder.text.batches(ids, batch_size):
        input_ids = torch.from_numpy(batch.input_ids).to(encoder.device)
        mask = torch.from_numpy(batch.attention_mask).to(encoder.device)
        states = encoder.hidden(input_ids, mask)
        pooled[batch.rows] = adapter.pool(states, mask).cpu().numpy()
    return pooled


def fit_probe(
    adapter: Adapter,
    train: tuple[np.ndarray, np.ndarray],
    dev: tuple[np.ndarray, np.ndarray] | None,
    metric: str,
    seed: int,
) -> float:
    """Fit the adapter's head on (pooled `[rows, H]`, targets `[rows]`).

    Returns the C that `metric` chose. The features' standardization is folded into the head.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import cross_val_score
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train[0])
    x, y = scaler.transform(train[0]), train[1]

    def score(strength: float) -> float:
        model = LogisticRegression(C=strength, max_iter=2000, random_state=seed)
        if dev is None:
            folds = int(min(5, np.bincount(y)[np.unique(y)].min()))
            if folds < 2:
                return 0.0
            scoring = SCORING[metric]
            return float(cross_val_score(model, x, y, cv=folds, scoring=scoring).mean())
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
