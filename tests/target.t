#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# The target's interface: the table line and what is refused in it, the status line and its counters, messages
# and their events, read-only devices, several devices over one rdo, and reads of units that are in either place.
# What a device must hold is kept in a plain file to which everything is written too.
#
# vm: --smp 2 --mem 1G

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

# with O_DIRECT, so that it is known what the device is asked for
cat >direct.pl <<'END'
# direct.pl write DEV FILE SIZE FIRST STEP [LAST]  copies every STEP-th piece of SIZE bytes from FILE to its place in DEV
# direct.pl reads DEV FILE SECTOR COUNT            compares all the reads there are within COUNT sectors
use strict;
use warnings;
use Fcntl qw(O_RDWR O_RDONLY O_DIRECT SEEK_SET);

my ($command, $dev_path, $file, @arg) = @ARGV;
open my $in, '<:raw', $file or die "$file: $!\n";
my $want = do { local $/; <$in> };
sysopen my $dev, $dev_path, O_DIRECT | ($command eq 'write' ? O_RDWR : O_RDONLY) or die "$dev_path: $!\n";

# memory for direct I/O has to be aligned: find a place in a string that is
my $buf = "\0" x (4 << 20);
my $at = -unpack('J', pack 'P', $buf) & 4095;

if ($command eq 'write') {
	my ($size, $first, $step, $last) = @arg;
	$last //= int(length($want) / $size) - 1;
	for (my $n = $first; $n <= $last; $n += $step) {
		substr($buf, $at, $size) = substr $want, $n * $size, $size;
		sysseek $dev, $n * $size, SEEK_SET or die "seek: $!\n";
		(syswrite($dev, $buf, $size, $at) // -1) == $size or die "$dev_path: write: $!\n";
	}
	exit 0;
}
my ($sector, $count) = @arg;
my $reads = 0;
for my $from ($sector .. $sector + $count - 1) {
	for my $n (1 .. $sector + $count - $from) {
		sysseek $dev, $from * 512, SEEK_SET or die "seek: $!\n";
		my $got = sysread($dev, $buf, $n * 512, $at) // die "$dev_path: $n sectors at $from: $!\n";
		$got == $n * 512 or die "$dev_path: $n sectors at $from: $got bytes\n";
		substr($buf, $at, $got) eq substr($want, $from * 512, $got) or
			die "$dev_path: $n sectors at $from: wrong contents\n";
		$reads++;
	}
}
$reads == $count * ($count + 1) / 2 or die "$reads reads\n";
END

# sized SECTORS: what a device of that size must hold, from the file "want"
sized() { head -c $(($1 * 512)) want; }

# write DEV OFFSET LENGTH STAMP [OPTION...]: to the device, and to the file "want"
write() {
	cowtest io "$1" "$2" "$3" --write --stamp "$4" >/dev/null && shift && cowtest io want "$1" "$2" --write --stamp "$3"
}
# the same, with a flush
write_flush() {
	cowtest io "$1" "$2" "$3" --write --stamp "$4" --flush >/dev/null && shift &&
		cowtest io want "$1" "$2" --write --stamp "$3"
}
shows() { # DEV NAME: the device is what the file says
	sized "$(sectors "$1")" | cmp - "$1"
	ok $? "$2"
}
logged() { dmesg -r | grep -c '^<3>.*device-mapper: cowloop: [0-9]*:[0-9]*: '; }

# blank: an empty cowfile
blank() {
	losetup -d "$cow" && rm cow && truncate -s 32M cow && losetup "$cow" cow
}

# --- Setting up ---------------------------------------------------------------------------------------------

size=16391 # in sectors: neither whole units of any size nor anything else
truncate -s $((size * 512 + 77)) rdo
cowtest fill rdo >/dev/null
truncate -s 32M cow cow2 cow3
sums=$(sha256sum rdo)
rdo=$(loopdev rdo -r 2>/dev/null)
rdo_rw=$(loopdev rdo 2>/dev/null)
cow=$(loopdev cow)
cow2=$(loopdev cow2)
cow3=$(loopdev cow3)
rdo_nr=$(printf '%d:%d' "0x$(stat -c %t "$rdo")" "0x$(stat -c %T "$rdo")")
cow_nr=$(printf '%d:%d' "0x$(stat -c %t "$cow")" "0x$(stat -c %T "$cow")")
sectors=$(sectors "$rdo")
is "$sectors" $size "rdo is $size sectors"
cp rdo want
dev=/dev/mapper/t

# --- The module ---------------------------------------------------------------------------------------------

runs "the module goes" rmmod dm_cowloop
is "$(dmsetup targets | grep -c '^cowloop ')" 0 "and its target with it"
runs "a device can be made all the same" cowopen t "$rdo" "$cow"
like "$(dmsetup targets)" '^cowloop +v[0-9]+\.[0-9]+\.[0-9]+$' "the target is back"
fails "the module stays while there is a device" rmmod dm_cowloop

# --- Status and counters ------------------------------------------------------------------------------------

units=2049
zeroes="rdo_reads 0 cow_reads 0 cow_writes 0 copyups 0 commits 0 errors 0"
like "$(dmsetup status t)" "^0 $size cowloop 2 4096 0/$units 0 0 clean rw [0-9]+ $zeroes( [a-z_]+ [0-9]+)*\$" "status of a new device"
# shellcheck disable=SC2046 # many words
is "$(set -- $(dmsetup status t); echo "${11}")" "$(set -- $(dmsetup status t); echo $((($# - 11) / 2)))" "it says how many counters"
is "$(dmsetup table t)" "0 $size cowloop $rdo_nr $cow_nr" "table of a new device"
is "$(sectors $dev)" $size "it has rdo's size"
is "$(cowhead cow dirty cowused popcount mapunit rdosectors)" "0 0 0 4096 $size" "its cowfile, as it is on disk"
shows $dev "it shows rdo"

counters() { cowstat t rdo_reads cow_reads cow_writes copyups commits errors; }

# counted WANT NAME COMMAND...: COMMAND succeeds, and adds WANT to the counters
counted() {
	want=$1 name=$2
	shift 2
	before=$(counters)
	"$@" >out 2>&1
	ok $? "$name" || diag "$(cat out)"
	# shellcheck disable=SC2046,SC2086 # many words
	is "$(set -- $before $(counters); echo "$(($7 - $1)) $(($8 - $2)) $(($9 - $3)) $((${10} - $4)) $((${11} - $5)) $((${12} - $6))")" \
		"$want" "$name: counters"
}
read_at() { cowtest io $dev "$1" "$2" --read; }
flush() { cowtest io $dev --flush; }
state() { cowstat t used state mode; }

#        rdo_reads, cow_reads, cow_writes, copyups, commits, errors
counted "1 0 0 0 0 0" "read a unit from rdo" read_at 40960 4096
counted "1 0 0 0 0 0" "read 512 bytes from rdo" read_at 41472 512
counted "1 0 0 0 0 0" "read many units from rdo" read_at 512 65536
counted "0 0 0 0 0 0" "flush before there is anything to flush" flush
is "$(state)" "0 clean rw" "nothing used, clean"
counted "0 0 1 0 1 0" "write a unit and flush" write_flush $dev 40960 4096 1
is "$(state)" "1 dirty rw" "one used, dirty"
is "$(cowhead cow dirty popcount units)" "1 1 10" "and so on disk"
counted "0 1 0 0 0 0" "read it" read_at 40960 4096
counted "0 1 0 0 0 0" "read a part of it" read_at 41472 512
counted "0 0 1 0 0 0" "write it again and flush" write_flush $dev 40960 4096 2
counted "0 0 1 0 0 0" "write a part of it and flush" write_flush $dev 43008 1024 3
is "$(state)" "1 dirty rw" "still one used"
counted "0 0 1 1 1 0" "write a part of a unit and flush" write_flush $dev 81920 512 4
counted "0 0 1 0 0 0" "write another part of it and flush" write_flush $dev 84992 1024 5
counted "0 0 2 2 1 0" "write two halves of units and flush" write_flush $dev 100352 4096 6
is "$(state)" "4 dirty rw" "four used"
counted "0 0 3 2 1 0" "write the end of a unit, three units, and the begin of one, and flush" \
	write_flush $dev $((50 * 4096 - 512)) $((3 * 4096 + 1024)) 7
is "$(state)" "9 dirty rw" "nine used"
counted "0 0 1 0 1 0" "write all of the last unit, a short one, and flush" write_flush $dev $((2048 * 4096)) 3584 8
is "$(cowhead cow dirty popcount units)" "1 10 10,20,24-25,49-53,2048" "all of them on disk"
counted "2 2 0 0 0 0" "read from 23 to 49" read_at $((23 * 4096)) $((27 * 4096 - 512 - 512))
counted "1 2 0 0 0 0" "read three runs" read_at $((20 * 4096 + 512)) $((4 * 4096))
fua() { cowtest io $dev 409600 4096 --write --stamp 9 --fua && cowtest io want 409600 4096 --write --stamp 9; }
counted "0 0 1 0 1 0" "write a unit with FUA" fua
is "$(cowhead cow popcount units)" "11 10,20,24-25,49-53,100,2048" "on disk when it is done"
# a loop device has no FUA: see flush.t
counted "0 0 1 0 1 0" "again: for its flush" fua
shows $dev "the device is what was written"

write $dev 0 512 10
commits=$(cowstat t commits)
runs "message sync" dmsetup message t 0 sync
is "$(state)" "12 clean rw" "clean then"
is "$(cowhead cow dirty cowused popcount)" "0 12 12" "on disk too"
ok "$(($(cowstat t commits) <= commits))" "it commits"
write $dev 0 512 11
is "$(state) $(cowhead cow dirty)" "12 clean rw 0" "a rewrite leaves it clean"
write $dev 8192 512 12
is "$(state) $(cowhead cow dirty)" "13 dirty rw 1" "a first write does not"
shows $dev "the device is what was written"

# --- Messages that there are not ----------------------------------------------------------------------------

for message in nonsense 'sync now' 'read_only 1' readonly 'synch' '@cancel'; do
	# shellcheck disable=SC2086 # several words
	fails "refused: message $message" dmsetup message t 0 $message
done
is "$(state)" "13 dirty rw" "they changed nothing"

# --- read_only ----------------------------------------------------------------------------------------------

event() { dmsetup info -c --noheadings -o events t; }
before=$(event)
timeout 60 dmsetup wait t "$before" >/dev/null &
wait=$!
sleep 0.3
runs "someone waits for an event" kill -0 $wait
write $dev $((200 * 4096)) 12288 13
runs "message read_only" dmsetup message t 0 read_only
wait $wait
ok $? "raises the event"
is "$(event)" $((before + 1)) "one event"
is "$(state)" "16 clean ro" "mode ro, clean"
is "$(cowhead cow dirty cowused popcount)" "0 16 16" "on disk too"
errors=$(cowstat t errors)
for at in 40960 819200 4096000; do
	out=$(cowtest io $dev $at 4096 --write 2>&1)
	like "$?: $out" '^3: .*EIO' "a write at $at fails"
done
ok "$(($(cowstat t errors) < errors + 3))" "counted as errors"
out=$(cowtest io $dev 40960 4096 --write --fua 2>&1)
like "$?: $out" '^3: .*EIO' "so does one with FUA"
runs "a flush does not" flush
shows $dev "reads go on"
runs "message sync does nothing" dmsetup message t 0 sync
runs "nor does read_only" dmsetup message t 0 read_only
is "$(event)" $((before + 1)) "no event more"
is "$(state)" "16 clean ro" "still mode ro, clean"
is "$(dmsetup table t)" "0 $size cowloop $rdo_nr $cow_nr 1 read_only" "the table says so"
sum=$(sha256sum cow)
table=$(dmsetup table t)
dmsetup remove t
is "$(sha256sum cow)" "$sum" "closing writes nothing"

# a line that the table printed
runs "the device again, from the table it printed" dmsetup create t --table "$table"
is "$(state)" "16 clean ro" "mode ro, clean"
is "$(dmsetup table t)" "$table" "the same table"
out=$(cowtest io $dev 40960 4096 --write 2>&1)
like "$?: $out" '^3: .*EIO' "a write fails"
runs "a flush works" flush
shows $dev "it shows what was written"
fails "without read_only it would be in use" cowopen other "$rdo" "$cow"
dmsetup remove t
is "$(sha256sum cow)" "$sum" "nothing was written to the cowfile"

dmsetup create -r t --table "$(cowline "$rdo" "$cow")"
ok $? "dmsetup create -r"
is "$(state) $(blockdev --getro $dev)" "16 clean ro 1" "mode ro, clean"
fails "a write fails" cowtest io $dev 40960 4096 --write
shows $dev "it shows what was written"
dmsetup remove t
is "$(sha256sum cow)" "$sum" "nothing was written to the cowfile"

losetup -d "$cow"
losetup -r "$cow" cow
runs "a cow device that is read-only, with read_only" cowopen t "$rdo" "$cow" read_only
is "$(state)" "16 clean ro" "mode ro, clean"
out=$(cowtest io $dev 40960 4096 --write 2>&1)
like "$?: $out" '^3: .*EIO' "a write fails"
runs "a flush works" flush
runs "message sync works" dmsetup message t 0 sync
shows $dev "it shows what was written"
dmsetup remove t
fails "but not without" cowopen t "$rdo" "$cow"
is "$(sha256sum cow)" "$sum" "nothing was written to the cowfile"
losetup -d "$cow"
losetup "$cow" cow

runs "writable again" cowopen t "$rdo_rw" "$cow"
is "$(state)" "16 clean rw" "mode rw, clean"
write_flush $dev 4096000 4096 14
shows $dev "it shows what was written"
dmsetup remove t

# --- Options on the table line ------------------------------------------------------------------------------

# words LINE: its optional parameters, in any order
words() {
	# shellcheck disable=SC2086 # several words
	set -- $1
	[ $# -gt 5 ] || return 0
	shift 5
	[ $(($# - 1)) -eq "$1" ] || { echo "counted wrong: $*"; return; }
	shift
	for word; do echo "$word"; done | sort | tr '\n' ' '
}

# roundtrip OPTION...: the table has all of them and makes the same device; a read_only one that was formatted before
roundtrip() {
	case " $* " in
	*" read_only "* | *" repair "*) ;;
	*) blank ;;
	esac
	# shellcheck disable=SC2086 # several words
	runs "options: $*" cowopen t "$rdo" "$cow" "$@" || return
	table=$(dmsetup table t)
	is "$(words "$table")" "$(for word; do echo "$word"; done | sort | tr '\n' ' ')" "the table has them"
	like "$table" "^0 $(sectors $dev) cowloop $rdo_nr $cow_nr $# " "and the rest"
	status=$(cowstat t format mapunit total mode)
	dmsetup remove t
	dmsetup create t --table "$table"
	is "$(dmsetup table t)" "$table" "it makes a device with the same table"
	is "$(cowstat t format mapunit total mode)" "$status" "and the same status"
	dmsetup remove t
}
roundtrip format:2
is "$status" "2 4096 $units rw" "what it is"
roundtrip mapunit:65536
is "$status" "2 65536 129 rw" "what it is"
roundtrip format:2 mapunit:1048576
is "$status" "2 1048576 9 rw" "what it is"
roundtrip read_only mapunit:1048576 format:2
is "$status" "2 1048576 9 ro" "what it is"
roundtrip format:1 mapunit:1024
is "$status" "1 1024 8195 rw" "what it is"
roundtrip format:1
is "$status" "1 1024 8195 rw" "what it is"
roundtrip format:1 read_only
is "$status" "1 1024 8195 ro" "what it is"
roundtrip repair format:1 mapunit:1024
is "$status" "1 1024 8195 rw" "what it is"
cp rdo want
dmsetup create t --table "0 16390 cowloop $rdo $cow 0"
is "$(dmsetup table t)" "0 16390 cowloop $rdo_nr $cow_nr" "no options, counted"
shows $dev "the last sector is no whole unit of format 1 and left out"
dmsetup remove t

# --- What is refused ----------------------------------------------------------------------------------------

# refused NAME LINE: there is no device afterwards
refused() {
	fails "refused: $1" dmsetup create bad --table "$2"
	! dmsetup info bad >/dev/null 2>&1 || { ok 1 "$1: no device is left"; dmsetup remove bad; }
}
# explained NAME LINE: refused, with a line in the log of its own
explained() {
	lines=$(logged)
	refused "$@"
	is "$(logged)" $((lines + 1)) "$1: one line in the log"
}
# untouched: the blank cow device still is one
untouched() {
	is "$(tr -d '\0' <cow | wc -c)" 0 "nothing was written to the cow device" || blank
}
blank
line="0 $size cowloop $rdo $cow"
refused "no devices" "0 $size cowloop"
refused "one device" "0 $size cowloop $rdo"
refused "a device that is not there" "0 $size cowloop $rdo /dev/nonesuch"
refused "another that is not there" "0 $size cowloop /dev/nonesuch $cow"
refused "options that are not counted" "$line read_only"
refused "fewer options than counted" "$line 2 format:2"
refused "more options than counted" "$line 1 format:2 mapunit:4096"
refused "a count of none, and one" "$line 0 format:2"
refused "too many" "$line 99 format:2"
for option in nonsense format format: format:0 format:3 format:2x mapunit:0 mapunit:512 mapunit:1023 mapunit:2048 \
	mapunit:4097 mapunit:2097152 mapunit:4k mapunit repair:1 read_only:1; do
	refused "$option" "$line 1 $option"
done
explained "mapunit:1024 for format 2" "$line 1 mapunit:1024"
explained "mapunit:4096 for format 1" "$line 2 format:1 mapunit:4096"
explained "a blank cow device, read_only" "$line 1 read_only"
untouched
explained "longer than rdo" "0 $((size + 1)) cowloop $rdo $cow"
untouched
explained "longer than rdo in whole units" "0 $size cowloop $rdo $cow 1 format:1"
untouched
explained "rdo and cow the same" "0 $size cowloop $cow $cow"
truncate -s 8191 short
short=$(loopdev short 2>/dev/null)
explained "a cow device with no room for its bitmap" "0 $size cowloop $rdo $short"
losetup -d "$short"

cowopen t "$rdo" "$cow"
explained "a cow device in use" "$line"
explained "a cow device in use, read_only" "$line 1 read_only"
explained "a cow device in use as rdo" "0 8 cowloop $cow $cow2"
explained "rdo as a cow device" "0 8 cowloop $cow2 $rdo_rw"
dmsetup remove t
explained "another mapunit than it has" "$line 1 mapunit:8192"
explained "another rdo than it had" "0 8 cowloop $cow2 $cow"
is "$(cowhead cow dirty cowused)" "0 0" "the cowfile is as it was"

# --- Several devices over one rdo ---------------------------------------------------------------------------

blank
cowopen a "$rdo" "$cow"
cowopen b "$rdo" "$cow2" mapunit:65536
cowopen c "$rdo_rw" "$cow3" format:1
for name in a b c; do
	cp rdo want
	case $name in
	a) stamp=100 ;;
	b) stamp=200 ;;
	c) stamp=300 ;;
	esac
	for at in 0 3072 65536 130560 $((size * 512 - 1024 - 3584)); do
		stamp=$((stamp + 1))
		write /dev/mapper/$name $at 3584 $stamp
	done
	mv want want.$name
