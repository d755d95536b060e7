/* natpool.c - which source ports of a translated address are in use.
 *
 * A pool is one address with a bitmap of 65,536 ports for each of TCP, UDP and ICMP echo identifiers.  A port is taken
 * with one atomic OR, so workers and the slow path need no lock.  The first guesses are random (RFC 6056: an attacker
 * must not predict a port); when they all fail the bitmap is searched word by word from a random place, so that a free
 * port is found while there is one, in at most 1,024 steps.
 *
 * Whether a port is good for a session is decided by the return key in the session table, not here: see install in
 * install.c.  A pool is never closed: its address may come back with the next commit.
 */
#include <errno.h>
#include <netinet/in.h>
#include <sys/random.h>

#include "internal.h"

#define GUESSES 8

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

static struct natpool *pool_at(const struct table *t, uint32_t pool)
{
	assert(pool < MAX_POOLS);
	return (struct natpool *)((char *)t + t->pools) + pool;
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

static bool reserved(const struct table *t, int space, uint32_t port)
{
	if (space > 1)
		return false;
	return __atomic_load_n(&t->reserved_ports[space][port / 64], __ATOMIC_RELAXED) >> (port % 64) & 1;
}

static bool take(struct table *t, uint32_t pool, int space, uint32_t port)
{
	uint64_t bit = 1ull << (port % 64);

	if (reserved(t, space, port))
		return false;
	return !(__atomic_fetch_or(&pool_at(t, pool)->taken[space][port / 64], bit, __ATOMIC_RELAXED) & bit);
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

static int32_t search_word(struct table *t, uint32_t pool, int space, uint32_t word, uint64_t wanted)
{
	uint64_t free = ~__atomic_load_n(&pool_at(t, pool)->taken[space][word], __ATOMIC_RELAXED) & wanted;

	while (free) {
		uint32_t port = word * 64 + (uint32_t)__builtin_ctzll(free);

		if (take(t, pool, space, port))
			return (int32_t)port;
		free &= free - 1;
	}
	return -1;
}

/* A port in [min, max], host order, now taken; -1 if every one is. */
int32_t natpool_take(struct table *t, uint32_t pool, uint8_t proto, uint16_t min, uint16_t max)
{
	uint32_t span = max - min + 1u, first = min / 64, words = max / 64 - first + 1, start;
	int space = space_of(proto);

	for (int i = 0; i < GUESSES; i++) {
		uint32_t port = min + (uint32_t)((uint64_t)random32() * span >> 32);

		if (take(t, pool, space, port))
			return (int32_t)port;
	}
	start = (uint32_t)((uint64_t)random32() * words >> 32);
	for (uint32_t i = 0; i < words; i++) {
		uint32_t word = first + (start + i) % words;
		int32_t port = search_word(t, pool, space, word, in_range(word, min, max));

		if (port >= 0)
			return port;
	}
	return -1;
}

void natpool_give(struct table *t, uint32_t pool, uint8_t proto, uint16_t port)
{
	uint64_t bit = 1ull << (port % 64);
	uint64_t before = __atomic_fetch_and(&pool_at(t, pool)->taken[space_of(proto)][port / 64], ~bit, __ATOMIC_RELAXED);

	assert(before & bit);
}

/* TCP and UDP ports of the range in use, counted together. */
uint32_t natpool_used(struct table *t, uint32_t pool, uint16_t port_min, uint16_t port_max)
{
	uint32_t used = 0;

	for (int space = 0; space < 2; space++)
		for (uint32_t word = port_min / 64; word <= port_max / 64u; word++)
			used += (uint32_t)__builtin_popcountll(
				__atomic_load_n(&pool_at(t, pool)->taken[space][word], __ATOMIC_RELAXED) &
				in_range(word, port_min, port_max));
	return used;
}

void natpool_set_reserved(struct table *t, const uint64_t *tcp, const uint64_t *udp)
{
	for (uint32_t i = 0; i < PORT_WORDS; i++) {
		__atomic_store_n(&t->reserved_ports[0][i], tcp[i], __ATOMIC_RELAXED);
		__atomic_store_n(&t->reserved_ports[1][i], udp[i], __ATOMIC_RELAXED);
	}
}
