"""Which sizes and options a timm model takes, and one clear line where it does not."""

from __future__ import annotations

from typing import Any

from fgssl.backbones.names import BackboneSource, first_line
from fgssl.backbones.trial import BackbonePlan, try_size
from fgssl.errors import FgsslError

MINIMUM_MAP_SIDE = 2  # a 1x1 map says nothing about where the evidence is


def plan_backbone(
    source: BackboneSource,
    image_size: int | None = None,
    *,
    output_stride: int | None = None,
    drop_path: float | None = None,
) -> BackbonePlan:
    """Find out how to build a model and read its map, or say in one line why not.

    Args:
        source: The model, from ``resolve_source``.
        image_size: Side of the square input in pixels; None for the model's own.
        output_stride: Input pixels a cell of the map, where the model offers the choice.
        drop_path: Probability of dropping a residual branch (stochastic depth), where the model offers it.

    Returns:
        The plan.

    Raises:
        FgsslError: The model cannot take the size, the stride or the drop path, or its map is smaller than 2x2.
    """
    wanted = {"output_stride": output_stride, "drop_path_rate": drop_path}
    options = {key: value for key, value in wanted.items() if value is not None}
    size = source.own_size if image_size is None else image_size
    if size < 1:
        raise FgsslError(f"image size {size} is not a size", f"the own size of {source.name} is {source.own_size} px")
    try:
        plan = try_size(source, size, options)
    except FgsslError:
        raise
    except Exception as error:  # timm's models raise all kinds
        raise _explain(source, size, options, error) from error
    if output_stride is not None and plan.map_size != (-(-size // output_stride),) * 2:
        raise FgsslError(
            f"{source.name} does not offer output stride {output_stride}: "
            f"its map of {size} px images is {plan.map_size[0]}x{plan.map_size[1]}",
            "leave the output stride out",
        )
    if min(plan.map_size) < MINIMUM_MAP_SIDE:
        raise _map_too_small(source, plan, options)
    return plan


def _explain(source: BackboneSource, size: int, options: dict[str, Any], error: Exception) -> FgsslError:
    """Which of size and options a model refused."""
    for key, value in options.items():
        rest = {other: kept for other, kept in options.items() if other != key}
        try:
            try_size(source, size, rest)
        except Exception:  # the size or another option is to blame
            continue
        return FgsslError(f"{source.name} does not take {key.replace('_', ' ')} {value}", "leave it out")
    own = source.own_size
    near = [side for side in _nearest_sizes(source, size) if side != own]
    also = f"; near {size} it takes {' and '.join(map(str, near))}" if near else ""
    reason = f" ({first_line(error)})" if str(error) else ""  # a bare assertion tells nobody anything
    return FgsslError(f"{source.name} cannot take {size} px images{reason}", f"its own size is {own} px{also}")


def _nearest_sizes(source: BackboneSource, size: int) -> list[int]:
    """The nearest smaller and larger sizes with a map of at least 2x2, searched among multiples of 32."""
    own = source.own_size
    sides = [side for side in range(32, 2 * max(size, own) + 1, 32) if side != size]
    found = []
    for candidates in ([side for side in reversed(sides) if side < size], [side for side in sides if side > size]):
        works = next((side for side in candidates[:8] if _works(source, side, {})), None)
        if works is not None:
            found.append(works)
    return found


def _map_too_small(source: BackboneSource, plan: BackbonePlan, options: dict[str, Any]) -> FgsslError:
    height, width = plan.map_size
    larger = range(16 * (plan.image_size // 16 + 1), 4 * max(plan.image_size, 64), 16)
    works = next((side for side in larger if _works(source, side, options)), source.own_size)
    fails = plan.image_size
    while works - fails > 1:  # a pixel may decide: a stride of 32 makes a 1x1 map of 32 px and a 2x2 map of 33 px
        middle = (works + fails) // 2
        works, fails = (middle, fails) if _works(source, middle, options) else (works, middle)
    return FgsslError(
        f"{source.name} makes a {height}x{width} map of {plan.image_size} px images, at least 2x2 is needed",
        f"the smallest image size that works is {works} px",
    )


def _works(source: BackboneSource, size: int, options: dict[str, Any]) -> bool:
    try:
        return min(try_size(source, size, options, meta_only=True).map_size) >= MINIMUM_MAP_SIDE
    except Exception:  # any error means that this size is not one of them
        return False
