"""The decode loop: what it samples fits the policy's distribution, and no row knows of any other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config import Dtype, MediaLimits
from pipeline.data.table import PromptTable
from pipeline.generation.generate import Sample, generate, sample_seed
from pipeline.generation.sampling import truncate
from pipeline.models.batch import collate_completions, collate_prompts
from pipeline.models.checkpoint import load_policy
from pipeline.models.forward import Policy
from pipeline.models.processing import PromptProcessor, load_processor
from pipeline.models.vocabulary import VocabularyHead
from pipeline.records import Completion, FinishReason, Message, ProcessedPrompt, Prompt

END_IDS = tuple(range(20, 1024, 7))
"""Many end tokens, so that an untrained model ends its completions at different lengths."""


@dataclass(frozen=True)
class Bed:
    """A tiny policy whose distributions are uneven, and prompts in which all its modalities are mixed."""

    policy: Policy
    prompts: list[ProcessedPrompt]
    tokenizer: Any

    @property
    def placeholders(self) -> list[int]:
        return list(self.policy.decoder.placeholders.values())

    def generate(self, rows: list[int], **changes: Any) -> list[Sample]:
        """Samples for the prompts of `rows`; a completion's seed says which prompt it is for and which one it is."""
        group_size = changes.setdefault("group_size", 3)
        arguments: dict[str, Any] = {
            "seeds": [sample_seed(7, 0, self.prompts[row].id, index) for row in rows for index in range(group_size)],
            "temperature": 1.0,
            "max_new_tokens": 10,
            "end_ids": END_IDS,
            **changes,
        }
        return generate(self.policy, collate_prompts([self.prompts[row] for row in rows], pad_id=0), **arguments)

    @torch.no_grad()
    def logprobs(self, rows: list[int], samples: list[Sample], temperature: float) -> tuple[Tensor, Tensor]:
        """Teacher-forced logprobs [N, T] and their mask, as the trainer computes them."""
        size = len(samples) // len(rows)
        ids = [sample.token_ids for sample in samples]
        completions = collate_completions([ids[start : start + size] for start in range(0, len(ids), size)], pad_id=0)
        prompts = collate_prompts([self.prompts[row] for row in rows], pad_id=0)
        return self.policy(prompts, completions, temperature=temperature)[0], completions.mask

    @property
    def all_rows(self) -> list[int]:
        return list(range(len(self.prompts)))


@pytest.fixture(scope="module", params=["tiny_checkpoint", "tiny_vl_checkpoint"], ids=["omni", "vl"])
def bed(request: pytest.FixtureRequest, demo_data: Path) -> Bed:
    return _bed(request.getfixturevalue(request.param), demo_data)


@pytest.fixture(scope="module")
def omni(tiny_checkpoint: Path, demo_data: Path) -> Bed:
    return _bed(tiny_checkpoint, demo_data)


def _bed(path: Path, demo_data: Path) -> Bed:
    policy = load_policy(path, dtype=Dtype.FLOAT32, trust_remote_code=False)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    processor = PromptProcessor(
        path=path, model=policy.decoder.model, limits=MediaLimits(), max_prompt_tokens=512, trust_remote_code=False
    )
    table = PromptTable(demo_data / "train.parquet")
    found: dict[str, Prompt] = {}
    for prompt in table.read([info.id for info in table.infos()]):
        assert isinstance(prompt, Prompt)
        if {medium.kind for medium in prompt.media} <= set(policy.decoder.architecture.modalities):
            found.setdefault(prompt.task, prompt)
    pictures = (*found["video"].media, *found["scene"].media)
    mixed = Prompt("mixed", "mixed", (Message("user", "a<video>b<image>c"),), pictures, "none")
    tokenizer = load_processor(path, trust_remote_code=False).tokenizer
    return Bed(policy, [processor(prompt) for prompt in [*found.values(), mixed]], tokenizer)


def _equal(one: Sample, other: Sample) -> bool:
    return (
        np.array_equal(one.token_ids, other.token_ids)
        and np.allclose(one.behaviour_logprobs, other.behaviour_logprobs, atol=1e-4)
        and one.finish_reason is other.finish_reason
    )


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7, 0.0])
def test_behaviour_logprobs_equal_the_trainers(bed: Bed, temperature: float) -> None:
    samples = bed.generate(bed.all_rows, temperature=temperature)
    assert len({len(sample.token_ids) for sample in samples}) > 1
    logprobs, mask = bed.logprobs(bed.all_rows, samples, temperature)
    for row, sample in enumerate(samples):
        assert sample.behaviour_logprobs.dtype == np.float32
        assert np.abs(logprobs[row, mask[row]].numpy() - sample.behaviour_logprobs).max() < 1e-4


