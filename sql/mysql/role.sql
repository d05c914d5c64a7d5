-- The account that the relay logs in as: it may read the binlog and the outbox and keep its
-- position, and nothing else.
CREATE USER IF NOT EXISTS :'role'@:'host' IDENTIFIED BY :'password';
-- The binlog. MariaDB takes the older words for REPLICATION REPLICA as well; MySQL knows only them.
GRANT REPLICATION SLAVE ON *.* TO :'role'@:'host';
-- Where the binlog ends and which files are left, for a first start and for `check`. MariaDB calls
-- it BINLOG MONITOR, and takes these words too.
GRANT REPLICATION CLIENT ON *.* TO :'role'@:'host';
-- The rows that are there at a first start.
GRANT SELECT ON :"schema".:"table" TO :'role'@:'host';
-- On MySQL that first read needs a moment without writers. MariaDB needs no lock, and gets no right.
GRANT LOCK TABLES ON :"lock_schema".* TO :'role'@:'host';
-- The position.
GRANT SELECT, INSERT, UPDATE ON :"position_schema".:"position_table" TO :'role'@:'host';
