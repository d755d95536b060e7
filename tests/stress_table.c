/* stress_table.c - one table, four threads, and the books at the end.  Compiled and run by test_table.py under
 * ThreadSanitizer, against the C files themselves.
 *
 *     worker 0, 1   packets of a few hundred flows, translated and not, denied and not, both directions; what is punted
 *                   is decided and installed on the spot
 *     ager          time that runs far faster than the clock: expires and frees
 *     operator      scans, reads, closes, counts
 *
 * The table is too small for the flows, so that it is full, evicts and refuses all the time.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

#include "stress.h"

#define SLOTS 200
#define CLIENTS 256
#define PORT_MIN 5000
#define PORT_MAX 5099
#define WORKERS 2

static struct table *table;
static uint32_t rounds = 120000;
static uint32_t running = WORKERS;

static const uint8_t pool_address[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1};
static const uint8_t server_address[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 1, 1, 1};

/* IPv4, 40 bytes, without checksums: client n to one of two servers, or an answer to a port of the pool. */
static void build(uint8_t *data, uint64_t *random)
{
	uint32_t n = pick(random, CLIENTS);
	bool tcp = pick(random, 2), back = !pick(random, 3);
	uint8_t client[4] = {10, 0, 0, (uint8_t)n}, server[4] = {8, 8, 8, (uint8_t)pick(random, 2)};
	uint16_t port = htons(back ? (uint16_t)(PORT_MIN + pick(random, 100)) : 4000), service = htons(53);

	memset(data, 0, 40);
	data[0] = 0x45;
	data[3] = 40;
	data[8] = 64;
	data[9] = tcp ? IPPROTO_TCP : IPPROTO_UDP;
	memcpy(data + 12, back ? server : client, 4);
	memcpy(data + 16, back ? pool_address + 12 : client, 4);
	if (!back)
		memcpy(data + 16, server, 4);
	memcpy(data + 20, back ? &service : &port, 2);
	memcpy(data + 22, back ? &port : &service, 2);
	if (tcp) {
		static const uint8_t flags[] = {TCP_FLAG_SYN, TCP_FLAG_SYN, TCP_FLAG_ACK, TCP_FLAG_FIN | TCP_FLAG_ACK, TCP_FLAG_RST,
						TCP_FLAG_SYN | TCP_FLAG_ACK};

		data[32] = 0x50;
		data[33] = flags[pick(random, sizeof(flags))];
		data[34] = 0xff;
		data[31] = back;                /* acknowledges a SYN whose number is 0 */
	} else {
		data[25] = 20;
	}
}

static void decide(struct decision *d, const struct flow_key *key)
{
	uint32_t client = key->src[15];

	memset(d, 0, sizeof(*d));
	d->egress_zone = 2;
	if (client % 8 == 0)
		d->discard = 1;
	if (client % 4 == 1) {
		d->source_nat = SOURCE_PORT;
		d->port_min = PORT_MIN;
		d->port_max = PORT_MAX;
		memcpy(d->source, pool_address, 16);
	}
	if (client % 4 == 2) {
		d->destination_nat = 1;
		memcpy(d->destination, server_address, 16);
	}
}

static void *work(void *argument)
{
	uint32_t shard = *(uint32_t *)argument;
	uint64_t random = 88172645463325252ull + shard;
	uint64_t verdicts[VERDICT_DROP + 1] = {0};

	for (uint32_t i = 0; i < rounds; i++) {
		uint8_t data[40];
		struct packet pkt = {.data = data, .len = sizeof(data), .ifindex = 1};
		struct decision d;
		enum verdict v;

		build(data, &random);
		if (data[12] == 8)
			pkt.ifindex = 2;
		v = fastpath_take(table, shard, &pkt, now());
		verdicts[v]++;
		if (v != VERDICT_PUNT || pkt.zone == 2)
			continue;
		decide(&d, &pkt.key);
		session_install(table, shard, &pkt.key, &d);
	}
	__atomic_fetch_sub(&running, 1, __ATOMIC_RELEASE);
	for (int counter = FLOW_PARSE_IP_HDR; counter < FLOW_DISCARD_HIT; counter++)
		assert(!table->counter[shard][counter]);
	assert(table->counter[shard][PKT_RECV] == rounds);
	assert(table->counter[shard][PKT_PUNT] == verdicts[VERDICT_PUNT]);
	assert(verdicts[VERDICT_ACCEPT] && verdicts[VERDICT_REWRITTEN] && verdicts[VERDICT_PUNT] && verdicts[VERDICT_DROP]);
	return NULL;
}

/* Everything that has ended by now. */
static uint32_t expire(void)
{
	static struct session_copy ended[256];
	static uint32_t ids[256];
	uint32_t found, total = 0;

	do {
		found = table_expire(table, now(), ended, 256);
		for (uint32_t i = 0; i < found; i++) {
			assert(ended[i].session.state[0] == SESSION_CLOSED);
			ids[i] = ended[i].id;
		}
		session_free(table, ids, found);
		total += found;
	} while (found == 256);
	return total;
}

