"""Optimum's export of a merged model, dynamic int8, as its users run it: as it is, and O1 to O3.

Quantized by optimum's preset for the processor: avx512_vnni's signed weights, or avx2's unsigned
ones where products of u8 with s8 would overflow.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from adaptx.adapters.adapter import Adapter
from adaptx.encoder.encoder import Encoder
from adaptx.machine import overflows

LEVELS = ("as it is", "O1", "O2", "O3")


def merged_peers(encoder: Encoder, adapter: Adapter, cache: Path) -> dict[str, Path]:
    """The int8 model of each level, made unless it is there: BERT's inputs -> hidden states."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import AutoOptimizationConfig, ORTOptimizer, ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    folder = cache / f"merged-{encoder.fingerprint[7:15]}"
    source, exported = folder / "hf", folder / "fp32"
    if not exported.is_dir():
        adapter.merged_model(encoder).save_pretrained(source)
        for path in encoder.folder.glob("*token*"):
            shutil.copy(path, source)
        main_export(str(source), exported, task="feature-extraction")
    preset, weights = "avx512_vnni", QuantType.QInt8
    if overflows():
        preset, weights = "avx2", QuantType.QUInt8
    found = {}
    for level in LEVELS:
        whole, made = exported, folder / f"{preset} {level}"
        if level != "as it is":
            whole = folder / level
            if not whole.is_dir():
                optimizer = ORTOptimizer.from_pretrained(exported)
                config = getattr(AutoOptimizationConfig, level)()
                optimizer.optimize(save_dir=whole, optimization_config=config)
        if not made.is_dir():
            name = next(whole.glob("*.onnx")).name
            if level in (
                "O2",
                "O3",
            ):  # fused operators have no types that optimum's quantizer finds
                made.mkdir()
                quantize_dynamic(
                    whole / name,
                    made / "model_quantized.onnx",
                    per_channel=True,
                    weight_type=weights,
                    extra_options={"DefaultTensorType": 1},
                )
            else:
                made_for = getattr(AutoQuantizationConfig, preset)
                config = made_for(is_static=False, per_channel=True)
                quantizer = ORTQuantizer.from_pretrained(whole, file_name=name)
                quantizer.quantize(save_dir=made, quantization_config=config)
        found[level] = next(made.glob("*.onnx"))
    return found
