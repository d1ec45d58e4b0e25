"""BYOL, SimSiam and SimCLR against slow loops and closed forms; LARS against its formula; whole runs of each."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from run_results import assert_equal_encoders, metrics
from running import TINY, fgssl, photos, plain_run, shared
from safetensors.torch import load_file
from stopping import stopped_run
from tiny_moco import BATCH, CHANNELS, TinyBackbone, unit, views
from torch import Tensor, nn

from fgssl.config.resolve import load_config
from fgssl.config.schema import ObjectiveConfig, OptimizerConfig, optional_settings
from fgssl.errors import FgsslError
from fgssl.objectives import OBJECTIVES
from fgssl.objectives.base import Objective
from fgssl.objectives.methods.byol import BYOL, prediction_loss
from fgssl.objectives.methods.simclr import SimCLR, nt_xent
from fgssl.objectives.methods.simsiam import SimSiam, negative_cosine
from fgssl.objectives.momentum import update_momentum
from fgssl.objectives.relations import Relations
from fgssl.runs.encoder_file import load_encoder
from fgssl.training.model import build_optimizer
from fgssl.training.plan import make_plan

OTHERS = ("byol", "simsiam", "simclr", "dino")
ALL_BUT_MOCO = (*OTHERS, "nnclr", "stml")
SETTINGS = {
    "byol": {"momentum": 0.9, "momentum_end": 1.0, "predictor_hidden": 9},
    "simsiam": {"predictor_hidden": 3},
    "simclr": {"temperature": 0.2},
    "distill": {},
    "dino": {
        **{"momentum": 0.9, "momentum_end": 1.0, "temperature": 0.1, "prototypes": 64},
        **{"teacher_temperature_end": 0.04, "prototypes_rest": 0.1},
    },
    "mocov2": {"momentum": 0.9, "temperature": 0.2, "queue_size": 10},
    "nnclr": {"temperature": 0.2, "queue_size": 10, "predictor_hidden": 9},
    "stml": {"projector_hidden": None, "momentum": 0.9, "narrow_dim": 4, "group_size": 2, "bank_size": 200},
}


def build(name: str, **changes: object) -> Objective:
    settings = {"name": name, "projector_hidden": 7, "projector_dim": 8, **SETTINGS[name], **changes}
    torch.manual_seed(0)
    objective = OBJECTIVES[name](TinyBackbone(), OBJECTIVES[name].settings(**settings)).train()
    if "teacher" in objective.uses:
        objective.teacher = Relations(unit(BATCH, 8), teacher="00", seed=0)
    return objective


def cosine(first: Tensor, second: Tensor) -> float:
    """By hand, in double precision."""
    a, b = first.double().tolist(), second.double().tolist()
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths


# ---- the losses


def test_prediction_loss_is_the_squared_distance_and_trains_the_prediction_alone() -> None:
    prediction, target = unit(5, 8).requires_grad_(), unit(5, 8, seed=1).requires_grad_()
    loss = prediction_loss(prediction, target)
    assert float(loss.detach()) == pytest.approx(float((prediction - target).pow(2).sum(1).mean().detach()), rel=1e-5)
    loss.backward()
    assert prediction.grad is not None and target.grad is None
    assert float(prediction_loss(unit(3, 8), unit(3, 8))) == pytest.approx(0, abs=1e-6)
    assert float(prediction_loss(unit(3, 8), -unit(3, 8))) == pytest.approx(4)


def test_negative_cosine_is_the_loop_and_trains_the_prediction_alone() -> None:
    prediction, target = 3 * unit(5, 8).requires_grad_(), (0.1 * unit(5, 8, seed=1)).requires_grad_()
    expected = -sum(cosine(prediction[n].detach(), target[n].detach()) for n in range(5)) / 5
    loss = negative_cosine(prediction, target)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert target.grad is None


@pytest.mark.parametrize("twice", [False, True])
def test_nt_xent_is_the_loop_over_all_anchors(twice: bool) -> None:
    """Equation 1 of the paper; an image that was drawn twice is not its own negative."""
    first, second = unit(4, 8), unit(4, 8, seed=1)
    index = torch.tensor([0, 1, 2, 0 if twice else 3])
    everything, owners = torch.cat([first, second]).double(), index.repeat(2).tolist()
    total = 0.0
    for anchor in range(8):
        positive = (anchor + 4) % 8
        scores = [math.exp(float(everything[anchor] @ other) / 0.5) for other in everything]
        rest = [s for k, s in enumerate(scores) if owners[k] != owners[anchor]]
        total -= math.log(scores[positive] / (scores[positive] + sum(rest)))
    loss, similarity = nt_xent(first, second, torch.cat([first, second]), index, index.repeat(2), temperature=0.5)
    assert float(loss) == pytest.approx(total / 8, rel=1e-5)
    assert float(similarity) == pytest.approx(float((first * second).sum(1).mean()), rel=1e-5)


# ---- a step


def head(module: nn.Module, feature_map: Tensor) -> Tensor:
    return module(feature_map.mean((2, 3)))


def test_byols_step_predicts_each_view_from_the_other() -> None:
    model = build("byol")
    model(views(0), torch.arange(BATCH))
    twin = copy.deepcopy(model)
    output = model(views(1), torch.arange(BATCH))
    total = 0.0
    with torch.no_grad():
        maps = [twin.backbone(view) for view in views(1)]
        predicted = [twin.predictor(head(twin.projector, one)) for one in maps]
        for source, target in ((twin.backbone, twin.key_backbone), (twin.projector, twin.key_projector)):
            for trained, slow in zip(source.parameters(), target.parameters(), strict=True):
                slow.mul_(0.9).add_(0.1 * trained)
        targets = [head(twin.key_projector, twin.key_backbone(view)) for view in views(1)]
    for n in range(BATCH):
        total += 2 - 2 * cosine(predicted[0][n], targets[1][n]) + 2 - 2 * cosine(predicted[1][n], targets[0][n])
    assert output.loss.item() == pytest.approx(total / BATCH, rel=1e-4)
    assert output.metrics["positive_similarity"].item() == pytest.approx(1 - total / BATCH / 4, rel=1e-4)


def test_simsiams_step_is_the_mean_of_both_directions() -> None:
    model = build("simsiam")
    twin = copy.deepcopy(model)
    loss = model(views(1), torch.arange(BATCH)).loss.item()
    with torch.no_grad():
        targets = [head(twin.projector, twin.backbone(view)) for view in views(1)]
        predicted = [twin.predictor(target) for target in targets]
    total = sum(cosine(predicted[0][n], targets[1][n]) + cosine(predicted[1][n], targets[0][n]) for n in range(BATCH))
    assert loss == pytest.approx(-total / 2 / BATCH, rel=1e-4)


def test_a_constant_simclr_is_at_chance() -> None:
    model = build("simclr")
    assert model.chance_level() is None  # no step yet: nobody knows how many candidates there will be
    nn.init.zeros_(model.backbone.last.weight)
    loss = model(views(0), torch.arange(BATCH)).loss.item()
    assert loss == pytest.approx(math.log(2 * BATCH - 1), rel=1e-6)
    assert model.chance_level() == pytest.approx(math.log(2 * BATCH - 1))


def test_losses_that_do_not_tell_have_no_chance_level() -> None:
    assert build("byol").chance_level() is None and build("simsiam").chance_level() is None


@pytest.mark.parametrize("name", ALL_BUT_MOCO)
def test_gradients_reach_all_that_is_trained_and_nothing_else(name: str) -> None:
    model = build(name)
    output = model(views(0), torch.arange(BATCH))
    output.loss.backward()
    for key, parameter in model.named_parameters():
        if key.startswith("key_"):
            assert not parameter.requires_grad and parameter.grad is None
        else:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key
    assert model.backbone.stem.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_the_loss_depends_on_the_returned_maps_alone(name: str) -> None:
    """GradCAM needs dL/dF of those maps: with average pooling the same vector at every place, also of the second."""
    model = build(name)
    output = model(views(0), torch.arange(BATCH))
    assert len(output.feature_maps) == (1 if name == "mocov2" else 2)
    for feature_map in output.feature_maps:
        assert feature_map.shape == (BATCH, CHANNELS, 4, 4)
        (gradient,) = torch.autograd.grad(output.loss, feature_map, retain_graph=True)
        assert gradient.abs().sum() > 0
        assert torch.allclose(gradient, gradient[:, :, :1, :1].expand_as(gradient), atol=1e-7)


@pytest.mark.parametrize("name", ALL_BUT_MOCO)
def test_another_pooling_is_used_in_all_of_the_loss(name: str) -> None:
    """Pooled from one corner, the rest of the maps gets no gradient."""
    model = build(name)
    model.pool = lambda feature_map: feature_map[:, :, 0, 0]
    output = model(views(0), torch.arange(BATCH))
    for feature_map in output.feature_maps:
        (gradient,) = torch.autograd.grad(output.loss, feature_map, retain_graph=True)
        assert gradient[:, :, 0, 0].abs().sum() > 0 and gradient[:, :, 1:].abs().sum() == 0


@pytest.mark.parametrize("name", ALL_BUT_MOCO)
def test_the_state_holds_all_that_a_resumed_run_needs(name: str) -> None:
    model = build(name)
    for seed in range(3):
        model(views(seed), torch.arange(BATCH))
    resumed = build(name)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    index = torch.arange(BATCH)
    assert model(views(9), index).loss.item() == resumed(views(9), index).loss.item()
    assert model.chance_level() == resumed.chance_level()


@pytest.mark.parametrize("name", ALL_BUT_MOCO)
def test_eval_changes_nothing(name: str) -> None:
    model = build(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = [model(views(1), torch.arange(BATCH)).loss.item() for _ in range(2)]
    assert losses[0] == losses[1]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- the target of BYOL


def test_the_momentum_rises_by_half_a_cosine() -> None:
    model = build("byol", momentum=0.996)
    for progress, expected in ((0.0, 0.996), (0.5, 0.998), (1.0, 1.0), (1 / 3, 1 - 0.004 * 0.75)):
        model.progress = progress
        assert model.current_momentum() == pytest.approx(expected, abs=1e-12)
    still = build("mocov2", momentum=0.99, momentum_end=0.99)
    for progress in (0.0, 0.3, 1.0):
        still.progress = progress
        assert still.current_momentum() == 0.99  # to the last bit


@pytest.mark.parametrize("progress", [0.0, 0.7, 1.0])
def test_the_target_follows_at_the_momentum_of_the_step(progress: float) -> None:
    model = build("byol")
    with torch.no_grad():
        for parameter in (*model.backbone.parameters(), *model.projector.parameters()):
            parameter.add_(0.1)
    before, model.progress = copy.deepcopy(model), progress
    model(views(0), torch.arange(BATCH))
    momentum = 1 - (1 - 0.9) * (math.cos(math.pi * progress) + 1) / 2
    expected = copy.deepcopy(before.key_projector)
    update_momentum(before.projector, expected, momentum)
    for ours, theirs in zip(model.key_projector.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)
    same = torch.equal(model.key_projector[0].weight, before.key_projector[0].weight)
    assert same == (progress == 1.0)


def test_averaged_norms_of_the_target_leak_nothing() -> None:
    model = build("byol", key_norm="running")
    model(views(0), torch.arange(BATCH))
    image, quiet, loud = views(3)[1][:1], views(4)[0], 50 * views(5)[0] + 9
    first, second = (model.keys(torch.cat([image, others]))[0] for others in (quiet, loud))
    assert torch.allclose(first, second, atol=1e-6)


# ---- they learn


@pytest.mark.parametrize("name", OTHERS)
def test_training_tells_images_apart(name: str) -> None:
    """Twelve images of noise, mild noise as views: afterwards a view's nearest neighbour is its image's other view."""
    model = build(name, projector_hidden=32, projector_dim=16, **({"predictor_hidden": 32} if name == "byol" else {}))
    images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 5e-3)
    losses = []
    for number in range(80):
        model.progress = number / 80
        pair = tuple(images + 0.3 * torch.randn(12, 3, 8, 8, generator=noise) for _ in range(2))
        loss = model(pair, torch.arange(12)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < sum(losses[:10]) - 1
    with torch.no_grad():
        first, second = (
            nn.functional.normalize(
                model.backbone(images + 0.3 * torch.randn(12, 3, 8, 8, generator=noise)).mean((2, 3))
            )
            for _ in range(2)
        )
    assert ((first @ second.T).argmax(1) == torch.arange(12)).float().mean() > 0.7


# ---- LARS


def test_lars_is_its_formula_with_a_momentum_buffer() -> None:
    """Five steps of You et al. 2017 by hand: rates adapted to weights alone, the momentum kept between steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    config = OptimizerConfig(name="lars", lr=0.5, weight_decay=0.1, momentum=0.9)
    optimizer = build_optimizer(model, config, torch.device("cpu"))
    weights = [p.detach().double().clone() for p in model.parameters()]
    buffers = [torch.zeros_like(w) for w in weights]
    for seed in range(5):
        inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(inputs).pow(2).sum().backward()
        for place, parameter in enumerate(model.parameters()):
            gradient, weight = parameter.grad.double(), weights[place]
            if weight.ndim > 1:
                ratio = 0.001 * weight.norm() / (gradient.norm() + 0.1 * weight.norm())
                gradient = ratio * (gradient + 0.1 * weight)
            buffers[place] = 0.9 * buffers[place] + gradient
            weights[place] = weight - 0.5 * buffers[place]
        optimizer.step()
    for ours, theirs in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(ours.detach().double(), theirs, rtol=1e-4, atol=1e-5)


