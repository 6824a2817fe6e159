"""Features of images on disk: what a file has, and that an interrupted call goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_seg.__main__ import main
from clipself_seg.clip import load_clip
from clipself_seg.clip.model import whole_image_features
from clipself_seg.data.images import letterbox_image, read_image
from clipself_seg.prediction.features import FeatureResults

SIZE = 64
BOXES = [[0, 0, 80, 40], [10, 5, 30, 20]]  # XYWH


@pytest.fixture
def photos(tmp_path):
    """A wide and a high image, and a JSON with boxes of the wide one and none of the other."""
    rng = np.random.default_rng(0)
    for name, shape in (("wide.png", (40, 80, 3)), ("sub/high.png", (70, 30, 3))):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    images = [
        {"id": 1, "file_name": "wide.png", "height": 40, "width": 80},
        {"id": 2, "file_name": "sub/high.png"},
    ]
    boxes = [{"id": i, "image_id": 1, "bbox": box} for i, box in enumerate(BOXES)]
    content = {"images": images, "annotations": boxes}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path


def write(folder, *words):
    given = ["data", "features", folder / "photos", "--model", "mini", "-o", folder / "out"]
    return main([*map(str, given), "--size", str(SIZE), "--device", "cpu", *map(str, words)])


def test_a_file_has_the_features_of_the_model_in_cells_and_boxes_of_the_image(photos):
    boxes = ["--boxes", photos / "boxes.json", "--save", "dense", "image", "--dtype", "float32"]
    assert write(photos, *boxes) == 0
    clip = load_clip("ViT-Mini-8", "mini")
    image = read_image(photos / "photos/wide.png")
    features = np.load(photos / "out/features/wide.npz")
    assert features["dense"].shape == (clip.embed_dim, 4, 8) and features["cell"] == 10
    dense = whole_image_features(clip, image, SIZE)
    np.testing.assert_array_equal(features["dense"], dense)
    square = torch.from_numpy(letterbox_image(image, SIZE)).permute(2, 0, 1)[None]
    relative = torch.tensor([[0, 0, 1, 0.5], [0.125, 0.0625, 0.5, 0.3125]])
    with torch.no_grad():
        embedded = clip.encode_boxes(clip.preprocess(square), [relative]).numpy()
    np.testing.assert_allclose(features["box_embeddings"], embedded, atol=1e-6)
    assert features["boxes"].tolist() == [[0, 0, 80, 40], [10, 5, 40, 25]]
    high = np.load(photos / "out/features/sub/high.npz")
    assert high["dense"].shape[1:] == (8, 4) and high["size"].tolist() == [70, 30]
    assert len(high["box_embeddings"]) == 0
    assert np.linalg.norm(high["image"]) == pytest.approx(1)
    index = json.loads((photos / "out/features.json").read_text())
    assert index["patch_size"] == 8 and index["complete"]
    assert index["images"]["sub/high"]["size"] == [70, 30]


def test_an_interrupted_call_goes_on_and_refuses_other_settings(photos, monkeypatch, capsys):
    assert write(photos) == 0
    assert np.load(photos / "out/features/wide.npz")["dense"].dtype == np.float16
    (photos / "out/features/wide.npz").unlink()
    asked = []
    predict = FeatureResults.predict

    def watched(self, images, sources=()):
        asked.extend(source.name for source in sources)
        return predict(self, images, sources)

    monkeypatch.setattr(FeatureResults, "predict", watched)
    assert write(photos, "--skip-existing") == 0
    assert asked == ["wide"]
    assert write(photos, "--skip-existing", "--dtype", "float32") == 2
    assert "dtype has changed ('float16', now 'float32')" in capsys.readouterr().err


def test_an_image_that_the_boxes_do_not_list_fails_alone(photos, capsys):
    Image.new("RGB", (90, 40)).save(photos / "photos/wide.png")  # another size than listed
    assert write(photos, "--boxes", photos / "boxes.json") == 1
    assert 'does not list "wide.png" with 90 x 40 pixels' in capsys.readouterr().err
    assert (photos / "out/features/sub/high.npz").exists()
