#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
# vm: --smp 2 --mem 1G --timeout 3600
#
# Cowfiles that may be anything, and that are changed while they are open: wrong data or errors, never a fault of the
# kernel. COUNT of them, 300 unless told otherwise; make check-hostile takes 10,000 to the debug kernel. A SEED of
# its own each time; that of a run that failed makes the same again: tests/hostile.t COUNT=1000 SEED=17

# shellcheck source=/dev/null
. /cowloop/tests/lib.sh
cd /tmp || exit 1

COUNT=300
SEED=$(od -An -N2 -tu2 /dev/urandom | tr -d ' ')
for arg; do
	case $arg in
	COUNT=[0-9]* | SEED=[0-9]*) eval "$arg" ;;
	*) echo "Bail out! what is $arg?"; exit 1 ;;
	esac
done

modprobe dm-cowloop
modprobe brd rd_nr=2 rd_size=327680
# some of rdo: what is in the fingerprints, and zeroes
cowtest io /dev/ram0 0 1M --write --stamp 7
cowtest io /dev/ram0 40M 64K --write --stamp 8
diag "SEED=$SEED"
out='' # what exits() leaves
exits 0 "$COUNT cowfiles" hostile "$COUNT" "$SEED" /dev/ram0 /dev/ram1
diag "$out"

# Both ways were gone, often.
opened=$(echo "$out" | sed -n 's/^opened=\([0-9]*\) .*/\1/p')
refused=$(echo "$out" | sed -n 's/.* refused=\([0-9]*\) .*/\1/p')
[ "${opened:-0}" -gt $((COUNT / 4)) ] && [ "${refused:-0}" -gt $((COUNT / 5)) ]
ok $? "some were opened, some were refused"

# A good cowfile is taken afterwards as ever.
dd if=/dev/zero of=/dev/ram1 bs=1M count=4 oflag=direct status=none
dmsetup create rdo --table '0 16384 linear /dev/ram0 0'
cowopen t /dev/mapper/rdo /dev/ram1
runs "a good one afterwards" cowtest io /dev/mapper/t 512 1M --write --stamp 9
dmsetup remove t
is "$(cowhead /dev/ram1 dirty cowused popcount)" "0 257 257" "which is clean in the end"

dmsetup remove rdo
done_testing
