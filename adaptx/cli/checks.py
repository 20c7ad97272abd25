"""What `adaptx doctor` looks at: one small function a check, none of which needs torch."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from adaptx import __version__, machine, storage

EXTRAS = {  # in the order of the pipeline; what each is for
    "": "running exported models",
    "train": "training and evaluation",
    "onnx": "export to ONNX",
    "export": "the merged export",
    "bundled": "the offline encoder",
    "serve": "serving over HTTP",
    "ray": "batch prediction with Ray",
    "dev": "working on adaptx itself",
}
MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
GIB = 1 << 30
ENCODER_ROOM = GIB  # the bundled encoder in fp32, twice: while it is converted both stand there


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is (ok, warning or problem), what was found, what mends it."""

    name: str
    level: str
    said: str
    remedy: str = ""


def all_checks() -> Iterator[Check]:
    """Every check's findings, one after another."""
    torch, broken = _torch()
    yield python()
    yield from packages()
    if broken:
        yield broken
    yield threads(torch)
    yield gpu(torch)
    yield number_formats(torch)
    yield allocator()
    yield memory()
    yield cache()
    yield hub()
    yield encoders(torch)


def python() -> Check:
    """The interpreter and the machine."""
    where = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("python", "ok", f"{where}; adaptx {__version__}")


def packages() -> Iterator[Check]:
    """Installed versions against those that adaptx asks for, extra by extra."""
    try:
        asked = metadata.requires("adaptx") or []
    except metadata.PackageNotFoundError:
        remedy = "pip install -e . (in the clone)"
        yield Check("packages", "warning", "adaptx runs from a folder, not installed", remedy)
        return
    from packaging.requirements import Requirement

    for extra, purpose in EXTRAS.items():
        requirements = [r for r in map(Requirement, asked) if _belongs(r, extra)]
        if not requirements:
            continue
        found = [(f"{r.name}{r.specifier}", r, _version(r.name)) for r in requirements]
        missing = [asked_for for asked_for, _, have in found if have is None]
        old = [
            f"{asked_for} (found {have})"
            for asked_for, r, have in found
            if have is not None and not r.specifier.contains(have, True)
        ]
        name = f"packages for {purpose}"
        install = f"pip install --upgrade 'adaptx[{extra}]'" if extra else "pip install adaptx"
        if old:
            yield Check(name, "problem", f"of another version: {', '.join(old)}", install)
        elif len(missing) == len(requirements):
            yield Check(name, "problem" if not extra else "ok", "not installed", install)
        elif missing:
            yield Check(name, "warning", f"not all there: {', '.join(missing)} missing", install)
        else:
            said = ", ".join(f"{r.name} {have}" for _, r, have in found)
            yield Check(name, "ok", said)


def _belongs(requirement: Any, extra: str) -> bool:
    """Whether a requirement is one of the extra's own ("" for those that are always asked for)."""
    if requirement.name == "adaptx":  # an extra that brings another one along
        return False
    marker = requirement.marker
    always, with_extra = (marker is None or marker.evaluate({"extra": e}) for e in ("", extra))
    return bool(with_extra and not always) if extra else bool(always)


def threads(torch: Any) -> Check:
    """Cores, and how many of them torch takes."""
    cores, asked = machine.cores(), os.environ.get("OMP_NUM_THREADS")
    said = f"{cores} cores, OMP_NUM_THREADS {asked or 'not set'}"
    if torch is not None:
        said += f", torch takes {torch.get_num_threads()}"
    remedy = f"export OMP_NUM_THREADS={cores}"
    if asked is not None and asked != str(cores):
        return Check("threads", "warning", f"{said}: not one thread for each core", remedy)
    if asked is None:
        said += "; `accelerate launch` would give each process one"
        return Check("threads", "warning", said, remedy)
    return Check("threads", "ok", said)


def gpu(torch: Any) -> Check:
    """GPUs of the machine, and whether torch sees them."""
    there = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if torch is None:
        return Check("gpu", "ok", "an NVIDIA driver is there" if there else "no NVIDIA driver")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("gpu", "ok", f"{', '.join(names)}; CUDA {torch.version.cuda}")
    if not there:
        return Check("gpu", "ok", "none: everything runs on the CPU")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build for CPUs"
    return Check(
        "gpu",
        "problem",
        f"an NVIDIA driver is there, but torch {torch.__version__} ({built}) sees no GPU",
        "pip install --force-reinstall torch (choose the build for your driver on pytorch.org)",
    )


