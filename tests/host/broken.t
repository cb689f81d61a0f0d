#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The test of the crash test: modules that were broken on purpose, by the patches in tests/broken, must be caught.

set -uo pipefail

cd "$(dirname "$(realpath "$0")")/../.." || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

kdir=$(scripts/kernel "${KERNEL:-}" | sed -n 's/^kdir=//p')
patches=(tests/broken/*.patch)
echo "1..${#patches[@]}"

# caught NAME: builds the module with the patch, and runs the crash test on it
caught() {
	local dir=$tmp/$1
	mkdir "$dir"
	cp Kbuild ./*.[ch] "$dir"
	(cd "$dir" && GIT_DIR=/dev/null git apply "$OLDPWD/tests/broken/$1.patch") &&
		make -s -C "$kdir" M="$dir" CONFIG_DEBUG_INFO_BTF_MODULES= modules >"$dir/log" 2>&1 ||
		{ echo "could not be built"; cat "$dir/log"; return 1; }
	# that the work itself went well is part of it: only what was checked afterwards may fail
	scripts/vm --module "$dir/dm-cowloop.ko" tests/crash.t 'ONLY=format 2' >"$dir/out" 2>&1
	grep -q '^ok .*: the work' "$dir/out" && grep -q '^not ok .*nothing flushed is lost' "$dir/out" &&
		grep -q 'bad states' "$dir/out" || { echo "not caught"; cat "$dir/out"; return 1; }
	grep 'bad states' "$dir/out" | sort -u
}

n=0
for patch in "${patches[@]}"; do
	n=$((n + 1))
	name=$(basename "$patch" .patch)
	if said=$(caught "$name"); then
		echo "ok $n - $name is caught"
	else
		echo "not ok $n - $name is caught"
	fi
	printf '%s\n' "$said" | sed 's/^#* */# /'
done
