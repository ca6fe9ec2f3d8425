"""What a run leaves and shows: directory, checkpoints, metrics, progress, reports."""
