#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 2G
#
# A system whose root is on a cowloop device, with a limit and a reserve, while the device fills: what runs goes on,
# programs start, files that are there can be written over, and what is deleted makes room again. The system is this
# one's userland, in a chroot, from an image that stays as it is.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1
dev=/dev/mapper/system
mkdir root under log

# --- The image, and the filesystem for the cowfile -----------------------------------------------------------

modprobe brd rd_nr=1 rd_size=$((128 * 1024))
mkdir tree
cp -a /bin /sbin /lib /lib64 /etc /usr tree
mkdir -p tree/proc tree/dev tree/tmp tree/var/log tree/srv tree/root
rm -rf tree/usr/lib/modules
size=$(($(du -sm tree | cut -f 1) * 5 / 4 + 96))
# a journal for which the reserve has room, whatever the daemon below makes of it
mkfs.ext4 -q -J size=4 -d tree golden.img ${size}M
rm -rf tree
chmod a-w golden.img
golden=$(sha256sum <golden.img)
mkfs.ext4 -q /dev/ram0
mount /dev/ram0 under

limit=$((40 << 20)) reserve=$((6 << 20))
start() {
	runs "$1: it opens" cowsetup open --limit $limit --reserve $reserve golden.img under/system.cow system || exit 1
	mount -o errors=remount-ro $dev root
	mount -t proc proc root/proc
	mount --bind /dev root/dev
}
stop() {
	umount root/dev root/proc
	runs "$1: umount" timeout 100 umount root
	runs "$1: it closes" cowsetup close system
}
# in_root COMMAND...: in that system
# (by env, or the chroot of busybox would take its own version of many)
in_root() { timeout 100 chroot root /usr/bin/env "$@"; }

# --- A daemon, which writes to its log all the time, and synchronizes it ---------------------------------------

daemon() {
	# shellcheck disable=SC2016 # that shell's variables
	chroot root dash -c '
		n=0
		while [ ! -e /tmp/stop ]; do
			n=$((n + 1))
			echo "$n" >/var/log/beat && sync /var/log/beat || echo "$n" >>/dev/kmsg
			echo "$n" >/proc/self/comm
			sleep 0.1
		done' >daemon.log 2>&1 &
	daemon=$!
	until [ -s root/var/log/beat ]; do
		sleep 0.1
	done
}
has_beaten() { [ "$(cat root/var/log/beat)" != "$before" ]; }
# alive NAME: the daemon's log is being written
alive() {
	before=$(cat root/var/log/beat)
	await has_beaten && kill -0 "$daemon"
	ok $? "$1: what ran before runs on, and writes its file" || diag "$(tail daemon.log)"
}

# usable NAME: what one has to be able to do, to help oneself
usable() {
	alive "$1"
	like "$(in_root dmsetup status system)" cowloop "$1: programs start"
	is "$(in_root perl -MPOSIX -e 'print POSIX::floor(2.5)')" 2 "$1: those with libraries, too"
	runs "$1: a file that has been written before can be written over" in_root dd if=/dev/zero of=/var/written bs=4K \
		count=64 conv=notrunc,fsync status=none
	runs "$1: an entry can be made" in_root mkdir "/root/$2"
	runs "$1: and removed" in_root rmdir "/root/$2"
	runs "$1: a file can be renamed" in_root mv /var/written /var/moved
	runs "$1: and back" in_root mv /var/moved /var/written
	runs "$1: that can be synced" in_root sync /var/written
	runs "$1: what belongs to the system is right" in_root sha256sum --quiet -c /root/sums
}

start 'a new system'
# synced: what has not been when it is full may find no space
in_root sh -c 'find /usr/sbin -type f -exec sha256sum {} + >/root/sums && sync /root/sums'
in_root dd if=/dev/urandom of=/var/written bs=4K count=64 conv=fsync status=none
daemon
usable 'with room' dir0

for round in 1 2; do
	name="round $round"
	before=$(cowstat system no_space)
	# which the filesystem itself has room for
	said=$(in_root dd if=/dev/zero of=/srv/fill bs=1M count=60 oflag=direct 2>&1)
	like "$said" 'No space left' "$name: a file fills the device"
	ok $(($(cowstat system no_space) <= before)) "$name: as the counter says"
	usable "$name, full" dir$round
	is "$(findmnt -n -o OPTIONS "$dev" | grep -o '^r[ow]')" rw "$name: the root is still writable"
	runs "$name: the file is deleted" in_root rm /srv/fill
	# for ext4 trims what its last transaction has freed; it tells of the file that found no space, too
	in_root sync -f /srv 2>/dev/null
	runs "$name: the space is given back" in_root fstrim /
	settles rw "$name: mode rw" cowstat system mode
	runs "$name: there is room again" in_root dd if=/dev/urandom of=/srv/file$round bs=1M count=2 conv=fsync status=none
	sums=$sums$(in_root sha256sum /srv/file$round)
done
touch root/tmp/stop
wait $daemon
is "$?" 0 'the daemon has come to its end'

# --- Once more from the start ------------------------------------------------------------------------------------

stop 'down'
start 'up'
is "$(for n in 1 2; do printf %s "$(in_root sha256sum /srv/file$n)"; done)" "$sums" 'up: what was written is there'
runs 'up: so is what belongs to the system' in_root sha256sum --quiet -c /root/sums
stop 'down again'
runs 'it opens to be checked' cowsetup open golden.img under/system.cow system
runs 'e2fsck finds nothing' e2fsck -fn $dev
runs 'and closes' cowsetup close system
is "$(sha256sum <golden.img)" "$golden" 'the image is as it was'

# --- A cowfile that has been deleted --------------------------------------------------------------------------------

rm under/system.cow
start 'without the cowfile'
fails 'the system is as at first' test -e root/srv/file1
stop 'the end'
umount under
done_testing
