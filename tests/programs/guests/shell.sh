# Pipelines, substitutions, traps, signals and jobs. Prints nothing that differs from run to run.
echo "words: $(cat text | tr -s ' \n' '\n' | sort | uniq -c | sort -rn | head -n 3 | tr -s ' ')"
false | true | cat short > /dev/null
echo "pipeline: ${PIPESTATUS[*]}"
(exit 3) || echo "subshell: $?"
while read -r a b; do echo "$b $a"; done < <(printf '1 one\n2 two\n')
cat <<HERE | sed 's/^/> /'
from here: $(basename "$(pwd | sed 's/case-.*/case/')")
HERE
/nonexistent/program 2> /dev/null
echo "not found: $?"
./text 2> /dev/null
echo "not executable: $?"
printf '#!/bin/sh\necho "script $0 $*"; exit 5\n' > script
chmod +x script
./script with args
echo "script: $?"
printf 'echo "no line $*"\n' > bare
chmod +x bare
./bare one two
(exec -a other sh -c 'echo "name $0"')
echo "nested: $(echo $(echo $(echo deep)))"

trap 'echo usr1' USR1
kill -USR1 $$
bash -c 'kill -TERM $$'
echo "killed: $?"
(trap 'echo "cleaning up"; exit 9' TERM; kill -TERM $BASHPID; echo never)
echo "trapped: $?"
sleep 100 &
kill $!
wait $!
echo "background: $?"
set -m
(sleep 0.1; exit 4) &
wait %1
echo "job: $?"
bash -c 'kill -STOP $$; echo continued; exit 6' &
until [[ $(jobs) == *Stopped* ]]; do sleep 0.02; done
bg %% > /dev/null
wait %%
echo "stopped and continued: $?"
set +m
for i in 1 2 3 4; do (exit $i) & pids[i]=$!; done
sum=0
for i in 1 2 3 4; do wait "${pids[i]}"; sum=$((sum * 10 + $?)); done
echo "in order: $sum"
coproc { while read -r line; do echo "<$line>"; done; }
echo hello >&"${COPROC[1]}"
read -r reply <&"${COPROC[0]}"
echo "coprocess: $reply"
exec {COPROC[1]}>&-
wait
yes | head -n 2
echo "broken pipe: ${PIPESTATUS[0]}"
(ulimit -n 20; ulimit -n)
(umask 027; umask)
trap 'echo "at the end: $?"' EXIT
exit 8
