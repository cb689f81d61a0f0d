#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Pairs that open by themselves, in systems with their own udev and systemd: those of /etc/cowtab at boot, with a filesystem of
# fstab on one; those whose devices are plugged in, in either order, and pulled out; and that all is closed in good order
# before the machine goes off.
#
#   tests/slow/assemble.t [SUITE...]      (default: bookworm trixie)
#
# The part that runs in the VM asks for disks by lines that begin with "plug ", and has them taken away by "unplug ".

set -u

top=$(realpath "$(dirname "$0")/../..")
# shellcheck source=tests/lib.sh
. "$top/tests/lib.sh"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp" || exit 1
PATH=$PATH:/usr/sbin:/sbin

make -s -C "$top" build/tools/cowsetup || exit 1
cowsetup() { "$top/build/tools/cowsetup" "$@"; }

# pair NAME OPTION...: NAME.rdo with an ext4 of that label, and NAME.cow; its UUID is in $uuid
pair() {
	local name=$1
	shift
	rm -f "$name.rdo" "$name.cow"
	truncate -s 32M "$name.rdo"
	mke2fs -q -t ext4 -L "$name" "$name.rdo"
	cowsetup format "$@" "$name.rdo" "$name.cow"
	uuid=$(cowsetup probe "$name.cow" | sed -n 's/^ID_FS_UUID=//p')
}

# serve: plugs and unplugs what the VM asks for, and passes on all else
serve() {
	local line word disk
	while IFS= read -r line; do
		read -r word disk <<<"$line"
		case $word in
		plug)
			"$top/scripts/guest/qmp" qmp "drive_add 0 if=none,id=d-$disk,format=raw,cache=unsafe,file=$tmp/$disk" \
				"device_add virtio-blk-pci,drive=d-$disk,id=$disk,serial=$disk" 2>&1 ;;
		unplug) "$top/scripts/guest/qmp" qmp "device_del $disk" 2>&1 ;;
		*) echo "    $line" ;;
		esac
	done
}

[ $# -gt 0 ] || set -- bookworm trixie
plan $(($# * 5))
for suite; do
	lines=$("$top/scripts/distro/tree" "$suite") || exit 1
	tree=''
	eval "$lines"

	pair boot
	boot=$uuid
	pair table
	table=$uuid
	pair spec --label spec --rdo-spec LABEL=spec
	# one that says where its rdo is, and that is another one by now
	pair wrong --label wrong --rdo-spec LABEL=wrong
	rm wrong.rdo
	truncate -s 32M wrong.rdo
	mke2fs -q -t ext4 -L wrong wrong.rdo

	mkdir -p etc
	cat >etc/cowtab <<-END
		boot   LABEL=boot   UUID=$boot                        limit=20M,reserve=1M
		this is wrong
		table  /dev/disk/by-label/table  UUID=$table          nofail
		file   /srv/rdo     /srv/cow                          create
		hand   /dev/disk/by-label/boot   /srv/hand            create,noauto
		gone   /dev/none    /srv/gone                         nofail,x-systemd.device-timeout=1s
	END
	cat >etc/fstab <<-END
		/dev/vda           /    ext4   rw,noatime  0 0
		/dev/mapper/boot   /mnt ext4   defaults    0 2
		/dev/mapper/hand   /opt ext4   noauto      0 0
	END
	pair file
	mkdir -p srv
	mv file.rdo srv/rdo
	sha256sum ./*.rdo >sums

	"$top/scripts/vm" --distro "$suite" --timeout 900 --poweroff --qmp qmp --file "$tree:/" --file etc/cowtab:/etc/cowtab \
		--file etc/fstab:/etc/fstab --file srv:/srv --disk boot.rdo,readonly=on,serial=boot.rdo --disk boot.cow,serial=boot.cow \
		"$top/tests/slow/assemble-guest" 2>&1 | serve
	is "${PIPESTATUS[0]}" 0 "Debian $suite"
	is "$(cowsetup dump --json boot.cow | grep -c '"state": *"clean"')" 1 "what was mounted as it went off is clean"
	cowsetup check --rdo boot.rdo boot.cow && cowsetup check --rdo spec.rdo spec.cow >out 2>&1
	ok $? "and in order" || diag "$(cat out)"
	cowsetup merge --batch-mode boot.rdo boot.cow >out 2>&1 && debugfs -R 'cat /written' boot.rdo >got 2>out
	is "$(cat got)" "by the VM" "what was written is there"
	sed -i '/boot.rdo/d' sums
	runs "no rdo has been written" sha256sum -c --quiet sums
done
[ $tap_failed = 0 ]
