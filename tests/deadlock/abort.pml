/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * abort.pml - memory reclaim, requests and an abort, as a model that spin(1) explores wholly
 *
 * What can wait for what in src/LOCKING.md, and nothing else:
 *
 *   shrinkers, throttle, meta_root   rwlocks that prefer writers
 *   completion                       request[i] is ANSWERED by the worker, and by nobody else
 *   the helper of the cache          awaited by a reset, and by who settles a shrinker
 *
 * ABORT is which abort the worker makes: RECREATE, SWAP or RESET, as tests/deadlock/abort-*.c and
 * src/thin/thin-abort.c.  ONLY leaves one way to wait to the pressure thread, to tell the scenarios
 * apart; without it there are all.  All parties but the worker and the helper come to an end after
 * ROUNDS rounds, so whoever waits for ever makes an invalid end state.
 */
#define RECREATE 1
#define SWAP 2
#define RESET 3

#ifndef ROUNDS
#define ROUNDS 2
#endif
#ifndef ONLY
#define ONLY 0
#endif

/* ---- locks ---- */

typedef rwlock {
	byte readers;
	byte waiting; /* writers */
	bool writer
};
rwlock shrinkers, throttle, meta_root;

inline lock_shared(l)
{
	atomic { !l.writer && l.waiting == 0 -> l.readers++ }
}

inline unlock_shared(l)
{
	atomic { assert(l.readers > 0); l.readers-- }
}

inline lock(l)
{
	l.waiting++;
	atomic { !l.writer && l.readers == 0 -> l.writer = true; l.waiting-- }
}

inline unlock(l)
{
	atomic { assert(l.writer); l.writer = false }
}

/* Before a waiting writer it may fail or not. */
inline trylock_shared(l, ret_got)
{
	atomic {
		if
		:: !l.writer -> l.readers++; ret_got = true
		:: l.writer || l.waiting > 0 -> ret_got = false
		fi
	}
}

/* ---- requests ---- */

mtype = { NONE, DEFERRED, PARKED, TAKEN, ANSWERED };
#define FROM_RECLAIM 0
#define FROM_CLIENT 1
#define NR_REQUESTS 2
mtype request[NR_REQUESTS] = NONE;

/* pool_io_run() and what it comes to: worker_defer() with may_sleep, then the wait. */
inline defer_sleeping(i)
{
	lock_shared(throttle);
	request[i] = DEFERRED;
	unlock_shared(throttle)
}

inline await_answer(i)
{
	atomic { request[i] == ANSWERED -> request[i] = NONE }
}

/* ---- the cache and its helper ---- */

bool wanted, busy, resetting;

active proctype helper()
{
end:
	do
	:: atomic { wanted && !resetting -> wanted = false; busy = true };
	   busy = false
	od
}

/* ---- memory reclaim: the registry is held shared while a shrinker runs ---- */

active proctype pressure()
{
	byte n;
	bool got;

	do
	:: n == ROUNDS -> break
	:: n < ROUNDS ->
		lock_shared(shrinkers);
		if
#if ONLY == 0
		:: wanted = true /* the cache's: shrink_scan() */
		:: wanted = true; /* and settle */
		   !wanted && !busy
		:: trylock_shared(meta_root, got); /* a read: thin_try_find_run() */
		   if
		   :: got -> unlock_shared(meta_root)
		   :: else -> defer_sleeping(FROM_RECLAIM); await_answer(FROM_RECLAIM)
		   fi
#endif
#if ONLY == 0 || ONLY == 1
		:: lock_shared(meta_root); /* a lookup that sleeps: thin_find_run() */
		   unlock_shared(meta_root)
#endif
#if ONLY == 2
		:: request[FROM_RECLAIM] == NONE -> /* a write that nobody waits for */
		   defer_sleeping(FROM_RECLAIM)
#endif
#if ONLY == 0 || ONLY == 3
		:: defer_sleeping(FROM_RECLAIM); /* a write or a flush */
		   await_answer(FROM_RECLAIM)
#endif
		fi;
		unlock_shared(shrinkers);
#if ONLY == 2
		await_answer(FROM_RECLAIM);
#endif
		n++
	od
}

/* ---- somebody opens or closes another pool ---- */

active proctype other_pool()
{
	lock(shrinkers);
	unlock(shrinkers)
}

/* ---- a client of the pool, served by a FUSE worker that never sleeps on a lock ---- */

active proctype client()
{
	byte n;
	bool got;

	do
	:: n == ROUNDS -> break
	:: n < ROUNDS ->
		trylock_shared(meta_root, got);
		if
		:: got -> unlock_shared(meta_root) /* mapped: it needs nobody */
		:: true -> /* a hole, or meta_root is busy */
		   if
		   :: got -> unlock_shared(meta_root)
		   :: else
		   fi;
		   trylock_shared(throttle, got);
		   if
		   :: got -> request[FROM_CLIENT] = DEFERRED; unlock_shared(throttle)
		   :: else -> request[FROM_CLIENT] = PARKED
		   fi;
		   await_answer(FROM_CLIENT)
		fi;
		n++
	od
}

/* ---- the pool worker ---- */

/* shrinker_register(), shrinker_unregister() */
inline change_registry()
{
	lock(shrinkers);
	unlock(shrinkers)
}

inline abort()
{
#if ABORT == RECREATE
	lock(meta_root);
	change_registry(); /* bm_destroy() */
	change_registry(); /* bm_create() */
	unlock(meta_root)
#elif ABORT == SWAP
	change_registry(); /* bm_create() */
	lock(meta_root);
	unlock(meta_root);
	change_registry() /* bm_destroy() */
#elif ABORT == RESET
	lock(meta_root);
	atomic { resetting = true; wanted = false }; /* bufio_client_reset() */
	!busy;
	resetting = false;
	unlock(meta_root)
#endif
}

inline move(i, from, to)
{
	if
	:: request[i] == from -> request[i] = to
	:: else
	fi
}

inline become_late()
{
	if
#if ONLY != 3
	:: !late -> lock(throttle); late = true /* worker_check_pass() */
#endif
	:: true
	fi
}

#define IS_WORK(i) (request[i] == DEFERRED || request[i] == PARKED)

active proctype worker()
{
	byte ticks;
	bool late;

end:
	do
	:: IS_WORK(0) || IS_WORK(1) || ticks < ROUNDS ->
		if
		:: IS_WORK(0) || IS_WORK(1)
		:: ticks < ROUNDS -> ticks++ /* the interval of commits */
		fi;
		move(0, DEFERRED, TAKEN);
		move(1, DEFERRED, TAKEN);
		become_late();
		lock(meta_root); /* what has been written is mapped */
		unlock(meta_root);
		become_late();
		lock_shared(meta_root); /* a commit: its I/O */
		unlock_shared(meta_root);
		if
		:: abort() /* it has failed */
		:: true
		fi;
		if
		:: late -> unlock(throttle); late = false
		:: else
		fi;
		move(0, PARKED, DEFERRED);
		move(1, PARKED, DEFERRED);
		move(0, TAKEN, ANSWERED);
		move(1, TAKEN, ANSWERED)
	od
}
