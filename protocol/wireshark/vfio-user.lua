-- Dissector of vfio-user messages, for the files that `vgpud trace` writes.
--
-- To install it, copy this file to the personal Lua plugins folder that Help > About Wireshark > Folders names
-- (~/.local/lib/wireshark/plugins on Linux), and restart Wireshark. For one run of tshark: -X lua_script:vfio-user.lua
-- It needs Wireshark 3.6 or newer, with Lua 5.2 or newer.
--
-- LINKTYPE_USER0 packets are whole messages (fields vfio_user.*), LINKTYPE_USER1 and LINKTYPE_USER2 packets are what
-- happened beside them (fields vgpud.*; protocol/trace.py has their layout). To find things:
--
--     vfio_user.command == "REGION_WRITE" && vfio_user.region.index == "BAR4"
--     vfio_user.errno != 0                      commands that failed
--     vfio_user.time > 0.001                    replies that took long
--     vfio_user.malformed || vgpud.malformed    what cannot be read

local HEADER_SIZE = 16
local NO_REPLY, ERROR = 0x10, 0x20
local COMMAND, REPLY = 0, 1
-- Wireshark gives up on packets with too many items.
local MAX_ENTRIES = 10000
-- Wireshark's own dissector of JSON may recurse, and no valid version data are longer.
local MAX_JSON = 4096

-- Names of numbers ---------------------------------------------------------------------------------------------------

local COMMAND_NAMES = {
    [1] = "VERSION", [2] = "DMA_MAP", [3] = "DMA_UNMAP", [4] = "DEVICE_GET_INFO", [5] = "DEVICE_GET_REGION_INFO",
    [6] = "DEVICE_GET_REGION_IO_FDS", [7] = "DEVICE_GET_IRQ_INFO", [8] = "DEVICE_SET_IRQS", [9] = "REGION_READ",
    [10] = "REGION_WRITE", [11] = "DMA_READ", [12] = "DMA_WRITE", [13] = "DEVICE_RESET", [15] = "REGION_WRITE_MULTI",
    [16] = "DEVICE_FEATURE", [17] = "MIG_DATA_READ", [18] = "MIG_DATA_WRITE",
}
local VERSION, DMA_READ, DMA_WRITE = 1, 11, 12

local REGION_NAMES = {
    [0] = "BAR0", [1] = "BAR1", [2] = "BAR2", [3] = "BAR3", [4] = "BAR4", [5] = "BAR5", [6] = "ROM", [7] = "CONFIG",
    [8] = "VGA",
}
local IRQ_NAMES = {[0] = "INTX", [1] = "MSI", [2] = "MSIX", [3] = "ERR", [4] = "REQ"}
local CAPABILITY_NAMES = {[1] = "SPARSE_MMAP", [2] = "TYPE", [3] = "MSIX_MAPPABLE"}
local REGION_TYPE_NAMES = {[1] = "GFX", [2] = "CCW", [3] = "MIGRATION"}
local IO_FD_TYPE_NAMES = {[0] = "IOEVENTFD", [1] = "IOREGIONFD"}
local FEATURE_NAMES = {
    [1] = "MIGRATION", [2] = "MIG_DEVICE_STATE", [6] = "DMA_LOGGING_START", [7] = "DMA_LOGGING_STOP",
    [8] = "DMA_LOGGING_REPORT",
}
local STATE_NAMES = {
    [0] = "ERROR", [1] = "STOP", [2] = "RUNNING", [3] = "STOP_COPY", [4] = "RESUMING", [5] = "RUNNING_P2P",
    [6] = "PRE_COPY", [7] = "PRE_COPY_P2P",
}
local RECORD_NAMES = {[1] = "SESSION", [2] = "CONTENT", [3] = "EVENTS", [4] = "MALFORMED", [5] = "AREAS"}
local EVENT_NAMES = {[1] = "READ", [2] = "WRITE", [3] = "INTERRUPT"}

-- Those of Linux on most architectures; "-" is a number without a name.
local function errno_names()
    local names, number = {[0] = "none"}, 0
    local all = [[
        EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK EBUSY
        EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK EPIPE
        EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP - ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST
        ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT - EBFONT ENOSTR ENODATA ETIME ENOSR
        ENONET ENOPKG EREMOTE ENOLINK EADV ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD
        EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ
        EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT
        EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN
        ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EUCLEAN
        ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY EKEYEXPIRED EKEYREVOKED
        EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON]]
    for name in all:gmatch("%S+") do
        number = number + 1
        if name ~= "-" then names[number] = name end
    end
    return names
end

local ERRNO_NAMES = errno_names()

-- Fields -------------------------------------------------------------------------------------------------------------

local vfio_user = Proto("vfio_user", "vfio-user")
local vgpud = Proto("vgpud", "vgpud trace")

