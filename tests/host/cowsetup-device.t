#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup's offline commands on block devices, and what they refuse since it is in use. Needs root and loop devices.

# shellcheck source=tests/host/lib.sh
. "${0%/*}/lib.sh"

[ "$(id -u)" = 0 ] || plan skip_all "not root"
truncate -s 1M probe
probe=$(losetup --find --show probe 2>/dev/null) || plan skip_all "no loop devices here"
losetup --detach "$probe"

loops=()
trap 'for loop in "${loops[@]}"; do losetup --detach "$loop"; done; rm -rf "$tmp"' EXIT

# attach VARIABLE FILE [OPTION...]: the loop device of FILE
attach() {
	local -n tap_variable=$1
	shift
	tap_variable=$(losetup --find --show "$@") || exit 1
	loops+=("$tap_variable")
}

# settle: what was written by way of a loop device is in its file
settle() { sync -f .; for loop in "${loops[@]}"; do blockdev --flushbufs "$loop"; done; }

image rdo 20000256
tr '\0' x </dev/zero | head -c 24M >dirt # a device that was used for something else
cp dirt cow
rdo='' cow=''
attach rdo rdo
attach cow cow

for arguments in "--format 1" "--format 2" "--mapunit 64K"; do
	# shellcheck disable=SC2086
	exits 5 "a device that holds something: $arguments" cowsetup format $arguments "$rdo" "$cow"
	# shellcheck disable=SC2086
	exits 0 "format --force: $arguments" cowsetup format --force $arguments "$rdo" "$cow"
	settle
	runs "in order: $arguments" cowfile dump --rdo rdo cow
	exits 0 "no faults: $arguments" cowsetup check --rdo "$rdo" "$cow"
	[[ $out != *note* ]]
	ok $? "nor notes: $arguments"
	cp dirt cow
	blockdev --flushbufs "$cow"
done

# pack from and unpack to a device, between merges
for arguments in "--format 1 --units 0,5-90,10000-12000/3,last" "--units 0,5-90,1000-1200/3,last"; do
	# shellcheck disable=SC2086
	makecow c $arguments
	cowfile image --rdo rdo --cow c --out wanted
	cp rdo pristine
	rm -f p
	cowsetup pack c p
	exits 5 "unpack over something: $arguments" cowsetup unpack p "$cow"
	exits 0 "unpack --force: $arguments" cowsetup unpack --force p "$cow"
	settle
	runs "in order: unpacked, $arguments" cowfile dump --rdo rdo cow
	cowfile image --rdo rdo --cow cow --out image
	runs "the same: unpacked, $arguments" cmp image wanted
	exits 0 "pack from a device: $arguments" cowsetup pack "$cow" p2
	runs "the same: packed, $arguments" cmp p p2
	rm -f p2
	exits 0 "merge: $arguments" cowsetup merge -q "$rdo" "$cow"
	settle
	cmp -n "$(stat -c %s wanted)" rdo wanted
	ok $? "has it all: $arguments"
	runs "in order: merged, $arguments" cowfile dump --rdo rdo cow
	is "$(cowhead cow popcount)" 0 "empty: $arguments"
	exits 0 "no faults: merged, $arguments" cowsetup check --rdo "$rdo" "$cow"
	[[ $arguments == *"format 1"* && $out == *note* ]]
	ok $((! $?)) "nothing that a repair would find: $arguments"
	cp pristine rdo
	cp dirt cow
	blockdev --flushbufs "$rdo" "$cow"
done

# a damaged bitmap sector, on a device
cowfile make --rdo rdo --cow d --units 0-4000/7,4500
cowsetup pack d p3
cowsetup unpack --force p3 "$cow"
printf '\377' | dd of="$cow" bs=1 seek=$((4096 + 508)) conv=notrunc status=none
exits 4 "a damaged bitmap sector" cowsetup check "$cow"
exits 4 "is not repaired" cowsetup repair "$cow"
says 'on a device nothing tells what it should be' "and why"
exits 0 "but with --force" cowsetup repair --force "$cow"
settle
runs "in order: repaired" cowfile dump --rdo rdo cow
is "$(cowhead cow units)" "$(cowhead d units)" "taken as it was"

