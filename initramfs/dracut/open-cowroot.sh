#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# dracut's hook "initqueue/settled": opens the device that cowroot= names. It waits itself for what it is made of.

# shellcheck source=initramfs/cowroot
. /usr/lib/cowsetup/cowroot

if cowroot_wanted; then
	cowroot_open || die "The root filesystem's device cannot be made, as cowroot= wants it."
fi
