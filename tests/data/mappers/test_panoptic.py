"""Crops with their segments: the masks follow the image, and nothing hidden decides them."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from clipself_seg.config import load_config
from clipself_seg.data.datasets.records import find_dataset, panoptic_set_records
from clipself_seg.data.datasets.table import PanopticSet
from clipself_seg.data.mappers.panoptic import PanopticTestMapper, PanopticTrainMapper
from clipself_seg.data.mappers.samples import seeded
from clipself_seg.data.vocabulary import Vocabulary
from clipself_seg.errors import InputError

SIDE = 32
STEP = 70001  # ids need all three channels
MINI = Vocabulary.load("mini")
COCO = "coco_2017_val_panoptic_with_sem_seg"


def write_scene(folder, height=40, width=48):
    """Six blocks; the image's red channel is a block's number times 40, the PNG its number times STEP.

    Block 0 is void, block 5 a crowd.
    """
    rows, columns = np.indices((height, width))
    blocks = rows * 2 // height * 3 + columns * 3 // width
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = blocks * 40
    Image.fromarray(image).save(folder / "a.png")
    ids = blocks * STEP
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(folder / "segments.png")
    infos = [
        {"id": number * STEP, "category_id": MINI.classes[number + 3].dataset_id, "bbox": [0] * 4}
        for number in range(1, 6)
    ]
    infos[-1]["iscrowd"] = 1
    return {
        "file_name": str(folder / "a.png"),
        "image_id": "a",
        "pan_seg_file_name": str(folder / "segments.png"),
        "segments_info": infos,
    }


def mapper(**changes):
    settings = {"seed": 0, "vocabulary": MINI, "size": SIDE, "scales": (1.0, 1.0)}
    return PanopticTrainMapper(**settings | changes)


@pytest.fixture
def record(tmp_path):
    return write_scene(tmp_path)


@pytest.mark.parametrize("draw", range(6))
def test_masks_follow_the_picture_through_flip_and_cut(tmp_path, draw):
    # As large as the crop, so that resizing does not blend the image; the cut is at most 16 wide.
    sample = mapper(scales=(1.5, 1.5))(write_scene(tmp_path, 32, 48), draw)
    assert sample["image"].shape == (3, SIDE, SIDE) and sample["image"].dtype == torch.uint8
    assert sample["masks"].dtype == torch.bool and sample["labels"].tolist() == [4, 5, 6, 7]
    for number, mask in enumerate(sample["masks"], 1):
        torch.testing.assert_close(mask, sample["image"][0] == number * 40)
    # Void and the crowd belong to nobody.
    assert not sample["masks"].any(0)[sample["image"][0] == 200].any()


def test_a_smaller_picture_is_padded_with_grey_that_belongs_to_nobody(record):
    sample = mapper(scales=(0.5, 0.5))(record, 0)
    # 40 x 48 in a square of 16: 13 x 16.
    assert (sample["image"][:, 13:] == 128).all() and (sample["image"][:, :, 16:] == 128).all()
    assert (sample["image"][1:, :13, :16] == 0).all()
    assert not sample["masks"][:, 13:].any() and not sample["masks"][:, :, 16:].any()
    assert sample["masks"][:, :13, :16].any(2).any(1).all()


def test_segments_outside_the_cut_stay_as_empty_masks_or_go(record):
    kept, dropped = (
        mapper(scales=(6.0, 6.0), keep_empty=keep)(record, 1) for keep in (True, False)
    )
    there = kept["masks"].any(2).any(1)
    assert kept["labels"].tolist() == [4, 5, 6, 7] and 0 < there.sum() < 4
    assert torch.equal(dropped["masks"], kept["masks"][there])
    assert torch.equal(dropped["labels"], kept["labels"][there])


def test_a_picture_of_crowds_has_no_segments(record):
    for info in record["segments_info"]:
        info["iscrowd"] = 1
    sample = mapper()(record, 0)
    assert sample["labels"].shape == (0,) and sample["labels"].dtype == torch.int64
    assert sample["masks"].shape == (0, SIDE, SIDE) and sample["masks"].dtype == torch.bool


def test_a_thin_picture_keeps_a_pixel(tmp_path):
    record = write_scene(tmp_path, 10, 400)
    assert mapper(scales=(0.1, 0.1))(record, 0)["masks"].shape == (4, SIDE, SIDE)


def test_stuff_that_things_cover_may_be_listed_where_the_data_set_does_so(record):
    hidden = {"id": 7, "category_id": MINI.classes[40].dataset_id, "bbox": [0] * 4}
    record["segments_info"].append(hidden)
    with pytest.raises(InputError, match=r"\[7\] only in the JSON"):
        mapper()(record, 0)
    sample = mapper()(record | {"covered_stuff": True}, 0)
    assert sample["labels"].tolist() == [4, 5, 6, 7, 40] and not sample["masks"][-1].any()
    record["segments_info"].pop(0)
    with pytest.raises(InputError, match=r"\[70001\] only in the PNG"):
        mapper()(record | {"covered_stuff": True}, 0)


def test_a_category_that_the_vocabulary_lacks_is_named(record):
    record["segments_info"][1]["category_id"] = 77
    with pytest.raises(InputError, match=r"segments.png: category ids \[77\] are not in the voc"):
        mapper()(record, 0)


def test_words_are_drawn_from_one_caption(record):
    record["captions"] = [["a dog", "grass"], ["a cat"], []]
    drawn = [tuple(mapper(words=8)(record, draw)["words"]) for draw in range(40)]
    assert {frozenset(words) for words in drawn} == {
        *(frozenset(), frozenset(["a cat"]), frozenset(["a dog", "grass"]))
    }
    assert {len(words) for words in drawn} == {0, 8}
    assert drawn[7] == tuple(mapper(words=8)(record, 7)["words"])
    with pytest.raises(InputError, match="image a .*a.png. has no captions"):
        mapper(words=8)({**record, "captions": []}, 0)


def test_the_config_decides(record):
    words = ["MODEL.MASK_GENERATOR.VARIANT", "caption", "INPUT.FORMAT", "RGB"]
    words += ["INPUT.IMAGE_SIZE", 64, "INPUT.MIN_SCALE", 0.5, "INPUT.MAX_SCALE", 0.5]
    record["captions"] = [["a dog"]]
    grounded = PanopticTrainMapper(load_config(None, words), seed=0, vocabulary=MINI)
    sample = grounded(record, 0)
    assert sample["words"] == ["a dog"] * 8 and sample["image"].shape == (3, 64, 64)
    assert (sample["image"][:, 32:] == 128).all()
    cfg = load_config(None, [*words, "MODEL.MASK_GENERATOR.VARIANT", "label"])
    assert "words" not in PanopticTrainMapper(cfg, seed=0, vocabulary=MINI)(record, 0)


def test_the_test_mapper_keeps_the_records_entries_and_reads_no_ground_truth(record):
    record["pan_seg_file_name"] = "nowhere.png"
    sizes = ["INPUT.MIN_SIZE_TEST", 80, "INPUT.MAX_SIZE_TEST", 2560, "INPUT.FORMAT", "RGB"]
    cfg = load_config(None, sizes)
    sample = PanopticTestMapper(cfg)(record)
    assert sample["image"].shape == (3, 80, 96) and sample["image"].dtype == torch.uint8
    assert (sample["height"], sample["width"]) == (40, 48)
    assert {key: sample[key] for key in record} == record


def test_real_crops_are_those_of_detectron2s_recipe(real_datasets):
    """Mask2Former's: flip, large-scale jitter, fixed crop, and masks by comparing ids."""
    vocabulary = Vocabulary.load(find_dataset(COCO, PanopticSet).vocabulary)
    ours = mapper(vocabulary=vocabulary, size=256, scales=(0.1, 2.0), seed=3)
    for draw, record in enumerate(panoptic_set_records(COCO)[:4]):
        sample = ours(record, draw)
        augmentations = [T.RandomFlip(), T.ResizeScale(0.1, 2.0, 256, 256)]
        augmentations.append(T.FixedSizeCrop((256, 256)))
        augmented = T.AugInput(detectron2_read_image(record["file_name"], "RGB"))
        with seeded(3, draw):
            transforms = T.AugmentationList(augmentations)(augmented)
        assert (sample["image"].permute(1, 2, 0).numpy() == augmented.image).all()
        rgb = transforms.apply_segmentation(np.asarray(Image.open(record["pan_seg_file_name"])))
        ids = rgb.astype(int) @ [1, 256, 65536]
        infos = [info for info in record["segments_info"] if not info["iscrowd"]]
        assert len(infos) == len(sample["masks"])
        for info, label, mask in zip(infos, sample["labels"], sample["masks"]):
            assert vocabulary.classes[label].dataset_id == info["category_id"]
            assert (mask.numpy() == (ids == info["id"])).all()


