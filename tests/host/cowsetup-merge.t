#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup merge: the device has what the cowloop device showed; the cowfile is empty and belongs to it; and after a
# power cut at any point of it, either nothing has happened, or the cowfile is refused by all but a second merge, which
# completes the first and does not go on with another device.

# JSON is asked in Perl, whose variables are not the shell's
# shellcheck disable=SC2016 source=tests/host/lib.sh
. "${0%/*}/lib.sh"

image pristine 2000384 # 3907 sectors: 1953 units of 1024, 489 of 4096, the last one partial
cc -shared -fPIC -O1 -D_GNU_SOURCE -o cutfiles.so "$top/tests/host/cutfiles.c" -ldl || exit 1

# fresh ARGUMENTS: rdo and c; the image they make is in wanted
fresh() {
	cp pristine rdo
	# shellcheck disable=SC2086
	makecow c $1
	cowfile image --rdo rdo --cow c --out wanted
	# format 1 leaves out the tail
	[ "$(stat -c %s wanted)" -eq 2000384 ] || tail -c 512 rdo >>wanted
}

for arguments in "--units 0,5-90,200-300/3,last" "--units all" "--units 1 --zero-units 7,last" "--units 3 --mapunit 64K" \
	"--units 3,9-20 --doffset 1M" "--format 1 --units 0,5-90,1000-1200/3,last" "--format 1 --units all" \
	"--units 4 --dirty --set cowused=9"; do
	fresh "$arguments"
	exits 0 "merge: $arguments" cowsetup merge --batch-mode rdo c
	says 'c: merged' "says so: $arguments"
	runs "the device has it all: $arguments" cmp rdo wanted
	runs "the cowfile is in order and belongs to it: $arguments" cowfile dump --rdo rdo c
	is "$(cowhead c record)" none "without a record of the merge: $arguments"
	is "$(cowhead c popcount cowused dirty incompat)" "0 0 0$( [ "$(cowhead c format)" = 1 ] && echo ' ' || echo ' 0x0')" \
		"and is empty: $arguments"
	exits 0 "by check, too: $arguments" cowsetup check --rdo rdo c
	[[ $out != *note* ]]
	ok $? "without data that a repair would find: $arguments"
	[ "$(stat -c %b c)" -le 64 ]
	ok $? "and takes no space: $arguments"
	exits 0 "nothing to merge again: $arguments" cowsetup merge rdo c
	says 'nothing to merge' "says so: again: $arguments"
done

# where no holes can be made, what was not there is not written all the same
cc -shared -fPIC -O1 -D_GNU_SOURCE -o lacks.so "$top/tests/host/lacks.c" -ldl || exit 1
for arguments in "--units 5-9,last" "--format 1 --units 5-9,last"; do
	fresh "$arguments"
	before=$(stat -c %b c)
	exits 0 "merge without holes: $arguments" env LACKS=holes LD_PRELOAD="$tmp/lacks.so" \
		"$top/build/tools/cowsetup" merge --batch-mode rdo c
	runs "the device has it all: without holes: $arguments" cmp rdo wanted
	exits 0 "it is in order, and empty: without holes: $arguments" cowsetup check --rdo rdo c
	[[ $out != *note* ]] && [ "$(cowhead c popcount)" = 0 ]
	ok $? "to the last byte: without holes: $arguments"
	[ "$(stat -c %b c)" -le $((before + 64)) ]
	ok $? "it has not grown: without holes: $arguments" || diag "$before blocks, and then $(stat -c %b c)"
done

# --- What it refuses ----------------------------------------------------------------------------------------

# untouched NAME: rdo and c are as they were
untouched() { cmp rdo pristine && cmp c keep; ok $? "nothing is touched: $1"; }

fresh "--units 3-9"
cp c keep
exits 1 "without a confirmation" cowsetup merge rdo c
untouched "no confirmation"
says 'overwrite 7 units \(28 KiB\) of rdo' "says what would happen"
for answer in yes Y NO "YES please"; do
	out=$("$tool" merge rdo c 2>&1 <<<"$answer")
	is "$?" 1 "answered $answer"
done
untouched "not YES"
out=$("$tool" merge rdo c 2>&1 <<<YES)
is "$?" 0 "answered YES"
runs "the device has it all: YES" cmp rdo wanted

