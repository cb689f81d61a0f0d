#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup format, dump and map: what format writes is in order by the other implementation of the formats, nothing is
# overwritten by mistake, and dump and map say what the other implementation put there.

# JSON is asked in Perl, whose variables are not the shell's
# shellcheck disable=SC2016 source=tests/host/lib.sh
. "${0%/*}/lib.sh"

image rdo 5000704 # 4883 units of 1024, 1220.9 of 4096: 9767 sectors, one more than whole units of 1024
image small 512
image big $((70 * 1024 * 1024))

# --- format -------------------------------------------------------------------------------------------------

for unit in 4K 64K 1M; do
	exits 0 "format 2, $unit" cowsetup format --mapunit "$unit" rdo "c$unit"
	runs "in order: format 2, $unit" cowfile dump --rdo rdo "c$unit"
	is "$(stat -c %s "c$unit")" "$(cowfile make --rdo rdo --cow m --mapunit "$unit" && stat -c %s m)" \
		"with room for every unit: $unit"
	is "$(cowhead "c$unit" format cowused dirty)" "2 0 0" "empty and clean: $unit"
done
exits 0 "format 1" cowsetup format --format 1 rdo c1
says 'its end \(512 bytes\) does not fill a unit' "says that a tail is left out"
runs "in order: format 1" cowfile dump --rdo rdo c1
is "$(stat -c %s c1)" $((4096 + 4883 * 1024)) "with room for every unit: format 1"
[ "$(stat -c %b c1)" -le 64 ]
ok $? "takes no space"

exits 0 "a label and a place of rdo" cowsetup format --label 'Bücher' --rdo-spec UUID=1234 rdo cl
is "$(cowhead cl label rdospec)" "Bücher UUID=1234" "are in the head"
runs "in order with a label" cowfile dump --rdo rdo cl
for place in LABEL=x PARTUUID=x PARTLABEL=x /x; do
	exits 0 "a place of each kind: $place" cowsetup format --force --rdo-spec $place rdo cl
done
exits 0 "one sector" cowsetup format small cs
runs "in order: one sector" cowfile dump --rdo small cs
exits 4 "format 1 needs a unit" cowsetup format --format 1 small cs1
says 'too small: found 512 bytes, expected at least 1 KiB' "and says so"
[ ! -e cs1 ]
ok $? "leaves nothing behind"
exits 0 "bitmap of several sectors" cowsetup format big cb
runs "in order: bitmap of several sectors" cowfile dump --rdo big cb
a=$(cowhead c4K uuid) b=$(cowhead c64K uuid)
[ "$a" != "$b" ]
ok $? "every cowfile has a UUID of its own"

# --- what it refuses ----------------------------------------------------------------------------------------

cp c1 keep
exits 5 "an existing cowfile" cowsetup format rdo c1
says 'holds a cowfile already.*--force' "and says what to do"
runs "is as it was" cmp c1 keep
exits 0 "but with --force" cowsetup format --force rdo c1
runs "in order: over another" cowfile dump --rdo rdo c1

mkfs=$(command -v mke2fs || echo /sbin/mke2fs)
if [ -x "$mkfs" ]; then
	truncate -s 8M fs
	"$mkfs" -q -F fs 2>/dev/null
	cp fs keep
	exits 5 "a filesystem" cowsetup format rdo fs
	says 'holds a filesystem or the like \(ext2\)' "and says which"
	runs "is as it was: filesystem" cmp fs keep
else
	skip "no mke2fs"
	skip "no mke2fs"
	skip "no mke2fs"
fi
truncate -s 8M pt
perl -e 'print "\0" x 446, pack("CCCCCCCCVV", 0, 1, 1, 0, 0x83, 1, 1, 1, 1, 1000), "\0" x 48, "\x55\xaa"' |
	dd of=pt conv=notrunc status=none
