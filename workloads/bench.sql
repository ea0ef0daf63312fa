-- Inserts, indexes, joins, aggregates, text and windows, all in memory.
pragma journal_mode = off;
create table item(id integer primary key, name text, price real, stock int);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 400000)
insert into item select i, 'item-' || (i * 7919 % 400009), (i * 31 % 977) / 4.0, i % 113 from n;
create index by_name on item(name);
create index by_stock on item(stock, price);
create table sale(item int, day int, amount int);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 600000)
insert into sale select i * 7907 % 400000 + 1, i * 17 % 365, i % 9 + 1 from n;
select count(*), round(sum(price), 2), min(name), max(name) from item;
select stock % 10, count(*), round(avg(price), 4) from item group by 1 order by 1;
select day, count(*), round(sum(s.amount * i.price), 2) from sale s join item i on i.id = s.item
  group by day having day % 50 = 0 order by day;
select count(*) from item where name like '%77%' and price between 10 and 200;
select round(sum(p), 2) from (select avg(price) over (partition by stock order by id rows 5 preceding) as p
  from item where id < 60000);
select count(distinct substr(name, 6, 3)), max(length(name)) from item;
update item set price = price * 1.01, name = upper(name) where stock < 20;
select count(*), round(sum(price), 2) from item where name in (select name from item where stock = 5);
delete from sale where day between 100 and 200;
select count(*), sum(amount) from sale;
