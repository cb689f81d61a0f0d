#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G
#
# No memory. Each allocation of a table load, a sync and a suspend fails once: the load says so and leaves nothing
# behind, the others do the device no harm. Then none of the workers gets any memory at all: I/O goes on, with the one
# region of the bitmap that is kept in reserve. Needs a kernel with fault injection: make check KERNEL=debug. STEP=1 has every
# allocation fail.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh

STEP=47
for setting; do
	eval "${setting%%=*}='${setting#*=}'"
done

DEBUG=/sys/kernel/debug
mount -t debugfs none $DEBUG 2>/dev/null
[ -d $DEBUG/failslab ] || plan skip_all "this kernel can't make allocations fail; try KERNEL=debug"

# faults in all allocations, also those that may wait
for kind in failslab fail_page_alloc; do
	echo N >"$DEBUG/$kind/ignore-gfp-wait"
	echo 0 >"$DEBUG/$kind/verbose"
done
echo 0 >$DEBUG/fail_page_alloc/min-order

# --- Each allocation once -----------------------------------------------------------------------------------

modprobe brd rd_nr=2 rd_size=16384
LINE="0 16384 cowloop /dev/ram0 /dev/ram1"
blank() { dd if=/dev/zero of=/dev/ram1 bs=64K count=2 oflag=direct status=none; }

# each NAME EXPECT PREPARE CLEANUP NTHALLOC-ARGUMENT...: fails the first allocation, the second, until none is left; a
# load makes many hundreds, and most are alike, so from the 20th on it is one in STEP. EXPECT is what must be said when
# one has failed: a regex.
each() {
	name=$1 expect=$2 prepare=$3 cleanup=$4 n=1 trials=0 problems=''
	shift 4
	while [ $n -lt 5000 ]; do
		$prepare
		said=$(nthalloc $n "$@")
		case $said in
		'passed ok') $cleanup; break ;;
		'met '*) echo "${said#met }" | grep -Eqx "$expect" || problems="$problems
$n: $said" ;;
		*) problems="$problems
$n: failed without a fault: $said" ;;
		esac
		$cleanup
		trials=$((trials + 1))
		n=$((n + (n < 20 ? 1 : STEP)))
	done
	# a suspension may need no memory at all
	[ ! "$problems" ] && { [ $n -gt 3 ] || [ "$1" = suspend ]; } && [ $n -lt 5000 ]
	ok $? "$name: $trials of $n allocations fail, one at a time" || diag "$problems"
}

clear_table() { dmsetup clear w 2>/dev/null; }
for format in 2 1; do
	dmsetup create w --notable
	each "format $format: load, blank" 'ok|Cannot allocate memory|Input/output error' blank clear_table \
		load w "$LINE 1 format:$format"
	runs 'and then it does load' dmsetup load w --table "$LINE 1 format:$format"
	runs 'and resume' dmsetup resume w
	cowtest fill /dev/ram0 >/dev/null
	dmsetup remove w
	blank
	dmsetup create w --table "$LINE 1 format:$format"
	runs "format $format: some work" cowtest run /dev/mapper/w --model model --ops 200
	dmsetup remove w
	dmsetup create w --notable
	each "format $format: load, existing" 'ok|Cannot allocate memory|Input/output error' : clear_table load w "$LINE"
	dmsetup remove w

	# device-mapper itself may be out of memory; we may not, or the mode would be fail
	dmsetup create w --table "$LINE"
	stamp=1000
	change() {
		stamp=$((stamp + 1))
		cowtest io /dev/mapper/w $((stamp * 8192 % 8388608)) 3072 --write --stamp $stamp --model model
	}
	each "format $format: sync" 'ok|Cannot allocate memory' change : message w sync
	each "format $format: suspend" 'ok|Cannot allocate memory' change 'dmsetup resume w' suspend w
	runs "format $format: sync" dmsetup message w 0 sync
	is "$(cowstat w mode state)" 'rw clean' "format $format: and the device is fine"
	runs "format $format: all is there" cowtest verify /dev/mapper/w --model model
	dmsetup remove w
	dmsetup create w --table "$LINE"
	runs "format $format: all is there, opened again" cowtest verify /dev/mapper/w --model model
	dmsetup remove w
	rm model
	blank
