#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G --timeout 1800
#
# Devices below that hang, for as long as the test likes: whatever does not need what hangs goes on. Discards while a
# copy-up waits for rdo; a queue of rdo's that is full; a part of the bitmap that can't be read for now; messages that
# wait, and are interrupted; a device that is suspended after a crash, when its units have not been counted.
#
# Whoever may have to wait is in the background: `begin NAME COMMAND...'. ONLY=discard as an argument leaves out the rest.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

case $* in
'' | ONLY=discard) ;;
*) plan skip_all "what is $*?" ;;
esac

# 300 MiB: three regions of the bitmap, and a part of a MiB for each
SIZE=614500 M=1048576
modprobe null_blk nr_devices=2 gb=1 memory_backed=1 discard=1
dmsetup create rdo --table "0 $SIZE linear /dev/nullb0 0"
# the block of the cowfile with the bitmap's second region is a device of its own
dmsetup create hole --table "0 8 linear /dev/nullb1 16"
dmsetup create cow --table "0 16 linear /dev/nullb1 0
16 8 linear /dev/mapper/hole 0
24 $((SIZE + 512)) linear /dev/nullb1 24"
rdo=/dev/mapper/rdo cow=/dev/mapper/cow dev=/dev/mapper/t

line() { echo "0 $SIZE cowloop $rdo $cow"; }
# fresh: the device, on a new cowfile
fresh() {
	cowtest io $cow 0 65536 --write --zero
	dmsetup create t --table "$(line)"
}
# over: devices that lie over the whole of it, since a device does one discard after the other
over() {
	for n in 1 2 3; do
		dmsetup create d$n --table "0 $SIZE linear $dev 0"
	done
}
removed() { dmsetup remove d1 d2 d3 && dmsetup remove t; }
# discard N OFFSET LENGTH: by the Nth of these
discard() { cowtest io "/dev/mapper/d$1" "$2" "$3" --discard; }
hang() { dmsetup suspend --noflush --nolockfs "$1"; }
go_on() { dmsetup resume "$1"; }
message() { dmsetup message t 0 "$@"; }

# io OFFSET LENGTH OPTION...: on the device
io() { cowtest io $dev "$@"; }
# holds OFFSET STAMP NAME: the sector there
holds() { is "$(io "$1" 512 --read | cut -d' ' -f3)" "$2" "$3"; }

