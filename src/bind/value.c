#include "bind/value.h"

#include "bind/array.h"
#include "bind/json.h"
#include "bind/number.h"
#include "pg/type.h"

#include <lauxlib.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/*
 * Every built-in array type but box[], whose elements are set apart by semicolons: it stays text.
 * Sorted by array. Source: PostgreSQL's src/include/catalog/pg_type.dat.
 */
static const struct {
    Oid array;
    Oid element;
} ARRAYS[] = {
    {143, 142}, {199, 114}, {271, 5069}, {629, 628}, {651, 650}, {719, 718}, {775, 774}, {791, 790},
    {1000, 16}, {1001, 17}, {1002, 18}, {1003, 19}, {1005, 21}, {1006, 22}, {1007, 23}, {1008, 24},
    {1009, 25}, {1010, 27}, {1011, 28}, {1012, 29}, {1013, 30}, {1014, 1042}, {1015, 1043},
    {1016, 20}, {1017, 600}, {1018, 601}, {1019, 602}, {1021, 700}, {1022, 701}, {1027, 604},
    {1028, 26}, {1034, 1033}, {1040, 829}, {1041, 869}, {1115, 1114}, {1182, 1082}, {1183, 1083},
    {1185, 1184}, {1187, 1186}, {1231, 1700}, {1263, 2275}, {1270, 1266}, {1561, 1560},
    {1563, 1562}, {2201, 1790}, {2207, 2202}, {2208, 2203}, {2209, 2204}, {2210, 2205},
    {2211, 2206}, {2287, 2249}, {2949, 2970}, {2951, 2950}, {3221, 3220}, {3643, 3614},
    {3644, 3642}, {3645, 3615}, {3735, 3734}, {3770, 3769}, {3807, 3802}, {3905, 3904},
    {3907, 3906}, {3909, 3908}, {3911, 3910}, {3913, 3912}, {3927, 3926}, {4073, 4072},
    {4090, 4089}, {4097, 4096}, {4192, 4191}, {5039, 5038}, {6150, 4451}, {6151, 4532},
    {6152, 4533}, {6153, 4534}, {6155, 4535}, {6157, 4536},
};

static int compare_array(const void *type, const void *entry)
{
    const Oid *left = type;
    const Oid *right = entry; /* the entry's first member */

    return (*left > *right) - (*left < *right);
}

Oid value_array_element(Oid type)
{
    size_t size = sizeof ARRAYS[0];
    const Oid *found = bsearch(&type, ARRAYS, sizeof ARRAYS / size, size, compare_array);

    return found == NULL ? 0 : found[1];
}

/*
 * Results. Each push_… pushes one value, or nothing and returns false if the text is not as the
 * server writes that type.
 */

/* Read an integer as the server writes one: no plus, no leading zeros. */
static bool read_integer(const char *text, size_t length, int64_t *value)
{
    const char *end = text + length;
    bool negative = length > 0 && *text == '-';
    int64_t result = 0;

    if (negative)
        text++;
    if (text == end || (*text == '0' && (negative || end - text > 1)))
        return false;
    for (; text < end; text++) {
        if (*text < '0' || *text > '9' || __builtin_mul_overflow(result, 10, &result))
            return false;
        if (negative ? __builtin_sub_overflow(result, *text - '0', &result)
                     : __builtin_add_overflow(result, *text - '0', &result))
            return false;
    }
    *value = result;
    return true;
}

static bool push_integer(lua_State *L, const char *text, size_t length)
{
    int64_t value;

    if (!read_integer(text, length, &value))
        return false;
    lua_pushinteger(L, value);
    return true;
}

/* No number that the server writes and we convert is longer. */
enum { NUMBER_LENGTH_MAX = 40 };

/* Push a finite float. */
static bool push_decimal(lua_State *L, const char *text, size_t length)
{
    char copy[NUMBER_LENGTH_MAX + 1];
    double value;

    if (length > NUMBER_LENGTH_MAX)
        return false;
    memcpy(copy, text, length);
    copy[length] = '\0';
    if (strlen(copy) != length || !number_parse(copy, &value))
        return false;
    lua_pushnumber(L, value);
    return true;
}

