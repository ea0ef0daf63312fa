//! Programs that start others: shells, build tools, compilers as a whole, git, and what
//! languages make of fork and exec.

use crate::case::Case;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("bash shell.sh").heavy(),
        Case::new("dash shell_sh.sh").heavy(),
        Case::new("sh -c")
            .arg("echo $(echo one) | cat; exit 3")
            .named("sh pipes"),
        Case::new("busybox sh shell_sh.sh")
            .heavy()
            .named("busybox sh"),
        Case::new("bash build.sh").heavy().named("make -j2"),
        Case::new("gcc -O2 -o unit unit.c")
            .heavy()
            .named("gcc whole"),
        Case::new("gcc -c missing.c").named("gcc fails"),
        Case::new("bash repository.sh").heavy().named("git"),
        Case::new("bash writers.sh")
            .heavy()
            .named("sqlite3, several processes"),
        Case::new("perl children.pl").heavy(),
        Case::new("python3 -I children.py").heavy(),
        Case::new("python3 -I terminal.py")
            .heavy()
            .named("bash in a terminal"),
        Case::new("env -i A=1 sh -c").arg("echo $A ${HOME:+home}"),
        Case::new("find tree -type f -exec wc -c {} +"),
        Case::new("tar -cf - --sort=name --mtime=@0 -I gzip tree").named("tar through gzip"),
        Case::new("setsid -w sh -c").arg("echo session; exit 2"),
    ]
}
