# Needs Python >= 3.11 and make; everything else is installed into .venv by hash.
PYTHON ?= python3
BIN := .venv/bin
PYTEST = $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal --durations=30 $(PYTEST_OPTIONS)

# Without bytecode every test worker compiles all tests and libraries, which takes nine seconds of a processor.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help dev test test-engines soak bench sbom dist check proto .venv

help: ## list the targets
	@sed -n 's/^\([a-z.-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 14

.venv: .venv/installed ## the locked environment alone, with authsvc installed editable

.venv/installed: requirements/bootstrap.txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: name another one, make PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	  -r requirements/bootstrap.txt
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes \
	  requirements/bootstrap.txt requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# authsvc takes the shell's place, so that Ctrl-C reaches it alone and its exit code is make's.
dev: .venv ## run the service on this machine, ready to call
	@exec $(BIN)/authsvc dev

# A first installation of the engines takes longer than a test may.
test: .venv ## the test suite on SQLite and dynoxide, with its coverage
	@$(BIN)/python -m tests.engines moto dynoxide
	@$(PYTEST) --cov

test-engines: .venv ## what make test leaves out: the other engines and the longest tests
	@$(BIN)/python -m tests.engines
	@$(PYTEST) -m engines

# Not in CI. AUTHSVC_TEST_SOAK=0.02 shortens all of it to a few minutes, to see that it works.
soak: .venv ## the long tests, an hour and more, with a report
	@$(BIN)/python -m tests.engines
	@$(BIN)/python -m pytest -m soak

# What draws the plots comes on top of the locked environment, which the next `make .venv` need not know.
.venv/bench: .venv/installed requirements/bench.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements/bench.txt
	@touch $@

bench: .venv/bench ## measure what a validation costs, in a quarter of an hour
	@$(BIN)/python -m bench

SBOM := dist/authsvc.cdx.json

# Of what the image installs. The same lock gives the same file, byte by byte.
sbom: .venv ## the bill of materials of the locked dependencies (CycloneDX), in dist/
	@mkdir -p $(dir $(SBOM))
	@$(BIN)/python -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --mc-type application --output-reproducible \
	  --output-file $(SBOM) requirements/run.txt
	@echo $(SBOM)

# The files have the commit's time, so that whoever builds it again gets the same bytes.
dist: .venv ## the wheel and the source distribution of this commit, in dist/
	@test -z "$$(git status --porcelain)" || { echo "commit first: only what is committed is released" >&2; exit 1; }
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) \
	  $(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python
	@ls dist/authsvc-*

# The oldest protobuf that backends may have decides what generates the stubs, and it excludes the one of .venv.
STUBS := .cache/stubs

$(STUBS)/installed: requirements/stubs.txt | .venv
	@$(BIN)/uv venv --quiet --clear --no-project --python $(BIN)/python $(STUBS)
	@$(BIN)/uv pip sync --quiet --python $(STUBS)/bin/python --require-hashes requirements/stubs.txt
	@touch $@

# Needs .venv/bin on the path: protoc looks mypy-protobuf's plugins up there.
protoc = PATH="$(CURDIR)/$(BIN):$$PATH" $(STUBS)/bin/python -m grpc_tools.protoc -Iprotos

# Envoy's messages go into a descriptor pool of their own: Envoy's own protos may be in the default one.
EXT_AUTHZ := authsvc/rpc/ext_authz_pb2.py
generate = $(protoc) --python_out=$(1) --grpc_python_out=$(1) --mypy_out=$(1) --mypy_grpc_out=$(1) \
    protos/authsvc/v1/*.proto && \
  $(protoc) --python_out=$(1) --mypy_out=$(1) protos/authsvc/rpc/ext_authz.proto && \
  sed 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' $(1)/$(EXT_AUTHZ) >$(1)/$(EXT_AUTHZ).own && \
  mv $(1)/$(EXT_AUTHZ).own $(1)/$(EXT_AUTHZ)

proto: $(STUBS)/installed ## regenerate authsvc/v1 and authsvc/rpc/ext_authz_pb2 from protos
	@rm -f authsvc/v1/*_pb2* authsvc/rpc/*_pb2*
	@$(call generate,.)

CHECKS := format lint types layers proto-format proto-lint proto-breaking stubs lock dockerfile cloudformation
.PHONY: $(CHECKS:%=check-%)

# --keep-going: one run shows everything that is wrong. mypy alone takes most of the time of one processor.
check: .venv ## everything that is checked without running the program
	@$(MAKE) --no-print-directory --keep-going --jobs=2 $(CHECKS:%=check-%)

# $(call step,command): one line when it passes, with the tool's output when it does not.
step = output=$$( { $(1); } 2>&1 ) && echo "ok      $(@:check-%=%)" || \
  { printf '%s\n' "FAILED  $(@:check-%=%)" "$$output"; exit 1; }

check-format: .venv
	@$(call step,$(BIN)/ruff format --check)

check-lint: .venv
	@$(call step,$(BIN)/ruff check)

check-types: .venv
	@$(call step,$(BIN)/mypy)

check-layers: .venv
	@$(call step,$(BIN)/lint-imports --no-logo)

check-proto-format: .venv
	@$(call step,$(BIN)/buf format --diff --exit-code)

check-proto-lint: .venv
	@$(call step,$(BIN)/buf lint)

# Against the newest release; before the first one nobody depends on the API.
check-proto-breaking: .venv
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null); \
	if [ -z "$$tag" ]; then echo "ok      proto-breaking (no release to compare with yet)"; exit; fi; \
	repository=$$(git rev-parse --git-common-dir); \
	$(call step,$(BIN)/buf breaking --against "$$repository#tag=$$tag")

check-stubs: $(STUBS)/installed
	@$(call step,fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; $(call generate,"$$fresh") && \
	  diff -r -x __init__.py -x __pycache__ "$$fresh/authsvc/v1" authsvc/v1 && \
	  for stub in "$$fresh"/authsvc/rpc/*; do diff "$$stub" authsvc/rpc || exit 1; done)

check-lock: .venv
	@$(call step,$(BIN)/python requirements/lock.py --check)

check-dockerfile: .venv
	@$(call step,$(BIN)/hadolint Dockerfile deploy/compose/dynoxide.Dockerfile)

check-cloudformation: .venv
	@$(call step,$(BIN)/cfn-lint deploy/cloudformation/*.yaml)
