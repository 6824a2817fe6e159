"""Measure speed and memory of all tasks beside a plain formulation; ``--help`` says what is measured."""

import sys

from bench.command import main

if __name__ == "__main__":
    sys.exit(main())
