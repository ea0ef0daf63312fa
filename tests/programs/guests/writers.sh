# Several processes write to one database, each in many transactions; readers look on.
sqlite3 shared.db 'pragma journal_mode = wal; create table entry (writer int, number int);
    create table total (value int); insert into total values (0);' > /dev/null
write() {
    for number in $(seq 12); do
        echo "begin immediate;"
        echo "insert into entry values ($1, $number);"
        echo "update total set value = value + $1;"
        echo "commit;"
    done | sqlite3 -cmd '.timeout 60000' shared.db || echo "writer $1 fails"
}
for writer in 1 2 3; do
    write $writer &
done
for look in 1 2 3; do
    sqlite3 -cmd '.timeout 60000' shared.db 'begin; select count(*) from entry group by null
        having sum(writer) <> (select value from total); commit;' || echo "a reader fails"
done
wait
sqlite3 shared.db 'select writer, count(*), sum(number) from entry group by writer;
    select value from total; pragma integrity_check; vacuum; pragma wal_checkpoint(truncate);'
rm -f shared.db shared.db-wal shared.db-shm
