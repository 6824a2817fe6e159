# Without make: python3 tools/setup_env.py quickstart (or demo, tables, test, quick, ...).
PYTHON ?= python3
ARGS ?=

.PHONY: setup demo quickstart tables test quick lint docs test-all
setup demo quickstart tables test quick lint docs test-all:
	@$(PYTHON) tools/setup_env.py $@ $(ARGS)