def test_samples_depend_on_nothing_but_their_prompt_and_seed(bed: Bed) -> None:
    together = bed.generate(bed.all_rows)
    alone = [sample for row in bed.all_rows for sample in bed.generate([row])]
    reverse = bed.generate(bed.all_rows[::-1])
    reordered = [reverse[-3 * (row + 1) :][index] for row in bed.all_rows for index in range(3)]
    five = bed.generate(bed.all_rows, group_size=5)
    larger = [five[5 * row + index] for row in bed.all_rows for index in range(3)]
    for others in (alone, reordered, larger):
        assert all(_equal(one, other) for one, other in zip(together, others, strict=True))
    assert len({tuple(sample.token_ids) for sample in together}) == len(together)


FILTERS = {"top_k": 40, "top_p": 0.9, "min_p": 0.02}


def test_filtered_samples_do_not_depend_on_their_company(bed: Bed) -> None:
    together = bed.generate(bed.all_rows, **FILTERS)
    assert len({len(sample.token_ids) for sample in together}) > 2
    alone = [sample for row in bed.all_rows for sample in bed.generate([row], **FILTERS)]
    reverse = bed.generate(bed.all_rows[::-1], **FILTERS)
    reordered = [reverse[-3 * (row + 1) :][index] for row in bed.all_rows for index in range(3)]
    for others in (alone, reordered):
        assert all(_equal(one, other) for one, other in zip(together, others, strict=True))


@pytest.mark.parametrize("filters", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.1}, FILTERS], ids=str)
def test_behaviour_logprobs_are_those_of_the_filtered_distribution(omni: Bed, filters: dict[str, Any]) -> None:
    samples = omni.generate(omni.all_rows, temperature=0.8, **filters)
    completions = collate_completions(
        [[sample.token_ids for sample in samples[start : start + 3]] for start in range(0, len(samples), 3)], pad_id=0
    )
    with torch.no_grad():
        hidden = omni.policy.decoder.states(collate_prompts(omni.prompts, pad_id=0), completions)[:, :-1]
        logits = omni.policy.logits(hidden[completions.mask], temperature=0.8)
    logprobs = torch.log_softmax(truncate(logits, **filters), -1)
    expected = logprobs.gather(-1, completions.token_ids[completions.mask][:, None])[:, 0].numpy()
    sampled = np.concatenate([sample.behaviour_logprobs for sample in samples])
    assert np.abs(expected - sampled).max() < 1e-4
    unfiltered = torch.log_softmax(logits, -1).gather(-1, completions.token_ids[completions.mask][:, None])[:, 0]
    assert (sampled - unfiltered.numpy()).mean() > 0.01
    # The raw ones are those of the whole distribution at this temperature, which the trainer has too.
    raw = np.concatenate([sample.raw_logprobs for sample in samples if sample.raw_logprobs is not None])
    assert np.abs(unfiltered.numpy() - raw).max() < 1e-4
    logprobs, mask = omni.logprobs(omni.all_rows, samples, 0.8)
    assert np.abs(logprobs[mask].numpy() - raw).max() < 1e-4


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_where_nothing_is_filtered_behaviour_logprobs_are_the_raw_ones(omni: Bed, temperature: float) -> None:
    sample, *_ = omni.generate([0], temperature=temperature)
    assert sample.raw_logprobs is None
    completion = Completion(sample.token_ids, sample.behaviour_logprobs, sample.finish_reason, 0, "")
    assert completion.policy_logprobs is sample.behaviour_logprobs
    raw = sample.behaviour_logprobs - 1
    assert replace(completion, raw_logprobs=raw).policy_logprobs is raw


def test_a_shared_prompt_cache_gives_what_a_repeated_one_gives(bed: Bed) -> None:
    config = bed.policy.decoder.architecture.language_model(bed.policy.decoder.model).config
    for group_size, max_new_tokens in ((1, 10), (7, 10), (3, 40)):
        arguments: dict[str, Any] = {"group_size": group_size, "max_new_tokens": max_new_tokens}
        shared = bed.generate(bed.all_rows, **arguments)
        assert config._attn_implementation == "sdpa"  # as before
        bed.policy.decoder.model.set_attn_implementation("eager")  # which is not taken for plain attention
        try:
            repeated = bed.generate(bed.all_rows, **arguments)
        finally:
            bed.policy.decoder.model.set_attn_implementation("sdpa")
        assert all(_equal(one, other) for one, other in zip(shared, repeated, strict=True))


