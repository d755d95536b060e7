# Everything that is done with this repository; `make` alone lists it.

PYTHON ?= python3
JOBS   ?= 3
VENV   := .venv
PY     := $(VENV)/bin/python
ARGS   ?=

BUILD_PACKAGES := gcc libc6-dev libnetfilter-queue-dev libnfnetlink-dev iptables iproute2 nftables \
	clang libbpf-dev libelf-dev
FUZZ_PACKAGES  := clang libclang-rt-14-dev
TEST_PACKAGES  := conntrack coturn curl ethtool fish iperf3 iputils-ping iputils-tracepath lftp libfixbuf9 mandoc \
	netcat-openbsd nfdump openssl procps sip-tester stun-client tcpdump tftp-hpa tftpd-hpa traceroute tshark vsftpd zsh
# promtool, and a syslog server that reads PAN-OS's CSV: installed they would be running services, the latter instead of
# the host's own. The tests go on without them.
PROMETHEUS     := prometheus
SYSLOG_NG      := syslog-ng-core syslog-ng-scl libivykis0 libnet1 libpcre3 libwrap0
# What `make bench` compares with. Of openvswitch-switch the programs alone: installed it would be a running service.
BENCH_PACKAGES := libdpdk-dev openvswitch-common pkg-config
BENCH_UNPACKED := openvswitch-switch
DEB_PACKAGES   := build-essential debhelper dh-python fakeroot libffi-dev lintian mmdebstrap python3 python3-dev \
	python3-venv systemd-container

# Python's own packages only where this $(PYTHON) lacks its headers or ensurepip: it need not be Debian's.
PYTHON_PROBE = import ensurepip, os, sysconfig; \
	raise SystemExit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
PYTHON_PACKAGES = $(shell $(PYTHON) -c '$(PYTHON_PROBE)' 2>/dev/null || echo python3 python3-dev python3-venv)

