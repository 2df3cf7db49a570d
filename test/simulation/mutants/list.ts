/**
 * Deliberate bugs, each of which the simulator must find. An edit's text must stand in its file exactly once, so a mutant
 * that no longer fits the code is an error, and not a mutant that nobody notices.
 */
export interface Edit { file: string; find: string; replace: string }
export interface Mutant {
  name: string;
  what: string;
  edits: Edit[];
  /** The first seed that is tried: for a bug so rare that the seed which once found it is where to look. */
  seed?: number;
  /** The file of this folder's parent that finds it, in place of seeds: for a bug that needs more at once than chance brings. */
  test?: string;
}

const home = 'lib/coordinator/protocol/home.ts';
const member = 'lib/coordinator/protocol/member.ts';
const moves = 'lib/coordinator/protocol/moves.ts';
const questions = 'lib/coordinator/protocol/questions.ts';
const locks = 'lib/coordinator/protocol/locks.ts';
const barriers = 'lib/coordinator/protocol/barriers.ts';
const inbox = 'lib/coordinator/protocol/inbox.ts';
const liveness = 'lib/coordinator/protocol/liveness.ts';
const wants = 'lib/coordinator/protocol/wants.ts';
const directory = 'native/directory.cc';
const pages = 'native/addon_pages.cc';
const serve = 'native/serve.cc';
const regionProtocol = 'lib/coordinator/protocol/region.ts';
const placement = 'lib/coordinator/protocol/placement.ts';
const thread = 'test/simulation/thread.ts';
/** Stands in for lib/coordinator/membership/member.ts. */
const simulated = 'test/simulation/member.ts';

const mutant = (name: string, what: string, file: string, find: string, replace: string, ...more: Edit[]): Mutant => ({ name, what, edits: [{ file, find, replace }, ...more] });