done
for name in a b c; do
	mv want.$name want
	shows /dev/mapper/$name "three devices over one rdo: $name has its own writes"
	mv want want.$name
done
dmsetup remove b
for name in a c; do
	mv want.$name want
	shows /dev/mapper/$name "the others go on without b: $name"
	mv want want.$name
done
dmsetup remove a
dmsetup remove c
cowopen c "$rdo" "$cow2"
cowopen b "$rdo" "$cow3" format:1
cowopen a "$rdo" "$cow"
for name in a:a b:c c:b; do
	mv want."${name#*:}" want
	shows /dev/mapper/"${name%:*}" "what a device was called does not matter: $name"
	rm want
done
dmsetup remove a
dmsetup remove b
dmsetup remove c

# --- Units in either place ----------------------------------------------------------------------------------

# alternate SIZE OPTION...: every second unit written, read in every possible way
alternate() {
	unit=$1
	shift
	blank
	cowopen t "$rdo" "$cow" "$@"
	bytes=$(($(sectors $dev) * 512))
	cowtest fill data --size $bytes --base-seed 2 >/dev/null
	runs "$*: write every second unit" perl direct.pl write $dev data "$unit" 1 2
	dmsetup message t 0 sync # or the commit comes when it likes
	all=$(((bytes + unit - 1) / unit))
	written=$((bytes / unit / 2))
	is "$(cowstat t used total copyups)" "$written $all 0" "as many used"
	cowfile expect --rdo rdo --format "$(cowstat t format)" --mapunit "$unit" --units "1-$((written * 2 - 1))/2" --data data \
		--out want
	shows $dev "read in order"
}
cat rdo >/dev/null
alternate 4096
runs "reads of all sizes at all offsets" perl direct.pl reads $dev want 0 72
runs "at the end, too" perl direct.pl reads $dev want $((size - 40)) 40
counted "8 8 0 0 0 0" "a read of 16 units" read_at 65536 65536
counted "9 8 0 0 0 0" "a read of 17 units" read_at $((128 * 4096)) $((17 * 4096))
counted "1 1 0 0 0 0" "a read of half and half" read_at $((4096 - 512)) 1024
for size_of in 1536 13824 1M 4M; do
	dd if=$dev iflag=direct bs=$size_of status=none | cmp - want
	ok $? "read in pieces of $size_of"
