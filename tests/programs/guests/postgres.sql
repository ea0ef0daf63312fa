\set VERBOSITY terse
create table item (id serial primary key, name text unique, price numeric(10, 2), made date);
insert into item (name, price, made)
  select 'item ' || i, (i * 37 % 1000) / 7.0, date '2020-01-01' + i % 700
  from generate_series(1, 20000) i;
create index on item (price);
analyze item;
select count(*), sum(price), min(made), max(name) from item;
select made, avg(price)::numeric(12, 4), stddev(price)::numeric(12, 4)
  from item group by made having count(*) > 28 order by made limit 5;
-- With workers.
set max_parallel_workers_per_gather = 2;
set parallel_setup_cost = 0;
set parallel_tuple_cost = 0;
set min_parallel_table_scan_size = 0;
select count(*), sum(length(name)) from item where md5(name) like '%a%';
select count(*) from item a join item b on a.id = b.id + 1 where a.price < b.price;
-- Errors that unwind by siglongjmp, and time limits that a timer's signal ends.
insert into item (name) values ('item 1');
select 1 / (id - 5) from item where id < 10;
set statement_timeout = '150ms';
select pg_sleep(30);
select count(*) from item a, item b, item c;
reset statement_timeout;
begin;
update item set price = price + 1 where id <= 100;
savepoint here;
delete from item;
rollback to here;
select sum(price) from item where id <= 100;
commit;
create function triangle(n int) returns int language plpgsql as $$
declare total int := 0;
begin
  for i in 1 .. n loop
    total := total + i;
  end loop;
  return total;
exception when numeric_value_out_of_range then
  return -1;
end $$;
select triangle(1000), triangle(100000);
create materialized view cheap as select * from item where price < 10;
select count(*) from cheap;
vacuum full item;
checkpoint;
select count(*) from item where name ~ '^item [0-9]*7$';
select array_agg(word order by word) from regexp_split_to_table('some words in a row', ' ') word;
select jsonb_pretty('{"a": [1, {"b": null}], "c": 1.50}'::jsonb);
select to_char(timestamp '2021-03-04 05:06:07', 'Day DD Mon YYYY HH24:MI:SS');
select sqrt(2), exp(1.5), power(2.5, 3.5), sin(1), 10 ^ 300 * 1e8;
\copy (select id, name from item order by id limit 3) to stdout
