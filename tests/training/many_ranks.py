"""One process of a job with many adapters on a small encoder; prints what it saw as JSON.

As tests.training.ranks, but OPTIONS are those of train_many: `members` are settings by name, with
`rows` of the data; `stand` are the folders where the first and the last rank stand; a file is put
where the run of `taken` is to be, just before it begins. With `tune`, its options, it searches.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed
from peft import LoraConfig

import adaptx as ax
from adaptx.data.read import read_examples
from adaptx.errors import AdaptxError
from adaptx.training.many import Trained
from tests.training.ranks import is_last, meet, say, signal_in_step


def member(name, data, rows=None, r=4, dev=True, **settings):
    """A member that learns topics."""
    return ax.Member(
        name,
        LoraConfig(r=r, target_modules="all-linear"),
        train=read_examples(f"{data}/train.jsonl")[:rows],
        dev=f"{data}/dev.jsonl" if dev else None,
        settings={"epochs": 2, "batch_size": 9, "lr": 3e-3} | settings,
    )


def told(adapter):
    """How it was trained, and its weights."""
    facts = adapter.facts.training
    return {
        "processes": facts["processes"],
        "history": [{k: v for k, v in e.items() if k != "seconds"} for e in facts["history"]],
        "weights": {n: w.double().pow(2).sum().item() for n, w in adapter.weights().items()},
    }


def search(encoder, data, options):
    """Trials of one member; options are those of `ax.tune`."""
    one = member("x", data)
    found = ax.tune(
        encoder, ax.tasks.Classification(), one.config, name="x", train=one.train, dev=one.dev,
        **options,
    )  # fmt: skip
    trials = [(trial.rung, trial.lr, trial.scores["dev_loss"]) for trial in found.trials]
    say({"adapters": {"x": told(found.adapter)}, "trials": trials})


def main(encoder_folder, data, options, meeting=None):
    meet(meeting)
    if "tune" in options:
        search(ax.Encoder.from_pretrained(encoder_folder), data, options["tune"])
        return
    members = [member(name, data, **given) for name, given in options.pop("members").items()]
    if (step := options.pop("signal_at", None)) and is_last():
        signal_in_step(step)
    if stand := options.pop("stand", None):
        os.chdir(stand["last" if is_last() else "first"])
    taken, saved = options.pop("taken", None), []

    def done(adapter):
        saved.append(adapter.name)
        if taken:
            (Path(options["runs"]) / taken).touch()

    try:
        found: Trained = ax.train_many(
            ax.Encoder.from_pretrained(encoder_folder), members, done=done, **options
        )
    except AdaptxError as error:
        say({"error": f"{type(error).__name__}: {error}", "saved": saved})
        return
    say(
        {
            "rank": int(os.environ.get("RANK", "0")),
            "saved": saved,
            "failed": {name: f"{type(e).__name__}: {e}" for name, e in found.failed.items()},
            "kept": [n for n, e in found.failed.items() if getattr(e, "adapter", None)],
            "adapters": {name: told(adapter) for name, adapter in found.adapters.items()},
        }
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), *sys.argv[4:])
