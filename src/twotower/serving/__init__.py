"""Serving: user tower live, index searched, answers that name their generation."""
