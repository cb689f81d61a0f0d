#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Load from fio, which puts a checksum and a place into every 512 bytes that it writes, and looks for them
# afterwards, also when the device has been opened again: many jobs at a time, pieces of all sizes, much that is to
# be folded into copy-ups, flushes in between, and asynchronous I/O that must not block.
#
# vm: --smp 4 --mem 1G

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

mib=24
truncate -s ${mib}M rdo
cowtest fill rdo >/dev/null
sum=$(sha256sum rdo)
rdo=$(loopdev rdo -r)
dev=/dev/mapper/t

# fresh OPTION...: the device over a blank cowfile; on a loop device with direct I/O where there is a file
fresh() {
	rm -f cow
	truncate -s $((mib + 4))M cow
	cow=$(loopdev cow)
	runs "device: $*" cowopen t "$rdo" "$cow" "$@"
	options=$*
}

# finished NAME: the cowfile on disk says what the device did
finished() {
	is "$(cowstat t state mode errors | sed 's/^[a-z]* //')" "rw 0" "$1: no error, no change of mode"
	cp --sparse=never $dev was
	used=$(cowstat t used)
	dmsetup remove t
	is "$(cowhead cow dirty cowused popcount)" "0 $used $used" "$1: the cowfile is good, and clean"
	cowfile image --rdo rdo --cow cow --out image >out
	ok $? "$1: it is that of this rdo" || diag "$(cat out)"
	cmp image was
	ok $? "$1: it says what the device said"
	rm was image
	losetup -d "$cow"
}

# job NAME OPTION...: passes when fio finds everything as it was written
job() {
	name=$1
	shift
	fio --name=job --filename=$dev --eta=never --direct=1 --thread --group_reporting --invalidate=0 --randrepeat=1 --verify=crc32c \
		--verify_interval=512 --verify_fatal=1 --verify_dump=0 --output=fio.out "$@" 2>fio.err
	ok $? "$name" || diag "$(cat fio.out fio.err)"
	# there was something to verify
	like "$(grep -c 'err= *0' fio.out)" '^[1-9]' "$name: no error"
}

# again NAME OPTION...: the same job's data is there after the device is opened again
again() {
	dmsetup remove t
	# shellcheck disable=SC2086 # several words
	cowopen t "$rdo" "$cow" $options
	name=$1
	shift
	job "$name: opened again" --rw=read --bs=64k "$@"
}

copyups() { cowstat t copyups; }


# --- Pieces of all sizes, four jobs with regions of their own ------------------------------------------------

four='--numjobs=4 --size=3m --offset_increment=3m --ioengine=libaio --iodepth=16'
sizes() {
	fresh "$@"
	# shellcheck disable=SC2086 # several words
	job "reads and writes $*" $four --rw=randrw --bsrange=512-64k
	# shellcheck disable=SC2086 # several words
	job "writes and fsyncs $*" $four --rw=randwrite --bsrange=512-64k --fsync=32
	# shellcheck disable=SC2086 # several words
	again "writes $*" $four
}
sizes
# this is how it would be noticed
cowtest io $dev $((5 * 1024 * 1024 + 512)) 512 --write >/dev/null
# shellcheck disable=SC2086 # several words
! fio --name=job --filename=$dev --direct=1 --verify=crc32c --verify_interval=512 --rw=read --bs=64k $four >/dev/null 2>&1
ok $? "one sector that is wrong is found"
finished "all sizes"

sizes mapunit:65536
finished "all sizes mapunit:65536"

# --- Parts of units, in order -------------------------------------------------------------------------------

# every unit is copied up exactly once, however many writes there are to it
fresh format:2
job "512 bytes in order" --rw=write --bs=512 --size=2m --ioengine=libaio --iodepth=16
is "$(copyups)" 512 "512 bytes in order: one copy-up for each unit"
job "512 bytes in order, again" --rw=write --bs=512 --size=512k --ioengine=libaio --iodepth=16 --verify_pattern=0x5a
is "$(copyups)" 512 "512 bytes in order, again: and none more"

