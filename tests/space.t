#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 4 --mem 1G
#
# Space, as far as the device itself knows of it: the options and messages `limit' and `low_water', `reserve', the events
# they raise, what goes on when there is none left, what is logged then, and `queue_if_no_space'. Cow devices that have no
# room are in tests/nospace.t, filesystems in tests/full.t.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

MIB=32
modprobe brd rd_nr=2 rd_size=$(((MIB + 4) * 1024))
dmsetup create rdo --table "0 $((MIB * 2048)) linear /dev/ram0 0"
dmsetup create cow --table "0 $(((MIB + 1) * 2048)) linear /dev/ram1 0"
rdo=/dev/mapper/rdo cow=/dev/mapper/cow dev=/dev/mapper/t
cowtest fill $rdo >/dev/null
rm -f base.model
cowtest run $rdo --model base.model --ops 0 >/dev/null
stamp=0
data=16 # where unit 0 is, in sectors

# fresh OPTION...: a device over a blank cow device
fresh() {
	dd if=/dev/zero of=$cow bs=4096 count=1 oflag=direct status=none
	cp base.model model
	cowopen t $rdo $cow "$@" || echo "Bail out! cannot make a device: $*"
}
# finish NAME: the device goes, and comes again with all that it had
finish() {
	used=$(cowstat t used)
	runs "$1: what was written is there" cowtest verify $dev --model model
	runs "$1: the device can be removed" dmsetup remove t
	is "$(cowhead $cow dirty cowused popcount)" "0 $used $used" "$1: the cowfile is good, and clean"
	cowopen t $rdo $cow
	runs "$1: and is there when it is opened again" cowtest verify $dev --model model
	dmsetup remove t
}
# part UNIT: writes a part of a unit
part() {
	stamp=$((stamp + 1))
	cowtest io $dev $(($1 * 4096 + 512)) 1024 --write --stamp $stamp --model model
}
message() { dmsetup message t 0 "$@"; }
space() { cowstat t used limit mode; }
logged() { dmesg | grep -c "device-mapper: cowloop: .*$1"; }
# raised COUNT NAME: so many events since $events; and not one more
raised() {
	settles $((events + $1)) "$2" events
	sleep 0.3
	is "$(events)" $((events + $1)) "$2, and no more"
}

# --- Options ------------------------------------------------------------------------------------------------

dd if=/dev/zero of=$cow bs=4096 count=1 oflag=direct status=none
cp base.model model
line="0 $((MIB * 2048)) cowloop $(devno $rdo) $(devno $cow)"

for option in limit: limit limit:x limit:-1 limit:12x limit:1,5 limit:18446744073709551616 'limit: 5' \
	low_water: low_water low_water:x low_water:-1 low_water:5k low_water:18446744073709551616 \
	reserve: reserve reserve:x reserve:-1 reserve:5k reserve:1,5 reserve:18446744073709551616 Reserve:5 \
	queue_if_no_space:1 queue queue_if_no_space: no_discard_passdown:0 no_discard_passdowns discard_passdown Limit:5; do
	before=$(logged "optional parameter '$option'")
	# shellcheck disable=SC2086 # 'limit: 5' is two words
	cowopen t $rdo $cow $option >/dev/null 2>&1
	ok $((! $?)) "refused: $option" || dmsetup remove t
	case $option in
	'limit: 5') ;; # 'limit:' is logged
	*) is "$(logged "optional parameter '$option': ")" $((before + 1)) "refused: $option: the log says so" ;;
	esac
done
fails "refused: fewer parameters than counted" dmsetup create t --table "$line 2 limit:5"

