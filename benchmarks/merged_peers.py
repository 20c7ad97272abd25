"""Optimum's export of a merged model, dynamic int8, as its users run it: as it is, and O1 to O3."""

from __future__ import annotations

import shutil
from pathlib import Path

from adaptx.adapters.adapter import Adapter
from adaptx.encoder.encoder import Encoder

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
    found = {}
    for level in LEVELS:
        whole, made = exported, folder / f"int8 {level}"
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
                    weight_type=QuantType.QInt8,
                    extra_options={"DefaultTensorType": 1},
                )
            else:
                config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
                quantizer = ORTQuantizer.from_pretrained(whole, file_name=name)
                quantizer.quantize(save_dir=made, quantization_config=config)
        found[level] = next(made.glob("*.onnx"))
    return found
