#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup probe, assemble and generate, as far as they go without devices: what is a cowfile and what is not, which lines of
# a cowtab are right, and which units are made of them.

# shellcheck source=tests/host/lib.sh
. "${0%/*}/lib.sh"

# property KEY FILE: what probe says of it
property() { cowsetup probe "$2" | sed -n "s/^$1=//p"; }

# nothing NAME FILE: it is no cowfile, and probe is silent
nothing() {
	exits 2 "no cowfile: $1" cowsetup probe "$2"
	is "$out" "" "not a word: $1"
}

# poke FILE OFFSET BYTES: printf's
poke() { printf '%b' "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }

# --- probe --------------------------------------------------------------------------------------------------

image rdo 5000704
cowsetup format --label 'a b/ü' rdo c2
cowsetup format --format 1 rdo c1 2>/dev/null
uuid=$(cowhead c2 uuid)
sum=$(cat c1 c2 | sha256sum)
is "$(cowsetup probe c2)" "ID_FS_TYPE=cowloop
ID_FS_USAGE=other
ID_FS_VERSION=2
ID_FS_UUID=$uuid
ID_FS_UUID_ENC=$uuid
ID_FS_LABEL=a_b/ü
ID_FS_LABEL_ENC=a\\x20b\\x2fü" "format 2, as udev has the properties of filesystems"
is "$(cowsetup probe c1)" "ID_FS_TYPE=cowloop
ID_FS_USAGE=other
ID_FS_VERSION=1" "format 1"
makecow d1 --format 1 --dirty --units 3
is "$(property ID_FS_VERSION d1)" 1 "format 1, dirty"
makecow d2 --dirty --units 3
is "$(property ID_FS_VERSION d2)" 2 "format 2, dirty"
is "$(cat c1 c2 | sha256sum)" "$sum" "nothing is written"
printf 'x\nID_FS_TYPE=ext4' >evil
cowsetup format --label "$(cat evil)" rdo ce
is "$(cowsetup probe ce | grep -c '^ID_FS_TYPE=')" 1 "a label cannot bring lines of its own"

# a bit in every third byte of the head, damaged
cp c2 damaged
wrong=''
for at in $(seq 0 3 511); do
	byte=$(od -An -tu1 -j "$at" -N 1 c2)
	poke damaged "$at" "\\0$(printf %o $((byte ^ 1 << at % 8)))"
	! cowsetup probe damaged >/dev/null || wrong+=" $at"
	poke damaged "$at" "\\0$(printf %o "$byte")"
done
runs "each is put back" cmp damaged c2
is "$wrong" "" "format 2: any bit that is wrong"
cp c1 damaged
wrong=''
# flags may be set; a size that is a little different has the same bitmap; the fingerprint and the count may be anything
for at in $(seq 0 5) $(seq 8 31) $(seq 33 39) $(seq 56 9 511); do
	byte=$(od -An -tu1 -j "$at" -N 1 c1)
	poke damaged "$at" "\\0$(printf %o $((byte ^ 128)))"
	! cowsetup probe damaged >/dev/null || wrong+=" $at"
	poke damaged "$at" "\\0$(printf %o "$byte")"
done
is "$wrong" "" "format 1: bytes of its sizes, and of the zeroes behind them"
head -c 1500 c1 >short2
nothing "format 1, cut off" short2
head -c 4096 c2 >short2
nothing "format 2, cut off" short2
cowsetup pack c1 packed
nothing "a packed file" packed

truncate -s 1M zeroes
nothing "zeroes" zeroes
head -c 1M /dev/urandom >random
nothing "random data" random
for i in 1 2 3 4 5 6 7 8; do
	head -c 64K /dev/urandom >random
	poke random 0 '\0177COW'
	poke random 4 "\\0$((i % 2 + 1))\\0"
	cowsetup probe random && break
done
is "$i $(cowsetup probe random)" "8 " "nor with the magic and a version"
: >empty
nothing "an empty file" empty
printf '\0177COW' >short
nothing "the magic alone" short
PATH=$PATH:/usr/sbin:/sbin
truncate -s 300M fs
for mkfs in 'mke2fs -q -F' 'mkfs.xfs -q -f' 'mkswap -q' 'sfdisk -q'; do
	command -v "${mkfs%% *}" >/dev/null || continue
	# shellcheck disable=SC2086 # several words
	echo 'type=83' | $mkfs fs >/dev/null 2>&1
	nothing "${mkfs%% *}" fs
done
exits 4 "what is not there" cowsetup probe missing
says 'missing: No such file' "is an error"

# --- cowtab -------------------------------------------------------------------------------------------------

# tab LINE...: a table of these lines
tab() { printf '%s\n' "$@" >cowtab; }
# shellcheck disable=SC2317 # it is called, by exits
assemble() { cowsetup assemble --cowtab cowtab --dry-run "$@"; }

# refuses LINE REGEX: it is the second of three, and told, and the others are there
refuses() {
	tab "one $tmp/rdo $tmp/c1" "$1" "three $tmp/rdo $tmp/c2"
	exits 4 "bad line: $1" assemble --all
	says "cowtab:2: $2" "told with its number: $1"
	is "$(grep -v cowtab: <<<"$out")" "one: $tmp/rdo $tmp/c1
three: $tmp/rdo $tmp/c2" "the others are there: $1"
}

tab '# a comment' '' "  one	$tmp/rdo   $tmp/c1	" "two $tmp/rdo $tmp/c2 read-only,limit=1.5G,x-anything=1,nofail" \
	"three $tmp/rdo $tmp/none" "four $tmp/rdo $tmp/new create,force" "five $tmp/rdo $tmp/d2 noauto" "#six"
exits 0 "a table" assemble --all
is "$(grep -v '^cowsetup: ' <<<"$out")" "one: $tmp/rdo $tmp/c1
two: $tmp/rdo $tmp/c2
four: $tmp/rdo $tmp/new" "those that are complete, or will be made, and are not noauto"
is "$(grep '^cowsetup: ' <<<"$out")" "cowsetup: three: not complete: there is no $tmp/none (cowtab:5).
cowsetup: five: noauto: not opened but by its name (cowtab:7)." "and what is not opened, and why"
exits 0 "noauto, by its name" assemble five
is "$out" "five: $tmp/rdo $tmp/d2" "is the only one"
exits 0 "a part of one pair" assemble "$tmp/c2"
is "$out" "two: $tmp/rdo $tmp/c2" "that pair"
exits 0 "a part of several" assemble "$tmp/rdo"
is "$(grep -c "^[a-z]*: /" <<<"$out")" 3 "all of them"
exits 0 "a part of none" assemble "$tmp/zeroes"
is "$out" "cowsetup: There is no pair to be opened." "none"
exits 4 "incomplete, by its name" assemble three
says "three: not complete: there is no $tmp/none .*cowtab:5" "says what is missing"
exits 4 "no such line" assemble six
exits 4 "no such device" assemble ./six
exits 1 "nothing asked for" assemble
exits 1 "two things asked for" assemble --all two
[ ! -e new ]
ok $? "a dry run makes nothing"
exits 0 "no table" cowsetup assemble --all --cowtab missing --dry-run
is "$out" "cowsetup: missing: there is no such table, and so no line.
cowsetup: There is no pair to be opened." "is said"
tab "one $tmp/no $tmp/none"
exits 0 "a line of which nothing is there" assemble --all
says "one: not complete: there is no $tmp/no, nor $tmp/none \\(cowtab:1\\)" "all that is missing is said"

mkdir "a b"
ln rdo "a b/it's \\ \"rdo\""
ln c1 "a b/ü cow"
tab "one $tmp/a\\040b/it\\047s\\040\\134\\040\\042rdo\\042 $tmp/a\\040b/ü\\040cow"
exits 0 "a line with blanks in its paths, as fstab has them" assemble --all
is "$out" "one: $tmp/a b/it's \\ \"rdo\" $tmp/a b/ü cow" "has these paths"
rm -r "a b"

# taken CODE REGEX NAME LINE...: the last line is refused for what the lines before it have; those are there
taken() {
	local code=$1 regex=$2 name=$3
	shift 3
	tab "$@"
	exits "$code" "dry run: $name" assemble --all
	says "$regex" "is told: $name"
	is "$(grep -c '^[a-z]*: /' <<<"$out")" $(($# - 1)) "and not printed as opened: $name"
}
ln c1 link.cow
taken 5 "two: its cowfile, $tmp/c1, is that of one, too" "the same cowfile twice" "one $tmp/rdo $tmp/c1" "two $tmp/rdo $tmp/c1"
taken 5 "two: its cowfile, .* is that of one, too" "by another name" "one $tmp/rdo $tmp/c1" "two $tmp/rdo $tmp/link.cow"
taken 5 "two: its cowfile, .* is that of one, too" "that is to be made" "one $tmp/rdo $tmp/new create" "two $tmp/rdo $tmp/new create"
taken 5 "two: its cowfile, .* is the read-only device of one" "a cowfile that is rdo" "one $tmp/rdo $tmp/c1" "two $tmp/c2 $tmp/rdo"
taken 5 "two: its read-only device, .* is the cowfile of one" "an rdo that is a cowfile" "one $tmp/rdo $tmp/c1" "two $tmp/c1 $tmp/c2"
taken 4 'one: .* at the same time' "both the same" "one $tmp/c1 $tmp/link.cow"
rm link.cow
tab "one $tmp/rdo $tmp/c1" "two $tmp/rdo $tmp/c1 noauto"
exits 0 "the same cowfile twice, one of them noauto" assemble --all

refuses 'two' 'found 1 fields, expected a name'
refuses 'two /a /b read-only more' 'found at least 5 fields'
refuses "a/b $tmp/rdo $tmp/c1" 'a/b: not a name'
refuses "control $tmp/rdo $tmp/c1" 'control: not a name'
refuses "$(printf '%0101d' 1) $tmp/rdo $tmp/c1" '0*1: not a name'
refuses "one $tmp/rdo $tmp/c1" 'one: the name is that of line 1 already'
refuses 'two relative /b' 'two: found relative for rdo, expected'
refuses 'two /a SERIAL=1' 'two: found SERIAL=1 for cow, expected'
refuses 'two UUID= /b' 'two: found UUID= for rdo'
for wrong in "/b'" '/"b' "/b\\" '/b\04' '/b\x20' '/b\000' '/b\012' '/b\777' "/b\\\\"; do
	refuses "two /a $wrong" 'two: rdo and cow cannot have quotes'
	refuses "two $wrong /a" 'two: rdo and cow cannot have quotes'
done
refuses 'two /a /b limit=many' 'limit=many: it must be a size'
refuses 'two /a /b limit' 'limit=: it must be a size'
refuses 'two /a /b read-only,typo' 'unknown option typo'
refuses 'two /a /b create,read-only' 'create and read-only'
refuses '* /a /b' '\*: stands for cow devices'
refuses '* - - create' '\*: create'
refuses '* - - force' '\*: force'
head -c 100K /dev/urandom >cowtab
exits 4 "a table that is noise" assemble --all
exits 4 "a table that cannot be read" cowsetup assemble --all --dry-run --cowtab "$tmp"
says 'cannot be read: Is a directory' "is an error"

# --- generate -----------------------------------------------------------------------------------------------

# generate LINE...: the units of these lines, in ./gen; $out is what was said
generate() {
	tab "$@"
	rm -rf gen run
	mkdir gen
	out=$(RUNTIME_DIRECTORY=$tmp/run cowsetup generate --cowtab cowtab gen gen gen 2>&1)
}

# setting UNIT KEY: its values, in one line
setting() { sed -n "s/^$2=//p" "gen/$1" | paste -sd ' '; }

generate "blanks LABEL=a\\040b /srv/it\\047s\\040100%/\\134x\\042.cow"
is "$?" 0 "units of a line with blanks"
is "$(setting cowsetup@blanks.service RequiresMountsFor)" '"/srv/it'"'"'s 100%%/\\x\".cow"' "have the path as one word"
is "$(setting cowsetup@blanks.service BindsTo)" "" "a label's link moves"
is "$(setting cowsetup@blanks.service After | grep -o 'dev[^ ]*label[^ ]*')" 'dev-disk-by\x2dlabel-a\x5cx20b.device' \
	"the link that udev makes of the label"

generate '# nothing'
is "$? $(ls gen)" "0 " "no line, no unit"
[ ! -e run/assemble ]
ok $? "and no mark for udev"

generate "a-b UUID=$uuid LABEL=my/%cow x-systemd.device-timeout=5min,limit=1G" 'file /srv/100%/rdo.img /var/cow create,nofail' \
	'net /dev/nbd0 /var/net.cow _netdev' 'link /dev/disk/by-label/golden /dev/vdb noauto' 'hand /dev/vg/golden PARTUUID=12-34 noauto'
is "$?" 0 "units are made"
is "$(cd gen && find . -type l -printf '%P -> %l\n' | sort)" "\
cowsetup.target.requires/cowsetup@a\\x2db.service -> ../cowsetup@a\\x2db.service
cowsetup.target.wants/cowsetup@file.service -> ../cowsetup@file.service
dev-disk-by\\x2dcow\\x2dlabel-my\\x5cx2f\\x5cx25cow.device.wants/cowsetup@a\\x2db.service -> ../cowsetup@a\\x2db.service
dev-disk-by\\x2duuid-${uuid//-/\\x2d}.device.wants/cowsetup@a\\x2db.service -> ../cowsetup@a\\x2db.service
dev-mapper-a\\x2db.device.requires/cowsetup@a\\x2db.service -> ../cowsetup@a\\x2db.service
dev-mapper-file.device.requires/cowsetup@file.service -> ../cowsetup@file.service
dev-mapper-hand.device.requires/cowsetup@hand.service -> ../cowsetup@hand.service
dev-mapper-link.device.requires/cowsetup@link.service -> ../cowsetup@link.service
dev-mapper-net.device.requires/cowsetup@net.service -> ../cowsetup@net.service
dev-nbd0.device.wants/cowsetup@net.service -> ../cowsetup@net.service
remote-cowsetup.target.requires/cowsetup@net.service -> ../cowsetup@net.service" "who wants and requires them"
unit='cowsetup@a\x2db.service'
devices="dev-disk-by\\x2duuid-${uuid//-/\\x2d}.device dev-disk-by\\x2dcow\\x2dlabel-my\\x5cx2f\\x5cx25cow.device"
is "$(setting "$unit" BindsTo)" "${devices#* }" "bound to cow"
is "$(setting "$unit" Wants | grep -o '[^ ]*$')" "${devices% *}" "but not to a UUID that more devices come to have"
is "$(setting cowsetup@net.service BindsTo)" "dev-nbd0.device" "while a path is rdo's alone"
is "$(setting cowsetup@link.service BindsTo)" "dev-vdb.device" "which such a link is not, as if it were LABEL="
is "$(setting cowsetup@link.service Wants | grep -o '[^ ]*$')" 'dev-disk-by\x2dlabel-golden.device' "so that it is wanted, too"
is "$(setting "$unit" After)" "modprobe@dm_mod.service $devices" "and after them"
is "$(setting "$unit" Before)" "umount.target blockdev@dev-mapper-%i.target cowsetup.target" "before what needs it"
like "$(setting "$unit" ExecStart)" '/cowsetup assemble -- a-b$' "opens it"
like "$(setting "$unit" ExecStop)" '^-/.*/cowsetup close --deferred -- a-b$' "closes it"
is "$(cat gen/dev-disk-by*uuid*.device.d/50-cowsetup-a-b.conf)" "[Unit]
JobRunningTimeoutSec=5min" "a timeout is its device's"
is "$(setting cowsetup@file.service RequiresMountsFor)" "/srv/100%%/rdo.img /var/cow" "files: after their filesystems"
like "$(setting cowsetup@file.service After)" 'modprobe@loop.service' "and with loop devices"
is "$(setting cowsetup@file.service Before)" "umount.target blockdev@dev-mapper-%i.target" "nofail: not waited for"
is "$(setting cowsetup@net.service Before)" "umount.target blockdev@dev-mapper-%i.target remote-cowsetup.target" "_netdev: for the other target"
like "$(setting cowsetup@net.service After)" 'remote-fs-pre.target' "and after the network"
[ ! -e run/assemble ]
ok $? "no mark for udev without a line for all"

generate "one $tmp/rdo $tmp/c1" 'bad' '* - - read-only'
is "$?" 4 "a bad line"
like "$out" 'cowtab:2: found 1 fields' "is told"
is "$(cd gen && echo ./*.service)" './cowsetup@one.service' "the others have their units, and * has none"
[ -e run/assemble ]
ok $? "but a mark for udev"
cp -r run keep
tab '* - - noauto'
RUNTIME_DIRECTORY=$tmp/run cowsetup generate --cowtab cowtab gen
ok $? "when it is noauto"
[ ! -e run/assemble ]
ok $? "the mark goes"
generate "one $tmp/rdo $tmp/c1"
exits 4 "no such directory" cowsetup generate --cowtab cowtab gen/none

done_testing
