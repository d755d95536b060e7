/* natpool.c - which source ports of a translated address are in use.
 *
 * A pool is one address with a bitmap of 65,536 ports for each of TCP, UDP and ICMP echo identifiers.  A port is taken
 * with one atomic OR, so workers and the slow path need no lock.  The first guesses are random (RFC 6056: an attacker
 * must not predict a port); when they all fail the bitmap is searched word by word from a random place, so that a free
 * port is found while there is one.  Guesses and search prefer a port of the source port's parity (RFC 4787 REQ-4: RTP
 * and RTCP are a pair), so the search takes at most 2,048 steps.
 *
 * Where ports are shared a pool has several such planes, and a port serves as many sessions as there are planes, each
 * towards another destination address: share.c knows which.  A plane is searched when those before it are full.  After
 * SHARE_CLASHES ports that the destination has already the search gives up: ranges of so many ports are always searched
 * whole, and in a larger one a port is missed only while the destination has nearly all of them.
 *
 * Whether a port is good for a session is decided by the return key in the session table, not here: see install in
 * install.c.  A pool is never closed: its address may come back with the next commit.
 */
#include <errno.h>
#include <netinet/in.h>
#include <sys/random.h>

#include "internal.h"

#define GUESSES 8
#define SHARE_CLASHES 4096
#define EVEN_PORTS 0x5555555555555555ull

/* One search for a port. */
struct search {
	struct table *table;
	struct lease *lease;
	int space;
	uint32_t clashes;
};

/* From the kernel's generator, 64 words at a time. */
uint32_t random32(void)
{
	static __thread uint32_t buffer[64];
	static __thread uint32_t left;

	if (!left) {
		while (getrandom(buffer, sizeof(buffer), 0) != sizeof(buffer))
			assert(errno == EINTR);
		left = 64;
	}
	return buffer[--left];
}

static struct natpool *pool_at(const struct table *t, uint32_t plane, uint32_t pool)
{
	assert(pool < MAX_POOLS && plane < t->planes);
	return (struct natpool *)((char *)t + t->pools) + plane * MAX_POOLS + pool;
}

static int space_of(uint8_t proto)
{
	return proto == IPPROTO_TCP ? 0 : proto == IPPROTO_UDP ? 1 : 2;
}

/* The place of an address in pool_slot: where it stands, or the empty one where it would. */
static uint32_t slot_of(const struct table *t, const uint8_t *address, uint16_t *number)
{
	uint32_t slot = (uint32_t)table_hash16(t, address) % (2 * MAX_POOLS);

	for (;; slot = (slot + 1) % (2 * MAX_POOLS)) {
		*number = __atomic_load_n(&t->pool_slot[slot], __ATOMIC_ACQUIRE);
		if (!*number || !memcmp(t->pool_address[*number - 1], address, 16))
			return slot;
	}
}

int32_t natpool_find(const struct table *t, const uint8_t *address)
{
	uint16_t number;

	slot_of(t, address, &number);
	return number - 1;
}

int32_t natpool_open(struct table *t, const uint8_t *address)
{
	uint16_t number;
	uint32_t slot;

	spin_lock(&t->pool_lock);
	slot = slot_of(t, address, &number);
	if (!number && t->pool_count < MAX_POOLS) {
		memcpy(t->pool_address[t->pool_count], address, 16);
		number = (uint16_t)++t->pool_count;
		__atomic_store_n(&t->pool_slot[slot], number, __ATOMIC_RELEASE);
	}
	spin_unlock(&t->pool_lock);
	return number - 1;
}

bool natpool_is_reserved(const struct table *t, uint8_t proto, uint16_t port)
{
	int space = space_of(proto);

	if (space > 1)
		return false;
	return __atomic_load_n(&t->reserved_ports[space][port / 64], __ATOMIC_RELAXED) >> (port % 64) & 1;
}

/* False: it is marked already. */
static bool port_mark(const struct search *search, uint32_t plane, uint32_t port)
{
	uint64_t bit = 1ull << (port % 64);
	uint64_t *word = &pool_at(search->table, plane, search->lease->pool)->taken[search->space][port / 64];

	return !(__atomic_fetch_or(word, bit, __ATOMIC_RELAXED) & bit);
}

static void port_unmark(struct table *t, const struct lease *lease, uint32_t plane)
{
	uint64_t bit = 1ull << (lease->port % 64);
	uint64_t *word = &pool_at(t, plane, lease->pool)->taken[space_of(lease->back.proto)][lease->port / 64];

	uint64_t before = __atomic_fetch_and(word, ~bit, __ATOMIC_RELAXED);

	assert(before & bit);
}

/* Of two sessions with one mark the second may not have the port: the first has it towards the same address. */
static uint64_t share_mark(const struct table *t, const struct lease *lease)
{
	struct flow_key key = lease->back;

	key.sport = 0;
	key.dport = lease->port;
	key.zone = 0;
	return flow_hash(t, &key);
}

static bool take_shared(struct search *search, uint32_t plane)
{
	struct lease *lease = search->lease;

	if (!port_mark(search, plane, lease->port))
		return false;
	if (share_put(search->table, lease->session, share_mark(search->table, lease)))
		return true;
	port_unmark(search->table, lease, plane);
	search->clashes++;
	return false;
}

/* All planes of a port, or none. */
static bool take_alone(const struct search *search)
{
	for (uint32_t plane = 0; plane < search->table->planes; plane++) {
		if (port_mark(search, plane, search->lease->port))
			continue;
		while (plane--)
			port_unmark(search->table, search->lease, plane);
		return false;
	}
	return true;
}

