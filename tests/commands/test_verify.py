"""Published outputs computed anew: right models agree and wrong ones do not, by transformers' own code."""

import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from clipself_seg.checkpoints import published_outputs
from clipself_seg.checkpoints.download import file_sha256
from clipself_seg.checkpoints.mask_models import MASK_MODELS
from clipself_seg.checkpoints.published_outputs import Row, read_table
from clipself_seg.checkpoints.zoo import zoo
from clipself_seg.clip import CLIP, find_kind, load_clip
from clipself_seg.clip.find_kind import find_architecture
from clipself_seg.commands.weights import main
from clipself_seg.errors import MissingPackage
from clipself_seg.models.panoptic.mask_models import load_mask_model
from clipself_seg.prediction.published_outputs import compare, outputs
from tests.clip.test_pooled import _transformers_model as siglip
from tests.clip.test_published_files import mini_of_transformers
from tests.clip.test_tips import random_model as tips
from tests.faults import cut, run_python
from tests.mask_models import save_mask_model
from tests.small_towers import TIPS, small_towers
from tests.weight_server import serving

transformers = pytest.importorskip("transformers")
TEXTS = ["a photo of a cat", "the dog"]


def row_of(quantity: str, expected: list, **more) -> Row:
    """A row whose tolerance is 1e-3, of numbers above 1 as a fraction of the largest."""
    tolerance = 1e-3 * max(1, np.abs(expected).max())
    given = {"models": ["small"], "source": "transformers", "tolerance": tolerance}
    return Row(quantity=quantity, expected=expected, **given | more)


@pytest.fixture
def image(tmp_path):
    """An image that is no square, of smooth colours: resized sharp ones depend on the library."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((70, 56), Image.Resampling.BICUBIC).save(tmp_path / "p.png")
    return tmp_path / "p.png"


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


OF_CLIP = {"size": {"shortest_edge": 64}, "crop_size": square(64)}
# Name of our model -> transformers' model, what it is built with, and its preprocessing.
MODELS = {
    "ViT-Mini-8": (mini_of_transformers, "quick_gelu", "CLIPImageProcessorPil", OF_CLIP),
    "small-SigLIP": (siglip, "Siglip", "SiglipImageProcessorPil", {"size": square(32)}),
    "small-TIPS": (tips, False, "Tipsv2ImageProcessor", {"size": square(56)}),
}


@pytest.fixture(params=MODELS)
def case(request, tmp_path, image, monkeypatch):
    """A model of ours, an image, and rows of what transformers' model of the same weights gives."""
    with small_towers(tmp_path), torch.no_grad():
        vision = TIPS["vision_cfg"] | {"layers": 3, "hidden": 128}
        text = TIPS["text_cfg"] | {"context_length": 16, "vocab_size": 50, "hidden": 128}
        sizes = TIPS | {"vision_cfg": vision, "text_cfg": text}
        monkeypatch.setitem(find_kind._configs(), "small-TIPS", sizes)
        build, of, name, sizes = MODELS[request.param]
        model, processor = build(of), getattr(transformers, name)(**sizes)
        model.save_pretrained(tmp_path / "model")
        clip = load_clip(request.param, tmp_path / "model" / "model.safetensors")
        if request.param == "small-TIPS":
            # Theirs resizes tensors, ours as Pillow does, which may differ by 1 of 255.
            Image.open(image).resize((56, 56)).save(image)
        tokens = clip.tokenize(TEXTS)
        given = {"input_ids": tokens, **processor(Image.open(image), return_tensors="pt")}
        if request.param == "small-TIPS":
            given["attention_mask"] = (tokens != 0).long()
        said = model(**given)
        quantities = {
            "logits": said.logits_per_image[0],
            "probabilities": said.logits_per_image[0].softmax(0),
            "image embedding": said.image_embeds[0],
            "image features": said.vision_model_output.pooler_output[0],
            "text embeddings": said.text_embeds,
            "text features": said.text_model_output.pooler_output,
        }
        if request.param == "small-TIPS":
            quantities["patch tokens"] = said.vision_model_output.last_hidden_state[0, 2:]
        rows = [row_of(name, each.tolist(), texts=TEXTS) for name, each in quantities.items()]
        if request.param == "ViT-Mini-8":  # other positions, and what is no whole patch
            size = {"size": square(92), "crop_size": square(92)}
            pixels = processor(Image.open(image), return_tensors="pt", **size)
            said = model.vision_model(**pixels, interpolate_pos_encoding=True)
            pixels = {"image_size": 92, "squash": True}
            rows.append(row_of("tokens", said.last_hidden_state[0].tolist(), pixels=pixels))
        yield clip, image, rows