exits 5 "a partition table" cowsetup format rdo pt
says 'partition table \(dos\)' "and says which: dos"
echo hello >text
exits 5 "a file with something in it" cowsetup format rdo text
is "$(cat text)" hello "is as it was: text"
: >empty
exits 0 "an empty file" cowsetup format rdo empty
truncate -s 1M zeroes
exits 0 "a file of zeroes" cowsetup format rdo zeroes
runs "in order: was zeroes" cowfile dump --rdo rdo zeroes
truncate -s 9M behind
printf x | dd of=behind bs=1 seek=5000000 conv=notrunc status=none
cp --sparse=always behind keep
exits 5 "a file that begins with zeroes, and has data behind them" cowsetup format rdo behind
says 'behind: begins with zeroes, but holds data from 5000000 on; --force overwrites it' "and says where"
runs "is as it was: behind" cmp behind keep
makecow packme --units 3
cowsetup pack packme packed
exits 5 "so does unpack" cowsetup unpack packed behind
runs "is as it was: unpack" cmp behind keep
cp text text2
exits 4 "--force, and the file cannot be so long" bash -c "ulimit -f 100; '$tool' format --force rdo text2"
is "$(cat text2)" hello "is as it was: cannot be so long"
head -c 20000 /dev/zero >zeroes2
exits 4 "zeroes, and the file cannot be so long" bash -c "ulimit -f 100; '$tool' format rdo zeroes2"
runs "is as it was: zeroes, cannot be so long" cmp zeroes2 <(head -c 20000 /dev/zero)
exits 0 "but with --force: behind" cowsetup format --force rdo behind
runs "in order: behind" cowfile dump --rdo rdo behind
exits 4 "the arguments the wrong way round" cowsetup format c1 rdo
says 'this is a cowfile; the read-only device comes first' "and says so: order"
exits 4 "one for both" cowsetup format rdo rdo
ln -s rdo link
exits 4 "one for both, by another name" cowsetup format --force rdo link
# container OFFSET MAGIC WHAT WHAT-TO-DO: an rdo with this magic is refused, and what to do is said
container() {
	cp rdo packed
	printf '%b' "$2" | dd of=packed bs=1 seek="$1" conv=notrunc status=none
	exits 4 "a container: $3" cowsetup format packed c9
	says "packed: this is $3, and not an image as it is, which $4 makes of it" "says what to do about $3"
	[ ! -e c9 ]
	ok $? "and makes nothing of $3"
	exits 0 "--force: $3" cowsetup format --force packed c9
	exits 0 "check: $3" cowsetup check --rdo packed c9
	says "note: packed: this is $3" "has a note of $3"
	rm c9
}
qemu() { container "$1" "$2" "$3" "qemu-img convert -f $4 -O raw packed NEW"; }
end=$(($(stat -c %s rdo) - 512))
qemu 0 'QFI\xfb\0\0\0\x03' 'a qcow2 image' qcow2
qemu 0 'QFI\xfb\0\0\0\x01' 'a qcow image' qcow
qemu 0 'QED\0' 'a QED image' qed
qemu 0 'KDMV\x01\0\0\0' 'a VMDK image' vmdk
qemu 0 '# Disk DescriptorFile\nversion=1\n' 'the descriptor of a VMDK image' vmdk
qemu 0 '\x63onectix' 'a VHD image' vpc
qemu "$end" '\x63onectix' 'a VHD image, of fixed size' vpc
qemu 0 'vhdxfile' 'a VHDX image' vhdx
qemu 64 '\x7f\x10\xda\xbe' 'a VDI image' vdi
qemu 0 'WithoutFreeSpace' 'a Parallels image' parallels
qemu "$end" 'koly' 'a DMG image' dmg
container 0 'EVF\t\r\n\xff\0' 'an EWF image \(E01\)' 'ewfmount packed DIRECTORY'
container 0 'AFF10\r\n\0' 'an AFF image' 'affuse packed DIRECTORY'
container 4 '1AY&SY' 'bzip2 data' 'bzip2 -dk packed'
container 0 'PK\x03\x04' 'a zip archive, or an AFF4 image' 'unzip packed'
# as these really are
for packer in gzip xz zstd; do
	$packer -c rdo >real
	container 0 "$(head -c 6 real | od -An -tx1 -v | sed 's/ /\\x/g')" "$packer data" "$packer -dk? packed"
