//! One capture, from the first selected process to the ledger.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use rustix::event::{Timespec, epoll};

use tracer_common::{
    config::{Counter, Met, Selected, condition, surviving_exec},
    record::Process,
};
use zerocopy::IntoBytes;

use super::{
    clock,
    containers::Containers,
    discover::{self, Seen},
    facts,
    kubernetes::Watcher,
    load::Probes,
    outputs::Outputs,
    pods::Pods,
    ring::{Losses, Peak},
    select::Selection,
    send::Sent,
    sockets::UnixSockets,
};
use crate::{
    capture::{Life, Record, own},
    enrich::kubernetes::Object,
    pipeline::{Limits, Pipeline},
    stats::Ledger,
    summary::{Summary, edges::Edges},
};

/// How often `/proc` is gone through for processes that started meanwhile.
const SCANS: usize = 5;

/// Records that are read before anything else gets its turn.
const TURN: usize = 8192;

/// As many as are taken of what is told of pods.
const OBJECTS: usize = 256;

/// How long the agent sleeps after it found records, and at most while it finds none. The probes wake
/// it when the ring fills.
const PAUSE_BUSY: Duration = Duration::from_millis(1);
const PAUSE_IDLE: Duration = Duration::from_millis(50);

/// How often the pipeline is told the time, and the wall clock is looked at again.
const TICK: u64 = 100_000_000;
const TICK_IDLE: u64 = 1_000_000_000;
const CLOCK: u64 = 30_000_000_000;

/// A wall clock that goes wrong by more is told at once: 10 ms.
const CLOCK_JUMP: u64 = 10_000_000;

pub struct Session {
    probes: Probes,
    ring: RingBuf<MapData>,
    /// Ends a pause when the probes say that the ring fills.
    alarm: OwnedFd,
    selection: Selection,
    sockets: UnixSockets,
    /// Tells of pods, where somebody asks for that.
    watcher: Option<Watcher>,
    pods: Pods,
    containers: Containers,
    pipeline: Pipeline,
    /// Processes that were chosen so far.
    pub chosen: u64,
    /// A process has ended, or it is time to look again: to look takes the kernel through a large map.
    may_be_deserted: bool,
    pub outputs: Outputs,
    /// Spans so far, and how many are wanted.
    pub spans: u64,
    pub count: Option<u64>,
    /// The probes are not told what they need not copy.
    pub copy_all: bool,
    last_tick: u64,
    last_clock: u64,
    /// The wall clock minus the monotonic one, as last told.
    offset: i64,
    records_at_tick: u64,
    idle: Duration,
    losses: Losses,
    peak: Peak,
}

/// Why a turn of the capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    More,
    /// No chosen process is left.
    Deserted,
    /// As many spans as were wanted.
    Counted,
    /// Nobody reads the output.
    Unread,
}

impl Session {
    pub fn start(
        (probes, ring): (Probes, RingBuf<MapData>),
        selection: Selection,
        limits: Limits,
        outputs: Outputs,
    ) -> Result<Self> {
        let mut session = Self {
            probes,
            alarm: alarm(&ring)?,
            ring,
            selection,
            sockets: UnixSockets::start(),
            watcher: None,
            pods: Pods::default(),
            containers: Containers::default(),
            chosen: 0,
            may_be_deserted: true,
            pipeline: Pipeline::new(limits),
            outputs,
            spans: 0,
            count: None,
            copy_all: false,
            last_tick: clock::monotonic(),
            last_clock: 0,
            offset: 0,
            records_at_tick: 0,
            idle: PAUSE_BUSY,
            losses: Losses::default(),
            peak: Peak::default(),
        };
        let now = clock::monotonic();
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no random seed: {error}"))?;
        session.handle(&own::seed(now, seed))?;
        session.tell_clock(now)?;
        for fact in facts::of_host(now) {
            session.handle(&fact)?;
        }
        Ok(session)
    }

    /// Chooses those of the processes that are there; the probes see to those that come. Returns the names
    /// of all that were chosen.
    pub fn scan(&mut self) -> Result<BTreeMap<u32, String>> {
        let mut chosen = BTreeMap::new();
        // A child that is forked while this goes on is followed by the probes, if its parent was
        // known by then; else the next look finds it. Where processes come and go all the time there is
        // always another, which the probes have seen.
        for _ in 0..SCANS {
            let mut news = false;
            for (process, (seen, met)) in self.selection.scan()? {
                let followed = self.probes.selected(process).chosen != 0;
                if met == Met::default() || followed || chosen.contains_key(&process) {
                    continue;
                }
                if self.choose(process, &seen, met)? {
                    news = true;
                    chosen.insert(process, seen.command);
                }
            }
            if !news {
                break;
            }
        }
        Ok(chosen)
    }

