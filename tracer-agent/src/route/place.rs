//! A place in paths, where words and ids stand, and what it makes of them.
//!
//! A place starts with what its parts look like ([`super::segment`]). Ids share one branch at once. What may be a
//! word has a branch of its own, and nothing is said of it until it is *settled*: it came again, few others came
//! only once, and no new one came for some time. Where more of them come than words there can be, all go into
//! the branch of ids, and that is never undone. How many are too many, and how long is some time, depends on
//! what stands before: after `/api` there are words, after `/users/17` rather words, after `/users` rather names.

use super::{
    Text,
    segment::{Class, could_be_random},
    tree::{Part, Tally},
    words,
};

/// A word that was told stays one among names if it came so many times as often as is usual there.
const OUTSTANDING: u32 = 8;

/// As many ids after a word show that it is a collection.
const IDS_OF_COLLECTION: u32 = 4;

/// As many leave no doubt, whatever else there is.
const IDS_CERTAIN: u32 = 16;

/// As many ids at a place are its rule, and words beside them exceptions.
const IDS_MANY: u32 = 8;

/// Requests for nothing else, and no new word among them, show that there is none.
const ALONE: u64 = 1 << 14;

/// What comes before a place in paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Before {
    /// Nothing, or what names of resources follow.
    #[default]
    Front,
    /// What was an id beyond doubt.
    AfterId,
    /// A word, or names that became ids: more names may follow, as in directories.
    AfterName,
}

impl Before {
    /// As many different parts that may be words are none.
    fn words_max(self) -> u32 {
        match self {
            Before::Front => 256,
            Before::AfterId => 64,
            Before::AfterName => 32,
        }
    }

    /// The same of those that are rather names.
    fn loose_max(self) -> u32 {
        if self == Before::Front { 24 } else { 12 }
    }
}

/// What has become ids at a place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Gathered {
    #[default]
    Nothing,
    Loose,
    /// Besides, words that are put together: `winter-garden` among titles.
    Titles,
    All,
}

impl Gathered {
    fn takes(self, class: Class, text: &str) -> bool {
        match self {
            Gathered::Nothing => false,
            Gathered::Loose => class == Class::Loose,
            Gathered::Titles => class == Class::Loose || (class == Class::Plain && is_put_together(text)),
            Gathered::All => class != Class::Word,
        }
    }
}

#[derive(Default)]
pub(super) struct Place {
    before: Before,
    gathered: Gathered,
    /// A path ends here.
    pub(super) ends: bool,
    /// Its route was told.
    pub(super) told: bool,
    /// Lengths of ids that have letters, from the shortest to the longest.
    lengths: Option<(usize, usize)>,
    seen: u32,
    ids: u32,
    /// How often another part came than before it.
    changes: u32,
    last: Option<u32>,
    /// Parts that may be words, also those that are not held any more, and how many of them are rather names.
    distinct: u32,
    loose: u32,
    /// When the first request came, the last one, and the last new word.
    first: u64,
    latest: u64,
    newest: u64,
    /// One came after requests for something else.
    returned: bool,
    /// In the order of their texts.
    words: Vec<Word>,
    id: Option<Box<Place>>,
}

struct Word {
    text: Text,
    class: Class,
    count: u32,
    settled: bool,
    node: Place,
}

