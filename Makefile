# Two commands on a fresh machine: `make demo` and `make test`. Both set up .venv first if needed,
# with PYTHON; `make demo` installs only what the stream and the demo need.
PYTHON ?= python3
PY := .venv/bin/python
PIP_INSTALL := .venv/bin/pip install --quiet --disable-pip-version-check
# One thread per process for numeric libraries: the tests run side by side.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-stream setup-system fmt lint type unit golden golden-update test-cluster gpu check-engines bench bench-workers bench-page bench-loaders bench-training bench-models bench-scan bench-feed evaluate-shipped train-shipped soak soak-all demo test schema clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

setup: .venv/ready ## make .venv with everything: stream, training, export, tests
setup-stream: .venv/lean ## make .venv with what the stream and the demo need, no more

setup-system: ## the Debian packages that tests use, by apt-get; without them those tests skip
	@.ci/setup-system

# A broken .venv, or one of another Python, is made anew. Versions: requirements/constraints.txt.
.venv/lean: requirements/constraints.txt requirements/stream.txt requirements/demo.txt
	@echo "== setup: .venv for the stream and the demo (6 GB with torch's CUDA libraries; minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; found %s: make PYTHON=python3.11" % sys.version.split()[0])'
	@{ [ "$$(.venv/bin/python -V 2>&1)" = "$$($(PYTHON) -V)" ] && .venv/bin/pip -V > /dev/null 2>&1; } || $(PYTHON) -m venv --clear .venv
	$(PIP_INSTALL) -r requirements/demo.txt
	@touch $@

.venv/ready: .venv/lean requirements/dev.txt
	@echo "== setup: what training, export and tests need on top (1 GB more)"
	@.venv/bin/pip uninstall --quiet --yes facenet-pytorch 2> /dev/null # left by an earlier run
	$(PIP_INSTALL) -r requirements/dev.txt
	.venv/bin/pip check
	@echo "== setup: facenet-pytorch without its dependencies, whose pins forbid this torch"
	$(PIP_INSTALL) --no-deps facenet-pytorch==2.6.0
	@touch $@

fmt: setup ## format and fix what can be fixed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

lint: setup ## ruff, import rules, spelling
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	.venv/bin/codespell

type: setup ## mypy, strict
	.venv/bin/mypy

unit: setup ## all tests but the golden ones
	.venv/bin/pytest -q -n 2 -m "not gpu and not golden and not cluster"

golden: setup ## results against stored ones
	.venv/bin/pytest -q -n 2 -m "golden and not gpu"

golden-update: setup ## rewrite the stored results; review the diff
	.venv/bin/pytest -q -m golden --golden-update

test-cluster: setup ## what starts a Ray cluster: minutes, not in `make test`
	.venv/bin/pytest -q -m cluster

gpu: setup ## on an NVIDIA GPU: its tests, engines, cameras, and docs/gpu-status.md with what ran (never run here)
	$(PY) -m benchmarks.gpu

check-engines: setup ## every network: exports, equals torch, is taken by TensorRT-RTX; no GPU needed
	$(PY) -m trt_engines check --json benchmarks/results/engines-$$(date -u +%F).json

bench: setup ## cameras held on this machine, beside a naive loop and one of public parts
	$(PY) -m benchmarks.cameras

bench-workers: setup ## one process against two, and what a worker's deaths cost
	$(PY) -m benchmarks.workers

bench-page: setup ## what viewers of the live page cost the analysis
	$(PY) -m benchmarks.page

bench-training: setup ## the training loop beside a bare one, two ranks, memory, prepare
	$(PY) -m benchmarks.training

bench-loaders: setup ## faces a second from shards, by PyTorch and by DALI, and from video
	$(PY) -m benchmarks.loaders

bench-models: setup ## cost of every network, written into docs/methods.md
	$(PY) -m benchmarks.models

# Where the clips and pictures are that shipped engines are judged on; LADDER=1 degrades them, too (long).
DATA ?= ../shared/data
evaluate-shipped: setup ## the shipped detectors on real attacks, at their own thresholds; LOOK="who, why" notes it
	$(PY) -m train evaluate-shipped --root $(DATA) $(if $(TEACHER),--teacher $(TEACHER)) $(if $(LADDER),--ladder) $(if $(LOOK),--look "$(LOOK)")

train-shipped: setup ## the shipped presentation-attack detector, from scratch, of the open data in DATA; about two hours of one core
	$(PY) -m models get minifasnet
	$(PY) -m train prepare --dataset real_faces --root $(DATA) --option collection=configs/train/faces.yaml --set window=inside --set margin=4.2 --set size_px=256 --set resize=bilinear --set frames_per_video=48 --out runs/wide_faces
	$(PY) -m train configs/train/lgsc_presentation.yaml
	$(PY) -m train configs/train/lgsc_presentation_2.yaml
	$(PY) -m train export runs/lgsc_presentation_2 --false-alarms 0.056 --onnx-only --out runs/lgsc_presentation_2/engine

bench-scan: setup ## times real time of each mode of `scan`, memory over small files; DATA: agreement of modes
	$(PY) -m benchmarks.scan --data $(DATA)

bench-feed: setup ## what the watch over feeds finds, how soon, and what where nothing is; DATA
	$(PY) -m benchmarks.feed --data $(DATA)

soak: setup ## 30 minutes with two cameras, one of which dies every two minutes
	$(PY) -m benchmarks.soak

schema: setup ## rewrite the JSON Schemas of docs/: messages, reports, configuration
	$(PY) -m stream.messages > docs/messages.schema.json
	$(PY) -m train.evaluation.report > docs/report.schema.json
	$(PY) -m stream.config > docs/config.schema.json

soak-all: setup ## 30 minutes of everything at once, with everything failing now and then; needs redis-server
	$(PY) -m benchmarks.soak_all

demo: .venv/lean ## a generated clip, end to end, under a minute
	$(PY) -m demo

test: ## what CI runs: setup, lint, types, all tests
	@echo "== test 1/4: setup"; $(MAKE) --no-print-directory setup
	@echo "== test 2/4: lint"; $(MAKE) --no-print-directory lint
	@echo "== test 3/4: types"; $(MAKE) --no-print-directory type
	@echo "== test 4/4: golden results, unit and end-to-end tests"
	@began=$$(date +%s); .venv/bin/pytest -q -n 2 --dist worksteal --durations=20 --durations-min=5 -m "not gpu and not cluster"; \
	code=$$?; echo "== test: pytest took $$(($$(date +%s) - began)) s"; exit $$code
	@echo "== test: all passed"

clean: ## remove .venv and what was generated
	rm -rf .venv demo/out
