#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 4 --mem 1G
#
# queue_if_no_space: writes that find no space wait, in the order in which they came, and none is lost: until a
# message, a discard or what is below the cow device makes room, through suspends and reloads without a flush. They
# end with an error where there is nothing to wait for. Then many writers at the same units, with a limit that goes
# up and down. What a device must hold is kept in the file "want".

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

modprobe null_blk nr_devices=2 gb=1 memory_backed=1
SIZE=8192 # of rdo, in sectors: 1024 units
dmsetup create rdo --table "0 $SIZE linear /dev/nullb0 0"
dmsetup create cow --table "0 $((SIZE + 64)) linear /dev/nullb1 0"
rdo=/dev/mapper/rdo cow=/dev/mapper/cow dev=/dev/mapper/t
cowtest fill $rdo >/dev/null

line() { echo "0 $SIZE cowloop $rdo $cow${*:+ $# $*}"; }
message() { dmsetup message t 0 "$@"; }
space() { cowstat t used limit mode queued; }

fresh() {
	dd if=/dev/zero of=$cow bs=64K count=1 oflag=direct status=none
	cowtest fill want --size $((SIZE * 512)) >/dev/null
	rm -f status.* out.* writer.*
	writers=0 stamp=0
	dmsetup create t --table "$(line "$@")" || echo "Bail out! cannot make a device: $*"
}
# put OFFSET LENGTH [OPTION...]
put() {
	stamp=$((stamp + 1))
	cowtest io $dev "$@" --write --stamp $stamp && cowtest io want "$1" "$2" --write --stamp $stamp
}
more_queued() { [ "$(cowstat t queued)" -gt "$1" ]; }
# later OFFSET LENGTH [OPTION...]: a writer who has to wait, behind those that there are
later() {
	stamp=$((stamp + 1)) writers=$((writers + 1))
	queued=$(cowstat t queued)
	echo "$1 $2 $stamp" >"writer.$writers"
	(timeout 100 cowtest io $dev "$@" --write --stamp $stamp >"out.$writers" 2>&1; echo $? >"status.$writers") &
	await more_queued "$queued"
}
who_ended() {
	for n in $(seq $writers); do
		[ ! -e "status.$n" ] || printf '%s ' "$n"
	done
}
have_ended() { [ "$(who_ended | wc -w)" = $writers ]; }
# all_end STATUS NAME: all the writers do, with that status
all_end() {
	await have_ended
	is "$(cat status.* 2>/dev/null | sort | uniq -c | xargs)" "$writers $1" "$2" || diag "$(cat out.*)"
	[ "$1" = 0 ] || return 0
	for n in $(seq $writers); do
		while read -r offset length its_stamp; do
			cowtest io want "$offset" "$length" --write --stamp "$its_stamp"
		done <"writer.$n"
	done
}
# full: 20 units of 20, and three writers
full() {
	fresh limit:20 queue_if_no_space
	put 0 81920
	later 409600 4096
	later 413696 512
	later 409600 1024
	is "$(space)" "20 20 out_of_space 3" "three writes wait"
}
shows() {
	blockdev --flushbufs $dev
	cmp $dev want
	ok $? "$1: all is right"
}
finish() {
	shows "$1"
	used=$(cowstat t used)
	runs "$1: the device can be removed" dmsetup remove t
	is "$(cowhead $cow dirty cowused popcount)" "0 $used $used" "$1: the cowfile is good, and clean"
	dmsetup create t --table "$(line)"
	shows "$1, opened again"
	dmsetup remove t
}

# --- Order --------------------------------------------------------------------------------------------------

fresh limit:20 queue_if_no_space
events=$(events)
put 0 81920
is "$(space)" "20 20 rw 0" "all is used"
later 409600 4096
later 413696 512       # a part of a unit
later 409600 1024      # of one that is waited for already
later 8192 1040384     # 254 units to the end of the MiB, some of which are there
later 413696 4096 --fua
later 2097152 4096
is "$(space)" "20 20 out_of_space 6" "six writes wait"
is "$(events)" $((events + 1)) "one event"
is "$(who_ended)" "" "none has ended"
runs "a rewrite does not wait" put 4096 8192
runs "a rewrite of a part does not wait" put 512 1024
runs "nor does a flush" timeout 30 cowtest io $dev --flush
runs "nor does sync" timeout 30 dmsetup message t 0 sync
shows "while they wait"
sleep 2.2 # the first of them is tried again
is "$(space)" "20 20 out_of_space 6" "they still wait"
is "$(who_ended)" "" "all of them"

