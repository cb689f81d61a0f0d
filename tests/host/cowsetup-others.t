#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup among other users: who may read what it makes, whose files it uses, what it does not open at all, and what it prints.
# Most of that needs root, to be one user after the other.

# shellcheck source=tests/host/lib.sh
. "${0%/*}/lib.sh"

image rdo 2000384
mode() { stat -c %a "$1"; }

# --- For its owner alone --------------------------------------------------------------------------------------

umask 000
exits 0 "format" cowsetup format rdo c
is "$(mode c)" 600 "a new cowfile is for its owner alone"
exits 0 "pack" cowsetup pack c p
is "$(mode p)" 600 "a packed one likewise"
exits 0 "unpack" cowsetup unpack p u
is "$(mode u)" 600 "and one that is unpacked"
makecow old --format 1 --units 3
chmod 600 old
exits 0 "upgrade" cowsetup upgrade --rdo rdo old new
is "$(mode new)" 600 "and what it is upgraded to"
chmod 640 c
exits 0 "pack one that a group may read" cowsetup pack c p640
is "$(mode p640)" 640 "it has the permissions of the cowfile"
exits 0 "pack over one that all may read" eval 'chmod 644 p && cowsetup pack --force c p'
is "$(mode p)" 640 "and no more than that"
chmod 600 p
exits 0 "pack over one that its owner may read" cowsetup pack --force c p
is "$(mode p)" 600 "or than what it replaces had"
chmod 600 c
umask 022

# --- What is no file ------------------------------------------------------------------------------------------

# opening these would do something: wait for a writer; and a device might reset a machine
mkfifo fifo
for command in "format rdo fifo" "format fifo c9" "dump fifo" "check fifo" "check --rdo fifo c" "pack fifo p9" "probe fifo" \
	"dump /dev/null" "format rdo /dev/zero" "unpack /dev/zero u9" "pack /dev/zero p9" "dump ." "merge -q fifo c"; do
	# shellcheck disable=SC2086
	exits 4 "no file: $command" timeout 60 "$tool" $command
	says 'neither a file nor a block device' "says so: $command"
done
strace=$(command -v strace)
if [ "$strace" ]; then
	"$strace" -f -e trace=open,openat -o trace "$tool" dump /dev/zero 2>/dev/null
	is "$(grep '"/dev/zero"' trace | grep -cv O_PATH)" 0 "and is not opened"
	# whatever is at a path by then: what was examined is what is opened
	"$strace" -f -e trace=open,openat -o trace "$tool" dump ./c >/dev/null 2>&1
	is "$(grep -c '"./c".*O_PATH' trace) $(grep '"./c"' trace | grep -cv O_PATH)" "1 0" "nor is a path opened that may have changed since"
else
	skip "there is no strace"
fi
exits 4 "what is not there" cowsetup dump nothing
says '^cowsetup: nothing: No such file or directory' "says so"
"$tool" unpack --force fifo u2 & cat p >fifo
wait $!
ok $? "a packed file may come from a pipe"

# --- What is printed ------------------------------------------------------------------------------------------

# a title for the terminal's window, a second line that looks like ours, and the same by a control character of UTF-8
esc=$'a\e]0;title\a\nb\u009b31m\u202ec'
shown='a\\x1b\]0;title\\x07\\x0ab\\xc2\\x9b31m\\xe2\\x80\\xaec'
# controls: how many lines of what was printed have characters that a terminal takes for something else
controls() { printf '%s' "$out" | perl -CS -ne '$n++ if /[\x00-\x09\x0b-\x1f\x7f-\x9f\x{202a}-\x{202e}]/; END { print $n // 0, "\n" }'; }
cp c "$esc"
makecow label --label "$esc" --rdospec "/$esc" --units 1
for command in "dump $esc" "dump label" "check --rdo rdo $esc" "map --json $esc" "repair $esc" "dump nothing-$esc" "$esc" \
	"format rdo $esc" "dump --json label" "dump --json $esc" "pack -v --force --progress-json $esc p" "merge copy $esc" "upgrade --rdo rdo $esc"; do
	cp rdo copy
	IFS=' ' read -r -d '' -a words <<<"$command"
	words[-1]=${words[-1]%$'\n'}
	out=$("$tool" "${words[@]}" 2>&1 <<<YES)
	is "$(controls)" 0 "no control characters: ${command%%"$esc"*}" || diag "$(cat -v <<<"$out")"
