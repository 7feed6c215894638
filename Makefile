# make demo: documents to pictures on this machine.  make test: the tests.  `make help` lists the rest.
PYTHON ?= python3.11
ROOT ?= runs/demo
PRESET ?= demo
PDFS ?=
TEXT ?=
OUT ?= runs/rehearsal
ENGINE ?= docker
BIN := .venv/bin

.PHONY: help demo test lint test-long test-s3 rehearsal image-cpu image-cuda lock clean
help:                ## this list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed 's/:.*##/  /'

.venv/packages: requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	touch $@

.venv/installed: .venv/packages pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	touch $@

demo: .venv/installed  ## documents to pictures and a report (ROOT=, PRESET=, PDFS=folder, TEXT=passages.jsonl)
	$(BIN)/dnd demo --root $(ROOT) --preset $(PRESET) $(if $(PDFS),--pdfs $(PDFS)) $(if $(TEXT),--text $(TEXT))

lint: .venv/installed  ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint           ## lint and the ordinary tests, on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-long: .venv/installed  ## the full forms of what CI shows in short
	$(BIN)/pytest -m long --timeout 7200

test-s3: .venv/installed    ## the tests against a real S3 server (installs Debian's Ceph gateway where it can)
	command -v radosgw >/dev/null || apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd || true
	$(BIN)/pytest -m "s3 and not long"

rehearsal: .venv/installed  ## a cluster's life on this machine: Ray nodes die, Slurm preempts, S3 holds all (OUT=folder)
	$(BIN)/python tests/rehearsal.py --out $(OUT)

.venv-skypilot:      ## SkyPilot beside this project, since it pins older packages: its schema checks infra/skypilot
	$(PYTHON) -m venv $@ && $@/bin/pip install -q --disable-pip-version-check skypilot==0.14.1

image-cpu image-cuda:  ## container images dnd-transformer:cpu and dnd-transformer:cuda (EFA=version, for AWS; ENGINE=podman)
	$(ENGINE) build $(if $(filter podman,$(ENGINE)),--format docker) -f infra/docker/Dockerfile -t dnd-transformer:$(@:image-%=%) \
	  $(if $(filter image-cuda,$@),--build-arg TORCH=cu130) $(if $(EFA),--build-arg EFA=$(EFA)) \
	  --build-arg COMMIT=$$(git describe --always --dirty --abbrev=40 --exclude '*') .

lock: .venv/installed  ## writes requirements.lock from what is installed
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

clean:               ## removes the environment and the demo's results
	rm -rf .venv .venv-skypilot runs/demo
