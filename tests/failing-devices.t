#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G
#
# Devices that fail in their own ways: dm-flakey, which fails for a second now and then, under many threads; sectors that
# are bad until they are written; a SCSI disk with bad sectors, and with commands that time out; and I/O that the kernel itself makes fail, where it has that.
# What was flushed is there afterwards, and nothing is wrong.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

SIZE=1536
modprobe null_blk nr_devices=2 gb=1 memory_backed=1
seed=0

# stress SECONDS [OPTION...]
stress() {
	seed=$((seed + 1))
	seconds=$1
	shift
	cowstress run /dev/mapper/t --journal journal --seed $seed --seconds "$seconds" "$@" >out 2>&1
}
errors() { sed -n 's/.*; errors \([0-9]*\);.*/\1/p' out; }
line() { echo "0 $SIZE cowloop $1 $2"; }
# open RDO COW: again, if it fails for now
open() {
	await creates "$(line "$1" "$2")" || { echo "Bail out! $said"; exit 1; }
}
creates() { said=$(dmsetup create t --table "$1" 2>&1); }
blank() { dd if=/dev/zero of="$1" bs=4096 count=1 oflag=direct status=none; }

# reopened NAME RDO COW [--flushed]: what is on disk is right
reopened() {
	name=$1
	runs "$name: open it again" dmsetup create t --table "$(line "$2" "$3")"
	shift 3
	runs "$name: what was flushed is there, and nothing is wrong" cowstress verify /dev/mapper/t --journal journal "$@"
	dmsetup remove t
	cowhead "$cow" dirty >out
	ok $? "$name: a good cowfile" || diag "$(cat out)"
}

# --- dm-flakey ----------------------------------------------------------------------------------------------

dmsetup create rdo --table "0 $SIZE linear /dev/nullb0 0"
dmsetup create cow --table "0 $((SIZE + 512)) linear /dev/nullb1 0"
rdo=/dev/mapper/rdo cow=/dev/mapper/cow
cowstress fill $rdo

# While there are units to be read from rdo, at first, it fails; and then now and then.
dmsetup create frdo --table "0 $SIZE linear $rdo 0"
blank $cow
open /dev/mapper/frdo $cow
turn frdo "0 $SIZE flakey $rdo 0 0 60"
(sleep 1; turn frdo "0 $SIZE flakey $rdo 0 1 1") &
stress 6 --allow-errors
ok $? 'flakey rdo: some I/O fails, the rest is right' || diag "$(cat out)"
ok $(($(errors) < 1)) "flakey rdo: $(errors) errors"
is "$(cowstat t mode)" rw 'flakey rdo: mode rw'
wait
dmsetup remove t
reopened 'flakey rdo' $rdo $cow
dmsetup remove frdo

failed=0
for round in 1 2 3 4; do
	name="flakey cow, $round"
	blank $cow
	dmsetup create fcow --table "0 $((SIZE + 512)) flakey $cow 0 1 1 1 error_writes"
	open $rdo /dev/mapper/fcow
	sleep "0.$round" # first writes, and so commits, come when it fails
	if [ $round = 4 ]; then
		# for certain: a unit is written, as it is, and the commit fails
		dd if=/dev/mapper/t of=/dev/mapper/t bs=4096 count=1 iflag=direct oflag=direct conv=notrunc status=none
		turn fcow "0 $((SIZE + 512)) flakey $cow 0 0 60 1 error_writes"
	fi
	stress 3 --allow-errors
	ok $? "$name: some I/O fails, the rest is right" || diag "$(cat out)"
	ok $(($(errors) < 1)) "$name: $(errors) errors"
	like "$(cowstat t mode)" '^(rw|fail)$' "$name: mode $(cowstat t mode)"
	[ "$(cowstat t mode)" = rw ] || failed=$((failed + 1))
	dmsetup remove t
	dmsetup remove fcow
	reopened "$name" $rdo $cow --flushed
done
ok $((failed < 1)) "flakey cow: $failed commits failed"

# --- The kernel's own faults --------------------------------------------------------------------------------

