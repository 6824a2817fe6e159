"""Semantic models in one file: the graph is torch's, and the script beside it labels an image as the predictor does."""

import runpy
import sys
from random import Random

import numpy as np
import pytest
from PIL import Image

import clipself_seg
from clipself_seg.clip.tokenizers import clip_tokenizer
from clipself_seg.commands.export import export
from clipself_seg.data.images import read_image
from clipself_seg.data.mappers.sem_seg import SemSegTestMapper
from clipself_seg.prediction.onnx import graph
from tests.tiny import noise

WINDOWS = ("MODEL.ZERO_SHOT.WINDOW", "64", "MODEL.ZERO_SHOT.STRIDE", "24")
SLIDING = ("TEST.SLIDING_WINDOW", "True")
WORDS = "red star|blue ring, grass, sand"


def labels_of(folder, photo, names=()) -> tuple[np.ndarray, dict]:
    """Labels of an image by the files of a folder alone, and what the JSON file says."""
    stem = folder / "model"
    model = runpy.run_path(f"{stem}.py")["Model"](stem)
    texts = {}
    if names:
        texts = runpy.run_path(f"{stem}_texts.py")["Texts"](stem).inputs(names)
    return model.scores(*model.read(photo), **texts).argmax(axis=0), model.meta


def photo_in(folder, height=90, width=145):
    """An image file of smooth noise, of no size of the mini worlds, whose EXIF says that it lies on its side."""
    small = Image.fromarray(noise(9, 14))
    exif = Image.Exif()
    exif[0x0112] = 6
    small.resize((width, height), Image.Resampling.BICUBIC).save(folder / "photo.png", exif=exif)
    return folder / "photo.png"


@pytest.mark.parametrize("short, long", [(0, 20), (20, 1000), (40, 50)])
def test_the_script_gives_an_image_the_size_that_the_mapper_gives_it(tmp_path, short, long):
    path = str(graph.TEMPLATES / "onnx_semantic.py.txt")
    cls = runpy.run_path(path)["Model"]
    model = cls.__new__(cls)
    model.meta = {"short_side": short, "long_side": long}
    photo = photo_in(tmp_path, 30, 47)
    resized = SemSegTestMapper(min_size=short, max_size=long).resized(read_image(photo))["image"]
    assert (model.read(photo)[0] == resized.numpy()).all()


