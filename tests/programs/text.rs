//! grep, sed, awk, sort: programs about text.

use crate::case::Case;

pub fn cases() -> Vec<Case> {
    let plain = [
        "grep -n river text",
        "grep -c . text",
        "grep -iE (amber|violet).*stone text",
        "grep -P (?<=the.)river\\b text",
        "grep -rl one tree",
        "grep -v river short",
        "grep -x nothing-matches text",
        "grep -F -f short text",
        "grep -E ^(.*)([a-z]+).*\\2$ short",
        "grep -bo stone text",
        "grep river no-such-file",
        "sed -e s/river/RIVER/g text",
        "sed -n 10,20p text",
        "sed -E s/([a-z]+).([a-z]+)/\\2-\\1/g text",
        "sed -i.bak y/abc/xyz/ short",
        "sed --posix s/unclosed short",
        "mawk -f script.awk table.csv",
        "gawk -f script.awk table.csv",
        "mawk {n[$1]++}END{print(length(n))} text",
        "gawk {print(toupper($0))} short",
        "sort --parallel=1 text",
        "sort --parallel=1 -n numbers",
        "sort --parallel=1 -t, -k2,2 -k3,3nr table.csv",
        "sort --parallel=1 -u -r text",
        "sort --parallel=1 -S 64K -T . text",
        "sort -c numbers",
    ];
    let mut cases: Vec<Case> = plain.iter().map(|line| Case::new(line)).collect();
    cases.push(
        Case::new("sed -e")
            .arg(":a;N;$!ba;s/\\n/,/g")
            .arg("short")
            .named("sed joins lines"),
    );
    cases.push(
        Case::new("gawk -F,")
            .arg("BEGIN { for (i = 0; i < 20000; i++) s += sin(i) * sqrt(i); printf \"%.6f\\n\", s }")
            .named("gawk computes"),
    );
    cases.push(
        Case::new("mawk")
            .arg("BEGIN { for (i = 0; i < 20000; i++) s = s % 99991 * 7 + i; print s }")
            .named("mawk computes"),
    );
    cases
}
