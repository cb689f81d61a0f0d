#!/bin/dash
# SPDX-License-Identifier: GPL-2.0-only
# vm: --smp 2 --mem 1G
#
# The cowfile on disk, both formats: files made byte by byte by cowfile.pl, which shares nothing with the module,
# must be read as they were meant, and files that the module has written must pass its strict check.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit

cowfile_server

# make FORMAT OPTION...: the file "cow" for $rdo, and a copy of its first MiB, which has all the head and bitmap
make() {
	format=$1
	shift
	rm -f cow cow.before
	cowfile make --rdo "$rdo" --cow cow --format "$format" "$@" >make.out ||
		{ echo "Bail out! cowfile.pl make $*: $(cat make.out)"; exit 1; }
	head -c 1M cow >cow.before
}

# expect OPTION...: the file "image", what a device over that cowfile must show
expect() {
	cowfile expect --rdo "$rdo" --out image --format "$format" "$@" ||
		{ echo "Bail out! cowfile.pl expect $*"; exit 1; }
}

# --- Devices --------------------------------------------------------------------------------------------------------

dev=/dev/mapper/c0
# new_rdo SIZE [OPTION...]: a file with base contents, to be the $rdo
new_rdo() {
	rdo=rdo.$1${2:+.$3}
	[ -e "$rdo" ] || cowtest fill "$rdo" --size "$@" >/dev/null
}
# empty_rdo SIZE: one with nothing in it yet
rdos=0
empty_rdo() {
	rdos=$((rdos + 1)) rdo=rdo-$rdos
	truncate -s "$1" "$rdo"
}

# opened [WORD...]: the device over $rdo and the file "cow", with these words in the table line
opened() {
	rdodev=$(loopdev "$rdo" -r 2>/dev/null) cowdev=$(loopdev cow)
	read -r length <"/sys/block/${rdodev#/dev/}/size"
	[ "$format" = 2 ] || length=$((length & ~1))
	dmsetup create c0 --table "0 $length cowloop $rdodev $cowdev $*" >dmsetup.out 2>&1 || { detach; return 1; }
}

# opens NAME [WORD...]
opens() {
	opens_name=$1
	shift
	opened "$@"
	ok $? "$opens_name" || { diag "$(cat dmsetup.out)" "$(dmesg | grep 'cowloop:' | tail -n 1)"; return 1; }
}

detach() { losetup -d "$rdodev" "$cowdev"; }

closed() { dmsetup remove c0 && detach; }

# shows NAME: the device holds what is in "image"
shows() { runs "$1" cmp $dev image; }

# status REGEX NAME: what is in the status line from the format on
status() { like "$(dmsetup status c0)" "^0 $length cowloop $1 " "$2"; }

used() { dmsetup status c0 | sed 's,^[^/]* \([0-9]*\)/.*,\1,'; }

# numbers OFFSET SIZE COUNT: in the head on disk
# shellcheck disable=SC2005,SC2046 # for single spaces
numbers() { echo $(od -An --endian=little -t "u$2" -j "$1" -N $(($2 * $3)) cow); }
flags() { numbers 6 2 1; }
cowused() { numbers 48 8 1; }

# io_fails ERRNO NAME OFFSET LENGTH OPTION...: an I/O must fail with it
io_fails() {
	errno=$1 name=$2
	shift 2
	like "$(cowtest io $dev "$@" 2>&1)" "$errno" "$name: $errno"
}

# valid NAME: the file "cow" has no fault, is clean, has as many units as the status line said last, and holds
# what the device showed last, as saved in "shown"
valid() {
	# shellcheck disable=SC2094 # the word dump
	cowfile dump --rdo "$rdo" cow >dump
	ok $? "$1: no fault in the cowfile" || diag "$(grep ^error dump)"
	is "$(grep -E '^(dirty|packed|cowused)=' dump)" "dirty=0
packed=0
cowused=$last_used" "$1: clean, units counted"
	runs "$1: cowfile.pl reads it" cowfile image --rdo "$rdo" --cow cow --out image
	runs "$1: and finds what the device showed" cmp image shown
}
save() { cp $dev shown && last_used=$(used); }

# --- Files made by cowfile.pl are read ------------------------------------------------------------------------------

