# Every target sets up what it needs: the first one makes .venv, later ones only when requirements.txt or pyproject.toml changed.

# Candidates, in order of preference; the first that runs and is new enough is taken. `make PYTHON=/path/to/python test` chooses another.
PYTHON ?= python3.12 python3.11 python3.13 python3
# Processes that share the tests, a file at a time: the tests of a file share compiled programs.
WORKERS ?= 2
# Which benchmarks `make bench` runs: all that are scripts, or `make bench NAMES="index sasrec"`.
NAMES ?= $(basename $(notdir $(shell grep -ls '__name__ == "__main__"' benchmarks/*.py)))

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help demo test nightly bench lint

# Stamps of what is installed: what jaxrec needs to run, and what its tests and checks need besides.
RUN := .venv/run
DEV := .venv/dev

help:
	@echo "make demo      train a small model on data that needs no download, and ask it for recommendations"
	@echo "make test      the default tests"
	@echo "make nightly   all tests, the slow ones too"
	@echo "make bench     all benchmarks, or those in NAMES; results go to benchmarks/results"
	@echo "make lint      format, lint and type checks"

demo: $(RUN)
	.venv/bin/jaxrec demo

test: $(DEV)
	.venv/bin/python -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile

nightly: $(DEV)
	.venv/bin/python -m pytest -q -n $(WORKERS) --dist loadfile

bench: $(DEV)
	@set -e; for name in $(NAMES); do echo "== benchmarks.$$name"; .venv/bin/python -m "benchmarks.$$name"; done

lint: $(DEV)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/basedpyright

# A stamp is written last, so a set-up that was interrupted starts again. awk shows one line per package; errors pass by it on stderr.
define install
@set -o pipefail; .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -e $(1) \
    | awk '/^Collecting/ { print "  " $$2; fflush() } /^Installing collected/ { print "  installing (about a minute)"; fflush() }'
@touch $@
endef

$(RUN): requirements.txt pyproject.toml
	@set -e; for python in $(PYTHON); do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	    echo "None of these is a working Python 3.11, 3.12 or 3.13 with venv: $(PYTHON)." >&2; \
	    echo "Install one (Debian: apt install python3.11-venv), or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	    exit 1; \
	fi; \
	echo "Setting up .venv with $$("$$found" --version); once, about 1.6 GB on disk."; \
	"$$found" -m venv .venv
	$(call install,.)

$(DEV): $(RUN)
	$(call install,'.[dev]')