# offset_increment: job n writes sector n of every unit
eight='--numjobs=8 --rw=write:3584 --bs=512 --offset=4m --offset_increment=512 --size=2m --io_size=256k'
# shellcheck disable=SC2086 # several words
job "eight jobs in the same units" $eight --ioengine=libaio --iodepth=4
is "$(copyups)" $((512 + 512)) "eight jobs in the same units: one copy-up for each"
# shellcheck disable=SC2086 # several words
job "eight jobs in the same units, with FUA" $eight --offset=8m --size=256k --io_size=32k --ioengine=psync --sync=dsync
is "$(copyups)" $((1024 + 64)) "eight jobs in the same units, with FUA: one copy-up for each"
# shellcheck disable=SC2086 # several words
job "eight jobs in the same units, with fsync" $eight --offset=10m --size=512k --io_size=64k --ioengine=psync --fdatasync=4
is "$(copyups)" $((1088 + 128)) "eight jobs in the same units, with fsync: one copy-up for each"
again "512 bytes in order" --offset=512k --size=1536k
for at in 4m:2m 8m:256k 10m:512k; do
	job "eight jobs in the same units, opened again" --rw=read --bs=64k --offset=${at%:*} --size=${at#*:}
done
is "$(cowstat t used copyups)" "$((512 + 512 + 64 + 128)) 0" "as many units are used"
finished "parts of units"

fresh mapunit:65536
# shellcheck disable=SC2086 # several words
job "eight jobs in the same large units" --numjobs=8 --rw=write:3584 --bs=512 --offset_increment=512 --size=1m \
	--io_size=128k --ioengine=libaio --iodepth=8
is "$(cowstat t used copyups)" "16 16" "eight jobs in the same large units: one copy-up for each"
job "4 KiB in order, in large units" --rw=write --bs=4k --offset=2m --size=8m --ioengine=libaio --iodepth=16 --fsync=64
is "$(cowstat t used copyups)" "144 144" "4 KiB in order, in large units: one copy-up for each"
again "eight jobs in the same large units" --size=1m
finished "large units"

# --- Asynchronous I/O that must not block -------------------------------------------------------------------

fresh format:1
uring='--ioengine=io_uring --iodepth=16 --numjobs=4 --size=2m --offset_increment=2m'
# shellcheck disable=SC2086 # several words
job "io_uring, format 1" $uring --rw=randrw --bsrange=512-64k
# shellcheck disable=SC2086 # several words
job "io_uring, format 1, writes" $uring --rw=randwrite --bsrange=512-64k --fsync=32
# shellcheck disable=SC2086 # several words
again "io_uring, format 1, writes" $uring
finished "io_uring, format 1"

fresh format:2
# shellcheck disable=SC2086 # several words
job "io_uring" $uring --rw=randwrite --bsrange=512-64k --fixedbufs
# shellcheck disable=SC2086 # several words
again "io_uring" $uring --fixedbufs
finished "io_uring"

# A cow device whose queue is nearly always full: what must not wait is told to come again, all of it or nothing. When
# a part had been written, io_uring could not do it again.
modprobe null_blk nr_devices=1 gb=1 memory_backed=1 bs=512 submit_queues=1 hw_queue_depth=2 irqmode=2 completion_nsec=500000
cow=/dev/nullb0
dd if=/dev/zero of=$cow bs=64K count=1 oflag=direct status=none
options=format:2
runs "device: full queue" cowopen t "$rdo" "$cow" $options
# shellcheck disable=SC2086 # several words
job "io_uring, full queue" $uring --rw=randrw --bsrange=512-64k
# shellcheck disable=SC2086 # several words
job "io_uring, full queue, writes" $uring --rw=randwrite --bsrange=512-64k --fsync=32
# shellcheck disable=SC2086 # several words
again "io_uring, full queue, writes" $uring
is "$(cowstat t mode errors)" "rw 0" "io_uring, full queue: no error, no change of mode"
dmsetup remove t

# --- Polled I/O ---------------------------------------------------------------------------------------------

# Devices whose poll queue completes nothing by itself: it takes those who wait, and poll.
rmmod null_blk
modprobe null_blk nr_devices=2 gb=1 memory_backed=1 bs=512 submit_queues=2 poll_queues=2
# all of their memory before that: null_blk looks for more in its poll, where nobody may sleep
dd if=rdo of=/dev/nullb0 bs=1M oflag=direct status=none
dd if=/dev/zero of=/dev/nullb1 bs=1M count=$((mib + 1)) oflag=direct status=none
dmsetup create polled-rdo --readonly --table "0 $((mib * 2048)) linear /dev/nullb0 0"
runs "device: polled" cowopen t /dev/mapper/polled-rdo /dev/nullb1
is "$(cat "/sys/block/dm-$(dmsetup info -c --noheadings -o minor t)/queue/io_poll")" 1 "the device has polled I/O, as those below it have"
polled="$uring --hipri"
# how often the driver below is asked for what it has completed; not with every kernel
tracing=/sys/kernel/debug/tracing
{ echo 'p:polls null_poll' >$tracing/kprobe_events && echo 1 >$tracing/events/kprobes/polls/enable; } 2>/dev/null
polls() { awk '$1 == "polls" { print $2 }' $tracing/kprobe_profile 2>/dev/null; }
# reaches NAME: passes when it has been since the last time
reaches() {
	[ "${before:=$(polls)}" ] || { skip "$1: no kprobes here"; return; }
	now=$(polls)
	[ "$now" -gt "$before" ]
	ok $? "$1: by polling ($now)" && before=$now
}
before=$(polls)
# shellcheck disable=SC2086 # several words
job "polled, reads of rdo" $polled --rw=randread --bs=4k --verify=0
reaches "reads of rdo are completed"
# shellcheck disable=SC2086 # several words
job "polled" $polled --rw=randrw --bsrange=512-64k
reaches "reads and writes are completed"
# shellcheck disable=SC2086 # several words
job "polled, writes" $polled --rw=randwrite --bsrange=512-64k
dmsetup remove t
cowopen t /dev/mapper/polled-rdo /dev/nullb1
# shellcheck disable=SC2086 # several words
job "polled, opened again" --rw=read --bs=64k $polled
reaches "reads of what was written are completed"
is "$(cowstat t mode errors)" "rw 0" "polled: no error, no change of mode"
dmsetup remove t polled-rdo

is "$(sha256sum rdo)" "$sum" "nobody has written to rdo"

done_testing
