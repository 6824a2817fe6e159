# Without make: python3 tools/setup_env.py quickstart (or test, lint, setup).
PYTHON ?= python3
ARGS ?=

.PHONY: setup quickstart test lint
setup quickstart test lint:
	@$(PYTHON) tools/setup_env.py $@ $(ARGS)
