"""Published outputs computed anew: right models agree and wrong ones do not, by transformers' own code."""

import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from clipself_seg.checkpoints.download import file_sha256
from clipself_seg.checkpoints.mask_models import MASK_MODELS
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import CLIP, kinds, load_clip
from clipself_seg.clip.kinds import find_architecture
from clipself_seg.commands import verify
from clipself_seg.commands.verify import Row, compare, outputs, read_table
from clipself_seg.commands.weights import main
from clipself_seg.models.panoptic.mask_models import load_mask_model
from tests.clip import test_pooled, test_tips
from tests.clip.test_published_files import clip_of_transformers
from tests.mask_models import save_mask_model
from tests.small_towers import TIPS, small_towers
from tests.weight_server import serving

TEXTS = ["a photo of a cat", "the dog"]


def row_of(quantity: str, expected: list, **more) -> Row:
    tolerance = 1e-3 * max(1, np.abs(expected).max())
    given = {"models": ["small"], "source": "transformers", "tolerance": tolerance}
    return Row(quantity=quantity, expected=expected, **given | more)


@pytest.fixture
def image(tmp_path):
    """An image that is no square, of smooth colours: resized sharp ones depend on the library."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((70, 56), Image.Resampling.BICUBIC).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def _clip(folder, image, monkeypatch):
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "projection_dim": 32, "hidden_act": "quick_gelu"}
    model = clip_of_transformers(
        text_config=sizes | {"eos_token_id": 49407},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder / "clip")
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(kinds._configs(), "small-CLIP", config)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.CLIPImageProcessorPil(**sizes)
    return load_clip("small-CLIP", folder / "clip" / "model.safetensors"), model, processor, {}


def _siglip(folder, image, monkeypatch):
    model = test_pooled._transformers_model("Siglip")
    model.save_pretrained(folder / "siglip")
    from transformers import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    loaded = load_clip("small-SigLIP", folder / "siglip" / "model.safetensors")
    return loaded, model, processor, {}


def _tips(folder, image, monkeypatch):
    # Theirs resizes tensors, ours as Pillow does, which may differ by 1 of 255.
    Image.open(image).resize((56, 56)).save(image)
    model = test_tips.transformers_model(gated=False)
    vision = TIPS["vision_cfg"] | {"layers": 3, "hidden": 128}
    text = TIPS["text_cfg"] | {"context_length": 16, "vocab_size": 50, "hidden": 128}
    sizes = TIPS | {"vision_cfg": vision, "text_cfg": text}
    monkeypatch.setitem(kinds._configs(), "transformers-TIPSv2", sizes)
    model.save_pretrained(folder / "tips")
    from transformers import Tipsv2ImageProcessor

    processor = Tipsv2ImageProcessor(size={"height": 56, "width": 56})
    loaded = load_clip("transformers-TIPSv2", folder / "tips" / "model.safetensors")
    return loaded, model, processor, {"squash": True, "filter": "bilinear"}


KINDS = {"OpenAI": _clip, "SigLIP": _siglip, "TIPSv2": _tips}


@pytest.fixture(params=KINDS)
def case(request, tmp_path, image, monkeypatch):
    """A model of ours, its image, and rows of what transformers' model of the same weights gives."""
    with small_towers(tmp_path), torch.no_grad():
        clip, model, processor, pixels = KINDS[request.param](tmp_path, image, monkeypatch)
        tokens = clip.tokenize(TEXTS)
        inputs = {"input_ids": tokens, **processor(Image.open(image), return_tensors="pt")}
        if request.param == "TIPSv2":
            inputs["attention_mask"] = (tokens != 0).long()
        said = model(**inputs)
        tokens = said.vision_model_output.last_hidden_state[0]
        quantities = {
            "logits": said.logits_per_image[0],
            "probabilities": said.logits_per_image[0].softmax(0),
            "image embedding": said.image_embeds[0],
            "text embeddings": said.text_embeds,
            "text features": said.text_model_output.pooler_output,
            "image features": said.vision_model_output.pooler_output[0],
        }
        if request.param == "OpenAI":
            quantities["tokens"] = tokens[:3, :3]
        if request.param == "TIPSv2":
            quantities["patch tokens"] = tokens[2:, :5]
        more = {"pixels": pixels, "texts": TEXTS}
        rows = [row_of(name, values.tolist(), **more) for name, values in quantities.items()]
        yield clip, image, rows


