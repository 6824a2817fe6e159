"""Tiny random models of transformers' that find masks, saved as they are shared."""

from functools import partial
from pathlib import Path

import pytest
import torch

SIDE = 64


def _sam_parts(tf, kind: str, patch: int):
    prompt = getattr(tf, f"{kind}PromptEncoderConfig")(
        hidden_size=32, image_size=SIDE, patch_size=patch
    )
    decoder = getattr(tf, f"{kind}MaskDecoderConfig")(
        hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=32
    )
    return {"prompt_encoder_config": prompt, "mask_decoder_config": decoder}


def _sam2(tf):
    backbone = tf.Sam2HieraDetConfig(
        hidden_size=12,
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 2, 1, 1],
        embed_dim_per_stage=[12, 24, 48, 96],
        num_attention_heads_per_stage=[1, 2, 4, 8],
        window_size_per_stage=[8, 4, 4, 2],
        global_attention_blocks=[2],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = tf.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[96, 48, 24, 12],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    model = tf.Sam2Model(tf.Sam2Config(vision_config=vision, **_sam_parts(tf, "Sam2", 16)))
    return model, tf.Sam2ImageProcessor(size={"height": SIDE, "width": SIDE})


def _sam3(tf):
    vit = tf.Sam3ViTConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=16,
        pretrain_image_size=SIDE,
        window_size=2,
        global_attn_indexes=[1],
    )
    vision = tf.Sam3VisionConfig(
        backbone_config=vit, fpn_hidden_size=32, backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]]
    )
    parts = _sam_parts(tf, "Sam3Tracker", 16)
    model = tf.Sam3TrackerModel(tf.Sam3TrackerConfig(vision_config=vision, **parts))
    return model, tf.Sam3ImageProcessor(size={"height": SIDE, "width": SIDE})


def _eomt(tf, kind: str = "Eomt", **more):
    config = getattr(tf, f"{kind}Config")(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        num_blocks=1,
        num_queries=6,
        num_register_tokens=0,
        num_labels=5,
        **more,
    )
    size = {"shortest_edge": SIDE, "longest_edge": SIDE}
    model = getattr(tf, f"{kind}ForUniversalSegmentation")(config)
    return model, tf.EomtImageProcessor(size=size)


def _mask2former(tf):
    backbone = tf.SwinConfig(
        image_size=SIDE,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = tf.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=6,
        num_labels=5,
    )
    size = {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}
    model = tf.Mask2FormerForUniversalSegmentation(config)
    return model, tf.Mask2FormerImageProcessor(size=size)


BUILDERS = {"sam2": _sam2, "sam3": _sam3, "eomt": _eomt, "mask2former": _mask2former}
BUILDERS["eomt-dinov3"] = partial(_eomt, kind="EomtDinov3", intermediate_size=64)


def save_mask_model(kind: str, folder: Path) -> Path:
    """Save a random model of a kind, whose masks are large and sure enough to stay, with its settings of images."""
    tf = pytest.importorskip("transformers", reason="needs transformers (the extra [masks])")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = BUILDERS[kind](tf)
    with torch.no_grad():
        if kind.startswith("sam"):
            model.mask_decoder.iou_prediction_head.proj_out.bias.fill_(3)
            for part in model.mask_decoder.output_hypernetworks_mlps:
                part.proj_out.weight.mul_(1e7)
        else:
            model.class_predictor.bias[-1] = -9
    tf.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
