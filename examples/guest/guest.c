/* A guest in one file: a virtio-net driver over virtio-mmio, a DHCP client, and as much of ARP, IPv4 and ICMP as it
   takes to ping its gateway. It runs at CPL3 with all of memory mapped one to one, so a pointer is a guest address.

   It is written to be read, and to be an honest driver: no device behaviour is assumed that virtio 1.2 does not promise. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

void *memcpy(void *to, const void *from, u64 n)
{
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return start;
}

void *memset(void *to, int byte, u64 n)
{
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
    return start;
}

int memcmp(const void *a, const void *b, u64 n)
{
    for (u64 i = 0; i < n; i++)
        if (((const u8 *)a)[i] != ((const u8 *)b)[i])
            return 1;
    return 0;
}

/* ---- what the VMM and we tell each other, see examples/src/vmm/mod.rs ---- */

struct mailbox {
    u32 pings, flood;                                                   /* from the VMM: what to do */
    u32 stage, address, mask, router, server, lease, answered;          /* to the VMM: what was done */
};
#define MAILBOX ((volatile struct mailbox *)0xa000)
#define POWER   ((volatile u32 *)0xd0001000)

enum stage { DRIVER_RUNS = 1, LEASED, GATEWAY_FOUND, PINGED, FLOODED };

volatile u32 interrupts;

static void finish(u32 code)
{
    for (;;)
        *POWER = code;
}

/* Sleeps until an interrupt, unless one came after `seen` was read. */
static void sleep_after(u32 seen) { __asm__ volatile("ud2" : : "D"(seen) : "memory"); }

/* ---- virtio-mmio and split rings: virtio 1.2, 4.2 and 2.7 ---- */

static volatile u32 *reg(u32 offset) { return (volatile u32 *)(0xd0000000ul + offset); }

#define SIZE 256u
#define HEADER 12u
#define BUFFER 2048u

struct queue {
    struct { u64 address; u32 length; u16 flags, next; } table[SIZE] __attribute__((aligned(16)));
    struct { u16 flags, index, ring[SIZE], used_event; } available __attribute__((aligned(2)));
    struct { u16 flags, index; struct { u32 id, length; } ring[SIZE]; u16 available_event; } used __attribute__((aligned(4)));
    u8 buffer[SIZE][BUFFER];
    u16 free[SIZE], free_count;         /* transmit: descriptors not in flight */
    u16 made, shown, seen;              /* made available, shown to the device, used entries seen */
};

static struct queue rx, tx;
static u8 mac[6];

#define barrier() __asm__ volatile("" : : : "memory")
#define fence()   __asm__ volatile("mfence" : : : "memory")

static void make_available(struct queue *q, u16 descriptor, u32 length, u16 flags)
{
    q->table[descriptor].address = (u64)q->buffer[descriptor];
    q->table[descriptor].length = length;
    q->table[descriptor].flags = flags;
    q->available.ring[q->made++ % SIZE] = descriptor;
}

/* Shows the device what was made available, and kicks it if it wants to be kicked. */
static void show(struct queue *q, u32 number)
{
    u16 old = q->shown;
    barrier();
    *(volatile u16 *)&q->available.index = q->shown = q->made;
    fence();
    u16 event = *(volatile u16 *)&q->used.available_event;
    if ((u16)(q->made - event - 1) < (u16)(q->made - old))
        *reg(0x50) = number;
}

static int has_used(struct queue *q) { return *(volatile u16 *)&q->used.index != q->seen; }

static void set_up(struct queue *q, u32 number)
{
    u64 parts[3] = { (u64)q->table, (u64)&q->available, (u64)&q->used };
    *reg(0x30) = number;
    if (*reg(0x34) < SIZE)
        finish(2);
    *reg(0x38) = SIZE;
    for (int part = 0; part < 3; part++) {
        *reg(0x80 + 0x10 * part) = (u32)parts[part];
        *reg(0x84 + 0x10 * part) = (u32)(parts[part] >> 32);
    }
    *reg(0x44) = 1;
}

static void start_card(void)
{
    const u32 low = 1u << 5 | 1u << 29, high = 1u << 0;     /* MAC, EVENT_IDX; VERSION_1 */
    if (*reg(0) != 0x74726976 || *reg(4) != 2 || *reg(8) != 1)
        finish(3);
    *reg(0x70) = 0;
    *reg(0x70) = 3;
    *reg(0x24) = 0, *reg(0x20) = low;
    *reg(0x24) = 1, *reg(0x20) = high;
    *reg(0x70) = 3 | 8;
    if (!(*reg(0x70) & 8))
        finish(4);
    set_up(&rx, 0);
    set_up(&tx, 1);
    for (int i = 0; i < 6; i++)
        mac[i] = *(volatile u8 *)(0xd0000100ul + i);
    *reg(0x70) = 3 | 8 | 4;
    for (u16 i = 0; i < SIZE; i++) {
        tx.free[tx.free_count++] = i;
        make_available(&rx, i, BUFFER, 2);
    }
    /* We look for ourselves whether frames were sent: an interrupt for the entry before the first never comes. */
    tx.available.used_event = 0x8000;
    show(&rx, 0);
}

