"""Conversion of the official archives to the layout that training reads, a file for each data set.

Open `common.py` first: it has the jobs and the writing that all preparations use.
"""
