"""Masks of transformers' models: against transformers' own, what is refused, and how many there may be."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from clipself_seg.errors import InputError
from clipself_seg.models.panoptic import mask_models
from clipself_seg.models.panoptic.mask_models import load_mask_model
from tests.mask_models import BUILDERS, SIDE, save_mask_model

IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> folder of its model."""
    return {kind: save_mask_model(kind, tmp_path_factory.mktemp(kind)) for kind in BUILDERS}


@pytest.fixture
def eomt(folders, tmp_path):
    """A copy that may be spoilt."""
    return shutil.copytree(folders["eomt"], tmp_path / "eomt")


@pytest.mark.parametrize("kind", BUILDERS)
def test_masks_have_the_size_of_the_image_and_scores_the_best_first(folders, kind):
    model = load_mask_model(folders[kind])
    theirs = type(model.network).from_pretrained(folders[kind]).state_dict()
    own = model.network.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[n], theirs[n]) for n in own)
    assert not model.network.training and not any(p.requires_grad for p in model.parameters())
    masks, scores = model(IMAGE)
    assert masks.shape == (len(scores), 40, 60) and masks.dtype == bool and len(scores)
    assert masks.any((1, 2)).all() and scores.dtype == np.float32
    assert (np.diff(scores) <= 0).all() and (scores > 0.5).all() and (scores <= 1).all()
    assert model(IMAGE[:, :1, :1]).masks.shape[1:] == (1, 1)
    assert model.settings()["model"] == model.network._get_name()


def discs(module, args, kwargs, output):
    """Draw three discs at each point, of edges more or less sure, in place of random masks and scores."""
    points = kwargs["input_points"][0, :, 0] / SIDE * 16
    places = torch.arange(16) + 0.5
    squares = (places - points[:, :1, None]) ** 2 + (places[:, None] - points[:, 1:, None]) ** 2
    radii = torch.tensor([1.5, 3, 6])[:, None, None]
    sureness = 1 + 40 * (points.sum(1) * 0.37 % 1)[:, None, None, None]
    output.pred_masks = ((radii - squares.sqrt()[:, None]) * sureness)[None]
    output.iou_scores = (
        0.7
        + 0.4
        * ((points @ torch.tensor([1.7, 0.9]))[:, None] * torch.tensor([0.31, 0.53, 0.73]) % 1)
    )[None]
    return output


@pytest.mark.parametrize("kind", ["sam2", "sam3"])
def test_masks_at_points_are_those_of_transformers_generator(folders, kind, monkeypatch):
    """At the masks' own resolution, at which transformers looks for stable ones, too; each mask is a disc."""
    model = load_mask_model(folders[kind])
    model.network.register_forward_hook(discs, with_kwargs=True)
    monkeypatch.setattr(mask_models, "POINTS", 8)
    small = IMAGE[:, :16, :16]
    masks, scores = model(small)
    processor = model.processor
    _, points, (one,), labels = processor.generate_crop_boxes(small, SIDE, points_per_crop=8)
    inputs = processor([one], return_tensors="pt")
    with torch.no_grad():
        said = model.network(inputs["pixel_values"], input_points=points, input_labels=labels)
    whole = processor.post_process_masks(said.pred_masks, [[16, 16]], binarize=False)[0]
    kept = processor.filter_masks(whole, said.iou_scores[0], (16, 16), [0, 0, 16, 16], 0.8, 0.95)
    expected, iou, _, _ = processor.post_process_for_mask_generation(*kept, 0.7)
    assert 5 < len(expected) < 150
    np.testing.assert_array_equal(masks, np.stack(expected))
    np.testing.assert_array_equal(scores, iou.clamp(0, 1).numpy())


