"""The table of CLIP's architectures: to add one, write a file with a `TowerKind`, and list it here."""

from __future__ import annotations

from clipself_seg.clip.convnext import CONVNEXT
from clipself_seg.clip.eva import EVA
from clipself_seg.clip.kind import Config, TowerKind
from clipself_seg.clip.openai_vit import OPENAI_VIT
from clipself_seg.clip.pe_core import PE_CORE, PE_CORE_G
from clipself_seg.clip.resnet_kind import RESNET
from clipself_seg.clip.siglip import SIGLIP
from clipself_seg.clip.tips import TIPS

# A file is of the first kind whose tensors it has: those that have all of another's, and more, stand before it.
KINDS: dict[str, TowerKind] = {
    kind.name: kind
    for kind in (PE_CORE, PE_CORE_G, SIGLIP, TIPS, EVA, OPENAI_VIT, RESNET, CONVNEXT)
}


def kind_of(config: Config) -> TowerKind | None:
    """The kind of a model by its config; None if there is none with all of its keys."""
    return next((kind for kind in KINDS.values() if kind.supports(config)), None)
