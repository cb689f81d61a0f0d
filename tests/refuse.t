#!/bin/dash
# SPDX-License-Identifier: GPL-2.0-only
# vm: --smp 2 --mem 1G --append slab_nomerge
#
# What must be refused: bad cowfiles, bad devices, bad table lines. Every case must fail the table load, change
# no byte of the cow device, say why in one line of the kernel's log, and leave nothing behind.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit

# --- Bad cowfiles are made by cowfile.pl ------------------------------------------------------------------------

# make [OPTION...]: makes the cowfile, and a copy of it
make() {
	cowfile make --rdo rdo --cow cow "$@" >make.out ||
		{ echo "Bail out! cowfile.pl make $*: $(cat make.out)"; exit 1; }
	cp cow cow.before
}

# --- The check --------------------------------------------------------------------------------------------------

forget_log() { dmesg -c >/dev/null; }

# check_refused NAME PATTERN COMMAND...: COMMAND must fail to load a table, for the reason that PATTERN matches.
# The line in the log is ours and names one of the devices; or, for PATTERN `table: ...', device-mapper's own
# that shows our error.
check_refused() {
	name=$1 pattern=$2 faults=''
	shift 2
	fault() { faults="$faults$*
"; }

	if out=$("$@" 2>&1); then
		fault "succeeded: $*"
		dmsetup remove -f bad
	fi
	ours='' core='' count=0
	while read -r line; do
		case $line in
		*'device-mapper: cowloop: '*) count=$((count + 1)) ours=${line#*cowloop: } ;;
		*'device-mapper: table: '*) core=${line#*device-mapper: } ;;
		esac
	done <<END
$(dmesg -c)
END
	case $pattern in
	table:*)
		# shellcheck disable=SC2254 # it is a pattern
		case $core in ${pattern%%:*}:*${pattern#*: }*) ;; *) fault "log: $core" "not like: $pattern" ;; esac
		[ "$count" -le 1 ] || fault "log: $count lines of ours, the last: $ours" ;;
	*)
		[ "$count" -eq 1 ] || fault "log: $count lines of ours"
		case $ours in
		*loop[0-9]*' '* | *loop[0-9]*: | *'7:'[0-9]*) ;;
		*) fault "log: names no device: $ours" ;;
		esac
		# shellcheck disable=SC2254
		case $ours in *$pattern*) ;; *) fault "log: $ours" "not like: $pattern" ;; esac ;;
	esac
	case $out in *'ioctl'*failed*) ;; *) fault "dmsetup: $out" ;; esac

	cmp cow cow.before >cmp.out 2>&1 || fault "the cowfile has changed: $(cat cmp.out)"
	for dm in /sys/block/dm-*; do
		[ ! -e "$dm" ] || [ "$(cat "$dm/dm/name")" = other ] || fault "left behind: $dm"
	done
	for holder in /sys/block/loop[12]/holders/*; do
		[ ! -e "$holder" ] || [ "$others" ] || fault "held: $holder"
	done

	[ ! "$faults" ]
	ok $? "$name" || diag "$faults"
}

# refused NAME PATTERN [WORD...]: a table line with these words behind the two devices
refused() {
	name=$1 pattern=$2
	shift 2
	check_refused "$name" "$pattern" dmsetup create bad --table "0 ${length:-$sectors} cowloop $rdo $cow $*"
}

# head FORMAT FIELD=VALUE PATTERN
head() {
	make --format "$1" --units 0,5-7,last --set "$2"
	refused "format $1: $2" "$3"
}

# damaged PATTERN OPTION...: anything else that cowfile.pl can do to a file
damaged() {
	pattern=$1
	shift
	make "$@"
	refused "$*" "$pattern"
}

# words PATTERN TABLE-LINE...: nothing is wrong with the cowfile
words() {
	pattern=$1
	shift
	check_refused "table: $*" "$pattern" dmsetup create bad --table "$*"
}

# --- The stage --------------------------------------------------------------------------------------------------

cowfile_server
cowtest fill rdo --size 100K >/dev/null
make --units 0
rdo=$(loopdev rdo -r) cow=$(loopdev cow 2>/dev/null)
sectors=$(sectors "$rdo")
others='' length=''
forget_log

resize() { losetup -c "$cow"; }

# --- Heads ------------------------------------------------------------------------------------------------------

for f in 1 2; do
	head $f magic=0             'found magic 0x00000000, expected 0x574f437f'
	head $f magic=0xffffffff    'found magic 0xffffffff, expected 0x574f437f'
	head $f magic=0x574f437e    'found magic 0x574f437e, expected 0x574f437f'
	head $f magic=0x7f434f57    'found magic 0x7f434f57, expected 0x574f437f'
	head $f version=0           'found 0, expected 1 or 2'
	head $f version=3           'found 3, expected 1 or 2'
	head $f version=65535       'found 65535, expected 1 or 2'
	head $f flags=2             'found PACKED'
	head $f flags=3             'found PACKED'
	head $f mapunit=0           'found mapunit 0, expected'
	head $f mapunit=512         'found mapunit 512, expected'
	head $f mapunit=2048        'found mapunit 2048, expected'
	head $f mapunit=0xffffffffffffffff 'found mapunit 18446744073709551615, expected'
done
head 1 flags=1                  'found DIRTY set, expected * repair'
head 1 mapunit=1023             'found mapunit 1023, expected 1024'
head 1 mapunit=1025             'found mapunit 1025, expected 1024'
head 1 mapunit=4096             'found mapunit 4096, expected 1024'
head 1 mapunit=0x100000400      'found mapunit 4294968320, expected 1024'
head 1 mapsize=0                'found mapsize 0, expected 1024'
head 1 mapsize=1023             'found mapsize 1023, expected 1024'
head 1 mapsize=1025             'found mapsize 1025, expected 1024'
head 1 mapsize=2048             'found mapsize 2048, expected 1024'
head 1 mapsize=0x100000400      'found mapsize 4294968320, expected 1024'
head 1 mapsize=0xffffffffffffffff 'found mapsize 18446744073709551615, expected 1024'
head 1 doffset=0                'found doffset 0, expected 4096'
head 1 doffset=2048             'found doffset 2048, expected 4096'
head 1 doffset=4095             'found doffset 4095, expected 4096'
head 1 doffset=4097             'found doffset 4097, expected 4096'
head 1 doffset=8192             'found doffset 8192, expected 4096'
head 1 doffset=0x100001000      'found doffset 4294971392, expected 4096'
head 1 doffset=0xffffffffffffffff 'found doffset 18446744073709551615, expected 4096'
head 1 rdoblocks=0              'found 0 units *expected 100'
head 1 rdoblocks=99             'found 99 units *expected 100'
head 1 rdoblocks=101            'found 101 units *expected 100'
head 1 rdoblocks=0x100000064    'found 4294967396 units *expected 100'
head 1 rdoblocks=0xffffffffffffffff 'found 18446744073709551615 units *expected 100'
head 1 cowused=0                'found cowused 0, expected 5'
head 1 cowused=4                'found cowused 4, expected 5'
head 1 cowused=6                'found cowused 6, expected 5'
head 1 cowused=0x100000005      'found cowused 4294967301, expected 5'
head 1 cowused=0xffffffffffffffff 'found cowused 18446744073709551615, expected 5'

head 2 mapunit=1024             'found mapunit 1024, expected *4096'
head 2 mapunit=4095             'found mapunit 4095, expected *4096'
head 2 mapunit=4097             'found mapunit 4097, expected *4096'
head 2 mapunit=6144             'found mapunit 6144, expected a power of two'
head 2 mapunit=2M               'found mapunit 2097152, expected *1048576'
head 2 mapunit=0x100001000      'found mapunit 4294971392, expected'
head 2 mapunit=0x8000000000000000 'found mapunit 9223372036854775808, expected'
head 2 mapunit=8192             'found 25 units of 8192 bytes, expected 13'
head 2 mapsize=0                'found mapsize 0, expected 4096'
head 2 mapsize=512              'found mapsize 512, expected 4096'
head 2 mapsize=4095             'found mapsize 4095, expected 4096'
head 2 mapsize=4097             'found mapsize 4097, expected 4096'
head 2 mapsize=8192             'found mapsize 8192, expected 4096'
head 2 mapsize=0x100001000      'found mapsize 4294971392, expected 4096'
head 2 mapsize=0xffffffffffffffff 'found mapsize 18446744073709551615, expected 4096'
head 2 doffset=0                'found doffset 0, expected *4096 from 8192'
head 2 doffset=4096             'found doffset 4096, expected *4096 from 8192'
head 2 doffset=8191             'found doffset 8191, expected *4096 from 8192'
head 2 doffset=8193             'found doffset 8193, expected *4096 from 8192'
head 2 doffset=8704             'found doffset 8704, expected *4096 from 8192'
head 2 doffset=0xffffffffffffffff 'found doffset 18446744073709551615, expected'
head 2 doffset=0xfffffffffffff000 'found doffset 18446744073709547520, expected'
head 2 doffset=0x8000000000000000 'found doffset 9223372036854775808, expected'
head 2 rdoblocks=0              'found 0 units *expected 25'
head 2 rdoblocks=24             'found 24 units *expected 25'
head 2 rdoblocks=26             'found 26 units *expected 25'
head 2 rdoblocks=0x100000019    'found 4294967321 units *expected 25'
head 2 rdoblocks=0xffffffffffffffff 'found 18446744073709551615 units *expected 25'
head 2 rdosectors=0             'found 0 sectors, expected 200'
head 2 rdosectors=199           'found 199 sectors, expected 200'
head 2 rdosectors=201           'found 201 sectors, expected 200'
head 2 rdosectors=0x1000000c8   'found 4294967496 sectors, expected 200'
head 2 rdosectors=0xffffffffffffffff 'found 18446744073709551615 sectors, expected 200'
head 2 moffset=0                'found moffset 0, expected 4096'
head 2 moffset=512              'found moffset 512, expected 4096'
head 2 moffset=4097             'found moffset 4097, expected 4096'
head 2 moffset=8192             'found moffset 8192, expected 4096'
head 2 moffset=0xffffffffffffffff 'found moffset 18446744073709551615, expected 4096'
head 1 version=0x4001           'is being merged: found a merge begun'
head 1 version=0x4002           'is being merged: found a merge begun'
head 2 incompat=1               'is being merged: found a merge begun'
head 2 incompat=2               'is being merged: found a merge begun'
head 2 incompat=4               'found incompat 0x00000004, expected'
head 2 incompat=0x80000000      'found incompat 0x80000000, expected'
head 2 incompat=0xfffffffc      'found incompat 0xfffffffc, expected'
head 2 cowused=26               'found cowused 26, expected at most 25'
head 2 cowused=0xffffffffffffffff 'found cowused 18446744073709551615, expected at most 25'

for f in 1 2; do
	echo "fingerprint --format $f rdo" >&8
	read -r made <&9
	is "$made" 0 "the fingerprint of format $f" || continue
	read -r right <cowfile.out
	for wrong in 0x0000000000000000 0xffffffffffffffff 0x0000000100000000; do
		head $f rdofingerprint=$wrong "found fingerprint $wrong, expected $right"
	done
done

# every part of the head is covered by the checksum
for at in 7 55 60 79 80 100 300 415 450 507; do
	damaged 'found checksum *, expected' --units 0 --flip $at
done
for at in 508 511; do
	damaged 'found checksum *, expected' --units 0 --flip $at
done
damaged 'found checksum *, expected' --units 0 --flip 508 --flip 509 --flip 510 --flip 511
damaged 'found checksum 0x00000000, expected' --units 0 --set-after-csum csum=0
damaged 'found checksum *, expected' --dirty --units 0 --set-after-csum flags=0
damaged 'found doffset 69632, expected a multiple of 65536 from 65536' --mapunit 64K --doffset 69632 --truncate full
resize

# --- Cow devices of the wrong size ----------------------------------------------------------------------------

# short FORMAT SIZE PATTERN
short() {
	make --format "$1" --truncate "$2"
	resize
	refused "format $1: $2 bytes" "$3"
}
short 1 512  'found 512 bytes, expected at least 1024'
short 1 1024 'found 1024 bytes, expected at least 2048'
short 1 1536 'found 1536 bytes, expected at least 2048'
short 2 512  'found 512 bytes, expected at least'
short 2 1024 'found 1024 bytes, expected at least 8192'
short 2 4096 'found 4096 bytes, expected at least 8192'
short 2 7680 'found 7680 bytes, expected at least 8192'

# blank SIZE PATTERN [WORD...]
blank() {
	size=$1 pattern=$2
	shift 2
	rm -f cow cow.before
	truncate -s "$size" cow cow.before
	losetup -d "$cow"
	cow=$(loopdev cow 2>/dev/null)
	forget_log
	refused "blank, $size bytes: $*" "$pattern" "$@"
}
blank 0    'found 0 bytes, expected at least'
blank 512  'found 512 bytes, expected at least'
blank 1024 'found 1024 bytes, expected at least 8192'
blank 7680 'found 7680 bytes, expected at least 8192'
blank 7680 'found 7680 bytes, expected at least 8192' 1 mapunit:65536
blank 1024 'found 1024 bytes, expected at least 2048' 1 format:1
blank 1536 'found 1536 bytes, expected at least 2048' 1 format:1
blank 1M   'found 4096 zero bytes, expected a cowfile' 1 read_only
blank 1M   'found mapunit 4096, expected 1024 for format 1' 2 format:1 mapunit:4096
blank 1M   'found mapunit 1024, expected *4096 *for format 2' 1 mapunit:1024
blank 1M   'found mapunit 1024, expected *4096 *for format 2' 2 format:2 mapunit:1024

# --- What does not fit together ---------------------------------------------------------------------------------

fresh() {
	rm -f cow
	make "$@"
	losetup -d "$cow"
	cow=$(loopdev cow 2>/dev/null)
	forget_log
}

fresh --format 1 --units 0 --truncate full
refused 'format 1, another mapunit' 'found mapunit 1024, expected 4096' 1 mapunit:4096
length=201
refused 'format 1, longer than rdo' 'found *201 sectors, expected at most 200'
length=''
make --format 1 --dirty --units 0 --hidden-units 3 --truncate full
refused 'format 1, dirty, read_only' 'found DIRTY set' 1 read_only
refused 'format 1, dirty, repair and read_only' "found DIRTY set * 'read_only'" 2 repair read_only

fresh --format 2 --units 0,5-7,last
refused 'another mapunit' 'found mapunit 4096, expected 8192' 1 mapunit:8192
refused 'a mapunit of format 1' 'found mapunit 4096, expected 1024' 1 mapunit:1024
for length in 201 4194304 2199023255552; do
	refused "$length sectors" "found *$length sectors, expected at most 200"
done
length=''

truncate -s 0 none
truncate -s 512 tiny
truncate -s 102912 longer
cp rdo changed
printf x | dd of=changed bs=1 seek=8192 conv=notrunc 2>/dev/null
none=$(loopdev none 2>/dev/null) tiny=$(loopdev tiny -r) longer=$(loopdev longer -r) changed=$(loopdev changed -r)
forget_log
words 'found 200 sectors, expected 201'    0 200 cowloop "$longer" "$cow"
words 'found 200 sectors, expected 1'      0 1 cowloop "$tiny" "$cow"
words 'found fingerprint * expected'       0 200 cowloop "$changed" "$cow"
words 'no sectors'                         0 200 cowloop "$none" "$cow"
words 'as the read-only device and as the cow device' 0 200 cowloop "$cow" "$cow"
words 'cannot open the read-only device'   0 200 cowloop /dev/loop77 "$cow"
words 'cannot open the cow device'         0 200 cowloop "$rdo" /dev/loop77

# a blank cow device for these, which must stay so
truncate -s 1M blank
blank=$(loopdev blank)
forget_log
words 'found 512 bytes, expected at least 1024' 0 1 cowloop "$tiny" "$blank" 1 format:1
fails 'the blank cow device stays blank' grep -q . blank

# --- Table lines ------------------------------------------------------------------------------------------------

words 'table: Requires <rdo_dev> <cow_dev>' 0 200 cowloop
words 'table: Requires <rdo_dev> <cow_dev>' 0 200 cowloop "$rdo"
refused 'a count that is no number'  'table: Invalid number of optional parameters' read_only
refused 'a negative count'           'table: Invalid number of optional parameters' -1 read_only
refused 'a count without parameters' 'table: Invalid number of optional parameters' 1
refused 'a count too large'          'table: Invalid number of optional parameters' 2 read_only
refused 'a huge count'               'table: Invalid number of optional parameters' 4000000000 read_only
refused 'a count too small'          'table: Number of optional parameters' 1 read_only format:2
refused 'a count of 0'               'table: Number of optional parameters' 0 read_only
for word in nonsense format mapunit repair:1 read_only:1 read_onl read_only_ read_only,repair; do
	refused "$word" 'table: Unrecognised optional parameter' 1 $word
done
for word in format: format:2x format:-1 format:x format:0 format:3 format:4294967295 format:4294967298 format:99999999999999999999; do
	refused "$word" 'table: Invalid format' 1 $word
done
for word in mapunit: mapunit:-4096 mapunit:4096k mapunit:0 mapunit:512 mapunit:1000 mapunit:2048 mapunit:4097 mapunit:2097152 mapunit:4294963200 \
	mapunit:4294971392 mapunit:18446744073709555712; do
	refused "$word" 'table: Invalid mapunit' 1 $word
done

# --- Devices in use -----------------------------------------------------------------------------------------------

cp rdo rdo.2
truncate -s 1M cow.2
rdo2=$(loopdev rdo.2) cow2=$(loopdev cow.2)
others=1
dmsetup create other --table "0 200 cowloop $rdo2 $cow"
forget_log
refused 'the cow device of another'                 'in use by * as its cow device'
words   'in use by * as its cow device'             0 200 cowloop "$cow" "$cow2"
words   'in use by * as its read-only device'       0 200 cowloop "$rdo" "$rdo2"
dmsetup remove other
check_refused 'one cow device twice in a table' 'in use by * in the same table' \
	dmsetup create bad --table "0 200 cowloop $rdo $cow
200 200 cowloop $rdo2 $cow"
others=''

mkfs.ext4 -q -O ^has_journal "$cow2"
forget_log
words 'found magic 0x00000000, expected'   0 200 cowloop "$rdo" "$cow2"
mkdir mnt
mount -t ext4 "$cow2" mnt
forget_log
words "cannot open the cow device $cow2"       0 200 cowloop "$rdo" "$cow2"
words "cannot open the read-only device $cow2" 0 200 cowloop "$cow2" "$cow"
umount mnt

# a device that can't be written, without read_only
losetup -d "$cow"
cow=$(loopdev cow -r)
forget_log
refused 'a cow device that is read-only' 'read-only, expected *read_only'
runs 'but with read_only it opens' dmsetup create other --table "0 200 cowloop $rdo $cow 1 read_only"
dmsetup remove other
losetup -d "$cow" "$blank"
cow=$(loopdev cow) blank=$(loopdev blank -r)
forget_log
words 'read-only, expected *read_only' 0 200 cowloop "$rdo" "$blank"
losetup -d "$blank"
blank=$(loopdev blank)
forget_log
check_refused 'a blank cow device in a read-only table' 'found 4096 zero bytes, expected a cowfile' \
	dmsetup create bad --readonly --table "0 200 cowloop $rdo $blank"
fails 'the blank cow device is blank still' grep -q . blank

# --- Features that are not known: reads only ------------------------------------------------------------------------

for bits in 1 0x80000000; do
	make --units 0,5-7,last --set compat_ro=$bits
	echo 'expect --rdo rdo --units 0,5-7,last --out image' >&8
	read -r made <&9
	[ "$made" -eq 0 ] || { echo "Bail out! $(cat cowfile.out)"; exit 1; }
	runs "compat_ro $bits: opens" dmsetup create other --table "0 200 cowloop $rdo $cow" || continue
	like "$(dmsetup status other)" '^0 200 cowloop 2 4096 5/25 0 0 clean ro ' 'read-only'
	like "$(dmesg -c)" 'cowloop: .*(loop|7:)[0-9]+.*compat_ro' 'and the log says why'
	runs 'reads are right' cmp /dev/mapper/other image
	for at in 0 12K 96K; do
		like "$(cowtest io /dev/mapper/other $at 4K --write 2>&1)" EIO "writes fail: at $at"
	done
	dmsetup remove other
	runs 'nothing was written' cmp cow cow.before
done

# --- Nothing is left ------------------------------------------------------------------------------------------------

# objects: in each of the kernel's own slab caches, those in use
objects() {
	echo 2 >/proc/sys/vm/drop_caches
	for cache in /sys/kernel/slab/*; do
		[ ! -e "$cache/shrink" ] || echo 1 >"$cache/shrink"
	done
	awk 'NR > 2 { print $1, $2, $4 }' /proc/slabinfo | sort
}

percpu() { awk '$1 == "Percpu:" { print $2 }' /proc/meminfo; }
# areas of vmalloc() that the module has asked for
vmalloc_areas() { grep -c 'dm_cowloop' /proc/vmallocinfo; }
threads() { cat /proc/[0-9]*/comm 2>/dev/null | grep -c '^dm-cowloop'; }

