// Threads that serve faults for others (join({ systemCalls: true })). Where a page is touched by the kernel, in a system
// call, there is no handler to run: the thread sleeps in the kernel until somebody has opened the page. Its userfaultfd then
// reports every access to a page that is not here, those of user code too, to these threads.
#pragma once

#include "region.h"

namespace faultline {

struct Proxies;

// nullptr: `failure` says why. The region's uffd exists.
Proxies* proxies_start(Region& region, SystemFailure& failure);
// The region is down for good; whoever waits in the kernel is woken when its uffd is closed. false: a thread is still at it,
// so the descriptor and the tables must stay.
bool proxies_stop(Proxies* proxies);

}  // namespace faultline
