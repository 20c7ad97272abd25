"""When two texts are the same: exactly, or but for case, white space and Unicode's composition.

In a language with many diacritics one text is often written both ways, composed ("é") and
decomposed ("e" and an accent), so both are brought to NFC before they are compared.
"""

from __future__ import annotations

import unicodedata
from hashlib import blake2b


def normalized(text: str) -> str:
    """The text in NFC, casefolded, each run of white space one space, none around it."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def digest(text: str) -> int:
    """64 bits that stand for a text: among n texts two that differ collide with n² / 2⁶⁵."""
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")
