"""Files of CLIPs as others published them: transformers' names and shapes by its own model class, and what decides
pixels, temperature and activation where a file does not."""

import logging
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from clipself_seg.checkpoints.dense_feature import DenseFeature
from clipself_seg.checkpoints.locate import FILES, HubName
from clipself_seg.checkpoints.read import Checkpoint
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import CLIP, load_clip, model, save_clip
from clipself_seg.clip.find_kind import find_architecture, list_architectures
from clipself_seg.clip.model import OTHER_PIXELS, find_clip
from clipself_seg.clip.tips import read_official
from clipself_seg.clip.tower import TowerOptions
from clipself_seg.clip.weights import to_native
from clipself_seg.errors import InputError
from tests.checkpoint_files import save_as

MINI = "ViT-Mini-8"


def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def own(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return load_clip(name, None).state_dict()


def clip_of_transformers(**sizes):
    """A CLIPModel of the library; without sizes it is openai/clip-vit-base-patch32."""
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(CLIPConfig(**sizes)).eval()


def test_openais_b32_in_transformers_layout_has_all_tensors():
    with torch.device("meta"):
        theirs = clip_of_transformers().state_dict()
    first = ["logit_scale", "text_model.embeddings.token_embedding.weight"]
    assert len(theirs) == 398 and list(theirs)[:2] == first
    for tower in ("text_model", "vision_model"):
        theirs[f"{tower}.embeddings.position_ids"] = torch.zeros(1, 77, dtype=torch.int64)
    assert shapes(to_native(theirs)) == shapes(own("ViT-B-32"))


@torch.no_grad()
def mini_of_transformers(activation: str = "quick_gelu"):
    """A CLIPModel of the sizes of ViT-Mini-8, of random weights."""
    vision, text = find_architecture(MINI).vision, find_architecture(MINI).text
    shared = {"hidden_act": activation, "projection_dim": 128}
    torch.manual_seed(0)
    model = clip_of_transformers(
        projection_dim=128,
        vision_config=shared
        | {"hidden_size": vision["width"], "intermediate_size": 4 * vision["width"]}
        | {"num_hidden_layers": vision["layers"], "num_attention_heads": 4}
        | {"image_size": vision["image_size"], "patch_size": vision["patch_size"]},
        text_config=shared
        | {"hidden_size": text["width"], "intermediate_size": 4 * text["width"]}
        | {"num_hidden_layers": text["layers"], "num_attention_heads": text["heads"]},
    )
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", ["safetensors", "zip"])
@torch.no_grad()
def test_a_clip_of_transformers_is_read_with_the_activation_of_its_config(
    tmp_path, kind, activation
):
    theirs = mini_of_transformers(activation)
    theirs.config.save_pretrained(tmp_path)
    beside = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_as(kind, theirs.state_dict() | beside, tmp_path / "model.safetensors")
    clip = load_clip(MINI, tmp_path / "model.safetensors")
    assert clip.quick_gelu == (activation == "quick_gelu")
    images = torch.randn(2, 3, 64, 64)
    tokens = clip.tokenize(["a cat", "two remote controls on a sofa"])
    given = theirs(input_ids=tokens, pixel_values=images)
    unit = nn.functional.normalize(clip.embed_images(images), dim=-1)
    torch.testing.assert_close(unit, given.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.encode_text(tokens), given.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.logit_scale, theirs.logit_scale)


def test_pe_core_in_metas_layout_is_named(tmp_path):
    tensors = {
        "visual.conv1.weight": torch.zeros(768, 3, 16, 16),
        "visual.class_embedding": torch.zeros(768),
        "visual.attn_pool.probe": torch.zeros(1, 1, 768),
        "visual.proj": torch.zeros(768, 1024),
        "text_projection": torch.zeros(1024, 1024),
    }
    for wrapper in (None, "state_dict", "weights"):
        prefixed = {f"module.{name}": tensor for name, tensor in tensors.items()}
        torch.save({wrapper: prefixed} if wrapper else tensors, tmp_path / "PE-Core-B16-224.pt")
        said = "B16-224.pt is PE-Core in Meta's layout, .* timm's copy .*such as PE-Core-B-16:meta"
        with pytest.raises(InputError, match=said):
            load_clip("PE-Core-B-16", tmp_path / "PE-Core-B16-224.pt")
    assert "PE-Core-B-16:meta" in zoo()


@pytest.mark.parametrize(
    "name, width, temperature",
    [("TIPSv2-B-14", 768, 0.005065968260169029), ("TIPSv2-L-14", 1024, 0.004785141441971064)]
    + [("TIPSv2-SO400M-14", 1152, 0.004638021811842918)]
    + [("TIPSv2-g-14", 1536, 0.003622700460255146)],
)
def test_tipsv2_has_the_temperature_of_its_size(name, width, temperature):
    assert own(name)["visual.ln_post.weight"].shape == (width,)
    norm = torch.ones(width)
    native = read_official({"vision_encoder.norm.weight": norm})
    torch.testing.assert_close(native["logit_scale"].exp(), torch.tensor(1 / temperature))


@pytest.fixture
def without_files(monkeypatch):
    """Finds weights by tag without reading any."""
    monkeypatch.setattr(model, "fetch_needed", lambda *_, **__: None)
    monkeypatch.setattr(model, "published_file", lambda *_: Path("x.pt"))
    monkeypatch.setattr(model, "read_checkpoint", lambda path: Checkpoint(path, {}, "state dict"))


def test_all_published_weights_get_the_pixels_and_the_activation_of_open_clips_table(without_files):
    known, count, odd = {*list_architectures()}, 0, {}
    for name, tag in open_clip.list_pretrained():
        if name not in known:
            continue
        count += 1
        parts, table = find_clip(name, tag), open_clip.get_pretrained_cfg(name, tag)
        kind = parts["architecture"].kind
        assert (parts["mean"], parts["std"]) == (table["mean"], table["std"]), (name, tag)
        assert parts["resize_mode"] == table["resize_mode"], (name, tag)
        assert kind.filter == table["interpolation"], (name, tag)
        quick = open_clip.get_model_config(name).get("quick_gelu") or table.get("quick_gelu")
        assert parts["quick_gelu"] == bool(quick), (name, tag)
        others = (kind.mean, kind.std, "squash" if kind.squash else "shortest")
        if others != (table["mean"], table["std"], table["resize_mode"]):
            odd[name.removesuffix("-quickgelu")] = tag
    assert count == 142 and odd == OTHER_PIXELS


def test_images_are_squashed_as_the_tag_says_and_its_student_keeps_it(tmp_path):
    architecture = find_architecture(MINI)
    for mode, entries in ((None, {}), ("shortest", {}), ("squash", {"resize_mode": "squash"})):
        clip = CLIP(architecture=architecture, quick_gelu=False, resize_mode=mode)
        assert clip.file_entries() == {"activation": "gelu"} | entries
        for name in ("clip.pt", "clip.safetensors"):
            save_clip(clip, tmp_path / name)
            assert load_clip(MINI, tmp_path / name).squash == clip.squash == (mode == "squash")
    tensors = safetensors.torch.load_file(tmp_path / "clip.safetensors")
    torch.save({"state_dict": tensors, "resize_mode": "crop"}, tmp_path / "odd.pt")
    with pytest.raises(
        InputError, match="resize_mode is 'crop', and has to be 'shortest' or 'squash'"
    ):
        load_clip(MINI, tmp_path / "odd.pt")


L14 = "ViT-L-14:laion2b_s32b_b82k"


def test_a_published_file_has_its_pixels_by_its_path_too(without_files, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    path = tmp_path / zoo()[L14].file
    path.touch()
    for given in (path, L14, "laion2b_s32b_b82k"):
        assert find_clip("ViT-L-14", given)["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("file", FILES)
def test_a_file_of_the_hub_has_the_pixels_of_its_repository_by_any_name(
    without_files, tmp_path, monkeypatch, file
):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    repository = "laion/CLIP-ViT-L-14-laion2B-s32B-b82K"
    folder = HubName(repository).folder
    folder.mkdir(parents=True)
    for name in (file, "config.json"):
        (folder / name).touch()
    for given in (f"hf-hub:{repository}", f"hf-hub:{repository}:{file}", folder / file):
        parts = find_clip("ViT-L-14", given, TowerOptions(DenseFeature("value")))
        assert parts["mean"] == (0.5, 0.5, 0.5)


def test_a_file_that_could_be_of_other_pixels_is_said_to_be_read_as_openais(
    without_files, tmp_path, caplog
):
    (tmp_path / "x.pt").touch()
    for name in ("ViT-L-14", "ViT-B-16"):
        with caplog.at_level(logging.WARNING, model.__name__):
            assert find_clip(name, tmp_path / "x.pt")["mean"] is None
    (line,) = [record.getMessage() for record in caplog.records if record.name == model.__name__]
    assert "x.pt does not say" in line and "laion2b_s32b_b82k, load it by that tag" in line
