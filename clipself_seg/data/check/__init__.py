"""Checks whether data sets are complete and readable, for `clipself-seg data check`.

Open `report.py` first: it checks data sets by name.
"""
