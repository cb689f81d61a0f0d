#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G --timeout 3600
#
# Faults: for each operation, the n-th I/O to a device fails, for every n until the operation passes untouched. What
# failed says so, nothing else does, the device can be removed, and the cowfile opens again with all that was synced.
# And the power goes: from the n-th write on, all are dropped that the cow device says it has done.
#
# 1 MiB of rdo; the first 128 KiB have been written and synced before, and must stay; an operation writes to sectors
# in the second 128 KiB, which must be old or new afterwards.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh

SECTORS=2048 COW_SECTORS=2560
DEV=/dev/mapper/w
POWER_CUT='drop 0'

# The cow device has discards, and is given write-zeroes, which discards take in format 1.
modprobe null_blk nr_devices=2 gb=1 memory_backed=1 discard=1
modprobe -a dm-nth dm-zeroes
cd /tmp || exit 1
dmsetup create rdo --table "0 $SECTORS linear /dev/nullb0 0"
dmsetup create cow --table "0 $COW_SECTORS zeroes /dev/nullb1"
cowtest fill /dev/mapper/rdo --seed 7 >/dev/null
dmsetup create nrdo --table "0 $SECTORS nth /dev/mapper/rdo"
dmsetup create ncow --table "0 $COW_SECTORS nth /dev/mapper/cow"

create() { dmsetup create w --table "0 $SECTORS cowloop /dev/mapper/nrdo /dev/mapper/ncow $*" 2>&1; }
put() { cowtest io $DEV "$1" "$2" --write --stamp "$3" --model model; }
mode() { dmsetup status w | cut -d ' ' -f 10; }
field() { dmsetup info -c --noheadings -o "$1" w; }
restore() { dd if=saved of=/dev/mapper/cow bs=1M oflag=direct status=none; }
disarm() { dmsetup message nrdo 0 disarm && dmsetup message ncow 0 disarm; }

# prepare OPTIONS: a cowfile in which something has been written and synced
prepare() {
	options=$1
	dd if=/dev/zero of=/dev/mapper/cow bs=1M oflag=direct status=none 2>/dev/null
	cowtest verify /dev/mapper/rdo --base-seed 7 >/dev/null && rm -f model
	create "$options" && cowtest run $DEV --model model --base-seed 7 --ops 60 --region 0:128K >/dev/null &&
		dmsetup remove w
	dd if=/dev/mapper/cow of=saved bs=1M iflag=direct status=none
	cp model saved-model
}

# what is written behind the synced part: whole units, parts of one, next to each other
write_some() { put 131072 16384 1000 && put 163840 512 1001 && put 164864 1024 1002; }

# --- Operations: pre_X before the fault is armed, op_X after ------------------------------------------------

pre_open() { :; }
op_open() { create "$options"; }
pre_format() { dd if=/dev/zero of=/dev/mapper/cow bs=1M oflag=direct status=none 2>/dev/null; cp fresh-model model; }
op_format() { create "$options"; }
pre_read() { create "$options"; }
op_read() { cowtest verify $DEV --model model; }
pre_first_write() { create "$options"; }
op_first_write() { put 131072 16384 1000; }
pre_copyup() { create "$options"; }
op_copyup() { put 163840 512 1001; }
pre_commit() { create "$options" && write_some; }
op_commit() { cowtest io $DEV --flush; }
# with no bit to be committed: the flush goes down as it is, after a rewrite
pre_flush() { create "$options" && write_some && dmsetup message w 0 sync && put 131072 4096 1001; }
op_flush() { cowtest io $DEV --flush; }
pre_sync() { create "$options" && write_some; }
op_sync() { dmsetup message w 0 sync; }
pre_removal() { create "$options" && write_some; }
op_removal() { dmsetup remove w; }
# parts of two units that were written before, and what is between
pre_discard() { create "$options" && write_some && dmsetup message w 0 sync; }
op_discard() { cowtest io $DEV 132608 31744 --discard; }
# a dirty cowfile of format 1, as a crash leaves it
pre_repair() {
	create "$options" && write_some && cowtest io $DEV --flush && dd if=/dev/mapper/cow of=dirty bs=1M iflag=direct \
		status=none && dmsetup remove w && dd if=dirty of=/dev/mapper/cow bs=1M oflag=direct status=none
}
op_repair() { create '1 repair'; }

