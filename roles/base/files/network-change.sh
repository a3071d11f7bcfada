#!/bin/sh
# Change this host's network such that a fault puts itself right. From the role base.
#
#   apply      save the files, arm the timer, put the new files in place, bring them up
#   verify     say what is wrong with the network that should be there; status 0: nothing
#   keep       it is good: disarm the timer. Status 3: it was rolled back meanwhile
#   rollback   restore the saved files exactly, bring them up
#   answers A  status 0: a machine of this network has the address A
#
# Beside it: `plan`, the settings; `paths`, the files that the change may touch, one a line;
# `new/`, what they become (those without are removed); `old/`, what they were; `pending`,
# there from the first touch until the change is kept or rolled back. The timer is enabled
# all that time: a host that lost its power in between rolls back after it has booted.
set -eu
umask 022
PATH=$PATH:/usr/sbin:/sbin
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
timer=sanchuang-network-rollback.timer
manager='' interface='' address='' prefix='' gateway='' connection=''
. "$here/plan"

key() { printf %s "$1" | tr / %; }

# The configuration that is up now, for a manager that knows several.
current() {
  [ "$manager" != networkmanager ] || \
    nmcli -g GENERAL.CON-UUID device show "$interface" 2>/dev/null || \
    nmcli -t -f UUID,DEVICE connection show --active | sed -n "s/:$interface\$//p"
}

# What an earlier change has saved and nobody has kept stays: that is the way back.
save() {
  [ -e "$here/pending" ] || rm -rf "$here/old"
  mkdir -p "$here/old"
  while read -r path; do
    saved=$here/old/$(key "$path")
    if [ -e "$saved" ] || [ -e "$saved.absent" ]; then
      continue
    elif [ -e "$path" ]; then
      cp -a "$path" "$here/part"
      mv "$here/part" "$saved"
    else
      : > "$saved.absent"
    fi
  done < "$here/paths"
  [ -e "$here/old/connection" ] || current > "$here/old/connection"
  : > "$here/pending"
  sync
}

arm() {
  systemctl daemon-reload
  systemctl enable "$timer" 2>/dev/null
  systemctl restart "$timer"
}

disarm() {
  rm -rf "$here/pending" "$here/old"
  systemctl disable "$timer" 2>/dev/null || true
  systemctl stop "$timer" || true
}

# place FROM TO: the whole file or none of it, under the label of its directory.
place() {
  mkdir -p "${2%/*}"
  cp -a "$1" "${2%/*}/.sanchuang.part"
  mv "${2%/*}/.sanchuang.part" "$2"
  command -v restorecon >/dev/null 2>&1 && restorecon "$2" || true
}

down() {
  case $manager in
    ifcfg) ifdown "$interface" || true ;;
    ifupdown) ifdown --force "$interface" || true; ip -4 address flush dev "$interface" scope global ;;
  esac
}

# up CONNECTION
up() {
  case $manager in
    networkd)
      { networkctl reload && networkctl reconfigure "$interface"; } 2>/dev/null || \
        systemctl restart systemd-networkd ;;
    networkmanager) nmcli connection reload; nmcli --wait 30 connection up uuid "$1" ifname "$interface" ;;
    netplan) netplan apply ;;
    ifcfg) ifup "$interface" ;;
    ifupdown) ifup --force "$interface" ;;
  esac
}

apply() {
  sleep 1  # the one who asked gets his answer over the network that was
  rm -f "$here/rolled-back"
  save
  arm
  down
  while read -r path; do
    if [ -e "$here/new/$(key "$path")" ]; then
      place "$here/new/$(key "$path")" "$path"
    else
      rm -f "$path"
    fi
  done < "$here/paths"
  sync
  up "$connection"
}

rollback() {
  [ -e "$here/pending" ] || { disarm; exit 0; }
  echo "nobody has kept the change of $interface: going back to what was there"
  down
  for saved in "$here"/old/%*; do
    path=$(printf %s "${saved##*/}" | tr % /)
    case $saved in
      *.absent) rm -f "${path%.absent}" ;;
      *) place "$saved" "$path" ;;
    esac
  done
  sync
  for wait in 2 5 0; do
    up "$(cat "$here/old/connection")" && break
    sleep $wait
  done
  date -u +%Y-%m-%dT%H:%M:%SZ > "$here/rolled-back"
  disarm
}

keep() {
  [ -e "$here/pending" ] || exit 3
  disarm
}

# A packet to it makes the kernel ask who has the address: no answer, no entry.
answers() {
  ip neigh del "$1" dev "$interface" 2>/dev/null || true
  for _ in 1 2 3 4; do
    bash -c "echo > /dev/udp/$1/9" 2>/dev/null || true
    sleep 1
    ! ip neigh show to "$1" dev "$interface" | grep -q lladdr || return 0
  done
  return 1
}

# Nothing where there is none.
fault() {
  if ! ip -4 -o address show dev "$interface" | grep -Fq " $address/$prefix "; then
    echo "$interface does not have the address $address/$prefix"
  elif [ -n "$gateway" ] && ! ip -4 route show default | grep -Eq "via $gateway dev $interface( |\$)"; then
    echo "$interface has no route by the gateway $gateway"
  elif [ -n "$gateway" ] && ! answers "$gateway"; then
    echo "the gateway $gateway does not answer"
  fi
}

verify() {
  end=$(($(date +%s) + 10))
  while found=$(fault) && [ -n "$found" ] && [ "$(date +%s)" -lt $end ]; do
    sleep 1
  done
  [ -n "$found" ] || return 0
  echo "$found"
  return 1
}

case $1 in
  apply | rollback | keep)
    # One at a time; the daemons that are started here must not hold the lock.
    exec 9> "$here/lock"
    flock 9
    "$1" 9>&-
    ;;
  verify) verify ;;
  answers) answers "$2" ;;
  *) echo "usage: $0 apply|verify|keep|rollback|answers ADDRESS" >&2; exit 64 ;;
esac