def test_lars_adapts_its_rates_also_without_weight_decay() -> None:
    model = nn.Linear(4, 3)
    optimizer = build_optimizer(model, OptimizerConfig(name="lars", lr=1.0, weight_decay=0.0), torch.device("cpu"))
    before = model.weight.detach().clone()
    (1e6 * model(torch.ones(2, 4))).sum().backward()
    optimizer.step()
    assert float((model.weight.detach() - before).norm()) == pytest.approx(0.001 * float(before.norm()), rel=1e-3)


# ---- defaults


def plan_of(name: str, **settings: object) -> object:
    flags = {"data.source": str(photos()), "training.batch_size": 8, "training.device": "cpu", "training.workers": 0}
    flags |= {"objective.name": name, "backbone.name": "resnet10t", "backbone.pretrained": False}
    if "teacher" in OBJECTIVES[name].uses:
        flags["objective.teacher"] = str(plain_run())
    return make_plan(load_config(flags={**flags, **settings}), load_weights=False)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_objective_has_its_own_settings_and_no_others(name: str) -> None:
    plan = plan_of(name)
    for key in optional_settings():
        value = getattr(plan.config.objective, key)
        if key == "teacher_backbone":  # of weights that do not tell it
            assert value is None
        elif key in OBJECTIVES[name].uses:
            assert value is not None, key
        elif getattr(ObjectiveConfig(), key) is None:
            assert value is None and plan.origins[f"objective.{key}"] == f"derived: {name} has none"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mocov2", ("sgd", 0.03, 1e-4, 0.0)),
        ("byol", ("lars", 0.15, 1.5e-6, 10.0)),  # the paper's, section 4: 0.3 x 128 / 256, 10 epochs of 100
        ("simsiam", ("sgd", 0.025, 1e-4, 0.0)),
        ("simclr", ("lars", 0.15, 1e-6, 10.0)),
        ("nnclr", ("lars", 0.15, 1e-6, 10.0)),
        ("distill", ("adamw", 3e-4 * 128 / 24, 0.05, 0.0)),  # of any batch
    ],
)
def test_on_trained_weights_each_has_the_optimiser_of_its_paper(name: str, expected: tuple[object, ...]) -> None:
    plan = plan_of(name, **{"backbone.pretrained": True, "training.batch_size": 24, "training.epochs": 100})
    found = plan.config.optimizer
    assert (found.name, found.lr * 128 / 24, found.weight_decay, found.warmup_epochs) == pytest.approx(expected)
    assert plan_of(name).config.optimizer.name == "adamw"


