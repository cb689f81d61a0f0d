#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup pack and unpack: what is unpacked is what was packed, in every format, compression and direction; format 1
# is packed byte for byte as the other implementation does it; what is damaged or cut off is refused, and nothing is
# left of it. (That the original does it so, too, is seen in cowsetup-original.t.)

# shellcheck source=tests/host/lib.sh
. "${0%/*}/lib.sh"

image rdo 20000256 # 39063 sectors: 19531 units of 1024, 4883 of 4096, the last one of 512 bytes

# unpacked NAME: u is a cowfile with the data of c
unpacked() {
	runs "in order: $1" cowfile dump --rdo rdo u
	is "$(cowhead u units dirty packed uuid label cowused)" "$(cowhead c units dirty packed uuid label cowused)" \
		"the same head: $1"
	cowfile image --rdo rdo --cow c --out image-c
	cowfile image --rdo rdo --cow u --out image-u
	runs "the same image: $1" cmp image-c image-u
}

for arguments in "" "--units all" "--units 0,5-90,1000-1200/3,last --label L" "--units 7,last --mapunit 64K" \
	"--units 3 --zero-units 5,last" "--units 1,2 --doffset 1M" "--format 1" "--format 1 --units 0,5-90,10000-12000/3,last" \
	"--format 1 --units all"; do
	# shellcheck disable=SC2086
	makecow c $arguments
	for compress in none gzip zstd; do
		rm -f p u
		exits 0 "pack: $compress $arguments" cowsetup pack --compress "$compress" c p
		exits 0 "unpack: $compress $arguments" cowsetup unpack p u
		unpacked "$compress $arguments"
		"$tool" pack --compress "$compress" c - | cat >p2
		runs "the same to stdout: $compress $arguments" cmp p p2
		rm -f u
		"$tool" unpack - u < <(cat p2)
		ok $? "unpack from stdin: $compress $arguments"
		runs "in order: stdin $compress $arguments" cowfile dump --rdo rdo u
	done
done

# --- Format 1 is the original's -----------------------------------------------------------------------------

# what is sparse in the one and not in the other ends earlier when there is no unit
for units in 0,5-90,10000-12000/3,last all 7; do
	makecow c --format 1 --units "$units"
	rm -f p u p2
	cowfile make --rdo rdo --cow p2 --format 1 --units "$units" --packed
	cowsetup pack c p
	runs "packed as by the other implementation: $units" cmp p p2
	runs "the packed file itself is in order: $units" cowfile dump --rdo rdo p
	exits 0 "and by check: $units" cowsetup check --rdo rdo p
	gzip <p2 >p2.gz
	exits 0 "unpack the other's, gzip'd: $units" cowsetup unpack p2.gz u
	unpacked "the other's: $units"
	cowsetup pack --compress gzip --force c p
	gzip -dc <p | cmp - p2
	ok $? "what gunzip makes of ours: $units"
	cowsetup pack --compress cowpack --force c p
	# the head, the bitmap and the units at once; here the bitmap ends where the units begin
	gzip -dc <p | cmp - <(head -c 56 p2; tail -c +1025 p2)
	ok $? "as cowpack -z: $units"
done
# the original's, when there is no unit, ends with the bitmap
makecow c --format 1
cowfile make --rdo rdo --cow p2 --format 1 --packed
truncate -s $((1024 + 3072)) p2
rm -f u
exits 0 "unpack without any unit" cowsetup unpack p2 u
unpacked "without any unit"
# several gzip members and zstd frames, as cat makes them
makecow c --units 0-100
cowsetup pack --force c p
{ head -c 9000 p | gzip; tail -c +9001 p | gzip; } >p.gz
rm -f u
exits 0 "two gzip members" cowsetup unpack p.gz u
unpacked "two gzip members"

# --- Format 2, packed ---------------------------------------------------------------------------------------

makecow c --units 3,last --dirty --set cowused=100
rm -f p u
exits 0 "pack a dirty one" cowsetup pack c p
is "$(stat -c %s p)" $((8192 + 2 * 4096)) "without holes, the last unit filled up"
is "$(cowsetup dump p | sed -n 's/^State *//p; s/^Units used *//p' | paste -sd ' ')" "packed 2" "dump knows it"
exits 0 "check finds it in order" cowsetup check --rdo rdo p
exits 0 "and it is unpacked" cowsetup unpack p u
is "$(cowhead u units dirty cowused)" "3,4882 0 2" "and clean then"

