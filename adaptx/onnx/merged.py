"""The merged export: one adapter folded into its encoder, written as an ordinary ONNX classifier.

Encoder, pooling and head go through optimum's exporter as one module, so that the folder opens with
`ORTModelForSequenceClassification` and `AutoTokenizer`, or with onnxruntime and tokenizers alone.
The text prefix is put into the tokenizer: nobody has to remember it.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adaptx import storage
from adaptx.adapters.adapter import Adapter
from adaptx.data.large import open_records
from adaptx.encoder.encoder import Encoder
from adaptx.encoder.families import model_inputs
from adaptx.errors import MissingExtra, OptionError, choices
from adaptx.onnx.merged_readme import ANSWERS, CLASSES, LABELS, VECTORS, merged_readme
from adaptx.onnx.parity import compare
from adaptx.onnx.probe_texts import PROBE_TEXTS

QUANTIZATIONS = ("int8",)
MODEL = "model.onnx"


def export_merged(
    encoder: Encoder,
    adapter: Adapter,
    output: str | Path,
    *,
    quantize: str | None = None,
    dev: str | Path | Sequence[Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the merged model of `adapter` to the folder `output`; returns the parity report.

    `quantize="int8"` makes weights int8 per channel and quantizes activations as they come
    (optimum's dynamic quantization). With `dev`, the report has its scores in torch and in ONNX.
    Raises ParityError, and writes nothing, when the export is out of bounds (adaptx.onnx.parity).
    """
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise OptionError(f"quantize={quantize!r} is none of {choices(QUANTIZATIONS)}.")
    if adapter.task is None:
        raise OptionError(f"Adapter {adapter.name!r} has no task: there is nothing to export.")
    adapter.check_encoder(encoder)
    adapter.check_answers()
    if adapter.task.hub not in CLASSES:
        raise OptionError(
            f"Adapter {adapter.name!r} is of the task {adapter.task.kind!r}, and transformers has "
            f"no class that opens such a model: serve it from a bundle."
        )
    storage.check_output(output, overwrite, "merged")
    rows = open_records(dev, adapter.task.kind) if isinstance(dev, (str, Path)) else dev or ()
    adapter.task.check(rows)
    with storage.new_folder(output, overwrite=overwrite, kind="merged") as made:
        write_merged(encoder, adapter, made)
        if quantize == "int8":
            quantize_int8(made, kept_fp32(made / MODEL))
        kind = quantize or "fp32"
        report = compare(made, encoder, adapter, PROBE_TEXTS, rows, kind)
        (made / "README.md").write_text(merged_readme(adapter, kind, report), encoding="utf-8")
        facts = {
            "name": adapter.name,
            "encoder": adapter.facts.encoder,
            "fingerprint": adapter.facts.fingerprint,
            "task": adapter.facts.task,
            "language": adapter.facts.language,
            "quantization": kind,
            "parity": report,
        }
        storage.write_manifest(made, "merged", facts)
    return report


class _Merged(nn.Module):
    """int64 `[B, S]` input_ids and attention_mask -> what transformers' model of the task gives."""

    def __init__(self, encoder: Encoder, adapter: Adapter):
        super().__init__()
        self.model = adapter.merged_model(encoder).cpu().eval()
        self.adapter = Adapter(adapter.facts, None, _head(adapter), adapter.task).cpu()
        self.config = _config(encoder, adapter)
        assert adapter.task is not None
        self.task = adapter.task

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.model(**model_inputs(self.config, input_ids, attention_mask))[0]
        hub = self.task.hub
        if hub == VECTORS:
            return {"last_hidden_state": hidden}
        outputs = self.adapter.outputs(hidden, attention_mask)
        if hub == ANSWERS:
            return {"start_logits": outputs[..., 0], "end_logits": outputs[..., 1]}
        return {"logits": outputs}


def _head(adapter: Adapter) -> Any:
    """A copy of the head; similarity's answers on the scale of its training data by itself."""
    head = copy.deepcopy(adapter.head)
    if head is not None and adapter.task is not None:
        mean, scale = adapter.task.scale_of_outputs
        head.weight.data *= scale
        head.bias.data = mean + scale * head.bias.data
    return head


def _config(encoder: Encoder, adapter: Adapter) -> Any:
    assert adapter.task is not None
    config = copy.deepcopy(encoder.config)
    config.architectures = None
    if adapter.task.chooses or adapter.task.hub == LABELS:
        config.id2label = dict(enumerate(adapter.task.labels))
        config.label2id = {label: i for i, label in enumerate(adapter.task.labels)}
    if adapter.task.problem:
        config.problem_type = adapter.task.problem
    return config


