#include "host/screen.h"

#include "base/clock.h"
#include "bind/args.h"
#include "pg/wait.h"

#include <errno.h>
#include <fcntl.h>
#include <langinfo.h>
#include <lauxlib.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#define NCURSES_NOMACROS 1
#define NCURSES_WIDECHAR 1
#include <curses.h>

static const char SCREEN_TNAME[] = "lockkeeper.Screen";

enum {
    ESCAPE_MS = 25,       /* how long after Escape a byte still belongs to a key's sequence */
    KEPT_MAX = 64 * 1024, /* of what is written to standard error meanwhile */
    RUN_MAX = 128,        /* characters that are given to ncurses at once */
    REPLACEMENT = 0xFFFD,
    ELLIPSIS = 0x2026,
    FIRST_KEPT_FD = 3,
};

typedef struct {
    bool open;
    SCREEN *handle;
    bool colours;
    off_t told; /* how much of what was written to standard error said() has given out */
} Screen;

/* What signal handlers need: of the one screen that is open. */
static struct {
    volatile sig_atomic_t on;
    volatile sig_atomic_t resized, stopped, continued;
    int woken;    /* an eventfd: a signal came */
    int kept;     /* standard error's place meanwhile; -1: it is no terminal */
    int error_fd; /* what it was */
    struct termios before;
    char ending[128]; /* what makes the terminal show its usual contents again */
    size_t ending_length;
} terminal = {.woken = -1, .kept = -1, .error_fd = -1};

/* ---- the terminal's end ---------------------------------------------------------------------- */

/* Standard error is what it was, and gets what was written meanwhile. Safe in a signal handler. */
static void release_errors(void)
{
    char part[1024];
    off_t at = 0;
    ssize_t length;

    if (terminal.kept < 0)
        return;
    dup2(terminal.error_fd, STDERR_FILENO);
    while (at < KEPT_MAX && (length = pread(terminal.kept, part, sizeof part, at)) > 0) {
        (void)!write(STDERR_FILENO, part, (size_t)length);
        at += length;
    }
    close(terminal.kept);
    close(terminal.error_fd);
    terminal.kept = terminal.error_fd = -1;
}

void screen_abandon(void)
{
    if (!terminal.on)
        return;
    terminal.on = 0;
    (void)!write(STDOUT_FILENO, terminal.ending, terminal.ending_length);
    tcsetattr(STDIN_FILENO, TCSANOW, &terminal.before);
    release_errors();
}

/* A capability's text, without the pauses in it that only old terminals took: "$<5>". */
static void add_ending(const char *text)
{
    while (*text != '\0' && terminal.ending_length < sizeof terminal.ending) {
        const char *stop = strncmp(text, "$<", 2) == 0 ? strchr(text, '>') : NULL;

        if (stop == NULL)
            terminal.ending[terminal.ending_length++] = *text++;
        else
            text = stop + 1;
    }
}

/* Ask terminfo now: a signal handler may not. */
static void prepare_ending(void)
{
    static const char *const NAMES[] = {"sgr0", "rmkx", "cnorm", "rmcup"};

    terminal.ending_length = 0;
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        const char *text = tigetstr(NAMES[i]);

        if (text != NULL && text != (char *)-1)
            add_ending(text);
    }
}

/* ---- signals --------------------------------------------------------------------------------- */

static void wake(void)
{
    int saved = errno;
    uint64_t one = 1;

    (void)!write(terminal.woken, &one, sizeof one);
    errno = saved;
}

static void on_resize(int signo)
{
    (void)signo;
    terminal.resized = 1;
    wake();
}

static void on_stop(int signo)
{
    (void)signo;
    terminal.stopped = 1;
    wake();
}

static void on_continue(int signo)
{
    (void)signo;
    terminal.continued = 1;
    wake();
}

static void on_fatal(int signo)
{
    screen_abandon();
    signal(signo, SIG_DFL);
    raise(signo);
}

/* What we catch while a screen is open, and what was done about it before. */
static struct {
    int signo;
    void (*handler)(int);
    int flags;
    struct sigaction before;
} caught[] = {
    {.signo = SIGWINCH, .handler = on_resize, .flags = SA_RESTART},
    {.signo = SIGTSTP, .handler = on_stop, .flags = SA_RESTART},
    {.signo = SIGCONT, .handler = on_continue, .flags = SA_RESTART},
    {.signo = SIGQUIT, .handler = on_fatal},
    {.signo = SIGABRT, .handler = on_fatal},
};

enum { CAUGHT = sizeof caught / sizeof caught[0] };

