"""Can the interval of an off-policy estimate be believed? Many simulated logs, and how often it holds the true value.

    catalogue and users -> a log to learn from -> a target policy
                        -> 50 logs over fixed users -> a doubly robust interval each -> share that holds the exact value

Users are fixed, so that the true value is exact: the mean over them of sum_k pi(k | x) relevance_k. Logs are drawn from
them with replacement. Clicks are position-biased; rewards are corrected by the known examination.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decisions.bandits import Features, Policy, fixed_features
from pipeline.decisions.estimators import ValueEstimate, doubly_robust, examined_rewards, folds, ips, snips
from pipeline.decisions.records import Log
from pipeline.decisions.world import ClickWorld, Draws, draw_clicks, relevances, true_value
from pipeline.evaluation.intervals import Estimate, proportion

NUM_FOLDS = 2
RIDGE = 1.0


@dataclass(frozen=True)
class LinearPolicy:
    """softmax(x^T theta / temperature), theta float64 [D, K]: what a linear reward model would choose."""

    theta: NDArray[np.float64]
    temperature: float = 0.1

    def predictions(self, states: Features) -> NDArray[np.float64]:
        """Float64 [N, K], the expected reward of each action."""
        return np.asarray(states, np.float64) @ self.theta

    def probabilities(self, states: Features) -> NDArray[np.float32]:
        """Float32 [N, K]."""
        scores = self.predictions(states) / self.temperature
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def ridge_rewards(
    features: Features, *, actions: NDArray[np.int64], rewards: NDArray[np.float64], num_actions: int
) -> LinearPolicy:
    """A ridge regression of the reward for each action: features float32 [N, D], actions and rewards [N]."""
    used = features.any(axis=0)  # modalities that nobody has cost nothing
    x = np.asarray(features, np.float64)[:, used]
    theta = np.zeros((features.shape[1], num_actions))
    for action in range(num_actions):
        rows = actions == action
        gram = x[rows].T @ x[rows] + RIDGE * np.eye(x.shape[1])
        theta[used, action] = np.linalg.solve(gram, x[rows].T @ rewards[rows])
    return LinearPolicy(theta)


def ope_coverage(
    world: ClickWorld,
    *,
    num_logs: int = 50,
    num_decisions: int = 4000,
    num_users: int = 500,
    num_learned: int = 4000,
    target: Policy[Features] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How often the 95 % intervals hold the target policy's true value.

    num_decisions: of each log. num_users: distinct wishes of the test split that logs are drawn from.
    num_learned: decisions of the log, of the train split, that the target is learned from.
    target: a policy over `fixed_features`; None learns a linear one.

    Returns `true_value`, and by estimator (`ips`, `snips`, `doubly_robust`) `coverage` with its Wilson interval,
    `mean` and `deviation` of the estimates, and the mean `width` of their intervals.
    """
    policy = target or _learned(world, num_learned, seed)
    users = world.wishes("test", num_users, seed=seed)
    features, relevance = fixed_features([user.sample for user in users]), relevances(users)
    probabilities = policy.probabilities(features)
    truth = true_value(users, probabilities)
    shares = world.logging_policy()(users)
    found: dict[str, list[ValueEstimate]] = {"ips": [], "snips": [], "doubly_robust": []}
    for number in range(num_logs):
        rng = np.random.default_rng([world.seed, 4, seed, number])
        chosen = rng.integers(num_users, size=num_decisions)
        draws = draw_clicks(world, relevance=relevance, probabilities=shares, wishes=chosen, rng=rng)
        log = log_of(draws)
        rewards = examined_rewards(log, world.examination)
        pi, x = probabilities[chosen], features[chosen]
        predictions = _cross_fitted(x, log, rewards, world.num_actions, seed=number)
        found["ips"].append(ips(log, pi, rewards=rewards))
        found["snips"].append(snips(log, pi, rewards=rewards))
        found["doubly_robust"].append(doubly_robust(log, pi, predictions=predictions, rewards=rewards))
    summary = {name: _summary(estimates, truth) for name, estimates in found.items()}
    return {"true_value": truth, "logged_value": true_value(users, shares), "num_logs": num_logs, **summary}


def log_of(draws: Draws) -> Log:
    """Simulated decisions as a log, each a session of its own."""
    return Log(
        actions=draws.actions,
        propensities=draws.propensities,
        rewards=draws.clicks,
        positions=draws.positions,
        groups=("",) * len(draws.actions),
        sessions=tuple(map(str, range(len(draws.actions)))),
    )


def _learned(world: ClickWorld, num: int, seed: int) -> LinearPolicy:
    users = world.wishes("train", num, seed=seed)
    rng = np.random.default_rng([world.seed, 5, seed])
    shares = world.logging_policy()(users)
    draws = draw_clicks(world, relevance=relevances(users), probabilities=shares, wishes=np.arange(num), rng=rng)
    rewards = examined_rewards(log_of(draws), world.examination)
    features = fixed_features([user.sample for user in users])
    return ridge_rewards(features, actions=draws.actions, rewards=rewards, num_actions=world.num_actions)


def _cross_fitted(
    features: Features, log: Log, rewards: NDArray[np.float64], num_actions: int, *, seed: int
) -> NDArray[np.float64]:
    of_fold = folds(log.sessions, NUM_FOLDS, seed=seed)
    predictions = np.zeros((len(rewards), num_actions))
    for fold in range(NUM_FOLDS):
        learned, held = of_fold != fold, of_fold == fold
        model = ridge_rewards(
            features[learned], actions=log.actions[learned], rewards=rewards[learned], num_actions=num_actions
        )
        predictions[held] = model.predictions(features[held])
    return predictions


def _summary(estimates: Sequence[ValueEstimate], truth: float) -> Mapping[str, Any]:
    covered: Estimate | None = proportion([float(each.low <= truth <= each.high) for each in estimates])
    values = np.array([each.value for each in estimates])
    return {
        "coverage": asdict(covered) if covered else None,
        "mean": float(values.mean()),
        "deviation": float(values.std()),
        "width": float(np.mean([each.high - each.low for each in estimates])),
        "effective_size": float(np.mean([each.effective_size for each in estimates])),
    }
