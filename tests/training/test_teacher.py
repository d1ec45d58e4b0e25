"""What a teacher makes of the pictures, once and by a slow loop; whole distilled and anchored runs, stopped, in two
processes and in parts."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from pictures import ArrayImages
from run_results import assert_equal_encoders, metrics
from running import BACKBONE, SHORT, TINY, fgssl, make_photos, photos, plain_run, shared
from safetensors.torch import load_file
from stopping import stopped_run
from torch.nn import functional
from two_processes import OPTIONS, in_two

from fgssl.adaptation import embed_views, fit_whitening
from fgssl.adaptation.whitening import sample_rows
from fgssl.backbones import build_backbone
from fgssl.backbones.module import Backbone
from fgssl.config.defaults import VIEW_PRESETS
from fgssl.config.resolve import load_config
from fgssl.config.schema import ViewsConfig
from fgssl.data.cache.folder import cache_files
from fgssl.data.cache.pixels import PixelStore, Shrunk
from fgssl.encoder import Encoder
from fgssl.errors import FgsslError, SettingError
from fgssl.runs.encoder_file import load_encoder, save_encoder
from fgssl.runtime.reporting import Reporter
from fgssl.training.loop import Trainer
from fgssl.training.plan import Plan, make_plan
from fgssl.training.pretrain import build_trainer
from fgssl.training.teacher import make_targets

SIZE = 64


def silent(_done: int, _total: int) -> None:
    pass


def encoder_of(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(build_backbone("test_resnet", image_size=SIZE)).eval()


def teacher() -> Path:
    """A run of two steps on pictures of 48 pixels, as a file: trained by another backbone and at another size."""

    def make(run: Path) -> None:
        options = ("--backbone", "test_resnet", "--image-size", "48", "--set", "backbone.drop_path=0")
        outcome = fgssl("pretrain", "--data", photos(), *SHORT, *options, "--output", run)
        assert outcome.code == 0, outcome.err

    return shared("teacher", make)


def distilled(*more: object) -> tuple[str, ...]:
    return (*TINY, "--objective", "distill", "--teacher", str(teacher()), *map(str, more))


def anchored(*more: object) -> tuple[str, ...]:
    start = ("--init", str(plain_run()), "--set", "objective.anchor=2", "--set", "optimizer.name=adamw")
    return (*(word for word in TINY if word != "--no-pretrained"), *start, *map(str, more))


def run_of(name: str, options: tuple[str, ...]) -> Path:
    def make(run: Path) -> None:
        outcome = fgssl("pretrain", "--data", photos(), *options, "--output", run)
        assert outcome.code == 0, outcome.err

    return shared(name, make)


# ---- targets


@pytest.mark.parametrize("own", [True, False])
def test_targets_are_the_mean_of_whitened_views(own: bool, memory_images: Callable[..., ArrayImages]) -> None:
    pixels, encoder = PixelStore(memory_images(12, (3, 7)), Shrunk(80)), encoder_of()
    found = embed_views(encoder, pixels, stages=2, seed=4, progress=silent)
    layer = fit_whitening(found.features)
    if own:
        layer.bias.data += 1
        encoder.whitening = layer
    made = make_targets(encoder, pixels, stages=2, seed=4, progress=silent)
    assert made["targets"].dtype == torch.float16 and not made["targets"][[3, 7]].any()
    for column, position in enumerate(found.positions.tolist()):
        total = torch.zeros(len(layer.bias))
        for view in range(5):
            total += functional.normalize(layer(found.features[view, column]), dim=0)
        expected = functional.normalize(total, dim=0)
        torch.testing.assert_close(made["targets"][position].float(), expected, atol=1e-3, rtol=0)


def test_pictures_beyond_the_sample_are_seen_in_parts(
    memory_images: Callable[..., ArrayImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whitening is fitted on a sample; others go through it in parts, one of them unreadable."""
    pixels, encoder = PixelStore(memory_images(14, (1, 3)), Shrunk(80)), encoder_of()
    whole = make_targets(encoder, pixels, stages=1, seed=0, progress=silent)
    encoder.whitening = torch.nn.Linear(*whole["weight"].T.shape)
    encoder.whitening.load_state_dict({"weight": whole["weight"], "bias": whole["bias"]})
    monkeypatch.setattr("fgssl.training.teacher.sample_rows", lambda total: sample_rows(total, 6))
    monkeypatch.setattr("fgssl.training.teacher.CHUNK", 1)
    seen: list[tuple[int, int]] = []
    parts = make_targets(encoder, pixels, stages=1, seed=0, progress=lambda *told: seen.append(told))
    torch.testing.assert_close(parts["targets"], whole["targets"], atol=2e-3, rtol=0)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1] == (14, 14)