# reads SIZE FORMAT UNITS [OPTION...]: SIZE is that of rdo
reads() {
	size=$1 format=$2 units=$3
	shift 3
	name="format $format, $size bytes, units $units $*"
	if [ "$size" = "${size%+*}" ]; then
		new_rdo "$size"
	else
		new_rdo "${size%+*}"
		cp "$rdo" rdo.odd
		rdo=rdo.odd
		truncate -s "+${size#*+}" "$rdo"
	fi
	make "$format" --units="$units" --truncate full "$@"
	expect --units="$units" "$@"
	opens "$name: opens" || return
	shows "$name: reads"
	read -r blocks _ count <<END
$(numbers 32 8 3)
END
	status "$format [0-9]+ $count/$blocks 0 0 clean rw" "$name: status"
	closed
	runs "$name: still the same" cmp -n 1M cow cow.before
}

# format 1: a tail of less than a unit is left out, and there is room for that of a whole one only
reads 64K         1 ''
reads 64K         1 all
reads 1536        1 0
reads 65024       1 0,5-7,last
reads 65K+100     1 1-last/2
reads 8185K       1 8183-last
reads 8193K       1 0,8190-8192
reads 1M          1 0,3,10-20,40-80/4,1020-last
# format 2: the last unit may be a partial one
reads 512         2 0
reads 3584        2 all
reads 4608        2 last
reads 1048064     2 0,3,10-20,40-80/4,last
reads 64K+300     2 0-last/2
reads 16646144    2 0,4063
reads 16646656    2 4063-last                           # one sector more, described in a bitmap sector of its own
reads 1M          2 1,5-9,last      --mapunit 16384
reads 1049088     2 all             --mapunit 16384
reads 3669504     2 0,3-4,last      --mapunit 65536
reads 2560        2 0               --mapunit 1M
reads 3146240     2 0,2             --mapunit 1M --doffset 5M
reads 300K        2 2-9,last        --doffset 1M
reads 300K        2 1,last          --mapunit 65536 --doffset 320K
reads 300K        2 1-last/3        --label a_label --rdospec UUID=1234-ABCD

# the tail left out is worth a warning, with its size
new_rdo 1536
make 1 --units 0 --truncate full
dmesg -c >/dev/null
opened
like "$(dmesg)" 'cowloop: .*512 bytes of loop[0-9]+ ' 'a tail left out is in the log'
closed

# --- Format 1's fingerprint -----------------------------------------------------------------------------------------

# fingerprint WANT WRONG SUM...: of a device of 1024-byte blocks whose bytes have these sums, modulo 256
fingerprint() {
	want=$1 wrong=$2
	shift 2
	empty_rdo 0
	perl -e 'print "\0" x 100, chr $_, "\0" x 923 for @ARGV' "$@" >"$rdo"
	is "$(cowfile fingerprint --format 1 "$rdo")" "$want" "blocks with sums $*: fingerprint $want"
	make 1 --units 0 --truncate full
	opens "blocks with sums $*: accepted" && closed

	make 1 --units 0 --truncate full --set rdofingerprint="$wrong"
	dmesg -c >/dev/null
	fails "but not with $wrong" opened
	like "$(dmesg)" "found fingerprint $wrong, expected $want" 'says the log'

	# and the module writes the right one
	rm cow && truncate -s 1M cow
	opened 1 format:1
	closed
	is "$(cowfile dump --rdo "$rdo" cow | grep -E '^(error|fingerprint)')" "fingerprint=$want" 'the module writes it'
}
fingerprint 0x0000000004030201 0xffffffff04030201 1 2 3 4 5
fingerprint 0xffffffff80030201 0x0000000080030201 1 2 3 128
fingerprint 0x000000007fffffff 0xffffffff7fffffff 255 255 255 127
fingerprint 0xffffffff90030201 0x0000000090030201 0 1 0 0 2 3 0 144 7
fingerprint 0x0000000000ff8001 0x00000000ffff8001 1 0 128 255
fingerprint 0x0000000000000080 0xffffffffffffff80 0 0 128
fingerprint 0x0000000000000000 0x0000000000000001 0 0 0

# --- Dirty files of format 2 ----------------------------------------------------------------------------------------

# recounted COWUSED UNITS USED [OPTION...]: a head that was left dirty with this count
counted() { [ "$(used)" = "$1" ]; }
recounted() {
	wrong=$1 units=$2 want=$3
	shift 3
	make 2 --dirty --units="$units" --set cowused="$wrong" "$@"
	expect --units="$units" "$@"
	opens "dirty, cowused $wrong: opens" || return
	shows 'reads'
	await counted "$want"
	status "2 [0-9]+ $want/[0-9]+ 0 0 dirty rw" 'its units are counted'
	is "$(flags)" 1 'still dirty on disk'
	runs 'sync' dmsetup message c0 0 sync
	status "2 [0-9]+ $want/[0-9]+ 0 0 clean rw" 'clean then'
	is "$(flags) $(cowused)" "0 $want" 'on disk, too, with the right count'
	save
	closed
	valid 'dirty, counted again'
}
new_rdo 32M
recounted 0 0-99,4063-4064,8191 103
recounted 0xffffffffffffffff 4064-8191/2 2064
new_rdo 300K
recounted 5 '' 0 --mapunit 16384

