#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# cowsetup's progress: lines and JSON on request, a bar on a terminal, nothing otherwise, and never in the data.

# JSON is asked in Perl, whose variables are not the shell's
# shellcheck disable=SC2016 source=tests/host/lib.sh
. "${0%/*}/lib.sh"

image rdo 20000256
makecow c --units all
cowsetup pack c p
size=$(stat -c %s p)

# slowly FILE: takes three seconds
slowly() {
	for i in 0 1 2 3; do
		[ "$i" -eq 0 ] || sleep 1
		tail -c +$((i * size / 4 + 1)) "$1" | head -c $((size / 4 + (i == 3 ? 3 : 0)))
	done
}

# json_lines EXPRESSION: of each object, a line each on stdin
json_lines() {
	while read -r line; do
		json "$1" <<<"$line"
	done | paste -sd ' '
}

out=$(slowly p | "$tool" unpack --progress-frequency 1 - u 2>err)
is "$?" 0 "lines"
says '^Progress: +[0-9.]+%, ETA [0-9]{2}m[0-9]{2}s, +[0-9.]+ [KM]iB unpacked, speed +[0-9.]+ [KM]iB/s$' "look like that"
says '^Finished, time [0-9]{2}m[0-9]{2}s, +19.1 MiB unpacked, speed' "and there is a last one"
is "$(cat err)" "" "nothing else"
rm u
out=$(slowly p | "$tool" unpack --progress-json - u)
is "$(json '"$_->{device} $_->{device_size}"' <<<"$(tail -n 1 <<<"$out")")" "u 20000768" "JSON: the keys of cryptsetup"
bad=0
while read -r line; do
	json '$_->{device_bytes} <= $_->{device_size} && exists $_->{speed} && exists $_->{eta_ms} && $_->{time_ms} > 0 or die' \
		<<<"$line" >/dev/null 2>&1 || bad=$((bad + 1))
done <<<"$out"
is "$bad" 0 "every line is an object: $(wc -l <<<"$out") lines"
rm u
out=$(slowly p | "$tool" unpack - u 2>&1)
is "$out" "" "nothing when it is not asked for, nor a terminal"

"$tool" pack --progress-json c - >p2 2>err
runs "not in the data" cmp p p2
like "$(cat err)" '^\{"device":"c"' "but on stderr then"
"$tool" check --json --progress-json c >out 2>err
is "$(json '$_->{ok} ? 1 : 0' <out)" 1 "nor in the JSON"

# a merge is not through with the last unit written: the cowfile is emptied then
cp --sparse=always rdo copy
cp --sparse=always c c2
"$tool" merge --batch-mode --progress-json copy c2 >out
is "$(grep '^{' out | json_lines '$_->{device}')" "copy c2" "JSON: the device is written, and the cowfile emptied"

if command -v script >/dev/null; then
	rm u
	mkfifo fifo
	(slowly p >fifo) &
	script -qec "'$tool' unpack fifo u" typescript </dev/null >out 2>&1
	wait
	like "$(tr '\r' '\n' <out)" '^Progress: +[0-9.]+%, ETA' "a bar on a terminal"
	like "$(tr '\r' '\n' <out)" 'Finished, time' "and that it is done"
	rm u
	mkfifo fifo2
	(slowly p >fifo2) &
	script -qec "'$tool' unpack --batch-mode fifo2 u" typescript </dev/null >out 2>&1
	wait
	is "$(cat out)" "" "but not in batch mode"
else
	skip "no script(1)"
	skip "no script(1)"
	skip "no script(1)"
fi

exits 1 "a frequency that is no number" cowsetup check --progress-frequency often c
done_testing
