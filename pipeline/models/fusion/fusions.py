"""Seven ways to fuse the tokens of several modalities into one embedding, any of which may be missing in any row.

Each takes the tokens of all modalities, and gives an embedding and how much each modality has in it. What lies in the
place of a missing modality changes nothing, not a bit; but for `concat`, which has a learned token in its place, the
result is what a model without that modality would give. Parameters of a modality bear its name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config.fusion import FusionKind, FusionSettings, Modality
from pipeline.models.fusion.attention import (
    Attention,
    Block,
    Messages,
    masked_mean,
    masked_softmax,
    perceptron,
)

INITIAL_SPREAD = 0.02


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch, as encoders gave them and a layer made them equally wide.

    tokens: of each modality float32 [B, T, H]. masks: which of them are there, bool [B, T]; none in a row that lacks
    the modality. present: bool [B, M].
    """

    tokens: Mapping[Modality, Tensor]
    masks: Mapping[Modality, Tensor]
    present: Tensor

    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """All tokens [B, sum of T, H] side by side, which are there [B, sum of T], and whose they are [sum of T]."""
        whose = [
            torch.full((each.shape[1],), number, device=each.device) for number, each in enumerate(self.tokens.values())
        ]
        return torch.cat([*self.tokens.values()], 1), torch.cat([*self.masks.values()], 1), torch.cat(whose)


class Fusion(nn.Module):
    """Base of all: `forward` gives the embedding float32 [B, H] and the weights of the modalities float32 [B, M]."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__()
        self.modalities = settings.modalities
        self.size = settings.hidden_size

    def forward(self, given: Tokens) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def by_modality(self, shape: tuple[int, ...]) -> nn.ParameterDict:
        """A small random parameter for each modality, in their order: of a plain dict it would be the alphabet's."""
        parameters = OrderedDict((each.value, torch.randn(shape) * INITIAL_SPREAD) for each in self.modalities)
        return nn.ParameterDict(parameters)


def stacked(parameters: nn.ParameterDict) -> Tensor:
    """Parameters of all modalities, one after the other."""
    return torch.stack([*parameters.values()])


def shares(amounts: Tensor, present: Tensor) -> Tensor:
    """Amounts >= 0 [B, M] as shares of their sum over the modalities that are there; equal ones where all are 0."""
    kept = torch.where(present, amounts + torch.finfo(amounts.dtype).tiny, torch.zeros_like(amounts))
    return kept / kept.sum(-1, keepdim=True)


class Pooled(Fusion):
    """Base of those that fuse one vector a modality: the mean of its tokens through a perceptron of its own."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__(settings)
        self.summaries = nn.ModuleDict({each.value: perceptron(self.size, self.size) for each in self.modalities})

    def vectors(self, given: Tokens) -> Tensor:
        """The vectors [B, M, H]; of what is not there, those of nothing."""
        means = {each: masked_mean(given.tokens[each], given.masks[each]) for each in self.modalities}
        return torch.stack([self.summaries[each.value](mean) for each, mean in means.items()], 1)


class Concat(Pooled):
    """Vectors side by side through a layer, e = W [v_1; ...; v_M] + b, a learned vector for each that is not there.

    Weights are shares of |W_m v_m|.
    """

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__(settings)
        self.absent = self.by_modality((self.size,))
        self.layers = nn.ModuleDict({each.value: nn.Linear(self.size, self.size) for each in self.modalities})

    def forward(self, given: Tokens) -> tuple[Tensor, Tensor]:
        vectors = torch.where(given.present[..., None], self.vectors(given), stacked(self.absent))
        # A layer over vectors side by side is the sum of a layer over each.
        parts = torch.stack([self.layers[each.value](vectors[:, m]) for m, each in enumerate(self.modalities)], 1)
        return parts.sum(1), shares(parts.norm(dim=-1), given.present)


class Average(Pooled):
    """The mean of the vectors that are there. Weights are shares of |v_m|: a vector may learn to be small."""

    def forward(self, given: Tokens) -> tuple[Tensor, Tensor]:
        vectors = self.vectors(given)
        return masked_mean(vectors, given.present), shares(vectors.norm(dim=-1), given.present)


class Weighted(Pooled):
    """The mean with learned weights, softmax(a) over what is there: the same for all rows that have the same."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__(settings)
        self.scores = self.by_modality(())

    def forward(self, given: Tokens) -> tuple[Tensor, Tensor]:
        weights = masked_softmax(stacked(self.scores).expand(given.present.shape), given.present)
        return (weights[..., None] * self.vectors(given)).sum(1), weights


class Gated(Pooled):
    """Each dimension is a mean of the modalities, gated by what they hold (after Arevalo et al. 2017, GMU).

    g = softmax over m of G_m [v_m; mean of v], a gate a dimension; e = sum of g_m * v_m. Weights are means of g_m.
    """

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__(settings)
        self.gates = nn.ModuleDict({each.value: nn.Linear(2 * self.size, self.size) for each in self.modalities})

    def forward(self, given: Tokens) -> tuple[Tensor, Tensor]:
        vectors = self.vectors(given)
        context = masked_mean(vectors, given.present)
        scores = [
            self.gates[each.value](torch.cat([vectors[:, m], context], -1)) for m, each in enumerate(self.modalities)
        ]
        gates = masked_softmax(torch.stack(scores, -1), given.present[:, None])  # [B, H, M]
        return (gates * vectors.transpose(1, 2)).sum(-1), gates.mean(1)