fresh "--units 3-9"
printf x | dd of=rdo conv=notrunc status=none
exits 4 "another device" cowsetup merge -q rdo c
says 'belongs to another read-only device, or rdo has changed: the cowfile was made for fingerprint 0x[0-9a-f]{16}, and rdo has 0x' "says so: another"
head -c 1000000 pristine >short
exits 4 "a device of another size" cowsetup merge -q short c
exits 4 "the arguments the wrong way round" cowsetup merge -q c pristine
says 'the read-only device comes first' "says so: order"
exits 4 "one for both" cowsetup merge -q c c
exits 4 "no such device" cowsetup merge -q nothing c
exits 4 "no such cowfile" cowsetup merge -q pristine nothing
for arguments in "--format 1 --dirty --units 3" "--format 1 --packed --units 3" "--units 3 --set cowused=9" \
	"--units 3 --bad-sector 0" "--units 3,4 --truncate 20000" "--units 3 --flip 511" "--units 3 --set compat_ro=1"; do
	fresh "$arguments"
	cp c keep
	exits 4 "a cowfile that is not in order: $arguments" cowsetup merge -q rdo c
	untouched "$arguments"
done 2>/dev/null
fresh "--units 3"
cp c keep
exec 8<rdo
flock -s 8
exits 5 "a device that another cowsetup has" cowsetup merge -q rdo c
exec 8<c
flock -s 8
exits 5 "a cowfile that another cowsetup has" cowsetup merge -q rdo c
exec 8<&-
untouched "in use"

# --- A power cut at any point -------------------------------------------------------------------------------

plain=$top/build/tools/cowsetup # the compiler's checks don't like to be preloaded

# refused: the driver would not open c, by what is in its head
refused() {
	set -- "$(od -An -tu2 -j4 -N2 c)" "$(od -An -tu4 -j72 -N4 c)"
	[ "$1" -gt 2 ] || { [ "$1" -eq 2 ] && [ "$2" -ne 0 ]; }
}

# survives: whatever there is after a power cut can be completed, with the same device only; prints what is wrong
survives() {
	if ! refused; then
		cowfile dump --rdo rdo c >state || { echo "a cowfile that is neither refused nor in order"; cat state; return; }
		cowfile image --rdo rdo --cow c --out image
		cmp rdo pristine >/dev/null || cmp rdo wanted >/dev/null || echo "a half-merged device, and nothing refuses it"
		cmp -n "$(stat -c %s image)" image wanted || echo "the cowloop device would show something else"
	else
		cp --sparse=always c before
		for other in otherrdo heldrdo; do
			cp $other tried
			cowsetup merge -q tried c >out 2>&1
			[ $? -eq 4 ] || { echo "goes on with another device, $other"; cat out; }
			cmp tried $other && cmp c before
		done
		if ! grep -Eq 'belongs to another read-only device|begun with another device' out; then
			echo "does not say that it is another device"; cat out
		elif [ "$(head -c 10 c | tail -c 6 | od -An -tx1)" = "" ]; then
			echo "no head"
		fi
		cowsetup check c >out 2>&1
		grep -q 'merge was interrupted' out || { echo "check does not know"; cat out; }
		cowsetup repair --force c >out 2>&1 && echo "repair takes it"
	fi
	cowsetup merge -q rdo c >out 2>&1 || { echo "can't be completed"; cat out; }
	cmp rdo wanted || echo "not what it should be when completed"
	cowfile dump --rdo rdo c >state || { echo "not in order when completed"; cat state; }
	grep -q '^popcount=0' state || echo "not empty when completed"
}

