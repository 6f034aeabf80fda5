-- HQ's main database, as far as a reader of locations needs it.
create table if not exists locations_locationtype (
    id serial primary key,
    domain varchar(255) not null,
    name varchar(255) not null,
    code varchar(50),
    parent_type_id integer references locations_locationtype (id) deferrable initially deferred,
    administrative boolean not null,
    shares_cases boolean not null,
    view_descendants boolean not null,
    expand_from_id integer references locations_locationtype (id) deferrable initially deferred,
    expand_from_root boolean not null,
    expand_to_id integer references locations_locationtype (id) deferrable initially deferred,
    include_without_expanding_id integer references locations_locationtype (id) deferrable initially deferred,
    restrict_cases_to_id integer references locations_locationtype (id) deferrable initially deferred,
    has_users boolean not null,
    emergency_level numeric(10, 1) not null,
    understock_threshold numeric(10, 1) not null,
    overstock_threshold numeric(10, 1) not null,
    last_modified timestamptz not null,
    unique (domain, code),
    unique (domain, name)
);
create index if not exists locations_locationtype_domain on locations_locationtype (domain);
create index if not exists locations_locationtype_code on locations_locationtype (code);
create index if not exists locations_locationtype_parent_type on locations_locationtype (parent_type_id);
create index if not exists locations_locationtype_last_modified on locations_locationtype (last_modified);

create table if not exists locations_locationtype_include_only (
    id serial primary key,
    from_locationtype_id integer not null references locations_locationtype (id) deferrable initially deferred,
    to_locationtype_id integer not null references locations_locationtype (id) deferrable initially deferred,
    unique (from_locationtype_id, to_locationtype_id)
);

create table if not exists locations_sqllocation (
    id serial primary key,
    domain varchar(255) not null,
    name varchar(255),
    location_id varchar(100) not null unique,
    location_type_id integer not null references locations_locationtype (id) deferrable initially deferred,
    site_code varchar(255) not null,
    external_id varchar(255),
    metadata text not null,
    created_at timestamptz not null,
    last_modified timestamptz not null,
    is_archived boolean not null,
    archived_on timestamptz,
    latitude numeric(20, 10),
    longitude numeric(20, 10),
    parent_id integer references locations_sqllocation (id) deferrable initially deferred,
    stocks_all_products boolean not null,
    supply_point_id varchar(255) unique,
    user_id varchar(255) not null,
    unique (domain, site_code)
);
create index if not exists locations_sqllocation_domain on locations_sqllocation (domain);
create index if not exists locations_sqllocation_parent on locations_sqllocation (parent_id);
create index if not exists locations_sqllocation_type on locations_sqllocation (location_type_id);
create index if not exists locations_sqllocation_last_modified on locations_sqllocation (last_modified);
create index if not exists locations_sqllocation_user on locations_sqllocation (user_id);

create table if not exists locations_sqllocation__products (
    id serial primary key,
    sqllocation_id integer not null references locations_sqllocation (id) deferrable initially deferred,
    sqlproduct_id integer not null,
    unique (sqllocation_id, sqlproduct_id)
);

-- Not of HQ: how far a simulated life has been played, so that it can be resumed.
create table if not exists simulated_hq_life (
    name text primary key,
    turns bigint not null
);
