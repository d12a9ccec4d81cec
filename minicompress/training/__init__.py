"""Optimiser, schedules, shards over threads, the step of a whole model, and checkpoints that resume bit for bit."""
