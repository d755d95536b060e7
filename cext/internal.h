/* internal.h - what the .c files share and Python does not see. */
#ifndef DATAPLANE_INTERNAL_H
#define DATAPLANE_INTERNAL_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct table;
struct worker;
struct program;
struct top_mark;
struct diag;
#include "session.h"
#include "api.h"

#define BUCKET_ENTRIES 9
#define WHEEL_SLOTS 8192          /* of a tenth of a second: a turn takes 13 minutes and 39 seconds */
#define PORT_WORDS 1024           /* 65,536 bits */
#define SHARE_LOCKS 64
#define TCP_HEADER_MAX 60u        /* with all its options */
#define ICMPV6_REDIRECT 137
#define ADDRESS_SPREAD 0x9e3779b97f4a7c15ull   /* SPREAD of nat.py */
#define PORT_SPACES 3             /* TCP, UDP, ICMP echo */

/* One cache line.  seq is lock and version: odd while a writer is inside.  ref = slot << 1 | direction; 0: empty. */
struct bucket {
	uint32_t seq;
	uint32_t next;            /* overflow bucket plus one */
	uint32_t ref[BUCKET_ENTRIES];
	uint16_t tag[BUCKET_ENTRIES];
	uint16_t unused;
};

/* One plane of a pool. */
struct natpool {
	uint64_t taken[PORT_SPACES][PORT_WORDS];
};

/* A session that shares a port: see share.c. */
struct sharer {
	uint64_t mark;            /* of what it must not have in common with another */
	uint32_t next;            /* in its chain; 0: last */
	uint32_t head;            /* of the chain that has the number of this entry; 0: empty */
};

/* What an ALG has changed in a connection: see adjust.c. */
struct adjust {
	struct adjust_flow {
		uint32_t base;
		uint32_t n;
		struct edit {
			uint32_t start;
			uint32_t end;
			uint32_t delta;
		} edit[MAX_EDITS];
	} flow[2];
};

/* seq is odd while the map is being replaced. */
struct zone_map {
	uint32_t seq;
	uint32_t n;
	uint32_t ifindex[MAX_INTERFACES];
	uint8_t  zone[MAX_INTERFACES];
};

#define FLOW_LOCKS 256

/* What offload.c and the program in the kernel share, and who asks to be there. */
struct offload {
	uint32_t capacity;
	uint32_t bucket_count;        /* a power of two */
	struct offload_secret secret;
	struct offload_bucket *buckets;  /* the kernel's memory, as are the entries */
	struct offloaded *entries;
	uint64_t *used;               /* a bit for each entry */
	struct offers *offers;        /* by shard */
	struct hops *hops;            /* that Python has found */
	int bell;                     /* eventfd: something is offered */
	uint32_t ended;               /* 1: nothing more is offloaded */
	uint32_t flow_lock[FLOW_LOCKS];  /* each guards some of the buckets against other writers */
};

#define OFFLOAD_NEVER (FLAG_HOST | FLAG_ONE_WAY | FLAG_INSPECTED | FLAG_ADJUSTED | FLAG_OFFLOADED | FLAG_WATCHED)

struct origin_list {
	uint32_t lock;
	uint32_t n;
	struct origin origin[MAX_ORIGINS];
};

struct clamp_list {
	uint32_t lock;
	uint32_t n;
	uint32_t ifindex[MAX_INTERFACES];
	uint16_t mss[MAX_INTERFACES];
};

/* The head of the mapping; everything else is found by its offset from here, so the mapping may lie anywhere. */
struct table {
	uint64_t secret[6];
	uint64_t size;            /* of the mapping */
	uint64_t slots;           /* offsets */
	uint64_t buckets;
	uint64_t overflow;
	uint64_t pools;
	uint64_t sharers;
	uint64_t adjusts;
	uint64_t cache;
	uint32_t max_sessions;
	uint32_t bucket_count;
	uint32_t overflow_count;
	uint32_t planes;          /* of each pool; 1: nobody shares a port */
	struct settings settings;

