"""Entries of the zoo, what messages say of them, and the table that the README has."""

from __future__ import annotations

import functools
import re

import open_clip
import pytest

from clipself_seg.checkpoints.read import read_checkpoint
from clipself_seg.checkpoints.zoo import (
    SHIPPED_MODELS,
    SHIPPED_TAGS,
    official,
    suggestion,
    table,
    untrained,
    zoo,
)
from clipself_seg.clip.kinds import list_architectures
from clipself_seg.config.yaml_files import names
from clipself_seg.errors import InputError
from tests.conftest import ROOT

ENTRIES = zoo().values()


def test_names_and_files_are_unlike_each_other_and_shipped_ones():
    assert len({entry.file.lower() for entry in ENTRIES}) == len(ENTRIES) > 50
    assert not zoo().keys() & {*SHIPPED_TAGS, *SHIPPED_MODELS, "openai", "random"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_complete(entry):
    assert entry.addresses or entry.pages
    assert all(a.startswith("https://") and "/blob/" not in a for a in entry.addresses)
    assert entry.licence and entry.source
    assert re.fullmatch("([0-9a-f]{8,64})?", entry.sha256) and entry.size != 0
    assert set(entry.configs) <= set(names())
    assert not entry.model or entry.model in list_architectures()


def test_names_of_tags_are_tags():
    tags = [entry for entry in ENTRIES if ":" in entry.name]
    assert len(tags) == 51
    for entry in tags:
        model, tag = entry.name.split(":")
        assert model == entry.model
        repository = open_clip.get_pretrained_cfg(model, tag)["hf_hub"]
        assert f"/{repository}resolve/main/" in entry.addresses[0]


def test_a_missing_file_of_an_official_name_is_called_by_its_name():
    with pytest.raises(InputError, match='at in/model_base.pth; .*"catseg-base" is the name of'):
        read_checkpoint("in/model_base.pth")
    assert suggestion("catseg-bsae").endswith('did you mean "catseg-base"?')
    assert suggestion("mini-fvitt").endswith('did you mean "mini-fvit"?')
    assert suggestion("mini-clipself").endswith("it belongs in MODEL.CLIP.WEIGHTS")


def test_configurations_know_their_official_checkpoints():
    assert official("MODEL.WEIGHTS", "configs/semseg/catseg_cvpr_vitb16.yaml") == "catseg-base"
    assert official("MODEL.WEIGHTS", "a/catseg_cvpr_vitb16.yaml") == ""
    assert official("MODEL.WEIGHTS", "") == ""
    assert official("MODEL.WEIGHTS", "semseg/").startswith("catseg-base, catseg-large, catseg-v1-")
    assert official("MODEL.WEIGHTS", "detection/").endswith(", ...")


def test_the_readme_has_the_table():
    assert table() in (ROOT / "README.md").read_text(), "python tools/write_tables.py"


def test_a_model_without_weights_names_those_that_fit_its_clip():
    of = functools.partial(untrained, "aggregation", folder="semseg/", shipped="mini-cat-seg")
    assert str(of(clip="ViT-Mini-8")).endswith("or mini-cat-seg, which comes with the project")
    assert "or an official one: catseg-base, " in str(of(clip="ViT-B-16"))
