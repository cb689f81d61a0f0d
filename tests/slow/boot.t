#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# A root filesystem on a cowloop device, see cowroot(7): a Debian on a disk that cannot be written, with its changes in a
# cowfile on another disk, by an initramfs of initramfs-tools and by one of dracut. It goes down in good order and leaves a
# clean cowfile; has the package that it was given when it is booted again; stays usable when the cowfile is full; comes up
# after a power cut; and without the cowfile it is pristine. It boots from a live medium, with the changes in RAM, and two
# of them from one image on the network, whose server goes away and comes back: nothing is lost by it. What is read-only is
# never changed.
#
#   tests/slow/boot.t [SUITE...]     (default: bookworm trixie)

set -u

top=$(realpath "$(dirname "$0")/../..")
cd "$top" || exit 1
# shellcheck source=tests/lib.sh
. tests/lib.sh
PATH=$PATH:/usr/sbin:/sbin
tmp=$(mktemp -d)
server=''
# shellcheck disable=SC2317 # it is called, by the trap
cleanup() {
	[ -z "$server" ] || kill "$server"
	rm -rf "$tmp"
}
trap cleanup EXIT

# late: a script for initramfs-tools, that makes /dev/mapper/late of the second disk when it is asked for it, as that of
# cryptsetup would
late() {
	cat <<-'END'
		#!/bin/sh
		[ "$1" = /dev/mapper/late ] || exit 0
		disk=$(blkid -L changes) && size=$(cat "/sys/class/block/${disk#/dev/}/size") &&
			dmsetup create late --table "0 $size linear $disk 0"
	END
}

