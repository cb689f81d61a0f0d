#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# Filesystems: made on a device and filled, used and checked again; an image that two devices change at once, each for
# itself; and what is left of one after the power has failed.
#
# vm: --smp 2 --mem 1536M

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1
mkdir mnt mnt2

# a tree with small and large files
perl=$(perl -e 'print grep { m,/perl-base$, } @INC')
source_tree() { cp -a /cowloop "$perl" /usr/bin/dash /usr/bin/perl /usr/sbin/e2fsck "$1"; }

checksums() { (cd "$1" && find . -name lost+found -prune -o -type f -exec sha256sum {} + | sort); }
listing() { (cd "$1" && find . -name lost+found -prune -o ! -type d -printf '%p %y %m %s %l\n' | sort); }

# change DIR SEED: deletes, rewrites, renames, cuts and appends to files; the same ones for the same SEED
change() {
	perl -we '
		my ($dir, $seed) = @ARGV;
		my @files;
		chdir $dir or die "$dir: $!\n";
		my @dirs = ".";
		while (my $in = shift @dirs) {
			opendir(my $dh, $in) or die "$in: $!\n";
			for (map { "$in/$_" } grep { !/^(\.\.?|lost\+found)$/ } readdir $dh) {
				next if -l;
				push @dirs, $_ if -d _;
				push @files, $_ if -f _;
			}
		}
		@files > 100 or die "only ", scalar @files, " files\n";
		srand $seed;
		for my $file (sort @files) {
			my $what = int rand 7;
			if ($what == 0) {
				unlink $file or die "$file: $!\n";
			} elsif ($what == 1) {
				rename $file, "$file.moved" or die "$file: $!\n";
			} elsif ($what == 2) {
				truncate $file, int rand 9000 or die "$file: $!\n";
			} elsif ($what < 5) {
				my $mode = $what == 3 ? ">" : ">>";
				open(my $fh, $mode, $file) or die "$file: $!\n";
				print $fh "seed $seed: $file\n" x rand 3000;
				close $fh or die "$file: $!\n";
			}
		}
		mkdir "new$seed" and symlink "nowhere", "new$seed/link" or die "new$seed: $!\n"' "$1" "$2" &&
	cowtest fill "$1/new$2/large" --size 5M --base-seed "$2" >/dev/null
}

# image SIZE: what takes no place but for its beginning, as rdo; unchanged SIZE: it still does not
image() {
	rm -f rdo
	cowtest fill rdo --size 64K >/dev/null
	truncate -s "$1" rdo
	blocks=$(stat -c %b rdo)
	rdo=$(loopdev rdo -r)
}
unchanged() {
	is "$(stat -c %b rdo)" "$blocks" "$1: nothing was added to rdo" && cowtest fill sample --size 64K >/dev/null &&
		cmp -n 65536 rdo sample
	ok $? "$1: nothing was changed in it"
}

# check_fs TYPE DEV: finds nothing to repair
check_fs() {
	case $1 in
	ext4) e2fsck -fn "$2" ;;
	xfs) xfs_repair -n "$2" ;;
	esac
}

# --- Made on a device ---------------------------------------------------------------------------------------

# made TYPE SIZE MKFS OPTION...
made() {
	name="$1 $4" type=$1 mkfs=$3
	image "$2"
	truncate -s 324M cow
	shift 3
	cow=$(loopdev cow)
	cowopen t "$rdo" "$cow" "$@"
	# shellcheck disable=SC2086 # several words
	runs "$name: make it" $mkfs /dev/mapper/t
	runs "$name: mount it" mount -t "$type" /dev/mapper/t mnt
	runs "$name: fill it" source_tree mnt
	runs "$name: change it" change mnt 3
	checksums mnt >sums
	listing mnt >list
	runs "$name: unmount it" umount mnt
	runs "$name: nothing to repair" check_fs "$type" /dev/mapper/t
	used=$(cowstat t used)
	is "$(cowstat t mode errors)" "rw 0" "$name: no error"
	dmsetup remove t
	is "$(cowhead cow dirty cowused popcount)" "0 $used $used" "$name: the cowfile is good, and clean"

	cowopen t "$rdo" "$cow"
	runs "$name: opened again, nothing to repair" check_fs "$type" /dev/mapper/t
	runs "$name: mount it" mount -t "$type" /dev/mapper/t mnt
	listing mnt | diff list - >out
	ok $? "$name: the same files" || diag "$(head -n 20 out)"
	checksums mnt | diff sums - >out
	ok $? "$name: the same contents" || diag "$(head -n 20 out)"
	runs "$name: change it" change mnt 5
	checksums mnt >sums
	umount mnt
	runs "$name: changed, nothing to repair" check_fs "$type" /dev/mapper/t
	dmsetup remove t

	dmsetup create -r t --table "$(cowline "$rdo" "$cow")"
	runs "$name: opened read-only, mount it" mount -t "$type" -r /dev/mapper/t mnt
	checksums mnt | diff sums - >out
	ok $? "$name: the same contents" || diag "$(head -n 20 out)"
	umount mnt
	dmsetup remove t
	losetup -d "$rdo"
	losetup -d "$cow"
	unchanged "$name"
	rm cow
}
made ext4 96M "mkfs.ext4 -q" format:1
made ext4 96M "mkfs.ext4 -q" mapunit:65536
made xfs 320M "mkfs.xfs -q -f" format:2

