/*
 * What the suites need to be told about the filesystem under test, loaded before the C library.
 *
 * FUSE tells no link limit, and the C library knows limits by filesystem type alone: WEFT_LINK_MAX is the limit.
 * fsx opens files as any program does: below the directory WEFT_DIRECT, it opens them with O_DIRECT.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int open_file(const char *function, const char *path, int flags, mode_t mode)
{
    int (*next)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, function);
    const char *directory = getenv("WEFT_DIRECT");
    if (directory && strncmp(path, directory, strlen(directory)) == 0)
        flags |= O_DIRECT;
    return next(path, flags, mode);
}

static mode_t mode_of(int flags, va_list arguments)
{
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

int open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return open_file("open", path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return open_file("open64", path, flags, mode);
}

long pathconf(const char *path, int name)
{
    long (*next)(const char *, int) = (long (*)(const char *, int))dlsym(RTLD_NEXT, "pathconf");
    const char *links = getenv("WEFT_LINK_MAX");
    return name == _PC_LINK_MAX && links ? atol(links) : next(path, name);
}
