#include "bind/number.h"

#include <float.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static locale_t plain;

static void make_plain(void)
{
    plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
}

locale_t number_locale_begin(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, make_plain);
    return uselocale(plain);
}

void number_locale_end(locale_t earlier)
{
    uselocale(earlier);
}

size_t number_text(double value, char text[NUMBER_SIZE])
{
    locale_t earlier = number_locale_begin();
    /* DBL_DIG digits come back from any float but one that is too small for its full precision. */
    int first = value > -DBL_MIN && value < DBL_MIN ? 1 : DBL_DIG;

    for (int digits = first; digits <= DBL_DECIMAL_DIG; digits++) {
        snprintf(text, NUMBER_SIZE, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            break;
    }
    number_locale_end(earlier);
    return strlen(text);
}

bool number_parse(const char *text, double *value)
{
    locale_t earlier;
    char *end;

    /* Nothing but what strtod takes for a decimal number: no blanks, no words, no hexadecimals. */
    if (text[0] == '\0' || text[strspn(text, "+-.0123456789eE")] != '\0')
        return false;
    earlier = number_locale_begin();
    *value = strtod(text, &end);
    number_locale_end(earlier);
    return *end == '\0';
}
