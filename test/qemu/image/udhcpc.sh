#!/bin/sh
# What udhcpc calls with what it was given.
case $1 in
bound | renew)
	ifconfig "$interface" "$ip" netmask "$subnet"
	for r in $router; do route add default gw "$r" && break; done
	echo "rerack: dhcp address=$ip"
	;;
esac
exit 0
