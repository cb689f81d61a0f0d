#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# What is in an image, a volume group, a RAID, a filesystem, appears on the cowloop device alone, and not on what that is made
# of: in a VM with udev, LVM and mdadm, and their rules.

set -uo pipefail

cd "$(dirname "$(realpath "$0")")/../.." || exit 1
# shellcheck source=tests/lib.sh
. tests/lib.sh
scripts/apt/mirror "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" >/dev/null 2>&1 ||
	plan skip_all "udev, LVM and mdadm come from Debian's archive, which this machine does not reach"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

lines=$(scripts/guest/udev) || exit 1
usr=''
eval "$lines"
truncate --size 32M "$tmp/disk"
truncate --size 160M "$tmp/partitioned"
scripts/vm --disk "$tmp/disk" --disk "$tmp/partitioned" --file "$usr:/usr" --file udev:/cowloop/udev tests/host/udev-guest