def test_one_picture_that_can_be_read_is_no_training_split(memory_images: Callable[..., ArrayImages]) -> None:
    with pytest.raises(FgsslError, match="fewer than two training pictures can be read"):
        make_targets(encoder_of(), PixelStore(memory_images(2, (0,)), Shrunk(80)), stages=1, seed=0, progress=silent)


# ---- the cache


def plan_of(**settings: object) -> Plan:
    flags = {
        "data.source": str(photos()), "backbone.name": BACKBONE, "backbone.pretrained": False,
        "backbone.image_size": SIZE, "training.batch_size": 8, "training.workers": 0, "training.device": "cpu",
        "training.mixed_precision": "no", "objective.name": "distill", "objective.teacher": str(teacher()),
    }  # fmt: skip
    return make_plan(load_config(flags={**flags, **settings}))


def trainer_of(folder: Path, **settings: object) -> Trainer:
    return build_trainer(plan_of(**settings), folder, Reporter())


def test_features_are_made_once_and_again_where_the_file_is_damaged_or_others_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    calls = mock.Mock(side_effect=embed_views)
    monkeypatch.setattr("fgssl.training.teacher.embed_views", calls)

    def targets(**settings: object) -> torch.Tensor:
        relations = trainer_of(tmp_path, **settings).model.objective.teacher
        assert relations is not None
        return relations.targets

    first = targets()
    (path,) = (tmp_path / "cache" / "targets").iterdir()
    assert torch.equal(first, targets()) and calls.call_count == 1
    assert len(first) == 24 and first.any(1).all()
    assert [file.path for file in cache_files(tmp_path / "cache") if file.kind == "targets"] == [path]
    for damaged in (b"", path.read_bytes()[:-3], b"\xff" * 200):
        path.write_bytes(damaged)
        assert torch.equal(first, targets())
    assert calls.call_count == 4
    assert not torch.equal(first, targets(**{"training.seed": 1})) and calls.call_count == 5
    # those that nobody has used for long go when others are made
    os.utime(path, (0, 0))
    targets(**{"training.seed": 2})
    assert not path.exists() and calls.call_count == 6


def test_features_that_cannot_be_kept_are_told_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "file"))
    outcome = fgssl("pretrain", "--data", photos(), *distilled("--max-steps", 2), "--output", tmp_path / "run")
    assert outcome.code == 0 and "the teacher's features cannot be kept" in outcome.err
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "full"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with mock.patch("shutil.disk_usage", return_value=usage):
        assert trainer_of(tmp_path).model.objective.teacher is not None
    assert not list((tmp_path / "full" / "targets").glob("*"))


def test_the_teacher_sees_pictures_of_its_own_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    sides = set[int]()
    original = Backbone.forward_stages

    def spied(self: Backbone, images: torch.Tensor, count: int) -> list[torch.Tensor]:
        sides.add(images.shape[-1])
        return original(self, images, count)

    with mock.patch.object(Backbone, "forward_stages", spied):
        trainer = trainer_of(tmp_path)
    assert sides == {48} and trainer.plan.backbone.image_size == SIZE