# --- Discards -----------------------------------------------------------------------------------------------

# trimmed FORMAT: what a filesystem discards is no longer in the cowfile, and takes no room there
trimmed() {
	name="discards, $1"
	image 96M
	truncate -s 100M disk/cow
	cow=$(loopdev disk/cow)
	cowopen t "$rdo" "$cow" "$1"
	cowtest io /dev/mapper/t 32M 48M --write --stamp 1
	runs "$name: make a filesystem" mkfs.ext4 -q -E discard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/t
	used=$(cowstat t used)
	ok $((used * $(cowstat t mapunit) > 24 << 20)) "$name: what was there is discarded: $used units left"
	mount -t ext4 /dev/mapper/t mnt
	source_tree mnt
	cowtest fill mnt/large --size 20M >/dev/null
	sync -f mnt
	used=$(cowstat t used) blocks_used=$(stat -c %b disk/cow)
	rm mnt/large
	checksums mnt >sums
	sync -f mnt
	runs "$name: fstrim" fstrim -v mnt
	# shellcheck disable=SC2154 # runs sets it
	diag "$tap_out"
	freed=$(((used - $(cowstat t used)) * $(cowstat t mapunit) >> 20))
	ok $((freed < 20)) "$name: $freed MiB less in the cowfile"
	freed=$(((blocks_used - $(stat -c %b disk/cow)) / 2048))
	ok $((freed < 19)) "$name: $freed MiB less on disk"
	runs "$name: unmount" umount mnt
	runs "$name: nothing to repair" check_fs ext4 /dev/mapper/t
	used=$(cowstat t used)
	is "$(cowstat t mode errors)" "rw 0" "$name: no error"
	dmsetup remove t
	is "$(cowhead disk/cow dirty cowused popcount)" "0 $used $used" "$name: the cowfile is good, and clean"

	cowopen t "$rdo" "$cow"
	mount -t ext4 /dev/mapper/t mnt
	checksums mnt | diff sums - >out
	ok $? "$name: opened again, all is there" || diag "$(head -n 20 out)"
	umount mnt
	fails "$name: no secure discard" blkdiscard -f -s /dev/mapper/t
	runs "$name: blkdiscard -z" blkdiscard -f -z /dev/mapper/t
	is "$(cowstat t used mode)" "$(cowstat t total) rw" "$name: which is a write"
	cmp -n $((96 << 20)) /dev/mapper/t /dev/zero
	ok $? "$name: of zeroes"
	runs "$name: blkdiscard" blkdiscard -f /dev/mapper/t
	is "$(cowstat t used mode)" "0 rw" "$name: nothing is left"
	dmsetup remove t
	losetup -d "$rdo"
	losetup -d "$cow"
	unchanged "$name"
	rm disk/cow
}
# On tmpfs a range cannot be made zeroes and keep its room, and newer loop devices, having been told to, never do it again.
modprobe brd rd_nr=1 rd_size=$((160 * 1024))
mkfs.ext4 -q /dev/ram0
mkdir disk
mount /dev/ram0 disk
trimmed format:1
trimmed format:2
umount disk

# --- An image as rdo, changed through two devices -----------------------------------------------------------

mkdir tree
source_tree tree
mke2fs -q -t ext4 -d tree rdo 64M
sum=$(sha256sum rdo)
rdo=$(loopdev rdo -r)
truncate -s 70M cow cow2
cow=$(loopdev cow)
cow2=$(loopdev cow2)
cowopen t "$rdo" "$cow"
cowopen t2 "$rdo" "$cow2" format:1
mount -t ext4 /dev/mapper/t mnt
ok $? "an image as rdo: mount it"
mount -t ext4 /dev/mapper/t2 mnt2
ok $? "an image as rdo: mount it once more"
checksums tree >sums
for dir in mnt mnt2; do
	checksums $dir | diff sums - >out
	ok $? "an image as rdo: what is in the image is in $dir" || diag "$(head -n 20 out)"
