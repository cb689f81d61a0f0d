#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup check and repair: every rule of the formats, broken, is reported, and nothing where nothing is broken; what
# repair makes of it is in order by the other implementation of the formats, and has the data that it should have.

# JSON is asked in Perl, whose variables are not the shell's
# shellcheck disable=SC2016 source=tests/host/lib.sh
. "${0%/*}/lib.sh"

image rdo 65536512 # 128001 sectors: 64000 units of 1024, 16001 of 4096 in four bitmap sectors
image other 65536512
printf x | dd of=other conv=notrunc status=none

# ids FILE OPTION...: the faults that check finds, with their number where there are several of a kind
ids() { cowsetup check --json "$@" | json 'join " ", map { $_->{id} } @{$_->{faults}}'; }

# same NAME: c is as keep is
same() { runs "$1" cmp c keep; }

# --- Nothing is wrong ---------------------------------------------------------------------------------------

for arguments in "" "--units all" "--units 1-9000/3,last" "--units 3 --zero-units 9,last" "--units 5 --mapunit 1M" \
	"--units 1,2 --doffset 1M --label L" "--dirty --units 1 --set cowused=7" \
	"--format 1" "--format 1 --units 0,5-9,last" "--format 1 --packed --units 1,5-9,60000" "--format 1 --units all"; do
	# shellcheck disable=SC2086
	makecow c $arguments
	cp c keep
	exits 0 "no faults: $arguments" cowsetup check --rdo rdo c
	is "$(ids --rdo rdo c)" "" "none in JSON: $arguments"
	[[ $arguments == *packed* ]] && continue
	exits 0 "nothing to mend: $arguments" cowsetup repair c
	[[ $arguments == *dirty* ]] || same "and so nothing is changed: $arguments"
done
makecow c --dirty --units 1 --set cowused=7
exits 0 "dirty in format 2" cowsetup repair c
says 'dirty: counted again, 1 units' "is counted again"
is "$(cowhead c dirty cowused)" "0 1" "and clean"

# --- An image that has changed between the samples -----------------------------------------------------------

# an ext4 in its first partition
PATH=$PATH:/usr/sbin:/sbin
truncate -s 64M disk
echo 2048,65536 | sfdisk -q disk
E2FSPROGS_FAKE_TIME=1577836800 mkfs.ext4 -q -F -E offset=1048576 disk 32M 2>/dev/null
touch -d @1577836900 disk
rm c
exits 0 "format, of an image with a partition" cowsetup format disk c
is "$(cowhead c rdomtime)" 1577836900 "the head has its time"
exits 0 "check of it" cowsetup check --json --rdo disk c
is "$(json 'join " ", @{$_->{notes}}' <<<"$out")" "" "no notes"
touch -d @1600000000 disk
exits 0 "check of it, copied without its time" cowsetup check --rdo disk c
says 'note: disk has been modified since this cowfile was made for it' "says that it has been modified"
E2FSPROGS_FAKE_TIME=1600000100 tune2fs -L changed 'disk?offset=1048576' >/dev/null
touch -d @1600000200 disk
is "$(ids --rdo disk c)" rdo-changed "check of it, changed in the partition"
exits 4 "status: changed in the partition" cowsetup check --rdo disk c
says 'fault: .*the filesystem in partition 1 was written on 2020-09-13' "says where, and when"
exits 0 "merge of nothing" cowsetup merge --batch-mode disk c

cp -p rdo changed
exits 0 "format 1 notes nothing" cowsetup format --format 1 --force changed c
touch -d @1600000000 changed
exits 0 "nor does it say anything" cowsetup check --rdo changed c
says '^c: no faults' "but that there is no fault"
runs "format 1 is in order" cowfile dump --rdo changed c