done
# what the kernel, or cryptsetup, makes something of
for magic in hsqs 'LUKS\xba\xbe\0\x02'; do
	cp rdo packed
	printf '%b' "$magic" | dd of=packed conv=notrunc status=none
	exits 0 "no container: $magic" cowsetup format packed c9
	rm c9
done

exits 4 "no such rdo" cowsetup format nothing c9
exec 8<rdo
flock -x 8
exits 5 "a read-only device that is being written" cowsetup format rdo c9
says 'rdo: in use: process [0-9]+ .* has it locked' "and says so: written"
flock -s 8
exits 0 "one that others read" cowsetup format rdo shared
exec 8<&-
cc -shared -fPIC -O1 -D_GNU_SOURCE -o lacks.so "$top/tests/host/lacks.c" -ldl || exit 1
lacking=(env LACKS=locks "LD_PRELOAD=$tmp/lacks.so" "$top/build/tools/cowsetup") # the compiler's checks don't like it
exits 4 "a filesystem without locks" "${lacking[@]}" format rdo c9
says 'c9: cannot be locked: No locks available' "says so: no locks"
[ ! -e c9 ]
ok $? "and nothing is left: no locks"
cp shared c9
exits 4 "likewise a cowfile there" "${lacking[@]}" repair c9
says 'c9: cannot be locked' "says so: no locks, repair"
runs "which is as it was: no locks" cmp shared c9
rm c9
# a real merge, stopped in the middle, by way of a pipe that it asks its question of
makecow merged --units 3
mkfifo answer
"$tool" merge rdo merged <answer >asked 2>&1 &
merger=$!
exec 7>answer
await grep -q 'overwrite 1 units' asked
exits 5 "a read-only device that a merge has" cowsetup format rdo c9
says 'rdo: in use: process [0-9]+ \(cowsetup\) has it locked' "and says so: merge"
exec 7>&-
wait "$merger"
is "$?" 1 "the merge was not confirmed"
exits 4 "a directory" cowsetup format . c9
exits 4 "no such directory" cowsetup format rdo no/such
[ ! -e c9 ]
ok $? "leaves nothing behind: c9"

exits 1 "no action" cowsetup
exits 1 "unknown action" cowsetup frobnicate
exits 1 "unknown option" cowsetup format --frobnicate rdo c9
exits 1 "too few arguments" cowsetup format rdo
exits 1 "an option of another action" cowsetup dump --force c1
exits 1 "a size with a blank behind" cowsetup format --mapunit '64 ' rdo c9
exits 1 "a size with a blank in it" cowsetup format --mapunit '4 K' rdo c9
exits 1 "format 3" cowsetup format --format 3 rdo c9
exits 1 "a unit that is no power of two" cowsetup format --mapunit 5000 rdo c9
exits 1 "a unit of format 1 in format 2" cowsetup format --mapunit 1K rdo c9
exits 1 "a label in format 1" cowsetup format --format 1 --label x rdo c9
exits 1 "a label that is too long" cowsetup format --label "$(printf '%064d' 0)" rdo c9
exits 1 "a label that is not UTF-8" cowsetup format --label $'\xff' rdo c9
for place in relative/path UUID= LABEL= PARTUUID= PARTLABEL= SERIAL=1 ''; do
	exits 1 "a place that is no place: '$place'" cowsetup format --rdo-spec "$place" rdo c9
	says 'must be an absolute path, or UUID=, LABEL=, PARTUUID= or PARTLABEL= and a value' "and says what is one: '$place'"
done
exits 0 "--help" cowsetup --help
says 'format <rdo> <cow>' "lists the actions"
for help in -h -? help; do
	is "$(cowsetup "$help")" "$(cowsetup --help)" "$help is --help"
done
for help in 'help repair' 'repair --help' '-h repair x y z' 'repair --force -h'; do
	# shellcheck disable=SC2086 # several words
	exits 0 "$help" cowsetup $help
	says '^Usage: cowsetup \[OPTION\.\.\.\] repair <cow>$' "shows what it takes: $help"
	is "$(grep -oE -- '--[a-z-]+' <<<"$out" | sort | paste -sd ' ')" \
		'--batch-mode --dry-run --force --help --progress-frequency --progress-json --usage --verbose --version' \
		"with its options, and no others: $help" ||
		diag "$out"
