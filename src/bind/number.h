/*
 * Floats as text and back, with a point, whatever LC_NUMERIC is: scripts may call os.setlocale.
 */
#ifndef LOCKKEEPER_BIND_NUMBER_H
#define LOCKKEEPER_BIND_NUMBER_H

#include <locale.h>
#include <stdbool.h>
#include <stddef.h>

enum { NUMBER_SIZE = 48 };

/*
 * Write the shortest text that reads back as the same finite float: "0.1", "1e+300", "-0", "1".
 * Returns its length.
 */
size_t number_text(double value, char text[NUMBER_SIZE]);

/* Read a decimal number; false unless that is the whole text. "-0" is -0.0. */
bool number_parse(const char *text, double *value);

/*
 * Between the two, this thread's numbers are those of the C locale, for libraries too. Nothing
 * that can raise a Lua error may be called in between.
 */
locale_t number_locale_begin(void);
void number_locale_end(locale_t earlier);

#endif
