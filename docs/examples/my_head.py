"""A head: two convolutions on a CLIP's dense features, which stay in the space of its texts."""

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F

from clipself_seg.clip.backbone import build_clip
from clipself_seg.clip.text_bank import TextBank
from clipself_seg.extend import register_key
from clipself_seg.models.model_base import ModelBase
from clipself_seg.models.optimizer_groups import matrices_and_vectors

register_key("MODEL.MY_HEAD.SCALE", 40.0)  # factor of the cosines


@META_ARCH_REGISTRY.register()
class MyHead(ModelBase):
    ignore_label = 255
    reads = ("MODEL.CLIP.", "INPUT.", "TEST.")  # keys that are for other models alone are refused

    def __init__(self, cfg):
        super().__init__()
        self.clip = build_clip(cfg).eval().requires_grad_(False)
        self.bank = TextBank(self.clip, "single")
        self.scale = cfg.MODEL.MY_HEAD.SCALE
        width = self.clip.embed_dim
        self.refine = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 1)
        )

    @classmethod
    def task(cls):
        return "semantic"  # so that its data and its evaluation are those of CAT-Seg

    def forward(self, samples, *, classes=None, output="scores"):
        """Losses in training; in evaluation the labels (H, W) or the scores (K, H, W) of each image."""
        texts = self.bank.embed(self.given_classes(classes).names)
        logits = [self.logits(sample["image"].to(self.device), texts) for sample in samples]
        if self.training:
            labels = torch.stack([sample["sem_seg"] for sample in samples]).to(self.device)
            scores = F.interpolate(torch.cat(logits), labels.shape[1:], mode="bilinear")
            loss = F.cross_entropy(scores, labels.long(), ignore_index=self.ignore_label)
            return {"loss_sem_seg": loss}
        sizes = [(sample["height"], sample["width"]) for sample in samples]
        maps = [F.interpolate(one, size, mode="bilinear")[0] for one, size in zip(logits, sizes)]
        if output == "labels":
            return [{"sem_seg_labels": scores.argmax(dim=0)} for scores in maps]
        return [{"sem_seg": scores} for scores in maps]

    def logits(self, image, texts):
        """Logits (1, K, h, w) of an RGB image (3, H, W) in 0..255."""
        patch = self.clip.patch_size
        normalised = self.clip.normalise(image.float() / 255)
        padded = F.pad(normalised, (0, -image.shape[2] % patch, 0, -image.shape[1] % patch))
        dense = F.normalize(self.clip.dense(padded[None]), dim=1)
        refined = F.normalize(dense + self.refine(dense), dim=1)
        return self.scale * torch.einsum("behw,ke->bkhw", refined, texts)

    def setup_training(self, vocabulary):
        self.set_vocabulary(vocabulary)

    def optimizer_groups(self, solver):
        return matrices_and_vectors(self.parameters(), solver.WEIGHT_DECAY)

    def original_hash(self):
        return self.clip.weights_hash()

    def export(self, path):
        torch.save(self.state_dict(), path)
