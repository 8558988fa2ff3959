# dynahugd: 'make help' lists the targets.
#
# Everything is idempotent. Set-up needs root for Debian packages; where all of them are installed
# already, it does not ask for it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
CLANG ?= clang
ROUNDS ?= 20

# clang, llvm, libbpf-dev compile the probe; libbpf1 and python3-bpfcc load it; bcc wants the headers
# of some recent kernel; python3-systemd talks to systemd; gcc builds a payload of the tests.
DEBIAN := bpftool clang clang-format llvm libbpf-dev libbpf1 python3-bpfcc python3-systemd python3-venv \
	linux-headers-$(shell dpkg --print-architecture) gcc libc6-dev make util-linux
# What the tests talk to and look at things with, besides.
DEBIAN_TEST := libpython3-dev prometheus prometheus-alertmanager systemd python3-seccomp man-db groff-base mandoc zsh
# What the benchmarks compare with.
DEBIAN_BENCH := redis-server redis-tools strace bpftrace linux-perf sysdig

BPF_FLAGS := -O2 -g -target bpf -mcpu=v2 -Wall -Wextra -Werror -Wno-unused-parameter \
	-I/usr/include/$(shell uname -m)-linux-gnu
OBJECTS := bpf/build/dynahug.x86_64.bpf.o bpf/build/dynahug.aarch64.bpf.o

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: setup
setup: $(VENV)/.run headers objects ## everything that 'dynahugd run' needs

