"""Outputs of a mask generator for an image, in memory and on disk.

On disk there is one `.safetensors` file for each image, named by the image's id, so that CLIP branches
and exponents can be compared without running the generator again:

    mask_logits   float16 (Q, m, n)   over the canvas, positive inside
    class_logits  float32 (Q, K)      for the classes below, without void
    void_prob     float32 (Q,)
    metadata      file_name, canvas, image_size (JSON lists of rows and columns), classes (a hash),
                  weights (a hash), settings (a JSON object of what else decided the numbers)

Shapes: Q queries, K classes, m x n pixels of a mask.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from clipself_seg.checkpoints.bounds import OutOfBounds, open_safetensors
from clipself_seg.data.annotations import ImageId
from clipself_seg.errors import InputError, in_short, shown
from clipself_seg.files import atomic_path

# The largest logit on disk, just below half precision's maximum; its probability is 1 anyway.
LARGEST = 6e4
TENSORS = ("mask_logits", "class_logits", "void_prob")
METADATA = {"file_name", "canvas", "image_size", "classes", "weights"}


@dataclasses.dataclass(frozen=True)
class GeneratorOutput:
    """Masks of an image with the generator's class logits and void probabilities.

    Attributes:
        mask_logits: (Q, m, n) over the canvas, positive inside a mask.
        class_logits: (Q, K), without void.
        void_prob: probability of void, (Q,) in [0, 1].
        canvas: rows and columns in pixels that the masks cover, padding included.
        image_size: rows and columns in pixels of the resized image at the top left of the canvas.
        backbone_map: last map (1, D, h, w) of the frozen CLIP over the canvas that was the generator's backbone, for a
            CLIP branch that reads it; not on disk.
    """

    mask_logits: Tensor
    class_logits: Tensor
    void_prob: Tensor
    canvas: tuple[int, int]
    image_size: tuple[int, int]
    backbone_map: Tensor | None = None

    def to(self, device: torch.device) -> GeneratorOutput:
        """A copy with its tensors on a device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=device.type != "mps")
            for name in TENSORS
        }
        return dataclasses.replace(self, **moved)


def output_path(folder: str | Path, image_id: ImageId) -> Path:
    """Path of an image's file: its id, with "_" for characters that a file name cannot hold."""
    return Path(folder) / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', str(image_id))}.safetensors"


def hash_classes(names: Sequence[Sequence[str]]) -> str:
    """Hash of the synonyms of all classes, 12 hexadecimal digits."""
    text = json.dumps([list(synonyms) for synonyms in names])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def settings_text(settings: Mapping[str, object]) -> str:
    """JSON of a generator's settings with sorted keys, so that equal settings give equal texts."""
    return json.dumps(settings, sort_keys=True)


def save_output(
    folder: str | Path,
    output: GeneratorOutput,
    *,
    image_id: ImageId,
    file_name: str,
    names: Sequence[Sequence[str]],
    weights: str,
    settings: Mapping[str, object] | None = None,
) -> None:
    """Writes the file of an image, atomically; equal outputs give equal bytes.

    Args:
        folder: folder for all images of a data set.
        output: the generator's output for the image.
        image_id: id of the image in the data set.
        file_name: file name of the image, of which only the last part is kept.
        names: synonyms of each of the K classes.
        weights: hash of the generator's weights.
        settings: settings of the generator that decide its numbers too.

    Raises:
        InputError: the numbers are no scores or do not fit the classes, or the canvas is smaller than
            the image.
    """
    path = output_path(folder, image_id)
    canvas, size = (tuple(map(int, pair)) for pair in (output.canvas, output.image_size))
    tensors = {name: torch.as_tensor(getattr(output, name)).float() for name in TENSORS}
    tensors["mask_logits"] = tensors["mask_logits"].clamp(-LARGEST, LARGEST).half()
    metadata = {
        "file_name": Path(file_name).name,
        "canvas": json.dumps(canvas),
        "image_size": json.dumps(size),
        "classes": hash_classes(names),
        "weights": weights,
        "settings": settings_text(settings or {}),
    }
    _check(path, tensors, len(names), canvas, size)
    with atomic_path(path) as temporary:
        temporary.write_bytes(_packed(tensors, metadata))