class CrossAttention(Fusion):
    """Each token attends to the tokens of the other modalities (after Tsai et al. 2019, MulT), then one learned
    question to all of them. Weights are the attention that the question paid to each modality."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__(settings)
        self.kinds = self.by_modality((self.size,))
        self.blocks = nn.ModuleList(Block(self.size, settings.num_heads) for _ in range(settings.num_layers))
        self.question = nn.Parameter(torch.randn(self.size) * INITIAL_SPREAD)
        self.normal, self.pool = nn.LayerNorm(self.size), Attention(self.size, settings.num_heads)

    def forward(self, given: Tokens) -> tuple[Tensor, Tensor]:
        tokens, mask, whose = given.joined()
        tokens = tokens + stacked(self.kinds)[whose]
        others = whose[:, None] != whose[None]
        for block in self.blocks:
            tokens, _ = block(tokens, mask[:, None] & others)
        question = self.question.expand(len(tokens), 1, -1)
        embedding, attention = self.pool(question, self.normal(tokens), mask[:, None])
        return embedding[:, 0], mass(attention[:, 0], whose, given.present)


class Shared(Fusion):
    """Early fusion: all tokens and one that sums them up run through one transformer. Weights are the attention that
    the summing token paid to each modality in the last layer."""

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__(settings)
        self.kinds = self.by_modality((self.size,))
        self.summary = nn.Parameter(torch.randn(self.size) * INITIAL_SPREAD)
        self.blocks = nn.ModuleList(Block(self.size, settings.num_heads) for _ in range(settings.num_layers))

    def forward(self, given: Tokens) -> tuple[Tensor, Tensor]:
        tokens, mask, whose = given.joined()
        tokens = tokens + stacked(self.kinds)[whose]
        tokens = torch.cat([self.summary.expand(len(tokens), 1, -1), tokens], 1)
        allowed = torch.cat([mask.new_ones(len(mask), 1), mask], 1)[:, None].expand(-1, tokens.shape[1], -1)
        attention = tokens.new_zeros(())
        for block in self.blocks:
            tokens, attention = block(tokens, allowed)
        return tokens[:, 0], mass(attention[:, 0, 1:], whose, given.present)


class Graph(Fusion):
    """Modalities and their segments are nodes that pass messages; the modalities' nodes are then read out.

    The tokens of a modality are averaged into segments, in their order. A segment hears its neighbours in the order and
    its modality; a modality hears its segments and the other modalities. Weights are the softmax of the read-out.
    """

    def __init__(self, settings: FusionSettings) -> None:
        super().__init__(settings)
        self.num_segments = settings.num_segments
        self.kinds = self.by_modality((self.size,))
        self.hubs = self.by_modality((self.size,))
        self.rounds = nn.ModuleList(Messages(self.size) for _ in range(settings.num_layers + 1))
        self.normal, self.score = nn.LayerNorm(self.size), nn.Linear(self.size, 1)

    def forward(self, given: Tokens) -> tuple[Tensor, Tensor]:
        segments, there = self._segments(given)
        batch, num = len(segments), len(self.modalities)
        hubs = stacked(self.hubs).expand(batch, -1, -1)
        nodes = torch.cat([hubs, segments], 1)
        exist = torch.cat([given.present, there], 1)
        edges = self._edges(nodes.device) & exist[:, None] & exist[..., None]
        for each in self.rounds:
            nodes = each(nodes, edges)
        read = self.normal(nodes[:, :num])
        weights = masked_softmax(self.score(read)[..., 0], given.present)
        return (weights[..., None] * read).sum(1), weights

    def _segments(self, given: Tokens) -> tuple[Tensor, Tensor]:
        """The segments of all modalities [B, M * S, H], and which of them hold a token [B, M * S]."""
        nodes: list[Tensor] = []
        there: list[Tensor] = []
        for modality in self.modalities:
            tokens, mask = given.tokens[modality], given.masks[modality]
            # Of what is there: the segments of a short sound are short.
            places = (mask.cumsum(1) - 1) * self.num_segments // mask.sum(1, keepdim=True).clamp(min=1)
            within = (places[:, None] == torch.arange(self.num_segments, device=mask.device)[:, None]) & mask[:, None]
            nodes.append(masked_mean(tokens[:, None], within) + self.kinds[modality.value])
            there.append(within.any(-1))
        return torch.cat(nodes, 1), torch.cat(there, 1)

    def _edges(self, device: torch.device) -> Tensor:
        num, size = len(self.modalities), self.num_segments
        hub = torch.cat([torch.full((num,), -1), torch.arange(num).repeat_interleave(size)])  # whose segment a node is
        place = torch.arange(num + num * size)
        is_hub = hub < 0
        among_hubs = is_hub[:, None] & is_hub[None]
        of_hub = (hub[:, None] == place[None]) | (hub[None] == place[:, None])
        in_order = (hub[:, None] == hub[None]) & ~is_hub[:, None] & ((place[:, None] - place[None]).abs() == 1)
        return ((among_hubs | of_hub | in_order) & ~torch.eye(len(place), dtype=torch.bool)).to(device)


def mass(attention: Tensor, whose: Tensor, present: Tensor) -> Tensor:
    """Attention [B, T] summed by modality, as shares [B, M]."""
    owners = torch.nn.functional.one_hot(whose, present.shape[1]).to(attention.dtype)
    return shares(attention @ owners, present)


FUSIONS: Mapping[FusionKind, Callable[[FusionSettings], Fusion]] = {
    FusionKind.CONCAT: Concat,
    FusionKind.AVERAGE: Average,
    FusionKind.WEIGHTED: Weighted,
    FusionKind.GATED: Gated,
    FusionKind.CROSS_ATTENTION: CrossAttention,
    FusionKind.SHARED: Shared,
    FusionKind.GRAPH: Graph,
}
