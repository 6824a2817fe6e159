"""The body of every command, one module a command; `clipself-seg`, train_net.py and tools/ only call its `main`.

Each has `parser()`, whose help text is the module's docstring, and `main(arguments)`, which returns the
exit status. Importing one imports nothing heavy, so that --help is quick. Open `train` first.
"""
