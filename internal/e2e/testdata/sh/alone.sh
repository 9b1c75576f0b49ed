# alone.sh PID FILE: what it sees of the host's processes, memory and files.
# PID is a process of the host's, FILE a file in the host's /dev/shm.
set -u
ps -e -o pid= | grep -qw "$1" && echo "sees a process of the host"
[ -e "/proc/$1" ] && [ "$(ps -o pid= -p "$1" | wc -l)" != 0 ] && echo "finds it in /proc"
[ -e "/dev/shm/$2" ] && echo "sees shared memory of the host"
[ -n "$(ls -A /run/chaperone 2>/dev/null | grep -vx trust)" ] && echo "sees /run/chaperone"
ps -o comm= -p $$ | grep -q sh && echo "sees itself"
ps -e -o comm= | grep -q ps && echo "sees its children"
echo end
