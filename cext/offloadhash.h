/* offloadhash.h - where a flow stands in the table that the kernel's program looks it up in: read by offload.c and by
 * offload.bpf.c, so that both come to the same place.
 *
 * NH (UMAC, RFC 4418 section 5.2.1) over the words of the key, with a random secret, then a multiplication with a random
 * odd number whose upper bits count: whoever chooses our keys cannot choose our buckets.  The program has no 128-bit
 * product, which flowhash.c's hash takes.  Of IPv4 only what differs between two keys is summed: two products.
 */
#ifndef DATAPLANE_OFFLOADHASH_H
#define DATAPLANE_OFFLOADHASH_H

#define OFFLOAD_TAG_AT 32         /* bits of the hash: the tag's are not the bucket's, as long as there are fewer than 2^21 */
#define OFFLOAD_TAG_BITS (32 - OFFLOAD_REF_BITS)

static __attribute__((always_inline)) inline uint64_t offload_product(const uint32_t *w, const volatile uint32_t *add, int i, int j)
{
	return (uint64_t)(uint32_t)(w[i] + add[i]) * (uint32_t)(w[j] + add[j]);
}

static __attribute__((always_inline)) inline uint64_t
offload_hash(const struct flow_key *key, const volatile struct offload_secret *secret, int family)
{
	const uint32_t *w = (const uint32_t *)key;
	uint64_t sum = offload_product(w, secret->add, 3, 7) + offload_product(w, secret->add, 8, 9);

	if (family == 6)
		for (int i = 0; i < 3; i++)
			sum += offload_product(w, secret->add, i, i + 4);
	return sum * secret->odd;
}

static __attribute__((always_inline)) inline uint32_t offload_bucket_of(uint64_t hash, const volatile struct offload_secret *secret)
{
	return (uint32_t)(hash >> secret->shift);
}

/* What a slot holds; never 0. */
static __attribute__((always_inline)) inline uint32_t offload_slot(uint64_t hash, uint32_t ref)
{
	uint32_t tag = (uint32_t)(hash >> OFFLOAD_TAG_AT) | 1;

	return tag << OFFLOAD_REF_BITS | ref;
}

#endif
