# SPDX-License-Identifier: GPL-2.0-only
#
# The people's part of the build; kbuild reads Kbuild.

define HELP
make                    the module, for the distribution's own kernel, and the tools
make check              the whole test suite, in VMs; T=tests/foo.t: that one; JOBS=2: so many at a time
make demo               shows the main job on a real filesystem image, in a VM; IMAGE=FILE: on that one
make check-crash        20,000 states that a crash may leave, and more
make check-stress       races, for five minutes on 2 CPUs and again on 4; SECONDS=600: for so long each
make check-debug        the suite on kernels that find mistakes: KASAN, lockdep, KCSAN...; builds them the first time
make bench              instructions per I/O, against the targets in the kernel
make modules            the module; KDIR=<headers>: for that kernel
make tools              the tools and test programs
make install            for the running kernel, or KDIR=<headers>; INSTALL_MOD_PATH=<root>
make clean              removes what was built
make distclean          and the kernels and VM images in ~/.cache/dm-cowloop

KERNEL=6.1              the kernel for modules, check and demo
V=1                     shows every command
endef
export HELP

all: modules tools

help:
	@echo "$$HELP"

# --- The module ---------------------------------------------------------------------------------------------

STOCK = $(shell scripts/kernel $(KERNEL) | sed -n 's/^kdir=//p')
ifeq ($(origin KDIR),undefined)
KDIR = $(STOCK)
install: KDIR = $(or $(wildcard /lib/modules/$(shell uname -r)/build),$(STOCK))
endif

Q := $(if $(V),,@)
# the headers come without the vmlinux that BTF would be made from, and without the key for signing
KBUILD = $(MAKE) --no-print-directory -C "$$kdir" M="$$dir" CONFIG_DEBUG_INFO_BTF_MODULES= CONFIG_MODULE_SIG_ALL= $(if $(V),V=1)
KBUILD_DIR = kdir="$(strip $(1))" && [ -n "$$kdir" ] && \
	release=$$(sed -n 's/.*UTS_RELEASE "\(.*\)"/\1/p' "$$kdir/include/generated/utsrelease.h") && dir="$(CURDIR)/build/$$release"

# kbuild leaves its output among the sources: link them into a directory for each kernel. The lock is for VMs
# that start at the same time and find the module out of date.
modules:
	+$(Q)$(call KBUILD_DIR,$(KDIR)) && \
	exec 9<Makefile && flock 9 && \
	mkdir -p "$$dir" && find "$$dir" -type l -delete && \
	ln -s $(addprefix ../../,Kbuild $(wildcard *.c *.h)) "$$dir" && \
	$(KBUILD) modules

# Modules that only tests need.
kmod:
	+$(Q)$(call KBUILD_DIR,$(KDIR))/kmod && \
	exec 9<Makefile && flock 9 && \
	mkdir -p "$$dir" && find "$$dir" -type l -delete && \
	ln -s $(addprefix ../../../,$(wildcard tests/kmod/*)) "$$dir" && \
	$(KBUILD) modules

# depmod is for a system's own directory, not for one that a package is made of
install:
	$(Q)$(MAKE) --no-print-directory modules KDIR="$(KDIR)"
	+$(Q)$(call KBUILD_DIR,$(KDIR)) && \
	$(KBUILD) INSTALL_MOD_DIR=updates DEPMOD=: modules_install && \
	if [ -e "$(INSTALL_MOD_PATH)/lib/modules/$$release/modules.order" ]; then \
		PATH=$$PATH:/usr/sbin:/sbin depmod -b "$(INSTALL_MOD_PATH)/" "$$release"; \
	fi

# --- The tools, and the programs the tests run in the VM ----------------------------------------------------

CFLAGS ?= -O2 -g
GUEST := $(patsubst tests/%.c,build/guest/%,$(wildcard tests/*.c))

tools: $(GUEST)
	@:
	@:

build/guest/%: tests/%.c $(wildcard *.h tests/*.h)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $@")
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE -Wall -Wextra -I. $(CFLAGS) -pthread -static -o $@ $<

# --- Seeing it work -----------------------------------------------------------------------------------------

JOBS ?= 2
T ?= $(wildcard tests/*.t tests/host/*.t)
export KERNEL

setup:
	$(Q)scripts/setup

check: setup
	$(Q)$(MAKE) --no-print-directory modules kmod tools
	$(Q)prove --exec tests/run --failures --comments -j$(JOBS) $(if $(V),-v) $(T)

check-crash: setup
	$(Q)$(MAKE) --no-print-directory modules kmod tools
	$(Q)scripts/vm --smp 4 --timeout 7200 tests/crash.t OPS=300 SAMPLES=60
	$(Q)scripts/vm --smp 4 --timeout 7200 tests/fscrash.t OPS=200 SAMPLES=3

SECONDS ?= 300
check-stress: setup
	$(Q)$(MAKE) --no-print-directory modules kmod tools
	$(Q)for smp in 2 4; do \
		scripts/vm --smp $$smp --timeout $$(($(SECONDS) * 2 + 1800)) tests/stress.t SECONDS=$(SECONDS) || exit; \
	done

RACY = random stress suspend faults crash
check-debug: setup
	$(Q)$(MAKE) --no-print-directory check KERNEL=debug T="$(wildcard tests/*.t)"
	$(Q)$(MAKE) --no-print-directory check KERNEL=kcsan T="$(RACY:%=tests/%.t)"
	$(Q)$(MAKE) --no-print-directory check-stress KERNEL=debug
	$(Q)$(MAKE) --no-print-directory check-stress KERNEL=kcsan

bench: setup
	$(Q)$(MAKE) --no-print-directory modules tools
	$(Q)scripts/bench

demo: setup
	$(Q)$(MAKE) --no-print-directory modules tools
	$(Q)scripts/demo

clean:
	$(Q)rm -rf build

distclean: clean
	$(Q)rm -rf "$${COWLOOP_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/dm-cowloop}"

.PHONY: all help modules kmod install tools setup check check-crash check-debug demo bench clean distclean check-stress
