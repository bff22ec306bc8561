# What CI runs is what you run: `make demo`, `make test`, `make check`. Each does its own set-up.
SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
VENV := .venv
BIN := $(VENV)/bin
# Tests spend most of their time in starting sandboxes, two at once on two cores.
WORKERS ?= 2
AGAIN = $(SUDO) $(BIN)/python tests/again.py $$?

# To run: the distribution's bcc and libseccomp bindings, the kernel's UAPI headers.
RUN_PACKAGES := python3-bpfcc python3-seccomp linux-libc-dev python3-venv sudo curl openssl
# To test: real clients, real servers, a compiler for probes that Python cannot write.
TEST_PACKAGES := wget git redis-server redis-tools postgresql postgresql-client default-jdk-headless \
	maven libhttpclient-java squid tinyproxy nginx apache2-bin gcc golang-go libc6-dev iproute2 util-linux tcpdump strace tmux openssh-client gnome-keyring dbus systemd

# Where only root writes: what root executes must not be the sandboxed account's to change.
PREFIX ?= /opt/nono-ebpf
# Of the distribution's Python packages a venv sees these two, and nothing else.
define link-bindings
	@site="$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	$(2) ln -sfn "$$($(PYTHON) -c 'import bcc, os; print(os.path.dirname(bcc.__file__))')" "$$site/bcc"; \
	$(2) ln -sfn "$$($(PYTHON) -c 'import seccomp; print(seccomp.__file__)')" "$$site/"
endef
define install-packages
	@for p in $(1); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'install ok' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing$$missing"; \
		$(SUDO) apt-get -q update && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $$missing; fi
endef

.PHONY: setup setup-test install demo test check bench fuzz clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml Makefile
	$(call install-packages,$(RUN_PACKAGES))
	$(PYTHON) -m venv $(VENV)
	@# compat: one absolute entry on sys.path. The default way leaves a relative one, which root would import from.
	$(BIN)/pip -q --disable-pip-version-check install --config-settings editable_mode=compat -e '.[test]'
	$(call link-bindings,$(VENV))
	@touch $@
	@echo "ready: $(BIN)/nono-ebpf"

setup-test: setup
	@# The tests start their own nginx: where its package is not yet, it comes without a service (and apache2-bin has none).
	@[ -e /usr/sbin/nginx ] || { $(SUDO) mkdir -p /etc/systemd/system && $(SUDO) ln -sfn /dev/null /etc/systemd/system/nginx.service; }
	$(call install-packages,$(TEST_PACKAGES) $(shell command -v node >/dev/null || echo nodejs npm))

install:
	$(call install-packages,$(RUN_PACKAGES))
	$(SUDO) $(PYTHON) -m venv --clear $(PREFIX)
	$(SUDO) $(PREFIX)/bin/pip -q --disable-pip-version-check install .
	$(call link-bindings,$(PREFIX),$(SUDO))
	$(SUDO) ln -sfn $(PREFIX)/bin/nono-ebpf /usr/local/bin/nono-ebpf
	@echo "installed: /usr/local/bin/nono-ebpf"

demo: setup
	@$(SUDO) $(BIN)/nono-ebpf demo

test: setup-test
	$(SUDO) $(BIN)/python -m pytest -p tests.again -n $(WORKERS) --dist loadfile -m "not alone" $(ARGS) || $(AGAIN)
	$(SUDO) $(BIN)/python -m pytest -p tests.again -m alone $(ARGS) || $(AGAIN)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup-test
	$(SUDO) $(BIN)/python tests/bench.py $(ARGS)
	$(SUDO) $(BIN)/python tests/bench_requests.py $(ARGS)

# Coverage-guided, without root: `make fuzz TARGET=client_hello SECONDS=600`; without TARGET each in turn.
fuzz: SECONDS ?= 60
fuzz: setup
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip -q --disable-pip-version-check install --config-settings editable_mode=compat -e '.[fuzz]'
	nice -n 19 $(BIN)/python tests/fuzz/run.py --seconds $(SECONDS) $(TARGET)

clean:
	$(SUDO) rm -rf build
	rm -rf $(VENV) dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The tests on other kernels, in guests that are emulated: vagrant/README.md. KERNEL=6.1 names one, otherwise two run.
.PHONY: vm-test vagrant-test vagrant-validate
vm-test: setup
	$(SUDO) $(PYTHON) vagrant/lab.py direct --kernel $(KERNEL) --args='$(ARGS)'

vagrant-validate:
	$(SUDO) $(PYTHON) vagrant/lab.py validate

vagrant-test: setup
	$(SUDO) $(PYTHON) vagrant/lab.py vagrant --kernel $(KERNEL) --args='$(ARGS)'
