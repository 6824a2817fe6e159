"""The body of every command, one module a command.

A function becomes a command by `options.command`: its docstring is the help text, and a call with the words of a
command line returns the exit status. Importing one imports nothing heavy, so that --help is quick. Open `train` first.
"""
