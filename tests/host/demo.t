#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The demo does what it says: on a small image of one's own, here a disk with a partition table.

set -uo pipefail

cd "$(dirname "$(realpath "$0")")/../.." || exit 1
# shellcheck source=tests/lib.sh
. tests/lib.sh
PATH=$PATH:/usr/sbin:/sbin
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

plan 6
truncate -s 33M "$tmp/disk"
echo 'start=2048, type=83' | sfdisk -q "$tmp/disk"
truncate -s 32M "$tmp/fs"
mke2fs -q -t ext4 -b 4096 -d tests "$tmp/fs"
dd if="$tmp/fs" of="$tmp/disk" bs=1M seek=1 conv=notrunc status=none
before=$(sha256sum <"$tmp/disk")

IMAGE=$tmp/disk scripts/demo >"$tmp/out" 2>&1
said $? 'the demo runs'
[ "$(grep -cE '^ +/dev/mapper/(alice|bob)$' "$tmp/out")" = 4 ]
said $? 'it opens two devices, twice'
[ "$(grep -cE '(alice|bob) +32 MiB +[1-9][0-9.]* [KM]iB +[0-9.]+ [KMGT]iB +[0-9.]+% dirty rw +/dev/vda1 /tmp/(alice|bob).cow$' "$tmp/out")" = 2 ]
said $? 'and what is in both cowfiles'
grep -q 'as it was' "$tmp/out" && grep -q 'What to try next' "$tmp/out"
said $? 'and that the image has not changed, and goes on from there'
[ "$(sha256sum <"$tmp/disk")" = "$before" ]
said $? 'it has not'

IMAGE=$tmp/none scripts/demo >"$tmp/out" 2>&1
[ $? = 1 ] && grep -q 'none: not a file that can be read' "$tmp/out"
said $? 'an image that is not there is refused'
