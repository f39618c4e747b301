#!/bin/sh
# What udhcpc calls in a test guest: address, route, mtu, resolv.conf. The lease's variables stay in /tmp/lease.NIC.
case $1 in
deconfig) ip addr flush dev "$interface"; ip link set "$interface" up ;;
bound | renew)
	set >"/tmp/lease.$interface"
	[ -n "$mtu" ] && ip link set "$interface" mtu "$mtu"
	if ! ip -4 addr show dev "$interface" | grep -q "inet $ip/"; then
		ip -4 addr flush dev "$interface"
		ip addr add "$ip/${mask:-24}" broadcast + dev "$interface"
	fi
	for gateway in $router; do ip route replace default via "$gateway" dev "$interface"; break; done
	{
		[ -n "$domain" ] && echo "search $domain"
		for server in $dns; do echo "nameserver $server"; done
	} >/etc/resolv.conf
	;;
esac
exit 0