# --- A damaged bitmap sector ----------------------------------------------------------------------------------------

# 16384 units, 5 bitmap sectors, of which 3 is all zeroes; 1 is bad: units 4064 to 8127
empty_rdo 64M
cowtest fill "$rdo.part" --size 2M >/dev/null
for mib in 0 14 16 30 32 62; do
	dd if="$rdo.part" of="$rdo" bs=1M seek=$mib conv=notrunc 2>/dev/null
done
units=0-100,4000-4070,5000,8120-8135,12191,16256,16383
make 2 --units $units --bad-sector 1
in_bad=$((4070 - 4064 + 1 + 1 + 8127 - 8120 + 1))
expect --units $units
at() { echo $(($1 * 4096 + ${2:-0})); }
dmesg -c >/dev/null
opened
set_on_disk=$(cowused)
io_fails EIO 'read of unit 4064' "$(at 4064)" 4096 --read
like "$(dmesg)" 'loop[0-9]+: bitmap sector 1: csum [0-9a-f]{8}, expected [0-9a-f]{8}: units 4064( to |-)8127' 'the log has sector and units'
for unit in 4065 5000 5001 8126 8127; do
	io_fails EIO "read of unit $unit" "$(at $unit)" 4096 --read
done
io_fails EIO 'read of a sector in it' "$(at 8127 3584)" 512 --read
io_fails EIO 'read of units around its beginning' "$(at 4060)" 32768 --read
io_fails EIO 'read of units around its end' "$(at 8124)" 32768 --read
io_fails EIO 'write of unit 4064' "$(at 4064)" 4096 --write
io_fails EIO 'write of unit 5000' "$(at 5000)" 4096 --write
io_fails EIO 'write of unit 8127' "$(at 8127)" 4096 --write
io_fails EIO 'write of a sector in it' "$(at 5001 512)" 512 --write
io_fails EIO 'write of units in it' "$(at 6000)" 65536 --write

# good: all the others are what they were
good() {
	runs "$1: the units before" cmp -n "$(at 4064)" $dev image
	runs "$1: the units behind" cmp -i "$(at 8128)" $dev image
}
good 'bad sector'

# write UNIT [OFFSET LENGTH]: to the device, and the image of it
write() {
	runs "write of unit $*" cowtest io $dev "$(at "$1" "$2")" "${3:-4096}" --write &&
		cowtest io image "$(at "$1" "$2")" "${3:-4096}" --write
}
write 200
write 201 1024 512
write 4063		# set already
write 8128
write 8200		# each in a bitmap sector of its own; these were clear
write 13000 0 2048
write 16382
new=$((2 + 1 + 1 + 1))
good 'after writes'
runs 'sync' dmsetup message c0 0 sync
is "$(flags) $(cowused)" "0 $((set_on_disk + new))" 'clean, and cowused has counted the writes'
write 300 0 1024
closed
cmp -i 4608 -n 512 cow cow.before
ok $? 'the bad sector is on disk as it was'
is "$(cowfile dump --rdo "$rdo" cow | sed -n 's/: checksum.*//; /^error/p')" \
	"error: bitmap sector 1, units 4064 to 8127
error: cowused is $((set_on_disk + new + 1)), but $((set_on_disk + new + 1 - in_bad)) bits are set" \
	'and all else in the cowfile is right'
opened
good 'opened again'
io_fails EIO 'read of unit 4064' "$(at 4064)" 4096 --read
io_fails EIO 'write of unit 8127' "$(at 8127)" 4096 --write
closed

# --- Zero bitmap sectors, and one that belongs elsewhere --------------------------------------------------------------

make 2 --units 4064-4066,16383
runs 'zero bitmap sectors: the first is' cmp -n 512 -i 4096:0 cow /dev/zero
expect --units 4064-4066,16383
opened
shows 'zero bitmap sectors: reads'
write 0
write 9000 512 512
shows 'zero bitmap sectors: writes'
save
closed
valid 'zero bitmap sectors'

seed=10

# --- Cowfiles continued ---------------------------------------------------------------------------------------------

