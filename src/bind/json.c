#include "bind/json.h"

#include "bind/args.h"
#include "bind/buffer.h"
#include "bind/number.h"

#include <inttypes.h>
#include <jansson.h>
#include <lauxlib.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is nested deeper is not written: most likely a mistake, and others refuse to read it. */
enum { DEPTH_MAX = 1000 };

void json_push_null(lua_State *L)
{
    lua_pushlightuserdata(L, NULL);
}

bool json_has_metatable(lua_State *L, int index, const char *tname)
{
    bool same;

    if (!lua_getmetatable(L, index))
        return false;
    luaL_getmetatable(L, tname);
    same = lua_rawequal(L, -1, -2);
    lua_pop(L, 2);
    return same;
}

/*
 * Reading.
 *
 * Jansson's tree belongs to a userdata while Lua's is made, as making that can raise.
 */

static const char TREE_TNAME[] = "lockkeeper.json_tree";

static int tree_gc(lua_State *L)
{
    json_t **tree = luaL_checkudata(L, 1, TREE_TNAME);

    json_decref(*tree);
    *tree = NULL;
    return 0;
}

static json_t **push_tree(lua_State *L)
{
    json_t **tree;

    luaL_newmetatable(L, TREE_TNAME);
    lua_pushcfunction(L, tree_gc); /* always: memory may have run out here the first time */
    lua_setfield(L, -2, "__gc");
    tree = lua_newuserdatauv(L, sizeof *tree, 0);
    *tree = NULL;
    lua_rotate(L, -2, 1);
    lua_setmetatable(L, -2);
    return tree;
}

/* The end of the number that begins at p; *is_long: an integer that int64 can't hold. */
static const char *skip_number(const char *p, const char *end, bool *is_long)
{
    const char *digits = *p == '-' ? p + 1 : p;
    const char *limit = *p == '-' ? "9223372036854775808" : "9223372036854775807";
    size_t limit_length = strlen(limit);
    const char *stop = digits;
    size_t length;

    while (stop < end && *stop >= '0' && *stop <= '9')
        stop++;
    length = (size_t)(stop - digits);
    *is_long = length > limit_length ||
               (length == limit_length && memcmp(digits, limit, limit_length) > 0);
    while (stop < end && *stop != '\0' && strchr("0123456789+-.eE", *stop) != NULL) {
        *is_long = false; /* a fraction or an exponent: no integer */
        stop++;
    }
    return stop;
}

/*
 * Copy the JSON text to `out` with ".0" after each integer that int64 can't hold, so that Jansson
 * reads those, and only those, as floats. Returns the length. With out == NULL it only counts.
 */
static size_t widen_integers(const char *text, size_t length, char *out)
{
    const char *end = text + length;
    size_t written = 0;
    bool quoted = false;

    while (text < end) {
        const char *start = text;
        bool is_long = false;

        if (quoted && *text == '\\' && end - text > 1)
            text += 2;
        else if (!quoted && (*text == '-' || (*text >= '0' && *text <= '9')))
            text = skip_number(text, end, &is_long);
        else if (*text++ == '"')
            quoted = !quoted;
        if (out != NULL) {
            memcpy(out + written, start, (size_t)(text - start));
            if (is_long)
                memcpy(out + written + (text - start), ".0", 2);
        }
        written += (size_t)(text - start) + (is_long ? 2 : 0);
    }
    return written;
}

/* Jansson asserts that a decimal sign is one byte, which not every locale's is. */
static json_t *load(const char *text, size_t length, json_error_t *problem)
{
    locale_t earlier = number_locale_begin();
    json_t *tree = json_loadb(text, length, JSON_DECODE_ANY | JSON_ALLOW_NUL, problem);

    number_locale_end(earlier);
    return tree;
}

