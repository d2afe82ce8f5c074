//! HPACK (RFC 7541) for somebody who only listens: what was inserted before anything was seen is not known,
//! and stays so until it is sent again. An index counts from the newest entry, so those that were seen are
//! right from the first on.

use std::{borrow::Cow, cell::OnceCell, collections::VecDeque, rc::Rc};

use octets::Octets;

use crate::protocol::Text;

/// Where the dynamic table starts as long as nobody says anything else (RFC 9113, section 6.5.2).
const SIZE_START: usize = 4096;

/// The most that is kept of a table, whatever its size may be.
const SIZE_MAX: usize = 64 * 1024;

/// What an entry takes besides its texts (section 4.1).
const ENTRY_COST: usize = 32;

/// Bits of the longest code of a character (appendix B), and of the shortest.
const CODE_LONGEST: usize = 30;
const CODE_SHORTEST: usize = 5;

/// The longest name or value that is decoded: a longer one is as if it had not been seen.
const TEXT_MAX: usize = 256 * 1024;

/// A field, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) value: Value<'a>,
}

/// A value, which is decoded only if somebody asks for it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    Unknown,
    Known(&'a str),
    Sent(Sent<'a>),
    Kept(&'a Kept),
}

impl Value<'_> {
    pub(super) fn is_known(&self) -> bool {
        !matches!(self, Value::Unknown)
    }

    /// None if it is not known, or is none.
    pub(super) fn text(&self) -> Option<Text> {
        match self {
            Value::Unknown => None,
            Value::Known(text) => Some(Text::new(text)),
            Value::Sent(sent) => sent.text().map(Text::from),
            Value::Kept(kept) => kept.decoded.get_or_init(|| kept.sent().text().map(Text::from)).clone(),
        }
    }
}

/// A string as it was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent<'a> {
    bytes: &'a [u8],
    coded: bool,
}

impl<'a> Sent<'a> {
    /// No more than the bytes that it stands for.
    fn least(&self) -> usize {
        if self.coded { self.bytes.len() * 8 / CODE_LONGEST } else { self.bytes.len() }
    }

    fn text(&self) -> Option<Cow<'a, str>> {
        if self.bytes.len() > TEXT_MAX {
            return None;
        }
        if !self.coded {
            return Some(String::from_utf8_lossy(self.bytes));
        }
        let most = self.bytes.len() * 8 / CODE_SHORTEST + 1;
        let plain = Octets::with_slice(self.bytes).get_huffman_decoded_with_max_length(most).ok()?;
        let text = String::from_utf8(plain)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        Some(Cow::Owned(text))
    }
}

/// A block is not what an encoder writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What one side of a connection has said so far.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest first. There can be more of them than the encoder has: those it does not ask for.
    entries: VecDeque<Rc<Entry>>,
    /// How often they have changed.
    revision: u64,
    /// What they take, as far as that is known without decoding them: never more than they do.
    size: usize,
    max: usize,
    /// Bytes of memory that they take.
    held: usize,
    /// Since when entries are missing, in one word; None if all were seen.
    missing: Option<&'static str>,
}

/// What a block has to do with the table.
#[derive(Debug)]
pub(super) struct Uses {
    /// Some of its fields stand there; as it was when the block had been read.
    looks: bool,
    revision: u64,
    /// The table's size changes with it.
    resizes: bool,
    inserted: Vec<Rc<Entry>>,
}

#[derive(Debug)]
struct Entry {
    name: Name,
    /// None if it is not known.
    value: Option<Kept>,
    size: usize,
    held: usize,
}

#[derive(Clone, Debug)]
enum Name {
    Unknown,
    Static(&'static str),
    Sent(Text),
}

impl Name {
    fn shown(&self) -> Option<&str> {
        match self {
            Name::Unknown => None,
            Name::Static(name) => Some(name),
            Name::Sent(name) => Some(name),
        }
    }
}

/// A value of the table.
#[derive(Debug)]
pub(super) struct Kept {
    bytes: Box<[u8]>,
    coded: bool,
    decoded: OnceCell<Option<Text>>,
}

impl Kept {
    fn sent(&self) -> Sent<'_> {
        Sent { bytes: &self.bytes, coded: self.coded }
    }
}

impl Entry {
    fn new(name: Name, value: Sent<'_>) -> Self {
        let size = ENTRY_COST + name.shown().map_or(0, str::len) + value.least();
        let kept = Kept { bytes: value.bytes.into(), coded: value.coded, decoded: OnceCell::new() };
        // With its decoded form.
        let held = size_of::<Self>() + size + 2 * value.bytes.len();
        Self { name, value: (value.bytes.len() <= TEXT_MAX).then_some(kept), size, held }
    }

    fn field(&self) -> Field<'_> {
        Field { name: self.name.shown(), value: self.value.as_ref().map_or(Value::Unknown, Value::Kept) }
    }
}

impl Decoder {
    /// `missing`: why entries are missing that are in the table already, in one word.
    pub(super) fn new(missing: Option<&'static str>) -> Self {
        let max = if missing.is_some() { SIZE_MAX } else { SIZE_START };
        Self { entries: VecDeque::new(), revision: 0, size: 0, max, held: 0, missing }
    }

    /// Blocks were missed: nothing is known of how far entries have moved.
    pub(super) fn forget(&mut self, why: &'static str) {
        // More than the table holds does no harm: what is gone is not asked for.
        let revision = self.revision + 1;
        *self = Self { revision, ..Self::new(self.missing.or(Some(why))) };
    }

