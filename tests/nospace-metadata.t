#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G
#
# What the metadata needs has no space: a bitmap block that is a hole in a file on a full filesystem; and, where even
# what was written before needs space to be written again, a commit, the head, the end of a discard. dm-nth says so.
# What needs it fails with ENOSPC and can be done again; the mode is never `fail', and nothing is lost.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

modprobe brd rd_nr=3 rd_size=$((160 * 1024))
rdo=/dev/mapper/rdo dev=/dev/mapper/t
# shellcheck disable=SC2034 # for put
stamp=0
mkdir mnt

flush() { timeout 60 cowtest io $dev --flush; }
message() { timeout 60 dmsetup message t 0 "$@"; }
all_right() { cowtest verify $dev --model model; }

# --- A bitmap block that is a hole --------------------------------------------------------------------------

# The second block of the bitmap is for what is behind 127 MiB, in format 1 for what is behind 30. That a unit there
# has room for its data does not help it.
dmsetup create rdo --table "0 $((140 * 2048)) linear /dev/ram0 0"
while read -r dio format block data unit whole; do
	name="bitmap block, format $format, direct I/O $dio${whole:+, $whole}"
	mkfs.ext4 -q -F /dev/ram1 16M
	mount /dev/ram1 mnt
	truncate -s 141M mnt/cow
	cow=$(loopdev mnt/cow "--direct-io=$dio")
	new_model $rdo --zero-permille 1000 --region 0:4K
	cowopen t $rdo "$cow" "format:$format" ${whole:+"$whole"}
	put 0 64
	runs "$name: sync" message sync
	fallocate -o $((data + unit * 4096)) -l 8192 mnt/cow
	like "$(filefrag -b4096 -v mnt/cow | awk -v block="$block" '$1 ~ /:$/ && $2 + 0 <= block && $3 + 0 >= block')" '^$' \
		"$name: it is a hole"
	dd if=/dev/zero of=mnt/ballast bs=4096 status=none 2>/dev/null
	sync
	dd if=/dev/zero of=mnt/ballast2 bs=4096 status=none 2>/dev/null
	before=$(cowstat t used)
	no_space "$name: no first write" put "$unit"
	no_space "$name: not a part of a unit either" cowtest io $dev $((unit * 4096)) 512 --write --model model
	is "$(cowstat t used mode)" "$before out_of_space" "$name: out of space, and nothing else"
	runs "$name: rewrites go on" put 0 20
	runs "$name: flushes" flush
	runs "$name: sync" message sync
	runs "$name: reads" all_right
	no_space "$name: and still no first write" put "$unit"
	rm mnt/ballast
	runs "$name: with room it is written" put "$unit"
	runs "$name: and committed" flush
	settles rw "$name: mode rw" cowstat t mode
	dmsetup remove t
	runs "$name: the cowfile is good" cowhead "$cow" dirty
	cowopen t $rdo "$cow"
	runs "$name: all is there" all_right
	dmsetup remove t
	losetup -d "$cow"
	umount mnt
done <<'END'
off 2 2 12288 32600
on 2 2 12288 32600
on 2 2 12288 32600 whole_writes
on 1 2 20480 15000
END
dmsetup remove rdo

# --- A cowfile that shares its blocks with a copy -------------------------------------------------------------

# Each block, the head's first of all, needs space when it is written for the first time.
truncate -s 320M fs
dmsetup create rdo --table "0 $((16 * 2048)) linear /dev/ram0 0"
while read -r dio format whole; do
	name="shared blocks, format $format, direct I/O $dio${whole:+, $whole}"
	mkfs.xfs -q -f -m reflink=1 fs
	fs=$(loopdev fs)
	mount "$fs" mnt
	truncate -s 17M mnt/original
	cow=$(loopdev mnt/original)
	new_model $rdo --zero-permille 1000 --region 0:4K
	cowopen t $rdo "$cow" "format:$format"
	put 0 64
	dmsetup remove t
	losetup -d "$cow"
	cp --reflink=always mnt/original mnt/cow
	for length in 64M 8M 1M; do
		n=0
		while fallocate -l $length "mnt/ballast-$length-$((n += 1))" 2>/dev/null; do :; done
	done
	# to the last block, which fallocate leaves
	for n in 1 2 3; do
		dd if=/dev/zero of=mnt/ballast$n bs=4096 status=none 2>/dev/null
		sync
	done
	cow=$(loopdev mnt/cow "--direct-io=$dio")
	cowopen t $rdo "$cow" ${whole:+"$whole"}
	no_space "$name: no first write" put 100
	is "$(cowstat t state mode)" "clean out_of_space" "$name: out of space, and clean"
	runs "$name: flushes" flush
	runs "$name: sync" message sync
	runs "$name: reads" all_right
	rm mnt/ballast*
	runs "$name: with room it is written" put 100
	runs "$name: sync then" message sync
	settles rw "$name: mode rw" cowstat t mode
	dmsetup remove t
	cowopen t $rdo "$cow"
	runs "$name: all is there" all_right
	dmsetup remove t
	losetup -d "$cow"
	umount mnt
	losetup -d "$fs"