/* Parse `text` into *tree, which the userdata at the top of the stack owns. */
static bool parse(lua_State *L, json_t **tree, const char *text, size_t length, Error *err)
{
    json_error_t problem;

    *tree = load(text, length, &problem);
    if (*tree == NULL && json_error_code(&problem) == json_error_numeric_overflow) {
        size_t widened_length = widen_integers(text, length, NULL);
        char *widened = lua_newuserdatauv(L, widened_length, 0);

        widen_integers(text, length, widened);
        *tree = load(widened, widened_length, &problem);
        lua_pop(L, 1);
    }
    if (*tree != NULL)
        return true;
    if (json_error_code(&problem) == json_error_out_of_memory)
        luaL_error(L, "not enough memory");
    return error_usage(err, "invalid JSON at line %d, column %d: %s", problem.line, problem.column,
                       problem.text);
}

static int table_size(size_t size)
{
    return size > INT_MAX ? INT_MAX : (int)size;
}

static bool push_value(lua_State *L, json_t *value);

static bool push_object(lua_State *L, json_t *object)
{
    lua_createtable(L, 0, table_size(json_object_size(object)));
    for (void *i = json_object_iter(object); i != NULL; i = json_object_iter_next(object, i)) {
        lua_pushstring(L, json_object_iter_key(i)); /* Jansson takes no NUL in keys */
        if (!push_value(L, json_object_iter_value(i)))
            return false;
        lua_rawset(L, -3);
    }
    return true;
}

static bool push_array(lua_State *L, json_t *array)
{
    size_t size = json_array_size(array);

    lua_createtable(L, table_size(size), 0);
    for (size_t i = 0; i < size; i++) {
        if (!push_value(L, json_array_get(array, i)))
            return false;
        lua_rawseti(L, -2, (lua_Integer)i + 1);
    }
    if (size == 0) {
        luaL_newmetatable(L, JSON_ARRAY_TNAME);
        lua_setmetatable(L, -2);
    }
    return true;
}

/* False if the Lua stack can't grow. Jansson has limited the depth (to 2048). */
static bool push_value(lua_State *L, json_t *value)
{
    if (!lua_checkstack(L, 4))
        return false;
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return push_object(L, value);
    case JSON_ARRAY:
        return push_array(L, value);
    case JSON_STRING:
        lua_pushlstring(L, json_string_value(value), json_string_length(value));
        break;
    case JSON_INTEGER:
        lua_pushinteger(L, json_integer_value(value));
        break;
    case JSON_REAL:
        lua_pushnumber(L, json_real_value(value));
        break;
    case JSON_TRUE:
        lua_pushboolean(L, true);
        break;
    case JSON_FALSE:
        lua_pushboolean(L, false);
        break;
    case JSON_NULL:
        json_push_null(L);
        break;
    }
    return true;
}

bool json_push(lua_State *L, const char *text, size_t length, Error *err)
{
    json_t **tree;
    int top = lua_gettop(L);
    bool ok;

    luaL_checkstack(L, 6, NULL);
    tree = push_tree(L);
    ok = parse(L, tree, text, length, err);
    if (ok && !push_value(L, *tree))
        ok = error_usage(err, "this JSON is nested too deep for Lua's stack");
    json_decref(*tree);
    *tree = NULL;
    if (ok)
        lua_replace(L, top + 1);
    lua_settop(L, ok ? top + 1 : top);
    return ok;
}

/*
 * Writing.
 *
 * By hand, because Jansson writes floats with a fixed number of digits and would need a second
 * tree. A Place is where in the value the writer is; the chain of them up to the root makes the
 * path in an error, and shows cycles.
 */

typedef struct Place {
    const struct Place *up; /* the table that this value is in; NULL at the root */
    const void *table;      /* this value, if it is a table */
    const char *key;        /* in an object; NULL in a list */
    size_t key_length;
    lua_Integer index; /* in a list */
} Place;

typedef struct {
    lua_State *L;
    PQExpBuffer out;
    int depth;
    Error *err;
} Encoder;