makecow c --units 1,2 --set rdomtime=1577836900
cp c keep
exits 0 "repair leaves the time alone" cowsetup repair c
same "so that nothing is changed"
is "$(cowsetup dump --json c | json '$_->{rdo_mtime}')" 1577836900 "dump has it"
cp -p rdo merged
exits 0 "merge" cowsetup merge --batch-mode merged c
is "$(cowhead c rdomtime)" "$(stat -c %Y merged)" "notes the time of what it has made"
exits 0 "check after that" cowsetup check --rdo merged c
is "$(grep -c modified <<<"$out")" 0 "says nothing of it"
rm changed merged disk

# --- Every rule broken --------------------------------------------------------------------------------------

# faulty IDS ARGUMENTS: makes such a cowfile, and check finds these faults and changes nothing
faulty() {
	# shellcheck disable=SC2086
	makecow c $2
	cp c keep
	is "$(ids c)" "$1" "check: $2"
	exits 4 "status: $2" cowsetup check c
	same "check changes nothing: $2"
}

# refused IDS ARGUMENTS: moreover, repair can do nothing
refused() {
	faulty "$@"
	says 'repair can do nothing about|a packed file is not repaired' "says that repair does not help: $2"
	is "$(cowsetup check --json c | json '$_->{repairable}')" 0 "and in JSON: $2"
	exits 4 "not repaired: $2" cowsetup repair c
	[[ $out != *--force* ]]
	ok $? "nor is --force advised: $2"
	same "repair changes nothing: $2"
	exits 4 "not repaired with --force: $2" cowsetup repair --force c
	same "nor with --force: $2"
}

# repaired IDS ARGUMENTS [OPTION]: moreover, repair mends it: with OPTION, and not without
repaired() {
	faulty "$1" "$2"
	says 'to see what can be done: cowsetup repair -n c$' "says that repair helps: $2"
	is "$(cowsetup check --json c | json '$_->{repairable}')" 1 "and in JSON: $2"
	if [ "${3:-}" ]; then
		exits 4 "not repaired without $3: $2" cowsetup repair c
		same "and not changed: $2"
	fi
	exits 0 "repair -n: $2" cowsetup repair -n ${3:+"$3"} c
	says '^c: would be mended: ' "says what would be done: $2"
	[[ ! $out =~ \ now\ |:\ mended|repaired: ]]
	ok $? "and not that it is done: $2"
	same "and changes nothing: $2"
	exits 0 "repair: $2" cowsetup repair ${3:+"$3"} c
	says 'c: repaired' "says so: $2"
	runs "in order by the other implementation: $2" cowfile dump c
	is "$(ids c)" "" "no faults any more: $2"
	exits 0 "nothing to mend any more: $2" cowsetup repair c
	says 'nothing to mend' "says so, too: $2"
}

refused short "--format 1 --truncate 1023"
refused short "--format 1 --truncate 2047"
refused short "--truncate 511"
refused short "--truncate 8191"
refused magic "--format 1 --set magic=1"
refused version "--set version=0"
refused version "--set version=3"
refused incompat "--set incompat=0x80000000"
refused "flags" "--format 1 --packed --dirty"
refused mapunit "--set mapunit=2048"
refused rdoblocks "--format 1 --set rdoblocks=0"
refused rdoblocks "--format 1 --set rdoblocks=0xffffffffffffffff"
refused rdosectors "--set rdosectors=0xffffffffffffffff"
refused "rdoblocks mapsize doffset" "--format 2 --set rdosectors=0x100000000 --set mapunit=1M"
refused "mapsize doffset" "--format 1 --set mapsize=2048 --set doffset=8192"

repaired mapunit "--format 1 --units 1-9 --set mapunit=2048" --force
repaired mapsize "--format 1 --units 1-9 --set mapsize=2048" --force
refused mapsize "--units 1-9 --set mapsize=65536"
repaired doffset "--format 1 --units 1-9 --set doffset=16384" --force
refused doffset "--units 1-9 --set doffset=8704"
refused doffset "--units 1-9 --set doffset=4096"
repaired moffset "--units 1-9 --set moffset=8192" --force
refused rdoblocks "--units 1-9 --set rdoblocks=9"
repaired cowused "--format 1 --units 1,2 --set cowused=3"
repaired cowused "--units 1,2 --set cowused=1"
repaired "cowused cowused" "--units 1,2 --set cowused=100000"
repaired label "--set byte100=65" --force
repaired label "--label $(printf '\377')" --force
repaired reserved "--set reserved91=1" --force
repaired padding "--format 1 --units 4 --set byte56=1" --force
repaired flags "--format 1 --units 4 --set flags=4" --force
repaired head-csum "--units 1,2 --flip 511" --force
repaired head-csum "--units 1,2 --set-after-csum cowused=2 --flip 510" --force
refused "head-csum rdoblocks" "--units 1,2 --set-after-csum rdoblocks=7"
refused "head-csum rdoblocks" "--units 1-9 --mapunit 16K --set-after-csum mapunit=4096"

