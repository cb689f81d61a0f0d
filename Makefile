# SPDX-License-Identifier: GPL-2.0-only
#
# The people's part of the build; kbuild reads Kbuild.

define HELP
make                    the module, for the distribution's own kernel, and the tools
make check              the whole test suite, in VMs; T=tests/foo.t: that one; JOBS=3: so many at a time
make check-smoke        a little of everything, on each kernel that dm-cowloop is for; part of check
make check-kernels      the whole suite on each of them
make lint               what checkpatch, sparse, coccinelle, the compiler's analyzer, shellcheck... say of the source
make demo               shows the main job on a real filesystem image, in a VM; IMAGE=FILE: on that one
make check-crash        20,000 states that a crash may leave, and more
make check-stress       races, for five minutes on 2 CPUs and again on 4; SECONDS=600: for so long each
make check-debug        the suite on kernels that find mistakes: KASAN, lockdep, KCSAN...; builds them the first time
make check-fuzz         a million cowfiles and packed files made at random, and more; FUZZ_SECONDS=300
make fuzz-corpus        adds to tests/fuzz/corpus what that has found
make check-hostile      10,000 cowfiles that may be anything, on a kernel that finds mistakes; HOSTILE_COUNT=1000
make check-boot         a root filesystem on a cowloop device: from disks, live media and the network, on Debian 12 and 13
make check-assemble     what opens by itself: at boot, and when it is plugged in, on Debian 12 and 13
make check-deb          the Debian packages, on Debian 12 and 13
make check-patch        the patches for a kernel tree: applied, and built
make check-arch         the module and the tools on a big-endian machine, emulated, and cross-built for another
make check-fresh        every command of the documents that fetches something, each with an empty cache
make check-sign         signed modules, with and without Secure Boot
make bench              instructions per I/O, against the targets in the kernel
make bench-files        the same on files, on ext4, xfs and btrfs
make bench-cpus         whether more CPUs do more, against dm-linear
make bench-shared       whether CPUs get in each other's way
make bench-scale        memory, metadata and time for large devices, and for slow ones
make bench-tail         how long reads and writes take while something large is going on
make compile_commands.json  how each file is compiled, for editors and clang's tools; part of make
make modules            the module; KDIR=<headers>: for that kernel
make tools              the tools and test programs
make install            all of it; for the running kernel, or KDIR=<headers>; PREFIX=/usr/local, DESTDIR=<root>
make install-module     the module only, INSTALL_MOD_PATH=<root>; make install-tools the tool only; make install-lib libcowloop
                        SIGN_KEY=<key> SIGN_CERT=<certificate>: sign the module
make uninstall          takes all of it away again; PREFIX and DESTDIR as for make install
make install-dkms       the module's source, for DKMS
make deb                Debian packages, in build/deb; make rpm: RPM packages, in build/rpm
make patch              a series of patches for a kernel tree, in build/patch; KTREE=<tree>; FORMAT=2: without format 1
make clean              removes what was built
make distclean          and the kernels and VM images in ~/.cache/dm-cowloop

KERNEL=6.12             the kernel for modules, check, bench and demo: see scripts/kernel --list
V=1                     shows every command
endef
export HELP

all: modules tools compile_commands.json

help:
	@echo "$$HELP"

# --- The module ---------------------------------------------------------------------------------------------

STOCK = $(shell scripts/kernel $(KERNEL) | sed -n 's/^kdir=//p')
ifeq ($(origin KDIR),undefined)
KDIR = $(STOCK)
install install-module: KDIR = $(or $(wildcard /lib/modules/$(shell uname -r)/build),$(STOCK))
endif

Q := $(if $(V),,@)
KBUILD = scripts/kernels/kbuild "$$kdir" "$$dir" $(if $(V),V=1)
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

