//! `OTEL_RESOURCE_ATTRIBUTES` of a process: `key=value,key=value`, percent-encoded.

use std::borrow::Cow;

/// No more are taken of one process.
const KEYS_MAX: usize = 128;

/// In bytes: a longer key is left out, a longer value is cut.
const KEY_MAX: usize = 256;
const VALUE_MAX: usize = 4096;

/// Those that can be read, in their order; the last of a key counts. What is malformed is left out alone: the rest
/// of what somebody said of his process is not worth less for it.
pub(super) fn attributes(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for pair in text.split(',') {
        let Some((key, value)) = pair.split_once('=') else { continue };
        let (Some(key), Some(value)) = (decoded(key.trim()), decoded(value.trim())) else { continue };
        let Some(value) = told(&key, &value) else { continue };
        match found.iter().position(|(known, _)| *known == key) {
            Some(place) => found[place].1 = value.to_owned(),
            None if found.len() < KEYS_MAX => found.push((key.into_owned(), value.to_owned())),
            None => break,
        }
    }
    found
}

/// The value as far as it is told; None if the pair is not.
pub(super) fn told<'a>(key: &str, value: &'a str) -> Option<&'a str> {
    let fits = !key.is_empty() && key.len() <= KEY_MAX && !value.is_empty();
    fits.then(|| &value[..value.floor_char_boundary(VALUE_MAX)])
}

fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        bytes.push(match byte {
            b'%' => (digit(rest.next())? * 16 + digit(rest.next())?) as u8,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pairs_that_can_be_read_are_told() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        for (text, expected) in [
            ("", vec![]),
            ("service.version=1.2, team = shop ", vec![pair("service.version", "1.2"), pair("team", "shop")]),
            ("a=b%2Cc%3Dd%20e,%C3%A4=%e2%82%ac", vec![pair("a", "b,c=d e"), pair("ä", "€")]),
            ("a=b=c", vec![pair("a", "b=c")]),
            ("a=1,b,=2,c=,d=%,e=%2,f=%zz,g=%ff,,h=3", vec![pair("a", "1"), pair("h", "3")]),
            ("a=1,b=2,a=3", vec![pair("a", "3"), pair("b", "2")]),
        ] {
            assert_eq!(attributes(text), expected, "{text}");
        }
    }

    #[test]
    fn they_are_bounded() {
        let many: String = (0..1000).map(|n| format!("key{n}=x,")).collect();
        assert_eq!(attributes(&many).len(), KEYS_MAX);
        let long = format!("{}=x,a={}", "k".repeat(KEY_MAX + 1), "ä".repeat(VALUE_MAX));
        let found = attributes(&long);
        assert_eq!((found.len(), found[0].0.as_str(), found[0].1.len()), (1, "a", VALUE_MAX));
    }
}
