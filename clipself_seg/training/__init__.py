"""Trains and evaluates models, as train_net.py does: tasks, loop, optimiser, logs. Open run.py first.

Detectron2's own engine is not used for this, because three of its parts are not what a run here promises: its
sampler restarts on resume, its checkpointer unpickles what it is given, and its loop turns every error into a
traceback. Its event storage, log writers, samplers for evaluation and `launch` are used.
"""

from clipself_seg import detectron2_needed  # noqa: F401  (says what to do where it is missing)
