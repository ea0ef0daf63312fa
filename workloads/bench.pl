# Regular expressions, hashes, strings, sorting and arithmetic. Prints checksums.
use strict;
use warnings;
my $rounds = shift // 1;
my @words = map { sprintf '%s%d', (qw(river stone lantern amber north))[$_ % 5], $_ * 7919 % 3001 } 1 .. 6000;
my $text = join ' ', @words;
for my $round (1 .. $rounds) {
    my (%count, %length);
    while ($text =~ /\b([a-z]+)(\d+)\b/g) {
        $count{$1} += $2;
        push @{ $length{ length $2 } }, $2;
    }
    my $matched = () = $text =~ /(?:amber|stone)\d*?(\d)\1\b/g;
    (my $changed = $text) =~ s/(\w+?)(\d+)/$2-$1/g;
    my @sorted = sort { length $a <=> length $b || $b cmp $a } @words;
    my ($sum, $x) = (0, $round);
    for my $i (1 .. 60000) { $x = ($x * 1103515245 + 12345) & 0x7fffffff; $sum += $x % 7 if $x & 64 }
    my @stack;
    for my $token (split //, '(()(()))' x 800) {
        if ($token eq '(') { push @stack, scalar @stack } else { pop @stack }
    }
    print join(',', map { "$_=$count{$_}" } sort keys %count), " $matched $sum $sorted[17] ", scalar(@stack), ' ',
        length $changed, ' ', join(':', map { scalar @{ $length{$_} } } sort keys %length), "\n";
}