impl Place {
    /// Notes a part, and returns the place after it; `None` if there is no room for it.
    pub(super) fn step(
        &mut self,
        part: &Part<'_>,
        room: bool,
        now: u64,
        tally: &mut Tally,
    ) -> Option<&mut Place> {
        if self.seen == 0 {
            (self.first, self.latest, self.newest) = (now, now, now);
        }
        self.returned |= now > self.latest + 1;
        self.latest = now;
        self.seen = self.seen.saturating_add(1);
        if self.is_id(part) {
            return self.step_id(part, room, tally);
        }
        let at = match self.find(part.text) {
            Ok(at) => at,
            Err(at) => {
                if part.class != Class::Word {
                    self.newest = now;
                    self.distinct += 1;
                    self.loose += u32::from(part.class == Class::Loose);
                    if self.gather(tally) && self.is_id(part) {
                        return self.step_id(part, room, tally);
                    }
                }
                if !room {
                    return None;
                }
                // What was gathered has moved the others.
                let at = self.find(part.text).unwrap_or(at).min(self.words.len());
                self.words.insert(at, Word::new(part));
                tally.add(self.words[at].cost());
                at
            }
        };
        self.note_change(crc32fast::hash(part.text.as_bytes()));
        let word = &mut self.words[at];
        word.count = word.count.saturating_add(1);
        Some(&mut word.node)
    }

    fn step_id(&mut self, part: &Part<'_>, room: bool, tally: &mut Tally) -> Option<&mut Place> {
        self.note_change(u32::MAX);
        self.ids = self.ids.saturating_add(u32::from(part.class == Class::Id));
        if part.class == Class::Id {
            if part.text.bytes().any(|byte| byte.is_ascii_alphabetic()) {
                self.widen(part.text.len(), part.text.len());
            }
            if self.ids.is_power_of_two() && self.ids >= IDS_MANY {
                // What came before them is seen in their light.
                let (lengths, ids) = (self.lengths, self.ids);
                self.gather_those(tally, |word| word.is_unknown() && is_like_ids(&word.text, lengths, ids));
            }
            // Numbers are no statuses where there are others.
            if self.words.iter().any(|word| word.class == Class::Status) {
                self.gather_those(tally, |word| word.class == Class::Status);
            }
        }
        if self.id.is_none() && !room {
            return None;
        }
        Some(self.after_id(tally))
    }

    fn after_id(&mut self, tally: &mut Tally) -> &mut Place {
        self.id.get_or_insert_with(|| {
            tally.add(size_of::<Place>());
            Box::new(Place { before: Before::AfterId, ..Place::default() })
        })
    }

    fn note_change(&mut self, which: u32) {
        if self.last.replace(which) != Some(which) {
            self.changes = self.changes.saturating_add(1);
        }
    }

    fn is_id(&self, part: &Part<'_>) -> bool {
        match part.class {
            Class::Id => true,
            Class::Word => false,
            Class::Status if self.ids > 0 => true,
            _ if self.find(part.text).is_ok_and(|at| self.words[at].settled) => false,
            class if self.gathered.takes(class, part.text) => true,
            _ => is_like_ids(part.text, self.lengths, self.ids),
        }
    }

    fn widen(&mut self, shortest: usize, longest: usize) {
        let lengths = self.lengths.get_or_insert((shortest, longest));
        *lengths = (lengths.0.min(shortest), lengths.1.max(longest));
    }

    fn find(&self, text: &str) -> Result<usize, usize> {
        self.words.binary_search_by(|word| word.text.as_str().cmp(text))
    }

    /// How a part is shown in a route, and the place after it, if that is settled.
    pub(super) fn settled(&mut self, part: &Part<'_>, now: u64) -> Option<(&str, &mut Place)> {
        if self.is_id(part) {
            return Some(("{id}", self.id.as_deref_mut()?));
        }
        let at = self.find(part.text).ok()?;
        if !self.words[at].settled {
            let settled = self.may_settle(&self.words[at], now);
            self.words[at].settled = settled;
        }
        let word = &mut self.words[at];
        word.settled.then_some((word.text.as_str(), &mut word.node))
    }

