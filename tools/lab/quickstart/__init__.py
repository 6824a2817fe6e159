"""The quickstart: trains and evaluates on the generated worlds, and writes a page of the results.

Open `quickstart.py` first: it runs the chapters one after the other.
"""
