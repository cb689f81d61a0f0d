#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The original's tools and ours: cowsetup takes the cowfiles and packed files that they and the original's driver made,
# and makes of them what they make; and what it packs and repairs is byte for byte what they pack and repair. The files
# and checksums in tests/fixtures/original were made by the original's code; its README says how.

# shellcheck source=tests/host/lib.sh
. "${0%/*}/lib.sh"

from=$top/tests/fixtures/original
cp "$from"/* .
gzip -d ./*.cow.gz ./*.pack.gz
image rdo 1027584
image far 10485760

sum() { sha256sum | cut -d ' ' -f 1; }

# equals NAME FILE: FILE is what the original made and is called NAME in expected, but for zeroes at its end
equals() {
	local sum bytes

	read -r sum bytes < <(sed -n "s/ $1\$//p" expected)
	is "$(head -c "$bytes" "$2" | sum)" "$sum" "the original's: $2, $1"
	is "$(tail -c +$((bytes + 1)) "$2" | tr -d '\0' | wc -c)" 0 "and nothing but zeroes behind it: $2, $1"
}

# --- Cowfiles of the original's driver ----------------------------------------------------------------------

for f in clean repaired lost; do
	exits 0 "check: $f" cowsetup check --rdo rdo "$f.cow"
	runs "dump: $f" cowsetup dump "$f.cow"
done
# shellcheck disable=SC2016
is "$(cowsetup map --json clean.cow | json 'join ",", map { "$_->{unit}+$_->{units}" } @{$_->{extents}}')" \
	"0+1,10+1,20+2,1002+1" "map: clean"
exits 4 "check: dirty" cowsetup check --rdo rdo dirty.cow
says 'dirty' "says so"

runs "the other implementation reads it" cowfile image --rdo rdo --cow clean.cow --out image
equals image image
cp rdo merged
cp clean.cow c
exits 0 "merge" cowsetup merge --batch-mode merged c
equals merged merged

truncate -s 0 new.cow
exits 0 "format" cowsetup format --format 1 rdo new.cow
equals new.unpacked new.cow

# --- Repair -------------------------------------------------------------------------------------------------

cp dirty.cow c
exits 0 "repair" cowsetup repair c
runs "as cowrepair does" cmp c repaired.cow
cp lost.cow c
exits 0 "repair a clean one" cowsetup repair c
runs "which changes nothing" cmp c lost.cow
exits 0 "check tells of what its driver has lost" cowsetup check lost.cow
says 'note: 1 unit is not in the bitmap, but not zero either' "says so: lost"
exits 0 "repair --dry-run --force" cowsetup repair --dry-run --force c
says 'would be mended: 1 unit with data that the bitmap does not have, then added' "says what it would do"
runs "which changes nothing, either" cmp c lost.cow
exits 0 "repair --force" cowsetup repair --force c
equals found.cow c

# --- Packed files, the original's ---------------------------------------------------------------------------

for f in clean.pack clean.z new.pack new.z over.pack over.z far.z; do
	rm -f u
	exits 0 "unpack: $f" cowsetup unpack "$f" u
	equals "${f%.*}.unpacked" u
	rm -f u
	# in pieces, so that the buffer is not full when the beginning has been read
	{ head -c 50 "$f"; sleep 0.1; tail -c +51 "$f"; } | cowsetup unpack - u
	is "${PIPESTATUS[1]}" 0 "unpack through a pipe: $f"
	equals "${f%.*}.unpacked" u
done
cowsetup unpack --force over.z u 2>err
like "$(cat err)" 'over.z: goes on behind the gzip data' "what is behind the end is told of"
rm -f u
exits 0 "unpack far.z once more" cowsetup unpack far.z u
runs "what was packed far out is read" cowfile image --rdo far --cow u --out image
equals image-far image

# gzip of a packed file has gaps, which may look like a bitmap, and the other way round
cowsetup unpack --force far.z u
cowsetup pack --force u p
gzip <p >p.gz
rm -f u
exits 0 "unpack what gzip has made" cowsetup unpack p.gz u
equals far.unpacked u
rm -f u
gzip <p | TMPDIR=. cowsetup unpack - u
is "${PIPESTATUS[1]}" 0 "and through a pipe"
equals far.unpacked u
is "$(compgen -G 'cowsetup-*')" "" "no temporary file is left"
rm -f u
gzip <p | TMPDIR=./nowhere cowsetup unpack - u 2>err
is "${PIPESTATUS[1]}" 4 "no place for a temporary file"
like "$(cat err)" 'TMPDIR' "says so: temporary file"
fails "and nothing is left" test -e u
for cut in 60 1000 1024 4000; do
	gzip -dc far.z | head -c "$cut" | gzip >cut.z
	exits 4 "cut off at $cut" cowsetup unpack cut.z u
done
gzip -dc far.z | head -c -1 | gzip >cut.z
exits 4 "cut off at the end" cowsetup unpack cut.z u
fails "nothing is left of them" test -e u

# --- Packed files, ours -------------------------------------------------------------------------------------

for f in clean repaired new; do
	[ $f = new ] && truncate -s 2048 new.cow
	exits 0 "pack: $f" cowsetup pack --force $f.cow p
	exits 0 "pack --compress cowpack: $f" cowsetup pack --force --compress cowpack $f.cow z
	case $f in repaired) packed=over ;; *) packed=$f ;; esac
	# the original does not truncate a longer file
	runs "the original's: $f" cmp -n "$(stat -c %s p)" p $packed.pack
	is "$(gzip -dc z | sum)" "$(gzip -dcq $packed.z | sum)" "the original's -z: $f"
done
is "$(stat -c %s p)" 2048 "it ends with the bitmap when there is no unit"

while read -r plain zipped size arguments; do
	[ "${plain:0:1}" = "#" ] && continue
	rm -f r c
	image r $((size < 2000000 ? size : 1000000))
	truncate -s "$size" r
	# shellcheck disable=SC2086
	cowfile make --rdo r --cow c --format 1 $arguments
	exits 0 "pack: $size $arguments" cowsetup pack --force c p
	is "$(sum <p)" "$plain" "as the original: $size $arguments"
	exits 0 "pack --compress cowpack: $size $arguments" cowsetup pack --force --compress cowpack c z
	is "$(gzip -dc z | sum)" "$zipped" "as the original's -z: $size $arguments"
	for f in p z; do
		rm -f u
		exits 0 "unpack it, $f: $size $arguments" cowsetup unpack $f u
		runs "what it was, $f: $size $arguments" cmp -n "$(stat -c %s c)" c u
	done
done <packs

done_testing
