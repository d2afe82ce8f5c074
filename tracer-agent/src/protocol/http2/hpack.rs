//! HPACK (RFC 7541) for somebody who only listens: what was inserted before anything was seen is not known,
//! and stays so until it is sent again. An index counts from the newest entry, so those that were seen are
//! right from the first on.

use std::{borrow::Cow, collections::VecDeque};

use octets::Octets;

/// Where the dynamic table starts as long as nobody says anything else (RFC 9113, section 6.5.2).
const SIZE_START: usize = 4096;

/// The most that is kept of a table, whatever its size may be.
const SIZE_MAX: usize = 64 * 1024;

/// What an entry takes besides its texts (section 4.1).
const ENTRY_COST: usize = 32;

/// The longest name or value that is decoded: a longer one is as if it had not been seen.
const TEXT_MAX: usize = 256 * 1024;

/// A field, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) value: Option<&'a str>,
}

/// A block is not what an encoder writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What one side of a connection has said so far.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    /// What they take, as far as they are known: never more than they do.
    size: usize,
    max: usize,
    /// Since when entries are missing, in one word; None if all were seen.
    missing: Option<&'static str>,
}

#[derive(Debug)]
struct Entry {
    /// Name and value, one after the other.
    text: Box<str>,
    /// Bytes of the name; None if it is not known.
    name: Option<usize>,
    /// Whether the value is known.
    value: bool,
    size: usize,
}

impl Entry {
    fn new(field: Field<'_>, size: usize) -> Self {
        let (name, value) = (field.name.unwrap_or_default(), field.value.unwrap_or_default());
        let mut text = String::with_capacity(name.len() + value.len());
        text.push_str(name);
        text.push_str(value);
        Self {
            text: text.into_boxed_str(),
            name: field.name.map(str::len),
            value: field.value.is_some(),
            size,
        }
    }

    fn field(&self) -> Field<'_> {
        let (name, value) = self.text.split_at(self.name.unwrap_or(0));
        Field { name: self.name.map(|_| name), value: self.value.then_some(value) }
    }
}

impl Decoder {
    /// `missing`: why entries are missing that are in the table already, in one word.
    pub(super) fn new(missing: Option<&'static str>) -> Self {
        let max = if missing.is_some() { SIZE_MAX } else { SIZE_START };
        Self { entries: VecDeque::new(), size: 0, max, missing }
    }

    /// Blocks were missed: nothing is known of how far entries have moved.
    pub(super) fn forget(&mut self, why: &'static str) {
        let missing = self.missing.or(Some(why));
        // More than the table holds does no harm: what is gone is not asked for.
        *self = Self { max: SIZE_MAX, missing, ..Self::new(missing) };
    }

    /// Why some fields may not be known.
    pub(super) fn missing(&self) -> Option<&'static str> {
        self.missing
    }

    /// Bytes of memory, about.
    pub(super) fn held(&self) -> usize {
        self.size + self.entries.len() * size_of::<Entry>()
    }

    /// Tells `take` of all fields of a block. After an error nothing is known of the entries.
    pub(super) fn decode(&mut self, block: &[u8], mut take: impl FnMut(Field<'_>)) -> Result<(), Malformed> {
        let mut rest = Reader(block);
        while let [first, ..] = rest.0 {
            match first {
                // Indexed (section 6.1).
                0x80.. => {
                    let index = rest.number(7)?;
                    take(self.field(index)?);
                }
                // A literal that becomes an entry (6.2.1).
                0x40.. => {
                    let index = rest.number(6)?;
                    self.insert(index, &mut rest, &mut take)?;
                }
                // The table's size changes (6.3).
                0x20.. => {
                    let max = rest.number(5)?;
                    if max > SIZE_MAX {
                        self.missing = self.missing.or(Some("limit"));
                    }
                    self.max = max.min(SIZE_MAX);
                    self.evict(self.max);
                }
                // A literal that does not (6.2.2, 6.2.3).
                _ => {
                    let index = rest.number(4)?;
                    let name = if index == 0 { Some(rest.text()?) } else { None };
                    let value = rest.text()?;
                    let name = match &name {
                        Some(name) => name.shown(),
                        None => self.field(index)?.name,
                    };
                    take(Field { name, value: value.shown() });
                }
            }
        }
        Ok(())
    }

    fn insert(
        &mut self,
        index: usize,
        rest: &mut Reader<'_>,
        take: &mut impl FnMut(Field<'_>),
    ) -> Result<(), Malformed> {
        let name = if index == 0 { Some(rest.text()?) } else { None };
        let value = rest.text()?;
        let entry = {
            let (name, length) = match &name {
                Some(name) => (name.shown(), name.length),
                None => {
                    let name = self.field(index)?.name;
                    (name, name.map_or(0, str::len))
                }
            };
            let field = Field { name, value: value.shown() };
            take(field);
            let size = length + value.length + ENTRY_COST;
            // One that is larger than the table empties it (section 4.4).
            (size <= self.max).then(|| Entry::new(field, size))
        };
        let Some(entry) = entry else {
            self.evict(0);
            return Ok(());
        };
        self.evict(self.max - entry.size);
        self.size += entry.size;
        self.entries.push_front(entry);
        Ok(())
    }

    /// Drops the oldest until no more than `size` is left.
    fn evict(&mut self, size: usize) {
        while self.size > size {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size;
        }
    }

    fn field(&self, index: usize) -> Result<Field<'_>, Malformed> {
        if index == 0 {
            return Err(Malformed);
        }
        if let Some((name, value)) = STATIC.get(index - 1) {
            return Ok(Field { name: Some(name), value: Some(value) });
        }
        match self.entries.get(index - 1 - STATIC.len()) {
            Some(entry) => Ok(entry.field()),
            None if self.missing.is_some() => Ok(Field { name: None, value: None }),
            None => Err(Malformed),
        }
    }
}

struct Reader<'a>(&'a [u8]);

/// A name or a value, as the table counts it and as it is shown.
struct Decoded<'a> {
    /// None if it is too long.
    text: Option<Cow<'a, str>>,
    length: usize,
}

impl Decoded<'_> {
    fn shown(&self) -> Option<&str> {
        self.text.as_deref()
    }
}

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
    fn text(&mut self) -> Result<Decoded<'a>, Malformed> {
        let coded = self.0.first().ok_or(Malformed)? & 0x80 != 0;
        let length = self.number(7)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        if !coded {
            let text = (length <= TEXT_MAX).then(|| String::from_utf8_lossy(bytes));
            return Ok(Decoded { text, length });
        }
        if length > TEXT_MAX {
            return Ok(Decoded { text: None, length: length * 8 / 5 });
        }
        // A code has five bits at least.
        let plain = Octets::with_slice(bytes).get_huffman_decoded_with_max_length(length * 8 / 5 + 1);
        let plain = plain.map_err(|_| Malformed)?;
        let length = plain.len();
        let text = String::from_utf8(plain)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        Ok(Decoded { length, text: Some(Cow::Owned(text)) })
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