while read -r options; do
	# shellcheck disable=SC2086 # several words
	cowopen t $rdo $cow $options
	# shellcheck disable=SC2086
	set -- $options
	is "$(dmsetup table t)" "$line $# $options" "table with $options"
	limit=0 low=0
	for option; do
		case $option in
		limit:*) limit=${option#*:} ;;
		low_water:*) low=${option#*:} ;;
		esac
	done
	is "$(cowstat t limit low_water)" "$limit $low" "status with $options"
	table=$(dmsetup table t)
	dmsetup remove t
	runs "a device from that line" dmsetup create t --table "$table"
	is "$(dmsetup table t)" "$table" "has the same"
	dmsetup remove t
done <<'END'
limit:1
limit:18446744073709551615
low_water:7
limit:100 reserve:7
limit:100 low_water:10 reserve:100 queue_if_no_space
queue_if_no_space
no_discard_passdown
limit:100 low_water:10 queue_if_no_space no_discard_passdown
format:2 mapunit:4096 limit:100 low_water:10 queue_if_no_space no_discard_passdown
END
runs "zeroes are what there is without" cowopen t $rdo $cow limit:0 low_water:0
is "$(dmsetup table t)" "$line" "and not in the table"
is "$(cowstat t limit low_water)" "0 0" "but in the status"

for said in limit 'limit x' 'limit -1' 'limit 5 6' 'limit 5k' low_water 'low_water x' 'low_water -1' 'low_water 1 2' \
	'limit 18446744073709551616' 'limit:5'; do
	# shellcheck disable=SC2086
	fails "refused: message $said" message $said
done
is "$(cowstat t limit low_water)" "0 0" "they have changed nothing"
like "$(dmesg | grep "message 'limit'" | tail -n 1)" "found '.*', expected a number" "the log says what was found"
runs "message limit" message limit 50
runs "message low_water" message low_water 5
is "$(cowstat t limit low_water)" "50 5" "the status has them"
is "$(dmsetup table t)" "$line 2 limit:50 low_water:5" "the table has them"
runs "messages in capitals" message LIMIT 51
is "$(dmsetup table t)" "$line 2 limit:51 low_water:5" "the table has them"
table=$(dmsetup table t)
message limit 0
message low_water 0
is "$(dmsetup table t)" "$line" "and not any more"
dmsetup remove t
dmsetup create t --table "$table"
is "$(cowstat t limit low_water)" "51 5" "a line printed after a message makes such a device"
dmsetup remove t

# --- The limit ----------------------------------------------------------------------------------------------

fresh limit:40
events=$(events)
put 0 32
part 100
put 200 7
is "$(space)" "40 40 rw" "limit: all of it is used, mode rw"
raised 0 "limit: no event yet"
timeout 60 dmsetup wait t "$events" >/dev/null &
wait=$!
no_space "limit: a unit more has no space" put 300
is "$(space)" "40 40 out_of_space" "limit: mode out_of_space"
wait $wait
ok $? "limit: dmsetup wait sees it"
raised 1 "limit: one event"
no_space "limit: nor has a part of one" part 300
no_space "limit: nor has it with FUA" put 300 1 --fua
no_space "limit: nor have zeroes" cowtest io $dev $((300 * 4096)) 4096 --write --zero
no_space "limit: nor have units some of which are there" put 28 8
no_space "limit: nor has a MiB" put 512 256
runs "limit: a rewrite of units" put 0 32
runs "limit: a rewrite of a part" part 201
runs "limit: a rewrite with FUA" put 5 1 --fua
runs "limit: a flush" cowtest io $dev --flush
runs "limit: sync" message sync
runs "limit: reads" cowtest verify $dev --model model
is "$(space)" "40 40 out_of_space" "limit: nothing has changed"
raised 1 "limit: still one event"
is "$(cowstat t no_space queued)" "6 0" "limit: six writes found no space"

runs "limit raised" message limit 42
is "$(space)" "40 42 rw" "limit raised: mode rw"
raised 2 "limit raised: an event"
runs "limit raised: a write" put 300
runs "limit raised: and a part of one" part 400
no_space "limit raised: the third fails" put 500
is "$(space)" "42 42 out_of_space" "limit raised: mode out_of_space"
raised 3 "limit raised: an event"

runs "limit lowered below what is used" message limit 10
is "$(space)" "42 10 out_of_space" "limit lowered: no change of mode"
no_space "limit lowered: no space" put 500
runs "limit lowered: rewrites go on" put 10 20
raised 3 "limit lowered: no event"
runs "limit raised, but not enough" message limit 42
is "$(space)" "42 42 out_of_space" "limit raised, but not enough: no change of mode"
raised 3 "limit raised, but not enough: no event"
runs "no limit" message limit 0
is "$(space)" "42 0 rw" "no limit: mode rw"
raised 4 "no limit: an event"
put 1000 200
is "$(space)" "242 0 rw" "no limit: units are written"

message limit 242
no_space "reload: full" put 2000
dmsetup load t --table "$line 1 limit:250"
dmsetup resume t
is "$(space)" "242 250 rw" "reload with more: mode rw"
put 2000 8
no_space "reload with more: its limit holds" put 2100
dmsetup load t --table "$line 1 limit:100"
dmsetup resume t
is "$(space)" "250 100 rw" "reload with less: units stay"
no_space "reload with less: no space" put 2100
dmsetup load t --table "$line"
no_space "reload: not before resume" put 2100
dmsetup resume t
runs "reload without: space" put 2100
is "$(space)" "251 0 rw" "reload without: no limit"
dmsetup load t --table "$line 1 limit:5"
dmsetup clear t
runs "a table that is not used changes nothing" put 2101
finish "limit"

# Where writes fail and succeed in turn the mode does not follow each of them; but it does in the end.
modprobe dm-nth
name="fail and succeed in turn"
dmsetup create ncow --table "0 $(sectors $cow) nth $cow"
long=$cow cow=/dev/mapper/ncow
fresh
put 0 16
for n in $(seq 100); do
	dmsetup message ncow 0 arm write 1 enospc 1
	put $((n * 2 + 100)) >/dev/null 2>&1
	put $((n * 2 + 101))
	[ "$(cowstat t mode)" != out_of_space ] || break
done
ok $((n == 100)) "$name: mode out_of_space behind the $n-th write that has found space"
settles rw "$name: mode rw soon, without another" cowstat t mode
dmsetup message ncow 0 disarm
runs "$name: all is right" cowtest verify $dev --model model
dmsetup remove t
dmsetup remove ncow
cow=$long

# a discard makes room
fresh limit:16
put 64 16
no_space "discard: no space" put 0
events=$(events)
runs "discard: of four units" blkdiscard -o $((64 * 4096)) -l $((4 * 4096)) $dev
cowtest io $rdo $((64 * 4096)) $((4 * 4096)) --read | awk '$3 != "base" { exit 1 }' # what is read then
is "$(space)" "12 16 rw" "discard: mode rw, four units less"
raised 1 "discard: an event"
runs "discard: a write" put 64 4
no_space "discard: and no space again" put 0
finish "discard"

# --- The reserve --------------------------------------------------------------------------------------------

fresh limit:40 reserve:8
over_meta $((MIB * 2048))
events=$(events)
runs "reserve: the rest of the limit is for data" put 0 32
is "$(space)" "32 40 rw" "reserve: which has all of it, mode rw"
no_space "reserve: a unit more has no space" put 300
is "$(space)" "32 40 out_of_space" "reserve: mode out_of_space"
raised 1 "reserve: an event"
no_space "reserve: nor has a part of one" part 300
runs "reserve: but metadata has" meta put 300
runs "reserve: and a part of a unit, if that is metadata" meta part 302
# that there is room for metadata does not mean that there is some for data
is "$(space)" "34 40 out_of_space" "reserve: mode out_of_space all the same"
no_space "reserve: data still has none" put 310
no_space "reserve: metadata that needs more than the rest has none" meta put 310 7
runs "reserve: that needs all of the rest has it" meta put 310 6
is "$(space)" "40 40 out_of_space" "reserve: all of the limit is used"
no_space "reserve: then there is none for metadata, either" meta put 400
no_space "reserve: nor for a part of a unit" meta part 400
runs "reserve: a rewrite of data" put 0 32
runs "reserve: a rewrite of metadata" meta put 310 6
runs "reserve: a rewrite of metadata, as data" put 310 6
raised 1 "reserve: no other event"
# (blkdiscard wants the device for itself alone)
runs "reserve: a discard of as much as was reserved" cowtest io $dev $((308 * 4096)) $((8 * 4096)) --discard
meta put 310 2
no_space "reserve: is not for data" put 320
is "$(space)" "36 40 out_of_space" "reserve: mode out_of_space"
runs "reserve: a discard of more" cowtest io $dev 0 $((5 * 4096)) --discard
runs "reserve: is" put 320
is "$(space)" "32 40 rw" "reserve: mode rw"
no_space "reserve: and for no more" put 0
runs "reserve: a higher limit" message limit 42
runs "reserve: is for data" put 0 2
no_space "reserve: but for the reserve" put 2
runs "reserve: which is there" meta put 2 2
is "$(space)" "36 42 out_of_space" "reserve: mode out_of_space"
runs "reserve: no limit" message limit 0
runs "reserve: then nothing is reserved" put 1000 100
# what was discarded
put 0 5
put 310 6
dmsetup remove meta
finish "reserve"

# more than there is: not a unit for data
fresh limit:4 reserve:5
no_space "reserve above the limit: nothing is for data" put 0
is "$(space)" "0 4 out_of_space" "reserve above the limit: mode out_of_space"
finish "reserve above the limit"

# after a crash: a dirty cowfile is counted before the limit is tested
for format in 2 1; do
	size=4096
	[ $format = 2 ] || size=1024
	dd if=/dev/zero of=$cow bs=64K count=2 oflag=direct status=none
	[ $format = 2 ] || blkdiscard -z $cow
	cowopen t $rdo $cow format:$format
	cowtest io $dev 0 409600 --write >/dev/null
	cowtest io $dev --flush
	dd if=$cow of=crashed bs=1M count=2 iflag=direct status=none
	dmsetup remove t
	dd if=crashed of=$cow bs=1M oflag=direct status=none
	is "$(cowhead $cow dirty popcount)" "1 $((409600 / size))" "crash, format $format: a dirty cowfile"
	repair=''
	[ $format = 2 ] || repair=repair
	cowopen t $rdo $cow limit:$((409600 / size + 3)) $repair
	runs "crash, format $format: a write" cowtest io $dev 1M $((3 * size)) --write
	no_space "crash, format $format: one too many" cowtest io $dev 2M $size --write
	is "$(space)" "$((409600 / size + 3)) $((409600 / size + 3)) out_of_space" "crash, format $format: the limit holds"
	dmsetup remove t
done

# --- Many writers -------------------------------------------------------------------------------------------

# writers FIO-OPTION...: many, who go on when they are refused
writers() {
	fio --name=job --filename=$dev --eta=never --direct=1 --thread --group_reporting --ioengine=libaio --iodepth=8 \
		--numjobs=8 --rw=randwrite --randrepeat=1 --continue_on_error=write --ignore_error=,ENOSPC --error_dump=0 \
		--output=fio.out "$@" 2>fio.err
	ok $? "$name: writers get ENOSPC and nothing else" || diag "$(tail -n 30 fio.out fio.err)"
}
for how in 'whole units:--bs=4k' 'parts:--bs=512' 'all sizes:--bsrange=4k-1m --blockalign=4k' \
	'all places:--bsrange=512-128k --blockalign=512'; do
	name="many writers, ${how%%:*}"
	fresh limit:500
	events=$(events)
	before=$(logged 'no space for a write') seconds=$(date +%s)
	# shellcheck disable=SC2086 # several words
	writers ${how#*:} --number_ios=600
	seconds=$(($(date +%s) - seconds))
	lines=$(($(logged 'no space for a write') - before))
	like "$lines" '^[1-9]' "$name: it is logged"
	ok $((lines > seconds + 2)) "$name: $lines lines in $seconds seconds"
	failed=$(cowstat t no_space)
	ok $((failed < 100)) "$name: $failed have found no space"
	used=$(cowstat t used)
	ok $((used > 500)) "$name: $used units used"
	is "$(cowstat t mode)" out_of_space "$name: mode out_of_space"
	case $how in
	whole* | parts*) raised 1 "$name: one event" ;;
	# where some still fit the mode goes back, once a second
	*) ok $(($(events) - events > 2 * seconds + 3)) "$name: $(($(events) - events)) events" ;;
	esac
	# exactly full: no claim is left over
	fio --name=fill --filename=$dev --eta=never --direct=1 --thread --bs=4k --rw=write --size=4M --continue_on_error=write \
		--ignore_error=,ENOSPC --error_dump=0 --output=fio.out
	is "$(space)" "500 500 out_of_space" "$name: full to the last unit"
	dmsetup remove t
	is "$(cowhead $cow dirty cowused popcount)" "0 500 500" "$name: the cowfile is good"