faults=/sys/kernel/debug/fail_make_request
mount -t debugfs none /sys/kernel/debug 2>/dev/null
if [ -d $faults ]; then
	blank $cow
	dmsetup create t --table "$(line $rdo $cow)"
	echo 0 >$faults/verbose
	echo -1 >$faults/times
	echo 1 >$faults/probability
	echo 1 >/sys/block/nullb1/make-it-fail
	stress 4 --allow-errors
	ok $? 'fail_make_request: some I/O fails, the rest is right' || diag "$(cat out)"
	ok $(($(errors) < 1)) "fail_make_request: $(errors) errors"
	echo 0 >/sys/block/nullb1/make-it-fail
	dmsetup remove t
	reopened fail_make_request $rdo $cow --flushed
else
	skip 'this kernel has no fail_make_request: try KERNEL=debug'
fi
dmsetup remove cow
dmsetup remove rdo

# --- Bad sectors --------------------------------------------------------------------------------------------

# A bad sector can't be read, until it is written. (That is what dm-dust does, which Debian's kernel does not have; here
# dm-nth does it.)
unit() { cowtest io /dev/mapper/t $(($1 * 4096)) 4096 "$2" --model model; }
piece() { cowtest io /dev/mapper/t $((($1 * 8 + $2) * 512)) 512 "$3" --model model; }
# bad DEVICE FIRST SECTOR...: bad sectors, counted from FIRST
bad() {
	bad_dev=$1 bad_first=$2
	shift 2
	for sector; do
		dmsetup message "$bad_dev" 0 bad $((bad_first + sector)) || echo 'Bail out! no bad sectors'
	done
}
nr_bad() { dmsetup status "$1" | cut -d ' ' -f 6; }
# readable: the units from 0 to 63 that are
readable() {
	for n in $(seq 0 63); do
		unit "$n" --read >/dev/null 2>&1 || printf '%s ' "not $n"
	done
}

for format in 2 1; do
	name="bad sectors of rdo, format $format"
	data=16
	[ $format = 2 ] || data=8
	modprobe dm-nth
	dmsetup create rdo --table "0 2048 linear /dev/nullb0 0"
	cowtest fill /dev/mapper/rdo >/dev/null
	dd if=/dev/zero of=/dev/nullb1 bs=1M count=2 oflag=direct status=none
	dmsetup create drdo --table '0 2048 nth /dev/mapper/rdo'
	dmsetup create dcow --table '0 4096 nth /dev/nullb1'
	dmsetup create t --table "0 2048 cowloop /dev/mapper/drdo /dev/mapper/dcow 1 format:$format"
	new_model /dev/mapper/t
	bad drdo 0 325 330 331 344 350
	is "$(readable)" 'not 40 not 41 not 43 ' "$name: units that have some are not read, all others are"
	runs "$name: nor is more than the sectors lost" piece 40 4 --read
	fails "$name: which are" piece 40 5 --read
	fails "$name: nor what has some among others" cowtest io /dev/mapper/t 0 262144 --read --model model
	if [ $format = 2 ]; then
		fails "$name: a part of such a unit is not written" piece 40 0 --write
	else
		runs "$name: a part of such a unit is written where its KiB is good" piece 40 0 --write
		fails "$name: and not where it is not" piece 40 4 --write
	fi
	runs "$name: a part of another is" piece 42 0 --write
	runs "$name: all of it is" unit 40 --write
	is "$(readable)" 'not 41 not 43 ' "$name: and then read"
	runs "$name: and a part of it" piece 40 5 --write
	is "$(nr_bad drdo)" 5 "$name: rdo is not written"
	is "$(cowstat t mode)" rw "$name: mode rw"
	dmsetup message drdo 0 good
	runs "$name: all is right" cowtest verify /dev/mapper/t --model model

	# the same below the cowfile, where 40 is, and 42 in part; 43 is in rdo still
	name="bad sectors of the cow device, format $format"
	unit 41 --write >/dev/null
	dmsetup message t 0 sync
	bad dcow $data 325 330 331 344
	is "$(readable)" 'not 40 not 41 ' "$name: units that have some are not read, all others are"
	runs "$name: a sector beside one is" piece 40 6 --read
	runs "$name: and is written" piece 40 6 --write
	fails "$name: which leaves that as it is" piece 40 5 --read
	runs "$name: a bad one is written" piece 40 5 --write
	is "$(nr_bad dcow)" 3 "$name: and is good then"
	runs "$name: all of a unit is written" unit 41 --write
	is "$(nr_bad dcow)" 1 "$name: and is good then, all of it"
	runs "$name: a first write" unit 43 --write
	is "$(readable) $(nr_bad dcow)" ' 0' "$name: so is what was never written before"
	is "$(cowstat t mode)" rw "$name: mode rw"
	runs "$name: sync" dmsetup message t 0 sync
	runs "$name: all is right" cowtest verify /dev/mapper/t --model model
	dmsetup remove t
	runs "$name: the cowfile is good" cowhead /dev/nullb1 dirty
	dmsetup create t --table '0 2048 cowloop /dev/mapper/drdo /dev/mapper/dcow'
	runs "$name: all is there when it is opened again" cowtest verify /dev/mapper/t --model model
	dmsetup remove t
	dmsetup remove drdo dcow rdo
