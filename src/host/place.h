/*
 * The folder that the embedded server lives in: which it is, whose, and what may be done there.
 *
 * Root works there with the rights of the user that the server runs as: between server_user_enter
 * and server_user_leave. All functions with an Error return false with *err set.
 */
#ifndef LOCKKEEPER_HOST_PLACE_H
#define LOCKKEEPER_HOST_PLACE_H

#include "base/error.h"
#include "host/bindir.h"

/* Files in the folder have short names: with them a path fits PLACE_PATH_SIZE. */
enum { PLACE_BASE_SIZE = 900, PLACE_PATH_SIZE = 1024 };

/* The variable that names the folder. */
extern const char PLACE_VARIABLE[];

typedef struct {
    ServerUser user;
    ErrorKind fault;            /* of an error that the choice of the folder is to blame for */
    const char *variable;       /* which chose the folder, NULL: none */
    char base[PLACE_BASE_SIZE]; /* absolute; canonical once place_look found it */
} Place;

/*
 * What root makes is then the server user's, what that user can't reach fails for root too, and
 * that user can't lead root astray with a symbolic link. Linux keeps this identity per thread.
 * Nothing happens where we are not root.
 */
bool server_user_enter(const ServerUser *user, Error *err);
void server_user_leave(const ServerUser *user);

/* Choose the folder and the user, by the environment. Touches no file. */
bool place_choose(Place *place, Error *err);

/* Find the folder and check whose it is. *exists: false where there is none (and no error). */
bool place_look(Place *place, bool *exists, Error *err);

/* Make the folder where there is none; called, and returns, between enter and leave. */
bool place_make(Place *place, Error *err);

/* Refuse a folder that is in use for something else: we would close it to all others. */
bool place_check_ours(const Place *place, Error *err);

/* Set *err for an errno: "cannot use /a/b: Permission denied". Returns false. */
bool place_blame(const Place *place, int error, Error *err);

/* open(2) of a file in the folder, of mode 0600 where it is made; no symbolic link is followed. */
int place_open(const Place *place, const char *name, int flags);

/* Is there a file of this name in the folder? */
bool place_has(const Place *place, const char *name);

#endif
