/* Calls a callback as libvfio-user does: looks at the result first, and then at the C library's own errno. */
#include <errno.h>
#include <stddef.h>
#include <sys/types.h>

int result_of(int (*callback)(void *))
{
    errno = 0;
    return callback(NULL);
}

int errno_of(int (*callback)(void *))
{
    errno = 0;
    return callback(NULL) < 0 ? errno : 0;
}

/* How many of several calls in a row fail, and the errno of the last one in *code. */
int failures_of(int (*callback)(void *), int times, int *code)
{
    int failed = 0;

    for (int i = 0; i < times; i++) {
        errno = 0;
        if (callback(NULL) < 0) {
            failed++;
            *code = errno;
        }
    }
    return failed;
}

/* A callback without a result: what it leaves in errno. */
int errno_after(void (*callback)(void *, void *))
{
    errno = 0;
    callback(NULL, NULL);
    return errno;
}