done <<'END'
off 2
on 2
on 2 whole_writes
off 1
END
dmsetup remove rdo

# --- Commits, and the head ----------------------------------------------------------------------------------

dmsetup create rdo --table '0 4096 linear /dev/ram0 0'
cowtest fill $rdo >/dev/null
rm -f base.model
cowtest run $rdo --model base.model --ops 0 >/dev/null
cow=/dev/ram1
dmsetup create ncow --table "0 8192 nth $cow"
line() { echo "0 4096 cowloop $rdo /dev/mapper/ncow${*:+ $# $*}"; }
arm() { dmsetup message ncow 0 arm "$@"; }
disarm() { dmsetup message ncow 0 disarm; }
hits() { dmsetup status ncow | cut -d ' ' -f 5; }
# fresh OPTION...: 16 units have been synced
fresh() {
	disarm
	dd if=/dev/zero of=$cow bs=1M count=4 oflag=direct status=none
	cp base.model model
	dmsetup create t --table "$(line "$@")"
	put 0 16
	message sync
	cp model synced.model
}
# finish NAME: in the end all is there
finish() {
	disarm
	runs "$1: sync, now that there is room" message sync
	runs "$1: all is right" all_right
	runs "$1: so is a new write" put 400
	runs "$1: sync again" message sync
	is "$(cowstat t state)" clean "$1: clean"
	dmsetup remove t
	runs "$1: the cowfile is good" on_disk dirty
	dmsetup create t --table "$(line)"
	runs "$1: all is there when it is opened again" all_right
	dmsetup remove t
}
# on_disk FIELD...: of the cowfile; not from the page cache, which does not know what ncow is given
on_disk() {
	dd if=$cow of=image bs=1M count=4 iflag=direct status=none
	cowhead image "$@"
}
# crashed REGION: what is on disk now has what was synced
crashed() {
	dd if=$cow of=/dev/ram2 bs=1M count=4 iflag=direct oflag=direct status=none
	dmsetup create crashed --table "0 4096 cowloop $rdo /dev/ram2${repair:+ 1 repair}" &&
		cowtest verify /dev/mapper/crashed --model synced.model --region "$1"
	status=$?
	dmsetup remove crashed
	return $status
}

