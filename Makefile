# The verbs of this repository. `.ci/run` uses the same ones. `make` alone lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.ONESHELL:

CARGO ?= cargo

.PHONY: help setup libchdb modules kafka kafka-stop kafka-jars build test lint fmt fmt-check doc demo bench chaos fuzz \
        licences advisories image clean

help: ## list the verbs
	@echo "make VERB, where VERB is:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r verb text; do
	  printf '  %-12s %s\n' "$$verb" "$$text"
	done

setup: ## install what building and testing need and this machine lacks
	@deploy/setup.sh

libchdb: ## fetch the embedded ClickHouse engine into the cache (once, 178 MB)
	@deploy/libchdb/fetch.sh

modules: ## build the wasm modules into target/modules
	@deploy/modules.sh build

kafka-jars: ## fetch Apache Kafka into the cache (once, 45 MB)
	@deploy/kafka/kafka.sh fetch

kafka: ## start Apache Kafka on 127.0.0.1:$KAFKA_PORT (default 9092); `make kafka-stop` ends it
	@deploy/kafka/kafka.sh start

kafka-stop: ## stop the broker that `make kafka` started
	@deploy/kafka/kafka.sh stop

build: setup ## build the host (release) and the modules
	@deploy/modules.sh build
	@echo "build: the host, optimised (the first time takes some minutes)"
	@$(CARGO) build --release --locked -p sluice
	@echo "build: target/release/sluice"

test: setup libchdb modules kafka-jars ## run every test
	@echo "test: all tests of the workspace"
	@$(CARGO) test --workspace --locked

lint: ## clippy over everything, warnings denied
	@echo "lint: clippy"
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

fmt: ## format the code
	@$(CARGO) fmt --all

fmt-check: ## fail if the code is not formatted
	@echo "fmt-check: rustfmt"
	@$(CARGO) fmt --all --check || { echo "fmt-check: run make fmt" >&2; exit 1; }

doc: ## build the documentation, warnings denied
	@echo "doc: rustdoc"
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

demo: setup libchdb modules ## purchases from an embedded broker through wasm into an embedded ClickHouse
	@echo "demo: building the host, optimised (the first time takes some minutes)"
	@$(CARGO) build --release --locked -p sluice
	@target/release/sluice demo $(DEMO_ARGUMENTS)

bench: setup libchdb modules kafka-jars ## measure; the figures go to target/bench.json
	@echo "bench: building, optimised (the first time takes some minutes)"
	@deploy/bench.py $(CARGO)

chaos: setup libchdb modules kafka-jars ## kill, freeze and cut everything under load; KILLS=200: the full run, SEED=N: the same again
	@echo "chaos: building"
	@KILLS=$(KILLS) CHAOS_SEED=$(SEED) $(CARGO) test --quiet --locked -p sluice --test chaos

fuzz: ## libFuzzer over the decoders of what others write, guided by coverage; FUZZ_SECONDS=60 a target
	@deploy/fuzz.sh

licences: ## check licences and sources of all dependencies against deny.toml
	@python3 deploy/licences.py

advisories: ## check dependencies against the RustSec advisories (needs cargo-deny and a way to GitHub)
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo "advisories: cargo-deny is missing, run: cargo install --locked cargo-deny" >&2; exit 1; }
	@$(CARGO) deny check advisories bans sources

image: ## build the container image sluice:dev
	@DOCKER_BUILDKIT=1 docker build -t sluice:dev .

clean: ## remove what was built; the cache (.cache) stays
	@$(CARGO) clean
