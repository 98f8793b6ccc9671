/*
 * How fast a DRM device is from user space: page flips, full redraws and cursor moves per second, on a line of JSON.
 * Bare ioctls and a static binary, so that it runs in an initramfs that holds nothing else.
 *
 * usage: drm_rates DEVICE SECONDS
 */
#include <drm.h>
#include <drm_fourcc.h>
#include <drm_mode.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CURSOR_SIDE 64
#define MAX_OBJECTS 16

struct framebuffer {
    uint32_t handle, id, pitch;
    uint64_t size;
    uint8_t *pixels;
};

static int device;

static void must(unsigned long request, void *argument, const char *what)
{
    int result;

    do {
        result = ioctl(device, request, argument);
    } while (result < 0 && (errno == EINTR || errno == EAGAIN));
    if (result < 0) {
        perror(what);
        exit(1);
    }
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static struct framebuffer dumb_buffer(uint32_t width, uint32_t height)
{
    struct drm_mode_create_dumb create = { .width = width, .height = height, .bpp = 32 };
    struct drm_mode_map_dumb map = { 0 };
    struct framebuffer buffer;

    must(DRM_IOCTL_MODE_CREATE_DUMB, &create, "CREATE_DUMB");
    map.handle = create.handle;
    must(DRM_IOCTL_MODE_MAP_DUMB, &map, "MAP_DUMB");
    buffer = (struct framebuffer){ .handle = create.handle, .pitch = create.pitch, .size = create.size };
    buffer.pixels = mmap(NULL, create.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, map.offset);
    if (buffer.pixels == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return buffer;
}

static struct framebuffer framebuffer(uint32_t width, uint32_t height, uint8_t colour)
{
    struct framebuffer buffer = dumb_buffer(width, height);
    struct drm_mode_fb_cmd2 add = { .width = width, .height = height, .pixel_format = DRM_FORMAT_XRGB8888 };

    memset(buffer.pixels, colour, buffer.size);
    add.handles[0] = buffer.handle;
    add.pitches[0] = buffer.pitch;
    must(DRM_IOCTL_MODE_ADDFB2, &add, "ADDFB2");
    buffer.id = add.fb_id;
    return buffer;
}

static struct drm_mode_modeinfo find_mode(uint32_t *connector_id, uint32_t *crtc_id)
{
    static struct drm_mode_modeinfo modes[256];
    uint32_t connectors[MAX_OBJECTS], crtcs[MAX_OBJECTS], encoders[MAX_OBJECTS];
    struct drm_mode_card_res resources = {
        .connector_id_ptr = (uintptr_t)connectors, .count_connectors = MAX_OBJECTS,
        .crtc_id_ptr = (uintptr_t)crtcs, .count_crtcs = MAX_OBJECTS,
        .encoder_id_ptr = (uintptr_t)encoders, .count_encoders = MAX_OBJECTS,
    };
    struct drm_mode_get_connector connector = { 0 };

    must(DRM_IOCTL_MODE_GETRESOURCES, &resources, "GETRESOURCES");
    connector.connector_id = connectors[0];
    must(DRM_IOCTL_MODE_GETCONNECTOR, &connector, "GETCONNECTOR");
    if (connector.count_modes == 0 || connector.count_modes > 256) {
        fprintf(stderr, "%u modes\n", connector.count_modes);
        exit(1);
    }
    connector.count_props = connector.count_encoders = 0;
    connector.modes_ptr = (uintptr_t)modes;
    must(DRM_IOCTL_MODE_GETCONNECTOR, &connector, "GETCONNECTOR");
    *connector_id = connectors[0];
    *crtc_id = crtcs[0];
    return modes[0];
}

static void flip(uint32_t crtc, uint32_t fb)
{
    struct drm_mode_crtc_page_flip request = { .crtc_id = crtc, .fb_id = fb, .flags = DRM_MODE_PAGE_FLIP_EVENT };
    char events[256];

    must(DRM_IOCTL_MODE_PAGE_FLIP, &request, "PAGE_FLIP");
    if (read(device, events, sizeof(events)) <= 0) {
        perror("page flip event");
        exit(1);
    }
}

static double flips(uint32_t crtc, const struct framebuffer *buffers, double seconds)
{
    double start = now(), end = start + seconds;
    long count = 0;

    while (now() < end)
        flip(crtc, buffers[++count & 1].id);
    return count / (now() - start);
}

static double redraws(const struct framebuffer *buffer, double seconds)
{
    double start = now(), end = start + seconds;
    long count = 0;

    while (now() < end) {
        struct drm_mode_fb_dirty_cmd dirty = { .fb_id = buffer->id };

        buffer->pixels[count++ % buffer->size] ^= 0xff;
        must(DRM_IOCTL_MODE_DIRTYFB, &dirty, "DIRTYFB");
    }
    return count / (now() - start);
}

static double cursor_moves(uint32_t crtc, double seconds)
{
    struct framebuffer image = dumb_buffer(CURSOR_SIDE, CURSOR_SIDE);
    struct drm_mode_cursor set = {
        .flags = DRM_MODE_CURSOR_BO, .crtc_id = crtc, .width = CURSOR_SIDE, .height = CURSOR_SIDE,
        .handle = image.handle,
    };
    double start, end;
    long count = 0;

    memset(image.pixels, 0x80, image.size);
    must(DRM_IOCTL_MODE_CURSOR, &set, "CURSOR");
    start = now();
    end = start + seconds;
    while (now() < end) {
        struct drm_mode_cursor move = {
            .flags = DRM_MODE_CURSOR_MOVE, .crtc_id = crtc, .x = count % 512, .y = count % 256,
        };

        must(DRM_IOCTL_MODE_CURSOR, &move, "CURSOR");
        count++;
    }
    return count / (now() - start);
}

int main(int argc, char **argv)
{
    struct framebuffer buffers[2];
    struct drm_mode_modeinfo mode;
    uint32_t connector, crtc;
    struct drm_mode_crtc set = { .count_connectors = 1, .mode_valid = 1 };
    double seconds, flip_rate, redraw_rate;

    if (argc != 3) {
        fprintf(stderr, "usage: %s DEVICE SECONDS\n", argv[0]);
        return 2;
    }
    device = open(argv[1], O_RDWR | O_CLOEXEC);
    if (device < 0) {
        perror(argv[1]);
        return 1;
    }
    seconds = atof(argv[2]);
    mode = find_mode(&connector, &crtc);
    buffers[0] = framebuffer(mode.hdisplay, mode.vdisplay, 0x20);
    buffers[1] = framebuffer(mode.hdisplay, mode.vdisplay, 0xc0);
    set.crtc_id = crtc;
    set.fb_id = buffers[0].id;
    set.set_connectors_ptr = (uintptr_t)&connector;
    set.mode = mode;
    must(DRM_IOCTL_MODE_SETCRTC, &set, "SETCRTC");
    flip_rate = flips(crtc, buffers, seconds);
    flip(crtc, buffers[0].id);
    redraw_rate = redraws(&buffers[0], seconds);
    printf("{\"width\": %u, \"height\": %u, \"flips\": %.1f, \"redraws\": %.1f, \"cursor_moves\": %.1f}\n",
           mode.hdisplay, mode.vdisplay, flip_rate, redraw_rate, cursor_moves(crtc, seconds));
    return 0;
}
