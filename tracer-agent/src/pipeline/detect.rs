//! What a connection carries: asked of all protocols, of both directions, until one is sure.

use tracer_common::connection::Direction;

use super::tracked::{Run, Speaking, Spoken, State, Tracked, kind};
use crate::{
    connection::stream::{After, Missing},
    protocol::{self, PROTOCOLS, Session, Side, Start, Verdict, known},
    stats::Bucket,
};

/// A start that is not told from others by then is of no known protocol.
const DETECT_MAX: usize = 64 * 1024;

/// So many bytes of both sides are looked at each time that some come, for a protocol that goes on.
const JOIN_OFTEN: usize = 1024;

impl Tracked {
    /// Looks for the start of a protocol. Returns whether there is more to do.
    pub(super) fn detect(&mut self, run: &mut Run<'_>) -> bool {
        let known = self.connection.ends.as_ref().and_then(|ends| ends.request_direction());
        let candidates = known.as_slice();
        let candidates = if candidates.is_empty() { &Direction::BOTH[..] } else { candidates };
        let mut went_on = false;
        for requests in candidates {
            match self.detect_in(*requests, run) {
                Detected::Session(session, protocol) => {
                    let spoken = Spoken { protocol, requests: *requests };
                    let speaking = Speaking { session, spoken, confirmed: false, answered: false };
                    self.state = State::Speaking(speaking);
                    self.clue = None;
                    return true;
                }
                Detected::Skip(length) => {
                    self.skip(*requests, length, run);
                    went_on = true;
                }
                Detected::Unknown(bucket) if known.is_some() => {
                    self.ignore(run, bucket);
                    return false;
                }
                Detected::Unknown(bucket) => {
                    // The other direction may be the one that asks.
                    let other = self.connection.streams[requests.other().index()].readable().0;
                    if !other.is_empty() && answers(other) != Verdict::Unsure {
                        let asks = PROTOCOLS.iter().any(|p| p.detect(Side::Request, other) != Verdict::No);
                        if !asks {
                            self.ignore(run, bucket);
                            return false;
                        }
                    }
                }
                Detected::Again => went_on = true,
                Detected::Nothing => {}
            }
        }
        went_on
    }

    fn detect_in(&mut self, requests: Direction, run: &mut Run<'_>) -> Detected {
        let State::Detecting { seen, .. } = &mut self.state else { return Detected::Nothing };
        let [stream, answer] =
            [requests, requests.other()].map(|direction| &self.connection.streams[direction.index()]);
        let (bytes, after) = stream.readable();
        let fresh = [requests, requests.other()].map(|direction| self.connection.is_at_start(direction));
        if bytes.is_empty() {
            if let After::Gap(gap) = after {
                return Detected::Skip(gap.length);
            }
            let (bytes, after) = answer.readable();
            return match (bytes.is_empty(), after) {
                // Answers to what was asked before are none of ours.
                (true, After::Gap(gap)) => {
                    let length = gap.length;
                    self.skip(requests.other(), length, run);
                    Detected::Nothing
                }
                (true, _) => Detected::Nothing,
                (false, _) if fresh == [true; 2] && answers(bytes) == Verdict::No => {
                    self.clue = known::looks_like(bytes);
                    Detected::Unknown(unknown(bytes))
                }
                (false, _) => {
                    let at = answer.front();
                    let asked = if stream.started() { stream.end() } else { self.connection.start() };
                    let Some(mark) = answer.marks().at(at).copied() else { return Detected::Nothing };
                    if mark.opposite > asked {
                        // What it answers did move: it is to come, or lost.
                        self.wait_for(requests, mark.opposite);
                        return Detected::Nothing;
                    }
                    if fresh == [true; 2] {
                        return Detected::Nothing;
                    }
                    // What it answers was asked before this was seen.
                    run.ledger.orphans += (answers(bytes) == Verdict::Yes) as u64;
                    let length = (mark.end - at).min(bytes.len() as u64);
                    self.skip(requests.other(), length, run);
                    Detected::Again
                }
            };
        }
        // A long start that comes in small pieces is looked at when it has doubled.
        let seen = &mut seen[requests.index()];
        if after == After::More && *seen > 256 && bytes.len() < *seen * 2 && answer.readable().0.is_empty() {
            return Detected::Nothing;
        }
        *seen = bytes.len();
        let at_start = stream.marks().starts_at(stream.front());
        let length = bytes.len();
        let mut unsure = false;
        for protocol in PROTOCOLS.iter().filter(|_| at_start) {
            match protocol.detect(Side::Request, bytes) {
                Verdict::Yes => {
                    let session = protocol.session(fresh, kind(requests), run.shown);
                    return Detected::Session(session, protocol.name());
                }
                Verdict::Unsure => unsure = true,
                Verdict::No => {}
            }
        }
        if unsure && after == After::More && length <= DETECT_MAX {
            return Detected::Nothing;
        }
        if !unsure
            && !fresh[0]
            && let Some(detected) = self.join(requests, run)
        {
            return detected;
        }
        let State::Detecting { seen, .. } = &mut self.state else { return Detected::Nothing };
        let seen = &mut seen[requests.index()];
        let stream = &self.connection.streams[requests.index()];
        let (bytes, _) = stream.readable();
        if unsure && bytes.len() <= DETECT_MAX {
            // A gap hides how it goes on.
            return Detected::Skip(bytes.len() as u64);
        }
        if at_start && self.clue.is_none() {
            self.clue = known::looks_like(bytes);
        }
        if fresh[0] {
            return Detected::Unknown(unknown(bytes));
        }
        if at_start && protocol::is_encrypted_midway(bytes) {
            return Detected::Unknown(Bucket::Encrypted);
        }
        *seen = 0;
        let record = stream
            .marks()
            .next_start(stream.front())
            .map_or(bytes.len() as u64, |next| next - stream.front());
        Detected::Skip(record.min(bytes.len() as u64).max(1))
    }

