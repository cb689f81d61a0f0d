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
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

[ $# -gt 0 ] || set -- bookworm trixie
echo "1..$(($# + 3))"
n=0 failed=0
ok() { # STATUS NAME
	n=$((n + 1))
	[ "$1" = 0 ] && echo "ok $n - $2" && return
	echo "not ok $n - $2"
	failed=1
	tail -n 50 "$tmp/out" | sed 's/^/# /'
}

scripts/deb >"$tmp/out" 2>&1
ok $? "they can be built"
[ $failed = 0 ] || exit

version=$(sed -n '1s/^dm-cowloop \([^ ]*\).*/\1/p' CHANGELOG)
packages=("build/deb/dm-cowloop-dkms_${version}_all.deb" "build/deb/cowsetup_${version}_$(dpkg --print-architecture).deb")
ls "${packages[@]}" >"$tmp/out" 2>&1
ok $? "of the version that CHANGELOG has, both"

scripts/setup lintian
lintian --allow-root --fail-on error,warning build/deb/*.changes >"$tmp/out" 2>&1
ok $? "lintian finds nothing that is an error or would deserve a warning"

for suite; do
	scripts/vm --distro "$suite" --timeout 3600 --file "$(realpath "${packages[0]}"):/root/dm-cowloop-dkms.deb" \
		--file "$(realpath "${packages[1]}"):/root/cowsetup.deb" tests/slow/deb-guest "$version" >"$tmp/out" 2>&1
	status=$?
	sed 's/^/    /' "$tmp/out"
	ok $status "Debian $suite"
done
exit $failed
