# Sums the third column by the second.
BEGIN { FS = "," }
{ sum[$2] += $3; count[$2]++; if ($4 > most) most = $4 }
END {
    n = 0
    for (name in sum) names[n++] = name
    for (i = 1; i < n; i++) {
        for (j = i; j > 0 && names[j - 1] > names[j]; j--) {
            swap = names[j]; names[j] = names[j - 1]; names[j - 1] = swap
        }
    }
    for (i = 0; i < n; i++)
        printf "%-10s %4d %12.2f %s\n", names[i], count[names[i]], sum[names[i]], substr(names[i], 2, 3)
    print most, length(names[0]), index("amber lantern", "lan")
}
