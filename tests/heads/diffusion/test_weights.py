"""Files of Stable Diffusion: both layouts, the empty prompt, and what is refused."""

import os
import sys

import pytest
import safetensors.torch
import torch

from clipself_seg.errors import InputError
from clipself_seg.heads.diffusion.stable_diffusion import SMALL, StableDiffusion, build_unet
from clipself_seg.heads.diffusion.weights import encode_empty_prompt, load_stable_diffusion
from tests.heads.diffusion.compvis import compvis_state, small_text_tower


@pytest.fixture(scope="module")
def original() -> StableDiffusion:
    pytest.importorskip("diffusers", reason="needs diffusers (the extra [diffusion])")
    return load_stable_diffusion("random-small")


@pytest.fixture(scope="module")
def text() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return small_text_tower()


@pytest.fixture(scope="module")
def compvis(original, text) -> dict[str, torch.Tensor]:
    return compvis_state(original.unet.state_dict(), original.vae.state_dict(), text)


def same(loaded: StableDiffusion, original: StableDiffusion, text: dict[str, torch.Tensor]) -> None:
    expected = original.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected[name]), name
    torch.testing.assert_close(loaded.empty_prompt, encode_empty_prompt(text, "text", 24))
    assert not any(p.requires_grad or p.is_meta for p in loaded.parameters())


@pytest.mark.parametrize("name", ["sd.safetensors", "sd.ckpt"])
def test_compvis_files_load(original, compvis, text, tmp_path, name, caplog):
    path = tmp_path / name
    if path.suffix == ".ckpt":
        torch.save({"state_dict": compvis, "global_step": 3}, path)
    else:
        safetensors.torch.save_file(compvis, path)
    with caplog.at_level("INFO"):
        same(load_stable_diffusion(path, sizes=SMALL), original, text)
    assert f"Stable Diffusion's U-Net <- {name}: 684 loaded, 0 converted" in caplog.text
    assert f"Stable Diffusion's autoencoder <- {name}: 244 loaded" in caplog.text


@pytest.mark.parametrize("old_names", [False, True])
def test_folders_of_diffusers_load(original, text, tmp_path, old_names):
    vae = dict(original.vae.state_dict())
    if old_names:  # of 2022, when Stable Diffusion v1-3 was published
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
            vae = {name.replace(f".0.{new}.", f".0.{old}."): t for name, t in vae.items()}
        vae = {name.replace(".to_out.0.", ".proj_attn."): t for name, t in vae.items()}
    for part, tensors, stem in (
        ("unet", original.unet.state_dict(), "diffusion_pytorch_model"),
        ("vae", vae, "diffusion_pytorch_model"),
        ("text_encoder", text, "pytorch_model" if old_names else "model"),
    ):
        (tmp_path / part).mkdir()
        file = tmp_path / part / stem
        if old_names:
            torch.save(dict(tensors), f"{file}.bin")
        else:
            safetensors.torch.save_file(tensors, f"{file}.safetensors")
    same(load_stable_diffusion(tmp_path, sizes=SMALL), original, text)


