"""Videos: frames in, frames out, files that are cut off, and files that are none."""

import json
import types
from unittest import mock

import cv2
import numpy as np
import pytest

from clipself_seg.data.masks import read_indices
from clipself_seg.errors import InputError
from clipself_seg.prediction import video as video_module
from clipself_seg.prediction.files import ImageFile, find_images
from clipself_seg.prediction.journal import Journal
from clipself_seg.prediction.loop import predict_files
from clipself_seg.prediction.video import Video, predict_video
from clipself_seg.prediction.writers import ResultFiles
from tests.prediction.test_detection import predictor as detector
from tests.prediction.test_loop import labeller
from tests.prediction.test_panoptic import predictor as segmenter

SIZE = (64, 48)  # width and height


def make_video(path, codec="mp4v", count=12, rate=12.5):
    """Grey frames, each brighter by 20 than the one before."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate, SIZE)
    assert writer.isOpened()
    for number in range(count):
        writer.write(np.full((*SIZE[::-1], 3), 20 * number, np.uint8))
    writer.release()
    return path


class Stub:
    """Says of each frame its mean brightness, and draws its negative."""

    max_pixels = 10**6

    def __init__(self, folder):
        self.folder = folder
        self.batches = []

    def predict(self, images, sources=()):
        self.batches.append(len(images))
        return [self.result(image) for image in images]

    def result(self, image):
        def overlay(legend, enlarge):
            assert not legend and not enlarge
            return 255 - image

        return types.SimpleNamespace(overlay=overlay, labels=image[..., 0], names=("a", "b"))


def read(path):
    """Rate and mean brightness of each frame."""
    opened = Video(path, 10**6)
    means = [image.mean() for _, image in opened.frames(1)]
    opened.close()
    return opened.rate, np.array(means)


@pytest.mark.parametrize("name, codec", [("a.mp4", "mp4v"), ("a.mkv", "mp4v"), ("a.avi", "MJPG")])
def test_a_video_becomes_one_of_the_same_rate_size_and_number_of_frames(tmp_path, name, codec):
    source = ImageFile(make_video(tmp_path / name, codec), name, "a")
    stub = Stub(tmp_path / "out")
    files, entry = predict_video(stub, source, save=["overlays"], every=1, batch_size=5)
    assert files == ["overlays/a.mp4"] and stub.batches == [5, 5, 2]
    assert entry == {"frames": 12, "every": 1, "rate": 12.5}
    rate, means = read(tmp_path / "out/overlays/a.mp4")
    assert rate == 12.5 and means == pytest.approx(255 - 20 * np.arange(12), abs=8)
    written = Video(tmp_path / "out/overlays/a.mp4", 10**6)
    assert next(written.frames(1))[1].shape == (*SIZE[::-1], 3)
    written.close()
    assert b"vp09" in (tmp_path / "out/overlays/a.mp4").read_bytes()  # which browsers play
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["overlays"]


def test_one_of_several_frames_keeps_the_time_and_labels_have_numbers_of_frames(tmp_path):
    source = ImageFile(make_video(tmp_path / "a.mp4"), "a.mp4", "a")
    stub, labels = Stub(tmp_path / "out"), tmp_path / "out/labels/a.mp4"
    labels.mkdir(parents=True)
    (labels / "000001.png").touch()  # of an earlier call
    files, _ = predict_video(stub, source, save=["labels", "overlays"], every=5, batch_size=1)
    rate, means = read(tmp_path / "out/overlays/a.mp4")
    assert rate == 2.5 and means == pytest.approx([255, 155, 55], abs=8)
    frames = sorted(labels.iterdir())
    assert [path.name for path in frames] == ["000000.png", "000005.png", "000010.png"]
    assert read_indices(frames[2]).mean() == pytest.approx(200, abs=8)
    # All of them are looked for where a call goes on.
    assert [stub.folder / file for file in files] == [stub.folder / "overlays/a.mp4", *frames]
    with pytest.raises(InputError, match="overlays/a.mp4 would replace the image itself"):
        source = ImageFile(stub.folder / "overlays/a.mp4", "a.mp4", "a")
        predict_video(stub, source, save=["overlays"], every=1, batch_size=1)


def test_a_video_that_is_cut_off_is_named_and_what_was_read_is_done(tmp_path):
    path = make_video(tmp_path / "a.mkv", "MJPG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    stub = Stub(tmp_path / "out")
    with pytest.raises(InputError, match="a.mkv ends after . of 12 frames, what was read is done"):
        predict_video(stub, ImageFile(path, "a.mkv", "a"), save=["overlays"], every=1, batch_size=1)
    assert 0 < len(read(tmp_path / "out/overlays/a.mp4")[1]) == len(stub.batches) < 12
    path = make_video(tmp_path / "b.mp4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="b.mp4 cannot be opened: it is cut off or broken"):
        predict_video(stub, ImageFile(path, "b.mp4", "b"), save=["overlays"], every=1, batch_size=1)


def test_a_video_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    refused = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr(video_module, "require_regular_file", refused)
    with pytest.raises(InputError, match=r"a.mp4 cannot be read \(Permission denied\): restore it"):
        Video(tmp_path / "a.mp4", 10**6)


@pytest.mark.parametrize(
    "content",
    [
        b"ffconcat version 1.0\nfile a.mp4\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        b"",
    ],
)
def test_a_script_or_playlist_that_is_named_like_a_video_is_not_followed(tmp_path, content):
    make_video(tmp_path / "a.mp4")
    (tmp_path / "list.mp4").write_bytes(content)
    with mock.patch.object(video_module.cv2, "VideoCapture") as opened:
        with pytest.raises(InputError, match="list.mp4 is no MP4, .* by its content"):
            Video(tmp_path / "list.mp4", 10**6)
    assert not opened.called


def test_large_frames_are_refused_before_they_are_decoded_and_paths_are_absolute(
    tmp_path, monkeypatch
):
    path = make_video(tmp_path / "a%03d.mp4", count=2)
    with pytest.raises(InputError, match="64 x 48, which is more than the 3000 pixels"):
        Video(path, 3000)
    monkeypatch.chdir(tmp_path)
    real = cv2.VideoCapture
    with mock.patch.object(video_module.cv2, "VideoCapture", side_effect=real) as opened:
        Video(path.relative_to(tmp_path), 10**6).close()
    assert opened.call_args.args[:2] == (str(path.resolve()), cv2.CAP_FFMPEG)


def test_a_video_that_cannot_be_written_whole_is_not_there(tmp_path, monkeypatch):
    source = ImageFile(make_video(tmp_path / "a.mp4"), "a.mp4", "a")
    real = cv2.VideoWriter

    def full_disk():
        writer, frames = real(), []
        made = mock.Mock(wraps=writer)
        made.write.side_effect = lambda frame: (
            frames.append(frame) or len(frames) > 4 or writer.write(frame)
        )
        return made

    fake = mock.Mock(side_effect=full_disk, fourcc=real.fourcc)
    monkeypatch.setattr(video_module.cv2, "VideoWriter", fake)
    with pytest.raises(OSError, match="could not be written whole.*overlays/a.mp4"):
        predict_video(Stub(tmp_path / "out"), source, save=["overlays"], every=1, batch_size=1)
    assert list((tmp_path / "out/overlays").iterdir()) == []


def test_an_interrupted_call_goes_on_with_the_videos_that_are_not_done(tmp_path, capfd):
    paths = [make_video(tmp_path / f"{name}.mp4", count=3) for name in "ab"]
    files = find_images(paths, tmp_path / "out", videos=True)
    called = []

    def call(resume, stop=None):
        results = ResultFiles(predictor=labeller(), folder=tmp_path / "out")
        journal = Journal(tmp_path / "out", {}, resume)

        def one(source, batch_size):
            if source.name == stop:
                raise KeyboardInterrupt
            called.append(source.name)
            return predict_video(results, source, save=["overlays"], every=1, batch_size=batch_size)

        predict_files(results, files, journal, video=one)
        return json.loads((tmp_path / "out/classes.json").read_text())

    with mock.patch(
        "clipself_seg.prediction.results.Segmentation.overlay", lambda r, **given: r.image
    ):
        with pytest.raises(KeyboardInterrupt):
            call(False, stop="b")
        content = call(True)
        (tmp_path / "a.mp4").write_bytes(b"no video any more")
        failed = call(True)
    assert "image/s" not in capfd.readouterr().err  # no bar of no images
    assert called == ["a", "b", "a"] and content["complete"] and content["images"] == {}
    assert content["videos"]["b"] == {"file": str(paths[1]), "frames": 3, "every": 1, "rate": 12.5}
    assert list(failed["videos"]) == ["b"] and "is no MP4" in failed["failed"][str(paths[0])]


def test_overlays_of_frames_have_their_size_and_no_legend():
    image = np.full((40, 60, 3), 99, np.uint8)
    for made in (segmenter(), detector(masks=True)):
        result = made(image)
        assert result.overlay(legend=False, enlarge=False).size == (60, 40)
        assert result.overlay().height > 200
    result = segmenter()(image)
    assert result.labels[0, 0] == 0 and result.labels[-1, -1] == 255
