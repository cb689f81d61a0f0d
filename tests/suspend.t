#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Suspend and resume, and tables that are loaded in between: the same again, with and without read_only, with another
# device for the same rdo, and ones that are refused while the live one goes on. First one thing after the other, then
# in loops while four threads read and write, and what they wrote is held against their model.
#
# vm: --smp 2 --mem 1G

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

size=20483
truncate -s $((size * 512)) rdo
cowtest fill rdo >/dev/null
sum=$(sha256sum rdo)
truncate -s 16M cow cow2
rdo=$(loopdev rdo -r)
rdo2=$(loopdev rdo -r)
cow=$(loopdev cow)
cow2=$(loopdev cow2)
truncate -s $((size * 512)) other
cowtest fill other --base-seed 2 >/dev/null
other=$(loopdev other -r)
dev=/dev/mapper/t
line="0 $size cowloop $rdo $cow"

cp rdo want
stamp=100
# change UNIT...: writes a part of each unit, to the device, and to the file "want"
change() {
	for n; do
		stamp=$((stamp + 1))
		cowtest io $dev $((n * 4096 + 512)) 1024 --write --stamp $stamp >/dev/null &&
			cowtest io want $((n * 4096 + 512)) 1024 --write --stamp $stamp || return
	done
}
shows() { cmp $dev want; ok $? "$1"; }
on_disk() { cowhead cow dirty cowused popcount; }
suspended() { dmsetup info -c --noheadings -o suspended t; }
inactive() { dmsetup info -c --noheadings -o tables_loaded t; }

cowopen t "$rdo" "$cow"

# --- Suspend and resume -------------------------------------------------------------------------------------

unit=0
for how in "" --noflush --nolockfs "--noflush --nolockfs"; do
	change $unit $((unit + 1))
	is "$(cowhead cow dirty)" 1 "dirty after a first write"
	unit=$((unit + 2))
	# shellcheck disable=SC2086 # several words
	runs "suspend $how" dmsetup suspend $how t
	is "$(suspended)" Suspended "it is suspended"
	is "$(on_disk)" "0 $unit $unit" "the head is clean on disk, and the count right"
	is "$(cowstat t used state mode)" "$unit clean rw" "the status says so"
	# nothing goes on meanwhile
	sums=$(sha256sum cow)
	(change $unit) >/dev/null 2>&1 &
	writer=$!
	sleep 0.5
	runs "a write waits" kill -0 $writer
	is "$(sha256sum cow)" "$sums" "nothing is written to the cowfile"
	runs "resume" dmsetup resume t
	wait $writer
	ok $? "the write goes on"
	stamp=$((stamp + 1))
	unit=$((unit + 1))
	is "$(cowstat t used state mode) $(cowhead cow dirty)" "$unit dirty rw 1" "dirty again with the next first write"
	shows "the device is what was written"
done

# --- Tables -------------------------------------------------------------------------------------------------

# reload NAME LINE: with a first write before and after
reload() {
	change $unit
	unit=$((unit + 1))
	runs "load $1" dmsetup load t --table "$2"
	is "$(inactive)" Both "$1: there are two tables"
	shows "$1: the old table still reads"
	change $unit
	unit=$((unit + 1))
	is "$(cowstat t used state)" "$unit dirty" "$1: and writes"
	runs "$1: resume with it" dmsetup resume t
	is "$(inactive)" Live "$1: there is one table"
	is "$(on_disk)" "0 $unit $unit" "$1: clean on disk"
	shows "$1: the device is what was written"
}
after() { # NAME: what a device that can be written does after a reload
	change $unit
	unit=$((unit + 1))
	is "$(cowstat t used state mode) $(cowhead cow dirty)" "$unit dirty rw 1" "$1: a first write"
	shows "$1: the device is what was written"
}
reload "the same" "$line"
after "the same"
reload "with read_only" "$line 1 read_only"
is "$(cowstat t used state mode)" "$unit clean ro" "with read_only: mode ro"
out=$(cowtest io $dev 409600 512 --write 2>&1)
like "$?: $out" '^3: .*EIO' "with read_only: a write fails"
runs "with read_only: a flush works" cowtest io $dev --flush
runs "load without read_only" dmsetup load t --table "$line"
dmsetup resume t
is "$(cowstat t used state mode)" "$unit clean rw" "without read_only: mode rw"
after "without read_only"
runs "message read_only" dmsetup message t 0 read_only
is "$(cowstat t mode)" ro "mode ro"
dmsetup suspend t
dmsetup resume t
is "$(cowstat t mode) $(dmsetup table t)" "ro 0 $size cowloop $(devno "$rdo") $(devno "$cow") 1 read_only" \
	"still, when suspended and resumed"