for format in 2 1; do
	units=$([ $format = 2 ]; echo $((1 + $? * 3))) # in 4 KiB
	repair=''
	lost='lost: new data of 3 units, 0 discards$'
	[ $format = 2 ] || { repair=repair; lost="12 written units are for 'repair' to find$"; }

	name="commit, format $format"
	fresh format:$format
	put 32 3
	events=$(dmsetup info -c --noheadings -o events t)
	arm write 1 enospc 0
	no_space "$name: a flush" flush
	is "$(cowstat t used state mode)" "$((19 * units)) dirty out_of_space" "$name: mode out_of_space"
	settles $((events + 1)) "$name: an event" dmsetup info -c --noheadings -o events t
	fails "$name: sync" message sync
	no_space "$name: a write with FUA" put 33 1 --fua
	no_space "$name: a first write" put 100
	runs "$name: all is right" all_right
	runs "$name: and on disk what was synced" crashed 0:64K
	if [ $format = 2 ]; then
		sleep 5.5
		is "$(cowstat t mode)" out_of_space "$name: the timer can't commit either"
		is "$(dmsetup info -c --noheadings -o events t)" $((events + 1)) "$name: no event more"
	fi
	finish "$name"

	# each write of an operation by itself
	for op in first_write sync suspend; do
		problems='' n=0
		while [ $((n += 1)) -lt 30 ]; do
			fresh format:$format
			[ $op = first_write ] || put 32 3
			commits=$(cowstat t commits)
			arm write $n enospc
			case $op in
			first_write) put 200 2 ;;
			sync) message sync ;;
			suspend) dmsetup suspend t ;;
			esac >out 2>&1
			result=$?
			met=$(hits)
			[ $op != suspend ] || dmsetup resume t
			# nobody has to be, of a commit by the timer, if it takes so long to get here
			[ "$met" = 0 ] || [ $op = suspend ] || [ $result != 0 ] ||
				{ [ $op = first_write ] && [ "$(cowstat t commits)" != "$commits" ]; } ||
				problems="$problems; $n: nobody was told"
			[ "$met" != 0 ] || [ $result = 0 ] || problems="$problems; $n: failed: $(cat out)"
			case $(cowstat t mode) in
			# it is left when the timer's commit has found space
			rw) [ "$met" = 0 ] || [ "$(cowstat t no_space)" != 0 ] || problems="$problems; $n: mode rw" ;;
			out_of_space) [ "$met" != 0 ] || problems="$problems; $n: mode out_of_space" ;;
			*) problems="$problems; $n: mode $(cowstat t mode)" ;;
			esac
			disarm
			all_right >out 2>&1 || problems="$problems; $n: wrong: $(cat out)"
			put 300 >out 2>&1 && message sync >>out 2>&1 || problems="$problems; $n: no write, or no sync: $(cat out)"
			is_clean=$(cowstat t state)
			[ "$is_clean" = clean ] || problems="$problems; $n: $is_clean"
			dmsetup remove t
			on_disk dirty >out 2>&1 || problems="$problems; $n: a bad cowfile: $(cat out)"
			dmsetup create t --table "$(line)"
			all_right >out 2>&1 || problems="$problems; $n: wrong when opened again: $(cat out)"
			dmsetup remove t
			[ "$met" != 0 ] || break
		done
		[ ! "$problems" ] && [ $n -gt 1 ] && [ $n -lt 30 ]
		ok $? "format $format: $op: each of $((n - 1)) writes finds no space" || diag "$problems"
	done

	name="removal, format $format"
	fresh format:$format
	put 32 3
	arm write 1 enospc 0
	runs "$name: goes" timeout 60 dmsetup remove t
	like "$(dmesg | tail -n 1)" "closed without space for a commit: $lost" "$name: the log says what is lost"
	disarm
	# shellcheck disable=SC2086 # none, or one word
	dmsetup create t --table "$(line $repair)"
	runs "$name: what was synced is there" cowtest verify $dev --model synced.model --region 0:64K
	dmsetup remove t
done

repair=''
fresh
put 32 3
flush
arm write 1 enospc 0
fails "discard: finds no space for its commit" timeout 60 blkdiscard -o $((4 * 4096)) -l $((2 * 4096)) $dev
is "$(cowstat t mode)" out_of_space "discard: mode out_of_space"
runs "discard: all else is right" cowtest verify $dev --model model --region 24K:2072576
runs "discard: so it is on disk" crashed 24K:40K
disarm
put 4 2
finish discard

# what was discarded, too
name="removal, discards"
fresh
for unit in 100 101 102; do
	put $unit
done
message sync
put 32 3
arm write 1 enospc 0
fails "$name: a discard finds no space for its commit" timeout 60 blkdiscard -o $((100 * 4096)) -l $((2 * 4096)) $dev
put 200 >/dev/null 2>&1
runs "$name: it is suspended" dmsetup suspend t
like "$(dmesg | tail -n 1)" 'suspended without space for a commit: lost if the device is removed now: new data of 3 units, 2 discards$' \
	"$name: the log says so"
dmsetup remove t
like "$(dmesg | tail -n 1)" 'closed without space for a commit: lost: new data of 3 units, 2 discards$' \
	"$name: the log says what is lost"

name="removal, after an error"
fresh
put 32 3
arm write 1 eio 0
fails "$name: no commit" flush
dmsetup remove t
like "$(dmesg | tail -n 1)" 'closed after an error: lost: new data of 3 units, 0 discards, and maybe rewrites since the last flush$' \
	"$name: the log says what is lost"
fresh
put 32 3
arm any 1 eio 0
fails "$name: nor can it be read" flush
dmsetup remove t
like "$(dmesg | tail -n 1)" "closed after an error, unreadable bitmap: all unflushed is lost$" "$name: the log says so"
fresh
put 32 3
before=$(dmesg | grep -c ': closed ')
dmsetup remove t
is "$(dmesg | grep -c ': closed ')" "$before" "removal: no word where nothing is lost"

