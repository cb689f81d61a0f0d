#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# What lies under a device and is unlike ext4: btrfs, filesystems without sparse files, overlayfs over what has no direct
# I/O, and block devices with larger blocks than the image's.
#
# vm: --smp 2 --mem 1G --timeout 1800

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

# built with the compiler's checks
export ASAN_OPTIONS=detect_leaks=1:exitcode=99 UBSAN_OPTIONS=print_stacktrace=1
cowsetup() { /usr/local/bin/cowsetup-asan "$@"; }
dev=/dev/mapper/t
out='' # what exits() leaves
mkdir m

# disk FILE SIZE COMMAND...: makes a filesystem on a file with COMMAND, and mounts it on m
disk() {
	disk_file=$1
	rm -f "$1"
	truncate -s "$2" "$1"
	shift 2
	"$@" "$disk_file" >made 2>&1 || diag "$(cat made)"
	disk=$(loopdev "$disk_file")
	mount "$disk" m
}

# undisk: takes that away again; nothing has it open any more
undisk() {
	runs "unmounted: $disk_file" umount m
	losetup -d "$disk"
	rm "$disk_file"
}

# written: MiB that the disk has been given since the last call of begin
written() { awk -v since="$begun" '{ printf "%d\n", ($7 - since) / 2048 }' "/sys/block/${disk#/dev/}/stat"; }
begin() { begun=$(awk '{ print $7 }' "/sys/block/${disk#/dev/}/stat"); }

# below WANT NAME: passes when fewer MiB were written
below() {
	[ "$(written)" -lt "$1" ]
	ok $? "$2" || diag "$(written) MiB"
}

truncate -s 16M golden.img
cowtest fill golden.img >/dev/null

# --- btrfs --------------------------------------------------------------------------------------------------

# nocow FILE NAME: passes when btrfs writes the file in its place
nocow() {
	like "$(lsattr "$1")" '^[^ ]*C[^ ]* ' "not copied on write: $2"
}

disk btrfs.img 160M mkfs.btrfs -q -f -m single
exits 0 "btrfs: format" cowsetup format golden.img m/formatted
nocow m/formatted format
truncate -s 1M m/blank
exits 0 "btrfs: format of what is blank" cowsetup format golden.img m/blank
nocow m/blank "a file that was blank"
exits 0 "btrfs: format --force" cowsetup format --force golden.img m/formatted
nocow m/formatted "format --force"
cowsetup pack m/formatted packed
exits 0 "btrfs: unpack" cowsetup unpack packed m/unpacked
nocow m/unpacked unpack
cowsetup format --format 1 golden.img one
exits 0 "btrfs: upgrade to a new file" cowsetup upgrade --rdo golden.img one m/upgraded
nocow m/upgraded "upgrade to a new file"
chattr +c m
echo "t /tmp/golden.img /tmp/m/created create" >cowtab
exits 0 "btrfs: create in cowtab, in a directory whose files are compressed" \
	cowsetup assemble --cowtab cowtab t