done
change mnt 10 &
pid=$!
runs "an image as rdo: change it" change mnt2 12
wait $pid
ok $? "an image as rdo: at the same time, through the other device"
for dir in mnt mnt2; do
	checksums $dir >sums.$dir
	umount $dir
done
! cmp -s sums.mnt sums.mnt2
ok $? "an image as rdo: the two are changed differently"
dmsetup remove t
dmsetup remove t2
cowopen t2 "$rdo" "$cow2" format:1
cowopen t "$rdo" "$cow"
for name in t:mnt t2:mnt2; do
	dir=${name#*:}
	runs "an image as rdo: nothing to repair in ${name%:*}" check_fs ext4 "/dev/mapper/${name%:*}"
	mount -t ext4 "/dev/mapper/${name%:*}" "$dir"
	checksums "$dir" | diff "sums.$dir" - >out
	ok $? "an image as rdo: ${name%:*} has its own changes" || diag "$(head -n 20 out)"
	umount "$dir"
done
dmsetup remove t
dmsetup remove t2
is "$(sha256sum rdo)" "$sum" "an image as rdo: it was not written to"
losetup -d "$cow"
losetup -d "$cow2"
losetup -d "$rdo"
rm -r rdo cow cow2 tree

# --- The power fails ----------------------------------------------------------------------------------------

# writer DIR LOG: writes and fsyncs files, and notes each that is done; other ones it does not fsync
writer() {
	seed=0
	while [ ! -e stop ]; do
		seed=$((seed + 1))
		cowtest fill "$1/file$seed" --size $((seed % 40 * 4096 + 1536)) --base-seed $seed && echo $seed >>"$2"
		head -c $((seed % 30 * 3000)) /dev/zero >"$1/other$((seed % 5))"
		[ $((seed % 4)) -ne 0 ] || rm -f "$1/other$((seed % 3))"
	done >/dev/null
}

# powerfail TYPE SIZE MKFS OPTION...: nothing reaches the cow device while it is copied, since there is a dm-linear between
powerfail() {
	name="power failure, $1 $4" type=$1 mkfs=$3
	image "$2"
	truncate -s 324M cow
	shift 3
	cow=$(loopdev cow)
	dmsetup create below --table "0 $(sectors "$cow") linear $cow 0"
	cowopen t "$rdo" /dev/mapper/below "$@"
	# shellcheck disable=SC2086 # several words
	runs "$name: make it" $mkfs /dev/mapper/t
	mount -t "$type" /dev/mapper/t mnt
	rm -f stop log
	: >log
	writer mnt log &
	pid=$!
	for copy in 1 2; do
		lines=$(wc -l <log)
		while [ "$(wc -l <log)" -lt $((lines + 12)) ] && kill -0 $pid; do
			sleep 0.1
		done
		cp log done$copy
		dmsetup suspend --nolockfs --noflush below
		cp --sparse=always cow copy$copy
		dmsetup resume below
	done
	: >stop
	wait $pid
	umount mnt
	dmsetup remove t
	dmsetup remove below
	losetup -d "$cow"
	rm cow

	for copy in 1 2; do
		cow=$(loopdev copy$copy)
		is "$(cowhead copy$copy dirty)" 1 "$name: it was in use"
		runs "$name: the device needs no repair" cowopen t "$rdo" "$cow"
		runs "$name: mount it" mount -t "$type" /dev/mapper/t mnt
		wrong=0 files=0
		while read -r seed; do
			cowtest verify mnt/file"$seed" --base-seed "$seed" >out 2>&1 || {
				wrong=$((wrong + 1))
				diag "$(head -n 3 out)"
			}
			is_size=$(stat -c %s mnt/file"$seed")
			[ "$is_size" -eq $((seed % 40 * 4096 + 1536)) ] || wrong=$((wrong + 1))
			files=$((files + 1))
		done <done$copy
		is $wrong 0 "$name: files that were fsync'd are there"
		ok $((files < copy * 12)) "$name: $files of them"
		umount mnt
		runs "$name: nothing to repair" check_fs "$type" /dev/mapper/t
		used=$(cowstat t used)
		dmsetup remove t
		is "$(cowhead copy$copy dirty cowused popcount)" "0 $used $used" "$name: the cowfile is good, and clean"
		losetup -d "$cow"
		rm copy$copy
	done
	losetup -d "$rdo"
	unchanged "$name"
}
powerfail ext4 96M "mkfs.ext4 -q" format:2
powerfail xfs 320M "mkfs.xfs -q -f" mapunit:65536

done_testing