# the room for units begins where nobody will ever come to
makecow far --units "" --doffset $((1 << 59))
for compress in none zstd; do
	exits 0 "no units, far away: $compress" timeout 600 "$tool" pack --compress $compress far farp
	exits 0 "and back: $compress" cowsetup unpack --force farp u
	is "$(cowhead u doffset cowused) $(($(stat -c %b u) <= 16))" "$((1 << 59)) 0 1" "in a file that ends where it did: $compress"
	rm farp
done
rm -f far u

# --- What is refused ----------------------------------------------------------------------------------------

makecow c --units 0-100
cp p keep
exits 5 "an existing file" cowsetup pack c p
runs "which is as it was" cmp p keep
exec 8<p
flock -x 8
exits 5 "--force, and in use" cowsetup pack --force c p
says 'p: in use' "says so: in use"
runs "and as it was: in use" cmp p keep
exec 8<&-
exits 0 "with --force" cowsetup pack --force c p
exits 5 "unpack over a cowfile" cowsetup unpack p c
says 'holds a cowfile already' "says so"
exits 0 "with --force, too" cowsetup unpack --force p c
exits 4 "pack a packed one" cowsetup pack p p3
exits 4 "unpack what is not packed" cowsetup unpack c u3
says 'not a packed one' "says so: not packed"
exits 4 "unpack what is no cowfile" cowsetup unpack rdo u3
exits 1 "unpack to stdout" cowsetup unpack p -
exits 4 "unpack nothing" cowsetup unpack nothing u3
exits 4 "pack nothing" cowsetup pack nothing u3
exits 1 "unknown compression" cowsetup pack --compress lzma c u3
makecow d --format 1 --dirty --units 3
exits 4 "pack a dirty one of format 1" cowsetup pack d p3
says 'see cowsetup repair' "says what to do"
makecow d --units 3,4 --bad-sector 0
exits 4 "pack one with a damaged bitmap" cowsetup pack d p3
makecow d --units 3,4 --set cowused=3
exits 4 "pack one with a wrong count" cowsetup pack d p3
makecow d --units 3,4 --truncate 20000
exits 4 "pack one that is too short" cowsetup pack d p3
makecow c --units 0-1000
exits 4 "a full disk" bash -c "ulimit -f 1000; '$tool' pack c p3"
exits 4 "a full disk, unpacking" bash -c "ulimit -f 1000; '$tool' unpack --force p u3"
exits 4 "a full device" bash -c "'$tool' pack c - >/dev/full"

for compress in none gzip zstd; do
	cowsetup pack --force --compress "$compress" c p
	size=$(stat -c %s p)
	good=0 bad=0
	for cut in 0 1 3 4 100 511 512 600 1023 1024 4095 4096 5000 8191 8192 9000 100000 $((size - 1)) $((size - 4)); do
		[ "$cut" -lt "$size" ] || continue
		head -c "$cut" p >piece
		cowsetup unpack piece u3 2>err
		[ $? -eq 4 ] && [ -s err ] && bad=$((bad + 1)) || good=$((good + 1))
	done
	is "$good" 0 "cut off anywhere: $compress ($bad places)"
done
cowsetup pack --force --compress gzip c p
printf x | dd of=p bs=1 seek=2000 conv=notrunc status=none
exits 4 "damaged gzip data" cowsetup unpack p u3
cowsetup pack --force --compress zstd c p
printf x | dd of=p bs=1 seek=2000 conv=notrunc status=none
exits 4 "damaged zstd data" cowsetup unpack p u3
cowsetup pack --force c p
printf x >>p
rm -f u
exits 0 "something behind the end" cowsetup unpack p u
says 'goes on behind the last unit' "is told of"

# ^C in the middle of it
mkfifo fifo
(exec 9>fifo; head -c 50000 p >&9; exec sleep 1000) &
feeder=$!
"$tool" unpack fifo u3 2>err &
unpacker=$!
await compgen -G '.u3*' >/dev/null
kill -INT "$unpacker"
wait "$unpacker"
is "$?" 1 "interrupted"
kill "$feeder" 2>/dev/null
like "$(cat err)" 'interrupted' "says so: interrupted"

# What is replaced is ours alone until it is: a pipe holds unpack up in the middle
rm -f u
cowsetup pack --force c p

# unpacking TARGET: begins to unpack --force there, in the background, and waits until it is at it
unpacking() {
	"$tool" unpack --force fifo "$1" 2>err &
	unpacker=$!
	exec 9>fifo
	head -c 50000 p >&9
	await compgen -G ".$1.*" >/dev/null
}

# ends CODE NAME: lets it come to its end
ends() {
	tail -c +50001 p >&9
	exec 9>&-
	wait "$unpacker"
	is "$?" "$1" "$2"
}

