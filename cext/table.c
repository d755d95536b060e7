/* table.c - the mapping that holds everything: head, slots, hash, overflow buckets, pools, sharers of their ports, edited
 * connections, the dispatch cache.  Links are indices, so it may lie anywhere.  What a session may go through is in
 * session.c, how it is found in flowhash.c.
 *
 * Lock order: bucket, then slot, then wheel / discard list / free list.  Nobody takes a bucket while holding a slot.
 */
#include <errno.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>

#include "internal.h"

#define ENTRIES_PER_BUCKET_MEAN 5     /* at a full table; nine fit, so 3 % of the buckets overflow */

_Static_assert(sizeof(struct flow_key) == 40, "the key is compared as bytes");
_Static_assert(sizeof(struct session) == 224, "the budget: 224 + 2 * 64 / 5 + overflow <= 256 bytes a session");
_Static_assert(offsetof(struct session, lock) == 80, "keys and lock share two lines");

void lock_wait(uint32_t *lock)
{
	do {
		for (int i = 0; i < 100 && __atomic_load_n(lock, __ATOMIC_RELAXED); i++)
			__builtin_ia32_pause();
		if (__atomic_load_n(lock, __ATOMIC_RELAXED))
			sched_yield();
	} while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE));
}

uint32_t table_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint32_t)((uint64_t)ts.tv_sec * TENTHS + (uint64_t)ts.tv_nsec / (1000000000 / TENTHS));
}

