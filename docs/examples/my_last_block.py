"""A CLIP whose last block attends by keys alone: the changed last block of a loaded CLIP as a backbone."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch.nn import functional as F

from clipself_seg.clip import load_clip
from clipself_seg.clip.layers import merge_heads


@BACKBONE_REGISTRY.register()
class MyLastBlock(Backbone):
    reads = ("MODEL.CLIP.NAME", "MODEL.CLIP.WEIGHTS")  # what the configuration decides, run by run

    def __init__(self, cfg, input_shape):
        super().__init__()
        clip = load_clip(cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS)
        self.tower, self.text, self.tokenize = clip.visual, clip.text, clip.tokenize
        self.mean, self.std, self.image_size = clip.mean, clip.std, clip.image_size
        self.blocks = [f"block{index}" for index in range(self.tower.depth)]

    def forward(self, images):
        """All blocks, and `dense` by the changed attention of the last one."""
        features = self.tower.features(images, self.blocks)
        maps = features[self.blocks[-2]]  # (B, D, h, w): what the last block is given
        last = self.tower.stack[-1]
        _, keys, values = last.queries_keys_values(maps.flatten(2).mT)  # (B, heads, h w, D / heads)
        attended = F.scaled_dot_product_attention(keys, keys, values)
        tokens = self.tower.project(last.finish(merge_heads(attended), None))
        return {**features, "dense": tokens.mT.unflatten(2, maps.shape[2:])}

    def output_shape(self):
        shapes = self.tower.feature_shapes()
        names = [*self.blocks, "dense"]
        return {name: ShapeSpec(channels=shapes[name][0], stride=shapes[name][1]) for name in names}

    def encode_text(self, texts):
        return self.text(self.tokenize(texts))

    def encode_image(self, images):
        return self.tower(images)

    def layer_groups(self):
        return self.tower.layer_groups()
