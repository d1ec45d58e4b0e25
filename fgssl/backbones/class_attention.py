"""What the class token of a plain vision transformer attends to in its last block: a map that nobody fitted.

Of timm's own attention alone: where positions are rotated into queries and keys it would have to be written out anew.
"""

from __future__ import annotations

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn


def last_attention(model: nn.Module) -> Attention | None:
    """The attention of a model's last block; None unless it is timm's usual one."""
    blocks = getattr(model, "blocks", None)
    found = getattr(blocks[-1], "attn", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) and blocks else None
    return found if type(found) is Attention else None


@torch.no_grad()
def class_attention(model: nn.Module, images: Tensor, *, prefix_tokens: int, map_size: tuple[int, int]) -> Tensor:
    """(N, 3, S, S) as the model takes them -> (N, H, W) float32: the heads' mean over the patches, summing to 1."""
    attention, seen = last_attention(model), list[Tensor]()
    assert attention is not None
    hook = attention.qkv.register_forward_hook(lambda module, given, made: seen.append(made))
    try:
        model.forward_features(images)  # type: ignore[operator]
    finally:
        hook.remove()
    (found,) = seen
    shape = (*found.shape[:2], 3, attention.num_heads, attention.head_dim)
    parts = found.float().view(shape).permute(2, 0, 3, 1, 4)
    query, key = attention.q_norm(parts[0][:, :, :1]), attention.k_norm(parts[1])  # (N, heads, tokens, d)
    weights: Tensor = (attention.scale * query @ key.transpose(2, 3)).softmax(3).mean(1)[:, 0, prefix_tokens:]
    return weights.div(weights.sum(1, keepdim=True)).view(len(images), *map_size)
