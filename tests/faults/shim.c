/* A file system that fails, or a process that dies, at a counted call: preloaded by inject.py.

   arm() names a folder; from then on the calls of this process on paths and descriptors below it are counted. The call
   of the given number returns an error, or kills the process before it happens. Forked processes are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static char root[4096];
static long at, counted;
static int code, sticky;
static pid_t armed;

/* error: an errno, or 0 to kill; all_after: whether every later call fails too; number 0: only count. */
void arm(const char *folder, long number, int error, int all_after) {
  strncpy(root, folder, sizeof root - 1);
  at = number, code = error, sticky = all_after, counted = 0, armed = getpid();
}
long disarm(void) { armed = 0; return counted; }

static int below(const char *path) { return path && !strncmp(path, root, strlen(root)); }

static int below_fd(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

/* takes_room: whether the call may need space; a full disk fails only these. */
static int fails(int takes_room) {
  if (code == ENOSPC && !takes_room) return 0;
  counted++;
  if (!at || counted < at || (counted > at && !sticky)) return 0;
  if (!code) kill(getpid(), SIGKILL);
  errno = code;
  return 1;
}

#define IS_ARMED (armed && armed == getpid())
#define CALL(result, name, parameters, arguments, is_below, takes_room)      \
  result name parameters {                                                  \
    static result(*real) parameters;                                        \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                   \
    if (IS_ARMED && is_below && fails(takes_room)) return -1;               \
    return real arguments;                                                  \
  }
#define CALL64(result, name, parameters, arguments, is_below, takes_room)    \
  CALL(result, name, parameters, arguments, is_below, takes_room)           \
  CALL(result, name##64, parameters, arguments, is_below, takes_room)

#define OPEN(name)                                                          \
  int name(const char *path, int flags, ...) {                              \
    static int (*real)(const char *, int, ...);                             \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                   \
    va_list rest;                                                           \
    va_start(rest, flags);                                                  \
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;       \
    va_end(rest);                                                           \
    if (IS_ARMED && below(path) && fails(flags & (O_CREAT | O_TMPFILE))) return -1; \
    return real(path, flags, mode);                                         \
  }
#define OPENAT(name)                                                        \
  int name(int folder, const char *path, int flags, ...) {                  \
    static int (*real)(int, const char *, int, ...);                        \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                   \
    va_list rest;                                                           \
    va_start(rest, flags);                                                  \
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;       \
    va_end(rest);                                                           \
    if (IS_ARMED && below(path) && fails(flags & (O_CREAT | O_TMPFILE))) return -1; \
    return real(folder, path, flags, mode);                                 \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

CALL(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size), below_fd(fd), 1)
CALL(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size), below_fd(fd), 0)
CALL64(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t offset), (fd, data, size, offset), below_fd(fd), 1)
CALL64(ssize_t, pread, (int fd, void *data, size_t size, off_t offset), (fd, data, size, offset), below_fd(fd), 0)
CALL64(int, ftruncate, (int fd, off_t size), (fd, size), below_fd(fd), size > 0)
CALL64(int, truncate, (const char *path, off_t size), (path, size), below(path), 0)
CALL(int, fsync, (int fd), (fd), below_fd(fd), 0)
CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), below(path), 1)
CALL(int, rmdir, (const char *path), (path), below(path), 0)
CALL(int, unlink, (const char *path), (path), below(path), 0)
CALL(int, rename, (const char *from, const char *to), (from, to), below(from), 0)
CALL(int, link, (const char *from, const char *to), (from, to), below(from), 1)

#define FALLOCATE(name)                                                     \
  int name(int fd, off_t offset, off_t size) {                              \
    static int (*real)(int, off_t, off_t);                                  \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                   \
    if (IS_ARMED && below_fd(fd) && fails(1)) return errno;                 \
    return real(fd, offset, size);                                          \
  }
FALLOCATE(posix_fallocate)
FALLOCATE(posix_fallocate64)
