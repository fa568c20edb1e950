#!/bin/sh
# The first process of the test system: it takes its address, phones home and serves its health check.
# What it says on the console begins with "rerack:"; the lab reads it to know what truly runs where.
export PATH=/bin:/sbin
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
ifconfig eth0 up
# One that is installed knows its address. On a disk it asks all the same: it may have been booted elsewhere,
# and DHCP says where it reports to.
if [ -z "$address" ] || [ "$(param lab.disk)" = yes ]; then
	until udhcpc -i eth0 -q -n -t 4 -T 1 -O 224 -s /etc/udhcpc; do
		say "no DHCP answer"
		[ -n "$address" ] && break
	done
fi
if [ -n "$address" ] && ! [ -e /etc/leased ]; then
	ifconfig eth0 "${address%/*}" netmask "${address#*/}"
	[ -n "$gateway" ] && route add default gw "$gateway"
fi

# A system on a disk has no command line that could tell where it reports to: DHCP does.
[ -z "$home" ] && [ -s /etc/phonehome ] && home=$(cat /etc/phonehome)

# own_disk prints the disk with our records: a LUN that the firmware booted from, or one of the machine's own.
records=2048 count=1024
own_disk() {
	for try in 1 2 3 4 5 6 7 8 9 10; do
		for d in /sys/block/[sv]d*; do
			dev=/dev/${d##*/}
			case $(dd if="$dev" bs=512 skip=$records count=1 2>/dev/null) in
			"rerack record "*) echo "$dev" && return ;;
			esac
		done
		sleep 1
	done
}

# record N writes the Nth record past every cache; it fails when the disk does not take it.
record() {
	printf '%-511s\n' "$(printf 'rerack record %06d by %s' "$1" "$workload $(cat /sys/class/net/eth0/address)")" >/sector
	dd if=/sector of="$disk" bs=512 seek=$((records + $1 % count)) oflag=direct conv=notrunc 2>/dev/null
}

if [ "$(param lab.disk)" = yes ]; then
	if [ -d /sys/firmware/ibft/target0 ]; then
		iscsistart -b >/dev/null 2>/iscsi.log || say "no iSCSI session: $(tail -n 1 /iscsi.log)"
	fi
	disk=$(own_disk)
	[ -n "$disk" ] || { say "no disk"; forever; }
	last=$(dd if="$disk" bs=512 skip=$records count=$count iflag=direct 2>/dev/null |
		sed -n 's/.*rerack record 0*\([0-9][0-9]*\) by .*/\1/p' | sort -n | tail -n 1)
	say "disk $disk: found record ${last:-0}"
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

# write goes on writing records, and says when its disk refuses.
write() {
	n=$((${last:-0} + 1))
	while :; do
		if record $n; then
			[ -n "$wrote" ] || say "wrote record $n"
			wrote=yes n=$((n + 1))
		else
			say "record $n not written"
			wrote=
		fi
		sleep 1
	done
}
if [ -n "$disk" ]; then
	record $((${last:-0} + 1)) || { say "the disk takes nothing"; forever; }
	last=$((${last:-0} + 1))
	say "wrote record $last"
	write &
fi

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