export const mutants: readonly Mutant[] = [
  // ---- the home
  { ...mutant('handed-over-twice', 'a handover that is asked for again while it begins is begun again', moves,
    'this.outgoing.set(service.first, outgoing);\n    this.memory.closeGate(() => {', 'this.memory.closeGate(() => {',
    { file: moves, find: 'this.memory.openGate();\n        // The receiver', replace: 'this.memory.openGate();\n        this.outgoing.set(service.first, outgoing);\n        // The receiver' }), seed: 9_760_022_377 },
  mutant('invalidation-not-awaited', 'a write is granted as soon as the copies have been told to go', home,
    'this.memory.downgrade(page, 1, false, this.one);\n      return false;', 'this.memory.downgrade(page, 1, false, this.one);\n      work.invalidations = null;'),
  mutant('copyset-forgets-one', 'one member of the copyset is not invalidated', home,
    'member !== entry.from && member !== this.network.self);', 'member !== entry.from && member !== this.network.self).slice(1);'),
  mutant('copyset-not-kept', 'a read is granted without adding the reader to the copyset', home,
    'return this.finish(page, work, DirState.Idle, 0, granted, newLow, newHigh);', 'return this.finish(page, work, DirState.Idle, 0, granted, low, high);'),
  mutant('owner-not-recalled', 'a read is served with the bytes that the home has, while another member owns the page', home,
    'work.recall = { owner: holder, version };', 'if (keep) return this.serveRead(page, work, entry, version, low, high);\n      work.recall = { owner: holder, version };'),
  mutant('recall-answered-twice', 'an owner answers a recall twice, and the home takes what it did not ask for', member,
    'this.countOut(segments, payload);\n    this.network.send(from, { type: \'recalled\', region: this.info.id, generation, segments }, payload);',
    'this.countOut(segments, payload);\n    this.network.send(from, { type: \'recalled\', region: this.info.id, generation, segments }, payload);\n    this.timers.after(300, () => this.network.send(from, { type: \'recalled\', region: this.info.id, generation, segments }, payload?.slice()));',
    { file: home, find: 'const expected = work?.recall?.owner === from && work.recall.version === segment.version;', replace: 'const expected = work?.recall != null;' }),
  mutant('upgrade-after-invalidation', 'an upgrade leaves out the bytes although the copy was invalidated meanwhile', home,
    'const same = entry.held !== 0 && entry.held === version && this.view.inCopyset(slot, low, high);\n    this.answer(entry, page, next,',
    'const same = entry.held !== 0;\n    this.answer(entry, page, next,',
    { file: member, find: 'const gone = segment.content === Content.Same && this.anyGone(segment);', replace: 'const gone = false;' }),
  mutant('no-held-version', 'whether the bytes may be left out is decided from the copyset alone', home,
    'const same = entry.held !== 0 && entry.held === version && this.view.inCopyset(slot, low, high);\n    const [newLow', 'const same = this.view.inCopyset(slot, low, high);\n    const [newLow'),
  mutant('version-not-raised', 'a write is granted with the version of the copies before it', home,
    'const next = nextVersion(version);', 'const next = version || 1;'),
  mutant('retired-version-granted', 'a version that was invalidated is granted again when the writer is gone', home,
    'return work.retired === version ? nextVersion(version) : version;', 'return version;'),
  mutant('own-copy-left-open', 'the home grants a write and leaves its own copy open', home,
    'if (!this.closeOwn(page, work, false)) return false;\n    if (entry.task', 'if (entry.task'),
  mutant('keeper-not-in-copyset', 'an owner that keeps a shared copy is not added to the copyset', home,
    'this.memory.end(page, DirState.Idle, 0, next, newLow, newHigh, true);\n    } else {', 'this.memory.end(page, DirState.Idle, 0, next, low, high, true);\n    } else {'),
  mutant('bytes-not-taken', 'returned bytes are acknowledged and not written', home,
    'this.memory.writePages(page, 1, bytes, 0);', 'void 0;'),
  mutant('dead-member-awaited', 'an invalidation waits for the answer of a member that has died', home,
    'if (work.invalidations?.members.delete(member) &&', 'if (member < 0 && work.invalidations?.members.delete(member) &&'),
  mutant('loss-told-after-the-find', 'a page that is found again is told to be lost afterwards', home,
    'if (!(head.from === member)) goOn.push(() => this.advance(page, work));', 'if (!(head.from === member)) this.advance(page, work);'),
  mutant('grants-to-leavers', 'a member that hands over is still granted pages', home,
    'asker === undefined || (asker.leaving && entry.given === undefined && entry.from !== this.network.self)', 'asker === undefined'),
  // ---- the member
  { ...mutant('grant-silently-dropped', 'a grant that is not taken is not told to the home', member,
    'if (segment.grant === Held.Exclusive && (result', 'if (segment.grant === Held.Lost && (result'), seed: 126_001 },
  mutant('recall-ignores-parked', 'a recall that has to wait is forgotten', member,
    'for (let page = start; page < start + length; page++) this.park(page, { from, generation, version, recall: { keep, wantBytes }, timer: null });', 'void keep;'),
  mutant('claims-forgotten-at-a-death', 'claims at a home that died are not made again', member,
    'this.claimAgain(page, pending);\n    }\n    for (const [page, parked] of [...this.parked]) {\n      if (page < first || page >= end || alive', 'this.pending.delete(page);\n    }\n    for (const [page, parked] of [...this.parked]) {\n      if (page < first || page >= end || alive'),
  mutant('clean-copy-dropped-by-message', 'a clean copy is dropped by a message that takes the member out of the copyset', home,
    'for (let page = run.first; page < run.first + run.count; page++) {\n        const work = this.works.get(page);', 'for (let page = run.first; page < run.first + run.count; page++) {\n        if (run.version === 0) {\n          const [state, owner, version, low, high] = this.directory(page);\n          const [restLow, restHigh] = this.view.withoutSlot(this.view.slotOf(from), low, high);\n          if (!this.works.has(page)) this.memory.end(page, state, owner, version, restLow, restHigh, false);\n          continue;\n        }\n        const work = this.works.get(page);',
    { file: thread, find: 'protocol.homeOf(page) !== this.member.id) this.member.drop(page);', replace: 'protocol.homeOf(page) !== this.member.id) {\n            this.member.drop(page);\n            this.member.send(protocol.homeOf(page), { type: \'invalidated\', region: protocol.info.id, generation: protocol.info.slices.find(({ first, count }) => page >= first && page < first + count)!.generation, runs: [{ first: page, count: 1, version: 0 }] });\n          }' }),
  { ...mutant('broken-prefetch-forgotten', 'pages that were asked for to write, over a lane that broke, are not asked for again', 'native/lane_steps.cc',
    'owned || (i == 0 && !turn.ahead)', '(owned && false) || (i == 0 && !turn.ahead)'), seed: 9_330_033_301 },
  { ...mutant('same-without-a-copy', 'a page is installed without bytes although the copy that it was to keep is gone', member,
    'const gone = segment.content === Content.Same && this.anyGone(segment);', 'const gone = false;'), test: 'late-answers' },
  { ...mutant('claim-ended-in-between', 'a claim that is made while an answer for several pages is taken ends with that answer', member,
    'ended.push(page);', 'this.settled(page);'), test: 'late-answers' },
  { ...mutant('former-home-still-obeyed', 'a recall that had to wait is carried out for a home that has handed over since', member,
    'if (recall !== null && overtaken) this.answerRecall(', 'if (recall !== null && overtaken && page < 0) this.answerRecall('), test: 'late-answers' },
  // ---- memory that is short
  mutant('shed-by-the-new-home', 'a member that becomes the home of a page which it has just sent home gives up the bytes', member,
    'this.shedding.delete(page);\n      this.returned(page, 1, version);', 'this.returned(page, 1, version);'),
  mutant('clock-takes-from-the-home', 'pages are given up although this member is their home, or hands them over', regionProtocol,
    'if (slice.home !== this.network.self && this.home.serviceOf(this.hand) === undefined) {', 'if (slice.count > 0) {'),
  mutant('given-up-before-the-home-has-it', 'bytes are given up that went home and may not have arrived', directory,
    'held(word) != kInvalid) || (word & (kBusy | kPendMask | kUnacked |', 'held(word) != kInvalid) || (word & (kBusy | kPendMask |'),
  // ---- homes that move
  mutant('served-before-handed', 'a new home serves before the last one has said that it does not any more', moves,
    'if (message.done) incoming.handedOver = true;', 'if (message.done) incoming.handedOver = true;\n    if (message.done && incoming.service.status === \'receiving\') this.complete(incoming);'),
  mutant('old-home-stays-open', 'a leaving home does not close its own copies before it hands over', moves,
    'deferred += this.memory.downgrade(records[i], records[i + 1], false, out);', 'void out;'),
  mutant('handover-without-bytes', 'a leaving home hands over its directory, and not its bytes', moves,
    'if (content === Content.Bytes) this.memory.writePages', 'if (content === Content.Same) this.memory.writePages'),
  mutant('pages-open-before-the-directory', 'a new home opens its pages to its threads before their directory is written', moves,
    'if (rebuilt) setHomed();\n', 'setHomed();\n'),
  mutant('last-words-dropped', 'what a leaving home has granted does not count when its pages have their next home', placement,
    'return this.former.get(slice.first)?.get(generation) === from;', 'return false;'),
  mutant('rebuild-forgets-copies', 'a rebuilt directory knows one holder of a page only', moves,
    'known.holders.set(from, version);', 'void from;'),
  { ...mutant('rebuild-forgets-older-copies', 'a rebuilt directory knows the holders of the newest version only', moves,
    'known.holders.set(from, version);', 'if (version < known.version) continue;\n          for (const [member, older] of [...known.holders]) if (older < version) known.holders.delete(member);\n          known.holders.set(from, version);'), test: 'rebuilt-copies' },
  { ...mutant('keeper-poisoned-for-ever', 'a page that a keeper did not have any more is granted in the version that it was asked for', home,
    'unfetched?.passed === true ? nextVersion(unfetched.newest) : version;', 'version;'), test: 'rebuilt-copies' },
  mutant('rebuild-forgets-its-own', 'a new home does not ask itself what it holds', moves,
    'this.note(incoming, this.network.self, records);', 'void records;'),
  mutant('unacknowledged-bytes-survive-a-death', 'bytes that a dead home may have had in a newer version count as the newest', moves,
    'if (held !== Held.Shared && held !== Held.Exclusive) continue;', 'if (held !== Held.Shared && held !== Held.Exclusive && unacknowledged === 0) continue;'),
  mutant('stale-home-accepted', 'what a home has said counts although it is out of the view', simulated,
    'if (!this.state!.members.some((member) => member.id === from)) return;', ''),
  mutant('questions-asked-twice', 'what a leaving home has done already is asked of the next one, too', questions,
    'if (alive(open.home)) continue;', 'if (alive(open.home) && this.placement.of(open.page).home === open.home) continue;'),
  { ...mutant('restored-by-whoever', 'a page that was found after its home had died counts as restored by whoever asked for that', questions,
    'else open.reply(value, error);', "else open.reply(value, error?.code === 'ERR_FAULTLINE_NOT_LOST' ? undefined : error);"), test: 'rebuilt-copies' },
  mutant('request-dropped-at-a-join', 'a message from a state that this member has not heard of yet is thrown away', inbox,
    'if (!this.isMember(envelope.from) && this.count >= MOST_EARLY) return false;', 'if (waiting === undefined) return false;'),
  // ---- the membership
  mutant('dead-before-the-lease-ends', 'a member is declared dead while its lease still runs', liveness,
    'now - pulse.heard > this.silence ||', 'now - pulse.heard > this.silence / 4 ||'),
  mutant('lock-granted-twice', 'the lock of a member that died is granted to all who wait', locks,
    'return lock.holders.length === 0 || (', 'return lock.holders.length === 0 || lock.ownerDied || (',
    { file: locks, find: 'lock.ownerDied = false;\n      this.granted', replace: 'this.granted' }),
  mutant('lock-lost-with-its-holder', 'the lock of a member that died is never granted again', locks,
    'if (!this.release(name, lock, matches, died)) this.advance(name, lock);', 'if (died) this.advance(name, lock);\n      else if (!this.release(name, lock, matches, died)) this.advance(name, lock);'),
  mutant('tokens-start-again', 'a lock that nobody wants begins again with its first token', locks,
    '!lock.ownerDied) this.locks.delete(name);', '!lock.ownerDied) {\n      this.locks.delete(name);\n      this.nextToken = 1;\n    }'),
  mutant('barrier-opens-early', 'a barrier opens when one is still missing', barriers,
    'if (round.waiting.length < parties) return;', 'if (round.waiting.length < parties - 1) return;'),
  // ---- waiting
  mutant('notify-lost', 'a notify counts the waits that it wakes, and wakes one fewer', questions,
    'for (const waiter of woken) waiter.reply(\'ok\');', 'for (const waiter of woken.slice(1)) waiter.reply(\'ok\');\n    if (woken.length > 0) this.waiters.set(offset, [woken[0], ...(this.waiters.get(offset) ?? [])]);'),
  mutant('wait-without-looking', 'a wait looks at the value before the page is up to date', questions,
    'if (this.memory.load32(offset) !== expected) return reply(\'not-equal\');', 'void expected;',
    { file: questions, find: 'for (const waiter of woken) waiter.reply(\'ok\');', replace: 'for (const waiter of woken) waiter.reply(\'timed-out\');' }),
  mutant('pin-not-held', 'a pin is granted before all of its pages are held', wants,
    'if (!want.ended && want.open.size === 0 && want.run === want.runs.length) this.complete(want);', 'if (!want.ended && (want.pin !== null || (want.open.size === 0 && want.run === want.runs.length))) this.complete(want);'),
  { ...mutant('late-answer-taken', 'an answer that names an earlier claim is taken for the answer to this one', member,
    'return this.pending.get(page)?.claim !== claim;', 'return this.pending.get(page) === undefined && claim < 0;'), test: 'late-answers' },
  { ...mutant('late-answer-to-a-rung-claim', 'an answer to an earlier claim ends one that a thread has only just rung', member,
    'return this.pending.get(page)?.claim !== claim;', 'const pending = this.pending.get(page);\n    return pending !== undefined && pending.claim !== claim;'), seed: 9_770_106_346 },
  mutant('retired-copy-stays-open', 'who is told over a lane to give a copy up says so, and keeps it', 'native/lane_serve.cc',
    'if (closes) serving.closes |= uint64_t{1} << serving.taken;', 'if (closes) settle(region, page, finish(region.pages[page], kAsItWas));'),
  mutant('retired-beside-a-claim', 'a copy is given up over a lane although an answer from before is under way', directory,
    '(kBusy | kPendMask | kUnacked)) || (held(word) != kInvalid && held(word) != kShared)) return false;\n    closes', '(kBusy | kUnacked)) || (held(word) != kInvalid && held(word) != kShared)) return false;\n    closes'),
  mutant('retired-by-halves', 'a home opens its page to write when the first of two copies has been given up over a lane', directory,
    'if (locks && left == 0) {', 'if (locks) {'),
  mutant('retired-unheard', 'a home takes a copy for given up although nobody has said so', 'native/lane_steps.cc',
    'if (i >= answer.granted || (turn.hop', 'if ((i >= answer.granted && !turn.retire) || (turn.hop'),
  mutant('hop-forgets-the-copy', 'a home that fetches a page on a lane does not write down that the owner keeps a copy', directory,
    'if (keep) directory.copyset.store(slot_bit(slot));', ''),
  mutant('hop-takes-what-is-kept', 'a home that fetches a page on a lane writes it although the owner keeps a copy', 'native/lane_steps.cc',
    '(turn.hop ? question.keep == 0 :', '(turn.hop ? true :'),
  mutant('hops-left-over', 'of the pages that a home asks for together, those that did not come stay as if they were on their way', 'native/lane_steps.cc',
    'if (!(begun >> i & 1) && leave_hop(', 'if (i == 0 && !(begun >> i & 1) && leave_hop('),
  mutant('recalled-as-the-first', 'whether pages that are given back together are all zero is seen from the first of them', 'native/lane_serve.cc',
    '(recall ? all_holes(region, question, serving.taken) : is_hole(region, question.page))', 'is_hole(region, question.page)'),
  mutant('hop-beside-copies', 'a home that asks the owner for somebody writes down no copy', 'native/lane_steps.cc',
    'question.access, question.keep != 0, turn.slot, opened, now);', 'question.access, question.keep != 0 && !turn.for_asker, turn.slot, opened, now);'),
  // ---- the words
  mutant('no-unacked', 'dirty bytes are forgotten before the home has said that it has them', directory,
    'if (unacked) next |= kUnacked;', '(void)unacked;'),
  mutant('no-poison', 'an answer that was overtaken by an invalidation is installed', directory,
    'if (page.word.compare_exchange_weak(word, bumped(word) | kPoison)) return;', 'if (page.word.compare_exchange_weak(word, bumped(word))) return;'),
  mutant('recall-leaves-a-shared-copy', 'a recall leaves a shared copy open', directory,
    'const bool close = held(word) == kExclusive ? same : held(word) == kShared && !keep;', 'const bool close = held(word) == kExclusive ? same : false;'),
  mutant('older-copy-stays', 'a recall that lets a reader keep its copy leaves one from before the version that it recalls', directory,
    'if (held(word) == kShared && after(version, page.version.load())) keep = false;', ''),
  mutant('reopened-outside-busy', 'a thread opens what is held without BUSY, and goes by what was held when it looked', directory,
    'if (page.word.compare_exchange_weak(word, word | kBusy)) return {Step::kReopen, 0, 0};', 'return {Step::kReopen, held(word), 0};',
    { file: serve, find: 'turn.at_home = false;\n', replace: 'turn.at_home = false;\n      turn.grant = decision.futex;\n' },
    { file: serve, find: 'open_of(held(entry.word.load()))', replace: 'open_of(turn.grant)' }),
  mutant('opened-before-the-bytes', 'a page that comes in is opened while its bytes are copied', pages,
    'if (was_open && content != 2) close_run(region, page, 1, kOpenNone);', 'if (content != 2) open_run(region, page, 1, kOpenRead);'),
  mutant('deferral-not-rung', 'who waits for a BUSY page is not told that it is free', directory,
    'if (next & kDefer) {\n    after.ring = true;', 'if (next & kDefer) {'),
  mutant('sleepers-not-woken', 'threads that wait for a page are not woken when it is here', directory,
    'after.wake = after.wake || (word & kSleepers) != 0;', ''),
  mutant('pins-ignored', 'a pinned page is taken away', directory,
    'if (word & kWritePinMask) return true;\n  if (!to_shared && (word & kReadPinMask)) return true;', ''),
  mutant('lock-ignores-a-transaction', 'a thread of the home opens a page in the middle of a transaction', directory,
    'if (state_of(entry) != kIdle || (entry & kDirectoryFlags)) return HomeLock::kRefused;', 'if (state_of(entry) != kIdle || (entry & kLock)) return HomeLock::kRefused;'),
  mutant('home-writes-beside-copies', 'a thread of the home writes a page of which others have copies', directory,
    'const bool wanted = fresh ? alone && held(word) == kInvalid && open(word) == kOpenNone : alone || access == kRead;', 'const bool wanted = true;',
    { file: directory, find: 'grant = alone ? kExclusive : kShared;', replace: 'grant = access == kWrite ? kExclusive : kShared;' }),
  mutant('no-hold-for-two-pages', 'an instruction that needs two pages does not hold on to the first', serve,
    'region.pages[recent.page[i]].resident_until.store(now + (recent.hold', 'if (now == 0) region.pages[recent.page[i]].resident_until.store(now + (recent.hold'),
];
