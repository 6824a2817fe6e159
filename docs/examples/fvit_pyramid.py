"""F-ViT's frozen CLIP and feature pyramid as the backbone of Detectron2's own GeneralizedRCNN."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model

import clipself_seg.models  # noqa: F401  registers FViT

LEVELS = {"p2": 0.25, "p3": 0.5, "p4": 1.0, "p5": 2.0, "p6": 4.0}  # stride in patches of CLIP


@BACKBONE_REGISTRY.register()
class FViTPyramid(Backbone):
    """Levels "p2" to "p6" of normalised images, which the model pads to INPUT.DETECTION.SIDE."""

    def __init__(self, cfg, input_shape=None):
        super().__init__()
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.META_ARCHITECTURE = "FViT"
        self.fvit = build_model(cfg)
        self.side, self.channels = cfg.INPUT.DETECTION.SIDE, cfg.MODEL.FVIT.CHANNELS
        del self.fvit.rpn_head, self.fvit.roi_head  # Detectron2's stand in their place

    def forward(self, images):
        levels, _ = self.fvit.features(images, dense=False)
        return dict(zip(LEVELS, levels))

    def output_shape(self):
        patch = self.fvit.clip.patch_size
        return {
            name: ShapeSpec(channels=self.channels, stride=int(patch * factor))
            for name, factor in LEVELS.items()
        }

    @property
    def padding_constraints(self):
        return {"square_size": self.side}
