"""Probe, neighbours and few-shot against scikit-learn, slow loops and cases with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fgssl.errors import FgsslError
from fgssl.evaluation.probing.classifiers import Sets, few_shot, knn_classify, linear_probe
from fgssl.evaluation.probing.linear import fit_logistic
from fgssl.evaluation.probing.splits import stratified_fraction, stratified_split


def blobs(
    images: int, width: int, classes: int, *, noise: float = 1.0, common: float = 0.5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Noisy clusters around random centres, on a common offset as features after ReLU have."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % classes
    centres = torch.randn(classes, width, generator=generator)
    return centres[labels] + noise * torch.randn(images, width, generator=generator) + common, labels


# logistic regression ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "width"), [(300, 20), (60, 150)])
def test_fit_equals_scikit_learn(images: int, width: int) -> None:
    features, labels = blobs(images, width, 6, noise=1.5)
    features = torch.nn.functional.normalize(features.double())
    costs = [0.1, 3.0, 100.0]
    models = fit_logistic(features, labels, costs=costs, tolerance=1e-12)
    assert models.converged
    for place, cost in enumerate(costs):
        theirs = LogisticRegression(C=cost, tol=1e-10, max_iter=10_000).fit(features.numpy(), labels.numpy())
        ours = torch.softmax(features @ models.weight[place] + models.bias[place], dim=1)
        np.testing.assert_allclose(ours, theirs.predict_proba(features.numpy()), atol=2e-5)
        np.testing.assert_allclose(models.weight[place].T, theirs.coef_, atol=1e-3 * np.abs(theirs.coef_).max())


def test_members_of_a_grid_do_not_touch_each_other() -> None:
    features, labels = blobs(120, 10, 4)
    features = features.double()
    together = fit_logistic(features, labels, costs=[0.1, 1.0, 1000.0], tolerance=1e-8)
    for place, cost in enumerate([0.1, 1.0, 1000.0]):
        alone = fit_logistic(features, labels, costs=[cost], tolerance=1e-8)
        np.testing.assert_allclose(together.weight[place], alone.weight[0], rtol=1e-2, atol=1e-3)


def test_chunks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = blobs(100, 8, 5)
    whole = fit_logistic(features.double(), labels, costs=[1.0])
    monkeypatch.setattr("fgssl.evaluation.probing.linear.CHUNK_BYTES", 1000)
    np.testing.assert_allclose(fit_logistic(features.double(), labels, costs=[1.0]).weight, whole.weight)


def test_the_default_tolerance_has_the_exact_predictions() -> None:
    features, labels = blobs(600, 32, 10, noise=2.0)
    features = torch.nn.functional.normalize(features)
    rough = fit_logistic(features, labels, costs=[1, 100, 10_000])
    fine = fit_logistic(features.double(), labels, costs=[1, 100, 10_000], tolerance=1e-10)
    for place in range(3):
        ours = (features @ rough.weight[place] + rough.bias[place]).argmax(1)
        exact = (features.double() @ fine.weight[place] + fine.bias[place]).argmax(1)
        assert float((ours == exact).double().mean()) > 0.985


def test_constant_features_have_no_weights() -> None:
    model = fit_logistic(torch.ones(9, 3), torch.tensor([0] * 6 + [1] * 3), costs=[1.0], tolerance=1e-10)
    assert not model.weight.any()
    assert torch.softmax(model.bias[0], 0).tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-4)


# linear probe -----------------------------------------------------------------------------------------------------


def test_probe_agrees_with_scikit_learn_at_the_same_cost() -> None:
    features, labels = blobs(900, 24, 12, noise=2.0)
    train, test, train_labels, test_labels = features[:600], features[600:], labels[:600], labels[600:]
    result = linear_probe(Sets(train, train_labels, test, test_labels))
    unit = torch.nn.functional.normalize
    theirs = LogisticRegression(C=result.cost, max_iter=5000, tol=1e-8)
    theirs.fit(unit(train.double()).numpy(), train_labels.numpy())
    expected = 100 * theirs.score(unit(test.double()).numpy(), test_labels.numpy())
    assert result.top1 == pytest.approx(expected, abs=0.7)  # two of 300 test images
    assert result.converged and result.top5 > result.top1
    assert dict(result.tried)[result.cost] == max(accuracy for _, accuracy in result.tried)
    assert "120 of 600" in result.protocol


def test_probe_does_not_look_at_the_test_labels_to_choose() -> None:
    features, labels = blobs(200, 8, 4, noise=2.0)
    honest = linear_probe(Sets(features[:100], labels[:100], features[100:], labels[100:]))
    shuffled = linear_probe(Sets(features[:100], labels[:100], features[100:], labels[100:].flip(0)))
    assert honest.cost == shuffled.cost and torch.equal(honest.predictions, shuffled.predictions)


def test_probe_is_deterministic_and_reports_progress() -> None:
    features, labels = blobs(120, 8, 4)
    seen: list[tuple[int, int]] = []
    first = linear_probe(Sets(features, labels, features, labels), costs=[1, 10], progress=lambda *at: seen.append(at))
    again = linear_probe(Sets(features, labels, features, labels), costs=[10, 1])
    assert first.to_dict() == again.to_dict() and torch.equal(first.predictions, again.predictions)
    assert seen[-1] == (3, 3)


def test_probe_result_in_detail() -> None:
    # far apart, but the test images of class 2 are class 1's: top-1 2/3, and the only confusion is 2 -> 1
    train, labels = blobs(90, 6, 3, noise=0.01)
    test, test_labels = train[:30].clone(), labels[:30]
    test[test_labels == 2] = test[test_labels == 1]
    result = linear_probe(Sets(train, labels, test, test_labels), classes=5)
    assert result.top1 == pytest.approx(200 / 3) and result.top5 == 100
    assert result.mean_per_class == pytest.approx(200 / 3)
    np.testing.assert_allclose(result.per_class, [100, 100, 0, np.nan, np.nan])
    assert result.confusions == ((2, 1, 10),)
    assert torch.equal(result.correct, test_labels != 2)


def test_probe_of_classes_with_one_image_or_unseen() -> None:
    features, labels = blobs(40, 16, 4, noise=0.1)
    once = linear_probe(Sets(features[:4], labels[:4], features[4:], labels[4:]))  # one image a class
    assert once.tried == () and "not chosen" in once.protocol and once.top1 == 100
    unseen = linear_probe(
        Sets(features, labels, torch.cat([features, features[:10]]), torch.cat([labels, torch.full((10,), 7)]))
    )
    assert unseen.top1 == pytest.approx(80) and unseen.top5 == pytest.approx(80)  # class 7 is never right


def test_probe_names_bad_input() -> None:
    features, labels = blobs(20, 4, 2)
    with pytest.raises(FgsslError, match="one class"):
        linear_probe(Sets(features, torch.zeros(20, dtype=torch.int64), features, labels))
    with pytest.raises(FgsslError, match="train features are 4 wide and test features 3"):
        linear_probe(Sets(features, labels, features[:, :3], labels))
    with pytest.raises(FgsslError, match="label 1 with 1 classes"):
        linear_probe(Sets(features, labels, features, labels), classes=1)
    with pytest.raises(FgsslError, match="label -1"):
        linear_probe(Sets(features, labels - 1, features, labels))
    with pytest.raises(FgsslError, match="test features: row 2"):
        linear_probe(Sets(features, labels, features.index_fill(0, torch.tensor([2]), math.nan), labels))
    with pytest.raises(FgsslError, match="positive"):
        linear_probe(Sets(features, labels, features, labels), costs=[0.0, 1.0])


# nearest neighbours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 500])
def test_neighbours_equal_a_slow_loop(k: int) -> None:
    features, labels = blobs(150, 6, 5, noise=1.5)
    train, test = features[:100], features[100:]
    unit = torch.nn.functional.normalize
    expected = []
    for row in unit(test.double()) @ unit(train.double()).T:
        votes = np.zeros(5)
        for place in row.argsort(descending=True)[:k]:
            votes[labels[place]] += math.exp(float(row[place]) / 0.07)
        expected.append(int(votes.argmax()))
    result = knn_classify(Sets(train, labels[:100], test, labels[100:]), k=k)
    assert result.predictions.tolist() == expected
    assert result.top1 == pytest.approx(100 * np.mean(np.array(expected) == labels[100:].numpy()))
    assert ("100 nearest" in result.protocol and "500 asked" in result.protocol) == (k == 500)


def test_neighbours_vote_by_weight_not_by_number() -> None:
    # one very near neighbour of class 1 outvotes two of class 0 at a low temperature, not at a high one
    train = torch.tensor([[0.6, 0.8], [0.6, -0.8], [1.0, 0.0]])
    arguments = (train, torch.tensor([0, 0, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert knn_classify(Sets(*arguments), k=3, temperature=0.07).top1 == 100
    assert knn_classify(Sets(*arguments), k=3, temperature=100).top1 == 0
    assert knn_classify(Sets(*arguments), k=3, temperature=1e-5).top1 == 100  # no overflow


def test_neighbours_name_bad_input() -> None:
    features, labels = blobs(10, 4, 2)
    for keywords in ({"k": 0}, {"temperature": 0.0}):
        with pytest.raises(FgsslError, match="nearest neighbours with"):
            knn_classify(Sets(features, labels, features, labels), **keywords)


# few-shot ---------------------------------------------------------------------------------------------------------


def test_few_shot_of_separate_and_of_equal_features() -> None:
    features, labels = blobs(100, 16, 10, noise=0.01)
    result = few_shot(features, labels, shots=1, ways=None, episodes=20)
    assert result.accuracy == (100, 100, 100) and result.ways == 10 and result.skipped == 0
    # equal features go to the first class: chance, in every episode
    assert few_shot(torch.ones(100, 16), labels, ways=5, episodes=5).episodes.tolist() == pytest.approx([20] * 5)


def test_few_shot_on_a_line_has_its_closed_form() -> None:
    # two classes on two directions, a quarter of each class on the other's direction. 1 shot: an episode is right on
    # 3/4 of the images if both supports are true, and on chance in expectation over swapped or equal supports
    own = torch.cat([torch.ones(300), torch.zeros(100)]).bool()
    features = torch.cat([torch.where(own[:, None], torch.eye(2)[c], torch.eye(2)[1 - c]) for c in (0, 1)])
    labels = torch.arange(2).repeat_interleave(400)
    result = few_shot(features, labels, shots=1, ways=2, episodes=1500, seed=1)
    expected = 100 * (9 / 16 * 3 / 4 + 1 / 16 * 1 / 4 + 6 / 16 * 1 / 2)
    error = float(result.episodes.std()) / 1500**0.5
    assert result.accuracy.value == pytest.approx(expected, abs=4 * error)
    assert result.accuracy.high - result.accuracy.low == pytest.approx(2 * 1.96 * error)


def test_more_shots_help_and_seeds_repeat() -> None:
    features, labels = blobs(400, 16, 8, noise=2.0, common=0)
    one, five = (few_shot(features, labels, shots=shots, episodes=100) for shots in (1, 5))
    assert five.accuracy.low > one.accuracy.high
    assert torch.equal(one.episodes, few_shot(features, labels, shots=1, episodes=100).episodes)
    assert not torch.equal(one.episodes, few_shot(features, labels, shots=1, episodes=100, seed=1).episodes)


def test_few_shot_counts_small_classes_and_names_bad_input() -> None:
    features, labels = blobs(43, 4, 4)
    labels[40:] = torch.tensor([9, 9, 8])
    assert few_shot(features, labels, shots=2, ways=None, episodes=2).skipped == 2
    with pytest.raises(FgsslError, match="4 classes have more than 2 images, 5 are needed"):
        few_shot(features, labels, shots=2)
    with pytest.raises(FgsslError, match="0 shots"):
        few_shot(features, labels, shots=0)


# stratified choices -----------------------------------------------------------------------------------------------

label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(label_lists, st.floats(0.01, 0.99), st.integers(0, 3))
def test_split_is_a_partition_that_respects_classes(labels: list[int], fraction: float, seed: int) -> None:
    classes = torch.tensor(labels)
    kept, held = stratified_split(classes, fraction, seed=seed)
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    for label in set(labels):
        size = labels.count(label)
        in_held = int((classes[held] == label).sum())
        assert in_held == (0 if size == 1 else min(max(1, int(fraction * size + 0.5 + 1e-9)), size - 1))
    assert torch.equal(held, stratified_split(classes, fraction, seed=seed).held)


@settings(max_examples=60, deadline=None)
@given(label_lists, st.floats(0.01, 1))
def test_fraction_keeps_every_class_or_says_so(labels: list[int], fraction: float) -> None:
    classes = torch.tensor(labels)
    if round(fraction * len(labels)) < len(set(labels)):
        with pytest.raises(FgsslError, match="without one"):
            stratified_fraction(classes, fraction)
        return
    rows = stratified_fraction(classes, fraction)
    assert rows.tolist() == sorted(set(rows.tolist()))
    for label in set(labels):
        size = labels.count(label)
        assert int((classes[rows] == label).sum()) == max(1, int(fraction * size + 0.5 + 1e-9))


def test_fraction_by_hand() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 3)
    rows = stratified_fraction(labels, 0.29)
    assert labels[rows].bincount().tolist() == [15, 3, 1]  # 14.5 rounds up, 2.9 up, 0.87 up
    assert torch.equal(stratified_fraction(labels, 1.0), torch.arange(63))
    assert not torch.equal(rows, stratified_fraction(labels, 0.29, seed=1))
    with pytest.raises(FgsslError, match=r"use a fraction of 0\.0477 or more"):
        stratified_fraction(labels, 0.01)
    for wrong in (0, 1.5, math.nan):
        with pytest.raises(FgsslError, match="a fraction of"):
            stratified_fraction(labels, wrong)


# reports from other tools -----------------------------------------------------------------------------------------


def test_a_class_without_a_vote_is_not_among_the_five_best() -> None:
    """facebookresearch/dino #89: with fewer voters than five, classes that nobody voted for counted as found."""
    train, labels = torch.eye(8), torch.arange(8)
    result = knn_classify(Sets(train, labels, train[:4], torch.tensor([0, 2, 1, 7])), k=1)
    assert (result.top1, result.top5) == (25, 25)
    two = knn_classify(
        Sets(train + 0.01, labels, torch.tensor([[2.0, 1, 0, 0, 0, 0, 0, 0]] * 2), torch.tensor([1, 2])), k=2
    )
    assert (two.top1, two.top5) == (0, 50)


def test_neighbours_do_not_depend_on_the_length_of_features() -> None:
    """lightly #1425: a search by inner product prefers long features."""
    features, labels = blobs(120, 6, 4, noise=1.5)
    scale = torch.linspace(0.01, 100, 120)[:, None]
    first = knn_classify(Sets(features[:80], labels[:80], features[80:], labels[80:]), k=5)
    second = knn_classify(Sets((scale * features)[:80], labels[:80], (scale * features)[80:], labels[80:]), k=5)
    assert torch.equal(first.predictions, second.predictions)
