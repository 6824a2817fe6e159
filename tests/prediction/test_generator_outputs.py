"""Outputs of a data set: written once, gone on with, and from disk the same result as live."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import precompute
from clipself_seg.config import load_config
from clipself_seg.data.datasets.records import panoptic_set_records
from clipself_seg.data.generator_outputs import GeneratorOutput
from clipself_seg.data.mappers.panoptic import PanopticTestMapper
from clipself_seg.data.vocabulary import load_vocabulary
from clipself_seg.errors import InputError
from clipself_seg.files import alone_in
from clipself_seg.heads.fusion import Fusion
from clipself_seg.models.build import build_model
from clipself_seg.models.panoptic.outputs import MergeSettings
from clipself_seg.prediction import generator_outputs
from clipself_seg.prediction.generator_outputs import generator_hash, write_outputs
from tests.prediction.test_panoptic import CONFIG, SMALL
from tests.tiny import save_noise

TINY = (*SMALL, "INPUT.MIN_SIZE_TEST", "48", "MODEL.MASK_FORMER.DEC_LAYERS", "1")
TINY += ("MODEL.MASK_GENERATOR.ENCODER_LAYERS", "1", "MODEL.MASK_FORMER.HIDDEN_DIM", "32")
DATASET = "mini_val_panoptic_with_sem_seg"
SIZES = {1003: (40, 60), 1001: (71, 31), 1002: (64, 64)}
FUSIONS = {"clip": Fusion(1.0, 1.0), "generator": Fusion(0.0, 0.0), "fused": Fusion(0.35, 0.65)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three images of noise as the mini world's validation split."""
    root = tmp_path_factory.mktemp("world") / "mini"
    images, entries = [], []
    for number, (height, width) in SIZES.items():
        save_noise(root / "val" / f"{number}.png", height, width, seed=number)
        entry = {"id": number, "file_name": f"{number}.png"}
        # The file does not have the size of one image.
        images.append(entry | ({"height": height, "width": width} if number != 1002 else {}))
        segments = [{"id": 9, "category_id": 2, "bbox": [0, 0, 9, 9]}]
        entries.append({"image_id": number, "file_name": "9.png", "segments_info": segments})
    (root / "panoptic_val").mkdir()
    (root / "annotations").mkdir()
    content = {"images": images, "annotations": entries}
    (root / "annotations" / "panoptic_val.json").write_text(json.dumps(content))
    return root.parent


@pytest.fixture(autouse=True)
def there(world, monkeypatch):
    monkeypatch.setenv("CLIPSELF_SEG_MINI", str(world))


def config(*opts):
    return load_config(CONFIG, [*TINY, *opts])


class Blank(nn.Module):
    """Gives the same outputs for every image."""

    names = (("dog",), ("grass",))
    settings, test_precision, backbone = MergeSettings(), None, SimpleNamespace(settings=dict)

    def generate(self, sample):
        size = tuple(sample["image"].shape[1:])
        return GeneratorOutput(torch.zeros(2, 3, 3), torch.zeros(2, 2), torch.zeros(2), size, size)


@pytest.fixture(scope="module")
def live():
    model = build_model(config()).eval()
    model.set_vocabulary(load_vocabulary("mini"), np.arange(44) % 2 == 0)
    return model


def write(folder, model, **how):
    records = panoptic_set_records(DATASET)
    mapper = PanopticTestMapper(config())
    return write_outputs(
        **{"model": model, "records": records, "mapper": mapper, "folder": folder} | how
    )


