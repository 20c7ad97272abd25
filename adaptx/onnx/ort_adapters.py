"""For users of onnxruntime's own adapters: a graph that takes one adapter a run, and its files.

    model.onnx, model.onnx.data   the encoder: hidden `[B, S, H]` and mean `[B, H]`
    <name>.onnx_adapter           an adapter, for RunOptions.add_active_adapter
    heads/<name>.onnx             its head: hidden or mean -> logits `[B, L]`
    tokenizer.json
    adaptx.json                   the manifest: each adapter's task, prefix, files …; the banks
    README.md

A head is a small ONNX model because whoever runs the encoder can run it, in any language; a file
of weights would have to be read and computed by hand. Its input has the name of the encoder's
output that it takes.

What onnxruntime does with an adapter file: a tensor replaces the input of its name, and one that is
missing leaves that input's default, without a word. So `load_ort_adapter` wants all of them.

Dimensions: B rows, S tokens, H width, L labels, R rank.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from adaptx import storage
from adaptx.errors import FolderError, OptionError, ParityError, choices
from adaptx.onnx.graph import Graph, save
from adaptx.onnx.ort_readme import ADAPTER, HEADS, ort_readme
from adaptx.runtime.head import Head
from adaptx.runtime.layout import HIDDEN, IDS, INPUT_IDS, MASK, MEAN, MODEL, TOKENIZER, BankSpec
from adaptx.runtime.rows import bank_rows
from adaptx.runtime.sessions import EXACT
from adaptx.tasks.base import TOKENS

if TYPE_CHECKING:
    from adaptx.adapters.adapter import Adapter

KIND = "ort-adapters"
LOGITS = "logits"
FORMAT = 1  # what onnxruntime calls the adapter's version; it is ours to count
CLOSE = 1e-4  # a head's logits here and in NumPy, as a share of the largest
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu", "gelu": "Gelu"}


def for_ort(model: onnx.ModelProto, banks: Sequence[BankSpec]) -> onnx.ModelProto:
    """A model of adaptx.onnx.build (or its int8 form, with fp32 banks) that takes one adapter a
    run.

    Each bank becomes an input with a default: zeros `[1, parts, width]`, so a run without an
    adapter is the plain encoder, and one with an adapter takes its arrays `[1, parts * R, width]`.
    adapter_ids becomes a constant.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    inputs = {value.name: value for value in graph.input}
    if IDS in inputs:
        graph.input.remove(inputs[IDS])
        graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.int64), IDS))
    for bank in banks:
        slots = inputs[bank.name].type.tensor_type.shape.dim[0]
        slots.Clear()
        slots.dim_value = 1  # so that onnxruntime refuses another number; the rank may vary
        zeros = np.zeros((1, len(bank.parts), bank.width), np.float32)
        graph.initializer.append(numpy_helper.from_array(zeros, bank.name))
    return made


def arrays(adapter: Adapter, banks: Sequence[BankSpec]) -> dict[str, np.ndarray]:
    """An adapter's fp32 `[1, parts * R, width]` by bank, at its own largest rank R.

    The scale is folded in; sites that it lacks are zeros. Raises FolderError for a site that no
    bank has.
    """
    sites = {name: (_numpy(part.a), _numpy(part.b)) for name, part in adapter.sites.items()}
    scales = {name: part.scale for name, part in adapter.sites.items()}
    rank = max((a_RI.shape[0] for a_RI, _ in sites.values()), default=1)
    return {name: rows[None] for name, rows in bank_rows(banks, sites, scales, rank).items()}


def head_model(
    tensors: Mapping[str, np.ndarray], options: Mapping[str, Any], pooling: str
) -> onnx.ModelProto:
    """A head (see adaptx.adapters.head) as a model: mean `[B, H]`, or for "cls" hidden
    `[B, S, H]`, -> logits `[B, L]`.
    """
    g, (outputs, width) = Graph(), tensors["weight"].shape

    def linear(x: str, at: str) -> str:
        names = (f"{at}weight", f"{at}bias")
        return g.node("Gemm", x, *(g.constant(tensors[name], name) for name in names), transB=1)

    if pooling == "cls":
        hidden = g.input(HIDDEN, "float32", ["batch", "tokens", width])
        x = g.node("Gather", hidden, g.constant(np.int64(0)), axis=1)
    else:
        x = g.input(MEAN, "float32", ["batch", width])
    if (activation := options.get("activation")) is not None:
        x = g.node(_ACTIVATIONS[activation], linear(x, "dense."))
    if (epsilon := options.get("norm_eps")) is not None:
        scale, bias = (g.constant(tensors[name], name) for name in ("norm.weight", "norm.bias"))
        x = g.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=float(epsilon))
    g.output(LOGITS, linear(x, ""), "float32", ["batch", outputs])
    return g.model()


