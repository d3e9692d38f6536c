"""Tuning: which fine-tuning pipeline, for a new task, under a budget of seconds."""
