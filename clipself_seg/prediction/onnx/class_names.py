"""Class names of a graph: inside, or given to the file later, with a text tower beside it.

The graphs of all tasks have one form, and take embeddings of all names of all classes in all sentences. What becomes of
sentences and synonyms happens in the graph, as the model does it. Names that are set are constants (`NamesInside`);
else the embeddings are an input, and ``templates/onnx_texts.py.txt`` makes them (`open_names`).

Shapes: K classes, S names of the class with the most, P sentences around a name, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from clipself_seg.clip import CLIP, VisionLanguageBackbone
from clipself_seg.clip.templates import AS_IT_STANDS, TEMPLATES
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError
from clipself_seg.prediction.onnx.graph import Export, script
from clipself_seg.prediction.onnx.towers import text_graph, tokenizer_of

TRACED = "grass|lawn, red star, dog|puppy"
COMPARED = "cat, sand", "dog|person|blue ring, sky, car, b, c", "red star"  # other numbers of names


class NamesInside(nn.Module):
    """A graph with its class names inside: of images alone."""

    def __init__(self, scorer: nn.Module, *given: Tensor) -> None:
        """
        Args:
            scorer: takes images and what is given.
            given: what the class names become.
        """
        super().__init__()
        self.scorer = scorer
        for number, one in enumerate(given):
            self.register_buffer(f"given{number}", one)

    def forward(self, images: Tensor) -> Any:
        """Outputs of the graph without them."""
        return self.scorer(images, *self.buffers(recurse=False))


def of_names(texts_KSPE: Tensor) -> Tensor:
    """Unit vectors (K, S, E) of names: the mean over sentences, as `TextBank` takes it; zeros stay."""
    return F.normalize(F.normalize(texts_KSPE, dim=-1).mean(dim=2), dim=-1)


def of_classes(texts: Tensor) -> Tensor:
    """Unit vectors (K, ..., E) of classes: the mean over names, of embeddings (K, S, ..., E), 0 where there is none."""
    return F.normalize(F.normalize(texts, dim=-1).sum(dim=1), dim=-1)


def by_class(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Embeddings (K, S, ...) of classes that have `counts` names, one after another in the rows; zeros follow them."""
    return pad_sequence(list(rows.split(list(counts))), batch_first=True)


def of_each_class(logits: Tensor, texts_KSE: Tensor) -> Tensor:
    """Logits (..., K, S) of those (..., K * S) of all embeddings, minus infinity where a class has no such name."""
    there_KS = (texts_KSE != 0).any(dim=2)
    return torch.where(there_KS, logits.unflatten(-1, there_KS.shape), -torch.inf)


def sentences(templates: str, clean: bool | None = None) -> list[str]:
    """Sentences of a key of `TEMPLATES`: {} is a name as it stands, {clean} as `clean_name` writes it.

    Args:
        templates: the key.
        clean: as for `class_prompts`.
    """
    if clean is None:
        clean = templates not in AS_IT_STANDS
    return [one.replace("{}", "{clean}") if clean else one for one in TEMPLATES[templates]]


@torch.no_grad()
def open_names(
    export: Export,
    clip: VisionLanguageBackbone,
    texts: Mapping[str, Sequence[str]],
    trained: Vocabulary | None = None,
    exact: bool | None = None,
) -> None:
    """Leaves the class names of an export open, and puts the text tower and its tokenizer beside it.

    Args:
        export: of a graph that takes images, which classes are seen (unless `exact` is None) and embeddings.
        clip: whose text tower makes the embeddings.
        texts: name of an input of embeddings -> `sentences` around the names.
        trained: whose classes are seen; None if that is not known, and all are.
        exact: as for `Vocabulary.seen_in`; None for scores that do not tell seen classes.

    Raises:
        InputError: the tower's tokenizer is not CLIP's.
    """
    tokenizer = tokenizer_of(clip)
    if tokenizer is None or not isinstance(clip, CLIP):
        raise InputError(
            f"{clip.name} has another tokenizer than CLIP's, which is not exported: give the class names now"
        )
    graph, metadata = export.graph, export.metadata
    metadata |= {"templates": texts, "context_length": clip.context_length}
    sizes: dict[str, dict[int, str]] = {}
    if exact is not None:
        sizes["seen"] = {0: "K"}
        names = None if trained is None else sorted(trained.shown(exact=exact))
        metadata |= {"trained": names, "exact_names": exact}
    sizes |= {name: {0: "K", 1: "S"} for name in texts}

    def given(words: str) -> list[Tensor]:
        names = Vocabulary.of(words).names()
        seen = [torch.arange(len(names)) % 2 == 0] if exact is not None else []
        # Without sentences, of which every one has the same embedding.
        rows = clip.embed_texts([name for own in names for name in own])
        alone = by_class(rows, [len(own) for own in names])[:, :, None]
        return [*seen, *(alone.repeat(1, 1, len(around), 1) for around in texts.values())]

    graph.inputs |= zip(sizes, given(TRACED))
    graph.sizes |= sizes
    graph.checks = ((*images, *given(words)) for images, words in zip(graph.checks, COMPARED))
    export.further = {"_text.onnx": text_graph(clip, unit=False)}
    export.beside |= {"_tokenizer.json": tokenizer.to_json(), "_texts.py": script("texts")}