/* Nanoseconds since 1970. */
uint64_t wall_clock(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t align(uint64_t n)
{
	return (n + 4095) & ~4095ull;
}

uint32_t session_id(const struct table *t, const struct session *s)
{
	return (uint32_t)(s - (const struct session *)((const char *)t + t->slots));
}

static void fill_free_lists(struct table *t)
{
	for (uint32_t id = 1; id <= t->max_sessions; id++) {
		session_at(t, id)->wheel_next = id < t->max_sessions ? id + 1 : 0;
		session_at(t, id)->end_reason = END_NONE;
	}
	t->free_head = 1;
	t->free_tail = t->max_sessions;
	for (uint32_t i = 0; i < t->overflow_count; i++)
		overflow_at(t, i)->next = i + 1 < t->overflow_count ? i + 2 : 0;
	t->overflow_head = t->overflow_count ? 1 : 0;
}

/* Memory for sessions is touched here, once, so that no packet ever waits for a page; pools are touched when used. */
struct table *table_create(uint32_t max_sessions, uint32_t planes)
{
	uint32_t buckets = max_sessions * 2ull / ENTRIES_PER_BUCKET_MEAN + 1;
	uint32_t overflow = buckets / 6 + 8;   /* a full table under churn uses 13 %; a small one varies more */
	uint64_t slots_at = align(sizeof(struct table));
	uint64_t buckets_at = slots_at + align((max_sessions + 1ull) * sizeof(struct session));
	uint64_t overflow_at_ = buckets_at + align((uint64_t)buckets * sizeof(struct bucket));
	uint64_t pools_at = overflow_at_ + align((uint64_t)overflow * sizeof(struct bucket));
	uint64_t sharers_at = pools_at + (uint64_t)planes * MAX_POOLS * sizeof(struct natpool);
	uint64_t adjusts_at = sharers_at + (planes > 1 ? align((max_sessions + 1ull) * sizeof(struct sharer)) : 0);
	uint64_t cache_at = adjusts_at + align(MAX_ADJUSTED * sizeof(struct adjust));
	uint64_t size = cache_at + align(cache_bytes());
	struct table *t;

	if (!max_sessions || max_sessions > 1u << 30 || !planes || planes > MAX_PLANES) {
		errno = EINVAL;
		return NULL;
	}
	t = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (t == MAP_FAILED)
		return NULL;
	if (getrandom(t->secret, sizeof(t->secret), 0) != sizeof(t->secret)) {
		munmap(t, size);
		return NULL;
	}
	t->size = size;
	t->slots = slots_at;
	t->buckets = buckets_at;
	t->overflow = overflow_at_;
	t->pools = pools_at;
	t->sharers = sharers_at;
	t->adjusts = adjusts_at;
	t->cache = cache_at;
	t->planes = planes;
	t->max_sessions = max_sessions;
	t->bucket_count = buckets;
	t->overflow_count = overflow;
	memset((char *)t + buckets_at, 0, pools_at - buckets_at);
	fill_free_lists(t);
	wheel_init(t, table_now());
	return t;
}

void table_destroy(struct table *t)
{
	diag_destroy(t->diag);
	munmap(t, t->size);
}

void table_set_settings(struct table *t, const struct settings *settings)
{
	t->settings = *settings;
}

void table_set_timers(struct table *t, uint32_t application, const struct timers *timers)
{
	assert(application < MAX_APPLICATIONS);
	t->timers[application] = *timers;
}

/* One writer. */
void table_set_zones(struct table *t, const uint32_t *ifindex, const uint8_t *zone, uint32_t n)
{
	struct zone_map *map = &t->zones;
	uint32_t seq = map->seq;

	assert(n <= MAX_INTERFACES);
	__atomic_store_n(&map->seq, seq + 1, __ATOMIC_RELAXED);
	for (uint32_t i = 0; i < n; i++) {
		__atomic_store_n(&map->ifindex[i], ifindex[i], __ATOMIC_RELEASE);
		__atomic_store_n(&map->zone[i], zone[i], __ATOMIC_RELEASE);
	}
	__atomic_store_n(&map->n, n, __ATOMIC_RELEASE);
	__atomic_store_n(&map->seq, seq + 2, __ATOMIC_RELEASE);
}

static uint8_t zone_find(const struct zone_map *map, uint32_t ifindex)
{
	uint32_t n = __atomic_load_n(&map->n, __ATOMIC_ACQUIRE);

	for (uint32_t i = 0; i < n; i++)
		if (__atomic_load_n(&map->ifindex[i], __ATOMIC_ACQUIRE) == ifindex)
			return __atomic_load_n(&map->zone[i], __ATOMIC_ACQUIRE);
	return ZONE_NONE;
}

uint8_t table_zone(const struct table *t, uint32_t ifindex)
{
	for (;;) {
		uint32_t seq = __atomic_load_n(&t->zones.seq, __ATOMIC_ACQUIRE);
		uint8_t zone = zone_find(&t->zones, ifindex);

		if (!(seq & 1) && __atomic_load_n(&t->zones.seq, __ATOMIC_RELAXED) == seq)
			return zone;
	}
}

/* The highest zone id in use; one that is on its way out may be counted. */
uint8_t table_zone_max(const struct table *t)
{
	uint32_t n = __atomic_load_n(&t->zones.n, __ATOMIC_ACQUIRE);
	uint8_t max = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint8_t zone = __atomic_load_n(&t->zones.zone[i], __ATOMIC_RELAXED);

		max = zone > max ? zone : max;
	}
	return max;
}

/* One writer.  The list is read for packets without a session only, so a reader that meets the writer waits. */
void table_set_origins(struct table *t, const struct origin *origins, uint32_t n)
{
	struct origin_list *list = &t->origins;

	assert(n <= MAX_ORIGINS);
	spin_lock(&list->lock);
	memcpy(list->origin, origins, n * sizeof(*origins));
	list->n = n;
	spin_unlock(&list->lock);
}

/* One writer.  Read for SYNs only, so a reader that meets the writer waits; without clamps nobody locks. */
void table_set_clamps(struct table *t, const uint32_t *ifindex, const uint16_t *mss, uint32_t n)
{
	struct clamp_list *list = &t->clamps;

	assert(n <= MAX_INTERFACES);
	spin_lock(&list->lock);
	memcpy(list->ifindex, ifindex, n * sizeof(*ifindex));
	memcpy(list->mss, mss, n * sizeof(*mss));
	__atomic_store_n(&list->n, n, __ATOMIC_RELAXED);
	spin_unlock(&list->lock);
}

