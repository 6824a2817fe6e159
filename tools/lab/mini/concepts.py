"""Classes of the two mini worlds, and their names.

`mini` plays COCO's part (36 things, 8 kinds of stuff, a seen/unseen split of the things) and
`mini2` plays ADE20K's (24 things and 8 kinds of stuff, half of them new, most under other names).
"""

from __future__ import annotations

import dataclasses

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "green": (40, 190, 60),
    "blue": (40, 80, 235),
    "yellow": (248, 216, 30),
    "purple": (160, 50, 200),
    "white": (244, 244, 244),
}
"""RGB of each colour, 0..255, before shading and jitter."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "moon": ("moon", "crescent"),
    "grass": ("grass", "lawn"),
    "water": ("water", "sea"),
    "bricks": ("bricks", "brick wall"),
    "wallpaper": ("dotted wallpaper", "polka dots"),
    "foliage": ("foliage", "leaves"),
    "asphalt": ("asphalt", "road"),
}
"""Synonyms of shapes and textures; those that are not listed have their own name only."""


@dataclasses.dataclass(frozen=True)
class Concept:
    """One class of a world: a colour and a shape (thing), or a texture (stuff).

    Attributes:
        dataset_id: category id in the annotation files.
        names: synonyms, the class's own name first.
        colour: colour of a thing, of `COLOURS`.
        shape: shape of a thing, of `shapes.MARKS`.
        texture: texture of stuff, of `textures.TEXTURES`.
        seen: whether training shows the class.
    """

    dataset_id: int
    names: tuple[str, ...]
    colour: str | None = None
    shape: str | None = None
    texture: str | None = None
    seen: bool = True

    @property
    def isthing(self) -> bool:
        """True if this is a countable object."""
        return self.shape is not None

    def without_colour(self) -> Concept:
        """The same thing with names of its shape alone."""
        names = tuple(name.removeprefix(f"{self.colour} ") for name in self.names)
        return dataclasses.replace(self, names=names, colour=None)


@dataclasses.dataclass(frozen=True)
class WorldSpec:
    """The classes of a world and how its scenes are laid out.

    Attributes:
        name: name of the world, of its folder and of its vocabulary.
        layout: "bands" (wavy horizontal or vertical bands of stuff) or "patchwork" (Voronoi cells).
        concepts: all classes, things first, in dataset-id order.
        sizes: (width, height) in pixels that a scene may have.
    """

    name: str
    layout: str
    concepts: tuple[Concept, ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def things(self) -> tuple[Concept, ...]:
        """Countable classes."""
        return tuple(concept for concept in self.concepts if concept.isthing)

    @property
    def stuff(self) -> tuple[Concept, ...]:
        """Uncountable classes."""
        return tuple(concept for concept in self.concepts if not concept.isthing)


def _things(shapes: tuple[str, ...], first_id: int, unseen: bool) -> list[Concept]:
    # Every third colour-shape pair on the diagonals is unseen, so that each colour and each shape is
    # seen in other pairs.
    concepts: list[Concept] = []
    for s, shape in enumerate(shapes):
        for c, colour in enumerate(COLOURS):
            names = tuple(f"{colour} {word}" for word in SYNONYMS.get(shape, (shape,)))
            seen = not unseen or (s + c) % 3 != 0
            concepts.append(Concept(first_id + len(concepts), names, colour, shape, seen=seen))
    return concepts


def _stuff(textures: tuple[str, ...], first_id: int) -> list[Concept]:
    return [
        Concept(first_id + i, SYNONYMS.get(texture, (texture,)), texture=texture)
        for i, texture in enumerate(textures)
    ]


def _mini() -> WorldSpec:
    shapes = ("circle", "square", "triangle", "star", "ring", "cross")
    textures = ("grass", "water", "sand", "bricks", "wood", "gravel", "tiles", "cloth")
    # Ids start above 0 and jump between things and stuff as COCO's do, so that an id that is used as an
    # index causes an error.
    concepts = [
        dataclasses.replace(concept, names=concept.names[:1])
        for concept in _things(shapes, 1, unseen=True) + _stuff(textures, 101)
    ]
    return WorldSpec(
        name="mini",
        layout="bands",
        concepts=tuple(concepts),
        sizes=((192, 144), (192, 128), (144, 192), (200, 150), (176, 160), (132, 176)),
    )


def _mini2(mini: WorldSpec) -> WorldSpec:
    shapes = ("circle", "star", "heart", "moon")
    textures = ("grass", "water", "bricks", "marble", "wallpaper", "foliage", "lava", "asphalt")
    seen_names = {concept.names[0] for concept in mini.concepts if concept.seen}
    concepts = []
    for concept in _things(shapes, 11, unseen=False) + _stuff(textures, 211):
        seen = bool(seen_names & set(concept.names))
        # The synonym comes first: the second world has its own names for classes of both worlds.
        concepts.append(dataclasses.replace(concept, names=concept.names[::-1], seen=seen))
    return WorldSpec(
        name="mini2",
        layout="patchwork",
        concepts=tuple(concepts),
        sizes=((208, 144), (160, 200), (184, 138), (168, 148)),
    )


MINI = _mini()
MINI2 = _mini2(MINI)
WORLDS: dict[str, WorldSpec] = {"mini": MINI, "mini2": MINI2}
