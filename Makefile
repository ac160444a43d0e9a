# Ridge. `make` builds bin/ridge; `make help` lists the rest.
# Everything here needs Go and nothing else; the tools that check and generate
# code are pinned in tools/lint/go.mod and built by Go itself.

SHELL := /bin/bash
.DEFAULT_GOAL := build

TOOL    := go tool -modfile=tools/lint/go.mod
MODULE  := github.com/ridgekv/ridge
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X $(MODULE)/tools/ridge/internal/command.Version=$(VERSION)
TAGS    := invariants

# The race detector needs a C compiler. Without one the tests still run, and
# say so; .ci/run installs one.
HAVE_CC := $(shell command -v $$(go env CC) >/dev/null 2>&1 && echo yes)
RACE    := $(if $(HAVE_CC),-race,)

# UNITS is every package whose tests run inside one process; the packages
# under tests/ start clusters, so they run after them and one at a time, and
# never from Go's cache: it does not know what binary they have started.
UNITS    = $$(go list ./... | grep -v ^$(MODULE)/tests/)
CLUSTERS = $$(go list ./tests/...)

.PHONY: all build fmt test race unit long lint vet gofumpt staticcheck edges proto proto-check \
	demo dev sim test-cluster linearizability chaos compatibility bench bench-build bench-peers bench-batches bench-large bench-smoke bench-test bench-check idle clean help

all: build lint test ## build, lint and test

build: ## build bin/ridge
	@mkdir -p bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ridge ./tools/ridge

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | sed -E 's/:.*## /\t/' | expand -t 18

# ---- tests ------------------------------------------------------------------

test: ## all tests, with the race detector and costly assertions (< 8 min on 2 cores)
	@test -n '$(HAVE_CC)' || echo 'no C compiler: running without the race detector' >&2
	@races=$$(mktemp -d) ; export GORACE="log_path=$$races/race" ; \
	$(TOOL) gotestsum --format pkgname-and-test-fails --format-hide-empty-pkg \
		--raw-command -- /bin/bash -c '\
		go test -json $(RACE) -tags $(TAGS) -timeout 5m $(UNITS) ; units=$$? ; \
		go test -json $(RACE) -tags $(TAGS) -count=1 -timeout 8m -p 1 $(CLUSTERS) ; \
		exit $$(( units | $$? ))' ; code=$$? ; \
	cat "$$races"/* 2>/dev/null ; rm -rf "$$races" ; exit $$code

unit: ## the tests of one process, without the race detector: quick
	go test -tags $(TAGS) $(UNITS)

race: ## the unit tests, with the race detector, three times over
	go test -race -tags $(TAGS) -count=3 -timeout 15m $(UNITS)

long: ## the unit tests with all of their random histories (an hour)
	RIDGE_LONG=1 go test -tags $(TAGS) -count=1 -timeout 120m $(UNITS)

sim: ## PD's planners on large virtual clusters (SEED=n)
	RIDGE_LONG=1 RIDGE_SEED=$(SEED) go test -tags $(TAGS) -count=1 -v -timeout 90m ./pd/internal/schedule/...

test-cluster: ## clusters of real processes, the long form
	RIDGE_LONG=1 go test $(RACE) -tags $(TAGS) -count=1 -v -timeout 30m ./tests/cluster/...

DURATION ?= 2m
linearizability: ## histories under kill -9 and splits, checked by porcupine (DURATION, SEED)
	RIDGE_LONG=1 RIDGE_DURATION=$(DURATION) RIDGE_SEED=$(SEED) \
		go test -tags $(TAGS) -count=1 -v -timeout 60m ./tests/linearizability/...

chaos: ## workloads against nemeses (DURATION, SEED)
	@test -d tests/chaos || { echo 'tests/chaos does not exist yet'; exit 2; }
	RIDGE_LONG=1 RIDGE_DURATION=$(DURATION) RIDGE_SEED=$(SEED) \
		go test -tags $(TAGS) -count=1 -v -timeout 120m ./tests/chaos/...

compatibility: ## golden wire messages and data directories
	@test -d tests/compatibility || { echo 'tests/compatibility does not exist yet'; exit 2; }
	go test -count=1 -v ./tests/compatibility/...

bench: ## every benchmark, once
	go test -run '^$$' -bench . -benchtime 2s ./...

# The peers, and what drives them, are a module of their own: who uses the
# client inherits nothing of them.
# A requirement that is new in the root module is new in this one as well.
NESTED := -mod=mod
ROOMS  := client client/internal/route storenode/internal/engine storenode/internal/evaluate

bench-build: build ## build what bench-peers and bench-smoke run, into bin/bench
	@mkdir -p bin/bench
	cd tests/bench && go build $(NESTED) -o ../../bin/bench/ ./cmd/...
	for room in $(ROOMS); do go test -c -o bin/bench/$${room##*/}.test ./$$room || exit 1; done