# loads DEVICE COUNT WORD...: so many table loads that fail
loads() {
	device=$1 n=$2
	shift 2
	while [ "$n" -gt 0 ]; do
		n=$((n - 1))
		! dmsetup load "$device" --table "$*" >/dev/null 2>&1 || echo "$device"
	done
}

# at three stages: the words, the cowfile's bitmap, the length
many=60
fresh --format 1 --units 0 --set cowused=7
cp cow cow.3
truncate -s 1M cow.4
cow3=$(loopdev cow.3) cow4=$(loopdev cow.4)
dmsetup create other --table "0 200 cowloop $rdo2 $cow4"
dmsetup remove other
for n in 1 2 3; do dmsetup create --notable "other$n"; done
round() {
	loads other1 $many 0 200 cowloop "$rdo" "$cow2" 1 nonsense >succeeded.1 &
	first=$!
	loads other2 $many 0 200 cowloop "$rdo" "$cow3" >succeeded.2 &
	second=$!
	loads other3 $many 0 201 cowloop "$rdo2" "$cow4" >succeeded.3
	wait $first $second
	is "$(cat succeeded.?)" '' "$many table loads of three kinds fail"
	objects >"slab.$1"
	percpu >"percpu.$1"
}
round 0
# A leak makes its cache grow in each round. Some caches grow once or twice by themselves: all the objects that a CPU has at
# hand count as used. The smallest caches do so more often, and the kernel frees vmap_areas when it pleases.
# Per-CPU memory counts in pages, of which a leak in each round takes a new one in most.
cut -d ' ' -f 1 slab.0 >leaking
echo percpu >>leaking
for rounds in 1 2 3 4 5 6; do
	round $rounds
	[ "$(cat percpu.$rounds)" -le "$(cat percpu.$((rounds - 1)))" ] && : >growing || echo percpu >growing
	awk 'NR == FNR { before[$1] = $2; next }
		$2 - before[$1] >= many && $3 >= 64 && $1 != "vmap_area" { print $1 }' many=$many "slab.$((rounds - 1))" "slab.$rounds" |
		sort - growing | comm -12 leaking - >still
	mv still leaking
	[ -s leaking ] || break
done
is "$(cat leaking)" '' "no slab cache grows by an object for each, in $rounds rounds"
is "$(vmalloc_areas)" 0 'no memory from vmalloc() is left'
for n in 1 2 3; do dmsetup remove "other$n"; done

is "$(threads)" 0 'no threads of ours are left'
runs 'nothing has a device open' losetup -D
is "$(losetup --list --noheadings)" '' 'no loop device is in use'
runs 'the module can be unloaded' rmmod dm-cowloop
done_testing