# continued SIZE FORMAT UNITS REGION [OPTION...]: a cowfile of these units, which cover the bytes of REGION, changed
# in it before; the rest is as in rdo
continued() {
	size=$1 format=$2 units=$3 region=$4
	shift 4
	name="format $format, $size bytes $*, continued"
	new_rdo "$size"
	rm -f model
	cp "$rdo" earlier
	cowtest run earlier --model model --region "$region" --ops 60 --seed 7 >cowtest.out || diag "$(cat cowtest.out)"
	make "$format" --units="$units" --data earlier --truncate full "$@"
	opens "$name: opens" || return
	runs "$name: reads" cmp -n $((length * 512)) $dev earlier
	runs "$name: more writes" cowtest run $dev --model model --ops 150 --threads 2 --seed $((seed += 1)) --max-bytes 128K
	save
	closed
	valid "$name"
	opened
	runs "$name: opened again" cowtest verify $dev --model model
	closed
	runs "$name: rdo was not written" cowtest verify "$rdo"
}
continued 2M      1 256-767,last  256K:512K
continued 2096640 2 64-191        256K:512K
continued 3669504 2 4-11,last     256K:512K --mapunit 65536
continued 3669504 2 0             256K:512K --mapunit 1M --doffset 2M

# --- Cowfiles from nothing ------------------------------------------------------------------------------------------

# fresh SIZE FORMAT MAPUNIT [WORD...]
fresh() {
	size=$1 format=$2 mapunit=$3
	shift 3
	name="format $format, $size bytes, mapunit $mapunit, from nothing"
	new_rdo "$size"
	rm -f cow model
	truncate -s 8M cow
	opens "$name: opens" "$@" || return
	status "$format $mapunit 0/[0-9]+ 0 0 clean rw" "$name: status"
	runs "$name: writes" cowtest run $dev --model model --ops 150 --threads 2 --seed $((seed += 1)) --max-bytes 64K
	save
	closed
	valid "$name"
	is "$(grep -E '^(format|mapunit|label|rdospec)=' dump)" "format=$format
mapunit=$mapunit$([ "$format" = 1 ] || printf '\nlabel=\nrdospec=')" "$name: the rest of the head"
	grep ^uuid= dump >>uuids
}
fresh 2M      1 1024    1 format:1
fresh 2M      2 4096
fresh 2096640 2 4096    1 mapunit:4096
fresh 2098688 2 16384   2 format:2 mapunit:16384
fresh 2098688 2 65536   1 mapunit:65536
fresh 2098688 2 1048576 1 mapunit:1048576
is "$(sort -u uuids | grep -c .)" 5 'each with a uuid of its own'

# --- DIRTY ----------------------------------------------------------------------------------------------------------

new_rdo 1M
for format in 1 2; do
	rm -f cow
	truncate -s 2M cow
	opened 1 format:$format
	is "$(flags)" 0 "format $format: clean at first"
	cowtest io $dev 16K 4K --write
	is "$(flags)" 1 'dirty when a unit has been written'
	cp cow copy
	like "$(cowfile dump copy)" '^dirty=1' 'and that head is a valid one'
	runs 'sync' dmsetup message c0 0 sync
	is "$(flags)" 0 'clean after a sync'
	cowtest io $dev 65K 512 --write
	is "$(flags)" 1 'dirty when a part of another has been'
	save
	closed
	is "$(flags)" 0 'clean when it is closed'
	valid "format $format, dirty and clean"
done

# --- Repair of format 1 ---------------------------------------------------------------------------------------------

# Units 255 to 257 are where one read of 256 KiB ends, 28672 where a region of the bitmap does. Unit 9 is zeroes but
# for its last byte. Unit 12 is all zeroes, and can't be told from a hole.
empty_rdo 30M
cowtest fill "$rdo.part" --size 1M --zero-permille 0 >/dev/null
for mib in 0 28 29; do
	dd if="$rdo.part" of="$rdo" bs=1M seek=$mib conv=notrunc 2>/dev/null
done
cp "$rdo" data
cowtest fill "$rdo.part" --size 1M --zero-permille 0 --seed 5 >/dev/null
for mib in 0 28 29; do
	dd if="$rdo.part" of=data bs=1M seek=$mib conv=notrunc 2>/dev/null
