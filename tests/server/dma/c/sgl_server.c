/*
 * A vfio-user server on libvfio-user whose device does what a test tells it: an independent opinion on what DMA_MAP and
 * DMA_UNMAP mean, and on what a device then finds in memory. The older generation of the library, as Debian 12's source
 * package of QEMU carries it.
 *
 * usage: sgl_server SOCKET
 *
 * Says "ready" once the socket is there. Then it answers lines on standard input, one at a time, each with a line on
 * standard output: "ok" and what was asked for, or "error" and an errno. Numbers are decimal, bytes are hexadecimal.
 *
 *   get ADDRESS LENGTH PROT   vfu_addr_to_sgl and vfu_sgl_get; the list is kept, its number is the answer
 *   show LIST                 vfu_sgl_get again; LENGTH:BYTES of every entry
 *   fill LIST BYTES           copy bytes into the entries, from the first one's start on
 *   put LIST                  vfu_sgl_put
 *   send ADDRESS BYTES        vfu_sgl_write, which is a message to the client
 *   fetch ADDRESS LENGTH      vfu_sgl_read, the same the other way round
 *   regions                   IOVA:LENGTH:PROT:SHARED of every region registered and not unregistered
 *
 * Ends with its standard input, or with its client.
 */
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <vfio-user/libvfio-user.h>

#define MAX_ENTRIES 64
#define MAX_LISTS 4096
#define MAX_REGIONS 64
#define MAX_BYTES 65536

struct list {
    dma_sg_t *sgl;
    struct iovec iov[MAX_ENTRIES];
    int count;
};

static vfu_ctx_t *context;
static struct list lists[MAX_LISTS];
static int list_count;
static vfu_dma_info_t regions[MAX_REGIONS];
static int region_count;
static uint8_t bytes[MAX_BYTES];

static void dma_mapped(vfu_ctx_t *unused, vfu_dma_info_t *info)
{
    (void)unused;
    if (region_count == MAX_REGIONS)
        errx(1, "more than %d regions", MAX_REGIONS);
    regions[region_count++] = *info;
}

static void dma_unmapped(vfu_ctx_t *unused, vfu_dma_info_t *info)
{
    int i;

    (void)unused;
    for (i = 0; i < region_count; i++) {
        if (regions[i].iova.iov_base == info->iova.iov_base && regions[i].iova.iov_len == info->iova.iov_len) {
            regions[i] = regions[--region_count];
            return;
        }
    }
    errx(1, "%p was unregistered and never registered", info->iova.iov_base);
}

static void answer_error(int error)
{
    printf("error %d\n", error);
}

static void print_bytes(const uint8_t *data, size_t length)
{
    static const char digits[] = "0123456789abcdef";
    size_t i;

    for (i = 0; i < length; i++) {
        putchar(digits[data[i] >> 4]);
        putchar(digits[data[i] & 15]);
    }
}

static size_t parse_bytes(const char *text)
{
    size_t length = 0;
    unsigned int byte;

    while (length < MAX_BYTES && sscanf(text + 2 * length, "%2x", &byte) == 1)
        bytes[length++] = byte;
    return length;
}

static dma_sg_t *make_sgl(void)
{
    dma_sg_t *sgl = calloc(MAX_ENTRIES, dma_sg_size());

    if (sgl == NULL)
        err(1, "calloc");
    return sgl;
}

/* As vfu_addr_to_sgl, but the answer to "too few entries" is the end of the test. */
static int translate(dma_sg_t *sgl, uint64_t address, uint64_t length, int prot)
{
    int count = vfu_addr_to_sgl(context, (vfu_dma_addr_t)(uintptr_t)address, length, sgl, MAX_ENTRIES, prot);

    if (count < -1)
        errx(1, "%#jx+%#jx takes more than %d entries", (uintmax_t)address, (uintmax_t)length, MAX_ENTRIES);
    return count;
}

static void get(uint64_t address, uint64_t length, int prot)
{
    struct list *list = &lists[list_count];

    if (list_count == MAX_LISTS)
        errx(1, "more than %d lists", MAX_LISTS);
    list->sgl = make_sgl();
    list->count = translate(list->sgl, address, length, prot);
    if (list->count < 0 || (list->count > 0 && vfu_sgl_get(context, list->sgl, list->iov, list->count, 0) < 0)) {
        answer_error(errno);
        free(list->sgl);
        return;
    }
    printf("ok %d\n", list_count++);
}

static void show(struct list *list)
{
    int i;

    if (list->count > 0 && vfu_sgl_get(context, list->sgl, list->iov, list->count, 0) < 0) {
        answer_error(errno);
        return;
    }
    printf("ok");
    for (i = 0; i < list->count; i++) {
        printf(" %zu:", list->iov[i].iov_len);
        print_bytes(list->iov[i].iov_base, list->iov[i].iov_len);
    }
    printf("\n");
}

static void fill(struct list *list, size_t length)
{
    size_t done = 0;
    int i;

    for (i = 0; i < list->count && done < length; i++) {
        size_t here = length - done < list->iov[i].iov_len ? length - done : list->iov[i].iov_len;

        memcpy(list->iov[i].iov_base, bytes + done, here);
        done += here;
    }
    printf("ok %zu\n", done);
}

static void put(struct list *list)
{
    if (list->count > 0)
        vfu_sgl_put(context, list->sgl, list->iov, list->count);
    free(list->sgl);
    list->sgl = NULL;
    printf("ok\n");
}

