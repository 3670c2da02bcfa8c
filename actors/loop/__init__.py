"""What a driver composes: crew, door, sampler, judge, parity, validation, checkpoints, metrics."""
