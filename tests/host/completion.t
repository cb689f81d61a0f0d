#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# The completion for bash: names of devices and files are completed, and never run, whatever they are.

# shellcheck source=tests/host/lib.sh
. "${0%/*}/lib.sh"

# what bash-completion has, as far as it is needed here
# shellcheck disable=SC2034 # _cowsetup's
_init_completion() { cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD; }
_filedir() { mapfile -t COMPREPLY < <(compgen -f -- "$cur"); }
# shellcheck source=completion/cowsetup
. "$top/completion/cowsetup"

# completes WORD...: what the last one may become
completes() {
	COMP_WORDS=(cowsetup "$@") COMP_CWORD=$# COMPREPLY=()
	_cowsetup
	printf '%s\n' "${COMPREPLY[@]}"
}

# shellcheck disable=SC2016 # that is the point
hostile=('$(touch run-1)' '`touch run-2`' 'a b;touch run-3' '*' $'a\nb' '$HOME' "'")
mkdir devices
export COWSETUP_DEVICES=devices
touch devices/plain devices/other
for name in "${hostile[@]}"; do touch "devices/$name"; done
for action in close status sync watch monitor readonly detach; do
	is "$(completes $action pl)" plain "a device: $action"
	completes $action '' >out
	is "$(compgen -G 'run-*')" "" "no name is run: $action"
done
wanted=''
for name in devices/*; do wanted+=$(printf '%q' "${name##*/}")$'\n'; done
is "$(sort out)" "$(sort <<<"${wanted%$'\n'}")" "each is there, quoted"
# shellcheck disable=SC2016
is "$(completes status '$(')" '\$\(touch\ run-1\)' "also when it is what was typed"
is "$(compgen -G 'run-*')" "" "and not run either"
is "$(completes for)" format "an action"
is "$(completes pack --compress z)" zstd "what an option takes"
is "$(completes unpack --max)" --max-size "an option"
rm -r devices
is "$(completes close '')" "" "no devices"

done_testing
