/* stress.h - what the programs of many threads share: a clock that runs far faster than time, chance, and threads.  Each is
 * compiled by stress.py. */
#ifndef STRESS_H
#define STRESS_H

#include <pthread.h>

#include "internal.h"

static uint32_t clock_now;

static inline uint32_t now(void)
{
	return __atomic_load_n(&clock_now, __ATOMIC_RELAXED);
}

/* xorshift: rand_r is too short for our purpose, and getrandom too slow. */
static inline uint32_t pick(uint64_t *state, uint32_t n)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (uint32_t)((*state >> 32) * n >> 32);
}

static inline void start(pthread_t *thread, void *(*run)(void *), void *argument)
{
	int error = pthread_create(thread, NULL, run, argument);

	assert(!error);
}

#endif