def test_masks_of_eomt_are_those_that_transformers_cuts_out_of_the_padding(folders):
    model = load_mask_model(folders["eomt"])
    for image in (IMAGE, IMAGE.transpose(1, 2)):
        size = tuple(image.shape[1:])
        inputs = model.processor([image], return_tensors="pt", do_pad=True)
        with torch.no_grad():
            logits = model.network(inputs["pixel_values"]).masks_queries_logits
        logits = F.interpolate(logits, (SIDE, SIDE), mode="bilinear")
        (whole,) = model.processor.unpad_image(logits, [size], model.processor.size)
        masks, scores = model(image)
        found = {mask.tobytes() for mask in (whole > 0).numpy() if mask.any()}
        assert {mask.tobytes() for mask in masks} == found


def test_the_tower_that_tue_mps_names_is_read_over_and_another_one_refused(eomt):
    """As coco_instance_eomt_large_640 has it in refs/pr/3."""
    path = eomt / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"backbone": "vit_large_patch14_reg4_dinov2"}))
    load_mask_model(eomt)
    path.write_text(json.dumps(config | {"backbone": "microsoft/resnet-50"}))
    with pytest.raises(InputError, match='sets "backbone", which may fetch or run something'):
        load_mask_model(eomt)


def test_mask2former_keeps_the_queries_that_are_any_class_with_its_probability(folders):
    model = load_mask_model(folders["mask2former"])
    inputs = model.processor([IMAGE], return_tensors="pt")
    with torch.no_grad():
        model.network.class_predictor.weight.mul_(30)
        model.network.class_predictor.bias[-1] = 3
        said = model.network(inputs["pixel_values"])
    found = said.class_queries_logits[0].softmax(-1)[:, :-1].sum(-1)
    kept = found[found >= 0.5].sort(descending=True).values
    masks, scores = model(IMAGE)
    assert 0 < len(scores) == len(kept) < len(found)
    np.testing.assert_allclose(scores, kept.numpy(), rtol=0, atol=1e-6)


def test_a_file_of_sam_3s_detector_and_tracker_gives_the_tracker(folders, tmp_path):
    """As facebook/sam3 has it: the tower is the detector's, and the settings are a part of the file's."""
    folder = shutil.copytree(folders["sam3"], tmp_path / "sam3")
    own = load_mask_model(folder).network.state_dict()
    config = json.loads((folder / "config.json").read_text())
    other = {"model_type": "clip_text_model"}
    whole = {"model_type": "sam3_video", "detector_config": {"text_config": other}}
    tracker = config | {"model_type": "sam3_tracker_video"}
    (folder / "config.json").write_text(json.dumps(whole | {"tracker_config": tracker}))
    tower, neck = "vision_encoder.backbone.", "vision_encoder.neck."
    tensors = {"detector_model.text_projection.weight": torch.zeros(4)}
    for name, tensor in own.items():
        if name.startswith((tower, neck)):
            tensors[
                name.replace(tower, f"detector_model.{tower}").replace(neck, "tracker_neck.")
            ] = tensor
        else:
            tensors[f"tracker_model.{name}"] = tensor
    save_file(tensors, folder / "model.safetensors")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    nested = {"image_processor": settings, "target_size": SIDE}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    masks, scores = load_mask_model(folder)(IMAGE)
    expected = load_mask_model(folders["sam3"])(IMAGE)
    assert len(scores) and (masks == expected.masks).all() and (scores == expected.scores).all()


def test_of_more_masks_than_are_read_the_best_stay(folders, monkeypatch, caplog):
    model = load_mask_model(folders["mask2former"])
    every = model(IMAGE)
    monkeypatch.setattr(mask_models, "MOST_BYTES", 2 * 40 * 60 + 1)
    with caplog.at_level(logging.WARNING, logger="clipself_seg"):
        best = model(IMAGE)
    assert len(best.scores) == 2 < len(every.scores) and (best.masks == every.masks[:2]).all()
    assert f"of {len(every.scores)} masks the best 2 stay" in caplog.text


