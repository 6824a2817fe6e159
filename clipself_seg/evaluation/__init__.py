"""Evaluates models on data sets and turns outputs into numbers and tables, a folder a task; start with base.py."""
