#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 2G
#
# Files, as cowsetup attaches them: which of them are trusted to take a write whole, and the loop device that all devices
# over an image share.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1
out='' # what exits() leaves

modprobe brd rd_nr=1 rd_size=$((400 * 1024))
# a disk that counts what is read from it
dmsetup create disk --table "0 $((400 * 2048)) linear /dev/ram0 0"
disk=dm-$(dmsetup info --columns --noheadings -o minor disk)
mkdir m
head -c 24M /dev/urandom >golden.img
cowsetup format golden.img mine.cow

# --- Writes that are taken whole ----------------------------------------------------------------------------

# whole: "whole" if the table says that the cowfile takes writes as a whole, else "cut"
whole() { if dmsetup table t | grep -q ' whole_writes'; then echo whole; else echo cut; fi; }

# filesystem NAME: on m
filesystem() {
	case $1 in
	tmpfs) mount -t tmpfs -o size=64M none m ;;
	ext4*) mkfs.ext4 -q -F /dev/mapper/disk ;;
	ext2) mkfs.ext4 -q -F -O ^extent,^64bit /dev/mapper/disk ;;
	xfs) mkfs.xfs -q -f /dev/mapper/disk ;;
	btrfs-dup) mkfs.btrfs -q -f -d dup /dev/mapper/disk >/dev/null 2>&1 ;;
	btrfs*) mkfs.btrfs -q -f /dev/mapper/disk >/dev/null 2>&1 ;;
	esac
	case $1 in
	tmpfs) ;;
	ext2) mount -t ext4 /dev/mapper/disk m ;;
	ext4-journal) mount -o data=journal /dev/mapper/disk m ;;
	*) mount /dev/mapper/disk m ;;
	esac
}

while read -r kind want; do
	filesystem "$kind"
	case $kind in
	btrfs-copied) cp mine.cow m ;; # with checksums
	esac
	runs "$kind: open" cowsetup open golden.img m/mine.cow t
	is "$(whole)" "$want" "$kind: writes are taken $want"
	runs "$kind: a large write" cowtest io /dev/mapper/t 1M 1M --write --stamp 3
	runs "$kind: readonly" cowsetup readonly t
	is "$(whole)" cut "$kind: and says nothing of writes"
	runs "$kind: close" cowsetup close t
	runs "$kind: open --read-only" cowsetup open --read-only golden.img m/mine.cow t
	is "$(whole)" cut "$kind: which says nothing of writes"
	runs "$kind: close" cowsetup close t
	umount m
done <<'END'
ext4 whole
ext4-journal cut
ext2 cut
xfs whole
btrfs whole
btrfs-dup cut
btrfs-copied cut
tmpfs cut
END

# --- One image, many devices --------------------------------------------------------------------------------

filesystem ext4
mv golden.img m
image=m/golden.img
# reads: MiB of the disk that have been read
reads() { awk '{ print int($3 / 2048) }' "/sys/block/$disk/stat"; }
# image_loops: the loop devices of the image, with whether each has direct I/O
image_loops() { losetup -n -O DIO,RO -j $image | tr -s ' ' | tr '\n' ';'; }
all_loops() { losetup --list -n -O NAME; }
forget() { sync && echo 3 >/proc/sys/vm/drop_caches; }

runs "the first device" cowsetup open $image m/1.cow
is "$(image_loops)" ' 1 1;' "has the image with direct I/O"
runs "a second one" cowsetup open $image m/2.cow
is "$(image_loops)" ' 0 1;' "has the same loop device, and both have the page cache"
for i in 3 4 5 6 7 8 9 10 11 12; do
	cowsetup open $image m/$i.cow >/dev/null || diag "device $i: no"
done
is "$(image_loops)" ' 0 1;' "twelve of them have one loop device"
forget
before=$(reads)
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
	cmp -n 25165824 /dev/mapper/$i $image || diag "device $i has something else"
	# above the loop device nothing stays
	blockdev --flushbufs /dev/mapper/$i