fresh
put 32 3
arm write 1 enospc 0
no_space 'timer: a flush' flush
disarm
settles 19 'timer: commits when there is room' on_disk popcount
settles rw 'timer: and nothing lacks space then' cowstat t mode
finish timer

fresh
put 32 3
flush
arm write 1 enospc
fails 'head: a sync finds no space' message sync
is "$(cowstat t mode)" out_of_space 'head: mode out_of_space'
runs 'head: the next one does' message sync
settles rw 'head: mode rw' cowstat t mode
finish head

# the mode is left by what tells that there is space for whoever lacked it
fresh limit:19
put 32 3
no_space 'limit: a first write' put 100
runs 'limit: a flush' flush
is "$(cowstat t mode)" out_of_space 'limit: a commit says nothing of space for first writes'
runs 'limit: a rewrite' put 3
is "$(cowstat t mode)" out_of_space 'limit: nor does a rewrite'
dmsetup remove t
for options in '' queue_if_no_space; do
	# shellcheck disable=SC2086 # none, or one word
	fresh $options
	arm write 1 enospc
	put 3 >out 2>&1
	[ "$(cowstat t no_space)" -gt 0 ]
	ok $? "rewrite ${options:-fails}: finds no space"
	[ "$options" ] || {
		cowtest io $dev $((200 * 4096)) 8192 --discard
		is "$(cowstat t mode)" out_of_space "rewrite fails: a discard of what is in rdo says nothing of space"
	}
	put 3 1
	settles rw "rewrite ${options:-fails}: mode rw when another does" cowstat t mode
	finish "rewrite ${options:-fails}"
done

# --- Flushes that wait --------------------------------------------------------------------------------------

found_no_space() { [ "$(cowstat t no_space)" -gt 0 ]; }
# waiting: a flush that waits for a commit that waits for space
waiting() {
	fresh queue_if_no_space
	put 32 3
	arm write 1 enospc 0
	rm -f status
	(flush >out 2>&1; echo $? >status) &
	flusher=$!
	await found_no_space
	fails "$1: a flush waits" test -e status
}
waiting 'room below'
disarm
wait $flusher
is "$(cat status)" 0 "room below: the flush ends well" || diag "$(cat out)"
is "$(on_disk popcount)" 19 "room below: its bits are on disk"
finish 'room below'

waiting 'suspend --noflush'
runs 'suspend --noflush' timeout 60 dmsetup suspend --noflush t
sleep 0.5
dmsetup resume t
sleep 0.5
fails 'suspend --noflush: the flush still waits' test -e status
disarm
wait $flusher
is "$(cat status)" 0 "suspend --noflush: the flush ends well" || diag "$(cat out)"
finish 'suspend --noflush'

waiting suspend
runs 'suspend' timeout 60 dmsetup suspend t
wait $flusher
is "$(cat status)" 3 "suspend: the flush fails" || diag "$(cat out)"
like "$(cat out)" ENOSPC "suspend: with ENOSPC"
dmsetup resume t
finish suspend

waiting read_only
fails 'read_only: finds no space' message read_only
wait $flusher
is "$(cat status)" 3 "read_only: the flush fails" || diag "$(cat out)"
disarm
runs 'read_only: works when there is' message read_only
is "$(cowstat t state mode)" "clean ro" "read_only: mode ro"
runs 'read_only: all is right' all_right
dmsetup remove t

# --- A write with a flush before it ---------------------------------------------------------------------------

# XFS writes its log so, and then what it has logged. Device-mapper forgets that the flush has failed, and sends the write;
# so no write may go before there was a commit. From here on it is head and bitmap only that find no space.
printf '0 16 nth %s\n16 8176 linear %s 16\n' $cow $cow | dmsetup reload ncow
dmsetup suspend --noflush ncow
dmsetup resume ncow
hits() { dmsetup status ncow | head -n 1 | cut -d ' ' -f 5; }

