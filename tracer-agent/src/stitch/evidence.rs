//! What makes an exchange the child of another.

use smallvec::SmallVec;

use super::table::{Await, Known, Node, Told};
use crate::{propagation::is_one_trace, protocol::Kind};

/// Why a span has its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Evidence {
    /// The ids of its trace, in its head.
    Header = 0,
    /// An id of the request, in its head.
    Correlation = 1,
    /// The one connection, seen from both ends.
    Connection = 2,
    /// A thread that serves one request at a time.
    Thread = 3,
    /// It has none.
    None = 4,
}

impl Evidence {
    pub const ALL: [Evidence; 5] =
        [Self::Header, Self::Correlation, Self::Connection, Self::Thread, Self::None];

    pub fn name(self) -> &'static str {
        match self {
            Evidence::Header => "header",
            Evidence::Correlation => "correlation",
            Evidence::Connection => "connection",
            Evidence::Thread => "thread",
            Evidence::None => "none",
        }
    }
}

/// How a process passes on what it is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Habits {
    /// Requests that it served, and those of them that came with ids.
    pub served: u64,
    pub asked: u64,
    /// Requests that it made, and those of them with ids of one that it was serving.
    pub called: u64,
    pub passed_on: u64,
    /// Of its spans, by [`Evidence`].
    pub parents: [u64; Evidence::ALL.len()],
    /// Why its threads are no evidence.
    pub threads_lost: Option<&'static str>,
    /// It makes requests with the ids of one that it has answered before.
    pub(super) calls_late: bool,
    /// So many of its connections were the last ones whose other end was waited for in vain.
    pub(super) lonely: u32,
    /// When it made the last request.
    pub(super) last_call: u64,
}

impl Habits {
    pub(super) fn add(&mut self, other: &Habits) {
        for (mine, theirs) in [
            (&mut self.served, other.served),
            (&mut self.asked, other.asked),
            (&mut self.called, other.called),
            (&mut self.passed_on, other.passed_on),
        ] {
            *mine += theirs;
        }
        for (mine, theirs) in self.parents.iter_mut().zip(other.parents) {
            *mine += theirs;
        }
        self.threads_lost = self.threads_lost.or(other.threads_lost);
        self.calls_late |= other.calls_late;
        self.last_call = self.last_call.max(other.last_call);
    }
}

/// What is proved of an exchange.
pub(super) struct Decided {
    pub(super) parent: Option<Known>,
    pub(super) evidence: Evidence,
    /// Those that could be its parent as well as another could.
    pub(super) links: SmallVec<[Known; 2]>,
    pub(super) ambiguous: bool,
}

impl Decided {
    fn child(parent: Known, evidence: Evidence) -> Self {
        Self { parent: Some(parent), evidence, links: SmallVec::new(), ambiguous: false }
    }

    fn root() -> Self {
        Self { parent: None, evidence: Evidence::None, links: SmallVec::new(), ambiguous: false }
    }
}

impl Node {
    /// With what is known of all that it waited for; `threads`: those of its process are evidence.
    pub(super) fn decide(&self, threads: bool) -> Decided {
        match self.kind {
            Kind::Server => self.decide_server(),
            Kind::Client => self.decide_client(threads),
        }
    }

    fn decide_server(&self) -> Decided {
        let caller = self.awaits.iter().find_map(|awaited| awaited.told.known());
        let said = self.context.and_then(|context| Some((context, context.span?)));
        match (caller, said) {
            (Some(caller), Some((_, span))) if caller.id == span => Decided::child(caller, Evidence::Header),
            (Some(caller), _) if self.fits(&caller) => Decided::child(caller, Evidence::Connection),
            (_, Some((context, span))) => {
                let parent = Known {
                    trace: context.trace,
                    id: span,
                    flags: context.flags,
                    start: 0,
                    end: u64::MAX,
                    proven: false,
                };
                Decided::child(parent, Evidence::Header)
            }
            _ => Decided::root(),
        }
    }

    fn decide_client(&self, threads: bool) -> Decided {
        if self.crowded {
            return Decided { ambiguous: true, ..Decided::root() };
        }
        for evidence in [Evidence::Header, Evidence::Correlation] {
            let same = self.busy(evidence).any(|awaited| awaited.same);
            let busy: SmallVec<[Told; 2]> = self
                .busy(evidence)
                .filter(|awaited| awaited.same || !same)
                .map(|awaited| awaited.told)
                .collect();
            if let [told] = busy[..]
                && !self.doubtful
            {
                return match told.known().filter(|known| self.fits(known)) {
                    Some(known) => Decided::child(known, evidence),
                    None => Decided { links: told.known().into_iter().collect(), ..Decided::root() },
                };
            }
            if !busy.is_empty() {
                // The thread can tell which of them it is.
                let on_thread = self.on_thread(threads).filter(|known| {
                    self.fits(known)
                        && busy.iter().any(|told| told.known().is_some_and(|busy| busy.id == known.id))
                });
                return match on_thread {
                    Some(known) => Decided::child(known, Evidence::Thread),
                    None => {
                        let links = busy.iter().filter_map(Told::known).collect();
                        Decided { links, ambiguous: true, ..Decided::root() }
                    }
                };
            }
        }
        match self.on_thread(threads) {
            Some(known) if self.fits(&known) => Decided::child(known, Evidence::Thread),
            // It says itself that it belongs to another trace.
            Some(known) => Decided { links: [known].into_iter().collect(), ..Decided::root() },
            None => Decided::root(),
        }
    }

    /// The one request that its thread was busy with, if that is proved.
    fn on_thread(&self, threads: bool) -> Option<Known> {
        let mut busy = self.busy(Evidence::Thread);
        let (first, second) = (busy.next()?, busy.next());
        first.told.known().filter(|known| threads && known.proven && second.is_none())
    }

    /// Those that may be its reason: what had been answered before is not.
    fn busy(&self, evidence: Evidence) -> impl Iterator<Item = &Await> {
        let awaits = self.awaits.iter().filter(move |awaited| awaited.evidence == evidence);
        awaits.filter(|awaited| awaited.told.known().is_none_or(|known| known.is_busy_at(self.start)))
    }

    /// Whether it can be of the same trace.
    fn fits(&self, parent: &Known) -> bool {
        self.context.is_none_or(|context| is_one_trace(context.trace, parent.trace))
    }

    /// What this call waits for if `server`, a request that its process was busy with, may be its reason by
    /// their trace.
    pub(super) fn may_be_of_trace(&self, number: u64, server: &Node) -> Option<Await> {
        let (Some(ours), Some(theirs)) = (self.context, server.context) else { return None };
        let same = self.header().is_some() && self.header() == server.header();
        is_one_trace(ours.trace, theirs.trace).then(|| Await { same, ..Await::of(number, Evidence::Header) })
    }

    /// The same by an id of the request.
    pub(super) fn may_be_of_request(&self, number: u64, server: &Node) -> Option<Await> {
        let shared = self.correlation.iter().any(|id| server.correlation.contains(id));
        shared.then(|| Await::of(number, Evidence::Correlation))
    }

    /// The same by the thread.
    pub(super) fn may_be_made_by(&self, number: u64, server: &Node) -> Option<Await> {
        let same = self.thread == server.thread && self.process == server.process;
        let tells = server.on_thread && !server.aside && !self.shared;
        (same && tells).then(|| Await::of(number, Evidence::Thread))
    }
}