C_FILES := $(filter-out %.bpf.c,$(wildcard cext/*.c))
INPUTS  := $(wildcard cext/*.c cext/*.h cext/build_*.py)
C_TESTS := $(wildcard $(C_FILES:cext/%.c=tests/test_%.py) tests/test_dispatch.py tests/test_mss.py tests/test_records.py \
	tests/test_fuzz_*.py)

# Labs of JOBS processes do not know of each other, and mostly wait; a file's tests share a firewall, so they stay together.
# -n0 in ARGS: one process, as a debugger needs it. What fails is asked once more, and said to be (R): on two cores labs
# disturb each other.
SPREAD := -n $(JOBS) --dist loadfile --reruns 1

# What `make fuzz` stops at, whichever comes first; FUZZ_LOOP: all but the files that talk to the kernel. The harness
# itself is not traced: its checks would take a third of the time.
FUZZ_RUNS    ?= 10000000
FUZZ_SECONDS ?= 3600
FUZZ_FLAGS   := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
FUZZ_LOOP    := $(filter-out cext/queue.c cext/worker.c cext/program.c,$(C_FILES))

.PHONY: help build man demo test asan tsan fuzz lint bench deb deb-test clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(VENV)/.compiled ## make .venv with the package (editable) and the C extension; installs missing Debian packages as root

man: build ## write the manual, a page for each command and one for the configuration, to build/man
	$(PY) -m dataplane.manual build/man

demo: build $(VENV)/.test-packages ## run the firewall between a client and a server in network namespaces, and show it
	@$(PY) -m tests.lab.demo $(ARGS)

test: build $(VENV)/.test-packages ## the whole suite, network namespaces included when root; ARGS go to pytest
	-@$(MAKE) --no-print-directory build/prometheus
	$(PY) -m pytest $(SPREAD) $(ARGS)
	@$(MAKE) --no-print-directory asan

# No ASLR where that may be asked for: the shadow memory of these sanitizers does not fit every random layout.
# PYTHONMALLOC, so that a read past the end of bytes that Python handed over is seen; --capture=sys, so that a report
# outlives the process. Python itself leaks by design.
sanitized = $(shell setarch -R true 2>/dev/null && echo setarch -R) env LD_PRELOAD="$$(gcc -print-file-name=$(1))" \
	DATAPLANE_EXTENSION=$(2) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	TSAN_OPTIONS=halt_on_error=1 $(PY) -m pytest --capture=sys

asan: build ## the tests of the C files against an extension built with AddressSanitizer and UBSan
	DATAPLANE_SANITIZE=address,undefined $(PY) cext/build_ffi.py build/asan
	$(call sanitized,libasan.so,build/asan) $(SPREAD) $(C_TESTS)

tsan: build ## the tests marked `stress` against an extension built with ThreadSanitizer
	DATAPLANE_SANITIZE=thread $(PY) cext/build_ffi.py build/tsan
	$(call sanitized,libtsan.so,build/tsan) -m stress $(C_TESTS)

# Progress goes to the terminal; what breaks a promise is left in build/fuzz/, to be run alone: build/fuzz/packet FILE.
fuzz: build/fuzz/packet ## FUZZ_RUNS mutated packets through parser, tracking and rewrite under ASan and UBSan
	$(PY) -m tests.fuzz_seeds build/fuzz/seeds
	mkdir -p build/fuzz/corpus
	build/fuzz/packet -runs=$(FUZZ_RUNS) -max_total_time=$(FUZZ_SECONDS) -max_len=2048 -print_final_stats=1 \
		-artifact_prefix=build/fuzz/ $(ARGS) build/fuzz/corpus build/fuzz/seeds

build/fuzz/packet: tests/fuzz_packet.c $(INPUTS) | build $(VENV)/.fuzz-packages
	@mkdir -p $(@D)
	clang $$($(PY) cext/build_ffi.py --cflags) $(FUZZ_FLAGS) -Icext -c tests/fuzz_packet.c -o $@.o
	clang $$($(PY) cext/build_ffi.py --cflags) $(FUZZ_FLAGS) -fsanitize=fuzzer -Wl,--wrap=table_now -Icext $@.o $(FUZZ_LOOP) -o $@

lint: build ## ruff, mypy strict, and every C file through each compiler that is there, warnings being errors
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	@flags=$$($(PY) cext/build_ffi.py --cflags) && for compiler in gcc clang; do \
		command -v $$compiler >/dev/null || { echo "$$compiler is not installed: left out"; continue; }; \
		for file in $(C_FILES) $(wildcard tests/*.c tests/*/*.c); do \
			echo "$$compiler $$file"; \
			$$compiler $$flags -Icext -c $$file -o /dev/null || exit 1; \
		done; \
	done

bench: build $(VENV)/.test-packages ## measure beside plain forwarding, nftables, Open vSwitch and a Python callback; ARGS=--help
	-@$(MAKE) --no-print-directory $(VENV)/.bench-packages build/ovs
	@$(PY) -m tests.bench $(ARGS)

# Built by Debian's own Python, whatever $(PYTHON) is, and from a copy, which has its debian/ at the top.
deb: man $(VENV)/.deb-packages ## a Debian package in dist/ that brings along whatever Debian 12 lacks
	rm -rf build/deb && mkdir -p build/deb/dataplane/build dist
	cp -r pyproject.toml README.md CHANGELOG.md LICENSE cext config dataplane build/deb/dataplane/
	cp -r config/debian build/deb/dataplane/debian
	cp -r build/man build/deb/dataplane/build/
	rm -f build/deb/dataplane/dataplane/_dataplane.*.so build/deb/dataplane/dataplane/*.bpf.o
	cd build/deb/dataplane && env -u MAKEFLAGS -u MAKELEVEL PATH=/usr/sbin:/usr/bin:/sbin:/bin \
		dpkg-buildpackage --build=binary --no-sign
	rm -f dist/dataplane_*.deb && mv build/deb/dataplane_*.deb dist/
	lintian --fail-on error dist/dataplane_*.deb

deb-test: build $(VENV)/.test-packages deb ## that package on a clean Debian 12 under systemd: traffic, faults, purge
	DATAPLANE_DEB=$$(ls $(CURDIR)/dist/dataplane_*.deb) $(PY) -m pytest -n0 tests/lab/test_package.py $(ARGS)

clean: ## remove everything that the other targets made
	rm -rf $(VENV) build dist *.egg-info dataplane/_dataplane.*.so dataplane/*.bpf.o .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find dataplane tests cext -name __pycache__ -type d -prune -exec rm -r {} +

$(VENV)/.compiled: $(VENV)/.installed $(INPUTS)
	$(PY) cext/build_ffi.py .
	@touch $@

# setuptools and cffi serve build_ffi.py; pip fetches its own for what it builds in isolation.
$(VENV)/.installed: pyproject.toml $(VENV)/.build-packages | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test,lint]'
	@touch $@

$(PY): | $(VENV)/.build-packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build-packages: Makefile
	$(call debian_packages,$(PYTHON_PACKAGES) $(BUILD_PACKAGES),exit 1)

$(VENV)/.test-packages: Makefile
	$(call debian_packages,$(TEST_PACKAGES),echo "Going on without them.")
	-@$(MAKE) --no-print-directory build/syslog-ng

build/syslog-ng: | $(VENV)/.test-packages
	$(call unpacked,$(SYSLOG_NG))

build/prometheus: | $(VENV)/.test-packages
	$(call unpacked,$(PROMETHEUS))

# The bench goes on without what cannot be had, and says so: hence `-` where these are asked for.
$(VENV)/.bench-packages: Makefile pyproject.toml
	$(PY) -m pip install --quiet --disable-pip-version-check --group bench || echo "Going on without a plot."
	$(call debian_packages,$(BENCH_PACKAGES),echo "Going on without them.")

build/ovs: | $(VENV)/.bench-packages
	$(call unpacked,$(BENCH_UNPACKED))

$(VENV)/.deb-packages: Makefile
	$(call debian_packages,$(BUILD_PACKAGES) $(DEB_PACKAGES),exit 1)

$(VENV)/.fuzz-packages: Makefile
	$(call debian_packages,$(FUZZ_PACKAGES),exit 1)

# $(call unpacked,NAMES): what Debian packages hold, below the target, and nothing of it installed.
define unpacked
@mkdir -p build/packages
cd build/packages && apt-get -q -o APT::Sandbox::User=root download $(1) >/dev/null
@mkdir -p $@.part && for package in $(1); do dpkg -x build/packages/$${package}_*.deb $@.part || exit 1; done && mv $@.part $@
endef

# $(call debian_packages,NAMES,COMMAND): install those that are missing and leave the target as a stamp; run COMMAND
# after naming them where that cannot be done. The loop is for a machine whose first boot still updates its lists.
define debian_packages
@mkdir -p $(@D) build
@if ! command -v dpkg-query >/dev/null; then \
	echo "Not a Debian system; what these packages hold is needed: $(1)"; touch $@; exit 0; \
fi; \
missing=$$(for name in $(1); do \
	dpkg-query -W -f '$${db:Status-Status}' $$name 2>/dev/null | grep -qx installed || echo $$name; \
done); \
if [ -z "$$missing" ]; then touch $@; exit 0; fi; \
if [ "$$(id -u)" != 0 ]; then \
	echo "Missing Debian packages; as root:  apt-get install" $$missing; $(2); exit 0; \
fi; \
echo "Installing Debian packages:" $$missing; \
export DEBIAN_FRONTEND=noninteractive; \
for attempt in 1 2 3 4 5 6; do apt-get -q update >build/apt.log 2>&1 && break; sleep 10; done; \
apt-get -q -y -o DPkg::Lock::Timeout=600 --no-install-recommends install $$missing >>build/apt.log 2>&1 </dev/null \
	|| { tail -n 20 build/apt.log; echo "apt-get failed; build/apt.log has the rest"; exit 1; }; \
touch $@
endef