# flushing: from now on writes to pf go to t with a flush before them
flushing() {
	dmsetup create pf --table '0 4096 nth /dev/mapper/t'
	dmsetup message pf 0 arm write 1 preflush 0
}
log() { timeout 100 cowtest io /dev/mapper/pf 0 4096 --write --stamp 5000 --model model; }
looking() { [ "$(hits)" -gt 1 ]; echo $((!$?)); }
# log_later NAME: flush and write wait, since there is no space
log_later() {
	fresh queue_if_no_space
	flushing
	put 32 3
	arm write 1 enospc 0
	rm -f status
	(log >out 2>&1; echo $? >status) &
	logger=$!
	settles 1 "$1: its flush looks for space" looking
	fails "$1: a write with a flush waits" test -e status
}
# nothing_went NAME: 16 units on disk are as they were when they were synced
nothing_went() { runs "$1: no write went ahead of it" crashed 0:64K; }
# all_went NAME: without a message, or another write
all_went() {
	disarm
	wait $logger
	is "$(cat status)" 0 "$1: with room it ends well" || diag "$(cat out)"
	settles 19 "$1: what was written before it is on disk" on_disk popcount
	cp model synced.model
	nothing_went "$1: and it is, too"
	dmsetup remove pf
	finish "$1"
}

for table in '' again; do
	name="a flush that fails${table:+, and a reload}"
	fresh
	flushing
	put 32 3
	arm write 1 enospc 0
	no_space "$name: so does a write with it" log
	if [ "$table" ]; then
		dmsetup load t --table "$(line)"
		dmsetup resume t
	fi
	nothing_went "$name"
	no_space "$name: no rewrite after that" put 1
	no_space "$name: nor of a part" cowtest io $dev 4608 512 --write --model model
	no_space "$name: nor of many units" put 0 16
	no_space "$name: nor with FUA" put 2 1 --fua
	no_space "$name: nor from another, with a flush" log
	like "$(blkdiscard --zeroout -o 12288 -l 4096 /dev/mapper/pf 2>&1)" 'No space left' "$name: nor with zeroes"
	no_space "$name: nor a first write" put 100
	nothing_went "$name"
	runs "$name: reads go on" all_right
	is "$(cowstat t mode)" out_of_space "$name: mode out_of_space"
	disarm
	runs "$name: with room a rewrite works at once" put 1
	is "$(on_disk popcount)" 19 "$name: what was written before is on disk by then"
	arm write 1 enospc 0
	runs "$name: from then on rewrites need no commit" put 1 12
	disarm
	dmsetup remove pf
	finish "$name"
done

name="a FUA write that fails"
fresh
put 32 3
arm write 1 enospc 0
no_space "$name: for its commit" put 0 1 --fua
no_space "$name: no write after that" put 1
disarm
runs "$name: with room there is one" put 1
# whether that was written when it failed is not said
put 0
finish "$name"

name="the timer's commit fails"
fresh
put 32 3
arm write 1 enospc 0
tries=600
until [ "$(cowstat t mode)" = out_of_space ] || [ $((tries -= 1)) -eq 0 ]; do
	sleep 0.1
done
like "$(hits)" '^[1-9]' "$name: nobody is told"
runs "$name: a rewrite" put 0
runs "$name: of a part" cowtest io $dev 4608 512 --write --model model
finish "$name"

name="a write with a flush waits"
log_later "$name"
runs "$name: rewrites go on" put 1
all_went "$name"

name="a write with a flush, suspend"
log_later "$name"
runs "$name: it goes" timeout 60 dmsetup suspend t
nothing_went "$name"
dmsetup resume t
# it was sent again when the device was suspended already, or about to be
waits() { [ -e status ] || [ "$(cowstat t queued)" = 1 ]; echo $((!$?)); }
settles 1 "$name: it waits, or has failed" waits
nothing_went "$name, resumed"
rm -f status2
(put 1 >out2 2>&1; echo $? >status2) &
later=$!
sleep 1.5
fails "$name: a rewrite waits" test -e status2
nothing_went "$name, a rewrite"
disarm
wait $logger $later
is "$(cat status2)" 0 "$name: with room it ends well" || diag "$(cat out2)"
dmsetup remove pf
finish "$name"

name="a write with a flush, reload"
log_later "$name"
dmsetup load t --table "$(line)"
dmsetup suspend --noflush t
dmsetup resume t
wait $logger
is "$(cat status)" 3 "$name: it fails in a table that does not queue" || diag "$(cat out)"
nothing_went "$name"
no_space "$name: so does a rewrite" put 1
dmsetup remove pf
finish "$name"

name="a write with a flush, read_only"
log_later "$name"
fails "$name: finds no space" message read_only
wait $logger
is "$(cat status)" 3 "$name: it fails" || diag "$(cat out)"
nothing_went "$name"
dmsetup load t --table "$(line)"
dmsetup resume t
no_space "$name: so does a rewrite, when the table is loaded again" put 1
dmsetup remove pf
finish "$name"

dmsetup remove ncow rdo
done_testing
