# `make demo` shows the main job, `make test` proves it; both do their own set-up. `make check` is the inner loop.
.DEFAULT_GOAL := help
SHELL := /bin/bash
# Containers for Python often say so. The suite would then compile every module in each of its thousand processes.
unexport PYTHONDONTWRITEBYTECODE
PY := .venv/bin/python
# Debian packages: what the demo needs, what building an image and its install disk needs, and what the suite needs beside it.
DEMO_PACKAGES := git gnupg gpgv zstd e2fsprogs
IMAGE_PACKAGES := $(DEMO_PACKAGES) mmdebstrap bubblewrap uidmap fdisk dosfstools mtools
BROWSER_PACKAGES := chromium fonts-dejavu-core
TEST_PACKAGES := $(IMAGE_PACKAGES) $(BROWSER_PACKAGES) docker-registry cloud-init shellcheck systemd-container openssl podman prometheus crun busybox-static grub-common xorriso chrony strace postgresql
VM_PACKAGES := $(TEST_PACKAGES) qemu-system-x86 ovmf openssh-client
# The pure parts. Which tests prove them, and are counted: tests/conftest.py.
PROVED := --cov=reconciler/model --cov=reconciler/repo --cov=reconciler/planner --cov=reconciler/protocol

.PHONY: help setup demo test test-vm test-vm-full check bench lock schemas docs screenshots book packages

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup:  ## make .venv with the command `reconciler`
	@.ci/setup

demo:  ## a promotion, a bad release stopped, its revert, an app release: 52 sites on this machine, no account, no root
	@.ci/setup --system $(DEMO_PACKAGES)
	@.venv/bin/reconciler demo $(DEMO)

# Three workers keep two cores busy, here and in `check`: much of the suite waits for processes and for clocks.
test:  ## the whole suite but for virtual machines
	@.ci/setup --system $(TEST_PACKAGES)
	@$(PY) -m tests.support.golden
	@$(PY) .ci/suite.py -m "not vm" -n 3 --cov-branch $(PROVED) --cov-report=
	@.venv/bin/coverage report --skip-covered --fail-under=95

test-vm:  ## tests that need root or virtual machines
	@.ci/setup --system $(VM_PACKAGES)
	@.ci/test-vm

test-vm-full:  ## all of them, the long ones too: two hours or more
	@.ci/setup --system $(VM_PACKAGES)
	@.ci/test-vm full

check:  ## lint, types, unit tests: a little over a minute
	@.ci/setup
	@.venv/bin/ruff check -q . && .venv/bin/ruff format --check -q .
	@.venv/bin/mypy --no-error-summary
	@PROPERTY_EXAMPLES=10 .venv/bin/pytest -q -n 3 -m "not vm and not slow and not system"

bench:  ## what the work costs, as ratios to a yardstick in the same run
	@.ci/setup
	@$(PY) -m tests.benchmarks

lock:  ## renew the pinned versions from what is installed
	@$(PY) .ci/lock.py

schemas:  ## generate schemas/ from the models
	@.venv/bin/reconciler schema --write schemas

docs:  ## generate the reference pages that come from code
	@$(PY) .ci/docs.py

screenshots:  ## take the README's pictures of the dashboard, of the example fleet in a rollout
	@.ci/setup --system $(BROWSER_PACKAGES)
	@$(PY) -m tests.browser.pictures

book:  ## make the documentation as a site, in build/book; a link that leads nowhere is an error
	@.ci/setup
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --config-file .ci/book/mkdocs.yml

packages:  ## name the Debian packages that the suite needs
	@echo $(VM_PACKAGES)
