"""A sheet of maps: demo images with the GradCAM of the loss, the rationale, and the true masks.

    python recipes/bench/rationale_sheet.py runs/demo --output sheet.png
    python recipes/bench/rationale_sheet.py runs/grid/cells/CELL --images 12 --split train

RUN is a run folder of `fgssl pretrain` or a cell of rationale_grid.py. Each map is on its own scale; below it the
energy inside the class-telling parts relative to the uniform map. With `--data` other pictures are drawn, without
masks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import harness
import numpy as np
import torch
from PIL import Image
from rationale_bench.controls import loss_gradcams

from fgssl.config.schema import DataConfig
from fgssl.data import load_images
from fgssl.data.demo.demo_set import DemoSet
from fgssl.drawing import save_png
from fgssl.drawing.maps import colour_bar, overlay
from fgssl.drawing.sheets import Key, Panel, sheet
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError
from fgssl.evaluation.controls import seen_masks
from fgssl.evaluation.explain import shown
from fgssl.evaluation.map_scores import energy_inside
from fgssl.evaluation.maps import MapOf
from fgssl.runs.encoder_file import load_encoder

SIDE = 160
PARTS, OBJECT = (226, 86, 40), (70, 130, 180)


def map_columns(encoder: Encoder, run: Path) -> dict[str, MapOf]:
    """The maps to draw, by the titles of their columns."""
    columns = loss_gradcams(encoder)
    if encoder.rationale is not None:
        columns["rationale"] = lambda feature_map, images: encoder.attention(feature_map)
    if not columns:
        raise FgsslError(f"'{run}' has no rationale and no keys: there are no maps to draw", "give another run")
    return columns


def mask_picture(picture: Image.Image, bird: np.ndarray, parts: np.ndarray) -> Image.Image:
    """The picture in grey, the object blue and its class-telling parts orange."""
    grey = np.asarray(picture.convert("L").convert("RGB"), np.float64)
    for mask, colour in ((bird & ~parts, OBJECT), (parts, PARTS)):
        grey[mask] = 0.4 * grey[mask] + 0.6 * np.array(colour)
    return Image.fromarray(grey.round().astype(np.uint8))


def draw(encoder: Encoder, columns: dict[str, MapOf], data: DataConfig, split: str, count: int) -> Image.Image:
    """The sheet, of images drawn at random, the same ones for every run."""
    images = load_images(data, split)
    asked = np.sort(np.random.default_rng(0).permutation(len(images))[:count]).tolist()
    pictures = [images.load(index) for index in asked]
    view = encoder.view()
    batch = torch.from_numpy(np.stack([np.asarray(view(picture)) for picture in pictures])).permute(0, 3, 1, 2)
    with torch.no_grad():
        feature_map = encoder.backbone(encoder.normalize(batch))
    maps = {title: map_of(feature_map, batch).detach() for title, map_of in columns.items()}
    rows = []
    for place, (index, picture) in enumerate(zip(asked, pictures, strict=True)):
        seen = shown(encoder, picture, size=SIDE)
        masks = seen_masks(images.masks(index), view, SIDE) if isinstance(images, DemoSet) else None
        row = [Panel(seen, images.identifier(index).rsplit("/", 1)[-1])]
        for values in maps.values():
            row.append(Panel(overlay(seen, values[place].numpy()), _words(values[place], masks)))
        if masks is not None:
            row.append(Panel(mask_picture(seen, *masks), f"parts {100 * masks[1].mean():.0f} %"))
        rows.append(row)
    titles = ["picture", *maps, *(["masks"] if isinstance(images, DemoSet) else [])]
    side = "x".join(map(str, feature_map.shape[2:]))
    title = f"{encoder.backbone.name}, {side} map, {data.source} [{split}]"
    legend = [Key(colour_bar(), "low to high, each map on its own scale")]
    if isinstance(images, DemoSet):
        legend.append(Key(None, "masks: the object blue, its class-telling parts orange"))
        legend.append(Key(None, "parts x: the map's energy inside the parts, relative to an even map"))
    return sheet(rows, column_titles=titles, title=title, legend=legend, panel_size=SIDE, separators=(1,))


def _words(values: torch.Tensor, masks: list[np.ndarray] | None) -> str:
    if masks is None or not masks[1].any():
        return ""
    parts = torch.from_numpy(masks[1])
    return f"parts x {float(energy_inside(values, parts)) / float(parts.double().mean()):.1f}"


def main() -> None:
    """Draw the sheet."""
    parser = harness.parser(__doc__)
    parser.add_argument("run", type=Path, help="run folder or cell")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--split", default="test")
    parser.add_argument("--data", help="default: the run's")
    parser.add_argument("--output", "-o", type=Path, default=Path("sheet.png"))
    arguments = parser.parse_args()
    encoder = load_encoder(str(arguments.run))
    columns = map_columns(encoder, arguments.run)
    remembered = encoder.config.data if encoder.config is not None else DataConfig()
    data = remembered if arguments.data is None else DataConfig(source=arguments.data)
    save_png(draw(encoder, columns, data, arguments.split, max(1, arguments.images)), arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    try:
        main()
    except FgsslError as error:
        sys.exit(f"error: {error}")