    /// Looks for a protocol that both sides speak, wherever in their bytes that shows. None if no protocol can
    /// have begun in those of the requests.
    fn join(&mut self, requests: Direction, run: &mut Run<'_>) -> Option<Detected> {
        let [asking, answering] =
            [requests, requests.other()].map(|direction| &self.connection.streams[direction.index()]);
        let (bytes, after) = asking.readable();
        let (answer, _) = answering.readable();
        let State::Detecting { joining, .. } = &mut self.state else { return None };
        // Much of it is looked at again when it has grown by a quarter.
        let both = bytes.len() + answer.len();
        if after == After::More && both > JOIN_OFTEN && both > *joining && both < *joining / 4 * 5 {
            return Some(Detected::Nothing);
        }
        *joining = both;
        for protocol in PROTOCOLS {
            let asks = protocol.joins(Side::Request, bytes, asking.front(), asking.marks());
            let at = match asks {
                Start::At(at) => at,
                Start::NotBefore(at) if at < bytes.len() && after == After::More => {
                    let more = bytes.len() <= DETECT_MAX && at == 0;
                    return Some(if more { Detected::Nothing } else { Detected::Skip(at.max(1) as u64) });
                }
                Start::NotBefore(_) => continue,
            };
            if at > 0 {
                return Some(Detected::Skip(at as u64));
            }
            let answers = protocol.joins(Side::Response, answer, answering.front(), answering.marks());
            let (Start::At(passed) | Start::NotBefore(passed)) = answers;
            // Which side asks may have to be read off what they say.
            let known = self.connection.ends.as_ref().and_then(|ends| ends.request_direction());
            let sure = known.is_some()
                || protocol.speaker(bytes) == Some(Side::Request)
                || protocol.speaker(&answer[passed..]) == Some(Side::Response);
            let found = matches!(answers, Start::At(_)) && sure;
            let waits = bytes.len() <= DETECT_MAX && after == After::More;
            let bytes = bytes.len() as u64;
            if passed > 0 && (known.is_some() || found) {
                self.skip(requests.other(), passed as u64, run);
            }
            return Some(match (found, waits) {
                (true, _) => {
                    let fresh = self.connection.is_at_start(requests.other());
                    let session = protocol.session([false, fresh], kind(requests), run.shown);
                    Detected::Session(session, protocol.name())
                }
                (false, true) => Detected::Nothing,
                (false, false) => Detected::Skip(bytes),
            });
        }
        None
    }

    /// Bytes, or those of a gap, that no protocol was found in.
    fn skip(&mut self, direction: Direction, length: u64, run: &mut Run<'_>) {
        let stream = &mut self.connection.streams[direction.index()];
        let (bytes, after) = stream.readable();
        match (bytes.is_empty(), after) {
            (false, _) => run.ledger.bytes.add(Bucket::Unknown, length),
            (true, After::Gap(gap)) if gap.missing == Missing::NotCopied => {
                run.ledger.bytes.add(Bucket::NotCopied, length);
            }
            _ => run.ledger.holes += length,
        }
        stream.advance(length);
    }
}

enum Detected {
    Session(Box<dyn Session>, &'static str),
    /// So much from the front holds no start.
    Skip(u64),
    Unknown(Bucket),
    /// Something was passed over on the other side: there may be more.
    Again,
    Nothing,
}

/// Whether a response of any protocol starts here.
fn answers(bytes: &[u8]) -> Verdict {
    let mut all = Verdict::No;
    for protocol in PROTOCOLS {
        match protocol.detect(Side::Response, bytes) {
            Verdict::Yes => return Verdict::Yes,
            Verdict::Unsure => all = Verdict::Unsure,
            Verdict::No => {}
        }
    }
    all
}

fn unknown(bytes: &[u8]) -> Bucket {
    if protocol::is_encrypted(bytes) { Bucket::Encrypted } else { Bucket::Unknown }
}