# How each file is compiled, for editors: the module by what kbuild has left, the rest by the rules below
compile_commands.json: modules tools
	$(Q)$(call KBUILD_DIR,$(KDIR)) && scripts/compile-commands "$$kdir" "$$dir" \
		"$(CC) $(STRICT) -DCOWSETUP_VERSION='\"$(VERSION)\"' $(LIBS_CFLAGS) $(CPPFLAGS) $(CFLAGS)" \
			$(TOOL_SRCS) $(wildcard dmeventd/*.c tests/fuzz/*.c) -- \
		"$(CC) $(STRICT) -I. $(CFLAGS) -pthread" $(wildcard tests/*.c tests/host/*.c) --

INSTALL_MOD_PATH ?= $(DESTDIR)
# SIGN_KEY, SIGN_CERT: for a kernel that insists on signed modules, by the program that comes with it. What has been signed
# already is linked anew. depmod is for a system's own directory, not for one that a package is made of.
SIGN = hash=$$(sed -n 's/^CONFIG_MODULE_SIG_HASH="\(.*\)"/\1/p' "$$kdir/include/config/auto.conf") && \
	"$$kdir/scripts/sign-file" "$${hash:-sha256}" "$(SIGN_KEY)" "$(SIGN_CERT)" "$$dir/dm-cowloop.ko" &&
install-module:
	$(if $(SIGN_KEY),$(Q)$(call KBUILD_DIR,$(KDIR)) && rm -f "$$dir/dm-cowloop.ko")
	$(Q)$(MAKE) --no-print-directory modules KDIR="$(KDIR)"
	+$(Q)$(call KBUILD_DIR,$(KDIR)) && $(if $(SIGN_KEY),$(SIGN)) \
	$(KBUILD) INSTALL_MOD_PATH="$(INSTALL_MOD_PATH)" INSTALL_MOD_DIR=updates DEPMOD=: modules_install && \
	if [ -z "$(DESTDIR)" ] && [ -e "$(INSTALL_MOD_PATH)/lib/modules/$$release/modules.order" ]; then \
		PATH=$$PATH:/usr/sbin:/sbin depmod -b "$(INSTALL_MOD_PATH)/" "$$release"; \
	fi

# --- The tools, and the programs the tests run in the VM ----------------------------------------------------

CFLAGS ?= -O2 -g
STRICT = -std=c11 -D_GNU_SOURCE -Wall -Wextra
VERSION := $(shell sed -n '1s/^dm-cowloop \([^ ]*\).*/\1/p' CHANGELOG)

# what libcowloop needs, what cowsetup needs besides, and what Debian calls it
LIB_LIBS = libzstd zlib uuid blkid mount devmapper devmapper-event
LIBS = popt json-c $(LIB_LIBS)
DEBS = libpopt-dev libjson-c-dev libzstd-dev zlib1g-dev uuid-dev libblkid-dev libmount-dev libdevmapper-dev pkg-config
PKG_CONFIG ?= pkg-config
LIBS_CFLAGS = $(shell $(PKG_CONFIG) --cflags $(LIBS))
LIBS_LDFLAGS = $(shell $(PKG_CONFIG) --libs $(LIBS))

GUEST := $(patsubst tests/%.c,build/guest/%,$(wildcard tests/*.c))
# lib/ is what any program could use, cowsetup/ the command, boot/ what opens devices by itself
TOOL_SRCS = $(wildcard lib/*.c boot/*.c cowsetup/*.c)
TOOL_HEADERS = $(wildcard lib/*.h boot/*.h cowsetup/*.h) dm-cowloop.h
TOOL_OBJS = $(TOOL_SRCS:%.c=build/%.o)

LIB_OBJS = $(filter build/lib/%,$(TOOL_OBJS))
# cowsetup and the plugin have the library in them: one file each for the initramfs, for packages, and for dmeventd.
# Other programs link the shared one.
LIB = build/lib/libcowloop.a
LIB_SHARED = build/lib/libcowloop.so.0

# The plugin for dmeventd, which looks it up by its name
PLUGIN = build/dmeventd/libdevmapper-event-cowloop.so

tools: $(GUEST) cowsetup $(LIB_SHARED)
	@:

cowsetup: build/tools/cowsetup $(PLUGIN)
	@:

build/guest/%: tests/%.c $(wildcard *.h tests/*.h)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $@")
	$(Q)$(CC) $(STRICT) -I. $(CFLAGS) -pthread -static -o $@ $<

build/tools/libs:
	$(Q)$(PKG_CONFIG) --exists $(LIBS) || { \
		echo "make: cowsetup needs libraries that are not here: on Debian and Ubuntu, apt install $(DEBS)" >&2; \
		$(PKG_CONFIG) --print-errors --exists $(LIBS) 2>&1 | sed 's/^/make: /' >&2; exit 1; }
	@mkdir -p $(@D) && touch $@

$(TOOL_OBJS): build/%.o: %.c build/tools/libs $(TOOL_HEADERS) CHANGELOG
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $@")
	$(Q)$(CC) $(STRICT) -DCOWSETUP_VERSION='"$(VERSION)"' $(LIBS_CFLAGS) $(CPPFLAGS) $(CFLAGS) $(PIC) -c -o $@ $<

$(LIB_OBJS): PIC = -fPIC

$(LIB): $(LIB_OBJS)
	$(if $(V),,@echo "  AR      $@")
	$(Q)rm -f $@ && $(AR) rcs $@ $^

$(LIB_SHARED): $(LIB_OBJS) lib/libcowloop.sym
	$(if $(V),,@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,$(@F) -Wl,--version-script=lib/libcowloop.sym -Wl,--no-undefined -o $@ \
		$(LIB_OBJS) $(shell $(PKG_CONFIG) --libs $(LIB_LIBS))

build/tools/cowsetup: $(filter-out $(LIB_OBJS),$(TOOL_OBJS)) $(LIB)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD      $@")
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS_LDFLAGS)

$(PLUGIN): dmeventd/cowloop.c $(LIB) lib/libcowloop.h build/tools/libs
	@mkdir -p $(@D)
	$(if $(V),,@echo "  LD      $@")
	$(Q)$(CC) $(STRICT) $(LIBS_CFLAGS) $(CPPFLAGS) $(CFLAGS) -fPIC -fvisibility=hidden $(LDFLAGS) -shared -Wl,--no-undefined \
		-Wl,--exclude-libs,ALL -o $@ dmeventd/cowloop.c $(LIB) $(shell $(PKG_CONFIG) --libs devmapper-event devmapper mount)

# cowsetup with the compiler's checks, for the tests: errors are found where they are made.
SANITIZE = -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
build/tools-asan/cowsetup: $(TOOL_SRCS) $(TOOL_HEADERS) CHANGELOG build/tools/libs
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $@")
	$(Q)$(CC) $(STRICT) -DCOWSETUP_VERSION='"$(VERSION)"' $(LIBS_CFLAGS) $(SANITIZE) -o $@ $(TOOL_SRCS) \
		$(LIBS_LDFLAGS)

# Anything may come as a cowfile: tests/fuzz/cowfuzz.c
FUZZ_SRCS = tests/fuzz/cowfuzz.c $(filter-out cowsetup/cowsetup.c,$(TOOL_SRCS))
build/tools-asan/cowfuzz: $(FUZZ_SRCS) tests/fuzz/fuzz.h tests/random.h $(TOOL_HEADERS) build/tools/libs
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $@")
	$(Q)$(CC) $(STRICT) $(LIBS_CFLAGS) $(SANITIZE) -o $@ $(FUZZ_SRCS) $(LIBS_LDFLAGS)

# What users can write into /proc/self/mountinfo: tests/fuzz/mountfuzz.c
MOUNTFUZZ_SRCS = tests/fuzz/mountfuzz.c lib/mountinfo.c lib/sysfs.c
build/tools-asan/mountfuzz: $(MOUNTFUZZ_SRCS) tests/fuzz/fuzz.h tests/random.h $(TOOL_HEADERS) build/tools/libs
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $@")
	$(Q)$(CC) $(STRICT) $(LIBS_CFLAGS) $(SANITIZE) -o $@ $(MOUNTFUZZ_SRCS) $(LIBS_LDFLAGS)

# Any table: tests/fuzz/tabfuzz.c
TABFUZZ_SRCS = tests/fuzz/tabfuzz.c $(filter-out cowsetup/cowsetup.c,$(TOOL_SRCS))
build/tools-asan/tabfuzz: $(TABFUZZ_SRCS) tests/fuzz/fuzz.h tests/random.h $(TOOL_HEADERS) build/tools/libs
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $@")
	$(Q)$(CC) $(STRICT) $(LIBS_CFLAGS) $(SANITIZE) -o $@ $(TABFUZZ_SRCS) $(LIBS_LDFLAGS)

# A file of the module by itself, in userspace: tests/unit. The test includes it, to see what is in its structs.
build/unit/%: tests/unit/%.c dm-cowloop-%.c $(wildcard *.h tests/*.h tests/unit/*.h tests/unit/linux/*.h)
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $@")
	$(Q)$(CC) $(STRICT) -Wno-sign-compare -Wno-unused-parameter -Itests/unit $(SANITIZE) -pthread -o $@ $<

build/tools-asan/cowfuzz-libfuzzer: $(FUZZ_SRCS) $(TOOL_HEADERS) build/tools/libs
	@mkdir -p $(@D)
	$(if $(V),,@echo "  CC      $@")
	$(Q)clang $(STRICT) -DLIBFUZZER $(LIBS_CFLAGS) $(SANITIZE) -fsanitize=fuzzer -o $@ $(FUZZ_SRCS) $(LIBS_LDFLAGS)

PREFIX ?= /usr/local
SBINDIR ?= $(PREFIX)/sbin
PLUGINDIR ?= $(PREFIX)/lib
SHLIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man
COMPLETIONDIR ?= $(PREFIX)/share/bash-completion/completions
UDEVRULESDIR ?= $(PREFIX)/lib/udev/rules.d
UNITDIR ?= $(PREFIX)/lib/systemd/system
GENERATORDIR ?= $(PREFIX)/lib/systemd/system-generators
# systemd looks nowhere else
SHUTDOWNDIR ?= /usr/lib/systemd/system-shutdown
LIBDIR ?= $(PREFIX)/lib/cowsetup
# initramfs-tools looks in two places: that of packages, and that of the machine's own
INITRAMFSDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/share,/etc)/initramfs-tools
# and dracut in one
DRACUTDIR ?= /usr/lib/dracut/modules.d/90cowroot

# What is installed, an entry for each file: MODE:SOURCE:TARGET. make uninstall reads the same entries.
TOOLS_FILES = 755:build/tools/cowsetup:$(SBINDIR)/cowsetup \
	644:$(PLUGIN):$(PLUGINDIR)/$(notdir $(PLUGIN)) \
	644:man/cowsetup.8:$(MANDIR)/man8/cowsetup.8 \
	644:man/cowloop.5:$(MANDIR)/man5/cowloop.5 \
	644:man/cowtab.5:$(MANDIR)/man5/cowtab.5 \
	644:completion/cowsetup:$(COMPLETIONDIR)/cowsetup \
	$(foreach rules,$(wildcard udev/*.rules),644:$(rules):$(UDEVRULESDIR)/$(notdir $(rules))) \
	755:systemd/cowsetup-generator:$(GENERATORDIR)/cowsetup-generator \
	$(foreach unit,$(wildcard systemd/*.target systemd/*.service),644:$(unit):$(UNITDIR)/$(notdir $(unit))) \
	755:systemd/cowsetup-shutdown:$(SHUTDOWNDIR)/cowloop
TOOLS_LINKS = $(UNITDIR)/sysinit.target.wants/cowsetup.target $(UNITDIR)/multi-user.target.wants/remote-cowsetup.target
INITRAMFS_FILES = 644:initramfs/cowroot:$(LIBDIR)/cowroot \
	755:initramfs/initramfs-tools/hook:$(INITRAMFSDIR)/hooks/cowroot \
	755:initramfs/initramfs-tools/local-top:$(INITRAMFSDIR)/scripts/local-top/cowroot \
	$(foreach file,$(wildcard initramfs/dracut/*),755:$(file):$(DRACUTDIR)/$(notdir $(file))) \
	644:man/cowroot.7:$(MANDIR)/man7/cowroot.7

# for programs that are linked with libcowloop
LIB_FILES = 755:$(LIB_SHARED):$(SHLIBDIR)/$(notdir $(LIB_SHARED)) \
	644:lib/libcowloop.h:$(INCLUDEDIR)/libcowloop.h \
	644:build/lib/libcowloop.pc:$(SHLIBDIR)/pkgconfig/libcowloop.pc
LIB_LINK = $(SHLIBDIR)/libcowloop.so

# installs the entries $(1), and puts into scripts the paths that they call cowsetup and its files by
INSTALL_FILES = for entry in $(1); do \
		rest=$${entry\#*:}; target="$(DESTDIR)$${rest\#*:}"; \
		install -D -m "$${entry%%:*}" "$${rest%%:*}" "$$target" || exit; \
		case $$rest in systemd/* | udev/* | initramfs/*) \
			sed -i 's,/usr/sbin/cowsetup,$(SBINDIR)/cowsetup,; s,/usr/lib/cowsetup,$(LIBDIR),; s,/usr/lib/udev/rules.d,$(UDEVRULESDIR),' "$$target" || exit ;; \
		esac; \
	done
# removes the files $(1), and the directories that are empty then
UNINSTALL_FILES = for target in $(1); do \
		rm -f "$(DESTDIR)$$target"; \
		rmdir -p --ignore-fail-on-non-empty "$(DESTDIR)$${target%/*}" 2>/dev/null || :; \
	done
TARGETS = $(foreach entry,$(1),$(lastword $(subst :, ,$(entry))))
LDCONFIG = [ "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ] || PATH=$$PATH:/usr/sbin:/sbin ldconfig

# dmeventd finds its plugins as programs find their libraries: ldconfig is for a system's own directories
install-tools: build/tools/cowsetup $(PLUGIN)
	$(Q)$(call INSTALL_FILES,$(TOOLS_FILES))
	$(Q)$(LDCONFIG)
	$(Q)for link in $(TOOLS_LINKS); do \
		install -d "$(DESTDIR)$${link%/*}" && ln -sf "../$${link##*/}" "$(DESTDIR)$$link" || exit; \
	done

install-lib: $(LIB_SHARED)
	$(Q)sed 's,@LIBDIR@,$(SHLIBDIR),; s,@INCLUDEDIR@,$(INCLUDEDIR),; s,@VERSION@,$(VERSION),' lib/libcowloop.pc.in >build/lib/libcowloop.pc
	$(Q)$(call INSTALL_FILES,$(LIB_FILES))
	$(Q)ln -sf $(notdir $(LIB_SHARED)) "$(DESTDIR)$(LIB_LINK)"
	$(Q)$(LDCONFIG)

# for a root filesystem on a cowloop device; update-initramfs is for whoever wants that to be in it
install-initramfs:
	$(Q)$(call INSTALL_FILES,$(INITRAMFS_FILES))

# Takes away what make install has put there; the module for every kernel. PREFIX and DESTDIR as they were then.
uninstall:
	$(Q)$(call UNINSTALL_FILES,$(call TARGETS,$(TOOLS_FILES) $(LIB_FILES) $(INITRAMFS_FILES)) $(TOOLS_LINKS) $(LIB_LINK))
	$(Q)$(LDCONFIG)
	$(Q)for module in "$(INSTALL_MOD_PATH)"/lib/modules/*/updates/dm-cowloop.ko*; do \
		[ -e "$$module" ] || continue; \
		directory=$${module%/updates/*}; \
		rm "$$module" && rmdir --ignore-fail-on-non-empty "$$directory/updates" || exit; \
		if [ -z "$(DESTDIR)" ] && [ -e "$$directory/modules.order" ]; then \
			PATH=$$PATH:/usr/sbin:/sbin depmod -b "$(INSTALL_MOD_PATH)/" "$${directory##*/}"; \
		fi; \
	done

install: install-module install-tools install-lib install-lib install-initramfs

# The module's source, for DKMS to build it for every kernel that comes
DKMS_SRC = /usr/src/dm-cowloop-$(VERSION)
install-dkms:
	$(Q)[ "$(DESTDIR)" ] || ! dkms status dm-cowloop/$(VERSION) | grep -q . || dkms remove dm-cowloop/$(VERSION) --all
	$(Q)install -d "$(DESTDIR)$(DKMS_SRC)"
	$(Q)install -m 644 Kbuild dkms.conf $(wildcard dm-cowloop*.[ch]) "$(DESTDIR)$(DKMS_SRC)"
	$(Q)[ "$(DESTDIR)" ] || dkms install dm-cowloop/$(VERSION)

deb:
	$(Q)scripts/package/deb

rpm:
	$(Q)scripts/package/rpm

# The module as a part of a kernel
patch:
	$(Q)[ "$(KTREE)" ] || { echo "make: which tree? make patch KTREE=/path/to/linux" >&2; exit 1; }
	$(Q)scripts/package/patch $(if $(filter 2,$(FORMAT)),--format2) "$(KTREE)"

# --- Seeing it work -----------------------------------------------------------------------------------------

# One more than there are CPUs: tests wait now and then. The longest first, so that none is left alone at the end.
JOBS ?= $(shell echo $$(($$(nproc) + 1)))
LONGEST = $(patsubst %,tests/%.t,host/broken cowsetup host/lint host/kernels fscrash faults host/swap sizes nospace-metadata \
	host/powercut host/cowsetup-merge host/vm random memory stress)
T ?= $(wildcard $(LONGEST)) $(filter-out $(LONGEST),$(wildcard tests/*.t tests/host/*.t))
export KERNEL

setup:
	$(Q)scripts/setup

check: setup
	$(Q)$(MAKE) --no-print-directory modules kmod tools build/tools-asan/cowsetup build/tools-asan/cowfuzz build/tools-asan/mountfuzz build/tools-asan/tabfuzz build/unit/bitmap
	$(Q)prove --exec tests/run --failures --comments --timer -j$(JOBS) $(if $(V),-v) $(T)

check-smoke:
	$(Q)$(MAKE) --no-print-directory check T="tests/smoke.t tests/host/kernels.t"

# one after the other, and on with the next when one has failed; what needs no kernel only once
check-kernels: setup
	$(Q)failed=; tests="$(wildcard tests/*.t) $(filter-out tests/host/kernels.t,$(wildcard tests/host/*.t))"; \
	for kernel in $$(scripts/kernel --all); do \
		scripts/kernel $$kernel >/dev/null; [ $$? != 2 ] || continue; \
		echo "== Linux $$kernel"; \
		$(MAKE) --no-print-directory check KERNEL=$$kernel T="$$tests" || failed="$$failed $$kernel"; \
		tests=$$(grep -lE '^# vm:|scripts/(vm|demo)\>' $$tests); \
	done; \
	[ -z "$$failed" ] || { echo "make: tests failed on:$$failed" >&2; exit 1; }

lint:
	$(Q)prove --exec tests/run --failures --comments $(if $(V),-v) tests/host/lint.t

# what takes longer, or a release of Debian besides
check-assemble check-boot check-deb check-patch check-arch check-sign check-fresh: check-%:
	$(Q)prove --exec tests/run --failures --comments $(if $(V),-v) tests/slow/$*.t

check-crash: setup
	$(Q)$(MAKE) --no-print-directory modules kmod tools
	$(Q)scripts/vm --smp 4 --timeout 7200 tests/crash.t OPS=300 SAMPLES=60 STATES=20000
	$(Q)scripts/vm --smp 4 --timeout 7200 tests/fscrash.t OPS=200 SAMPLES=3

SECONDS ?= 300
check-stress: setup
	$(Q)$(MAKE) --no-print-directory modules kmod tools
	$(Q)for smp in 2 4; do \
		scripts/vm --smp $$smp --timeout $$(($(SECONDS) * 2 + 1800)) tests/stress.t SECONDS=$(SECONDS) || exit; \
	done

# not fscrash.t, which spends hours there, and in filesystems
RACY = random stress suspend close queue space nospace
check-debug: setup
	$(Q)$(MAKE) --no-print-directory check KERNEL=debug \
		T="$(filter-out tests/fscrash.t,$(wildcard tests/*.t)) tests/host/swap.t tests/host/powercut.t"
	$(Q)$(MAKE) --no-print-directory check KERNEL=kcsan T="$(RACY:%=tests/%.t)"
	$(Q)$(MAKE) --no-print-directory check-stress KERNEL=debug
	$(Q)$(MAKE) --no-print-directory check-stress KERNEL=kcsan

HOSTILE_COUNT ?= 10000
check-hostile: setup
	$(Q)$(MAKE) --no-print-directory modules kmod tools KERNEL=debug
	$(Q)KERNEL=debug scripts/vm --smp 2 --mem 2G --timeout 28800 tests/hostile.t COUNT=$(HOSTILE_COUNT)

# Inputs made at random, others each time, and then those that lead to new places in the code: clang is needed for that.
FUZZ_SECONDS ?= 300
FUZZ_COUNT ?= 1000000
FUZZ_OPTIONS = -close_fd_mask=3 -timeout=10 -rss_limit_mb=1024 -max_len=60000
check-fuzz: setup
	$(Q)scripts/setup fuzz
	$(Q)$(MAKE) --no-print-directory build/tools-asan/cowsetup build/tools-asan/cowfuzz build/tools-asan/cowfuzz-libfuzzer \
		build/tools-asan/mountfuzz build/tools-asan/tabfuzz
	$(Q)build/tools-asan/cowfuzz $(FUZZ_COUNT) tests/fuzz/corpus/*
	$(Q)build/tools-asan/mountfuzz $(FUZZ_COUNT)
	$(Q)build/tools-asan/tabfuzz $(FUZZ_COUNT)
	$(Q)COWROOT_COUNT=$(FUZZ_COUNT) tests/host/cowroot-fuzz.t
	$(Q)mkdir -p build/fuzz/new && cd build/fuzz && \
		../tools-asan/cowfuzz-libfuzzer $(FUZZ_OPTIONS) -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 \
			new ../../tests/fuzz/corpus

# What that has found and the corpus does not have, for all who come after
fuzz-corpus:
	$(Q)[ -d build/fuzz/new ] || { echo "make: nothing has been found yet: make check-fuzz" >&2; exit 1; }
	$(Q)$(MAKE) --no-print-directory build/tools-asan/cowfuzz-libfuzzer
	$(Q)cd build/fuzz && ../tools-asan/cowfuzz-libfuzzer $(FUZZ_OPTIONS) -merge=1 ../../tests/fuzz/corpus new

bench: setup
	$(Q)$(MAKE) --no-print-directory modules tools
	$(Q)scripts/bench

bench-files: setup
	$(Q)$(MAKE) --no-print-directory modules tools
	$(Q)scripts/bench --files ext4
	$(Q)scripts/bench --files xfs cowloop cowloop64k
	$(Q)scripts/bench --files btrfs cowloop cowloop64k

bench-cpus bench-scale bench-shared bench-tail: setup
	$(Q)$(MAKE) --no-print-directory modules tools
	$(Q)scripts/measure/$(@:bench-%=%)

demo: setup
	$(Q)$(MAKE) --no-print-directory modules tools
	$(Q)scripts/demo

clean:
	$(Q)rm -rf build compile_commands.json

distclean: clean
	$(Q)rm -rf "$${COWLOOP_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/dm-cowloop}"

.PHONY: all help compile_commands.json modules kmod install uninstall tools setup check check-smoke check-kernels check-crash check-debug demo bench bench-files bench-cpus bench-scale bench-shared bench-tail clean distclean check-stress check-hostile install-module install-tools install-lib check-fuzz lint fuzz-corpus install-dkms deb rpm cowsetup patch install-initramfs check-assemble check-boot check-deb check-patch check-arch check-sign check-fresh
