#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G --timeout 1800
#
# Races. Many threads at the same few units, again and again on a new cowfile, so that they meet in first writes and
# discards: by themselves, while the device is suspended, its table reloaded, synced and asked for its status all the
# time, and its bitmap evicted, and with slow devices below, which leave more time to meet. Then removal while all of this
# goes on, while I/O is stuck, and after a commit has failed; and the module is unloaded while devices come and go.
#
# SECONDS=300 as an argument makes the first part so long. ONLY=rounds leaves out the rest.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

seconds=0 only=''
for setting; do
	case $setting in
	SECONDS=*) seconds=${setting#*=} ;;
	ONLY=rounds) only=rounds ;;
	*) plan skip_all "what is $setting?" ;;
	esac
done

# Ramdisks that write sectors in one piece; brd does not. Write-zeroes are given to them, and these and discards take
# their time.
modprobe null_blk nr_devices=2 gb=1 memory_backed=1 discard=1
modprobe -a dm-delay dm-nth dm-zeroes
size=0 format=2 unit=4096
seed=0

# below PACE SECTORS: the devices rdo and cow, fast or slow
below() {
	size=$2
	case $1 in
	fast) rdo_line="linear /dev/nullb0 0" cow_line="linear /dev/nullb1 0" ;;
	slow) rdo_line="delay /dev/nullb0 0 4" cow_line="delay /dev/nullb1 0 0 /dev/nullb1 0 3" ;;
	esac
	dmsetup create rdo-below --table "0 $2 $rdo_line"
	dmsetup create cow-below --table "0 $(($2 + 512)) $cow_line"
	dmsetup create rdo --table "0 $2 zeroes /dev/mapper/rdo-below"
	dmsetup create cow --table "0 $(($2 + 512)) zeroes /dev/mapper/cow-below 4"
	cowstress fill /dev/mapper/rdo
	sum=$(sha256sum /dev/mapper/rdo)
}
gone_below() {
	is "$(sha256sum /dev/mapper/rdo)" "$sum" "$name: rdo is as it was"
	dmsetup remove cow rdo
	dmsetup remove cow-below rdo-below
}

line() { echo "0 $size cowloop /dev/mapper/rdo /dev/mapper/cow"; }
open() { dmsetup create t --table "$(line)"; }
# fresh: the device on a new cowfile
fresh() {
	dd if=/dev/zero of=/dev/mapper/cow bs=4096 count=1 oflag=direct status=none
	dmsetup create t --table "$(line) 2 format:$format mapunit:$unit"
}
# stress SECONDS [OPTION...]
stress() {
	seed=$((seed + 1))
	for_seconds=$1
	shift
	cowstress run /dev/mapper/t --journal journal --unit-size "$unit" --discard --seed $seed --seconds "$for_seconds" "$@"
}
verify() { cowstress verify /dev/mapper/t --journal journal; }

# --- Rounds -------------------------------------------------------------------------------------------------

# over and over COMMAND: until the file stop is there; says how often, or what failed
over_and_over() {
	times=0
	while [ ! -e stop ]; do
		"$@" >>loop-out 2>&1 || echo "$* failed" >>problems
		times=$((times + 1))
	done
	echo "$1 $times" >>counts
}
turn() {
	dmsetup suspend t && dmsetup resume t &&
		dmsetup load t --table "$(line)" && dmsetup resume t &&
		dmsetup suspend --noflush t && dmsetup resume t &&
		dmsetup suspend --noflush --nolockfs t && dmsetup load t --table "$(line)" && dmsetup resume t
}
poll() { dmsetup status t && dmsetup table t; }
sync_it() { dmsetup message t 0 sync; }
# as when memory is short: the bitmap in it is evicted, as far as it can be
squeeze() { echo 2 >/proc/sys/vm/drop_caches && sleep 0.02; }

# round quiet|busy: fails when something is wrong
round() {
	rm -f stop problems counts loop-out
	fresh || return
	loops=''
	if [ "$1" = busy ]; then
		for loop in turn poll sync_it squeeze; do
			over_and_over $loop &
			loops="$loops $!"
		done
	fi
	stress 1
	bad=$?
	: >stop
	# shellcheck disable=SC2086 # several
	[ ! "$loops" ] || wait $loops
	[ ! -e problems ] || { sort problems | uniq -c; tail loop-out; bad=1; }
	[ ! -e counts ] || echo "meanwhile: $(tr '\n' ' ' <counts)"
	echo "used $(cowstat t used) of $(cowstat t total) units, copyups $(cowstat t copyups), commits $(cowstat t commits)," \
		"discarded units $(cowstat t discarded_units)"
	is_rw=$(cowstat t mode errors)
	verify || bad=1
	dmsetup remove t || return
	open || return
	verify || bad=1
	dmsetup remove t
	[ "$is_rw" = 'rw 0' ] || { echo "mode and errors: $is_rw"; bad=1; }
	return $bad
}

