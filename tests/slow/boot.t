#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# A root filesystem on a cowloop device, see cowroot(7): a Debian on a disk that cannot be written, with its changes in a
# cowfile on another disk or in RAM. It goes down in good order and leaves a clean cowfile; it is booted again, and
# without that cowfile it is pristine; and its disk is never changed.
#
#   tests/slow/boot.t [SUITE...]     (default: bookworm trixie)

set -u

top=$(realpath "$(dirname "$0")/../..")
cd "$top" || exit 1
# shellcheck source=tests/lib.sh
. tests/lib.sh
PATH=$PATH:/usr/sbin:/sbin
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# boots NAME COWROOT WHAT: the system, from the disk that cannot be written
boots() {
	scripts/vm --distro "$suite" --root "$tmp/golden,readonly=on" --initrd "$tmp/initrd" --disk "$tmp/changes" \
		--append "cowroot=$2" --poweroff --timeout 900 --log "$tmp/log" tests/slow/boot-guest "$3" >"$tmp/out" 2>&1
	status=$?
	sed 's/^/    /' "$tmp/out"
	said $status "Debian $suite: $1"
}

# cowfile: the one on the second disk, as the system has left it; it is not mounted
cowfile() { rm -f "$tmp/mine.cow" && debugfs -R "dump /mine.cow $tmp/mine.cow" "$tmp/changes" >/dev/null 2>&1; }

[ $# -gt 0 ] || set -- bookworm trixie
scripts/setup build vm e2fsprogs
for suite; do
	disk='' tree='' # for these to say
	lines=$(scripts/distro-image "$suite" && scripts/distro-tree "$suite")
	ok $? "Debian $suite: there is a disk with it" || continue
	eval "$lines"

	rm -f "$tmp/golden" "$tmp/handed" "$tmp/changes"
	cp --sparse=always "$disk" "$tmp/golden"
	truncate -s 256M "$tmp/handed"
	scripts/vm --distro "$suite" --root "$tmp/golden" --disk "$tmp/handed" --file "$tree:/" --poweroff --timeout 900 \
		tests/slow/boot-guest make >"$tmp/out" 2>&1
	said $? "Debian $suite: its initramfs is made" || continue
	read -r size < <(head -c 512 "$tmp/handed")
	tail -c +513 "$tmp/handed" | head -c "$size" >"$tmp/initrd"
	sum=$(sha256sum <"$tmp/golden")
	truncate -s 600M "$tmp/changes"
	mke2fs -q -t ext4 -L changes "$tmp/changes"

	boots "it is installed in" '/dev/vda,LABEL=changes:/mine.cow,limit=160M,reserve=40M' first
	cowfile
	ok $? "when it has gone down, there is a cowfile on the disk"
	build/tools/cowsetup dump --json "$tmp/mine.cow" >"$tmp/out" 2>&1
	like "$(cat "$tmp/out")" '"state": "clean"' "which is clean"
	like "$(dumpe2fs -h "$tmp/changes" 2>&1)" 'Filesystem state: *clean' "and so is the filesystem that holds it"
	! dumpe2fs -h "$tmp/changes" 2>&1 | grep -q needs_recovery
	ok $? "whose journal is empty"
	runs "cowsetup check" build/tools/cowsetup check --rdo "$tmp/golden" "$tmp/mine.cow"

	boots "booted again" '/dev/vda,LABEL=changes:/mine.cow,limit=160M,reserve=40M' again
	debugfs -w -R 'rm /mine.cow' "$tmp/changes" >/dev/null 2>&1
	boots "pristine, without the cowfile" '/dev/vda,LABEL=changes:/mine.cow' pristine
	boots "with its changes in RAM" '/dev/vda,tmpfs:256M' ram
	is "$(sha256sum <"$tmp/golden")" "$sum" "Debian $suite: its disk is as it was"
done
done_testing
