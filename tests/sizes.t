#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Sizes: devices of many TiB and of a sector, the places where parts of the bitmap meet, tables that span a part of
# rdo or begin behind another target, and hundreds of devices at once.
#
# vm: --smp 2 --mem 1G

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

dev=/dev/mapper/t
now() { cut -d ' ' -f 1 /proc/uptime; }
since() { awk -v from="$1" '{ printf "%.1f s", $1 - from }' /proc/uptime; }
memory() { awk '/^(MemFree|Cached|Buffers):/ { sum += $2 } END { print sum }' /proc/meminfo; }

# --- Large devices ------------------------------------------------------------------------------------------

# Around each place rdo is filled with stamp 7; stamp 100 and up are written there, parts of units at both ends, and
# the file "want" says what has to be found.
around=8192 # bytes
place_rdo() { # OFFSET
	cowtest io rdo $(($1 - around)) $((2 * around)) --write --stamp 7
}
place_write() { # OFFSET STAMP
	cowtest io $dev $(($1 - 4608)) 6144 --write --stamp "$2" &&
		printf '%d %d %d\n' $(($1 / 512 - 16)) 7 7 $(($1 / 512 - 9)) 12 "$2" $(($1 / 512 + 3)) 13 7 >>want
}
place_read() { # OFFSET
	cowtest io $dev $(($1 - around)) $((2 * around)) --read
}

# large NAME BYTES ROOM_BYTES OPTION... -- OFFSET...
large() {
	name=$1 size=$2
	truncate -s "$2" rdo
	truncate -s $(($2 + $3)) cow
	shift 3
	options=''
	while [ "$1" != -- ]; do
		options="$options $1"
		shift
	done
	shift
	: >want
	for at; do
		place_rdo "$at"
	done
	blocks=$(stat -c %b rdo)
	rdo=$(loopdev rdo -r)
	cow=$(loopdev cow)
	free=$(memory) start=$(now)
	# shellcheck disable=SC2086 # several words
	runs "$name: open it" cowopen t "$rdo" "$cow" $options || return
	diag "$name: $(since "$start") and $((free - $(memory))) KiB to make it"
	is "$(($(sectors $dev) * 512))" "$size" "$name: its size"
	stamp=100
	for at; do
		stamp=$((stamp + 1))
		place_write "$at" $stamp
	done
	for at; do
		place_read "$at"
	done >got
	cmp want got
	ok $? "$name: what was written, and rdo around it" || diag "$(diff want got)"
	runs "$name: sync" dmsetup message t 0 sync
	used=$(cowstat t used)
	status=$(cowstat t total mapunit state mode errors)
	like "$status" ' clean rw 0$' "$name: no error"
	dmsetup remove t

	# every unit is at its place in the file, whatever else is there
	doffset=$(od -A n --endian=little -t u8 -j 24 -N 8 "$cow" | tr -d ' ')
	for at; do
		# of the first sector and the last: its number
		for sector in $((at / 512 - 9)) $((at / 512 + 2)); do
			dd if="$cow" bs=512 skip=$((doffset / 512 + sector)) count=1 status=none | od -A n -t d8 -j 8 -N 8
			echo "$sector" >&2
		done
	done 2>want.places | tr -d ' ' >got
	cmp want.places got
	ok $? "$name: the units are where they belong in the cowfile"

	free=$(memory) start=$(now)
	# shellcheck disable=SC2086 # several words
	runs "$name: open it again" cowopen t "$rdo" "$cow" $options
	diag "$name: $(since "$start") and $((free - $(memory))) KiB to open it"
	is "$(cowstat t used total mapunit state mode errors)" "$used $status" "$name: status as before"
	for at; do
		place_read "$at"
	done >got
	cmp want got
	ok $? "$name: what was written, and rdo around it" || diag "$(diff want got)"
	dmsetup remove t
	is "$(stat -c %b rdo)" "$blocks" "$name: nothing was added to rdo"
	losetup -d "$rdo"
	losetup -d "$cow"
	rm rdo cow
}
tib=$((1 << 40))
large "64 TiB, format 2" $((64 * tib)) $((4 << 30)) format:2 -- $around $((3 * tib / 2)) $((4 * tib)) $((32 * tib + 65536)) \
	$((64 * tib - around))
