"""Stand-ins of the official files of the zoo: names, shapes and wrappers of their tensors, without numbers.

Names are those of the code that wrote the files where it is installed (open_clip, torchvision, timm, diffusers,
transformers), else this project's own in their layout. Beside them stands what the real files have more; where that is
known from stands beside the loaders' lists of what they leave out. As files they are holes: gigabytes take no room.
"""

import contextlib
import functools
import json
import math
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torchvision
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from clipself_seg.checkpoints import locate, read
from clipself_seg.checkpoints.zoo import Entry, zoo
from clipself_seg.clip import load_clip, tips
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.clip.text import TextTower
from clipself_seg.config import load_config
from clipself_seg.heads.diffusion.stable_diffusion import (
    StableDiffusionSizes,
    build_unet,
    build_vae,
)
from clipself_seg.models import paths
from clipself_seg.models.cat_seg import cat_seg_checkpoint
from clipself_seg.models.fvit import fvit_checkpoint
from clipself_seg.models.panoptic import panoptic_checkpoint

Tensors = dict[str, Tensor]
CLIP = "backbone.clip_model."  # of FC-CLIP's
# Beginning of a configuration -> keys and values of a model without weights of its parts.
BARE = {
    "semseg/catseg_v1": ("MODEL.CLIP.WEIGHTS", "", "MODEL.CAT_SEG.BACKBONE_WEIGHTS", "random"),
    "panoptic/odise": ("MODEL.CLIP.WEIGHTS", "", "MODEL.DIFFUSION.WEIGHTS", "random"),
    "": ("MODEL.CLIP.WEIGHTS", ""),
}
# Moments of an optimiser, as Detectron2 and mmcv keep them beside the weights.
OPTIMIZER = {"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
# What of its CLIP the released FC-CLIP with ConvNeXt-L lacks (load logs: bytedance/fc-clip, issues 14 and 34).
LACKING = ("ln_final.", "token_embedding.", "transformer.", "visual.trunk.stages.")
# Of what ODISE freezes (prefixes of its load log).
OF_ODISE = ("clip_head.clip.", "backbone.feature_extractor.ldm_extractor.")


def number(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without numbers."""
    return torch.empty(shape, dtype=dtype, device="meta")


@contextlib.contextmanager
def without_numbers() -> Iterator[None]:
    """Inside of it tensors need no numbers: they can be saved and loaded, and none is found to be wrong."""
    with pytest.MonkeyPatch.context() as patch:
        # Of depths, for rates that are read as numbers.
        patch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
        patch.setattr(Tensor, "cpu", lambda self: self)
        patch.setattr(TextTower, "forward", lambda self, tokens, *_: number(len(tokens), 1))
        patch.setattr(read, "is_finite", lambda _: True)
        patch.setattr(panoptic_checkpoint, "nearly_equal", lambda *_: True)
        patch.setattr(panoptic_checkpoint, "frozen_hashes", lambda _: {})
        yield


def model_of(entry: Entry) -> nn.Module:
    """The model of an entry's first configuration, whose CLIP counts as loaded; inside of `without_numbers`."""
    config = entry.configs[0]
    opts = next(opts for beginning, opts in BARE.items() if config.startswith(beginning))
    cfg = load_config(config, opts)
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    model.clip.report = "as if MODEL.CLIP.WEIGHTS had been read"
    return model


def of_open_clip(name: str) -> Tensors:
    """The tensors of a model as open_clip saves it; those of ResNets with counters of batch norms."""
    return open_clip.create_model(name, device="meta").state_dict()


def of_clip(entry: Entry) -> dict[str, Any]:
    """A CLIP's file."""
    if entry.name.startswith("tipsv2"):  # no temperature: transformers, modeling_tipsv2.py
        tensors = tips.write_official(load_clip(entry.model, None).state_dict())
        return {name: tensor for name, tensor in tensors.items() if name != "temperature"}
    if not entry.name.startswith(("eva02", "clipself")):
        return of_open_clip(entry.model)
    if entry.name.startswith("clipself-openai"):
        tensors = of_open_clip(entry.model)
    else:
        clip = load_clip(entry.model, None)
        tensors = clip.file_tensors(clip.state_dict()) | rotary(clip.visual, "visual.", "")
    return {"epoch": 6, "name": "x", "state_dict": tensors} if entry.distilled else tensors


def rotary(tower: nn.Module, prefix: str, tokens: str) -> Tensors:
    """Rotary tables of an EVA-02 (baaivision/EVA, rei/eva_clip/rope.py), of the tower and again of each block."""
    names = [f"{prefix}rope."]
    names += [f"{prefix}blocks.{block}.attn.rope." for block in range(len(tower.blocks))]
    tables = [f"freqs_cos{tokens}", f"freqs_sin{tokens}"]
    side = math.isqrt(tower.pos_embed.shape[1] - 1)
    return {name + table: number(side**2, 64) for name in names for table in tables}


def of_cat_seg(model: Any, entry: Entry) -> dict[str, Any]:
    """With the masks of its windows, and what Detectron2 keeps to resume."""
    return cat_seg_checkpoint.write(model) | {"optimizer": OPTIMIZER, "iteration": 79999}


def of_fvit(model: Any, entry: Entry) -> dict[str, Any]:
    """The image tower alone, with the rotary tables that were made for larger images: wusize/CLIPSelf, issue 24."""
    state = fvit_checkpoint.write(model)["state_dict"]
    own = ("backbone.text.", "backbone.logit_scale", fvit_checkpoint.NAMES)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(own)}
    tower = model.clip.visual
    for tokens in ("", "_1600"):
        state |= rotary(tower, "backbone.visual.", tokens)
    flags = {name.rpartition(".")[0] + ".flag" for name in state if ".rope." in name}
    state |= {name: number(1) for name in flags}
    state["roi_head.bbox_head.fc_cls.weight"] = number(66, tower.embed_dim)
    state["roi_head.bbox_head.fc_cls.bias"] = number(66)
    state["roi_head.bbox_head.all_embeddings"] = number(tower.embed_dim, 66)
    return {"meta": {"epoch": 3, "mmdet_version": "2.28.1"}, "state_dict": state} | {
        "optimizer": OPTIMIZER
    }


def of_odise(model: Any, entry: Entry) -> dict[str, Any]:
    state = panoptic_checkpoint.trained_state(model)
    head = f"{'word' if 'caption' in entry.name else 'category'}_head.clip."
    state |= {f"{prefix}logit_scale": number() for prefix in (*OF_ODISE, head)}
    return {"model": state | {"criterion.empty_weight": number(134)}, "iteration": 92000}


def of_fcclip(model: Any, entry: Entry) -> dict[str, Any]:
    state = panoptic_checkpoint.trained_state(model) | {"criterion.empty_weight": number(134)}
    lacking = LACKING if "convnext" in entry.name else ()
    for name, tensor in of_open_clip(model.clip.name).items():
        if not name.startswith(lacking):
            state[CLIP + name] = tensor
    return {"model": state, "optimizer": OPTIMIZER, "iteration": 368750}


# Beginning of a name -> what the file of such a model has.
MODELS = {"catseg": of_cat_seg, "fvit": of_fvit, "odise": of_odise, "fcclip": of_fcclip}


def resnet101() -> Tensors:
    """torchvision's file, which was saved before batch norms had counters."""
    state = torchvision.models.resnet101().state_dict()
    return {n: tensor for n, tensor in state.items() if not n.endswith("num_batches_tracked")}


def swin_base() -> dict[str, Tensors]:
    """Microsoft's file: a stage ends with its `downsample`, tables and masks are beside the weights."""
    model = timm.create_model("swin_base_patch4_window12_384", num_classes=21841)
    state = {}
    for name, tensor in model.state_dict().items():
        name = re.sub(
            r"(?<=layers\.)\d(?=\.downsample)", lambda stage: f"{int(stage[0]) - 1}", name
        )
        state[name.replace("head.fc.", "head.")] = tensor
        if name.endswith("relative_position_bias_table"):
            state[name.replace("bias_table", "index")] = number(144, 144, dtype=torch.int64)
    state["layers.0.blocks.1.attn_mask"] = number(64, 144, 144)
    return {"model": state}


def stable_diffusion() -> dict[str, Tensors]:
    """The three networks of diffusers' folder, of which full precision is there as pickles alone."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = StableDiffusionSizes()
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    encoder = CLIPTextModel(text).state_dict()
    encoder["text_model.embeddings.position_ids"] = number(1, 77, dtype=torch.int64)
    return {
        "unet/diffusion_pytorch_model.bin": build_unet(sizes).state_dict(),
        "vae/diffusion_pytorch_model.bin": build_vae(sizes).state_dict(),
        "text_encoder/pytorch_model.bin": encoder,
    }


def contents(entry: Entry) -> dict[str, Any]:
    """Path below the folder of weights -> content of a file; inside of `without_numbers`."""
    if entry.key == "MODEL.WEIGHTS":
        return {entry.file: MODELS[entry.name.partition("-")[0]](model_of(entry), entry)}
    with torch.device("meta"):
        if entry.key == "MODEL.DIFFUSION.WEIGHTS":
            return {f"{entry.file}/{path}": part for path, part in stable_diffusion().items()}
        if entry.key == "MODEL.CAT_SEG.BACKBONE_WEIGHTS":
            return {entry.file: resnet101() if entry.name == "resnet101" else swin_base()}
        return {entry.file: of_clip(entry)}


def write(entry: Entry, folder: Path) -> None:
    """Write the files of an entry where `locate` looks for them, of zeros that take no room."""
    with without_numbers():
        parts = contents(entry)
    for path, content in parts.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            write_safetensors(file, content)
        else:
            with torch.serialization.skip_data():
                torch.save(on_host(content), file)


def write_tokenizer_of(entry: Entry, folder: Path) -> None:
    """Write the tokenizer of an entry's CLIP, if that has one of its own, where it is looked for."""
    text = find_architecture(entry.model).text if entry.model else {}
    if repository := text.get("hf_tokenizer_name"):
        from tokenizers import Tokenizer, models, pre_tokenizers

        place = folder / "hub" / repository.replace("/", "--") / "main"
        place.mkdir(parents=True, exist_ok=True)
        tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1}, unk_token="<unk>"))
        # As with a real one a sentence of a template is no longer than the 16 tokens of SO400M.
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(place / "tokenizer.json"))


