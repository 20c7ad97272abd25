"""Opening a bundle with onnxruntime and predicting: no torch, no transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adaptx.runtime.runtime import Runtime

__all__ = ["Runtime"]


def __getattr__(name: str) -> Any:
    if name != "Runtime":
        raise AttributeError(f"module 'adaptx.runtime' has no attribute {name!r}")
    from adaptx.runtime.runtime import Runtime

    return Runtime
