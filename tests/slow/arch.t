#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Other kinds of machines: arm64, and s390x, which is big-endian. The module and the tools are cross-built for them;
# cowsetup's tests on files run here with that cowsetup, emulated, against cowfiles that this machine makes and checks; and
# the tests of the formats, and tests/smoke.t, in an emulated machine, with that machine's kernel.
#
#   tests/slow/arch.t [ARCH...]      (default: arm64 s390x)

set -u

top=$(realpath "$(dirname "$0")/../..")
cd "$top" || exit 1
# shellcheck source=tests/lib.sh
. tests/lib.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# relay TITLE COMMAND...: passes when COMMAND succeeds; what it prints is shown
relay() {
	local title=$1 status
	shift
	"$@" >"$tmp/out" 2>&1
	status=$?
	sed 's/^/    /' "$tmp/out"
	said $status "$title"
}

[ $# -gt 0 ] || set -- arm64 s390x
for arch; do
	case $arch in
	arm64) emulator=qemu-aarch64 system=qemu-system-arm is='AArch64|aarch64' files=(format check) tests=(smoke) ;;
	s390x)
		emulator=qemu-s390x system=qemu-system-misc is='S/390|S/390x' files=(format check original pack)
		tests=(format smoke)
		;;
	*) echo "Bail out! $arch is not known"; exit 1 ;;
	esac
	scripts/setup qemu-user "$system" binutils

	rm -rf "build/$arch"
	scripts/cross/build "$arch" modules kmod tools >"$tmp/lines" 2>"$tmp/out"
	said $? "$arch: the module and the tools can be built"
	root='' gnu='' out='' release='' # for these lines to say
	eval "$(cat "$tmp/lines")"
	[ "$out" ] || continue
	! grep -iE 'warning|error' "$tmp/out"
	said $? "$arch: without a warning"
	for file in "$out/$release/dm-cowloop.ko" "$out/tools/cowsetup" "$out/guest/cowtest" \
		"$out/dmeventd/libdevmapper-event-cowloop.so"; do
		LC_ALL=C readelf -h "$file" 2>"$tmp/out" | grep -qE "Machine: .*($is)"
		said $? "$arch: ${file##*/}"
	done

	# where everybody may run it, as tests do
	rm -rf "$tmp/root"
	mkdir -p "$tmp/root/usr/lib/$gnu"
	cp -a "$root"/lib* "$tmp/root"
	cp -a "$root"/usr/lib/ld*.so* "$tmp/root/usr/lib"
	cp -a "$root/usr/lib/$gnu"/*.so* "$tmp/root/usr/lib/$gnu"
	cp "$out/tools/cowsetup" "$tmp/root"
	printf '#!/bin/sh\nexec %s -L %s %s "$@"\n' "$emulator" "$tmp/root" "$tmp/root/cowsetup" >"$tmp/cowsetup"
	chmod 755 "$tmp" "$tmp/cowsetup"
	for name in "${files[@]}"; do
		COWSETUP=$tmp/cowsetup relay "$arch: cowsetup-$name" "tests/host/cowsetup-$name.t"
	done
	for name in "${tests[@]}"; do
		relay "$arch: $name" scripts/vm --arch "$arch" --smp 2 --timeout 7200 "tests/$name.t"
	done
done
echo "1..$tap_count"
[ $tap_failed = 0 ]
