"""Text embeddings of classes that have examples, brought to the scale of words.

Embeddings of images and of texts lie apart, and two images are more alike than an image and a word, so that an
embedding of an image among words would win everywhere. With the mean t of the words, the mean d of the images (each
reference image, and one of a plain colour, so that d differs from an example that fills its image), and the mean x of
the examples of a class, all of unit length, its embedding is

    e = t + s (x - d) / |x - d|^2        and beside its word w        unit((1 - weight) w + weight e)

where s is by how much the best word of a place of the reference images is above the mean of the words there, on
average: so much the examples themselves are above it, too. In the mini worlds a weight of 0.75 was best on average
(docs/tables/examples.md has the numbers).

Shapes: K classes, P prompts of a class, n regions of an image, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_seg.clip.precision import full_precision
from clipself_seg.clip.vision_language import VisionLanguageBackbone
from clipself_seg.data.examples import ClassExamples, Example
from clipself_seg.data.images import fit_size
from clipself_seg.errors import InputError

PLACES = 8  # of a reference image, in a row and in a column
SIDE = 2  # longest side of the image that is read, as a multiple of CLIP's own
MOSTLY = 0.25  # of a pixel that belongs to a region
LEAST = 0.02  # distance of an example from a plain image
# From an image (3, H, W) in [0, 1] and masks (n, H, W), positive inside, to embeddings (n, E); 0 where a mask has none.
ReadRegions = Callable[[Tensor, Tensor], Tensor]


def dense_regions(clip: VisionLanguageBackbone, image: Tensor, masks: Tensor) -> Tensor:
    """Embeddings (n, E) of the masks by CLIP's dense features, see `ReadRegions`."""
    patch = clip.patch_size
    sides = (0, -image.shape[2] % patch, 0, -image.shape[1] % patch)
    cells_nhw = F.avg_pool2d(F.pad((masks > 0).float(), sides), patch)
    return clip.encode_masks(F.pad(clip.normalise(image), sides)[None], [cells_nhw])


@torch.no_grad()
def with_examples(
    text_KPE: Tensor,
    others_NE: Tensor,
    given: Sequence[ClassExamples | None],
    clip: VisionLanguageBackbone,
    read: ReadRegions,
) -> Tensor:
    """Text embeddings (K, P, E), unit length, in which classes with examples are mixed with them, or replaced.

    Args:
        text_KPE: unit length.
        others_NE: further words, unit length, so that the only class has some to be compared with.
        given: the examples of each class, None for none; at least one class has some.
        clip: its size and its mean colour are asked.
        read: function from regions of an image to embeddings.

    Raises:
        InputError: an example looks as a plain image does, or is too thin to be read.
    """
    device = text_KPE.device
    with full_precision(device):
        side = SIDE * clip.image_size
        colour = torch.tensor(clip.mean, device=device)[:, None, None].expand(3, side, side)
        plain_1E = F.normalize(read(colour, torch.ones_like(colour[:1])), dim=-1)
        readings = {
            one: _reading(one, side, device, read)
            for examples in filter(None, given)
            for one in examples.examples
        }
        places = [places for _, places in readings.values()]
        centre_E = torch.cat([plain_1E, *(one.mean(0)[None] for one in places)]).mean(0)
        words_NE = torch.cat([text_KPE.mean(1), others_NE])
        words_E = words_NE.mean(0)
        best = ((torch.cat(places) - centre_E) @ (words_NE - words_E).T).amax(1).mean()
        mixed_KPE = text_KPE.clone()
        for row_PE, examples in zip(mixed_KPE, given, strict=True):
            if examples is None:
                continue
            regions = torch.stack([readings[one][0] for one in examples.examples])
            away_E = F.normalize(regions.mean(0), dim=-1) - centre_E
            if away_E.norm() < LEAST:
                raise InputError(
                    f'the examples of "{examples.names[0]}" look as a plain image does: give others'
                )
            own_E = words_E + best * away_E / away_E.square().sum()
            weight = examples.weight
            row_PE.copy_(F.normalize((1 - weight) * row_PE + weight * own_E, dim=-1))
        return mixed_KPE


def _reading(
    example: Example, side: int, device: torch.device, read: ReadRegions
) -> tuple[Tensor, Tensor]:
    """Embeddings of an example (E,) and of places of its image (n, E), unit length."""
    height, width, _ = example.pixels.shape
    columns, rows = fit_size(width, height, side)
    pixels = torch.from_numpy(example.pixels).permute(2, 0, 1)[None].float().to(device) / 255
    resized = F.interpolate(pixels, (rows, columns), mode="bilinear", antialias=True)
    places = torch.eye(PLACES**2, device=device).unflatten(1, (PLACES, PLACES))
    masks = torch.cat([resized[0, 3:], F.interpolate(places[None], (rows, columns))[0]]) - MOSTLY
    embeddings = F.normalize(read(resized[0, :3], masks), dim=-1)
    seen = embeddings.any(dim=1)
    if not seen[0]:
        raise InputError("an example is too thin for the model to see: give a larger region")
    return embeddings[0], embeddings[1:][seen[1:]]