done

# --- A SCSI disk --------------------------------------------------------------------------------------------

has_disk() {
	disk=$(grep -l scsi_debug /sys/block/sd*/device/model 2>/dev/null) && disk=/dev/$(echo "$disk" | cut -d / -f 4) &&
		[ -b "$disk" ]
}
# scsi OPTION...: a disk of 8 MiB, as $disk
scsi() {
	modprobe sd_mod
	modprobe scsi_debug dev_size_mb=8 max_queue=32 delay=0 "$@"
	await has_disk || { echo 'Bail out! no scsi_debug disk'; exit 1; }
	# a command that times out is tried again after this
	echo 1 >"/sys/block/${disk#/dev/}/device/timeout"
}
opts=/sys/bus/pseudo/drivers/scsi_debug/opts

# Unreadable sectors of rdo, in unit 40. Partial writes of it fail; a whole write is read from the cowfile then.
scsi medium_error_start=325 medium_error_count=2
cowtest fill "$disk" >/dev/null
dd if=/dev/zero of=/dev/nullb1 bs=1M count=1 oflag=direct status=none
dmsetup create t --table "0 16384 cowloop $disk /dev/nullb1"
new_model /dev/mapper/t
echo 2 >$opts
fails 'bad sector of rdo: its unit is not read' unit 40 --read
runs 'bad sector of rdo: its neighbour is' unit 41 --read
fails 'bad sector of rdo: a part of the unit is not written' cowtest io /dev/mapper/t 163840 512 --write --model model
runs 'bad sector of rdo: a part of its neighbour is' cowtest io /dev/mapper/t 167936 512 --write --model model
runs 'bad sector of rdo: the whole unit is written' unit 40 --write
runs 'bad sector of rdo: and then read' unit 40 --read
is "$(cowstat t mode)" rw 'bad sector of rdo: mode rw'
echo 0 >$opts
runs 'bad sector of rdo: all is right' cowtest verify /dev/mapper/t --model model
dmsetup remove t
rmmod scsi_debug

# Unreadable sectors of the cow device: first in the bitmap of a cowfile with some 2000 units, then in the data.
dmsetup create rdo --table '0 14000 linear /dev/nullb0 0'
cowtest fill /dev/mapper/rdo >/dev/null
scsi medium_error_start=8 medium_error_count=1
dmsetup create t --table "0 14000 cowloop /dev/mapper/rdo $disk"
rm -f model
runs 'bad sector in the bitmap: some work' cowtest run /dev/mapper/t --model model --ops 100
dmsetup remove t
echo 2 >$opts
dmsetup create t --table "0 14000 cowloop /dev/mapper/rdo $disk"
fails 'bad sector in the bitmap: its units are not read' unit 3 --read
fails 'bad sector in the bitmap: nor written' unit 3 --write
like "$(cowstat t mode)" '^(rw|fail)$' 'bad sector in the bitmap: the device is there'
dmsetup remove t
echo 0 >$opts
dmsetup create t --table "0 14000 cowloop /dev/mapper/rdo $disk"
runs 'bad sector in the bitmap: when it can be read again, all is there' cowtest verify /dev/mapper/t --model model
dmsetup remove t
rmmod scsi_debug