for arguments in "--units 0,5-9,200-206/3,last" "--format 1 --units 0,5-9,200-206/3,last"; do
	fresh "$arguments"
	cp c keep
	cp rdo otherrdo
	# a sample of the fingerprint that is in no unit of the cowfile
	printf 'xyz' | dd of=otherrdo bs=1 seek=$((31 * 2 * 4096)) conv=notrunc status=none
	perl -e 'open my $f, "+<", "otherrdo"; for (0 .. 488) { seek $f, $_ * 4096 + 7, 0; print $f "!" }'
	# and one that is in one: unit 7 of 4096, unit 0 of 1024
	cp rdo heldrdo
	printf 'xyz' | dd of=heldrdo bs=1 seek=$(( $(cowhead c format) == 1 ? 520 : 7 * 4096 + 1300)) conv=notrunc status=none
	LD_PRELOAD=$tmp/cutfiles.so CUT_COUNT=count "$plain" merge -q rdo c >/dev/null
	cmp rdo wanted
	ok $? "merge with nothing cut: $arguments"
	count=$(cat count) wrong=0 cuts=0
	[ "$count" -gt 15 ]
	ok $? "there is something to cut: $count changes"
	for lose in none all 1 2 3; do
		for at in $(seq "$count"); do
			cp pristine rdo
			cp --sparse=always keep c
			LD_PRELOAD=$tmp/cutfiles.so CUT_AT=$at CUT_LOSE=$lose "$plain" merge -q rdo c >/dev/null 2>&1
			[ $? -eq 77 ] || { diag "not cut at $at"; wrong=$((wrong + 1)); }
			cuts=$((cuts + 1))
			survives >found 2>&1
			[ -s found ] || continue
			wrong=$((wrong + 1))
			[ "$wrong" -gt 5 ] || diag "cut at $at, lost $lose: $(cat found)"
		done
	done
	is "$wrong" 0 "a power cut anywhere: $cuts cuts: $arguments"
done

# cut twice: the second merge, too
fresh "--units 0,5-9,200-206/3,last"
cp c keep
cp rdo otherrdo
perl -e 'open my $f, "+<", "otherrdo"; for (0 .. 488) { seek $f, $_ * 4096 + 7, 0; print $f "!" }'
cp rdo heldrdo
printf 'xyz' | dd of=heldrdo bs=1 seek=30000 conv=notrunc status=none
wrong=0
for at in 4 9 14 18; do
	for again in 1 2 5 8 11; do
		cp pristine rdo
		cp keep c
		LD_PRELOAD=$tmp/cutfiles.so CUT_AT=$at CUT_LOSE=2 "$plain" merge -q rdo c >/dev/null 2>&1
		LD_PRELOAD=$tmp/cutfiles.so CUT_AT=$again CUT_LOSE=all "$plain" merge -q rdo c >/dev/null 2>&1
		survives >found 2>&1
		[ ! -s found ] || { wrong=$((wrong + 1)); diag "cut at $at, then at $again: $(cat found)"; }
	done
done
is "$wrong" 0 "two power cuts"

# --- Damage in the middle of it -----------------------------------------------------------------------------

# spoil OFFSET MASK: of c
spoil() {
	perl -e 'open my $f, "+<", "c" or die; seek $f, $ARGV[0], 0; read $f, my $byte, 1;
		seek $f, $ARGV[0], 0; print $f chr(ord($byte) ^ $ARGV[1])' "$1" "$2"
}

# begun ARGUMENTS: rdo and c in the middle of a merge
begun() {
	fresh "$1"
	cp --sparse=always c keep
	for at in $(seq 40); do
		cp pristine rdo
		cp --sparse=always keep c
		LD_PRELOAD=$tmp/cutfiles.so CUT_AT=$at CUT_LOSE=none "$plain" merge -q rdo c >/dev/null 2>&1
		refused && ! cmp -s rdo pristine && break
	done
	cp --sparse=always c marked
}

for arguments in "--units 0,5-9,200-206/3,last" "--format 1 --units 0,5-9,200-206/3,last"; do
	begun "$arguments"
	exits 4 "repair of what only a merge can complete: $arguments" cowsetup repair c
	says 'a merge was interrupted; run cowsetup merge again' "says so: $arguments"
	[[ $out != *mended* ]]
	ok $? "and nothing else: $arguments"
	runs "and changes nothing: $arguments" cmp c marked
	spoil 48 2 # cowused
	exits 4 "repair of the count: $arguments" cowsetup repair --force c
	says '^c: mended: ' "says so, too: $arguments"
	runs "it is as it was: $arguments" cmp c marked
	exits 0 "and the merge goes on: $arguments" cowsetup merge -q rdo c
	runs "to its end: $arguments" cmp rdo wanted