def test_a_stop_string_ends_a_completion_at_the_token_that_completes_it(omni: Bed) -> None:
    def decode(token_ids: Sequence[int]) -> str:
        return omni.tokenizer.decode(token_ids, skip_special_tokens=True)

    free = omni.generate(omni.all_rows, end_ids=[], max_new_tokens=20)
    texts = [decode(sample.token_ids.tolist()) for sample in free]
    stop = [texts[0][3:7], texts[-1][-6:-3], "e", "never said"]
    stopped = omni.generate(omni.all_rows, end_ids=[], max_new_tokens=20, stop=stop, decode=decode)
    assert {sample.finish_reason for sample in stopped} == {FinishReason.STOP, FinishReason.LENGTH}
    for whole, sample in zip(free, stopped, strict=True):
        length = len(sample.token_ids)
        assert np.array_equal(sample.token_ids, whole.token_ids[:length])
        assert np.allclose(sample.behaviour_logprobs, whole.behaviour_logprobs[:length], atol=1e-4)
        holds = [any(text in decode(whole.token_ids[:end].tolist()) for text in stop) for end in range(1, length + 1)]
        assert not any(holds[:-1])
        assert holds[-1] == (sample.finish_reason is FinishReason.STOP)


def test_a_shorter_cap_gives_prefixes(omni: Bed) -> None:
    long, short = omni.generate(omni.all_rows), omni.generate(omni.all_rows, max_new_tokens=4)
    for one, other in zip(long, short, strict=True):
        assert np.array_equal(one.token_ids[:4], other.token_ids)


def test_greedy_takes_the_likeliest_token_at_every_step(bed: Bed) -> None:
    samples = bed.generate(bed.all_rows, group_size=2, temperature=0.0)
    for row in bed.all_rows:
        first, second = samples[2 * row : 2 * row + 2]
        assert _equal(first, second)  # no seed enters
        prompts = collate_prompts([bed.prompts[row]], pad_id=0)
        tokens: list[int] = []
        while len(tokens) < 10 and not (tokens and tokens[-1] in END_IDS):
            so_far = collate_completions([[np.array([*tokens, 0], np.int64)]], pad_id=0)
            with torch.no_grad():
                hidden = bed.policy.decoder.states(prompts, so_far)[0, len(tokens)]
                tokens.append(int(bed.policy.logits(hidden, temperature=0.0).argmax()))
        assert first.token_ids.tolist() == tokens


def test_first_tokens_fit_the_softmax(omni: Bed) -> None:
    num_samples = 6000
    for row, temperature in ((0, 1.0), (len(omni.prompts) - 1, 0.7)):
        samples = omni.generate([row], group_size=num_samples, max_new_tokens=1, temperature=temperature)
        counts = np.bincount([int(sample.token_ids[0]) for sample in samples], minlength=1024)
        last, _, _ = omni.policy.decoder.prefill(collate_prompts([omni.prompts[row]], pad_id=0))
        with torch.no_grad():
            expected = omni.policy.logits(last[0], temperature=temperature).double().softmax(-1).numpy() * num_samples
        often = expected >= 5  # the usual condition; all rarer tokens are one bin
        assert often.sum() > 50
        seen = np.append(counts[often], counts[~often].sum())
        wanted = np.append(expected[often], expected[~often].sum())
        freedom = len(seen) - 1
        statistic = float(((seen - wanted) ** 2 / wanted).sum())
        # Chi-square has mean f and variance 2f: four standard deviations to either side.
        assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)
        # And Kolmogorov's distance, which sees a small shift of all tokens: below 2 / sqrt(N) in 999 of 1000 cases.
        assert np.abs(np.cumsum(counts - expected)).max() < 2 * math.sqrt(num_samples)


def test_second_tokens_are_drawn_from_fresh_numbers(omni: Bed) -> None:
    """With a head that ignores its input, two tokens in a row are independent."""
    omni = _with_head(omni, {10: 0.5, 11: 0.5})
    samples = omni.generate([0], group_size=2000, max_new_tokens=2, end_ids=[1])
    pairs = np.array([sample.token_ids for sample in samples]) - 10
    counts = np.bincount(pairs[:, 0] * 2 + pairs[:, 1], minlength=4)
    assert np.abs(counts - 500).max() < 4 * math.sqrt(2000 * 0.25 * 0.75)


