"""TIPSv2: the parity case, transformers' model on random weights, masks, texts, files."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import find_kind, load_clip, save_clip
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.clip.text import encode_prompts
from clipself_seg.clip.tips import TipsTextTower, TipsTransformer, read_official, write_official
from clipself_seg.clip.tower import TowerOptions
from clipself_seg.errors import InputError
from tests.conftest import PARITY
from tests.parity.named_weights import named_input, named_state_dict
from tests.small_towers import TIPS, small_towers

CASE = "towers_tipsv2"
SIZES = {"image_size": 56, "patch_size": 14, "width": 32, "layers": 3, "heads": 2, "hidden": 128}
TEXT_SIZES = {"context_length": 16, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
ITS_TEXT = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2}
ITS_TEXT |= {"num_attention_heads": 2, "max_position_embeddings": 16}
ITS_VISION = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56}
TOKENS = torch.tensor([[5, 7, 0, 0, 0], [3, 9, 11, 2, 0], [1, 0, 0, 0, 0]])


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def close(actual: Tensor, expected: np.ndarray | Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Its model from the file that transformers writes, its description, and what the model shall give."""
    described = json.loads((PARITY / f"{CASE}.json").read_text())
    weights = named_state_dict(json.loads((PARITY / f"{CASE}.shapes.json").read_text()))
    for name, factor in described["weight_multipliers"].items():
        weights[name] = weights[name] * factor
    del weights["temperature"]  # negative, as random weights are, and nothing of the case reads it
    its_text = ITS_TEXT | {"vocab_size": 800, "hidden_size": 192, "intermediate_size": 768}
    its_text |= {"num_attention_heads": 3, "num_hidden_layers": 3, "max_position_embeddings": 64}
    its_vision = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3}
    theirs = transformers_model(its_text, its_vision)
    theirs.load_state_dict(weights, strict=False)
    folder = tmp_path_factory.mktemp(CASE)
    theirs.save_pretrained(folder)
    vision = TIPS["vision_cfg"] | {"image_size": 448, "width": 192, "heads": 3, "hidden": 768}
    text = TIPS["text_cfg"] | {"vocab_size": 800, "width": 192, "heads": 3, "layers": 3}
    config = {"embed_dim": 192, "vision_cfg": vision, "text_cfg": text | {"hidden": 768}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(find_kind._configs(), CASE, config)
        return (
            load_clip(CASE, folder / "model.safetensors"),
            described,
            dict(np.load(PARITY / f"{CASE}.npz")),
        )


def picture(height: int, width: int) -> Tensor:
    noise = named_input(f"{CASE}:image:{height}x{width}", (1, 3, height, width))
    return (0.5 + 0.2 * noise).clamp(0, 1)


@torch.no_grad()
def test_image_side_of_the_parity_case(case):
    clip, described, expected = case
    tower, image = clip.visual, clip.normalise(picture(448, 448))
    assert torch.equal(image, picture(448, 448))  # pixels in [0, 1] stay what they are
    close(tower(image)[0], expected["image_embed"], 3e-5)
    dense_hwE = tower.dense(image)[0].permute(1, 2, 0)
    close(dense_hwE[::2, ::2, ::2], expected["dense"], 3e-5)
    wide_hwE = tower.dense(picture(*described["wide"]))[0].permute(1, 2, 0)
    close(wide_hwE[::2, ::2, ::2], expected["dense_wide"], 3e-5)
    masks = named_input(f"{CASE}:masks", (5, 32, 32)) > 0
    masks[3] = False
    masks[3, 16, 10] = masks[4] = True
    unit_hwE = F.normalize(dense_hwE, dim=-1)
    means = torch.stack([unit_hwE[mask].mean(0) for mask in masks])
    close(means, expected["region_mean"], 1e-6)
    whole = tower.masked_attention(image, [masks])[4]
    close(whole, tower(image)[0], 1e-5)  # a mask of all is the image


@torch.no_grad()
def test_text_side_of_the_parity_case(case):
    clip, described, expected = case
    tokens = torch.tensor(described["tokens"])
    assert torch.equal(tokens != 0, torch.tensor(described["attention_mask"]).bool())
    close(clip.text(tokens), expected["text_embed"], 3e-5)
    close(clip.text.whole(tokens), expected["text_embed"], 3e-5)
    unit = F.normalize(torch.from_numpy(expected["text_embed"]), dim=-1)
    close(encode_prompts(clip.text, tokens), expected["text_embed"], 3e-5)
    close(clip.encode_text(tokens), unit, 1e-5)


def transformers_model(text, vision):
    from transformers import Tipsv2Config, Tipsv2Model

    return Tipsv2Model(Tipsv2Config(text_config=text, vision_config=vision)).eval()


@torch.no_grad()
def random_model(gated):
    """A small model of transformers with random weights, biases and scales too."""
    torch.manual_seed(3)
    model = transformers_model(ITS_TEXT, ITS_VISION | {"use_swiglu_ffn": gated})
    for name, parameter in model.named_parameters():
        if name != "temperature":
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("gated", [False, True], ids=["MLP", "SwiGLU"])
@torch.no_grad()
def test_equal_to_the_model_of_transformers_whose_files_are_read_and_written(gated, tmp_path):
    model = random_model(gated)
    model.save_pretrained(tmp_path)
    native = read_official(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    sizes = SIZES | ({"hidden": 88} if gated else {})
    image, text = TipsTransformer(**sizes, gated=gated), TipsTextTower(**TEXT_SIZES, hidden=128)
    image.load_state_dict(below(native, "visual."))
    text.load_state_dict(below(native, "text."))
    for height, width in ((56, 56), (42, 84), (112, 28)):
        pixels = torch.rand(2, 3, height, width)
        tokens = model.vision_model(pixels).last_hidden_state
        close(image(pixels), tokens[:, 0], 1e-5)
    pooled = model.text_model(input_ids=TOKENS, attention_mask=(TOKENS != 0).long()).pooler_output
    close(text(TOKENS), pooled, 1e-5)
    close(native["logit_scale"], -model.temperature.log(), 1e-6)
    written = write_official(native)
    again = read_official(written)
    assert again.keys() == native.keys()
    assert all(torch.equal(again[name], native[name]) for name in native)
    # Transformers reads published files by these rules of its own.
    safetensors.torch.save_file(written, tmp_path / "model.safetensors")
    read, said = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    close(read.vision_model(pixels).last_hidden_state, tokens, 1e-6)
    close(
        read.text_model(input_ids=TOKENS, attention_mask=(TOKENS != 0).long()).pooler_output,
        pooled,
        1e-6,
    )


def test_mlps_have_the_width_that_is_said_where_a_ratio_of_floats_has_one_less():
    assert int(112 * (976 / 112)) == 975
    sizes = {"width": 112, "hidden": 976, "heads": 2, "layers": 1}
    image = TipsTransformer(image_size=28, patch_size=14, **sizes)
    text = TipsTextTower(context_length=8, vocab_size=9, **sizes)
    for tower in (image, text):
        assert tower.blocks[0].mlp.c_fc.weight.shape == (976, 112)


@pytest.fixture(scope="module")
def tower() -> TipsTransformer:
    torch.manual_seed(0)
    tower = TipsTransformer(**SIZES).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return tower


@torch.no_grad()
def test_mask_tokens_are_class_tokens_that_see_both_class_tokens_and_their_region(tower):
    """Against a loop that attends over the tokens of one region at a time."""
    images = torch.rand(1, 3, 56, 56)
    masks = torch.rand(3, 4, 4) > 0.5
    masks[1] = False
    actual = tower.masked_attention(images, [masks])
    for mask, region in zip(masks, actual):
        tokens, _, _ = tower.embed(images)
        kept = torch.cat([torch.tensor([True, True]), mask.flatten()])
        token = tokens[:, :1]
        for block in tower.blocks:
            token, tokens = block.forward_mask_tokens(token, tokens[:, kept]), block(tokens)
        close(region, tower.project(token)[0, 0], 1e-5)


@pytest.mark.parametrize("name", ["sclip", "clearclip", "naclip", "kk", "qq_kk"])
def test_attentions_without_training_do_not_take_the_register_for_a_patch(tower, name):
    images = torch.rand(1, 3, 42, 56)
    tower.configure(TowerOptions(attention=name))
    try:
        assert tower.dense(images).shape == (1, 32, 3, 4)
    finally:
        tower.configure(TowerOptions(attention="none"))


@pytest.mark.parametrize("kind, count", [("value", 1), ("multi_value", 2)])
@torch.no_grad()
def test_values_of_the_last_blocks_are_scaled_and_read_at_the_patches(tower, kind, count):
    """Against the plainest form: the sum of ls * out(W_v norm(x) + b), behind the final norm."""
    images = torch.rand(1, 3, 42, 56)
    tokens, _, grid = tower.embed(images)
    inputs = []
    for block in tower.blocks:
        inputs.append(tokens[0, 2:])
        tokens = block(tokens)
    total = torch.zeros(12, 32)
    for block, x in list(zip(tower.blocks, inputs))[-count:]:
        value = block.attn.in_proj_weight[64:], block.attn.in_proj_bias[64:]
        attended = F.linear(block.ln_1(x), *value)
        total += block.ls_1.gamma * block.attn.out_proj(attended)
    tower.configure(TowerOptions(DenseFeature(kind, count)))
    try:
        close(tower.dense(images)[0].flatten(1).T, tower.ln_post(total), 1e-5)
    finally:
        tower.configure(TowerOptions(DenseFeature()))


@pytest.fixture(scope="module")
def text_tower() -> TipsTextTower:
    torch.manual_seed(0)
    return TipsTextTower(**TEXT_SIZES, hidden=64).eval()


@torch.no_grad()
def test_padding_and_the_other_texts_of_a_batch_have_no_effect(text_tower):
    together = text_tower(TOKENS)
    for tokens, expected in zip(TOKENS, together):
        close(text_tower(tokens[tokens != 0][None])[0], expected, 1e-5)
    longer = F.pad(TOKENS, (0, 7))
    close(text_tower(longer), together, 1e-5)
    assert text_tower.lengths(TOKENS).tolist() == [2, 4, 1]


def test_a_text_without_tokens_is_zero_and_has_finite_gradients(text_tower):
    tokens = torch.tensor([[0, 0, 0], [4, 0, 0]])
    text = text_tower(tokens)
    assert torch.equal(text[0], torch.zeros(32))
    text.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in text_tower.parameters())
    text_tower.zero_grad()
    assert text_tower(TOKENS[:0]).shape == (0, 32)


NAME = "small-TIPSv2"


def test_a_files_own_temperature_goes_before_the_published_one():
    assert read_official({"temperature": torch.tensor(0.5)})["logit_scale"].exp() == 2
    assert read_official({})["logit_scale"].exp().item() == pytest.approx(197.4, abs=0.1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small model of random weights; its name is known meanwhile."""
    with small_towers(tmp_path_factory.mktemp("weights")):
        torch.manual_seed(5)
        yield load_clip(NAME, None)


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("temperature", torch.ones(3)),
        ("temperature", torch.tensor(-0.1)),
        ("vision_encoder.register_tokens", torch.zeros(1, 4, 32)),
        ("text_encoder.ln_final.weight", None),
        ("vision_encoder.pos_embed", torch.zeros(2, 3, 16, 32)),
        ("vision_encoder.blocks.1.attn.qkv.bias", torch.zeros(95)),
    ],
)
def test_misshapen_and_missing_tensors_are_refused(small, tmp_path, name, tensor):
    save_clip(small, tmp_path / "clip.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "clip.safetensors") | {name: tensor}
    tensors = {n: t for n, t in tensors.items() if t is not None}
    safetensors.torch.save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="bad.safetensors"):
        load_clip(NAME, tmp_path / "bad.safetensors")


def test_texts_go_through_the_repositorys_tokenizer(small):
    tokens = small.tokenize(["a cat", "a photo of a dog"])
    assert tokens.shape == (2, 64) and (tokens != 0).sum(1).tolist() == [
        small.token_count("a cat"),
        small.token_count("a photo of a dog"),
    ]
    assert small.encode_text("a cat").shape == (1, 32)


@pytest.mark.parametrize(
    "name, image, text",
    [("B-14", 86, 110), ("L-14", 304, 184), ("SO400M-14", 413, 448), ("g-14", 1136, 389)],
)
def test_published_sizes_have_the_published_numbers_of_parameters(name, image, text):
    architecture = find_architecture(f"TIPSv2-{name}")
    with torch.device("meta"):
        towers = [
            build(architecture, False)
            for build in (architecture.kind.build_image, architecture.kind.build_text)
        ]
    counts = [round(sum(p.numel() for p in tower.parameters()) / 1e6) for tower in towers]
    assert counts == [image, text]
    entry = zoo()[f"tipsv2-{name.replace('-', '').lower()}"]
    assert entry.model == f"TIPSv2-{name}" and entry.may_ship == "yes"