/* A buffer for a frame; waits for the device while all are in flight. */
static u8 *frame_to_send(void)
{
    while (tx.free_count == 0 || has_used(&tx)) {
        while (has_used(&tx)) {
            barrier();
            tx.free[tx.free_count++] = tx.used.ring[tx.seen++ % SIZE].id;
        }
        tx.available.used_event = tx.seen + 0x8000;
    }
    return tx.buffer[tx.free[tx.free_count - 1]] + HEADER;
}

/* Sends the frame that was written to frame_to_send(); the device sees it at the next show(). */
static void send(u32 length)
{
    u16 descriptor = tx.free[--tx.free_count];
    make_available(&tx, descriptor, HEADER + length, 0);
}

/* Waits for the next frame. The buffer is the device's again after done_with_frame(). */
static u8 *next_frame(u32 *length)
{
    while (!has_used(&rx)) {
        u32 before = interrupts;
        rx.available.used_event = rx.seen;
        fence();
        if (!has_used(&rx))
            sleep_after(before);
        *reg(0x64) = *reg(0x60);
    }
    barrier();
    *length = rx.used.ring[rx.seen % SIZE].length - HEADER;
    return rx.buffer[rx.used.ring[rx.seen % SIZE].id] + HEADER;
}

static void done_with_frame(void)
{
    make_available(&rx, rx.used.ring[rx.seen++ % SIZE].id, BUFFER, 2);
    show(&rx, 0);
}

/* ---- frames ---- */

static u8 gateway_mac[6];
static u32 my_address, gateway;

static void put16(u8 *at, u32 value) { at[0] = value >> 8, at[1] = value; }
static void put32(u8 *at, u32 value) { put16(at, value >> 16), put16(at + 2, value); }
static u32 get16(const u8 *at) { return at[0] << 8 | at[1]; }
static u32 get32(const u8 *at) { return get16(at) << 16 | get16(at + 2); }

static u32 checksum(const u8 *at, u32 length)
{
    u32 sum = 0;
    for (u32 i = 0; i < length; i += 2)
        sum += at[i] << 8 | (i + 1 < length ? at[i + 1] : 0);
    sum = (sum & 0xffff) + (sum >> 16);
    return ~((sum & 0xffff) + (sum >> 16)) & 0xffff;
}

static void ethernet(u8 *frame, const u8 *to, u32 type)
{
    if (to)
        memcpy(frame, to, 6);
    else
        memset(frame, 0xff, 6);
    memcpy(frame + 6, mac, 6);
    put16(frame + 12, type);
}

static void ipv4(u8 *frame, u32 protocol, u32 from, u32 to, u32 payload)
{
    u8 *ip = frame + 14;
    memset(ip, 0, 20);
    ip[0] = 0x45, ip[8] = 64, ip[9] = protocol;
    put16(ip + 2, 20 + payload);
    put32(ip + 12, from);
    put32(ip + 16, to);
    put16(ip + 10, checksum(ip, 20));
}

/* ---- DHCP: RFC 2131 ---- */

#define XID 0x7469766d

static void send_dhcp(u32 kind, u32 address, u32 server)
{
    u8 *frame = frame_to_send(), *dhcp = frame + 42, *option = dhcp + 240;
    const u8 wanted[] = { 55, 4, 1, 3, 6, 51 };
    ethernet(frame, 0, 0x800);
    memset(dhcp, 0, 300);
    dhcp[0] = 1, dhcp[1] = 1, dhcp[2] = 6;
    put32(dhcp + 4, XID);
    memcpy(dhcp + 28, mac, 6);
    put32(dhcp + 236, 0x63825363);
    *option++ = 53, *option++ = 1, *option++ = kind;
    memcpy(option, wanted, sizeof wanted);
    option += sizeof wanted;
    if (address) {
        *option++ = 50, *option++ = 4, put32(option, address), option += 4;
        *option++ = 54, *option++ = 4, put32(option, server), option += 4;
    }
    *option = 255;
    ipv4(frame, 17, 0, 0xffffffff, 8 + 300);
    put16(frame + 34, 68);
    put16(frame + 36, 67);
    put16(frame + 38, 8 + 300);
    put16(frame + 40, 0);
    send(42 + 300);
    show(&tx, 1);
}

/* The value of a four-byte (or one-byte) option of the DHCP message in a frame, or 0. */
static u32 dhcp_option(const u8 *frame, u32 length, u32 code)
{
    for (u32 at = 42 + 240; at + 1 < length && frame[at] != 255; at += frame[at] ? 2 + frame[at + 1] : 1)
        if (frame[at] == code && at + 2 + frame[at + 1] <= length)
            return frame[at + 1] >= 4 ? get32(frame + at + 2) : frame[at + 2];
    return 0;
}

