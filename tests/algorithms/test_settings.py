"""The recipe's section of algorithms: what fits together, what is refused and with which cure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config import (
    AdvantageEstimator,
    Aggregation,
    Algorithm,
    ConfigError,
    DynamicSampling,
    ImportanceCorrection,
    KlEstimator,
    OffPolicy,
    PolicyLossName,
    load_recipe,
)

PREFIX = "rlhf.algorithm."
DOCUMENT = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()
KNOWN = dict(re.findall(r"^\| ([^|`]+) \| (.+) \|$", DOCUMENT.partition("## Known recipes")[2], re.MULTILINE))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["advantage=grpo", "gamma=0.9"],
            r"gamma=0\.9 with advantage=grpo: it judges whole completions.*use gamma=1",
        ),
        (["advantage=remax", "gamma=0.9"], r"gamma=0\.9 with advantage=remax.*use gamma=1"),
        (
            ["advantage=reinforce_plus_plus", "whiten_advantages=false"],
            r"whiten_advantages=false with advantage=reinforce_plus_plus: it whitens by definition; use null, or reinf",
        ),
        (
            ["advantage=reinforce_plus_plus_baseline", "whiten_advantages=false"],
            r"whiten_advantages=false .*use null, or dr_grpo",
        ),
        (["dual_clip=3", "policy_loss=gspo"], r"dual_clip=3\.0 with policy_loss=gspo: only ppo has it; use null"),
        (
            ["policy_loss=policy_gradient", "num_epochs=2"],
            r"num_epochs=2 with policy_loss=policy_gradient.*use num_epochs=1, or ppo",
        ),
        (
            ["dynamic_sampling.max_rounds=2"],
            r"dynamic_sampling\.max_rounds=2 with advantage=gae.*use max_rounds=0, or grpo",
        ),
        (["dual_clip=1"], r"rlhf\.algorithm\.dual_clip: .*greater than 1"),
        (["clip_low=0"], r"rlhf\.algorithm\.clip_low: .*greater than 0"),
        (["off_policy.cap=0.5"], r"rlhf\.algorithm\.off_policy\.cap: .*greater than or equal to 1"),
        (["off_policy.low=1.5"], r"rlhf\.algorithm\.off_policy\.low: .*less than or equal to 1"),
        (["off_policy.high=0.5"], r"rlhf\.algorithm\.off_policy\.high: .*greater than or equal to 1"),
        (["advantage=best_worst"], r"advantage=best_worst with policy_loss=ppo: .*use both, or neither"),
        (["policy_loss=dpo"], r"advantage=gae with policy_loss=dpo: .*use both, or neither"),
        (
            ["advantage=best_worst", "policy_loss=dpo", "off_policy.correction=token"],
            r"off_policy\.correction=token with policy_loss=dpo: .*use none",
        ),
        (
            ["advantage=best_worst", "policy_loss=dpo", "whiten_advantages=true"],
            r"whiten_advantages=true with policy_loss=dpo: .*use null",
        ),
        (["advantage=grpo", "process_rewards=true"], r"process_rewards=true with advantage=grpo: .*use false, or gae"),
        (["process_rewards=true", "part_normalisation=group"], r"process_rewards=true with part_normalisation=group"),
        (["advantage=ppo"], r"rlhf\.algorithm\.advantage: .*'gae', 'a2c', 'grpo'"),
        (["clip=0.2"], r"rlhf\.algorithm\.clip: unknown key"),
    ],
)
def test_what_makes_no_sense_is_refused_with_field_and_cure(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_recipe(None, [PREFIX + override for override in overrides])
    assert re.search(message, str(refusal.value)), str(refusal.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["advantage=reinforce", "gamma=0.9"],
        ["advantage=reinforce_plus_plus", "whiten_advantages=true"],
        ["dual_clip=3", "clip_high=0.28"],
        ["policy_loss=policy_gradient", "num_epochs=1"],
        ["advantage=grpo", "dynamic_sampling.max_rounds=2"],
        ["policy_loss=cispo", "clip_low=1.0", "clip_high=4.0"],
        ["off_policy={correction: icepop, low: 0.5, high: 5.0}"],
    ],
)
def test_their_neighbours_are_taken(overrides: list[str]) -> None:
    given = [PREFIX + override for override in overrides]
    assert load_recipe(None, given) == load_recipe(None, list(reversed(given)))


def test_the_clip_range_is_symmetric_unless_one_says_so() -> None:
    assert Algorithm(clip_low=0.1).clip_above == 0.1
    assert Algorithm(clip_low=0.1, clip_high=0.3).clip_above == 0.3


def test_the_defaults_are_those_of_ppo_on_its_own_samples() -> None:
    plain = Algorithm()
    assert (plain.advantage, plain.policy_loss, plain.clip_low, plain.clip_above) == ("gae", "ppo", 0.2, 0.2)
    assert plain.off_policy == OffPolicy(correction=ImportanceCorrection.NONE)
    assert plain.dynamic_sampling == DynamicSampling(max_rounds=0)
    assert plain.whitens and plain.overlong_buffer == 0 and plain.dual_clip is None


def test_every_estimator_says_what_it_needs() -> None:
    needs = {
        name: (each.needs_critic, each.needs_greedy, each.needs_group)
        for name, each in AdvantageEstimator.__members__.items()
    }
    critic, greedy, group, nothing = (True, False, False), (False, True, False), (False, False, True), (False,) * 3
    assert needs == {
        "GAE": critic,
        "A2C": critic,
        "GRPO": group,
        "DR_GRPO": group,
        "RLOO": group,
        "REINFORCE_PLUS_PLUS": nothing,
        "REINFORCE_PLUS_PLUS_BASELINE": group,
        "REMAX": greedy,
        "REINFORCE": nothing,
        "BEST_WORST": group,
    }
    assert {each for each in AdvantageEstimator if each.discounts} == {
        AdvantageEstimator.GAE,
        AdvantageEstimator.A2C,
        AdvantageEstimator.REINFORCE,
        AdvantageEstimator.REINFORCE_PLUS_PLUS,
    }


def test_a2c_is_a_policy_gradient_with_a_critic() -> None:
    a2c = Algorithm(advantage=AdvantageEstimator.A2C, policy_loss=PolicyLossName.POLICY_GRADIENT)
    assert a2c.advantage.needs_critic and not a2c.whitens


@pytest.mark.parametrize("algorithm", [name for name in KNOWN if name not in ("algorithm", "---")])
def test_every_recipe_of_the_document_is_a_recipe(algorithm: str) -> None:
    pairs = re.findall(r"[a-z_.]+=\S+?(?=[ `])", KNOWN[algorithm])
    overrides = [
        "rlhf." + pair if pair.startswith(("group_size", "rewards", "reference")) else PREFIX + pair for pair in pairs
    ]
    recipe = load_recipe(None, overrides)
    assert bool(overrides) == (recipe.rlhf.algorithm != Algorithm())


def test_the_document_has_a_row_for_every_choice_and_a_recipe_for_every_estimator_and_loss() -> None:
    for choices in (AdvantageEstimator, PolicyLossName, Aggregation, KlEstimator, ImportanceCorrection):
        assert [each for each in choices if f"\n| `{each}`" not in DOCUMENT] == []
    settings = " ".join(KNOWN.values())
    used = {*re.findall(r"advantage=(\w+)", settings), *re.findall(r"policy_loss=(\w+)", settings)}
    assert used == {*AdvantageEstimator, *PolicyLossName} - {AdvantageEstimator.GAE, PolicyLossName.PPO}  # the defaults
