-- Databases of the compose file: the simulated HQ's main database and two shards, and the lake's metastore.
create database hq_main;
create database hq_p1;
create database hq_p2;
create database lake_metastore;