large "6 TiB, large units" $((6 * tib)) $((1 << 30)) mapunit:1048576 -- $around $((4 * tib)) $((5 * tib)) $((6 * tib - around))
# more than 2^32 units of 1 KiB
large "4 TiB and more, format 1" $((4 * tib + (64 << 20))) $((1 << 30)) format:1 -- $around $((2 * tib)) $((4 * tib)) \
	$((4 * tib + (32 << 20))) $((4 * tib + (64 << 20) - around))

# --- A large device, discarded ------------------------------------------------------------------------------

name="1 TiB, discarded"
truncate -s 1T rdo
truncate -s $((tib + (1 << 30))) cow
rdo=$(loopdev rdo -r)
cow=$(loopdev cow)
cowopen t "$rdo" "$cow"
start=$(now)
perl -we 'srand 1;
	open(my $fh, "+<:raw", $ARGV[0]) or die "$ARGV[0]: $!\n";
	my %units;
	$units{int rand $ARGV[1]} = 1 while keys %units < $ARGV[2];
	for (keys %units) {
		sysseek $fh, $_ * 4096, 0;
		syswrite($fh, "unit $_\n" x 512, 4096) or die "unit $_: $!\n";
	}
	close $fh or die "close: $!\n"' $dev $((tib / 4096)) 3000
ok $? "$name: random units are written"
runs "$name: sync" dmsetup message t 0 sync
is "$(cowstat t used)" 3000 "$name: so many are in use"
diag "$name: $(since "$start") to write them"
# the bitmap, in pages of 4 KiB for 127 MiB of the device each, is in memory, and leaves it when there is need
bitmap_pages() { awk '$1 == "kmalloc-4k" { print $2 }' /proc/slabinfo; }
with=$(bitmap_pages)
given_back() {
	echo 2 >/proc/sys/vm/drop_caches
	freed=$((with - $(bitmap_pages)))
	[ $freed -ge 2000 ]
}
await given_back # RCU frees them
ok $? "$name: pages of the bitmap are given back: $freed"
is "$(cowstat t used)" 3000 "$name: as many units are in use"
blocks=$(stat -c %b cow)
start=$(now)
runs "$name: blkdiscard" blkdiscard $dev
diag "$name: $(since "$start") to discard it"
is "$(cowstat t used discarded_units mode errors)" "0 3000 rw 0" "$name: nothing is left"
freed=$(((blocks - $(stat -c %b cow)) / 8))
is $freed 3000 "$name: their space was given back"
dmsetup remove t
cowopen t "$rdo" "$cow"
is "$(cowstat t used state)" "0 clean" "$name: opened again, nothing is there"
cmp -n $((64 << 20)) $dev /dev/zero
ok $? "$name: it is rdo"
dmsetup remove t
losetup -d "$rdo"
losetup -d "$cow"
rm rdo cow

# --- Small devices, and sizes that are no multiple of anything ----------------------------------------------

# write OFFSET LENGTH STAMP: to the device, and to the file "want"
write() { cowtest io $dev "$1" "$2" --write --stamp "$3" && cowtest io want "$1" "$2" --write --stamp "$3"; }