done

# What the kernel's own slab caches leave behind when they can't be made is not ours.
if [ -e $DEBUG/kmemleak ]; then
	for n in 1 2; do
		sleep 6 # younger ones don't count
		echo scan >$DEBUG/kmemleak
	done
	leaks=$(awk '/^unreferenced object/ { show(); text = "" } { text = text $0 "\n" } END { show() }
		function show() { if (text != "" && text !~ /sysfs_slab_add/) printf "%s", text }' $DEBUG/kmemleak)
	is "$leaks" '' 'nothing has leaked'
	echo clear >$DEBUG/kmemleak
fi

# --- No memory for the workers ------------------------------------------------------------------------------

# A device of 24 regions of the bitmap, 127 MiB each, of which 256 KiB are looked at; those, put together, are `small'.
REGION=260096 WINDOW=512 NR=24
META=$((8 + NR * 8)) # head and bitmap, in sectors

# windows DEVICE OFFSET LEAD: a table with a window onto DEVICE in each region, and nothing between them
windows() {
	i=0
	[ "$3" = 0 ] || echo "0 $3 linear $1 0"
	while [ $i -lt $NR ]; do
		echo "$(($3 + i * REGION)) $WINDOW linear $1 $(($2 + i * WINDOW))"
		echo "$(($3 + i * REGION + WINDOW)) $((REGION - WINDOW)) zero"
		i=$((i + 1))
	done
}
# small DEVICE: a table that puts the windows together
small() {
	i=0
	while [ $i -lt $NR ]; do
		echo "$((i * WINDOW)) $WINDOW linear $1 $((i * REGION))"
		i=$((i + 1))
	done
}
windows /dev/ram0 0 0 | dmsetup create rdo
small /dev/mapper/rdo | dmsetup create small-rdo
cowtest fill /dev/mapper/small-rdo --seed 3 >/dev/null
# ramdisks get their memory when written: now
dd if=/dev/zero of=/dev/ram1 bs=1M count=16 oflag=direct status=none
windows /dev/ram1 $META $META | dmsetup create cow
dmsetup create w --table "0 $((REGION * NR)) cowloop /dev/mapper/rdo /dev/mapper/cow"
small /dev/mapper/w | dmsetup create small

# workers are made as they are needed
starve() {
	while :; do
		for comm in /proc/[0-9]*/comm; do
			read -r name 2>/dev/null <"$comm" || continue
			case $name in
			kworker* | dm-cowloop*) echo 1 >"${comm%comm}make-it-fail" ;;
			esac
		done 2>/dev/null
		sleep 0.2
	done
}
starve &
starving=$!
for kind in failslab fail_page_alloc; do
	echo Y >"$DEBUG/$kind/task-filter"
	echo -1 >"$DEBUG/$kind/times"
	echo 100 >"$DEBUG/$kind/probability"
done
sleep 1

runs 'no memory: I/O from one thread' cowtest run /dev/mapper/small --model model --base-seed 3 --ops 300 --max-bytes 64K
runs 'no memory: I/O from four threads' cowtest run /dev/mapper/small --model model --base-seed 3 --ops 600 --threads 4
runs 'no memory: all is there' cowtest verify /dev/mapper/small --model model
runs 'no memory: sync' dmsetup message w 0 sync
is "$(cowstat w mode state)" 'rw clean' 'no memory: it is clean then'
for kind in failslab fail_page_alloc; do
	echo 0 >"$DEBUG/$kind/probability"
done
kill $starving

runs 'memory again: I/O' cowtest run /dev/mapper/small --model model --base-seed 3 --ops 200
dmsetup remove small
dmsetup remove w
dmsetup create w --table "0 $((REGION * NR)) cowloop /dev/mapper/rdo /dev/mapper/cow"
small /dev/mapper/w | dmsetup create small
runs 'and all is there, opened again' cowtest verify /dev/mapper/small --model model

dmsetup remove small
dmsetup remove w
dmsetup remove cow
dmsetup remove small-rdo
dmsetup remove rdo
done_testing