runs "load the table from before the message" dmsetup load t --table "$line"
dmsetup resume t
is "$(cowstat t mode)" rw "mode rw"
after "after the message"
reload "another device for rdo" "0 $size cowloop $rdo2 $cow"
is "$(dmsetup table t)" "0 $size cowloop $(devno "$rdo2") $(devno "$cow")" "another device for rdo: the table has it"
after "another device for rdo"
runs "the old one is free" losetup -d "$rdo"
is "$(losetup -a | grep -c "^$rdo:")" 0 "and gone"
losetup -r "$rdo" rdo
reload "with its format and mapunit" "$line 2 format:2 mapunit:4096"
after "with its format and mapunit"

# refused NAME LINE: the live table goes on
refused() {
	fails "refused: $1" dmsetup load t --table "$2"
	is "$(inactive)" Live "refused: $1: there is no other table"
	after "refused: $1"
}
refused "another mapunit" "$line 1 mapunit:8192"
refused "another rdo" "0 $size cowloop $other $cow"
refused "longer than rdo" "0 $((size + 1)) cowloop $rdo $cow"
refused "its own cow device as rdo" "0 $size cowloop $cow $cow2"
refused "nonsense" "$line 1 nonsense"
fails "refused: by another name" dmsetup create other --table "$line"

runs "load a shorter table" dmsetup load t --table "0 20000 cowloop $rdo $cow"
runs "and clear it" dmsetup clear t
is "$(inactive)" Live "there is one table"
after "cleared"
dmsetup resume t
is "$(sectors $dev)" $size "a resume changes nothing"
for read_only in "" " 1 read_only"; do
	runs "load one table" dmsetup load t --table "$line 1 mapunit:4096"
	runs "and another" dmsetup load t --table "$line$read_only"
	runs "resume" dmsetup resume t
	is "$(dmsetup table t)" "0 $size cowloop $(devno "$rdo") $(devno "$cow")$read_only" "the last one is live"
	is "$(inactive)" Live "there is one table"
done
shows "the device is what was written"
runs "load a writable one" dmsetup load t --table "$line"
dmsetup resume t
after "writable"

# to another cowfile and back
runs "load another cowfile" dmsetup load t --table "0 $size cowloop $rdo $cow2"
dmsetup resume t
cmp $dev rdo
ok $? "the device is rdo"
is "$(on_disk)" "0 $unit $unit" "the old cowfile is clean"
fails "the new one is in use" dmsetup create other --table "0 $size cowloop $rdo $cow2"
runs "the old one is not" dmsetup create other --table "$line"
dmsetup remove other
runs "load the old one" dmsetup load t --table "$line"
dmsetup resume t
shows "the device is what was written"
is "$(cowhead cow2 dirty cowused)" "0 0" "the new one is clean"

# a table that is loaded while suspended
change $unit
unit=$((unit + 1))
dmsetup suspend t
runs "load while suspended" dmsetup load t --table "$line"
is "$(on_disk)" "0 $unit $unit" "clean on disk"
dmsetup resume t
after "loaded while suspended"

# --- Names, and removal -------------------------------------------------------------------------------------

runs "rename" dmsetup rename t u
dev=/dev/mapper/u
change $unit
unit=$((unit + 1))
shows "the device is what was written"
is "$(cowstat u used mode)" "$unit rw" "its status"
runs "rename it back" dmsetup rename u t
dev=/dev/mapper/t
exec 3<>$dev
fails "an open device is not removed" dmsetup remove t
runs "but it can be later" dmsetup remove --deferred t
dd if=/dev/zero bs=4096 count=1 conv=notrunc status=none >&3
dd if=/dev/zero of=want bs=4096 count=1 conv=notrunc status=none
cmp -n 4096 /dev/fd/3 want
ok $? "it works until then"
exec 3>&-
gone() { ! dmsetup info t >/dev/null 2>&1; }
await gone
ok $? "then it goes"
is "$(on_disk)" "0 $unit $unit" "clean on disk"

