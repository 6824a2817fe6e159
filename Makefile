# Without make: python3 tools/setup_env.py quickstart (or test, test-all, lint, setup).
PYTHON ?= python3
ARGS ?=

.PHONY: setup quickstart test lint test-all
setup quickstart test lint test-all:
	@$(PYTHON) tools/setup_env.py $@ $(ARGS)
