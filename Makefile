# The two commands of the README are `make run` and `make test`; `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TOOLS  := $(VENV)/.tools
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help

.PHONY: help
help: ## what there is
	@awk -F':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The kernels need little: what compiles them comes first, so that `test` can build them while the rest
# installs.
$(TOOLS): constraints.txt
	@scripts/find-python $(PYTHON) >/dev/null
	@test -x $(BIN)/python || $$(scripts/find-python $(PYTHON)) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt cython
	@touch $@

# Editable install with everything but the kernels: `kernels` does not start afresh each time as pip
# does.
$(STAMP): pyproject.toml constraints.txt $(TOOLS)
	@echo "nexus: installing into $(VENV)"
	@NEXUS_NO_EXTENSIONS=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -e '.[embedded,test]'
	@touch $@

.PHONY: install
install: $(STAMP) ## virtual environment with all dependencies

.PHONY: constraints
constraints: $(STAMP) ## newest versions of everything into constraints.txt
	@NEXUS_NO_EXTENSIONS=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --upgrade --upgrade-strategy eager -e '.[embedded,test]'
	@{ grep '^#' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable; } > constraints.new
	@mv constraints.new constraints.txt

.PHONY: kernels
kernels: $(TOOLS)
	@$(BIN)/python setup.py --quiet build_ext --inplace

.PHONY: build
build: $(STAMP) kernels ## compiled kernels, in place (pure Python where no compiler is)
	@$(BIN)/python -m nexus --version

.PHONY: run
run: build ## the whole system on embedded defaults; Ctrl-C stops it
	@exec $(BIN)/python -m nexus up $(ARGS)

.PHONY: lint
lint: $(STAMP) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: types
types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

# Where there is none, the tests say so.
.PHONY: broker
broker:
	@test -n "$(NEXUS_TEST_KAFKA)" || timeout 240 scripts/kafka-dev fetch >/dev/null 2>&1 || true

.PHONY: test
test: ## lint, types and the whole suite on both backends
	@echo "nexus: building, linting and checking types"
	@$(MAKE) --no-print-directory --jobs=4 build lint types broker
	@scripts/run-tests $(BIN)/python $(ARGS)

.PHONY: fuzz
fuzz: build ## a coverage-guided search of the HTTP and RESP kernels: ARGS="--seconds 600 http1"
	@NEXUS_NO_EXTENSIONS=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -e '.[fuzz]'
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

.PHONY: bench
bench: build ## microbenchmarks of every kernel, compiled beside pure beside hiredis
	@$(BIN)/python -m pytest bench/micro --benchmark-enable --benchmark-group-by=group $(ARGS)

.PHONY: bench-gate
bench-gate: build ## is a kernel slower than its committed ratio? names it, exit 1
	@$(BIN)/python -m bench.gate $(ARGS)

.PHONY: bench-peers
bench-peers: build ## beside nginx, HAProxy, Envoy, twemproxy: ARGS=--quick for a look
	@NEXUS_NO_EXTENSIONS=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -e '.[bench]'
	@$(BIN)/python -m bench.peers $(ARGS)

.PHONY: bench-consumer
bench-consumer: build ## events per second through the consumer, effects included (starts a Kafka)
	@scripts/kafka-dev start --name bench --port 0 --fresh
	@NEXUS_TEST_KAFKA=$$(scripts/kafka-dev url --name bench) $(BIN)/python -m bench.consumer \
	    $(ARGS); status=$$?; scripts/kafka-dev stop --name bench --purge; exit $$status

.PHONY: bench-growth
bench-growth: build ## what an operation costs as connections, keys, values, workers, routes, series grow
	@$(BIN)/python -m bench.growth $(ARGS)

.PHONY: figures
figures: $(STAMP) ## README's and docs' figures from the results that are committed
	@$(BIN)/python -m bench.figures

.PHONY: load
load: build ## locust against a system of its own, objectives checked at the end
	@NEXUS_NO_EXTENSIONS=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -e '.[load]'
	@$(BIN)/python -m loadtests $(ARGS)

.PHONY: soak
soak: build ## ten minutes of mixed load with faults: ARGS="--minutes 60" for an hour
	@$(BIN)/python -m proofs.soak --results proofs/results $(ARGS)

.PHONY: prove-crossed
prove-crossed: build ## no crossed reply in a million tagged operations under faults
	@$(BIN)/python -m proofs.crossed --operations 1000000 --faults --results proofs/results $(ARGS)

.PHONY: prove-transactions
prove-transactions: build ## WATCH/MULTI at 2700/s opens no more connections than transactions at once
	@$(BIN)/python -m proofs.transactions --results proofs/results $(ARGS)