message limit 21
settles "1 " "room for one unit: the first ends" who_ended
settles 5 "and the others wait" cowstat t queued
is "$(space)" "21 21 out_of_space 5" "all is used again"
message limit 22
settles "1 2 3 " "room for another: two more end, one of them in a unit that is there now" who_ended
settles "22 22 out_of_space 3" "all is used again" space
message limit 23
sleep 1.5
is "$(who_ended)" "1 2 3 " "nobody overtakes the MiB, not even who could be served"
message limit 300
all_end 0 "room for all: they end well"
# units 0 and 1, the MiB from 2 to 255, in which 100 and 101 are, and 512
settles "257 300 rw 0" "mode rw, none waits" space
finish "order"

# --- Ways to get room ---------------------------------------------------------------------------------------

full
blkdiscard -o 0 -l 8192 $dev
all_end 0 "a discard of two units: they end well"
cowtest io want 0 8192 --write --stamp 1000 && cowtest io $dev 0 8192 --write --stamp 1000 &
rewriter=$!
settles "20 20 out_of_space 1" "what was discarded waits for space then" space
message limit 0
wait $rewriter
ok $? "no limit: it ends well"
finish "discard"

# a cow device that ends early, and is made longer
turn cow "0 $((16 + 20 * 8)) linear /dev/nullb1 0"
fresh queue_if_no_space
put 0 81920
later 409600 4096
later 81920 512
later 0 1048576
is "$(space)" "20 0 out_of_space 3" "short cow device: three writes wait"
turn cow "0 $((SIZE + 64)) linear /dev/nullb1 0"
all_end 0 "the cow device is made longer: they end well, without a message"
settles "256 0 rw 0" "mode rw, none waits" space
finish "short cow device"

# a durable write is durable when it is done, however long it has waited
fresh limit:20 queue_if_no_space
put 0 81920
later 409600 4096 --fua
later 413696 512 --fua
message limit 50
all_end 0 "FUA: they end well"
is "$(cowhead $cow popcount)" 22 "FUA: their bits are on disk"
finish "FUA"

# --- Units that are reserved ----------------------------------------------------------------------------------

fresh limit:40 reserve:8 queue_if_no_space
over_meta $SIZE
put 0 131072
later 409600 4096
later 413696 512
is "$(space)" "32 40 out_of_space 2" "reserve: two writes of data wait"
runs "reserve: metadata does not wait for them" meta timeout 60 cowtest io /dev/mapper/meta 819200 4096 --write --stamp 100
runs "reserve: nor does a part of a unit" meta timeout 60 cowtest io /dev/mapper/meta 823808 512 --write --stamp 101
cowtest io want 819200 4096 --write --stamp 100
cowtest io want 823808 512 --write --stamp 101
is "$(space)" "34 40 out_of_space 2" "reserve: data still waits"
meta put 827392 24576
is "$(space)" "40 40 out_of_space 2" "reserve: all is used"
meta later 901120 4096
meta later 905216 8192
is "$(space)" "40 40 out_of_space 4" "reserve: then metadata waits, too"
cowtest io $dev 0 4096 --discard
settles "3 " "reserve: a discard is for the first of metadata" who_ended
settles "40 40 out_of_space 3" "reserve: and the others wait" space
cowtest io $dev 4096 4096 --discard
sleep 1.5
is "$(who_ended)" "3 " "reserve: neither data nor metadata overtakes metadata that needs more"
message limit 48
settles "3 4 " "reserve: with units for metadata only, that ends" who_ended
settles "41 48 out_of_space 2" "reserve: and data waits" space
message limit 0
all_end 0 "reserve: no limit: they end well"
put 0 8192
dmsetup remove meta
finish "reserve"

# --- Suspend and reload -------------------------------------------------------------------------------------

full
for how in '--noflush --nolockfs' --noflush; do
	# shellcheck disable=SC2086 # several words
	runs "suspend $how" timeout 30 dmsetup suspend $how t
	is "$(cowstat t queued)" 0 "suspend $how: none waits in the device"
	sleep 1.2
	is "$(who_ended)" "" "suspend $how: none has ended"
	runs "resume" dmsetup resume t
	settles 3 "they wait again" cowstat t queued
