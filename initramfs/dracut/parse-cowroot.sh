#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# dracut's hook "cmdline": the root filesystem is on the device of cowroot=, which is going to be there.

# shellcheck source=initramfs/cowroot
. /usr/lib/cowsetup/cowroot

if cowroot_wanted; then
	cowroot_parse || die "cowroot=$cowroot_argument is not right, see cowroot(7)"
	# shellcheck disable=SC2034 # dracut's variables
	[ "$cowroot_keep_root" ] || { root=block:$cowroot rootok=1; unset root_unset; }
	wait_for_dev "$cowroot"
fi
