"""The notation of shards, and that a configuration's file has no commands."""

from __future__ import annotations

import pytest

from clipself_seg.config import load_config
from clipself_seg.config.shards import is_shards, shards_of
from clipself_seg.errors import InputError

EXPANDED = {
    "wds:/a/{08..11}.tar": ["/a/08.tar", "/a/09.tar", "/a/10.tar", "/a/11.tar"],
    "wds:a{1..2}{x,yz}.tar": ["a1x.tar", "a1yz.tar", "a2x.tar", "a2yz.tar"],
    "wds:a{9..11}": ["a9", "a10", "a11"],
    "wds:a{3..1}": ["a3", "a2", "a1"],
    "wds:a.tar": ["a.tar"],
    "wds:pipe:awk '{print}' $X {0..1}": [
        "pipe:awk '{print}' $X 0",
        "pipe:awk '{print}' $X 1",
    ],
}


@pytest.mark.parametrize("name", EXPANDED)
def test_braces_stand_for_many_shards(name):
    assert shards_of([name]) == EXPANDED[name]


@pytest.mark.parametrize("name", EXPANDED)
def test_braces_are_those_of_webdataset(name):
    expand = pytest.importorskip("webdataset.shardlists").expand_urls
    assert list(expand(name.removeprefix("wds:"))) == EXPANDED[name]


def test_several_names_are_one_list():
    assert shards_of(["wds:b", "wds:a{0..1}"]) == ["b", "a0", "a1"]
    assert is_shards("wds:a") and not is_shards("coco_2017_train") and not is_shards(3)


@pytest.mark.parametrize(
    "names, message",
    [
        (["wds:"], "stands for 0 shards"),
        (["wds:pipe:"], "stands for 1 shards: give"),
        (["wds:a{0..99999999}"], "stands for 100000000 shards"),
        (["wds:{a,b}", "wds:b"], "has the shard 'b' twice"),
        (["wds:https://a/{0..1}.tar"], "the address 'https://a/0.tar'.*pipe:curl"),
    ],
)
def test_what_stands_for_no_shards_is_refused(names, message):
    with pytest.raises(InputError, match=message):
        shards_of(names)


@pytest.mark.parametrize("name", ["wds:pipe:touch ran", "wds:{a,pipe}:touch ran", "wds:{pipe:a,b}"])
def test_a_command_is_run_only_where_it_is_typed(tmp_path, name):
    base, file = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text(f"DATASETS:\n  TRAIN: ('{name}',)\n")
    file.write_text("_BASE_: base.yaml\n")
    for path in (base, file):
        with pytest.raises(InputError, match=f"{base}: DATASETS.TRAIN has the command .* is typed"):
            load_config(path)
    assert load_config(file, ["DATASETS.TRAIN", f"('{name}',)"]).DATASETS.TRAIN == (name,)
    base.write_text("DATASETS:\n  TRAIN: ('wds:a{0..3}.tar',)\n")
    assert load_config(file).DATASETS.TRAIN == ("wds:a{0..3}.tar",)
