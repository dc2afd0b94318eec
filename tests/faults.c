/* Lets each call site of the system fail once, in every process that this is preloaded into.
 *
 * A call site is a function, the kind of process, the place in the code that calls, and what is called upon: the end of
 * a file's path without its digits, or the kind of descriptor. Which have failed stands in a file that all processes share, and
 * that outlives them: so each process meets the faults that no process before it has met. Nothing fails before a
 * connection to the internet (here: to loopback) has been made, which is the first request; or, where the file says
 * that an earlier command made it, before the output's lock has been opened. Left alone is what is none of the program's
 * doing: the loading of code, and a process between its fork and the program that it becomes.
 *
 * DATAFETCH_FAULTS_STATE names that file, which also gets a line for each fault, DATAFETCH_FAULTS_CALLS the functions
 * that fail, in commas, and DATAFETCH_FAULTS_PART a number from 0 and a number of parts, "0/3": only every third site
 * fails. Of other names, no variable would come to codec processes. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SITES 4096
#define LOG_BYTES (1 << 18)

enum { WAITS_FOR_REQUEST, FAILS, WAITS_FOR_LOCK };

struct shared {
  _Atomic int phase;
  _Atomic uint32_t said;
  _Atomic uint64_t failed[SITES];
  char log[LOG_BYTES]; /* and no file, for a codec process can open none */
};

static struct shared *shared;
static char role;
static pid_t begun_as;
static int is_at_work; /* of a helper process: it has read its orders */
static const char *calls;
static unsigned part, parts = 1;

static void *map(size_t length, int fd) {
  return (void *)syscall(SYS_mmap, NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

/* Also called by a process that has been forked to be a command: it has another environment than it was loaded with. */
__attribute__((constructor)) void begin(void) {
  const char *state = getenv("DATAFETCH_FAULTS_STATE");
  calls = getenv("DATAFETCH_FAULTS_CALLS");
  const char *which = getenv("DATAFETCH_FAULTS_PART");
  if (which && sscanf(which, "%u/%u", &part, &parts) != 2) abort();
  int fd = state && calls ? (int)syscall(SYS_openat, AT_FDCWD, state, O_RDWR | O_CLOEXEC, 0) : -1;
  if (fd < 0) return;
  void *mapped = map(sizeof(struct shared), fd);
  syscall(SYS_close, fd);
  char line[65536];
  fd = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY, 0);
  ssize_t length = syscall(SYS_read, fd, line, sizeof line);
  syscall(SYS_close, fd);
  begun_as = getpid();
  role = 'p';
  if (length > 0 && memmem(line, length, "datafetch.output.commit_process", 31)) role = 'c';
  if (length > 0 && memmem(line, length, "forkserver", 10)) role = 'f';
  if (mapped != MAP_FAILED) shared = mapped;
}

/* The last two names of a path, without what may be a number, decimal or hexadecimal. */
static uint64_t mix(uint64_t hash, const char *text) {
  const char *end = text + strlen(text), *start = end;
  for (int slashes = 0; start > text; start--)
    if (start[-1] == '/' && ++slashes > 1) break;
  for (; start < end; start++)
    if (!strchr("0123456789abcdef", *start)) hash = (hash ^ (unsigned char)*start) * 1099511628211u;
  return hash;
}

static int is_armed(void) {
  return shared && shared->phase == FAILS;
}

static int ends_in(const char *text, const char *end) {
  size_t length = strlen(text), of_end = strlen(end);
  return length > of_end && !strcmp(text + length - of_end, end);
}

/* What has been opened. */
static int opened(int fd, const char *path) {
  if (shared && shared->phase == WAITS_FOR_LOCK && ends_in(path, ".datafetch/lock")) shared->phase = FAILS;
  return fd;
}

static int is_wanted(const char *name) {
  size_t length = strlen(name);
  for (const char *at = calls; (at = strstr(at, name)); at += length)
    if ((at == calls || at[-1] == ',') && (at[length] == ',' || !at[length])) return 1;
  return 0;
}

static int is_loading(const char *name, const char *upon) {
  static const char *const code[] = {".py", ".pyx", ".pyc", ".pth", ".so", ".cfg", ".zip", ".cache"};
  if (role != 'f' && getpid() != begun_as) return 1;
  if (role != 'p' && !is_at_work) return 1;
  for (size_t i = 0; i < sizeof code / sizeof *code; i++)
    if (ends_in(upon, code[i])) return 1;
  return !strcmp(name, "open") && strstr(upon, "/lib/") != NULL;
}

/* Whether this call is to fail: the first one of its site. */
static int fails(const char *name, const void *caller, const char *upon, int with) {
  if (!is_armed() || !is_wanted(name) || is_loading(name, upon)) return 0;
  Dl_info where = {0};
  dladdr(caller, &where);
  uint64_t site = mix(mix(14695981039346656037u ^ (uint64_t)role, name), upon);
  site = (site ^ (uint64_t)((const char *)caller - (const char *)where.dli_fbase)) * 1099511628211u;
  site = mix(site, where.dli_fname ? where.dli_fname : "") | 1;
  if ((site >> 1) % parts != part) return 0;
  for (int tries = 0; tries < SITES; tries++) {
    uint64_t expected = 0;
    _Atomic uint64_t *slot = &shared->failed[(site + tries) % SITES];
    if (__atomic_compare_exchange_n((uint64_t *)slot, &expected, site, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
      char said[1024];
      int length = snprintf(said, sizeof said, "%c %d %s %s %s\n", role, getpid(), name, strerrorname_np(with), upon);
      if (length > (int)sizeof said - 1) length = sizeof said - 1;
      uint32_t at = __atomic_fetch_add((uint32_t *)&shared->said, length, __ATOMIC_SEQ_CST);
      if (at + length < LOG_BYTES) memcpy(shared->log + at, said, length);
      errno = with;
      return 1;
    }
    if (expected == site) return 0;
  }
  return 0;
}

/* What a descriptor leads to, and whether that is a file on disk. */
static int is_file(int fd, char *path, size_t size) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, size - 1);
  path[length < 0 ? 0 : length] = 0;
  struct stat status;
  return length > 0 && path[0] == '/' && fstat(fd, &status) == 0 && (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode));
}

