#!/bin/sh
# ipmi_sim calls this as "get|set|check NAME [VALUE]...".
cd "${0%/*}" || exit 1
op=$1
shift
case $op in
get)
	for n in "$@"; do
		v=0
		case $n in power | boot) read -r v <$n || [ -n "$v" ] || exit 1 ;; esac
		echo "$n:$v"
	done
	;;
set)
	while [ $# -gt 1 ]; do
		echo "$1 $2" >pipe || exit 1
		shift 2
	done
	;;
esac
exit 0
