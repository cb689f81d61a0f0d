#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --mem 1G
#
# After a crash: the repair of format 1 on devices with blocks of any size.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1
dev=/dev/mapper/t stamp=0

# --- Format 1: blocks of any size ---------------------------------------------------------------------------

# repaired BLOCK KIB UNIT...: writes units of 1 KiB, and crashes; the cow device has blocks of so many bytes afterwards
repaired() {
	name="blocks of $1, rdo of $2 KiB" block=$1 kib=$2
	shift 2
	rm -f rdo cow crashed model
	cowtest fill rdo --size "${kib}K" >/dev/null
	truncate -s 2M cow
	rdo=$(loopdev rdo -r)
	cow=$(loopdev cow)
	cowopen t "$rdo" "$cow" format:1
	cowtest run $dev --model model --ops 0 >/dev/null
	for unit; do
		unit_size=1024 put "$unit" 4 >/dev/null || diag "$name: cannot write unit $unit"
	done
	# one more, the last: the units of a block are in one place
	[ $((kib % 4)) -eq 0 ] || unit_size=1024 put $((kib / 4 * 4)) $((kib % 4)) >/dev/null
	dd if="$cow" of=crashed bs=64K iflag=direct status=none
	dmsetup remove t
	losetup -d "$cow"
	cow=$(loopdev crashed --sector-size "$block")
	is "$(cowhead crashed dirty)" 1 "$name: dirty after a crash"
	runs "$name: repaired" cowopen t "$rdo" "$cow" repair
	is "$(cowstat t used state mode)" "$(($# * 4 + kib % 4)) clean rw" "$name: all that was written is in it"
	dmsetup remove t
	is "$(cowhead crashed dirty popcount)" "0 $(($# * 4 + kib % 4))" "$name: a clean cowfile, with a bit for each"
	losetup -d "$cow"
	cow=$(loopdev crashed)
	cowopen t "$rdo" "$cow"
	runs "$name: what was written is there" cowtest verify $dev --model model
	dmsetup remove t
	losetup -d "$cow"
	losetup -d "$rdo"
}
for block in 512 1024 2048 4096; do
	repaired "$block" 1025 0 508 1020
	repaired "$block" 1027 1016
done
repaired 4096 1028 1020
# what is read at a time ends with the last unit but for one
repaired 4096 257 252

done_testing