static void transfer(uint64_t address, uint64_t length, int prot)
{
    dma_sg_t *sgl = make_sgl();
    int count = translate(sgl, address, length, prot);
    int failed = count < 0;

    if (!failed && prot == PROT_WRITE)
        failed = vfu_sgl_write(context, sgl, count, bytes) < 0;
    else if (!failed)
        failed = vfu_sgl_read(context, sgl, count, bytes) < 0;
    free(sgl);
    if (failed) {
        answer_error(errno);
        return;
    }
    printf("ok ");
    print_bytes(bytes, prot == PROT_READ ? length : 0);
    printf("\n");
}

static void show_regions(void)
{
    int i;

    printf("ok");
    for (i = 0; i < region_count; i++) {
        printf(" %ju:%zu:%u:%d", (uintmax_t)(uintptr_t)regions[i].iova.iov_base, regions[i].iova.iov_len,
               regions[i].prot, regions[i].vaddr != NULL);
    }
    printf("\n");
}

static struct list *list_of(int number)
{
    if (number < 0 || number >= list_count || lists[number].sgl == NULL)
        errx(1, "there is no list %d", number);
    return &lists[number];
}

static void answer(const char *line)
{
    uint64_t address, length;
    int number, text;

    if (sscanf(line, "get %ju %ju %d", &address, &length, &number) == 3)
        get(address, length, number);
    else if (sscanf(line, "show %d", &number) == 1)
        show(list_of(number));
    else if (sscanf(line, "fill %d %n", &number, &text) == 1)
        fill(list_of(number), parse_bytes(line + text));
    else if (sscanf(line, "put %d", &number) == 1)
        put(list_of(number));
    else if (sscanf(line, "send %ju %n", &address, &text) == 1)
        transfer(address, parse_bytes(line + text), PROT_WRITE);
    else if (sscanf(line, "fetch %ju %ju", &address, &length) == 2 && length <= MAX_BYTES)
        transfer(address, length, PROT_READ);
    else if (strcmp(line, "regions\n") == 0)
        show_regions();
    else
        errx(1, "cannot understand %s", line);
    fflush(stdout);
}

static int no_transition(vfu_ctx_t *unused, vfu_migr_state_t state)
{
    (void)unused;
    (void)state;
    return 0;
}

static uint64_t nothing_pending(vfu_ctx_t *unused)
{
    (void)unused;
    return 0;
}

static int no_data(vfu_ctx_t *unused, uint64_t *offset, uint64_t *size)
{
    (void)unused;
    *offset = 0;
    if (size != NULL)
        *size = 0;
    return 0;
}

static ssize_t no_transfer(vfu_ctx_t *unused, void *buffer, uint64_t count, uint64_t offset)
{
    (void)unused;
    (void)buffer;
    (void)count;
    (void)offset;
    return 0;
}

static int nothing_written(vfu_ctx_t *unused, uint64_t count)
{
    (void)unused;
    (void)count;
    return 0;
}

/* The library logs dirty pages only for devices that can migrate: this one can, having no state. */
static void set_up_migration(void)
{
    static const vfu_migration_callbacks_t callbacks = {
        .version = VFU_MIGR_CALLBACKS_VERS,
        .transition = no_transition,
        .get_pending_bytes = nothing_pending,
        .prepare_data = no_data,
        .read_data = no_transfer,
        .write_data = no_transfer,
        .data_written = nothing_written,
    };
    size_t size = vfu_get_migr_register_area_size();

    if (vfu_setup_region(context, VFU_PCI_DEV_MIGR_REGION_IDX, size, NULL, VFU_REGION_FLAG_RW, NULL, 0, -1, 0) < 0)
        err(1, "vfu_setup_region");
    if (vfu_setup_device_migration_callbacks(context, &callbacks, size) < 0)
        err(1, "vfu_setup_device_migration_callbacks");
}

static void set_up(const char *path)
{
    context = vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    if (context == NULL)
        err(1, "vfu_create_ctx");
    if (vfu_pci_init(context, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0) < 0)
        err(1, "vfu_pci_init");
    if (vfu_setup_device_dma(context, dma_mapped, dma_unmapped) < 0)
        err(1, "vfu_setup_device_dma");
    set_up_migration();
    if (vfu_realize_ctx(context) < 0)
        err(1, "vfu_realize_ctx");
    printf("ready\n");
    fflush(stdout);
}

/* One request, or the connection that they come by; false once the client is gone. */
static bool serve(bool *attached)
{
    if (!*attached) {
        if (vfu_attach_ctx(context) < 0)
            err(1, "vfu_attach_ctx");
        *attached = true;
        return true;
    }
    if (vfu_run_ctx(context) >= 0)
        return true;
    if (errno != ENOTCONN)
        err(1, "vfu_run_ctx");
    return false;
}

int main(int argc, char **argv)
{
    bool attached = false;
    char *line = NULL;
    size_t size = 0;

    if (argc != 2)
        errx(2, "usage: %s SOCKET", argv[0]);
    set_up(argv[1]);
    for (;;) {
        /* The descriptor to wait for is another one once the client is attached. */
        struct pollfd fds[2] = {{.fd = vfu_get_poll_fd(context), .events = POLLIN},
                                {.fd = STDIN_FILENO, .events = POLLIN}};

        if (poll(fds, 2, -1) < 0)
            err(1, "poll");
        if (fds[0].revents != 0 && !serve(&attached))
            break;
        if (fds[1].revents != 0) {
            /* Nobody asks twice before there is an answer, so that nothing stays behind in the buffer of stdin. */
            if (getline(&line, &size, stdin) < 0)
                break;
            answer(line);
        }
    }
    free(line);
    vfu_destroy_ctx(context);
    return 0;
}
