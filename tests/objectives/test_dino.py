"""DINO against slow loops and closed forms; its prototypes, centre and small views; whole runs of several processes."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from running import TINY, fgssl, flat_photos, photos
from tiny_moco import BATCH, TinyBackbone, unit, views
from tiny_trainer import tiny_trainer
from torch import Tensor, nn
from two_processes import OPTIONS, launched

from fgssl.config.resolve import load_config
from fgssl.errors import FgsslError
from fgssl.objectives.methods.dino import DINO, DINOConfig, dino_loss
from fgssl.training.plan import make_plan

COUNT = 12  # prototypes


def build(**changes: object) -> DINO:
    settings = {"name": "dino", "projector_hidden": 7, "projector_dim": 8, "momentum": 0.9, "momentum_end": 1.0}
    settings |= {"temperature": 0.1, "prototypes": COUNT, "teacher_temperature_end": 0.07, "prototypes_rest": 0.1}
    torch.manual_seed(0)
    return DINO(TinyBackbone(), DINOConfig(**{**settings, **changes})).train()


def small(seed: int, count: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(count, BATCH, 3, 4, 4, generator=torch.Generator().manual_seed(seed)))


def cross_entropy(share: list[float], scores: list[float]) -> float:
    total = sum(math.exp(score) for score in scores)
    return -sum(q * math.log(math.exp(s) / total) for q, s in zip(share, scores, strict=True))


# ---- the loss


def test_the_loss_is_the_loop_over_pairs_of_different_views() -> None:
    """Equation 3: two whole views and three small ones are eight pairs."""
    logits = [3 * torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(5)]
    shares = [torch.softmax(3 * logits[n].roll(1, 0), 1) for n in range(2)]
    pairs = [(t, s) for t in range(2) for s in range(5) if t != s]
    values = [cross_entropy(shares[t][n].tolist(), logits[s][n].tolist()) for t, s in pairs for n in range(4)]
    assert len(pairs) == 8
    assert float(dino_loss(logits, shares)) == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_students_that_say_nothing_are_at_chance() -> None:
    shares = [torch.softmax(torch.randn(4, COUNT), 1) for _ in range(2)]
    assert float(dino_loss([torch.zeros(4, COUNT)] * 3, shares)) == pytest.approx(build().chance_level())


def test_a_step_is_the_written_out_one() -> None:
    """Moved teacher, centre and temperature of the step, small views for the student alone."""
    model = build()
    model(views(0) + small(0, 3), torch.arange(BATCH))
    twin, model.progress = copy.deepcopy(model), 0.15
    output = model(views(1) + small(1, 3), torch.arange(BATCH))
    momentum = 1 - 0.1 * (1 + math.cos(math.pi * 0.15)) / 2
    with torch.no_grad():
        for part in ("backbone", "projector", "prototypes"):
            pairs = zip(getattr(twin, part).parameters(), getattr(twin, f"key_{part}").parameters(), strict=True)
            for trained, slow in pairs:
                slow.mul_(momentum).add_((1 - momentum) * trained)

        def scores(view: Tensor, key: str = "") -> Tensor:
            backbone, projector, prototypes = (getattr(twin, key + p) for p in ("backbone", "projector", "prototypes"))
            out = nn.functional.normalize(projector(backbone(view).mean((2, 3))), dim=1)
            return out @ nn.functional.normalize(prototypes.weight, dim=1).T

        # BatchNorm takes the small views' statistics together
        together = scores(torch.cat(small(1, 3))).chunk(3)
        students = [*(scores(view) for view in views(1)), *together]
        centre = twin.score_sum  # of the first step
        teachers = [torch.softmax((scores(view, "key_") - centre) / 0.055, 1) for view in views(1)]
    assert output.loss.item() == pytest.approx(float(dino_loss([s / 0.1 for s in students], teachers)), rel=1e-4)
    assert torch.allclose(model.centre, centre) and len(output.feature_maps) == 2


def test_the_teachers_temperature_rises_over_three_tenths_of_the_run() -> None:
    model = build()
    for progress, expected in ((0.0, 0.04), (0.15, 0.055), (0.3, 0.07), (0.9, 0.07)):
        model.progress = progress
        assert model.teacher_temperature() == pytest.approx(expected)


# ---- the centre


def test_the_centre_follows_the_mean_of_the_teachers_scores() -> None:
    model, expected = build(momentum=1.0), torch.zeros(COUNT)
    for seed in range(3):
        with torch.no_grad():
            weight = nn.functional.normalize(model.key_prototypes.weight, dim=1)
            means = [(model.keys(view) @ weight.T).mean(0) for view in views(seed)]
        model(views(seed), torch.arange(BATCH))
        assert torch.allclose(model.centre, expected, atol=1e-6)  # of the steps before
        expected = 0.9 * expected + 0.1 * sum(means) / 2 if seed else sum(means) / 2


def test_parts_of_a_step_move_the_centre_as_the_whole_does() -> None:
    """Of a teacher at rest, whose scores do not depend on the part."""
    whole, parts = (build(key_norm="running", momentum=1.0) for _ in range(2))
    for seed in range(3):
        both = torch.stack(views(seed))
        whole(tuple(both), torch.arange(BATCH))
        for number, part in enumerate(both.chunk(2, 1)):
            parts.update_target = number == 0
            parts(tuple(part), torch.arange(BATCH // 2))
    assert whole.centre.abs().sum() > 0 and torch.allclose(whole.centre, parts.centre, atol=1e-6)


# ---- the prototypes


def test_prototypes_rest_at_first_and_learn_then() -> None:
    """Weight decay changes their length alone, which does not count."""
    model = build()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2, weight_decay=0.1)
    first = nn.functional.normalize(model.prototypes.weight.detach().clone(), dim=1)
    moved = []
    for seed, progress in enumerate((0.0, 0.05, 0.099, 0.1)):
        model.progress = progress
        optimizer.zero_grad()
        model(views(seed), torch.arange(BATCH)).loss.backward()
        optimizer.step()
        now = nn.functional.normalize(model.prototypes.weight.detach(), dim=1)
        moved.append(float((now - first).abs().max()))
    assert max(moved[:3]) < 1e-6 and moved[3] > 1e-3


def test_the_kept_prototypes_are_those_seen_most() -> None:
    model = build()
    model.centre.copy_(torch.arange(COUNT).roll(3))
    weight = nn.functional.normalize(model.key_prototypes.weight, dim=1)
    assert torch.equal(model.sample_keys(4), weight[[2, 1, 0, 11]])


def test_the_loss_of_a_picture_is_the_written_out_cross_entropy() -> None:
    anchor, positive, keys = unit(3, 8), unit(3, 8, seed=1), unit(5, 8, seed=2)
    config, total = DINOConfig(name="dino", temperature=0.1), 0.0
    for n in range(3):
        shares = torch.softmax(keys @ positive[n] / 0.04, 0).tolist()
        total += cross_entropy(shares, (keys @ anchor[n] / 0.1).tolist())
    assert float(DINO.picture_loss(anchor, positive, keys, config)) == pytest.approx(total, rel=1e-4)


# ---- small views of a run


def plan_of(*sets: str, **flags: object):
    given = {"data.source": str(flat_photos()), "backbone.name": "resnet10t", "backbone.pretrained": False}
    given |= {"training.device": "cpu", "training.workers": 0, "objective.name": "dino", **flags}
    return make_plan(load_config(flags=given, sets=sets), load_weights=False)


def test_number_and_size_of_small_views_are_derived_from_the_model() -> None:
    views = plan_of(**{"backbone.image_size": 224}).config.views
    assert (views.local_count, views.local_size) == (6, 96)  # the paper's
    assert plan_of(**{"backbone.image_size": 160}).config.views.local_size == 64
    none = plan_of("views.local_count=0")
    assert (none.config.views.local_count, none.config.views.local_size) == (0, None)
    other = plan_of(**{"objective.name": "mocov2"}).config.views
    assert (other.local_count, other.local_size) == (0, None)


def test_a_transformer_gets_timms_option_only_where_small_views_need_it() -> None:
    flags = {"backbone.name": "vit_tiny_patch16_224", "backbone.image_size": 64}
    plan = plan_of(**flags)
    assert plan.config.views.local_size == 32 and plan.backbone.model_args["dynamic_img_size"] is True
    assert plan.backbone(torch.zeros(1, 3, 32, 32)).shape[2:] == (2, 2)
    assert "dynamic_img_size" not in plan_of("views.local_count=0", **flags).backbone.model_args


def test_models_that_take_one_size_alone_say_so() -> None:
    with pytest.raises(FgsslError, match=r"levit_128s takes .*224 px, but no local views of 112 px.*local_count=0"):
        plan_of(**{"backbone.name": "levit_128s"})


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (("objective.name=mocov2", "views.local_count=4"), "mocov2 has no use for views.local_count; .*dino"),
        (("backbone.freeze=backbone", "views.local_count=4"), "--freeze backbone has no use for views.local_count"),
        (("backbone.image_size=64", "views.local_size=64"), "views.local_size 64 is not below the image size 64"),
    ],
)
def test_small_views_that_cannot_be_are_refused(sets: tuple[str, ...], problem: str) -> None:
    with pytest.raises(FgsslError, match=problem):
        plan_of(*sets)


def test_a_step_in_parts_is_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    """Without BatchNorm of the batch and rationale: weights, teacher and centre after three steps."""
    states = []
    for parts in (1, 2):
        settings = {"training.accumulate": parts, "backbone.batch_norm": "rest", "rationale.enabled": False}
        trainer = tiny_trainer(tmp_path, **{"objective.name": "dino", "training.max_steps": 3, **settings})
        trainer.model.objective.centre.fill_(0.01)  # else the first step's is the mean of the part
        for step, batch in zip(range(3), trainer.batches(0), strict=False):
            assert batch.local is not None and batch.local.shape == (6, 8, 3, 32, 32)
            trainer.step(step, batch)
        state = trainer.model.state_dict()
        states.append({key: value for key, value in state.items() if ".score_" not in key})  # a part's mean is one
    torch.testing.assert_close(states[1], states[0], rtol=1e-3, atol=1e-5)


def test_frozen_and_on_a_transformer_it_runs(tmp_path: Path) -> None:
    frozen = ("--freeze", "backbone", "--set", "backbone.drop_path=")
    for options in (frozen, ("--backbone", "test_vit", "--set", "training.checkpoint_gradients=true")):
        run = tmp_path / options[1]
        words = ("--data", photos(), *TINY, *options, "--objective", "dino", "--max-steps", "2", "--output", run)
        outcome = fgssl("pretrain", *words)
        assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_two_processes_see_and_learn_what_one_does(tmp_path: Path) -> None:
    short = ("--objective", "dino", "--max-steps", "6", "--set", "optimizer.name=sgd", "--lr", "0.1")
    assert fgssl("pretrain", "--data", photos(), *OPTIONS, *short, "--output", tmp_path / "alone").code == 0
    process = launched("pass", tmp_path / "run", *short)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    one, two = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("alone", "run")
    )
    assert len(one) == 6
    for name in ("loss", "chance", "fit", "positive_similarity"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4, abs=1e-4), name
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert {"objective.centre", "objective.key_prototypes.weight"} <= first.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
