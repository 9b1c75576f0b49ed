# Chaperone. `make help` lists the targets. Needs Go, make and git; everything else that
# a target needs is installed or listed by tools/setup.

SHELL := /bin/bash
CHAPERONE_CACHE ?= $(CURDIR)/.cache
export CHAPERONE_CACHE
GOLANGCI_LINT := $(CHAPERONE_CACHE)/golangci-lint-v2.15.0/golangci-lint
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Without this tag gRPC links templates, and the linker keeps every exported method: +10 MB.
TAGS := grpcnotrace
GO_BUILD := CGO_ENABLED=0 go build -trimpath -tags $(TAGS) -ldflags '-s -w -X main.version=$(VERSION)'
PROGRAMS := chaperone chaperonectl
BUILD_HERE = echo "building chaperone (about a minute the first time)" >&2 && $(GO_BUILD) -o bin/ $(PROGRAMS:%=./cmd/%)
CYCLONEDX := v1.9.0
DOCKER ?= docker
FUZZTIME ?= 30s
# More packages at once than processors make leases, limits and timeouts of real servers late.
TEST_JOBS ?= $(shell nproc)
# Packages without a goroutine, in which the race detector finds nothing and takes ten times as
# long. internal/structure holds them to it.
WITHOUT_GOROUTINES := ./internal/prose ./internal/structure ./policy/prove
.DEFAULT_GOAL := help
.PHONY: help demo demo-envoy demo-governance test test-long lint bench generate build release example image fuzz

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a scripted demo in a minute: a plugin, a real Vault, API and database, and five bypass attempts that fail
	@tools/setup demo
	@$(BUILD_HERE)
	@go run ./tools/demo

demo-envoy: ## the same behind an Envoy that Chaperone configures: streams cut within a second
	@tools/setup demo-envoy
	@$(BUILD_HERE)
	@go run ./tools/demo-envoy

demo-governance: ## a plugin from its submission to an enforced signed grant: a finding, a wider version, an exemption, an expired approval, a rollback
	@tools/setup demo-governance
	@$(BUILD_HERE)
	@go run ./tools/demo-governance

test: ## every test, with the race detector where goroutines run, against real components; prints skipped tests with their reasons
	@tools/setup test
	@set -x; status=0; \
	go test -shuffle=on -timeout 50m $(WITHOUT_GOROUTINES) || status=1; \
	go test $$(tools/setup race) -shuffle=on -timeout 50m -p $(TEST_JOBS) -parallel $(TEST_JOBS) \
		$$(go list ./... | grep -vxF "$$(go list $(WITHOUT_GOROUTINES))") || status=1; \
	exit $$status

test-long: ## slow tests: leftovers of 100 runs and 30 kills, floods of every kind, every pair of client and server, 20 rotations of a lease, 100,000 pairs of policies, 200,000 splices of statements, other versions of Redis; root
	@tools/setup test
	CHAPERONE_LONG=1 go test -count=1 -v -timeout 30m -run 'Leftovers|Floods' ./internal/e2e
	CHAPERONE_LONG=1 go test -count=1 -v -timeout 60m -run Differential ./internal/e2e/differential
	CHAPERONE_LONG=1 go test -count=1 -v -timeout 30m -run PoolsOutliveRotations ./internal/e2e/leases
	CHAPERONE_LONG=1 go test -count=1 -v -timeout 120m -run AgreesWithBruteForce ./policy/prove
	CHAPERONE_LONG=1 go test -count=1 -v -timeout 180m -run 'Splices|Places' ./facts/sql
	for version in 6.2 8.2; do export CHAPERONE_REDIS=$$version; go test -count=1 -timeout 30m ./proxy/redis && \
		go test -count=1 -v -timeout 60m -run 'TestClients$$/(redis|rueidis|jedis)|TestRedis' ./internal/e2e/databases ./internal/e2e/leases || exit 1; done

lint: ## golangci-lint, pinned
	@tools/setup lint
	$(GOLANGCI_LINT) run ./...

bench: ## the benchmarks of every package, then the whole system beside its floor
	@tools/setup bench
	go test -run '^$$' -bench . -benchmem ./...
	@$(BUILD_HERE)
	go run ./bench

generate: ## the eBPF objects, the schemas and the tables of statements (all are committed)
	@tools/setup generate
	go generate ./...

build: ## bin/chaperone and bin/chaperonectl, static, for this machine, and beside them for linux/amd64 and linux/arm64
	for program in $(PROGRAMS); do for arch in amd64 arm64; do \
		GOOS=linux GOARCH=$$arch $(GO_BUILD) -o bin/$$program-linux-$$arch ./cmd/$$program || exit 1; \
	done; cp bin/$$program-linux-$$(go env GOHOSTARCH) bin/$$program; done

release: build ## bin/ with man pages, CycloneDX bills of materials and SHA-256 sums
	rm -rf bin/man && for program in $(PROGRAMS); do \
		go run -tags man -ldflags "-X main.version=$(VERSION)" ./cmd/$$program man bin/man || exit 1; \
		GOFLAGS= go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(CYCLONEDX) bin -json -version $(VERSION) -output bin/$$program.cdx.json bin/$$program || exit 1; \
	done
	cd bin && sha256sum $(PROGRAMS:%=%-linux-*) $(PROGRAMS:%=%.cdx.json) >SHA256SUMS

example: ## bin/chaperone and bin/chaperonectl for this machine, and bin/weather-api, which the README's walk calls
	@$(BUILD_HERE)
	@CGO_ENABLED=0 go build -trimpath -o bin/weather-api ./examples/weather/api

image: ## the container image chaperone:VERSION, by docker (or DOCKER=podman)
	$(DOCKER) build --build-arg VERSION=$(VERSION) -t chaperone:$(VERSION) .

fuzz: ## every fuzz target for FUZZTIME (30s)
	@tools/fuzz $(FUZZTIME)