bench-peers: bench-build ## Ridge, etcd and NATS in one interleaved run (45 min; QUICK=1: 8 min)
	bin/bench/peers $(PEERS)

bench-batches: bench-build ## batches of 512 rows without a row cache, raw Badger in turns beside them
	bin/bench/peers -systems ridge-rowless -workloads bulkwrite,batchget -ceilings=false -badgers $(PEERS)

bench-large: bench-build ## 10 M rows on three stores (LARGE='-keys 30000000 -stores 1': 30 M on one)
	bin/bench/large $(LARGE)

bench-smoke: bench-build ## allocations and ratios beside the last stored ones (< 2 min)
	bin/bench/smoke $(SMOKE)

bench-test: ## every binding against a small real system
	cd tests/bench && go test $(NESTED) -count=1 -timeout 5m ./...

bench-check: ## build and vet tests/bench
	cd tests/bench && go build $(NESTED) ./... && go vet $(NESTED) ./...

# ---- style and contract -----------------------------------------------------

lint: gofumpt vet staticcheck edges proto-check ## format, vet, staticcheck, import edges, style, protos

GOFILES = $$(git ls-files --cached --others --exclude-standard '*.go' | grep -v '\.pb\.go$$')

gofumpt: ## gofumpt must have nothing to say
	@bad=$$($(TOOL) gofumpt -l $(GOFILES)); \
	if [ -n "$$bad" ]; then printf 'not formatted (run make fmt):\n%s\n' "$$bad"; exit 1; fi

fmt: ## format with gofumpt
	@$(TOOL) gofumpt -w $(GOFILES)

vet:
	go vet -tags $(TAGS) ./...

staticcheck:
	$(TOOL) staticcheck -tags $(TAGS) ./...

edges: ## the architecture, as a failing test (tools/lint)
	cd tools/lint && go vet ./... && go test -count=1 ./...

proto: ## regenerate proto/**/*.pb.go
	$(TOOL) buf generate --template proto/buf.gen.yaml

proto-check: ## lint the protos; generated code must match them
	$(TOOL) buf lint
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
	$(TOOL) buf generate --template proto/buf.gen.yaml -o "$$tmp" && \
	want=$$(cd "$$tmp" && find proto -name '*.pb.go' | sort) && \
	have=$$(find proto -name '*.pb.go' | sort) && \
	if [ "$$want" != "$$have" ]; then echo 'generated files missing or left over: run make proto'; exit 1; fi && \
	for f in $$want; do cmp "$$tmp/$$f" "$$f" || { echo 'stale generated code: run make proto'; exit 1; }; done

# ---- running it -------------------------------------------------------------

dev: build ## a cluster of three stores in one process, in ./data/dev
	./bin/ridge dev --stores 3 --dir data/dev

demo: build ## the Go library's source into a cluster, with a kill -9 in the middle
	go run ./tests/demo -ridge bin/ridge

idle: build ## what 1,000 ranges x 3 replicas cost when nothing happens
	go run ./tests/idle -ridge bin/ridge

clean: ## remove what was built and the development cluster
	rm -rf bin data
