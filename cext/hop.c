/* hop.c - where packets for an address go, as Python has found out for others: a worker offloads by it without asking.
 *
 * A place for each address, by a keyed hash; whoever comes later takes the place.  What Python says holds for an epoch.
 * When anything has changed it begins another, and then looks at every session that is offloaded.  Who offloads by a hop
 * reads the epoch before and, with the session's entry in use, again: either he sees that it is over and takes the session
 * off, or whoever ended it finds the session.
 *
 * Python's threads speak one at a time.  The lock of a place is the last that anybody takes.
 */
#include <stdlib.h>

#include "internal.h"

#define HOPS 8192u

/* A cache line. */
struct known_hop {
	uint32_t lock;
	uint32_t epoch;               /* 0: nothing is known */
	uint8_t  address[16];
	uint32_t zone;
	enum hop_answer answer;
	struct hop hop;
};

struct hops {
	uint32_t epoch;
	struct known_hop place[HOPS];
};

struct hops *hops_create(void)
{
	struct hops *hops = calloc(1, sizeof(*hops));

	if (hops)
		hops->epoch = 1;
	return hops;
}

void hops_destroy(struct hops *hops)
{
	free(hops);
}

static struct known_hop *place_of(const struct table *t, struct hops *hops, const uint8_t *address)
{
	return &hops->place[table_hash16(t, address) % HOPS];
}

uint32_t hops_epoch(const struct hops *hops)
{
	return __atomic_load_n(&hops->epoch, __ATOMIC_SEQ_CST);
}

enum hop_answer hop_find(const struct table *t, struct hops *hops, const uint8_t *address, uint8_t zone, uint32_t epoch,
			 struct hop *hop)
{
	struct known_hop *place = place_of(t, hops, address);
	enum hop_answer answer = HOP_UNKNOWN;

	spin_lock(&place->lock);
	if (place->epoch == epoch && place->zone == zone && !memcmp(place->address, address, 16)) {
		answer = place->answer;
		*hop = place->hop;
	}
	spin_unlock(&place->lock);
	return answer;
}

void hop_learn(struct table *t, const uint8_t *address, uint32_t zone, const struct hop *hop)
{
	struct hops *hops = t->offload ? t->offload->hops : NULL;
	struct known_hop *place;

	if (!hops)
		return;
	place = place_of(t, hops, address);
	spin_lock(&place->lock);
	place->epoch = hops_epoch(hops);
	place->zone = zone;
	memcpy(place->address, address, 16);
	place->answer = hop ? HOP_KNOWN : HOP_NONE;
	place->hop = hop ? *hop : (struct hop){0};
	spin_unlock(&place->lock);
}

void hops_forget(struct table *t)
{
	if (t->offload)
		__atomic_add_fetch(&t->offload->hops->epoch, 1, __ATOMIC_SEQ_CST);
}