def differing(case) -> set[str]:
    """Quantities of which a number is not the published one."""
    clip, image, rows = case
    return {row.quantity for row in rows if not compare(row, outputs(row, clip, image))[2].all()}


def test_right_weights_agree(case):
    assert differing(case) == set()


OF_IMAGES = {"logits", "image embedding", "image features"}


def test_other_pixels_differ(case):
    case[0].mean = (0.48, 0.46, 0.1)
    assert differing(case) >= OF_IMAGES


def test_texts_without_unit_length_differ(case, monkeypatch):
    monkeypatch.setattr(CLIP, "encode_text", CLIP.embed_texts)
    assert differing(case) >= {"logits", "text embeddings"}


def test_pixels_that_are_not_normalised_differ(case, monkeypatch):
    monkeypatch.setattr(CLIP, "normalise", lambda self, pixels: pixels)
    wrong = differing(case)
    assert wrong == set() if case[0].std == (1, 1, 1) else wrong >= OF_IMAGES


@torch.no_grad()
def test_another_temperature_differs(case):
    case[0].logit_scale += 0.1
    assert differing(case) | {"probabilities"} == {"logits", "probabilities"}


def test_another_tokenizer_differs(case, monkeypatch):
    own = case[0].tokenizer
    other = lambda texts, length: own([text[::-1] for text in texts], length)  # noqa: E731
    monkeypatch.setattr(CLIP, "tokenizer", property(lambda self: other))
    assert differing(case) >= {"logits", "text embeddings", "text features"}


@pytest.mark.parametrize("case", ["OpenAI"], indirect=True)
def test_exact_gelu_in_place_of_quick_gelu_differs(case):
    for tower in (case[0].visual, case[0].text):
        for block in tower.blocks:
            block.mlp.gelu = torch.nn.GELU()
    assert differing(case) == {row.quantity for row in case[2]}


LOGITS = ["class_queries_logits", "masks_queries_logits"]
OF_MASKS = {
    "eomt": [*LOGITS, "panoptic_segmentation", "instance_segmentation"],
    "mask2former": LOGITS,
    "sam2": ["iou_scores", "pred_masks"],
}


@pytest.mark.parametrize("kind", OF_MASKS)
@torch.no_grad()
def test_models_of_masks_agree_with_transformers_and_others_differ(kind, tmp_path, image):
    folder = save_mask_model(kind, tmp_path / kind)
    import transformers

    model = load_mask_model(folder)
    theirs = getattr(transformers, model.kind.network).from_pretrained(folder).eval()
    if kind == "eomt":  # segments are those of which it is sure
        for network in (model.network, theirs):
            network.class_predictor.weight.mul_(9)
            network.mask_head.fc3.weight.mul_(99)
    processor = getattr(transformers, model.kind.processor).from_pretrained(folder)
    how, point = {"images": Image.open(image), "return_tensors": "pt"}, [30, 20]
    if kind == "sam2":
        of_points = transformers.Sam2Processor(processor, target_size=64)
        given = of_points(**how, input_points=[[[point]]])
        said = theirs(pixel_values=given["pixel_values"], input_points=given["input_points"])
        order = said.iou_scores[0, 0].argsort(descending=True)
    else:
        said = theirs(processor(**how, **model.kind.options)["pixel_values"])
    rows = []
    for name in OF_MASKS[kind]:
        if "segmentation" in name:
            merged = getattr(processor, f"post_process_{name}")(said, target_sizes=[(56, 70)])[0]
            expected = [[one["label_id"], one["score"]] for one in merged["segments_info"]]
        else:
            value = said[name][0, 0, order] if kind == "sam2" else said[name][0]
            expected = value[:2].tolist()
        assert expected
        rows.append(row_of(name, expected, point=point if kind == "sam2" else []))
    assert differing((model, image, rows)) == set()
    model.processor.image_mean = [0.1, 0.2, 0.9]
    assert differing((model, image, rows))


