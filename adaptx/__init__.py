"""Parameter-efficient adapters for multilingual encoders, from training to ONNX on a CPU.

    import adaptx as ax

    encoder = ax.Encoder.from_pretrained("bundled:multilingual-e5-small")
    adapter = ax.train(encoder, ax.tasks.Classification(), LoraConfig(r=8), name="sw-topics", …)
    encoder.predict(["Nimefurahi sana"], adapters=[adapter])

Names are imported when they are first used, so that what needs no torch never loads it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptx import tasks
    from adaptx.adapters.adapter import Adapter
    from adaptx.adapters.own_model import Full
    from adaptx.encoder.encoder import Encoder
    from adaptx.evaluation.audit import audit
    from adaptx.evaluation.evaluate import evaluate
    from adaptx.explaining.explain import explain
    from adaptx.onnx.bundle import export
    from adaptx.onnx.merged import export_merged
    from adaptx.runtime.runtime import Runtime
    from adaptx.training.many import Member, train_many
    from adaptx.training.together import Part, Source, train_together
    from adaptx.training.train import train
    from adaptx.training.tune import tune

__version__ = "0.1.0"
__all__ = [
    "Adapter",
    "Encoder",
    "Full",
    "Member",
    "Part",
    "Runtime",
    "Source",
    "audit",
    "evaluate",
    "explain",
    "export",
    "export_merged",
    "tasks",
    "train",
    "train_many",
    "train_together",
    "tune",
]

_HOMES = {
    "Adapter": "adaptx.adapters.adapter",
    "Encoder": "adaptx.encoder.encoder",
    "Full": "adaptx.adapters.own_model",
    "audit": "adaptx.evaluation.audit",
    "evaluate": "adaptx.evaluation.evaluate",
    "explain": "adaptx.explaining.explain",
    "Runtime": "adaptx.runtime.runtime",
    "export": "adaptx.onnx.bundle",
    "export_merged": "adaptx.onnx.merged",
    "Member": "adaptx.training.member",
    "train": "adaptx.training.train",
    "train_many": "adaptx.training.many",
    "Part": "adaptx.training.together",
    "Source": "adaptx.training.together",
    "train_together": "adaptx.training.together",
    "tune": "adaptx.training.tune",
}


def __getattr__(name: str) -> Any:
    if name == "tasks":
        return importlib.import_module("adaptx.tasks")
    if name not in _HOMES:
        raise AttributeError(f"module 'adaptx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