# begin NAME COMMAND...
begin() {
	begun=$1
	shift
	rm -f "end.$begun"
	{
		"$@" >"out.$begun" 2>&1 &
		echo $! >"pid.$begun"
		wait $!
		echo $? >"end.$begun"
	} &
}
has_ended() { [ -s "end.$1" ]; }
# ends NAME WHAT: it comes to an end, and a good one
ends() {
	await has_ended "$1"
	is "$(cat "end.$1" 2>/dev/null || echo never)" 0 "$2" || diag "$(cat "out.$1")"
}
# interrupted NAME WHAT: what began as that gets a signal, and ends
interrupted() {
	kill -TERM "$(cat "pid.$1")"
	await has_ended "$1"
	ok $? "$2"
}
# hangs NAME... WHAT: none of them has come to an end
hangs() {
	hanging=''
	while [ $# -gt 1 ]; do
		! has_ended "$1" || hanging="$hanging $1"
		shift
	done
	is "$hanging" '' "$1"
}
# goes NAME COMMAND...: it comes to an end, and a good one, now
goes() {
	what=$1
	shift
	begin it "$@"
	ends it "$what"
}
discards() { settles "$1" "$1 discards have begun" cowstat t discards; }

# --- Discards while a copy-up hangs -------------------------------------------------------------------------

name=discard
cowtest io $rdo $((4096 * 100)) 4096 --write --stamp 1 # unit 100
fresh
over
io $((50 * M)) $M --write --stamp 2
io $((M + 4096 * 50)) $M --write --stamp 3
hang rdo
begin part io $((4096 * 100)) 512 --write --stamp 4
settles 1 "$name: a copy-up hangs" cowstat t copyups
goes "$name: one elsewhere does not" discard 1 $((50 * M)) 8192
goes "$name: nor one of another MiB, in rdo" discard 1 $((60 * M)) 8192
goes "$name: nor first writes" io $((70 * M)) $M --write --stamp 5
goes "$name: in the copy-up's MiB, too" io $((4096 * 102)) 8192 --write --stamp 6
goes "$name: nor a flush" cowtest io $dev --flush
# around the unit, and beyond its MiB
begin over discard 1 $((4096 * 90)) $((M + 4096 * 10))
discards 3
begin behind io $((4096 * 95)) 4096 --write --stamp 7
begin behind2 io $((M + 4096 * 10)) 512 --write --stamp 8
# overlaps that one, and has nothing in its own way
goes "$name: nor a discard that overlaps one which waits" discard 2 $((M + 4096 * 50)) $M
goes "$name: nor another" discard 2 $((4096 * 102)) 4096
goes "$name: nor first writes after that" io $((2 * M)) 8192 --write --stamp 9
goes "$name: rewrites go on" io $((70 * M)) 4096 --write --stamp 11
begin whole blkdiscard -f /dev/mapper/d3
discards 6
begin inside io $((200 * M)) 8192 --write --stamp 10
hangs part over behind behind2 whole inside "$name: what needs the copy-up waits"
go_on rdo
for who in part over behind behind2 whole inside; do
	ends $who "$name: $who ends"
done
# what was there before the last discard, but not what has waited for that
holds $((70 * M)) 0 "$name: all has been discarded"
holds $((4096 * 100)) 1 "$name: the copy-up, too"
holds $((200 * M)) 10 "$name: what has waited for that is there"
like "$(cowstat t mode errors)" '^rw 0$' "$name: no errors"
goes "$name: sync" message sync
is "$(cowstat t state)" clean "$name: it is clean"
used=$(cowstat t used)
removed
is "$(cowhead $cow dirty cowused popcount)" "0 $used $used" "$name: a good cowfile"

[ ! "$1" ] || done_testing

# --- A queue of rdo's that is full --------------------------------------------------------------------------

# Whoever sends the fifth read to this loop device has to wait until there is room, and not only for its end.
name='rdo is full'
loop=$(loopdev $rdo -r --direct-io=on)
echo 4 >"/sys/block/${loop#/dev/}/queue/nr_requests" || echo "Bail out! nr_requests"
cowtest io $cow 0 65536 --write --zero
dmsetup create t --table "0 $SIZE cowloop $loop $cow"
io 0 8192 --write --stamp 1
io $((130 * M)) 8192 --write --stamp 2
io $((260 * M)) 8192 --write --stamp 3
dmsetup remove t
# no part of the bitmap is in memory now
dmsetup create t --table "0 $SIZE cowloop $loop $cow"
io 4096 4096 --write --stamp 4
hang rdo
for n in 1 2 3 4 5 6; do
	begin part$n io $((n * 40960)) 512 --write --stamp 5
done
settles 6 "$name: six copy-ups hang" cowstat t copyups
# the first is loaded, and its reader waits for room; so does the worker for those that were not
begin read io $((129 * M)) 4096 --read
begin read2 io $((259 * M)) 4096 --read
begin coldpart io $((132 * M)) 512 --write --stamp 6
goes "$name: cold reads of the cowfile do not" io $((260 * M)) 4096 --read
goes "$name: nor of another place" io $((130 * M)) 4096 --read
goes "$name: nor first writes" io $((270 * M)) 8192 --write --stamp 7
goes "$name: nor flushes" cowtest io $dev --flush
hangs part1 part6 read read2 coldpart "$name: what needs rdo waits"
# a sync shuts the gate for a short time, and what comes then has to be deferred
begin sync dmsetup message t 0 sync
for n in 1 2 3 4 5; do
	goes "$name: nor first writes while a sync waits" io $(((140 + n) * M)) 8192 --write --stamp 8
	begin more$n io $(((150 + n) * M)) 512 --write --stamp 9
done
goes "$name: nor a discard" cowtest io $dev $((141 * M)) 8192 --discard
goes "$name: nor a commit" cowtest io $dev --flush
go_on rdo
for who in part1 part2 part3 part4 part5 part6 read read2 coldpart sync more1 more5; do
	ends $who "$name: $who ends"
done
holds $((6 * 40960)) 5 "$name: what was written is there"
holds $((132 * M)) 6 "$name: likewise"
dmsetup remove t
losetup -d "$loop"

# --- A part of the bitmap that can't be read for now --------------------------------------------------------

# cold: no part of the bitmap is in memory; each of the three regions has something
cold() {
	fresh
	io 0 8192 --write --stamp 1
	io $((130 * M)) 8192 --write --stamp 2
	io $((260 * M)) 8192 --write --stamp 3
	dmsetup remove t
	dmsetup create t --table "$(line)"
}

name='bitmap hangs'
cold
hang hole
begin read io $((130 * M)) 4096 --read
begin read2 io $((140 * M)) 4096 --read
begin write io $((145 * M)) 4096 --write --stamp 4
begin part io $((146 * M)) 512 --write --stamp 5
goes "$name: another part of it is read" io $((260 * M)) 4096 --read
goes "$name: and another" io 0 4096 --read
goes "$name: first writes there" io $((270 * M)) 8192 --write --stamp 6
goes "$name: a flush" cowtest io $dev --flush
hangs read read2 write part "$name: what needs it waits"
go_on hole
for who in read read2 write part; do
	ends $who "$name: $who ends"
done
holds $((145 * M)) 4 "$name: what was written is there"
dmsetup remove t

# --- close --------------------------------------------------------------------------------------------------

name=close
cold
hang hole
begin close dmsetup message t 0 close
sleep 1
goes "$name: while it reads the bitmap, another part is read" io $((260 * M)) 4096 --read
goes "$name: and written" io $((270 * M)) 8192 --write --stamp 4
hangs close "$name: it waits"
is "$(cowstat t mode)" rw "$name: the mode is still rw"
go_on hole
ends close "$name: it ends"
is "$(cowstat t mode)" closed "$name: mode closed"
dmsetup remove t

name='close, unreadable bitmap'
cold
turn hole '0 8 error'
fails "$name: it fails" message close
is "$(cowstat t mode)" rw "$name: the mode is still rw"
goes "$name: first writes go on" io $((270 * M)) 8192 --write --stamp 4
turn hole '0 8 linear /dev/nullb1 16'
runs "$name: when it can be read" message close
is "$(cowstat t mode)" closed "$name: mode closed"
dmsetup remove t

# --- Sync while a copy-up hangs -----------------------------------------------------------------------------

name=sync
fresh
over
hang rdo
begin part io $((4096 * 100)) 512 --write --stamp 4
settles 1 "$name: a copy-up hangs" cowstat t copyups
begin sync dmsetup message t 0 sync
for n in 1 2 3 4 5 6; do
	goes "$name: first writes go on" io $((n * M)) 8192 --write --stamp $((n + 10))
	goes "$name: discards, too" discard 1 $((n * M)) 4096
done
hangs part sync "$name: the sync waits"
go_on rdo
ends part "$name: the copy-up ends"
ends sync "$name: the sync, too"
is "$(cowstat t state)" clean "$name: it is clean"
holds $((4096 * 100)) 4 "$name: what was written is there"
holds $((3 * M + 4096)) 13 "$name: likewise"
removed

# --- Messages that are interrupted --------------------------------------------------------------------------

name=interrupted
fresh
hang rdo
begin part io $((4096 * 100)) 512 --write --stamp 4
settles 1 "$name: a copy-up hangs" cowstat t copyups
begin sync dmsetup message t 0 sync
sleep 1
# one behind the other
begin sync2 dmsetup message t 0 sync
sleep 0.5
hangs sync sync2 "$name: two syncs wait"
interrupted sync2 "$name: the second ends, by a signal"
interrupted sync "$name: the first, too"
goes "$name: first writes go on" io $M 8192 --write --stamp 5
is "$(cowstat t mode state)" "rw dirty" "$name: nothing has changed"
begin close dmsetup message t 0 close
settles ro "$name: close has come to mode ro" cowstat t mode
interrupted close "$name: close, too"
is "$(cowstat t mode)" ro "$name: it is in mode ro"
fails "$name: no writes then" io $((2 * M)) 8192 --write --stamp 6
begin readonly dmsetup message t 0 read_only
sleep 1
hangs readonly "$name: read_only waits"
interrupted readonly "$name: read_only, too"
go_on rdo
ends part "$name: what was under way ends"
goes "$name: read_only again" message read_only
is "$(cowstat t state)" clean "$name: it is clean"
holds $((4096 * 100)) 4 "$name: and is there"
io $((140 * M)) 4096 --read >out
io $((260 * M)) 4096 --read >out # all of the bitmap is in memory
reads=$(cowstat t cow_reads)
hang cow
begin read io $M 4096 --read
settles $((reads + 1)) "$name: a read of the cow device hangs" cowstat t cow_reads
begin close dmsetup message t 0 close
settles closed "$name: close waits for it, in mode closed" cowstat t mode
interrupted close "$name: close again"
is "$(dmsetup deps -o devname t | grep -c '(cow)')" 1 "$name: the cow device is still there"
begin close dmsetup message t 0 close
sleep 1
hangs read close "$name: and once more it waits"
go_on cow
ends read "$name: the read ends"
ends close "$name: and close"
is "$(dmsetup deps -o devname t | grep -c '(cow)')" 0 "$name: the cow device has been let go"
is "$(cowstat t mode)" closed "$name: mode closed"
dmsetup remove t

# --- Suspend after a crash ----------------------------------------------------------------------------------

name='suspend after a crash'
cold
io 40960 4096 --write --stamp 4
cowtest io $dev --flush
dd if=$cow of=crashed bs=1M count=1 iflag=direct status=none
dmsetup remove t
dd if=crashed of=$cow bs=1M oflag=direct status=none
is "$(cowhead $cow dirty)" 1 "$name: it is dirty"
hang hole
dmsetup create t --table "$(line)"
begin suspend dmsetup suspend t
sleep 1
goes "$name: I/O goes on while units are counted" io $((270 * M)) 8192 --write --stamp 5
goes "$name: reads, too" io $((260 * M)) 4096 --read
hangs suspend "$name: the suspend waits"
go_on hole
ends suspend "$name: the suspend ends"
is "$(cowstat t state used)" "clean 9" "$name: it is clean"
dmsetup resume t
dmsetup remove t

dmsetup remove rdo cow hole
done_testing
