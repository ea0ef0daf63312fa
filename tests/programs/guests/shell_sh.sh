# What a POSIX shell does with processes.
set -- $(seq 5)
echo "$# $*" | { read -r count rest; echo "$count of $rest"; }
for i in "$@"; do /bin/echo "$i"; done | sort -r | tr '\n' ' '
echo
(trap 'echo caught; exit 3' HUP; kill -HUP $(sh -c 'echo $PPID'); sleep 5)
echo "status $?"
sh -c 'exit 7' & wait $! || echo "waited $?"
x=$(cat numbers | wc -l) && echo "numbers $x"
find tree -type f | sort | xargs -n 2 wc -c
env -i A=1 sh -c 'echo "$A ${PATH:+path}"'
nice -n 5 nice
timeout 0.2 sleep 10; echo "timed out $?"
nohup true < /dev/null > /dev/null 2>&1; echo "nohup $?"
exec sh -c 'echo last; exit 4'
