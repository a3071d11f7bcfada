#!/bin/sh
# Say who runs an interface and what it has, as key=value lines. Changes nothing.
# network-probe.sh INTERFACE
set -u
PATH=$PATH:/usr/sbin:/sbin
interface=$1

active() { systemctl is-active --quiet "$1" 2>/dev/null; }

# NetworkManager says "10 (unmanaged)" of what it leaves to others.
by_networkmanager() {
  active NetworkManager || return 1
  case $(nmcli -t -f GENERAL.STATE device show "$interface" 2>/dev/null) in
    '' | *:10\ *) return 1 ;;
  esac
}

by_networkd() {
  active systemd-networkd || return 1
  case $(networkctl --no-legend list "$interface" 2>/dev/null) in
    '' | *unmanaged*) return 1 ;;
  esac
}

# Netplan writes for one of the two above. Only what it has under the interface's own name is
# changed there; an entry for many (`en*`) is overruled in the service that it writes for.
by_netplan() {
  command -v netplan >/dev/null 2>&1 || return 1
  for kind in ethernets bonds bridges vlans; do
    case $(netplan get "$kind.$interface" 2>/dev/null) in
      '' | null) ;;
      *) echo "kind=$kind"; return 0 ;;
    esac
  done
  return 1
}

by_ifcfg() {
  [ -e "/etc/sysconfig/network-scripts/ifcfg-$interface" ] && command -v ifup >/dev/null 2>&1
}

by_ifupdown() {
  command -v ifup >/dev/null 2>&1 && \
    cat /etc/network/interfaces /etc/network/interfaces.d/* 2>/dev/null | \
    grep -Eq "^[[:space:]]*iface[[:space:]]+$interface[[:space:]]"
}

if [ ! -e "/sys/class/net/$interface" ]; then
  echo "interfaces=$(cd /sys/class/net && echo *)"
  exit 0
fi
if by_netplan; then manager=netplan
elif by_networkmanager; then manager=networkmanager
elif by_networkd; then manager=networkd
elif by_ifcfg; then manager=ifcfg
elif by_ifupdown; then manager=ifupdown
else manager=none
fi
echo "manager=$manager"

# A lease has an end; what was configured lasts for ever.
ip -4 -o address show dev "$interface" scope global | while read -r _ _ _ address rest; do
  case $rest in
    *"valid_lft forever"*) echo "static=$address" ;;
    *) echo "leased=$address" ;;
  esac
done
ip -4 route show default | while read -r line; do
  case " $line " in
    *" dev $interface "*) echo "gateway=$(echo "$line" | sed -n 's/.* via \([0-9.]*\).*/\1/p')" ;;
  esac
done
echo "mtu=$(cat "/sys/class/net/$interface/mtu")"

case $manager in
  netplan) files='/etc/netplan/*.yaml' ;;
  ifupdown) files='/etc/network/interfaces /etc/network/interfaces.d/*' ;;
  *) files='' ;;
esac
for file in $files; do
  [ ! -f "$file" ] || echo "file=$file"
done
[ ! -d /etc/cloud/cloud.cfg.d ] || echo "cloud=/etc/cloud/cloud.cfg.d/99-sanchuang-network.cfg"
[ ! -e /var/lib/sanchuang/network/pending ] || echo "pending=yes"
