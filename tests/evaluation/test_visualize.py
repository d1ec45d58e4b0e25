"""Maps of any pictures: the written sheet, and maps that depend on their own picture alone."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from pictures import make_picture
from PIL import Image
from running import BACKBONE, fgssl, finished_run, flat_photos, photos, plain_run

from fgssl.drawing import ExplainRow, explain_sheet
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError
from fgssl.evaluation.explain import explain, shown, visualize
from fgssl.runs.encoder_file import load_encoder

TITLES = "fgssl.evaluation.explain.explain_sheet"


@pytest.fixture
def encoder() -> Encoder:
    return load_encoder(str(finished_run()[0]))


def picture() -> Path:
    return photos() / "test" / "class 0" / "00.jpg"


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as sheet:
        sheet.load()
        assert sheet.format == "PNG"
        return sheet.size


# ---- the command


def test_png_is_written_named_and_opens(tmp_path: Path) -> None:
    path = tmp_path / "what it sees.png"
    outcome = fgssl("visualize", picture(), "--checkpoint", finished_run()[0], "--output", path)
    assert outcome.code == 0 and outcome.out == f"{path}\n" and outcome.err == ""
    width, height = size_of(path)
    assert width > 3 * 448 and height > 448  # image, GradCAM, rationale side by side


def test_json_names_what_was_drawn(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    found = fgssl("visualize", picture(), "--checkpoint", finished_run()[0], "-o", path, "--json").json()
    assert found == {
        "output": str(path), "checkpoint": str(finished_run()[0]), "images": [str(picture())], "map_size": [2, 2],
    }  # fmt: skip


def test_newest_run_and_name_of_the_picture_are_the_defaults(tmp_path: Path) -> None:
    for name, run in (("old", plain_run()), ("new", finished_run()[0])):
        (tmp_path / "runs" / name).mkdir(parents=True)
        shutil.copyfile(run / "encoder.safetensors", tmp_path / "runs" / name / "encoder.safetensors")
    (tmp_path / "runs" / "unfinished").mkdir()
    shutil.copy(picture(), tmp_path / "my bird 🐦.jpg")
    outcome = fgssl("visualize", "my bird 🐦.jpg", "--json", cwd=tmp_path)
    found = outcome.json()
    assert outcome.err == "checkpoint: runs/new (newest in runs/)\n"
    assert (found["output"], found["checkpoint"]) == ("my bird 🐦-rationale.png", "runs/new")
    size_of(tmp_path / "my bird 🐦-rationale.png")


def test_several_pictures_of_any_kind_make_one_sheet(tmp_path: Path) -> None:
    odd = {
        "wide.png": make_picture(1, 300, 20),
        "tiny.gif": make_picture(2, 3, 3),
        "alpha.webp": make_picture(3, 50, 60),
    }
    for name, image in odd.items():
        image.convert("RGBA" if "alpha" in name else "RGB").save(tmp_path / name)
    paths = [picture(), *(tmp_path / name for name in odd)]
    for count in (1, 4):
        path = tmp_path / f"sheet{count}.png"
        assert fgssl("visualize", *paths[:count], "--checkpoint", finished_run()[0], "-o", path).code == 0
    one, four = size_of(tmp_path / "sheet1.png"), size_of(tmp_path / "sheet4.png")
    assert four[1] / four[0] > 2 * one[1] / one[0]  # one below the other, drawn smaller


def test_columns_are_the_maps_that_the_encoder_has() -> None:
    """GradCAM and rationale for a whole run, GradCAM alone for a run without rationale."""
    for run, with_rationale in ((finished_run()[0], True), (plain_run(), False)):
        with mock.patch(TITLES, wraps=explain_sheet) as drawn:
            sheet = visualize(load_encoder(str(run)), [picture()], title="test")
        ((row,),) = drawn.call_args.args
        assert isinstance(row, ExplainRow) and row.caption == "00.jpg"
        assert row.gradcam is not None and row.gradcam.shape == (2, 2)
        assert (row.rationale is not None) is with_rationale
        assert sheet.width > (3 if with_rationale else 2) * 448


def test_encoder_without_head_and_keys_says_so() -> None:
    name = f"timm:local-dir:{finished_run()[0] / 'timm'}"
    error = fgssl("visualize", picture(), "--checkpoint", name).error()
    assert "no projection head" in error and "--checkpoint" in error
    with pytest.raises(FgsslError, match="no projection head and keys"):
        load_encoder(name).loss_gradcam(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert BACKBONE in fgssl("visualize", picture(), "--checkpoint", f"timm:{BACKBONE}").error()  # offline


def test_wrong_pictures_and_outputs_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    run = finished_run()[0]
    for arguments, expected in (
        ((picture(), "nowhere.jpg"), "no such file: nowhere.jpg; check the path"),
        (("text.jpg",), "text.jpg"),
        ((flat_photos(),), "is a folder"),
        ((picture(), "--output", "sheet.pdf"), "sheet.pdf"),
        ((picture(), "--output", "no folder/sheet.png"), "no folder"),
        ((picture(), "--device", "tpu9"), "tpu9"),
    ):
        outcome = fgssl("visualize", *arguments, "--checkpoint", run, cwd=tmp_path)
        assert expected in outcome.error(2 if "tpu9" in arguments else 1) and outcome.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["text.jpg"]


# ---- the maps


def test_maps_do_not_depend_on_the_other_pictures(encoder: Encoder) -> None:
    pictures = [make_picture(seed, 64 + seed, 70) for seed in range(7)]
    together = explain(encoder, pictures)
    in_threes = explain(encoder, pictures, batch_size=3)
    for number, alone in enumerate(explain(encoder, [p])[0] for p in pictures):
        for other in (together[number], in_threes[number]):
            np.testing.assert_allclose(other.gradcam, alone.gradcam, atol=1e-6)
            np.testing.assert_allclose(other.rationale, alone.rationale, atol=1e-6)


def test_maps_are_positive_and_the_rationale_a_distribution(encoder: Encoder) -> None:
    for maps in explain(encoder, [make_picture(seed, 80, 64) for seed in range(3)]):
        assert maps.gradcam is not None and maps.rationale is not None
        assert maps.gradcam.min() >= 0 and maps.rationale.min() >= 0
        assert maps.rationale.sum() == pytest.approx(1, abs=1e-5)


def test_loss_gradcam_equals_autograd_through_the_written_out_loss(encoder: Encoder) -> None:
    """Oracle: -log of the mirrored picture's softmax share beside the keys, differentiated picture by picture."""
    assert encoder.projector is not None and encoder.keys is not None and encoder.config is not None
    rng = np.random.default_rng(3)
    images = torch.from_numpy(rng.integers(0, 256, (3, 3, 64, 64), dtype=np.uint8))
    cams = torch.zeros(3, 2, 2)
    for sign in ("raise", "lower"):  # together no map is all zero
        signed = dataclasses.replace(encoder.config.rationale, sign=sign)
        encoder.config = dataclasses.replace(encoder.config, rationale=signed)
        cams = cams + encoder.loss_gradcam(images)
    assert cams.amin() > 0

    def head(feature_map: torch.Tensor) -> torch.Tensor:  # (C, H, W) -> (D,)
        with torch.no_grad():
            weights = encoder.attention(feature_map.detach()[None])[0]  # the objective pools by the map, a constant
        projected = encoder.projector((feature_map * weights).sum((1, 2)))
        return projected / projected.norm()

    for image, cam in zip(images, cams, strict=True):
        with torch.no_grad():
            feature_map = encoder.backbone(encoder.normalize(image[None]))[0]
            positive = head(encoder.backbone(encoder.normalize(image[None].flip(-1)))[0])
        feature_map.requires_grad_()
        query = head(feature_map)
        scores = torch.cat([(query @ positive)[None], encoder.keys @ query]) / encoder.config.objective.temperature
        (gradient,) = torch.autograd.grad(-torch.log_softmax(scores, 0)[0], feature_map)
        expected = (feature_map * gradient).sum(0).abs()
        torch.testing.assert_close(cam, expected.detach(), rtol=1e-4, atol=1e-7)


def test_explaining_leaves_the_encoder_as_it_was(encoder: Encoder) -> None:
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    explain(encoder, [make_picture(0, 64, 64)])
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_shown_part_is_the_part_that_the_encoder_sees(encoder: Encoder) -> None:
    image = make_picture(5, 200, 100)
    seen, view = shown(encoder, image, size=64), shown(encoder, image, size=448)
    assert seen.size == (64, 64) and view.size == (448, 448)
    small = np.asarray(view.resize((64, 64), Image.Resampling.BOX), np.float32)
    assert np.abs(small - np.asarray(seen, np.float32)).mean() < 6  # the same place, at another size
