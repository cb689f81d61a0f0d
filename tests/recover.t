#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --mem 1G
#
# After a crash: the repair of format 1 on devices with blocks of any size, and the counting of format 2 where a part of
# the bitmap cannot be read.

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

# All units of a region of the bitmap have been written: there is nothing to add to it.
rm -f rdo cow crashed model
cowtest fill rdo --size 30M >/dev/null
truncate -s 31M cow
rdo=$(loopdev rdo -r)
cow=$(loopdev cow)
cowopen t "$rdo" "$cow" format:1
cowtest run $dev --model model --ops 0 >/dev/null
unit_size=1024 put 0 28672 >/dev/null
unit_size=1024 put 30000 8 >/dev/null
cowtest io $dev --flush
dd if="$cow" of=crashed bs=64K iflag=direct status=none
dmsetup remove t
losetup -d "$cow"
cow=$(loopdev crashed)
is "$(cowhead crashed dirty popcount)" "1 28680" "a region that is full: as a crash leaves it"
runs "a region that is full: repaired" cowopen t "$rdo" "$cow" repair
is "$(cowstat t used state)" "28680 clean" "a region that is full: what was in it is in it"
runs "a region that is full: what was written is there" cowtest verify $dev --model model
dmsetup remove t
losetup -d "$cow"
losetup -d "$rdo"

# --- Format 2: a part of the bitmap cannot be read ----------------------------------------------------------

# Units 32512 to 65023 have their bits in sectors 16 to 23 of the cow device.
size=614400
modprobe brd rd_nr=3 rd_size=327680
dmsetup create rdo --table "0 $size linear /dev/ram0 0"
line="0 640000 linear /dev/ram2 0"
hole="0 16 linear /dev/ram2 0
	16 8 error
	24 639976 linear /dev/ram2 24"
# first UNIT [PART]: writes a unit, or 512 bytes of it; what has been written is in the file "want"
first() {
	stamp=$((stamp + 1))
	cowtest io $dev $(($1 * 4096)) "${2:-4096}" --write --stamp $stamp && echo "$(($1 * 8)) $((${2:-4096} / 512)) $stamp" >>want
}
# there NAME: all of it is there
there() {
	while read -r sector count _; do
		cowtest io $dev $((sector * 512)) $((count * 512)) --read
	done <want >got
	cmp want got
	ok $? "$1: what was written is there" || diag "$(diff want got)"
}
: >want
cowopen t /dev/mapper/rdo /dev/ram1
for unit in 0 40000 70000; do
	first "$unit"
done
cowtest io $dev --flush
dd if=/dev/ram1 of=crashed bs=4096 count=4 iflag=direct status=none
for unit in 0 40000 70000; do
	dd if=/dev/ram1 of="unit$unit" bs=4096 skip=$((unit + 4)) count=1 iflag=direct status=none
done
is "$(cowhead /dev/ram1 doffset dirty popcount)" "16384 1 3" "format 2: as a crash leaves it"
dmsetup remove t
cp want crashed.want

lines() { dmesg | grep -c 'cowloop: .*cannot read the bitmap of units 32512-65023: error -5'; }
eio() { # NAME COMMAND...
	name=$1
	shift
	out=$("$@" 2>&1)
	like "$?: $out" '^[1-9].*(EIO|Input/output error)' "$name"
}
# unreadable NAME OPTION...
unreadable() {
	what=$1
	shift
	cp crashed.want want
	dd if=crashed of=/dev/ram2 bs=4096 oflag=direct status=none
	for unit in 0 40000 70000; do
		dd if="unit$unit" of=/dev/ram2 bs=4096 seek=$((unit + 4)) oflag=direct status=none
	done
	dmsetup create cow --table "$hole"
	had=$(lines)
	cowopen t /dev/mapper/rdo /dev/mapper/cow "$@"
	runs "$what: a first write" first 200
	runs "$what: another, a part of a unit" first 70001 512
	settles 4 "$what: what can be read is counted" cowstat t used
	eio "$what: the part's own units fail" cowtest io $dev $((40001 * 4096)) 4096 --write
	eio "$what: those written before, too" cowtest io $dev $((40000 * 4096)) 4096 --read
	runs "$what: and no others" first 300
	eio "$what: sync says that it cannot count" dmsetup message t 0 sync
	eio "$what: each time" dmsetup message t 0 sync
	is "$(($(lines) - had))" 1 "$what: one line in the log"
	is "$(cowstat t used state mode)" "5 dirty rw" "$what: dirty, and in use"
}

unreadable "no limit"
dmsetup remove t
is "$(cowhead /dev/ram2 dirty)" 1 "no limit: dirty on disk"
turn cow "$line"
cowopen t /dev/mapper/rdo /dev/mapper/cow
runs "readable again: sync" dmsetup message t 0 sync
is "$(cowstat t used state)" "6 clean" "readable again: counted, and clean"
there "readable again"
dmsetup remove t cow

unreadable "limit" limit:7
runs "limit: up to it" first 400
runs "limit: up to it" first 401
no_space "limit: but no more" first 402
turn cow "$line"
runs "readable under the device: sync" dmsetup message t 0 sync
is "$(cowstat t used state)" "8 clean" "readable under the device: counted, and clean"
there "readable under the device"
dmsetup remove t
is "$(cowhead /dev/mapper/cow dirty cowused popcount)" "0 8 8" "a clean cowfile, with the right count"

dmsetup remove cow rdo
done_testing