/* The largest MSS that may be offered between two interfaces, of IPv4; 0: neither limits it. */
uint16_t table_mss(const struct table *t, uint32_t ingress, uint32_t egress)
{
	struct clamp_list *list = (struct clamp_list *)&t->clamps;
	uint16_t mss = 0;

	if (!__atomic_load_n(&list->n, __ATOMIC_RELAXED))
		return 0;
	spin_lock(&list->lock);
	for (uint32_t i = 0; i < list->n; i++)
		if ((list->ifindex[i] == ingress || list->ifindex[i] == egress) && (!mss || list->mss[i] < mss))
			mss = list->mss[i];
	spin_unlock(&list->lock);
	return mss;
}

bool address_in_range(const uint8_t *address, const uint8_t *first, const uint8_t *last)
{
	return memcmp(address, first, 16) >= 0 && memcmp(address, last, 16) <= 0;
}

/* Whether the address lies in an origin of that zone, and whether in one of another. */
static void find_origins(const struct table *t, const uint8_t *address, uint8_t zone, bool *here, bool *elsewhere)
{
	struct origin_list *list = (struct origin_list *)&t->origins;

	*here = *elsewhere = false;
	spin_lock(&list->lock);
	for (uint32_t i = 0; i < list->n; i++) {
		if (!address_in_range(address, list->origin[i].first, list->origin[i].last))
			continue;
		if (list->origin[i].zone == zone)
			*here = true;
		else
			*elsewhere = true;
	}
	spin_unlock(&list->lock);
}

/* An address that the firewall itself has. */
bool table_is_own(const struct table *t, const uint8_t *address)
{
	bool own, other;

	find_origins(t, address, ZONE_HOST, &own, &other);
	return own;
}

/* An address that cannot be in this zone, because it is another's; overlapping subnets belong to both. */
bool table_is_foreign(const struct table *t, const uint8_t *address, uint8_t zone)
{
	bool here, elsewhere;

	find_origins(t, address, zone, &here, &elsewhere);
	return elsewhere && (!here || table_is_own(t, address));
}

void table_read_stats(struct table *t, struct table_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	stats->max_sessions = t->max_sessions;
	stats->allocated = __atomic_load_n(&t->allocated, __ATOMIC_RELAXED);
	stats->tcp = __atomic_load_n(&t->count[COUNT_TCP], __ATOMIC_RELAXED);
	stats->udp = __atomic_load_n(&t->count[COUNT_UDP], __ATOMIC_RELAXED);
	stats->icmp = __atomic_load_n(&t->count[COUNT_ICMP], __ATOMIC_RELAXED);
	stats->other = __atomic_load_n(&t->count[COUNT_OTHER], __ATOMIC_RELAXED);
	stats->predict = __atomic_load_n(&t->count[COUNT_PREDICT], __ATOMIC_RELAXED);
	stats->discard = __atomic_load_n(&t->count[COUNT_DISCARD], __ATOMIC_RELAXED);
	stats->scheduled = __atomic_load_n(&t->wheel_scheduled, __ATOMIC_RELAXED);
	stats->installed = __atomic_load_n(&t->installed, __ATOMIC_RELAXED);
	stats->bytes = t->pools - t->slots + (t->adjusts - t->sharers);
}

static void add_shard(const struct table *t, uint32_t shard, uint64_t *counters)
{
	for (int i = 0; i < COUNTERS; i++)
		counters[i] += __atomic_load_n(&t->counter[shard][i], __ATOMIC_RELAXED);
}

void table_read_counters(struct table *t, uint64_t *counters)
{
	memset(counters, 0, COUNTERS * sizeof(*counters));
	for (uint32_t shard = 0; shard < MAX_SHARDS; shard++)
		add_shard(t, shard, counters);
}

void table_read_shard(struct table *t, uint32_t shard, uint64_t *counters)
{
	assert(shard < MAX_SHARDS);
	memset(counters, 0, COUNTERS * sizeof(*counters));
	add_shard(t, shard, counters);
}

void table_count(struct table *t, uint32_t shard, uint32_t counter, uint64_t n)
{
	assert(shard < MAX_SHARDS && counter < COUNTERS);
	count_in(t->counter[shard], counter, n);
}
