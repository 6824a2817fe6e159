"""What turns a model into a run: order of the data, optimiser, loop, checkpoints, evaluation.

Detectron2's own engine is not used for this, because three of its parts are not what a run here
promises: its sampler restarts on resume, its checkpointer unpickles what it is given, and its loop
    turns every
error into a traceback. Its event storage, log writers, samplers for evaluation and `launch` are
used. This folder is at the end of the flow: it may import every other one, and only
``train_net.py`` imports it.
"""