.PHONY: packages test-packages bench-packages
packages: WANTED = $(DEBIAN)
test-packages: WANTED = $(DEBIAN_TEST)
bench-packages: WANTED = $(DEBIAN_BENCH)
packages test-packages bench-packages:
	@missing=$$(for p in $(WANTED); do \
		dpkg-query -W -f '$${Status}\n' $$p 2>/dev/null | grep -q ' installed$$' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" != 0 ]; then \
			echo "dynahugd: these Debian packages are missing: $$missing; run 'sudo make $@'" >&2; \
			exit 1; fi; \
		echo "installing Debian packages:" $$missing; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

# bcc looks for headers of the running kernel. Our programs use no kernel structure, so those of any
# recent kernel serve where the distribution has none for this one.
.PHONY: headers
headers: packages
	@modules=/lib/modules/$$(uname -r); \
	if [ ! -e $$modules/build ] && [ "$$(id -u)" = 0 ]; then \
		build=$$(ls -d /usr/src/linux-headers-*-$$(dpkg --print-architecture) | tail -n 1); \
		common=$$(ls -d /usr/src/linux-headers-*-common | tail -n 1); \
		echo "pointing bcc at $$build"; \
		mkdir -p $$modules; ln -sfn $$build $$modules/build; ln -sfn $$common $$modules/source; \
	fi

$(VENV)/bin/python: | packages
	@echo "making the virtual environment $(VENV)"
	$(PYTHON) -m venv --system-site-packages $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	@echo "installing dynahugd into $(VENV)"
	$(BIN)/pip install --quiet --editable '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.run | test-packages
	@echo "installing what the tests need into $(VENV)"
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.lab: pyproject.toml $(VENV)/.dev
	@echo "installing what the workload loads with into $(VENV)"
	$(BIN)/pip install --quiet --editable '.[lab]'
	@touch $@

.PHONY: objects
objects: packages
	@$(MAKE) --silent --no-print-directory $(OBJECTS)

bpf/build/dynahug.x86_64.bpf.o: ARCHITECTURE := X86
bpf/build/dynahug.aarch64.bpf.o: ARCHITECTURE := ARM64
$(OBJECTS): bpf/dynahug.bpf.c bpf/dynahug.h bpf/compat.h
	@echo "compiling $@"
	@mkdir -p $(@D)
	$(CLANG) $(BPF_FLAGS) -DDYNAHUG_$(ARCHITECTURE) -c $< -o $@

.PHONY: run
run: setup ## set up, then watch in the foreground
	$(BIN)/dynahugd run $(ARGS)

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
DESTDIR ?=
PLACES = PREFIX="$(PREFIX)" SYSCONFDIR="$(SYSCONFDIR)" DESTDIR="$(DESTDIR)"

.PHONY: install
install: objects ## install the program and its service below PREFIX (/usr/local), for DESTDIR
	@$(PLACES) PYTHON="$(PYTHON)" install/install.sh

.PHONY: uninstall
uninstall: ## remove what 'make install' has installed; say what is left
	@$(PLACES) install/uninstall.sh

.PHONY: demo
demo: setup ## one benign and one malicious (inert) load, to be seen in the terminal of 'make run'
	$(PYTHON) docs/demo.py

.PHONY: test
test: setup $(VENV)/.dev check ## set up, check, and run every test
	$(BIN)/python -m pytest $(ARGS)

.PHONY: vmtest
vmtest: DEBIAN += qemu-system-x86 debootstrap e2fsprogs
vmtest: setup ## the installed service in virtual machines with systemd, on Linux 6.1 and 6.12
	$(BIN)/python -m tests.vm $(ARGS)

.PHONY: matrix
matrix: setup $(VENV)/.dev ## every behaviour, ROUNDS times, as a table
	$(BIN)/python -m tests.matrix --rounds $(ROUNDS)

.PHONY: baseline
baseline: setup $(VENV)/.lab ## perform benign loads under the probe and train the embedded baseline
	$(BIN)/dynahugd record -o benchmarks/baseline/recording.parquet -- \
		$(BIN)/python -m benchmarks.baseline.workload
	$(BIN)/dynahugd train benchmarks/baseline/recording.parquet -o dynahugd/baseline/embedded.npz

.PHONY: bench
bench: setup $(VENV)/.lab bench-packages ## what watching costs, as docs/benchmarks.md and docs/scaling.md
	$(BIN)/python -m benchmarks.cost --figures build/cost.json > docs/benchmarks.md.new
	mv docs/benchmarks.md.new docs/benchmarks.md
	$(BIN)/python -m benchmarks.scaling build/cost.json docs > docs/scaling.md.new
	mv docs/scaling.md.new docs/scaling.md

.PHONY: bench-first-load
bench-first-load: setup $(VENV)/.dev ## whether the first load after an idle time is caught, 1,000 times
	$(BIN)/python -m benchmarks.first_load --from watching
	$(BIN)/python -m benchmarks.first_load --from resting

.PHONY: bench-alerting
bench-alerting: setup $(VENV)/.dev ## how long it takes until Alertmanager has an alert
	$(BIN)/python -m benchmarks.alerting --push

.PHONY: bench-paper
bench-paper: $(VENV)/.dev ## the detector on the data of the DynaHug paper, as docs/bench-paper.md
	$(BIN)/python -m benchmarks.paper > docs/bench-paper.md.new
	mv docs/bench-paper.md.new docs/bench-paper.md

.peers/.done:
	@echo "installing the scanners into .peers"
	$(PYTHON) -m venv .peers
	.peers/bin/pip install --quiet picklescan modelscan fickling modelaudit
	@touch $@

# What PyPI has of older torch for a host without a GPU is a whole one with CUDA in it: 3.4 GB, unpacked.
OLDER := 3.10:1.12.1 3.8:1.8.1
.older/.done:
	@for pair in $(OLDER); do \
		python=$$(ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$${pair%:*}.*/bin/python 2>/dev/null | head -n 1); \
		if [ -z "$$python" ]; then echo "CPython $${pair%:*} is not installed by pyenv: skipped"; continue; fi; \
		echo "installing torch $${pair#*:} into .older"; \
		$$python -m venv .older/torch-$${pair#*:}; \
		.older/torch-$${pair#*:}/bin/pip install --quiet torch==$${pair#*:} 'numpy<2' joblib; \
	done
	@mkdir -p .older; touch $@

.PHONY: bench-lab
bench-lab: setup $(VENV)/.lab .older/.done ## loads in environments that differ as hosts do, as docs/bench-lab.md
	$(BIN)/python -m benchmarks.lab.record build/lab
	$(BIN)/python -m benchmarks.lab.report build/lab > docs/bench-lab.md.new
	mv docs/bench-lab.md.new docs/bench-lab.md

.PHONY: bench-peers
bench-peers: setup $(VENV)/.dev .peers/.done ## scanners of model files beside dynahugd, as docs/bench-peers.md
	$(BIN)/python -m benchmarks.peers --scanners .peers/bin > docs/bench-peers.md.new
	mv docs/bench-peers.md.new docs/bench-peers.md

.PHONY: check
check: setup $(VENV)/.dev ## formatting, lint, types, generated documents
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	clang-format --dry-run --Werror bpf/*.c bpf/*.h
	@for pair in "dynahugd.config docs/configuration.md" "dynahugd.outputs.metrics docs/metrics.md"; do \
		set -- $$pair; \
		$(BIN)/python -m $$1 | diff -u $$2 - || { echo "$$2 is stale: run 'make docs'" >&2; exit 1; }; \
	done

.PHONY: docs
docs: $(VENV)/.run ## generate the documents that come from code
	$(BIN)/python -m dynahugd.config > docs/configuration.md
	$(BIN)/python -m dynahugd.outputs.metrics > docs/metrics.md

.PHONY: format
format: $(VENV)/.dev ## format everything
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	clang-format -i bpf/*.c bpf/*.h

.PHONY: clean
clean: ## remove what was built
	rm -rf $(VENV) .peers .older bpf/build build *.egg-info