static bool is_name(const char *text, size_t length)
{
    static const char NAME[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";

    return length > 0 && strspn(text, NAME) == length && !(text[0] >= '0' && text[0] <= '9');
}

/* Append "value.rows[3].at". */
static void append_path(PQExpBuffer out, const Place *place)
{
    if (place->up == NULL) {
        appendPQExpBufferStr(out, "value");
        return;
    }
    append_path(out, place->up);
    if (place->key == NULL)
        appendPQExpBuffer(out, "[%" PRId64 "]", (int64_t)place->index);
    else if (is_name(place->key, place->key_length))
        appendPQExpBuffer(out, ".%s", place->key);
    else if (text_is_utf8(place->key, place->key_length))
        appendPQExpBuffer(out, "[\"%s\"]", place->key);
    else
        appendPQExpBufferStr(out, "[\"?\"]");
}

static bool refuse(Encoder *e, const Place *place, const char *what)
{
    char shown[512];
    PQExpBufferData path;

    initPQExpBuffer(&path);
    append_path(&path, place);
    text_copy(shown, sizeof shown, path.data);
    termPQExpBuffer(&path);
    return error_usage(e->err, "%s %s", shown, what);
}

/* Is this UTF-8? NUL is fine: JSON writes it as \u0000. */
static bool is_json_text(const char *text, size_t length)
{
    const char *end = text + length;

    for (;;) {
        const char *nul = memchr(text, '\0', (size_t)(end - text));

        if (!text_is_utf8(text, (size_t)((nul == NULL ? end : nul) - text)))
            return false;
        if (nul == NULL)
            return true;
        text = nul + 1;
    }
}

static void append_escape(PQExpBuffer out, unsigned char c)
{
    static const char LETTERS[] = "b\bf\fn\nr\rt\t\"\"\\\\";

    for (const char *p = LETTERS; *p != '\0'; p += 2) {
        if ((unsigned char)p[1] == c) {
            appendPQExpBufferChar(out, '\\');
            appendPQExpBufferChar(out, p[0]);
            return;
        }
    }
    appendPQExpBuffer(out, "\\u%04x", c);
}

/* Controls are escaped, also DEL and C1 (U+0080 to U+009F, in UTF-8 C2 and a byte), which JSON would
 * allow: what is printed here is often others' text, and does nothing to a terminal. */
static void append_string(PQExpBuffer out, const char *text, size_t length)
{
    size_t start = 0;

    appendPQExpBufferChar(out, '"');
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];

        bool is_c1 = c == 0xC2 && i + 1 < length && (unsigned char)text[i + 1] < 0xA0;

        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7F && !is_c1)
            continue;
        appendBinaryPQExpBuffer(out, text + start, i - start);
        append_escape(out, is_c1 ? (unsigned char)text[++i] : c);
        start = i + 1;
    }
    appendBinaryPQExpBuffer(out, text + start, length - start);
    appendPQExpBufferChar(out, '"');
}

static void append_integer(PQExpBuffer out, lua_Integer value)
{
    char text[NUMBER_SIZE];

    snprintf(text, sizeof text, LUA_INTEGER_FMT, value);
    appendPQExpBufferStr(out, text);
}

static bool encode_float(Encoder *e, const Place *place, double value)
{
    char text[NUMBER_SIZE];

    if (isnan(value))
        return refuse(e, place, "is NaN, which JSON can't hold");
    if (isinf(value))
        return refuse(e, place, "is infinite, which JSON can't hold");
    number_text(value, text);
    appendPQExpBufferStr(e->out, text);
    if (strpbrk(text, ".e") == NULL)
        appendPQExpBufferStr(e->out, ".0"); /* reads back as a float */
    return true;
}

static bool encode_value(Encoder *e, Place *place);

static bool encode_list(Encoder *e, const Place *place, lua_Integer length)
{
    Place inner = {.up = place};

    appendPQExpBufferChar(e->out, '[');
    for (inner.index = 1; inner.index <= length; inner.index++) {
        bool ok;

        if (inner.index > 1)
            appendPQExpBufferChar(e->out, ',');
        lua_rawgeti(e->L, -1, inner.index);
        ok = encode_value(e, &inner);
        lua_pop(e->L, 1);
        if (!ok)
            return false;
    }
    appendPQExpBufferChar(e->out, ']');
    return true;
}

