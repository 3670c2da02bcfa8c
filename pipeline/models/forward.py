"""The forward passes of all roles: towers once, prompt once, then the completions of the group on its cache.

`Policy`, `ValueModel` and `RewardModel` are what DeepSpeed wraps; generation uses `Policy.decoder` directly, so that
trainer and rollout run the same code. Gradients flow through the shared prompt pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import ConfigError
from pipeline.models.architectures import Architecture
from pipeline.models.batch import CompletionBatch, PromptBatch
from pipeline.models.float32 import Float32Linear
from pipeline.models.vocabulary import VocabularyHead
from pipeline.records import OVERALL, MediaKind, MediumTensors


class Decoder(nn.Module):
    """A checkpoint's decoder with its towers: embeddings, cached prompt pass, completion pass."""

    placeholder_ids: Tensor

    def __init__(self, model: Any, architecture: Architecture):
        super().__init__()
        self.model = model
        self.architecture = architecture
        self.placeholders = architecture.placeholder_ids(model.config)
        place = next(model.parameters()).device
        placeholder_ids = torch.tensor(list(self.placeholders.values()), dtype=torch.int64, device=place)
        self.register_buffer("placeholder_ids", placeholder_ids, persistent=False)
        self.blank_media: Mapping[MediaKind, MediumTensors] = {}
        """Something small for each kind whose tower trains."""
        self.share_prefix = True
        """Whether a prompt runs once for all its completions; off, the results are the same and the work is more."""

    def embed(self, prompts: PromptBatch) -> Tensor:
        """Token embeddings [P, L, H] with tower features at the placeholders."""
        embedded: Tensor = self.model.get_input_embeddings()(prompts.input_ids)
        live = [item for item in prompts.media if isinstance(item, MediumTensors)]
        encoded, unused = self._run_towers(live)
        features = [encoded[item.key] if isinstance(item, MediumTensors) else item for item in prompts.media]
        if isinstance(unused, Tensor):
            embedded = embedded + unused
        if not features:
            return embedded
        is_placeholder = torch.isin(prompts.input_ids, self.placeholder_ids)
        return embedded.masked_scatter(is_placeholder[..., None], torch.cat(features).to(embedded.dtype))

    def _run_towers(self, media: Sequence[MediumTensors]) -> tuple[dict[str, Tensor], Tensor | float]:
        """Features of the different `media` by key, and a zero that ties towers without rows into the graph.

        Every rank runs every tower that trains the same number of times, whatever its rows hold: else ZeRO waits for
        ever. `blank_media` holds something to run it on.
        """
        features: dict[str, Tensor] = {}
        unused: Tensor | float = 0.0
        for kind in self.architecture.modalities:
            found = {medium.key: medium.tensors for medium in media if medium.kind is kind}
            if found:
                encoded = self.architecture.encode(self.model, kind, list(found.values()))
                features.update(zip(found, encoded, strict=True))
            elif kind in self.blank_media:
                encoded = self.architecture.encode(self.model, kind, [self.blank_media[kind].tensors])
                unused = unused + 0.0 * encoded[0].sum()
        return features, unused

    def prefill(self, prompts: PromptBatch) -> tuple[Tensor, Any, Tensor]:
        """One pass over the prompts.

        Returns:
            The hidden state [P, H] at each prompt's last token, the cache, and each prompt's next position [P].
        """
        from transformers import DynamicCache

        outputs = self.architecture.language_model(self.model)(
            inputs_embeds=self.embed(prompts),
            attention_mask=prompts.mask.long(),
            position_ids=_axes(prompts.position_ids),
            past_key_values=DynamicCache(config=self.architecture.language_model(self.model).config),
            use_cache=True,
        )
        next_position = prompts.position_ids.amax(dim=(0, 2)) + 1
        return outputs.last_hidden_state[:, -1], outputs.past_key_values, next_position

    def extend(self, token_ids: Tensor, *, cache: Any, mask: Tensor, positions: Tensor, num_axes: int) -> Tensor:
        """Hidden states [N, T, H] of `token_ids` [N, T] on `cache`; mask [N, L + T]; positions [N, T]."""
        outputs = self.architecture.language_model(self.model)(
            inputs_embeds=self.model.get_input_embeddings()(token_ids),
            attention_mask=mask.long(),
            position_ids=_axes(positions.expand(num_axes, *positions.shape)),
            past_key_values=cache,
            use_cache=True,
        )
        return outputs.last_hidden_state

    def states(self, prompts: PromptBatch, completions: CompletionBatch) -> Tensor:
        """Hidden states [N, T + 1, H]: index t predicts token t, index t + 1 has seen it."""
        if not self.share_prefix or completions.group_size == 1:  # A cache that is used once is work for nothing.
            return self._states_of_whole_rows(prompts, completions)
        last, cache, next_position = self.prefill(prompts)
        if completions.group_size is None:
            cache.batch_select_indices(completions.owner)
        else:
            # The same, with a backward pass that sums over the group in place of scattering.
            cache.batch_repeat_interleave(completions.group_size)
        hidden = self.extend(
            completions.token_ids,
            cache=cache,
            mask=torch.cat([prompts.mask[completions.owner], completions.mask], dim=1),
            positions=_following(next_position, completions),
            num_axes=prompts.position_ids.shape[0],
        )
        return torch.cat([last[completions.owner][:, None], hidden], dim=1)

    def _states_of_whole_rows(self, prompts: PromptBatch, completions: CompletionBatch) -> Tensor:
        """The same states without a cache: each prompt runs again in front of each of its completions."""
        owner = completions.owner
        embedded = self.embed(prompts)
        following = _following(prompts.position_ids.amax(dim=(0, 2)) + 1, completions)
        positions = torch.cat(
            [prompts.position_ids[:, owner], following.expand(prompts.position_ids.shape[0], *following.shape)], dim=2
        )
        outputs = self.architecture.language_model(self.model)(
            inputs_embeds=torch.cat(
                [
                    embedded if completions.group_size == 1 else embedded[owner],
                    self.model.get_input_embeddings()(completions.token_ids),
                ],
                dim=1,
            ),
            attention_mask=torch.cat([prompts.mask[owner], completions.mask], dim=1).long(),
            position_ids=_axes(positions),
            use_cache=False,
        )
        return outputs.last_hidden_state[:, prompts.input_ids.shape[1] - 1 :]