static void catch_signals(void)
{
    for (size_t i = 0; i < CAUGHT; i++) {
        struct sigaction action = {.sa_handler = caught[i].handler, .sa_flags = caught[i].flags};

        sigemptyset(&action.sa_mask);
        sigaction(caught[i].signo, &action, &caught[i].before);
    }
}

static void leave_signals(void)
{
    for (size_t i = 0; i < CAUGHT; i++)
        sigaction(caught[i].signo, &caught[i].before, NULL);
}

/* Ctrl-Z: give the terminal back, stop, and take it again when told to go on. */
static void stop_here(void)
{
    struct sigaction ours, usual = {.sa_handler = SIG_DFL};

    terminal.stopped = 0;
    endwin();
    sigemptyset(&usual.sa_mask);
    sigaction(SIGTSTP, &usual, &ours);
    raise(SIGTSTP);
    sigaction(SIGTSTP, &ours, NULL);
    terminal.continued = 1;
}

/* Do what signals have asked for. True where the picture has to be made anew. */
static bool serve_signals(void)
{
    struct winsize size;
    uint64_t count;
    bool anew = false;

    (void)!read(terminal.woken, &count, sizeof count);
    if (terminal.stopped)
        stop_here();
    if (terminal.continued) {
        terminal.continued = 0;
        terminal.resized = 1; /* it may have been, meanwhile */
        reset_prog_mode();
        clearok(curscr, TRUE);
    }
    if (terminal.resized) {
        terminal.resized = 0;
        if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0)
            resizeterm(size.ws_row, size.ws_col);
        anew = true;
    }
    return anew;
}

/* ---- opening and closing --------------------------------------------------------------------- */

static Screen *check_screen(lua_State *L)
{
    Screen *screen = luaL_checkudata(L, 1, SCREEN_TNAME);

    if (!screen->open)
        args_usage(L, "the screen is closed");
    return screen;
}

/* close(), also as __close and __gc */
static int screen_close(lua_State *L)
{
    Screen *screen = luaL_checkudata(L, 1, SCREEN_TNAME);

    if (!screen->open)
        return 0;
    screen->open = false;
    endwin();
    terminal.on = 0;
    leave_signals();
    delscreen(screen->handle);
    release_errors();
    setlocale(LC_CTYPE, "C"); /* what Lua's patterns know */
    return 0;
}

/* As every other command we write UTF-8, also where the locale was not set. */
static void use_utf8(void)
{
    setlocale(LC_CTYPE, "");
    if (strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        setlocale(LC_CTYPE, "C.UTF-8");
}

/* Where it can't be kept aside, it is written to as ever. */
static void keep_errors(void)
{
    if (!isatty(STDERR_FILENO))
        return;
    terminal.kept = memfd_create("messages", MFD_CLOEXEC);
    terminal.error_fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, FIRST_KEPT_FD);
    if (terminal.kept < 0 || terminal.error_fd < 0) {
        close(terminal.kept);
        close(terminal.error_fd);
        terminal.kept = terminal.error_fd = -1;
        return;
    }
    dup2(terminal.kept, STDERR_FILENO);
}

static void begin_colours(Screen *screen)
{
    const char *without = getenv("NO_COLOR");

    if ((without != NULL && without[0] != '\0') || !has_colors() || start_color() == ERR)
        return;
    use_default_colors();
    for (short colour = COLOR_RED; colour <= COLOR_WHITE; colour++)
        init_pair(colour, colour, -1);
    screen->colours = true;
}

static void begin_input(void)
{
    cbreak();
    noecho();
    nonl();
    intrflush(stdscr, FALSE);
    keypad(stdscr, TRUE);
    nodelay(stdscr, TRUE);
    set_escdelay(ESCAPE_MS);
}

/* The terminal, once ncurses has it. NULL where it can't be used. */
static SCREEN *take_terminal(void)
{
    SCREEN *handle;
    char *placing;

    use_tioctl(TRUE);
    handle = newterm(NULL, stdout, stdin);
    if (handle == NULL)
        return NULL;
    placing = tigetstr("cup");
    if (placing != NULL && placing != (char *)-1)
        return handle;
    endwin();
    delscreen(handle);
    return NULL;
}

