#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G
#
# A flush of the cow device that fails, of which somebody is told, but not all whose writes are lost by it: a loop device
# without direct I/O has fsync() say it, once; and the block layer makes a write and a flush of a FUA write to one. None
# of the others may be told that all is well. dm-nth says what fails.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

modprobe brd rd_nr=2 rd_size=$((64 * 1024))
rdo=/dev/ram0 dev=/dev/mapper/t size=$((64 * 2048))
# shellcheck disable=SC2034 # for put
stamp=0
mkdir mnt

flush() { timeout 60 cowtest io $dev --flush; }
arm() { dmsetup message nth 0 arm "$@"; }

# lost NAME: that a flush has failed is known by all from now on
lost() {
	fails "$1: so does the next flush, of which the block layer knows nothing bad" flush
	is "$(cowstat t mode)" fail "$1: mode fail"
	fails "$1: and a write" put 20
	fails "$1: sync" dmsetup message t 0 sync
	runs "$1: reads go on" cowtest io $dev 0 4096 --read
}

# opened COW [OPTION]: t, with a new cowfile
opened() {
	new_model $rdo --zero-permille 1000 --region 0:4K
	cowopen t $rdo "$@"
}
# nothing_to_commit NAME: 64 units have been written, and committed
nothing_to_commit() {
	put 0 64
	runs "$1: there is nothing to be committed" flush
}
# blank_nth: nth, on a disk without a cowfile
blank_nth() {
	dd if=/dev/zero of=/dev/ram1 bs=1M count=1 status=none conv=fsync
	dmsetup create nth --table "0 $size nth /dev/ram1"
}

# on_file FORMAT: t, its cowfile in a file on ext4 on nth, attached to a loop device that fsync()s
on_file() {
	dmsetup create nth --table "0 $size nth /dev/ram1"
	# what it does lazily would be the write that fails
	mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/nth
	mount /dev/mapper/nth mnt
	truncate -s 65M mnt/cow
	cow=$(loopdev mnt/cow --direct-io=off)
	opened "$cow" "format:$1"
	is "$(cat "/sys/block/${cow#/dev/}/queue/fua") $(cat "/sys/block/${cow#/dev/}/queue/write_cache")" "0 write back" \
		"format $1: a cow device with a cache, and without FUA"
}
end_file() {
	dmsetup message nth 0 disarm
	dmsetup remove t
	losetup --detach "$cow"
	umount mnt
	dmsetup remove nth
}

# --- A FUA write --------------------------------------------------------------------------------------------

for format in 1 2; do
	name="FUA rewrite, format $format"
	on_file $format
	nothing_to_commit "$name"
	sync
	put 10
	arm write 1 eio 2
	fails "$name: fails, with what was written before" put 0 1 --fua
	dmsetup message nth 0 disarm
	lost "$name"
	end_file
done

# The first block of the bitmap has the head in it, and goes with FUA, before the first write there.
name="the bitmap's first block, format 1"
on_file 1
runs "$name: there is nothing to be committed" flush
sync
arm write 1 eio 1
fails "$name: cannot be written" put 10
dmsetup message nth 0 disarm
lost "$name"
end_file

# --- A commit that is not the one to be told ------------------------------------------------------------------

# flushes take ten seconds, and the first one fails; the one of the commit begins before that, and ends behind it
name="a commit during a flush that fails"
blank_nth
dmsetup create cow --table "0 $size linear /dev/mapper/nth 0"
opened /dev/mapper/cow
nothing_to_commit "$name"
commits=$(cowstat t commits)
put 0 1 --fua
is "$(cowstat t commits)" "$commits" "$name: first, a FUA rewrite takes none where the device has FUA, or no cache"
is_flushing() { awk '{ exit !$2 }' "/sys/block/$(dmsetup info -c --noheadings -o blkdevname t)/inflight"; }
turn cow "0 $size delay /dev/mapper/nth 0 0 /dev/mapper/nth 0 0 /dev/mapper/nth 0 10000"
arm flush 1 eio 1
put 10
flush >out1 2>&1 &
first=$!
await is_flushing
runs "$name: a first write meanwhile" put 100
fails "$name: is not committed" flush
wait $first
is $? 3 "$name: which has failed by then"
lost "$name"
dmsetup remove t
turn cow "0 $size linear /dev/mapper/nth 0"
is "$(cowhead /dev/mapper/cow units)" "0-63" "$name: its bit has not been written"
dmsetup remove cow nth

# --- One that says that there is no space -------------------------------------------------------------------

# Of a write that would be no failure. But what was to be made durable by this, and has found no room, may be gone.
name="a commit's flush, ENOSPC"
blank_nth
opened /dev/mapper/nth
nothing_to_commit "$name"
put 100
arm flush 1 enospc 1
fails "$name: fails" flush
dmsetup message nth 0 disarm
lost "$name"
dmsetup remove t
is "$(cowhead /dev/mapper/nth units)" "0-63" "$name: its bit has not been written"
dmsetup remove nth

done_testing
