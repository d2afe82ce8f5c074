//! An encoder of HPACK (RFC 7541) that writes as it is told.

use std::collections::VecDeque;

use octets::OctetsMut;

/// Those of the static table that the tests send, with their index (appendix A).
const STATIC: [(usize, &str, &str); 24] = [
    (1, ":authority", ""),
    (2, ":method", "GET"),
    (3, ":method", "POST"),
    (4, ":path", "/"),
    (5, ":path", "/index.html"),
    (6, ":scheme", "http"),
    (7, ":scheme", "https"),
    (8, ":status", "200"),
    (9, ":status", "204"),
    (10, ":status", "206"),
    (11, ":status", "304"),
    (12, ":status", "400"),
    (13, ":status", "404"),
    (14, ":status", "500"),
    (16, "accept-encoding", "gzip, deflate"),
    (23, "authorization", ""),
    (28, "content-length", ""),
    (31, "content-type", ""),
    (32, "cookie", ""),
    (33, "date", ""),
    (38, "host", ""),
    (54, "server", ""),
    (55, "set-cookie", ""),
    (58, "user-agent", ""),
];

/// Where indices of the dynamic table start.
const DYNAMIC: usize = 62;

/// How a field is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By its index if it has one, else as a literal that gets one.
    Indexing,
    /// As a literal that gets an index, whatever there is.
    Inserting,
    /// Without a word of the dynamic table.
    Plain,
    /// As a literal that never gets an index; its name may have one.
    Never,
}

#[derive(Clone, Debug)]
pub struct Encoder {
    /// The newest first.
    entries: VecDeque<(String, String)>,
    max: usize,
    /// Sizes of the table that are still to be said.
    resized: Vec<usize>,
    pub how: How,
    pub huffman: bool,
}

impl Default for Encoder {
    fn default() -> Self {
        let entries = VecDeque::new();
        Self { entries, max: 4096, resized: Vec::new(), how: How::Indexing, huffman: false }
    }
}

impl Encoder {
    pub fn with_huffman() -> Self {
        Self { huffman: true, ..Self::default() }
    }

    /// Said at the start of the next block.
    pub fn resize(&mut self, max: usize) {
        self.max = max;
        self.resized.push(max);
        self.evict(0);
    }

    pub fn block(&mut self, fields: &[(&str, String)]) -> Vec<u8> {
        let mut out = Vec::new();
        for size in std::mem::take(&mut self.resized) {
            number(&mut out, 0x20, 5, size);
        }
        for (name, value) in fields {
            self.field(&mut out, self.how, name, value);
        }
        out
    }

    pub fn field(&mut self, out: &mut Vec<u8>, how: How, name: &str, value: &str) {
        let dynamic = how != How::Plain;
        let has = |(_, n, v): &&(usize, &str, &str)| (*n, *v) == (name, value);
        let place = STATIC.iter().find(has).map(|(index, ..)| *index).or_else(|| {
            let place = self.entries.iter().position(|(n, v)| (&n[..], &v[..]) == (name, value));
            place.filter(|_| dynamic).map(|place| place + DYNAMIC)
        });
        if let (Some(index), How::Indexing | How::Plain) = (place, how) {
            return number(out, 0x80, 7, index);
        }
        let named = STATIC.iter().find(|(_, n, _)| *n == name).map(|(index, ..)| *index).or_else(|| {
            let place = self.entries.iter().position(|(n, _)| n == name);
            place.filter(|_| dynamic).map(|place| place + DYNAMIC)
        });
        let (first, prefix) = match how {
            How::Indexing | How::Inserting => (0x40, 6),
            How::Plain => (0, 4),
            How::Never => (0x10, 4),
        };
        number(out, first, prefix, named.unwrap_or(0));
        if named.is_none() {
            self.text(out, name);
        }
        self.text(out, value);
        if matches!(how, How::Indexing | How::Inserting) {
            let size = name.len() + value.len() + 32;
            self.evict(size);
            if size <= self.max {
                self.entries.push_front((name.to_owned(), value.to_owned()));
            }
        }
    }

    /// Makes room for an entry of this size.
    fn evict(&mut self, size: usize) {
        let taken = |entries: &VecDeque<(String, String)>| -> usize {
            entries.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
        };
        while !self.entries.is_empty() && taken(&self.entries) + size > self.max {
            self.entries.pop_back();
        }
    }

    fn text(&self, out: &mut Vec<u8>, text: &str) {
        if !self.huffman {
            number(out, 0, 7, text.len());
            return out.extend_from_slice(text.as_bytes());
        }
        // A code has 30 bits at most.
        let mut buffer = vec![0; 4 * text.len() + 4];
        let mut coded = OctetsMut::with_slice(&mut buffer);
        coded.put_huffman_encoded::<false>(text.as_bytes()).expect("there is room");
        let length = coded.off();
        number(out, 0x80, 7, length);
        out.extend_from_slice(&buffer[..length]);
    }
}

/// An integer behind a prefix (section 5.1).
pub fn number(out: &mut Vec<u8>, first: u8, prefix: u32, number: usize) {
    let most = (1 << prefix) - 1;
    if number < most {
        return out.push(first | number as u8);
    }
    out.push(first | most as u8);
    let mut rest = number - most;
    while rest >= 0x80 {
        out.push(0x80 | rest as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}