/* screen_open() */
static int host_screen_open(lua_State *L)
{
    Screen *screen = lua_newuserdatauv(L, sizeof *screen, 0);
    const char *kind = getenv("TERM");

    *screen = (Screen){0};
    luaL_setmetatable(L, SCREEN_TNAME);
    if (terminal.on)
        args_usage(L, "a screen is open already");
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        args_usage(L, "standard input and standard output must be a terminal");
    if (terminal.woken < 0)
        terminal.woken = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (terminal.woken < 0 || tcgetattr(STDIN_FILENO, &terminal.before) != 0)
        args_usage(L, "the terminal can't be used: %s", strerror(errno));
    use_utf8();
    fflush(stdout);
    catch_signals(); /* before ncurses would */
    screen->handle = take_terminal();
    if (screen->handle == NULL) {
        leave_signals();
        setlocale(LC_CTYPE, "C");
        args_usage(
            L, "a screen takes a terminal that can place its cursor, and knows of none: TERM=%s",
            kind == NULL ? "" : kind);
    }
    prepare_ending();
    keep_errors();
    terminal.resized = terminal.stopped = terminal.continued = 0;
    terminal.on = 1;
    screen->open = true;
    begin_input();
    begin_colours(screen);
    return 1;
}

/* ---- the picture ----------------------------------------------------------------------------- */

/* size() */
static int screen_size(lua_State *L)
{
    check_screen(L);
    lua_pushinteger(L, getmaxy(stdscr));
    lua_pushinteger(L, getmaxx(stdscr));
    return 2;
}

/* clear() */
static int screen_clear(lua_State *L)
{
    check_screen(L);
    werase(stdscr);
    return 0;
}

/* One parameter of SGR, of those that we know. */
static void add_style(const Screen *screen, int parameter, attr_t *attributes, short *pair)
{
    switch (parameter) {
    case 1:
        *attributes |= A_BOLD;
        break;
    case 2:
        *attributes |= A_DIM;
        break;
    case 4:
        *attributes |= A_UNDERLINE;
        break;
    case 7:
        *attributes |= A_REVERSE;
        break;
    default:
        if (screen->colours && parameter >= 31 && parameter <= 37)
            *pair = (short)(parameter - 30);
    }
}

static void set_style(const Screen *screen, const char *style)
{
    attr_t attributes = A_NORMAL;
    short pair = 0;

    while (*style != '\0') {
        char *end;
        long parameter = strtol(style, &end, 10);

        if (end == style)
            break;
        add_style(screen, (int)parameter, &attributes, &pair);
        style = *end == ';' ? end + 1 : end;
    }
    wattr_set(stdscr, attributes, pair, NULL);
}

/*
 * The next character of text that ends at `end`, and how many columns it takes. What can't be shown
 * is the replacement character; *columns is 0 for one that is put over the one before it.
 */
static wchar_t next_character(const char **text, const char *end, int *columns)
{
    mbstate_t state = {0};
    wchar_t character;
    size_t length = mbrtowc(&character, *text, (size_t)(end - *text), &state);

    if (length == 0 || length == (size_t)-1 || length == (size_t)-2) {
        *text += 1;
        *columns = 1;
        return REPLACEMENT;
    }
    *text += length;
    *columns = wcwidth(character);
    if (*columns < 0) {
        *columns = 1;
        return REPLACEMENT;
    }
    return character;
}

static bool fits(const char *text, const char *end, int width)
{
    int columns;

    while (text < end && width >= 0) {
        next_character(&text, end, &columns);
        width -= columns;
    }
    return width >= 0;
}

/* Add text at the cursor, `width` columns of it. */
static void add_text(const char *text, const char *end, int width)
{
    wchar_t run[RUN_MAX] = {0};
    int count = 0, columns;
    bool cut = !fits(text, end, width);
    int room = cut ? width - 1 : width;

    while (text < end) {
        wchar_t character = next_character(&text, end, &columns);

        if (columns > room)
            break;
        if (count == RUN_MAX) {
            waddnwstr(stdscr, run, count);
            count = 0;
        }
        run[count++] = character;
        room -= columns;
    }
    waddnwstr(stdscr, run, count);
    if (cut)
        waddnwstr(stdscr, (wchar_t[]){ELLIPSIS}, 1);
    whline(stdscr, ' ' | (chtype)getattrs(stdscr), room);
}

/* put(line, column, text, width[, style]) */
static int screen_put(lua_State *L)
{
    const Screen *screen = check_screen(L);
    lua_Integer line = luaL_checkinteger(L, 2);
    lua_Integer column = luaL_checkinteger(L, 3);
    size_t length;
    const char *text = luaL_checklstring(L, 4, &length);
    lua_Integer width = luaL_checkinteger(L, 5);
    const char *style = luaL_optstring(L, 6, "");
    int lines = getmaxy(stdscr), columns = getmaxx(stdscr);

    if (line < 1 || line > lines || column < 1 || column > columns || width < 1)
        return 0;
    if (width > columns - column + 1)
        width = columns - column + 1;
    set_style(screen, style);
    wmove(stdscr, (int)line - 1, (int)column - 1);
    add_text(text, text + length, (int)width);
    return 0;
}

/* redraw() */
static int screen_redraw(lua_State *L)
{
    check_screen(L);
    clearok(curscr, TRUE);
    return 0;
}

