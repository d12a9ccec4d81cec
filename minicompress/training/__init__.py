"""Optimiser, schedule, shards over threads, the loop, and checkpoints that resume bit for bit."""
