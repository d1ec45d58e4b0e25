"""The second look in closed form: what it weighs, what it costs where it cannot be fitted, and that a file keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fgssl.adaptation import fit_windows
from fgssl.adaptation.neighbours import nearness
from fgssl.adaptation.whitening import fit_whitening
from fgssl.adaptation.windows import WEIGHTS
from fgssl.backbones import build_backbone
from fgssl.data.cache.pixels import PixelStore
from fgssl.data.images import ImageSet
from fgssl.encoder import Encoder, Pool
from fgssl.errors import UnreadableImage
from fgssl.runs.encoder_file import identity, load_encoder, save_encoder

SIZE = 64


class Squares(ImageSet):
    """Striped squares anywhere on plain grounds; every seventh cannot be read."""

    def __init__(self, count: int) -> None:
        super().__init__("squares")
        self.count = count

    def __len__(self) -> int:
        return self.count

    def load(self, index: int, min_side: int | None = None) -> Image.Image:
        if index % 7 == 6:
            raise UnreadableImage("squares: broken")
        random = np.random.default_rng(index)
        pixels = np.full((96, 96, 3), random.integers(90, 140), np.uint8)
        row, column = random.integers(0, 64, 2)
        pixels[row : row + 32, column : column + 32] = random.integers(0, 256, (32, 1, 3))
        return Image.fromarray(pixels)


def encoder() -> Encoder:
    torch.manual_seed(0)
    made = Encoder(build_backbone("test_resnet", pretrained=False, image_size=SIZE)).eval()
    width = made.backbone.pooled_width(1)
    made.whiten_by(fit_whitening(torch.randn(3, 20, width)), stages=1)
    return made


def silent(done: int, total: int) -> None: ...


@pytest.mark.parametrize("rows", [3, 50, 1300])
def test_nearness_is_that_of_a_loop(rows: int) -> None:
    features = torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows))
    unit = (features / features.norm(dim=1, keepdim=True)).double().numpy()
    found = []
    for row in range(min(rows, 1300)):
        others = np.delete(unit @ unit[row], row)
        found.append(others.max() - others.mean())
    assert nearness(features) == pytest.approx(np.mean(found), rel=1e-3)


def test_a_file_keeps_the_second_look(tmp_path: Path) -> None:
    made, pictures = encoder(), Squares(30)
    before = identity(made)
    pixels = PixelStore(pictures, made.view("zoom"))
    told: list[tuple[int, int]] = []
    assert fit_windows(made, pixels, seed=0, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (60, 60) and identity(made) != before
    assert made.window_weight is not None and WEIGHTS[0] <= made.window_weight <= WEIGHTS[1]
    save_encoder(tmp_path / "encoder.safetensors", made)
    opened = load_encoder(str(tmp_path / "encoder.safetensors"))
    assert identity(opened) == identity(made)
    images = torch.stack([torch.from_numpy(pixels[row].copy()).permute(2, 0, 1) for row in range(5)])
    with torch.no_grad():
        assert torch.equal(opened(images, "zoom"), made(images, "zoom"))
        # a picture's embedding does not depend on those beside it
        assert torch.allclose(made(images[:1], "zoom"), made(images, "zoom")[:1], atol=1e-5)
        width = made.backbone.pooled_width(1)
        parts = made(images, "zoom").split(width, 1)
    assert len(parts) == 2
    ratio = parts[1].norm(dim=1) / parts[0].norm(dim=1)
    assert ratio.numpy() == pytest.approx(made.window_weight, rel=1e-4)


def test_what_all_share_is_looked_for_only_where_it_tells_pictures_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the windows are in the middle, as those of zoom:middle."""
    looks: tuple[Pool, ...] = ("parts", "zoom:again")
    for gain, finds in ((0.0, True), (100.0, False)):
        monkeypatch.setattr("fgssl.adaptation.windows.GAIN", gain)
        made, pictures = encoder(), Squares(30)
        pixels = PixelStore(pictures, made.view("zoom"))
        assert fit_windows(made, pixels, seed=0, progress=silent)
        assert (made.finder is not None) is finds and not made.zoom_has_rationale
        images = torch.stack([torch.from_numpy(pixels[row].copy()).permute(2, 0, 1) for row in range(5)])
        with torch.no_grad():
            assert torch.equal(made(images, "zoom"), made(images, "zoom:middle")) is not finds
            if not finds:
                larger = torch.nn.functional.interpolate(images.float(), made.view_size("parts")).to(torch.uint8)
                feature_map = made.maps(made.shrunk(larger))[0]
                for look in looks:  # nothing moves the window, and it is one
                    windows, present = made.look_windows(larger, feature_map, look)
                    assert torch.equal(windows[:, 0, :2], torch.full((5, 2), 0.5)) and present.sum() == 5


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_pictures_leave_the_encoder_as_it_was(count: int) -> None:
    made = encoder()
    before = identity(made)
    assert not fit_windows(made, PixelStore(Squares(count), made.view("zoom")), seed=0, progress=silent)
    assert made.window_weight is None and identity(made) == before
