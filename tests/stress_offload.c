/* stress_offload.c - sessions are offloaded by known hops while what is known changes.  Compiled and run by test_hop.py
 * under ThreadSanitizer, against the C files themselves; the memory that is the kernel's elsewhere is plain here.
 *
 *     worker 0, 1   datagrams of a few hundred flows; from the third on a session goes by the hops that are known
 *     host          what Python does: teaches where everybody is, forgets it, takes off what goes the old way, and then
 *                   looks into every slot: nobody may go that way any more.  At last it ends the offload
 *     ager          time that runs far faster than the clock: expires and frees
 *     operator      ends sessions, takes them off, merges what was counted
 *
 * A worker offloads and looks again under the lock of a slot, so who holds that lock never sees a session that is offloaded
 * by a hop that was forgotten and swept: that is the promise at the head of hop.c.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>

#include "stress.h"

#define SLOTS 256u
#define CLIENTS 200u
#define WORKERS 2
#define INSIDE 1u
#define OUTSIDE 2u

static struct table *table;
static struct offload *offload;
static uint32_t enough = 2000;         /* sessions that a change of the host takes off */
static uint32_t running = 1;
static uint32_t changes, swept;

static bool is_running(void)
{
	return __atomic_load_n(&running, __ATOMIC_ACQUIRE);
}

static void idle(uint32_t turns)
{
	for (volatile uint32_t i = 0; i < turns; i++)
		;
}

static void address_of(uint32_t client, uint8_t address[16])
{
	const uint8_t whole[16] = {[10] = 0xff, 0xff, 10, 0, 0, (uint8_t)client};

	memcpy(address, whole, sizeof(whole));
}

static const uint8_t server[16] = {[10] = 0xff, 0xff, 8, 8, 8, 8};

/* UDP without a checksum: a question of a client's, or the server's answer. */
static void build(uint8_t *data, uint32_t client, bool back)
{
	const uint8_t host[4] = {10, 0, 0, (uint8_t)client};
	uint16_t port = htons(4000), service = htons(53);

	memset(data, 0, 28);
	data[0] = 0x45;
	data[3] = 28;
	data[8] = 64;
	data[9] = IPPROTO_UDP;
	memcpy(data + 12, back ? server + 12 : host, 4);
	memcpy(data + 16, back ? host : server + 12, 4);
	memcpy(data + 20, back ? &service : &port, 2);
	memcpy(data + 22, back ? &port : &service, 2);
	data[25] = 8;
}

static void *work(void *argument)
{
	const struct decision d = {.egress_zone = OUTSIDE, .ingress = INSIDE, .egress = OUTSIDE};
	uint32_t shard = *(uint32_t *)argument;
	uint64_t random = 88172645463325252ull + shard;

	while (is_running()) {
		bool back = pick(&random, 2);
		uint8_t data[28];
		struct packet pkt = {.data = data, .len = sizeof(data), .ifindex = back ? OUTSIDE : INSIDE};

		build(data, pick(&random, CLIENTS), back);
		if (fastpath_take(table, shard, &pkt, now()) == VERDICT_PUNT && !back)
			session_install(table, shard, &pkt.key, &d);
	}
	return NULL;
}

static void teach(uint32_t number)
{
	const struct hop in = {.ifindex = INSIDE, .mtu = 1500, .number = number};
	const struct hop out = {.ifindex = OUTSIDE, .mtu = 1500, .number = number};
	uint8_t address[16];

	hop_learn(table, server, OUTSIDE, &out);
	for (uint32_t client = 0; client < CLIENTS; client++) {
		address_of(client, address);
		hop_learn(table, address, INSIDE, &in);
	}
}

/* ANY_HOP: by none at all. */
static void assert_nobody_goes_by(uint32_t number)
{
	for (uint32_t id = 1; id <= SLOTS; id++) {
		struct session *s = session_at(table, id);

		spin_lock(&s->lock);
		assert(number != ANY_HOP || !(s->flags & FLAG_OFFLOADED));
		for (uint32_t i = 0; i < SLOTS && s->flags & FLAG_OFFLOADED; i++) {
			const struct offload_flow *flow = offload->entries[i].flow;

			if (__atomic_load_n(&flow->session, __ATOMIC_RELAXED) == id)
				assert(flow[0].hop.number != number && flow[1].hop.number != number);
		}
		session_unlock(s);
	}
}

