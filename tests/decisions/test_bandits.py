from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.config import ConfigError
from pipeline.config.fusion import FusionSettings, InputSizes, Modality
from pipeline.config.offline import ClickLoss
from pipeline.decisions.bandits import Chance, LinUCB, Thompson, fixed_features
from pipeline.decisions.supervised import Fit, click_loss, cross_fitted, inverse_propensities, learn_clicks
from pipeline.models.fusion.model import FusionModel
from pipeline.models.fusion.samples import Preprocessor, Sample
from pipeline.records import Audio, Image
from tests.decisions.test_estimators import log_of


def test_linucb_by_hand() -> None:
    bandit = LinUCB(2, 2, alpha=2.0)
    one, other = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)
    # It knows nothing: both bounds are alpha |x| = 2.
    assert bandit.probabilities(one[None]).tolist() == [[0.5, 0.5]]
    bandit.update(one, 0, 1.0)
    # A = diag(2, 1), b = (1, 0): theta_0 = (1/2, 0), width sqrt(1/2); action 1 is as before.
    assert bandit.means(one[None]).tolist() == [[0.5, 0.0]]
    assert bandit.widths(one[None])[0].tolist() == pytest.approx([np.sqrt(0.5), 1.0])
    # 1/2 + 2 sqrt(1/2) = 1.914 is less than 2: it explores; with alpha 1, 1.207 is more than 1: it does not.
    assert bandit.probabilities(one[None]).tolist() == [[0.0, 1.0]]
    bandit.alpha = 1.0
    assert bandit.probabilities(one[None]).tolist() == [[1.0, 0.0]]
    assert bandit.probabilities(other[None]).tolist() == [[0.5, 0.5]]


def test_the_kept_inverse_is_that_of_all_updates_together() -> None:
    dice = np.random.default_rng(0)
    bandit, seen = LinUCB(2, 3, ridge=0.5), dice.standard_normal((20, 3)).astype(np.float32)
    rewards = dice.random(20)
    for x, reward in zip(seen, rewards, strict=True):
        bandit.update(x, 1, float(reward))
    gram = 0.5 * np.eye(3) + seen.T.astype(float) @ seen
    assert bandit.inverse[1] == pytest.approx(np.linalg.inv(gram))
    assert bandit.theta[1] == pytest.approx(np.linalg.solve(gram, seen.T @ rewards), abs=1e-6)
    assert bandit.inverse[0] == pytest.approx(2 * np.eye(3))


@pytest.mark.parametrize("kind", [LinUCB, Thompson])
def test_bandits_learn_which_action_suits_a_state(kind: type[LinUCB]) -> None:
    dice = np.random.default_rng(1)
    bandit, states = kind(3, 3), np.eye(3, dtype=np.float32)
    for _ in range(300):
        state = int(dice.integers(3))
        action = int(bandit.probabilities(states[state : state + 1])[0].argmax())
        bandit.update(states[state], action, float(dice.random() < (0.9 if action == state else 0.1)))
    assert bandit.means(states).argmax(axis=1).tolist() == [0, 1, 2]


def test_thompson_says_how_often_each_action_would_be_drawn() -> None:
    bandit = Thompson(2, 1, alpha=1.0, num_draws=20_000)
    x = np.array([1.0], np.float32)
    for _ in range(3):
        bandit.update(x, 0, 1.0)
    # theta_0 ~ N(3/4, 1/4), theta_1 ~ N(0, 1): P(theta_0 > theta_1) = Phi(0.75 / sqrt(1.25)) = 0.7488.
    assert bandit.probabilities(x[None])[0].tolist() == pytest.approx([0.7488, 0.2512], abs=0.01)


def test_bandits_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="ridge=0"):
        LinUCB(2, 2, ridge=0.0)
    with pytest.raises(ConfigError, match="alpha=-1"):
        LinUCB(2, 2, alpha=-1.0)
    assert Chance(4).probabilities([None] * 2).tolist() == [[0.25] * 4] * 2


