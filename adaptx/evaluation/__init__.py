"""Metrics by task."""