/* show([line, column]) */
static int screen_show(lua_State *L)
{
    check_screen(L);
    if (lua_isnoneornil(L, 2)) {
        curs_set(0);
    } else {
        curs_set(1);
        wmove(stdscr, (int)luaL_checkinteger(L, 2) - 1, (int)luaL_checkinteger(L, 3) - 1);
    }
    wrefresh(stdscr);
    return 0;
}

/* ---- the keyboard ---------------------------------------------------------------------------- */

static const struct {
    int code;
    const char *name;
} KEYS[] = {
    {KEY_UP, "up"},
    {KEY_DOWN, "down"},
    {KEY_LEFT, "left"},
    {KEY_RIGHT, "right"},
    {KEY_PPAGE, "page up"},
    {KEY_NPAGE, "page down"},
    {KEY_HOME, "home"},
    {KEY_END, "end"},
    {KEY_ENTER, "enter"},
    {KEY_DC, "delete"},
    {KEY_BACKSPACE, "backspace"},
    {KEY_BTAB, "shift-tab"},
    {KEY_RESIZE, "resize"},
};

static const struct {
    wint_t character;
    const char *name;
} CONTROLS[] = {
    {'\t', "tab"},  {'\r', "enter"},  {'\n', "enter"},
    {27, "escape"}, {8, "backspace"}, {127, "backspace"},
};

/* Push a key's name; false where nobody needs to know of it. */
static bool push_code(lua_State *L, wint_t code)
{
    for (size_t i = 0; i < sizeof KEYS / sizeof KEYS[0]; i++) {
        if (KEYS[i].code == (int)code) {
            lua_pushstring(L, KEYS[i].name);
            return true;
        }
    }
    return false;
}

static bool push_character(lua_State *L, wint_t character)
{
    for (size_t i = 0; i < sizeof CONTROLS / sizeof CONTROLS[0]; i++) {
        if (CONTROLS[i].character == character) {
            lua_pushstring(L, CONTROLS[i].name);
            return true;
        }
    }
    if (character < 27)
        lua_pushfstring(L, "ctrl-%c", (int)character + 'a' - 1);
    else if (character < 32)
        return false;
    else
        lua_pushfstring(L, "%U", (long)character);
    return true;
}

/* Push a key that has come; false where none has. */
static bool push_key(lua_State *L)
{
    wint_t character;
    int kind;

    while ((kind = wget_wch(stdscr, &character)) != ERR) {
        if (kind == KEY_CODE_YES ? push_code(L, character) : push_character(L, character))
            return true;
    }
    return false;
}

/* key(seconds) */
static int screen_key(lua_State *L)
{
    lua_Number seconds = luaL_checknumber(L, 2);
    int64_t deadline_us = clock_deadline((int64_t)llround(seconds * 1e6));

    check_screen(L);
    for (;;) {
        struct pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                               {.fd = terminal.woken, .events = POLLIN}};
        WaitEnd end;
        Error err;

        if (serve_signals()) {
            lua_pushliteral(L, "resize");
            return 1;
        }
        if (push_key(L))
            return 1;
        end = wait_for(fds, 2, deadline_us, WAIT_NORMAL);
        if (end == WAIT_INTERRUPTED) {
            wait_interrupted_error(&err);
            return args_raise(L, &err);
        }
        if (end == WAIT_DEADLINE)
            return 0;
        if ((fds[0].revents & (POLLHUP | POLLERR | POLLNVAL)) != 0) {
            error_set(&err, ERROR_CANCELLED, "the terminal is gone");
            return args_raise(L, &err);
        }
    }
}

/* said() */
static int screen_said(lua_State *L)
{
    Screen *screen = check_screen(L);
    char text[2048];
    ssize_t length = 0;

    if (terminal.kept >= 0)
        length = pread(terminal.kept, text, sizeof text, screen->told);
    if (length <= 0)
        return 0;
    screen->told += length;
    lua_pushlstring(L, text, (size_t)length);
    return 1;
}

void screen_register(lua_State *L)
{
    luaL_newmetatable(L, SCREEN_TNAME);
    luaL_setfuncs(L,
                  ((luaL_Reg[]){{"size", screen_size},
                                {"clear", screen_clear},
                                {"put", screen_put},
                                {"redraw", screen_redraw},
                                {"show", screen_show},
                                {"key", screen_key},
                                {"said", screen_said},
                                {"close", screen_close},
                                {"__close", screen_close},
                                {"__gc", screen_close},
                                {NULL, NULL}}),
                  0);
    lua_pushvalue(L, -1);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 1);
    lua_pushcfunction(L, host_screen_open);
    lua_setfield(L, -2, "screen_open");
}
