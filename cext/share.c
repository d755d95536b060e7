/* share.c - who shares a translated port with whom (oversubscription).
 *
 * A port of a pool may serve several sessions as long as their destination addresses differ.  Every session that has a
 * port stands here under its mark, a keyed hash of 64 bits over pool address, protocol, port and destination address, and
 * no mark stands here twice.  So two sessions with all four in common are never let in; two that differ and still have
 * one mark cost the later one this port, and it tries another.
 *
 * The entry of a session is the one with its id.  An entry is also the head of the chain of its own number, so there are
 * as many chains as sessions and a chain is short; the hash is keyed, nobody outside can make it long.  16 bytes a
 * session, and none where ports are not shared.
 *
 * Run by whoever installs and whoever frees a session; a chain is guarded by one of SHARE_LOCKS, which is the last lock
 * that anybody takes.
 */
#include "internal.h"

_Static_assert(sizeof(struct sharer) == 16, "what oversubscription costs a session");

static struct sharer *sharer_at(const struct table *t, uint32_t i)
{
	assert(i <= t->max_sessions);
	return (struct sharer *)((char *)t + t->sharers) + i;
}

static uint32_t chain_of(const struct table *t, uint64_t mark)
{
	return (uint32_t)((mark & 0xffffffff) * (t->max_sessions + 1ull) >> 32);
}

static bool chain_has(const struct table *t, uint32_t chain, uint64_t mark)
{
	for (uint32_t i = sharer_at(t, chain)->head; i; i = sharer_at(t, i)->next)
		if (sharer_at(t, i)->mark == mark)
			return true;
	return false;
}

bool share_put(struct table *t, uint32_t session, uint64_t mark)
{
	struct sharer *own = sharer_at(t, session);
	uint32_t chain = chain_of(t, mark), *lock = &t->share_lock[chain % SHARE_LOCKS];
	bool fresh;

	spin_lock(lock);
	fresh = !chain_has(t, chain, mark);
	if (fresh) {
		own->mark = mark;
		own->next = sharer_at(t, chain)->head;
		sharer_at(t, chain)->head = session;
	}
	spin_unlock(lock);
	return fresh;
}

void share_remove(struct table *t, uint32_t session)
{
	struct sharer *own = sharer_at(t, session);
	uint32_t chain = chain_of(t, own->mark), *lock = &t->share_lock[chain % SHARE_LOCKS], *link;

	spin_lock(lock);
	for (link = &sharer_at(t, chain)->head; *link != session; link = &sharer_at(t, *link)->next)
		assert(*link);
	*link = own->next;
	spin_unlock(lock);
}
