#!/bin/busybox sh
# The first process of a Debian that Rerack booted into memory: it takes its address, logs in to its volumes, phones
# home, starts what it is for, and says that it is healthy.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
mkdir -p /dev/pts /run /tmp
$bb mount -t devpts devpts /dev/pts
$bb mount -t tmpfs -o mode=755 run /run
exec </dev/console >/dev/console 2>&1

say() { echo "rerack: $*"; }

# param NAME prints the value of a kernel parameter.
param() {
	for word in $(cat /proc/cmdline); do
		case $word in "$1="*) echo "${word#*=}" ;; esac
	done
}

# forever keeps the machine on, and takes care of processes that have lost their parents.
forever() { while :; do wait; sleep 60; done; }

# drivers loads what the hardware asks for by the names it goes by.
drivers() {
	find /sys/devices -name modalias -exec cat {} + 2>/dev/null | sort -u | xargs -r modprobe -a -b -q 2>/dev/null
}
drivers
drivers # what a bus that came with the first ones shows
modprobe -a -q sd_mod iscsi_ibft

for nic in /sys/class/net/*; do
	$bb ip link set "${nic##*/}" up
done
# Which card is on the network that it was booted from is seen by who answers.
until [ -e /run/leased ]; do
	for nic in /sys/class/net/*; do
		nic=${nic##*/}
		[ "$nic" = lo ] && continue
		$bb udhcpc -i "$nic" -n -t 3 -T 1 -O 224 -s /etc/rerack/udhcpc && touch /run/leased && break
	done
	[ -e /run/leased ] || say "no DHCP answer"
done

home=$(param rerack.phonehome)
[ -z "$home" ] && [ -s /run/phonehome ] && home=$(cat /run/phonehome)
nonce=$(sed 's/-//g' /proc/sys/kernel/random/uuid)

# report MILESTONE posts until it is accepted. A boot that is over is refused for good (410).
report() {
	[ -n "$home" ] || return 0
	while ! answer=$($bb wget -q -O /dev/null --header 'Content-Type: application/json' \
		--post-data "{\"nonce\":\"$nonce\",\"milestone\":\"$1\"}" "$home" 2>&1); do
		case $answer in *" 410 "*) say "refused"; forever ;; esac
		sleep 1
	done
}
report phone-home

# Volumes: what the firmware booted from is in the iBFT, with its secret; the others are named by parameters
# rerack.volume.N=iscsi:PORTAL:PORT:TARGET:LUN.
initiator=$(param rerack.initiator)
volumes=0
[ -n "$initiator" ] && mkdir -p /etc/iscsi && echo "InitiatorName=$initiator" >/etc/iscsi/initiatorname.iscsi
if [ -d /sys/firmware/ibft/target0 ]; then
	modprobe -q iscsi_tcp
	until iscsistart -b; do say "no session with the boot volume"; sleep 1; done
	volumes=1
fi
for word in $(cat /proc/cmdline); do
	case $word in rerack.volume.*=iscsi:*) ;; *) continue ;; esac
	rest=${word#*=iscsi:}
	portal=${rest%%:*} rest=${rest#*:}
	port=${rest%%:*} rest=${rest#*:}
	target=${rest%:*}
	case $seen in *" $target "*) continue ;; esac
	seen="$seen $target "
	modprobe -q iscsi_tcp
	until iscsistart -i "$initiator" -t "$target" -g 1 -a "$portal" -p "$port"; do say "no session with $target"; sleep 1; done
	volumes=$((volumes + 1))
done
say "start workload=$(param rerack.workload) epoch=$(param rerack.epoch) volumes=$volumes"

if [ -x /etc/rerack/start ]; then
	until /etc/rerack/start; do say "/etc/rerack/start ends with $?"; sleep 5; done
fi
read -r up rest </proc/uptime
report healthy
say "healthy after $up s"
forever