def test_features_are_fixed_and_see_each_modality() -> None:
    rng = np.random.default_rng(0)
    sound = Audio(rng.standard_normal(8000).astype(np.float32) * 0.1, 16_000)
    samples = [
        Sample("text", text="A red ring, please!"),
        Sample("same", text="a RED ring please"),
        Sample("sound", audio=sound),
        Sample("picture", image=Image(rng.integers(0, 255, (24, 24, 3)).astype(np.uint8))),
    ]
    features = fixed_features(samples)
    assert np.linalg.norm(features, axis=1).tolist() == pytest.approx([1.0] * 4)
    assert features[0].tolist() == features[1].tolist()
    assert fixed_features(samples[2:3])[0].tolist() == features[2].tolist()
    assert len({tuple(row) for row in features.tolist()}) == 3


def test_the_losses_of_clicks_by_hand() -> None:
    # Sigmoids 1/2, 3/4 and 1/2, 1/2; the softmax 1/4, 3/4 and 1/2, 1/2.
    logits = torch.log(torch.tensor([[1.0, 3.0], [1.0, 1.0]]))
    given = {"logits": logits, "actions": torch.tensor([1, 0]), "rewards": torch.tensor([1.0, 0.0])}
    alike = torch.ones(2)
    regression = click_loss(ClickLoss.REGRESSION, **given, weights=alike)
    assert regression.item() == pytest.approx((0.25**2 + 0.5**2) / 2)
    weighted = click_loss(ClickLoss.REGRESSION, **given, weights=torch.tensor([2.0, 0.0]))
    assert weighted.item() == pytest.approx(2 * 0.25**2 / 2)
    assert click_loss(ClickLoss.CROSS_ENTROPY, **given, weights=alike).item() == pytest.approx(-np.log(0.75), abs=1e-6)


def test_inverse_propensities_are_clipped_and_have_mean_one() -> None:
    weights = inverse_propensities(log_of([0, 0], [0.0, 0.0], propensities=[0.5, 0.01]), clip=6.0)
    assert weights.tolist() == pytest.approx([0.5, 1.5])


SETTINGS = FusionSettings(modalities=(Modality.NUMBERS,), hidden_size=16, sizes=InputSizes(num_numbers=2))


def test_a_model_learns_which_action_is_clicked_and_predicts_how_often() -> None:
    dice = np.random.default_rng(0)
    kinds, actions = dice.integers(2, size=(2, 400))
    rewards = np.where(kinds == actions, 0.9, 0.2)
    samples = [Sample(str(row), numbers=(1.0, 0.0) if kind else (0.0, 1.0)) for row, kind in enumerate(kinds)]
    states = {name: each.numpy() for name, each in Preprocessor(SETTINGS).batch(samples).items()}
    torch.manual_seed(0)
    fit = Fit(num_steps=150, batch_size=64, learning_rate=1e-2)
    model = learn_clicks(FusionModel(SETTINGS, 2), states, actions=actions, rewards=rewards, fit=fit)
    assert model.probabilities(states).argmax(axis=1).tolist() == kinds.tolist()
    expected = np.where(np.arange(2) == kinds[:, None], 0.9, 0.2)
    assert model.predictions(states) == pytest.approx(expected, abs=0.05)
    with pytest.raises(ConfigError, match="row 0: action=7; the model chooses among K=2"):
        learn_clicks(FusionModel(SETTINGS, 2), states, actions=np.full(400, 7), rewards=rewards)


def test_cross_fitted_predictions_are_by_models_that_have_not_seen_the_row() -> None:
    """A row whose reward no other row has: a model that had learned it would predict it."""
    samples = [Sample(str(row), numbers=(float(row == 0), 0.0)) for row in range(8)]
    states = {name: each.numpy() for name, each in Preprocessor(SETTINGS).batch(samples).items()}
    log = log_of([0] * 8, [float(row == 0) for row in range(8)])

    def build() -> FusionModel:
        torch.manual_seed(0)
        return FusionModel(SETTINGS, 2)

    fit = Fit(num_steps=150, batch_size=4, learning_rate=1e-2)
    found = cross_fitted(build, states, log, rewards=log.rewards, fit=fit)
    seen = learn_clicks(build(), states, actions=log.actions, rewards=log.rewards, fit=fit).predictions(states)
    assert seen[0, 0] > 0.8 > 0.4 > found[0, 0]
