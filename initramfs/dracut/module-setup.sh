#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# What an initramfs of dracut has to have for cowroot=, see cowroot(7). It is there because somebody wants it: always included.

# called by dracut
check() {
	require_binaries /usr/sbin/cowsetup blkid losetup || return 1
}

# called by dracut
depends() {
	local queue
	echo base dm rootfs-block
	# a module of its own, by dracut 107
	# shellcheck disable=SC2154 # dracut's variables
	for queue in "$dracutbasedir"/modules.d/[0-9][0-9]*initqueue; do
		[ ! -d "$queue" ] || echo initqueue
	done
}

# called by dracut: what the image and the cowfile may be on, whatever this machine's root is on now
installkernel() {
	hostonly='' instmods dm-cowloop loop squashfs erofs isofs ext4 xfs btrfs vfat nls_cp437 nls_ascii nls_iso8859-1 nls_utf8
}

# called by dracut
install() {
	inst_multiple /usr/sbin/cowsetup blkid losetup mount umount mkdir sleep modprobe
	inst_simple /usr/lib/cowsetup/cowroot
	# what keeps udev's other rules, LVM's for one, off the image where the device is made of it
	inst_simple /usr/lib/udev/rules.d/59-cowsetup-loop.rules
	inst_simple /usr/lib/udev/rules.d/63-parts-of-cowloop.rules
	# shellcheck disable=SC2154 # dracut's variables
	inst_script "$moddir/cowroot-generator" "$systemdutildir/system-generators/dracut-cowroot-generator"
	inst_hook cmdline 90 "$moddir/parse-cowroot.sh"
	inst_hook initqueue/settled 90 "$moddir/open-cowroot.sh"
	# otherwise newer versions leave it out when nothing else is to be waited for
	dracut_need_initqueue
}