static bool take(struct search *search, uint32_t plane, uint32_t port)
{
	struct lease *lease = search->lease;

	if (natpool_is_reserved(search->table, lease->back.proto, (uint16_t)port))
		return false;
	lease->port = (uint16_t)port;
	lease->plane = (uint8_t)plane;
	if (search->table->planes > 1 && lease->session)
		return take_shared(search, plane);
	return take_alone(search);
}

/* The bits of a word of ports that lie in [min, max]. */
static uint64_t in_range(uint32_t word, uint32_t min, uint32_t max)
{
	uint64_t bits = ~0ull;

	if (word == min / 64)
		bits &= ~0ull << (min % 64);
	if (word == max / 64)
		bits &= ~0ull >> (63 - max % 64);
	return bits;
}

static bool search_word(struct search *search, uint32_t plane, uint32_t word, uint64_t wanted)
{
	uint64_t *taken = &pool_at(search->table, plane, search->lease->pool)->taken[search->space][word];
	uint64_t free = ~__atomic_load_n(taken, __ATOMIC_RELAXED) & wanted;

	for (; free && search->clashes < SHARE_CLASHES; free &= free - 1)
		if (take(search, plane, word * 64 + (uint32_t)__builtin_ctzll(free)))
			return true;
	return false;
}

/* The ports of one parity, from a random word on. */
static bool search_plane(struct search *search, uint32_t plane, uint64_t parity)
{
	const struct lease *lease = search->lease;
	uint32_t first = lease->min / 64, words = lease->max / 64u - first + 1;
	uint32_t start = (uint32_t)((uint64_t)random32() * words >> 32);

	for (uint32_t i = 0; i < words; i++) {
		uint32_t word = first + (start + i) % words;

		if (search_word(search, plane, word, in_range(word, lease->min, lease->max) & parity))
			return true;
	}
	return false;
}

/* A random port, of the wanted parity if the range has one. */
static uint32_t guess(const struct lease *lease)
{
	uint32_t span = lease->max - lease->min + 1u;
	uint32_t port = lease->min + (uint32_t)((uint64_t)random32() * span >> 32);

	if (!((port ^ lease->like) & 1))
		return port;
	if (port < lease->max)
		return port + 1;
	return port > lease->min ? port - 1 : port;
}

/* False: every port of the range is taken, or none may be shared with its destination. */
bool natpool_take(struct table *t, struct lease *lease)
{
	struct search search = {.table = t, .lease = lease, .space = space_of(lease->back.proto)};
	uint64_t same = lease->like & 1 ? ~EVEN_PORTS : EVEN_PORTS;
	uint32_t planes = lease->session ? t->planes : 1;

	for (int i = 0; i < GUESSES; i++)
		if (take(&search, 0, guess(lease)))
			return true;
	for (uint32_t plane = 0; plane < planes; plane++)
		if (search_plane(&search, plane, same) || search_plane(&search, plane, ~same))
			return true;
	return false;
}

void natpool_give(struct table *t, const struct lease *lease)
{
	if (t->planes > 1)
		share_remove(t, lease->session);
	port_unmark(t, lease, lease->plane);
}

int32_t natpool_lend(struct table *t, uint32_t pool, uint8_t proto, uint16_t min, uint16_t max, uint16_t like)
{
	struct lease lease = {.back = {.proto = proto}, .pool = pool, .min = min, .max = max, .like = like};

	return natpool_take(t, &lease) ? lease.port : -1;
}

void natpool_take_back(struct table *t, uint32_t pool, uint8_t proto, uint16_t port)
{
	struct lease lease = {.back = {.proto = proto}, .pool = pool, .port = port};

	for (uint32_t plane = 0; plane < t->planes; plane++)
		port_unmark(t, &lease, plane);
}

static uint32_t plane_used(const struct natpool *plane, int space, uint16_t port_min, uint16_t port_max)
{
	uint32_t used = 0;

	for (uint32_t word = port_min / 64; word <= port_max / 64u; word++)
		used += (uint32_t)__builtin_popcountll(__atomic_load_n(&plane->taken[space][word], __ATOMIC_RELAXED) &
						       in_range(word, port_min, port_max));
	return used;
}

/* TCP and UDP ports of the range in use, counted together, a shared one once for each session it may not serve again. */
uint32_t natpool_used(struct table *t, uint32_t pool, uint16_t port_min, uint16_t port_max)
{
	uint32_t used = 0;

	for (uint32_t plane = 0; plane < t->planes; plane++)
		for (int space = 0; space < 2; space++)
			used += plane_used(pool_at(t, plane, pool), space, port_min, port_max);
	return used;
}

uint64_t natpool_used_between(struct table *t, const uint8_t *first, const uint8_t *last, uint16_t port_min, uint16_t port_max)
{
	uint64_t used = 0;
	uint32_t pools;

	spin_lock(&t->pool_lock);
	pools = t->pool_count;
	spin_unlock(&t->pool_lock);
	for (uint32_t pool = 0; pool < pools; pool++)
		if (address_in_range(t->pool_address[pool], first, last))
			used += natpool_used(t, pool, port_min, port_max);
	return used;
}

void natpool_set_reserved(struct table *t, const uint64_t *tcp, const uint64_t *udp)
{
	for (uint32_t i = 0; i < PORT_WORDS; i++) {
		__atomic_store_n(&t->reserved_ports[0][i], tcp[i], __ATOMIC_RELAXED);
		__atomic_store_n(&t->reserved_ports[1][i], udp[i], __ATOMIC_RELAXED);
	}
}