done
read=$(($(reads) - before))
diag "24 MiB, read by 12 devices: $read MiB of the disk"
ok $((read > 25)) "the image is read from the disk once"

for i in 7 1 12 2 3; do
	cowsetup close $i || diag "device $i: not closed"
done
is "$(image_loops)" ' 0 1;' "some are closed, the rest has its loop device"
runs "which can be read" cmp -n 25165824 /dev/mapper/9 $image
runs "one is opened again" cowsetup open $image m/1.cow
is "$(image_loops)" ' 0 1;' "over the same loop device"
# at_once COMMAND: with each of $numbers, all at the same time
at_once() {
	pids=''
	for i in $numbers; do
		"$1" "$i" >/dev/null &
		pids="$pids $!"
	done
	for pid in $pids; do
		wait "$pid" || return 1
	done
}
close_one() { cowsetup close "$1"; }
open_one() { cowsetup open $image "m/$1.cow"; }
numbers='1 4 5 6 8 9 10 11'
runs "all are closed at the same time" at_once close_one
is "$(all_loops)" '' "no loop device is left"
is "$(ls /run/cowsetup/images)" '' "nor a note of one"

# many at the same time: one loop device
numbers='1 2 3 4 5 6 8 9'
runs "eight are opened at the same time" at_once open_one
is "$(image_loops)" ' 0 1;' "they have one loop device"
# without cowsetup: the note stays, and is worth nothing
for i in $numbers; do dmsetup remove "$i"; done
settles '' "no loop device is left without cowsetup" all_loops
is "$(find /run/cowsetup/images -type l | wc -l)" 1 "but a note is"
other=$(loopdev m/1.cow)
runs "another file has the loop device; open" cowsetup open $image m/2.cow
is "$(image_loops)" ' 1 1;' "has the image, and not that file"
runs "what is read is the image" cmp -n 25165824 /dev/mapper/2 $image
losetup -d "$other"

# the image has grown: the loop device of the old size is not for others
runs "close" cowsetup close 2
runs "open" cowsetup open $image m/2.cow
head -c 1M /dev/zero >>$image
runs "the image has grown: open" cowsetup open $image m/grown.cow
is "$(image_loops)" ' 1 1; 1 1;' "with a loop device of that size"
is "$(blockdev --getsz /dev/mapper/2) $(blockdev --getsz /dev/mapper/grown)" '49152 51200' "each has its size"
runs "close" cowsetup close 2
runs "close" cowsetup close grown

# --- --rdo-cache --------------------------------------------------------------------------------------------

runs "--rdo-cache never" cowsetup open --rdo-cache never $image m/grown.cow a
runs "twice" cowsetup open --rdo-cache never $image m/b.cow
is "$(image_loops)" ' 1 1;' "direct I/O for both"
runs "--rdo-cache always, over the same" cowsetup open --rdo-cache always $image m/c.cow
is "$(image_loops)" ' 0 1;' "has the page cache for all"
for name in a b c; do cowsetup close $name; done
runs "--rdo-cache always" cowsetup open --rdo-cache always $image m/c.cow
is "$(image_loops)" ' 0 1;' "has it for one"
runs "close" cowsetup close c
exits 1 "--rdo-cache sometimes" cowsetup open --rdo-cache sometimes $image m/c.cow
like "$out" 'auto, always or never' "it is said what there is"

# no notes can be made: each has a loop device of its own, and all else is well
rm -r /run/cowsetup && touch /run/cowsetup
runs "without notes" cowsetup open $image m/grown.cow a
runs "and again" cowsetup open $image m/c.cow
is "$(image_loops)" ' 1 1; 1 1;' "each has a loop device"
runs "close" cowsetup close a
runs "close" cowsetup close c
is "$(all_loops)" '' "and none is left"
rm /run/cowsetup

umount m
dmsetup remove disk
done_testing
