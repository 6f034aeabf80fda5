-- One of HQ's shard databases. `id` is a serial of this database alone.
create table if not exists form_processor_commcarecasesql (
    id serial primary key,
    case_id varchar(255) not null unique,
    domain varchar(255) not null,
    type varchar(255) not null,
    name varchar(255),
    owner_id varchar(255) not null,
    opened_on timestamptz,
    opened_by varchar(255),
    modified_on timestamptz not null,
    server_modified_on timestamptz not null,
    modified_by varchar(255) not null,
    closed boolean not null,
    closed_on timestamptz,
    closed_by varchar(255),
    deleted boolean not null,
    deleted_on timestamptz,
    deletion_id varchar(255),
    external_id varchar(255),
    location_id varchar(255),
    case_json text not null
);
create index if not exists form_processor_case_owner_modified
    on form_processor_commcarecasesql (owner_id, server_modified_on);
create index if not exists form_processor_case_domain_owner_closed
    on form_processor_commcarecasesql (domain, owner_id, closed);
create index if not exists form_processor_case_domain_external_type
    on form_processor_commcarecasesql (domain, external_id, type);
create index if not exists form_processor_case_domain_type on form_processor_commcarecasesql (domain, type);
create index if not exists form_processor_case_modified on form_processor_commcarecasesql (server_modified_on);
create index if not exists form_processor_case_deleted_on
    on form_processor_commcarecasesql (deleted_on) where deleted_on is not null;
create index if not exists form_processor_case_supply_point
    on form_processor_commcarecasesql (domain, location_id) where type = 'supply-point';

create table if not exists form_processor_commcarecaseindexsql (
    id serial primary key,
    case_id varchar(255) not null
        references form_processor_commcarecasesql (case_id) deferrable initially deferred,
    domain varchar(255) not null,
    identifier varchar(255) not null,
    referenced_id varchar(255) not null,
    referenced_type varchar(255) not null,
    relationship_id smallint not null check (relationship_id >= 0),
    unique (case_id, identifier)
);
create index if not exists form_processor_caseindex_domain_case
    on form_processor_commcarecaseindexsql (domain, case_id);
create index if not exists form_processor_caseindex_domain_referenced
    on form_processor_commcarecaseindexsql (domain, referenced_id);

create table if not exists form_processor_casetransaction (
    id bigserial primary key,
    case_id varchar(255) not null
        references form_processor_commcarecasesql (case_id) deferrable initially deferred,
    form_id varchar(255),
    sync_log_id varchar(255),
    server_date timestamptz not null,
    client_date timestamptz,
    type smallint not null check (type >= 0),
    revoked boolean not null,
    details text,
    unique (case_id, form_id, type)
);
create index if not exists form_processor_casetransaction_case_date
    on form_processor_casetransaction (case_id, server_date, sync_log_id);
create index if not exists form_processor_casetransaction_form on form_processor_casetransaction (form_id);

create table if not exists form_processor_caseattachmentsql (
    id serial primary key,
    case_id varchar(255) not null
        references form_processor_commcarecasesql (case_id) deferrable initially deferred,
    attachment_id uuid not null unique,
    name varchar(255) not null,
    content_type varchar(255),
    content_length integer,
    properties text not null,
    blob_id varchar(255) not null,
    blob_bucket varchar(255),
    md5 varchar(255) not null
);
create index if not exists form_processor_caseattachment_case on form_processor_caseattachmentsql (case_id);
create index if not exists form_processor_caseattachment_name on form_processor_caseattachmentsql (name);

create table if not exists form_processor_ledgervalue (
    id serial primary key,
    domain varchar(255) not null,
    case_id varchar(255) not null
        references form_processor_commcarecasesql (case_id) deferrable initially deferred,
    entry_id varchar(100) not null,
    section_id varchar(100) not null,
    balance integer not null,
    last_modified timestamptz not null,
    last_modified_form_id varchar(100),
    daily_consumption numeric(20, 5),
    unique (case_id, section_id, entry_id)
);
create index if not exists form_processor_ledgervalue_last_modified on form_processor_ledgervalue (last_modified);

