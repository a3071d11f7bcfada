# The commands of this repository; `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Ansible refuses a locale that the machine does not have, as ssh may hand one over.
export LC_ALL := C.UTF-8

# ansible-core 2.16 runs on Python 3.10 to 3.12; the locked CPU build of PyTorch is for 3.11.
# The system's own first: an environment made from it serves every user of this machine.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3.11) python3)
# Options for ansible-playbook, such as ARGS='--check --diff' or ARGS='--tags edge'.
ARGS ?=
HOST ?= ansible
PLAYBOOK ?= site.yml
# `make chaos`: the first round's seed, and how many rounds.
SEED ?= 1
ROUNDS ?= 5
# `make up` with a cluster: RUNTIME=kubernetes BUNDLE=<directory> (docs/bundle.md).
RUNTIME ?=
BUNDLE ?=
# `make bench-site`: workers beside those of the inventory.
WORKERS ?= 20

BIN := .venv/bin
SERVER_BIN := .venv-server/bin
LAB := PYTHONPATH=molecule $(BIN)/python -m lab
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes
# PyTorch publishes its builds for the CPU here; asked when pip does not find them by itself.
export T2V_TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
UV_SERVER = ../../$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --python-version 3.11 \
  --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --no-emit-index-url --no-emit-find-links
STATE := $(or $(XDG_STATE_HOME),$(HOME)/.local/state)/sanchuang-t2v
VIDEOS ?= $(STATE)/videos


# Debian's Python comes without venv; root on Debian gets it, others are told.
define MAKE_VENV
make_venv() { \
  rm -rf "$$1"; \
  $(PYTHON) -m venv "$$1" 2>/dev/null && return; \
  rm -rf "$$1"; \
  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
    echo "    installing python3-venv"; \
    apt-get -o Acquire::Retries=3 update -qq && \
      apt-get install -qq -y --no-install-recommends python3-venv ca-certificates >/dev/null; \
  fi; \
  $(PYTHON) -m venv "$$1" || \
    { echo "ERROR: $(PYTHON) makes no environments; on Debian: apt-get install python3-venv" >&2; exit 1; }; \
}; make_venv
endef

.PHONY: help root up down status ssh playbook verify loadtest chaos interrupted serve bench-engine bench-site test test-all lint docs dashboards lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

root:
	@[ "$$(id -u)" = 0 ] || { echo "ERROR: the hosts are built with namespaces and machines, which only root may; run it as root (for example 'sudo make up')" >&2; exit 1; }

up: root .venv/installed ## build the seven hosts on this machine and end with a video (as root)
	@$(LAB) up --runtime '$(RUNTIME)' --bundle '$(BUNDLE)' -- $(ARGS)

down: .venv/installed ## remove every trace of them, the image cache aside
	@$(LAB) down

status: .venv/installed ## say how each host stands
	@$(LAB) status

ssh: .venv/installed ## open a shell on a host: make ssh HOST=worker1
	@$(LAB) ssh $(HOST)

playbook: .venv/installed ## run site.yml, or PLAYBOOK=, on the hosts that stand: make playbook ARGS=--check
	@$(LAB) playbook $(PLAYBOOK) $(ARGS)

verify: .venv/installed ## ask the standing hosts for everything that users were promised: one table
	@$(LAB) playbook playbooks/verify.yml $(ARGS)

loadtest: .venv/installed .venv-loadtest/installed ## load them as the article does, and by a mix: a report with plots
	@$(LAB) playbook playbooks/loadtest.yml -e loadtest_python='$(CURDIR)/.venv-loadtest/bin/python' $(ARGS)

chaos: root .venv/installed ## faults into the site that stands: make chaos SEED=1 ROUNDS=5 (docs/chaos.md)
	@PYTHONPATH=molecule:tests/lab $(BIN)/python -m lab run \
	  $(BIN)/python tests/lab/chaos.py --seed $(SEED) --rounds $(ROUNDS) $(ARGS)

interrupted: root .venv/installed ## site.yml killed again and again: do the hosts end as without? (docs/chaos.md)
	@PYTHONPATH=molecule:tests/lab $(BIN)/python tests/lab/interrupted.py --seed $(SEED) $(ARGS)

serve: export T2V_BIND ?= 127.0.0.1:8080
serve: .venv-server/installed ## run the server here, without root, with the tiny model
	@mkdir -p "$(VIDEOS)" "$(STATE)/server"
	@echo "Serving on http://$$T2V_BIND/ ; in another terminal:"
	@echo "  curl 'http://$$T2V_BIND/generate?prompt=a%20dog%20running'"
	@echo "Videos go to $(VIDEOS); Ctrl-C ends it."
	@cd files/server && T2V_OUTPUT_DIR="$(VIDEOS)" T2V_STATE_DIR="$(STATE)/server" \
	  exec ../../$(SERVER_BIN)/python -m t2v_server serve

bench-engine: export T2V_BENCH_OUTPUT ?= $(STATE)/bench
bench-engine: $(if $(T2V_BENCH_PYTHON),,.venv-server/installed) ## measure the engine beside diffusers: full size on a GPU, else a small clone
	@cd files/server && PYTHONPATH=. $(or $(T2V_BENCH_PYTHON),../../$(SERVER_BIN)/python) \
	  -m t2v_server bench --output "$$T2V_BENCH_OUTPUT" $(ARGS)

bench-site: root .venv/installed ## measure site.yml on 7 and 27 hosts, WORKERS= more than 20 (as root, takes long)
	@PYTHONPATH=molecule $(BIN)/python tests/lab/bench_site.py --workers $(WORKERS) --json "$(STATE)/bench-site.json" $(ARGS)

