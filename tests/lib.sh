# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=dash
#
# What the tests that run in the VM share: TAP, and short names for what they do all the time.
# To be sourced:  . /cowloop/tests/lib.sh

tap_count=0
tap_failed=0
tap_plan=''

# plan COUNT: how many there will be, when known beforehand; plan skip_all REASON: none
plan() {
	case $1 in
	skip_all) shift; echo "1..0 # SKIP $*"; exit 0 ;;
	*) tap_plan=$1; echo "1..$1" ;;
	esac
}

# done_testing: last of all; the script's exit status is then that of the tests
done_testing() {
	[ -n "$tap_plan" ] || echo "1..$tap_count"
	[ "$tap_count" -eq "${tap_plan:-$tap_count}" ] || exit 1
	tap_left=$(dmsetup ls --target cowloop 2>/dev/null | grep -v '^No devices')
	[ -z "$tap_left" ] || { diag "left behind: $tap_left"; exit 1; }
	[ "$tap_failed" -eq 0 ]
	exit
}

diag() { printf '%s\n' "$*" | sed 's/^/# /'; }

# ok STATUS NAME: passes when STATUS is 0, as in:  cmp a b; ok $? "a and b are the same"
ok() {
	tap_count=$((tap_count + 1))
	[ "$1" -eq 0 ] && echo "ok $tap_count - $2" && return 0
	tap_failed=$((tap_failed + 1))
	echo "not ok $tap_count - $2"
	return 1
}

# said STATUS NAME: like ok, and shows the end of what was said, which is in $tmp/out, when not
# shellcheck disable=SC2154 # that of the test
said() { ok "$1" "$2" || { tail -n 50 "$tmp/out" | sed 's/^/# /'; return 1; }; }

# is GOT WANT NAME
is() {
	[ "$1" = "$2" ]
	ok $? "$3" || { diag "got:  $1"; diag "want: $2"; return 1; }
}

# like GOT REGEX NAME
like() {
	printf '%s\n' "$1" | grep -Eq -- "$2"
	ok $? "$3" || { diag "got:       $1"; diag "not like:  $2"; return 1; }
}

# runs NAME COMMAND...: passes when COMMAND succeeds, and shows what it printed when not
runs() {
	tap_name=$1
	shift
	tap_out=$("$@" 2>&1)
	ok $? "$tap_name" || { diag "$*"; diag "$tap_out"; return 1; }
}

# fails NAME COMMAND...: passes when COMMAND fails
fails() {
	tap_name=$1
	shift
	! tap_out=$("$@" 2>&1)
	ok $? "$tap_name" || { diag "succeeded: $*"; diag "$tap_out"; return 1; }
}

# exits CODE NAME COMMAND...: passes when COMMAND exits with CODE; what it printed is in $out afterwards
exits() {
	tap_want=$1 tap_name=$2
	shift 2
	out=$("$@" 2>&1 </dev/null)
	tap_got=$?
	[ "$tap_got" -eq "$tap_want" ]
	ok $? "$tap_name" || { diag "$*"; diag "exit status $tap_got, not $tap_want"; diag "$out"; return 1; }
}

# says REGEX NAME: passes when what the last command printed is like that
says() { like "$out" "$1" "$2"; }

# await COMMAND...: waits until COMMAND succeeds, and fails when two minutes do not bring that about. A test waits for an
# event by this, and asserts no time: the machine may have other things to do.
await() {
	await_tries=1200
	until "$@"; do
		[ $((await_tries -= 1)) -gt 0 ] || return 1
		sleep 0.1
	done
}

# settles WANT NAME COMMAND...: passes when what COMMAND prints becomes WANT, for what goes on by itself
settles() {
	tap_want=$1 tap_name=$2
	shift 2
	await tap_settled "$@"
	is "$tap_got" "$tap_want" "$tap_name"
}
# when COMMAND fails, it prints nothing better later
tap_settled() { ! tap_got=$("$@") || [ "$tap_got" = "$tap_want" ]; }

# no_space NAME COMMAND...: passes when cowtest, which that is, fails with ENOSPC
no_space() {
	tap_name=$1
	shift
	out=$("$@" 2>&1)
	like "$?: $out" '^3: .*ENOSPC' "$tap_name"
}

skip() { tap_count=$((tap_count + 1)); echo "ok $tap_count # SKIP $*"; }

# --- Devices ------------------------------------------------------------------------------------------------

# loopdev FILE [LOSETUP-OPTION...]: prints the loop device
loopdev() {
	tap_file=$1
	shift
	losetup --find --show "$@" "$tap_file"
}

# sectors DEVICE: prints its size in 512-byte sectors
sectors() { blockdev --getsz "$1"; }

