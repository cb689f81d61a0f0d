#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# A little of everything, in a minute: what must work on a kernel before the rest is worth trying there. Both formats:
# first writes, rewrites, copy-ups, discards, syncs, a suspension and a new table, opened again, filled until there is no
# space, a filesystem, cowsetup. tests/host/kernels.t runs it on the kernels that the rest is not run on.
#
# vm: --smp 2 --mem 1G

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
# where loop devices can write zeroes, which it takes to discard in format 1
modprobe brd rd_nr=1 rd_size=$((160 * 1024))
mkdir /tmp/files
mke2fs -q -t ext4 /dev/ram0 && mount /dev/ram0 /tmp/files && cd /tmp/files || exit 1
mkdir mnt

size=16391 # in sectors: not whole units of any size
dev=/dev/mapper/t

# io OFFSET LENGTH OPTION...: to the device, and what is written to the model
io() { cowtest io $dev "$@" --model model; }

# write OFFSET LENGTH OPTION...: with the next stamp
stamp=0
write() {
	stamp=$((stamp + 1))
	io "$@" --write --stamp $stamp
}

# counted FIELD COUNT NAME COMMAND...: COMMAND succeeds, and adds COUNT to that counter
counted() {
	field=$1 count=$2 what=$3
	shift 3
	before=$(cowstat t "$field")
	runs "$what" "$@"
	is "$(($(cowstat t "$field") - before))" "$count" "$what: $field"
}

# same: the device holds what the model says
same() { runs "$name: everything is as it should be" cowtest verify $dev --model model; }

# closed: removes the device; the other implementation finds its cowfile good, and the same contents in it
closed() {
	used=$(cowstat t used)
	is "$used" "$(cowtest units $dev --model model --unit "$mapunit")" "$name: so many units in use as the model says"
	like "$(cowstat t mode errors)" '^rw 0$' "$name: no error"
	dd if=$dev of=contents bs=1M status=none
	dmsetup remove t
	is "$(cowhead cow format mapunit dirty cowused popcount)" "$format $mapunit 0 $used $used" "$name: the cowfile is good, and clean"
	cowfile image --rdo rdo --cow cow --out image >out && cmp -n "$(stat -c %s contents)" contents image
	ok $? "$name: it has the same contents" || diag "$(cat out)"
}

# trial FORMAT MAPUNIT
trial() {
	format=$1 mapunit=$2 name="format $1, $2"
	rm -f rdo cow model
	cowtest fill rdo --size $((size * 512)) >/dev/null
	truncate -s 20M cow
	sum=$(sha256sum rdo)
	rdo=$(loopdev rdo -r)
	cow=$(loopdev cow)

	runs "$name: made" cowopen t "$rdo" "$cow" "format:$format" "mapunit:$mapunit"
	cmp -n "$(($(sectors $dev) * 512))" $dev rdo
	ok $? "$name: it is the read-only device"
	counted copyups 0 "$name: first writes of whole units" write 1M 1M
	counted copyups 0 "$name: a rewrite" write $((1048576 + 4096)) 512
	counted copyups 1 "$name: a first write of a part of a unit" write $((4 * 1048576 + 512)) 512
	same
	write 2M 4096 && counted commits 1 "$name: a sync" dmsetup message t 0 sync
	is "$(cowstat t state)" clean "$name: it is clean then"
	runs "$name: a discard" io 1M 64K --discard --unit "$mapunit"
	counted commits 1 "$name: a write and a flush" write 3M 4096 --flush
	same
	runs "$name: random I/O by four threads" cowtest run $dev --model model --seed 1 --ops 500 --threads 4 --unit "$mapunit" \
		--discard-permille 60 --sync-permille 20
	runs "$name: suspended, and a table reloaded" turn t "$(cowline "$rdo" "$cow" "format:$format")"
	same
	closed

	runs "$name: opened again" cowopen t "$rdo" "$cow" "format:$format"
	same
	runs "$name: random I/O" cowtest run $dev --model model --seed 2 --ops 200 --unit "$mapunit" --discard-permille 60
	closed
	is "$(sha256sum rdo)" "$sum" "$name: the read-only device is as it was"
	losetup -d "$rdo" "$cow"
}

trial 2 4096
trial 2 65536
trial 1 1024

# --- cowsetup, and a filesystem ------------------------------------------------------------------------------

truncate -s 32M golden
mke2fs -q -t ext4 -d /cowloop/tests golden
sum=$(sha256sum golden)
loops=$(losetup --list --noheadings --output NAME)

use() { # OPTION...: opens it, mounts it, and finds what is written on it
	runs "cowsetup open $*" cowsetup open "$@" golden mine.cow mine
	runs "ext4 is mounted" mount /dev/mapper/mine mnt
}
leave() {
	runs "and unmounted" umount mnt
	runs "cowsetup close" cowsetup close mine
	is "$(losetup --list --noheadings --output NAME)" "$loops" "no loop device is left"
}

use
runs "files are written" cp -a /cowloop/scripts mnt
runs "and deleted" rm mnt/run
runs "fstrim" fstrim mnt
like "$(cowsetup status --json mine | tr -d ' \n')" '"mode":"rw"' "cowsetup status"
leave
runs "cowsetup check" cowsetup check --rdo golden mine.cow
use
diff -r /cowloop/scripts mnt/scripts && [ ! -e mnt/run ] && cmp mnt/lib.sh /cowloop/tests/lib.sh
ok $? "everything is there"
leave

use --limit 2M
head -c 4M /dev/urandom >file
fails "no space, at the limit" sh -c 'cat file >mnt/file && sync mnt/file'
[ "$(cowstat mine no_space)" -gt 0 ]
ok $? "the status says so"
umount mnt
runs "cowsetup close" cowsetup close mine
is "$(sha256sum golden)" "$sum" "the image is as it was"

done_testing
