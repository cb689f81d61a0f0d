#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup upgrade: the new cowfile is in order, shows what the old one showed, and after a power cut at any point its
# name leads to one of the two.

# shellcheck source=tests/host/lib.sh
. "${0%/*}/lib.sh"

cc -shared -fPIC -O1 -D_GNU_SOURCE -o cutfiles.so "$top/tests/host/cutfiles.c" -ldl || exit 1
plain=$top/build/tools/cowsetup # the compiler's checks don't like to be preloaded

# add_tail IMAGE: what of rdo is behind the last unit
add_tail() {
	tap_size=$(stat -c %s "$1")
	tail -c +$((tap_size + 1)) rdo >>"$1"
}

# wanted: what a device over c shows, c being of format 1; the tail it leaves out comes from rdo
wanted() {
	cowfile image --rdo rdo --cow c --out wanted
	add_tail wanted
}

# shows NAME FILE: a device over FILE, of format 2, shows the same
shows() {
	runs "in order: $1" cowfile dump --rdo rdo "$2"
	cowfile image --rdo rdo --cow "$2" --out image
	runs "shows the same: $1" cmp image wanted
}

# 2000384: 1953 units of 1024 and a half; 20000768: 19531 and three quarters, 2.4 bitmap sectors of format 2
for size in 2000384 20000256 $((4096 * 4064)) 1024 5120; do
	rm -f rdo
	image rdo "$size"
	all=$((size / 1024 - 1))
	for units in 0-$all/3,last all 0-$all/16 last "" 0-$((all / 2)); do
		[ "$units" ] || [ "$size" -gt 1024 ] || continue
		makecow c --format 1 --units "$units"
		cp c old
		wanted
		name="$size bytes, units $units"
		exits 0 "into a new file: $name" cowsetup upgrade --rdo rdo c new
		shows "$name" new
		runs "the old one is as it was: $name" cmp c old
		rm new
		exits 0 "in its place: $name" cowsetup upgrade --rdo rdo c
		shows "in its place: $name" c
		is "$(cowhead c dirty cowused)" "0 $(cowhead c popcount)" "clean: $name"
		exits 0 "no faults: $name" cowsetup check --rdo rdo c
	done
done

rm -f rdo
image rdo 20000256
makecow c --format 1 --units 0-19000/50,last
wanted
exits 0 "other units, a label" cowsetup upgrade --mapunit 64K --label old --rdo-spec /rdo --rdo rdo c new
shows "64K" new
is "$(cowhead new mapunit label rdospec)" "65536 old /rdo" "as asked for"
# units that are zeroes, and a unit's bits in more than one run
makecow c --format 1 --units 1,4,6,8-9,11 --zero-units 5,7,100
wanted
exits 0 "zero units" cowsetup upgrade --rdo rdo c
shows "zero units" c
chmod 640 c
makecow d --format 1 --units 3
chmod 640 d
ln -s d link
exits 0 "a symbolic link" cowsetup upgrade --rdo rdo link
is "$(stat -c %a d) $(readlink link) $(cowhead d format)" "640 d 2" "is followed; permissions stay"

# --- What it refuses ----------------------------------------------------------------------------------------

makecow c --format 1 --units 3-9
cp c old
image other 20000256
printf x | dd of=other conv=notrunc status=none
exits 1 "without --rdo" cowsetup upgrade c
says 'give the read-only device.*--rdo' "says so: --rdo"
exits 4 "one for the other" cowsetup upgrade --rdo c rdo
says 'rdo: not a cowfile' "says what is wrong: swapped"
says 'c, which --rdo names, is a cowfile; .* upgrade --rdo rdo c' "and what may be meant"
exits 4 "another device" cowsetup upgrade --rdo other c
head -c 1000000 rdo >short
exits 4 "a device of another size" cowsetup upgrade --rdo short c
echo text >there
exits 5 "a file that is there" cowsetup upgrade --rdo rdo c there
is "$(cat there)" text "which is as it was"
cp there replaced
chmod 600 replaced
chmod 644 c
exits 0 "a file that is there, with --force" cowsetup upgrade --force --rdo rdo c replaced
is "$(stat -c %a replaced)" 600 "keeps its permissions"
cp rdo pristine
ln rdo hardlink
ln -s rdo softlink
for new in rdo ./rdo "$PWD/rdo" hardlink softlink; do
	exits 4 "the read-only device for the new cowfile: $new" cowsetup upgrade --force --rdo rdo c "$new"
	says 'is the read-only device' "says so: $new"
