#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Random reads, writes, discards and flushes of all sizes and offsets, by one thread and by eight, held against a
# model. In all combinations of formats, units, block sizes and kinds of cow device that differ in what the code does.
# The device is opened again and again, synced, suspended and its table reloaded, and what its cowfile says on disk is
# worked out a second time, independently.
#
# vm: --smp 2 --mem 1G

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

modprobe brd rd_nr=2 rd_size=$((20 * 1024)) max_part=0
dev=/dev/mapper/t

# For format 1, which takes loop devices that write zeroes to discard: on ext4 they do. On tmpfs they can't without making
# a hole, and newer kernels conclude from the first such write that they can't at all.
mkdir ext4
truncate -s 64M fs
mke2fs -q -t ext4 fs && mount -o loop fs ext4 || exit 1

# attach_cow BACKING BLOCK_SIZE: sets $cow, a blank device, and $cow_loop
attach_cow() {
	cow_loop=''
	[ "$format" = 2 ] || ln -s ext4/cow cow
	case $1 in
	ram*)
		cow=/dev/$1
		;;
	file)
		truncate -s 20M cow
		cow=$(loopdev cow --sector-size "$2")
		cow_loop=$cow
		;;
	part)
		# the second partition begins and ends where nothing is aligned but sectors
		truncate -s 24M cow
		cow_loop=$(loopdev cow --sector-size "$2")
		printf 'start=%d, size=8\nstart=%d\n' 256 265 | sfdisk -q --no-reread --no-tell-kernel "$cow_loop"
		losetup -d "$cow_loop"
		cow_loop=$(loopdev cow --sector-size "$2" --partscan)
		cow=${cow_loop}p2
		;;
	esac
}

detach() {
	losetup -d "$rdo"
	[ ! "$cow_loop" ] || losetup -d "$cow_loop"
}

# same: the device is what the model and the cowfile on disk say
same() {
	runs "$name: what the model says" cowtest verify $dev --model model
	cmp $dev image
	ok $? "$name: what the cowfile says"
}

# turn: until the file stop is there
turn() {
	while [ ! -e stop ]; do
		dmsetup message t 0 sync && dmsetup suspend t && dmsetup resume t &&
			dmsetup load t --table "$(cowline "$rdo" "$cow" "format:$format")" && dmsetup resume t || return
	done >turn-out 2>&1
}

# random SEED OPTION...
random() {
	rm -f stop
	turn &
	runs "$name: run $*" cowtest run $dev --model model --base-seed "$base_seed" --discard-permille 60 \
		--unit "$discarded" --seed "$@"
	# shellcheck disable=SC2154 # runs sets it
	diag "$tap_out"
	: >stop
	wait $!
	ok $? "$name: synced, suspended and reloaded meanwhile" || diag "$(cat turn-out)"
	closed
}

# closed: removes the device, which must be in order
closed() {
	used=$(cowstat t used)
	is "$used" "$(cowtest units $dev --model model --unit "$mapunit")" "$name: so many units in use as the model says"
	like "$(cowstat t state mode errors)" '^(clean|dirty) rw 0$' "$name: no error, no change of mode"
	dmsetup remove t
	is "$(cowhead "$cow" format mapunit dirty cowused popcount)" "$format $mapunit 0 $used $used" \
		"$name: a good cowfile, clean, with as many units as the status said"
	cowfile image --rdo rdo --cow "$cow" --out image >out
	ok $? "$name: it is the cowfile of this rdo" || diag "$(cat out)"
	truncate -s "$length" image
}

# trial FORMAT MAPUNIT RDO_BLOCK_SIZE COW_BLOCK_SIZE BACKING SECTORS OPTION...
base_seed=0
trial() {
	name="$*"
	format=$1 mapunit=$2 backing=$5
	rm -f rdo model cow ext4/cow image
	base_seed=$((base_seed + 1))
	cowtest fill rdo --size $(($6 * 512 + 511)) --base-seed $base_seed >/dev/null
	sum=$(sha256sum rdo)
	rdo=$(loopdev rdo -r --sector-size "$3" 2>/dev/null)
	attach_cow "$backing" "$4"
	# what is discarded: units, but in format 1 only where they can be made zeroes
	discarded=$mapunit
	queue=/sys/block/$(basename "${cow_loop:-$cow}")/queue
	[ "$format" = 2 ] || [ "$(cat "$queue/write_zeroes_max_bytes")" != 0 ] || discarded=0
	shift 6

	if ! runs "$name: open a blank one" cowopen t "$rdo" "$cow" "format:$format" "mapunit:$mapunit" "$@"; then
		detach
		return
	fi
	length=$(($(sectors $dev) * 512))
	head -c $length rdo >image
	cmp $dev image
	ok $? "$name: it is rdo"
	random $((base_seed * 10)) --ops 400 --max-bytes 256K

	runs "$name: open it again" cowopen t "$rdo" "$cow" "format:$format"
	same
	random $((base_seed * 10 + 1)) --ops 900 --threads 8 --sync-permille 20

	runs "$name: and again" cowopen t "$rdo" "$cow" "format:$format"
	same
	runs "$name: discard all of it" cowtest io $dev 0 $length --discard --model model --unit "$discarded"
	[ "$discarded" = 0 ] || is "$(cowstat t used)" 0 "$name: nothing is left"
	closed

	runs "$name: for the last time" cowopen t "$rdo" "$cow" "format:$format" read_only
	same
	dmsetup remove t
	is "$(sha256sum rdo)" "$sum" "$name: rdo is as it was"
	detach
}

trial 2 4096 512 512 file 16391
trial 2 4096 512 512 ram0 9001
trial 2 65536 512 512 ram1 12347
trial 2 1048576 512 512 part 10243
trial 2 4096 4096 512 part 8200
trial 2 4096 512 4096 file 10247
trial 2 65536 4096 4096 part 12296
trial 2 1048576 4096 4096 file 10247
dd if=/dev/zero of=/dev/ram0 bs=1M count=20 oflag=direct status=none
trial 1 1024 512 512 file 12345
trial 1 1024 512 512 ram0 9001
trial 1 1024 512 4096 part 10247
trial 1 1024 4096 4096 file 8200

done_testing
