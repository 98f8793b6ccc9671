/*
 * Translates guest pages one after the other with libvfio-user's own functions, as a device written in C does: what our
 * translation is compared with. A shared object, for a context that its caller has made.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <vfio-user/libvfio-user.h>

/*
 * Gets and puts a list of one entry, of length bytes, for each of count addresses. sgl has room for one entry.
 * Returns 0, or an errno.
 */
int sgl_loop(vfu_ctx_t *context, dma_sg_t *sgl, const uint64_t *addresses, size_t count, size_t length)
{
    struct iovec iov;
    size_t i;

    for (i = 0; i < count; i++) {
        vfu_dma_addr_t address = (vfu_dma_addr_t)(uintptr_t)addresses[i];

        if (vfu_addr_to_sgl(context, address, length, sgl, 1, PROT_READ | PROT_WRITE) != 1)
            return errno != 0 ? errno : ENOENT;
        if (vfu_sgl_get(context, sgl, &iov, 1, 0) < 0)
            return errno;
        vfu_sgl_put(context, sgl, &iov, 1);
    }
    return 0;
}