done
dmsetup load t --table "$(line limit:20 low_water:2 queue_if_no_space)"
dmsetup suspend --noflush t
runs "reload --noflush" timeout 30 dmsetup resume t
settles "20 20 out_of_space 3" "they wait in the new table" space
dmsetup load t --table "$(line limit:21 queue_if_no_space)"
dmsetup suspend --noflush t
dmsetup resume t
# (device-mapper brings them back in another order)
settles "21 21 out_of_space" "reload with more room, and less than is needed" cowstat t used limit mode
like "$(cowstat t queued)" '^[12]' "some still wait"
# in how many bios it comes depends on the kernel, and on how its memory lies
later 0 4194304
await more_queued $((queued + 1))
ok $? "and a large one behind them, in parts" || diag "$(space), and before $queued"
dmsetup load t --table "$(line queue_if_no_space)"
dmsetup suspend --noflush t
dmsetup resume t
all_end 0 "reload without a limit: all end well"
is "$(space)" "1024 0 rw 0" "mode rw, none waits"
# which of them was the last, where they overlap, is anybody's guess
stamp=2000
put 0 1M
finish "reload --noflush"

full
dmsetup load t --table "$(line limit:20)"
dmsetup suspend --noflush t
dmsetup resume t
all_end 3 "reload --noflush to a table that does not queue: they fail"
is "$(cat out.* | grep -c ENOSPC)" 3 "with ENOSPC"
finish "reload to a table that does not queue"

full
runs "suspend with a flush" timeout 30 dmsetup suspend t
all_end 3 "they fail"
is "$(cat out.* | grep -c ENOSPC)" 3 "with ENOSPC"
dmsetup resume t
writers=0
later 409600 4096
is "$(cowstat t queued)" 1 "after resume writes wait again"
message limit 21
rm -f status.[23]
all_end 0 "and end"
finish "suspend with a flush"

# --- Nothing to wait for ------------------------------------------------------------------------------------

full
runs "message read_only" timeout 30 dmsetup message t 0 read_only
all_end 3 "they fail"
is "$(space)" "20 20 ro 0" "mode ro"
finish "read_only"

full
runs "message close" timeout 30 dmsetup message t 0 close
all_end 3 "they fail"
is "$(space)" "20 20 closed 0" "mode closed"
runs "a limit does no harm then" message limit 100
runs "nor does low water" message low_water 1000
dmsetup remove t

full
fails "a device with writers can't be removed" dmsetup remove t
# (the writers, who get their errors from it, may not have closed it at once)
runs "but by force" timeout 30 dmsetup remove --force --retry --noudevsync t
all_end 3 "they fail"
dmsetup remove t 2>/dev/null
is "$(cowhead $cow dirty popcount)" "0 20" "the cowfile is good"

# --- Many writers -------------------------------------------------------------------------------------------

dmsetup remove rdo cow
dmsetup create srdo --table '0 1536 linear /dev/nullb0 0'
dmsetup create scow --table '0 2048 linear /dev/nullb1 0'
cowstress fill /dev/mapper/srdo
# stress NAME [OPTION...]: with discards, and a limit that changes; there is room at the end
stress() {
	name=$1
	shift
	dd if=/dev/zero of=/dev/mapper/scow bs=64K count=1 oflag=direct status=none
	cowopen t /dev/mapper/srdo /dev/mapper/scow limit:20 "$@"
	(
		for limit in 40 60 30 10 80 100 50 0 40 120 150 192; do
			sleep 0.5
			message limit $limit
			[ $limit != 100 ] || { dmsetup suspend --noflush t; dmsetup resume t; }
		done
	) &
	timeout 200 cowstress run $dev --journal journal --seed $seed --seconds 7 --discard --threads 12 $errors >out 2>&1
	ok $? "stress, $name: all is right" || diag "$(cat out)"
	wait
	like "$(cowstat t no_space)" '^[1-9]' "stress, $name: $(cowstat t no_space) found no space"
	used=$(cowstat t used)
	is "$(cowstat t mode queued)" "rw 0" "stress, $name: none waits"
	dmsetup remove t
	is "$(cowhead /dev/mapper/scow dirty cowused popcount)" "0 $used $used" "stress, $name: the cowfile is good"
	cowopen t /dev/mapper/srdo /dev/mapper/scow
	runs "stress, $name: and all is right when it is opened again" cowstress verify $dev --journal journal
	dmsetup remove t
}
seed=1 errors=''
stress 'writes wait' queue_if_no_space
seed=2 errors=--allow-errors
stress 'writes fail'
dmsetup remove srdo scow

done_testing
