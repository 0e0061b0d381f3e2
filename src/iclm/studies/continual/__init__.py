"""Continual learning: tasks that come one after another."""
