#include "bind/array.h"

#include "bind/buffer.h"
#include "bind/json.h"
#include "bind/number.h"
#include "bind/value.h"
#include "pg/type.h"

#include <inttypes.h>
#include <lauxlib.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* PostgreSQL's MAXDIM: no array is deeper. */
enum { DIMENSIONS_MAX = 6 };

/*
 * Reading.
 */

typedef struct {
    lua_State *L;
    const char *at;
    const char *end;
    Oid element;
    char *scratch; /* room for any element, without its escapes; Lua's */
} Reader;

static bool accept(Reader *r, char c)
{
    if (r->at == r->end || *r->at != c)
        return false;
    r->at++;
    return true;
}

/* Push an element that is in double quotes, of which the first was read. */
static bool read_quoted(Reader *r)
{
    size_t length = 0;

    while (r->at < r->end && *r->at != '"') {
        if (*r->at == '\\')
            r->at++;
        if (r->at == r->end)
            return false;
        r->scratch[length++] = *r->at++;
    }
    if (!accept(r, '"'))
        return false;
    value_push(r->L, r->element, 0, r->scratch, length);
    return true;
}

/* Push an element without quotes. The server quotes whatever looks like syntax. */
static bool read_bare(Reader *r)
{
    const char *start = r->at;
    size_t length;

    while (r->at < r->end && *r->at != ',' && *r->at != '}') {
        if (*r->at == '"' || *r->at == '{' || *r->at == '\\')
            return false;
        r->at++;
    }
    length = (size_t)(r->at - start);
    if (length == 0)
        return false;
    if (length == 4 && memcmp(start, "NULL", 4) == 0)
        json_push_null(r->L);
    else
        value_push(r->L, r->element, 0, start, length);
    return true;
}

/* Push the list that begins here. */
static bool read_list(Reader *r, int dimension)
{
    if (dimension > DIMENSIONS_MAX || !accept(r, '{'))
        return false;
    luaL_checkstack(r->L, 4, NULL);
    lua_newtable(r->L);
    if (accept(r, '}'))
        return true;
    for (lua_Integer i = 1;; i++) {
        bool ok;

        if (r->at < r->end && *r->at == '{')
            ok = read_list(r, dimension + 1);
        else if (accept(r, '"'))
            ok = read_quoted(r);
        else
            ok = read_bare(r);
        if (!ok)
            return false;
        lua_rawseti(r->L, -2, i);
        if (accept(r, '}'))
            return true;
        if (!accept(r, ','))
            return false;
    }
}

static bool skip_integer(Reader *r)
{
    const char *start;

    if (!accept(r, '-'))
        accept(r, '+');
    start = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9')
        r->at++;
    return r->at > start;
}

/* Go past "[0:1][-2:5]=": the bounds, where they don't begin at 1. */
static bool skip_bounds(Reader *r)
{
    bool any = false;

    while (accept(r, '[')) {
        if (!skip_integer(r) || !accept(r, ':') || !skip_integer(r) || !accept(r, ']'))
            return false;
        any = true;
    }
    return !any || accept(r, '=');
}

bool array_push(lua_State *L, Oid element, const char *text, size_t length)
{
    Reader r = {.L = L, .at = text, .end = text + length, .element = element};
    int top = lua_gettop(L);

    luaL_checkstack(L, 2, NULL);
    r.scratch = lua_newuserdatauv(L, memchr(text, '"', length) == NULL ? 0 : length, 0);
    if (!skip_bounds(&r) || !read_list(&r, 1) || r.at != r.end) {
        lua_settop(L, top);
        return false;
    }
    lua_remove(L, top + 1);
    return true;
}

/*
 * Writing: one pass checks the list and finds its type, a second writes it. Between the two
 * nothing is allocated in Lua, so that no finalizer can change the list.
 */

typedef struct {
    lua_State *L;
    lua_Integer path[DIMENSIONS_MAX];
    int dimension; /* of the list at the top of the stack, from 1 */
    bool has_int4, has_int8, has_float, has_bool, has_string;
    bool ambiguous;
    Error *err;
} Scanner;

static bool refuse(const Scanner *s, const char *what)
{
    char path[DIMENSIONS_MAX * 24 + 1] = "";
    size_t length = 0;

    for (int i = 0; i < s->dimension; i++)
        length += (size_t)snprintf(path + length, sizeof path - length, "[%" PRId64 "]",
                                   (int64_t)s->path[i]);
    return error_usage(s->err, "array%s %s", path, what);
}

/* Has the table at the top of the stack no keys but 1..its length? */
static bool is_list(lua_State *L)
{
    lua_Integer length = (lua_Integer)lua_rawlen(L, -1);

    lua_pushnil(L);
    while (lua_next(L, -2)) {
        lua_pop(L, 1);
        if (!lua_isinteger(L, -1) || lua_tointeger(L, -1) < 1 || lua_tointeger(L, -1) > length) {
            lua_pop(L, 1);
            return false;
        }
    }
    return true;
}

static bool scan_list(Scanner *s);

