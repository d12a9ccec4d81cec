"""Supervised tuning: examples with their answers, and slots that follow the answers' likelihood."""
