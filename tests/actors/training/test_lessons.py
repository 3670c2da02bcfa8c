"""What a policy is taught by each kind of opinion, down to which completion becomes likelier; a lookup has no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.training.lessons import Lesson, LessonLosses, Totals, all_asked, lessons_of
from actors.training.opinions import Example
from actors.training.references import Asked, ReferenceLogprobs, checkpoint_fingerprint, reference_key
from pipeline.config import ConfigError, PreferenceLoss, load_recipe
from pipeline.records import Ids, Opinion, Preference, Ranking, RaterKind, Rating
from tests.prompts import prompt_ref

SHARED: dict[str, Any] = {"rater": "anna", "rater_kind": RaterKind.HUMAN}
GOOD, OTHER, BAD = (7, 7, 7), (5,), (3, 3)
LN3 = math.log(3)


def _example(opinion: Opinion) -> Example:
    return Example(replace(prompt_ref(opinion.prompt_id), content=f"content of {opinion.prompt_id}"), opinion)


def _pair(chosen: Ids = GOOD, rejected: Ids = BAD, *, prompt: str = "one", **options: Any) -> Example:
    return _example(Preference(prompt, chosen, rejected, "", "", **SHARED, **options))


def _rating(ids: Ids, rated: dict[str, float] | bool, *, prompt: str = "one", **options: Any) -> Example:
    ratings = rated if isinstance(rated, dict) else {"overall": float(rated)}
    return _example(Rating(prompt, ids, "", ratings, **SHARED, **options))


def _ranking(ranks: Sequence[int], **options: Any) -> Example:
    return _example(Ranking("one", (GOOD, OTHER, BAD), ("",) * 3, tuple(ranks), **SHARED, **options))


class Teaching:
    """Log probabilities of whole completions, which learn; the reference says 0 of each unless told otherwise."""

    def __init__(self, *overrides: str, reference: dict[Ids, float] | None = None):
        self.settings = load_recipe(None, [f"preference.{each}" for each in overrides]).preference
        self.sums = torch.zeros(10, requires_grad=True)
        self._reference = reference or {}

    def losses(self, examples: Sequence[Example], *, told: dict[Ids, float] | None = None) -> dict[str, Tensor]:
        """The losses of a step that is one pass; `told` are log probabilities of completions that do not learn."""
        lessons = lessons_of(examples, self.settings.loss)
        references = {reference_key(each): self._reference.get(each[1], 0.0) for each in all_asked(lessons)}
        losses = LessonLosses(self.look_up, self.settings, references)
        totals = losses.with_baseline(lessons, lambda asked: [(told or {}).get(each.ids, 0.0) for each in asked])
        return losses(lessons, totals)

    def look_up(self, lessons: Sequence[Lesson]) -> Tensor:
        return self.sums[torch.tensor([asked.ids[0] for each in lessons for asked in each.asked])]

    def gradients(self, examples: Sequence[Example], **options: Any) -> list[float]:
        """Of the loss, in the log probabilities of GOOD, OTHER and BAD."""
        (found,) = torch.autograd.grad(self.losses(examples, **options)["loss"], self.sums)
        return found[[GOOD[0], OTHER[0], BAD[0]]].tolist()


def _told(lessons: Sequence[Lesson]) -> list[Any]:
    return [([asked.ids for asked in each.asked], each.is_good, each.margin, round(each.weight, 6)) for each in lessons]


def test_pairs_learn_of_pairs_and_of_rankings_and_of_nothing_that_is_undecided() -> None:
    examples = [
        _pair(margin=0.5, weight=2.0),
        _pair(is_tie=True),
        _rating(GOOD, True),
        _ranking([2, 1, 2], weight=3.0),
        _ranking([1, 2, 3], weight=3.0),
    ]
    assert _told(lessons_of(examples, PreferenceLoss.DPO)) == [
        ([GOOD, BAD], True, 0.5, 2.0),
        # Two of the three pairs are decided, and the ranking counts as two choices of weight 3.
        ([OTHER, GOOD], True, 0.0, 3.0),
        ([OTHER, BAD], True, 0.0, 3.0),
        # Of the other one all three.
        ([GOOD, OTHER], True, 0.0, 2.0),
        ([GOOD, BAD], True, 0.0, 2.0),
        ([OTHER, BAD], True, 0.0, 2.0),
    ]


def test_losses_without_pairs_take_a_pair_for_two_completions_and_a_rating_for_what_it_is_nearer_to() -> None:
    examples = [
        _pair(weight=2.0),
        _pair(is_tie=True),
        _rating(OTHER, {"helpful": 0.9, "grounded": 0.2}),
        _rating(BAD, {"helpful": 0.9, "overall": 0.1}, weight=0.5),
        _rating(BAD, {"helpful": 0.5}),
        _ranking([1, 2, 3]),
    ]
    assert _told(lessons_of(examples, PreferenceLoss.APO_ZERO)) == [
        ([GOOD], True, 0.0, 2.0),
        ([BAD], False, 0.0, 2.0),
        ([OTHER], True, 0.0, 1.0),
        ([BAD], False, 0.0, 0.5),
    ]


def test_where_the_user_speaks_in_a_conversation_no_token_counts() -> None:
    chosen = (7, 7, 1, 1, 7)
    (pair,) = lessons_of([_pair(chosen, chosen_given=((2, 4),))], PreferenceLoss.SIMPO)
    assert [each.num_learned for each in pair.asked] == [3, len(BAD)]
    assert Totals.of([pair]).num_tokens == 3
    plain = pair.asked[0]._replace(given=())
    assert reference_key(plain) != reference_key(pair.asked[0])
    alone = lessons_of([_pair(chosen, chosen_given=((2, 4),)), _rating(OTHER, True, prompt="two")], PreferenceLoss.KTO)
    assert [each.asked[0].given for each in alone] == [((2, 4),), (), ()]
    assert [each.foreign and each.foreign.given for each in alone] == [(), (), ()]


def test_the_baseline_is_measured_on_completions_of_other_prompts() -> None:
    examples = [_pair(), _rating(OTHER, True, prompt="two"), _rating(BAD, False, prompt="three")]
    found = lessons_of(examples, PreferenceLoss.KTO)
    foreign = [each.foreign and (each.foreign[0].id, each.foreign[1]) for each in found]
    assert foreign == [("one", BAD), ("one", BAD), ("two", BAD), ("three", OTHER)]
    assert [each.foreign for each in lessons_of([_pair()], PreferenceLoss.KTO)] == [None, None]


def test_dpo_by_hand() -> None:
    # The policy has moved by ln 3 towards the chosen one: sigmoid(ln 3) = 3/4.
    teaching = Teaching("beta=0.5", reference={GOOD: -2 * LN3})
    found = teaching.losses([_pair()])
    assert found["loss"].item() == pytest.approx(math.log(4 / 3))
    assert found["rewards/chosen"].item() == found["rewards/margin"].item() == pytest.approx(LN3)
    assert found["rewards/rejected"].item() == 0.0 and found["rewards/accuracy"].item() == 1.0
    assert teaching.gradients([_pair()]) == pytest.approx([-0.5 / 4, 0.0, 0.5 / 4])


def test_margins_weights_and_what_stands_beside_the_loss() -> None:
    with_margin = Teaching("beta=0.5", "margin_weight=0.5", reference={GOOD: -2 * LN3})
    assert with_margin.losses([_pair(margin=2 * LN3)])["loss"].item() == pytest.approx(math.log(2))
    # Weights 3 and 1: of the second pair both are where they were.
    weighed = Teaching("beta=0.5", reference={GOOD: -2 * LN3})
    pairs = [_pair(weight=3.0), _pair(OTHER, BAD)]
    assert weighed.losses(pairs)["loss"].item() == pytest.approx((3 * math.log(4 / 3) + math.log(2)) / 4)
    assert weighed.losses(pairs)["rewards/accuracy"].item() == 1.0 / 2 + 0.5 / 2
    beside = Teaching("sft_weight=2", reference={})
    beside.sums.data[GOOD[0]], beside.sums.data[OTHER[0]] = -3.0, -2.0
    found = beside.losses(pairs)
    # 3 x 3 nats over 3 x 3 tokens, and 2 nats over 1: 11 nats, 10 tokens.
    assert found["sft_loss"].item() == pytest.approx(11 / 10)
    plain = Teaching(reference={})
    plain.sums.data.copy_(beside.sums.data)
    assert found["loss"].item() == pytest.approx(plain.losses(pairs)["loss"].item() + 2.2)


def test_simpo_and_orpo_look_at_tokens_and_at_no_reference() -> None:
    simpo = Teaching("loss=simpo", "beta=2", "gamma=1.5", reference={GOOD: 99.0})
    simpo.sums.data[GOOD[0]], simpo.sums.data[BAD[0]] = -3.0, -4.0  # -1 and -2 a token: 2 x 1 - 1.5
    assert simpo.losses([_pair()])["loss"].item() == pytest.approx(math.log(1 + math.exp(-0.5)))
    orpo = Teaching("loss=orpo", "beta=0.5", reference={GOOD: 99.0})
    orpo.sums.data[GOOD[0]], orpo.sums.data[BAD[0]] = 3 * math.log(0.75), 2 * math.log(0.5)  # odds 3 and 1
    found = orpo.losses([_pair()])
    assert found["sft_loss"].item() == pytest.approx(-math.log(0.75))
    assert found["loss"].item() == pytest.approx(0.5 * math.log(4 / 3) - math.log(0.75))


def test_kto_by_hand() -> None:
    teaching = Teaching("loss=kto", "beta=0.5", "desirable_weight=2", "undesirable_weight=3")
    batch = [_rating(GOOD, True), _rating(BAD, False, prompt="two", weight=0.5)]
    teaching.sums.data[GOOD[0]], teaching.sums.data[BAD[0]] = 6 * LN3, 2 * LN3
    # Foreign completions have log ratios 6 ln 3 and 2 ln 3, so the baseline is 4 ln 3: gains of ln 3 and ln 3.
    found = teaching.losses(batch, told={GOOD: 6 * LN3, BAD: 2 * LN3})
    assert found["loss"].item() == pytest.approx((2 * 0.25 + 0.5 * 3 * 0.25) / 1.5)
    assert found["rewards/accuracy"].item() == 1.0
    # Of a KL below 0, as small samples give, nothing is left.
    below = teaching.losses(batch, told={GOOD: -9.0, BAD: -9.0})["loss"]
    assert below.item() == teaching.losses(batch)["loss"].item() != found["loss"].item()


EVERY = [(loss, "beta=2" if loss is PreferenceLoss.SIMPO else "beta=0.5") for loss in PreferenceLoss]


@pytest.mark.parametrize(("loss", "beta"), EVERY)
def test_what_is_chosen_becomes_likelier_and_what_is_rejected_less_with_every_loss(
    loss: PreferenceLoss, beta: str
) -> None:
    teaching = Teaching(f"loss={loss}", beta, "sft_weight=0")
    teaching.sums.data.fill_(-2.0)
    good, other, bad = teaching.gradients([_pair(), _pair(prompt="two")])
    assert good < 0.0 < bad and other == 0.0
    optimizer = torch.optim.SGD([teaching.sums], lr=1.0)
    before = teaching.losses([_pair()])["rewards/margin"].item()
    for _ in range(5):
        optimizer.zero_grad()
        teaching.losses([_pair()])["loss"].backward()
        optimizer.step()
    assert teaching.losses([_pair()])["rewards/margin"].item() > before


@pytest.mark.parametrize("loss", list(PreferenceLoss))
def test_the_shares_of_a_step_add_up_to_the_whole(loss: PreferenceLoss) -> None:
    teaching = Teaching(f"loss={loss}", "sft_weight=0.3")
    teaching.sums.data.copy_(-torch.arange(1.0, 11.0) / 4)
    lessons = lessons_of([_pair(weight=2.0), _pair(OTHER, BAD), _pair(OTHER, GOOD, prompt="two")], loss)
    losses = LessonLosses(
        teaching.look_up,
        teaching.settings,
        {reference_key(each): -0.1 for each in all_asked(lessons)},
    )
    totals = replace(Totals.of(lessons), baseline=0.2)
    whole = losses(lessons, totals)
    parts = [losses(part, totals) for part in (lessons[:1], lessons[1:])]
    for name, value in whole.items():
        assert sum(part[name].item() for part in parts) == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{loss: ipo, margin_weight: 1}", r"margin_weight=1 with loss=ipo: it has no margins; use 0, or dpo"),
        ("{loss: kto, label_smoothing: 0.1}", r"label_smoothing=0\.1 with loss=kto: it has none"),
        ("{loss: kto, desirable_weight: 0, undesirable_weight: 0}", r"nothing is learned; raise one of them"),
        ("{loss: ppo}", r"'dpo', 'robust'"),
        ("{label_smoothing: 0.5}", r"less than 0\.5"),
    ],
)
def test_what_makes_no_sense_is_refused_with_field_and_cure(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(None, [f"preference={override}"])


def test_what_the_reference_said_is_kept_on_disk_and_a_record_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    one, two = (Asked(replace(prompt_ref("p"), content=name), (1, 2)) for name in ("a", "b"))
    file = tmp_path / "there" / "logprobs.bin"
    kept = ReferenceLogprobs(file)
    kept.add({reference_key(one): -1.5})
    kept.add({reference_key(one): -9.0, reference_key(two): -0.1})
    assert dict(ReferenceLogprobs(file)) == {reference_key(one): -1.5, reference_key(two): -0.1}
    file.write_bytes(file.read_bytes()[:-1])
    cut = ReferenceLogprobs(file)
    assert dict(cut) == {reference_key(one): -1.5}
    cut.add({reference_key(two): -0.2})
    assert dict(ReferenceLogprobs(file)) == {reference_key(one): -1.5, reference_key(two): -0.2}


def test_a_key_is_of_the_prompts_content_and_the_tokens_and_a_fingerprint_of_weights_and_type(tmp_path: Path) -> None:
    prompt = replace(prompt_ref("one"), content="same")
    renamed, changed = replace(prompt_ref("two"), content="same"), replace(prompt, content="other")
    assert reference_key(Asked(prompt, (1, 23))) == reference_key(Asked(renamed, (1, 23)))
    others = Asked(prompt, (1, 23)), Asked(prompt, (12, 3)), Asked(changed, (1, 23))
    assert len(set(map(reference_key, others))) == 3
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = checkpoint_fingerprint(tmp_path, "float32")
    assert checkpoint_fingerprint(tmp_path, "float32") == first != checkpoint_fingerprint(tmp_path, "bfloat16")
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert checkpoint_fingerprint(tmp_path, "float32") != first
