"""A key is declared in one place, and everything that knows keys knows it."""

import pytest
from detectron2.config import get_cfg

from clipself_seg.config import add_clipself_seg_config, load_config
from clipself_seg.config.declare import Section, at_least, each, multiple_of, within
from clipself_seg.errors import InputError
from clipself_seg.prediction.pretrained import read_folder_config
from clipself_seg.training.settings import TrainingSettings
from tests.registries import registries_kept

DETECTION = "mini/detection"
FREE, DECISIVE, WORD = "MODEL.FVIT.SHARPNESS", "MODEL.FVIT.HALO", "MODEL.FVIT.EDGE"


@pytest.fixture(autouse=True)
def added():
    with registries_kept():
        fvit = Section("MODEL.FVIT", of=["FViT"])
        fvit.key("SHARPNESS", 1.0, within(0, 2), free=True, folder=(0, 1))
        fvit.key("HALO", 3, at_least(1), when=("MODEL.FVIT.MASKS", True))
        fvit.key("EDGE", "soft", choices=("soft", "hard"))
        yield


def test_an_added_key_is_read_with_its_default_and_from_the_command_line():
    assert load_config(DETECTION).MODEL.FVIT.SHARPNESS == 1.0
    assert load_config(DETECTION, [FREE, "2"]).MODEL.FVIT.SHARPNESS == 2.0
    cfg = get_cfg()
    add_clipself_seg_config(cfg)
    assert cfg.MODEL.FVIT.EDGE == "soft"


@pytest.mark.parametrize(
    ("config", "opts", "message"),
    [
        (DETECTION, [FREE, "3"], r"SHARPNESS must be in \[0, 2\], got 3.0"),
        (DETECTION, [WORD, "sofd"], 'EDGE cannot be "sofd"; did you mean "soft"'),
        (DETECTION, [DECISIVE, "2"], "HALO 2 has no effect: FViT reads it with .*MASKS True alone"),
        ("mini/semseg", [WORD, "hard"], "CATSeg does not read it, it is for FViT"),
    ],
)
def test_a_wrong_value_and_a_key_without_effect_are_refused(config, opts, message):
    with pytest.raises(InputError, match=message):
        load_config(config, opts)


def test_a_resumed_run_shares_it_unless_it_is_free():
    shared = TrainingSettings.from_config(load_config(DETECTION)).shared
    assert shared[DECISIVE] == 3 and FREE not in shared


def test_a_folder_of_a_stranger_keeps_its_bounds(tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL: {META_ARCHITECTURE: FViT, FVIT: {SHARPNESS: 2}}")
    with pytest.raises(InputError, match=f"{FREE} is 2, and in a folder it is from 0 to 1"):
        read_folder_config(tmp_path)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (each(at_least(1), 2, whole=True), [[1, 2]], [[1], [1, 0], [1, 1.5], [True, 1]]),
        (each(within(0, 1)), [(), (0, 0.5)], [(2,), ("a",)]),
        (multiple_of(32), [32, 64], [0, -32, 33]),
    ],
)
def test_checks_hold_of_good_values_alone(check, good, bad):
    assert all(map(check.holds, good)) and not any(map(check.holds, bad))