# system: the release with this tree installed, as $tmp/golden; its initramfses are made in it, but at this machine's speed
# shellcheck disable=SC2016 # the variables are for the shells in there
system() {
	debugfs -R "rdump / $tmp/system" "$disk" &&
		tar -C "$tree" --owner=0 --group=0 -c . | tar -C "$tmp/system" -x --keep-directory-symlink --no-overwrite-dir &&
		late >"$tmp/system/usr/local/share/late" && chmod +x "$tmp/system/usr/local/share/late" &&
		unshare --mount sh -euxc '
			cd "$1"
			mount -t proc proc proc
			mount -t sysfs sys sys
			mount --rbind /dev dev
			chroot . sh -euxc "
				depmod $2
				dpkg -i /usr/local/share/debs/*.deb
				mkdir -p /etc/initramfs-tools/scripts/local-block
				mv /usr/local/share/late /etc/initramfs-tools/scripts/local-block/late
				update-initramfs -c -k $2
				dracut --force --hostonly --no-hostonly-cmdline --add-drivers \"virtio_pci virtio_blk ext4\" \
					--kver $2 /boot/dracut.img"' - "$tmp/system" "$release" </dev/null &&
		cp "$tmp/system/boot/initrd.img-$release" "$tmp/initrd.img" && cp "$tmp/system/boot/dracut.img" "$tmp/dracut.img" &&
		mke2fs -q -t ext4 -d "$tmp/system" "$tmp/golden" "$(($(du -sm "$tmp/system" | cut -f 1) + 500))M" && rm -r "$tmp/system"
}

# vm NAME OPTION... STAGE...: the system; what it says goes into $tmp/NAME
vm() {
	local name=$1
	shift
	scripts/vm --distro "$suite" --poweroff --timeout 900 --log "$tmp/$name.log" "$@" >"$tmp/$name" 2>&1
}

# boots NAME OPTION... STAGE...: and it does well
boots() {
	local name=$1
	shift
	vm out "$@"
	set -- $?
	sed 's/^/    /' "$tmp/out"
	said "$1" "Debian $suite: $name"
}

# from_disk INITRD: options for a system on the disk that cannot be written; $cowroot is where its changes are
from_disk() { options=(--root "$tmp/golden,readonly=on" --initrd "$tmp/$1.img" --disk "$tmp/changes" --append "cowroot=$cowroot"); }

# clean NAME: the cowfile on the second disk, as the system has left it, which is not mounted
clean() {
	rm -f "$tmp/mine.cow"
	debugfs -R "dump /mine.cow $tmp/mine.cow" "$tmp/changes" >/dev/null 2>&1
	like "$(build/tools/cowsetup dump --json "$tmp/mine.cow" 2>&1)" '"state": "clean"' "$1: the cowfile is clean"
	like "$(dumpe2fs -h "$tmp/changes" 2>&1)" 'Filesystem state: *clean' "and so is the filesystem that holds it"
	! dumpe2fs -h "$tmp/changes" 2>&1 | grep -q needs_recovery
	ok $? "whose journal is empty"
	runs "cowsetup check" build/tools/cowsetup check --rdo "$tmp/golden" "$tmp/mine.cow"
}

# cut_me NAME: whether that system has done its part, and its power may be cut
cut_me() { grep -q '^cut me' "$tmp/$1"; }

# was_cut NAME: passes when the one that spoke into $tmp/out got as far as that, and did well
was_cut() {
	sed 's/^/    /' "$tmp/out"
	cut_me out && ! grep -q '^not ok' "$tmp/out"
	said $? "Debian $suite: $1"
}

# cut_power STAGE NAME: boots it, and has its power fail when it says so
cut_power() {
	local pid
	: >"$tmp/out"
	vm out "${options[@]}" tests/slow/boot-guest "$1" &
	pid=$!
	until cut_me out || ! kill -0 $pid 2>/dev/null; do
		sleep 1
	done
	sleep 2
	pkill -KILL -f "^[^ ]*qemu-system.*$tmp/changes"
	wait $pid
	was_cut "$2"
}

# from_server NAME: options for a system whose image comes from the server, and whose changes are on a disk of that name
from_server() {
	options=(--net --root "$tmp/$1.disk" --initrd "$tmp/initrd.img"
		--append "nbdroot=10.0.2.2:$port/golden nbddev=/dev/nbd0 ip=dhcp cowroot=/dev/nbd0,/dev/vda")
}

serve() {
	qemu-nbd --read-only --persistent --shared=4 --format=raw --bind=127.0.0.1 --port=$port --export-name=golden "$tmp/golden" &
	server=$!
}

[ "$(id -u)" = 0 ] || plan skip_all "it takes root to make a system in a directory"
[ $# -gt 0 ] || set -- bookworm trixie
scripts/setup build vm e2fsprogs qemu-utils squashfs-tools erofs-utils procps
for suite; do
	disk='' tree='' release='' # for these to say
	lines=$(scripts/distro/image "$suite" && scripts/distro/tree "$suite")
	ok $? "Debian $suite: there is a disk with it" || continue
	eval "$lines"

	rm -rf "${tmp:?}"/*
	mkdir "$tmp/system"
	system >"$tmp/out" 2>&1
	said $? "Debian $suite: with this tree in it, and initramfses by initramfs-tools and dracut" || continue
	sum=$(sha256sum <"$tmp/golden")

	# --- From a disk, with the changes on another -----------------------------------------------------------

	truncate -s 600M "$tmp/changes"
	mke2fs -q -t ext4 -L changes "$tmp/changes"
	cowroot='/dev/vda,LABEL=changes:/mine.cow,limit=160M,reserve=40M'
	from_disk initrd
	boots "it is installed in" "${options[@]}" tests/slow/boot-guest first
	clean "when it has gone down"
	from_disk dracut
	cut_power again "by dracut: it is still so, and full, until the power fails"
	cowroot=${cowroot/LABEL=changes/\/dev\/mapper\/late} # and where they are is a device on another one now
	from_disk initrd
	boots "and nothing is lost" "${options[@]}" tests/slow/boot-guest after
	clean "after that"
	debugfs -w -R 'rm /mine.cow' "$tmp/changes" >/dev/null 2>&1
	cowroot=${cowroot/\/dev\/mapper\/late/LABEL=changes}
	from_disk dracut
	boots "without the cowfile it is pristine" "${options[@]}" tests/slow/boot-guest pristine
	clean "by dracut, too"

	# --- A live medium: an image in a compressed filesystem --------------------------------------------------

	mkdir "$tmp/in" "$tmp/medium"
	ln "$tmp/golden" "$tmp/in/root.img"
	case $suite in
	bookworm) packed=squashfs; mksquashfs "$tmp/in" "$tmp/medium/live" -quiet -no-progress -comp lz4 >/dev/null ;;
	*) packed=erofs; mkfs.erofs -zlz4 "$tmp/medium/live" "$tmp/in" >/dev/null 2>&1 ;;
	esac
	truncate -s $(($(stat -c %s "$tmp/medium/live") * 21 / 20 + (64 << 20))) "$tmp/stick"
	mke2fs -q -t ext4 -L LIVE -d "$tmp/medium" "$tmp/stick"
	rm -r "$tmp/medium"
	live=$(sha256sum <"$tmp/stick")
	boots "from a live medium" --root "$tmp/stick,readonly=on" --initrd "$tmp/initrd.img" \
		--append 'cowroot=LABEL=LIVE:/live:/root.img,tmpfs:256M' tests/slow/boot-guest live $packed
	is "$(sha256sum <"$tmp/stick")" "$live" "which is not changed"

	# --- Two systems, one image on the network ---------------------------------------------------------------

	port=$((20000 + RANDOM % 10000))
	serve
	for who in one two; do
		# as large as the image, and room for the bitmap
		truncate -s $(($(stat -c %s "$tmp/golden") + (8 << 20))) "$tmp/$who.disk"
		from_server $who
		: >"$tmp/$who"
		vm $who "${options[@]}" tests/slow/boot-guest farm $who &
	done
	for ((i = 0; i < 600; i++)); do
		! { cut_me one && cut_me two; } || break
		sleep 1
	done
	kill "$server"
	wait "$server"
	sleep 10
	pkill -KILL -f "^[^ ]*qemu-system.*$tmp/(one|two).disk"
	wait
	serve
	for who in one two; do
		cp "$tmp/$who" "$tmp/out"
		was_cut "$who boots from the network, and its server goes away"
		runs "its cowfile is in order" build/tools/cowsetup check --rdo "$tmp/golden" "$tmp/$who.disk"
		from_server $who
		boots "the server is there again" "${options[@]}" tests/slow/boot-guest back $who
	done
	kill "$server"
	wait "$server"
	server=''

	is "$(sha256sum <"$tmp/golden")" "$sum" "Debian $suite: its disk is as it was"
done
done_testing
