# Each target does its own set-up on a fresh Debian or Ubuntu machine that has git, make and a Rust toolchain.

TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
NETD_FLAGS ?=

# What netd is built with and what it runs with; the tests' list is tests/apt-packages.txt.
BUILD := gcc libc6-dev
RUN := $(BUILD) iproute2 nftables

help:
	@echo "make run     build netd and run it with the default network; Ctrl-C undoes everything"
	@echo "make demo    the whole thing in namespaces of its own: two guests, names, NAT, a published port (KEEP=1: a console)"
	@echo "make test    every check and test, guests included"
	@echo "make bench   side by side with libvirt and dnsmasq"
	@echo "make fuzz    hunts at every door for strangers' bytes (SECONDS=20 for each, DOORS=\"dns lease\" for some)"
	@echo "make fmt lint"

run: build
	$(ROOT) $(TARGET)/release/netd --teardown-on-exit $(NETD_FLAGS)

build:
	@packaging/setup.sh $(RUN)
	cargo build --quiet --release -p netd -p virtio-net-backend

demo: build
	@packaging/setup.sh @tests/apt-packages.txt
	cargo build --quiet --release -p tests --bin demo
	@KEEP=$(KEEP) VNET_BIN_DIR=$(TARGET)/release $(TARGET)/release/demo

test:
	@packaging/setup.sh $(BUILD) @tests/apt-packages.txt
	@tests/all.sh

bench: build
	@packaging/setup.sh @tests/apt-packages.txt @tests/apt-packages-bench.txt
	cargo build --quiet --release -p tests --bins
	@VNET_BIN_DIR=$(TARGET)/release $(TARGET)/release/bench_spine
	@VNET_BIN_DIR=$(TARGET)/release $(TARGET)/release/dhcp_bench
	@$(TARGET)/release/dns_bench
	@$(ROOT) VNET_BIN_DIR=$(TARGET)/release $(TARGET)/release/bench_dataplane

# A number given here only: shells have a variable of this name.
fuzz:
	@packaging/setup.sh $(BUILD) g++
	@SECONDS_EACH=$(if $(filter command line,$(origin SECONDS)),$(SECONDS),20) tests/fuzz/run.sh $(DOORS)

fmt:
	cargo fmt --all

lint:
	cargo clippy --workspace --all-targets -- -D warnings

.PHONY: help run build demo test bench fuzz fmt lint
