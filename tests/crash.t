#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 4 --mem 1G --timeout 1800
#
# Crashes: dm-log-writes records what reaches the cow device, and cowcrash opens what any prefix of it, and any of
# it with writes lost or torn, would leave behind. Arguments make it longer, OPS=500 SAMPLES=20, or do less: EVERY=5
# looks at every fifth state, ONLY='format 2' at one of the cowfiles. STATES is how many must have been looked at.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh

OPS=60 SAMPLES=6 EVERY=1 ONLY='' STATES=1000
[ $# -eq 0 ] || STATES=1
for setting; do
	eval "${setting%%=*}='${setting#*=}'"
done
LOG_MIB=64
total=0

modprobe brd rd_nr=3 rd_size=$((LOG_MIB * 1024))
modprobe -a dm-log-writes dm-zeroes

# slice NAME DEVICE OFFSET LENGTH: a part of a ramdisk, in sectors
slice() { dmsetup create "$1" --table "0 $4 linear $2 $3"; }

# number WHAT: how many of them, by what cowcrash has printed
# shellcheck disable=SC2154 # runs sets it
number() { printf '%s\n' "$tap_out" | sed -n "s/.* \([0-9]*\) $1.*/\1/p"; }

# recorded NAME SECTORS UNIT OPTIONS [CHECK-OPTION...]: works on a new cowfile, and checks the recording. The devices
# are given write-zeroes, which format 1 needs to discard.
recorded() {
	name=$1 sectors=$2 unit=$3 options=$4
	shift 4
	[ "${ONLY:-$name}" = "$name" ] || return 0
	cow_sectors=$((sectors + 384))
	blkdiscard -z /dev/ram1 2>/dev/null || dd if=/dev/zero of=/dev/ram1 bs=1M count=8 oflag=direct status=none
	slice rdo /dev/ram0 0 "$sectors"
	slice cow /dev/ram1 0 $cow_sectors
	for i in 1 2 3 4; do
		slice "replay$i" /dev/ram1 $((i * 8192)) $cow_sectors
	done
	cowcrash fill /dev/mapper/rdo
	dmsetup create log --table "0 $cow_sectors log-writes /dev/mapper/cow /dev/ram2"
	dmsetup create zeroes-rdo --table "0 $sectors zeroes /dev/mapper/rdo"
	dmsetup create zeroes-log --table "0 $cow_sectors zeroes /dev/mapper/log"
	dmsetup create work --table "0 $sectors cowloop /dev/mapper/zeroes-rdo /dev/mapper/zeroes-log $options"
	runs "$name: the work" cowcrash work /dev/mapper/work --cowloop work --log log --journal /tmp/journal \
		--seed "$sectors" --ops "$OPS" --unit "$unit"
	# shellcheck disable=SC2154 # runs sets it
	diag "$tap_out"
	like "$(number discards) $(number zero-outs)" '^[1-9][0-9]* [1-9][0-9]*$' "$name: with discards and zero-outs"
	dmsetup remove zeroes-log zeroes-rdo
	dmsetup remove log
	runs "$name: nothing flushed is lost, nothing is wrong, in any state" \
		cowcrash check /dev/ram2 /dev/mapper/replay1 /dev/mapper/replay2 /dev/mapper/replay3 \
		/dev/mapper/replay4 --rdo /dev/mapper/rdo --journal /tmp/journal --samples "$SAMPLES" \
		--every "$EVERY" "$@"
	diag "$tap_out"
	states=$(number 'states:')
	total=$((total + states / EVERY))
	[ "${states:-0}" -ge $((STATES / 8)) ]
	ok $? "$name: $states states"
	[ "$unit" = 1024 ] || like "$tap_out" ' [1-9][0-9]* of them end with a discard' "$name: discards were passed down"
	dmsetup remove cow rdo replay1 replay2 replay3 replay4
}

# The last dm-bufio client must not go away while the first comes: some kernels trip over the name of its cache.
slice keep-rdo /dev/ram0 100000 1024
slice keep-cow /dev/ram0 104000 2048
dmsetup create keep --table "0 1024 cowloop /dev/mapper/keep-rdo /dev/mapper/keep-cow"

recorded 'format 2' 2045 4096 ''
recorded 'format 2, units of 64 KiB' 2045 65536 '1 mapunit:65536'
recorded 'format 1' 2046 1024 '1 format:1' --repair --options '1 repair'

[ "$total" -ge "$STATES" ]
ok $? "$total states looked at"

dmsetup remove keep
done_testing