def test_masks_of_a_folder_come_with_the_sample_at_the_size_of_the_image(record, tmp_path):
    (tmp_path / "masks").mkdir()
    Image.open(record["pan_seg_file_name"]).save(tmp_path / "masks/a.png")
    opts = ["INPUT.FORMAT", "RGB", "INPUT.MIN_SIZE_TEST", "80"]
    opts += ["MODEL.MASK_GENERATOR.SOURCE", "masks", "MODEL.FUSION.MODE", "clip"]
    cfg = load_config(None, [*opts, "MODEL.MASK_GENERATOR.OUTPUTS", str(tmp_path / "masks")])
    sample = PanopticTestMapper(cfg)(record)
    assert sample["image"].shape == (3, 80, 96) and sample["given_scores"].tolist() == [1] * 5
    masks = sample["given_masks"]
    assert masks.dtype == torch.bool and masks.shape == (5, 40, 48)
    assert masks.sum((1, 2)).tolist() == [40 * 48 // 6] * 5
    assert "given_masks" not in PanopticTestMapper(load_config(None, opts[:4]))(record)
    Image.new("L", (40, 48)).save(tmp_path / "masks/a.png")
    with pytest.raises(InputError, match="a.png is 40 x 48, the image, .* is 48 x 40"):
        PanopticTestMapper(cfg)(record)
