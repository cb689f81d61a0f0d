#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup reads hostile files: the corpus, and mutations of it, go through dump, map, check, repair, pack and unpack,
# which were built with the compiler's checks. `make check-fuzz' does it for longer, and looks for more.

# shellcheck source=tests/host/lib.sh
. "${0%/*}/lib.sh"

fuzz=$top/build/tools-asan/cowfuzz
[ -x "$fuzz" ] || plan skip_all "there is no $fuzz; make check builds it"

seeds=$(for _ in 1 2; do env -u COWFUZZ_SEED "$fuzz" 1 "$top"/tests/fuzz/corpus/seed-01; done | grep -o 'COWFUZZ_SEED=[0-9]*' | sort -u)
is "$(wc -l <<<"$seeds")" 2 "the mutations are others each time, and it is said which"

# whatever it may allocate for a head that lies about sizes, it must not need it
seed=${COWFUZZ_SEED:-$RANDOM}
diag "COWFUZZ_SEED=$seed"
runs "the corpus, and ${COWFUZZ_COUNT:=10000} mutations" \
	env COWFUZZ_SEED="$seed" ASAN_OPTIONS=max_allocation_size_mb=256:exitcode=99 \
	timeout 3000 "$fuzz" "$COWFUZZ_COUNT" "$top"/tests/fuzz/corpus/*

# what users have mounted
mountfuzz=$top/build/tools-asan/mountfuzz
if [ -x "$mountfuzz" ]; then
	runs "mounts of any names, as the kernel writes them, and with bytes changed" \
		env COWFUZZ_SEED="$seed" timeout 300 "$mountfuzz" $((COWFUZZ_COUNT / 10))
else
	skip "there is no $mountfuzz; make check builds it"
fi

# what is in /etc/cowtab
tabfuzz=$top/build/tools-asan/tabfuzz
if [ -x "$tabfuzz" ]; then
	runs "tables of any kind" env TABFUZZ_SEED="$seed" timeout 300 "$tabfuzz" "$COWFUZZ_COUNT"
else
	skip "there is no $tabfuzz; make check builds it"
fi

# the same from outside, for what can't be done in one process: other lengths, stdin, random bytes
image rdo 2000384
makecow c --units 0,5-90,200-300/3,last
cowsetup pack --compress zstd c p.zst
cowsetup pack --compress gzip c p.gz
makecow d --format 1 --units 0-100 --dirty

# mutant SEED FILE: one of them with a few bytes changed, or nothing but random bytes
mutant() {
	perl -we 'use strict; my ($seed, $to) = @ARGV; srand $seed; local $/;
		my $from = (qw(c d p.zst p.gz), undef)[$seed % 5];
		my $data = join "", map { chr rand 256 } 1 .. 1000 + rand 20000;
		if ($from) { open my $f, "<", $from or die; $data = <$f> }
		substr $data, int rand($seed & 8 ? length($data) : 128), 1, chr rand 256 for 1 .. 1 + rand 8;
		open my $out, ">", $to or die; print $out $data; close $out or die' "$@"
}

wrong=0 refused=0
for i in $(seq 60); do
	mutant $((seed + i)) bad || { wrong=$((wrong + 1)); continue; }
	for command in "dump bad" "map --json bad" "check --rdo rdo bad" "unpack --force bad u" "unpack --force - u" \
		"merge -q copy bad" "upgrade --rdo rdo bad n" "repair -f bad"; do
		[[ $command == merge* ]] && cp --sparse=always rdo copy
		# shellcheck disable=SC2086
		timeout 600 "$tool" $command <bad >out 2>err
		status=$?
		rm -f u n
		[ "$status" -eq 0 ] || refused=$((refused + 1))
		[ "$status" -le 5 ] && continue
		wrong=$((wrong + 1))
		diag "seed $((seed + i)): cowsetup $command: exit status $status"
		diag "$(tail -n 20 err)"
	done
done
is "$wrong" 0 "480 commands on mutations of whole files"
[ "$refused" -gt 100 ] && [ "$refused" -lt 480 ]
ok $? "some of which are refused, and some are not"
diag "$refused refused"

done_testing