	uint32_t free_lock;       /* guards the free list of slots */
	uint32_t free_head;
	uint32_t free_tail;
	uint32_t overflow_lock;   /* guards the free list of overflow buckets */
	uint32_t overflow_head;
	uint32_t discard_lock;    /* guards the discard list */
	uint32_t discard_head;    /* oldest */
	uint32_t discard_tail;
	uint32_t share_lock[SHARE_LOCKS];    /* each guards some of the chains of sharers */
	uint32_t pool_lock;       /* guards the opening of pools */
	uint32_t adjust_lock;     /* guards adjust_owner */
	uint32_t pool_count;

	uint32_t wheel_lock;      /* guards heads, links and due */
	uint32_t wheel_tick;      /* every slot before it has been served */
	uint32_t wheel_sweep;     /* slot at which the accelerated sweep goes on; 0: none under way */
	uint32_t wheel_scheduled;
	uint32_t accelerated;     /* 1: the table is filled above the threshold */
	uint32_t wheel_head[WHEEL_SLOTS];

	uint32_t count[6];        /* live sessions: TCP UDP ICMP other PREDICT DISCARD */
	uint32_t allocated;
	uint64_t installed;

	uint32_t adjust_owner[MAX_ADJUSTED];   /* session id; 0: free */
	struct offload *offload;  /* of this process, and so no part of what may lie anywhere; NULL: nothing is offloaded */
	struct diag *diag;        /* the same; NULL: nothing was ever diagnosed */
	uint32_t watching;        /* 1: packets are diagnosed.  All that a burst asks while they are not */

	struct zone_map zones;
	struct origin_list origins;
	struct clamp_list clamps;
	uint16_t pool_slot[2 * MAX_POOLS];   /* open addressing by address; number plus one, 0: empty */
	uint8_t  pool_address[MAX_POOLS][16];
	struct timers timers[MAX_APPLICATIONS];
	uint64_t reserved_ports[2][PORT_WORDS];
	uint64_t counter[MAX_SHARDS][(COUNTERS + 7) & ~7] __attribute__((aligned(64)));
};

enum count_kind { COUNT_TCP, COUNT_UDP, COUNT_ICMP, COUNT_OTHER, COUNT_PREDICT, COUNT_DISCARD };

/* What the packets of one burst have in common. */
struct burst {
	struct table *table;
	uint64_t *counter;        /* the worker's own shard */
	uint32_t shard;           /* its number */
	uint32_t now;
};

/* A direction's translation, copied out of the session so that the work is done without its lock. */
struct translation {
	struct flow_key from;     /* as it arrives */
	struct flow_key to;       /* as it leaves */
	uint16_t l3_delta;
	uint16_t l4_delta;
	bool     delivered;       /* to the host: it meets no device that would cut a super-packet */
};

static inline struct session *session_at(const struct table *t, uint32_t id)
{
	assert(id >= 1 && id <= t->max_sessions);
	return (struct session *)((char *)t + t->slots) + id;
}

static inline void spin_lock(uint32_t *lock)
{
	extern void lock_wait(uint32_t *lock);

	if (__builtin_expect(__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE) != 0, 0))
		lock_wait(lock);
}

static inline void spin_unlock(uint32_t *lock)
{
	__atomic_store_n(lock, 0, __ATOMIC_RELEASE);
}

/* A shard has one writer; readers take a value that may be one behind. */
static inline void count_in(uint64_t *counter, enum counter which, uint64_t n)
{
	__atomic_store_n(&counter[which], counter[which] + n, __ATOMIC_RELAXED);
}

/* The one way out for a packet that does not go on. */
static inline enum verdict drop(const struct burst *b, enum counter reason)
{
	count_in(b->counter, reason, 1);
	return VERDICT_DROP;
}

static inline uint16_t get16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static inline uint32_t get32(const uint8_t *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }

/* Of two sequence numbers less than half the space apart. */
static inline bool before(uint32_t a, uint32_t b) { return (int32_t)(a - b) < 0; }

enum tcp_option { TCP_OPTION_END, TCP_OPTION_NOP, TCP_OPTION_MSS, TCP_OPTION_SCALE, TCP_OPTION_SACK = 5, TCP_OPTION_MD5 = 19,
		  TCP_OPTION_AO = 29 };

/* The option at `option` or the first that is none for padding, whole before `end`; NULL: there is none any more. */
static inline uint8_t *tcp_option_at(const uint8_t *option, const uint8_t *end)
{
	while (option < end && *option == TCP_OPTION_NOP)
		option++;
	if (end - option < 2 || *option == TCP_OPTION_END || option[1] < 2 || option[1] > end - option)
		return NULL;
	return (uint8_t *)option;
}

