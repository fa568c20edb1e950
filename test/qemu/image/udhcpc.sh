#!/bin/sh
# What udhcpc calls with what it was given.
case $1 in
bound | renew)
	ifconfig "$interface" "$ip" netmask "$subnet"
	for r in $router; do route add default gw "$r" && break; done
	# Option 224 is where a system on a disk reports to; udhcpc has it in hex.
	[ -n "$opt224" ] && printf "$(echo "$opt224" | sed 's/../\\x&/g')" >/etc/phonehome
	: >/etc/leased
	echo "rerack: dhcp address=$ip"
	;;
esac
exit 0