# devno DEVICE: prints its number as tables have it
devno() { printf '%d:%d' "0x$(stat -Lc %t "$1")" "0x$(stat -Lc %T "$1")"; }

# turn NAME TABLE: gives a device another table, whatever is open on it
turn() { dmsetup reload "$1" --table "$2" && dmsetup suspend --noflush --nolockfs "$1" && dmsetup resume "$1"; }

# --- Cowloop ------------------------------------------------------------------------------------------------

# cowfile ARG...: the cowfile formats' other implementation
cowfile() { perl /cowloop/tests/cowfile.pl "$@"; }

# cowfile_server: from now on one process does this for all; arguments must be without blanks
cowfile_server() {
	mkfifo cowfile.ask cowfile.answer
	perl /cowloop/tests/cowfile.pl serve cowfile.out <cowfile.ask >cowfile.answer &
	exec 8>cowfile.ask 9<cowfile.answer
	# shellcheck disable=SC2317 # by those who started the server
	cowfile() {
		echo "$*" >&8
		read -r tap_status <&9
		[ ! -s cowfile.out ] || cat cowfile.out
		return "$tap_status"
	}
}

# cowline RDO COW [OPTION...]: prints a table line that spans as much of RDO as can be used
cowline() {
	tap_rdo=$1 tap_cow=$2
	shift 2
	tap_unit=$(blockdev --getss "$tap_rdo" "$tap_cow" | sort -n | tail -n 1)
	case " $* " in
	*" format:1 "*) [ "$tap_unit" -gt 1024 ] || tap_unit=1024 ;;
	esac
	tap_unit=$((tap_unit / 512))
	echo "0 $(($(sectors "$tap_rdo") / tap_unit * tap_unit)) cowloop $tap_rdo $tap_cow${*:+ $# $*}"
}

# cowopen NAME RDO COW [OPTION...]: makes /dev/mapper/NAME
cowopen() {
	tap_name=$1
	shift
	dmsetup create "$tap_name" --table "$(cowline "$@")"
}

# events: how many the device t has raised
events() { dmsetup info -c --noheadings -o events t; }

# over_meta SECTORS: makes /dev/mapper/meta, over $dev: what is written there is marked as a filesystem's metadata is
# shellcheck disable=SC2154 # the test says what dev is
over_meta() {
	modprobe dm-nth
	dmsetup create meta --table "0 $1 nth $dev"
	dmsetup message meta 0 arm write 1 meta 0
}
# meta COMMAND...: with that for $dev
meta() {
	tap_dev=$dev dev=/dev/mapper/meta
	"$@"
	set -- $?
	dev=$tap_dev
	return "$1"
}

# cowstat NAME FIELD...: prints fields of the status line, by the names in its documentation, in one line
cowstat() {
	tap_name=$1
	shift
	dmsetup status "$tap_name" | awk -v names="$*" '{
		split($6, units, "/")
		f["format"] = $4; f["mapunit"] = $5; f["used"] = units[1]; f["total"] = units[2]
		f["limit"] = $7; f["low_water"] = $8; f["state"] = $9; f["mode"] = $10
		for (i = 12; i < NF; i += 2)
			f[$i] = $(i + 1)
		n = split(names, name, " ")
		for (i = 1; i <= n; i++)
			printf "%s%s", f[name[i]], i < n ? " " : "\n"
	}'
}

# cowhead FILE FIELD...: prints fields of a cowfile on disk, as `cowfile dump` names them, in one line;
# fails when the file breaks a rule
cowhead() {
	tap_file=$1
	shift
	tap_out=$(cowfile dump "$tap_file") || { echo "$tap_out"; return 1; }
	printf '%s\n' "$tap_out" | awk -F = -v names="$*" '
		{ f[$1] = substr($0, length($1) + 2) }
		END {
			n = split(names, name, " ")
			for (i = 1; i <= n; i++)
				printf "%s%s", f[name[i]], i < n ? " " : "\n"
		}'
}

# new_model DEVICE [OPTION...]: makes the file "model" anew, for a device with the base contents
new_model() {
	rm -f model
	cowtest run "$@" --model model --ops 0 >/dev/null
}

# put UNIT [COUNT [OPTION...]]: writes units, of $unit_size bytes or 4 KiB, to $dev, and with the next $stamp
put() {
	tap_at=$(($1 * ${unit_size:-4096})) tap_length=$((${2:-1} * ${unit_size:-4096}))
	shift $(($# < 2 ? $# : 2))
	stamp=$((stamp + 1))
	# shellcheck disable=SC2154 # the test says what dev is
	cowtest io "$dev" $tap_at $tap_length --write --stamp $stamp --model model "$@"
}