    /// Chooses by other rules from here on. Connections stay as they are, but for those of processes that are
    /// not chosen any more.
    pub fn set_selection(&mut self, selection: Selection) -> Result<()> {
        self.selection = selection;
        self.selection.set_pods(&self.pods);
        self.probes.set_rules(&self.selection)?;
        self.look_at_all()
    }

    /// All processes are compared with the selection as it is now.
    fn look_at_all(&mut self) -> Result<()> {
        // A child that is forked meanwhile has what its parent had: it is looked at with the next turn.
        for _ in 0..SCANS {
            let seen = self.selection.scan()?;
            let mut news = false;
            for process in self.probes.known().into_iter().filter(|process| !seen.contains_key(process)) {
                self.probes.deselect(process);
            }
            for (process, (seen, met)) in seen {
                let (before, chosen) = (self.probes.selected(process), self.selection.chosen(&met));
                if before == (Selected { met, chosen }) {
                    continue;
                }
                news = true;
                self.probes.select(process, Selected { met, chosen })?;
                if before.chosen == 0 && chosen != 0 {
                    self.choose(process, &seen, met)?;
                }
            }
            if !news {
                break;
            }
        }
        Ok(())
    }

    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// What it says of pods enters from here on, after what it has told already.
    pub fn set_watcher(&mut self, watcher: Watcher, told: Vec<Object>) -> Result<()> {
        self.watcher = Some(watcher);
        self.pods.doubt();
        for object in told {
            self.pods.handle(&object);
            self.handle(&own::object(clock::monotonic(), &object))?;
        }
        Ok(())
    }

    pub fn watcher(&self) -> Option<&Watcher> {
        self.watcher.as_ref()
    }

    pub fn probes_mut(&mut self) -> &mut Probes {
        &mut self.probes
    }

    pub fn probes(&self) -> &Probes {
        &self.probes
    }

    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Nanoseconds that the probes took, by those that were timed.
    pub fn probe_time(&self) -> u64 {
        self.probes.counters().map_or(0, |counters| counters[Counter::ProbeTime as usize])
    }

    /// The ledger as it stands, with what the kernel counted until now.
    pub fn ledger(&self) -> Ledger {
        let mut ledger = self.pipeline.ledger().clone();
        ledger.kernel = self.probes.counters().ok();
        ledger
    }

    pub fn pipeline_mut(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }

    /// Chooses a process that is yet to become the command.
    pub fn select_new(&mut self, process: u32) -> Result<()> {
        let met = union(&self.probes.selected(process).met, &self.selection.met_by_command());
        self.probes.select(process, Selected { met, chosen: self.selection.chosen(&met) })
    }

    /// Tells the probes what a process meets. Returns whether that is enough.
    fn choose(&mut self, process: u32, seen: &Seen, met: Met) -> Result<bool> {
        let met = union(&met, &self.probes.selected(process).met);
        let chosen = self.selection.chosen(&met);
        let now = clock::monotonic();
        if chosen != 0 {
            let mut command = [0; 16];
            let length = seen.command.len().min(command.len() - 1);
            command[..length].copy_from_slice(&seen.command.as_bytes()[..length]);
            self.handle(&own::chosen(now, process, chosen, command))?;
            let facts = facts::of(seen, process, now, &mut self.containers);
            for fact in facts.into_iter().chain(facts::listening(seen, process, now)) {
                self.handle(&fact)?;
            }
            self.chosen += 1;
            self.sockets.handle_chosen(process);
        }
        self.probes.select(process, Selected { met, chosen })?;
        // It may have ended, or have become something else, before it was chosen: nobody would tell.
        match Seen::of(process) {
            Some(again) if again.command == seen.command && again.executable == seen.executable => {}
            Some(again) => {
                let met = union(&surviving_exec(&met), &self.selection.met_by(&again));
                self.probes.select(process, Selected { met, chosen: self.selection.chosen(&met) })?;
            }
            None => self.probes.deselect(process),
        }
        Ok(chosen != 0)
    }

    /// The probes ask whether a process is one of those that only the agent can tell.
    fn decide(&mut self, asked: &Process) -> Result<()> {
        let process = asked.header.pid;
        let Some(seen) = Seen::of(process) else {
            self.probes.decided(process);
            return Ok(());
        };
        let met = self.selection.met_by(&seen);
        let chosen = self.choose(process, &seen, met)?;
        let before = self.probes.decided(process);
        if chosen && before != [0; 2] {
            self.handle(&own::before(clock::monotonic(), process, before))?;
        }
        Ok(())
    }