    /// Whether there is evidence enough that this is a word, and not the first of many names.
    fn may_settle(&self, word: &Word, now: u64) -> bool {
        if word.class == Class::Word {
            return true;
        }
        let once = self.words.iter().filter(|word| word.is_unknown() && word.count == 1).count() as u32;
        // Where some are rather names, the others may be.
        let names = self.before == Before::AfterName || self.is_named();
        let share = if names { 5 } else { 3 };
        // Random texts among ids look like names of methods now and then.
        let capital = word.text.bytes().any(|byte| byte.is_ascii_uppercase());
        let length = word.text.len();
        let same = length >= 8 && self.lengths == Some((length, length));
        let doubtful = word.class == Class::Loose || (capital && self.lengths.is_some()) || same;
        let least = match doubtful {
            true if self.ids >= IDS_MANY => 16,
            true => 4,
            false => 2,
        };
        if word.count < least || once > 2 + self.distinct / share {
            return false;
        }
        let quiet = now - self.newest;
        let returns = self.changes >= 3 * self.distinct;
        let tells = returns || quiet >= 256 || self.seen / 64 >= self.distinct;
        if word.is_collection() || self.ids >= IDS_MANY || !names {
            return word.node.ids >= IDS_CERTAIN || (tells && (self.seen >= 8 || quiet >= 256));
        }
        let often = self.seen >= 64 && self.changes >= 8 * self.distinct;
        // A client that goes through a list has not come to the others yet.
        let left = self.returned || quiet >= ALONE;
        often || (left && quiet >= 256.max((now - self.first) / 2))
    }

    /// Makes ids of what are too many to be words. Returns whether there were such.
    fn gather(&mut self, tally: &mut Tally) -> bool {
        if self.gathered == Gathered::All {
            return false;
        }
        let most = self.before.words_max();
        let too_many =
            self.distinct > 3 * most || (self.distinct > most && self.distinct - self.collections() > most);
        let too_loose = self.loose > self.before.loose_max();
        let names = self.before == Before::AfterName || (self.before == Before::AfterId && self.is_named());
        if too_many || (too_loose && names && self.ids < self.seen / 2) {
            self.gather_like(Gathered::All, tally);
        } else if too_loose && self.gathered == Gathered::Nothing {
            let loose = self.words.iter().filter(|word| word.class == Class::Loose);
            let (titles, others): (Vec<&Word>, Vec<&Word>) =
                loose.partition(|word| is_put_together(&word.text));
            let gathered = if titles.len() > others.len() { Gathered::Titles } else { Gathered::Loose };
            self.gather_like(gathered, tally);
            // They do not count as words any more.
            self.distinct = self.words.iter().filter(|word| word.is_unknown()).count() as u32;
        } else {
            return false;
        }
        true
    }

    fn is_named(&self) -> bool {
        self.loose >= 4 && 3 * self.loose >= self.distinct
    }

    fn collections(&self) -> u32 {
        self.words.iter().filter(|word| word.is_unknown() && word.is_collection()).count() as u32
    }

    /// Moves words into the branch of ids, but for those that stand out and were told.
    fn gather_those(&mut self, tally: &mut Tally, is_one: impl Fn(&Word) -> bool) {
        let mut counts: Vec<u32> =
            self.words.iter().filter(|word| is_one(word)).map(|word| word.count).collect();
        let middle = counts.len() / 2;
        let usual = if counts.is_empty() { 0 } else { *counts.select_nth_unstable(middle).1 };
        let stays =
            |word: &Word| word.settled && word.class != Class::Status && word.count / OUTSTANDING >= usual;
        let (gone, kept) =
            std::mem::take(&mut self.words).into_iter().partition(|word| is_one(word) && !stays(word));
        self.words = kept;
        for word in gone {
            tally.remove(word.cost());
            let id = self.after_id(tally);
            if word.class != Class::Status {
                id.before = Before::AfterName;
            }
            id.merge(word.node, tally);
        }
    }

