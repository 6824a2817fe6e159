"""Region recognition with a CLIP as it is."""

import pytest
import torch

from clipself_seg.clip import load_clip
from clipself_seg.config import READOUTS
from clipself_seg.errors import InputError
from clipself_seg.models import RegionReader
from tests.tiny import WORDS, tiny_region_sample


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    reader = RegionReader(clip=load_clip("ViT-Mini-8", None), read=READOUTS, templates="single")
    reader.set_vocabulary(WORDS)
    return reader


def naive(clip, readout, sample):
    """The embeddings of one readout from the public functions of the CLIP, (n, E)."""
    images = clip.preprocess(sample["image"][None])
    masked = readout.startswith("attention")
    if readout == "crops":
        return clip.encode_image(clip.preprocess(sample["crops"]))
    if readout.endswith("boxes"):
        return clip.encode_boxes(images, [sample["boxes"]], masked)
    return clip.encode_masks(images, [sample["masks"]], masked)


@pytest.mark.parametrize("readout", READOUTS)
def test_scores_of_a_batch_are_cosines_of_single_images(reader, readout):
    samples = [tiny_region_sample(0, 3), tiny_region_sample(1, 1)]
    outputs = reader(samples)
    for sample, output in zip(samples, outputs):
        with torch.no_grad():
            expected = naive(reader.clip, readout, sample) @ reader.bank.embed(reader.names).T
        torch.testing.assert_close(output["scores"][readout], expected)


def test_one_dense_pass_serves_boxes_and_masks(reader, monkeypatch):
    calls, dense = [], reader.clip.dense
    monkeypatch.setattr(reader.clip, "dense", lambda x: calls.append(1) or dense(x))
    reader([tiny_region_sample()])
    assert len(calls) == 1


def test_an_image_without_regions_has_empty_scores(reader):
    sample = tiny_region_sample(0, 1)
    empty = {k: v[:0] if k in ("boxes", "masks", "crops") else v for k, v in sample.items()}
    for scores in reader([empty])[0]["scores"].values():
        assert scores.shape == (0, len(WORDS))


def test_an_empty_mask_scores_nothing(reader):
    sample = tiny_region_sample()
    sample["masks"][1] = False
    assert not reader([sample])[0]["scores"]["masks"][1].any()


def test_another_vocabulary_gives_other_columns(reader):
    before = reader([tiny_region_sample()])[0]["scores"]["boxes"]
    reader.set_vocabulary(WORDS[::-1])
    after = reader([tiny_region_sample()])[0]["scores"]["boxes"]
    torch.testing.assert_close(after.flip(1), before)
    reader.set_vocabulary(WORDS)


def test_only_what_is_read_is_computed_and_needed():
    reader = RegionReader(clip=load_clip("ViT-Mini-8", None), read=["boxes"], templates="single")
    reader.set_vocabulary(WORDS)
    sample = {k: v for k, v in tiny_region_sample().items() if k not in ("masks", "crops")}
    assert list(reader([sample])[0]["scores"]) == ["boxes"]


def test_a_class_that_comes_twice_is_refused_by_name(reader):
    with pytest.raises(InputError, match="the name 'puppy' is there twice"):
        reader.set_vocabulary(["dog|puppy", "cat", "puppy"])


def test_scoring_before_the_words_are_known_is_an_error():
    reader = RegionReader(clip=load_clip("ViT-Mini-8", None))
    with pytest.raises(RuntimeError, match="set_vocabulary"):
        reader([tiny_region_sample()])


def test_its_reading_is_what_it_does(reader):
    reading = reader.reading()
    assert reading.synonyms == "all, the mean of their embeddings" and reading.windows == "none"
    assert reading.templates == '"a photo of a {}"'
    assert (reading.features, reading.scale) == ("token", "")


@pytest.mark.parametrize("read", [("boxes",), ("crops",)])
def test_dense_features_come_along_if_they_are_asked_for_and_change_no_score(reader, read):
    samples = [tiny_region_sample(0, 3), tiny_region_sample(1, 1)]
    without, outputs = reader(samples, read=read), reader(samples, read=read, dense=True)
    for sample, plain, output in zip(samples, without, outputs):
        images = reader.clip.preprocess(sample["image"][None])
        with torch.no_grad():
            torch.testing.assert_close(output["dense"], reader.clip.encode_dense(images)[0])
        assert "dense" not in plain and output["scores"].keys() == {*read}
        for readout in read:
            assert torch.equal(output["scores"][readout], plain["scores"][readout])
