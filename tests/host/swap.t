#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Swap on a cowloop device, in a VM with too little memory, while other writes go through the same device: slow, but
# never stuck, and nothing is lost. The swap space is cut into pieces that lie in as many regions of the bitmap, so
# that swapping a page out may need another region loaded.

set -uo pipefail

cd "$(dirname "$(realpath "$0")")/../.." || exit 1
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

truncate --size 40G "$tmp/rdo"
truncate --size 41G "$tmp/cow"
# KASAN takes a part for itself
mem=600M
[ "${KERNEL:-}" != debug ] || mem=1G
scripts/vm --mem $mem --timeout 900 --disk "$tmp/rdo,readonly=on" --disk "$tmp/cow" tests/host/swap-guest
