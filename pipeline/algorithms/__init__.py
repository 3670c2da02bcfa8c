"""Advantages, losses, KL and reward shaping: pure functions of tensors and plain numbers, one family a file.

Conventions of the room
- Tensors of a batch are `[B, T]`: B completions, right-padded to T tokens; `mask` is True on real tokens, which form
  a prefix of each row. What padding holds, even NaN, reaches no result and no gradient.
- A normaliser is a count over the whole optimizer step, given by the caller. So results from workers and
  micro-batches add up to those of one batch.
- Log probabilities and KL are in nats, and say whose they are: policy, proximal (the policy at the
  start of the update), behaviour (the rollout copy) or reference.
"""
