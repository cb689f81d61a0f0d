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

# --- In mode fail ---------------------------------------------------------------------------------------------

modprobe dm-nth
dev=/dev/mapper/t
dmsetup create nth --table '0 65536 nth /dev/ram1'
flush() { cowtest io $dev --flush; }
# failed NAME: what a device says for which close has failed, and that was closed
failed() {
	is "$(cowstat t mode)" closed "$1: mode closed"
	runs "$1: the cow device is let go" await dmsetup remove nth
	fails "$1: a write fails" cowtest io $dev 20M 4096 --write
	fails "$1: nothing is said to be durable by a flush" flush
	fails "$1: nor by a sync" dmsetup message t 0 sync
	fails "$1: nor when it is closed again" dmsetup message t 0 close
	runs "$1: suspend and resume" sh -c 'dmsetup suspend t && dmsetup resume t'
	is "$(cowstat t mode)" closed "$1: it stays closed"
}
name="mode fail"
dd if=/dev/zero of=/dev/ram1 bs=1M count=1 oflag=direct status=none
cowopen t "$rdo" /dev/mapper/nth
rm -f model
runs "$name: some work" cowtest run $dev --model model --ops 100 --region 0:8M
dmsetup message t 0 sync
cowtest io $dev 20M 16384 --write --stamp 77 --model model
dmsetup message nth 0 arm write 1 eio 0
fails "$name: a commit fails" flush
is "$(cowstat t mode)" fail "$name: it is"
events=$(dmsetup info -c --noheadings -o events t)
fails "$name: close says so" timeout 100 dmsetup message t 0 close
like "$(dmesg | tail -n 1)" 'closed after an error: lost: new data of 4 units' "$name: the log says what is lost"
is "$(dmsetup info -c --noheadings -o events t)" $((events + 1)) "$name: an event"
failed "$name"
runs "$name: what is in rdo is read" cowtest verify $dev --model model --region 8M:12M
fails "$name: what was in the cowfile is not" cowtest io $dev 20M 4096 --read
dmsetup remove t

# nor can the bitmap be read
name="mode fail, no reads"
dd if=/dev/zero of=/dev/ram1 bs=1M count=1 oflag=direct status=none
dmsetup create nth --table '0 65536 nth /dev/ram1'
cowopen t "$rdo" /dev/mapper/nth
dmsetup message nth 0 arm any 1 eio 0
fails "$name: a flush fails" flush
is "$(cowstat t mode)" fail "$name: it is"
exits 4 "$name: cowsetup detach says so" timeout 100 cowsetup detach --force t
says 'has let go of its cowfile, and had failed before: .*lost' "$name: with what is lost"
failed "$name"
fails "$name: of no unit is it known where it is" cowtest io $dev 12M 4096 --read
dmsetup remove t

losetup -d "$rdo"
done_testing