nocow m/created "create in cowtab"
cowsetup close t
chattr -c m
rm -f m/* one packed

exits 0 "btrfs: open" cowsetup open golden.img m/mine.cow t
nocow m/mine.cow open
cp golden.img want
cowtest io want 0 8M --write --stamp 1 >/dev/null
runs "btrfs: write 8 MiB" cowtest io $dev 0 8M --write --stamp 1
runs "btrfs: sync" cowsetup sync t
dd if=/dev/zero of=m/full bs=1M 2>/dev/null
sync
dd if=/dev/zero of=m/full2 bs=4k 2>/dev/null
sync
cowtest io want 0 8M --write --stamp 2 >/dev/null
runs "btrfs, full: write the same again" cowtest io $dev 0 8M --write --stamp 2
exits 0 "btrfs, full: sync" cowsetup sync t
exits 0 "btrfs, full: close" cowsetup close t
rm m/full m/full2
cowsetup open golden.img m/mine.cow t
runs "btrfs: it has what was written when it was full" cmp want $dev
cowsetup close t
undisk

# --- no sparse files ----------------------------------------------------------------------------------------

for type in vfat exfat; do
	disk $type.img 100M mkfs.$type
	begin
	exits 0 "$type: open" cowsetup open golden.img m/mine.cow t
	says 'm/mine.cow: there are no sparse files on its filesystem: it takes all of its 16.[0-9]* MiB at once' \
		"$type: says that it takes its space"
	below 27 "$type: its 16 MiB are written once"
	cp golden.img want
	cowtest io want 1M 2M --write --stamp 1 >/dev/null
	runs "$type: write" cowtest io $dev 1M 2M --write --stamp 1
	runs "$type: read" cmp want $dev
	exits 0 "$type: close" cowsetup close t
	cowsetup open golden.img m/mine.cow t >said 2>&1
	runs "$type: read again" cmp want $dev
	is "$(grep -c sparse said)" 0 "$type: not a word of it when the cowfile is there"
	cowsetup close t
	sync
	begin
	exits 0 "$type: format --force" cowsetup format --force golden.img m/mine.cow
	below 27 "$type: its 16 MiB are zeroed once"
	runs "$type: in order" cowfile dump --rdo golden.img m/mine.cow

	truncate -s 200M big.img
	exits 4 "$type: more than there is room for" cowsetup open big.img m/big.cow t
	says 'takes 1?[0-9.]* MiB more at once: [0-9.]* MiB are free|cannot have a file of 200 MiB' "$type: says so"
	is "$(ls m)" mine.cow "$type: and leaves nothing"
	undisk
done

disk vfat.img 100M mkfs.vfat
truncate -s 5G big.img
sync
begin
exits 4 "vfat: longer than a file can be" cowsetup open big.img m/big.cow t
says 'cannot have a file of 5' "vfat: says so"
is "$(ls m)" '' "vfat: and leaves nothing"
below 1 "vfat: and writes nothing"
undisk

# interrupted in the middle: all writes take a while
truncate -s 400M under.img
under=$(loopdev under.img)
mkfs.vfat -F 32 "$under" >/dev/null 2>&1
dmsetup create slow --table "0 $(sectors "$under") delay $under 0 0 $under 0 400"
mount /dev/mapper/slow m
disk=$under
truncate -s 300M big.img
for kind in missing blank; do
	[ $kind = missing ] || { truncate -s 1M m/mine.cow; sync; }
	begin
	/usr/local/bin/cowsetup open --progress-frequency 1 big.img m/mine.cow t >said 2>&1 &
	for _ in $(seq 600); do
		grep -q '^Progress' said && break
		sleep 0.1
	done
	kill -INT $!
	wait $!
	is $? 1 "vfat, $kind: interrupted"
	like "$(cat said)" 'm/mine.cow: interrupted' "vfat, $kind: says so"
	below 290 "vfat, $kind: before its 300 MiB were written"
	if [ $kind = missing ]; then
		is "$(ls m)" '' "vfat, $kind: leaves nothing"
	else
		is "$(stat -c %s m/mine.cow)" 1048576 "vfat, $kind: as long as it was"
		runs "vfat, $kind: and blank" cmp -n 1048576 m/mine.cow /dev/zero
	fi
done
umount m
dmsetup remove slow
losetup -d "$under"
rm under.img big.img

# --- overlayfs over what has no direct I/O -------------------------------------------------------------------

# direct: whether the loop devices of rdo and of the cowfile have direct I/O
direct() {
	dmsetup table t | awk '{ print $4, $5 }' | tr ' ' '\n' | while read -r number; do
		cat "/sys/dev/block/$number/loop/dio"
	done | tr '\n' ' '
}

# used NAME: the device t can be written and read, and closed, and opened again
used() {
	cp golden.img want
	cowtest io want 1M 2M --write --stamp 1 >/dev/null
	runs "$1: write" cowtest io $dev 1M 2M --write --stamp 1
	runs "$1: sync" cowsetup sync t
	echo 3 >/proc/sys/vm/drop_caches
	runs "$1: read" cmp want $dev
	exits 0 "$1: close" cowsetup close t
}

mkdir lower upper tmpfs
mkdir lower/in
cp golden.img lower/in
mksquashfs lower/in lower.sq -quiet -no-progress >/dev/null
rm -r lower/in
mount -t squashfs lower.sq lower
mount -t tmpfs tmpfs upper
mkdir upper/u upper/w
mount -t overlay overlay -o lowerdir=lower,upperdir=upper/u,workdir=upper/w m
exits 0 "overlayfs over squashfs and tmpfs: open" cowsetup open m/golden.img m/mine.cow t
used "overlayfs over squashfs and tmpfs"
exits 0 "overlayfs: open it again" cowsetup open m/golden.img m/mine.cow t
runs "overlayfs: it is all there" cmp want $dev
cowsetup close t
umount m
umount lower
umount upper

disk ext4.img 100M mkfs.ext4 -q
cp golden.img m
exits 0 "ext4: open" cowsetup open m/golden.img m/mine.cow t
is "$(direct)" "1 1 " "ext4: direct I/O"
cowsetup close t
undisk

# --- blocks ---------------------------------------------------------------------------------------------------

# an image that can be used with blocks of 512 bytes only: a partition table, FAT with such sectors, xfs
truncate -s 400M disk.img
echo '2048,65536
67584,' | sfdisk -q disk.img
loop=$(loopdev disk.img --partscan)
partx -u "$loop"
mkfs.vfat -S 512 "${loop}p1" >/dev/null 2>&1
mkfs.xfs -q -s size=512 "${loop}p2"
losetup -d "$loop"
settles '' "the image is nobody's" losetup --noheadings --associated disk.img

parts=$(partx --noheadings --output SECTORS disk.img | tr -d ' \n')

# linear NAME NUMBER: makes a device of a partition
linear() {
	dmsetup create "$1" --table "0 $(partx --noheadings --output SECTORS --nr "$2" $dev | tr -d ' ') linear $dev \
		$(partx --noheadings --output START --nr "$2" $dev | tr -d ' ')"
}

# blocks NAME COW: what is in the image can be used with this cow device, of blocks of 4096 bytes
blocks() {
	is "$(blockdev --getss "$2")" 4096 "$1: blocks of 4096 bytes"
	exits 0 "$1: open" cowsetup open disk.img "$2" t
	is "$(blockdev --getss $dev)" 512 "$1: the device has those of the image"
	is "$(partx --noheadings --output SECTORS $dev | tr -d ' \n')" "$parts" "$1: its partitions are found"
	for part in 1 2; do
		linear p$part $part
		runs "$1: mount partition $part" mount /dev/mapper/p$part m
		echo "$1" >m/note
		umount m
	done
	is "$(cowsetup status --json t | grep -c '"free_of": "filesystem"')" 0 "$1: the node's filesystem is not the cowfile's"
	dmsetup remove p1
	dmsetup remove p2
	exits 5 "$1: the cow device is in use" cowsetup open disk.img "$2" t2
	exits 0 "$1: close" cowsetup close t
	runs "$1: the cow device is free again" cowsetup check --rdo disk.img "$2"
	runs "$1: in order" cowfile dump --rdo disk.img "$2"
	exits 0 "$1: open again" cowsetup open disk.img "$2" t
	for part in 1 2; do
		linear p$part $part
		mount -o ro /dev/mapper/p$part m
		is "$(cat m/note)" "$1" "$1: what was written to partition $part"
		umount m
		dmsetup remove p$part
	done
	exits 0 "$1: close it again" cowsetup close t
}

modprobe zram
echo 500M >/sys/block/zram0/disksize
blocks zram /dev/zram0
modprobe -r zram
truncate -s 500M cow.img
cow=$(losetup --find --show --sector-size 4096 cow.img)
blocks "a disk" "$cow"
losetup -d "$cow"

# a thin one: a write that has no space must fail itself, and so nothing lies between
modprobe dm_thin_pool
truncate -s 8M data.img
truncate -s 8M meta.img
data=$(losetup --find --show --sector-size 4096 data.img)
meta=$(loopdev meta.img)
dmsetup create pool --table "0 16384 thin-pool $meta $data 128 0 1 error_if_no_space"
dmsetup message pool 0 "create_thin 0"
dmsetup create thin --table "0 819200 thin /dev/mapper/pool 0"
dmsetup create above --table "0 819200 linear /dev/mapper/thin 0"
exits 0 "thin: open" cowsetup open golden.img /dev/mapper/above t
says 'above: blocks of 4096 bytes, those of golden.img are 512: .*cannot be mounted' "thin: says what cannot be had"
is "$(blockdev --getss $dev)" 4096 "thin: blocks of 4096 bytes"
no_space "thin: a write without space fails itself" cowtest io $dev 0 16M --write --stamp 1
exits 0 "thin: close" cowsetup close t
dmsetup remove above
dmsetup remove thin
dmsetup remove pool
losetup -d "$data"
losetup -d "$meta"

# the other way round: blocks of 4096 bytes in rdo stay so
rm cow.img
truncate -s 500M cow.img
loop=$(losetup --find --show --sector-size 4096 --read-only golden.img)
cow=$(loopdev cow.img)
exits 0 "rdo of 4096: open" cowsetup open "$loop" "$cow" t
is "$(blockdev --getss $dev)" 4096 "rdo of 4096: so has the device"
is "$(dmsetup table t | awk '{ print $5 }')" "$(cat /sys/block/"${cow#/dev/}"/dev)" "rdo of 4096: nothing lies between"
cowsetup close t
losetup -d "$loop"
losetup -d "$cow"

# --- containers -----------------------------------------------------------------------------------------------

cp golden.img packed.qcow2
printf 'QFI\373\0\0\0\003' | dd of=packed.qcow2 conv=notrunc status=none
exits 4 "qcow2: open" cowsetup open packed.qcow2 packed.cow t
says 'this is a qcow2 image, and .* qemu-img convert -f qcow2 -O raw packed.qcow2 NEW .* --force takes it as it is' \
	"qcow2: says what to do"
is "$(ls packed.cow 2>/dev/null; losetup --noheadings --associated packed.qcow2)" '' "qcow2: leaves nothing"
exits 0 "qcow2: open --force" cowsetup open --force packed.qcow2 packed.cow t
cowsetup close t
exits 0 "qcow2: open it again, with the cowfile that was made for it" cowsetup open packed.qcow2 packed.cow t
says 'Warning: packed.qcow2: this is a qcow2 image' "qcow2: with a warning"
cowsetup close t

# --- an image that changes where the fingerprint has no sample -----------------------------------------------

truncate -s 64M parts.img
echo 2048,65536 | sfdisk -q parts.img
E2FSPROGS_FAKE_TIME=1577836800 mkfs.ext4 -q -F -E offset=1048576 parts.img 32M >/dev/null 2>&1
touch -d @1577836900 parts.img
# opened NAME: opens and closes a device
opened() {
	exits 0 "changed image: open, $1" cowsetup open parts.img parts.cow t
	cowsetup close t
}
opened "as it is"
is "$(cowhead parts.cow rdomtime)" 1577836900 "changed image: its time is noted"
opened "again"
is "$(echo "$out" | grep -c modified)" 0 "changed image: no warning as long as it is the same"
touch -d @1600000000 parts.img
opened "with another time"
says 'Warning: parts.cow: parts.img has been modified since' "changed image: there is a warning"
is "$(cowhead parts.cow rdomtime)" 1600000000 "changed image: and the new time is noted"
opened "with another time, again"
is "$(echo "$out" | grep -c modified)" 0 "changed image: no second warning"
E2FSPROGS_FAKE_TIME=1600000100 tune2fs -L changed 'parts.img?offset=1048576' >/dev/null
touch -d @1600000200 parts.img
for round in once "and again"; do
	opened "written in its partition, $round"
	says 'parts.img has been modified since .* the filesystem in partition 1 was written' \
		"changed image: there is a warning, $round"
done

done_testing
