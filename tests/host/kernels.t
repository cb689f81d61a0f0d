#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The kernels that the rest of the suite is not run on: the modules build without a warning, and tests/smoke.t passes.
# A kernel that this machine can't have, say because its distribution is not Debian, is skipped.
#
#   tests/host/kernels.t [VERSION...]     (default: all in scripts/kernel but $KERNEL, or the distribution's own)

set -uo pipefail

cd "$(dirname "$(realpath "$0")")/../.." || exit 1
# shellcheck source=tests/lib.sh
. tests/lib.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

versions=("$@")
if [ $# = 0 ]; then
	this=$(scripts/kernel ${KERNEL:+"$KERNEL"} | sed -n 's/^release=//p')
	for version in $(scripts/kernel --all); do
		case $this in
		"$version" | "$version"[.-]*) ;;
		*) versions+=("$version") ;;
		esac
	done
fi
unset KERNEL

plan $((3 * ${#versions[@]}))
for version in "${versions[@]}"; do
	release='' image='' kdir=''
	lines=$(scripts/kernel "$version" 2>"$tmp/out")
	status=$?
	if [ $status = 2 ]; then
		reason=$(sed -n '$s/^kernel: //p' "$tmp/out")
		for _ in 1 2 3; do skip "$reason"; done
		continue
	fi
	eval "$lines"
	[ $status = 0 ] && [ -e "$image" ] && [ -e "$kdir/Makefile" ]
	said $? "Linux $version is there${release:+, $release}"

	# all of it anew, or warnings are only seen once
	rm -rf "build/$release"
	make -s modules kmod KDIR="$kdir" W=1 >"$tmp/out" 2>&1 && [ ! -s "$tmp/out" ]
	said $? "the modules build for $release, without a warning"

	scripts/vm --kernel "$release" tests/smoke.t >"$tmp/out" 2>&1
	said $? "they work there: tests/smoke.t, $(grep -c '^ok' "$tmp/out") tests"
done
