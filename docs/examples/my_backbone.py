"""A backbone of somebody else's: a small ViT of torch's own layers, with the text tower of a CLIP beside it."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn

from clipself_seg.clip import load_clip

PATCH, WIDTH, DEPTH = 8, 64, 4


@BACKBONE_REGISTRY.register()
class MyBackbone(Backbone):
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # of RGB pixels in [0, 1]
    image_size = 64  # the square images that encode_image is given

    def __init__(self, cfg, input_shape):
        super().__init__()
        clip = load_clip("ViT-Mini-8", "mini")
        self.text, self.tokenize = clip.text, clip.tokenize
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.places = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        block = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, DEPTH, enable_nested_tensor=False).layers
        self.project = nn.Linear(WIDTH, clip.embed_dim)

    def forward(self, images):
        """Gives features by name: `dense`, in the space of the texts, and the output of every block."""
        maps = self.patches(images)
        maps = maps + self.places(maps)
        tokens = maps.flatten(2).mT
        features = {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            features[f"block{index}"] = tokens.mT.unflatten(2, maps.shape[2:])
        features["dense"] = self.project(tokens).mT.unflatten(2, maps.shape[2:])
        return features

    def output_shape(self):
        shapes = {f"block{i}": ShapeSpec(channels=WIDTH, stride=PATCH) for i in range(DEPTH)}
        return {**shapes, "dense": ShapeSpec(channels=self.project.out_features, stride=PATCH)}

    def encode_text(self, texts):
        return self.text(self.tokenize(texts))

    def encode_image(self, images):  # optional: for crops
        return self(images)["dense"].mean(dim=(2, 3))

    def layer_groups(self):  # optional: for whatever of it trains
        stem = [*self.patches.parameters(), *self.places.parameters()]
        blocks = {f"block{i}": list(block.parameters()) for i, block in enumerate(self.blocks)}
        return {"stem": stem, "positions": [], **blocks, "head": list(self.project.parameters())}
