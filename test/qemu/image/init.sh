#!/bin/sh
# The first process of the test system: it takes its address, phones home and serves its health check.
# What it says on the console begins with "rerack:"; the lab reads it to know what truly runs where.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1

say() { echo "rerack: $*"; }

# param NAME prints the value of a kernel parameter.
param() {
	for word in $(cat /proc/cmdline); do
		case $word in "$1="*) echo "${word#*=}" ;; esac
	done
}

# forever keeps the machine on, for whoever looks at its console.
forever() { while :; do sleep 3600; done; }

workload=$(param rerack.workload)
epoch=$(param rerack.epoch)
home=$(param rerack.phonehome)
address=$(param lab.address)
gateway=$(param lab.gateway)

read -r up rest </proc/uptime
say "kernel is up after $up s"
while read -r module; do insmod "/modules/$module.ko"; done </modules/order

ifconfig lo 127.0.0.1
if [ -n "$address" ]; then # installed on this machine: it knows its address
	ifconfig eth0 "${address%/*}" netmask "${address#*/}"
	[ -n "$gateway" ] && route add default gw "$gateway"
else
	ifconfig eth0 up
	until udhcpc -i eth0 -q -n -t 5 -T 1 -s /etc/udhcpc; do say "no DHCP answer"; done
fi
say "start workload=$workload epoch=$epoch"

nonce=$(sed 's/-//g' /proc/sys/kernel/random/uuid)

# report MILESTONE posts until it is accepted. A boot that is over is refused for good (410).
report() {
	[ -n "$home" ] || return 0
	while ! answer=$(wget -q -O /dev/null --header 'Content-Type: application/json' \
		--post-data "{\"nonce\":\"$nonce\",\"milestone\":\"$1\"}" "$home" 2>&1); do
		case $answer in *" 410 "*) say "refused"; forever ;; esac
		sleep 1
	done
}

report phone-home
printf '{"workload":"%s","epoch":%s,"address":"%s"}\n' "$workload" "${epoch:-0}" \
	"$(ifconfig eth0 | sed -n 's/.*inet addr:\([0-9.]*\).*/\1/p')" >/www/index.html
port=$(param lab.port)
httpd -p "${port:-80}" -h /www
say "serving"
report healthy
read -r up rest </proc/uptime
say "healthy after $up s"
forever