typedef struct {
    const char *text;
    size_t length;
    lua_Integer index; /* in the list of keys that keeps the text alive */
} Key;

static int compare_keys(const void *a, const void *b)
{
    const Key *left = a;
    const Key *right = b;
    size_t shorter = left->length < right->length ? left->length : right->length;
    int order = memcmp(left->text, right->text, shorter);

    if (order != 0)
        return order;
    return (left->length > right->length) - (left->length < right->length);
}

/*
 * Push a userdata with the sorted keys of the table at the top of the stack, after a list of the
 * same keys. Returns them, at most `count`: making room can run finalizers, which can change the
 * table, but from then on nothing allocates until the keys are safe in the list.
 */
static Key *push_sorted_keys(lua_State *L, lua_Integer *count)
{
    lua_Integer found = 0;
    Key *keys;

    lua_createtable(L, table_size((size_t)*count), 0);
    keys = lua_newuserdatauv(L, (size_t)*count * sizeof *keys, 0);
    lua_pushnil(L);
    while (lua_next(L, -4)) {
        lua_pop(L, 1);
        if (found == *count || lua_type(L, -1) != LUA_TSTRING) {
            lua_pop(L, 1);
            break;
        }
        lua_pushvalue(L, -1);
        keys[found].text = lua_tolstring(L, -1, &keys[found].length);
        keys[found].index = found + 1;
        lua_rawseti(L, -4, found + 1);
        found++;
    }
    qsort(keys, (size_t)found, sizeof *keys, compare_keys);
    *count = found;
    return keys;
}

static bool encode_object(Encoder *e, const Place *place, lua_Integer count)
{
    lua_State *L = e->L;
    Place inner = {.up = place};
    const Key *keys;
    bool ok = true;

    if (count == 0) {
        appendPQExpBufferStr(e->out, "{}");
        return true;
    }
    keys = push_sorted_keys(L, &count);
    appendPQExpBufferChar(e->out, '{');
    for (lua_Integer i = 0; i < count && ok; i++) {
        inner.key = keys[i].text;
        inner.key_length = keys[i].length;
        if (!is_json_text(inner.key, inner.key_length)) {
            ok = refuse(e, place, "has a key that is not valid UTF-8");
            break;
        }
        if (i > 0)
            appendPQExpBufferChar(e->out, ',');
        append_string(e->out, inner.key, inner.key_length);
        appendPQExpBufferChar(e->out, ':');
        lua_rawgeti(L, -2, keys[i].index);
        lua_rawget(L, -4);
        ok = encode_value(e, &inner);
        lua_pop(L, 1);
    }
    appendPQExpBufferChar(e->out, '}');
    lua_pop(L, 2);
    return ok;
}

typedef enum { SHAPE_LIST, SHAPE_OBJECT, SHAPE_NEITHER } Shape;

/*
 * What is the table at the top of the stack? *count: its elements or its keys. An array that says
 * so may have holes, as its length can't tell them from null.
 */
static Shape table_shape(lua_State *L, lua_Integer *count)
{
    lua_Integer length = (lua_Integer)lua_rawlen(L, -1);
    lua_Integer strings = 0;
    lua_Integer elements = 0; /* with keys from 1 to length */
    lua_Integer others = 0;

    lua_pushnil(L);
    while (lua_next(L, -2)) {
        lua_pop(L, 1);
        if (lua_type(L, -1) == LUA_TSTRING)
            strings++;
        else if (lua_isinteger(L, -1) && lua_tointeger(L, -1) >= 1 &&
                 lua_tointeger(L, -1) <= length)
            elements++;
        else
            others++;
    }
    if (json_has_metatable(L, -1, JSON_ARRAY_TNAME) || json_has_metatable(L, -1, SQL_ARRAY_TNAME)) {
        *count = length;
        return strings + others == 0 ? SHAPE_LIST : SHAPE_NEITHER;
    }
    *count = strings + elements;
    if (others > 0 || elements != length || (strings > 0 && elements > 0))
        return SHAPE_NEITHER;
    return elements > 0 ? SHAPE_LIST : SHAPE_OBJECT;
}

