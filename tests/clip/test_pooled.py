"""SigLIP's and PE-Core's towers: the pool against its definition, the libraries' own modules, and what trains."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.export import Dim

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.clip import CLIP, load_clip, save_clip, siglip
from clipself_seg.clip.pe_core import PECoreTower, Shape
from clipself_seg.clip.pooled import read_timm
from clipself_seg.clip.siglip import siglips_own
from clipself_seg.clip.text import require_text_tower
from clipself_seg.clip.tokenizers import Tokenizer
from clipself_seg.clip.tower import TowerOptions, train_last_blocks
from clipself_seg.errors import InputError
from clipself_seg.prediction.onnx import towers
from clipself_seg.prediction.onnx.graph import plain
from tests.small_towers import POOLED, REPOSITORY, SIGLIP_SHAPE, small_towers, write_tokenizer

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True, scope="module")
def known(tmp_path_factory):
    with small_towers(tmp_path_factory.mktemp("weights")):
        yield


@pytest.fixture(params=POOLED)
def clip(request) -> CLIP:
    """A small model whose parameters are all random, those that start at 0 or 1 too."""
    clip = load_clip(request.param, None)
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.dim() <= 1 and parameter.numel() > 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return clip


def pixels(batch: int = 2, height: int = 32, width: int = 48) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_regions_without_cells_are_zero_and_images_without_regions_add_none(clip):
    visual, images = clip.visual, pixels()
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[1, 0, 0] = True
    regions = visual.masked_attention(images, [masks[:0], masks])
    assert not regions[0].any() and regions[1].any() and regions.isfinite().all()
    assert visual.masked_attention(images[:0], []).shape == (0, clip.embed_dim)


@torch.no_grad()
def test_the_last_block_attends_as_all_others(clip):
    visual, images = clip.visual, pixels()
    tokens, _ = visual.final_tokens(images)
    last = tokens[:, visual.prefix :].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(visual.features(images, ["block3"])["block3"], last, **CLOSE)


def test_what_trains_gets_a_gradient_and_nothing_else(clip):
    visual = clip.visual
    for count in (1, 2, -1):
        train_last_blocks(visual, count)
        visual.zero_grad()
        visual.dense(pixels()).sum().backward()
        trained = {name for name, p in visual.named_parameters() if p.requires_grad}
        assert {n for n, p in visual.named_parameters() if p.grad is not None} == trained
        first = 0 if count == -1 else 4 - count
        assert {name.split(".")[1] for name in trained} == {str(i) for i in range(first, 4)}


def test_readouts_that_need_a_last_block_are_refused(clip):
    for kind in ("value", "multi_value", "gated_multi_value"):
        with pytest.raises(InputError, match="MODEL.CLIP.DENSE is"):
            clip.visual.configure(TowerOptions(DenseFeature(kind)))
    with pytest.raises(InputError, match="MODEL.CLIP.ATTENTION is sclip"):
        clip.visual.configure(TowerOptions(attention="sclip"))


@torch.no_grad()
def test_what_is_traced_for_export_at_one_size_holds_for_others(clip):
    sizes = {0: Dim("n"), 2: 8 * Dim("h"), 3: 8 * Dim("w")}
    del clip.visual.blocks[1:-1]  # with the first and the last it takes less time
    graph = towers.DenseGraph(clip)
    with plain(graph):
        traced = torch.export.export(graph, (pixels(2, 40, 56),), dynamic_shapes=(sizes,))
    for shape in ((1, 32, 32), (3, 16, 72)):
        images = pixels(*shape)
        torch.testing.assert_close(traced.module()(images), clip.encode_dense(images), **CLOSE)
    bias = towers._metadata(clip, {})["logit_bias"]
    assert bias == (None if clip.logit_bias is None else clip.logit_bias.item())


def test_positions_of_another_size_are_resized(clip, tmp_path, monkeypatch):
    save_clip(clip, tmp_path / "clip.pt")
    config = POOLED[clip.name]
    monkeypatch.setitem(config, "vision_cfg", config["vision_cfg"] | {"image_size": 64})
    loaded = load_clip(clip.name, tmp_path / "clip.pt")
    assert "positions resized" in str(loaded.report) and loaded.image_size == 64
    assert loaded.visual.pos_embed.shape[1] == 64 + loaded.visual.prefix


def test_the_image_towers_gelu_is_that_of_timms_name():
    for name, shape in siglip.SHAPES.items():
        tanh = "patch32" in name or "so400m_patch16" in name or "giantopt" in name
        tanh = tanh or name == "vit_large_patch16_siglip_512"
        assert shape.approximate == ("tanh" if tanh else "none"), name


def test_siglips_texts_are_lower_case_without_punctuation_and_end_with_the_end_token():
    letters = siglips_own(Tokenizer(lambda text: [*map(ord, text)]))
    for text, cleaned in (
        ("A_Photo of  a dog's &amp; cat's toy!", "a photo of a dogs cats toy"),
        ("ﬁre ＴＲＵＣＫ’s crÃ¨me cafe\u0301", "fire trucks crème café"),
    ):
        assert letters.encode(text) == [*map(ord, cleaned), 1]
    pieces = Tokenizer(lambda text: [2 + len(word) for word in text.split()] + [1])
    tokens = siglips_own(pieces)
    assert tokens(["One, two", "a b c d e f"], 4).tolist() == [[5, 5, 1, 0], [3, 3, 3, 1]]
    assert tokens.count("a b c d e f") == 7
    unended = siglips_own(Tokenizer(lambda text: [2 + len(word) for word in text.split()]))
    for length in (4, 7, 9):
        texts = ["One, two", "", "a b c d e f"]
        assert torch.equal(unended(texts, length), tokens(texts, length))
    assert unended.count("") == 1


def test_siglips_texts_end_once_whatever_a_file_puts_around_them(tmp_path, monkeypatch):
    """Gemma's own file begins texts, others end them or say nothing of it: ids are the same."""
    folder = tmp_path / "hub" / REPOSITORY.replace("/", "--") / "main"
    folder.mkdir(parents=True)
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    path = write_tokenizer(folder / "tokenizer.json")
    content = json.loads(path.read_text())
    piece, special = ({"Sequence": {"id": "A", "type_id": 0}}, lambda i: {"SpecialToken": i})
    around = {"first": [[special({"id": "first", "type_id": 0})], []]}
    around |= {"end": [[], [special({"id": "end", "type_id": 0})]], "nothing": [[], []]}
    made = {}
    for name, (before, after) in around.items():
        single = [*before, piece, *after]
        ids = {"first": {"id": "first", "ids": [2], "tokens": ["first"]}}
        ids |= {"end": {"id": "end", "ids": [1], "tokens": ["end"]}}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": ids,
        }
        path.write_text(json.dumps(content) + " " * len(made))
        made[name] = load_clip("small-SigLIP", None).tokenize(["a cat", "the dog on a photo"])
    assert made["first"][0].tolist().count(1) == 64 - made["first"][0].tolist().index(1)
    assert torch.equal(made["first"], made["end"]) and torch.equal(made["end"], made["nothing"])