-- Makes the fields of one protocol, and keeps them for its registration.
local function definer(prefix)
    local all = {}
    local function define(kind, name, ...)
        local field = ProtoField[kind](prefix .. "." .. name, ...)
        all[#all + 1] = field
        return field
    end
    -- A number of flags; each bit is {mask, name, title}.
    local function define_flags(kind, width, name, title, bits)
        local flags = {parent = define(kind, name, title, base.HEX), size = width / 8, bits = {}, names = {}}
        for _, bit in ipairs(bits) do
            local mask, short, long = bit[1], bit[2], bit[3]
            flags.bits[#flags.bits + 1] = define("bool", name .. "." .. short, long, width, nil, mask)
            flags.names[#flags.names + 1] = {mask, short}
        end
        return flags
    end
    return define, define_flags, all
end

local define, define_flags, vfio_user_fields = definer("vfio_user")

local F = {
    message_id = define("uint16", "message_id", "Message ID", base.DEC),
    command = define("uint16", "command", "Command", base.DEC, COMMAND_NAMES),
    size = define("uint32", "size", "Size of the message", base.DEC),
    flags = define_flags("uint32", 32, "flags", "Flags", {
        {NO_REPLY, "no_reply", "No reply wanted"}, {ERROR, "error", "Error"},
    }),
    flags_type = define("uint32", "flags.type", "Type", base.DEC, {[COMMAND] = "Command", [REPLY] = "Reply"}, 0xf),
    errno = define("uint32", "errno", "Error number", base.DEC, ERRNO_NAMES),
    response_in = define("framenum", "response_in", "Response in", base.NONE, frametype.RESPONSE),
    response_to = define("framenum", "response_to", "Response to", base.NONE, frametype.REQUEST),
    time = define("relative_time", "time", "Time from the request"),
    argsz = define("uint32", "argsz", "Room for the reply, or size of all of it (argsz)", base.DEC),
    data = define("bytes", "data", "Not understood"),

    major = define("uint16", "version.major", "Major version", base.DEC),
    minor = define("uint16", "version.minor", "Minor version", base.DEC),
    json = define("string", "version.json", "Version data"),

    dma_flags = define_flags("uint32", 32, "dma.flags", "Flags", {
        {1, "read", "Device may read"}, {2, "write", "Device may write"}, {4, "mappable", "Mappable"},
    }),
    unmap_flags = define_flags("uint32", 32, "dma.unmap_flags", "Flags", {
        {1, "get_dirty_bitmap", "Get dirty bitmap"}, {2, "all", "Unmap all"},
    }),
    dma_offset = define("uint64", "dma.offset", "Offset in the file", base.HEX),
    dma_address = define("uint64", "dma.address", "DMA address", base.HEX),
    dma_size = define("uint64", "dma.size", "Size", base.HEX),
    dma_count = define("uint64", "dma.count", "Bytes", base.DEC),
    dma_data = define("bytes", "dma.data", "Data"),
    bitmap_page_size = define("uint64", "dma.bitmap.page_size", "Page size", base.DEC),
    bitmap_size = define("uint64", "dma.bitmap.size", "Size of the bitmap", base.DEC),
    bitmap_data = define("bytes", "dma.bitmap.data", "Dirty bitmap"),

    device_flags = define_flags("uint32", 32, "device.flags", "Flags", {
        {1, "reset", "Can be reset"}, {2, "pci", "PCI device"},
    }),
    num_regions = define("uint32", "device.num_regions", "Number of regions", base.DEC),
    num_irqs = define("uint32", "device.num_irqs", "Number of interrupt indexes", base.DEC),

    region_index = define("uint32", "region.index", "Region", base.DEC, REGION_NAMES),
    region_offset = define("uint64", "region.offset", "Offset in the region", base.HEX),
    region_count = define("uint32", "region.count", "Bytes", base.DEC),
    region_data = define("bytes", "region.data", "Data"),
    num_writes = define("uint64", "region.num_writes", "Number of writes", base.DEC),
    region_flags = define_flags("uint32", 32, "region.flags", "Flags", {
        {1, "read", "Can be read"}, {2, "write", "Can be written"}, {4, "mmap", "Can be mapped"},
        {8, "caps", "Has capabilities"},
    }),
    cap_offset = define("uint32", "region.cap_offset", "Offset of the first capability", base.DEC),
    region_size = define("uint64", "region.size", "Size", base.HEX),
    mmap_offset = define("uint64", "region.mmap_offset", "Offset in the file", base.HEX),
    cap_id = define("uint16", "region.cap.id", "Capability", base.DEC, CAPABILITY_NAMES),
    cap_version = define("uint16", "region.cap.version", "Version", base.DEC),
    cap_next = define("uint32", "region.cap.next", "Offset of the next capability", base.DEC),
    cap_data = define("bytes", "region.cap.data", "Data"),
    num_areas = define("uint32", "region.sparse.num_areas", "Number of areas", base.DEC),
    area_offset = define("uint64", "region.sparse.offset", "Offset", base.HEX),
    area_size = define("uint64", "region.sparse.size", "Size", base.HEX),
    region_type = define("uint32", "region.type.type", "Type", base.HEX, REGION_TYPE_NAMES),
    region_subtype = define("uint32", "region.type.subtype", "Subtype", base.HEX),

    io_fds_flags = define("uint32", "io_fds.flags", "Flags", base.HEX),
    io_fds_count = define("uint32", "io_fds.count", "Number of sub-regions", base.DEC),
    io_fd_offset = define("uint64", "io_fd.offset", "Offset in the region", base.HEX),
    io_fd_size = define("uint64", "io_fd.size", "Size", base.DEC),
    io_fd_index = define("uint32", "io_fd.fd_index", "Index of the file descriptor", base.DEC),
    io_fd_type = define("uint32", "io_fd.type", "Type", base.DEC, IO_FD_TYPE_NAMES),
    io_fd_flags = define("uint32", "io_fd.flags", "Flags", base.HEX),
    io_fd_data = define("uint64", "io_fd.data", "Datamatch, or user data", base.HEX),

    irq_index = define("uint32", "irq.index", "Interrupt index", base.DEC, IRQ_NAMES),
    irq_flags = define_flags("uint32", 32, "irq.flags", "Flags", {
        {1, "eventfd", "Signals eventfds"}, {2, "maskable", "Maskable"}, {4, "automasked", "Masks itself"},
        {8, "noresize", "Cannot be resized"},
    }),
    set_flags = define_flags("uint32", 32, "irq.set_flags", "Flags", {
        {1, "none", "No data"}, {2, "bool", "Booleans"}, {4, "eventfd", "Eventfds"}, {8, "mask", "Mask"},
        {16, "unmask", "Unmask"}, {32, "trigger", "Trigger"},
    }),
    irq_start = define("uint32", "irq.start", "First vector", base.DEC),
    irq_count = define("uint32", "irq.count", "Number of vectors", base.DEC),
    irq_bool = define("bool", "irq.bool", "Chosen"),

    feature_flags = define_flags("uint32", 32, "feature.flags", "Flags", {
        {0x10000, "get", "Get"}, {0x20000, "set", "Set"}, {0x40000, "probe", "Probe"},
    }),
    feature_index = define("uint32", "feature.index", "Feature", base.DEC, FEATURE_NAMES, 0xffff),
    feature_data = define("bytes", "feature.data", "Data"),
    migration_flags = define_flags("uint64", 64, "migration.flags", "Migration flags", {
        {1, "stop_copy", "STOP_COPY"}, {2, "p2p", "P2P"}, {4, "pre_copy", "PRE_COPY"},
    }),
    state = define("uint32", "migration.state", "Device state", base.DEC, STATE_NAMES),
    data_fd = define("int32", "migration.data_fd", "File descriptor of the data", base.DEC),
    migration_size = define("uint32", "migration.size", "Bytes", base.DEC),
    migration_data = define("bytes", "migration.data", "Data"),
    logging_page_size = define("uint64", "dma_logging.page_size", "Page size", base.DEC),
    num_ranges = define("uint32", "dma_logging.num_ranges", "Number of ranges", base.DEC),
    iova = define("uint64", "dma_logging.iova", "DMA address", base.HEX),
    length = define("uint64", "dma_logging.length", "Length", base.HEX),
    logging_bitmap = define("bytes", "dma_logging.bitmap", "Dirty bitmap"),
}

local define_record, define_record_flags, vgpud_fields = definer("vgpud")

local G = {
    kind = define_record("uint8", "kind", "Record", base.DEC, RECORD_NAMES),
    session = define_record("string", "session", "Session"),
    hash = define_record("bytes", "content.hash", "Hash"),
    length = define_record("uint32", "content.length", "Length", base.DEC),
    compressed = define_record("bytes", "content.compressed", "Compressed data"),
    data = define_record("bytes", "data", "Not understood"),
    event_kind = define_record("uint8", "event.kind", "Event", base.DEC, EVENT_NAMES),
    event_flags = define_record_flags("uint8", 8, "event.flags", "Flags", {
        {1, "stored", "Stored by hash"}, {2, "in_place", "Looked at in place"},
    }),
    event_index = define_record("uint16", "event.index", "Interrupt index", base.DEC, IRQ_NAMES),
    event_length = define_record("uint32", "event.length", "Length", base.DEC),
    event_address = define_record("uint64", "event.address", "DMA address", base.HEX),
    event_vector = define_record("uint64", "event.vector", "Vector", base.DEC),
    event_data = define_record("bytes", "event.data", "Data"),
    event_hash = define_record("bytes", "event.hash", "Hash of the data"),
    event_place = define_record("uint64", "event.place", "Place of the data", base.DEC),
    event_content = define_record("framenum", "event.content_in", "Data in"),
    reason = define_record("string", "framing.reason", "What is wrong"),
    received = define_record("bytes", "framing.received", "Received"),
    whole = define_record("bool", "areas.whole", "The look ends here"),
    area_region = define_record("uint16", "area.region", "Region", base.DEC, REGION_NAMES),
    area_flags = define_record_flags("uint16", 16, "area.flags", "Flags", {{1, "stored", "Stored by hash"}}),
    area_length = define_record("uint32", "area.length", "Length", base.DEC),
    area_offset = define_record("uint64", "area.offset", "Offset in the region", base.HEX),
    area_data = define_record("bytes", "area.data", "Data"),
    area_hash = define_record("bytes", "area.hash", "Hash of the data"),
    area_place = define_record("uint64", "area.place", "Place of the data", base.DEC),
    area_content = define_record("framenum", "area.content_in", "Data in"),
}

local function malformed_expert(name)
    return ProtoExpert.new(name, "Malformed", expert.group.MALFORMED, expert.severity.ERROR)
end

local expert_malformed = malformed_expert("vfio_user.malformed")
local expert_record_malformed = malformed_expert("vgpud.malformed")
local expert_short_count = ProtoExpert.new("vfio_user.short_count",
    "The count has 32 bits, as QEMU before 11 sends it", expert.group.PROTOCOL, expert.severity.WARN)

vfio_user.fields = vfio_user_fields
vfio_user.experts = {expert_malformed, expert_short_count}
vgpud.fields = vgpud_fields
vgpud.experts = {expert_record_malformed}

-- Numbers and text ---------------------------------------------------------------------------------------------------

local text = string.format

local function has(flags, mask)
    return math.floor(flags / mask) % 2 == 1
end

-- 64-bit numbers are objects of Wireshark's; what is compared with lengths need not be exact beyond 2^53.
local function to_number(value)
    return type(value) == "number" and value or value:tonumber()
end

local function decimal(value)
    return type(value) == "number" and text("%d", value) or tostring(value)
end

local function hex(value)
    if type(value) == "number" then return text("0x%x", value) end
    return "0x" .. value:tohex():gsub("^0+(%x)", "%1")
end

local function span(address, size)
    return hex(address) .. "+" .. hex(size)
end

-- Registers are numbers, longer data are bytes.
local function data_text(range)
    local size = range and range:len() or 0
    if size >= 1 and size <= 4 then return text(text("0x%%0%dx", 2 * size), range:le_uint()) end
    if size == 8 then return "0x" .. range:le_uint64():tohex() end
    return text("%d bytes", size)
end

local function name_of(names, value, otherwise)
    return names[value] or text("%s %d", otherwise, value)
end

local function region_name(index)
    return name_of(REGION_NAMES, index, "region")
end

local function irq_name(index)
    return name_of(IRQ_NAMES, index, "interrupt index")
end

local function flag_names(flags, value)
    local names = {}
    for _, bit in ipairs(flags.names) do
        if has(value, bit[1]) then names[#names + 1] = bit[2] end
    end
    return table.concat(names, " ")
end

local function access_text(value)
    return (has(value, 1) and "r" or "-") .. (has(value, 2) and "w" or "-")
end

local function words(...)
    local all = {}
    for _, word in ipairs({...}) do
        if word ~= "" then all[#all + 1] = word end
    end
    return table.concat(all, " ")
end

-- Bytes of a dirty bitmap, one bit per page, in whole 64-bit words. Exact: these are lengths that have to fit.
local function bitmap_size(length, page_size)
    local function divide_up(a, b)
        local whole = a / b
        return whole * b == a and whole or whole + 1
    end
    return divide_up(divide_up(length, page_size), UInt64(64)) * UInt64(8)
end

-- Reading ------------------------------------------------------------------------------------------------------------

-- What is raised where a packet cannot be read on; all else that is raised is a mistake in this file.
local Malformed = {}

local function malformed(...)
    error(setmetatable({text = text(...)}, Malformed), 0)
end

-- Reads a part of a packet, and shows what it reads in a tree. `packet` is what all cursors of a packet share.
local Cursor = {}
Cursor.__index = Cursor

local function new_cursor(packet, start, finish, tree)
    return setmetatable({packet = packet, tvb = packet.tvb, at = start, finish = finish, tree = tree}, Cursor)
end

-- Notes what does not fit. Reading goes on.
function Cursor:complain(...)
    local problem = text(...)
    self.packet.problem = self.packet.problem or problem
    self.packet.tree:add_proto_expert_info(self.packet.expert, problem)
end

function Cursor:left()
    return self.finish - self.at
end

function Cursor:take(size)
    if self:left() < size then malformed("%d bytes where %d are due", self:left(), size) end
    local range = self.tvb:range(self.at, size)
    self.at = self.at + size
    return range
end

function Cursor:number(field, size)
    local range = self:take(size)
    self.tree:add_le(field, range)
    if size == 8 then return range:le_uint64() end
    return range:le_uint()
end

function Cursor:u8(field) return self:number(field, 1) end
function Cursor:u16(field) return self:number(field, 2) end
function Cursor:u32(field) return self:number(field, 4) end
function Cursor:u64(field) return self:number(field, 8) end

-- Flags as a number (of 64-bit flags, the lower half). `first` is a field that is shown with them.
function Cursor:flags(flags, first)
    local range = self:take(flags.size)
    local tree = self.tree:add_le(flags.parent, range)
    if first then tree:add_le(first, range) end
    for _, field in ipairs(flags.bits) do tree:add_le(field, range) end
    return range:range(0, math.min(flags.size, 4)):le_uint()
end

-- Nil where there are none: Wireshark shows no empty fields.
function Cursor:bytes(field, size)
    if size == 0 then return nil end
    local range = self:take(size)
    self.tree:add(field, range)
    return range
end

-- The rest, which has to be `count` bytes.
function Cursor:counted(field, count)
    local size = self:left()
    local range = self:bytes(field, size)
    if to_number(count) ~= size then malformed("%d bytes of data where %s are said to be", size, decimal(count)) end
    return range
end

function Cursor:argsz(least)
    local argsz = self:u32(F.argsz)
    if argsz < least then self:complain("argsz %d is less than %d", argsz, least) end
    return argsz
end

function Cursor:skip(size)
    self:take(size)
end

-- The rest, which is shown as it is.
function Cursor:rest()
    return self:bytes(self.packet.undecoded, self:left())
end

-- There must not be a rest.
function Cursor:done()
    local extra = self:left()
    if extra == 0 then return end
    self:rest()
    malformed("%d bytes too many", extra)
end

-- `count` structures of `size` bytes; `read` gets a cursor and a number from 0 on, and returns a text.
function Cursor:entries(title, count, size, read)
    local shown = math.min(count, MAX_ENTRIES)
    for index = 0, shown - 1 do
        local start = self.at
        local tree = self.tree:add(self:take(size), text("%s %d", title, index))
        tree:append_text(": " .. read(new_cursor(self.packet, start, start + size, tree), index))
    end
    if count > shown then
        self.tree:add(self:take((count - shown) * size), text("and %d more", count - shown))
    end
end

local json_dissector = (function()
    local found, dissector = pcall(Dissector.get, "json")
    return found and dissector or nil
end)()

-- JSON as text, and as Wireshark takes it apart.
function Cursor:json(field, size)
    if size == 0 then return end
    local range = self:take(size)
    local tree = self.tree:add_packet_field(field, range, ENC_UTF_8)
    if json_dissector == nil or size > MAX_JSON then return end
    -- It shows by itself what it cannot read, and raises as well.
    pcall(json_dissector.call, json_dissector, range:tvb(), self.packet.pinfo, tree)
end

-- Lets `read` read a packet; what cannot be read becomes expert info. Returns what `read` returns.
local function guarded(cursor, read, ...)
    local fine, result = pcall(read, cursor, ...)
    if fine then return result end
    if getmetatable(result) ~= Malformed then error(result, 0) end
    cursor:complain("%s", result.text)
    return nil
end

-- Payloads: each function reads one, and returns what the info column says of it ------------------------------------

local function nothing(cursor)
    cursor:done()
    return ""
end

local function version(cursor)
    local major, minor = cursor:u16(F.major), cursor:u16(F.minor)
    local size = cursor:left()
    if size > 0 then
        local terminated = cursor.tvb:range(cursor.finish - 1, 1):uint() == 0
        cursor:json(F.json, terminated and size - 1 or size)
        if not terminated then malformed("version data without NUL") end
        cursor:skip(1)
    end
    return text("%d.%d", major, minor)
end

local function dma_map(cursor)
    cursor:argsz(32)
    local flags = cursor:flags(F.dma_flags)
    cursor:u64(F.dma_offset)
    local address, size = cursor:u64(F.dma_address), cursor:u64(F.dma_size)
    return words(span(address, size), access_text(flags))
end

local function unmap_start(cursor)
    local flags = cursor:flags(F.unmap_flags)
    local address, size = cursor:u64(F.dma_address), cursor:u64(F.dma_size)
    return has(flags, 1), size, has(flags, 2) and "all" or span(address, size)
end

local function dma_unmap(cursor)
    local argsz = cursor:argsz(24)
    local bitmap, size, what = unmap_start(cursor)
    if not bitmap then return what end
    local page_size, room = cursor:u64(F.bitmap_page_size), cursor:u64(F.bitmap_size)
    if argsz < 40 + to_number(room) then
        cursor:complain("argsz %d has no room for a bitmap of %s bytes", argsz, tostring(room))
    end
    if page_size ~= UInt64(0) and room < bitmap_size(size, page_size) then
        cursor:complain("a bitmap of %s bytes is too small", tostring(room))
    end
    return what .. " with dirty bitmap"
end

local function dma_unmap_reply(cursor)
    cursor:u32(F.argsz)
    local bitmap, _, what = unmap_start(cursor)
    if not bitmap then return what end
    cursor:u64(F.bitmap_page_size)
    cursor:counted(F.bitmap_data, cursor:u64(F.bitmap_size))
    return what .. " with dirty bitmap"
end

local function device_info(cursor)
    cursor:argsz(16)
    local flags = cursor:flags(F.device_flags)
    local regions, irqs = cursor:u32(F.num_regions), cursor:u32(F.num_irqs)
    return words(text("%d regions %d interrupt indexes", regions, irqs), flag_names(F.device_flags, flags))
end

local function get_device_info(cursor)
    device_info(cursor)
    return ""
end

local function region_info_start(cursor)
    local argsz = cursor:argsz(32)
    local flags, index, first = cursor:flags(F.region_flags), cursor:u32(F.region_index), cursor:u32(F.cap_offset)
    local size = cursor:u64(F.region_size)
    cursor:u64(F.mmap_offset)
    return argsz, flags, index, first, size
end

local function get_region_info(cursor)
    local _, _, index = region_info_start(cursor)
    return region_name(index)
end

local function sparse_area(cursor)
    return span(cursor:u64(F.area_offset), cursor:u64(F.area_size))
end

local CAPABILITIES = {
    [1] = function(cursor)
        local count = cursor:u32(F.num_areas)
        cursor:skip(4)
        if count * 16 > cursor:left() then malformed("%d areas in %d bytes", count, cursor:left()) end
        cursor:entries("Area", count, 16, sparse_area)
    end,
    [2] = function(cursor)
        cursor:u32(F.region_type)
        cursor:u32(F.region_subtype)
    end,
    [3] = function() end,
}

-- One capability at the cursor; returns where the next is.
local function capability(cursor, payload)
    local id, revision, following = cursor:u16(F.cap_id), cursor:u16(F.cap_version), cursor:u32(F.cap_next)
    cursor.tree:append_text(": " .. name_of(CAPABILITY_NAMES, id, "capability"))
    if following ~= 0 then cursor.finish = math.min(cursor.finish, payload + following) end
    local read = revision == 1 and CAPABILITIES[id]
    if read then
        read(cursor)
    elseif cursor:left() > 0 then
        cursor:bytes(F.cap_data, cursor:left())
    end
    return following
end

-- Offsets count from the payload, and must rise, so that a chain cannot be a ring.
local function capabilities(cursor, payload, finish, first)
    local offset, least, number = first, cursor.at - payload, 0
    while offset ~= 0 and number < MAX_ENTRIES do
        local start = payload + offset
        if offset < least or offset % 8 ~= 0 or start + 8 > finish then
            malformed("a capability at offset %d", offset)
        end
        local tree = cursor.tree:add(cursor.tvb:range(start, finish - start), "Capability")
        offset = capability(new_cursor(cursor.packet, start, finish, tree), payload)
        least = start + 8 - payload
        tree:set_len((offset >= least and math.min(payload + offset, finish) or finish) - start)
        number = number + 1
    end
end

local function region_info(cursor)
    local payload, finish = cursor.at, cursor.finish
    local argsz, flags, index, first, size = region_info_start(cursor)
    local what = words(region_name(index), hex(size) .. " bytes", flag_names(F.region_flags, flags))
    if argsz > finish - payload then return what .. ", cut" end
    if has(flags, 8) then
        capabilities(cursor, payload, payload + argsz, first)
        cursor.at = math.max(cursor.at, payload + argsz)
    end
    return what
end

local function region_io_fds_start(cursor)
    local argsz = cursor:argsz(16)
    local flags, index = cursor:u32(F.io_fds_flags), cursor:u32(F.region_index)
    return argsz, flags, index, cursor:u32(F.io_fds_count)
end

local function get_region_io_fds(cursor)
    local _, flags, index, count = region_io_fds_start(cursor)
    if flags ~= 0 or count ~= 0 then cursor:complain("flags and count are not 0") end
    return region_name(index)
end

local function sub_region(cursor)
    local offset, size = cursor:u64(F.io_fd_offset), cursor:u64(F.io_fd_size)
    local fd, kind = cursor:u32(F.io_fd_index), cursor:u32(F.io_fd_type)
    cursor:u32(F.io_fd_flags)
    cursor:skip(4)
    cursor:u64(F.io_fd_data)
    return words(span(offset, size), name_of(IO_FD_TYPE_NAMES, kind, "type"), text("fd %d", fd))
end

local function region_io_fds(cursor)
    local size = cursor:left()
    local argsz, _, index, count = region_io_fds_start(cursor)
    local what = text("%s %d sub-regions", region_name(index), count)
    if argsz > size then return what .. ", cut" end
    if count == 0 then return what end
    -- Sub-regions may be longer than what is known of them.
    local stride = (argsz - 16) / count
    if stride ~= math.floor(stride) or stride < 40 then malformed("%d sub-regions in %d bytes", count, argsz) end
    cursor:entries("Sub-region", count, stride, sub_region)
    return what
end

local function irq_info(cursor)
    cursor:argsz(16)
    local flags = cursor:flags(F.irq_flags)
    local index, count = cursor:u32(F.irq_index), cursor:u32(F.irq_count)
    return words(irq_name(index), text("%d vectors", count), flag_names(F.irq_flags, flags))
end

local function get_irq_info(cursor)
    cursor:argsz(16)
    cursor:flags(F.irq_flags)
    local index = cursor:u32(F.irq_index)
    cursor:u32(F.irq_count)
    return irq_name(index)
end

-- The eventfds are beside the message: see the comment of the packet.
local function set_irqs(cursor)
    local payload = cursor.at
    local argsz = cursor:argsz(20)
    local flags = cursor:flags(F.set_flags)
    local index, start, count = cursor:u32(F.irq_index), cursor:u32(F.irq_start), cursor:u32(F.irq_count)
    local what = words(irq_name(index), flag_names(F.set_flags, flags))
    if has(flags, 2) then
        local room = math.min(payload + argsz, cursor.finish) - cursor.at
        if count > room then malformed("%d booleans in %d bytes", count, room) end
        cursor:entries("Boolean", count, 1, function(entry, number)
            local chosen = entry:u8(F.irq_bool) ~= 0
            return text("vector %d %s", start + number, tostring(chosen))
        end)
    end
    if count == 0 then return what .. ", no vectors" end
    return what .. (count == 1 and text(", vector %d", start) or text(", vectors %d-%d", start, start + count - 1))
end

local function access(cursor)
    local offset, index, count = cursor:u64(F.region_offset), cursor:u32(F.region_index), cursor:u32(F.region_count)
    return count, region_name(index) .. "+" .. hex(offset)
end

local function region_read(cursor)
    local count, where = access(cursor)
    cursor:done()
    return text("%s %d bytes", where, count)
end

local function region_read_reply(cursor)
    return data_text(cursor:counted(F.region_data, (access(cursor))))
end

local function region_write(cursor)
    local count, where = access(cursor)
    return where .. " = " .. data_text(cursor:counted(F.region_data, count))
end

local function region_write_reply(cursor)
    local count = access(cursor)
    cursor:done()
    return text("%d bytes", count)
end

local function one_write(cursor)
    local count, where = access(cursor)
    if count > 8 then malformed("a write of %d bytes", count) end
    return where .. " = " .. data_text(cursor:bytes(F.region_data, count))
end

local function region_write_multi(cursor)
    local count = cursor:u64(F.num_writes)
    if to_number(count) * 24 ~= cursor:left() then
        malformed("%s writes in %d bytes", tostring(count), cursor:left())
    end
    cursor:entries("Write", to_number(count), 24, one_write)
    return tostring(count) .. " writes"
end

local function region_write_multi_reply(cursor)
    local count = cursor:u64(F.num_writes)
    cursor:done()
    return tostring(count) .. " writes"
end

local function dma_access(cursor)
    local address, count = cursor:u64(F.dma_address), cursor:u64(F.dma_count)
    return count, span(address, count)
end

local function dma_read(cursor)
    local _, where = dma_access(cursor)
    cursor:done()
    return where
end

-- QEMU before 11 takes the count for 32 bits, and puts the data right behind it.
local function has_short_count(cursor)
    local size = cursor:left()
    if size < 12 or size ~= 12 + cursor.tvb:range(cursor.at + 8, 4):le_uint() then return false end
    return size < 16 or to_number(cursor.tvb:range(cursor.at + 8, 8):le_uint64()) ~= size - 16
end

local function dma_read_reply(cursor)
    if not has_short_count(cursor) then
        return data_text(cursor:counted(F.dma_data, (dma_access(cursor))))
    end
    cursor.packet.tree:add_proto_expert_info(expert_short_count)
    cursor:u64(F.dma_address)
    return data_text(cursor:counted(F.dma_data, cursor:u32(F.dma_count)))
end

local function dma_write(cursor)
    local count, where = dma_access(cursor)
    return where .. " = " .. data_text(cursor:counted(F.dma_data, count))
end

-- Peers differ in the count: the specification's table has 4 bytes, libvfio-user 8, QEMU sends nothing at all.
local function dma_write_reply(cursor)
    if cursor:left() == 0 then return "" end
    cursor:u64(F.dma_address)
    local count = cursor:number(F.dma_count, cursor:left() == 4 and 4 or 8)
    cursor:done()
    return decimal(count) .. " bytes"
end

local function migration_support(cursor)
    local flags = cursor:flags(F.migration_flags)
    cursor:done()
    return flag_names(F.migration_flags, flags)
end

local function migration_state(cursor)
    local state = cursor:u32(F.state)
    cursor:u32(F.data_fd)
    cursor:done()
    return name_of(STATE_NAMES, state, "state")
end

local function logging_range(cursor)
    return span(cursor:u64(F.iova), cursor:u64(F.length))
end

local function logging_control(cursor)
    local page_size, count = cursor:u64(F.logging_page_size), cursor:u32(F.num_ranges)
    cursor:skip(4)
    if count * 16 ~= cursor:left() then malformed("%d ranges in %d bytes", count, cursor:left()) end
    cursor:entries("Range", count, 16, logging_range)
    return text("%d ranges, pages of %s bytes", count, tostring(page_size))
end

local function logging_report(cursor)
    local iova, length, page_size = cursor:u64(F.iova), cursor:u64(F.length), cursor:u64(F.logging_page_size)
    local size = cursor:left()
    cursor:bytes(F.logging_bitmap, size)
    if size > 0 and page_size ~= UInt64(0) and bitmap_size(length, page_size) ~= UInt64(size) then
        malformed("a bitmap of %d bytes where %s are due", size, tostring(bitmap_size(length, page_size)))
    end
    return span(iova, length)
end

-- Who brings which data: what is not here brings none.
local FEATURES = {
    [1] = {get_reply = migration_support},
    [2] = {get_reply = migration_state, set = migration_state, set_reply = migration_state},
    [6] = {set = logging_control, set_reply = logging_control},
    [8] = {get = logging_report, get_reply = logging_report},
}

local function feature_reader(feature, flags, reply)
    local readers = FEATURES[feature]
    if readers == nil or has(flags, 0x40000) then return nil end
    local operation = has(flags, 0x10000) and "get" or has(flags, 0x20000) and "set" or ""
    return readers[operation .. (reply and "_reply" or "")]
end

local function feature(cursor, reply)
    cursor:argsz(8)
    local flags = cursor:flags(F.feature_flags, F.feature_index)
    local index = flags % 0x10000
    local what = words(name_of(FEATURE_NAMES, index, "feature"), flag_names(F.feature_flags, flags))
    local read = feature_reader(index, flags, reply)
    -- A reply that would not fit the argsz of its request comes without its data.
    if read and not (reply and cursor:left() == 0) then return words(what, read(cursor)) end
    cursor:bytes(F.feature_data, cursor:left())
    return what
end

local function feature_request(cursor) return feature(cursor, false) end
local function feature_reply(cursor) return feature(cursor, true) end

local function migration_read(cursor)
    cursor:argsz(8)
    return text("%d bytes", cursor:u32(F.migration_size))
end

local function migration_data(cursor)
    cursor:argsz(8)
    local size = cursor:u32(F.migration_size)
    cursor:counted(F.migration_data, size)
    return text("%d bytes", size)
end

local PAYLOADS = {
    VERSION = {request = version, reply = version},
    DMA_MAP = {request = dma_map, reply = nothing},
    DMA_UNMAP = {request = dma_unmap, reply = dma_unmap_reply},
    DEVICE_GET_INFO = {request = get_device_info, reply = device_info},
    DEVICE_GET_REGION_INFO = {request = get_region_info, reply = region_info},
    DEVICE_GET_REGION_IO_FDS = {request = get_region_io_fds, reply = region_io_fds},
    DEVICE_GET_IRQ_INFO = {request = get_irq_info, reply = irq_info},
    DEVICE_SET_IRQS = {request = set_irqs, reply = nothing},
    REGION_READ = {request = region_read, reply = region_read_reply},
    REGION_WRITE = {request = region_write, reply = region_write_reply},
    DMA_READ = {request = dma_read, reply = dma_read_reply},
    DMA_WRITE = {request = dma_write, reply = dma_write_reply},
    DEVICE_RESET = {request = nothing, reply = nothing},
    REGION_WRITE_MULTI = {request = region_write_multi, reply = region_write_multi_reply},
    DEVICE_FEATURE = {request = feature_request, reply = feature_reply},
    MIG_DATA_READ = {request = migration_read, reply = migration_data},
    MIG_DATA_WRITE = {request = migration_data, reply = nothing},
}

-- Which reply belongs to which request -------------------------------------------------------------------------------

-- `pending` has the requests without a reply, by sender and message ID; `links` is by the number of a frame, and
-- `contents` has the frames of contents by hash.
local state

local function restart()
    state.pending = {client = {}, server = {}}
end

local function reset()
    state = {links = {}, contents = {}}
    restart()
end

reset()
vfio_user.init = reset

local OTHER_SIDE = {client = "server", server = "client"}
local P2P_SENT, P2P_RECEIVED = 0, 1

-- From the direction of the packet, as the server sees it; a file without directions leaves the command.
local function sender(pinfo, header)
    if pinfo.p2p_dir == P2P_RECEIVED then return "client" end
    if pinfo.p2p_dir == P2P_SENT then return "server" end
    local asks = (header.command == DMA_READ or header.command == DMA_WRITE) and "server" or "client"
    return header.kind == REPLY and OTHER_SIDE[asks] or asks
end

local function link_request(pinfo, header, from)
    if header.command == VERSION then restart() end
    local wanted = not has(header.flags, NO_REPLY)
    state.pending[from][header.message_id] = wanted and {frame = pinfo.number, time = pinfo.rel_ts} or nil
end

local function link_reply(pinfo, header, from)
    local pending = state.pending[OTHER_SIDE[from]]
    local request = pending[header.message_id]
    if request == nil then return end
    pending[header.message_id] = nil
    state.links[request.frame] = {reply = pinfo.number}
    state.links[pinfo.number] = {request = request.frame, time = pinfo.rel_ts - request.time}
end

local function to_nstime(seconds)
    local nanoseconds = math.floor(math.abs(seconds) * 1e9 + 0.5)
    local whole, rest = math.floor(nanoseconds / 1e9), nanoseconds % 1e9
    if seconds < 0 then whole, rest = -whole, -rest end
    return NSTime.new(whole, rest)
end

local function show_link(tree, link)
    if link.reply then tree:add(F.response_in, link.reply):set_generated() end
    if link.request then
        tree:add(F.response_to, link.request):set_generated()
        tree:add(F.time, to_nstime(link.time)):set_generated()
    end
end

-- Frames come in their order the first time only; later, the links are there.
local function follow(pinfo, header, from)
    if pinfo.visited then return end
    if header.kind == COMMAND then link_request(pinfo, header, from) end
    if header.kind == REPLY then link_reply(pinfo, header, from) end
end

-- Messages -----------------------------------------------------------------------------------------------------------

local function read_header(cursor)
    local message_id, command, size = cursor:u16(F.message_id), cursor:u16(F.command), cursor:u32(F.size)
    local flags = cursor:flags(F.flags, F.flags_type)
    local errno = cursor:u32(F.errno)
    local header = {message_id = message_id, command = command, size = size, flags = flags, errno = errno}
    header.kind = flags % 16
    header.name = name_of(COMMAND_NAMES, command, "command")
    header.failed = header.kind == REPLY and has(flags, ERROR)
    return header
end

local function read_payload(cursor, header)
    local readers = PAYLOADS[COMMAND_NAMES[header.command]]
    if readers == nil then malformed("there is no command %d", header.command) end
    if header.failed then return nothing(cursor) end
    if header.kind == COMMAND then return readers.request(cursor) end
    if header.kind == REPLY then return readers.reply(cursor) end
    malformed("neither a command nor a reply")
end

local function message_title(header)
    if header.failed then return text("%s error %s", header.name, name_of(ERRNO_NAMES, header.errno, "number")) end
    if header.kind == REPLY then return header.name .. " reply" end
    return header.name
end

-- The payload's end, as far as the message and the packet go.
local function payload_end(cursor, header)
    local reported, captured = cursor.tvb:reported_len(), cursor.tvb:captured_len()
    if captured < reported then cursor:complain("the file has %d bytes of %d", captured, reported) end
    if header.size ~= reported then
        cursor:complain("a message of %d bytes in a packet of %d", header.size, reported)
    end
    return math.max(math.min(header.size, captured), HEADER_SIZE)
end

local function read_message(cursor, pinfo)
    local header = read_header(cursor)
    local packet = cursor.packet
    local from = sender(pinfo, header)
    follow(pinfo, header, from)
    pinfo.cols.src, pinfo.cols.dst = from, OTHER_SIDE[from]
    local packet_end = cursor.finish
    cursor.finish = payload_end(cursor, header)
    local what = guarded(cursor, read_payload, header)
    cursor.finish = packet_end
    cursor:rest()
    local links = state.links[pinfo.number]
    if links then show_link(cursor.tree, links) end
    local info = words(message_title(header), what or "")
    if header.kind == COMMAND and has(header.flags, NO_REPLY) then info = info .. " (no reply)" end
    return packet.problem and info .. " [malformed: " .. packet.problem .. "]" or info
end

-- Shows a packet that `read` reads.
local function dissect(tvb, pinfo, root, protocol, read)
    local tree = root:add(protocol.proto, tvb)
    local packet = {tvb = tvb, pinfo = pinfo, tree = tree, expert = protocol.expert, undecoded = protocol.undecoded}
    local cursor = new_cursor(packet, 0, tvb:captured_len(), tree)
    local info = guarded(cursor, read, pinfo) or "malformed: " .. tostring(packet.problem)
    tree:append_text(": " .. info)
    -- Last, because the dissector of JSON writes into them.
    pinfo.cols.protocol = protocol.column
    pinfo.cols.info = info
    return tvb:captured_len()
end

local MESSAGES = {proto = vfio_user, column = "VFIO-USER", expert = expert_malformed, undecoded = F.data}

function vfio_user.dissector(tvb, pinfo, root)
    return dissect(tvb, pinfo, root, MESSAGES, read_message)
end

-- Records ------------------------------------------------------------------------------------------------------------

local function session(cursor)
    cursor:json(G.session, cursor:left())
    return ""
end

local function content(cursor)
    local hash = cursor:bytes(G.hash, 16)
    local length = cursor:u32(G.length)
    cursor:bytes(G.compressed, cursor:left())
    local pinfo = cursor.packet.pinfo
    if not pinfo.visited then state.contents[hash:bytes():tohex()] = pinfo.number end
    return text("%d bytes", length)
end

local EVENT_DATA = {data = G.event_data, hash = G.event_hash, place = G.event_place, content = G.event_content}
local AREA_DATA = {data = G.area_data, hash = G.area_hash, place = G.area_place, content = G.area_content}

-- What is stored by hash, or stands there itself.
local function data_of(cursor, fields, length, stored)
    if not stored then return cursor:bytes(fields.data, length) end
    local hash = cursor:bytes(fields.hash, 16)
    cursor:u64(fields.place)
    local frame = state.contents[hash:bytes():tohex()]
    if frame then cursor.tree:add(fields.content, frame):set_generated() end
end

local function event_title(cursor, kind)
    if kind == 3 then
        local index = cursor:u16(G.event_index)
        cursor:skip(4)
        return text("%s %s", irq_name(index), tostring(cursor:u64(G.event_vector)))
    end
    cursor:skip(2)
    local length = cursor:u32(G.event_length)
    return span(cursor:u64(G.event_address), length), length
end

-- One event; returns its text.
local function event(cursor)
    local kind = cursor:u8(G.event_kind)
    if EVENT_NAMES[kind] == nil then malformed("an event of kind %d", kind) end
    local flags = cursor:flags(G.event_flags)
    local title, length = event_title(cursor, kind)
    if length then data_of(cursor, EVENT_DATA, length, has(flags, 1)) end
    return EVENT_NAMES[kind] .. " " .. title
end

-- One change of a mappable area; returns its text.
local function area_change(cursor)
    local region = cursor:u16(G.area_region)
    local flags = cursor:flags(G.area_flags)
    local length = cursor:u32(G.area_length)
    local title = text("%s %s", region_name(region), span(cursor:u64(G.area_offset), length))
    data_of(cursor, AREA_DATA, length, has(flags, 1))
    return title
end

local MAX_EVENTS_IN_INFO = 8

-- A tree for each of what `read` reads up to the end; returns the texts of the first.
local function list_of(cursor, name, read)
    local titles, number = {}, 0
    while cursor:left() > 0 and number < MAX_ENTRIES do
        local start = cursor.at
        local tree = cursor.tree:add(cursor.tvb:range(start, cursor:left()), name)
        local entry = new_cursor(cursor.packet, start, cursor.finish, tree)
        local title = read(entry)
        tree:set_text(title)
        tree:set_len(entry.at - start)
        cursor.at = entry.at
        number = number + 1
        if number <= MAX_EVENTS_IN_INFO then titles[number] = title end
    end
    if number > MAX_EVENTS_IN_INFO then titles[#titles + 1] = text("and %d more", number - MAX_EVENTS_IN_INFO) end
    return table.concat(titles, ", ")
end

local function events(cursor)
    return list_of(cursor, "Event", event)
end

local function areas(cursor)
    local whole = cursor:u8(G.whole) ~= 0
    cursor:skip(3)
    return words(list_of(cursor, "Change", area_change), whole and "(whole)" or "")
end

-- What is no message, because its framing is broken.
local function framing(cursor)
    local reason = cursor:bytes(G.reason, cursor:take(2):le_uint())
    local pinfo, size = cursor.packet.pinfo, cursor:left()
    cursor:bytes(G.received, size)
    if pinfo.p2p_dir == P2P_RECEIVED then pinfo.cols.src, pinfo.cols.dst = "client", "server" end
    if pinfo.p2p_dir == P2P_SENT then pinfo.cols.src, pinfo.cols.dst = "server", "client" end
    cursor:complain("%s", reason and reason:string() or "broken framing")
    return text("%d bytes", size)
end

local RECORDS = {[1] = session, [2] = content, [3] = events, [4] = framing, [5] = areas}

local function read_record(cursor, pinfo)
    local kind = cursor:u8(G.kind)
    cursor:skip(3)
    if RECORDS[kind] == nil then malformed("a record of kind %d", kind) end
    -- The first packet of each section.
    if kind == 1 and not pinfo.visited then restart() end
    local what = guarded(cursor, RECORDS[kind])
    cursor:rest()
    local problem = cursor.packet.problem
    return words(RECORD_NAMES[kind], what or "", problem and "[malformed: " .. problem .. "]" or "")
end

local TRACE = {proto = vgpud, column = "VGPUD", expert = expert_record_malformed, undecoded = G.data}

function vgpud.dissector(tvb, pinfo, root)
    return dissect(tvb, pinfo, root, TRACE, read_record)
end

local encapsulations = wtap_encaps or wtap
local by_encapsulation = DissectorTable.get("wtap_encap")
by_encapsulation:add(encapsulations.USER0, vfio_user)
by_encapsulation:add(encapsulations.USER1, vgpud)
by_encapsulation:add(encapsulations.USER2, vgpud)
