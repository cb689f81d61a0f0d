#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The Debian packages: that they can be built, what lintian says of them, and that they work and go away again in clean
# systems of every release that has a kernel for them.
#
#   tests/slow/deb.t [SUITE...]      (default: bookworm trixie)

set -u

top=$(realpath "$(dirname "$0")/../..")
cd "$top" || exit 1
# shellcheck source=tests/lib.sh
. tests/lib.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

[ $# -gt 0 ] || set -- bookworm trixie
plan $(($# + 3))
scripts/package/deb >"$tmp/out" 2>&1
said $? "they can be built"
[ $tap_failed = 0 ] || exit

version=$(sed -n '1s/^dm-cowloop \([^ ]*\).*/\1/p' CHANGELOG)
packages=("build/deb/dm-cowloop-dkms_${version}_all.deb" "build/deb/cowsetup_${version}_$(dpkg --print-architecture).deb"
	"build/deb/cowsetup-initramfs_${version}_all.deb")
ls "${packages[@]}" >"$tmp/out" 2>&1
said $? "of the version that CHANGELOG has, all three"

scripts/setup lintian
lintian --allow-root --fail-on error,warning build/deb/*.changes >"$tmp/out" 2>&1
said $? "lintian finds nothing that is an error or would deserve a warning"

for suite; do
	scripts/vm --distro "$suite" --timeout 3600 --file "$(realpath "${packages[0]}"):/root/dm-cowloop-dkms.deb" \
		--file "$(realpath "${packages[1]}"):/root/cowsetup.deb" \
		--file "$(realpath "${packages[2]}"):/root/cowsetup-initramfs.deb" tests/slow/deb-guest "$version" >"$tmp/out" 2>&1
	status=$?
	sed 's/^/    /' "$tmp/out"
	said $status "Debian $suite"
done
[ $tap_failed = 0 ]
