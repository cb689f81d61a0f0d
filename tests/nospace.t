#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G
#
# Cow devices that are full: one that ends early, a thin pool, files on full filesystems, and dm-nth, which says so when
# it is told to. First writes fail with ENOSPC and leave no trace; all else goes on, and so do they when there is room.
# Then the same for what the metadata needs: bitmap blocks that were never written, commits, and the head.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

ONLY=
case ${1:-} in
ONLY=*) ONLY=${1#*=} ;; # one of the kinds below: ONLY='ext2 on'
esac

modprobe brd rd_nr=4 rd_size=$((512 * 1024))
UNITS=3072
dmsetup create rdo --table "0 $((UNITS * 8)) linear /dev/ram0 0"
rdo=/dev/mapper/rdo dev=/dev/mapper/t
cowtest fill $rdo >/dev/null
rm -f base.model
cowtest run $rdo --model base.model --ops 0 >/dev/null
stamp=0
mkdir mnt

# part UNIT: writes a part of a unit
part() {
	stamp=$((stamp + 1))
	cowtest io $dev $(($1 * unit_size + 512)) 512 --write --stamp $stamp --model model
}
open() { cowopen t $rdo "$cow" "$@" || { diag "$(dmesg | tail -n 3)"; echo 'Bail out! no device'; exit 1; }; }

# fill: writes of several sizes, of which none is in two MiB, from unit 0 on until there is no space, not even for one
# unit more; $end is the first that has none
fill() {
	end=0 mib=$((1048576 / unit_size))
	for size in $((mib * 5 / 9)) $((mib / 19 + 1)) 1; do
		while count=$size left=$((mib - end % mib)) && { [ $count -le $left ] || count=$left; } &&
			[ $((end + count)) -le $total ] && out=$(put $end $count 2>&1); do
			end=$((end + count))
		done
	done
}

# full NAME [OPTION...]: a device over $cow, which has room for some units; room makes some more
full() {
	name=$1
	shift
	unit_size=4096 total=$UNITS
	case " $* " in
	*' format:1 '*) unit_size=1024 total=$((UNITS * 4)) ;;
	*' mapunit:65536 '*) unit_size=65536 total=$((UNITS / 16)) ;;
	esac
	cp base.model model
	open "$@"
	fill
	like "$out" 'ENOSPC' "$name: full after $end units of $total"
	ok $((end < total / 30 || end > total - total / 30)) "$name: which is some and not all"
	is "$(cowstat t used mode)" "$end out_of_space" "$name: they are used, mode out_of_space"
	no_space "$name: no space for the next unit" put "$end"
	no_space "$name: nor for a part of it" part "$end"
	no_space "$name: nor far from there" put $((total - 8)) 2
	no_space "$name: nor with FUA" put $((total - 10)) 1 --fua
	like "$(blkdiscard --zeroout -o $((end * unit_size)) -l 64K $dev 2>&1)" 'No space left' "$name: nor for zeroes"
	runs "$name: a rewrite" put 0 64
	runs "$name: rewrites of parts" part 70
	runs "$name: with FUA" put $((end - 1)) 1 --fua
	runs "$name: a flush" cowtest io $dev --flush
	runs "$name: sync" dmsetup message t 0 sync
	is "$(cowstat t used state mode)" "$end clean out_of_space" "$name: nothing more is used"
	# what the cowfile really has
	echo 3 >/proc/sys/vm/drop_caches
	runs "$name: all is right" cowtest verify $dev --model model
	runs "$name: it can be closed" dmsetup remove t
	open
	is "$(cowstat t used)" "$end" "$name: and opened"
	runs "$name: all is right then" cowtest verify $dev --model model
	no_space "$name: still no space" put "$end" 4
	room
	runs "$name: there is room: a write" put "$end" 4
	runs "$name: and a part of a unit" part $((total - 8))
	is "$(cowstat t used)" $((end + 5)) "$name: they are used"
	next=$((end + 1))
	await writes_on
	is "$(cowstat t mode)" rw "$name: mode rw"
	used=$(cowstat t used)
	dmsetup remove t
	is "$(cowhead "$cow" dirty cowused popcount)" "0 $used $used" "$name: the cowfile is good, and clean"
	open
	runs "$name: all is right in the end" cowtest verify $dev --model model
	dmsetup remove t
}
blank() { dd if=/dev/zero of=$cow bs=64K count=1 oflag=direct status=none; }

