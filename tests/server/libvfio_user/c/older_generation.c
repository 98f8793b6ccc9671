/*
 * A libvfio-user of the older generation that does nothing but remember what vfu_setup_device_dma was called with.
 * Built with -DWITHOUT_RUN it lacks a function that the binding needs.
 */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

void *dma_context;
void *dma_added;
void *dma_removed;
int fails_with;

static int result(void)
{
    errno = fails_with;
    return fails_with < 0 ? (errno = 0, -1) : fails_with ? -1 : 0;
}

/* Only the older generation has this one. */
size_t vfu_get_migr_register_area_size(void)
{
    return 4096;
}

int vfu_setup_device_dma(void *context, void *added, void *removed)
{
    dma_context = context;
    dma_added = added;
    dma_removed = removed;
    return result();
}

void *vfu_create_ctx(int trans, const char *path, int flags, void *pvt, int dev_type)
{
    (void)trans, (void)path, (void)flags, (void)pvt, (void)dev_type;
    return result() == 0 ? &dma_context : NULL;
}

#define PLAIN(name) int name(void) { return result(); }

PLAIN(vfu_realize_ctx)
PLAIN(vfu_attach_ctx)
PLAIN(vfu_get_poll_fd)
#ifndef WITHOUT_RUN
PLAIN(vfu_run_ctx)
#endif
PLAIN(vfu_setup_log)
PLAIN(vfu_pci_init)
PLAIN(vfu_setup_region)
PLAIN(vfu_setup_device_nr_irqs)
PLAIN(vfu_setup_device_reset_cb)
PLAIN(vfu_device_quiesced)

void vfu_destroy_ctx(void)
{
}

void vfu_setup_device_quiesce_cb(void)
{
}