#define REAL(type, name) \
  static __typeof__(type) real; \
  if (!real) real = (__typeof__(type))dlsym(RTLD_NEXT, name)
#define CALLER __builtin_return_address(0)

int connect(int fd, const struct sockaddr *address, socklen_t length) {
  REAL(int (*)(int, const struct sockaddr *, socklen_t), "connect");
  if (shared && address->sa_family == AF_INET) shared->phase = FAILS;
  return real(fd, address, length);
}

#define OPEN(function) \
  int function(const char *path, int flags, ...) { \
    REAL(int (*)(const char *, int, ...), #function); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (fails("open", CALLER, path, EMFILE)) return -1; \
    return opened(real(path, flags, mode), path); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(function) \
  int function(int folder, const char *path, int flags, ...) { \
    REAL(int (*)(int, const char *, int, ...), #function); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (fails("open", CALLER, path, EMFILE)) return -1; \
    return opened(real(folder, path, flags, mode), path); \
  }
OPENAT(openat)
OPENAT(openat64)

DIR *opendir(const char *path) {
  REAL(DIR *(*)(const char *), "opendir");
  return fails("open", CALLER, path, EMFILE) ? NULL : real(path);
}

int socket(int domain, int type, int protocol) {
  REAL(int (*)(int, int, int), "socket");
  return fails("socket", CALLER, domain == AF_INET ? "inet" : "other", EMFILE) ? -1 : real(domain, type, protocol);
}

int socketpair(int domain, int type, int protocol, int pair[2]) {
  REAL(int (*)(int, int, int, int[2]), "socketpair");
  return fails("socket", CALLER, "pair", EMFILE) ? -1 : real(domain, type, protocol, pair);
}

int pipe2(int pair[2], int flags) {
  REAL(int (*)(int[2], int), "pipe2");
  return fails("socket", CALLER, "pipe", EMFILE) ? -1 : real(pair, flags);
}

int memfd_create(const char *name, unsigned flags) {
  REAL(int (*)(const char *, unsigned), "memfd_create");
  return fails("open", CALLER, name, EMFILE) ? -1 : real(name, flags);
}

int dup(int fd) {
  REAL(int (*)(int), "dup");
  return fails("open", CALLER, "a duplicate", EMFILE) ? -1 : real(fd);
}

pid_t fork(void) {
  REAL(pid_t (*)(void), "fork");
  if (role == 'f') is_at_work = 1;
  return fails("fork", CALLER, "", EAGAIN) ? -1 : real();
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *with) {
  REAL(int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *), "pthread_create");
  return fails("fork", CALLER, "a thread", EAGAIN) ? EAGAIN : real(thread, how, run, with);
}

#define MMAP(function) \
  void *function(void *at, size_t length, int protection, int flags, int fd, off_t offset) { \
    REAL(void *(*)(void *, size_t, int, int, int, off_t), #function); \
    char path[1024] = "memory"; \
    if (is_armed() && fd >= 0) is_file(fd, path, sizeof path); \
    return fails("mmap", CALLER, path, ENOMEM) ? MAP_FAILED : real(at, length, protection, flags, fd, offset); \
  }
MMAP(mmap)
MMAP(mmap64)

ssize_t write(int fd, const void *data, size_t length) {
  REAL(ssize_t (*)(int, const void *, size_t), "write");
  if (role == 'c' && fd == 1) is_at_work = 1;
  char path[1024];
  /* What is said must be seen by the test. */
  if (fd != 2 && is_armed() && is_file(fd, path, sizeof path) && fails("write", CALLER, path, ENOSPC))
    return -1;
  return real(fd, data, length);
}

#define PWRITE(function) \
  ssize_t function(int fd, const void *data, size_t length, off_t offset) { \
    REAL(ssize_t (*)(int, const void *, size_t, off_t), #function); \
    char path[1024]; \
    if (is_armed() && is_file(fd, path, sizeof path) && fails("write", CALLER, path, ENOSPC)) return -1; \
    return real(fd, data, length, offset); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

#define SYNC(function) \
  int function(int fd) { \
    REAL(int (*)(int), #function); \
    char path[1024]; \
    if (is_armed() && is_file(fd, path, sizeof path) && fails("fsync", CALLER, path, EIO)) return -1; \
    return real(fd); \
  }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to) {
  REAL(int (*)(const char *, const char *), "rename");
  return fails("rename", CALLER, to, ENOSPC) ? -1 : real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
  REAL(int (*)(int, const char *, int, const char *), "renameat");
  return fails("rename", CALLER, to, ENOSPC) ? -1 : real(from_folder, from, to_folder, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
  REAL(int (*)(int, const char *, int, const char *, unsigned), "renameat2");
  return fails("rename", CALLER, to, ENOSPC) ? -1 : real(from_folder, from, to_folder, to, flags);
}
