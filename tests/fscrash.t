#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G --timeout 3600
#
# Crashes below a filesystem: dm-log-writes records what reaches the cow device, and at every flush in the recording,
# and with writes lost before it, fscrash opens the cowfile, mounts the filesystem that is in it, looks at all files
# and runs fsck. Arguments make it longer, OPS=500 SAMPLES=4 SEED=7, or do less: ONLY='xfs' is one of the devices.
# STATES is how many must have been looked at.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh

OPS=24 SAMPLES=1 SEED=1 ONLY='' STATES=200
[ $# -eq 0 ] || STATES=1
for setting; do
	eval "${setting%%=*}='${setting#*=}'"
done
RDO_MIB=32 LOG_MIB=128
total=0

modprobe dm-log-writes
modprobe dm-snapshot
mkdir /tmp/mnt

# recorded NAME TYPE MKFS OPTIONS REOPEN: a filesystem of TYPE, made by MKFS, on a new cowfile with OPTIONS; after a
# crash it is opened with REOPEN
recorded() {
	name=$1 type=$2 mkfs=$3 options=$4 reopen=$5
	[ "${ONLY:-$name}" = "$name" ] || return 0
	modprobe brd rd_nr=7 rd_size=$((LOG_MIB * 1024))	# all zeroes
	sectors=$((RDO_MIB * 2048))
	cow_sectors=$((sectors + 2048))
	dmsetup create rdo --table "0 $sectors linear /dev/ram0 0"
	dmsetup create cow --table "0 $cow_sectors linear /dev/ram1 0"
	dmsetup create base1 --table "0 $cow_sectors linear /dev/ram3 0"
	dmsetup create base2 --table "0 $cow_sectors linear /dev/ram4 0"

	runs "$name: make the filesystem" "$mkfs" /dev/mapper/rdo || exit 1
	mount -t "$type" /dev/mapper/rdo /tmp/mnt || exit 1
	runs "$name: the first files" fscrash fill /tmp/mnt --journal /tmp/journal --seed "$SEED" --ops 30
	umount /tmp/mnt
	sum=$(md5sum /dev/mapper/rdo)

	dmsetup create log --table "0 $cow_sectors log-writes /dev/mapper/cow /dev/ram2"
	dmsetup create work --table "0 $sectors cowloop /dev/mapper/rdo /dev/mapper/log $options"
	mount -t "$type" /dev/mapper/work /tmp/mnt || exit 1
	runs "$name: the work" fscrash work /tmp/mnt --journal /tmp/journal --log log --cowloop work \
		--seed "$SEED" --ops "$OPS"
	# shellcheck disable=SC2154 # of runs
	diag "$tap_out"
	umount /tmp/mnt
	dmsetup remove work
	dmsetup remove log

	start=$(date +%s)
	runs "$name: whatever was fsync'd is there, and fsck is content, in any state" \
		fscrash check /dev/ram2 /tmp/mnt /dev/mapper/base1 /dev/ram5 /dev/mapper/base2 /dev/ram6 \
		--journal /tmp/journal --rdo /dev/mapper/rdo --type "$type" --options "$reopen" --samples "$SAMPLES" \
		--seed "$SEED"
	diag "$tap_out"
	states=$(printf '%s\n' "$tap_out" | sed -n 's/^fscrash: \([0-9]*\) states:.*/\1/p')
	total=$((total + states))
	[ "${states:-0}" -ge $((STATES / 8)) ]
	ok $? "$name: $states states"
	diag "$(($(date +%s) - start)) seconds"
	is "$(md5sum /dev/mapper/rdo)" "$sum" "$name: rdo has not changed"
	dmsetup remove rdo cow base1 base2
	rmmod brd
}

# The last dm-bufio client must not go away while the first comes: some kernels trip over the name of its cache.
truncate -s 512K /tmp/keep-rdo
truncate -s 1M /tmp/keep-cow
cowopen keep "$(loopdev /tmp/keep-rdo -r)" "$(loopdev /tmp/keep-cow)" || exit 1

make_ext4() { mke2fs -q -t ext4 -b 4096 "$1"; }
make_ext4_1k() { mke2fs -q -t ext4 -b 1024 "$1"; }
# some versions need to be told that so small a one is meant
make_xfs() { mkfs.xfs -q --unsupported "$1" || mkfs.xfs -q -f "$1"; }

recorded 'ext4' ext4 make_ext4 '' ''
recorded 'xfs' xfs make_xfs '' ''
recorded 'ext4, units of 64 KiB' ext4 make_ext4 '1 mapunit:65536' ''
# With blocks of the unit's size: in larger ones that were not flushed yet, repair takes units of zeroes for rdo's. That
# is old or new for each unit, but jbd2 does not forgive a commit block that is half an old one.
recorded 'ext4, format 1' ext4 make_ext4_1k '1 format:1' '1 repair'

[ "$total" -ge "$STATES" ]
ok $? "$total states looked at"

dmsetup remove keep
done_testing