# small SECTORS OPTION...: the first sector, the last, and some in between
small() {
	name="$*" size=$1
	shift
	rm -f rdo cow
	cowtest fill rdo --size $((size * 512)) >/dev/null
	sum=$(sha256sum rdo)
	truncate -s 8M cow
	rdo=$(loopdev rdo -r)
	cow=$(loopdev cow)
	runs "$name: open" cowopen t "$rdo" "$cow" "$@"
	length=$(sectors $dev)
	head -c $((length * 512)) rdo >want
	cmp $dev want
	ok $? "$name: rdo"
	write $(((length - 1) * 512)) 512 100
	third=$(((length + 2) / 3))
	middle=$(((length - third) / 2))
	write $((middle * 512)) $((third * 512)) 101
	write 0 512 102
	cmp $dev want
	ok $? "$name: what was written"
	fails "$name: not one sector more" cowtest io $dev $((length * 512)) 512 --write
	dmsetup remove t
	is "$(cowhead cow dirty)" 0 "$name: a clean cowfile"
	cowfile image --rdo rdo --cow cow --out image && truncate -s $((length * 512)) image && cmp image want
	ok $? "$name: that says the same"
	cowopen t "$rdo" "$cow" "$@"
	cmp $dev want
	ok $? "$name: opened again"
	write 0 $((length * 512)) 103
	cmp $dev want
	ok $? "$name: all of it written at once"
	dmsetup remove t
	is "$(sha256sum rdo)" "$sum" "$name: rdo is as it was"
	losetup -d "$rdo"
	losetup -d "$cow"
}
small 1
small 1 mapunit:1048576
small 3
small 3 format:1
small 9
small 4097 mapunit:1048576
small 4097 format:1
small 4097

truncate -s 512 one
one=$(loopdev one)
truncate -s 1M cow
cow=$(loopdev cow)
fails "one sector is less than a unit of format 1" dmsetup create t --table "0 1 cowloop $one $cow 1 format:1"
losetup -d "$one"
losetup -d "$cow"

# --- Where parts of the bitmap meet -------------------------------------------------------------------------

# meet NAME BYTES OPTION...: around so many bytes, which is where bits of the bitmap go on in another sector or page
meet() {
	name=$1 at=$2
	shift 2
	rm -f rdo cow model
	cowtest fill rdo --size $((at + 1234567)) >/dev/null
	truncate -s $((at + (4 << 20))) cow
	rdo=$(loopdev rdo -r 2>/dev/null)
	cow=$(loopdev cow)
	cowopen t "$rdo" "$cow" "$@"
	for seed in 1 2 3; do
		runs "$name: run" cowtest run $dev --model model --seed $seed --ops 120 --max-bytes 64K --region "$((at - 131072)):262144"
		dmsetup remove t
		is "$(cowhead cow dirty)" 0 "$name: a clean cowfile"
		cowopen t "$rdo" "$cow" "$@"
	done
	runs "$name: verify" cowtest verify $dev --model model
	dmsetup remove t
	losetup -d "$rdo"
	losetup -d "$cow"
}
meet "4064 units, a sector of the bitmap" $((4064 * 4096)) format:2
meet "4096 units of format 1, a sector of the bitmap" $((4096 * 1024)) format:1
meet "8 sectors of the bitmap" $((8 * 4064 * 4096)) format:2
meet "7 sectors of the bitmap, format 1" $((7 * 4096 * 1024)) format:1

# --- Tables -------------------------------------------------------------------------------------------------

rm -f rdo cow
truncate -s $((6000 * 512)) first
cowtest fill first --base-seed 9 >/dev/null
cowtest fill rdo --size $((4097 * 512)) >/dev/null
truncate -s 8M cow
first=$(loopdev first)
rdo=$(loopdev rdo -r)
cow=$(loopdev cow)

dmsetup create t --table "0 1003 cowloop $rdo $cow"
ok $? "a table shorter than rdo"
is "$(sectors $dev)" 1003 "its length"
is "$(cowstat t used total)" "0 513" "the cowfile is for all of rdo"
head -c $((1003 * 512)) rdo >want
cmp $dev want
ok $? "it shows so much of rdo"
write $((1000 * 512)) 1536 200
write 0 4096 201
cmp $dev want
ok $? "and what is written"
dmsetup remove t
is "$(cowhead cow dirty popcount units rdosectors)" "0 2 0,125 4097" "a clean cowfile"

# the device's sectors 1000 and up are rdo's 0 and up
dmsetup create t --table "0 1000 linear $first 77
	1000 4097 cowloop $rdo $cow"
ok $? "a table that begins with another target, over the same cowfile"
{
	dd if=first bs=512 skip=77 count=1000 status=none
	cat want
	dd if=rdo bs=512 skip=1003 status=none
} >both
cmp $dev both
ok $? "it shows the one after the other"
mv both want
for write in "999 2 300" "1001 11 301" "990 60 302" "5090 7 303" "2000 700 304"; do
	# shellcheck disable=SC2086 # several words
	set -- $write
	write $(($1 * 512)) $(($2 * 512)) "$3"
