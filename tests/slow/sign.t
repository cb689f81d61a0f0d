#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Signed modules, as README says it is done: what `make install' signs is refused by a kernel that does not know the key, and
# taken by one that was booted with Secure Boot and has it from the machine's owner.

set -u

cd "$(dirname "$(realpath "$0")")/../.." || exit 1
PATH=$PATH:/usr/sbin:/sbin
# shellcheck source=tests/lib.sh
. tests/lib.sh
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

scripts/setup build vm openssl
release='' kdir=''
eval "$(scripts/kernel "${KERNEL:-}")"
# as in README
key() {
	openssl req -new -x509 -newkey rsa:2048 -nodes -days 3650 -subj "/CN=$1/" -addext extendedKeyUsage=codeSigning \
		-outform DER -out "$tmp/$1.der" -keyout "$tmp/$1.priv" 2>"$tmp/out"
}
key owner && key stranger
said $? "keys are made"

# signed NAME: what make install makes with that key
signed() {
	make -s install-module KDIR="$kdir" INSTALL_MOD_PATH="$tmp/root.$1" SIGN_KEY="$tmp/$1.priv" SIGN_CERT="$tmp/$1.der" \
		>"$tmp/out" 2>&1 && find "$tmp/root.$1" -name 'dm-cowloop.ko*' -exec cp {} "$tmp/$1.ko" \;
}
signed stranger
said $? "make install signs the module"
is=$(modinfo -F signer "$tmp/stranger.ko" 2>"$tmp/out")
[ "$is" = stranger ]
said $? "with the key it is told: $is"
signed owner
said $? "and with another one"
[ "$(modinfo -F signer "$tmp/owner.ko")" = owner ] && [ "$(grep -c 'Module signature appended' -a "$tmp/owner.ko")" = 1 ]
said $? "which it has then, and no other"
rm -f "build/$release/dm-cowloop.ko"
make -s modules KDIR="$kdir" >"$tmp/out" 2>&1 && cp "build/$release/dm-cowloop.ko" "$tmp/unsigned.ko" &&
	! modinfo -F signer "$tmp/unsigned.ko" | grep .
said $? "make modules signs nothing"

# modprobe goes by the name of the file
cp "$tmp/owner.ko" "$tmp/dm-cowloop.ko"

# vm TITLE OPTION... -- ARG...: the guest's part
vm() {
	local title=$1 options=()
	shift
	while [ "$1" != -- ]; do options+=("$1"); shift; done
	shift
	scripts/vm ${KERNEL:+--kernel "$KERNEL"} --no-load --module "$tmp/dm-cowloop.ko" \
		--file "$tmp/unsigned.ko:/m/unsigned.ko" --file "$tmp/stranger.ko:/m/stranger.ko" --file "$tmp/owner.ko:/m/owner.ko" "${options[@]}" \
		tests/slow/sign-guest "$@" >"$tmp/out" 2>&1
	local status=$?
	# firmware and boot loader speak up on all serial ports
	grep -aE '^(ok|not ok|#|1\.\.)' "$tmp/out" | sed 's/^/    /'
	said $status "$title"
}
vm "a kernel that insists on signatures" --append module.sig_enforce=1 -- enforced
vm "Secure Boot, and the owner's key" --secure-boot "$tmp/owner.der" --timeout 1800 -- secure-boot

echo "1..$tap_count"
[ $tap_failed = 0 ]