    /// Takes in what was learned at another place, which is the same one now.
    fn merge(&mut self, other: Place, tally: &mut Tally) {
        // What was told of either is not what is told of both.
        for told in [&mut self.told, &mut { other.told }] {
            tally.routes -= usize::from(std::mem::take(told));
        }
        self.ends |= other.ends;
        if other.before == Before::AfterName {
            self.before = Before::AfterName;
        }
        if other.seen > 0 {
            self.first = if self.seen == 0 { other.first } else { self.first.min(other.first) };
            self.newest = self.newest.max(other.newest);
            self.latest = self.latest.max(other.latest);
            if let Some((shortest, longest)) = other.lengths {
                self.widen(shortest, longest);
            }
        }
        self.seen = self.seen.saturating_add(other.seen);
        self.ids = self.ids.saturating_add(other.ids);
        self.changes = self.changes.saturating_add(other.changes);
        if let Some(id) = other.id {
            tally.remove(size_of::<Place>());
            self.after_id(tally).merge(*id, tally);
        }
        for word in other.words {
            tally.remove(word.cost());
            let part = Part { text: &word.text, class: word.class };
            if self.is_id(&part) {
                self.after_id(tally).merge(word.node, tally);
                continue;
            }
            match self.find(&word.text) {
                Ok(at) => {
                    let mine = &mut self.words[at];
                    mine.count = mine.count.saturating_add(word.count);
                    mine.node.merge(word.node, tally);
                }
                Err(at) => {
                    let unknown = word.is_unknown();
                    self.distinct += u32::from(unknown);
                    self.loose += u32::from(word.class == Class::Loose);
                    tally.add(word.cost());
                    self.words.insert(at, Word { settled: word.class == Class::Word, ..word });
                    if unknown {
                        self.gather(tally);
                    }
                }
            }
        }
        self.distinct = self.distinct.max(other.distinct);
        self.loose = self.loose.max(other.loose);
        if self.gathered < other.gathered {
            self.gather_like(other.gathered, tally);
        }
        self.gather(tally);
    }

    fn gather_like(&mut self, gathered: Gathered, tally: &mut Tally) {
        self.gathered = gathered;
        self.gather_those(tally, |word| gathered.takes(word.class, &word.text));
    }

    /// Forgets what came once, and was not told.
    pub(super) fn prune(&mut self, tally: &mut Tally) {
        self.words.retain_mut(|word| {
            word.node.prune(tally);
            let goes =
                word.count <= 1 && !word.settled && word.node.words.is_empty() && word.node.id.is_none();
            if goes {
                tally.remove(word.cost());
            }
            !goes
        });
        self.words.shrink_to_fit();
        if let Some(id) = &mut self.id {
            id.prune(tally);
        }
    }
}

impl Word {
    fn new(part: &Part<'_>) -> Self {
        let before = match words::is_prefix(part.text) || is_version(part) {
            true => Before::Front,
            false => Before::AfterName,
        };
        Self {
            text: Text::new(part.text),
            class: part.class,
            count: 0,
            settled: part.class == Class::Word,
            node: Place { before, ..Place::default() },
        }
    }

    /// Bytes of memory: lists have room to grow.
    fn cost(&self) -> usize {
        let text = if self.text.is_heap_allocated() { self.text.len() } else { 0 };
        2 * size_of::<Self>() + text
    }

    fn is_unknown(&self) -> bool {
        self.class != Class::Word
    }

    fn is_collection(&self) -> bool {
        self.node.ids >= IDS_OF_COLLECTION
    }
}

/// As long as the ids of a place, of which there are some, and without the look of a word.
fn is_like_ids(text: &str, lengths: Option<(usize, usize)>, ids: u32) -> bool {
    let fits = |(shortest, longest)| (shortest..=longest).contains(&text.len());
    ids >= IDS_MANY && text.len() >= 8 && lengths.is_some_and(fits) && could_be_random(text)
}

fn is_put_together(text: &str) -> bool {
    text.contains(['-', '_'])
}

fn is_version(part: &Part<'_>) -> bool {
    part.class == Class::Word && part.text.as_bytes().get(1).is_some_and(u8::is_ascii_digit)
}
