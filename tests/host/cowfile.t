#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
#
# The tests' own implementation of the cowfile formats agrees with figures
# worked out by hand, reads what it writes, and notices every broken rule.

exec perl "${0%/*}/../cowfile.pl" selftest