# after a write that found space, too, the mode may be out_of_space for a while
writes_on() {
	[ "$(cowstat t mode)" != rw ] || return 0
	put "$next"
	next=$((next + 1))
	return 1
}

# --- Data ---------------------------------------------------------------------------------------------------

# wanted NAME: ONLY one of them may be
wanted() { [ -z "$ONLY" ] || [ "$ONLY" = "$1" ]; }

cow=/dev/mapper/cow
room() { turn cow '0 26000 linear /dev/ram1 0'; }
if wanted 'short cow device'; then
	dmsetup create cow --table '0 8195 linear /dev/ram1 0'
	blank
	full 'short cow device'
	dmsetup remove cow
fi

pool() {
	turn data "0 $1 linear /dev/ram3 0" &&
	turn pool "0 $1 thin-pool /dev/ram2 /dev/mapper/data 128 0 1 error_if_no_space"
}
cow=/dev/mapper/thin
room() { pool 16384; }
if wanted 'thin pool'; then
	dmsetup create data --table '0 8192 linear /dev/ram3 0'
	dmsetup create pool --table '0 8192 thin-pool /dev/ram2 /dev/mapper/data 128 0 1 error_if_no_space'
	dmsetup message pool 0 'create_thin 0'
	dmsetup create thin --table "0 $((UNITS * 8 + 2048)) thin /dev/mapper/pool 0"
	full 'thin pool'
	dmsetup remove thin pool data
fi

# filesystem MOUNT-ARGUMENT...: with ballast, and room for a few MiB
filesystem() {
	mount "$@" mnt
	touch mnt/cow
	[ "$kind" != nocow ] || chattr +C mnt/cow
	dd if=/dev/zero of=mnt/ballast bs=1M count=2 status=none
	sync
	left=$(($(df --output=avail -k mnt | tail -n 1) - 5120))
	[ $left -le 0 ] || fallocate -l ${left}K mnt/more 2>/dev/null || head -c ${left}K /dev/zero >mnt/more
	truncate -s $((UNITS * 4096 + 1048576)) mnt/cow
}
room() { rm mnt/ballast; }
# The file is made before the filesystem is full, and so are its attributes.
while read -r kind dio options; do
	wanted "$kind $dio${options:+ $options}" || continue
	case $kind in
	tmpfs) filesystem -t tmpfs -o size=8M none ;;
	ext4) mkfs.ext4 -q -F /dev/ram1 16M && filesystem /dev/ram1 ;;
	ext2) mkfs.ext4 -q -F -O ^extent,^64bit /dev/ram1 16M && filesystem -t ext4 /dev/ram1 ;;
	ext4-data) mkfs.ext4 -q -F /dev/ram1 24M && filesystem -o data=journal /dev/ram1 ;;
	xfs) mkfs.xfs -q -f /dev/ram1 && filesystem /dev/ram1 ;;
	nocow) mkfs.btrfs -q -f /dev/ram1 >/dev/null 2>&1 && filesystem /dev/ram1 ;;
	esac
	if ! cow=$(loopdev mnt/cow "--direct-io=$dio"); then
		skip "$kind has no direct I/O in this kernel"
		umount mnt
		continue
	fi
	is "$(losetup -n -O DIO "$cow" | tr -d ' ')" "$([ "$dio" = off ]; echo $?)" "$kind, direct I/O $dio"
	loop=$cow
	case $options in
	part*)
		# which begins where nothing is aligned but sectors
		echo start=265 | sfdisk -q --no-reread --no-tell-kernel "$loop"
		losetup -d "$loop"
		loop=$(loopdev mnt/cow --partscan "--direct-io=$dio")
		cow=${loop}p1
		options=${options#part}
		;;
	esac
	# shellcheck disable=SC2086 # may be none
	full "$kind, direct I/O $dio${options:+, $options}" $options
	losetup -d "$loop"
	umount mnt
done <<'END'
tmpfs off
tmpfs on
tmpfs off part
ext4 off
ext4 on
ext4 on whole_writes
ext4 on format:1
ext4 on format:1 whole_writes
ext2 on
ext4-data on
xfs off
xfs off format:1
xfs on
xfs on whole_writes
xfs on mapunit:65536 whole_writes
nocow on whole_writes
nocow on format:1 whole_writes
END

done_testing