static void *follow_host(void *unused)
{
	uint64_t random = 3;

	(void)unused;
	for (; swept < enough; changes++) {
		teach(changes);
		idle(pick(&random, 20000));
		hops_forget(table);
		swept += offload_drop_hop(table, changes);
		assert_nobody_goes_by(changes);
	}
	teach(changes);
	idle(20000);
	offload_end(table);
	assert_nobody_goes_by(ANY_HOP);
	__atomic_store_n(&running, 0, __ATOMIC_RELEASE);
	return NULL;
}

static void expire(void)
{
	static struct session_copy ended[64];
	static uint32_t ids[64];
	uint32_t found;

	do {
		found = table_expire(table, now(), ended, 64);
		for (uint32_t i = 0; i < found; i++)
			ids[i] = ended[i].id;
		session_free(table, ids, found);
	} while (found == 64);
}

static void *age(void *unused)
{
	(void)unused;
	while (is_running()) {
		__atomic_fetch_add(&clock_now, 1, __ATOMIC_RELAXED);
		expire();
		idle(5000);
	}
	return NULL;
}

static void *operate(void *unused)
{
	uint64_t random = 1;
	uint8_t hops[8];

	(void)unused;
	while (is_running()) {
		session_close(table, 1 + pick(&random, SLOTS), 0, END_UNKNOWN);
		session_reconsider(table, 1 + pick(&random, SLOTS), 0);
		offload_sweep(table, hops, sizeof(hops));
		idle(5000);
	}
	return NULL;
}

/* With everything ended the kernel's table is empty, and every entry somebody else's to take. */
static void check_books(void)
{
	struct session_filter all = {0};
	uint64_t counters[COUNTERS];

	table_close_all(table, &all, END_UNKNOWN);
	clock_now = (table_now() > clock_now ? table_now() : clock_now) + 10;
	expire();
	table_read_counters(table, counters);
	assert(counters[SESSION_INSTALLED] == counters[SESSION_FREED]);
	assert(counters[SESSION_OFFLOADED] == counters[SESSION_ONLOADED]);
	for (uint32_t i = 0; i < offload->bucket_count; i++)
		for (int slot = 0; slot < OFFLOAD_SLOTS; slot++)
			assert(!offload->buckets[i].slot[slot]);
	for (uint32_t i = 0; i < SLOTS; i++)
		assert(!offload->entries[i].flow[0].session && !(offload->used[i / 64] >> i % 64 & 1));
	printf("%llu offloaded, %u of them swept in %u changes\n", (unsigned long long)counters[SESSION_OFFLOADED], swept, changes);
}

int main(int argc, char **argv)
{
	static uint32_t shards[WORKERS] = {0, 1};
	struct timers timers = {60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60};
	pthread_t threads[WORKERS + 3];

	if (argc > 1)
		enough = (uint32_t)strtoul(argv[1], NULL, 10);
	table = table_create(SLOTS, 1);
	offload = offload_create(SLOTS);
	assert(table && offload);
	offload->buckets = calloc(offload->bucket_count, sizeof(*offload->buckets));
	offload->entries = calloc(offload->capacity, sizeof(*offload->entries));
	assert(offload->buckets && offload->entries);
	offload_begin(table, offload);
	clock_now = table_now() + 100;
	table_set_timers(table, 0, &timers);
	table_set_zones(table, (uint32_t[]){INSIDE, OUTSIDE}, (uint8_t[]){INSIDE, OUTSIDE}, 2);
	for (int i = 0; i < WORKERS; i++)
		start(&threads[i], work, &shards[i]);
	start(&threads[WORKERS], follow_host, NULL);
	start(&threads[WORKERS + 1], age, NULL);
	start(&threads[WORKERS + 2], operate, NULL);
	for (int i = 0; i < WORKERS + 3; i++)
		pthread_join(threads[i], NULL);
	check_books();
	return 0;
}
