//! The last head of a side with what it said: the next one is often the same, and not read again.

/// A longer head is not kept.
const KEPT_MAX: usize = 2048;

pub(super) struct Last<T> {
    /// Empty if none is kept.
    bytes: Vec<u8>,
    said: Option<T>,
}

impl<T> Default for Last<T> {
    fn default() -> Self {
        Self { bytes: Vec::new(), said: None }
    }
}

impl<T> Last<T> {
    /// The length of the head that `bytes` start with, if it is the same again.
    pub(super) fn starts(&self, bytes: &[u8]) -> Option<usize> {
        (!self.bytes.is_empty() && bytes.starts_with(&self.bytes)).then_some(self.bytes.len())
    }

    /// What it said, if `head` is the same again.
    pub(super) fn said(&self, head: &[u8]) -> Option<&T> {
        self.said.as_ref().filter(|_| self.bytes == head)
    }

    pub(super) fn keep(&mut self, head: &[u8], said: T) {
        self.bytes.clear();
        self.said = None;
        if head.len() <= KEPT_MAX {
            self.bytes.extend_from_slice(head);
            self.said = Some(said);
        }
    }

    /// Bytes of memory besides its own, about: `said` and the texts of the head.
    pub(super) fn held(&self, said: usize) -> usize {
        self.bytes.capacity() + self.said.as_ref().map_or(0, |_| said + self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_known_whole_or_not_at_all() {
        let mut last = Last::default();
        assert_eq!((last.starts(b"GET / "), last.said(b"")), (None, None));
        last.keep(b"GET /a HTTP/1.1\r\n\r\n", 1);
        assert_eq!(last.starts(b"GET /a HTTP/1.1\r\n\r\nGET /b"), Some(19));
        assert_eq!(
            (last.starts(b"GET /a HTTP/1.1\r\n"), last.starts(b"GET /b HTTP/1.1\r\n\r\n")),
            (None, None)
        );
        assert_eq!(last.said(b"GET /a HTTP/1.1\r\n\r\n"), Some(&1));
        let long = [b'x'; KEPT_MAX + 1];
        last.keep(&long, 2);
        assert_eq!((last.starts(&long), last.said(&long), last.said(b"")), (None, None, None));
    }
}
