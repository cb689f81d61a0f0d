#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowroot= with anything in it, in the shells that an initramfs may have: it is taken apart or refused, and nothing of it is run or
# expanded. COWROOT_COUNT=1000000 for more.

# shellcheck source=tests/host/lib.sh
. "${0%/*}/lib.sh"

count=${COWROOT_COUNT:-20000} seed=${COWFUZZ_SEED:-$RANDOM}
diag "COWFUZZ_SEED=$seed"

# arguments, in a line each: pieces of right ones, and what a shell might do something with
perl -we 'use strict; srand $ARGV[1];
	my @pieces = (",", ",", ":", ":/", "=", "/dev/sda1", "UUID=a-b", "LABEL=x", "PARTUUID=1", "tmpfs", "tmpfs:2G", "/root.img", "limit=4M",
		"read-only", "repair", "force", "name=t", "name=", "timeout=5", "timeout=x", "keep-root", "label=", "mapunit=64K", "queue-if-no-space",
		"\\040", "\\054", "\\0", "\\", "\$(touch run)", "`touch run`", ";touch run;", "*", "?", "[a-z]", "~", "\$HOME", "\${x:=y}", "\"", "\x27",
		"|touch run", "&", "--", "-", "%s%n", "\xc2\x9b", "\xff", "\e[");
	for (1 .. $ARGV[0]) {
		my $text = rand() < 0.5 ? "/dev/sda1,tmpfs" : "";
		$text .= $pieces[rand @pieces] for 0 .. rand 8;
		print "$text\n";
	}' "$count" "$seed" >arguments

cat >parse <<'EOS'
. "$1"
n=0 right=0 wrong=0
while IFS= read -r cowroot_argument; do
	n=$((n + 1))
	cowroot_parse 2>/dev/null || continue
	right=$((right + 1))
	case $cowroot in
	/dev/mapper/?*) ;;
	*) wrong=$((wrong + 1)) ;;
	esac
	case $cowroot_timeout in
	*[!0-9]* | '') wrong=$((wrong + 1)) ;;
	esac
	case $cowroot_options in
	'' | ' --'*) ;;
	*) wrong=$((wrong + 1)) ;;
	esac
done <arguments
echo "$n $wrong"
[ "$right" -gt $((n / 100)) ] && [ "$right" -lt "$n" ]
EOS
for shell in dash "busybox sh" "bash --posix"; do
	command -v "${shell%% *}" >/dev/null || { skip "there is no ${shell%% *}"; continue; }
	ls >before
	# shellcheck disable=SC2086 # with its option
	out=$($shell ./parse "$top/initramfs/cowroot" 2>&1)
	ok $? "some are right, and some are not: $shell"
	is "$out" "$count 0" "all are taken apart or refused: $shell"
	is "$(ls)" "$(cat before)" "and nothing is made: $shell"
done

done_testing