makecow u --units 7
cp u keep
unpacking u
exits 5 "what is going to be replaced is in use" cowsetup repair u
exits 5 "by format, too" cowsetup format --force rdo u
ends 0 "then it is replaced"
is "$(cowhead u units)" "$(cowhead c units)" "by what was packed"
cp keep u
unpacking u
mv u moved
echo other >u
ends 5 "another file of the name is not replaced"
like "$(cat err)" 'u: another file has this name by now' "which is said"
is "$(cat u)" other "and stays"
runs "and so does the one that was there" cmp moved keep
cp keep u
unpacking u
printf x | dd of=u bs=1 seek=200 conv=notrunc status=none
ends 5 "nor is one that was written meanwhile"
like "$(cat err)" 'u: another program has written it meanwhile' "which is said: written"
is "$(head -c 201 u | tail -c 1)" x "and stays: written"
rm -f u moved

# who may read it is not changed by that
access() { stat -c '%a %u:%g' "$1"; }
cowsetup pack --force c p
for mode in 600 640 444 666; do
	cp keep u
	cp p p2
	chmod "$mode" u p2
	[ "$(id -u)" = 0 ] && chown 1:2 u p2
	had=$(access u)
	if [ -w u ]; then
		(umask 022 && exec "$tool" unpack --force p u)
		is "$? $(access u)" "0 $had" "what unpack replaces has its permissions and owner: $mode"
	fi
	(umask 022 && exec "$tool" pack --force c p2)
	is "$? $(access p2)" "0 ${had/666/644}" "what pack replaces has, and no more than the cowfile: $mode"
done
rm -f u p2
(umask 027 && exec "$tool" unpack p u)
is "$(access u)" "600 $(id -u):$(id -g)" "what is new is for its owner alone"
if [ "$(id -u)" = 0 ]; then
	# in a directory for all, but another's file: neither owner nor group can be kept
	mkdir -m 777 all
	chmod 755 .
	cp p all/u
	chmod 604 c
	chmod 664 all/u
	chown 0:0 all/u
	out=$(perl -e '$) = $( = 1000; $> = $< = 1000; exec @ARGV' "$tool" pack --force c all/u 2>&1)
	is "$? $(access all/u)" "0 644 1000:1000" "another's file: its group was not the one that may write it now"
	says 'all/u: its owner cannot be kept' "which is said: owner"
	rm -r all
else
	skip "needs root"
fi

# what is zeroes takes no space, however much of it there is: a small file may become a large one
truncate -s 300M zeroes
cowfile make --rdo zeroes --cow z --zero-units all
cowsetup pack --compress zstd --force z z.zst
[ "$(stat -c %s z.zst)" -lt 1000000 ]
ok $? "300 MiB of zeroes packed are small"
rm -f zu
exits 0 "unpack them" cowsetup unpack z.zst zu
runs "they are there" cmp z zu
[ "$(stat -c %b zu)" -lt 2048 ]
ok $? "and take no space" || diag "$(stat -c %b zu) blocks"
rm -f zu
for size in 1M 299M; do
	exits 4 "more than --max-size $size" cowsetup unpack --max-size $size z.zst zu
	says 'z.zst: unpacked, it is too large: found 300 MiB of data.*expected at most' "says so: $size"
	is "$(compgen -G '*zu*'; compgen -G '.*zu*')" "" "nothing is left: $size"
done
exits 4 "a bitmap alone that is more" cowsetup unpack --max-size 1K z.zst zu
says 'found 0 bytes of data' "before anything is made"
exits 0 "no more than --max-size" cowsetup unpack --max-size 301M z.zst zu
rm -f z zu z.zst zeroes
# blocks with and without data in turn, and the end of the last unit
makecow c --units 0-40,last --zero-units 10-20,30
cowsetup pack --force c p
rm -f u
exits 0 "data and zeroes in turn" cowsetup unpack p u
unpacked "data and zeroes in turn"
cowsetup pack --force c p

# what is read is not written meanwhile, by whatever name
cowsetup pack --force c p
ln p link
ln -s c symlink
cp c keep
cp p keep.p
exits 1 "pack into itself" cowsetup pack --force c symlink
says 'pack: c and symlink are the same' "says so: pack"
exits 1 "unpack into itself" cowsetup unpack --force p link
says 'unpack: p and link are the same' "says so: unpack"
cmp c keep && cmp p keep.p
ok $? "nothing has happened to either"
rm link symlink

is "$(compgen -G 'p3*'; compgen -G 'u3*'; compgen -G '.[pu]*')" "" "nothing is left of what failed"

done_testing