def _with_head(bed: Bed, probabilities: dict[int, float]) -> Bed:
    """The same policy with a head that gives these probabilities always, and placeholders the largest logits."""
    model = bed.policy.decoder.model
    policy = Policy(model, bed.policy.decoder.architecture)
    head = nn.Linear(*model.lm_head.weight.shape[::-1])
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-1e4)
        for token, probability in probabilities.items():
            head.bias[token] = math.log(probability)
        head.bias[bed.placeholders] = 100.0
    forbidding = VocabularyHead(head, list(bed.placeholders))
    logits = policy.logits

    def with_head(hidden: Tensor, *, temperature: float) -> Tensor:
        model.lm_head, kept = forbidding, model.lm_head
        try:
            return logits(hidden, temperature=temperature)
        finally:
            model.lm_head = kept

    policy.logits = with_head
    return Bed(policy, bed.prompts, bed.tokenizer)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 5.0])
def test_placeholder_tokens_are_never_sampled_whatever_their_logits(bed: Bed, temperature: float) -> None:
    eager = _with_head(bed, {10: 0.5, 1023: 0.5})
    samples = eager.generate(eager.all_rows, group_size=8, temperature=temperature, end_ids=[1])
    tokens = np.concatenate([sample.token_ids for sample in samples])
    assert set(tokens) <= {10, 1023}
    assert len(set(tokens)) == (1 if temperature == 0 else 2)


def test_the_end_token_ends_a_completion_and_is_part_of_it(omni: Bed) -> None:
    samples = omni.generate(omni.all_rows, group_size=6)
    reasons = {sample.finish_reason for sample in samples}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}
    for sample in samples:
        ends = [token in END_IDS for token in sample.token_ids]
        assert not any(ends[:-1])
        assert ends[-1] == (sample.finish_reason is FinishReason.STOP)
        assert len(sample.token_ids) == len(sample.behaviour_logprobs) <= 10
        if sample.finish_reason is FinishReason.LENGTH:
            assert len(sample.token_ids) == 10


def test_an_end_token_in_the_last_place_is_a_stop(omni: Bed) -> None:
    full = omni.generate([0], group_size=1, end_ids=[0], max_new_tokens=3)[0]
    assert full.finish_reason is FinishReason.LENGTH
    ended = omni.generate([0], group_size=1, end_ids=[int(full.token_ids[2])], max_new_tokens=3)[0]
    assert ended.finish_reason is FinishReason.STOP
    assert np.array_equal(ended.token_ids, full.token_ids)


def test_without_end_tokens_all_completions_run_to_the_cap(omni: Bed) -> None:
    for sample in omni.generate([0, 1], end_ids=[]):
        assert (len(sample.token_ids), sample.finish_reason) == (10, FinishReason.LENGTH)


def test_the_number_of_seeds_must_fit(omni: Bed) -> None:
    with pytest.raises(ValueError, match="5 seeds for 6 completions: give one each"):
        omni.generate([0, 1], seeds=range(5))


def test_a_low_temperature_comes_close_to_greedy(omni: Bed) -> None:
    greedy = omni.generate(omni.all_rows, group_size=1, temperature=0.0)
    cold = omni.generate(omni.all_rows, group_size=1, temperature=1e-6)
    assert all(np.array_equal(one.token_ids, other.token_ids) for one, other in zip(greedy, cold, strict=True))
    sure, unsure = (np.concatenate([sample.behaviour_logprobs for sample in samples]) for samples in (cold, greedy))
    assert sure.mean() > -1e-2
    assert unsure.max() < -1e-2  # those at temperature 1


def test_a_samples_seed_is_the_same_for_ever_and_differs_from_all_others() -> None:
    assert sample_seed(0, 0, "train-digit-00000", 0) == GOLDEN
    seeds = {
        sample_seed(run, step, name, index)
        for run in range(3)
        for step in range(3)
        for name in ("a", "b", "a:0")
        for index in range(11)
    }
    assert len(seeds) == 3 * 3 * 3 * 11
    assert all(0 <= seed < 2**63 for seed in seeds)


GOLDEN = 8866028550048687807
"""The first 63 bits, as a little-endian number, of the sha256 of `0:0:train-digit-00000:0`."""