static void *age(void *unused)
{
	(void)unused;
	while (__atomic_load_n(&running, __ATOMIC_ACQUIRE)) {
		__atomic_fetch_add(&clock_now, 1, __ATOMIC_RELAXED);
		expire();
	}
	return NULL;
}

static void *operate(void *unused)
{
	static struct session_copy copies[SLOTS];
	struct session_filter all = {0}, one_client = {.source_set = 1, .proto = IPPROTO_UDP};
	uint64_t random = 1, counters[COUNTERS];
	struct table_stats stats;
	struct session copy;

	(void)unused;
	while (__atomic_load_n(&running, __ATOMIC_ACQUIRE)) {
		uint32_t next = 0, n = table_scan(table, &all, &next, copies, SLOTS);

		for (uint32_t i = 0; i < n; i++)
			assert(copies[i].session.key[0].family == 4 && copies[i].session.generation);
		session_close(table, 1 + pick(&random, SLOTS), 0, END_UNKNOWN);
		assert(session_read(table, 1 + pick(&random, SLOTS), &copy));
		memcpy(one_client.source[0], copy.key[0].src, 16);
		memcpy(one_client.source[1], copy.key[0].src, 16);
		table_close_all(table, &one_client, END_POLICY_DENY);
		table_read_stats(table, &stats);
		assert(stats.allocated <= SLOTS);
		table_read_counters(table, counters);
		natpool_used(table, 0, PORT_MIN, PORT_MAX);
		table_set_zones(table, (uint32_t[]){1, 2}, (uint8_t[]){1, 2}, 2);
		table_set_origins(table, &(struct origin){.first = {1}, .last = {2}, .zone = 1}, 1);
	}
	return NULL;
}

/* With everything ended nothing may be left anywhere, and the table must take as many sessions as on its first day. */
static void check_books(void)
{
	struct session_filter all = {0};
	uint64_t counters[COUNTERS];
	struct table_stats stats;
	uint32_t buckets = 0;

	table_close_all(table, &all, END_UNKNOWN);
	clock_now = table_now() > clock_now ? table_now() : clock_now;
	expire();
	table_read_stats(table, &stats);
	table_read_counters(table, counters);
	assert(!stats.allocated && !stats.scheduled && !stats.tcp && !stats.udp && !stats.discard);
	assert(!natpool_used(table, 0, 0, 65535));
	assert(counters[SESSION_INSTALLED] == stats.installed);
	assert(counters[SESSION_INSTALLED] == counters[SESSION_FREED]);
	assert(counters[SESSION_DISCARD_EVICTED] && counters[SESSION_ALLOC_FAILURE] && counters[NAT_PORT_REALLOCATED]);
	assert(!table->discard_head && !table->discard_tail);
	for (uint32_t i = 0; i < table->bucket_count; i++) {
		const struct bucket *b = (struct bucket *)((char *)table + table->buckets) + i;

		assert(!(b->seq & 1) && !b->next);
		for (int entry = 0; entry < BUCKET_ENTRIES; entry++)
			assert(!b->ref[entry]);
	}
	for (uint32_t i = table->overflow_head; i; buckets++)
		i = (((struct bucket *)((char *)table + table->overflow)) + i - 1)->next;
	assert(buckets == table->overflow_count);
	for (uint32_t id = 1; id <= SLOTS; id++)
		assert(session_at(table, id)->state[0] == SESSION_INIT && !session_at(table, id)->lock);
	printf("%llu installed, %llu evicted, %llu refused\n", (unsigned long long)stats.installed,
	       (unsigned long long)counters[SESSION_DISCARD_EVICTED], (unsigned long long)counters[SESSION_ALLOC_FAILURE]);
}

static void fill(void)
{
	struct flow_key key = {.proto = IPPROTO_UDP, .zone = 1, .family = 4, .sport = 1};
	struct decision d = {.egress_zone = 2};

	for (uint32_t i = 0; i < SLOTS; i++) {
		memcpy(key.src, &i, sizeof(i));
		assert(session_install(table, 0, &key, &d) > 0);
	}
	memset(key.src, 0xff, 16);
	assert(session_install(table, 0, &key, &d) == INSTALL_FULL);
}

int main(int argc, char **argv)
{
	static uint32_t shards[WORKERS] = {0, 1};
	struct timers timers = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
	struct settings settings = {.aging_threshold = 95, .aging_factor = 2};
	pthread_t threads[WORKERS + 2];

	if (argc > 1)
		rounds = (uint32_t)strtoul(argv[1], NULL, 10);
	table = table_create(SLOTS, 2);
	assert(table);
	clock_now = table_now() + 100;
	table_set_timers(table, 0, &timers);
	table_set_settings(table, &settings);
	table_set_zones(table, (uint32_t[]){1, 2}, (uint8_t[]){1, 2}, 2);
	assert(natpool_open(table, pool_address) == 0);
	for (int i = 0; i < WORKERS; i++)
		start(&threads[i], work, &shards[i]);
	start(&threads[WORKERS], age, NULL);
	start(&threads[WORKERS + 1], operate, NULL);
	for (int i = 0; i < WORKERS + 2; i++)
		pthread_join(threads[i], NULL);
	check_books();
	fill();
	table_destroy(table);
	return 0;
}