# one wrong bit of the head is found by its checksum, wherever it is
wrong=0
for bit in 1 33 77 83 142 200 300 330 400 480 600 700 800 3400 4063 4064 4095; do
	makecow c --units 1-9,5000 --doffset 1M --label L
	cp c keep
	perl -e 'open my $f, "+<", "c" or die; seek $f, $ARGV[0] >> 3, 0; read $f, my $byte, 1;
		seek $f, $ARGV[0] >> 3, 0; print $f chr(ord($byte) ^ 1 << ($ARGV[0] & 7))' "$bit"
	cowsetup repair c >out 2>&1 && grep -q 'one bit of the head, which the checksum tells' out && cmp c keep && continue
	wrong=$((wrong + 1))
	diag "bit $bit: $(cat out)"
done
is "$wrong" 0 "one wrong bit of the head is corrected"

repaired uuid "--units 1,2 --uuid 00000000000000000000000000000000" --force

# Bits of no unit: 16001 units leave 255 in the last sector, number 3
repaired map-beyond "--format 1 --units 1 --flip 9024"
repaired "map-csum" "--units 1 --bad-sector 5"

# --- Damaged bitmap sectors ---------------------------------------------------------------------------------

repaired "map-csum" "--units 0-4063/7,5000,16000 --bad-sector 0"
is "$(cowhead c units)" "$(makecow d --units 0-4063/7,5000,16000; cowhead d units)" \
	"a damaged sector is rebuilt from the data"
repaired "map-csum map-csum" "--units 0-4063/7,5000,16000 --bad-sector 0 --bad-sector 3"
is "$(cowhead c units)" "$(cowhead d units)" "two damaged sectors are"
repaired "map-csum" "--units 4064-8127 --bad-sector 1"
is "$(cowhead c units)" "4064-8127" "a sector that is full"
repaired "map-csum" "--bad-sector 2"
is "$(cowhead c units)" "" "a sector that is empty"
# the bits themselves are spoiled
repaired "map-csum" "--units 0-4063/7 --flip 4096 --flip 4500"
is "$(cowhead c units)" "$(makecow d --units 0-4063/7; cowhead d units)" "spoiled bits are restored"
# bits of holes are cleared; units that have space and are zeroes stay as they were, set and clear
makecow c --units 1,3 --zero-units 9,11,20 --bad-sector 0
for unit in 9 13; do
	dd if=/dev/zero of=c bs=4096 seek=$((unit + 2)) count=1 conv=notrunc status=none
done
exits 0 "holes and zeroes" cowsetup repair c
says '3 units in the cowfile, 4061 not; 2 that are all zeroes' "are told apart"
is "$(cowhead c units)" "1,3,9" "and dealt with"
# one wrong bit is found by the checksum, wherever it is, and whatever the data is
wrong=0
for bit in 0 7 8 24 79 4000 4063 4064 4071 4095; do
	makecow c --units 1,3,4063 --zero-units 0,8,80,9000
	perl -e 'open my $f, "+<", "c" or die; seek $f, 4096 + ($ARGV[0] >> 3), 0; read $f, my $byte, 1;
		seek $f, 4096 + ($ARGV[0] >> 3), 0; print $f chr(ord($byte) ^ 1 << ($ARGV[0] & 7))' "$bit"
	found=$(ids c)
	cowsetup repair c >out
	[ "$found" = map-csum ] && grep -q 'one bit, which the checksum tells' out &&
		[ "$(cowhead c units)" = 0-1,3,8,80,4063,9000 ] && continue
	wrong=$((wrong + 1))
	diag "bit $bit: $(cat out)"
