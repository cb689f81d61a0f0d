#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup reads hostile files: the corpus, and mutations of it, go through dump, map, check, repair, pack and unpack,
# which were built with the compiler's checks. `make check-fuzz' does it for longer, and looks for more.

# shellcheck source=tests/host/lib.sh
. "${0%/*}/lib.sh"

fuzz=$top/build/tools-asan/cowfuzz
[ -x "$fuzz" ] || plan skip_all "there is no $fuzz; make check builds it"

# whatever it may allocate for a head that lies about sizes, it must not need it
seed=${COWFUZZ_SEED:-$RANDOM}
diag "COWFUZZ_SEED=$seed"
runs "the corpus, and ${COWFUZZ_COUNT:=10000} mutations" \
	env COWFUZZ_SEED="$seed" ASAN_OPTIONS=max_allocation_size_mb=256:exitcode=99 \
	timeout 300 "$fuzz" "$COWFUZZ_COUNT" "$top"/tests/fuzz/corpus/*

# the same from outside, for what can't be done in one process: other lengths, stdin, random bytes
image rdo 2000384
makecow c --units 0,5-90,200-300/3,last
cowsetup pack --compress zstd c p.zst
cowsetup pack --compress gzip c p.gz
makecow d --format 1 --units 0-100 --dirty
wrong=0
for i in $(seq 60); do
	perl -e 'srand $ARGV[0]; local $/; my @files = map { open my $f, "<", $_ or die; <$f> } qw(c d p.zst p.gz);
		$_ = $files[$ARGV[0] % 5] // join "", map { chr rand 256 } 1 .. 128 + rand 20000;
		substr $_, int rand(length > 128 && $ARGV[0] & 8 ? length : 128), 1, chr rand 256 for 1 .. 1 + rand 8;
		open my $out, ">", "bad"; print $out $_' "$((seed + i))"
	for command in "dump bad" "map --json bad" "check --rdo rdo bad" "unpack --force bad u" "unpack --force - u" \
		"merge -q copy bad" "upgrade --rdo rdo bad n" "repair -f bad"; do
		[[ $command == merge* ]] && cp --sparse=always rdo copy
		# shellcheck disable=SC2086
		timeout 20 "$tool" $command <bad >out 2>err
		status=$?
		rm -f u n
		[ "$status" -le 5 ] && continue
		wrong=$((wrong + 1))
		diag "seed $((seed + i)): cowsetup $command: exit status $status"
		diag "$(tail -n 20 err)"
	done
done
is "$wrong" 0 "480 commands on mutations of whole files"

done_testing