def differing(case) -> set[str]:
    """Quantities of which a number is not the published one."""
    model, image, rows = case
    return {row.quantity for row in rows if not compare(row, outputs(row, model, image))[2].all()}


def test_right_weights_agree_and_wrong_pixels_texts_and_scales_differ(case, monkeypatch):
    clip, own = case[0], case[0].tokenizer
    assert differing(case) == set()
    with monkeypatch.context() as patch:
        patch.setattr(clip, "mean", (0.5, 0.5, 0.1))
        assert differing(case) >= {"logits", "image embedding", "image features"}
    with monkeypatch.context() as patch:
        patch.setattr(CLIP, "preprocess", CLIP.normalise)  # of whole numbers to 255
        assert differing(case) >= {"logits", "image embedding", "image features"}
    with monkeypatch.context() as patch:
        patch.setattr(CLIP, "encode_text", CLIP.embed_texts)  # of any length
        assert differing(case) >= {"logits", "text embeddings"}
    with monkeypatch.context() as patch:
        other = lambda texts, length: own([text[::-1] for text in texts], length)  # noqa: E731
        patch.setattr(CLIP, "tokenizer", property(lambda self: other))
        assert differing(case) >= {"logits", "text embeddings", "text features"}
    clip.logit_scale.data.add_(0.1)
    assert differing(case) | {"probabilities"} == {"logits", "probabilities"}


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
        point = []
    rows = []
    for name in OF_MASKS[kind]:
        if "segmentation" in name:
            merged = getattr(processor, f"post_process_{name}")(said, target_sizes=[(56, 70)])[0]
            expected = [[one["label_id"], one["score"]] for one in merged["segments_info"]]
        else:
            expected = (said[name][0, 0, order] if point else said[name][0])[:2].tolist()
        assert expected
        rows.append(row_of(name, expected, point=point))
    assert differing((model, image, rows)) == set()
    model.processor.image_mean = [0.1, 0.2, 0.9]
    assert differing((model, image, rows))


NAME = MASK_MODELS["mask2former"].repository


@pytest.fixture
def table(tmp_path, image, monkeypatch):
    """Function that writes a table with a row of a model on this machine, whose right number is `here`."""
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path / "weights"))
    folder = tmp_path / "weights" / "hub" / NAME.replace("/", "--") / "main"
    model = load_mask_model(save_mask_model("mask2former", folder))
    here = outputs(row_of("class_queries_logits", [[0]]), model, image)[0, 0].item()
    monkeypatch.setattr(published_outputs, "TABLE", tmp_path / "table.yaml")

    def write(expected=here, **image: str) -> None:
        row = {"models": [NAME], "quantity": "class_queries_logits", "expected": [[expected]]}
        row |= {"tolerance": 1e-4, "source": "us", "image": "p"}
        content = {"images": {"p": image}, "rows": [row]}
        published_outputs.TABLE.write_text(yaml.safe_dump(content))

    return write


def test_an_image_is_fetched_once_and_the_numbers_decide(table, tmp_path, image, capsys):
    with serving(p_png=image.read_bytes()) as server:
        table(address=f"{server.address}/p.png")
        assert main(["verify", "mask2former"]) == 0 and main(["verify", "--all"]) == 0
        assert len(server.asked) == 1
    said = capsys.readouterr()
    assert said.err.startswith("to be fetched, of unknown size: the image p.png (")
    assert said.err.count("fetching") == 1
    assert said.out.startswith(f"{NAME}: class_queries_logits of p.png; us\n")
    assert said.out.endswith(" ok\n\n1 agree\n")
    table(expected=9.5, address=f"{server.address}/p.png")
    assert main(["verify", f"hf-hub:{NAME}"]) == 1
    assert re.search(r" 9\.50000 .* DIFFERS\n\n1 differ\n$", capsys.readouterr().out)
    image.rename(tmp_path / "weights" / "images" / "p.png")
    assert main(["verify", NAME]) == 1
    Image.new("RGB", (9, 9)).save(tmp_path / "weights" / "images" / "p.png")
    assert main(["verify", NAME]) == 2  # not the one that came at first


