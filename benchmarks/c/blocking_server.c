/*
 * The plainest server that libvfio-user makes: one BAR of registers, a blocking loop. What our register round trip is
 * compared with. The older generation of the library, as Debian 12's source package of QEMU carries it.
 *
 * usage: blocking_server SOCKET
 */
#include <err.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <vfio-user/libvfio-user.h>

#define BAR_SIZE 4096

static uint8_t registers[BAR_SIZE];

static ssize_t access_bar(vfu_ctx_t *context, char *data, size_t count, loff_t offset, bool is_write)
{
    (void)context;
    if (is_write)
        memcpy(registers + offset, data, count);
    else
        memcpy(data, registers + offset, count);
    return count;
}

static void dma_mapped(vfu_ctx_t *context, vfu_dma_info_t *info)
{
    (void)context;
    (void)info;
}

static void dma_unmapped(vfu_ctx_t *context, vfu_dma_info_t *info)
{
    (void)context;
    (void)info;
}

int main(int argc, char **argv)
{
    vfu_ctx_t *context;

    if (argc != 2)
        errx(2, "usage: %s SOCKET", argv[0]);
    context = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], 0, NULL, VFU_DEV_TYPE_PCI);
    if (context == NULL)
        err(1, "vfu_create_ctx");
    if (vfu_pci_init(context, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) < 0)
        err(1, "vfu_pci_init");
    if (vfu_setup_region(context, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, access_bar,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) < 0)
        err(1, "vfu_setup_region");
    if (vfu_setup_device_dma(context, dma_mapped, dma_unmapped) < 0)
        err(1, "vfu_setup_device_dma");
    if (vfu_realize_ctx(context) < 0)
        err(1, "vfu_realize_ctx");
    if (vfu_attach_ctx(context) < 0)
        err(1, "vfu_attach_ctx");
    while (vfu_run_ctx(context) >= 0 || errno == EINTR)
        ;
    vfu_destroy_ctx(context);
    return 0;
}
