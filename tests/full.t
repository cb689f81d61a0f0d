#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 2G --timeout 1800
#
# Filesystems on devices that have less space than the filesystem thinks. Files are written until there is none, are
# checked, deleted, and the space goes back to the filesystem that the cowfile is on; five times over.
#
# With a limit and a reserve that must go well each time. Without, what a filesystem makes of a write that fails is its
# own affair: it may go read-only or shut down, where there is no space for one of its own blocks, and then there are no
# more rounds; but what fsync has said to be safe is there when there is room again.

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1
modprobe brd rd_nr=2 rd_size=$((320 * 1024))
mkdir mnt under
dev=/dev/mapper/t

# fill DIR SEED: adds files of 1 MiB, 64 KiB and 4 KiB until fsync fails; "list" has those that are safe
# check DIR: they are all there, and right
cat >files.pl <<'END'
use strict;
use warnings;
use IO::Handle;
my ($command, $dir, $seed) = @ARGV;
sub contents { my ($name, $size) = @_; substr("$name $size\n" x ($size / length("$name $size\n") + 1), 0, $size) }
sub add {
	my ($name, $size) = @_;
	open(my $file, '>', "$dir/$name") or return;
	return print($file contents($name, $size)) && $file->flush && $file->sync;
}
if ($command eq 'fill') {
	open(my $list, '>>', 'list') or die "list: $!\n";
	my ($n, @why) = 0;
	for my $size (1 << 20, 1 << 16, 1 << 12) {
		while ($n < 2000) {
			my $name = sprintf '%s-%04d', $seed, $n++;
			unless (add($name, $size)) {
				push @why, "$!";
				last;
			}
			print $list "$name $size\n";
		}
	}
	print "$n files, ", join('; ', @why), "\n";
	exit(@why == 3 ? 0 : 1);
}
open(my $list, '<', 'list') or die "list: $!\n";
my $checked = 0;
while (<$list>) {
	my ($name, $size) = split;
	open(my $file, '<:raw', "$dir/$name") or die "$name: $!\n";
	my $got = do { local $/; <$file> } // die "$name: $!\n";
	$got eq contents($name, $size) or die "$name: wrong, ", length $got, " bytes of $size\n";
	$checked++;
}
$checked or die "no files\n";
END
files() { timeout 200 perl files.pl "$@"; }
uncached() { echo 3 >/proc/sys/vm/drop_caches; }
make() {
	case $1 in
	# all that is not made now would want space when there is none
	ext4) mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$2" ;;
	xfs) mkfs.xfs -q -f -K "$2" ;;
	esac
}
no_fault() {
	case $1 in
	ext4) runs "$2: e2fsck finds nothing" e2fsck -fn $dev ;;
	xfs) runs "$2: xfs_repair finds nothing" xfs_repair -n $dev ;;
	esac
}
synced_and() { sync -f under; "$@"; }
# in_the_end COMMAND: waits until it succeeds, for what filesystems do in the background
in_the_end() {
	await synced_and "$@"
}
given_back() { [ "$(cowstat t used)" -le $((used + 300)) ] && [ "$(stat -c %b under/cow)" -le $((blocks + 4096)) ]; }

# went_read_only NAME: give it room, and mount it again
went_read_only() {
	diag "$1: the filesystem is read-only now"
	umount mnt
	rm under/ballast
	[ "$fs" = xfs ] || { e2fsck -fy $dev >fsck 2>&1; ok $(($? > 1)) "$1: with more room e2fsck can mend it" || diag "$(cat fsck)"; }
	runs "$1: with more room it can be mounted" mount $dev mnt
	[ ! -s list ] || runs "$1: all that was synced is there" files check mnt
	find mnt -maxdepth 1 -type f -delete
}

