# Everything happens in .venv of this checkout; nothing else on the machine changes but Debian packages for tests.

PYTHON ?= python3
BIN := .venv/bin
# Python compiles what it imports at its first import, and keeps it: most of what is installed is never imported.
unexport PYTHONDONTWRITEBYTECODE
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
LOCK := requirements.lock
TORCH_INDEX := https://download.pytorch.org/whl/cpu
#: Real CT for tests and the demonstration; both do without where it is missing.
DATA ?= $(or $(CONCORDCT_DATA),$(wildcard ../shared/data))
#: Browser, DICOM judge and the like that some tests use; without them those tests skip and say so.
PACKAGES := chromium dicom3tools dcmtk orthanc orthanc-dicomweb shellcheck
#: PyRadiomics, beside the project's own environment because it needs an older NumPy.
REFERENCE := .venv/pyradiomics

.PHONY: demo fuzz test test-fast reference lint bench bench-real-pairs bench-speed bench-physics bench-features \
  bench-papers bench-flagship bench-self-check bench-registration bench-followup bench-followup-speed bench-service \
  bench-endpoints bench-idc bench-combat bench-downstream paper-weights mutants docs dist packages lock licences crash \
  clean bench-nonlinear bench-thickness bench-reference references bench-iterative bench-window bench-width bench-install \
  bench-followup-weights bench-followup-why bench-scale bench-inspect

demo: .venv/installed
	$(BIN)/concordct demo -o demo $(if $(DATA),--real-data $(DATA))

# One thread for each of two processes: they do not take turns on two cores, and sums keep their order.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

# Lint, types and every test: under twelve minutes on two cores.
test:
	+$(MAKE) --no-print-directory --output-sync=target -j 3 .venv/installed packages reference lint
	$(PYTEST)

# The tests that take less than five seconds: under three minutes.
test-fast: .venv/installed
	$(PYTEST) -m "not slow"

# An hour of seeded mutations of every kind of file that is read; exit 1 where one is read wrongly, crashes or hangs.
fuzz: .venv/installed
	$(BIN)/python tests/border/fuzz.py --minutes 60 --seed $$(date +%s)

# The documentation site: docs/_build/html/index.html. Warnings are errors.
docs: .venv/installed
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

# Wheel and source distribution, checked; nothing is uploaded.
dist: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: bench-real-pairs bench-speed bench-features

bench-real-pairs: .venv/installed
	$(BIN)/python -m benchmarks.real_pairs

bench-speed: .venv/installed
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.speed_beside

bench-features: .venv/installed reference
	$(BIN)/python -m benchmarks.features

# Ten minutes of one core to scan the smokers once, then five; resumes. Writes docs/results/endpoints.md.
bench-endpoints: .venv/installed
	$(BIN)/python -m benchmarks.endpoints

# From a public collection to its tables; here simulated patients in a local archive (ten minutes, resumes).
# `.venv/bin/python -m benchmarks.idc --archive -n 40` takes NLST itself: 6 GB and a network.
bench-idc: .venv/installed
	$(BIN)/python -m benchmarks.idc

# A few minutes once the papers' cohort is there; resumes.
bench-combat: .venv/installed
	$(BIN)/python -m benchmarks.combat

# A few minutes once the papers' cohort is there; a U-Net of lungs trained, then asked before and after conversion.
bench-downstream: .venv/installed
	$(BIN)/python -m benchmarks.downstream

# About a quarter of an hour; writes docs/physics.md and its figures.
bench-physics: .venv/installed
	$(BIN)/python -m benchmarks.physics

# Two hours of one core; stops and resumes where it was. `--minutes 9` makes pieces of it, `--page` writes what stands.
bench-papers: .venv/installed
	$(BIN)/python -m benchmarks.papers_rivals
	$(BIN)/python -m benchmarks.papers_rivals_page
	$(BIN)/python -m benchmarks.papers

# What training left of LTDiff++ and DiffusionCT goes into the package.
paper-weights: .venv/installed
	$(BIN)/python -m benchmarks.papers_weights

# Hours of one core; `--minutes 9` makes pieces of it.
mutants: .venv/installed
	$(BIN)/python -m benchmarks.mutants

# About an hour on two cores; its parts resume. Rows of the papers' methods appear when bench-papers has trained them.
bench-flagship: .venv/installed
	$(BIN)/python -m benchmarks.flagship

# Five minutes. Real pairs of iterative and deep-learning reconstruction beside a real repeat.
bench-nonlinear: .venv/installed
	$(BIN)/python -m benchmarks.nonlinear

# Seconds. Slices of 1 mm to slices of 5 mm.
bench-thickness: .venv/installed
	$(BIN)/python -m benchmarks.thickness

# Minutes, and a package index: sizes and start-up times of an installation. `--python python3.12` adds interpreters.
bench-install: .venv/installed
	$(BIN)/python -m benchmarks.install

# Minutes after `make bench-followup`, whose cohort and model it takes: the follow-up model that ships, and its page.
bench-followup-weights: .venv/installed
	$(BIN)/python -m benchmarks.followup_weights