# Commands that are never answered: the disk is reset, and they are tried again.
dmsetup remove rdo
dmsetup create rdo --table "0 $SIZE linear /dev/nullb0 0"
cowstress fill /dev/mapper/rdo
scsi
blank "$disk"
cow=$disk
dmsetup create t --table "$(line /dev/mapper/rdo "$disk")"
echo 4 >$opts # every_nth commands are ignored
echo 400 >/sys/bus/pseudo/drivers/scsi_debug/every_nth
# a hexadecimal count
has_timed_out() { [ $(($(cat "/sys/block/${disk#/dev/}/device/iotmo_cnt"))) -gt 0 ]; }
# on a slow machine it takes more than one round to come to as many commands
stress_timeouts() { stress 6; status=$?; [ "$status" -ne 0 ] || has_timed_out; }
await stress_timeouts
ok "$status" 'commands time out: all comes right in the end' || diag "$(cat out)"
echo 0 >/sys/bus/pseudo/drivers/scsi_debug/every_nth
echo 0 >$opts
has_timed_out
ok $? 'commands time out: they have'
is "$(cowstat t mode)" rw 'commands time out: mode rw'
dmsetup remove t
reopened 'commands time out' /dev/mapper/rdo "$disk"
dmsetup remove rdo
rmmod scsi_debug

# --- Disks that are pulled out --------------------------------------------------------------------------------

# pull: out comes the disk
pull() {
	echo 1 >"/sys/block/${disk#/dev/}/device/delete"
	await test ! -e "/sys/block/${disk#/dev/}"
}
# plugged_out: its driver can go when nobody has it open any more
plugged_out() { await rmmod scsi_debug 2>/dev/null; }
late() { timeout 300 cowtest io /dev/mapper/t "$@" 2>&1; }
flush() { late --flush; }
# one_unit: a new model, and one unit that is in the cowfile and synced
one_unit() {
	new_model /dev/mapper/t
	unit 0 --write
	dmsetup message t 0 sync
}
# ended: the writers that have, and how
ended() { cat status.* 2>/dev/null | sort | uniq -c | xargs; }

dmsetup create rdo --table '0 14000 linear /dev/nullb0 0'
cowtest fill /dev/mapper/rdo >/dev/null
for options in '' queue_if_no_space; do
	name="cow device pulled out${options:+, $options}"
	scsi
	# shellcheck disable=SC2086 # none, or one
	cowopen t /dev/mapper/rdo "$disk" limit:12 low_water:1 $options
	rm -f status.*
	new_model /dev/mapper/t
	for n in 0 1 2 3; do
		unit $n --write
	done
	dmsetup message t 0 sync
	for n in 10 11 12 13 14 15 16 17; do
		unit $n --write
	done
	if [ "$options" ]; then
		for n in 20 21 22; do
			(late $((n * 4096)) 4096 --write >out.$n; echo $? >status.$n) &
		done
		settles 3 "$name: three writes wait for space" cowstat t queued
	fi
	pull
	dmsetup message t 0 limit 0
	out=$(late $((30 * 4096)) 4096 --write)
	like "$?: $out" '^3: .*EIO' "$name: a first write fails, and not for want of space"
	is "$(cowstat t mode)" fail "$name: mode fail"
	if [ "$options" ]; then
		settles '3 3' "$name: those that waited fail" ended
		is "$(cat out.20 out.21 out.22 | grep -c EIO)" 3 "$name: with EIO"
		is "$(cowstat t queued)" 0 "$name: none waits"
	fi
	like "$(dmesg | grep cowloop: | tail -n 1)" 'cow device .*(has gone|failed).*: error' "$name: the log says so"
	fails "$name: a rewrite fails" unit 0 --write
	fails "$name: a part of a unit" late $((31 * 4096)) 512 --write
	fails "$name: a flush" flush
	fails "$name: a sync" dmsetup message t 0 sync
	fails "$name: a read of it" unit 0 --read
	runs "$name: reads of rdo go on" unit 100 --read
	runs "$name: the table" dmsetup table t
	runs "$name: what it is made of" dmsetup deps t
	runs "$name: it is suspended" timeout 100 dmsetup suspend t
	runs "$name: and resumed" dmsetup resume t
	fails "$name: close says that something is lost" timeout 100 dmsetup message t 0 close
	is "$(cowstat t mode)" closed "$name: and lets go"
	runs "$name: reads of rdo go on then" unit 100 --read
	dmsetup remove t
	plugged_out
done

