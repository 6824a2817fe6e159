"""Reading a configuration, and what is refused with the way out."""

import ast
from pathlib import Path

import pytest

from clipself_seg import config
from clipself_seg.config import load_config
from clipself_seg.errors import InputError
from clipself_seg.yaml_files import leaves
from tests.conftest import ROOT


def test_file_base_and_command_line_override_one_another_in_this_order(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 1\nSOLVER: {MAX_ITER: 1, WARMUP_ITERS: 1}\n")
    (tmp_path / "run.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 2, WARMUP_ITERS: 2}")
    cfg = load_config(tmp_path / "run.yaml", ["SOLVER.MAX_ITER", "3"])
    assert (cfg.SEED, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER) == (1, 2, 3)


def test_exponents_that_are_set_later_than_their_source_win(tmp_path):
    def source(text, *opts):
        (tmp_path / "run.yaml").write_text(text)
        return load_config(tmp_path / "run.yaml", opts).MODEL.FUSION.SOURCE

    base = f"_BASE_: {ROOT / 'configs/mini/panoptic_original.yaml'}\n"
    own = "MODEL: {META_ARCHITECTURE: OpenPanoptic, FUSION: {ALPHA: 0.2}}\n"
    assert source(base) == source("MODEL: {META_ARCHITECTURE: OpenPanoptic}") == "weights"
    assert source(own) == source(base + own) == "weights_beta"
    assert source(base, "MODEL.FUSION.BETA", "0.8") == "weights_alpha"
    assert source(base + own, "MODEL.FUSION.BETA", "0.8") == "config"
    assert source(base, "MODEL.FUSION.BETA", "0.8", "MODEL.FUSION.SOURCE", "weights") == "weights"
    # F-ViT's weights carry none: nothing of its runs changes.
    assert source(own.replace("OpenPanoptic", "FViT")) == "weights"


def test_a_name_of_the_zoo_has_the_settings_of_its_published_numbers_but_not_in_training(tmp_path):
    key, name = "MODEL.SEM_SEG_HEAD.POOLING_SIZES", ["MODEL.WEIGHTS", "catseg-base"]
    config = "configs/semseg/catseg+openai_vitb16.yaml"
    file = tmp_path / "own.yaml"

    def pooling(*opts, path=config, **kwargs):
        return load_config(path, opts, **kwargs).MODEL.SEM_SEG_HEAD.POOLING_SIZES

    assert pooling() == pooling(*name, trains=True) == pooling(*name, key, "[2, 2]") == [2, 2]
    assert pooling(*name) == [1, 1]
    file.write_text(f"_BASE_: {config}\nMODEL: {{SEM_SEG_HEAD: {{POOLING_SIZES: [3, 3]}}}}")
    assert pooling(*name, path=file) == [3, 3]
    file.write_text(f"_BASE_: {config}\nMODEL: {{WEIGHTS: catseg-base}}")
    assert pooling(path=file) == [1, 1]
    # The configuration of a run says how it was evaluated.
    file.write_text(load_config(config, [*name, key, "[2, 2]"]).dump())
    assert pooling(path=file) == [2, 2]


def test_values_are_converted_where_nothing_is_lost():
    cfg = load_config(
        None, ["SOLVER.BASE_LR", "1", "TEST.REGIONS.SIZES", "(320, 640)", "MODEL.CLIP.WEIGHTS", ""]
    )
    assert cfg.SOLVER.BASE_LR == 1.0 and isinstance(cfg.SOLVER.BASE_LR, float)
    assert cfg.TEST.REGIONS.SIZES == (320, 640) and cfg.MODEL.CLIP.WEIGHTS == ""


def test_defaults_of_detection_are_those_of_the_official_b16():
    keys = load_config(None).INPUT.DETECTION
    assert (keys.SIDE, keys.MIN_SCALE, keys.MAX_SCALE, keys.RESIZE) == (640, 0.1, 2.0, "opencv")


def test_float16_is_not_used_on_a_cpu(caplog):
    half = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE"]
    assert not load_config(None, ["MODEL.DEVICE", "cpu", *half, "float16"]).SOLVER.AMP.ENABLED
    assert "float16 is slow on a CPU" in caplog.text
    assert load_config(None, ["MODEL.DEVICE", "cpu", *half, "bfloat16"]).SOLVER.AMP.ENABLED


MODEL, CLIP = "MODEL.META_ARCHITECTURE", "SOLVER.CLIP_GRADIENTS."


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.BASELR", "1"], 'unknown key "SOLVER.BASELR"; did you mean "SOLVER.BASE_LR"?'),
        (["SEED"], '"SEED" has no value'),
        (["TEST.PRECISION", "BFloat16"], 'cannot be "BFloat16"; did you mean "bfloat16"?'),
        (["SEED", "1", "--precision", "bfloat16"], "--precision stands behind a KEY VALUE pair"),
        (["SEED", "one"], "SEED must be of type int, got 'one'"),
        (
            ["TEST.PANOPTIC.VOID_SWEEP", "(0.5,)", MODEL, "CLIPSelf"],
            "SWEEP .* CLIPSelf .* OpenPanoptic",
        ),
        (["DATASETS.TRAIN", "mini_train"], "DATASETS.TRAIN must be of type tuple, such as"),
        (["TEST.REGIONS.READ", "('boxs',)"], 'cannot have "boxs"; did you mean "boxes"?'),
        (["DATASETS.TRAIN", "[['wds:a']]"], "DATASETS.TRAIN must be names of data sets"),
        (["SOLVER.BETAS", "(0.9, 1.0)"], "SOLVER.BETAS must be two numbers"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE must be .*, got 'gpu'"),
        (["MODEL", "x", "MODEL.CLIP.NAME", "y"], 'unknown key "MODEL"'),
        (["SOLVER.BASE_LR", "nan"], "BASE_LR must be 0 or more, and finite, got nan"),
        (["TEST.REGIONS.READ", "()"], "READ is empty: give some of boxes, masks"),
        (["TEST.PANOPTIC.VOID_SWEEP", "(True,)"], "PANOPTIC.VOID_SWEEP must be numbers"),
        (["INPUT.DETECTION.MIN_SCALE", "2.5"], "MIN_SCALE must be at most .* 2.5 with .*MAX_SC"),
        ([f"{CLIP}ENABLED", "True", f"{CLIP}CLIP_VALUE", "0"], "CLIP_VALUE must .* 0.0 with"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(opts, message):
    with pytest.raises(InputError, match=message) as caught:
        load_config(None, opts)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("SOLVER: {BASE_LRS: 1}", 'run.yaml: unknown key "SOLVER.BASE_LRS"; did you mean'),
        ("SOLVER:\n\tBASE_LR: 1", r"'.t' that cannot start any token .* line 2, column 1"),
        ("", "not a usable YAML file|has to be an object"),
        ("SEED: !!python/object/apply:os.getcwd []", "not a usable YAML file"),
        ("SOLVER: {BASE_LR: null}", "run.yaml: SOLVER.BASE_LR must be of type float, got None"),
        ("SOLVER: {BASE_LR: 1" + 400 * "0" + "}", "run.yaml: SOLVER.BASE_LR must be of type float"),
        ("MODEL: {DEVICE: null}", "MODEL.DEVICE must be of type str, got None; leave it out"),
        ("TEST: {REGIONS: {READ: [[boxes]]}}", "TEST.REGIONS.READ cannot have .*boxes"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_config(tmp_path / "run.yaml")
    assert "run.yaml" in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("written", ["null", "None", '"None"', "none"])
def test_cat_segs_none_freezes_clip_however_it_is_written(tmp_path, written):
    head = "{META_ARCHITECTURE: CATSeg, SEM_SEG_HEAD: {CLIP_FINETUNE: " + written + "}}"
    (tmp_path / "run.yaml").write_text(f"MODEL: {head}")
    assert load_config(tmp_path / "run.yaml").MODEL.SEM_SEG_HEAD.CLIP_FINETUNE == "none"


@pytest.mark.parametrize(
    "opts",
    [
        ["SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0"],  # nothing is clipped
        ["INPUT.DETECTION.MIN_SCALE", "2", "INPUT.DETECTION.MAX_SCALE", "2"],
        ["SOLVER.BASE_LR", "0", "SOLVER.WEIGHT_DECAY", "0", "SOLVER.EPS", "0"],
    ],
)
def test_values_at_the_edge_are_taken(opts):
    cfg = dict(leaves(load_config(None, opts)))
    assert [cfg[key] for key in opts[::2]] == [float(value) for value in opts[1::2]]


def unexplained(path: Path) -> tuple[int, list[str]]:
    """How many keys a file declares, and those that neither a comment at their line nor one above explains.

    A comment explains up to four keys that follow it.
    """
    lines = path.read_text().splitlines()
    calls = [
        node.value
        for node in ast.parse("\n".join(lines)).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    declared = [call for call in calls if ast.unparse(call.func).endswith(("key", "stock"))]
    ends = {call.end_lineno: call.lineno for call in calls}
    silent = []
    for call in declared:
        above, following = call.lineno - 1, 1
        while above in ends and following < 4:
            above, following = ends[above] - 1, following + 1
        comments = lines[above - 1].startswith("#") or "  # " in lines[call.end_lineno - 1]
        if not comments and ".all_stock" not in ast.unparse(call.func):
            silent.append(f"{path.name}:{call.lineno}")
    return len(declared), silent


def test_every_key_of_the_project_is_explained():
    found = [unexplained(path) for path in sorted(Path(config.__file__).parent.glob("*keys.py"))]
    assert sum(count for count, _ in found) > 100
    assert not [name for _, silent in found for name in silent]
