/* lookup.c - the table's look-up beside DPDK's rte_hash, on one core, in one process
 *
 *   lookup SESSIONS LOOKUPS ROUNDS	{"alone" "ours" "single" "bulk" "reached": [ns a look-up, by round...], "dpdk": version or null}
 *
 * Both hold the two flow keys of every session, 40 bytes each, and hash them with the same keyed function.  Keys are asked
 * for in random order, from either direction, BURST at a time; they are made before the clock starts, so they are in the
 * cache as those of a packet just parsed.  Neither has huge pages.
 *
 *   alone     our table_lookup(), one after the other; each returns with the session locked, and is unlocked at once
 *   ours      the same as a worker does it for a burst: buckets and sessions are fetched ahead
 *   single    rte_hash_lookup(): the number of an entry.  Its lock-free readers are on: ours has writers beside it too
 *   bulk      rte_hash_lookup_bulk(), which fetches ahead for all of the burst
 *   reached   the same with what is stored beside the key, a pointer to our session, whose state is read then: what
 *             ours has done when it returns
 *
 * Linked with the extension's C files.  Without WITH_DPDK there are only the first two figures.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "internal.h"

#ifdef WITH_DPDK
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_hash.h>
#include <rte_version.h>
#endif

#define BURST		32
#define INSIDE		1		/* zones */
#define OUTSIDE		2
#define PORTS		60000
#define FIRST_PORT	1024
#define SERVERS		16
#define TIMEOUT		1000000		/* seconds */