# The libraries themselves, on small random weights.


@torch.no_grad()
def test_an_image_tower_of_timm_alone_loads_without_texts(clip, tmp_path):
    save_clip(clip, tmp_path / "clip.safetensors")
    whole = load_file(tmp_path / "clip.safetensors")
    prefixed = {name: tensor for name, tensor in whole.items() if name.startswith("visual.")}
    bare = {name.removeprefix("visual.trunk."): tensor for name, tensor in prefixed.items()}
    for tensors in (prefixed, bare):
        torch.save(tensors, tmp_path / "timm.pt")
        loaded = load_clip(clip.name, tmp_path / "timm.pt")
        torch.testing.assert_close(loaded.visual(pixels()), clip.embed_images(pixels()), **CLOSE)
        assert "no text tower" in str(loaded.report)
    with pytest.raises(InputError, match="timm.pt has an image tower alone"):
        loaded.encode_text("a dog")
    require_text_tower(clip.text, loaded.text, "loaded")
    require_text_tower(loaded.text, clip.text, "clip")


@torch.no_grad()
def test_the_largest_pe_core_has_no_class_token_and_counts_cells_from_0():
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    sizes |= {"ref_feat_shape": (4, 4), "num_classes": 24}
    model = timm.create_model("vit_pe_core_gigantic_patch14_448", **sizes).eval()
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    tower = PECoreTower(
        image_size=32, shape=Shape(32, 2, 2, 8, 4, 8960 / 1536, False), embed_dim=24
    )
    native = read_timm(model.state_dict(), {})
    tower.load_state_dict({name.removeprefix("visual."): t for name, t in native.items()})
    images = pixels(width=32)
    torch.testing.assert_close(tower(images), model(images), **CLOSE)
    whole = torch.ones(1, 4, 4, dtype=torch.bool)
    torch.testing.assert_close(
        tower.masked_attention(images, [whole, whole]), model(images), **CLOSE
    )


