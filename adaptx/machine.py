"""What this machine's processor has, as far as the system tells."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

X86 = ("x86_64", "amd64", "i386", "i686")
BF16 = ("amx_bf16", "avx512_bf16", "bf16")
INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm")


def cores() -> int:
    """The CPUs that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def flags() -> set[str] | None:
    """The processor's features by Linux's names; None where the system doesn't tell."""
    try:
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", said, re.M)
    return set(lines[0].split()) if lines else None


def has_bf16() -> bool:
    """Whether the processor multiplies in bf16: without that, fp32 is several times as fast."""
    return not (flags() or set()).isdisjoint(BF16)


def overflows() -> bool:
    """Whether onnxruntime's products of u8 with s8 may overflow here: on x86 without VNNI, pairs of
    them are summed in 16 bits. Where the system doesn't tell, they may.
    """
    x86 = platform.machine().lower() in X86
    return x86 and (flags() or set()).isdisjoint(INT8)
