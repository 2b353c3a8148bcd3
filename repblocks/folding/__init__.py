"""Fold whole models, and prove that the folded one is the same function."""
