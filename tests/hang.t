#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G --timeout 1800
#
# Devices below that hang, for as long as the test likes: whatever does not need what hangs goes on. Discards while a
# copy-up waits for rdo; messages that wait.
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

line() { echo "0 $SIZE cowloop $rdo $cow${*:+ $# $*}"; }
# fresh [OPTION...]: the device, on a new cowfile
fresh() {
	cowtest io $cow 0 65536 --write --zero
	dmsetup create t --table "$(line "$@")"
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
	{ "$@" >"out.$begun" 2>&1; echo $? >"end.$begun"; } &
}
has_ended() { [ -s "end.$1" ]; }
# ends NAME WHAT: it comes to an end, and a good one
ends() {
	await has_ended "$1"
	is "$(cat "end.$1" 2>/dev/null || echo never)" 0 "$2" || diag "$(cat "out.$1")"
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

dmsetup remove rdo cow hole
done_testing