def number_formats(torch: Any) -> Check:
    """Whether bf16 training and int8 models are fast here."""
    if torch is not None and torch.cuda.is_available():
        has = "has" if torch.cuda.is_bf16_supported() else "lacks"
        return Check("bf16 and int8", "ok", f"the GPU {has} bf16")
    flags = machine.flags()
    if flags is None:
        return Check("bf16 and int8", "ok", "can't be told on this system")
    bf16 = [name for name in machine.BF16 if name in flags]
    int8 = [name for name in machine.INT8 if name in flags]
    trains = f"fast ({bf16[0]}): --precision bf16 pays" if bf16 else "slow: train in fp32"
    serves = f"fast ({int8[0]})" if int8 else "slower (no VNNI: products take care not to overflow)"
    said = f"bf16 {trains}; int8 {serves}"
    return Check("bf16 and int8", "ok", said)


def allocator() -> Check:
    """Whether big tensors' memory is kept for the next one, or given back and asked for again."""
    preloaded = re.search(r"jemalloc|tcmalloc|mimalloc", os.environ.get("LD_PRELOAD", ""))
    if preloaded:
        return Check("memory allocator", "ok", f"{preloaded.group()} is preloaded")
    if platform.libc_ver()[0] != "glibc":
        return Check("memory allocator", "ok", "not glibc's: nothing is known to mend")
    unset = [name for name in MALLOC if name not in os.environ]
    if not unset:
        said = ", ".join(f"{name}={os.environ[name]}" for name in MALLOC)
        return Check("memory allocator", "ok", said)
    return Check(
        "memory allocator",
        "warning",
        f"glibc's, and {' and '.join(unset)} not set: it gives the memory of each big tensor back "
        f"to the system, which slows large batches on a CPU",
        "export " + " ".join(f"{name}={GIB}" for name in MALLOC),
    )


def memory() -> Check:
    """Memory that is free."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"))
    if found is None:
        return Check("memory", "ok", "can't be told on this system")
    free = int(found.group(1)) * 1024
    if (limit := _text("/sys/fs/cgroup/memory.max").strip()).isdigit():
        used = _text("/sys/fs/cgroup/memory.current").strip()
        free = min(free, int(limit) - int(used or 0))
    if free < 2 * GIB:
        remedy = "close other programs, or train with --batch-size 8 --checkpointing"
        return Check("memory", "warning", f"{_gb(free)} free", remedy)
    return Check("memory", "ok", f"{_gb(free)} free")


def cache() -> Check:
    """The cache folder: where, how large, writable, and the room on its disk."""
    folder = storage.cache_dir()
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        remedy = "export ADAPTX_CACHE=FOLDER (one that you may write to)"
        return Check("cache", "problem", f"{folder} can't be written ({above})", remedy)
    free = shutil.disk_usage(above).free
    said = f"{folder}, {_gb(_size(folder))}; {_gb(free)} free on its disk"
    if free < ENCODER_ROOM:
        remedy = "make room, or export ADAPTX_CACHE=FOLDER (one on a larger disk)"
        return Check("cache", "warning", said, remedy)
    return Check("cache", "ok", said)


def hub() -> Check:
    """Where the Hub's files are kept, and whether it may be reached."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return Check("Hub", "ok", "huggingface_hub isn't installed: exported models need no Hub")
    said = f"{constants.HF_HUB_CACHE}, {_gb(_size(Path(constants.HF_HUB_CACHE)))}"
    if constants.HF_HUB_OFFLINE:
        said += "; HF_HUB_OFFLINE is set: only what is cached can be opened"
        return Check("Hub", "warning", said, "unset HF_HUB_OFFLINE (where there is a network)")
    return Check("Hub", "ok", said)


def encoders(torch: Any) -> Check:
    """Encoders that open without a network."""
    name = "encoders without a network"
    if torch is None:
        return Check(name, "ok", "none can be opened without torch")
    from adaptx.cli.cached import cached_encoders

    there = [encoder.name for encoder in cached_encoders() if encoder.ready]
    if there:
        return Check(name, "ok", ", ".join(there))
    return Check(name, "ok", "none so far", "pip install 'adaptx[bundled]'")


def _torch() -> tuple[Any, Check | None]:
    """The torch module (None without it), and what is wrong where it can't be imported."""
    if _version("torch") is None:
        return None, None
    try:
        return importlib.import_module("torch"), None
    except Exception as error:  # a broken installation may raise anything
        said = f"it is installed, but can't be imported: {type(error).__name__}: {error}"
        return None, Check("torch", "problem", said, "pip install --force-reinstall torch")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _size(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    paths = (Path(above) / name for above, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in paths)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
