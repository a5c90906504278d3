# What a person runs. Everything is run as root: containers, namespaces, ptrace.

SHELL := /bin/sh
.DEFAULT_GOAL := build
.PHONY: build install uninstall demo test soak fuzz bench check fmt clippy deny install-deps peer clean-cache

export ARCTERN_CACHE ?= /var/cache/arctern

build: install-deps
	cargo build --release --locked -p arctern

# Where `make install` puts the program, its man pages and what shells complete; DESTDIR is for
# packagers.
PREFIX ?= /usr/local
BINDIR = $(DESTDIR)$(PREFIX)/bin
MANDIR = $(DESTDIR)$(PREFIX)/share/man/man1
BASH = $(DESTDIR)$(PREFIX)/share/bash-completion/completions
ZSH = $(DESTDIR)$(PREFIX)/share/zsh/site-functions
FISH = $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
BINARY ?= target/release/arctern

install:
	@test -x $(BINARY) || { echo "make install: $(BINARY) is not there: run make first" >&2; exit 1; }
	install -d $(BINDIR) $(MANDIR) $(BASH) $(ZSH) $(FISH)
	install -m 755 $(BINARY) $(BINDIR)/arctern
	rm -f $(MANDIR)/arctern.1 $(MANDIR)/arctern-*.1
	$(BINARY) internal man $(MANDIR)
	$(BINARY) internal completions bash >$(BASH)/arctern
	$(BINARY) internal completions zsh >$(ZSH)/_arctern
	$(BINARY) internal completions fish >$(FISH)/arctern.fish

uninstall:
	rm -f $(BINDIR)/arctern $(MANDIR)/arctern.1 $(MANDIR)/arctern-*.1
	rm -f $(BASH)/arctern $(ZSH)/_arctern $(FISH)/arctern.fish

# The walk of the README, with nginx and with a counter.
demo: build
	scripts/demo.sh

# A sample of everything: at most 40 minutes on two cores.
test: install-deps
	scripts/install-tools.sh nextest
	cargo build --locked --workspace --bins
	cargo nextest run --locked --workspace --profile ci $(TESTS)

# The long runs: hours.
soak: install-deps
	scripts/install-tools.sh nextest
	cargo build --locked --release --workspace --bins
	ARCTERN_SOAK=1 cargo nextest run --locked --release -p arctern-harness --profile soak $(TESTS)
	$(MAKE) fuzz

# Every decoder of input from elsewhere: FUZZ_SECONDS for all together, an hour.
fuzz:
	scripts/install-tools.sh fuzz
	scripts/fuzz.sh $(FUZZ)

# Figures beside Podman, runc and CRIU, in one run.
bench: install-deps
	cargo build --locked --release --workspace --bins
	target/release/arctern-bench $(BENCH)

# What CI asks besides the tests.
check: fmt clippy deny

fmt:
	cargo fmt --all --check

clippy: install-deps
	cargo clippy --locked --workspace --all-targets -- -D warnings

deny:
	scripts/install-tools.sh deny
	scripts/deny.sh

install-deps:
	scripts/install-deps.sh

peer: install-deps
	scripts/peer.sh setup

# Images and peers that were made once and kept.
clean-cache:
	scripts/peer.sh remove
	rm -rf $(ARCTERN_CACHE)/images