# --- A trial ------------------------------------------------------------------------------------------------

problem() { problems="$problems
$op, $device $kind $n $how: $*"; }

# old_or_new: each sector behind the synced part is as it was, or as the trial has written it
old_or_new() {
	cowtest io $DEV 131072 131072 --read --model saved-model >found 2>&1 || return 1
	! awk '$3 != "base" && $3 != 0 && !($3 >= 1000 && $3 <= 1002)' found | grep -q .
}

# kept: what was synced of units that a discard covers only in part is there, and if it was told to be done the others
# are rdo's or zeroes
kept() {
	awk -v format="${options:-2}" -v done="$result" '
		{ for (i = 0; i < $2; i++) stamp[$1 + i] = $3 }
		END {
			# a unit of 4 KiB, or two of 1 KiB; then what is discarded
			end = format == 2 ? 264 : 260
			for (s = 256; s < 288; s++)
				if (s < end ? stamp[s] != 1000 : done == 0 && stamp[s] == 1000)
					exit 1
			exit !(stamp[320] == 1001 && stamp[322] == 1002 && stamp[323] == 1002)
		}' found
}

# trial: one fault; sets hit when the fault was met
trial() {
	restore
	cp saved-model model
	"pre_$op" >out 2>&1 || { problem "the preparation failed: $(cat out)"; }
	events=$(field events 2>/dev/null || echo 0)
	commits=$(cowstat w commits 2>/dev/null)
	dmsetup message "n$device" 0 "arm $kind $n $how"
	"op_$op" >out 2>&1
	result=$?
	hit=$(dmsetup status "n$device" | cut -d ' ' -f 5)
	# the model is for what was synced; the trial's own writes are looked at apart
	cp saved-model model
	[ "$op" != format ] || cp fresh-model model
	if [ "$how" = "$POWER_CUT" ]; then
		# what the device says now is of no account
		! field events >/dev/null 2>&1 || dmsetup remove w || problem "can't be removed"
		disarm
		reopen
		result=1
		[ "$op" != discard ] || kept || problem "a discard has taken what it does not cover: $(cat found)"
		return
	fi
	disarm
	if [ "$hit" -gt 0 ] && [ $result = 0 ]; then
		case $op-$device-$kind$options in
		removal-*) ;; # can't fail
		# the bitmap is read ahead, and read again where that has failed
		open-cow-read*format:1 | repair-cow-read*) ;;
		# where write-zeroes fail, zeroes are written
		discard-cow-write*format:1) ;;
		# they commit nothing, but on a slow kernel the timer may have done so by now
		first_write-cow-write* | copyup-cow-write*)
			[ "$(cowstat w commits)" != "$commits" ] || problem "a fault was met, and nobody was told" ;;
		*) problem "a fault was met, and nobody was told" ;;
		esac
	elif [ "$hit" = 0 ] && [ $result != 0 ]; then
		problem "failed without a fault: $(cat out)"
	fi

	if field events >/dev/null 2>&1; then
		case $(mode) in
		rw | out_of_space)
			case $op in commit | flush | sync) [ $result = 0 ] || problem "mode rw after a failed $op" ;; esac
			put 262144 4096 1000 >out 2>&1 && dmsetup message w 0 sync >>out 2>&1 ||
				problem "mode rw, but writes fail after the fault: $(cat out)"
			;;
		fail)
			[ "$(field events)" -gt "$events" ] || problem "mode fail without an event"
			put 262144 4096 1000 >out 2>&1 && problem "mode fail, but a write succeeds"
			cowtest io $DEV --flush >out 2>&1 && problem "mode fail, but a flush succeeds"
			dmsetup message w 0 sync >out 2>&1 && problem "mode fail, but a sync succeeds"
			;;
		*) problem "mode $(mode)" ;;
		esac
		cowtest verify $DEV --model model --region 0:128K >out 2>&1 || problem "synced data is gone: $(cat out)"
		old_or_new || problem "neither old nor new: $(cat found)"
		[ "$op" != discard ] || kept || problem "discarded too much or too little: $(cat found)"
		dmsetup remove w || problem "can't be removed"
	fi

	reopen
	[ "$op" != discard ] || kept || problem "discarded too much or too little, opened again: $(cat found)"
	if [ $result = 0 ]; then
		case $op in
		commit | flush | sync)
			awk '$3 ~ /^[0-9]+$/ && $3 >= 1000 { n += $2 } END { exit n != 35 }' found ||
				problem "what was committed is not there: $(cat found)" ;;
		esac
	fi
}