done

# --- Low water ----------------------------------------------------------------------------------------------

fresh limit:100 low_water:10
events=$(events)
put 0 89
raised 0 "low water: no event with eleven units left"
timeout 60 dmsetup wait t "$events" >/dev/null &
wait=$!
put 100
wait $wait
ok $? "low water: dmsetup wait sees ten left"
raised 1 "low water: an event"
is "$(space)" "90 100 rw" "low water: mode rw"
put 101
part 102
put 0 20
raised 1 "low water: with fewer left no other event"
blkdiscard -o $((100 * 4096)) -l $((2 * 4096)) $dev
put 101
raised 1 "low water: nor again with ten left after nine" # 91 used, a discard: 90, still low
blkdiscard -o 0 -l 8192 $dev
raised 1 "low water: none for a discard that leaves more"
put 0 2
raised 2 "low water: an event again after that"
message limit 102
raised 2 "low water: none for a limit raised"
put 200
put 201
raised 3 "low water: an event again"
message low_water 5
put 202
raised 3 "low water: lowered, no event"
message low_water 50
raised 4 "low water: an event when it is raised above what is left"
message limit 20
raised 4 "low water: no event when it is low already"
no_space "low water: with no space left" put 300
raised 5 "low water: an event for that"
dmsetup suspend t
dmsetup resume t
raised 5 "low water: none for a suspend and resume"
dmsetup load t --table "$(dmsetup table t)"
dmsetup resume t
raised 6 "low water: an event when a table that is low is resumed"
message low_water 0
message limit 95
put 100
no_space "low water 0: no space" put 401
raised 7 "low water 0: an event for want of space only"
finish "low water"

