"""Plain Python and torch: data, models, generation, algorithms, rewards and reports. No actors, no DeepSpeed."""
