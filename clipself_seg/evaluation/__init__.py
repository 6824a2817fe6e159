"""Reads outputs and turns them into numbers and tables."""