# a table that never was live
runs "a device without a table" dmsetup create --notable t
runs "load" dmsetup load t --table "$line"
fails "the cowfile is in use" dmsetup create other --table "$line"
runs "remove it without a resume" dmsetup remove t
is "$(on_disk)" "0 $unit $unit" "clean on disk"
cowopen t "$rdo" "$cow"
shows "opened again: the device is what was written"
dmsetup remove t

# --- All of it under load -----------------------------------------------------------------------------------

# load NAME SECONDS COMMAND: calls COMMAND in a loop while a run with four threads goes on
load() {
	name=$1 seconds=$2 command=$3
	shift 3
	rounds=0 failures=0 wrong=0
	# on a slow machine one run may not see two of them
	while [ $rounds -lt 2 ]; do
		cowtest run $dev --model model --threads 4 --seconds "$seconds" --seed "$seconds$stamp" --max-bytes 128K \
			>out 2>&1 &
		runner=$!
		stamp=$((stamp + 1))
		while kill -0 $runner 2>/dev/null; do
			rounds=$((rounds + 1))
			$command >out2 2>&1 || { failures=$((failures + 1)) && diag "$name: $(cat out2)"; }
		done
		wait $runner || { wrong=1 && break; }
	done
	ok $wrong "$name: a run goes on all right" || diag "$(head -n 20 out)"
	diag "$rounds times; $(tail -n 1 out)"
	is $failures 0 "$name: every time"
	is "$(cowstat t mode errors)" "rw 0" "$name: no error"
}
poll() {
	while [ ! -e stop ]; do
		dmsetup status t && dmsetup table t && dmsetup message t 0 sync || echo "poll failed" >>polled
	done >/dev/null 2>&1
}

# the cowfile on disk while suspended; what is asked of a file must not change meanwhile
resuspend() {
	# shellcheck disable=SC2086 # several words
	dmsetup suspend $how t
	head=$(cowhead cow dirty cowused popcount)
	used=$(cowstat t used)
	dmsetup resume t
	[ "$head" = "0 $used $used" ] || { echo "$head, not 0 $used $used"; return 1; }
}
reload_other() {
	[ "$live" = "$rdo" ] && live=$rdo2 || live=$rdo
	dmsetup load t --table "0 $size cowloop $live $cow" && dmsetup resume t &&
		[ "$(dmsetup table t)" = "0 $size cowloop $(devno "$live") $(devno "$cow")" ]
}
reload_refused() {
	! dmsetup load t --table "$line 1 mapunit:65536" && ! dmsetup load t --table "0 $size cowloop $other $cow" &&
		dmsetup load t --table "$line" && dmsetup clear t
}
sync_poll() {
	dmsetup message t 0 sync && [ "$(cowstat t mode errors)" = "rw 0" ] && dmsetup status t && dmsetup table t
}
reload_suspended() {
	dmsetup suspend --noflush t && dmsetup load t --table "$line" && dmsetup message t 0 sync && dmsetup resume t
}

for format in 2 1; do
	rm -f model
	losetup -d "$cow"
	rm cow
	truncate -s 16M cow
	losetup "$cow" cow
	line="0 $((size - size % 2)) cowloop $rdo $cow"
	[ $format = 1 ] || line="0 $size cowloop $rdo $cow"
	size=$(echo "$line" | cut -d ' ' -f 2)
	dmsetup create t --table "$line 1 format:$format"
	live=$rdo
	how=''
	load "format $format: sync and status" 3 sync_poll
	load "format $format: suspend and resume" 4 resuspend
	rm -f stop polled
	poll &
	poller=$!
	how='--noflush --nolockfs'
	load "format $format: suspend --noflush --nolockfs, while polled" 4 resuspend
	load "format $format: reload with another device, while polled" 5 reload_other
	: >stop
	wait $poller
	[ ! -e polled ]
	ok $? "format $format: status, table and sync work all the time"
	load "format $format: reload while suspended" 4 reload_suspended
	load "format $format: refused tables" 4 reload_refused
	runs "format $format: verify" cowtest verify $dev --model model
	used=$(cowstat t used)
	dmsetup remove t
	is "$(on_disk)" "0 $used $used" "format $format: clean on disk"
	cowopen t "$rdo" "$cow" format:$format
	runs "format $format: opened again, verify" cowtest verify $dev --model model
	cowfile image --rdo rdo --cow cow --out image && truncate -s $((size * 512)) image && cmp image $dev
	ok $? "format $format: the cowfile says the same"
	dmsetup remove t
done

is "$(sha256sum rdo)" "$sum" "nobody has written to rdo"

done_testing