def test_half_precision_becomes_float32(compvis, tmp_path, original):
    path = tmp_path / "half.safetensors"
    floats = {k: v.half() if v.is_floating_point() else v for k, v in compvis.items()}
    safetensors.torch.save_file(floats, path)
    loaded = load_stable_diffusion(path, sizes=SMALL)
    weight = loaded.unet.conv_in.weight
    assert weight.dtype == loaded.empty_prompt.dtype == torch.float32
    assert torch.equal(weight, original.unet.conv_in.weight.half().float())


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_checkpoints_with_code_are_refused_with_a_remedy(compvis, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": compvis, "callbacks": Bomb()}, "sd.ckpt")
    with pytest.raises(InputError, match="sd.ckpt is refused.*convert it to .safetensors"):
        load_stable_diffusion("sd.ckpt", sizes=SMALL)
    assert not os.path.exists("exploded")


@pytest.mark.parametrize("path", ["", "absent.safetensors", "empty"])
def test_missing_weights_name_what_to_download(tmp_path, monkeypatch, path, original):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{path}.*Stable Diffusion v1-3 .*OpenRAIL.*DIFFUSION"):
        load_stable_diffusion(path, sizes=SMALL)


def test_other_models_are_refused_by_the_tensor_that_differs(compvis, tmp_path):
    unet = "model.diffusion_model."
    key = f"{unet}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    wrong = {
        "has 1 tensors that Stable Diffusion v1 has not, such as lora.up": {
            "lora.up": torch.ones(1)
        },
        "its U-Net lacks 1 tensor: conv_out.bias": {f"{unet}out.2.bias": None},
        "its U-Net has 1 unexpected tensor: label_emb.0": {f"{unet}label_emb.0": torch.ones(2)},
        r"its U-Net has .*attn2.to_k.weight of shape .16, 32.,.*needs .16, 24.": {
            key: torch.ones(16, 32)
        },
        "has 1 unexpected tensor: encoder.mid.attn_1.q.weight": {
            "first_stage_model.encoder.mid.attn_1.q.weight": torch.ones(16, 16, 3, 3)
        },
        "its unet is not Stable Diffusion v1's, or not whole .'output_blocks.2.1.conv.bias'": {
            f"{unet}output_blocks.2.1.conv.bias": None
        },
        "attn2.to_k.weight as int8, not floating": {key: torch.ones(16, 24, dtype=torch.int8)},
        "its text_encoder is not .*, or not whole .'embeddings.token_embedding.weight'": {
            name: None for name in compvis if name.startswith("cond_stage_model")
        },
        "its text_encoder is not .*shape '.1, 77, 24.' is invalid for input of size 616": {
            f"cond_stage_model.transformer.{name}": tensor
            for name, tensor in small_text_tower(width=8).items()
        },
    }
    for message, changes in wrong.items():
        path = tmp_path / "wrong.safetensors"
        changed = {k: v for k, v in (compvis | changes).items() if v is not None}
        safetensors.torch.save_file(changed, path)
        with pytest.raises(InputError, match=message) as caught:
            load_stable_diffusion(path, sizes=SMALL)
        assert "wrong.safetensors" in str(caught.value)


def test_random_weights_are_the_same_every_time_and_leave_the_seed_alone(original):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = load_stable_diffusion("random-small")
    assert torch.equal(torch.rand(3), expected)
    assert all(map(torch.equal, again.state_dict().values(), original.state_dict().values()))
    assert torch.equal(again.empty_prompt, original.empty_prompt)
    assert torch.equal(again.noise, original.noise)


def test_without_diffusers_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r'pip install "clipself_seg\[diffusion\]"'):
        build_unet(SMALL)
    # One that another package has become too new for.
    (tmp_path / "diffusers.py").write_text("from json import cached_download\n")
    monkeypatch.delitem(sys.modules, "diffusers")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"cannot import name 'cached_download'.*pip install"):
        build_unet(SMALL)


@torch.no_grad()
def test_the_empty_prompt_is_that_of_transformers():
    modeling = pytest.importorskip("transformers.models.clip.modeling_clip")
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="quick_gelu",
    )
    tower = modeling.CLIPTextModel(config).eval()
    for name, parameter in tower.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.1)
    tokens = torch.tensor([[49406] + [49407] * 76])
    expected = tower(tokens).last_hidden_state
    torch.testing.assert_close(encode_empty_prompt(tower.state_dict(), "text", 128), expected)


def test_towers_that_are_not_clips_are_refused():
    tower = small_text_tower()
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    with pytest.raises(
        InputError, match="text: its text_encoder .*'encoder.layers.1.mlp.fc1.weight'"
    ):
        encode_empty_prompt({k: v for k, v in tower.items() if k != name}, "text", 24)
    with pytest.raises(InputError, match="not Stable Diffusion v1's"):
        encode_empty_prompt(tower | {name: torch.zeros(3, 24)}, "text", 24)
