# fork, pipes, exec and signals from Perl.
use strict; use warnings; use POSIX ":sys_wait_h"; use IPC::Open3;
$| = 1;
my $pid = fork // die;
exit 3 if !$pid;
waitpid $pid, 0;
print "exited ", $? >> 8, "\n";
print "backticks ", `echo hello | tr a-z A-Z`;
system "exit 4; true";
print "system ", $? >> 8, "\n";
open my $from, "-|" or exec "echo", "from a child" or die;
print while <$from>;
close $from;
open my $to, "|-", "sort -n | tr '\\n' ' '; echo" or die;
print $to "$_\n" for 10, 9, 100, 1;
close $to;
my $err = open3(my $in, my $out, undef, "sh", "-c", "cat; echo done >&2; exit 5");
print $in "through\n";
close $in;
print sort <$out>;
waitpid $err, 0;
print "open3 ", $? >> 8, "\n";
{
    my $heard = 0;
    local $SIG{USR1} = sub { $heard++ };
    my $child = fork // die;
    if (!$child) { kill USR1 => getppid; exit 0 }
    waitpid $child, 0;
    print "heard $heard\n";
}
my @children = map { my $n = $_; my $p = fork // die; exit $n if !$p; $p } 1 .. 5;
my $sum = 0;
for (@children) { waitpid $_, 0; $sum += $? >> 8 }
print "sum $sum\n";
my $victim = fork // die;
if (!$victim) { sleep 100 }
kill KILL => $victim;
waitpid $victim, 0;
print "signal ", $? & 127, "\n";
print "none left ", waitpid(-1, WNOHANG), "\n";
exec "sh", "-c", "echo the end; exit 6";