/* Check the element at the top of the stack. */
static bool scan_element(Scanner *s)
{
    lua_State *L = s->L;
    const char *text;
    size_t length;

    switch (lua_type(L, -1)) {
    case LUA_TNIL:
        return true;
    case LUA_TLIGHTUSERDATA:
        return lua_touserdata(L, -1) == NULL || refuse(s, "is a userdata");
    case LUA_TBOOLEAN:
        s->has_bool = true;
        return true;
    case LUA_TNUMBER:
        if (!lua_isinteger(L, -1))
            s->has_float = true;
        else if (lua_tointeger(L, -1) == (int32_t)lua_tointeger(L, -1))
            s->has_int4 = true;
        else
            s->has_int8 = true;
        return true;
    case LUA_TSTRING:
        text = lua_tolstring(L, -1, &length);
        s->has_string = true;
        s->ambiguous |= memchr(text, '\\', length) != NULL || !text_is_utf8(text, length);
        return true;
    case LUA_TTABLE:
        return scan_list(s);
    case LUA_TUSERDATA:
        return refuse(s, "is a userdata");
    case LUA_TFUNCTION:
        return refuse(s, "is a function");
    default:
        return refuse(s, "is a thread");
    }
}

static bool scan_list(Scanner *s)
{
    lua_State *L = s->L;
    lua_Integer length = (lua_Integer)lua_rawlen(L, -1);

    if (s->dimension == DIMENSIONS_MAX)
        return refuse(s, "is a list, but an array has at most 6 dimensions");
    if (!is_list(L))
        return refuse(s, "is a table whose keys are not 1..n");
    s->dimension++;
    for (lua_Integer i = 1; i <= length; i++) {
        bool ok;

        s->path[s->dimension - 1] = i;
        lua_rawgeti(L, -1, i);
        ok = scan_element(s);
        lua_pop(L, 1);
        if (!ok)
            return false;
    }
    s->dimension--;
    return true;
}

static Oid scanned_type(const Scanner *s)
{
    bool has_number = s->has_int4 || s->has_int8 || s->has_float;

    if (s->has_string || (s->has_bool && has_number))
        return TYPE_INFER;
    if (s->has_float)
        return TYPE_FLOAT8_ARRAY;
    if (s->has_int8)
        return TYPE_INT8_ARRAY;
    if (s->has_int4)
        return TYPE_INT4_ARRAY;
    return s->has_bool ? TYPE_BOOL_ARRAY : TYPE_INFER;
}

typedef void WriteString(PQExpBuffer out, const char *text, size_t length);

static void write_text(PQExpBuffer out, const char *text, size_t length)
{
    size_t start = 0;

    appendPQExpBufferChar(out, '"');
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '"' || text[i] == '\\') {
            appendBinaryPQExpBuffer(out, text + start, i - start);
            appendPQExpBufferChar(out, '\\');
            start = i;
        }
    }
    appendBinaryPQExpBuffer(out, text + start, length - start);
    appendPQExpBufferChar(out, '"');
}

static void write_bytes(PQExpBuffer out, const char *text, size_t length)
{
    static const char DIGITS[] = "0123456789abcdef";

    appendPQExpBufferStr(out, "\"\\\\x");
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];

        appendPQExpBufferChar(out, DIGITS[byte >> 4]);
        appendPQExpBufferChar(out, DIGITS[byte & 0x0f]);
    }
    appendPQExpBufferChar(out, '"');
}

static void write_number(PQExpBuffer out, lua_State *L)
{
    char text[NUMBER_SIZE];
    lua_Number number = lua_tonumber(L, -1);

    if (lua_isinteger(L, -1))
        snprintf(text, sizeof text, LUA_INTEGER_FMT, lua_tointeger(L, -1));
    else if (isnan(number))
        strcpy(text, "NaN");
    else if (isinf(number))
        strcpy(text, number > 0 ? "Infinity" : "-Infinity");
    else
        number_text(number, text);
    appendPQExpBufferStr(out, text);
}

/* Write the list at the top of the stack, which was scanned. */
static void write_list(PQExpBuffer out, lua_State *L, WriteString *write_string)
{
    lua_Integer count = (lua_Integer)lua_rawlen(L, -1);

    appendPQExpBufferChar(out, '{');
    for (lua_Integer i = 1; i <= count; i++) {
        const char *text;
        size_t length;

        if (i > 1)
            appendPQExpBufferChar(out, ',');
        lua_rawgeti(L, -1, i);
        switch (lua_type(L, -1)) {
        case LUA_TTABLE:
            write_list(out, L, write_string);
            break;
        case LUA_TSTRING:
            text = lua_tolstring(L, -1, &length);
            write_string(out, text, length);
            break;
        case LUA_TNUMBER:
            write_number(out, L);
            break;
        case LUA_TBOOLEAN:
            appendPQExpBufferStr(out, lua_toboolean(L, -1) ? "true" : "false");
            break;
        default:
            appendPQExpBufferStr(out, "NULL");
        }
        lua_pop(L, 1);
    }
    appendPQExpBufferChar(out, '}');
}

bool array_encode(lua_State *L, int index, ArrayInfo *info, Error *err)
{
    Scanner s = {.L = L, .err = err};
    PQExpBuffer text;
    PQExpBuffer bytea;
    int top = lua_gettop(L);

    index = lua_absindex(L, index);
    luaL_checkstack(L, DIMENSIONS_MAX + 8, NULL);
    bytea = buffer_push(L);
    text = buffer_push(L);
    lua_pushvalue(L, index);
    if (!scan_list(&s)) {
        lua_settop(L, top + 2);
        buffer_pop(L);
        buffer_pop(L);
        return false;
    }
    write_list(text, L, write_text);
    if (s.ambiguous)
        write_list(bytea, L, write_bytes);
    lua_pop(L, 1);
    info->type = scanned_type(&s);
    info->ambiguous = s.ambiguous;
    buffer_to_string(L);
    lua_insert(L, -2);
    buffer_to_string(L);
    return true;
}
