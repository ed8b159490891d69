# Every command of the project. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Phases print as they go, one after the other; cargo and go use the cores themselves.
.NOTPARALLEL:

# The programs as the cluster runs them, and the harness beside them.
BINARIES := target/image
E2E := $(BINARIES)/e2e
TOOLS_LOG := target/tools.log

# phase TITLE, COMMAND: a heading, the command, and how long it took.
define phase
@printf '\n== %s\n' '$(1)'; begun=$$SECONDS; \
  { $(2); } || { printf '   FAILED  %s after %s s\n' '$(1)' "$$((SECONDS - begun))"; exit 1; }; \
  printf '   %s: %s s\n' '$(1)' "$$((SECONDS - begun))"
endef

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

.PHONY: build
build: ## Build the operator, the plugin and the harness, as the cluster runs them
	$(call phase,build the programs,cargo build --quiet --profile image --workspace --bins)

.PHONY: prefetch
prefetch:
	@# The network works while the compiler does. What fails here fails again, with a message, where it is needed.
	@for tool in kubernetes etcd helm contour gitea; do (cd e2e/tools/$$tool && go mod download >/dev/null 2>&1) || true; done &

.PHONY: tools
tools: prefetch build ## Build the tools of a cluster (once; kept outside target)
	@$(E2E) tools

.PHONY: demo
demo: prefetch build ## The whole story on a real cluster; KEEP=1 leaves it running
	@$(E2E) demo $(if $(KEEP),--keep)

.PHONY: demo-down
demo-down: build ## Take down every cluster that was kept or left behind
	@$(E2E) down

.PHONY: image
image: build ## Build the operator's image into target/images/operator.tar
	@$(E2E) image

.PHONY: lint
lint: ## Format, lints, documentation
	$(call phase,format,cargo fmt --all --check)
	$(call phase,lints,cargo clippy --quiet --workspace --all-targets -- -D warnings)
	$(call phase,documentation,RUSTDOCFLAGS='-D warnings' cargo doc --quiet --workspace --no-deps)

.PHONY: unit
unit: ## Everything that needs no cluster: unit, property, architecture and CRD tests
	$(call phase,unit and property tests,cargo test --quiet --workspace)

.PHONY: chart
chart: ## Render the chart, and test what it lets the operator do
	$(call phase,chart,HELM=$$($(E2E) program helm) cargo test --quiet --test chart)

.PHONY: forge
forge: ## Test the forge that the stories use: git over HTTPS and SSH, pull requests
	$(call phase,forge,cargo test --quiet -p e2e --test forge)

.PHONY: stories
stories: build ## The stories on a real cluster; STORY="word …" chooses some
	@$(E2E) test $(STORY)

.PHONY: soak
soak: build ## Releases without end while pods and leaders die; MINUTES=30, SEED replays
	@$(E2E) soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

.PHONY: test
test: ## All of the above that must pass before a change lands
	$(call phase,format,cargo fmt --all --check)
	$(call phase,build the programs,cargo build --quiet --profile image --workspace --bins)
	@# The tools are built beside the lints and tests, at a lower priority.
	@mkdir -p target; nice -n 10 $(E2E) tools > $(TOOLS_LOG) 2>&1 & echo $$! > target/tools.pid
	$(call phase,lints,cargo clippy --quiet --workspace --all-targets -- -D warnings)
	$(call phase,documentation,RUSTDOCFLAGS='-D warnings' cargo doc --quiet --workspace --no-deps)
	$(call phase,unit and property tests,cargo test --quiet --workspace)
	$(call phase,tools,while kill -0 $$(cat target/tools.pid) 2>/dev/null; do sleep 1; done; cat $(TOOLS_LOG); $(E2E) tools >/dev/null)
	@$(MAKE) --no-print-directory chart
	@$(MAKE) --no-print-directory forge
	@$(E2E) test