done
dmsetup remove t
is "$(cowhead cow dirty popcount units)" "0 1024 $(seq -s , 1 2 2047)" "the cowfile says the same"
cowopen t "$rdo" "$cow"
shows $dev "and so does the device when it is opened again"
runs "reads of all sizes at all offsets" perl direct.pl reads $dev want 1000 30
dmsetup remove t

alternate 1024 format:1
runs "reads of all sizes at all offsets" perl direct.pl reads $dev want 0 40
counted "32 32 0 0 0 0" "a read of 64 units" read_at 65536 65536
dmsetup remove t

alternate 65536 mapunit:65536
runs "reads of all sizes at all offsets" perl direct.pl reads $dev want 224 72
dmsetup remove t

# patterns that somebody else made
for pattern in 0 last all 0-9,last 7-12,20,22,24-30,33,100-900/3 1-last/3,64-127 0-1000/7,3-2000/5; do
	losetup -d "$cow"
	rm cow
	cowfile make --rdo rdo --cow cow --units $pattern --fill-seed 77
	losetup "$cow" cow
	cowfile expect --rdo rdo --units $pattern --fill-seed 77 --out want
	cowopen t "$rdo" "$cow"
	shows $dev "units $pattern, read in order"
	runs "in all ways" perl direct.pl reads $dev want 156 40
	dmsetup remove t
done

# --- That was all -------------------------------------------------------------------------------------------

is "$(sha256sum rdo)" "$sums" "nobody has written to rdo"
is "$(blockdev --getro "$rdo" "$rdo_rw" | tr '\n' ' ')" "1 0 " "not even where it was possible"
losetup -d "$rdo"
losetup -d "$rdo_rw"
losetup -d "$cow"
losetup -d "$cow2"
losetup -d "$cow3"
is "$(losetup -a)" "" "nothing holds the loop devices"
runs "the module goes" rmmod dm_cowloop
is "$(lsmod | grep -c '^dm_cowloop ')" 0 "and is gone"

done_testing
