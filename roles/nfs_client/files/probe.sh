# What the role must know of the host: name=value, a line each. It does not touch what is
# mounted but for a short moment: a server that is away must not hold up the playbook.
# usage: sh -s -- DIRECTORY
PATH=$PATH:/usr/sbin:/sbin
unit=$(systemd-escape --path --suffix=mount "$1")
echo "unit=$unit"
echo "masked=$(cd /etc/systemd/system && find . -maxdepth 1 -lname /dev/null | sed 's:^./::' | xargs)"
echo "release=$(uname -r)"
if command -v mount.nfs >/dev/null; then echo program=yes; fi
if grep -qw nfs4 /proc/filesystems || modprobe -n -q nfs4 2>/dev/null || modprobe -n -q nfs 2>/dev/null; then
  echo kernel=yes
fi
if [ -e "/etc/systemd/system/$unit" ]; then
  echo "described=$(sed -n 's/^What=//p' "/etc/systemd/system/$unit") $(sed -n 's/^Options=//p' "/etc/systemd/system/$unit")"
fi
if [ -e "/run/t2v-$unit.applied" ]; then echo "applied=$(cat "/run/t2v-$unit.applied")"; fi
# The last one covers the others.
awk -v path="$1" '$2 == path { found = "source=" $1 "\ntype=" $3 "\noptions=" $4 }
  END { if (found) print found; exit !found }' /proc/self/mounts
if [ $? -eq 0 ]; then
  echo "owner=$(timeout -s KILL 10 stat -c %u "$1" 2>/dev/null)"
elif [ -d "$1" ]; then
  echo "holds=$(ls -A "$1" | wc -l)"
fi