@pytest.fixture(scope="module")
def written(live, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPSELF_SEG_MINI", str(world))
        assert write(folder, live) == (3, 0)
    return folder


@pytest.fixture
def made(monkeypatch):
    """Ids of the images that a generator runs on."""
    ids, whole = [], generator_outputs.save_output

    def save(folder, output, **facts):
        ids.append(facts["image_id"])
        whole(folder, output, **facts)

    monkeypatch.setattr(generator_outputs, "save_output", save)
    return ids


def samples():
    mapper = PanopticTestMapper(config())
    return [mapper(record) for record in panoptic_set_records(DATASET)]


def disk_model(folder, *opts):
    source = ("MODEL.MASK_GENERATOR.SOURCE", "disk", "MODEL.MASK_GENERATOR.OUTPUTS", str(folder))
    model = build_model(config(*source, *opts)).eval()
    model.set_vocabulary(load_vocabulary("mini"), np.arange(44) % 2 == 0)
    return model


def test_results_from_disk_are_the_live_ones_up_to_the_half_precision_of_masks(
    live, written, monkeypatch
):
    whole = live.generate

    def halved(sample):
        found = whole(sample)
        return dataclasses.replace(found, mask_logits=found.mask_logits.half().float())

    monkeypatch.setattr(live, "generate", halved)
    disk = disk_model(written)
    for sample in samples():
        (one,), (other,) = live([sample], fusions=FUSIONS), disk([sample], fusions=FUSIONS)
        for row in FUSIONS:
            (ids, segments), (their_ids, theirs) = (
                found["fusions"][row]["panoptic_seg"] for found in (one, other)
            )
            assert torch.equal(ids, their_ids) and segments == theirs
            assert ids.shape == (sample["height"], sample["width"])
            maps = [found["fusions"][row]["sem_seg_labels"] for found in (one, other)]
            assert torch.equal(*maps)
            scores = [found["fusions"][row]["instances"].scores for found in (one, other)]
            torch.testing.assert_close(*scores)


def test_half_precision_hardly_moves_a_mask(live, written):
    disk = disk_model(written)
    for sample in samples():
        with torch.no_grad():
            one, other = live.generate(sample), disk.generate(sample)
        torch.testing.assert_close(one.mask_logits, other.mask_logits, atol=2e-3, rtol=2e-3)
        assert torch.equal(one.class_logits, other.class_logits)
        assert torch.equal(one.void_prob, other.void_prob)
        assert (one.canvas, one.image_size) == (other.canvas, other.image_size)


def test_what_is_there_is_kept_and_what_is_missing_or_damaged_is_made(tmp_path, made):
    model = Blank()
    write(tmp_path, model)
    assert made == [1003, 1001, 1002]
    kept = (tmp_path / "1001.safetensors").stat().st_mtime_ns
    (tmp_path / "1003.safetensors").unlink()
    damaged = tmp_path / "1002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-5])
    assert write(tmp_path, model) == (2, 1) and made[3:] == [1003, 1002]
    assert (tmp_path / "1001.safetensors").stat().st_mtime_ns == kept
    assert write(tmp_path, model) == (0, 3) and len(made) == 5
    assert write(tmp_path, model, overwrite=True) == (3, 0) and len(made) == 8


def test_two_writers_do_not_meet_and_leftovers_of_a_killed_one_go(tmp_path, made):
    left = tmp_path / ".1003.safetensors.x.part"
    left.mkdir()
    with alone_in(tmp_path), pytest.raises(InputError, match="another process"):
        write(tmp_path, Blank())
    assert left.exists() and not made
    assert write(tmp_path, Blank()) == (3, 0) and not left.exists()


def test_files_of_other_weights_words_or_sizes_are_refused(live, written, monkeypatch, made):
    with pytest.raises(InputError, match="1003.*of another size.*give another folder"):
        write(
            written,
            live,
            mapper=PanopticTestMapper(config("INPUT.MIN_SIZE_TEST", "40")),
        )
    records = panoptic_set_records(DATASET)
    with pytest.raises(InputError, match="of another image .1003.png, not 3.png"):
        write(written, live, records=[records[0] | {"file_name": "3.png"}])
    for place, name, value, message in (
        (live, "classes", live.classes._replace(names=live.names[::-1]), "of another vocabulary"),
        (live, "settings", dataclasses.replace(live.settings, padding=77), "other settings.*: 77"),
        (
            generator_outputs,
            "generator_hash",
            lambda model: "other",
            "of other weights .*, not oth",
        ),
    ):
        with monkeypatch.context() as patch, pytest.raises(InputError, match=message):
            patch.setattr(place, name, value)
            write(written, live)
    assert not made


def test_the_clip_branch_is_no_part_of_the_generator(live):
    branch = ("MODEL.CLIP.WEIGHTS", "mini", "MODEL.CLIP_BRANCH.WEIGHTS", "mini-clipself")
    plain = build_model(config(*branch[:2]))
    distilled = build_model(config(*branch))
    assert plain.weights_hash() != distilled.weights_hash()
    assert generator_hash(plain) == generator_hash(distilled) != generator_hash(live)


def test_pictures_of_one_file_are_refused(live, tmp_path):
    records = [{"file_name": f"{n}.png", "image_id": n} for n in ("a/1", "a_1")]
    with pytest.raises(InputError, match="'a/1' and 'a_1' would share the file .*a_1.safetensors"):
        write(tmp_path, live, records=records)


def test_a_model_that_reads_outputs_refuses_those_of_something_else(written, tmp_path):
    one = samples()[0]
    for change, message in (
        ({"image_id": 5}, "5.safetensors is missing"),
        ({"image_id": 1001}, "of another image"),
        ({"image": one["image"][:, 1:]}, "of another size"),
    ):
        with pytest.raises(InputError, match=message):
            disk_model(written)([one | change])
    model = disk_model(written)
    model.set_vocabulary(["dog", "grass"])
    with pytest.raises(InputError, match="of another vocabulary"):
        model([one])
    (tmp_path / "1003.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match="1003.safetensors is damaged"):
        disk_model(tmp_path)([one])


@pytest.fixture
def run(monkeypatch, tmp_path):
    def call(
        *words, weights="random", dataset=DATASET, output=tmp_path / "out", config=CONFIG, tiny=TINY
    ):
        given = ("--config-file", config, "--weights", weights, "--dataset", dataset)
        opts = ("--output", output, "--opts", *tiny, *words)
        monkeypatch.setattr(sys, "argv", [str(w) for w in ("x.py", *given, *opts)])
        return precompute.generator_outputs()

    return call


def test_the_tool_says_what_it_wrote(run, capsys, tmp_path):
    for said in ("3 written, 0 there already", "0 written, 3 there already"):
        assert run() == 0 and capsys.readouterr().out == f"{tmp_path / 'out'}: {said}\n"
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize(
    "how, words, message",
    [
        ({"dataset": "mini_vall"}, (), 'no data set "mini_vall"'),
        ({"weights": "none.pth"}, (), "no checkpoint at none.pth"),
        ({"config": "mini/semseg", "tiny": ()}, (), "has no mask generator"),
        ({}, ("MODEL.MASK_GENERATOR.SOURCE", "disk"), "reads outputs, it makes none"),
        ({"output": __file__}, (), "is a file or below one"),
    ],
)
def test_bad_input_is_a_line_and_status_2(run, capsys, tmp_path, how, words, message):
    assert run(*words, **how) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") or "weights are random" in error
    assert message in error and not (tmp_path / "out").exists()