done
cmp $dev want
ok $? "writes to both"
is "$(dmsetup status t | cut -d ' ' -f 1-3)" "0 1000 linear
1000 4097 cowloop" "its status"
dmsetup remove t
is "$(cowhead cow dirty)" 0 "a clean cowfile"
cowfile image --rdo rdo --cow cow --out image && dd if=want bs=512 skip=1000 status=none | cmp - image
ok $? "that has rdo's sectors at their own places"

truncate -s 8M cow2
cow2=$(loopdev cow2)
dmsetup create t --table "0 4097 cowloop $rdo $cow2
	4097 4097 cowloop $rdo $cow"
ok $? "a table with two targets over one rdo"
cat rdo image >want
cmp $dev want
ok $? "it shows the one after the other"
write $((4090 * 512)) 16384 400
cmp $dev want
ok $? "writes to both"
dmsetup remove t
fails "not with one cow device for both" dmsetup create t --table "0 4097 cowloop $rdo $cow
	4097 4097 cowloop $rdo $cow"
losetup -d "$first"
losetup -d "$rdo"
losetup -d "$cow"
losetup -d "$cow2"

# --- Hundreds of devices ------------------------------------------------------------------------------------

count=220
modprobe brd rd_nr=$count rd_size=1024
rm rdo
cowtest fill rdo --size 300K >/dev/null
sum=$(sha256sum rdo)
rdo=$(loopdev rdo -r)

# everybody LAST PROGRAM: runs a program of Perl's for $n and $fh, its device, all open at the same time
everybody() {
	perl -we '
		my ($program, $last, @fh) = @ARGV;
		my $rdo = do { local $/; open my $in, "<:raw", "rdo" or die; <$in> };
		for my $n (0 .. $last) {
			open $fh[$n], "+<:raw", "/dev/mapper/d$n" or die "d$n: $!\n";
		}
		# every device has a word of its own in every third sector, and in a sector of its own
		sub place { my ($n) = @_; return (map({ $_ * 3 + $n % 3 } 0 .. 190), 580 + $n % 20) }
		my $do = eval "sub { my (\$n, \$fh) = \@_; $program }" or die $@;
		$do->($_, $fh[$_]) for 0 .. $last;
		for (@fh) { close $_ or die "close: $!\n" }' "$2" "$1" # closing reports what could not be written
}
# shellcheck disable=SC2016 # it is Perl
write_all='for (place($n)) { sysseek $fh, $_ * 512, 0; syswrite $fh, sprintf("%-16d", $n) or die "d$n: $!\n" }'
# shellcheck disable=SC2016 # it is Perl
verify_all='my $want = $rdo;
	substr $want, $_ * 512, 16, sprintf "%-16d", $n for place($n);
	my $got = do { local $/; <$fh> };
	$got eq $want or die "d$n has wrong contents\n"'
tables() {
	seq 0 $((count - 1)) | while read -r n; do
		printf '%sd%d,,,rw,0 600 cowloop %s /dev/ram%d' "${semicolon:-}" "$n" "$rdo" "$n"
		semicolon=';'
	done
}
names() { seq 0 $((count - 1)) | sed 's/^/d/'; }

# shellcheck disable=SC2046 # many words
for round in "new" "opened again"; do
	start=$(now)
	runs "$count devices, $round" dmsetup create --concise "$(tables)"
	diag "$count devices, $round: $(since "$start")"
	is "$(dmsetup ls --target cowloop | wc -l)" $count "$round: all are there"
	[ "$round" != new ] || runs "$round: written" everybody $((count - 1)) "$write_all"
	runs "$round: verified" everybody $((count - 1)) "$verify_all"
	is "$(dmsetup status --target cowloop | grep -Ec ' 2 4096 73/75 .* rw .* errors 0( |$)')" $count "$round: status of all"
	runs "$round: removed" dmsetup remove $(names)
done
is "$(sha256sum rdo)" "$sum" "rdo is as it was"

done_testing
