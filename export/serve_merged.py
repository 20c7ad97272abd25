"""A merged model behind HTTP, with numpy, onnxruntime and tokenizers alone: no torch, no adaptx.

Command   python export/serve_merged.py build/sw-topics-int8 --port 8000
Request   curl -d '{"texts": ["Timu yetu imeshinda"]}' http://127.0.0.1:8000/
Answer    [{"label": "sports", "score": 0.97}]

A small, complete server to copy and change: a thread for each connection, onnxruntime shares the
cores. A body that isn't such a request gets status 400, one over a megabyte 413. It knows models
that answer a text with one label, and refuses others.
"""

from __future__ import annotations

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

LARGEST = 1 << 20  # bytes of a body
MOST = 256  # texts of a request


class Model:
    """The folder of a merged model that answers a text with one label."""

    def __init__(self, folder: Path):
        facts = json.loads((folder / "adaptx.json").read_text(encoding="utf-8"))
        if (kind := facts["task"]["kind"]) != "classification":
            raise SystemExit(f"{folder} is of the task {kind!r}; this server knows classification.")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.labels = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]
        settings = onnxruntime.SessionOptions()
        # Without VNNI, products of int8 overflow: with this they are exact, and slower.
        settings.add_session_config_entry("session.x64quantprecision", "1")
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), settings, providers=["CPUExecutionProvider"]
        )

    def answer(self, texts: list[str]) -> list[dict[str, object]]:
        """Label and probability of each text, one at a time.

        int8 activations share their scale within a batch: alone, a text's answer depends on
        nothing else.
        """
        answers = []
        for text in texts:
            ids = np.array([self.tokenizer.encode(text).ids], dtype=np.int64)
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            (logits,) = self.session.run(["logits"], feeds)
            shifted = np.exp(logits[0] - logits[0].max())
            best = int(shifted.argmax())
            score = float(shifted[best] / shifted.sum())
            answers.append({"label": self.labels[best], "score": round(score, 4)})
        return answers


def handler(model: Model) -> type[BaseHTTPRequestHandler]:
    """The request handler of a model."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 30  # seconds that a client may take to send its request

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", ""))
            except ValueError:
                return self.reply(411, {"error": "Content-Length is needed"})
            if not 0 <= length <= LARGEST:
                return self.reply(413, {"error": f"at most {LARGEST} bytes"})
            try:
                texts = json.loads(self.rfile.read(length))["texts"]
                if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
                    raise TypeError
                if len(texts) > MOST:
                    return self.reply(413, {"error": f"at most {MOST} texts"})
                for text in texts:
                    text.encode()  # JSON can escape half a surrogate pair
            except (ValueError, KeyError, TypeError, RecursionError):
                return self.reply(400, {"error": 'send {"texts": ["…"]}'})
            try:
                answers = model.answer(texts)
            except Exception as error:  # the next request may fare better
                self.log_error("%r", error)
                return self.reply(500, {"error": "the model failed: the server's log has more"})
            self.reply(200, answers)

        def reply(self, status: int, value: object) -> None:
            body = json.dumps(value, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a merged model's folder")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    options = parser.parse_args()
    server = ThreadingHTTPServer((options.host, options.port), handler(Model(options.folder)))
    print(f"http://{options.host}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
