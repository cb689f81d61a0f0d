#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Unit tests of what the module keeps in memory, from its own source: tests/unit has as much of the kernel as that needs. Built
# with the compiler's checks.
#
#   tests/host/unit.t [SEED]     (default: another one each time)

set -euo pipefail

cd "$(dirname "$(realpath "$0")")/../.."
[ -x build/unit/bitmap ] || { echo "1..0 # SKIP there is no build/unit/bitmap; make check builds it"; exit; }
seed=${1:-$RANDOM}
echo "# seed $seed"
export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
exec build/unit/bitmap "$seed"