fresh low_water:8190
events=$(events)
put 0
raised 0 "low water without a limit: no event"
put 1
raised 1 "low water without a limit: an event"
dmsetup remove t
cowopen t $rdo $cow low_water:8190
events=0
raised 1 "low water without a limit: an event at open"
dmsetup remove t
cowopen t $rdo $cow low_water:8191 read_only
raised 0 "low water: none on a device that can't be written"
dmsetup remove t

# a cow device that ends after 100 units and a bit
dmsetup create short --table "0 $((data + 100 * 8 + 3)) linear $cow 0"
long=$cow cow=/dev/mapper/short
fresh low_water:3
events=$(events)
put 0 96
raised 0 "low water of a short cow device: no event"
put 99
raised 1 "low water of a short cow device: an event"
is "$(space)" "97 0 rw" "low water of a short cow device: mode rw"
no_space "low water of a short cow device: behind it is no space" put 100
raised 2 "low water of a short cow device: an event for that"
finish "low water of a short cow device"
dmsetup remove short
cow=$long

for how in 'whole units:--bs=4k' 'parts:--bs=512'; do
	fresh limit:1000 low_water:700
	events=$(events)
	# shellcheck disable=SC2086
	writers ${how#*:} --number_ios=100
	raised 1 "low water, many writers, ${how%:*}: one event"
	dmsetup remove t
done

dmsetup remove cow rdo
done_testing
