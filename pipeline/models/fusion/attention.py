"""Attention and message passing over tokens of several modalities, of which some are not there."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def masked_softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the last dimension of `scores` among what is `allowed` (bool, broadcast): 0 elsewhere.

    A row where nothing is allowed is all 0, and so are its gradients.
    """
    least = torch.finfo(scores.dtype).min
    return scores.masked_fill(~allowed, least).softmax(-1).masked_fill(~allowed, 0.0)


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of `tokens` [..., T, E] over T where `mask` [..., T] says so: [..., E]; 0 where nothing is there."""
    # Not times the mask: whatever lies in a row that is not there, NaN too, must change nothing.
    kept = tokens.masked_fill(~mask[..., None], 0.0)
    return kept.sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) that also says who attended to whom."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))

    def forward(self, asking: Tensor, asked: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Asking [B, Q, E], asked [B, T, E], allowed bool [B, Q, T]: what is heard [B, Q, E], probabilities [B, Q, T]
        averaged over heads. Where nothing may be asked, nothing is heard: 0."""

        def heads(tokens: Tensor) -> Tensor:
            return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        query, key, value = heads(self.query(asking)), heads(self.key(asked)), heads(self.value(asked))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        probabilities = masked_softmax(scores, allowed[:, None])
        heard = self.out((probabilities @ value).transpose(1, 2).flatten(2))
        return heard * allowed.any(-1, keepdim=True), probabilities.mean(1)


class Block(nn.Module):
    """A transformer layer, normalised first: attention, then a perceptron, each beside a path of its own."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_perceptron = nn.LayerNorm(size), nn.LayerNorm(size)
        self.attention = Attention(size, num_heads)
        self.perceptron = perceptron(size, 2 * size)

    def forward(self, tokens: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, T, E] that attend to each other where `allowed` [B, T, T] says so, and who attended to whom."""
        normal = self.before_attention(tokens)
        heard, probabilities = self.attention(normal, normal, allowed)
        tokens = tokens + heard
        return tokens + self.perceptron(self.before_perceptron(tokens)), probabilities


class Messages(nn.Module):
    """A round of messages (Gilmer et al. 2017): a node takes in the mean of its neighbours, through a perceptron."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.normal, self.message = nn.LayerNorm(size), nn.Linear(size, size)
        self.update = nn.Sequential(nn.Linear(2 * size, size), nn.GELU(), nn.Linear(size, size))

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Nodes [B, N, E] after a round; edges bool [B, N, N] say whom (second) a node (first) hears."""
        normal = self.normal(nodes)
        weights = edges.to(nodes.dtype) / edges.sum(-1, keepdim=True).clamp(min=1)
        return nodes + self.update(torch.cat([normal, weights @ self.message(normal)], -1))


def perceptron(size: int, inner: int) -> nn.Sequential:
    """Two layers with a GELU between."""
    return nn.Sequential(nn.Linear(size, inner), nn.GELU(), nn.Linear(inner, size))