def write_merged(encoder: Encoder, adapter: Adapter, folder: Path) -> None:
    """Write the adapter, folded into its encoder, in fp32: model, config and tokenizer."""
    try:
        from optimum.exporters.onnx import export
        from optimum.exporters.tasks import TasksManager
    except ImportError as error:
        raise MissingExtra("optimum-onnx", "export", "The merged export") from error

    merged = _Merged(encoder, adapter).eval()
    task = merged.task.hub
    made_for = TasksManager.get_exporter_config_constructor(
        "onnx",
        model_type=encoder.config.model_type,
        task=task,
        library_name="transformers",
    )

    class OnlyIdsAndMask(made_for.func):  # type: ignore[name-defined]
        """optimum's configuration of the family, less the token types: they are always 0 here."""

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {k: v for k, v in super().inputs.items() if k != "token_type_ids"}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of Python values that don't vary here
        export(
            merged,
            OnlyIdsAndMask(merged.config, task=task),
            folder / MODEL,
        )
    merged.config.save_pretrained(folder)
    _write_tokenizer(encoder, adapter, folder)


def quantize_int8(folder: Path, kept: Sequence[str]) -> None:
    """Replace a folder's model by its int8 form, but for the nodes named in `kept`."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    whole = folder / "fp32"
    whole.mkdir()
    for path in folder.glob(MODEL + "*"):
        path.rename(whole / path.name)
    shutil.copy(folder / "config.json", whole)  # optimum asks for it
    config = AutoQuantizationConfig.avx512_vnni(
        is_static=False,
        per_channel=True,
        operators_to_quantize=["MatMul", "Gather"],  # weights and embeddings
        nodes_to_exclude=list(kept),
    )
    ORTQuantizer.from_pretrained(whole, file_name=MODEL).quantize(
        save_dir=whole, quantization_config=config, file_suffix="int8"
    )
    (whole / "model_int8.onnx").rename(folder / MODEL)
    shutil.rmtree(whole)


def kept_fp32(model: Path) -> list[str]:
    """The products that stay in fp32, by the names of their nodes.

    Those of two activations (attention's) or with DeBERTa's table of positions, where int8 costs
    accuracy for no speed; the FFN's second, whose inputs have outliers: alone it is most of int8's
    error (docs/performance.md); and the head.
    """
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Gemm":
            kept += [node.name, node.name + "_MatMul"]  # what the quantizer renames it to
        elif node.op_type == "MatMul":
            shapes = [weights[name] for name in node.input if name in weights]
            plain = len(shapes) == 1 and len(shapes[0]) == 2
            if not plain or shapes[0][0] > shapes[0][1]:
                kept.append(node.name)
    return kept


def _write_tokenizer(encoder: Encoder, adapter: Adapter, folder: Path) -> None:
    """tokenizer.json with the prefix and the truncation inside, and what AutoTokenizer reads."""
    tokenizer = _prefixed(encoder.text.tokenizer.to_str(), adapter.prefix)
    limit = min(adapter.max_length or encoder.text.max_length, encoder.text.max_length)
    tokenizer.enable_truncation(limit)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "pad_token": tokenizer.id_to_token(encoder.text.pad_id),
    }
    source = encoder.folder / "tokenizer_config.json"
    known = storage.read_json(source) if source.is_file() else {}
    for key in ("bos_token", "cls_token", "eos_token", "sep_token", "unk_token", "mask_token"):
        token = known.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            config[key] = token
    storage.write_json(folder / "tokenizer_config.json", config)


def _prefixed(tokenizer_json: str, prefix: str) -> Any:
    """A tokenizer that puts `prefix` before each text by itself.

    As tokens of the post-processor's template where it has one (XLM-R, BERT): a normalizer that
    prepends would do it again behind each special token that a text may hold.
    """
    from tokenizers import Tokenizer, normalizers

    plain = Tokenizer.from_str(tokenizer_json)
    if not prefix:
        return plain
    value = json.loads(tokenizer_json)
    template = value.get("post_processor") or {}
    # Its closing space is the text's: tokenizers that split at spaces put it on the next word.
    encoded = plain.encode(prefix.rstrip(), add_special_tokens=False)
    if template.get("type") == "TemplateProcessing":
        for parts in (template["single"], template["pair"]):  # before the first text of two
            text = next(i for i, part in enumerate(parts) if "Sequence" in part)
            parts.insert(text, {"SpecialToken": {"id": prefix, "type_id": 0}})
        template["special_tokens"][prefix] = {
            "id": prefix,
            "ids": encoded.ids,
            "tokens": encoded.tokens,
        }
        made = Tokenizer.from_str(json.dumps(value))
        if all(made.encode(t).ids == plain.encode(prefix + t).ids for t in PROBE_TEXTS):
            return made
    own = [plain.normalizer] if plain.normalizer else []
    plain.normalizer = normalizers.Sequence([normalizers.Prepend(prefix), *own])
    return plain
