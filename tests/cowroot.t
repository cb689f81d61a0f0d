#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --file "$(dirname "$test")/../initramfs:/usr/lib/cowsetup"
#
# What cowroot= on the kernel's command line may say, see cowroot(7), without a system that boots from it: devices, files on
# them, a file in a filesystem in a file, changes in RAM, and what it refuses. tests/slow/boot.t boots systems by it.

# shellcheck source=tests/lib.sh
. /cowloop/tests/lib.sh
# shellcheck source=initramfs/cowroot
. /usr/lib/cowsetup/cowroot
cd /tmp || exit 1

# opens NAME ARGUMENT; refuses REGEX NAME ARGUMENT
opens() {
	# shellcheck disable=SC2034 # the library's
	cowroot_argument=$2
	cowroot_open >out 2>&1
	ok $? "$1" || diag "$(cat out)"
}
refuses() {
	# shellcheck disable=SC2034 # the library's
	cowroot_argument=$3
	! cowroot_open >out 2>&1
	ok $? "$2"
	like "$(cat out)" "$1" "and it says why"
	is "$(grep -c " $cowroot_dir/" /proc/mounts)" 0 "and nothing stays mounted"
}
# closes NAME: having written to it
closes() {
	runs "it can be written" dd if=/dev/urandom of="/dev/mapper/$1" bs=4k count=4 conv=fsync,nocreat
	cowsetup close "$1"
	for dir in image rdo cow; do
		! grep -q " $cowroot_dir/$dir " /proc/mounts || umount "$cowroot_dir/$dir"
		losetup -D
	done
}

modprobe brd rd_nr=3 rd_size=$((48 * 1024))
modprobe ext4
truncate -s 8M root.img
mke2fs -q -t ext4 root.img
mkdir -p in out-of
cp root.img in
truncate -s 16M live.img
mke2fs -q -t ext4 -d in live.img
cp live.img out-of
mke2fs -q -t ext4 -L LIVE -d out-of /dev/ram0
mke2fs -q -t ext4 -L changes -d in /dev/ram1
sum=$(sha256sum </dev/ram0)

opens "changes in RAM" '/dev/ram0,tmpfs:32M,name=t'
like "$(cowsetup status t)" '/run/cowroot/cow/t.cow' "in a tmpfs"
is "$(stat -c %a /run/cowroot /run/cowroot/cow /run/cowroot/cow/t.cow | xargs)" "700 700 600" "which is for root alone"
like "$(grep ' /run/cowroot/cow ' /proc/mounts)" 'nosuid,nodev' "and has neither set-uid programs nor devices"
is "$(ls /run/cowsetup/named)" t "links lead to a device that the kernel's command line names"
closes t
opens "an image in a filesystem in a file, and a cowfile" 'LABEL=LIVE:/live.img:/root.img,LABEL=changes:/mine.cow,limit=4M,reserve=1M,name=t'
is "$(blockdev --getsize64 /dev/mapper/t)" $((8 << 20)) "it is that image"
is "$(grep -c ' /run/cowroot/[a-z]* .*nosuid,nodev' /proc/mounts)" 3 "all of it is mounted nosuid and nodev"
is "$(stat -c %a /run/cowroot /run/cowroot/cow/mine.cow | xargs)" "700 600" "in a directory for root alone, a file for root alone"
closes t
opens "and again" 'LABEL=LIVE:/live.img:/root.img,LABEL=changes:/mine.cow,name=t'
like "$(cowsetup status t)" 'Modified +16' "with its changes"
closes t
opens "a device of its own" '/dev/ram0:/live.img,/dev/ram2,name=t'
closes t
opens "both on the same filesystem" 'LABEL=changes:/root.img,LABEL=changes:/other.cow,name=t'
closes t
opens "read-only" 'LABEL=changes:/root.img,LABEL=changes:/other.cow,name=t,read-only'
is "$(blockdev --getro /dev/mapper/t)" 1 "it takes no writes"
like "$(grep " $cowroot_dir/cow " /proc/mounts)" ' ro,' "nor does what holds the cowfile"
fails "nothing can be written" dd if=/dev/zero of=/dev/mapper/t bs=4k count=1 oflag=direct
cowsetup close t
umount "$cowroot_dir/cow"
is "$(sha256sum </dev/ram0)" "$sum" "nothing has been written to the medium"

