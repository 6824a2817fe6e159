"""What CLIPSelf trains for (``objectives.py``), and what an objective may ask of a step (``step.py``)."""
