#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# make install: with DESTDIR all of it goes there, and this machine stays as it is. The kernel's build is one that only
# says what it was asked for, so that a mistake does no harm.

top=$(realpath "${0%/*}/../..")
# shellcheck source=tests/lib.sh
. "$top/tests/lib.sh"
tmp=$(mktemp -d)
release=install-test-$$
trap 'rm -rf "$tmp" "$top/build/$release"' EXIT
cd "$tmp" || exit 1

mkdir -p kdir/include/generated bin
echo "#define UTS_RELEASE \"$release\"" >kdir/include/generated/utsrelease.h
cat >kdir/Makefile <<END
modules:
	@:
modules_install:
	@echo "\$(INSTALL_MOD_PATH) \$(INSTALL_MOD_DIR)" >>$tmp/modules
END
for tool in depmod ldconfig; do
	printf '#!/bin/sh\necho "%s $*" >>%s\n' $tool "$tmp/run" >bin/$tool
	chmod +x bin/$tool
done

# installs NAME VARIABLE...: what it asked the kernel's build for is in ./modules, what it ran in ./run
installs() {
	local name=$1
	shift
	rm -f modules run
	touch modules run
	runs "$name" env -u MAKEFLAGS -u MAKELEVEL -u DESTDIR -u INSTALL_MOD_PATH PATH="$tmp/bin:$PATH" \
		make -C "$top" KDIR="$tmp/kdir" "$@"
}

# a directory that could well be a system's
mkdir -p "root/lib/modules/$release"
touch "root/lib/modules/$release/modules.order"
installs "make install DESTDIR=" install DESTDIR="$tmp/root"
is "$(cat modules)" "$tmp/root updates" "the module goes there, too"
is "$(cat run)" "" "and neither depmod nor ldconfig is run"
is "$(cd root && find etc usr ! -type d | sort)" "etc/initramfs-tools/hooks/cowroot
etc/initramfs-tools/scripts/local-top/cowroot
usr/lib/dracut/modules.d/90cowroot/cowroot-generator
usr/lib/dracut/modules.d/90cowroot/module-setup.sh
usr/lib/dracut/modules.d/90cowroot/open-cowroot.sh
usr/lib/dracut/modules.d/90cowroot/parse-cowroot.sh
usr/lib/systemd/system-shutdown/cowloop
usr/local/include/libcowloop.h
usr/local/lib/cowsetup/cowroot
usr/local/lib/libcowloop.so
usr/local/lib/libcowloop.so.0
usr/local/lib/libdevmapper-event-cowloop.so
usr/local/lib/pkgconfig/libcowloop.pc
usr/local/lib/systemd/system-generators/cowsetup-generator
usr/local/lib/systemd/system/cowsetup-assemble@.service
usr/local/lib/systemd/system/cowsetup-gone@.service
usr/local/lib/systemd/system/cowsetup.target
usr/local/lib/systemd/system/multi-user.target.wants/remote-cowsetup.target
usr/local/lib/systemd/system/remote-cowsetup.target
usr/local/lib/systemd/system/sysinit.target.wants/cowsetup.target
usr/local/lib/udev/rules.d/59-cowsetup-loop.rules
usr/local/lib/udev/rules.d/63-parts-of-cowloop.rules
usr/local/lib/udev/rules.d/65-cowsetup.rules
usr/local/sbin/cowsetup
usr/local/share/bash-completion/completions/cowsetup
usr/local/share/man/man5/cowloop.5
usr/local/share/man/man5/cowtab.5
usr/local/share/man/man7/cowroot.7
usr/local/share/man/man8/cowsetup.8" "the rest is there"
is "$(grep -rhoE '/[a-z/]*/cowsetup( |$)' root/usr/local/lib/systemd root/usr/local/lib/udev | sort -u)" "/usr/local/sbin/cowsetup " \
	"and calls cowsetup where it is"
is "$(grep -rhoE '/[a-z/]*/cowsetup(/cowroot)?( |$)' root/etc/initramfs-tools root/usr/lib/dracut | tr -d ' ' | sort -u | paste -sd ' ')" \
	"/usr/local/lib/cowsetup/cowroot /usr/local/sbin/cowsetup" "and the initramfs has both from there"
is "$(grep -rhoE '/[a-z/]*/udev/rules.d' root/etc/initramfs-tools root/usr/lib/dracut | sort -u)" /usr/local/lib/udev/rules.d \
	"and udev's rules"
# what others have put there stays
touch root/usr/local/sbin/theirs
mkdir -p "root/lib/modules/$release/updates"
touch "root/lib/modules/$release/updates/dm-cowloop.ko" "root/lib/modules/$release/updates/other.ko"
installs "make uninstall" uninstall DESTDIR="$tmp/root"
is "$(cd root && find . ! -type d | sort | paste -sd ' ')" \
	"./lib/modules/$release/modules.order ./lib/modules/$release/updates/other.ko ./usr/local/sbin/theirs" "takes all of it away, and nothing else"
is "$(cd root && find . -type d -empty)" "" "empty directories, too"
is "$(cat run)" "" "and neither depmod nor ldconfig is run"
installs "where there is nothing" uninstall DESTDIR="$tmp/root"
installs "DESTDIR and INSTALL_MOD_PATH" install-module DESTDIR="$tmp/root" INSTALL_MOD_PATH="$tmp/other"
is "$(cat modules)" "$tmp/other updates" "may differ"
installs "INSTALL_MOD_PATH alone" install-module INSTALL_MOD_PATH="$tmp/root"
is "$(cat modules)" "$tmp/root updates" "is where the module goes"
is "$(cat run)" "depmod -b $tmp/root/ $release" "and a system's own directory gets its depmod"
touch "root/lib/modules/$release/updates/dm-cowloop.ko"
installs "make uninstall, likewise" uninstall INSTALL_MOD_PATH="$tmp/root" PREFIX="$tmp/usr" SHUTDOWNDIR="$tmp/shutdown" \
	INITRAMFSDIR="$tmp/initramfs" DRACUTDIR="$tmp/dracut"
like "$(grep depmod run)" "^depmod -b $tmp/root/ $release$" "has depmod look, too"
installs "neither" install-module
is "$(cat modules)" " updates" "is for this machine"

done_testing
