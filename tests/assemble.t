#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
#
# cowsetup assemble on block devices, as udev's rules call it, with somebody who plugs in what was made to do harm: names and
# paths of others, devices that stand on each other, too many of them. tests/slow/assemble.t has udev and systemd with it.
#
# vm: --smp 2 --mem 1G --timeout 1800

# shellcheck source=tests/lib.sh
. /cowloop/tests/lib.sh
cd /tmp || exit 1

# built with the compiler's checks
export ASAN_OPTIONS=detect_leaks=1:exitcode=99 UBSAN_OPTIONS=print_stacktrace=1
cowsetup() { /usr/local/bin/cowsetup-asan "$@"; }
# shellcheck disable=SC2317 # it is called, by exits
assemble() { cowsetup assemble --cowtab cowtab "$@"; }

# devices: the cowloop devices there are
devices() { dmsetup ls --target cowloop | grep -v '^No devices' | cut -f 1 | sort | paste -sd ' '; }
closed() { for name in $(devices); do cowsetup close "$name"; done; }

# image FILE LABEL: a filesystem; stick FILE OPTION...: a cowfile for image rdo.img that says what the options are, plugged in as $stick
image() {
	rm -f "$1"
	truncate -s 4M "$1"
	mke2fs -q -t ext4 -O ^has_journal -L "$2" "$1" >out 2>&1 || diag "$(cat out)"
}
stick() {
	stick_file=$1
	shift
	rm -f "$stick_file"
	cowsetup format "$@" rdo.img "$stick_file" || diag "format failed"
	stick=$(loopdev "$stick_file")
}
unplug() { losetup --detach "$1"; }

image rdo.img golden
rdo=$(loopdev rdo.img -r)
echo '* - -' >cowtab

# --- Names --------------------------------------------------------------------------------------------------

stick home.cow --label home --rdo-spec LABEL=golden
uuid=$(cowhead home.cow uuid)
exits 0 "a pair that no line names" assemble "$stick"
is "$(devices)" cow-auto-home "has not the name that its label says, which fstab may mount"
says '^/dev/mapper/cow-auto-home$' "and it is said"
[ -z "$(find /run/cowsetup/named -type f 2>/dev/null)" ]
ok $? "no link of others leads to it"
exits 0 "again" assemble --all
is "$(devices)" cow-auto-home "what is open is open"
closed
truncate -s 4M by-hand.img
cowsetup open by-hand.img by-hand.cow cow-auto-home >/dev/null 2>&1
exits 0 "where there is a device of that name" assemble "$stick"
is "$(devices)" "cow-auto-$uuid cow-auto-home" "it has its UUID for a name"
closed
unplug "$stick"
stick dots.cow --label '../control' --rdo-spec LABEL=golden
exits 0 "a label that is a path" assemble "$stick"
is "$(devices)" cow-auto-.._control "becomes a name"
closed
unplug "$stick"

echo "mine $rdo /tmp/mine.cow create" >>cowtab
exits 0 "a pair that a line names" assemble mine
is "$(devices)" mine "has that name"
is "$(ls /run/cowsetup/named)" mine "and links lead to it"
closed
sed -i 2d cowtab

# --- rdospec ------------------------------------------------------------------------------------------------

# touched PATH: whether somebody has opened a fifo
mkfifo fifo
(echo opened >fifo; echo opened >touched) &
writer=$!
ln -sf /tmp/fifo /dev/link
ln -sf "$rdo" /dev/absolute
mkdir /dev/mounted
mount -t tmpfs tmpfs /dev/mounted
cp -a "$rdo" /dev/mounted/rdo
for place in /tmp/fifo /tmp/rdo.img /dev/link /dev/console /dev/watchdog /dev/none "/dev/mounted/rdo" /dev/../tmp/fifo \
	/dev/../"$rdo" /proc/self/fd/0 /dev/fd/0 /dev /; do
	stick path.cow --rdo-spec "$place"
	exits 0 "rdo is said to be at $place" assemble "$stick"
	says 'path of a block device in /dev' "which is refused"
	is "$(devices)" '' "and not opened"
	unplug "$stick"
done
[ ! -e touched ]
ok $? "no path was opened to see what it is"
kill $writer
wait $writer
umount /dev/mounted
rmdir /dev/mounted
rm /dev/link /dev/absolute
ln -s "${rdo#/dev/}" /dev/link
for place in "$rdo" LABEL=golden "UUID=$(blkid -p -s UUID -o value "$rdo")" /dev/link; do
	stick good.cow --label good --rdo-spec "$place"
	exits 0 "rdo is at $place" assemble "$stick"
	is "$(devices)" cow-auto-good "it is opened"
	closed
	unplug "$stick"
done
rm /dev/link
stick two.cow --rdo-spec "$(stick one.cow --rdo-spec LABEL=none; echo "$stick")"
exits 0 "rdo is said to be another cowfile" assemble "$stick"
says 'has a cowfile' "which is refused"
is "$(devices)" '' "and not opened"
losetup -D
rdo=$(loopdev rdo.img -r)

# --- Devices on devices -------------------------------------------------------------------------------------

# a device that holds a cowfile for its own rdo, and would hold another one for that
truncate -s 64M base.img
cowsetup open base.img base.cow base >/dev/null
cowsetup format --force --label inner --rdo-spec LABEL=golden rdo.img /dev/mapper/base
exits 0 "a cowfile on a cowloop device" assemble /dev/mapper/base
says 'stands on a cowloop device' "is refused"
is "$(devices)" base "and not opened"
dmsetup create above --table "0 $(sectors /dev/mapper/base) linear /dev/mapper/base 0"
exits 0 "all" assemble --all
says 'above: not opened.* stands on a cowloop device' "is refused on what is made of it, too"
is "$(devices)" base "and not opened"
dmsetup remove above
dd if=rdo.img of=/dev/mapper/base bs=1M conv=notrunc,fsync status=none
tune2fs -L inside /dev/mapper/base >out 2>&1 || diag "$(cat out)"
dmsetup create above --table "0 $(sectors rdo.img) linear /dev/mapper/base 0" 2>/dev/null ||
	dmsetup create above --table "0 8192 linear /dev/mapper/base 0"
cp /dev/mapper/above rdo.img
stick outer.cow --label outer --rdo-spec LABEL=inside
exits 0 "an rdo on a cowloop device" assemble "$stick"
says 'stands on a cowloop device' "is refused"
is "$(devices)" base "and not opened"
dmsetup remove above
closed
losetup -D

# --- How many -----------------------------------------------------------------------------------------------

image rdo.img golden
rdo=$(loopdev rdo.img -r)
for n in $(seq 17); do
	stick "$n.cow" --label "$n" --rdo-spec LABEL=golden
done
exits 5 "17 of them" assemble --all
says 'not opened: found 16 devices cow-auto-\* open' "one is refused"
is "$(devices | wc -w)" 16 "16 are open"
first=$(devices | cut -d ' ' -f 1)
cowsetup close "$first"
is "$(devices | wc -w)" 15 "there is room for another"
exits 5 "of the two that are left" assemble --all
is "$(devices | wc -w)" 16 "one is opened"
closed
losetup -D

done_testing