done
exits 1 "help of an action that there is not" cowsetup help nix
says 'nix: unknown action' "says so: no such action"

# head goes when it has seen enough; the second output is larger than any buffer
makecow long --units "$(seq -s , 0 2 4800)" --format 1
for command in 'help' 'map long'; do
	# shellcheck disable=SC2086 # several words
	said=$( (cowsetup $command 2>&3; echo $? >status) 3>&1 >/dev/full)
	is "$(<status) $said" '4 cowsetup: Cannot write the output: No space left on device.' "an output that cannot be written: $command"
	# shellcheck disable=SC2086 # several words
	said=$( (trap '' PIPE; while printf x; do sleep 0.01; done 2>/dev/null; cowsetup $command 2>&3; echo $? >status) 3>&1 | head -c 0)
	is "$(<status) $said" "$((128 + $(kill -l PIPE))) " "one that nobody wants ends it as any program, without a word: $command"
done
exits 0 "--version" cowsetup --version
says "^cowsetup $(sed -n '1s/^dm-cowloop \([^ ]*\).*/\1/p' "$top/CHANGELOG")\$" "is that of the CHANGELOG"

# A full disk: what was created is removed again
exits 4 "a file that the limit is too low for" bash -c "ulimit -f 100; '$tool' format rdo limited"
[ ! -e limited ]
ok $? "leaves nothing behind: limit"

# --- dump and map -------------------------------------------------------------------------------------------

units=0,3,10-20,1200-last
makecow c2 --units "$units" --label 'a "label"' --rdospec /the/image
exits 0 "dump" cowsetup dump c2
says '^Format +2$' "dump says: format"
says '^Label +a "label"$' "dump says: label"
says '^Units used +34$' "dump says: units"
says '^Place of rdo +/the/image$' "dump says: where rdo is"
is "$(echo "$out" | awk '!at { at = match($0, / [^ ]*$/) } substr($0, at, 2) !~ /^ [^ ]/')" '' "in two columns"
exits 0 "map" cowsetup map c2
like "$(echo "$out" | head -n 1)" '^ unit units device offset         bytes cowfile offset$' "in columns that are as wide as they need to be"
is "$(echo "$out" | sed '$d' | awk '{ print length }' | sort -u | wc -l)" 1 "in each line"
makecow c3
exits 0 "dump of one that does not say where rdo is" cowsetup dump c3
says '^Place of rdo +not noted \(--rdo-spec\)$' "says so"
exits 0 "dump --json" cowsetup dump --json c2
is "$(json 'join " ", map { ref $_ ? scalar @$_ : $_ } @$_{qw(format state unit_bytes units_used units_total label rdo_spec rdo_sectors uuid faults)}' <<<"$out")" \
	"2 clean 4096 34 1221 a \"label\" /the/image 9767 $(cowhead c2 uuid) 0" "dump --json has it all"

# names of files may be anything, and JSON has to be UTF-8
name=$(printf 'n\303\244\357v\303"\\\001\355\240\200\303')
cp c2 "$name"
want=$(printf 'n\303\244?v?"\\\001????')
for command in dump map check; do
	cowsetup $command --json "$name" >out
	WANT=$want json 'utf8::encode($_->{cowfile}); $_->{cowfile} eq $ENV{WANT} or die $_->{cowfile}' <out >/dev/null
	ok $? "$command --json of a file whose name is not UTF-8" || diag "$(cat out)"
done
cowsetup pack --progress-json "$name" p >out
WANT=$want json 'utf8::encode($_->{device}); $_->{device} eq $ENV{WANT} or die $_->{device}' <out >/dev/null
ok $? "and its progress" || diag "$(cat out)"
rm -f "$name" p

for arguments in "--units $units" "--units all" "--units 5 --mapunit 64K" "--format 1 --units 0-4000/7,last" \
	"--format 1 --packed --units 1,5-9,200" "--units 1-1000/3 --doffset 64K" ""; do
	# shellcheck disable=SC2086
	makecow c2 $arguments
	want=$(cowfile dump c2 | sed -n 's/^units=//p')
	got=$(cowsetup map --json c2 | json 'join ",", map { $_->{units} == 1 ? $_->{unit} :
		"$_->{unit}-" . ($_->{unit} + $_->{units} - 1) } @{$_->{extents}}')
	is "$got" "$want" "map: $arguments"
	total=$(cowsetup map --json c2 | json '$_->{units_used}')
	is "$total" "$(cowhead c2 popcount)" "map counts: $arguments"
