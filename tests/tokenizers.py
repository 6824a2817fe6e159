"""A tokenizer of a few byte pairs in the form of TIPSv2's file."""

from __future__ import annotations

from pathlib import Path

WORDS = ("a", "cat", "dog", "photo", "of", "on", "the")


def write_tokenizer(path: Path) -> Path:
    """Write a ``tokenizer.json`` whose tokens are some letters and words; it has less than 40."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = sorted({letter for word in WORDS for letter in word})
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<unk>", "▁", *letters])}
    merges = []
    for first, second in (("c", "a"), ("ca", "t"), ("d", "o"), ("do", "g"), ("o", "f")):
        vocabulary[first + second] = len(vocabulary)
        merges.append((first, second))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.save(str(path))
    return path
