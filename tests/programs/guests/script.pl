# Hashes, regular expressions, sorting, formats, local, closures, sprintf.
use strict;
use warnings;
my %count;
my $lines = 0;
while (my $line = <>) {
    $lines++;
    $count{lc $1}++ while $line =~ /\b([A-Za-z]{3,})\b/g;
}
for my $word (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count) {
    printf "%-10s %5d %s\n", $word, $count{$word}, '*' x ($count{$word} / 20);
}
my @made = map { my $n = $_; sub { $n * $_[0] } } 1 .. 5;
print join(',', map { $_->(7) } @made), "\n";
my $text = join ' ', reverse split / /, 'one two three';
(my $changed = $text) =~ s/(\w+)/<\u$1>/g;
print "$changed $lines\n";
my $sum = 0;
for my $i (1 .. 20000) { $sum = ($sum * 31 + $i) % 1000003 }
print "$sum\n";
print eval { die { code => 7 } } // "died with $@->{code}", "\n";
print pack('NnC', 1, 2, 3) eq "\0\0\0\1\0\2\3" ? "packed\n" : "wrong\n";
exit 3;