def test_widths_are_the_papers_for_2048_channels() -> None:
    from fgssl.config.defaults import Draft, RunFacts, derive_objective

    papers = {"byol": (4096, 256, 4096), "simsiam": (2048, 2048, 512), "simclr": (2048, 128, None)}
    papers |= {"nnclr": (2048, 256, 4096), "stml": (None, 1024, None)}
    for name, widths in papers.items():
        values: dict[str, object] = {f"objective.{key}": None for key in ObjectiveConfig.__dataclass_fields__}
        draft = Draft(values | {"objective.name": name, "training.batch_size": 128}, {})
        derive_objective(draft, RunFacts(channels=2048, images=5994, total_steps=4600, started=True))
        keys = ("projector_hidden", "projector_dim", "predictor_hidden")
        assert tuple(draft[f"objective.{key}"] for key in keys) == widths
        if name == "byol":
            assert (draft["objective.momentum"], draft["objective.momentum_end"]) == (0.996, 1.0)


def test_settings_of_another_objective_are_refused_by_name() -> None:
    with pytest.raises(
        FgsslError, match=r"byol has no objective.temperature, objective.queue_size; .*mocov2 or nnclr or simclr"
    ):
        load_config(sets=["objective.name=byol", "objective.temperature=0.1", "objective.queue_size=64"])
    with pytest.raises(FgsslError, match=r"simclr has no objective.batch_negatives; .*--objective mocov2"):
        load_config(sets=["objective.name=simclr", "objective.batch_negatives=true"])