done
exits 0 "dump" cowsetup dump label
says "$shown" "they are shown"
# shellcheck disable=SC2016 # Perl's
is "$(cowsetup dump --json label | json 'utf8::encode($_->{label}); $_->{label}')" "$esc" "JSON has what is there"
exits 0 "what is UTF-8 is as it is" cowsetup format rdo $'Gr\u00f6\u00dfe \u65e5\u672c \U1f600'
exits 0 "printed" cowsetup check $'Gr\u00f6\u00dfe \u65e5\u672c \U1f600'
says $'Gr\u00f6\u00dfe \u65e5\u672c \U1f600' "all of it"

# --- Whose it is ----------------------------------------------------------------------------------------------

if [ "$(id -u)" != 0 ]; then
	skip "other users: needs root"
	done_testing
fi
chmod 755 .
mkdir -m 1777 shared
# by USER COMMAND...
by() { perl -e '$) = $( = $ARGV[0]; $> = $< = shift; exec @ARGV' "$@"; }
cowsetup format rdo shared/roots
is "$(by 1000 cat shared/roots 2>&1 | head -c 4)" "cat:" "another user reads nothing of a new cowfile"

by 1000 sh -c ': >shared/made; chmod 666 shared/made'
exits 2 "a file that somebody else made" cowsetup format rdo shared/made
says 'shared/made: belongs to .*1000.*--force \(in cowtab and cowroot=: force\) uses it' "says whose it is, and what to do"
is "$(stat -c '%s %u' shared/made)" "0 1000" "it is as it was"
exits 2 "and to unpack into" cowsetup unpack p shared/made
is "$(stat -c '%s %u' shared/made)" "0 1000" "it is as it was: unpack"
exits 2 "and to upgrade into" cowsetup upgrade --rdo rdo old shared/made
exits 0 "with --force" cowsetup format --force rdo shared/made
by 1000 sh -c ': >shared/sudo'
exits 0 "the caller's, as sudo says" env SUDO_UID=1000 "$tool" format rdo shared/sudo
by 1000 sh -c ': >shared/sudo2'
exits 2 "but not another's" env SUDO_UID=1001 "$tool" format rdo shared/sudo2
exits 2 "nor what is no user" env SUDO_UID=1000x "$tool" format rdo shared/sudo2
exits 2 "a user does not say who the caller is" by 1001 env SUDO_UID=1000 "$tool" format rdo shared/sudo2
for mode in 602 666 660; do
	: >shared/mine
	chown 0:7 shared/mine
	chmod $mode shared/mine
	exits 2 "a file of one's own, that others may write: $mode" cowsetup format rdo shared/mine
	says "others may write it \(mode 0$mode\)" "says so: $mode"
	rm shared/mine
done
: >shared/mine
chmod 664 shared/mine
exits 0 "but root's own group may" cowsetup format rdo shared/mine

# links that somebody else made, to files of root's
: >empty
by 1000 ln -s "$PWD/empty" shared/link
for command in "format rdo shared/link" "unpack p shared/link" "upgrade --rdo rdo old shared/link"; do
	# shellcheck disable=SC2086
	exits 2 "another's link: $command" cowsetup $command
	says 'shared/link is a symbolic link that .* has made' "says so: $command"
	is "$(stat -c %s empty)" 0 "what it leads to stays: $command"
done
by 1000 ln -s "$PWD/not-yet" shared/dangling
exits 2 "another's link to nothing" cowsetup pack c shared/dangling
fails "nothing is made: format" cowsetup format rdo shared/dangling
[ ! -e not-yet ]
ok $? "and nothing is there"
ln -s shared/link two
exits 2 "one's own link to another's" cowsetup unpack p two
ln -s "$PWD/empty" own
exits 0 "one's own link to one's own file" cowsetup unpack p own
cmp -s empty u && [ -h own ]
ok $? "is followed"

# what is packed is no more another's than the cowfile was
cp p shared/replaced
chown 1000 shared/replaced
exits 0 "pack over another's file" cowsetup pack --force c shared/replaced
is "$(stat -c '%u %a' shared/replaced)" "0 600" "does not give the cowfile to him"
says 'its owner cannot be kept' "which is said"

done_testing
