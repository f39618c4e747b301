#!/bin/sh
# The first and only program of a test guest: modules, a lease, a shell on the console, and commands from the host
# through the virtio-serial port `agent` (a line of base64 in; `DONE code bytes` and the output out).
export PATH=/bin HOME=/
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
# A kernel may have all of them built in.
for module in /modules/*; do [ ! -e "$module" ] || insmod "$module" || echo "cannot load $module"; done

name=guest; dhcp=on
for word in $(cat /proc/cmdline); do case $word in
	vnet.name=*) name=${word#*=} ;;
	vnet.dhcp=*) dhcp=${word#*=} ;;
esac; done
hostname "$name"; echo "127.0.0.1 localhost" >/etc/hosts
ip link set lo up
for nic in /sys/class/net/eth*; do
	nic=${nic##*/}; [ -e "/sys/class/net/$nic" ] || continue
	ip link set "$nic" up
	[ $dhcp = off ] || udhcpc -f -i "$nic" -s /etc/udhcpc.script -t 1000 -T 1 -A 1 -O mtu -x "hostname:$name" >"/tmp/udhcpc.$nic" 2>&1 &
done

agent() {
	# A port has its name a moment after the port.
	for try in $(seq 100); do
		for port in /sys/class/virtio-ports/*; do [ "$(cat "$port/name" 2>/dev/null)" = agent ] && break 2; done
		sleep 0.1
	done
	exec 3<>"/dev/${port##*/}"
	echo "READY $(cut -d' ' -f1 /proc/uptime)" >&3
	while read -r line <&3; do
		echo "$line" | base64 -d >/tmp/command
		sh /tmp/command </dev/null >/tmp/output 2>&1 3>&-
		code=$?; size=$(wc -c </tmp/output)
		{ echo "DONE $code $size"; head -c "$size" /tmp/output; } >&3
	done
	echo "the agent's channel is closed"
}
agent &
export PS1="$name# "
while :; do setsid cttyhack sh </dev/ttyS0 >/dev/ttyS0 2>&1; done
