"""The heat maps of the demo as one image."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from clipself_seg.explore.demo import TILE, Question
from clipself_seg.visualization.overlays import FAINT, INK, PAPER
from clipself_seg.visualization.text import write_text

TEXT = 23  # height in pixels: can be read where the whole is as wide as a telephone
GAP = 10


def heat_sheet(questions: Sequence[Question]) -> Image.Image:
    """A row for each question: its words, the scene, and the heat map of each CLIP."""
    titles = ["scene", *questions[0].maps]
    head = TEXT + 2 * GAP
    steps = [head + question.image.shape[0] + GAP for question in questions]
    width = GAP + len(titles) * (TILE + GAP)
    canvas = Image.new("RGB", (width, head + sum(steps)), PAPER)
    draw = ImageDraw.Draw(canvas)
    lefts = [GAP + column * (TILE + GAP) for column in range(len(titles))]
    for left, title in zip(lefts, titles):
        write_text(draw, (left + TILE / 2, head / 2 + GAP / 2), title, TEXT, FAINT, "mm")
    top = head
    for question, step in zip(questions, steps):
        write_text(draw, (GAP, top + head / 2), f"“{question.name}”", TEXT, INK)
        for left, tile in zip(lefts, [question.image, *question.maps.values()]):
            canvas.paste(Image.fromarray(tile), (left, top + head))
        top += step
    return canvas