# rounds NAME FS COUNT MOUNT-OPTION [RESERVE]: in a cow file on a filesystem that has some 16 MiB left for files; or,
# with a reserve, 24, of which a limit leaves as much
rounds() {
	name=$1 fs=$2 count=$3 option=$4 reserve=${5:-0}
	size=64
	[ "$fs" = ext4 ] || size=310
	dmsetup create rdo --table "0 $((size * 2048)) linear /dev/ram0 0"
	mount /dev/ram1 under
	rm -f under/cow under/ballast
	truncate -s $((size + 2))M under/cow
	cow=$(loopdev under/cow "--direct-io=$dio")
	if [ "$reserve" != 0 ]; then
		cowopen t /dev/mapper/rdo "$cow" limit:1000000 "reserve:$reserve"
	else
		cowopen t /dev/mapper/rdo "$cow"
	fi
	make "$fs" $dev
	mount -o "$option" $dev mnt
	mkdir mnt/old
	cp -a /cowloop/tests mnt/old
	(cd mnt/old && find . -type f -exec sha256sum {} +) >sums
	sync
	ballast=$(($(df --output=avail -k under | tail -n 1) - 16384 - (reserve > 0) * 8192))
	fallocate -l ${ballast}K under/ballast
	sync
	used=$(cowstat t used) blocks=$(stat -c %b under/cow)
	[ "$reserve" = 0 ] || dmsetup message t 0 limit $((used + 4096 + reserve))
	done=0
	for round in $(seq "$count"); do
		what="$name, round $round"
		rm -f list
		said=$(files fill mnt "$round")
		ok $? "$what: $said" || df -k under mnt
		# it may have met that with one of its own blocks
		if [ "$reserve" != 0 ]; then
			runs "$what: the filesystem can be written to" touch mnt/old || break
		elif ! touch mnt/old; then
			went_read_only "$what"
			break
		fi
		is "$(cowstat t mode)" out_of_space "$what: mode out_of_space"
		if [ "$reserve" != 0 ]; then
			left=$((used + 4096 + reserve - $(cowstat t used)))
			ok $((left > reserve || left <= 0)) "$what: all is used but $left of $reserve units that are reserved"
		else
			ok $(($(df --output=avail -k under | tail -n 1) > 2048)) "$what: the filesystem under the cow file is full"
		fi
		full=$(stat -c %b under/cow)
		uncached
		runs "$what: all that was synced is there" files check mnt
		runs "$what: so is what was there before" sh -c 'cd mnt/old && sha256sum --quiet -c ../../sums'
		runs "$what: files can be deleted" timeout 60 find mnt -maxdepth 1 -type f -delete
		timeout 60 sync -f mnt 2>/dev/null
		[ "$option" = discard ] || runs "$what: fstrim" timeout 100 fstrim mnt
		in_the_end given_back
		given_back
		ok $? "$what: $full blocks in the cow file go back to $(stat -c %b under/cow), $(cowstat t used) units" ||
			diag "at first $blocks blocks, $used units"
		is "$(cowstat t mode)" rw "$what: mode rw"
		done=$round
	done
	if [ "$reserve" != 0 ]; then
		is "$done" "$count" "$name: all rounds"
	else
		diag "$name: $done of $count rounds"
	fi
	runs "$name: a file can be written" cp -a /cowloop/scripts mnt
	runs "$name: and synced" sync -f mnt
	runs "$name: umount" timeout 100 umount mnt
	no_fault "$fs" "$name"
	dmsetup remove t
	runs "$name: the cowfile is good" cowhead "$cow" dirty
	cowopen t /dev/mapper/rdo "$cow"
	mount $dev mnt
	runs "$name: what was there before still is" sh -c 'cd mnt/old && sha256sum --quiet -c ../../sums'
	runs "$name: what was written last is" diff -r mnt/scripts /cowloop/scripts
	umount mnt
	dmsetup remove t
	losetup -d "$cow"
	umount under
	dmsetup remove rdo
}

mkfs.ext4 -q -F /dev/ram1
dio=off
rounds 'ext4 on ext4, with a reserve' ext4 5 defaults 1024
rounds 'ext4 on ext4, with a reserve, -o discard' ext4 2 discard 1024
rounds 'ext4 on ext4, no reserve, may go read-only' ext4 5 defaults
rounds 'ext4 on ext4, no reserve, may go read-only, -o discard' ext4 1 discard
mkfs.xfs -q -f /dev/ram1
dio=on
rounds 'xfs on xfs, with a reserve' xfs 5 defaults 1024
rounds 'xfs on xfs, with a reserve, -o discard' xfs 2 discard 1024
rounds 'xfs on xfs, no reserve, may go read-only' xfs 5 defaults
rounds 'xfs on xfs, no reserve, may go read-only, -o discard' xfs 1 discard

# --- An image, and a limit ----------------------------------------------------------------------------------

# Here the journal has no place in the cowfile yet, and there may be none for it.
for fs in ext4 xfs; do
	name="image of $fs, no reserve, may go read-only"
	size=64
	[ $fs = ext4 ] || size=310
	dmsetup create rdo --table "0 $((size * 2048)) linear /dev/ram0 0"
	dmsetup create cow --table "0 $(((size + 2) * 2048)) linear /dev/ram1 0"
	make $fs /dev/mapper/rdo
	dd if=/dev/zero of=/dev/mapper/cow bs=64K count=1 oflag=direct status=none
	cowopen t /dev/mapper/rdo /dev/mapper/cow limit:3000
	mount $dev mnt
	rm -f list
	said=$(files fill mnt 1)
	ok $? "$name: $said"
	# until it can't be hidden any longer
	for n in 1 2 3 4 5 6 7 8 9 10; do
		timeout 60 mkdir mnt/dir$n 2>/dev/null && timeout 60 cp /cowloop/tests/lib.sh mnt/dir$n/file 2>/dev/null
		timeout 60 sync -f mnt 2>/dev/null
	done
	said=$(touch mnt/dir 2>&1) && said='still writable'
	diag "$name, full: $said"
	is "$(cowstat t used mode)" "3000 out_of_space" "$name: all is used, mode out_of_space"
	runs "$name: umount" timeout 100 umount mnt
	# What it had no space for is in its journal, and it may no longer have it in memory (ext4 of Linux 6.12): but all is
	# there for one that has space to replay that in.
	truncate -s $((size + 2))M over
	over=$(loopdev over)
	cowopen over /dev/mapper/t "$over"
	runs "$name: with its changes elsewhere it is mounted" mount /dev/mapper/over mnt
	runs "$name: all that was synced is there, without room" files check mnt
	umount mnt
	dmsetup remove over
	losetup -d "$over"
	rm over
	is "$(cowstat t used mode)" "3000 out_of_space" "$name: still no room"
	dmsetup message t 0 limit 0
	runs "$name: with room it is mounted again" mount $dev mnt
	runs "$name: all that was synced is there" files check mnt
	runs "$name: a file can be written" cp -a /cowloop/scripts mnt
	runs "$name: and synced" sync -f mnt
	umount mnt
	no_fault $fs "$name"
	dmsetup remove t cow rdo
done

done_testing
