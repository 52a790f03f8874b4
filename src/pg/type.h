/*
 * The oids of those built-in types whose values are more than text to us. They never change.
 * Source: PostgreSQL's src/include/catalog/pg_type.dat.
 */
#ifndef LOCKKEEPER_PG_TYPE_H
#define LOCKKEEPER_PG_TYPE_H

enum {
    TYPE_INFER = 0, /* as a parameter's type: the server infers it */
    TYPE_BOOL = 16,
    TYPE_BYTEA = 17,
    TYPE_INT8 = 20,
    TYPE_INT2 = 21,
    TYPE_INT4 = 23,
    TYPE_TEXT = 25,
    TYPE_OID = 26,
    TYPE_JSON = 114,
    TYPE_BOX = 603,
    TYPE_FLOAT4 = 700,
    TYPE_FLOAT8 = 701,
    TYPE_BOOL_ARRAY = 1000,
    TYPE_BYTEA_ARRAY = 1001,
    TYPE_INT2_ARRAY = 1005,
    TYPE_INT4_ARRAY = 1007,
    TYPE_TEXT_ARRAY = 1009,
    TYPE_INT8_ARRAY = 1016,
    TYPE_FLOAT8_ARRAY = 1022,
    TYPE_NUMERIC = 1700,
    TYPE_UUID = 2950,
    TYPE_JSONB = 3802,
};

#endif