done
{ head -c 1023 /dev/zero; printf '\200'; } | dd of=data bs=1K seek=9 conv=notrunc 2>/dev/null
dd if=/dev/zero of=data bs=1K seek=12 count=1 conv=notrunc 2>/dev/null
known=0,20-30,28671 zero=3,21,29000-29003 hidden=1,9,255-257,28672-28673,last
make 1 --dirty --units $known --zero-units $zero --hidden-units $hidden,12 --data data --set cowused=7
# what unit 21 is: it was in both lists
expect --units $known,$hidden --zero-units 3,29000-29003 --data data
dmesg -c >/dev/null
fails 'dirty, format 1: refused' opened
like "$(dmesg)" 'loop[0-9]+: .*DIRTY.*repair' 'and the log says what to do'
runs 'head and bitmap are as they were' cmp -n 1M cow cow.before
opens 'with repair it opens' 1 repair
shows 'repaired: reads'
want=$((1 + 11 + 1 + 1 + 4 + 1 + 1 + 3 + 2 + 1))
status "1 1024 $want/30720 0 0 clean rw" 'repaired: clean, and units are counted'
is "$(flags)" 0 'repaired: clean on disk'
save
closed
valid 'repaired'
is "$(sed -n 's/^units=//p' dump)" 0-1,3,9,20-30,255-257,28671-28673,29000-29003,30719 \
	'repaired: the units that were in the bitmap or had data'
opens 'repaired: opens without repair'
runs 'repaired: reads' cmp $dev shown
closed
opens 'a clean file opens with repair, too' 1 repair
closed

# --- A first write of zeroes in format 1 ----------------------------------------------------------------------------

# It can't be found by repair: its bit must be on disk when the write has ended.
new_rdo 64K --zero-permille 0
cp "$rdo" rdo.zero
rdo=rdo.zero
dd if=/dev/zero of="$rdo" bs=512 seek=11 count=1 conv=notrunc 2>/dev/null
{ head -c 2048 "$rdo"; head -c 1024 /dev/zero; head -c 1024 "$rdo"; } >mixed
rm -f cow
truncate -s 1M cow
opened 1 format:1
# on_disk UNITS NAME: these are in the bitmap now
on_disk() {
	cp cow copy
	is "$(cowfile dump copy | sed -n 's/^units=//p')" "$1" "$2"
}
cowtest io $dev 3K 1K --write --zero
on_disk 3 'zeroes, a unit'
cowtest io $dev 5K 512 --write --zero
on_disk 3,5 'zeroes, by a copy-up'
cowtest io $dev 8K 1K --write --zero
on_disk 3,5,8 'zeroes, another unit'
dd if=mixed of=$dev bs=4K seek=4 oflag=direct 2>/dev/null
on_disk 3,5,8,16-19 'zeroes, one unit of four'
like "$(cowfile dump copy)" '^dirty=1' 'and the file is dirty'
rdodev2=$(loopdev "$rdo" -r) copydev=$(loopdev copy)
runs 'a copy can be repaired' dmsetup create c1 --table "0 128 cowloop $rdodev2 $copydev 1 repair"
runs 'and is the same device' cmp $dev /dev/mapper/c1
dmsetup remove c1
losetup -d "$rdodev2" "$copydev"
save
closed
valid 'zeroes'

# --- Cowfiles that end early ----------------------------------------------------------------------------------------

# no_space FORMAT UNITS REWRITE NEW BEYOND [OPTION...]: the file ends with the last of the units. Offsets in it:
# one that is written already, one that is new but has room, one that has none
no_space() {
	format=$1 units=$2 rewrite=$3 new=$4 beyond=$5
	shift 5
	name="format $format, units ${units:-none}, file ends there"
	make "$format" --truncate natural --units="$units" "$@"
	expect --units="$units" "$@"
	opens "$name: opens" || return
	shows "$name: reads"
	before=$(used) n=0
	for at in $rewrite $new; do
		runs "$name: writes at $at" cowtest io $dev "$at" 4K --write
		cowtest io image "$at" 4K --write
	done
	n=$(($(used) - before))
	for at in $beyond 252K; do
		io_fails ENOSPC "$name: write at $at" "$at" 4K --write
		io_fails ENOSPC "$name: write of a sector at $at" "$at" 512 --write
	done
	shows "$name: reads after it"
	status "$format [0-9]+ $((before + n))/[0-9]+ 0 0 (clean|dirty) (rw|out_of_space)" "$name: no unit more in use"
	save
	closed
	valid "$name"
}
new_rdo 256K
no_space 1 ''       ''  ''  '0 4K'
no_space 1 0-3,31   0   8K  '32K 64K'
no_space 2 ''       ''  ''  '0 4K'
no_space 2 0,7      0   8K  '32K 64K'
done_testing