def _packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its metadata in order; safetensors writes them in a random one."""
    import safetensors.torch

    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(stored, dict(metadata))
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    ordered = {**header, "__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_output(
    folder: str | Path,
    *,
    image_id: ImageId,
    file_name: str,
    image_size: tuple[int, int],
    names: Sequence[Sequence[str]],
) -> GeneratorOutput:
    """Reads the file of an image and checks that it is of this image and these classes.

    Args:
        folder: folder that `save_output` wrote to.
        image_id: id of the image in the data set.
        file_name: file name of the image.
        image_size: rows and columns in pixels of the resized image, as the generator's input has them.
        names: synonyms of each of the K classes.

    Raises:
        InputError: the file is missing or damaged, is of another image, size or vocabulary, or has
            numbers that are no scores.
    """
    path = output_path(folder, image_id)
    tensors, metadata = _read(path, TENSORS)
    canvas, size = (tuple(json.loads(metadata[key])) for key in ("canvas", "image_size"))
    same_set = "give the outputs of this data set"
    same_sizes = f"{same_set}, with INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST as they were then"
    same_names = f"{same_set}, or write them again with these class names"
    for what, stored, wanted, remedy in (
        ("image", metadata["file_name"], Path(file_name).name, same_set),
        ("vocabulary", metadata["classes"], hash_classes(names), same_names),
        ("size", size, tuple(image_size), same_sizes),
    ):
        if stored != wanted:
            raise InputError(
                f"generator output {path} is of another {what} ({str(stored)[:300]}) than asked for "
                f"({wanted}): {remedy}"
            )
    _check(path, tensors, len(names), canvas, size)
    masks, class_logits, void_prob = (tensors[name].float() for name in TENSORS)
    return GeneratorOutput(masks, class_logits, void_prob, canvas, size)


def _check(
    path: Path,
    tensors: Mapping[str, Tensor],
    classes: int,
    canvas: tuple[int, ...],
    size: tuple[int, ...],
) -> None:
    """Raises an `InputError` for tensors that do not fit each other or the classes, and for numbers that fusion and
    merging would silently take for scores."""
    masks, class_logits, void_prob = (tensors[name] for name in TENSORS)
    shapes = [tuple(tensor.shape) for tensor in (masks, class_logits, void_prob)]
    queries = len(masks) if masks.ndim == 3 else -1
    if shapes[1:] != [(queries, classes), (queries,)]:
        raise InputError(
            f"generator output {path}: masks {shapes[0]}, class logits {shapes[1]} and void {shapes[2]} do "
            f"not fit {classes} classes; write it again"
        )
    for wrong, what in (
        (any(c < s for c, s in zip(canvas, size)), f"its canvas {canvas} is smaller than {size}"),
        (not all(t.isfinite().all() for t in (masks, class_logits)), "a logit is not finite"),
        (not ((void_prob >= 0) & (void_prob <= 1)).all(), "void_prob is outside of 0 to 1"),
    ):
        if wrong:
            raise InputError(f"generator output {path}: {what}; correct what made it")


def check_outputs(folder: str | Path, dataset: str, image_ids: Sequence[ImageId]) -> dict[str, str]:
    """Checks that a folder has the outputs of all images of a data set, before any is evaluated.

    Args:
        folder: folder that `save_output` wrote to.
        dataset: name of the data set, for messages.
        image_ids: ids of all images of the data set.

    Returns:
        "weights" and "settings" of the generator, as the metadata of the files has them.

    Raises:
        InputError: outputs are missing (the message says how to write them), or the files are of
            several generators.
    """
    missing = [image for image in image_ids if not output_path(folder, image).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(image_ids)} generator outputs of {dataset} are missing in {folder}, such as "
            f"that of image {missing[0]}: write them with clipself-seg tools generator-outputs --dataset {dataset}, "
            "or leave the data set out of DATASETS.TEST"
        )
    made_by = {}
    for image in image_ids:
        metadata = _read(output_path(folder, image), ())[1]
        made_by[metadata["weights"], metadata.get("settings", "{}")] = image
    if len(made_by) > 1:
        examples = ", ".join(
            f"{' '.join(by)[:300]} (image {image})" for by, image in made_by.items()
        )
        raise InputError(
            f"generator outputs of {dataset} in {folder} are of several generators: {examples}; write "
            "all of them with one"
        )
    return dict(zip(("weights", "settings"), next(iter(made_by), ("", "{}"))))


def _read(path: Path, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the given names and the metadata of a file that is complete."""
    from safetensors import SafetensorError

    if not path.is_file():
        raise InputError(
            f"generator output {path} is missing: write it with clipself-seg tools generator-outputs, or correct "
            "MODEL.MASK_GENERATOR.OUTPUTS"
        )
    try:
        with open_safetensors(path) as file:
            metadata = file.metadata() or {}
            keys = set(file.keys())
            tensors: dict[str, Tensor] = {n: file.get_tensor(n) for n in keys.intersection(names)}
    except (SafetensorError, OSError, OutOfBounds) as error:
        raise InputError(
            f"generator output {path} is damaged ({in_short(error)}): write it again"
        ) from None
    missing = {*TENSORS} - keys | METADATA - metadata.keys()
    if missing:
        raise InputError(f"{path} is no generator output: it lacks {sorted(missing)}")
    for key in ("canvas", "image_size"):
        if not re.fullmatch(r"\[[1-9]\d{0,8}, ?[1-9]\d{0,8}\]", metadata[key]):
            raise InputError(
                f"generator output {path}: {key} is {shown(metadata[key])}, not a JSON list of rows and columns"
            )
    return tensors, metadata