def on_host(content: Any) -> Any:
    """The same content on the CPU, where memory that nobody writes takes no room."""
    if isinstance(content, dict):
        return {key: on_host(value) for key, value in content.items()}
    return torch.empty_like(content, device="cpu") if isinstance(content, Tensor) else content


def write_safetensors(file: Path, tensors: Tensors) -> None:
    """Write a safetensors file that is a hole behind its header."""
    types = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": types[tensor.dtype], "shape": [*tensor.shape]}
        header[name]["data_offsets"] = [start, end]
    begin = json.dumps(header).encode()
    begin += b" " * (-len(begin) % 8)
    file.write_bytes(len(begin).to_bytes(8, "little") + begin)
    os.truncate(file, 8 + len(begin) + end)


@contextlib.contextmanager
def fetched(folder: Path) -> Iterator[None]:
    """Inside of it what is fetched is a stand-in, of any size, digest and checksums; all is deleted behind it."""
    fetch = locate.fetch

    def stand_in(entry: Entry) -> Path:
        if locate.present_file(entry) is None:
            write(entry, folder)
        return fetch(entry)

    for entry in zoo().values():
        write_tokenizer_of(entry, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(locate.VARIABLE, str(folder))
        patch.setattr(locate, "check_file", lambda *_: None)
        patch.setattr(zipfile.ZipFile, "testzip", lambda _: None)  # holes have no checksums
        for module in (locate, paths):
            patch.setattr(module, "fetch", stand_in)
        yield
    shutil.rmtree(folder)
