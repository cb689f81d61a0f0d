#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The test of the tests: modules that were broken on purpose, by the patches in tests/broken, must be caught by the test
# that the first line of the patch names.

set -uo pipefail

cd "$(dirname "$(realpath "$0")")/../.." || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

kdir=$(scripts/kernel "${KERNEL:-}" | sed -n 's/^kdir=//p')
patches=(tests/broken/*.patch)
echo "1..${#patches[@]}"

# crash, flush, stress, hang, nospace OPTION...: run that test on a module, and have it find what it is for. That the work
# itself goes well is part of it: only what is checked may fail.
crash() {
	scripts/vm "$@" tests/crash.t 'ONLY=format 2' >"$dir/out" 2>&1
	grep -q '^ok .*: the work' "$dir/out" && grep -q '^not ok .*nothing flushed is lost' "$dir/out" &&
		grep 'bad states' "$dir/out" | sort -u
}
flush() {
	scripts/vm "$@" tests/flush.t >"$dir/out" 2>&1
	grep -E '^not ok .*: (so does the next flush|its bit has not been written)' "$dir/out"
}
stress() {
	scripts/vm "$@" tests/stress.t ONLY=rounds >"$dir/out" 2>&1
	grep '^not ok .* round$' "$dir/out" && grep -m 1 'found .* Allowed: ' "$dir/out"
}
hang() {
	scripts/vm "$@" tests/hang.t ONLY=discard >"$dir/out" 2>&1
	grep '^not ok .*: what needs the copy-up waits$' "$dir/out"
}

nospace() {
	scripts/vm "$@" tests/nospace.t 'ONLY=ext2 on' >"$dir/out" 2>&1
	grep '^not ok .*: all is right$' "$dir/out"
}

# build: the module as it is in $tmp/module, where only what has changed is compiled again
build() { scripts/kernels/kbuild "$kdir" "$tmp/module" -s modules; }
# patched [OPTION]: applies $patch there, or takes it back
patched() { (cd "$tmp/module" && GIT_DIR=/dev/null git apply "$@" "$OLDPWD/$patch"); }

# caught NAME: builds the module with the patch, and runs the test on it that the patch names
caught() {
	local dir=$tmp/$1 patch=tests/broken/$1.patch test
	test=$(sed -n '1s/^test: \(.*\)\.t$/\1/p' "$patch")
	case $test in
	crash | flush | stress | hang | nospace) ;;
	*) echo "$patch does not begin with \`test: ', and crash.t, flush.t, stress.t, hang.t or nospace.t"; return 1 ;;
	esac
	mkdir "$dir"
	patched >"$dir/log" 2>&1 || { echo "could not be applied"; cat "$dir/log"; return 1; }
	build >"$dir/log" 2>&1 && mv "$tmp/module/dm-cowloop.ko" "$dir" || { echo "could not be built"; cat "$dir/log"; }
	patched --reverse || return 1
	[ -e "$dir/dm-cowloop.ko" ] || return 1
	$test --module "$dir/dm-cowloop.ko" || { echo "not caught"; cat "$dir/out"; return 1; }
}

mkdir "$tmp/module"
cp Kbuild ./*.[ch] "$tmp/module"
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