def test_images_that_are_here_are_not_fetched_and_have_to_be_the_published_ones(
    table, tmp_path, image, capsys
):
    address = "http://127.0.0.1:9/p.png"
    table(address=address, sha256=file_sha256(image))
    assert main(["verify", NAME]) == 2
    said = capsys.readouterr().err
    assert f"{address} cannot be fetched" in said and "save it as" in said
    put_by_hand(image, tmp_path)
    assert main(["verify", NAME]) == 0 and not capsys.readouterr().err
    table(address=address, sha256="0" * 64)
    assert main(["verify", NAME]) == 2
    assert "p.png, the file of the image p.png, has the sha256" in capsys.readouterr().err


def put_by_hand(image, tmp_path) -> None:
    """Puts an image where `verify` looks for it."""
    folder = tmp_path / "weights" / "images"
    folder.mkdir(exist_ok=True)
    shutil.copy(image, folder)


def test_all_goes_on_without_what_cannot_be_had(table, tmp_path, image, capsys):
    table(address="http://127.0.0.1:9/q.png")
    content = yaml.safe_load(published_outputs.TABLE.read_text())
    (row,) = content["rows"]
    content["images"]["here"] = {"address": f"http://127.0.0.1:9/{image.name}"}
    content["rows"].append(row | {"image": "here"})
    published_outputs.TABLE.write_text(yaml.safe_dump(content))
    put_by_hand(image, tmp_path)
    words = ["verify", "--all"]
    assert main(words) == 2
    said = capsys.readouterr().out
    assert said.startswith(
        f"{NAME}: class_queries_logits of q.png; us\nnot checked: the image q.png is not"
    )
    assert " ok\n\n1 not checked, 1 agree\n" in said
    content["rows"][1]["expected"] = [[9.5]]
    published_outputs.TABLE.write_text(yaml.safe_dump(content))
    assert main(words) == 1  # what differs counts more
    assert main(["verify", NAME]) == 2
    assert "save it as" in capsys.readouterr().err
    weights = next((tmp_path / "weights").rglob("model.safetensors"))
    cut(weights, -9)
    assert main(words) == 2
    said = capsys.readouterr().out
    assert said.count("not checked: ") == 2 and "model.safetensors is truncated" in said


def test_all_goes_on_without_a_package_that_one_row_needs(
    table, tmp_path, image, capsys, monkeypatch
):
    def without(row, model, path):
        if row.source == "needs more":
            raise MissingPackage("sentencepiece is not installed")
        return outputs(row, model, path)

    table(address="http://127.0.0.1:9/p.png")
    put_by_hand(image, tmp_path)
    content = yaml.safe_load(published_outputs.TABLE.read_text())
    content["rows"].insert(0, content["rows"][0] | {"source": "needs more"})
    published_outputs.TABLE.write_text(yaml.safe_dump(content))
    monkeypatch.setattr("clipself_seg.prediction.published_outputs.outputs", without)
    assert main(["verify", "--all"]) == 2
    said = capsys.readouterr().out
    assert "needs more\nnot checked: sentencepiece is not installed\n" in said
    assert said.endswith(" ok\n\n1 not checked, 1 agree\n")
    assert main(["verify", NAME]) == 2 and "not installed" in capsys.readouterr().err


OFFLINE = """
import resource, sys
from clipself_seg.commands import weights
status = weights.main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(status, "torch" in sys.modules, used.ru_utime + used.ru_stime)
"""


def test_offline_all_that_is_missing_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nothing"))
    done = run_python(OFFLINE, "verify", "openai-vitb16")
    status, torch_too, seconds = done.stdout.split()
    assert (status, torch_too) == ("2", "False") and float(seconds) < 1
    licence = zoo()["openai-vitb16"].terms
    assert "to be fetched, 598 MB and more: the image cat.jpg (size not published; " in done.stderr
    assert f"openai-vitb16 (size about 598 MB; {licence})\n" in done.stderr
    assert f"save it as {tmp_path}/images/cat.jpg, or set " in done.stderr
    assert "; by hand: https://huggingface.co/timm/vit_base_patch16" in done.stderr


@pytest.mark.parametrize("words", [["catseg-base"], [], ["--all"]])
def test_what_has_no_published_outputs_is_told_what_has(words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["verify", *words]) == 2
    said = capsys.readouterr().err
    assert "weights that have some: openai-vitb16, openai-vitb32" in said
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
    assert len({one.file for one in images.values()}) == len(images)