# A rewrite is the first to meet it.
name="cow device pulled out, rewrites"
scsi
cowopen t /dev/mapper/rdo "$disk" queue_if_no_space
one_unit
pull
fails "$name: one fails" unit 0 --write
settles fail "$name: mode fail" cowstat t mode
runs "$name: it can be removed" timeout 100 dmsetup remove t
plugged_out

# What is in the cowfile does not need rdo.
name="rdo pulled out"
scsi
cowtest fill "$disk" >/dev/null
dd if=/dev/zero of=/dev/nullb1 bs=1M count=1 oflag=direct status=none
cowopen t "$disk" /dev/nullb1 queue_if_no_space
new_model /dev/mapper/t
unit 0 --write
pull
fails "$name: reads of it fail" unit 100 --read
runs "$name: reads of the cowfile go on" unit 0 --read
runs "$name: so do rewrites" unit 0 --write
runs "$name: and first writes" unit 1 --write
fails "$name: a part of a unit is not written" late $((2 * 4096)) 512 --write
runs "$name: a flush" flush
runs "$name: sync" dmsetup message t 0 sync
is "$(cowstat t used state mode queued)" '2 clean rw 0' "$name: mode rw"
fails "$name: the table is not loaded again" dmsetup load t --table "$(dmsetup table t)"
runs "$name: close" timeout 100 dmsetup message t 0 close
dmsetup remove t
runs "$name: the cowfile is good" cowhead /dev/nullb1 dirty
plugged_out

# A file on a disk that is pulled out: some loop devices say of it what they say of a full filesystem.
mkdir -p mnt
for dio in off on; do
	name="the cowfile's disk pulled out, direct I/O $dio"
	scsi dev_size_mb=64
	mkfs.ext4 -q -F "$disk"
	mount "$disk" mnt
	truncate -s 16M mnt/cow
	cow=$(loopdev mnt/cow "--direct-io=$dio")
	cowopen t /dev/mapper/rdo "$cow" queue_if_no_space
	one_unit
	pull
	late $((30 * 4096)) 4096 --write >/dev/null
	status=$?
	flush >/dev/null
	is "$?" 3 "$name: a flush fails, if not a write, which has ended with $status"
	settles fail "$name: mode fail" cowstat t mode
	is "$(cowstat t queued)" 0 "$name: none waits"
	runs "$name: it can be removed" timeout 100 dmsetup remove t
	losetup -d "$cow"
	umount mnt
	plugged_out
done

# Blocks of the file that can't be written, on a disk that takes flushes: it might be want of space, but not for ever.
name="a bad block below the cowfile"
dmsetup create fs --table '0 65536 linear /dev/nullb1 0'
mkfs.ext4 -q -F /dev/mapper/fs
mount /dev/mapper/fs mnt
fallocate -l 16M mnt/cow
sync
cow=$(loopdev mnt/cow --direct-io=on)
cowopen t /dev/mapper/rdo "$cow" queue_if_no_space
one_unit
# unit 200 and 201 are behind head and bitmap
bad=$(filefrag -b4096 -v mnt/cow | awk -v block=202 -F '[ .:]+' '
	$2 ~ /^[0-9]+$/ && $3 + 0 <= block && $4 + 0 >= block { print $5 + block - $3 }')
printf '0 %d linear /dev/nullb1 0\n%d 16 error\n%d %d linear /dev/nullb1 %d\n' $((bad * 8)) $((bad * 8)) \
	$((bad * 8 + 16)) $((65536 - bad * 8 - 16)) $((bad * 8 + 16)) | dmsetup reload fs
dmsetup suspend --noflush --nolockfs fs
dmsetup resume fs
rm -f status.*
for n in 200 201; do
	(late $((n * 4096)) 4096 --write >out.$n; echo $? >status.$n) &
done
wait
is "$(ended)" '2 3' "$name: writes there end in the end"
is "$(cat out.200 out.201 | grep -c EIO)" 2 "$name: with the error that there was" || diag "$(cat out.200 out.201)"
is "$(cowstat t queued)" 0 "$name: none waits"
like "$(cowstat t mode)" '^(rw|out_of_space)$' "$name: the device has not failed"
runs "$name: other writes go on" unit 300 --write
runs "$name: and are committed" flush
runs "$name: all is right" cowtest verify /dev/mapper/t --model model
dmsetup remove t
losetup -d "$cow"
umount mnt
dmsetup remove fs rdo

done_testing
