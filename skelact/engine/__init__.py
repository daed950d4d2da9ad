"""From a config to a run: building, checkpoints, ranks, resuming, reports."""