static bool encode_table(Encoder *e, Place *place)
{
    lua_Integer count;
    bool ok = false;

    place->table = lua_topointer(e->L, -1);
    for (const Place *p = place->up; p != NULL; p = p->up) {
        if (p->table == place->table)
            return refuse(e, place, "is a table that it stands in: a cycle");
    }
    if (e->depth == DEPTH_MAX || !lua_checkstack(e->L, 8))
        return refuse(e, place, "is nested too deep");
    e->depth++;
    switch (table_shape(e->L, &count)) {
    case SHAPE_LIST:
        ok = encode_list(e, place, count);
        break;
    case SHAPE_OBJECT:
        ok = encode_object(e, place, count);
        break;
    case SHAPE_NEITHER:
        ok = refuse(e, place, "has keys that are neither all texts nor 1..n");
        break;
    }
    e->depth--;
    return ok;
}

/* Write the value at the top of the stack, and leave it there. */
static bool encode_value(Encoder *e, Place *place)
{
    lua_State *L = e->L;
    const char *text;
    size_t length;

    switch (lua_type(L, -1)) {
    case LUA_TNIL:
        appendPQExpBufferStr(e->out, "null");
        return true;
    case LUA_TBOOLEAN:
        appendPQExpBufferStr(e->out, lua_toboolean(L, -1) ? "true" : "false");
        return true;
    case LUA_TNUMBER:
        if (!lua_isinteger(L, -1))
            return encode_float(e, place, lua_tonumber(L, -1));
        append_integer(e->out, lua_tointeger(L, -1));
        return true;
    case LUA_TSTRING:
        text = lua_tolstring(L, -1, &length);
        if (!is_json_text(text, length))
            return refuse(e, place, "is not valid UTF-8");
        append_string(e->out, text, length);
        return true;
    case LUA_TTABLE:
        return encode_table(e, place);
    case LUA_TLIGHTUSERDATA:
        if (lua_touserdata(L, -1) == NULL) {
            appendPQExpBufferStr(e->out, "null");
            return true;
        }
        return refuse(e, place, "is a userdata");
    case LUA_TUSERDATA:
        return refuse(e, place, "is a userdata");
    case LUA_TFUNCTION:
        return refuse(e, place, "is a function");
    default:
        return refuse(e, place, "is a thread");
    }
}

bool json_encode(lua_State *L, int index, Error *err)
{
    Encoder e = {.L = L, .err = err};
    Place root = {.up = NULL};
    int top = lua_gettop(L);

    index = lua_absindex(L, index);
    luaL_checkstack(L, 8, NULL);
    e.out = buffer_push(L);
    lua_pushvalue(L, index);
    if (!encode_value(&e, &root)) {
        lua_settop(L, top + 1);
        buffer_pop(L);
        return false;
    }
    lua_pop(L, 1);
    buffer_to_string(L);
    return true;
}

static int json_encode_lua(lua_State *L)
{
    Error err;

    if (lua_isnone(L, 1))
        args_usage(L, "json.encode takes a value");
    return json_encode(L, 1, &err) ? 1 : args_raise(L, &err);
}

static int json_decode_lua(lua_State *L)
{
    Error err;
    size_t length;
    const char *text;

    if (lua_type(L, 1) != LUA_TSTRING)
        args_usage(L, "json.decode takes a text, not %s", luaL_typename(L, 1));
    text = lua_tolstring(L, 1, &length);
    return json_push(L, text, length, &err) ? 1 : args_raise(L, &err);
}

void json_push_library(lua_State *L)
{
    static const luaL_Reg functions[] = {
        {"encode", json_encode_lua}, {"decode", json_decode_lua}, {NULL, NULL}};

    luaL_newlib(L, functions);
}