done
is "$wrong" 0 "one wrong bit is corrected"
# in a sector that is clear there is no checksum, but neither is there anything else
wrong=0
for bit in 0 7 8 79 4000 4063 4064 4071 4095; do
	makecow c --units 1,3,4063 --hidden-units 4064
	perl -e 'open my $f, "+<", "c" or die; seek $f, 4608 + ($ARGV[0] >> 3), 0;
		print $f chr(1 << ($ARGV[0] & 7))' "$bit"
	found=$(ids c)
	cowsetup repair c >out
	[ "$found" = map-csum ] && grep -q 'one bit, which the checksum tells' out &&
		[ "$(cowhead c units)" = 1,3,4063 ] && continue
	wrong=$((wrong + 1))
	diag "bit $bit: $(cat out)"
done
is "$wrong" 0 "one wrong bit is cleared where none is set"
# two are not; zeroes that are stored as holes can't be told from what was never written
makecow c --units 1,3 --zero-units 9,11 --flip 4200
exits 0 "a wrong byte" cowsetup repair c
is "$(cowhead c units)" "1,3" "is rebuilt from the data"
says '10 of those that are not were set in the damaged sector, but are holes' "and says what may be lost"
# sectors that changed places
makecow c --units 0-99,4064-4070
dd if=c of=map bs=512 skip=8 count=2 status=none
dd if=map of=c bs=512 skip=1 seek=8 count=1 conv=notrunc status=none
dd if=map of=c bs=512 skip=0 seek=9 count=1 conv=notrunc status=none
is "$(ids c)" "map-csum map-csum" "sectors that changed places"
exits 0 "are repaired" cowsetup repair c
is "$(cowhead c units)" "0-99,4064-4070" "from the data"


# --- Format 1, dirty ----------------------------------------------------------------------------------------

makecow c --format 1 --dirty --units 1-5 --zero-units 9 --hidden-units 4,7,100-120,50000,last
cp c keep
is "$(ids c)" dirty "check: dirty in format 1"
exits 0 "repair -n: dirty" cowsetup repair -n c
says '24 units with data that the bitmap does not have, then added' "says what would be done: dirty"
same "and changes nothing: dirty"
exits 0 "repair: dirty" cowsetup repair c
is "$(cowhead c units dirty cowused)" "1-5,7,9,100-120,50000,63999 0 30" "by the original's rule"
runs "in order: dirty" cowfile dump --rdo rdo c
makecow c --format 1 --units 1 --hidden-units 7
exits 0 "data without a bit, in a clean file" cowsetup check c
says 'note: 1 unit is not in the bitmap, but not zero either' "is noted"

# --- Data beyond the end of the file ------------------------------------------------------------------------

makecow c --units 1,100-109 --truncate $((8192 + 105 * 4096 + 100))
cp c keep
is "$(ids c)" data-short "units beyond the end of the file"
exits 4 "are not mended" cowsetup repair c
says '5 units should be in the cowfile, but it ends at 438372' "which is said"
fails "so the other implementation does not like it" cowfile dump c
exits 0 "but with --force" cowsetup repair --force c
is "$(cowhead c units cowused)" "1,100-104 6" "are taken out"
makecow c --format 1 --packed --units 1,100-109
truncate -s 15000 c
is "$(ids c)" "data-short" "a packed file that is cut off"
makecow c --format 1 --packed --units 1,100-109
truncate -s 30000 c
is "$(ids c)" "data-long" "a packed file with something behind it"
makecow d --units 1,2
rm -f c
cowsetup pack d c
printf x | dd of=c bs=1 seek=4100 conv=notrunc status=none
exits 4 "a packed file with a damaged bitmap" cowsetup check c
says 'a packed file is not repaired: get another copy' "says what to do: packed"
exits 4 "map of it" cowsetup map c
says 'bitmap sector 0 is damaged.* a packed file is not repaired' "says so, too: map"

