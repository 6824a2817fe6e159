"""An attention without training: patches attend to values that are like theirs, value with value."""

from clipself_seg.extend import register_attention


@register_attention("value_value")
def attend(q, k, v, grid):
    """Queries, keys and values (B, H, L, C) -> values (B, H, N, C) of the N patches of the grid."""
    height, width = grid
    patches = v[:, :, -height * width :]  # the class token stands before them
    weights = (patches @ patches.mT / patches.shape[-1] ** 0.5).softmax(dim=-1)
    return weights @ patches, grid