done
begun "--units 0,5-9,200-206/3,last"
spoil 4096 255
exits 4 "merge with a damaged bitmap" cowsetup merge -q rdo c
says 'see cowsetup repair' "says what to do: bitmap"
exits 4 "repair -n of it" cowsetup repair -n c
says 'would be mended: bitmap sector 0' "says what would be done"
exits 4 "repair of it" cowsetup repair c
says '^c: mended: bitmap sector 0' "mends it"
runs "as it was" cmp c marked
exits 0 "then the merge goes on: bitmap" cowsetup merge -q rdo c
runs "to its end: bitmap" cmp rdo wanted
begun "--units 0,5-9,200-206/3,last"
spoil 511 1
exits 4 "merge with a damaged head" cowsetup merge -q rdo c
exits 4 "repair --force of it" cowsetup repair --force c
says '^c: mended: ' "mends it: head"
runs "as it was: head" cmp c marked
exits 0 "then the merge goes on: head" cowsetup merge -q rdo c
runs "to its end: head" cmp rdo wanted

# --- The record of what the device was ----------------------------------------------------------------------

# record FILE: of the merge: valid, damaged, none
record() { cowfile dump "$1" | sed -n 's/^record=//p'; }

# midway ARGUMENTS OPTIONS: rdo and c, of which a merge has begun
midway() {
	fresh "$1"
	# shellcheck disable=SC2086
	makecow c $1 $2
	cp --sparse=always c keep
}

# torn SEED: rdo, each sector of which is as it was or as it is to be
torn() {
	perl -e 'srand $ARGV[0]; local $/ = \512; open my $a, "<", "pristine"; open my $b, "<", "wanted";
		open my $to, ">", "rdo"; while (defined(my $x = <$a>)) { my $y = <$b>; print $to rand() < 0.5 ? $x : $y }' "$1"
}

# goes_on NAME: the merge does, with rdo
goes_on() {
	exits 0 "goes on: $1" cowsetup merge -q rdo c
	runs "to its end: $1" cmp rdo wanted
}

for arguments in "--units 0,5-9,200-206/3,last" "--units 0,1-9 --mapunit 64K" "--units all" \
	"--format 1 --units 0,5-9,200-206/3,last" "--format 1 --units all" "--format 1 --units 1,3"; do
	# what this cowsetup writes is what the format says, by the other implementation
	begun "$arguments"
	cp c begun
	midway "$arguments" --merging
	is "$(record c)" valid "a merge that is going on has a record: $arguments"
	cmp -n $(( $(od -An -tu1 -j4 -N1 c) == 1 ? 512 : 3584)) -i 512 c begun && [ "$(record begun)" = valid ]
	ok $? "the one that cowsetup writes: $arguments"
	is "$(cowsetup dump --json c | json '"$_->{state} $_->{merge_record}"')" "merging valid" "dump says so: $arguments"
	cowsetup check --rdo rdo c >out
	is "$(grep -c fault: out)" 1 "check has nothing against it but that: $arguments"
	goes_on "nothing written, $arguments"
	for seed in 1 2 3; do
		torn $seed
		cp --sparse=always keep c
		goes_on "torn $seed, $arguments"
	done
	# every sector of a sample, changed. Format 1 goes by the first four blocks.
	torn 4
	cp --sparse=always keep c
	[[ $arguments == *"format 1"* ]] && places='0 512 1024 1536 2048 3584' || places='0 512 3584 28672 32256 1995000'
	for at in $places; do
		cp rdo another
		printf 'xyz' | dd of=another bs=1 seek="$((at + 77))" conv=notrunc status=none
		cp another tried
		exits 4 "another device, that differs at $at: $arguments" cowsetup merge -q tried c
		says "begun with another device than tried, or tried has been changed|belongs to another read-only device" \
			"says so: $at, $arguments"
		runs "it is not touched: $at, $arguments" cmp another tried
		runs "nor is the cowfile: $at, $arguments" cmp c keep
		cowsetup check --rdo another c >out
		grep -Eq '(begun with|belongs to) another read-only device' out
		ok $? "check says so, too: $at, $arguments"
	done
	goes_on "after all that, $arguments"
done

