# A repository: commits, branches, a merge, a clone, packing.
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null
export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@b GIT_AUTHOR_DATE='2001-09-09T01:46:40Z'
export GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@b GIT_COMMITTER_DATE='2001-09-09T01:46:40Z'
git init -q -b main work && cd work
cp ../text ../numbers .
git add . && git commit -qm first
git log --format='%H %s'
git checkout -qb side && echo more >> numbers && git commit -qam second
git checkout -q main && echo less >> text && git commit -qam third
git merge -q --no-edit side && git log --oneline --graph | cat
git diff --stat HEAD~1 | cat
cd .. && git clone -q work copy && cd copy
git gc -q && git fsck --no-progress && git count-objects -v | grep -E '^(count|in-pack|packs)'
git rev-parse HEAD && git status --short | wc -l
cd .. && rm -rf work copy
