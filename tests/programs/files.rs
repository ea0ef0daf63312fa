//! coreutils, find, tar, busybox: programs about files and small data.

use crate::case::Case;

const LINES: &[&str] = &[
    "true",
    "false",
    "echo one two",
    "ls -a tree",
    "ls -lRn --time-style=+ tree",
    "ls nothing-here",
    "cat text binary",
    "cat -A short",
    "head -n 7 text",
    "tail -c 100 binary",
    "tail -n +300 text",
    "wc text binary empty",
    "cut -d, -f2,4 table.csv",
    "cut -c3-9 short",
    "paste -d: numbers numbers",
    "join -t, table.csv table.csv",
    "tac short",
    "rev short",
    "nl text",
    "fold -w 17 short",
    "fmt -w 40 text",
    "pr -t -2 short",
    "expand short",
    "od -A x -t x1z -N 400 binary",
    "od -t f8 -N 256 binary",
    "base64 binary",
    "base32 short",
    "cksum text binary",
    "md5sum text binary",
    "sha1sum text",
    "sha256sum text",
    "sha512sum text binary",
    "b2sum binary",
    "sum text",
    "comm numbers numbers",
    "cmp text short",
    "uniq -c numbers",
    "tsort numbers",
    "shuf --random-source=binary -n 20 numbers",
    "split -b 9000 text part-",
    "csplit -s text 20 40",
    "cp -r tree copy",
    "mv short renamed",
    "rm -r tree",
    "ln -s text symbolic",
    "mkdir -p made/by/program",
    "touch -d @5 touched",
    "chmod 600 short",
    "truncate -s 12345 short",
    "dd if=binary of=copied bs=777 count=20 status=none",
    "stat -c %s:%f:%Y text",
    "readlink tree/link",
    "basename some/where/file.txt .txt",
    "dirname some/where/file.txt",
    "expr 12345 * 6789",
    "factor 1234567890123456789 18446744073709551557",
    "seq -f %.3g 1 0.25 9",
    "seq 1 3000",
    "numfmt --to=iec 123456789 1024",
    "printf %5d|%-8s|%x\\n 42 word 255",
    "date -u -d @1000000000",
    "printenv HOME",
    "test -f text",
    "[ 1 -eq 2 ]",
    "tr a-z A-Z",
    "sync empty",
    "find tree -name *.txt -o -type l",
    "find . -size +10k -printf %p:%s\\n",
    "find nothing-here",
    "tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf made.tar tree text",
    "tar -tvf no-such.tar",
    "diff text short",
    "diff -u numbers table.csv",
];

const BUSYBOX: &[&str] = &[
    "busybox",
    "busybox sha256sum text",
    "busybox gzip -9 text",
    "busybox bzip2 text",
    "busybox awk -F, {s+=$3}END{print(s)} table.csv",
    "busybox sed -n s/river/RIVER/p text",
    "busybox sort -n numbers",
    "busybox ls -1 tree",
    "busybox vi --nonsense",
    "busybox no-such-applet",
];

pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = LINES
        .iter()
        .chain(BUSYBOX)
        .map(|line| Case::new(line).stdin("The quick brown fox\n"))
        .collect();
    // A shell that forks for nothing in this script.
    cases.push(
        Case::new("busybox sh -c")
            .arg("i=0; while [ $i -lt 300 ]; do i=$((i+1)); done; echo $i; exit 7")
            .named("busybox sh loop"),
    );
    cases.push(
        Case::new("dash -c")
            .arg("trap 'echo bye' EXIT; for w in a b c; do echo $w; done; kill -TERM $$")
            .named("dash dies by a signal"),
    );
    cases
}