/* Waits for a DHCP message of that kind; gives back the address that is offered. */
static u32 await_dhcp(u32 kind, u32 *server)
{
    for (;;) {
        u32 length, address = 0;
        u8 *frame = next_frame(&length);
        if (length >= 42 + 244 && get16(frame + 12) == 0x800 && frame[23] == 17 && get16(frame + 36) == 68
            && get32(frame + 46) == XID && dhcp_option(frame, length, 53) == kind) {
            address = get32(frame + 42 + 16);
            *server = dhcp_option(frame, length, 54);
            MAILBOX->mask = dhcp_option(frame, length, 1);
            MAILBOX->router = dhcp_option(frame, length, 3);
            MAILBOX->lease = dhcp_option(frame, length, 51);
        }
        done_with_frame();
        if (address)
            return address;
    }
}

static void get_lease(void)
{
    u32 server;
    send_dhcp(1, 0, 0);
    u32 offered = await_dhcp(2, &server);
    send_dhcp(3, offered, server);
    my_address = await_dhcp(5, &server);
    gateway = MAILBOX->router ? MAILBOX->router : server;
    MAILBOX->address = my_address;
    MAILBOX->server = server;
    MAILBOX->stage = LEASED;
}

/* ---- the gateway: RFC 826, RFC 792 ---- */

static void put_arp(u8 *frame, const u8 *to, u32 operation, const u8 *target_mac, u32 target)
{
    ethernet(frame, to, 0x806);
    put32(frame + 14, 0x00010800);
    put32(frame + 18, 0x06040000 | operation);
    memcpy(frame + 22, mac, 6);
    put32(frame + 28, my_address);
    memcpy(frame + 32, target_mac, 6);
    put32(frame + 38, target);
}

/* Answers whoever asks for our address; without it nobody could answer us. */
static void answer_arp(const u8 *frame, u32 length)
{
    if (length < 42 || get16(frame + 12) != 0x806 || get16(frame + 20) != 1 || get32(frame + 38) != my_address)
        return;
    put_arp(frame_to_send(), frame + 6, 2, frame + 22, get32(frame + 28));
    send(42);
    show(&tx, 1);
}

static void find_gateway(void)
{
    const u8 nobody[6] = { 0 };
    put_arp(frame_to_send(), 0, 1, nobody, gateway);
    send(42);
    show(&tx, 1);
    for (int found = 0; !found;) {
        u32 length;
        u8 *frame = next_frame(&length);
        if (length >= 42 && get16(frame + 12) == 0x806 && get16(frame + 20) == 2 && get32(frame + 28) == gateway) {
            memcpy(gateway_mac, frame + 22, 6);
            found = 1;
        } else {
            answer_arp(frame, length);
        }
        done_with_frame();
    }
    MAILBOX->stage = GATEWAY_FOUND;
}

static void ping(u32 sequence)
{
    u8 *frame = frame_to_send(), *icmp = frame + 34;
    ethernet(frame, gateway_mac, 0x800);
    icmp[0] = 8, icmp[1] = 0;
    put16(icmp + 2, 0);
    put16(icmp + 4, 0x7669);
    put16(icmp + 6, sequence);
    for (int i = 8; i < 64; i++)
        icmp[i] = i + sequence;
    put16(icmp + 2, checksum(icmp, 64));
    ipv4(frame, 1, my_address, gateway, 64);
    send(34 + 64);
    show(&tx, 1);
    for (int back = 0; !back;) {
        u32 length;
        u8 *answer = next_frame(&length);
        back = length >= 34 + 64 && get16(answer + 12) == 0x800 && answer[23] == 1 && answer[34] == 0
            && get16(answer + 38) == 0x7669 && get16(answer + 40) == sequence && answer[34 + 63] == (u8)(63 + sequence);
        if (!back)
            answer_arp(answer, length);
        done_with_frame();
    }
    MAILBOX->answered++;
}

/* As many datagrams in frames of 64 bytes as are asked for, as fast as it goes; shown to the device 64 at a time. */
static void flood(u32 count)
{
    u8 template[64] = { 0 };
    ethernet(template, gateway_mac, 0x800);
    ipv4(template, 17, my_address, gateway, 30);
    put16(template + 34, 9);
    put16(template + 36, 9);
    put16(template + 38, 30);
    for (u32 i = 0; i < count; i++) {
        u8 *frame = frame_to_send();
        put32(template + 42, i);
        __builtin_memcpy(frame, template, sizeof template);
        send(sizeof template);
        if (i % 64 == 63)
            show(&tx, 1);
    }
    show(&tx, 1);
    while (tx.free_count < SIZE)
        frame_to_send();
    MAILBOX->stage = FLOODED;
}

void main(void)
{
    start_card();
    MAILBOX->stage = DRIVER_RUNS;
    get_lease();
    find_gateway();
    for (u32 i = 0; i < MAILBOX->pings; i++)
        ping(i);
    MAILBOX->stage = PINGED;
    if (MAILBOX->flood)
        flood(MAILBOX->flood);
    finish(0);
}