done

# where the map says a unit is, there it is
makecow c2 --units 7,9 --mapunit 16K
offset=$(cowsetup map --json c2 | json '$_->{extents}[1]{cow_offset}')
is "$(dd if=c2 bs=1 skip="$offset" count=8 status=none | od -An -tx8 | tr -d ' ')" c000000000900000 \
	"the map's offset leads to the unit"
makecow c2 --format 1 --packed --units 7,9
offset=$(cowsetup map --json c2 | json '$_->{extents}[1]{cow_offset}')
is "$(dd if=c2 bs=1 skip="$offset" count=8 status=none | od -An -tx8 | tr -d ' ')" c000000000900000 \
	"the map's offset leads to the unit in a packed file"
last=$(makecow c2 --units last && cowsetup map --json c2 | json '$_->{extents}[0]{bytes}')
is "$last" $((5000704 - 1220 * 4096)) "the last unit is a partial one"

makecow c2 --units 1,2 --set-after-csum cowused=7
exits 4 "dump of a damaged head" cowsetup dump c2
says 'the head is damaged: found checksum' "says so"
is "$(cowsetup dump --json c2 | json '$_->{faults}[0]{id}')" head-csum "and in JSON"
exits 4 "map of a damaged head" cowsetup map c2
image rdo2 $((40 * 1024 * 1024))
cowfile make --rdo rdo2 --cow c3 --units 1,5000,9000 --bad-sector 1
exits 4 "map with a damaged bitmap sector" cowsetup map c3
says 'bitmap sector 1 is damaged.* units 4064 to 8127' "says which units"
says '^ +9000 ' "and goes on behind it"
exits 4 "dump of what is no cowfile" cowsetup dump text
exits 4 "dump of nothing" cowsetup dump nothing
says 'nothing: No such file' "and says so: nothing"
gzip <c2 >c2.gz
exits 4 "dump of gzip data" cowsetup dump c2.gz
says 'gzip of a cowfile that is not a packed one: gzip -d first' "says what to do"

# --- 64 TiB -------------------------------------------------------------------------------------------------

# A cowfile for 16 TiB of 1 MiB units needs a file of 16 TiB: more than ext4 can have. Half of that, then.
if truncate -s 8T huge 2>/dev/null; then
	exits 0 "format for 8 TiB" cowsetup format huge hugecow
	for offset in 4096 $((4096 + 270000000 / 512 * 512)); do
		printf '\1' | dd of=hugecow bs=1 seek="$offset" conv=notrunc status=none
	done
	(
		ulimit -v 100000
		"$top/build/tools/cowsetup" map --json hugecow >hugemap 2>/dev/null
		# of what has ended, too
		sed -n 's/^rchar: //p' "/proc/$BASHPID/io" >hugeread
	)
	is "$(json '$_->{damaged_sectors}' <hugemap)" 2 "a walk over a sparse bitmap finds what is there"
	[ "$(cat hugeread)" -lt $((16 << 20)) ]
	ok $? "and reads little besides: $(cat hugeread) bytes"
else
	skip "no sparse files of 8 TiB here"
	skip "no sparse files of 8 TiB here"
	skip "no sparse files of 8 TiB here"
fi

# --- what cannot be made, and why -----------------------------------------------------------------------------

exits 1 "no name: the image" cowsetup format '' new
says 'The name of a file or device is empty' "says so: the image"
exits 1 "no name: the cowfile" cowsetup format rdo ''
says 'The name of a file or device is empty' "says so: the cowfile"
(
	ulimit -f 8
	exec "$tool" format rdo large >limited 2>&1
)
is "$? $(grep -c 'large: cannot be made .* long: files of at most .* are allowed here (ulimit -f)' limited)" "4 1" \
	"says that the limit is this user's"
[ ! -e large ]
ok $? "and leaves nothing"

done_testing
