# What one does with Ferrolet; `make` alone names it all.
#
# As root on Debian 12, with Rust installed, nothing else is needed: what is missing is
# installed or built, into the cache of tests/node-e2e/provision.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# The steps share the machine and print as they go, so they run one after another.
.NOTPARALLEL:

# Where rustup and Go's own archive put them, for shells that were not told.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/local/go/bin

PROVISION := tests/node-e2e/provision
NODE_E2E := cargo run --quiet --package node-e2e --
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release
SIM := $(or $(CARGO_TARGET_DIR),target)/sim

# Seeds of the simulation: so many from this one on, and so many that nobody has run before.
SEEDS ?= 1000
FROM ?= 0
FRESH ?= 100
# Pods drawn for `make compare`, one a seed, from this seed on.
SEED ?= 0
PODS ?= 100
# Parts of the bench: single burst rest scrape crowd probes hang restart cgroups static pool; all without.
ROWS ?=
# Cases of node-e2e: those whose name contains one of these words; all without.
CASES ?=

.PHONY: help run run-standalone status down test check unit sim node-e2e \
	node-e2e-old-runtime node-e2e-vm compare compare-quick bench deb provision provision-bench provision-vm rust build-release build-tests clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-21s %s\n", $$1, $$2 }' Makefile

run: ## a node with a control plane and a few pods; stays until `make down`
	@if $(PROVISION) all; then \
		$(MAKE) --no-print-directory build-release; \
		echo "==> building the stack's own program ..."; \
		FERROLET_BIN=$(RELEASE)/ferrolet $(NODE_E2E) up; \
	else \
		echo "==> the control plane cannot be built here: going on with a standalone node"; \
		$(MAKE) --no-print-directory run-standalone; \
	fi

run-standalone: ## a node without a control plane: static pods only, needs no Go
	@$(PROVISION) standalone
	@$(MAKE) --no-print-directory build-release
	@echo "==> building the stack's own program ..."
	@FERROLET_BIN=$(RELEASE)/ferrolet $(NODE_E2E) up --standalone

status: ## shows the node of `make run`
	@$(NODE_E2E) status

down: ## ends the node of `make run` and leaves nothing behind
	@$(NODE_E2E) down

# With its checks, as in a debug build, but a virtual machine emulates a good part less of it.
test: export FERROLET_BIN := $(SIM)/ferrolet
test: provision check unit sim node-e2e node-e2e-old-runtime compare-quick node-e2e-vm ## all that CI runs: the next six, and compare-quick

check: rust ## format and clippy, without warnings
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings

unit: ## unit and scenario tests
	cargo test --workspace

sim: ## the simulation, for SEEDS known seeds and FRESH new ones
	cargo build --profile sim --package simulation --package ferrolet
	$(SIM)/simulation --seeds $(SEEDS) --from $(FROM) --fresh $(FRESH)

node-e2e: provision build-tests ## cases on real nodes, all or CASES="words"; AGENT=kubelet for upstream's
	$(NODE_E2E) test $(CASES)

node-e2e-old-runtime: provision build-tests ## the chosen few of them on Debian's containerd 1.6
	RUNTIME=containerd-1.6 $(NODE_E2E) test --subset $(CASES)

node-e2e-vm: provision-vm build-tests ## cases on a virtual machine: systemd, kubeadm, cgroup v2
	$(NODE_E2E) vm $(CASES)

compare: provision build-tests ## drawn pods, from SEED on, on Ferrolet and upstream's kubelet
	$(NODE_E2E) compare $(SEED) $(PODS)

compare-quick: provision build-tests ## a fixed few of them, with most of what can be drawn
	$(NODE_E2E) compare --quick

bench: provision provision-bench build-release ## the figures of SPECIFICATION.md, all or ROWS="probes hang", beside upstream's kubelet
	FERROLET_BIN=$(RELEASE)/ferrolet cargo run --quiet --package node-e2e --bin bench -- $(ROWS)

deb: ## the Debian package, in target/deb; of FERROLET_BIN if that is set
ifndef FERROLET_BIN
	@$(MAKE) --no-print-directory build-release
endif
	packaging/deb/build $(or $(FERROLET_BIN),$(RELEASE)/ferrolet) $(dir $(RELEASE))deb

clean: down ## the build, not the cache
	cargo clean

# Exit code 3 says that Go is missing; the cases that need what it builds are skipped then.
provision:
	@$(PROVISION) all || [ $$? = 3 ]

provision-bench:
	@$(PROVISION) bench

provision-vm: provision
	@$(PROVISION) vm || [ $$? = 3 ]

rust:
	@cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@cargo clippy --version >/dev/null 2>&1 || rustup component add clippy

build-release:
	@echo "==> building Ferrolet (some minutes cold) ..."
	@cargo build --release --package ferrolet

build-tests:
	@echo "==> building Ferrolet and its tests (some minutes cold) ..."
	@cargo build --quiet --package ferrolet --package node-e2e
