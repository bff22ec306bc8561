# What CI runs is what you run: `make demo`, `make test`, `make check`. Each does its own set-up.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
VENV := .venv
BIN := $(VENV)/bin

# To run: the distribution's bcc and libseccomp bindings, the kernel's UAPI headers.
RUN_PACKAGES := python3-bpfcc python3-seccomp linux-libc-dev python3-venv sudo curl openssl
# To test: real clients, real servers, a compiler for probes that Python cannot write.
TEST_PACKAGES := wget git redis-server redis-tools postgresql postgresql-client default-jdk-headless \
	gcc libc6-dev iproute2 util-linux tcpdump strace

.PHONY: setup setup-test demo test check bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml Makefile
	@for p in $(RUN_PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'install ok' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		$(SUDO) apt-get -q update && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $$missing; fi
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip -q --disable-pip-version-check install -e '.[test]'
	@# Of the distribution's Python packages the venv sees these two, and nothing else.
	@site="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	ln -sfn "$$($(PYTHON) -c 'import bcc, os; print(os.path.dirname(bcc.__file__))')" "$$site/bcc"; \
	ln -sfn "$$($(PYTHON) -c 'import seccomp; print(seccomp.__file__)')" "$$site/"
	@touch $@
	@echo "ready: $(BIN)/nono-ebpf"

setup-test: setup
	@for p in $(TEST_PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'install ok' || missing="$$missing $$p"; done; \
	command -v node >/dev/null || missing="$$missing nodejs npm"; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		$(SUDO) apt-get -q update && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $$missing; fi

demo: setup
	@$(SUDO) $(BIN)/nono-ebpf demo

test: setup-test
	$(SUDO) $(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup-test
	$(SUDO) $(BIN)/python tests/bench.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