# reopen: after a trial, all that was synced before is there, the rest is old or new
reopen() {
	if ! create "$options" >out; then
		create '1 repair' >>out || { problem "does not open again: $(cat out)"; return; }
	fi
	cowtest verify $DEV --model model --region 0:128K >out 2>&1 || problem "synced data is gone: $(cat out)"
	old_or_new || problem "neither old nor new after opening again: $(cat found)"
	dmsetup remove w || problem "can't be removed after opening again"
}

# faults OP DEVICE KIND HOW: for every n until the operation passes untouched
faults() {
	op=$1 device=$2 kind=$3 how=$4 n=1 tried=0 problems=''
	while :; do
		trial
		[ "$hit" -gt 0 ] && [ $n -lt 100 ] || break
		tried=$((tried + 1))
		# the 64 samples of a fingerprint of format 2 are read one by one, by a loop that knows no other difference
		# between them than where they are: the first ones, the last ones, and some between
		case $options$op$device-$n in
		openrdo-4 | formatrdo-4) n=8 ;;
		openrdo-8 | formatrdo-8) n=21 ;;
		openrdo-21 | formatrdo-21) n=33 ;;
		openrdo-33 | formatrdo-33) n=50 ;;
		openrdo-50 | formatrdo-50) n=62 ;;
		*) n=$((n + 1)) ;;
		esac
	done
	[ ! "$problems" ]
	ok $? "${options:-format 2}: $op: $tried faults of $device: $kind $how" || diag "$problems"
	met=$((met + tried))
}

met=0
for options in '' '1 format:1'; do
	prepare "$options"
	cp saved-model fresh-model
	# of a cowfile that is new, nothing has been written
	rm -f fresh-model
	cowtest run /dev/mapper/rdo --model fresh-model --base-seed 7 --ops 0 >/dev/null
	for op in open format read first_write copyup commit flush sync discard removal repair; do
		[ "$op" != repair ] || [ "$options" ] || continue
		for fault in 'rdo read' 'cow read' 'cow write' 'cow flush'; do
			# shellcheck disable=SC2086
			faults $op $fault eio
		done
	done
	for op in format first_write discard repair; do
		[ "$op" != repair ] || [ "$options" ] || continue
		faults $op cow write enospc
	done
	faults discard cow write 'enospc 0'
	for op in format first_write copyup commit sync discard removal repair; do
		[ "$op" != repair ] || [ "$options" ] || continue
		faults $op cow write timeout
	done
	for op in open read repair; do
		[ "$op" != repair ] || [ "$options" ] || continue
		faults $op cow read timeout
	done
	for op in format read copyup; do
		faults $op rdo read timeout
	done
	for op in format first_write copyup commit sync discard removal repair; do
		[ "$op" != repair ] || [ "$options" ] || continue
		faults $op cow write "$POWER_CUT"
	done
done
[ $met -gt 120 ]
ok $? "$met faults in all"

dmsetup remove ncow nrdo cow rdo
done_testing
