"""F-ViT: training touches what it should, classes are texts, a checkpoint holds all it needs."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.zoo import SHIPPED_MODELS
from clipself_seg.config import load_config
from clipself_seg.data.vocabulary import Vocabulary, VocabularyClass
from clipself_seg.errors import InputError
from clipself_seg.models import FViT
from clipself_seg.models.model_protocols import Classes
from tests.conftest import ROOT

WORDS = Vocabulary(
    "toys",
    (
        VocabularyClass(("red ball", "red sphere"), 1, seen=True),
        VocabularyClass(("blue box",), 2, seen=True),
        VocabularyClass(("green cone",), 3, seen=False),
    ),
)
SIDE = "INPUT.DETECTION.SIDE"
TINY = {
    "MODEL.META_ARCHITECTURE": "FViT",
    "MODEL.FVIT.BLOCKS": "(0, 1, 2, 3)",
    "MODEL.FVIT.CHANNELS": 8,
    SIDE: 64,
}


def built(options):
    """A model of random weights, by keys and their values."""
    torch.manual_seed(0)
    return build_model(load_config(None, [str(word) for pair in options.items() for word in pair]))


def tiny(**keys) -> FViT:
    return built(TINY | {f"MODEL.FVIT.{key}": value for key, value in keys.items()})


def training(model) -> FViT:
    model.setup_training(WORDS)
    return model.train()


def sample(seed=0, boxes=((4, 4, 30, 28), (20, 30, 60, 62)), labels=(0, 1)):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "image": torch.randint(0, 256, (3, 64, 56), generator=generator, dtype=torch.uint8),
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.ones(len(boxes), 64, 56, dtype=torch.bool),
        "draw": seed,
    }


def step(model, samples) -> dict[str, torch.Tensor]:
    losses = model(samples)
    sum(losses.values()).backward()
    return losses


def test_fine_tuning_on_classes_of_ones_own_sees_all_of_them():
    model = training(tiny())
    assert model.trained_names == (("red ball", "red sphere"), ("blue box",))
    model.setup_training(["red ball", "small screw"])  # nothing says that they are seen
    assert model.classes.seen.tolist() == [True, True]
    assert model.trained_names == (("red ball",), ("small screw",))


@pytest.mark.parametrize("masks", [False, True])
def test_one_step_trains_all_but_clip(masks):
    model = training(tiny(MASKS=masks, RPN_NORM=masks))
    losses = step(model, [sample(0), sample(1)])
    names = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}
    assert set(losses) == (names | {"loss_mask"} if masks else names)
    assert all(math.isfinite(loss) for loss in losses.values())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in model.named_parameters() if not n.startswith("clip.")}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == trained
    assert not model.clip.training


def test_masks_are_padded_as_their_images_are():
    model = training(tiny(MASKS=True))
    own = sample(boxes=((30, 20, 56, 64),), labels=(0,))
    noise = torch.rand(1, 64, 56, generator=torch.Generator().manual_seed(0)) > 0.4
    losses = [
        model([own | {"masks": masks}])["loss_mask"]
        for masks in (noise, torch.nn.functional.pad(noise, (0, 8)))
    ]
    assert losses[0] == losses[1]


def test_clips_tower_trains_where_the_key_says_so():
    model = training(tiny(TRAIN_CLIP=True))
    step(model, [sample()])
    own = {n for n, p in model.clip.named_parameters() if p.grad is not None}
    assert own and own == {n for n, p in model.clip.named_parameters() if p.requires_grad}
    assert all(name.startswith("visual.") for name in own)
    solver = load_config(None, ["SOLVER.CLIP_MULTIPLIER", "0.01"]).SOLVER
    groups = model.optimizer_groups(solver)
    assert {g["lr_multiplier"] for g in groups} == {0.01, 1.0}
    assert {g["weight_decay"] for g in groups} == {solver.WEIGHT_DECAY}


@pytest.mark.parametrize("masks", [False, True])
def test_images_without_objects_have_finite_losses(masks):
    model = training(tiny(MASKS=masks))
    losses = step(model, [sample(boxes=(), labels=())])
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses["loss_bbox"] == losses["loss_rpn_bbox"] == 0


def test_random_choices_follow_from_seed_and_draw_alone():
    model = training(tiny())
    first = model([sample(3), sample(4)])
    torch.manual_seed(77)
    again = model([sample(3), sample(4)])
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_unseen_classes_are_not_in_the_softmax_of_training():
    model = training(tiny())
    before = model([sample()])["loss_cls"]
    text = model.text(model.classes)
    text[2] = text[0]  # as close as can be to what is there
    model.text = lambda classes: text
    assert torch.equal(model([sample()])["loss_cls"], before)


def test_one_pass_of_the_tower_gives_taps_and_dense_map(monkeypatch):
    model = tiny(SCORE_THRESHOLD=0.0).eval()
    model.set_vocabulary(["red ball", "blue box"])
    calls = []
    features = model.clip.visual.features
    monkeypatch.setattr(model.clip.visual, "features", lambda *a: calls.append(1) or features(*a))
    large = sample() | {"height": 128, "width": 112}
    (output,) = model([large])
    instances = output["instances"]
    assert len(calls) == 1 and len(instances) > 0
    assert instances.image_size == (128, 112)
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes <= torch.tensor([112, 128] * 2)).all()
    assert (instances.scores.diff() <= 0).all()
    assert set(instances.pred_classes.tolist()) <= {0, 1}


def test_proposals_are_those_that_detection_scores(monkeypatch):
    model = tiny().eval()
    passed = []
    network = model.rpn_head
    propose = network.propose
    monkeypatch.setattr(network, "propose", lambda *a: passed.append(propose(*a)) or passed[-1])
    model.set_vocabulary(["red ball"])
    samples = [sample(0) | {"height": 128, "width": 112}, sample(1)]
    model(samples)
    model.classes = Classes()  # proposals know none
    monkeypatch.setattr(model.roi_head, "bbox_head", None)
    asked = []
    features = model.clip.visual.features
    monkeypatch.setattr(
        model.clip.visual, "features", lambda x, names: asked.append(names) or features(x, names)
    )
    proposed = model.propose(samples)
    assert asked == [model.taps]
    for (boxes, scores), (inside, before), scale in zip(proposed, passed, (2, 1)):
        assert torch.equal(boxes, inside * scale) and torch.equal(scores, before)
        assert len(boxes) > 0 and (scores.diff() <= 0).all() and not boxes.requires_grad


def test_masks_of_detections_are_in_the_original_image_also_where_there_are_none(monkeypatch):
    model = tiny(SCORE_THRESHOLD=0.0, MASKS=True).eval()
    model.set_vocabulary(["red ball"])
    samples = [sample() | {"height": 90, "width": 80}]
    whole = model(samples)[0]["instances"].pred_masks
    assert len(whole) and whole.shape[1:] == (90, 80)
    monkeypatch.setattr("clipself_seg.models.fvit.fvit.MASK_BYTES", 0)
    encoded = model(samples)[0]["instances"].pred_masks  # of a large image
    assert np.array_equal(encoded.all(), whole.numpy())
    none = tiny(SCORE_THRESHOLD=1.0, MASKS=True).eval()
    none.set_vocabulary(["red ball"])
    assert none([sample()])[0]["instances"].pred_masks.shape == (0, 64, 56)


def test_texts_are_those_of_the_vocabulary_and_of_the_state_of_the_text_tower():
    model = tiny()
    model.set_vocabulary(["red ball", "blue box"])
    with torch.inference_mode():
        first = model.text(model.classes)
    assert torch.equal(model.text(model.classes), first)
    model.set_vocabulary(["blue box"])
    assert torch.equal(model.text(model.classes), first[1:])
    with torch.no_grad():
        next(model.clip.text.parameters()).mul_(2)
    assert not torch.equal(model.text(model.classes), first[1:])


def test_a_checkpoint_holds_weights_towers_and_training_vocabulary(tmp_path):
    model = training(tiny())
    step(model, [sample()])
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1).step()
    model.export(tmp_path / "model_final.pth")
    other = tiny()
    other.load_checkpoint(read_checkpoint(tmp_path / "model_final.pth").tensors, "model_final.pth")
    assert other.weights_hash() == model.weights_hash()
    other.set_vocabulary(["red sphere", "green cone"])
    assert other.classes.seen.tolist() == [True, False]
    other.set_vocabulary(["green cone"], np.array([True]))
    assert other.classes.seen.tolist() == [True]
    model.export(tmp_path / "again.pth")
    assert (tmp_path / "again.pth").read_bytes() == (tmp_path / "model_final.pth").read_bytes()


def test_a_checkpoint_without_clip_knows_which_one_it_was_trained_on():
    opts = ["MODEL.CLIP.WEIGHTS", "mini-clipself-proposals"]
    path = SHIPPED_MODELS["mini-fvit"]
    tensors = read_checkpoint(path).tensors
    config = ROOT / "configs/mini/detection.yaml"
    model = build_model(load_config(config, opts))
    model.load_checkpoint(tensors, "mini-fvit")
    assert len(model.trained_names) == 24
    other = build_model(load_config(config, ["MODEL.CLIP.WEIGHTS", "mini"]))
    with pytest.raises(InputError, match="was trained on another CLIP than the one of MODEL"):
        other.load_checkpoint(tensors, "mini-fvit")


def exported(**changes):
    """The tensors that a model writes, one without masks and norms unless it is changed."""
    with tempfile.TemporaryDirectory() as folder:
        tiny(**changes).export(Path(folder) / "a.pth")
        return read_checkpoint(Path(folder) / "a.pth").tensors


def test_a_checkpoint_with_masks_loads_without_its_mask_head():
    tensors, boxes = exported(MASKS=True), tiny()
    assert any(".mask_head." in name for name in tensors)
    boxes.load_checkpoint(tensors, "a.pth")
    own = {n: t for n, t in boxes.state_dict().items() if n in tensors}
    assert own and all(torch.equal(tensor, tensors[name]) for name, tensor in own.items())


# What is done -> what the error says.
REFUSED = {
    "SIDE 60 is not a multiple of the patch of ViT-Mini-8, 8 pixels": lambda: built(
        TINY | {SIDE: 60}
    ),
    "BLOCKS must be four whole numbers": lambda: tiny(BLOCKS="(0, 1)"),
    "does not fit into INPUT.DETECTION.SIDE 64": lambda: training(tiny())(
        [sample() | {"image": torch.zeros(3, 65, 10)}]
    ),
    "no seen class": lambda: tiny().setup_training(Vocabulary("new", WORDS.classes[2:])),
    "F-ViT finds words alone": lambda: tiny().set_vocabulary(
        WORDS.with_examples({"red ball": [(np.zeros((8, 8, 3), np.uint8), None)]})
    ),
    "FViT trains on classes: name data sets that have some": lambda: tiny().setup_training(None),
    "MODEL.FVIT.MASKS and RPN_NORM": lambda: tiny(MASKS=True).load_checkpoint(exported(), "a.pth"),
    "MODEL.FVIT.CHANNELS give the sizes": lambda: tiny(CHANNELS=16).load_checkpoint(
        exported(), "a.pth"
    ),
    "a.pth lacks .* a CLIP belongs in MODEL.CLIP.WEIGHTS": lambda: tiny().load_checkpoint(
        {n: t for n, t in exported().items() if n.startswith("backbone.visual")}, "a.pth"
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused(message):
    with pytest.raises(InputError, match=message):
        REFUSED[message]()


def test_its_reading_is_what_it_does():
    reading = tiny().reading()
    assert reading.synonyms == "the first alone"
    assert reading.templates == "vild63, 63 sentences"
    assert reading.background == 'the word "background"' and reading.size == "padded to 64 x 64 px"
    assert reading.features == "token" and float(reading.scale) == tiny().settings.clip_temperature
