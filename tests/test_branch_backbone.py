"""A backbone from outside names the masks of a generator trained on another one (MODEL.CLIP_BRANCH.BACKBONE)."""

import json

import pytest

import clipself_seg
from clipself_seg import imports
from clipself_seg.commands import train
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.models.build import build_model
from tests.conftest import ROOT
from tests.tiny import small_worlds

KEY = "MODEL.CLIP_BRANCH.BACKBONE"
CONFIG = "configs/mini/panoptic.yaml"
GENERATOR = ("MODEL.WEIGHTS", "mini-open-panoptic")
SINGLE = ("MODEL.CLIP_BRANCH.TEMPLATES", "odise")
WORDS = "red star, blue ring, grass"
# The configured CLIP as somebody else's backbone: its features, its texts and its factor of cosines.
SAME_CLIP = """
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from clipself_seg.clip import load_clip


@BACKBONE_REGISTRY.register()
class SameCLIP(Backbone):
    reads = ("MODEL.CLIP.NAME", "MODEL.CLIP.WEIGHTS")

    def __init__(self, cfg, input_shape):
        super().__init__()
        clip = load_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS)
        self.tower, self.text, self.tokenize = clip.visual, clip.text, clip.tokenize
        self.mean, self.std, self.image_size = clip.mean, clip.std, clip.image_size
        self.scale = clip.similarity_scale.item()

    def forward(self, images):
        return {"dense": self.tower.dense(images)}

    def output_shape(self):
        channels, stride = self.tower.embed_dim, self.tower.patch_size
        return {"dense": ShapeSpec(channels=channels, stride=stride)}

    def encode_text(self, texts):
        return self.text(self.tokenize(texts))
"""


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """`--import` of the outside backbones, and small worlds."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "same_clip_outside.py").write_text(SAME_CLIP)
    examples = [ROOT / "docs/examples" / f"{name}.py" for name in ("my_backbone", "my_last_block")]
    files = map(str, (folder / "same_clip_outside.py", *examples))
    with pytest.MonkeyPatch.context() as patch, small_worlds(folder / "worlds", 4, 2, 4, seed=5):
        patch.setenv(imports.VARIABLE, ":".join(files))
        load_config(None)
        yield


def evaluated(folder, *opts):
    """The results of an evaluation of the mini generator with further keys."""
    opts = (*GENERATOR, *SINGLE, *opts, "OUTPUT_DIR", str(folder), "DATALOADER.NUM_WORKERS", "0")
    assert train.main(["--eval-only", "--config-file", CONFIG, *opts]) == 0
    return json.loads((folder / "results.json").read_text())


def test_an_outside_backbone_that_is_the_same_clip_is_evaluated_to_the_last_bit(tmp_path):
    plain = evaluated(tmp_path / "plain")
    outside = evaluated(tmp_path / "outside", KEY, "SameCLIP")
    assert outside["results"] == plain["results"]
    mine = evaluated(tmp_path / "mine", KEY, "MyLastBlock")["results"]
    for name, fusions in plain["results"].items():
        assert mine[name]["generator"] == fusions["generator"]  # masks and the generator's names
        assert mine[name]["clip"] != fusions["clip"]


def test_a_generator_on_a_backbone_from_outside_is_named_by_one_of_the_project(tmp_path):
    """The other way round: A is somebody else's, B a CLIP of this project with its own name and weights."""
    opts = ["MODEL.CLIP.BACKBONE", "MyBackbone", KEY, "CLIPBackbone"]
    with pytest.raises(InputError, match="CLIP_BRANCH.NAME is empty, as is MODEL.CLIP.NAME"):
        build_model(load_config("mini/panoptic_original", opts))
    opts += ["MODEL.CLIP_BRANCH.NAME", "ViT-Mini-8"]
    with pytest.raises(InputError, match="WEIGHTS must be .* with .*BRANCH.NAME 'ViT-Mini-8'"):
        build_model(load_config("mini/panoptic_original", opts))
    opts += ["MODEL.CLIP_BRANCH.WEIGHTS", "mini-clipself"]
    model = build_model(load_config("mini/panoptic_original", opts))
    assert (model.clip.name, model.branch_clip.name) == ("MyBackbone", "ViT-Mini-8")


@pytest.mark.parametrize(
    "opts, message",
    [
        ((KEY, "SameClip"), 'CLIP_BRANCH.BACKBONE "SameClip" is not in .*SameCLIP'),
        (
            (KEY, "MyBackbone", "MODEL.CLIP_BRANCH.WEIGHTS", "mini"),
            "CLIP_BRANCH.WEIGHTS 'mini' has no effect: .*BRANCH.BACKBONE is MyBackbone, whose",
        ),
        (
            (KEY, "SameCLIP", "MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP_BRANCH.WEIGHTS", ""),
            "CLIP_BRANCH.WEIGHTS is empty, as is MODEL.CLIP.WEIGHTS, and the backbone SameCLIP",
        ),
        (
            (KEY, "SameCLIP", "MODEL.CLIP_BRANCH.KIND", "masked_attention"),
            "has no masked attention",
        ),
        (
            ("MODEL.CLIP_BRANCH.KIND", "backbone", "MODEL.CLIP_BRANCH.INPUT_SIZE", "0")
            + (KEY, "SameCLIP"),
            "CLIP_BRANCH.BACKBONE must be empty or equal to MODEL.CLIP.BACKBONE",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(opts, message):
    with pytest.raises(InputError, match=message):
        build_model(load_config(CONFIG, opts))


def test_a_folder_keeps_the_entry_that_names_masks(tmp_path):
    for weights in ("", "mini-clipself"):
        opts = (*SINGLE, "MODEL.CLIP_BRANCH.WEIGHTS", weights, KEY, "MyLastBlock")
        predictor = clipself_seg.load("mini-open-panoptic", device="cpu", opts=opts)
        predictor.set_vocabulary(WORDS)
        predictor.save_pretrained(tmp_path / f"mine{weights}")  # which reads it back and compares
        again = clipself_seg.load(tmp_path / f"mine{weights}", device="cpu").model.branch_clip
        assert again.name == "MyLastBlock"
        assert again.weights_hash() == predictor.model.branch_clip.weights_hash()