    /// Reads what there is, then waits a moment for more. Falls asleep for longer the longer there is
    /// nothing; a ring that fills ends that sleep.
    pub fn turn(&mut self) -> Result<Turn> {
        let read = self.drain(TURN)?;
        let heard = self.hear()?;
        let now = clock::monotonic();
        if read < TURN {
            self.peak.end(now);
        }
        self.tick(now)?;
        if self.count.is_some_and(|count| self.spans >= count) {
            return Ok(Turn::Counted);
        }
        if self.outputs.printer.is_closed() {
            return Ok(Turn::Unread);
        }
        if read == TURN {
            return Ok(Turn::More);
        }
        self.close_gone()?;
        let now = clock::monotonic();
        self.sockets.look(now, false);
        if self.losses.is_due(now, || self.probes.lost()) {
            self.close_unseen()?;
        }
        if read > 0 || heard > 0 {
            self.idle = PAUSE_BUSY;
            self.pause(PAUSE_BUSY);
            return Ok(Turn::More);
        }
        if std::mem::take(&mut self.may_be_deserted)
            && !self.selection.may_match_later()
            && !self.probes.selects_by_id()
        {
            return Ok(Turn::Deserted);
        }
        self.idle = (self.idle * 2).min(PAUSE_IDLE);
        self.pause(self.idle);
        Ok(Turn::More)
    }

    /// Pods came, went or changed: what starts in them is chosen by the probes from here on, and what runs there
    /// already now.
    fn follow_pods(&mut self) -> Result<()> {
        let before = self.selection.compared().cgroups;
        self.selection.set_pods(&self.pods);
        let after = self.selection.compared().cgroups;
        if before == after {
            return Ok(());
        }
        self.probes.set_cgroups(after.clone())?;
        let stays = before.iter().all(|(cgroup, rules)| after.get(cgroup) == Some(rules));
        if !stays {
            return self.look_at_all();
        }
        let new = after.into_iter().filter(|(cgroup, _)| !before.contains_key(cgroup)).collect();
        for (process, rules) in self.selection.members(&new) {
            let Some(seen) = Seen::of(process) else { continue };
            let before = self.probes.selected(process);
            let mut met = union(&before.met, &self.selection.met_by(&seen));
            met[condition::CGROUP] |= rules;
            if before.chosen == 0 {
                self.choose(process, &seen, met)?;
            } else {
                // It may be excluded now.
                self.probes.select(process, Selected { met, chosen: self.selection.chosen(&met) })?;
            }
        }
        Ok(())
    }

    /// Takes what is told of pods, and asks who is behind addresses.
    fn hear(&mut self) -> Result<usize> {
        let (mut heard, mut changed) = (0, false);
        // Who is not told of until this one knows all is gone.
        let all_told = self.pods.is_in_doubt() && self.watcher.as_ref().is_some_and(Watcher::has_told_pods);
        while heard < OBJECTS {
            let Some(object) = self.watcher.as_mut().and_then(Watcher::poll) else { break };
            heard += 1;
            changed |= self.pods.handle(&object);
            self.handle(&own::object(clock::monotonic(), &object))?;
        }
        if all_told && heard < OBJECTS {
            for gone in self.pods.end_doubt() {
                changed |= self.pods.handle(&gone);
                self.handle(&own::object(clock::monotonic(), &gone))?;
            }
        }
        let containers = self.selection.asks_containers();
        if containers || self.selection.asks_pods() {
            changed |= self.pods.look(clock::monotonic(), containers);
            if changed {
                self.follow_pods()?;
            }
        }
        while self.watcher.as_ref().is_some_and(Watcher::has_room) {
            let Some(address) = self.pipeline.poll_peer() else { break };
            if let Some(watcher) = &self.watcher {
                watcher.ask(address);
            }
        }
        Ok(heard)
    }

    /// At most so long; shorter when the ring fills.
    fn pause(&self, most: Duration) {
        let most = Timespec { tv_sec: 0, tv_nsec: most.as_nanos() as i64 };
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        // An interrupted wait is as good as one that is over.
        let _ = epoll::wait(&self.alarm, &mut events[..], Some(&most));
    }

    /// Takes the probes away, reads what is left, closes the books and sends what there is.
    pub fn finish(mut self, most: Duration) -> Result<Finished> {
        let until = Instant::now() + most;
        self.close_books(until)?;
        self.send_rest(until)
    }