@pytest.mark.parametrize(
    "file, changes, message",
    [
        ("config.json", {"model_type": "bert"}, "'bert', masks come from sam2"),
        ("config.json", {"auto_map": {"AutoModel": "a--b.C"}}, 'sets "auto_map", which may fetch'),
        ("config.json", {"use_timm_backbone": True}, 'sets "use_timm_backbone"'),
        ("config.json", {"a": [{"attn_implementation": "org/kernel"}]}, 'sets "attn_impl'),
        ("config.json", {"b": {"model_type": "timm_backbone"}}, "'timm_backbone', which none has"),
        ("config.json", {"hidden_size": 1 << 30}, "the number 1073741824, 65536 is the largest"),
        ("config.json", {"hidden_size": 1 << 14}, "its sizes ask for more than the"),
        ("config.json", {"c": {"fpn_padding": 4096}}, "the number 4096, 8 is the largest"),
        ("config.json", {"patch_padding": [4096, 3]}, "the number 4096, 16 is the largest"),
        ("preprocessor_config.json", {"size_divisor": 4096.0}, "4096.0, 128 is the largest"),
        ("preprocessor_config.json", {"pad_size": {"width": 4096}}, "4096, 2048 is the largest"),
        ("preprocessor_config.json", {"size": 4096}, "4096, 2560 is the largest"),
        ("preprocessor_config.json", {"size": {"height": 2560}}, "2560, 2048 is the largest"),
        ("config.json", {"num_hidden_layers": 3}, "lacks 1[0-9] tensors, such as layers.2"),
        ("config.json", {"hidden_size": 64}, "no weights of its config.json"),
        ("preprocessor_config.json", {"size": {"longest_edge": 1 << 20}}, "has the number 1048576"),
        ("preprocessor_config.json", {"auto_map": {"A": "a--b.C"}}, 'sets "auto_map"'),
        ("preprocessor_config.json", {"image_processor_type": "CLIPImage"}, "is of CLIPImage"),
    ],
)
def test_settings_that_fetch_run_or_ask_for_more_are_refused(eomt, file, changes, message, caplog):
    content = json.loads((eomt / file).read_text())
    (eomt / file).write_text(json.dumps(content | changes))
    theirs = logging.getLogger("transformers")
    theirs.addHandler(caplog.handler)  # they do not propagate
    try:
        with pytest.raises(InputError, match=message):
            load_mask_model(eomt)
    finally:
        theirs.removeHandler(caplog.handler)
    assert "LOAD REPORT" not in caplog.text


def test_nothing_is_said_of_tensors_that_are_there(eomt, capsys):
    logs = pytest.importorskip("transformers").utils.logging
    logs.enable_progress_bar()
    try:
        load_mask_model(eomt)
    finally:
        logs.disable_progress_bar()
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "kind, file, changes",
    [
        ("sam2", "config.json", {"prompt_encoder_config": {"image_size": 4096}}),
        ("sam3", "config.json", {"mask_decoder_config": {"num_attention_heads": 3}}),
        ("mask2former", "config.json", {"use_auxiliary_loss": False}),
        ("eomt", "preprocessor_config.json", {"resample": 99}),
    ],
)
def test_settings_that_contradict_each_other_are_one_sentence(
    folders, tmp_path, kind, file, changes
):
    folder = shutil.copytree(folders[kind], tmp_path / "model")
    content = json.loads((folder / file).read_text())
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    (folder / file).write_text(json.dumps(content))
    model = load_mask_model(folder)
    with pytest.raises(InputError, match="takes no image of 40 x 60 pixels .*see its settings"):
        model(IMAGE)


def test_other_files_are_refused(eomt):
    with pytest.raises(InputError, match="EomtForUniversal.* takes no image of 1 x 300 pi"):
        load_mask_model(eomt)(torch.zeros(3, 1, 300, dtype=torch.uint8))
    (eomt / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="has no preprocessor_config.json and no processor_config"):
        load_mask_model(eomt)
    torch.save({"a": torch.zeros(3)}, eomt / "model.safetensors")
    with pytest.raises(InputError, match="model.safetensors is truncated or no safetensors file"):
        load_mask_model(eomt)
    (eomt / "config.json").write_text("[]")
    with pytest.raises(InputError, match="no settings of a model"):
        load_mask_model(eomt)