static inline bool key_equal(const struct flow_key *a, const struct flow_key *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

/* The tuple read backwards: the key of the answer, but for its zone. */
static inline struct flow_key key_mirror(const struct flow_key *key, uint8_t zone)
{
	struct flow_key m = *key;

	memcpy(m.src, key->dst, 16);
	memcpy(m.dst, key->src, 16);
	m.sport = key->dport;
	m.dport = key->sport;
	m.zone = zone;
	return m;
}

static inline bool session_matches(const struct session *s)
{
	return s->state[0] == SESSION_ACTIVE || s->state[0] == SESSION_DISCARD;
}

/* packet.c */
enum verdict packet_parse(struct packet *pkt, const struct burst *b);

/* table.c */
uint64_t wall_clock(void);
uint32_t session_id(const struct table *t, const struct session *s);
uint8_t table_zone(const struct table *t, uint32_t ifindex);
uint8_t table_zone_max(const struct table *t);
bool table_is_own(const struct table *t, const uint8_t *address);
bool table_is_foreign(const struct table *t, const uint8_t *address, uint8_t zone);
uint16_t table_mss(const struct table *t, uint32_t ingress, uint32_t egress);
bool address_in_range(const uint8_t *address, const uint8_t *first, const uint8_t *last);

/* flowhash.c */
enum put_result { PUT_DONE, PUT_EXISTS, PUT_NO_MEMORY };
struct bucket *bucket_at(const struct table *t, uint32_t i);
struct bucket *overflow_at(const struct table *t, uint32_t i);
uint64_t table_hash16(const struct table *t, const uint8_t *bytes);
struct session *table_lookup(struct table *t, const struct flow_key *key, int *dir);   /* locked, or NULL */
uint64_t flow_hash(const struct table *t, const struct flow_key *key);
/* The same in three steps, between which the cache may fetch the bucket, and then the session of the entry that fits. */
void flow_prefetch(const struct table *t, uint64_t hash);
uint32_t flow_hint(const struct table *t, uint64_t hash);                              /* 0: there is none */
struct session *table_find(struct table *t, const struct flow_key *key, uint64_t hash, uint32_t hint, int *dir);
enum put_result flow_put(struct table *t, const struct flow_key *key, uint32_t ref);
void flow_remove(struct table *t, const struct flow_key *key, uint32_t ref);

/* scan.c */
struct session *session_filtered(struct table *t, const struct session_filter *f, uint32_t id);   /* locked, or NULL */

/* session.c: callers of the second group hold the slot's lock */
enum count_kind session_protocol(const struct session *s);                             /* COUNT_TCP to COUNT_OTHER */
struct session *session_take(struct table *t);                                         /* NULL: no slot is free */
void session_give_back(struct table *t, struct session *s);
void session_open(struct table *t, struct session *s, bool discard);
bool discard_evict(struct table *t);
bool discard_is_full(const struct table *t);
void session_unlock(struct session *s);
void session_set_closing(struct table *t, struct session *s, enum end_reason reason);
void session_set_closed(struct session *s);
void session_note_end(struct session *s, enum end_reason reason);
struct session *session_alive(struct table *t, uint32_t id, uint32_t generation);      /* locked, or NULL */
struct session *session_retake(struct table *t, uint32_t id, uint32_t generation);     /* not locked; NULL: it has ended */
void session_copy_out(struct table *t, struct session *s, struct session_copy *copy);

/* wheel.c: callers hold the session's lock, except of wheel_init. */
void wheel_init(struct table *t, uint32_t now);
void wheel_insert(struct table *t, struct session *s, uint32_t due);
void wheel_schedule(struct table *t, struct session *s, uint32_t due);
void wheel_remove(struct table *t, struct session *s);
uint32_t wheel_deadline(struct table *t, const struct session *s);  /* tick at which its timer runs out */

/* tcp.c */
enum verdict tcp_track(const struct packet *pkt, struct session *s, int dir, const struct burst *b);
bool tcp_is_plain(const struct session *s);
uint32_t session_timer(const struct session *s, const struct timers *timers, bool discard);   /* seconds */
void session_touch(struct session *s, const struct burst *b);                          /* lock held */

/* rewrite.c */
uint16_t checksum_add(const uint8_t *p, uint32_t len, uint32_t sum);                   /* folded, not inverted */
bool checksum_valid(const struct packet *pkt);
void translation_deltas(const struct flow_key *from, const struct flow_key *to, uint16_t *l3, uint16_t *l4);
void nat_rewrite(struct packet *pkt, const struct translation *nat);
bool mss_clamp(struct packet *pkt, uint16_t mss, bool delivered);
void header_changed(struct packet *pkt, const uint8_t *old, uint32_t len, bool delivered);
void nat_rewrite_error(struct packet *pkt, const struct translation *nat);

/* adjust.c: callers hold the lock of a session with FLAG_ADJUSTED, except of adjust_drop() */
void adjust_read(const struct table *t, const struct session *s, int dir, struct packet *pkt);
void adjust_quote(const struct table *t, const struct session *s, int dir, struct packet *pkt);
void adjust_write(const struct table *t, const struct session *s, int dir, struct packet *pkt, bool delivered);
void adjust_drop(struct table *t, uint32_t id);

/* What a session asks of a pool, and what it got: its port and plane. */
struct lease {
	struct flow_key back;     /* its answers' key, but for the port */
	uint32_t session;         /* id; 0: nobody's, to be shared with nobody */
	uint32_t pool;
	uint16_t min;             /* host order, inclusive */
	uint16_t max;
	uint16_t like;            /* the port whose parity is preferred */
	uint16_t port;
	uint8_t  plane;
};

/* natpool.c */
bool natpool_take(struct table *t, struct lease *lease);
void natpool_give(struct table *t, const struct lease *lease);   /* pool, port, plane, session and back.proto count */
bool natpool_is_reserved(const struct table *t, uint8_t proto, uint16_t port);
uint32_t random32(void);

/* share.c */
bool share_put(struct table *t, uint32_t session, uint64_t mark);                      /* false: somebody has this mark */
void share_remove(struct table *t, uint32_t session);

/* install.c: as session_install(), without counting a failure.  A copy of the new session goes to `begun`, unless NULL. */
int64_t session_begin(const struct burst *b, const struct flow_key *key, const struct decision *d, struct session_copy *begun);

/* cache.c */
uint64_t cache_bytes(void);
int64_t cache_begin(const struct packet *pkt, const struct burst *b);   /* a new session, INSTALL_EXISTS, or 0: ask Python */

/* offload.c: callers of the second group hold the slot's lock */
struct offload *offload_create(uint32_t capacity);                                     /* NULL: no memory */
void offload_destroy(struct offload *o);
void offload_begin(struct table *t, struct offload *o);
void offload_consider(const struct burst *b, const struct packet *pkt, struct session *s, int dir);
void offload_merge(struct table *t, struct session *s);
bool offload_overtakes(const struct table *t, const struct session *s, int dir, const struct packet *pkt);
void offload_publish(struct table *t, const struct session *s);
void offload_take_off(struct table *t, struct session *s);
bool offload_lingers(struct table *t, struct session *s, uint32_t now);
void offload_forget(struct table *t, struct session *s);

/* hop.c */
enum hop_answer { HOP_UNKNOWN, HOP_NONE, HOP_KNOWN };
struct hops *hops_create(void);                                                        /* NULL: no memory */
void hops_destroy(struct hops *hops);
uint32_t hops_epoch(const struct hops *hops);
enum hop_answer hop_find(const struct table *t, struct hops *hops, const uint8_t *address, uint8_t zone, uint32_t epoch,
			 struct hop *hop);

/* fastpath.c */
/* The two halves of a packet's way: what it is (CONTINUE: pkt->key and its hash are known), and what becomes of it. */
enum verdict fastpath_parse(struct packet *pkt, const struct burst *b);
enum verdict fastpath_decide(struct packet *pkt, const struct burst *b);
struct session *fastpath_find(const struct packet *pkt, const struct burst *b, int *dir);   /* locked, or NULL */

/* diag.c */
enum verdict diag_take(struct packet *pkt, const struct burst *b, enum counter refused);
void diag_destroy(struct diag *d);

static inline bool diag_is_on(const struct table *t)
{
	return __builtin_expect(__atomic_load_n(&t->watching, __ATOMIC_ACQUIRE), 0);
}

#endif