# Minutes after `make bench-followup`, whose cohort it takes: why ResViT and cDiff stay where they are.
bench-followup-why: .venv/installed
	$(BIN)/python -m benchmarks.followup_why

bench-width: .venv/installed
	$(BIN)/python -m benchmarks.width

bench-window: .venv/installed
	$(BIN)/python -m benchmarks.window

bench-iterative: .venv/installed
	$(BIN)/python -m benchmarks.iterative

bench-reference: .venv/installed
	$(BIN)/python -m benchmarks.reference

# The reference conditions that come with the package, measured on the simulated cohort.
references: .venv/installed
	$(BIN)/python -m benchmarks.reference --make

# A quarter of an hour on two quiet cores; what stands in runs/scale is not measured again (`--anew` does).
# CONCORDCT_SCALE_SLICES=12 takes minutes on a busy machine, and the page says so.
bench-scale: .venv/installed
	$(BIN)/python -m benchmarks.scale

# Minutes. 2,000 and 20,000 files; `--files 200000` takes ten times as long.
bench-inspect: .venv/installed
	$(BIN)/python -m benchmarks.inspect_tree

# A quarter of an hour.
bench-self-check: .venv/installed
	$(BIN)/python -m benchmarks.self_check

# A quarter of an hour. Rows of ANTs from an environment that has antspyx:
# PYTHONPATH=src:. ANTS/bin/python -m benchmarks.registration --backend ants
bench-registration: .venv/installed
	$(BIN)/python -m benchmarks.registration

# About ten minutes on two quiet cores; writes docs/results/service.md. One of its three kinds of clients is dcmtk's.
bench-service: .venv/installed
	$(BIN)/python -m benchmarks.service

# Two to five minutes.
bench-followup-speed: .venv/installed
	$(BIN)/python -m benchmarks.followup_speed

# Most of a day on two cores (194 subjects, 18 models on each of the first two folds, about an hour of one core a fold);
# `--minutes 9` makes pieces of it, `--folds 3 4` or `--only SAGAN` in a second process takes a share;
# `--subjects 40 --folds 0 --most-steps 150 --brief` takes half an hour.
bench-followup: .venv/installed
	$(BIN)/python -m benchmarks.followup

# What `make demo` and `make test` install: every version, with its hashes, and torch for processors alone.
.venv/installed: pyproject.toml constraints.txt $(LOCK)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	{ $(PIP) --require-hashes -r $(LOCK) 2>/dev/null \
	  || $(PIP) --extra-index-url $(TORCH_INDEX) --require-hashes -r $(LOCK); } && $(PIP) --no-deps -e . \
	  || { echo "$(LOCK) does not fit this machine; installing by the ranges of pyproject.toml"; \
	       $(PIP) -c constraints.txt -e '.[dev]'; }
	touch $@

# PyRadiomics 3.0.1, for comparison in tests and benchmarks only: an environment of its own, tried once. It is compiled
# from source, which takes Python 3.11 and a C compiler.
reference: $(REFERENCE)/tried
	@test -e $(REFERENCE)/installed \
	  || echo "no PyRadiomics 3.0.1 ($$(cat $(REFERENCE)/tried)): its tests skip; rm -r $(REFERENCE) to try again"

$(REFERENCE)/tried: tests/reference_pyradiomics.txt
	@rm -rf $(REFERENCE); mkdir -p $(REFERENCE); \
	for python in $(PYTHON) python3.11 none; do \
	  $$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1 && break; \
	done; \
	limit=$$(command -v timeout >/dev/null && echo timeout 150); \
	pip="$$limit $(REFERENCE)/bin/python -m pip install --quiet --disable-pip-version-check --timeout 15 --retries 1"; \
	if [ $$python = none ]; then echo "it needs Python 3.11" >$@; \
	elif $$python -m venv $(REFERENCE) && $$pip -r $< && $$pip --no-build-isolation --no-deps pyradiomics==3.0.1 \
	  && $(REFERENCE)/bin/python -c 'from radiomics import featureextractor'; then \
	  echo installed >$@; touch $(REFERENCE)/installed; \
	else echo "see $(REFERENCE)/log" >$@; fi >$(REFERENCE)/log 2>&1

# RUNLEVEL=1 keeps Debian from starting what it installs: Orthanc is run by its test alone.
packages:
	@missing=$$(for package in $(PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || echo $$package; done); \
	[ -n "$$missing" ] || exit 0; \
	get() { RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$$@" >/dev/null 2>&1; }; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing" $$missing; \
	  get $$missing || { apt-get update -qq >/dev/null 2>&1; get $$missing; } || for package in $$missing; do \
	    get $$package || echo "could not install $$package: its tests skip"; \
	  done; \
	else for package in $$missing; do echo "$$package is not installed: its tests skip"; done; fi

# The lock file anew; takes uv. After any change of the dependencies in pyproject.toml.
lock:
	$(BIN)/python -m benchmarks.lock

licences: .venv/installed
	$(BIN)/python -m benchmarks.licences

# 100 kills over all verbs, full and read-only disks, sources that vanish: a quarter of an hour; docs/results/crash.md.
crash: .venv/installed
	$(BIN)/python -m benchmarks.crash

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache
