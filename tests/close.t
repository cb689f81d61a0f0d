#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 4 --mem 1G
#
# The message `close': the device stays, without its cow device. What holds that can be unmounted; what is in rdo can
# be read; all else fails. A reload brings the cow device back.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh

modprobe brd rd_nr=2 rd_size=65536
cd /tmp || exit 1
mkfs.ext4 -q /dev/ram1
mkdir mnt
cowtest fill rdo --size 24M >/dev/null
rdo=$(loopdev rdo -r)

is_read() { [ "$(cowstat t cow_reads)" -gt "$reads" ]; }

for options in 'format:2' 'format:2 mapunit:65536' 'format:1'; do
	mount /dev/ram1 mnt
	rm -f mnt/cow
	truncate -s 26M mnt/cow
	cow=$(loopdev mnt/cow)
	# shellcheck disable=SC2086
	cowopen t "$rdo" "$cow" $options
	losetup -d "$cow" # goes when it is let go
	table=$(dmsetup table t)
	rm -f model
	# the first 8 MiB are written here and there, 16 MiB stay as they are
	runs "$options: some work" cowtest run /dev/mapper/t --model model --ops 300 --threads 4 --region 0:8M
	cowtest io /dev/mapper/t 0 1M --write --stamp 77 --model model
	fails "$options: what holds the cow device is busy" umount mnt

	dmsetup load t --table "$table"
	fails "$options: not while another table has it too" dmsetup message t 0 close
	dmsetup clear t
	is "$(cowstat t mode)" rw "$options: and nothing has changed"

	events=$(dmsetup info -c --noheadings -o events t) reads=$(cowstat t cow_reads)
	fio --name=reads --filename=/dev/mapper/t --rw=randread --bs=4k --iodepth=16 --ioengine=libaio --direct=1 \
		--time_based --runtime=4 --continue_on_error=read --numjobs=2 --thread --group_reporting >fio.out 2>&1 &
	await is_read
	runs "$options: close, while it is read" dmsetup message t 0 close
	is "$(cowstat t mode state)" 'closed clean' "$options: mode closed"
	[ "$(dmsetup info -c --noheadings -o events t)" -gt "$events" ]
	ok $? "$options: and an event"
	runs "$options: close again changes nothing" dmsetup message t 0 close
	like "$(dmsetup table t)" "^0 49152 cowloop ([0-9]+:[0-9]+ ){2}.* read_only$" \
		"$options: the table still says what recreates it"
	is "$(dmsetup deps -o blkdevname t | grep -c "${cow#/dev/}")" 0 "$options: the cow device is no dependency any more"
	wait
	runs "$options: the filesystem that holds the cowfile can be unmounted" umount mnt
	losetup "$cow" 2>/dev/null | grep -q .
	is $? 1 "$options: no loop device is left"

	runs "$options: what is in rdo is read" cowtest verify /dev/mapper/t --model model --region 8M:16M
	fails "$options: what was in the cowfile is not" cowtest io /dev/mapper/t 0 4096 --read
	fails "$options: a write fails" cowtest io /dev/mapper/t 20M 4096 --write
	runs "$options: a flush has nothing to do" cowtest io /dev/mapper/t --flush
	runs "$options: nor has a sync" dmsetup message t 0 sync
	runs "$options: suspend and resume" sh -c 'dmsetup suspend t && dmsetup resume t'
	is "$(cowstat t mode)" closed "$options: it stays closed"

	mount /dev/ram1 mnt
	is "$(cowhead mnt/cow flags)" 0x0 "$options: the cowfile is clean"
	new=$(loopdev mnt/cow)
	runs "$options: a table with the cow device brings it back" \
		dmsetup load t --table "$(cowline "$rdo" "$new")"
	dmsetup resume t
	losetup -d "$new"
	is "$(cowstat t mode)" rw "$options: mode rw"
	runs "$options: all is there" cowtest verify /dev/mapper/t --model model
	runs "$options: and goes on" cowtest run /dev/mapper/t --model model --ops 100
	dmsetup message t 0 close
	dmsetup remove t
	runs "$options: removed, closed" umount mnt
done

losetup -d "$rdo"
done_testing