# as a filesystem of the network may have it, whose server takes root for somebody else
debugfs -w -R 'set_inode_field /other.cow uid 1000' /dev/ram1 2>out || diag "$(cat out)"
refuses 'other.cow: belongs to .*cowroot=: force' "a cowfile of somebody else's" 'LABEL=changes:/root.img,LABEL=changes:/other.cow,name=t'
opens "with force" 'LABEL=changes:/root.img,LABEL=changes:/other.cow,name=t,force'
closes t

mkdir "in/a, b"
cp root.img "in/a, b/it's: root.img"
mke2fs -q -F -t ext4 -L 'my, changes' -d in /dev/ram1
opens "names with what an argument cannot have" \
	'LABEL=my\054\040changes:/a\054\040b/it\047s\072\040root.img,LABEL=my\054\040changes:/a\054\040b/my\040\134.cow,name=t,label=a\040\042b\042'
like "$(cowsetup status t)" "/run/cowroot/cow/a, b/it's: root.img" "the image is that"
like "$(cowsetup status t)" '/run/cowroot/cow/a, b/my \\\.cow' "and the cowfile"
is "$(cowhead '/run/cowroot/cow/a, b/my \.cow' label)" 'a "b"' "with that label"
closes t
cp -r "in/a, b" 'out of'
truncate -s 30M 'live 1.img'
mke2fs -q -t ext4 -d 'out of' 'live 1.img'
mkdir disk
mount /dev/ram1 disk
rm -r disk/a*
cp 'live 1.img' disk
umount disk
opens "an image in an image, likewise" 'LABEL=my\054\040changes:/live\0401.img:/it\047s\072\040root.img,tmpfs:32M,name=t'
closes t

refuses 'expected behind' "a \\ that stands for nothing" 'LABEL=a\x20b,tmpfs'
refuses 'expected behind' "nor does one at the end" '/dev/ram0:/live.img:/root.img\,tmpfs'
refuses 'expected cowroot=RDO,COW' "one half only" '/dev/ram0'
refuses '"limits=4M" is no option' "an option there is not" '/dev/ram0,tmpfs,limits=4M'
refuses 'no such device after 1 tries' "a device there is not" 'LABEL=none,tmpfs,timeout=1'
refuses 'expected a cowfile there' "a cow device with a filesystem" '/dev/ram0,/dev/ram1'
refuses 'expected a filesystem there' "a file on what has no filesystem" '/dev/ram2:/root.img,tmpfs'
refuses 'that could be mounted' "an image that is not there" '/dev/ram0:/none.img:/root.img,tmpfs'
refuses 'none.img' "one that is not in it" '/dev/ram0:/live.img:/none.img,tmpfs'
is "$(losetup --list --noheadings)" '' "nor is anything attached"

# --- What initramfs-tools runs ------------------------------------------------------------------------------

mkdir /scripts /conf
cat >/scripts/functions <<'END'
wait_for_udev() { :; }
panic() { echo "panic: $*"; exit 1; }
END

# local_top CMDLINE: as if the kernel had been given that
# shellcheck disable=SC2317 # exits calls it
local_top() {
	echo "$1" >cmdline
	: >/conf/param.conf
	mount --bind cmdline /proc/cmdline
	sh /usr/lib/cowsetup/initramfs-tools/local-top
	set -- $?
	umount /proc/cmdline
	return "$1"
}

exits 0 "without cowroot= nothing happens" local_top 'root=/dev/sda1 ro quiet'
is "$(cat /conf/param.conf)$(dmsetup ls --target cowloop)" 'No devices found' "nothing at all"
exits 0 "with it, a device is made" local_top 'root=/dev/sda1 cowroot=/dev/sda2,none ro cowroot=/dev/ram0,tmpfs:32M'
is "$(cat /conf/param.conf)" 'ROOT=/dev/mapper/root' "which is the root filesystem's; the last one counts"
closes root
exits 0 "with keep-root as well" local_top 'root=/dev/mapper/vg-root cowroot=/dev/ram0,tmpfs:32M,name=pv,keep-root ro'
is "$(cat /conf/param.conf)" '' "but that is another"
closes pv
exits 1 "what is not right ends in initramfs's shell" local_top 'cowroot=/dev/ram0'
says "panic: The root filesystem's device cannot be made" "which says why"

done_testing
