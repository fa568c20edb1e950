# The two that matter: `make demo` shows the product, `make test` tests it.
GO      ?= go
PURE    := CGO_ENABLED=0
# The embedded workflow engine is compiled once, without the race detector: with it the build alone takes
# as long as all other tests together, and none of its code is ours.
ENGINE  := ./workflows/engine ./cmd/rerack
RACED   = $(shell $(GO) list ./... | grep -v -e /workflows/engine -e /cmd/rerack -e /test/e2e)
FUZZ    ?= 10s
SEEDS   ?= 10000
SEED    ?= 1

.PHONY: build demo test e2e lint vuln fuzz chaos bench bench-peers peers clean

build:
	$(PURE) $(GO) build -o bin/rerack ./cmd/rerack
	$(PURE) $(GO) build -trimpath -ldflags "-s -w" -o bin/rerack-agent ./cmd/rerack-agent

demo: build
	./bin/rerack demo

# Installs the third-party servers that tests run against, where it may, and then tests everything with
# the race detector.
test: peers
	$(PURE) $(GO) vet ./...
	$(GO) test -race $(RACED)
	$(PURE) $(GO) test $(ENGINE)

peers:
	./.ci/peers
	./.ci/qemu

e2e: build peers
	RERACK_BIN=$(CURDIR)/bin/rerack $(PURE) $(GO) test -count=1 -timeout 30m ./test/e2e/...

lint:
	test -z "$$(gofmt -l $$(git ls-files '*.go'))"
	$(PURE) $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.7.0 ./...
	$(PURE) $(GO) run go.temporal.io/sdk/contrib/tools/workflowcheck@v0.4.0 ./workflows

vuln:
	./.ci/vuln

# Runs every fuzz target for FUZZ each, from its seed corpus.
fuzz:
	./.ci/fuzz $(FUZZ)

# Recoveries on virtual time with a fault at every turn, drawn from SEEDS seeds from SEED on; the table of faults
# comes at the end. One seed again, with its trace: make chaos SEED=57 SEEDS=1 TRACE=-chaos.trace
chaos:
	GOGC=400 $(PURE) $(GO) test ./test/chaos -count=1 -timeout 4h -v -run 'TestSeeds' -chaos.first $(SEED) -chaos.seeds $(SEEDS) $(TRACE)

# About seven minutes, most of it racks that burn among 2,000 machines. The table comes at the end.
bench: build
	$(PURE) $(GO) run ./test/bench -bin bin/rerack $$(grep -rl --include='*_test.go' '^func Benchmark' . | grep -v ./test/e2e/ | xargs -n1 dirname | sort -u)

# Our servers beside their peers, as root: some seven minutes, one table, no traffic outside namespaces of its own.
bench-peers:
	./test/peers/run

clean:
	rm -rf bin
