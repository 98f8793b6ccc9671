/*
 * As much of the newer generation of libvfio-user as the binding calls, and what it was called with. The real one is
 * in no package at hand; its vfu_setup_device_dma has one argument more than the older one's.
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

size_t asked_for_regions;
int fails_with;

static int result(void)
{
    if (fails_with == 0)
        return 0;
    errno = fails_with;
    return -1;
}

void *vfu_create_ctx(int trans, const char *path, int flags, void *pvt, int dev_type)
{
    (void)trans, (void)path, (void)flags, (void)pvt, (void)dev_type;
    return result() == 0 ? &asked_for_regions : NULL;
}

int vfu_setup_device_dma(void *context, size_t max_regions, void *added, void *removed)
{
    (void)context, (void)added, (void)removed;
    asked_for_regions = max_regions;
    return result();
}

#define PLAIN(name)            \
    int name(void *context)    \
    {                          \
        (void)context;         \
        return result();       \
    }

PLAIN(vfu_realize_ctx)
PLAIN(vfu_attach_ctx)
PLAIN(vfu_get_poll_fd)
PLAIN(vfu_run_ctx)
PLAIN(vfu_setup_log)
PLAIN(vfu_pci_init)
PLAIN(vfu_setup_region)
PLAIN(vfu_setup_device_nr_irqs)
PLAIN(vfu_setup_device_reset_cb)
PLAIN(vfu_device_quiesced)

void vfu_destroy_ctx(void *context)
{
    (void)context;
}

void vfu_setup_device_quiesce_cb(void *context, void *callback)
{
    (void)context, (void)callback;
}