test: lint .venv-loadtest/installed ## everything that CI runs (as root: the hosts are built)
	@$(BIN)/python tests/run.py

test-all: lint .venv-loadtest/installed ## the same and the slow, wide rest: virtual machines, Python 2.7
	@$(BIN)/python tests/run.py --all

lint: .venv/installed .venv-server/installed ## ansible-lint, yamllint, ruff, mypy --strict
	$(BIN)/yamllint --strict .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy molecule/lab tests/unit tests/kubernetes tests/lab tests/site tests/cluster.py tests/control_plane.py tests/controller.py tests/machines.py tests/playbooks.py tests/ports.py tests/registries.py tests/run.py
	$(BIN)/mypy roles/verify/files/ask.py roles/verify/files/table.py roles/loadtest/files/t2v_loadtest
	MYPYPATH=tests/roles $(BIN)/mypy tests/roles
	MYPYPATH=tests/monitoring $(BIN)/mypy tests/monitoring roles/grafana/files/dashboards.py
	MYPYPATH=tests/deploy $(BIN)/mypy tests/deploy
	MYPYPATH=tests/kubernetes $(BIN)/mypy tests/kubernetes
	$(SERVER_BIN)/ruff check --config files/server/pyproject.toml files/server tests/server
	$(SERVER_BIN)/ruff format --check --config files/server/pyproject.toml files/server tests/server
	$(SERVER_BIN)/mypy --config-file files/server/pyproject.toml files/server/t2v_server tests/server

docs: .venv/installed ## write the variables into each role's README, from its specification
	@for role in roles/*/; do $(BIN)/aar-doc "$$role" markdown; done

dashboards: .venv/installed ## write Grafana's dashboards from roles/grafana/files/dashboards.py
	$(BIN)/python roles/grafana/files/dashboards.py

lock: .venv/installed ## write the hash-locked requirements anew from the .in files
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes \
	  --no-header --no-annotate requirements.in -o requirements.txt
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate tests/newest/requirements.in -o tests/newest/requirements.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes \
	  --no-header --no-annotate tests/deploy/requirements-checkov.in -o tests/deploy/requirements-checkov.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes \
	  --no-header --no-annotate roles/loadtest/files/requirements.in -o roles/loadtest/files/requirements.txt
	cd files/server && $(UV_SERVER) requirements.in -o requirements.txt --torch-backend cpu --no-emit-package torch
	cd files/server && $(UV_SERVER) requirements-dev.in -o requirements-dev.txt
	PATH="$(CURDIR)/$(SERVER_BIN):$$PATH" npm install --prefix tests/server/oauth --package-lock-only --ignore-scripts

clean: ## remove what this Makefile installed below this folder
	rm -rf .venv .venv-server .venv-checkov .venv-loadtest .mypy_cache .ruff_cache .pytest_cache .ansible

# Made anew whenever the lock changes; the stamp comes last, so a killed install is repeated.
.venv/installed: requirements.txt
	@echo "==> Controller environment in .venv (once)"
	@$(MAKE_VENV) .venv
	@.venv/bin/python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || \
	  { echo "ERROR: $(PYTHON) is $$($(PYTHON) -V 2>&1); set PYTHON to a Python 3.10, 3.11 or 3.12" >&2; exit 1; }
	@.venv/bin/python $(PIP_INSTALL) -r requirements.txt
	@touch $@

# Only tests/deploy/test_checkov.py runs it, and makes it where it is not there: 290 MB.
.venv-checkov/installed: tests/deploy/requirements-checkov.txt
	@echo "==> Environment of checkov in .venv-checkov (once)"
	@$(MAKE_VENV) .venv-checkov
	@.venv-checkov/bin/python $(PIP_INSTALL) -r tests/deploy/requirements-checkov.txt
	@touch $@

# The load test's own, which its role makes by itself where there is no Makefile.
.venv-loadtest/installed: roles/loadtest/files/requirements.txt
	@echo "==> Environment of the load test in .venv-loadtest (once)"
	@$(MAKE_VENV) .venv-loadtest
	@.venv-loadtest/bin/python $(PIP_INSTALL) -r roles/loadtest/files/requirements.txt
	@touch $@

.venv-server/installed: files/server/requirements.txt files/server/requirements-torch-cpu.txt files/server/requirements-dev.txt \
  tests/server/oauth/package-lock.json
	@echo "==> Server environment in .venv-server (once)"
	@$(MAKE_VENV) .venv-server
	@.venv-server/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "ERROR: $(PYTHON) is $$($(PYTHON) -V 2>&1); the server is locked for Python 3.11, set PYTHON to one" >&2; exit 1; }
	@.venv-server/bin/python $(PIP_INSTALL) -r files/server/requirements.txt
	@.venv-server/bin/python $(PIP_INSTALL) -r files/server/requirements-torch-cpu.txt 2>/dev/null || \
	  .venv-server/bin/python $(PIP_INSTALL) --extra-index-url $(T2V_TORCH_INDEX) -r files/server/requirements-torch-cpu.txt
	@.venv-server/bin/python $(PIP_INSTALL) -r files/server/requirements-dev.txt
	@mkdir -p .venv-server/oauth && cp tests/server/oauth/package*.json .venv-server/oauth/
	@PATH="$(CURDIR)/$(SERVER_BIN):$$PATH" npm ci --prefix .venv-server/oauth --ignore-scripts --no-audit --no-fund --silent
	@touch $@
