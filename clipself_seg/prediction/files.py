"""Images below the files and folders that somebody names, with a name for the results of each."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from clipself_seg.data.images import ENDINGS
from clipself_seg.errors import InputError

logger = logging.getLogger(__name__)

# Of videos; folders are not searched for them.
VIDEO_ENDINGS = tuple(".avi .mkv .mov .mp4 .webm".split())
FILE_NAME = ".predict.jsonl"  # the journal of a folder of results
# What may be waited for without end.
NO_FILE = "a pipe or a device, no file"


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """An image to predict for.

    Attributes:
        path: path of the file.
        file_name: its name, for an image in a folder with the path below that folder.
        name: name of its results, without ending.
    """

    path: Path
    file_name: str
    name: str = ""

    def require_other(self, result: Path) -> None:
        """Refuses a file of results that is the image itself.

        Raises:
            InputError: it would be replaced.
        """
        if self.path.exists() and result.exists() and result.samefile(self.path):
            raise InputError(f"{result} would replace the image itself: give another --output")


@dataclasses.dataclass
class InputFiles:
    """Images below the files and folders that were given.

    Attributes:
        images: each once.
        failed: input -> what is wrong with it.
        videos: videos that were given by name, each once.
    """

    images: list[ImageFile]
    failed: dict[str, str]
    videos: list[ImageFile] = dataclasses.field(default_factory=list)


def find_images(
    inputs: Sequence[str | Path], output: str | Path, videos: bool = False
) -> InputFiles:
    """Images by name, and all below folders; hidden files, the output folder and other folders of results are left out.

    Two images that differ in their endings alone keep them in their names, as does one whose results would be called
    like a folder of others, such as x.jpg beside x.png/y.jpg.

    Args:
        inputs: files and folders.
        output: folder for results.
        videos: take a file that is named and ends as a video does for one.

    Raises:
        InputError: no image and no video, or two of them whose results would have one name.
    """
    files = InputFiles([], {})
    out = Path(os.path.realpath(output))  # not Path.resolve, which fails at a link to itself
    for item in map(Path, inputs):
        if item.is_dir():
            if item.resolve() == out:
                raise InputError(f"{output} is both input and output: give another output folder")
            _search(item, out, files)
        elif item.is_file():
            is_video = videos and item.suffix.lower() in VIDEO_ENDINGS
            (files.videos if is_video else files.images).append(ImageFile(item, item.name))
        elif item.exists():
            files.failed[str(item)] = NO_FILE
        else:
            files.failed[str(item)] = "no such file or folder"
    unique = {image.path.resolve(): image for image in [*files.images, *files.videos]}
    if not unique:
        named = ", ".join(map(str, inputs))
        raise InputError(f"no images: {named}; an image ends in {' '.join(ENDINGS)}")
    named_by_video = {video.path for video in files.videos}
    every = _name(list(unique.values()))
    files.images = [image for image in every if image.path not in named_by_video]
    files.videos = [image for image in every if image.path in named_by_video]
    return files


def _search(folder: Path, out: Path, files: InputFiles) -> None:
    paths = sorted(folder.rglob("*"))
    earlier = {Path(os.path.realpath(path.parent)) for path in paths if path.name == FILE_NAME}
    earlier -= {out, Path(os.path.realpath(folder))}
    for place in sorted(earlier):
        logger.warning("%s holds results of predict, and is left out", place)
    for path in paths:
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)
        other = path.suffix.lower() not in ENDINGS or path.is_dir()
        results = {out, *earlier}.intersection(Path(os.path.realpath(path)).parents)
        if hidden or other or results:
            continue
        if path.is_file():
            files.images.append(ImageFile(path, below.as_posix()))
        else:
            files.failed[str(path)] = "a link to nothing" if path.is_symlink() else NO_FILE


def _name(images: Sequence[ImageFile]) -> list[ImageFile]:
    short = [image.file_name.removesuffix(image.path.suffix) for image in images]
    counts = Counter(short)
    folders = {str(folder) for image in images for folder in PurePath(image.file_name).parents}
    unclear = {stem for stem in short if counts[stem] > 1 or f"{stem}.png" in folders}
    # A name with an ending may be that of another image without its own: a.png.jpg beside a.png.
    whole = {image.file_name: stem for image, stem in zip(images, short)}
    while more := {stem for stem in short if whole.get(stem) in unclear} - unclear:
        unclear |= more
    named = [
        dataclasses.replace(image, name=image.file_name if stem in unclear else stem)
        for image, stem in zip(images, short)
    ]
    twice = [name for name, count in Counter(image.name for image in named).items() if count > 1]
    if twice:
        paths = [str(image.path) for image in named if image.name == twice[0]]
        raise InputError(
            f"{' and '.join(paths)} would write results under the same name: give the folder that holds "
            "both, or another --output for each"
        )
    return named


def image_ids(images: Sequence[ImageFile]) -> list[int]:
    """Ids of images: the numbers that all are named by, if they differ, else 1, 2, 3 ..."""
    stems = [image.path.stem for image in images]
    numbers = [int(stem) for stem in stems if stem.isdecimal()]
    return numbers if len(set(numbers)) == len(stems) else list(range(1, len(images) + 1))
