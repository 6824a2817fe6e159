"""Detectron2 meta-architectures: towers and heads put together, and nothing else."""
