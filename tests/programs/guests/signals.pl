# Signals as Perl programs use them: %SIG, alarm with die, local handlers, sigsuspend and
# masks of POSIX, fork with SIGCHLD, kill of groups, sleep and select interrupted.
use strict;
use warnings;
use POSIX qw(:signal_h :sys_wait_h pause);
$| = 1;

my $count = 0;
$SIG{USR1} = sub { $count++ };
kill USR1 => $$ for 1 .. 100;
print "counted $count\n";

sub in_time {
    my ($code) = @_;
    my $done = eval {
        local $SIG{ALRM} = sub { die "late\n" };
        Time::HiRes::ualarm(50_000);
        $code->();
        Time::HiRes::ualarm(0);
        1;
    };
    return $done ? "done" : $@ eq "late\n" ? "late" : "error $@";
}
use Time::HiRes ();
print "loop: ", in_time(sub { my $x = 0; $x++ while 1 });
print ", sleep: ", in_time(sub { sleep 10 });
print ", read: ", in_time(sub { pipe my $r, my $w; sysread $r, my $b, 1; die "EINTR\n" });
print ", quick: ", in_time(sub { 1 }), "\n";

my $set = POSIX::SigSet->new(SIGUSR1);
sigprocmask(SIG_BLOCK, $set);
$count = 0;
kill USR1 => $$;
my $waiting = POSIX::SigSet->new;
sigpending($waiting);
print "blocked: $count, waits ", $waiting->ismember(SIGUSR1), "\n";
sigsuspend(POSIX::SigSet->new);
print "suspended: $count\n";
sigprocmask(SIG_UNBLOCK, $set);

my %ended;
$SIG{CHLD} = sub {
    while ((my $pid = waitpid -1, WNOHANG) > 0) { $ended{$pid} = $? }
};
my @children;
for my $i (1 .. 5) {
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        $SIG{TERM} = 'DEFAULT';
        if ($i == 3) { sleep 1 while 1 }
        if ($i == 4) { $SIG{TERM} = sub { exit 44 }; kill TERM => $$; sleep 1 while 1 }
        if ($i == 5) { kill STOP => $$; exit 55 }
        exit $i;
    }
    push @children, $pid;
}
kill TERM => $children[2];
for (1 .. 2000) {
    kill CONT => $children[4];
    last if keys %ended == 5;
    select undef, undef, undef, 0.01;
}
print "children: @{[map { $ended{$_} } @children]}\n";

$SIG{PIPE} = sub { print "broken pipe\n" };
pipe my $r, my $w;
close $r;
syswrite $w, "x";
print "EPIPE ", $!{EPIPE} ? 1 : 0, "\n";
$SIG{__WARN__} = sub { print "warned: $_[0]" };
warn "once\n";
$SIG{INT} = 'IGNORE';
kill INT => $$;
$SIG{HUP} = 'DEFAULT';
kill HUP => $$;
sleep 5;
print "never\n";