# upgrade
makecow c --format 1 --units 3-9
cowsetup pack --force c p
cowsetup unpack --force p "$cow"
exits 4 "upgrade in place, on a device" cowsetup upgrade --rdo "$rdo" "$cow"
says 'name a file or a device for the new cowfile' "says what to do"
exits 0 "upgrade to a file" cowsetup upgrade --rdo "$rdo" "$cow" new
runs "in order: upgraded to a file" cowfile dump --rdo rdo new
exits 5 "upgrade to a device that holds a cowfile" cowsetup upgrade --rdo "$rdo" c "$cow"
exits 0 "upgrade to a device with --force" cowsetup upgrade --force --rdo "$rdo" c "$cow"
settle
runs "in order: upgraded to a device" cowfile dump --rdo rdo cow
exits 0 "format 1 on a device" cowsetup format --force --format 1 "$rdo" "$cow"
exits 0 "upgrade in place, no unit used" cowsetup upgrade --rdo "$rdo" "$cow"
settle
runs "in order: upgraded in place" cowfile dump --rdo rdo cow
is "$(cowhead cow format)" 2 "format 2"

# a filesystem whose mark is far inside: reiserfs at 64 KiB
cp dirt cow
blockdev --flushbufs "$cow"
perl -e 'open my $f, "+<", $ARGV[0] or die; seek $f, 65536, 0;
	print $f pack "x12 V x28 v x6 a12 x100", 8211, 4096, "ReIsEr2Fs"' "$cow"
is "$(blkid -p -o value -s TYPE "$cow")" reiserfs "a mark inside"
exits 0 "format over a mark inside" cowsetup format --force "$rdo" "$cow"
settle
is "$(blkid -p -o value -s TYPE "$cow" 2>&1)" "" "is not a filesystem any more"

# too small
truncate -s 8192 tiny
tiny=''
attach tiny tiny
exits 0 "room for nothing but the bitmap" cowsetup format "$rdo" "$tiny"
says 'has room for changes in the first 0 bytes of the device only' "which is told"
exits 0 "and no fault" cowsetup check "$tiny"
truncate -s 4096 tinier
attach tiny tinier
exits 4 "not even for that" cowsetup format "$rdo" "$tiny"
says 'too small for its own bitmap' "which is said"

# --- In use -------------------------------------------------------------------------------------------------

cowfile make --rdo rdo --cow c --units 3
exits 5 "merge into a file that is attached to a loop device" cowsetup merge -q rdo c
says "attached to $rdo" "says to which"
cp rdo free
exits 0 "not attached" cowsetup merge -q free c
for command in "repair cow" "format --force rdo cow" "unpack --force p3 cow" "pack cow p4" "merge -q free cow" \
	"upgrade --rdo free cow"; do
	# shellcheck disable=SC2086
	exits 5 "a cowfile that is attached to a loop device: $command" cowsetup $command
done
exits 0 "but check looks" cowsetup check cow
says "note: in use \\(attached to $cow\\)" "and tells"

# held, as by a mounted filesystem or device-mapper
perl -e 'use Fcntl; sysopen my $f, $ARGV[0], O_RDWR | O_EXCL or die "$!"; open my $ready, ">", "ready"; sleep 60' "$rdo" &
holder=$!
while [ ! -e ready ]; do sleep 0.05; done
cowfile make --rdo free --cow c --units 3
exits 5 "merge into a device that is held" cowsetup merge -q "$rdo" c
says "$rdo: in use" "says so"
kill "$holder"
wait "$holder" 2>/dev/null

mkfs=$(command -v mke2fs || echo /sbin/mke2fs)
if [ -x "$mkfs" ] && truncate -s 8M fs && "$mkfs" -q -F fs 2>/dev/null; then
	fs=''
	attach fs fs
	mkdir mnt
	out=$(unshare -m sh -c "mount '$fs' mnt && '$tool' format --force '$rdo' '$fs'" 2>&1)
	is "$?" 5 "a device that is mounted"
	says "mounted on .*/mnt" "says where"
else
	skip "no mke2fs"
	skip "no mke2fs"
fi

done_testing
