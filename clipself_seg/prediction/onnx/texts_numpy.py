"""Embeddings of class names by a text tower, without torch (numpy, onnxruntime, tokenizers)."""

import json
from pathlib import Path

import numpy as np


class Texts:
    """The text tower of three files: `stem`_text.onnx, `stem`_tokenizer.json and `stem`.json."""

    def __init__(self, stem):
        from onnxruntime import InferenceSession
        from tokenizers import Tokenizer

        self.meta = json.loads(Path(f"{stem}.json").read_text("utf-8"))
        self.session = InferenceSession(f"{stem}_text.onnx", providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(f"{stem}_tokenizer.json")
        self.tokenizer.enable_truncation(self.meta["context_length"])
        self.tokenizer.enable_padding(length=self.meta["context_length"], pad_id=0)

    def embed(self, words):
        """Embeddings (K, P, E) of K class names in P templates; of synonyms ("dog|puppy") the mean."""
        if len(words) > (self.meta["most_words"] or len(words)):
            raise SystemExit(f"give {self.meta['most_words']} class names at most")
        rows = []
        for names in (word.split("|") for word in words):
            pairs = [(name, t) for name in names for t in self.meta["templates"]]
            texts = [t.format(n, article="an" if n[0] in "aeiou" else "a") for n, t in pairs]
            tokens = np.array([text.ids for text in self.tokenizer.encode_batch(texts)])
            units = self.session.run(None, {"tokens": tokens})[0]
            mean = units.reshape(len(names), -1, units.shape[1]).mean(axis=0)
            rows.append(mean / np.linalg.norm(mean, axis=-1, keepdims=True))
        return np.float32(rows)
