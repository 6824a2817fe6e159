"""A kind of CLIP's towers: a small ViT of torch's own layers, whose files load, save and distil as CLIP's do."""

from torch import nn

from clipself_seg.clip.tower import FeatureShape, ImageTower, Readouts
from clipself_seg.clip.tower_kind import Layout, TowerKind, common_names, text_at_top
from clipself_seg.extend import register_kind

LAYER = "visual.blocks.0.self_attn.in_proj_weight"


class MyTower(ImageTower):
    readouts = Readouts(masked_attention=False, compiled=(False,))

    def __init__(self, image_size, patch_size, width, layers, embed_dim):
        super().__init__()
        self.image_size, self.patch_size, self.embed_dim = image_size, patch_size, embed_dim
        self.stem = nn.Conv2d(3, width, patch_size, patch_size)
        self.places = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, 0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.project = nn.Linear(width, embed_dim)

    def forward(self, images):
        """Image embeddings (B, E)."""
        return self.features(images, ["dense"])["dense"].mean(dim=(2, 3))

    def features(self, images, names):
        """The features of these names: `dense` (B, E, h, w) and `block{i}` (B, D, h, w)."""
        maps = self.stem(images)
        grid, tokens, found = maps.shape[2:], (maps + self.places(maps)).flatten(2).mT, {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            found[f"block{index}"] = tokens.mT.unflatten(2, grid)
        found["dense"] = self.project(tokens).mT.unflatten(2, grid)
        return {name: found[name] for name in names}

    def feature_shapes(self):
        block = FeatureShape(self.stem.out_channels, self.patch_size)
        blocks = {f"block{index}": block for index in range(len(self.blocks))}
        return blocks | {"dense": FeatureShape(self.embed_dim, self.patch_size)}

    def layer_groups(self):
        blocks = {f"block{i}": list(block.parameters()) for i, block in enumerate(self.blocks)}
        places, head = list(self.places.parameters()), list(self.project.parameters())
        return {"stem": list(self.stem.parameters()), "positions": places, **blocks, "head": head}


def sizes_of_file(tensors):
    width, _, _, patch = tensors["visual.stem.weight"].shape
    layers = sum(name.endswith("self_attn.in_proj_weight") for name in tensors)
    return width, layers, patch, len(tensors["visual.project.weight"])


LAYOUT = Layout(marks=(LAYER,), read=common_names, write=text_at_top)
KIND = TowerKind(
    name="MyTower",
    supports=lambda config: "my_tower" in config["vision_cfg"],
    build_image=lambda architecture, quick_gelu: MyTower(
        **architecture.vision["my_tower"], embed_dim=architecture.embed_dim
    ),
    key_tensors={LAYER: 2, "visual.places.weight": 4},
    read_sizes=sizes_of_file,
    layouts={"official": LAYOUT, "open_clip": LAYOUT},
    positions={},
)
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
SMALL = {"image_size": 64, "patch_size": 8, "width": 64, "layers": 4}
CONFIG = {"embed_dim": 128, "vision_cfg": {"my_tower": SMALL}, "text_cfg": TEXT}
register_kind(KIND, {"MyTower-8": CONFIG})