    /// Takes the probes away and reads what is left: all that was counted is complete from then on.
    pub fn close_books(&mut self, until: Instant) -> Result<()> {
        self.probes.detach();
        // Those Unix sockets that are gone by now.
        self.sockets.look(clock::monotonic(), true);
        let mut gone = false;
        loop {
            while self.drain(TURN)? > 0 {}
            if !std::mem::replace(&mut gone, true) {
                self.close_gone()?;
            }
            let now = clock::monotonic();
            let counters = self.probes.counters()?;
            // A probe that was under way when it was detached has counted but not yet told.
            let told = self.pipeline.ledger().told;
            let total = own::counters(now, counters);
            let moved = ledger_total(&counters);
            if told == moved || Instant::now() >= until {
                self.handle(&total)?;
                self.handle(&own::finished(now))?;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.outputs.finish_observing();
        Ok(())
    }

    /// After the books are closed.
    pub fn send_rest(mut self, until: Instant) -> Result<Finished> {
        let recorded = self.outputs.finish_recording();
        let filtered = self.outputs.filtered;
        let (summary, edges) = (self.outputs.summary.take(), self.outputs.edges.take());
        // All at the same time: a receiver that takes nothing costs the others none of theirs.
        self.outputs.senders.iter_mut().for_each(|sender| sender.end(until));
        let sent = self.outputs.senders.into_iter().map(|sender| sender.wait(until)).collect();
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(500));
        let unprinted = self.outputs.printer.finish(left)?;
        Ok(Finished {
            pipeline: self.pipeline,
            chosen: self.chosen,
            spans: self.spans,
            filtered,
            summary,
            edges,
            sent,
            unprinted,
            recorded,
        })
    }

    /// Unix sockets that were gone before the ring was read to its end.
    fn close_gone(&mut self) -> Result<()> {
        for cookie in self.sockets.take_gone() {
            self.probes.forget(cookie);
            self.handle(&own::closed(clock::monotonic(), cookie))?;
        }
        Ok(())
    }

    /// Connections and processes of whose end the ring had no room to tell.
    fn close_unseen(&mut self) -> Result<()> {
        let open = self.probes.open();
        let is_gone = |cookie: &u64| open.as_ref().is_some_and(|open| !open.contains(cookie));
        let gone: Vec<u64> = self.pipeline.open().filter(is_gone).collect();
        let ended: Vec<u32> = self.pipeline.running().filter(|process| !discover::exists(*process)).collect();
        // Of those that ended a moment ago it is told in order.
        while self.drain(TURN)? == TURN {}
        let now = clock::monotonic();
        for cookie in gone {
            if self.pipeline.is_open(cookie) && !self.probes.knows_connection(cookie) {
                self.handle(&own::vanished(now, cookie))?;
            }
        }
        for process in ended {
            if self.pipeline.is_running(process) && !discover::exists(process) {
                self.handle(&own::exited(now, process))?;
                self.may_be_deserted = true;
            }
        }
        Ok(())
    }

    /// The most bytes of records that were found in the ring at a time, of late.
    pub fn ring_peak(&self) -> u64 {
        self.peak.most(self.probes.ring().into())
    }

    fn drain(&mut self, most: usize) -> Result<usize> {
        let mut read = 0;
        while read < most {
            let Some(item) = self.ring.next() else { break };
            read += 1;
            let bytes: &[u8] = &item;
            self.peak.read(bytes.len());
            let Ok(record) = Record::parse(bytes) else {
                self.pipeline.handle_damage();
                continue;
            };
            match record {
                Record::Undecided(asked) => {
                    // None of a capture's business.
                    drop(item);
                    self.decide(&asked)?;
                    continue;
                }
                Record::OpenedUnix(mut opened) => {
                    drop(item);
                    opened.fresh = self.sockets.is_fresh(&opened) as u8;
                    self.handle(opened.as_bytes())?;
                    self.sockets.handle_opened(&opened);
                    continue;
                }
                _ => {}
            }
            let bytes = &bytes[..size(bytes)];
            self.outputs.record(bytes);
            let chosen = chosen(&record);
            self.chosen += chosen.is_some() as u64;
            self.may_be_deserted |= matches!(record, Record::Process(Life::Exited, _));
            // A child is what its parent is, if anybody saw that while it was there: what a runtime starts a
            // container by is soon gone.
            let news =
                chosen.filter(|process| process.parent == 0 || !self.pipeline.has_facts(process.parent));
            self.pipeline.handle_record(&record);
            let ran_already = match record {
                Record::Process(Life::Chosen, process) => Some(process.header.pid),
                _ => None,
            };
            drop(item);
            self.deliver();
            if let Some(process) = ran_already {
                self.sockets.handle_chosen(process);
            }
            let Some(news) = news else { continue };
            let (process, now) = (news.header.pid, clock::monotonic());
            if let Some(seen) = Seen::of(process) {
                for fact in facts::of(&seen, process, now, &mut self.containers) {
                    self.handle(&fact)?;
                }
            } else if let Some(cgroup) = self.pods.cgroup(news.cgroup) {
                for fact in facts::of_gone(&cgroup, process, now, &mut self.containers) {
                    self.handle(&fact)?;
                }
            }
        }
        Ok(read)
    }

    /// The agent's own records take the way that those of the probes take.
    fn handle(&mut self, bytes: &[u8]) -> Result<()> {
        self.outputs.record(bytes);
        self.pipeline.handle_record(&Record::parse(bytes)?);
        self.deliver();
        Ok(())
    }

    fn deliver(&mut self) {
        while let Some(quiet) = self.pipeline.poll_quiet() {
            if !self.copy_all {
                self.probes.quiet(&quiet);
            }
        }
        while let Some(fact) = self.pipeline.poll_fact() {
            if let Some(observer) = &mut self.outputs.observer {
                observer.metrics.observe_connection(&fact);
            }
        }
        while let Some(span) = self.pipeline.poll_output() {
            if self.count.is_some_and(|count| self.spans >= count) {
                // What belongs to a trace that is shown is shown with it.
                self.outputs.printer.print(span, false);
                continue;
            }
            self.spans += self.outputs.deliver(span) as u64;
        }
    }

    fn tick(&mut self, now: u64) -> Result<()> {
        let records = self.pipeline.ledger().records;
        let still = records == self.records_at_tick && !self.pipeline.is_waiting();
        let interval = if still { TICK_IDLE } else { TICK };
        if now.saturating_sub(self.last_tick) < interval {
            return Ok(());
        }
        self.last_tick = now;
        self.may_be_deserted |= interval == TICK_IDLE;
        self.outputs.handle_timeout(now);
        // It is set, and goes on while the machine sleeps.
        let offset = clock::offset();
        if now.saturating_sub(self.last_clock) >= CLOCK || offset.abs_diff(self.offset) >= CLOCK_JUMP {
            self.tell_clock(now)?;
        }
        self.handle(&own::tick(now))?;
        self.records_at_tick = self.pipeline.ledger().records;
        Ok(())
    }

    fn tell_clock(&mut self, now: u64) -> Result<()> {
        self.last_clock = now;
        self.offset = clock::offset();
        self.handle(&own::clock(now, self.offset))
    }
}

/// What is known when a capture is over.
pub struct Finished {
    pub pipeline: Pipeline,
    /// Processes that were chosen.
    pub chosen: u64,
    /// Spans that were asked for, and those that were not.
    pub spans: u64,
    pub filtered: u64,
    /// What those that were asked for come to.
    pub summary: Option<Summary>,
    pub edges: Option<Edges>,
    /// Where spans were sent to, and what became of them.
    pub sent: Vec<(String, Sent)>,
    /// Lines that nobody read in time.
    pub unprinted: u64,
    /// False if the capture file is not complete.
    pub recorded: bool,
}

/// Bytes that records must have told of, by the kernel's counters.
fn ledger_total(counters: &[u64; tracer_common::config::Counter::COUNT as usize]) -> u64 {
    let count = |counter: Counter| counters[counter as usize];
    (count(Counter::MovedSent) + count(Counter::MovedReceived))
        .saturating_sub(count(Counter::LostSent) + count(Counter::LostReceived))
        .saturating_sub(count(Counter::OtherSent) + count(Counter::OtherReceived))
        .saturating_sub(count(Counter::IgnoredUnknown) + count(Counter::IgnoredEncrypted))
        .saturating_sub(count(Counter::IgnoredOther) + count(Counter::Shed))
}

/// By the edge: a wait does not end for records that are there, only when a probe calls.
fn alarm(ring: &RingBuf<MapData>) -> Result<OwnedFd> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("no epoll")?;
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&epoll, ring, epoll::EventData::new_u64(0), flags).context("the ring cannot be watched")?;
    Ok(epoll)
}

/// The process that a record says was chosen.
fn chosen(record: &Record<'_>) -> Option<Process> {
    match record {
        Record::Process(Life::Forked | Life::Executed | Life::Chosen, process) if process.selected != 0 => {
            Some(*process)
        }
        _ => None,
    }
}

fn union(first: &Met, second: &Met) -> Met {
    std::array::from_fn(|kind| first[kind] | second[kind])
}

/// The size in a record's header; the ring rounds up.
fn size(bytes: &[u8]) -> usize {
    let size = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
    size.min(bytes.len())
}