create table if not exists form_processor_ledgertransaction (
    id serial primary key,
    form_id varchar(255) not null,
    server_date timestamptz not null,
    report_date timestamptz not null,
    type smallint not null check (type >= 0),
    case_id varchar(255) not null
        references form_processor_commcarecasesql (case_id) deferrable initially deferred,
    entry_id varchar(100) not null,
    section_id varchar(100) not null,
    user_defined_type varchar(20),
    delta bigint not null,
    updated_balance bigint not null
);
create index if not exists form_processor_ledgertransaction_case on form_processor_ledgertransaction (case_id);

-- The newest HQ also shows build_profile_id and form_load_time; their types are not known, so they are left out.
create table if not exists form_processor_xforminstancesql (
    id serial primary key,
    form_id varchar(255) not null unique,
    domain varchar(255) not null,
    app_id varchar(255),
    xmlns varchar(255) not null,
    user_id varchar(255),
    orig_id varchar(255),
    deprecated_form_id varchar(255),
    server_modified_on timestamptz,
    received_on timestamptz not null,
    edited_on timestamptz,
    deleted_on timestamptz,
    deletion_id varchar(255),
    auth_context text not null,
    openrosa_headers text not null,
    partial_submission boolean not null,
    submit_ip varchar(255),
    last_sync_token varchar(255),
    problem text,
    date_header timestamptz,
    build_id varchar(255),
    state smallint not null default 1 check (state >= 0),
    initial_processing_complete boolean not null,
    time_end timestamptz,
    time_start timestamptz,
    commcare_version varchar(8),
    app_version integer check (app_version >= 0)
);
create index if not exists form_processor_form_domain_state on form_processor_xforminstancesql (domain, state);
create index if not exists form_processor_form_domain_user on form_processor_xforminstancesql (domain, user_id);
create index if not exists form_processor_form_xmlns on form_processor_xforminstancesql (xmlns);
create index if not exists form_processor_form_received on form_processor_xforminstancesql (received_on);
create index if not exists form_processor_form_modified on form_processor_xforminstancesql (server_modified_on);
create index if not exists form_processor_form_deleted_on
    on form_processor_xforminstancesql (deleted_on) where deleted_on is not null;

create table if not exists form_processor_xformoperationsql (
    id serial primary key,
    form_id varchar(255) not null
        references form_processor_xforminstancesql (form_id) deferrable initially deferred,
    user_id varchar(255),
    operation varchar(255) not null,
    date timestamptz not null
);
create index if not exists form_processor_formoperation_form on form_processor_xformoperationsql (form_id);

-- Retired by HQ in 2018/19; old installations still have it, empty.
create table if not exists form_processor_xformattachmentsql (
    id serial primary key,
    form_id varchar(255) not null
        references form_processor_xforminstancesql (form_id) deferrable initially deferred,
    attachment_id uuid not null unique,
    content_type varchar(255) not null,
    content_length integer,
    blob_id varchar(255) not null,
    blob_bucket varchar(255),
    name varchar(255) not null,
    md5 varchar(255) not null,
    properties text not null
);

create table if not exists blobs_blobmeta (
    id bigserial primary key,
    domain varchar(255) not null,
    parent_id varchar(255) not null,
    name varchar(255) not null default '',
    key varchar(255) not null unique,
    type_code smallint not null check (type_code >= 0),
    content_length bigint not null check (content_length >= 0),
    compressed_length bigint,
    content_type varchar(255),
    properties text,
    created_on timestamptz not null,
    expires_on timestamptz
);
create index if not exists blobs_blobmeta_parent on blobs_blobmeta (parent_id, type_code, name);
create index if not exists blobs_blobmeta_expires on blobs_blobmeta (expires_on) where expires_on is not null;

create table if not exists blobs_deletedblobmeta (
    id bigint primary key,
    domain varchar(255) not null,
    parent_id varchar(255) not null,
    name varchar(255) not null,
    key varchar(255) not null,
    type_code smallint not null check (type_code >= 0),
    created_on timestamptz not null,
    deleted_on timestamptz not null
);
