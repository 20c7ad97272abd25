"""Answers from a bundle with the runtime alone: `pip install .` and no extra, so no torch.

Command   python export/answer.py build/bundle "Timu yetu imeshinda" --language sw
          python export/answer.py build/bundle --adapter sw-topics < texts.txt
Answer    {"text": …, "adapter": "sw-topics", "label": "sports", "score": 0.97,
           "scores": {…}, "truncated": 0}; entities, for one that tags

Texts are arguments, or the lines of standard input, --batch at a time. Without --adapter and
--language, an answer is the text's vector.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from adaptx.cli.run import run
from adaptx.errors import DataError
from adaptx.runtime import Runtime


def main() -> None:
    options = arguments()
    with Runtime.open(
        options.bundle,
        threads=options.threads,
        arena=not options.little_memory,
        library=options.library,
        max_resident=options.max_resident,
    ) as runtime:
        for texts in batches(options.texts or lines(), options.batch):
            answers = runtime.predict(texts, options.adapter, language=options.language)
            for text, answer in zip(texts, answers, strict=True):
                said: dict[str, Any] = {"text": text, "adapter": answer.adapter}
                if answer.prediction is not None:
                    said |= answer.prediction.to_json()
                elif answer.vector is not None:
                    said |= {"vector": [round(float(value), 5) for value in answer.vector]}
                said |= {"truncated": answer.truncated}
                print(json.dumps(said, ensure_ascii=False), flush=True)


def lines() -> Iterator[str]:
    """The lines of standard input, as UTF-8 whatever the terminal's language is."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"this isn't UTF-8 ({error}).", "standard input", number) from None


def batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` texts, the last one shorter."""
    left = iter(texts)
    while batch := list(itertools.islice(left, size)):
        yield batch


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("texts", nargs="*", help="default: the lines of standard input")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--adapter", help="the adapter's name")
    chosen.add_argument("--language", help="take the adapter of this language")
    parser.add_argument("--batch", type=positive, default=32, help="texts at a time; default: 32")
    parser.add_argument("--threads", type=positive, help="default: every core of this process")
    parser.add_argument("--library", help="a folder with more adapters, read when asked for")
    parser.add_argument("--max-resident", help="adapters in memory: a number, or such as 64MB")
    parser.add_argument(
        "--little-memory", action="store_true", help="give memory back between runs; slower"
    )
    return parser.parse_args()


def positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return number


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    try:
        run(main)
    except BrokenPipeError:  # whoever reads the answers has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