# --- Compressed ---------------------------------------------------------------------------------------------

for format in 1 2; do
	makecow c --format "$format" --units 1,5-9,last
	rm -f 'a b'
	cowsetup pack c 'a b'
	gzip -k -f 'a b'
	zstd -q -f 'a b'
	for name in gz zst; do
		is "$(ids "a b.$name")" compressed "a packed file that is compressed: $format, $name"
		exits 4 "status: $format, $name" cowsetup check "a b.$name"
		says "this is (gzip|zstd) of a packed cowfile of format $format, unpack it first: cowsetup unpack 'a b\.$name' NEW\.cow\." \
			"says what it is, and what to do: $format, $name"
	done
	makecow c --format "$format" --units 1
	gzip -k -f c
	exits 4 "one that is not packed" cowsetup check c.gz
	says 'this is gzip of a cowfile that is not a packed one: gzip -d first' "says so: not packed"
done
gzip <rdo >c.gz
exits 4 "something else" cowsetup check c.gz
says 'this is gzip data, and no cowfile is in it' "says so: something else"
head -c 20 c.gz >cut.gz
exits 4 "one that is cut off" cowsetup check cut.gz
says '^cut.gz: fault: this is gzip data, and no cowfile is in it' "says so: cut off"
gzip <'a b.gz' >twice.gz
exits 4 "compressed twice" cowsetup unpack twice.gz new
says 'compressed twice: gzip -d first' "says so: compressed twice"
rm -f -- 'a b'* c.gz cut.gz twice.gz

# --- The read-only device -----------------------------------------------------------------------------------

for format in 1 2; do
	makecow c --format "$format" --units 3
	is "$(ids --rdo rdo c)" "" "its rdo: format $format"
	is "$(ids --rdo other c)" rdo-fingerprint "another rdo: format $format"
	exits 4 "status: another rdo, format $format" cowsetup check --rdo other c
	says 'the cowfile was made for fingerprint 0x[0-9a-f]{16}, and other has 0x[0-9a-f]{16}\.$' "says what is what"
	says 'repair can do nothing about it' "and that repair does not help: another rdo"
	head -c 1000000 rdo >short
	is "$(ids --rdo short c)" rdo-size "an rdo of another size: format $format"
done
exits 4 "no such rdo" cowsetup check --rdo nothing c

# --- Others -------------------------------------------------------------------------------------------------

exits 4 "check nothing" cowsetup check nothing
exits 4 "repair nothing" cowsetup repair nothing

# what is something else; ext4 begins with zeroes
truncate -s 2M fs
PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F fs
for command in check dump "repair --force" map; do
	# shellcheck disable=SC2086
	exits 4 "$command a filesystem" cowsetup $command fs
	says 'not a cowfile: found a filesystem or the like \(ext4\)' "says which: $command"
done
truncate -s 2M zeroes
exits 4 "check zeroes" cowsetup check zeroes
says 'not a cowfile: it begins with zeroes' "says so: zeroes"
exits 4 "check a directory" cowsetup check .
exits 4 "check what is no cowfile" cowsetup check rdo
cowsetup check --json rdo >out
is "$(json 'join " ", $_->{ok} ? 1 : 0, map { $_->{id} } @{$_->{faults}}' <out)" "0 magic" "and in JSON"
makecow c --units 1 --set cowused=2
exec 8<c
flock -s 8
exits 5 "repair what another cowsetup has open" cowsetup repair c
says 'in use' "says so: in use"
exec 8<&-
chmod a-w c
if [ "$(id -u)" = 0 ]; then
	exits 2 "repair what may not be written" perl -e '$) = $( = 1000; $> = $< = 1000; exec @ARGV' "$tool" repair c
else
	exits 2 "repair what may not be written" cowsetup repair c
fi
says '^cowsetup: c: permission denied \(are you root\?\)\.$' "says so: may not be written"
exits 1 "-n is for repair" cowsetup check -n c

done_testing