done
exits 4 "the read-only device by another name" cowsetup upgrade --rdo softlink c rdo
runs "which is as it was: rdo" cmp rdo pristine
is "$(stat -c %h rdo) $(readlink softlink)" "2 rdo" "by all its names"
exits 1 "the same twice" cowsetup upgrade --rdo rdo c ./c
exits 1 "a unit of format 1" cowsetup upgrade --mapunit 1K --rdo rdo c
exits 4 "a full disk" bash -c "ulimit -f 100; '$tool' upgrade --rdo rdo c"
exec 8<c
flock -s 8
exits 5 "what another cowsetup has" cowsetup upgrade --rdo rdo c
exec 8<rdo
flock -s 8
exits 0 "a read-only device that others read" cowsetup upgrade --rdo rdo c new2
rm new2
flock -x 8
exits 5 "a read-only device that is being written" cowsetup upgrade --rdo rdo c new2
says 'rdo: in use: process [0-9]+ .* has it locked' "says so: written"
[ ! -e new2 ]
ok $? "leaves nothing behind: written"
exec 8<&-
runs "nothing is touched" cmp c old
for arguments in "--dirty" "--packed" "--set cowused=3" "--truncate 10000" "--set version=3"; do
	# shellcheck disable=SC2086
	makecow c --format 1 --units 3-9 $arguments
	cp c old
	exits 4 "a cowfile that is not in order: $arguments" cowsetup upgrade --rdo rdo c
	runs "nothing is touched: $arguments" cmp c old
done
makecow c --units 3
cp c old
exits 0 "format 2" cowsetup upgrade --rdo rdo c
says 'format 2 already' "says so: format 2"
exits 4 "format 2, and another file was wanted" cowsetup upgrade --rdo rdo c copy
says 'format 2 already; copy was not made' "says so: another file"
[ ! -e copy ]
ok $? "there is none"
for option in '--mapunit 64K' '--label x' '--rdo-spec /x'; do
	# shellcheck disable=SC2086
	exits 4 "format 2, and $option was wanted" cowsetup upgrade $option --rdo rdo c
done
says 'format 2 already, and nothing was changed' "says so: options"
runs "nothing is touched: format 2" cmp c old

# --- A power cut at any point -------------------------------------------------------------------------------

rm -f rdo
image rdo 2000384
for units in 0,5-9,200-206/3,last ""; do
	makecow c --format 1 --units "$units"
	cp c old
	wanted
	LD_PRELOAD=$tmp/cutfiles.so CUT_COUNT=count "$plain" upgrade --rdo rdo c >/dev/null
	shows "nothing cut: units $units" c
	count=$(cat count) wrong=0 cuts=0 olds=0
	[ "$count" -ge 5 ]
	ok $? "there is something to cut: $count changes: units $units"
	for lose in none all 1 2; do
		for at in $(seq "$count"); do
			cp --sparse=always old c
			LD_PRELOAD=$tmp/cutfiles.so CUT_AT=$at CUT_LOSE=$lose "$plain" upgrade --rdo rdo c >/dev/null 2>&1
			[ $? -eq 77 ] || { diag "not cut at $at"; wrong=$((wrong + 1)); }
			cuts=$((cuts + 1))
			rm -f .c.*
			{
				cowfile dump --rdo rdo c >state || cat state
				cowfile image --rdo rdo --cow c --out image
				grep -q '^format=1' state && olds=$((olds + 1))
				add_tail image
				cmp image wanted
			} >found 2>&1
			[ -s found ] || continue
			wrong=$((wrong + 1))
			[ "$wrong" -gt 5 ] || diag "cut at $at, lost $lose: $(cat found)"
		done
	done
	is "$wrong" 0 "a power cut anywhere: $cuts cuts, $olds times the old one: units $units"
	[ "$olds" -gt 0 ] && [ "$olds" -lt "$cuts" ]
	ok $? "sometimes the old one, sometimes the new: units $units"
done

is "$(compgen -G '.[cn]*')" "" "nothing is left of what failed"

done_testing
