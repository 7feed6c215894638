# make demo: documents to pictures on this machine.  make test: the tests.  `make help` lists the rest.
PYTHON ?= $(shell for found in python3 python3.14 python3.13 python3.12 python3.11 python; do $$found -c \
  'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$found && break; done)
ROOT ?= runs/demo
PRESET ?= demo
PDFS ?=
TEXT ?=
OUT ?= runs/rehearsal
ENGINE ?= docker
BIN := .venv/bin

.PHONY: help keys demo view site test test-systems test-quick test-gpu gpu-wheels lint test-long test-s3 rehearsal image-cpu image-cuda lock clean
help:                ## this list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed 's/:.*##/  /'

.venv/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on PATH: install one, or say make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv .venv
	touch $@

.venv/packages: .venv/python requirements.lock tools/install.py
	$(BIN)/python tools/install.py requirements.lock
	touch $@

.venv/packages-dev: .venv/packages requirements-dev.lock
	$(BIN)/python tools/install.py requirements-dev.lock
	touch $@

.venv/packages-view: .venv/packages requirements-view.lock
	$(BIN)/python tools/install.py requirements-view.lock
	touch $@

.venv/installed: .venv/packages pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e . --config-settings editable_mode=compat
	touch $@

demo: .venv/installed  ## documents to pictures and a report (ROOT=, PRESET=, PDFS=folder, TEXT=passages.jsonl)
	$(BIN)/dnd demo $(PRESET) --root $(ROOT) $(if $(PDFS),--pdfs $(PDFS)) $(if $(TEXT),--text $(TEXT))

view: .venv/installed .venv/packages-view  ## the demo's results in the browser (ROOT=)
	$(BIN)/dnd view $(ROOT)

lint: .venv/installed .venv/packages-dev  ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

APART := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder
OTHERS := not long and not gpu and not s3
test: lint           ## lint and the ordinary tests, on two cores, without GPUs: six minutes
	$(APART) --durations 20 -m "$(OTHERS) and not system"

test-systems: .venv/installed .venv/packages-dev  ## whole systems: Slurm, launchers, clusters that die, browsers, whole trainings
	$(APART) --durations 20 -m "$(OTHERS) and system"

test-quick: .venv/installed .venv/packages-dev  ## the tests of the inner loop, in a minute or so: no Ray, no ranks, no whole runs
	$(APART) -m "$(OTHERS) and not slow and not system"

test-gpu: .venv/installed .venv/packages-dev  ## the tests that need a CUDA device
	$(BIN)/pytest -m "gpu and not long"

WHEELS := --dest build/wheels --python-version 3.12 --only-binary :all: --platform manylinux_2_28_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64
gpu-wheels: .venv/packages  ## what `dnd accept` needs beside torch, for Python 3.12 on Linux, into build/wheels
	$(BIN)/python -m pip download -q $(WHEELS) pydantic typer pillow pyyaml psutil einops safetensors pyarrow fsspec \
	  filelock jinja2 hjson msgpack ninja packaging py-cpuinfo tqdm
	$(BIN)/python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir build/wheels $$(grep -o '^deepspeed==[0-9.]*' requirements.lock)

test-long: .venv/installed .venv/packages-dev  ## the full forms of what CI shows in short
	$(BIN)/pytest -m long --timeout 7200

test-s3: .venv/installed .venv/packages-dev    ## the tests against a real S3 server (installs Debian's Ceph gateway where it can)
	command -v radosgw >/dev/null || apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd || true
	$(BIN)/pytest -m "s3 and not long"

site: .venv/installed .venv/packages-dev  ## the documentation site, in build/site; a broken link is an error
	PYTHONPATH=. $(BIN)/mkdocs build --strict

keys: .venv/installed  ## writes docs/keys.md from the models of the spec
	$(BIN)/python -m data_specs.explain > docs/keys.md

rehearsal: .venv/installed .venv/packages-dev  ## a cluster's life on this machine: Ray nodes die, Slurm preempts, S3 holds all (OUT=folder)
	$(BIN)/python tests/rehearsal.py --out $(OUT)

.venv-skypilot:      ## SkyPilot beside this project, since it pins older packages: its schema checks infra/skypilot
	$(PYTHON) -m venv $@ && $@/bin/pip install -q --disable-pip-version-check skypilot==0.14.1

image-cpu image-cuda:  ## container images dnd-transformer:cpu and dnd-transformer:cuda (EFA=version, for AWS; ENGINE=podman)
	$(ENGINE) build $(if $(filter podman,$(ENGINE)),--format docker) -f infra/docker/Dockerfile -t dnd-transformer:$(@:image-%=%) \
	  $(if $(filter image-cuda,$@),--build-arg TORCH=cu130) $(if $(EFA),--build-arg EFA=$(EFA)) \
	  --build-arg COMMIT=$$(git describe --always --dirty --abbrev=40 --exclude '*') .

COMPILE := $(BIN)/uv pip compile -q pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command "make lock" --no-header -c tools/torch.txt --override tools/overrides.txt \
  $(addprefix --no-emit-package ,torch torchvision triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas \
  cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink \
  nvshmem-cu13 nvtx))
lock: .venv/packages ## writes the locks of users, viewer and developers; versions stay unless UPGRADE=--upgrade
	$(COMPILE) $(UPGRADE) --extra all -o requirements.lock
	$(COMPILE) $(UPGRADE) --extra view -c requirements.lock -o requirements-view.lock
	$(COMPILE) $(UPGRADE) --extra dev -c requirements.lock -o requirements-dev.lock
	sed -i '1e cat tools/torch.txt' requirements.lock requirements-dev.lock

clean:               ## removes the environment and the demo's results
	rm -rf .venv .venv-skypilot runs/demo
