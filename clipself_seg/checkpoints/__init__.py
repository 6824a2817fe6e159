"""Files of weights: reading any of them safely, names, hashes, and the states of a training.

Open read.py first: it reads every format without running what is in the file. What a file may claim before
anything of it is made is in bounds.py.
"""