def test_pictures_that_cannot_be_read_have_no_target(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos" / "train", 24, seed=40)
    broken = sorted((tmp_path / "photos").rglob("*.*"))[5]
    broken.write_bytes(b"no picture")
    trainer = trainer_of(tmp_path, **{"data.source": str(tmp_path / "photos")})
    relations = trainer.model.objective.teacher
    assert relations is not None
    (position,) = (~relations.targets.any(1)).nonzero()[:, 0].tolist()
    assert trainer.plan.train.name(position) == str(broken) and len(relations.bank) == 23


@pytest.mark.filterwarnings("ignore")
def test_a_teacher_that_looks_twice_hands_on_what_zoom_gives(tmp_path: Path) -> None:
    """Against each picture embedded alone; the width is that of zoom's parts side by side."""
    trainer = trainer_of(tmp_path, **{"objective.teacher_pool": "zoom"})
    relations, encoder, images = trainer.model.objective.teacher, load_encoder(str(teacher())), trainer.plan.train
    assert relations is not None
    assert trainer.plan.config.objective.projector_dim == relations.targets.shape[1] == 3 * encoder.backbone.channels
    for position in (0, 7, 23):
        with torch.inference_mode():
            alone = encoder([images.load(position)], "zoom")[0]
        assert functional.cosine_similarity(alone, relations.targets[position].float(), 0) > 0.999


# ---- whole runs


def test_a_distilled_run_is_planned_trained_explained_and_scored(tmp_path: Path) -> None:
    run, sheet = run_of("distilled", distilled()), tmp_path / "sheet.png"
    plan = make_plan(load_config(run / "config.yaml"), load_weights=False)
    seen = build_backbone("test_resnet", image_size=48)
    assert plan.config.objective.projector_dim == seen.channels + 2 * sum(seen.earlier.channels)
    assert plan.config.views.preset == "geometric" and plan.config.views.jitter == 0
    picture = next((photos() / "test").rglob("*.jpg"))
    assert fgssl("visualize", picture, "--checkpoint", run, "--output", sheet).code == 0 and sheet.stat().st_size
    encoder = load_encoder(str(run))
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    assert encoder.has_loss_gradcam and encoder.keys is None and encoder.loss_gradcam(images).max() > 0
    rows = metrics(run)
    assert rows[-1]["chance"] == pytest.approx(torch.tensor(24.0).log().item())
    assert rows[-1]["loss"] < rows[0]["loss"] < rows[0]["chance"] + 1
    assert fgssl("retrieve", run, "--json").code == 0


@pytest.mark.parametrize("cold", [False, True])
def test_a_stopped_distilled_run_goes_on_bit_for_bit(
    cold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_run(tmp_path / "run", distilled())
    if cold:  # the cache was cleared meanwhile
        monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    assert fgssl("pretrain", "--resume", run).code == 0
    assert_equal_encoders(run_of("distilled", distilled()), run)
    assert metrics(run_of("distilled", distilled())) == metrics(run)


def test_a_run_goes_on_with_its_own_teacher_only(tmp_path: Path) -> None:
    copied = tmp_path / "teacher.safetensors"
    shutil.copy(teacher() / "encoder.safetensors", copied)
    run = stopped_run(tmp_path / "run", (*distilled(), "--teacher", str(copied)))
    save_encoder(copied, encoder_of(7))
    assert "has other weights than when it began" in fgssl("pretrain", "--resume", run).error()
    copied.unlink()
    assert f"--teacher: no checkpoint '{copied}'" in fgssl("pretrain", "--resume", run).error()
    shutil.copy(teacher() / "encoder.safetensors", copied)
    assert fgssl("pretrain", "--resume", run).code == 0


@pytest.mark.parametrize(
    "more",
    [
        ("--freeze", "backbone"),
        ("--accumulate", "2"),
        ("--mixed-precision", "bf16", "--no-rationale"),
        ("--freeze", "3", "--checkpoint-gradients"),
    ],
    ids=["frozen", "in parts", "bf16", "checkpointed"],
)
def test_distilled_runs_of_other_kinds(more: tuple[str, ...], tmp_path: Path) -> None:
    for options in (distilled(*more), anchored(*more)):
        if options == anchored("--freeze", "backbone"):
            continue
        run = stopped_run(tmp_path / f"run{options == anchored(*more)}", options, step=1)
        assert fgssl("pretrain", "--resume", run).code == 0
        again = tmp_path / f"again{options == anchored(*more)}"
        assert fgssl("pretrain", "--data", photos(), *options, "--output", again).code == 0
        assert_equal_encoders(again, run)


@functools.cache
def in_both() -> Path:
    """A distilled and an anchored run, each in one process and in two."""
    start = run_of("convnext", (*OPTIONS, "--max-steps", "1"))
    held = ("--objective", "simclr", "--init", str(start), "--set", "objective.anchor=3")
    held += ("--set", "backbone.whitening=false", "--set", "backbone.drop_path=0")
    runs = {"distilled": ("--objective", "distill", "--teacher", str(teacher())), "anchored": held}
    short = ("--max-steps", "6", "--set", "optimizer.name=sgd", "--lr", "0.01")
    return shared("taught in two", lambda folder: in_two(folder, {name: more + short for name, more in runs.items()}))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
@pytest.mark.parametrize("name", ["distilled", "anchored"])
def test_two_processes_learn_what_one_does_and_see_the_teacher_once(name: str) -> None:
    folder = in_both() / name
    assert len(list((folder / "cache" / "targets").iterdir())) == 1
    one, two = metrics(folder / "alone"), metrics(folder / "run")
    for key in ("loss", "chance", "fit", "positive_similarity"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-4, abs=1e-4), key
    ours, theirs = (load_file(folder / run / "encoder.safetensors") for run in ("alone", "run"))
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


# ---- what cannot be


def refused(*more: object, code: int = 1) -> str:
    return fgssl("pretrain", "--data", photos(), *TINY, *map(str, more), "--output", "nowhere").error(code)


def test_what_is_no_teacher_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "the objective distill has no teacher; name one: --teacher" in refused("--objective", "distill", code=2)
    other = refused("--teacher", teacher(), code=2)
    assert "the objective mocov2 has no objective.teacher; leave it out, or use --objective distill" in other
    distill = ("--objective", "distill", "--teacher")
    assert "--teacher: no checkpoint 'there'" in refused(*distill, "there")
    (tmp_path / "cut.safetensors").write_bytes((teacher() / "encoder.safetensors").read_bytes()[:-9])
    assert "is cut off or not a safetensors file" in refused(*distill, "cut.safetensors")
    torch.save({f"x.{k}": v for k, v in encoder_of().backbone.model.state_dict().items()}, tmp_path / "plain.pth")
    assert "name it with --teacher-backbone" in refused(*distill, "plain.pth")
    named = refused(*distill, "plain.pth", "--teacher-backbone", "resnet18")
    assert "--teacher: " in named and "plain.pth" in named and "resnet18" in named
    wrong = refused(*distill, teacher(), "--set", "objective.projector_dim=8")
    assert "objective.projector_dim is 8, the teacher's features have" in wrong
    assert not (tmp_path / "nowhere").exists()


def test_weights_that_do_not_tell_their_architecture_are_a_teacher_with_it(tmp_path: Path) -> None:
    torch.save(encoder_of().backbone.model.state_dict(), tmp_path / "plain.pth")
    options = distilled("--teacher", tmp_path / "plain.pth", "--teacher-backbone", "test_resnet", "--max-steps", "2")
    outcome = fgssl("pretrain", "--data", photos(), *options, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    trained = load_config(tmp_path / "run" / "config.yaml").config.objective
    assert (trained.teacher, trained.teacher_backbone) == (str(tmp_path / "plain.pth"), "test_resnet")


def test_views_that_were_chosen_stay() -> None:
    plain, chosen = plan_of(), plan_of(**{"views.preset": "colour"})
    assert plain.config.views == ViewsConfig(preset="geometric", local_count=0, **VIEW_PRESETS["geometric"])
    assert chosen.config.views == ViewsConfig(local_count=0)


# ---- the anchor


def anchored_trainer(folder: Path, **settings: object) -> Trainer:
    start = {"backbone.init": str(plain_run()), "backbone.pretrained": None, "objective.name": "mocov2"}
    return trainer_of(folder, **{**start, "objective.teacher": None, **settings})


def test_the_anchor_is_added_with_its_weight_and_is_of_the_start(tmp_path: Path) -> None:
    outputs = {}
    for weight in (0.0, 0.5):
        trainer = anchored_trainer(tmp_path, **{"objective.anchor": weight})
        trainer.model.train()
        batch = next(trainer.batches(0))
        outputs[weight] = (trainer.model(*trainer.feed.inputs(batch), 1.0), trainer.model.anchor)
    plain, none = outputs[0.0]
    held, anchor = outputs[0.5]
    assert none is None and anchor is not None
    assert torch.equal(plain.loss, held.loss) and torch.equal(plain.fit, held.fit)
    added = float((held.total - plain.total).detach())
    # of the plain mean of the map, whitened as the targets are
    expected = anchor([held.features], batch.index).loss
    assert added == pytest.approx(0.5 * float(expected), rel=1e-4)
    assert anchor.targets.shape == (24, trainer.plan.backbone.channels) and anchor.weight is not None


def test_an_anchored_run_stays_nearer_to_its_start(tmp_path: Path) -> None:
    start = load_encoder(str(plain_run()))
    images = torch.randint(0, 256, (6, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moved = []
    for weight in (0, 20):
        options = anchored("--set", f"objective.anchor={weight}", "--set", "backbone.whitening=false", "--no-rationale")
        options += ("--max-steps", "12", "--epochs", "12", "--lr", "1e-3")
        outcome = fgssl("pretrain", "--data", photos(), *options, "--output", tmp_path / str(weight))
        assert outcome.code == 0, outcome.err
        end = load_encoder(str(tmp_path / str(weight)))
        with torch.no_grad():
            before, after = (functional.normalize(e(images) - e(images).mean(0), dim=1) for e in (start, end))
        moved.append(float((before @ before.T - after @ after.T).square().mean()))
    assert moved[1] < 0.8 * moved[0]


@pytest.mark.parametrize("cold", [False, True])
def test_a_stopped_anchored_run_goes_on_bit_for_bit(
    cold: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_run(tmp_path / "run", anchored())
    if cold:
        monkeypatch.setenv("FGSSL_CACHE", str(tmp_path / "cache"))
    assert fgssl("pretrain", "--resume", run).code == 0
    assert_equal_encoders(run_of("anchored", anchored()), run)
    assert metrics(run_of("anchored", anchored())) == metrics(run)


@pytest.mark.parametrize("objective", ["byol", "simclr", "simsiam"])
def test_every_objective_can_be_anchored(objective: str, tmp_path: Path) -> None:
    options = anchored("--objective", objective, "--set", "objective.projector_hidden=16", "--max-steps", "2")
    assert fgssl("pretrain", "--data", photos(), *options, "--output", tmp_path / "run").code == 0


def test_an_anchor_needs_something_to_hold() -> None:
    with pytest.raises(SettingError, match=r"objective.anchor holds what trained weights know, .*--pretrained or"):
        trainer_of(Path(), **{"objective.anchor": 1.0})
    with pytest.raises(SettingError, match=r"--freeze backbone leaves objective.anchor nothing to hold"):
        load_config(sets=["objective.anchor=1", "backbone.freeze=backbone"])
    with pytest.raises(SettingError, match=r"objective.anchor is -1"):
        load_config(sets=["objective.anchor=-1"])