# rounds NAME FORMAT UNIT SECTORS
rounds() {
	format=$2 unit=$3
	for pace in fast slow; do
		name="$1, $pace"
		below $pace "$4"
		for how in quiet busy; do
			round $how >out
			ok $? "$name: a $how round"
			diag "$(cat out)"
			copyups=$((copyups + $(sed -n 's/.*copyups \([0-9]*\),.*/\1/p' out)))
			discarded=$((discarded + $(sed -n 's/.*discarded units \([0-9]*\)$/\1/p' out)))
		done
		dmsetup remove t 2>/dev/null
		gone_below
	done
}

copyups=0 discarded=0 more=5
end=$(($(date +%s) + seconds))
while :; do
	rounds "format 2" 2 4096 1539
	rounds "format 2, units of 64 KiB" 2 65536 6149
	rounds "format 1" 1 1024 800
	# a slow machine needs more rounds for as much
	more=$((more - 1))
	[ "$(date +%s)" -lt $end ] || { [ $more -gt 0 ] && [ $((copyups < 100 || discarded < 100)) = 1 ]; } || break
done
ok $((copyups < 100)) "$copyups copy-ups in all"
ok $((discarded < 100)) "$discarded units discarded in all"

[ "$only" != rounds ] || done_testing

# --- Removal while busy -------------------------------------------------------------------------------------

has_copyups() { [ "$(cowstat t copyups)" -gt 0 ]; }
# start [OPTION...]: stress in the background, until finished; well under way when this returns
start() {
	seed=$((seed + 1))
	# not by stress(), which would be another process between
	cowstress run /dev/mapper/t --journal journal --unit-size "$unit" --seed $seed --seconds 10000 "$@" >out 2>&1 &
	runner=$!
	await has_copyups
	sleep 0.3
}
# finished NAME: it ends, and well
finished() {
	kill -TERM $runner
	wait $runner
	ok $? "$name: $1"
	diag "$(cat out)"
}
errors() { sed -n 's/.*; errors \([0-9]*\);.*/\1/p' out; }
# waits NAME PID...: none of them has ended
waits() {
	waits_name=$1
	shift
	kill -0 "$@" 2>/dev/null
	ok $? "$name: $waits_name"
}
is_open() { dmsetup info t >/dev/null 2>&1; }
is_gone() { ! is_open; }
has_failed() { [ "$(cowstat t errors)" -gt 0 ] || ! kill -0 $runner 2>/dev/null; }
# reopened [--flushed]: what is on disk is right
reopened() {
	[ "$1" ] || is "$(cowhead /dev/mapper/cow dirty)" 0 "$name: clean on disk"
	runs "$name: open it again" open
	runs "$name: what is there is right" cowstress verify /dev/mapper/t --journal journal "$@"
	dmsetup remove t
	cowhead /dev/mapper/cow dirty >out
	ok $? "$name: a good cowfile" || diag "$(cat out)"
}

format=2 unit=4096
name=removal
below slow 1539
fresh
start --discard
fails "$name: remove a device in use" dmsetup remove t
# shellcheck disable=SC2154 # fails sets it
like "$tap_out" '[Bb]usy' "$name: it is busy"
is "$(cowstat t mode errors)" 'rw 0' "$name: it goes on"
finished "nobody has noticed"
runs "$name: verify" verify
runs "$name: remove it, when it is not in use" dmsetup remove t
reopened

name='removal, deferred'
fresh
start --discard
runs "$name: remove" dmsetup remove --deferred t
is_open
ok $? "$name: not yet"
finished "nobody has noticed"
await is_gone
ok $? "$name: then it goes"
reopened

# Without discards: a table that fails them does so with EOPNOTSUPP, which the block layer reports as success.
name='removal, forced'
fresh
start --allow-errors
fails "$name: it is still open" dmsetup remove --force t
like "$(dmsetup table t)" ' error' "$name: but has another table"
finished "errors, but nothing wrong"
ok $(($(errors) < 1)) "$name: $(errors) errors"
runs "$name: remove it" dmsetup remove t
reopened

# --- Removal while stuck ------------------------------------------------------------------------------------