static bool is_word(const char *text, size_t length, const char *word)
{
    return strlen(word) == length && memcmp(text, word, length) == 0;
}

static bool push_float(lua_State *L, const char *text, size_t length)
{
    if (is_word(text, length, "NaN"))
        lua_pushnumber(L, (lua_Number)NAN);
    else if (is_word(text, length, "Infinity"))
        lua_pushnumber(L, (lua_Number)INFINITY);
    else if (is_word(text, length, "-Infinity"))
        lua_pushnumber(L, (lua_Number)-INFINITY);
    else
        return push_decimal(L, text, length);
    return true;
}

/*
 * Does this numeric come back from a float with the same text? Fractions with at most 15
 * significant digits do, in Lua and in the server (which casts float8 to numeric with as many),
 * but for zeros at the end, which a float does not keep.
 */
static bool fits_float(const char *text, size_t length)
{
    const char *end = text + length;
    int digits = 0;
    bool point = false;

    if (length > NUMBER_LENGTH_MAX || length == 0 || end[-1] == '0')
        return false;
    for (const char *p = *text == '-' ? text + 1 : text; p < end; p++) {
        if (*p == '.')
            point = true;
        else if (*p < '0' || *p > '9')
            return false;
        else if (digits > 0 || *p != '0')
            digits++;
    }
    return point && digits <= 15;
}

static bool push_numeric(lua_State *L, const char *text, size_t length)
{
    if (push_integer(L, text, length))
        return true;
    return fits_float(text, length) && push_decimal(L, text, length);
}

