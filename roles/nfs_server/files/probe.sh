# What the role must know of the host before it begins: name=value, a line each.
# usage: sh -s -- PROGRAM MARKER TIMER DIRECTORY
PATH=$PATH:/usr/sbin:/sbin
echo "masked=$(cd /etc/systemd/system && find . -maxdepth 1 -lname /dev/null | sed 's:^./::' | xargs)"
echo "release=$(uname -r)"
if grep -qw nfsd /proc/filesystems || modprobe -n -q nfsd 2>/dev/null; then echo kernel=yes; fi
if [ -x "$1" ]; then echo program=yes; fi
if [ -d "$4" ]; then echo directory=yes; fi
if [ -e "$3" ]; then echo timer=yes; fi
if [ -f "$2" ]; then cat "$2"; fi