# Copy-ups can't read, other writes wait for them; a sync waits for all of them, and a suspend too.
name=stuck
fresh
dmsetup suspend --noflush rdo
start --discard
dmsetup message t 0 sync &
sync=$!
sleep 0.3
dmsetup suspend t &
suspend=$!
sleep 0.5
waits "the I/O, the sync and the suspend" $runner $sync $suspend
like "$(cowstat t mode copyups)" '^rw [1-9]' "$name: there is a status"
fails "$name: remove" dmsetup remove t
like "$tap_out" '[Bb]usy' "$name: it is busy"
dmsetup resume rdo
wait $sync
ok $? "$name: the sync comes to an end"
wait $suspend
ok $? "$name: the suspend comes to an end"
is "$(cowstat t state)" clean "$name: clean"
dmsetup resume t
finished "all the I/O comes to an end"
runs "$name: verify" verify
runs "$name: remove" dmsetup remove t
reopened

name='stuck, removal forced'
fresh
dmsetup suspend --noflush rdo
start --allow-errors
dmsetup remove --force t 2>/dev/null &
remove=$!
sleep 1
waits "the I/O and the removal" $runner $remove
dmsetup resume rdo
wait $remove
finished "all the I/O comes to an end"
is "$(dmsetup info -c --noheadings -o open t)" 0 "$name: nobody has it open"
runs "$name: remove" dmsetup remove t
reopened

# --- Removal after a failed commit --------------------------------------------------------------------------

for fault in 'flush 2 eio 0' 'write 50 eio 0' 'any 70 timeout 0'; do
	name="after a fault, $fault"
	dd if=/dev/zero of=/dev/mapper/cow bs=4096 count=1 oflag=direct status=none
	dmsetup create ncow --table "0 $(sectors /dev/mapper/cow) nth /dev/mapper/cow"
	dmsetup create t --table "0 $size cowloop /dev/mapper/rdo /dev/mapper/ncow"
	start --allow-errors --discard
	dmsetup message ncow 0 "arm $fault"
	await has_failed
	finished "errors, but nothing wrong"
	ok $(($(errors) < 1)) "$name: $(errors) errors"
	diag "mode $(cowstat t mode)"
	# a fault that came when nothing was left to commit has not been met by a commit yet
	fails "$name: a sync fails" dmsetup message t 0 sync
	is "$(cowstat t mode)" fail "$name: mode fail"
	runs "$name: remove" dmsetup remove t
	dmsetup remove ncow
	reopened --flushed
done

# --- The module ---------------------------------------------------------------------------------------------

name='unloading'
fresh
fails "$name: while a device is there" rmmod dm_cowloop
like "$tap_out" 'in use' "$name: it is in use"
dmsetup remove t

good=0
for i in 1 2 3 4; do
	fresh && stress 0.2 --threads 4 >out && dmsetup remove t && rmmod dm_cowloop && modprobe dm_cowloop &&
		open && verify >>out && dmsetup remove t && rmmod dm_cowloop && modprobe dm_cowloop && good=$i
done 2>>out
is $good 4 "$name: right after the last device has gone, time after time" || diag "$(cat out)"

# unload: as often as possible; only being in use may prevent it
unload() {
	unloaded=0 busy=0
	while [ ! -e stop ]; do
		if said=$(rmmod dm_cowloop 2>&1); then
			unloaded=$((unloaded + 1))
		else
			case $said in
			*'in use'*) busy=$((busy + 1)) ;;
			*) echo "$said" >>problems ;;
			esac
		fi
		modprobe dm_cowloop 2>>problems
	done
	echo "unloaded $unloaded times, in use $busy times" >counts
}
rm -f stop problems
unload &
unloader=$!
made=0 unmade=0
end=$(($(date +%s) + 120))
while [ $made -lt 8 ] && [ "$(date +%s)" -lt $end ]; do
	# between modprobe, which device-mapper calls, and the use of the module it may go again
	if ! said=$(fresh 2>&1); then
		unmade=$((unmade + 1))
		echo "$said" | grep -q 'Invalid argument' || echo "$said" >>problems
		continue
	fi
	made=$((made + 1))
	{ stress 0.1 --threads 2 && dmsetup remove t && { ! open || { verify && dmsetup remove t; }; }; } >out 2>&1 ||
		cat out >>problems
done
: >stop
wait $unloader
[ ! -s problems ]
ok $? "$name: while devices come and go" || diag "$(cat problems)"
diag "$made devices made, $unmade not; $(cat counts)"
ok $((made < 4)) "$name: most devices could be made"
is_open && dmsetup remove t

name=below
gone_below
done_testing
