"""Training objectives of CLIPSelf (``objectives.py``), and the values of a step that they read (``step.py``)."""