def write_ort_adapters(
    model: onnx.ModelProto,
    banks: Sequence[BankSpec],
    adapters: Sequence[Adapter],
    folder: str | Path,
    *,
    tokenizer: str,
    max_length: int,
    overwrite: bool = False,
) -> dict[str, dict[str, float]]:
    """Write the folder of `model` (what `for_ort` takes) and `adapters`; returns its report.

    tokenizer   the text of tokenizer.json
    max_length  tokens that the encoder reads at most

    The report has, for each adapter with sites, how far it moves the encoder's states, as a share
    of the largest. Everything is run with onnxruntime first: an active adapter must answer, bit for
    bit, like the same arrays given as inputs, and otherwise than the plain encoder, and a head like
    the one in NumPy. Raises ParityError when one doesn't, OptionError for adapters that no bank
    holds, FolderError for a site that this model has no bank for; then nothing is written.
    """
    check_adapters(adapters)
    version = model_version(adapters[0].facts.fingerprint)
    with storage.new_folder(folder, overwrite=overwrite, kind=KIND) as made:
        save(for_ort(model, banks), made / MODEL)
        (made / HEADS).mkdir()
        for adapter in adapters:
            if adapter.sites:
                path = made / f"{adapter.name}{ADAPTER}"
                _write_adapter(arrays(adapter, banks), path, version)
            if adapter.head is not None:
                onnx.save(head_model(*_head(adapter)), made / HEADS / f"{adapter.name}.onnx")
        report = _compare(made, banks, adapters, version)
        (made / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        about = {adapter.name: _about(adapter, max_length) for adapter in adapters}
        (made / "README.md").write_text(ort_readme(adapters, about), encoding="utf-8")
        facts = {
            "encoder": adapters[0].facts.encoder,
            "fingerprint": adapters[0].facts.fingerprint,
            "model_version": version,
            "banks": [asdict(bank) for bank in banks],
            "adapters": about,
            "report": report,
        }
        storage.write_manifest(made, KIND, facts)
    return report


def load_ort_adapter(
    path: str | Path, banks: Sequence[BankSpec], *, version: int | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an .onnx_adapter, fp32 `[1, parts * R, width]` for each of just these banks.

    With `version`, that of the model it must have been made for (see `model_version`). Raises
    FolderError, naming the tensors, where one is missing, too many, of another shape, dtype or rank
    than the others, or not finite: onnxruntime takes all of these or fails in the middle of a run.
    """
    import onnxruntime

    path = Path(path)
    if not path.is_file():
        raise FolderError(f"There is no adapter file {path}.")
    try:
        adapter = onnxruntime.AdapterFormat.read_adapter(str(path.absolute()))
        values = adapter.get_parameters()
    except Exception as error:  # what it raises has no base class of its own
        raise FolderError(f"{path} is damaged, or no {ADAPTER} file: {_AGAIN}") from error
    if version is not None and adapter.get_model_version() != version:
        raise FolderError(
            f"{path} was made for another encoder (model version {adapter.get_model_version()}, "
            f"and this one's is {version})."
        )
    names = [bank.name for bank in banks]
    if missing := [name for name in names if name not in values]:
        raise FolderError(f"{path} lacks {len(missing)} tensors: {choices(missing)}; {_AGAIN}")
    if extra := sorted(values.keys() - set(names)):
        raise FolderError(f"{path} has {len(extra)} tensors too many: {choices(extra)}; {_AGAIN}")
    if other := [name for name in names if values[name].data_type() != "tensor(float)"]:
        raise FolderError(f"{path}: {choices(other)} must be fp32; {_AGAIN}")
    shapes = {name: list(values[name].shape()) for name in names}
    rank = _rank(banks, shapes)
    wanted = {bank.name: [1, len(bank.parts) * rank, bank.width] for bank in banks}
    if other := [name for name in names if shapes[name] != wanted[name]]:
        said = [f"{name} {shapes[name]} instead of {wanted[name]}" for name in other]
        raise FolderError(f"{path} has other shapes at rank {rank}: {choices(said)}; {_AGAIN}")
    found = {name: np.array(values[name].numpy()) for name in names}  # a copy: the file is mapped
    if other := [name for name in names if not np.isfinite(found[name]).all()]:
        raise FolderError(f"{path}: {choices(other)} has NaN or infinite values; {_AGAIN}")
    return found


def model_version(fingerprint: str) -> int:
    """What stands in an adapter file for the encoder it belongs to: 31 bits of its fingerprint.

    onnxruntime keeps the number and compares it with nothing.
    """
    return zlib.crc32(fingerprint.encode()) & 0x7FFFFFFF


_AGAIN = "export it again."


def _rank(banks: Sequence[BankSpec], shapes: Mapping[str, Sequence[int]]) -> int:
    """The rank that most of the tensors have, at least 1."""
    ranks = [
        shapes[bank.name][1] // len(bank.parts) for bank in banks if len(shapes[bank.name]) == 3
    ]
    return max(1, max(set(ranks), key=ranks.count)) if ranks else 1


def check_adapters(adapters: Sequence[Adapter]) -> None:
    """Raise OptionError for adapters that no such folder can hold."""
    names = [adapter.name for adapter in adapters]
    if not adapters:
        raise OptionError("There is no adapter to export.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise OptionError(f"Two adapters are called {choices(twice)}: rename one of them.")
    if other := [a.name for a in adapters if a.facts.way not in ("bank", "head")]:
        raise OptionError(
            f"{choices(other)} can't be an {ADAPTER} file: only LoRA and heads alone can, and what "
            f"changes the encoder otherwise is exported merged."
        )
    if tagging := [adapter.name for adapter in adapters if adapter.pooling == TOKENS]:
        raise OptionError(
            f"{choices(tagging)} reads every token's state, which the heads of {ADAPTER} files "
            f"don't: leave it out, or serve it from a bundle."
        )
    if len({adapter.facts.fingerprint for adapter in adapters}) > 1:
        raise OptionError("The adapters belong to several encoders: export those of each alone.")


def _head(adapter: Adapter) -> tuple[dict[str, np.ndarray], dict[str, Any], str]:
    """A head's tensors and options, and the pooling before it."""
    assert adapter.head is not None and adapter.task is not None
    tensors = {name: _numpy(tensor) for name, tensor in adapter.head.state_dict().items()}
    return tensors, adapter.head.options, adapter.task.pooling


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _write_adapter(tensors: Mapping[str, np.ndarray], path: Path, version: int) -> None:
    import onnxruntime

    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(FORMAT)
    adapter.set_model_version(version)
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    adapter.set_parameters({name: value(array) for name, array in tensors.items()})
    adapter.export_adapter(str(path.absolute()))


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every input with a default
    options.add_session_config_entry(EXACT, "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _compare(
    folder: Path, banks: Sequence[BankSpec], adapters: Sequence[Adapter], version: int
) -> dict[str, dict[str, float]]:
    """Run every adapter and head of a folder in every way, on a few tokens."""
    import onnxruntime

    session, names = _session(folder / MODEL), [HIDDEN, MEAN]
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2], np.int64)
    feeds = {INPUT_IDS: np.arange(12, dtype=np.int64).reshape(2, 6) % 8, MASK: mask}
    plain = session.run(names, feeds)
    report: dict[str, dict[str, float]] = {}
    for adapter in adapters:
        states = plain
        if adapter.sites:
            path = folder / f"{adapter.name}{ADAPTER}"
            inputs = load_ort_adapter(path, banks, version=version)
            active, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
            active.Load(str(path.absolute()))
            options.add_active_adapter(active)
            states = session.run(names, feeds, options)
            wanted = session.run(names, {**feeds, **inputs})
            moved = float(np.abs(states[0] - plain[0]).max() / np.abs(plain[0]).max())
            report[adapter.name] = {"moves": moved}
            same = all(map(np.array_equal, states, wanted))
            if not same or (moved == 0 and _acts(adapter)):
                what = "its own arrays given as inputs" if not same else "an adapter"
                raise ParityError(
                    f"onnxruntime doesn't answer with {adapter.name}{ADAPTER} as with {what}. "
                    f"Nothing was written.",
                    report,
                )
        if adapter.head is not None:
            tensors, options_, pooling = _head(adapter)
            at = HEADS + f"/{adapter.name}.onnx"
            found = _session(folder / at).run([LOGITS], _taken(states, pooling))[0]
            pooled = states[0][:, 0] if pooling == "cls" else states[1]
            logits = Head(tensors, options_)(pooled)
            apart = np.abs(found - logits).max() / max(np.abs(logits).max(), 1e-6)
            if not apart <= CLOSE:  # NaN too
                raise ParityError(
                    f"{at} is {apart:.2g} from the head in NumPy. Nothing was written.", report
                )
    return report


def _taken(states: Sequence[np.ndarray], pooling: str) -> dict[str, np.ndarray]:
    """What a head takes of the encoder's outputs."""
    return {HIDDEN: states[0]} if pooling == "cls" else {MEAN: states[1]}


def _acts(adapter: Adapter) -> bool:
    """Whether an adapter changes anything: a fresh one's B is zero."""
    return any(bool((part.delta() != 0).any()) for part in adapter.sites.values())


def _about(adapter: Adapter, max_length: int) -> dict[str, Any]:
    """What the manifest says of an adapter: all that is needed to answer with it."""
    head = adapter.head is not None and adapter.task is not None
    cls = adapter.task is not None and adapter.task.pooling == "cls"
    return {
        "adapter": f"{adapter.name}{ADAPTER}" if adapter.sites else None,
        "head": f"{HEADS}/{adapter.name}.onnx" if head else None,
        "output": HIDDEN if cls else MEAN,
        "task": adapter.task.to_json() if adapter.task is not None else None,
        "labels": list(adapter.task.labels) if adapter.task is not None else [],
        "prefix": adapter.prefix,
        "max_length": min(adapter.max_length or max_length, max_length),
        "language": adapter.facts.language,
    }
