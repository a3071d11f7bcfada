# Name and id of each process that uses what is mounted, a line each.
# usage: sh -s -- DIRECTORY SOURCE
own=$(readlink /proc/self/ns/mnt)
{
  # Those with a file open there.
  find /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/exe /proc/[0-9]*/fd -maxdepth 1 \
    \( -lname "$1" -o -lname "$1/*" \)
  # Those with a private mount of their own, as a container has: it would go on using what is
  # unmounted here. A shared one has a word between its options and the dash, and follows.
  for found in $(grep -lE "^([^ ]+ ){6}- nfs4? $2 " /proc/[0-9]*/mountinfo); do
    if [ "$(readlink "${found%/mountinfo}/ns/mnt")" != "$own" ]; then echo "$found"; fi
  done
} 2>/dev/null | cut -d / -f 3 | sort -un | while read -r pid; do
  echo "$(cat "/proc/$pid/comm")($pid)"
done
