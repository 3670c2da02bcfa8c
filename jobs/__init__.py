"""One driver a stage: `prepare`, `sft`, `reward_model`, `rlhf`, `evaluate`, and `quickstart`, which chains them."""
