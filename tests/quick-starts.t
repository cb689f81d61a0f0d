#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# vm: --file "$(dirname "$test")/../Documentation/quick-starts.md:/cowloop/quick-starts.md"
#
# The quick starts as they stand in Documentation/quick-starts.md: what is in blocks marked sh, a section after the other,
# each command as it is. What they are to lead to is looked at between.

# shellcheck source=tests/lib.sh
. /cowloop/tests/lib.sh
mkdir -p /work && cd /work || exit

# blocks SECTION: the blocks of it, as $block0, $block1...
blocks() {
	local n=-1 in='' section='' line
	block=()
	while IFS= read -r line; do
		case $line in
		'## '*) section=${line#\#\# } ;;
		'```sh') [ "$section" != "$1" ] || { in=1; n=$((n + 1)); block[n]=''; } ;;
		'```') in='' ;;
		*) [ ! "$in" ] || block[n]+=$line$'\n' ;;
		esac
	done </cowloop/quick-starts.md
	[ ${#block[@]} -gt 0 ] || diag "there is no section \"$1\" with commands"
}
# follow NAME N: runs block N, in this shell, so that variables stay; each command has to succeed
follow() {
	local status=0
	trap 'status=1' ERR
	eval "${block[$2]}" >out 2>&1
	trap - ERR
	[ $status = 0 ] && [ "${block[$2]}" ]
	ok $? "$1" || diag "${block[$2]}$(cat out)"
}

# an image: a filesystem with something in it, whose journal is to be replayed
image() {
	truncate -s 64M "$1"
	mke2fs -q -t ext4 "$1"
	debugfs -w -R "write /cowloop/quick-starts.md text" "$1" >/dev/null 2>&1
}

modprobe ext4

# --- Many sessions --------------------------------------------------------------------------------------------

blocks "Many sessions on one image"
image golden.img
sum=$(sha256sum <golden.img)
follow "the image is protected" 0
follow "three sessions" 1
is "$(grep -c '^session[123] ' out)" 3 "are listed"
follow "one is mounted and changed" 2
mount -o ro /dev/mapper/session2 /mnt
[ ! -e /mnt/mine ] && [ -e /mnt/text ]
ok $? "which the others do not see"
umount /mnt
follow "it begins afresh" 3
mount -o ro /dev/mapper/session1 /mnt
[ ! -e /mnt/mine ] && [ -e /mnt/text ]
ok $? "without its changes"
umount /mnt
follow "another is packed" 4
[ -s session2.pack ]
ok $? "into a file"
is "$(sha256sum <golden.img)" "$sum" "and the image is as it was"
for name in session1 session3; do
	cowsetup close $name
done

# --- XFS and btrfs --------------------------------------------------------------------------------------------

modprobe -a xfs btrfs
blocks "XFS and btrfs"
truncate -s 320M xfs.img
mkfs.xfs -q xfs.img
truncate -s 128M btrfs.img
mkfs.btrfs -q btrfs.img >/dev/null
sum=$(sha256sum xfs.img btrfs.img)
follow "two sessions of an XFS" 0
follow "two sessions of a btrfs" 1
for name in x b; do
	touch ${name}1/one ${name}2/two
	sync -f ${name}1 ${name}2
	is "$(findmnt -n -o SOURCE ${name}1) $(findmnt -n -o SOURCE ${name}2)" "/dev/mapper/${name}1 /dev/mapper/${name}2" "$name: each is mounted"
	is "$(ls ${name}1) $(ls ${name}2)" "one two" "and has what was written to it, alone"
	umount ${name}1 ${name}2
done
cowsetup close x1 x2 b1 b2
cowsetup open btrfs.img b2.cow >/dev/null
mount /dev/mapper/b2 b2
is "$(ls b2)" two "a btrfs keeps its UUID when it is opened again"
umount b2
cowsetup close b2
is "$(sha256sum xfs.img btrfs.img)" "$sum" "and the images are as they were"

# --- Evidence -------------------------------------------------------------------------------------------------

blocks "Evidence"
truncate -s 66M evidence.img
echo 'start=2048' | sfdisk -q evidence.img
image part
dd if=part of=evidence.img bs=1M seek=1 conv=notrunc status=none
follow "a disk is opened" 0
follow "a filesystem on it is mounted and changed" 1
follow "and the disk's checksum is what it was" 2
like "$(cat out)" '^evidence.img: OK' "as sha256sum says"
like "$(cowsetup dump case.cow)" 'clean' "the cowfile has the changes"

# --- The real database ----------------------------------------------------------------------------------------

blocks "The real database"
truncate -s 64M volume
mkdir -p /dev/vg /srv/db /var/tmp
ln -s "$(loopdev volume)" /dev/vg/db
mke2fs -q -t ext4 /dev/vg/db
mount /dev/vg/db /srv/db
sqlite3 /srv/db/shop.db "CREATE TABLE orders (n); INSERT INTO orders VALUES (1), (2), (3)"
follow "a writable device in place of the volume" 0
follow "an experiment" 1
is "$(sqlite3 /srv/db/shop.db 'SELECT count(*) FROM orders')" 0 "changes the data"
follow "is dropped" 2
is "$(sqlite3 /srv/db/shop.db 'SELECT count(*) FROM orders')" 3 "and was never there"
umount /srv/db
losetup -d "$(realpath /dev/vg/db)"

done_testing
