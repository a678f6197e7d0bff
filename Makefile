# Two commands do it all: `make repro` builds the results and the site, `make test` runs every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Sub-commands, dvc and snakemake find each other in the environment.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export NO_MKDOCS_2_WARNING := 1
# Each file of tests in one worker, which builds what they share once and has its one Slurm to itself.
SPREAD := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: bench repro test tally test-slurm check serve proof laws licences install

repro: install  ## build everything of the tier that params.yaml names, then say what was built and what to open
	@noscratch repro

test: install  ## the whole test suite, but for the long versions behind `make proof`
	@python -m pytest -q -m "not slow" $(SPREAD)

tally: install laws  ## the suite once more, and what it proved into reports/records/tests, for the site; the long versions too
	@python -m pytest -q -m "not slow" $(SPREAD) --tally=reports/records/tests/test.json
	@python -m pytest -q -m slow --tally=reports/records/tests/proof.json

proof: install laws  ## the long versions: every law on 10,000 examples, simulations, machine code, kills
	@python -m pytest -q -m slow

test-slurm: install  ## the smoke plan on a real one-node Slurm, and jobs and daemons that die (needs root, slurm and munge)
	@python -m pytest -q -rs tests/test_slurm.py

check: install  ## lint, types, the plan, the site; changes nothing
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile
	hadolint Dockerfile
	mypy
	snakemake --dry-run --quiet all
	@test -d site/docs/generated || noscratch repro
	mkdocs build --config-file site/mkdocs.yml --strict --site-dir "$(CURDIR)/data/check-site"

serve: install  ## the site at http://127.0.0.1:8000, rebuilt when a page changes
	mkdocs serve --config-file site/mkdocs.yml --dev-addr 127.0.0.1:8000

# Whose kernels are shown after training: what the store holds of these, mini before smoke.
TRAINED = $(foreach b,s4 s4d sgconv,$(firstword $(foreach t,mini smoke,$(wildcard data/store/*-finetune-$t-listops-$b-spt-masked-seed0))))
bench: install  ## every measurement (PEERS="--peer-s4 PATH ..."; sources from NOSCRATCH_MIRROR); on an idle machine
	python -m bench.kernels $(PEERS) --out reports/records/bench-kernels
	python -m bench.error_growth --out reports/records/bench-error-growth
	python -m bench.generators reports/records/bench-generators/generators.json
	python -m bench.preparation reports/records/bench-preparation/preparation.json
	python -m bench.batching --out reports/records/bench-batching
	python -m bench.training --out reports/records/bench-training
	python -m bench.generation --out reports/records/bench-generation
	python -m bench.estimates --out reports/records/bench-estimates
	python -m bench.claims
	python -m bench.impulse --out reports/records/bench-impulse --trained $(TRAINED)
	python -m bench.scale --out reports/records/bench-scale

laws: install  ## every kernel law on at least 10,000 examples, counted for the site; about half an hour of CPU time
	@HYPOTHESIS_PROFILE=laws python -m pytest -q --numprocesses 2 --tally=reports/records/tests/laws.json tests/test_kernels_*.py

licences: install  ## write site/docs/licences.md anew, after requirements.lock has changed
	@python tests/licences.py

install: $(STAMP)

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5) and "noscratch needs Python 3.11.5 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
