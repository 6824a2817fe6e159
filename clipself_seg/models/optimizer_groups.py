"""Partitions of the parameters that train into groups of the optimiser, by structure and never by names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from detectron2.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from clipself_seg.models.model_protocols import Group

NORMS = (nn.LayerNorm, nn.GroupNorm, _NormBase)


def _trained(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Parameters that train, each with the module that owns it and its name there."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                yield module, name, parameter


def matrices_and_vectors(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[Group]:
    """Parameters that train, in two groups: matrices with weight decay, vectors (biases, norms) without."""
    trained = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def norms_and_biases_apart(model: nn.Module, solver: CfgNode) -> list[Group]:
    """Parameters that train, in two groups: norms and biases without weight decay, all others with ``SOLVER``'s."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module, name, parameter in _trained(model):
        vector = isinstance(module, NORMS) or name.endswith("bias")
        (plain if vector else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": solver.WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]


def by_rate_and_kind(
    model: nn.Module,
    solver: CfgNode,
    multipliers: Iterable[tuple[nn.Module | None, float]] = (),
    *,
    kinds: bool = True,
) -> list[Group]:
    """Parameters that train, grouped by learning rate and weight decay.

    The partition is that of Detectron2's `get_default_optimizer_params`, without decay of embeddings.

    Args:
        model: the whole model.
        solver: the section ``SOLVER`` of the configuration.
        multipliers: parts of the model, each with the multiple of the base learning rate at which it
            learns; all other parameters learn at the base rate.
        kinds: False if norms and embeddings have the weight decay of all others, which biases have too.
    """
    slow = {
        id(p): rate for part, rate in multipliers if part is not None for p in part.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module, _, parameter in _trained(model):
        decay = solver.WEIGHT_DECAY
        if kinds and isinstance(module, NORMS):
            decay = solver.WEIGHT_DECAY_NORM
        elif kinds and isinstance(module, nn.Embedding):
            decay = 0.0
        groups.setdefault((slow.get(id(parameter), 1.0), decay), []).append(parameter)
    return [
        {"params": parameters, "lr_multiplier": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
