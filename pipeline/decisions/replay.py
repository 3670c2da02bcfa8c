"""Replay of several steps at once in short sessions.

RLlib 2.60's `EpisodeReplayBuffer` takes up to n rewards from each step on, but where fewer than n are left it still
says n, and forgets that the session has ended there: a target then trusts a value of what is over. Its prioritised
sibling never samples such steps, and waits for ever where all sessions are shorter than n.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.replay_buffers.episode_replay_buffer import EpisodeReplayBuffer


class SessionReplay(EpisodeReplayBuffer):
    """As RLlib's, but that a step near the end has as many rewards as there are, and its end."""

    def _sample_episodes(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, num_items: int | None = None, *, n_step: int = 1, gamma: float = 0.99, **kwargs: Any
    ) -> list[SingleAgentEpisode]:
        """Steps of one transition each: (o_t, a_t, sum_k gamma^k r_{t+k} over m rewards, o_{t+m}), m = n or as many as
        there are, with m as `n_step` and 1 as `weights` among the extra outputs."""
        num = num_items or kwargs.get("batch_size_B") or self.batch_size_B
        found: list[SingleAgentEpisode] = []
        for index in self.rng.integers(len(self._indices), size=num):
            place, start = self._indices[index][:2]
            episode: Any = self.episodes[place - self._num_episodes_evicted]
            taken = min(n_step, len(episode) - start)
            rewards = [episode.get_rewards(start + step) for step in range(taken)]
            over = start + taken == len(episode)
            found.append(
                SingleAgentEpisode(
                    id_=episode.id_,
                    agent_id=episode.agent_id,
                    module_id=episode.module_id,
                    observation_space=episode.observation_space,
                    action_space=episode.action_space,
                    observations=[episode.get_observations(start), episode.get_observations(start + taken)],
                    actions=[episode.get_actions(start)],
                    rewards=[float(np.dot(gamma ** np.arange(taken), rewards))],
                    terminated=over and episode.is_terminated,
                    truncated=over and episode.is_truncated,
                    extra_model_outputs={"n_step": [taken], "weights": [1.0]},
                    t_started=start,
                    len_lookback_buffer=0,
                )
            )
        self.sampled_timesteps += num
        return found
