"""SigLIP's files: names of transformers' models, and the tokenizer.

transformers has two classes: `SiglipModel`, for SigLIP and for the SigLIP 2 of fixed sizes, and `Siglip2Model`, for
"naflex", whose patches come flattened, rows of pixels with their channels last, and go through a linear layer.
"""

from __future__ import annotations

import html
import math
import string
from collections.abc import Mapping, Sequence

from torch import Tensor

from clipself_seg.clip.file_names import replace, stacked
from clipself_seg.clip.kind import Architecture, Tensors
from clipself_seg.clip.pooled import alone
from clipself_seg.clip.tokenizer_files import FileTokenizer, repository_tokenizer
from clipself_seg.clip.tokenizers import Tokenizer

LAYER = (  # names in a block here, and transformers'
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
PARTS = (  # beginnings of native names, and transformers'
    ("visual.blocks.", "vision_model.encoder.layers."),
    ("visual.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual.pos_embed", "vision_model.embeddings.position_embedding.weight"),
    ("visual.norm.", "vision_model.post_layernorm."),
    ("visual.attn_pool.latent", "vision_model.head.probe"),
    ("visual.attn_pool.proj.", "vision_model.head.attention.out_proj."),
    ("visual.attn_pool.norm.", "vision_model.head.layernorm."),
    ("visual.attn_pool.mlp.", "vision_model.head.mlp."),
    ("text.transformer.resblocks.", "text_model.encoder.layers."),
    ("text.token_embedding.", "text_model.embeddings.token_embedding."),
    ("text.positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("text.ln_final.", "text_model.final_layer_norm."),
    ("text.text_projection.", "text_model.head."),
)
STACKS = ("visual.blocks.", "text.transformer.resblocks.")
POOL = "vision_model.head.attention.in_proj_"
MATRICES = (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj.")
END = 1  # id of the token that ends a text
GEMMA = (
    256_000  # ids of SigLIP 2's vocabulary, which pads with 0; SigLIP's own pad with the end token
)


def read_siglip(tensors: Tensors, scalars: Mapping[str, float]) -> dict[str, Tensor]:
    """Native names of transformers' tensors; what is none of them stays as it is.

    Args:
        tensors: of a file.
        scalars: logit scale and bias before training, as for `pooled.alone`.
    """
    native: dict[str, Tensor] = {}
    for name, tensor in stacked(tensors, MATRICES, ".attn.in_proj_").items():
        if name.startswith(POOL) and tensor.dim():
            width, leaf = len(tensor) // 3, name.removeprefix(POOL)
            native[f"visual.attn_pool.q.{leaf}"] = tensor[:width]
            native[f"visual.attn_pool.kv.{leaf}"] = tensor[width:]
            continue
        for ours, theirs in PARTS:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                if ours in STACKS:
                    name = replace(name, LAYER, backwards=True)
                break
        native[name] = tensor
    return alone(native | _as_images(native), scalars)


def _as_images(native: dict[str, Tensor]) -> dict[str, Tensor]:
    """The patch layer as a convolution and the table with its batch axis, of those that are there."""
    changed = {}
    kernel = native.get("visual.patch_embed.proj.weight")
    if kernel is not None and kernel.dim() == 2:  # of flattened patches
        side = math.isqrt(kernel.shape[1] // 3)
        if 3 * side * side == kernel.shape[1]:
            square = kernel.reshape(-1, side, side, 3).permute(0, 3, 1, 2)
            changed["visual.patch_embed.proj.weight"] = square.contiguous()
    table = native.get("visual.pos_embed")
    if table is not None and table.dim() == 2:
        changed["visual.pos_embed"] = table[None]
    return changed


class SiglipTokenizer:
    """SigLIP's token ids: the text is lower-cased and loses its punctuation, and always ends with the end token.

    Files differ in whether they add that token, and Gemma's own adds one before the text, which SigLIP 2 has not.
    """

    def __init__(self, pieces: FileTokenizer) -> None:
        """
        Args:
            pieces: tokens of a text by its vocabulary, with the end token or without, and padding.
        """

        def encode(text: str) -> list[int]:
            ids = pieces.encode(canonical(text))
            return ids if ids[-1:] == [END] else [*ids, END]

        self.pieces = FileTokenizer(encode, pieces.padding)

    def __call__(self, texts: Sequence[str], context_length: int) -> Tensor:
        """Token ids (K, context_length) int64 of K texts; longer texts are cut before their end token."""
        ids_KT = self.pieces(texts, context_length)
        for row_T, text in zip(ids_KT, texts):
            if self.count(text) > context_length:
                row_T[-1] = END
        return ids_KT

    def count(self, text: str) -> int:
        """Number of tokens of a text, its end included."""
        return self.pieces.count(text)


def canonical(text: str) -> str:
    """A text as SigLIP was trained with it: lower case, without punctuation, with single spaces."""
    text = html.unescape(html.unescape(text)).replace("_", " ")
    text = text.translate(str.maketrans("", "", string.punctuation)).lower()
    return " ".join(text.split())


def siglip_tokenizer(architecture: Architecture) -> Tokenizer:
    """The tokenizer of a model, whose vocabulary is a file of its repository on the hub.

    Raises:
        InputError: as `repository_tokenizer`.
    """
    vocabulary = architecture.text["vocab_size"]
    repository = architecture.text["hf_tokenizer_name"]
    padding = 0 if vocabulary == GEMMA else END
    pieces = repository_tokenizer(repository, vocabulary=vocabulary, padding=padding, added=False)
    return SiglipTokenizer(pieces)