static bool push_bool(lua_State *L, const char *text, size_t length)
{
    if (length != 1 || (*text != 't' && *text != 'f'))
        return false;
    lua_pushboolean(L, *text == 't');
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* The bytes of "\xdeadbeef". */
static bool read_hex(const char *text, size_t length, char *bytes, size_t *count)
{
    if (length % 2 != 0)
        return false;
    for (size_t i = 2; i < length; i += 2) {
        int high = hex_digit(text[i]);
        int low = hex_digit(text[i + 1]);

        if (high < 0 || low < 0)
            return false;
        bytes[i / 2 - 1] = (char)(high << 4 | low);
    }
    *count = length / 2 - 1;
    return true;
}

static bool is_octal(char c)
{
    return c >= '0' && c <= '7';
}

/* The bytes of "a\\b\000", the text under bytea_output = escape. */
static bool read_escapes(const char *text, size_t length, char *bytes, size_t *count)
{
    const char *end = text + length;
    size_t n = 0;

    while (text < end) {
        if (*text != '\\') {
            bytes[n++] = *text++;
        } else if (end - text >= 2 && text[1] == '\\') {
            bytes[n++] = '\\';
            text += 2;
        } else if (end - text >= 4 && text[1] >= '0' && text[1] <= '3' && is_octal(text[2]) &&
                   is_octal(text[3])) {
            bytes[n++] = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
            text += 4;
        } else {
            return false;
        }
    }
    *count = n;
    return true;
}

static bool push_bytea(lua_State *L, const char *text, size_t length)
{
    bool hex = length >= 2 && text[0] == '\\' && text[1] == 'x';
    char *bytes = lua_newuserdatauv(L, hex ? length / 2 : length, 0);
    size_t count;
    bool ok = (hex ? read_hex : read_escapes)(text, length, bytes, &count);

    if (ok) {
        lua_pushlstring(L, bytes, count);
        lua_insert(L, -2);
    }
    lua_pop(L, 1);
    return ok;
}

static bool push_json(lua_State *L, const char *text, size_t length)
{
    Error err;

    return json_push(L, text, length, &err);
}

static bool push_typed(lua_State *L, Oid type, const char *text, size_t length)
{
    switch (type) {
    case TYPE_BOOL:
        return push_bool(L, text, length);
    case TYPE_INT2:
    case TYPE_INT4:
    case TYPE_INT8:
    case TYPE_OID:
        return push_integer(L, text, length);
    case TYPE_FLOAT4:
    case TYPE_FLOAT8:
        return push_float(L, text, length);
    case TYPE_NUMERIC:
        return push_numeric(L, text, length);
    case TYPE_BYTEA:
        return push_bytea(L, text, length);
    case TYPE_JSON:
    case TYPE_JSONB:
        return push_json(L, text, length);
    default:
        return false;
    }
}

void value_push(lua_State *L, Oid type, Oid element, const char *text, size_t length)
{
    Oid known = value_array_element(type);

    luaL_checkstack(L, 4, NULL);
    if (known != 0)
        element = known;
    if (text == NULL)
        lua_pushnil(L);
    else if (!(element != 0 && element != TYPE_BOX ? array_push(L, element, text, length)
                                                   : push_typed(L, type, text, length)))
        lua_pushlstring(L, text, length);
}

/*
 * Parameters.
 */

/* The protocol counts them with 16 bits; no value of the server's is longer than 1 GiB - 1. */
enum { COUNT_MAX = 65535, LENGTH_MAX = 0x3fffffff };

/*
 * Push a userdata that holds the arrays of *params. Its user value is for the list of the arrays'
 * texts for bytea[], if there are any.
 */
static void push_arrays(lua_State *L, ValueParams *params, int count)
{
    size_t n = (size_t)count;
    size_t size = n * (2 * sizeof(char *) + sizeof(Oid) + 2 * sizeof(int));
    char *memory = lua_newuserdatauv(L, size, 1);

    memset(memory, 0, size);
    params->count = count;
    params->ambiguous = false;
    params->values = (const char **)(void *)memory;
    params->bytea_arrays = params->values + n;
    params->types = (Oid *)(void *)(params->bytea_arrays + n);
    params->lengths = (int *)(void *)(params->types + n);
    params->formats = params->lengths + n;
}

/* Let parameter i be the string at the top of the stack, which stays there. */
static bool set_text(lua_State *L, ValueParams *params, int i, Oid type, Error *err)
{
    size_t length;
    const char *text = lua_tolstring(L, -1, &length);

    if (length > LENGTH_MAX)
        return error_usage(err, "parameter %d is longer than 1 GB", i + 1);
    params->values[i] = text;
    params->lengths[i] = (int)length;
    params->types[i] = type;
    return true;
}

static bool set_string(lua_State *L, ValueParams *params, int i, int index, Error *err)
{
    lua_pushvalue(L, index);
    if (!set_text(L, params, i, TYPE_INFER, err))
        return false;
    if (memchr(params->values[i], '\\', (size_t)params->lengths[i]) != NULL ||
        !text_is_utf8(params->values[i], (size_t)params->lengths[i]))
        params->ambiguous = true;
    return true;
}

static bool set_number(lua_State *L, ValueParams *params, int i, int index, Error *err)
{
    char text[NUMBER_SIZE];
    lua_Number number = lua_tonumber(L, index);

    if (lua_isinteger(L, index)) {
        lua_Integer integer = lua_tointeger(L, index);

        lua_pushfstring(L, "%I", (LUAI_UACINT)integer);
        return set_text(L, params, i, integer == (int32_t)integer ? TYPE_INT4 : TYPE_INT8, err);
    }
    if (isnan(number)) {
        lua_pushliteral(L, "NaN");
    } else if (isinf(number)) {
        lua_pushstring(L, number > 0 ? "Infinity" : "-Infinity");
    } else {
        number_text(number, text);
        lua_pushstring(L, text);
    }
    return set_text(L, params, i, TYPE_FLOAT8, err);
}

/* Put "parameter 2: " before the message of an error in the value. */
static bool name_parameter(Error *err, int i)
{
    char message[sizeof err->message];

    text_copy(message, sizeof message, err->message);
    return error_usage(err, "parameter %d: %s", i + 1, message);
}

/* Keep the string at the top of the stack, and pop it, as the text of parameter i for bytea[]. */
static bool keep_bytea_array(lua_State *L, ValueParams *params, int i, int arrays, Error *err)
{
    size_t length;
    const char *text = lua_tolstring(L, -1, &length);

    if (length > LENGTH_MAX)
        return error_usage(err, "parameter %d is longer than 1 GB", i + 1);
    if (lua_getiuservalue(L, arrays, 1) == LUA_TNIL) {
        lua_pop(L, 1);
        lua_newtable(L);
        lua_pushvalue(L, -1);
        lua_setiuservalue(L, arrays, 1);
    }
    lua_pushvalue(L, -2);
    lua_rawseti(L, -2, i + 1);
    lua_pop(L, 2);
    params->bytea_arrays[i] = text;
    params->ambiguous = true;
    return true;
}

static bool set_array(lua_State *L, ValueParams *params, int i, int index, int arrays, Error *err)
{
    ArrayInfo info;

    if (!array_encode(L, index, &info, err))
        return name_parameter(err, i);
    if (!info.ambiguous)
        lua_pop(L, 1);
    else if (!keep_bytea_array(L, params, i, arrays, err))
        return false;
    return set_text(L, params, i, info.type, err);
}

static bool set_table(lua_State *L, ValueParams *params, int i, int index, int arrays, Error *err)
{
    if (json_has_metatable(L, index, SQL_ARRAY_TNAME))
        return set_array(L, params, i, index, arrays, err);
    if (!json_encode(L, index, err))
        return name_parameter(err, i);
    return set_text(L, params, i, TYPE_JSONB, err);
}

/* Let parameter i be the value at `index`: pushes one value that keeps its text. */
static bool set_parameter(lua_State *L, ValueParams *params, int i, int index, int arrays,
                          Error *err)
{
    switch (lua_type(L, index)) {
    case LUA_TSTRING:
        return set_string(L, params, i, index, err);
    case LUA_TNUMBER:
        return set_number(L, params, i, index, err);
    case LUA_TTABLE:
        return set_table(L, params, i, index, arrays, err);
    case LUA_TBOOLEAN:
        lua_pushstring(L, lua_toboolean(L, index) ? "true" : "false");
        return set_text(L, params, i, TYPE_BOOL, err);
    case LUA_TNIL:
        lua_pushnil(L);
        return true;
    case LUA_TLIGHTUSERDATA:
        if (lua_touserdata(L, index) == NULL) {
            lua_pushnil(L);
            return true;
        }
        break;
    default:
        break;
    }
    return error_usage(err, "parameter %d is a %s", i + 1, luaL_typename(L, index));
}

bool value_params(lua_State *L, int first, ValueParams *params, Error *err)
{
    int top = lua_gettop(L);
    int count = top - first + 1;

    if (count > COUNT_MAX)
        return error_usage(err, "%d parameters; PostgreSQL takes %d at most", count, COUNT_MAX);
    luaL_checkstack(L, count + 8, "too many parameters");
    push_arrays(L, params, count);
    for (int i = 0; i < count; i++) {
        if (!set_parameter(L, params, i, first + i, top + 1, err)) {
            lua_settop(L, top);
            return false;
        }
    }
    return true;
}

bool value_params_settle(ValueParams *params, const Oid *inferred, Error *err)
{
    for (int i = 0; i < params->count; i++) {
        const char *text = params->values[i];
        size_t length = (size_t)params->lengths[i];

        if (text == NULL || params->types[i] != TYPE_INFER)
            continue;
        if (params->bytea_arrays[i] != NULL && inferred[i] == TYPE_BYTEA_ARRAY) {
            params->values[i] = params->bytea_arrays[i];
            params->lengths[i] = (int)strlen(params->values[i]);
            continue;
        }
        params->formats[i] = inferred[i] == TYPE_BYTEA;
        if (params->formats[i] == 1 || text_is_utf8(text, length))
            continue;
        return error_usage(err, "parameter %d %s; only bytea takes any bytes", i + 1,
                           memchr(text, '\0', length) != NULL ? "has a NUL byte"
                                                              : "is not valid UTF-8");
    }
    params->ambiguous = false;
    return true;
}
