"""The command on shards: it learns, goes on exactly, counts what it cannot use, and runs no command of a file."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from clipself_seg.commands import train
from clipself_seg.models import CLIPSelf
from tests.commands.test_train import words
from tests.conftest import ROOT
from tests.shards import encoded, samples, write_shard, write_shards

MINI = ("--config-file", str(ROOT / "configs/mini/patches.yaml"))


@pytest.fixture
def shards(tmp_path):
    """A notation for four shards, the last of which has an image that is cut off."""
    write_shards(tmp_path)
    write_shard(tmp_path / "03.tar", [*samples(range(9, 12)), ("bad.jpg", encoded(1)[:200])])
    torch.set_num_threads(1)
    return f"wds:{tmp_path}/{{00..03}}.tar"


def run(folder, name, *flags, **changes):
    given = {"DATASETS__TRAIN": f"({name!r},)", "SOLVER__MAX_ITER": 6} | changes
    return train.main(words(folder, *MINI, *flags, **given))


def lines(folder):
    """What was logged of each step, but for the clock."""
    steps = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    clocks = ("time", "data_time", "eta_seconds")
    return [{k: v for k, v in step.items() if k not in clocks} for step in steps]


def test_a_run_on_shards_goes_on_exactly_and_counts_what_it_cannot_use(
    tmp_path, shards, monkeypatch, capfd
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    often = {"SOLVER__CHECKPOINT_PERIOD": 2}
    assert run(whole, shards, **often) == 0
    assert [line["unusable_images"] for line in lines(whole)][-1] == 1
    assert capfd.readouterr().out.count("left out: image ") == 1
    step = CLIPSelf.after_optimizer_step
    steps = []

    def interrupted(self):
        step(self)
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CLIPSelf, "after_optimizer_step", interrupted)
        assert run(parts, shards, **often) == 130
    assert run(parts, shards, "--resume", **often, DATALOADER__NUM_WORKERS=1) == 0
    assert "resumed after 2 steps" in capfd.readouterr().out
    assert lines(parts) == lines(whole)
    one, two = (load_file(folder / "clip_final.safetensors") for folder in (whole, parts))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_shards_are_refused_where_more_than_images_is_read(tmp_path, shards, capfd):
    folder = tmp_path / "out"
    for changes, message in (
        ({"INPUT__REGIONS__SOURCE": "proposals"}, "SOURCE grid (now proposals)"),
        ({"MODEL__CLIPSELF__TARGET": "captions"}, "TARGET crops (now captions)"),
        ({"DATASETS__TRAIN": f"({shards!r}, 'mini_train')"}, "nothing beside them"),
        (
            {"DATASETS__TRAIN": "('wds:none{0..1}.tar',)"},
            "2 of 2 shards are missing, such as none0",
        ),
    ):
        assert run(folder, shards, **changes) == 2
        assert message in capfd.readouterr().err