@pytest.mark.parametrize("task", ["semantic", "detection", "panoptic"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_scripts_read_a_turned_grey_tiff_as_the_predictor_does(tmp_path, task, dtype):
    pytest.importorskip("onnxruntime")
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = noise(30, 47)[..., 0].astype(dtype) * (257 if dtype == np.uint16 else 1)
    Image.fromarray(grey).save(tmp_path / "a.tif", exif=exif)
    script = tmp_path / "model.py"
    script.write_text((graph.TEMPLATES / f"onnx_{task}.py.txt").read_text())
    (tmp_path / "model.json").write_text('{"names": [], "things": []}')
    read = runpy.run_path(str(script))
    if task == "semantic":
        model = read["Model"].__new__(read["Model"])
        model.meta = {"short_side": 0, "long_side": 99}
        pixels = model.read(tmp_path / "a.tif")[0].transpose(1, 2, 0)
    else:
        pixels = np.asarray(read["read"](str(tmp_path / "a.tif")))
    assert (pixels == read_image(tmp_path / "a.tif")).all() and pixels.shape == (47, 30, 3)


def test_the_files_of_a_model_label_an_image_as_torch_does(tmp_path, monkeypatch):
    model = clipself_seg.load("mini-clipself", device="cpu", opts=WINDOWS)
    del model.model.clip.visual.blocks[:-1]  # with one, the export takes less time
    model.set_vocabulary(WORDS)
    differences = clipself_seg.export(model, tmp_path / "out" / "model.onnx")["model.onnx"]
    assert {"1x3x64x64", "2x3x32x73", "1x3x5x7"} == differences.keys()
    assert max(differences.values()) < 1e-5
    photo = photo_in(tmp_path)
    labels, meta = labels_of(tmp_path / "out", photo)
    assert (labels == model(photo).labels).all() and len(np.unique(labels)) > 1
    assert meta["synonyms"] == [["red star", "blue ring"], ["grass"], ["sand"]]
    assert meta["files"]["model.onnx"]["inputs"]["images"][1] == ["B", 3, "H", "W"]
    assert any("licence" in text.lower() or "apache" in text.lower() for text in meta["weights"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"model.{ending}" for ending in ("json", "onnx", "py")
    ]
    for arguments, reason in (
        ([], "give an image"),
        (["none.jpg"], "cannot read an image.*none.jpg"),
        ([str(photo), "dog"], "class names are in model.onnx"),
    ):
        monkeypatch.setattr(sys, "argv", ["model.py", *arguments])
        with pytest.raises(SystemExit, match=reason):
            runpy.run_path(str(tmp_path / "out" / "model.py"), run_name="__main__")
    with pytest.raises(clipself_seg.InputError, match="is there already"):
        clipself_seg.export(model, tmp_path / "out" / "model.onnx")


def test_a_name_with_a_dot_is_that_of_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "export_graph", lambda _, path: {"differences": path.touch()})
    (tmp_path / "v1.json").write_text("another file's")
    graph.write_model(graph.Export(None, {}, beside={".py": ""}), tmp_path / "v1.2.onnx")
    names = ["v1.2.json", "v1.2.onnx", "v1.2.py", "v1.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "v1.json").read_text() == "another file's"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--model mini -o model.onnx", "no class names: give words"),
        (
            "--model mini -o onnx --words dog",
            "onnx is a folder, for the two towers of a CLIP, and class names belong",
        ),
        ("--model mini -o m.onnx --words dog --text-tower", "leave it or the words out"),
    ],
)
def test_what_one_file_cannot_be_is_refused_before_a_model_is_loaded(
    tmp_path, monkeypatch, capsys, words, reason
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipself_seg.prediction.onnx.export.load", None)
    assert export(words.split()) == 2
    assert reason in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_background_and_what_belongs_to_others_has_no_place_in_the_file(tmp_path):
    model, path = clipself_seg.load("mini", device="cpu"), tmp_path / "model.onnx"
    model.set_vocabulary("red star, grass", background="background")
    with pytest.raises(clipself_seg.InputError, match="a background is not exported"):
        clipself_seg.export(model, path)
    with pytest.raises(clipself_seg.InputError, match="stuff is told from things in panoptic"):
        clipself_seg.export(model, path, "red star, grass", stuff="grass")
    mirrored = clipself_seg.load("mini", device="cpu", opts=["TEST.AUG.ENABLED", "True"])
    with pytest.raises(clipself_seg.InputError, match="no mirrored image"):
        clipself_seg.export(mirrored, path, "red star, grass")


def test_the_tokenizer_beside_a_text_tower_is_that_of_clip():
    package = pytest.importorskip("tokenizers")
    tokenizer = package.Tokenizer.from_str(clip_tokenizer().to_json())
    tokenizer.enable_truncation(20)
    tokenizer.enable_padding(length=20, pad_id=0)
    texts = [
        "Itap of an  APPLE/pear_tree 123's don't!",
        "a " * 30,
        "Straßenbahn café 日本",
        "",
        "3D\n",
        "a diver’s “mask” ＮＹＣ cafe\u0301 ﬁre ŉ 100㎏",
        "rock &amp;amp; roll &lt;3 cow&#39;s",
        "\x1b[31mred\ufeff\x07 \u2028'ſ Łódź, São Paulo",
        "ΟΔΟΣ ΣΟΦΙΑ'Σ Σ",
    ]
    ids = [one.ids for one in tokenizer.encode_batch(texts)]
    assert ids == clip_tokenizer()(texts, 20).tolist()


def test_texts_of_three_scripts_have_clips_tokens():
    package = pytest.importorskip("tokenizers")
    tokenizer = package.Tokenizer.from_str(clip_tokenizer().to_json())
    beside: dict = {}
    exec(graph.script("texts"), beside)
    letters = "".join(
        filter(str.isprintable, map(chr, [*range(0x20, 0x530), *range(0x1E00, 0x2000)]))
    )
    random = Random(0)
    texts = ["".join(random.choices(letters, k=random.randint(1, 12))) for _ in range(1000)]
    # Letters in their own right that are bytes of UTF-8 in another encoding, too.
    texts += [
        *" ¡æ¼çðñ®ñáÂä´Ëïä¤Ø ïÙÁÔäàÙÌ Ñá".split(),
        "crÃ¨me",
        "itâ€™s",
        "\x92",
        "ещё",
        "Ã¡&#127;",
    ]
    for text in texts:
        assert tokenizer.encode(beside["cleaned"](text)).ids == clip_tokenizer().encode(text), text
    assert beside["cleaned"]("cr&egrave;me br&ucirc;l&eacute;e") == "crème brûlée"
    with pytest.raises(SystemExit, match="that Unicode .* lacks: leave it out"):
        beside["cleaned"]("ð²¬\xa0 \U00032b20")
    with pytest.raises(SystemExit, match="has an empty name"):
        beside["synonyms"]("dog|")


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "opts"),
    [
        ("mini", ()),
        ("mini", (*SLIDING, "MODEL.CAT_SEG.CHECKPOINTING", "True")),  # as CAT-Seg's recipe
        ("mini-clipself", WINDOWS),
        ("mini-clipself", ("MODEL.CLIP.ATTENTION", "naclip", "MODEL.CLIP.DENSE", "token")),
    ],
)
def test_class_names_given_later_are_labelled_as_by_torch(tmp_path, monkeypatch, name, opts):
    model = clipself_seg.load(name, device="cpu", opts=opts)
    differences = clipself_seg.export(model, tmp_path / "model.onnx", text_tower=True)
    assert max(value for file in differences.values() for value in file.values()) < graph.TOLERANCE
    photo = photo_in(tmp_path)
    for names in (["red star|blue ring", "grass", "sand"], ["blue ring", "brick"]):
        labels, meta = labels_of(tmp_path, photo, names)
        assert (labels == model(photo, ", ".join(names)).labels).mean() > 0.999
    assert meta["names"] == []
    monkeypatch.setattr(sys, "argv", ["model.py", str(photo)])
    with pytest.raises(SystemExit, match="give class names"):
        runpy.run_path(str(tmp_path / "model.py"), run_name="__main__")