def _transformers_model(kind: str):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 60, "max_position_embeddings": 64, "num_hidden_layers": 2}
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    vision = sizes | {"patch_size": 8, "num_hidden_layers": 4}
    vision |= {"num_patches": 16} if kind == "Siglip2" else {"image_size": 32}
    config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision)
    torch.manual_seed(6)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("kind", ["Siglip", "Siglip2"])
@torch.no_grad()
def test_siglip_is_transformers(kind, tmp_path):
    model = _transformers_model(kind)
    torch.save(model.state_dict(), tmp_path / "transformers.pt")
    loaded = load_clip("small-SigLIP", tmp_path / "transformers.pt")
    images = pixels(width=32 if kind == "Siglip" else 48)
    if kind == "Siglip":
        inputs = {"pixel_values": images}
    else:  # rows of flattened patches, channels last
        patches = images.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(1, 2)
        shapes = torch.tensor([[4, 6], [4, 6]])
        whole = torch.ones(2, 24, dtype=torch.long)
        inputs = {"pixel_values": patches.flatten(2)}
        inputs |= {"pixel_attention_mask": whole, "spatial_shapes": shapes}
    wanted = model.vision_model(**inputs).pooler_output
    torch.testing.assert_close(loaded.visual(images), wanted, **CLOSE)
    tokens = torch.randint(2, 60, (3, 64))
    wanted = model.text_model(input_ids=tokens).pooler_output
    torch.testing.assert_close(loaded.text(tokens), wanted, **CLOSE)
    assert loaded.architecture.variant in str(loaded.report)
    torch.save(
        {name: t for name, t in model.state_dict().items() if name.startswith("vision_model.")},
        tmp_path / "image.pt",
    )
    alone = load_clip("small-SigLIP", tmp_path / "image.pt")
    torch.testing.assert_close(alone.visual(images), loaded.visual(images), **CLOSE)
    save_clip(loaded, tmp_path / "again.safetensors")
    again = load_clip("small-SigLIP", tmp_path / "again.safetensors")
    torch.testing.assert_close(again.visual(images), loaded.visual(images), **CLOSE)
    assert SIGLIP_SHAPE.approximate == "none"
    tensors = torch.load(tmp_path / "image.pt", weights_only=True)
    torch.save(tensors | {"classifier.weight": torch.zeros(3, 32)}, tmp_path / "image.pt")
    with pytest.raises(InputError, match="1 unexpected tensor: classifier.weight"):
        load_clip("small-SigLIP", tmp_path / "image.pt")


ATTENTION = "vision_model.encoder.layers.1.self_attn"


@pytest.mark.parametrize(
    "name, tensor, message",
    [
        ("vision_model.embeddings.patch_embedding.weight", None, "holds no CLIP image tower"),
        ("vision_model.head.attention.in_proj_weight", torch.tensor(1.0), "lacks 2 tensors"),
        (f"{ATTENTION}.q_proj.weight", torch.zeros(32, 32, dtype=torch.int8), "lacks 1 tensor"),
        ("vision_model.embeddings.position_embedding.weight", torch.tensor(1.0), "pos_embed is"),
    ],
)
def test_damaged_files_of_transformers_are_refused(tmp_path, name, tensor, message):
    state = dict(_transformers_model("Siglip").state_dict())
    state[name] = tensor
    torch.save({n: t for n, t in state.items() if t is not None}, tmp_path / "damaged.pt")
    with pytest.raises(InputError, match=message):
        load_clip("small-SigLIP", tmp_path / "damaged.pt")