    /// Why some fields may not be known.
    pub(super) fn missing(&self) -> Option<&'static str> {
        self.missing
    }

    /// Bytes of memory, about.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Tells `take` of all fields of a block. After an error nothing is known of the entries.
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        mut take: impl FnMut(Field<'_>),
    ) -> Result<Uses, Malformed> {
        let mut rest = Reader(block);
        let mut uses = Uses { looks: false, revision: 0, resizes: false, inserted: Vec::new() };
        while let [first, ..] = rest.0 {
            match first {
                // Indexed (section 6.1).
                0x80.. => {
                    let index = rest.number(7)?;
                    uses.looks |= index > STATIC.len();
                    take(self.field(index)?);
                }
                // A literal that becomes an entry (6.2.1).
                0x40.. => {
                    let index = rest.number(6)?;
                    uses.looks |= index > STATIC.len();
                    let (name, value) = self.literal(index, &mut rest)?;
                    take(Field { name: name.shown(), value: Value::Sent(value) });
                    let entry = Rc::new(Entry::new(name, value));
                    uses.inserted.push(entry.clone());
                    self.insert(entry);
                }
                // The table's size changes (6.3).
                0x20.. => {
                    let max = rest.number(5)?;
                    if max > SIZE_MAX {
                        self.missing = self.missing.or(Some("limit"));
                    }
                    uses.resizes = true;
                    self.max = max.min(SIZE_MAX);
                    self.revision += 1;
                    self.evict(self.max);
                }
                // A literal that does not (6.2.2, 6.2.3).
                _ => {
                    let index = rest.number(4)?;
                    uses.looks |= index > STATIC.len();
                    let (name, value) = self.literal(index, &mut rest)?;
                    take(Field { name: name.shown(), value: Value::Sent(value) });
                }
            }
        }
        uses.revision = self.revision;
        Ok(uses)
    }

    /// Does to the table what a block did that comes again, if it still says the same.
    pub(super) fn repeat(&mut self, uses: &Uses) -> bool {
        // What it has inserted moves what it looks for.
        let says_the_same = !uses.looks || uses.revision == self.revision && uses.inserted.is_empty();
        if uses.resizes || !says_the_same {
            return false;
        }
        for entry in &uses.inserted {
            self.insert(entry.clone());
        }
        true
    }

    fn literal<'b>(&self, index: usize, rest: &mut Reader<'b>) -> Result<(Name, Sent<'b>), Malformed> {
        let name = match index {
            0 => {
                let sent = rest.text()?;
                let known = sent.bytes.len() <= TEXT_MAX;
                let text = sent.text().map(Text::from);
                match text {
                    Some(text) => Name::Sent(text),
                    None if known => return Err(Malformed),
                    None => Name::Unknown,
                }
            }
            _ => match STATIC.get(index - 1) {
                Some((name, _)) => Name::Static(name),
                None => match self.entries.get(index - 1 - STATIC.len()) {
                    Some(entry) => entry.name.clone(),
                    None if self.missing.is_some() => Name::Unknown,
                    None => return Err(Malformed),
                },
            },
        };
        Ok((name, rest.text()?))
    }

    /// One that is larger than the table empties it (section 4.4).
    fn insert(&mut self, entry: Rc<Entry>) {
        self.revision += 1;
        if entry.size > self.max {
            return self.evict(0);
        }
        self.evict(self.max - entry.size);
        self.size += entry.size;
        self.held += entry.held;
        self.entries.push_front(entry);
        if self.held > 4 * SIZE_MAX {
            // Of codes that are longer than what they stand for.
            self.missing = self.missing.or(Some("limit"));
            self.evict(self.size / 2);
        }
    }

    /// Drops the oldest until no more than `size` is left.
    fn evict(&mut self, size: usize) {
        while self.size > size {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size;
            self.held -= entry.held;
        }
    }

    fn field(&self, index: usize) -> Result<Field<'_>, Malformed> {
        if index == 0 {
            return Err(Malformed);
        }
        if let Some((name, value)) = STATIC.get(index - 1) {
            return Ok(Field { name: Some(name), value: Value::Known(value) });
        }
        match self.entries.get(index - 1 - STATIC.len()) {
            Some(entry) => Ok(entry.field()),
            None if self.missing.is_some() => Ok(Field { name: None, value: Value::Unknown }),
            None => Err(Malformed),
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// An integer whose first byte has `prefix` bits of it (section 5.1).
    fn number(&mut self, prefix: u32) -> Result<usize, Malformed> {
        let (first, mut rest) = self.0.split_first().ok_or(Malformed)?;
        let most = (1usize << prefix) - 1;
        let mut number = usize::from(*first) & most;
        if number == most {
            let mut shift = 0;
            loop {
                let (byte, after) = rest.split_first().ok_or(Malformed)?;
                rest = after;
                // No length and no index is as large, nor is any size of a table.
                if shift > 28 {
                    return Err(Malformed);
                }
                number += usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
        }
        self.0 = rest;
        Ok(number)
    }

    /// A string (section 5.2).
    fn text(&mut self) -> Result<Sent<'a>, Malformed> {
        let coded = self.0.first().ok_or(Malformed)? & 0x80 != 0;
        let length = self.number(7)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(Sent { bytes, coded })
    }
}

/// RFC 7541, appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests;