# ---- whole runs


def run_of(name: str) -> Path:
    """Six steps with rationale, LARS for BYOL."""

    def make(run: Path) -> None:
        outcome = fgssl("pretrain", "--data", photos(), *TINY, *options_of(name), "--output", run)
        assert outcome.code == 0, outcome.err

    return shared(f"run of {name}", make)


def options_of(name: str) -> tuple[str, ...]:
    more = ("--set", "optimizer.name=lars") if name == "byol" else ()
    hidden = ("--set", "objective.projector_dim=16" if name == "stml" else "objective.projector_hidden=16")
    return ("--objective", name, *hidden, *more)


@pytest.mark.parametrize("name", ALL_BUT_MOCO)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run", (*TINY, *options_of(name)))
    assert fgssl("pretrain", "--resume", run).code == 0
    assert_equal_encoders(run_of(name), run)
    assert metrics(run_of(name)) == metrics(run)


@pytest.mark.parametrize("name", OTHERS)
def test_the_log_has_a_chance_level_where_there_is_one(name: str) -> None:
    chances = [row["chance"] for row in metrics(run_of(name))]
    known = {"simclr": math.log(15), "dino": math.log(24)}  # of 24 images
    assert chances == [pytest.approx(known[name]) if name in known else None] * 3


@pytest.mark.parametrize("name", OTHERS)
def test_gradcam_of_the_encoder_file_is_autograd_through_the_written_out_loss(name: str) -> None:
    """The positive is the mirror image's projection; negatives are stored projections where the loss has any."""
    encoder = load_encoder(str(run_of(name)))
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    cams = encoder.loss_gradcam(images)
    assert cams.max() > 0

    def pooled(feature_map: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            weights = encoder.attention(feature_map.detach())  # the objective pools by the map, a constant
        return (feature_map * weights[:, None]).sum((2, 3))

    for image, cam in zip(images, cams, strict=True):
        with torch.no_grad():
            feature_map = encoder.backbone(encoder.normalize(image[None]))
            mirror = encoder.projector(pooled(encoder.backbone(encoder.normalize(image[None].flip(-1)))))[0]
        feature_map.requires_grad_()
        out = encoder.projector(pooled(feature_map))
        out = (out if encoder.predictor is None else encoder.predictor(out))[0]
        similarity = (out / out.norm()) @ (mirror / mirror.norm())
        if name == "simclr":
            scores = torch.cat([similarity[None], encoder.keys @ (out / out.norm())])
            loss = -torch.log_softmax(scores / encoder.config.objective.temperature, 0)[0]
        elif name == "dino":
            shares = torch.softmax(encoder.keys @ (mirror / mirror.norm()) / 0.04, 0)
            loss = -shares @ torch.log_softmax(encoder.keys @ (out / out.norm()) / 0.1, 0)
        else:
            loss = 2 - 2 * similarity if name == "byol" else -similarity
        (gradient,) = torch.autograd.grad(loss, feature_map)
        expected = (feature_map * -gradient).sum(1)[0].clamp(min=0)  # sign "lower"
        torch.testing.assert_close(cam, expected.detach(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_the_encoder_file_holds_the_heads_that_gradcam_needs(name: str, tmp_path: Path) -> None:
    tensors = load_file(run_of(name) / "encoder.safetensors")
    assert any(key.startswith("predictor.") for key in tensors) == (name in ("byol", "simsiam"))
    assert ("keys" in tensors) == (name in ("simclr", "dino"))
    picture = next((photos() / "test").rglob("*.jpg"))
    sheet = tmp_path / "sheet.png"
    assert (
        fgssl("visualize", picture, "--checkpoint", run_of(name), "--output", sheet).code == 0 and sheet.stat().st_size
    )


def test_they_are_registered() -> None:
    assert (OBJECTIVES["byol"], OBJECTIVES["simsiam"], OBJECTIVES["simclr"]) == (BYOL, SimSiam, SimCLR)
