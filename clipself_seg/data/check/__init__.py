"""Checks whether data sets are complete and readable, for `tools/check_datasets.py`.

Open `report.py` first: it checks data sets by name.
"""
