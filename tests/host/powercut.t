#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# A VM is killed in the midst of its writes, several times over the same cowfiles, one of each format, on virtio disks.
# Each time the next one opens them, checks that all is there that was reported as durable, that everything else is
# old or new, sector by sector, and goes on writing. The operations follow from the seed, the moment of the cut does not.
#
# What QEMU has handed to the host's page cache stays when it is killed. So this is about writes in flight in a real
# queue, and about what the module has not written yet; what a drive's cache loses is crash.t's and fscrash.t's part.
#
#   [MODULE=FILE.ko] powercut.t [CUTS [SEED]]

set -uo pipefail

top=$(realpath "$(dirname "$(realpath "$0")")/../..")
tmp=$(mktemp -d)
vm=''
# shellcheck disable=SC2317 # it is called, by the trap
cleanup() {
	[ -z "$vm" ] || { kill "$vm" && wait "$vm"; } 2>/dev/null
	rm -rf "$tmp"
}
trap cleanup EXIT
cd "$tmp" || exit 1

cuts=${1:-5} seed=${2:-$RANDOM}
count=0 failed=0
ok() { # STATUS NAME
	count=$((count + 1))
	[ "$1" = 0 ] && echo "ok $count - $2" && return
	failed=1
	echo "not ok $count - $2"
}

children() { cat "/proc/$1/task/$1/children"; }

# qemu_of PID: the process of the QEMU that scripts/vm, which is PID, has started by way of timeout
qemu_of() {
	local child qemu
	for child in $(children "$1"); do
		[ "$(<"/proc/$child/comm")" = timeout ] || continue
		for qemu in $(children "$child"); do
			[[ $(<"/proc/$qemu/comm") != qemu* ]] || echo "$qemu"
		done
	done
}

# start ROUND [last]: the VM, in the background; prints nothing here, but into out
start() {
	: >out
	"$top/scripts/vm" ${MODULE:+--module "$MODULE"} --log console --disk rdo,readonly=on \
		--disk cow2 --disk model2 --disk cow1 --disk model1 --file reports:/reports \
		"$top/tests/host/powercut-guest" "$1" "$seed" "${@:2}" >out 2>err &
	vm=$!
}

# working: waits until the VM does its work; fails when it ends without
working() {
	until grep -q '^working' out; do
		kill -0 "$vm" 2>/dev/null || return 1
		sleep 0.1
	done
}

# show: what the VM has said, reports left out; and more of it when something is wrong
show() {
	{
		grep -v '\.$' out
		[ "$failed" = 0 ] || cat err
	} | sed 's/^#* */# /'
}

sectors=131071
"$top/build/guest/powercut" fill rdo model2 $sectors && cp model2 model1 || exit 1
truncate -s $((sectors * 512 + 1048576)) cow1 cow2
: >reports
sum=$(sha256sum <rdo)
echo "# seed $seed"

for ((round = 1; round <= cuts; round++)); do
	start "$round"
	working
	ok $? "cut $round: the cowfiles open and hold what they must"
	[ "$failed" = 0 ] || break
	while [ "$(grep -c '\.$' out)" -lt 4 ] && kill -0 "$vm" 2>/dev/null; do
		sleep 0.1
	done
	sleep "$((RANDOM % 3)).$((RANDOM % 900 + 100))"
	qemu=$(qemu_of "$vm")
	[[ $qemu =~ ^[0-9]+$ ]] && kill -KILL "$qemu"
	ok $? "cut $round: the VM is killed"
	wait "$vm"
	vm=''
	grep '^format[12] [a-z]* [0-9]*\.$' out >reports
	for format in 1 2; do
		grep -q "^format$format flushed" reports
		ok $? "cut $round: format $format was being written, $(grep -c "^format$format" reports) reports"
	done
	! grep -E '\[ cut here \]|\bBUG\b|Oops|blocked for more than' console
	ok $? "cut $round: the kernel has not complained"
	[ "$failed" = 0 ] || break
	show
done
if [ "$failed" = 0 ]; then
	start "$round" last
	wait "$vm" && grep -q '^closed' out
	ok $? "the cowfiles open and hold what they must, and close"
	vm=''
fi
show
[ "$(sha256sum <rdo)" = "$sum" ]
ok $? "rdo has not changed"

echo "1..$count"
exit $failed
