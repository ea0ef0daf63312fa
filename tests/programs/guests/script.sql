create table item(id integer primary key, name text, price real, stock int);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)
insert into item select i, 'item-' || (i * 7919 % 2003), (i * 31 % 977) / 4.0, i % 13 from n;
create index by_name on item(name);
create table sale(item int references item, day int, amount int);
insert into sale select id, id * 17 % 365, stock + 1 from item where id % 3 = 0;
select count(*), sum(price), min(name), max(name) from item;
select stock, count(*), round(avg(price), 3) from item group by stock having count(*) > 10 order by 2 desc, 1;
select i.name, sum(s.amount * i.price) as total from sale s join item i on i.id = s.item
  where i.name like 'item-1%' group by i.name order by total desc, i.name limit 7;
update item set price = price * 1.1 where stock = 0;
delete from sale where day > 300;
select day, amount, sum(amount) over (order by day, item rows 3 preceding) from sale order by day, item limit 10;
select upper(substr(name, 1, 6)), length(name), hex(name) from item where id in (1, 999, 2000);
select json_extract('{"a":[1,2,{"b":3}]}', '$.a[2].b'), printf('%08.3f', 3.14159), 7 / 2, 7 / 2.0;
explain query plan select * from item where name = 'item-5';
pragma integrity_check;
select * from missing_table;
