#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --mem 512M
#
# Cowloop devices that lie on others, up to the depth that is allowed; and tables in which other targets use the same
# devices, opened in another mode.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

depth=16
modprobe brd rd_nr=2 rd_size=$((1024 * 24))
size=1024
dmsetup create rdo --table "0 $size linear /dev/ram0 0"
cowtest fill /dev/mapper/rdo >/dev/null
logged() { dmesg | grep -c "device-mapper: cowloop: .*$1"; }

# --- One over the other -------------------------------------------------------------------------------------

# slice N: a cow device of 1 MiB
slice() { dmsetup create "cow$1" --table "0 2048 linear /dev/ram1 $(($1 * 2048))"; }
name=rdo n=0
while [ $((n += 1)) -le $depth ]; do
	slice $n
	cowopen d$n /dev/mapper/$name /dev/mapper/cow$n || break
	# the lowest has a unit of its own, and so on
	cowtest io /dev/mapper/d$n $((n * 8192)) 4096 --write --stamp $n --model model >/dev/null || break
	name=d$n
done
is "$n" $((depth + 1)) "$depth devices one over the other"
n=0
while [ $((n += 1)) -le $depth ]; do
	cowtest io /dev/mapper/d$depth $((n * 8192)) 4096 --read
done >got
seq $depth | while read -r n; do
	echo "$((n * 16)) 8 $n"
done >want
cmp got want
ok $? "the uppermost shows what each of them has" || diag "$(cat got)"
runs "it takes writes of all kinds" cowtest run /dev/mapper/d$depth --ops 40 --max-bytes 64K --model model --region 300K:200K
runs "and syncs" dmsetup message d$depth 0 sync

slice 17
slice 18
message="found 17 cowloop devices one over the other, expected at most 16"
fails "but not one more over it" cowopen more /dev/mapper/d$depth /dev/mapper/cow17
is "$(logged "$message")" 1 "which the log says"
fails "nor with it as cow device" cowopen more /dev/mapper/rdo /dev/mapper/d$depth
is "$(logged "$message")" 2 "which the log says, too"
runs "beside it there may be others" cowopen other /dev/mapper/rdo /dev/mapper/cow17

# a device that others lie on does not become deeper
runs "a device in the midst is reloaded" turn d8 "$(dmsetup table d8)"
fails "but with nothing deeper below it" dmsetup reload d1 --table "0 $size cowloop /dev/mapper/other /dev/mapper/cow1"
is "$(logged 'cowloop devices lie on this one: found 1 below it, expected at most 0')" 1 "which the log says"
dmsetup remove other
n=$((depth + 1))
while [ $((n -= 1)) -ge 1 ]; do
	dmsetup remove d$n || break
done
is "$n" 0 "all can be removed"
runs "the lowest opens alone" cowopen d1 /dev/mapper/rdo /dev/mapper/cow1
is "$(cowtest io /dev/mapper/d1 8192 4096 --read)" "16 8 1" "and has what it had"
dmsetup remove d1
seq 18 | sed 's/^/cow/' | xargs dmsetup remove

# --- Other targets in a table -------------------------------------------------------------------------------

slice 1
slice 2
left() { dmesg | grep -Ec 'not in table devices list|dm_put_device call missing'; }
# shares NAME TABLE: a later target opens a device for writing that ours has for reading; memory is used again meanwhile
shares() {
	what=$1
	dd if=/dev/zero of=/dev/mapper/cow1 bs=64K count=1 oflag=direct status=none
	runs "$what: a table with both" dmsetup create t --table "$2"
	for n in 1 2 3 4 5 6; do
		dmsetup create "x$n" --table "0 8 linear /dev/ram1 $((40000 + n))"
	done
	cowtest io /dev/mapper/t 0 4096 --write --stamp 5 >/dev/null 2>&1
	is "$?" "$3" "$what: a write"
	runs "$what: a read" dd if=/dev/mapper/t of=/dev/null bs=64K iflag=direct status=none
	is "$(dmsetup table t | head -n 1)" "${2%%
*}" "$what: its table"
	runs "$what: reloaded" turn t "$2"
	fails "$what: a table that is not loaded" dmsetup reload t --table "$2
	$((2 * size)) 8 linear /dev/mapper/none 0"
	runs "$what: removed" dmsetup remove t
	seq 6 | sed 's/^/x/' | xargs dmsetup remove
	is "$(left)" 0 "$what: device-mapper has no complaint"
}
rdo=$(devno /dev/mapper/rdo) cow=$(devno /dev/mapper/cow1)
shares "rdo for writing" "0 $size cowloop $rdo $cow
	$size $size linear $rdo 0" 0
dd if=/dev/zero of=/dev/mapper/cow2 bs=64K count=1 oflag=direct status=none
cowopen d /dev/mapper/rdo /dev/mapper/cow2
dmsetup remove d
cow=$(devno /dev/mapper/cow2)
shares "cow device for writing" "0 $size cowloop $rdo $cow 1 read_only
	$size $size linear $cow 0" 3
dmsetup remove cow1 cow2 rdo
done_testing