# format 1: the blocks whose bytes add up to 0 are part of its fingerprint. They are zeroes in one device and not in
# the other.
truncate -s 2M blank
cp blank rdo
makecow c --format 1 --units 0-9,400 --merging
cp --sparse=always c keep
cp rdo another
printf 'xyz' | dd of=another bs=1 seek=5000 conv=notrunc status=none
exits 4 "another device, zeroes in the first" cowsetup merge -q another c
says 'begun with another device than another.*sector 8 ' "says where"
cp rdo odd # its first block adds up to 256
printf '\200\200' | dd of=odd bs=1 seek=511 conv=notrunc status=none
cp --sparse=always keep c
exits 0 "a block that adds up to 0" cowsetup merge -q odd c
cp blank odd
printf '\200\200' | dd of=odd bs=1 seek=511 conv=notrunc status=none
cp --sparse=always keep c
dd if=c of=odd bs=512 skip=8 count=1 conv=notrunc status=none # unit 0 is at 4096
exits 0 "one that does not any more, since half of it has been merged" cowsetup merge -q odd c

# one begun by a cowsetup that had no records
for format in 1 2; do
	midway "--format $format --units 0,5-9" "--merging --no-record"
	is "$(cowsetup dump --json c | json '$_->{merge_record}')" none "no record: dump, format $format"
	cowsetup check c >out
	grep -q 'note: there is no record of the merge' out
	ok $? "check says so: no record, format $format"
	torn 5
	exits 0 "it goes on: no record, format $format" cowsetup merge -q rdo c
	says 'begun by an older cowsetup, which left no record' "with a warning: format $format"
	runs "to its end: no record, format $format" cmp rdo wanted

	midway "--format $format --units 0,5-9" "--merging --flip 600"
	cp rdo keeprdo
	is "$(cowsetup dump --json c | json '$_->{merge_record}')" damaged "a damaged record: dump, format $format"
	exits 4 "is refused: format $format" cowsetup merge -q rdo c
	says 'the record of the merge is damaged.*see cowsetup repair' "says so: damaged record, format $format"
	is "$(cowsetup check --json --rdo rdo c | json 'join " ", map { $_->{id} } @{$_->{faults}}')" "merging merge-record" \
		"check has it, format $format"
	exits 4 "repair leaves it, format $format" cowsetup repair c
	says 'not mended: the record of the merge is damaged.*--force removes it' "says what would help, format $format"
	exits 4 "repair -n -f, format $format" cowsetup repair -n -f c
	cmp rdo keeprdo && cmp c keep
	ok $? "nothing is touched so far, format $format"
	exits 4 "repair --force, format $format" cowsetup repair --force c
	says 'mended: the record of the merge, damaged, now removed' "removes it, format $format"
	is "$(record c)" none "then there is none, format $format"
	goes_on "without its record, format $format"

	# a power cut when it has been written, and the mark has not
	midway "--format $format --units 0,5-9" --stale-record
	exits 0 "a record that was left: check, format $format" cowsetup check --rdo rdo c
	says 'note: there is the record of a merge that did not come to begin' "says so: left, format $format"
	exits 0 "repair of it, format $format" cowsetup repair c
	says 'mended: the record of a merge that did not come to begin' "removes it: left, format $format"
	is "$(record c)" none "so that there is none: left, format $format"
	cp --sparse=always keep c
	goes_on "a record that was left, format $format"
	is "$(record c)" none "so that there is none: merged, format $format"
done

# ^C, as soon as it has begun
image bigrdo 200M
cowfile make --rdo bigrdo --cow bigcow --units all
"$tool" merge -q bigrdo bigcow >out 2>&1 &
merger=$!
# it looks often: the merge may take no longer than a wink
has_begun() { [ "$(od -An -tu4 -j72 -N4 bigcow)" -eq 1 ]; }
until has_begun || ! kill -0 "$merger" 2>/dev/null; do
	sleep 0.01
done
kill -INT "$merger"
wait "$merger"
status=$?
if [ "$(od -An -tu4 -j72 -N4 bigcow)" -eq 0 ]; then
	skip "it was too fast"
	skip "it was too fast"
else
	is "$status" 1 "interrupted"
	like "$(cat out)" 'not complete; run the same command again' "says what to do"
fi
exits 0 "completed" cowsetup merge -q bigrdo bigcow
runs "in order: interrupted" cowfile dump --rdo bigrdo bigcow

done_testing
