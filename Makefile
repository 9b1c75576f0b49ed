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
BUILD_HERE = echo "building chaperone (about a minute the first time)" >&2 && $(GO_BUILD) -o bin/chaperone ./cmd/chaperone
CYCLONEDX := v1.9.0
FUZZTIME ?= 30s
.DEFAULT_GOAL := help
.PHONY: help demo demo-envoy test test-long lint bench generate build release example image fuzz

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## a scripted demo in a minute: a plugin, a real Vault, a real API, and five bypass attempts that fail
	@tools/setup demo
	@$(BUILD_HERE)
	@go run ./tools/demo

demo-envoy: ## the same behind an Envoy that Chaperone configures: streams cut within a second
	@tools/setup demo-envoy
	@$(BUILD_HERE)
	@go run ./tools/demo-envoy

test: ## every test with the race detector, against real components; prints skipped tests with their reasons
	@tools/setup test
	go test $$(tools/setup race) -shuffle=on -timeout 50m ./...

test-long: ## slow tests: leftovers of 100 runs and 30 kills, floods of every kind, every pair of client and server, 100,000 pairs of policies; root
	@tools/setup test
	CHAPERONE_LONG=1 go test -count=1 -v -timeout 30m -run 'Leftovers|Floods' ./internal/e2e
	CHAPERONE_LONG=1 go test -count=1 -v -timeout 60m -run Differential ./internal/e2e/differential
	CHAPERONE_LONG=1 go test -count=1 -v -timeout 120m -run AgreesWithBruteForce ./policy/prove

lint: ## golangci-lint, pinned
	@tools/setup lint
	$(GOLANGCI_LINT) run ./...

bench: ## the benchmarks of every package, then the whole system beside its floor
	@tools/setup bench
	go test -run '^$$' -bench . -benchmem ./...
	@$(BUILD_HERE)
	go run ./bench

generate: ## the eBPF objects and the schemas (both are committed)
	@tools/setup generate
	go generate ./...

build: ## bin/chaperone, static, for this machine, and beside it for linux/amd64 and linux/arm64
	GOOS=linux GOARCH=amd64 $(GO_BUILD) -o bin/chaperone-linux-amd64 ./cmd/chaperone
	GOOS=linux GOARCH=arm64 $(GO_BUILD) -o bin/chaperone-linux-arm64 ./cmd/chaperone
	cp bin/chaperone-linux-$$(go env GOHOSTARCH) bin/chaperone

release: build ## bin/ with man pages, a CycloneDX bill of materials and SHA-256 sums
	rm -rf bin/man && go run -tags man -ldflags "-X main.version=$(VERSION)" ./cmd/chaperone man bin/man
	GOFLAGS= go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(CYCLONEDX) bin -json -version $(VERSION) -output bin/chaperone.cdx.json bin/chaperone
	cd bin && sha256sum chaperone-linux-* chaperone.cdx.json >SHA256SUMS

example: ## bin/chaperone for this machine, and bin/weather-api, which the README's walk calls
	@$(BUILD_HERE)
	@CGO_ENABLED=0 go build -trimpath -o bin/weather-api ./examples/weather/api

image: ## the container image chaperone:VERSION
	docker build --build-arg VERSION=$(VERSION) -t chaperone:$(VERSION) .

fuzz: ## every fuzz target for FUZZTIME (30s)
	@tools/fuzz $(FUZZTIME)
