"""Open-vocabulary panoptic models as one file of ONNX: masks and scores are the model's, segments are numpy's."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import clipself_seg
from clipself_seg.errors import InputError
from clipself_seg.heads.panoptic import clip_branches
from clipself_seg.prediction.onnx import export as onnx_export
from clipself_seg.prediction.onnx.panoptic_graph import (
    decided,
    graph_of,
    visible_cells,
)
from clipself_seg.prediction.task_predictors import PanopticPredictor
from tests.models.panoptic.small import FCCLIP, GIVEN, NAMED_BY_VIT, PLAIN, model_of, sample
from tests.prediction.onnx.exported import (
    Session,
    require_packages,
    run_without_torch,
    scene,
    script_of,
    texts_of,
)

VOCABULARIES = {"red star, blue circle|azure disc, grass|lawn": "grass", "yellow ring, sand": ""}
MODELS = {
    "pyramid": (),
    "FC-CLIP": FCCLIP,
    "FC-CLIP, named by a ViT": (*FCCLIP, *NAMED_BY_VIT),
    "canvas laid over the image": (),
    "generator alone": ("MODEL.FUSION.MODE", "generator"),
    "void discounted": (*FCCLIP, "MODEL.FUSION.VOID_DISCOUNT", "0.5"),
    "one pass": PLAIN,
    "plain decoder, named by a second pass": (*PLAIN, *NAMED_BY_VIT[:4]),
    "pyramid, named on its canvas": PLAIN[-4:],
}


@pytest.fixture(scope="module")
def predictor() -> PanopticPredictor:
    predictor = clipself_seg.load("mini", task="panoptic", device="cpu")
    predictor.set_vocabulary("red star, grass", stuff="grass")
    return predictor


def of_model(model, predictor) -> PanopticPredictor:
    """A predictor of another model."""
    return PanopticPredictor(**PanopticPredictor.from_config(predictor.config, model=model))


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_the_graph_gives_the_masks_and_scores_of_the_model(kind, predictor):
    model = model_of(*MODELS[kind])
    if kind == "canvas laid over the image":
        model.branch.align_masks = False
    graph = graph_of(of_model(model, predictor)).graph.module
    for size in ((60, 75), (64, 64)):
        image = sample(*size)
        masks, scores, *features = graph(image["image"][None].float())
        generated = model.generate(image)
        logits, valid = model.clip_scores(image, generated)
        fusion = model.fusion.returned()
        expected = generated.probabilities(
            logits, valid, model.classes.seen_on(model.device), fusion
        )
        torch.testing.assert_close(masks, generated.mask_logits)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
        assert len(features) == (kind == "one pass")
        for own in features:
            torch.testing.assert_close(own, generated.backbone_map[0])


def test_cells_are_visible_by_matrices_as_by_sampling():
    masks = torch.randn(6, 12, 20, generator=torch.Generator().manual_seed(0)) - 2
    masks[0], masks[1], masks[2, :3, :4] = -1.0, -1.0, 3.0
    masks[1, 5, 7] = 0.5  # between the centres of cells
    fractions, shown = (1.3, 1.1), (49, 58)
    own = [
        [torch.tensor(side, dtype=torch.float64) for side in pair] for pair in (fractions, shown)
    ]
    cells = visible_cells(masks, (8, 8), 8, *own)
    expected = clip_branches.visible_cells(
        masks, (8, 8), 8, fraction=fractions, shown=shown, binarise="centre_or_any"
    )
    assert torch.equal(cells, expected) and not cells[0].any() and cells[1].any()


def test_the_script_finds_the_segments_of_the_predictor(predictor, tmp_path):
    count = 0
    for seed, (words, stuff) in enumerate(VOCABULARIES.items()):
        predictor.set_vocabulary(words, stuff=stuff)
        export = graph_of(predictor)
        script, session = script_of(export, tmp_path), Session(export.graph.module)
        expected = predictor(scene(seed))
        count += same_segments(*script["segment"](session, scene(seed)), expected)
    assert count > 2


@pytest.mark.parametrize("kind", ["mini", "FC-CLIP", "one pass"])
def test_names_given_later_are_found_as_by_torch(kind, predictor, tmp_path, monkeypatch):
    words, image = ["red star", "blue_circle|azure disc|grass", "Green-Square", "sand"], scene(1)
    own = predictor if kind == "mini" else of_model(model_of(*MODELS[kind]), predictor)
    export = graph_of(own, text_tower=True)
    script, texts = script_of(export, tmp_path), texts_of(export, tmp_path, words, monkeypatch)
    own.set_vocabulary(words, stuff="azure disc, sand")
    assert texts["seen"].tolist() == own.given.seen.tolist() == [False, True, False, True]
    things = script["things_of"](words, ["Azure disc", "sand"])
    with pytest.raises(SystemExit, match='stuff "sky" is none of the class names'):
        script["things_of"](words, ["sky"])
    session, inputs = Session(export.graph.module), {
        "images": np.float32(image).transpose(2, 0, 1)[None]
    }
    wanted = Session(graph_of(own).graph.module).run(None, inputs)
    for one, other in zip(session.run(None, inputs | texts), wanted):
        np.testing.assert_allclose(one, other, atol=1e-4)
    found = script["segment"](session, image, words, things, **texts)
    assert same_segments(*found, own(image)) or kind != "mini"


def same_segments(ids: np.ndarray, segments: list, expected) -> int:
    """Compares the segments of a script with those of a predictor, and returns their number."""
    names = {one["id"]: (one["name"].split("|")[0], one["isthing"]) for one in segments}
    assert len(segments) == len(expected.segments)
    for segment in expected.segments:
        inside = expected.ids == segment.id
        own, *_ = np.unique(ids[inside])[[0]]
        assert np.mean((ids == own) != inside) < 1e-4
        assert names[own] == (segment.name.split("|")[0], segment.isthing)
    return len(segments)


def test_images_are_resized_as_the_mapper_does(predictor, tmp_path):
    predictor.set_vocabulary("red star, grass", stuff="grass")
    export = graph_of(predictor)
    for rule in ((64, 100), (0, 100), (32, 40)):
        predictor.mapper.min_size, predictor.mapper.max_size = rule
        export.metadata |= {"short_side": rule[0], "long_side": rule[1]}
        script = script_of(export, tmp_path)
        for size in ((50, 50), (37, 90), (201, 3)):
            image = predictor.mapper.resized(np.zeros((*size, 3), np.uint8))["image"]
            assert script["resized_size"](*size) == tuple(image.shape[1:])
    predictor.mapper.min_size = 0


def test_few_queries_may_differ_where_rounding_decides_about_a_cell():
    wanted = [np.ones((40, 3, 3)), np.ones((40, 5))]
    for count, left in ((0, 40), (2, 38), (3, 40)):
        computed = [array.copy() for array in wanted]
        computed[0][:count, 1, 2] += 1e-3
        assert [len(array) for array in decided(wanted, computed)[1]] == [left, left]


def test_stuff_goes_with_the_class_names_and_what_a_panoptic_file_cannot_be_is_refused(
    predictor, tmp_path, monkeypatch
):
    written = []
    monkeypatch.setattr(onnx_export, "write_model", lambda export, *_: written.append(export))
    path = tmp_path / "model.onnx"
    clipself_seg.export(predictor, path, words="grass, red star", stuff="grass")
    assert written[0].metadata["things"] == [1]
    for asked, said in (({"stuff": "grass"}, "leave it out, or give words"),):
        with pytest.raises(InputError, match=said):
            clipself_seg.export(predictor, path, **asked)


DIFFUSION = ("MODEL.MASK_GENERATOR.SOURCE", "diffusion", "MODEL.DIFFUSION.WEIGHTS", "random-small")


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (GIVEN, "SOURCE is masks, so that nothing generates any"),
        ((*FCCLIP, *NAMED_BY_VIT), "named by those of another CLIP, ViT-Mini-8"),
        ((*DIFFUSION, "MODEL.DIFFUSION.CROP", "64"), "Stable Diffusion is not exported: take"),
        (("MODEL.CLIP_BRANCH.KIND", "masked_attention"), "masked_attention is not exported"),
    ],
)
def test_what_is_not_exported_is_said(opts, said, predictor):
    if "diffusion" in opts:
        pytest.importorskip("diffusers")
    with pytest.raises(InputError, match=said):
        graph_of(of_model(model_of(*opts), predictor), text_tower=True)


@pytest.mark.heavy
@pytest.mark.parametrize("later", [True, False])
def test_onnxruntime_finds_the_segments_of_the_predictor(predictor, later, tmp_path):
    require_packages()
    words, stuff = next(iter(VOCABULARIES.items()))
    predictor.set_vocabulary(words, stuff=stuff)
    files = clipself_seg.export(predictor, tmp_path / "model.onnx", text_tower=later)
    for differences in files.values():
        assert len(differences) == 3 and all(d <= 1e-5 for d in differences.values())
    names = json.loads((tmp_path / "model.json").read_text())["names"]
    assert names == ([] if later else list(predictor.names))
    given = [*words.split(", "), "--stuff", stuff] if later else []
    printed = run_without_torch(tmp_path / "model.py", scene(1), *given)
    segments = [
        {"id": int(line[0]), "name": " ".join(line[1:-3]), "isthing": "grass" not in line[1]}
        for line in printed
    ]
    ids = np.asarray(Image.open(tmp_path / "photo_segments.png"))
    assert same_segments(ids, segments, predictor(scene(1)))


@pytest.mark.heavy
@pytest.mark.parametrize("opts", [FCCLIP, PLAIN])
def test_onnxruntime_computes_masks_and_names_of_one_pass(opts, predictor, tmp_path):
    require_packages()
    other = of_model(model_of(*opts), predictor)
    other.set_vocabulary("red star, grass", stuff="grass")
    (differences,) = clipself_seg.export(other, tmp_path / "model.onnx").values()
    assert all(d <= 1e-5 for d in differences.values())