.PHONY: prove-staleness
prove-staleness: build ## no read older than max_staleness in a million operations under faults
	@$(BIN)/python -m proofs.staleness --results proofs/results $(ARGS)

.PHONY: prove-stampede
prove-stampede: build ## 12 000 clients miss one key: how often is it loaded?
	@$(BIN)/python -m proofs.stampede --results proofs/results $(ARGS)

.PHONY: demo-stampede
demo-stampede: build ## the same with and without the cacheproxy, two numbers and a chart
	@$(BIN)/python -m proofs.stampede --demo $(ARGS)

.PHONY: prove-tags
prove-tags: build ## a tag of 100 000 keys: no old value behind the reply, no stall of Redis
	@$(BIN)/python -m proofs.tags --results proofs/results $(ARGS)

.PHONY: prove-hotkeys
prove-hotkeys: build ## ten million distinct keys: the counters' memory is flat, a hot key is found
	@$(BIN)/python -m proofs.hotkeys --results proofs/results $(ARGS)

.PHONY: prove-idle
prove-idle: build ## memory of 10 000 idle clients of the cacheproxy
	@$(BIN)/python -m proofs.idle --results proofs/results $(ARGS)

.PHONY: prove-bigvalue
prove-bigvalue: build ## peak memory of a 500 MiB value through the cacheproxy
	@$(BIN)/python -m proofs.bigvalue --mebibytes 500 --results proofs/results $(ARGS)

.PHONY: prove-keepalive
prove-keepalive: build ## no 502 in a million requests to an upstream that keeps closing idle connections
	@$(BIN)/python -m proofs.keepalive --requests 1000000 --results proofs/results $(ARGS)

.PHONY: prove-reload
prove-reload: build ## SIGHUP every 100 ms and killed workers under load: nothing fails that need not
	@$(BIN)/python -m proofs.reload --results proofs/results $(ARGS)

.PHONY: prove-gateway-idle
prove-gateway-idle: build ## memory of 10 000 idle clients of the gateway
	@$(BIN)/python -m proofs.gatewayidle --results proofs/results $(ARGS)

.PHONY: prove-gateway-bigbody
prove-gateway-bigbody: build ## a GiB up and a GiB down through the gateway in bounded memory
	@$(BIN)/python -m proofs.gatewaybigbody --results proofs/results $(ARGS)

.PHONY: prove-hostile
prove-hostile: build ## floods and slow clients of the gateway: how fast the others are answered
	@$(BIN)/python -m proofs.hostile --results proofs/results $(ARGS)

.PHONY: prove-steady
prove-steady: build ## the gateway's memory over ten million requests (needs wrk)
	@$(BIN)/python -m proofs.steady --results proofs/results $(ARGS)

.PHONY: prove-consumer
prove-consumer: build ## 100 000 events, 30 SIGKILLs: nothing lost, nothing twice (starts a Kafka)
	@scripts/kafka-dev start --name prove --port 0 --fresh
	@NEXUS_TEST_KAFKA=$$(scripts/kafka-dev url --name prove) $(BIN)/python -m proofs.consumer \
	    --events 100000 --kills 30 --results proofs/results $(ARGS); status=$$?; \
	    scripts/kafka-dev stop --name prove --purge; exit $$status

.PHONY: prove-events-memory
prove-events-memory: build ## a million events leave nothing in the consumer's memory (starts a Kafka)
	@scripts/kafka-dev start --name memory --port 0 --fresh
	@NEXUS_TEST_KAFKA=$$(scripts/kafka-dev url --name memory) $(BIN)/python -m proofs.eventsmemory \
	    --results proofs/results $(ARGS); status=$$?; \
	    scripts/kafka-dev stop --name memory --purge; exit $$status

.PHONY: prove-broker-outage
prove-broker-outage: build ## Kafka stopped, then frozen, for a minute under gateway load: nothing is noticed
	@$(BIN)/python -m proofs.brokeroutage --how stop --results proofs/results $(ARGS)
	@$(BIN)/python -m proofs.brokeroutage --how freeze --results proofs/results $(ARGS)

.PHONY: prove-redis-suite
prove-redis-suite: build ## Redis's own test suite through the cacheproxy
	@scripts/redis-suite proxy $(ARGS)

.PHONY: prove-redis-suite-near
prove-redis-suite-near: build ## the same with the near-cache on for every read of every key
	@scripts/redis-suite near $(ARGS)

.PHONY: prove-image
prove-image: $(STAMP) ## the Dockerfile's steps without Docker: wheels, fresh install, each --check
	@scripts/check-image $(BIN)/python

.PHONY: docs
docs: $(STAMP) ## reference pages that are derived from code
	@$(BIN)/python scripts/generate-docs

.PHONY: clean
clean: ## built files and caches; not the virtual environment
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .nexus
	@find nexus -name '*.so' -delete
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