NAME = "facebook/mask2former-small"


@pytest.fixture
def table(tmp_path, image, monkeypatch):
    """Function that writes a table with a row of a model on this machine, whose right number is `here`."""
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path / "weights"))
    folder = tmp_path / "weights" / "hub" / NAME.replace("/", "--") / "main"
    model = load_mask_model(save_mask_model("mask2former", folder))
    here = outputs(row_of("class_queries_logits", [[0]]), model, image)[0, 0].item()
    monkeypatch.setattr(verify, "TABLE", tmp_path / "table.yaml")

    def write(expected=here, **image: str) -> None:
        row = {"models": [NAME], "quantity": "class_queries_logits", "expected": [[expected]]}
        row |= {"tolerance": 1e-4, "source": "us", "image": "p"}
        content = {"images": {"p": image}, "rows": [row]}
        verify.TABLE.write_text(yaml.safe_dump(content))

    return write


def test_an_image_is_fetched_once_and_the_numbers_decide(table, tmp_path, image, capsys):
    with serving(p_png=image.read_bytes()) as server:
        table(address=f"{server.address}/p.png")
        assert main(["verify", NAME]) == 0 and main(["verify", "--all"]) == 0
        assert len(server.asked) == 1
    said = capsys.readouterr()
    assert said.err.startswith(
        f"fetching an image, {server.address}/p.png, of which nobody has pub"
    )
    assert said.out.startswith(f"{NAME}: class_queries_logits of p.png; us\n")
    assert said.out.endswith(" ok\n\nall agree\n")
    table(expected=9.5, address=f"{server.address}/p.png")
    assert main(["verify", f"hf-hub:{NAME}"]) == 1
    assert re.search(r" 9\.50000 .* DIFFERS\n\nsome differ\n$", capsys.readouterr().out)
    image.rename(tmp_path / "weights" / "images" / "p.png")
    assert main(["verify", NAME]) == 1
    Image.new("RGB", (9, 9)).save(tmp_path / "weights" / "images" / "p.png")
    assert main(["verify", NAME]) == 2  # not the one that came at first


def test_images_of_a_folder_are_not_fetched_and_have_to_be_the_published_ones(table, image, capsys):
    address = "http://127.0.0.1:9/p.png"
    words = ["verify", NAME, "--image-folder", str(image.parent)]
    table(address=address, sha256=file_sha256(image))
    assert main(words) == 0 and not capsys.readouterr().err
    assert main(words[:2]) == 2
    said = capsys.readouterr().err
    assert f"{address} cannot be fetched" in said and "save it as" in said
    table(address=address, sha256="0" * 64)
    assert main(words) == 2
    assert f"p.png, the image of {address}, has the sha256" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["catseg-base"], [], ["--all"]])
def test_what_has_no_published_outputs_is_told_what_has(words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["verify", *words]) == 2
    said = capsys.readouterr().err
    assert "published outputs are known of openai-vitb16, openai-vitb32" in said
    assert ("catseg-base" in said) == ("catseg-base" in words)


def test_a_number_that_is_not_there_differs():
    row = row_of("tokens", [[1, 2], [3, 4]], tolerance=9)
    here, _, agree = compare(row, torch.tensor([[1.0, 5.0, 0.0]]))
    assert agree.tolist() == [[True, True], [False, False]]
    assert here[0].tolist() == [1, 5] and here[1].isnan().all()


def test_the_table_is_whole():
    rows, images = read_table()
    for row in rows:
        assert (row.image in images or not row.image) and 0 < row.tolerance <= 0.2
        assert torch.tensor(row.expected).numel() >= 2 and row.source
        for name in row.models:
            repository = name.startswith(tuple(model.family for model in MASK_MODELS.values()))
            assert name in zoo() or repository or find_architecture(row.clip)
    openai = {name for name in zoo() if name.startswith("openai-")}
    of_cat = {row.models[0] for row in rows if row.image == "cat"}
    assert len(openai) == 9 and openai == of_cat
    addresses = [one["address"].rpartition("/")[2] for one in images.values()]
    assert len({*addresses}) == len(addresses)
