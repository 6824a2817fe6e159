# Without make: python3 tools/setup_env.py quickstart (or demo, test, test-all, lint, setup).
PYTHON ?= python3
ARGS ?=

.PHONY: setup demo quickstart test lint test-all
setup demo quickstart test lint test-all:
	@$(PYTHON) tools/setup_env.py $@ $(ARGS)
