"""A search over learning rates, ranks and sites, by successive halving.

Every trial trains for a few epochs, the better half by dev's score for twice as many, and so on,
until two have trained for all epochs (Jamieson and Talwalkar 2016, arXiv 1502.07943). Each rung
trains anew, so that a score is always that of a whole schedule, warm-up and decay; all trials of a
rung share each frozen forward pass (adaptx.training.many).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptx.adapters.adapter import Adapter
from adaptx.adapters.lora import targets
from adaptx.encoder.encoder import Encoder
from adaptx.errors import OptionError
from adaptx.evaluation.metrics import DEV_LOSS, goodness
from adaptx.tasks import Task
from adaptx.training.many import train_many
from adaptx.training.member import Member
from adaptx.training.rows import Data
from adaptx.training.runlog import NOT_DEVS
from adaptx.training.settings import Settings

if TYPE_CHECKING:
    from peft import LoraConfig

Sites = str | Sequence[str]


@dataclass(frozen=True)
class Trial:
    """One setting in one rung; `scores` are the best epoch's on dev, None where it diverged."""

    rung: int
    epochs: int
    lr: float
    r: int
    sites: Sites
    scores: dict[str, float] | None

    def rank(self, metric: str) -> tuple[float, float]:
        """The greater, the better."""
        if self.scores is None:
            return float("-inf"), float("-inf")
        return goodness(metric, self.scores), -self.scores[DEV_LOSS]


@dataclass(frozen=True)
class Tuned:
    """The best adapter, which also has the trials among its training facts; and every trial."""

    adapter: Adapter
    trials: list[Trial] = field(default_factory=list)


def rungs(trials: int, epochs: int) -> list[tuple[int, int]]:
    """(how many trials, for how many epochs) of each rung; the last has two at most."""
    if trials == 1:
        return [(1, epochs)]
    counts = [trials]
    while counts[-1] > 2:
        counts.append(-(-counts[-1] // 2))
    last = len(counts) - 1
    return [(count, max(1, round(epochs / 2 ** (last - i)))) for i, count in enumerate(counts)]


def combinations_of(
    encoder: Encoder,
    config: LoraConfig,
    lrs: Sequence[float],
    ranks: Sequence[int],
    sites: Sequence[Sites],
) -> list[tuple[float, int, Sites]]:
    """All of them; OptionError or SiteError for one that can't be, or that is there twice."""
    for option, values in (("lrs", lrs), ("ranks", ranks), ("sites", sites)):
        if not values:
            raise OptionError(f"There is nothing to try: give {option}=[…].")
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise OptionError(f"{option}: {twice[0]!r} is there twice.")
    if small := [rank for rank in (config.r, *ranks) if rank < 1]:
        raise OptionError(f"The rank {small[0]} must be at least 1.")
    for lr in lrs:
        Settings(lr=lr)
    for one in sites:
        targets(_config(config, config.r, one), encoder.sites, encoder.config.model_type)
    return list(product(lrs, ranks, sites))


def tune(
    encoder: Encoder,
    task: Task,
    config: LoraConfig,
    *,
    name: str,
    train: Data,
    dev: Data,
    lrs: Sequence[float],
    ranks: Sequence[int] = (),
    sites: Sequence[Sites] = (),
    language: str | None = None,
    text_column: str | None = None,
    other_column: str | None = None,
    label_column: str | None = None,
    slots: int = 8,
    precision: str | None = None,
    runs: str | Path | None = None,
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Tuned:
    """Search around `config`; what isn't searched stays as it is there, and in `settings`.

    alpha / r is that of `config` at every rank. `runs` is a folder for a run of each trial, named
    "<name>-<rung>-<number>"; `resume` goes on there, as `ax.train_many` does.

    Raises OptionError and DataError before any training, TrainingInterrupted, and TrainingDiverged
    where every trial of the first rung did; where all of a later one do, the best of the rung
    before is kept.
    """
    options = Settings.of(settings or {}).for_task(task, dev=True)
    combinations = combinations_of(
        encoder, config, lrs, ranks or [config.r], sites or [config.target_modules or "all-linear"]
    )
    trials: list[Trial] = []
    winner: Adapter | None = None
    for rung, (count, epochs) in enumerate(rungs(len(combinations), options.epochs), 1):
        combinations = combinations[:count]
        members = [
            Member(
                f"{name}-{rung}-{number}",
                _config(config, rank, at),
                train=train,
                dev=dev,
                task=task,
                language=language,
                text_column=text_column,
                other_column=other_column,
                label_column=label_column,
                settings={**asdict(options), "lr": lr, "epochs": epochs},
            )
            for number, (lr, rank, at) in enumerate(combinations, 1)
        ]
        found = train_many(
            encoder, members, slots=slots, precision=precision, runs=runs, resume=resume
        )
        tried = []
        for member, (lr, rank, at) in zip(members, combinations, strict=True):
            made = found.adapters.get(member.name)
            best = made.facts.training["best"] if made is not None else None
            scores = {k: v for k, v in best.items() if k not in NOT_DEVS} if best else None
            tried.append((Trial(rung, epochs, lr, rank, at, scores), member.name))
        tried.sort(key=lambda one: one[0].rank(options.metric or ""), reverse=True)
        trials += [trial for trial, _ in tried]
        if not found.adapters and winner is None:
            raise next(iter(found.failed.values()))
        if not found.adapters:
            break
        combinations = [(trial.lr, trial.r, trial.sites) for trial, _ in tried]
        winner = found.adapters[tried[0][1]]
    assert winner is not None  # there is a rung, and its best or an error
    return Tuned(_named(winner, name, trials), trials)


def _config(config: LoraConfig, rank: int, sites: Any) -> LoraConfig:
    made = copy.deepcopy(config)
    made.lora_alpha = config.lora_alpha * rank / config.r
    made.r, made.target_modules = rank, sites
    return made


def _named(adapter: Adapter, name: str, trials: Sequence[Trial]) -> Adapter:
    adapter.facts = replace(adapter.facts, name=name)
    searched = [{**asdict(trial), "sites": _plain(trial.sites)} for trial in trials]
    return adapter.with_training({**adapter.facts.training, "search": searched})


def _plain(sites: Sites) -> Any:
    return sites if isinstance(sites, str) or sites is None else sorted(sites)