struct bench {
	struct table *table;
	uint32_t sessions;
	uint64_t random;
	uint64_t found;
	struct flow_key keys[BURST];
#ifdef WITH_DPDK
	struct rte_hash *hash;
#endif
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* xorshift: uniform enough, and cheap. */
static uint32_t pick(struct bench *b, uint32_t n)
{
	b->random ^= b->random << 13;
	b->random ^= b->random >> 7;
	b->random ^= b->random << 17;
	return (uint32_t)((b->random >> 32) * n >> 32);
}

static void map(uint8_t *address, uint32_t ipv4)
{
	memset(address, 0, 10);
	memset(address + 10, 0xff, 2);
	ipv4 = htonl(ipv4);
	memcpy(address + 12, &ipv4, 4);
}

/* The key of session n, as its client's packets have it. */
static void key_c2s(struct flow_key *key, uint32_t n)
{
	map(key->src, 0x0a000002u + n / PORTS);
	map(key->dst, 0x08080800u + n % SERVERS);
	key->sport = htons((uint16_t)(FIRST_PORT + n % PORTS));
	key->dport = htons(443);
	key->proto = IPPROTO_UDP;
	key->zone = INSIDE;
	key->family = 4;
	key->reserved = 0;
}

static void key_s2c(struct flow_key *key, uint32_t n)
{
	struct flow_key there;

	key_c2s(&there, n);
	*key = there;
	memcpy(key->src, there.dst, 16);
	memcpy(key->dst, there.src, 16);
	key->sport = there.dport;
	key->dport = there.sport;
	key->zone = OUTSIDE;
}

static void next_keys(struct bench *b)
{
	for (int i = 0; i < BURST; i++) {
		uint32_t n = pick(b, b->sessions * 2);

		if (n & 1)
			key_s2c(&b->keys[i], n / 2);
		else
			key_c2s(&b->keys[i], n / 2);
	}
}

static void fill_table(struct bench *b)
{
	const struct timers timers = { .udp = TIMEOUT, .other = TIMEOUT };
	struct decision decision = { .egress_zone = OUTSIDE };
	struct flow_key key;

	b->table = table_create(b->sessions, 1);
	if (!b->table)
		die("table_create");
	for (uint32_t application = 0; application < MAX_APPLICATIONS; application++)
		table_set_timers(b->table, application, &timers);
	for (uint32_t n = 0; n < b->sessions; n++) {
		key_c2s(&key, n);
		if (session_install(b->table, 0, &key, &decision) <= 0)
			die("session_install");
	}
}

static void found(struct bench *b, struct session *s)
{
	if (!s)
		return;
	b->found++;
	session_unlock(s);
}

static void alone(struct bench *b)
{
	int dir;

	for (int i = 0; i < BURST; i++)
		found(b, table_lookup(b->table, &b->keys[i], &dir));
}

static void ours(struct bench *b)
{
	uint64_t hash[BURST];
	uint32_t hint[BURST];
	int dir;

	for (int i = 0; i < BURST; i++) {
		hash[i] = flow_hash(b->table, &b->keys[i]);
		flow_prefetch(b->table, hash[i]);
	}
	for (int i = 0; i < BURST; i++)
		hint[i] = flow_hint(b->table, hash[i]);
	for (int i = 0; i < BURST; i++)
		found(b, table_find(b->table, &b->keys[i], hash[i], hint[i], &dir));
}

/* Nanoseconds a look-up. */
static double measure(struct bench *b, uint64_t lookups, void (*burst)(struct bench *))
{
	uint64_t spent = 0;

	b->found = 0;
	for (uint64_t done = 0; done < lookups; done += BURST) {
		uint64_t start;

		next_keys(b);
		start = now();
		burst(b);
		spent += now() - start;
	}
	if (b->found < lookups) {
		fprintf(stderr, "lookup: %lu of %lu keys found\n", b->found, lookups);
		exit(1);
	}
	return (double)spent / (double)b->found;
}

#ifdef WITH_DPDK
static const struct table *hashed_by;	/* rte_hash gives its function no argument of ours */

static uint32_t keyed(const void *key, uint32_t length, uint32_t seed)
{
	(void)length;
	(void)seed;
	return (uint32_t)(flow_hash(hashed_by, key) >> 32);
}

static void start_dpdk(const struct bench *b)
{
	char megabytes[16];
	char *arguments[] = { "lookup", "--no-huge", "--no-pci", "--no-shconf", "--no-telemetry", "--log-level=error",
			      "-m", megabytes, NULL };

	snprintf(megabytes, sizeof(megabytes), "%u", 512 + b->sessions / 1000 * 2 / 5);
	if (rte_eal_init(sizeof(arguments) / sizeof(arguments[0]) - 1, arguments) < 0) {
		fprintf(stderr, "rte_eal_init: %s\n", rte_strerror(rte_errno));
		exit(1);
	}
}

static void fill_rte_hash(struct bench *b)
{
	struct rte_hash_parameters parameters = {
		.name = "sessions", .entries = b->sessions * 2 + b->sessions / 2 + 64, .key_len = sizeof(struct flow_key),
		.hash_func = keyed, .extra_flag = RTE_HASH_EXTRA_FLAGS_RW_CONCURRENCY_LF,
	};
	struct flow_key key;
	struct session *s;
	int dir;

	hashed_by = b->table;
	b->hash = rte_hash_create(&parameters);
	if (!b->hash) {
		fprintf(stderr, "rte_hash_create: %s\n", rte_strerror(rte_errno));
		exit(1);
	}
	for (uint32_t n = 0; n < b->sessions * 2; n++) {
		if (n & 1)
			key_s2c(&key, n / 2);
		else
			key_c2s(&key, n / 2);
		s = table_lookup(b->table, &key, &dir);
		if (!s || rte_hash_add_key_data(b->hash, &key, s))
			die("rte_hash_add_key_data");
		session_unlock(s);
	}
}

static void single(struct bench *b)
{
	for (int i = 0; i < BURST; i++)
		b->found += rte_hash_lookup(b->hash, &b->keys[i]) >= 0;
}

static void bulk(struct bench *b)
{
	const void *keys[BURST];
	int32_t positions[BURST];

	for (int i = 0; i < BURST; i++)
		keys[i] = &b->keys[i];
	rte_hash_lookup_bulk(b->hash, keys, BURST, positions);
	for (int i = 0; i < BURST; i++)
		b->found += positions[i] >= 0;
}

static void reached(struct bench *b)
{
	const void *keys[BURST];
	void *sessions[BURST];
	uint64_t hits;

	for (int i = 0; i < BURST; i++)
		keys[i] = &b->keys[i];
	rte_hash_lookup_bulk_data(b->hash, keys, BURST, &hits, sessions);
	for (int i = 0; i < BURST; i++)
		b->found += hits >> i & 1 && ((struct session *)sessions[i])->state[0] == SESSION_ACTIVE;
}
#endif

static void print_series(const char *name, const double *ns, long rounds)
{
	printf("\"%s\": [", name);
	for (long i = 0; i < rounds; i++)
		printf("%s%.2f", i ? ", " : "", ns[i]);
	printf("], ");
}

int main(int argc, char **argv)
{
	struct bench b = { .random = 88172645463325252ull };
	static double figures[5][1000];
	uint64_t lookups;
	long rounds;

	if (argc != 4 || (rounds = atol(argv[3])) < 1 || rounds > 1000) {
		fputs("usage: lookup SESSIONS LOOKUPS ROUNDS\n", stderr);
		return 2;
	}
	b.sessions = (uint32_t)atol(argv[1]);
	lookups = ((uint64_t)atol(argv[2]) + BURST - 1) / BURST * BURST;
#ifdef WITH_DPDK
	start_dpdk(&b);
#endif
	fill_table(&b);
#ifdef WITH_DPDK
	fill_rte_hash(&b);
#endif
	for (long round = 0; round < rounds; round++) {
		figures[0][round] = measure(&b, lookups, alone);
		figures[1][round] = measure(&b, lookups, ours);
#ifdef WITH_DPDK
		figures[2][round] = measure(&b, lookups, single);
		figures[3][round] = measure(&b, lookups, bulk);
		figures[4][round] = measure(&b, lookups, reached);
#endif
	}
	printf("{");
	print_series("alone", figures[0], rounds);
	print_series("ours", figures[1], rounds);
#ifdef WITH_DPDK
	print_series("single", figures[2], rounds);
	print_series("bulk", figures[3], rounds);
	print_series("reached", figures[4], rounds);
	printf("\"dpdk\": \"%s\"}\n", rte_version());
#else
	printf("\"dpdk\": null}\n");
#endif
	return 0;
}