class Policy(nn.Module):
    """The language model with its vocabulary head: policy, reference and rollout."""

    def __init__(self, model: Any, architecture: Architecture):
        super().__init__()
        self.decoder = Decoder(model, architecture)
        # Placeholder tokens are impossible: what follows one is no text.
        model.lm_head = VocabularyHead(model.lm_head, list(self.decoder.placeholders.values()))

    def logits(self, hidden: Tensor, *, temperature: float) -> Tensor:
        """Float32 logits [..., V] of the distribution sampled from; placeholder tokens are impossible."""
        return self.decoder.model.lm_head(hidden, temperature=temperature)

    def forward(
        self,
        prompts: PromptBatch,
        completions: CompletionBatch,
        temperature: float = 1.0,
        with_entropy: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Logprobs [N, T] of the completions' tokens and entropies [N, T] in nats, if asked for; zero where padded."""
        hidden = self.decoder.states(prompts, completions)[:, :-1]
        # The head runs on real completion tokens only.
        chosen, entropy = self.decoder.model.lm_head(
            hidden[completions.mask],
            completions.token_ids[completions.mask],
            temperature=temperature,
            with_entropy=with_entropy,
        )
        empty = torch.zeros(completions.mask.shape, dtype=chosen.dtype, device=chosen.device)
        return (
            empty.masked_scatter(completions.mask, chosen),
            empty.masked_scatter(completions.mask, entropy),
        )


def scalar_map(hidden_size: int, num_scalars: int) -> Float32Linear:
    """A linear map that gives scalars of unit size of normalised hidden states."""
    linear = Float32Linear(hidden_size, num_scalars)
    nn.init.zeros_(linear.bias)
    nn.init.normal_(linear.weight, std=hidden_size**-0.5)
    return linear


class ScalarHead(nn.Module):
    """A float32 linear map from hidden states [..., H] to scalars [...], also in a bfloat16 world."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = scalar_map(hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Scalars [...]."""
        return self.linear(hidden)[..., 0]


class ValueModel(nn.Module):
    """The critic: sees and hears what the policy does, and values each state."""

    def __init__(self, model: Any, architecture: Architecture, head: ScalarHead):
        super().__init__()
        self.decoder = Decoder(without_vocabulary(model), architecture)
        self.head = head

    def forward(self, prompts: PromptBatch, completions: CompletionBatch) -> Tensor:
        """Values [N, T] of the states in which each token is chosen; zero where padded."""
        values = self.head(self.decoder.states(prompts, completions)[:, :-1])
        return values.masked_fill(~completions.mask, 0.0)


class RewardHead(nn.Module):
    """A float32 linear map from hidden states [..., H] to scores [..., C, M], of C criteria by M members each.

    The members are an ensemble: they start differently and learn from different samples of the data. They share the
    decoder, so their spread tells what the data leave open on its states, and nothing of what these do not hold
    (Gleave and Irving 2022, arXiv 2203.07472).
    """

    def __init__(self, hidden_size: int, criteria: Sequence[str] = (OVERALL,), num_members: int = 1):
        super().__init__()
        self.criteria = tuple(criteria)
        self.num_members = num_members
        self.linear = scalar_map(hidden_size, len(self.criteria) * num_members)

    def forward(self, hidden: Tensor) -> Tensor:
        """Scores [..., C, M]."""
        return self.linear(hidden).unflatten(-1, (len(self.criteria), self.num_members))


SMALLEST_SCALE = 1e-6
"""A reward model that tells nothing apart gives rewards of 0, and no NaN."""


class RewardModel(nn.Module):
    """Scores a whole completion at its last token, by criterion and member of the ensemble.

    The overall score is the mean of the criteria by `weights`; `means` [C] and `covariances` [C, C] of the criteria
    over held-out completions standardise it, whatever the weights.
    """

    means: Tensor
    covariances: Tensor
    weights: Tensor

    def __init__(self, model: Any, architecture: Architecture, head: RewardHead):
        super().__init__()
        self.decoder = Decoder(without_vocabulary(model), architecture)
        self.head = head
        num_criteria = len(head.criteria)
        self.register_buffer("means", torch.zeros(num_criteria))
        self.register_buffer("covariances", torch.eye(num_criteria))
        self.register_buffer("weights", torch.full((num_criteria,), 1 / num_criteria), persistent=False)

    def forward(self, prompts: PromptBatch, completions: CompletionBatch, at_every_token: bool = False) -> Tensor:
        """Raw scores [N, C, M]; or of what each token ends, [N, T, C, M]."""
        last = completions.mask.sum(1)
        states = self.decoder.states(prompts, completions)
        if at_every_token:
            return self.head(states[:, 1:])
        return self.head(states[torch.arange(len(last), device=last.device), last])

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Sets the weights of the criteria; without any all count the same, else those that are not named not at all.

        Raises:
            ConfigError: one is of a criterion that this model does not have.
        """
        if not weights:
            return
        if unknown := sorted(set(weights) - set(self.head.criteria)):
            raise ConfigError(
                f"reward_model.criterion_weights.{unknown[0]}: the reward model has the criteria "
                f"{', '.join(self.head.criteria)}; weigh these, or train one on others (reward_model.criteria)"
            )
        given = torch.tensor([weights.get(name, 0.0) for name in self.head.criteria])
        self.weights.copy_(given / given.sum())

    @property
    def mean(self) -> Tensor:
        """Of the overall score over held-out completions []."""
        return self.weights @ self.means

    @property
    def scale(self) -> Tensor:
        """Its standard deviation []."""
        return (self.weights @ self.covariances @ self.weights).sqrt().clamp(min=SMALLEST_SCALE)

    def rewards(self, scores: Tensor) -> Tensor:
        """Overall scores by member, standardised: [N, M] of raw scores [N, C, M]."""
        return (overall(scores, self.weights) - self.mean) / self.scale


def overall(scores: Tensor, weights: Tensor) -> Tensor:
    """Means [N, M] of the scores [N, C, M] of all criteria, by their weights [C]."""
    return (scores * weights[:, None]).sum(1)


def spread(scores: Tensor) -> Tensor:
    """Standard deviations (of the sample) [N] over the members of an ensemble [N, M]; 0 of one alone."""
    return scores.std(1) if scores.shape[1] > 1 else torch.zeros_like(scores[:, 0])


def without_vocabulary(model: Any) -> Any:
    """The same model without its vocabulary head, which critics and reward models do not need."""
    model.lm_head = nn.Identity()
    return model


def _axes(position_ids: Tensor) -> Tensor:
    """Positions as the decoder takes them: [R, B, L], or [B, L] where there is one axis."""
    return position_ids if position_ids.shape[0] > 1 else position_ids[0]


def _following(next_position: Tensor, completions: CompletionBatch) -> Tensor:
    """Positions [N, T] of completions that start at their prompt's `next_position` [P]."""
    steps = torch.arange(completions.token_ids.shape[1], device=completions.owner.device)
    return next_position[completions.owner][:, None] + steps
