//! What one part of a path looks like by itself.

use std::borrow::Cow;

use super::words;

/// Parts longer than this are no words.
pub(super) const WORD_MAX: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Beyond doubt one among many: numbers, UUIDs, digests, dates, addresses, random texts.
    Id,
    /// Beyond doubt a word: `v1`, `search`, `favicon.ico`.
    Word,
    /// May be a word or a name: `orders`, `alice`.
    Plain,
    /// Rather one among many: `red-shoe-42`, `report.pdf`, `EUR`.
    Loose,
    /// A number that is also a status of HTTP, as in `/404`.
    Status,
}

/// As it counts: decoded where that changes nothing else, and without matrix parameters. `None` for an empty one.
pub(super) fn clean(part: &str) -> Option<Cow<'_, str>> {
    let part = part.split(';').next().unwrap_or_default();
    if part.is_empty() {
        return None;
    }
    if !part.contains('%') {
        return Some(Cow::Borrowed(part));
    }
    let decoded = decode(part).filter(|text| text.bytes().all(|byte| is_plain(byte) || byte == b'@'));
    Some(decoded.map_or(Cow::Borrowed(part), Cow::Owned))
}

/// Of a part that is [`clean`].
pub(super) fn class(part: &str) -> Class {
    if part.len() > WORD_MAX {
        return Class::Id;
    }
    if words::is_reserved(part) || is_version(part) {
        return Class::Word;
    }
    if part.bytes().any(|byte| !is_plain(byte)) {
        return class_of_strange(part);
    }
    if part.bytes().all(|byte| byte.is_ascii_digit()) {
        let is_status = part.parse().is_ok_and(words::is_status);
        return if is_status { Class::Status } else { Class::Id };
    }
    if is_moment(part) || is_hex(part) {
        return Class::Id;
    }
    if let Some((stem, end)) = part.rsplit_once('.')
        && words::is_extension(end)
        && !stem.is_empty()
    {
        // `17.json`, `app.3f2a9c1b.js`
        return if matches!(class(stem), Class::Id | Class::Status) { Class::Id } else { Class::Loose };
    }
    let tokens: Vec<&str> = part.split(SEPARATORS).filter(|token| !token.is_empty()).collect();
    match tokens[..] {
        [] => Class::Plain,
        // With a sign: `-17`.
        [one] if one.bytes().all(|byte| byte.is_ascii_digit()) => Class::Id,
        [one] => class_of_one(one),
        _ => class_of_many(part, &tokens),
    }
}

/// Whether a part that may be a word looks as random as the ids that it is among, which are as long.
pub(super) fn could_be_random(part: &str) -> bool {
    let digits = count(part, u8::is_ascii_digit);
    let hex = part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let one = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    one && (digits > 0 || hex || !is_camel(part) || is_unspeakable(part))
}

const SEPARATORS: [char; 5] = ['-', '_', '.', ':', '~'];

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':' | b'~')
}

fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = more.get(..2).and_then(|digits| std::str::from_utf8(digits).ok())?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &more[2..];
    }
    String::from_utf8(bytes).ok()
}

/// With characters that words do not have: e-mail addresses, telephone numbers, lists, encoded texts.
fn class_of_strange(part: &str) -> Class {
    let digits = count(part, u8::is_ascii_digit);
    let letters = count(part, u8::is_ascii_alphabetic);
    let address = part.find('@').is_some_and(|at| at > 0);
    let braces = part.contains(['{', '}']);
    if address || braces || (digits > 0 && letters == 0) { Class::Id } else { Class::Loose }
}

/// `v1`, `v2beta1`: not `v1.2.3`, of which there are many.
fn is_version(part: &str) -> bool {
    let Some(rest) = part.strip_prefix(['v', 'V']) else { return false };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if !(1..=2).contains(&digits) {
        return false;
    }
    let rest = &rest[digits..];
    let stages = ["alpha", "beta", "rc", "p", "preview"];
    rest.is_empty()
        || stages.iter().any(|stage| {
            let number = rest.strip_prefix(stage);
            number.is_some_and(|number| number.len() <= 2 && number.bytes().all(|byte| byte.is_ascii_digit()))
        })
}

/// Dates, times, IP addresses, telephone numbers, coordinates: mostly digits, and what stands between them.
fn is_moment(part: &str) -> bool {
    let digits = count(part, u8::is_ascii_digit);
    let between = count(part, |byte| matches!(byte, b'-' | b'.' | b':' | b'_' | b'T' | b'Z' | b'W' | b'Q'));
    let colons = count(part, |byte| *byte == b':');
    let address = colons >= 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':');
    let letters = count(part, u8::is_ascii_alphabetic);
    address
        || (digits + between == part.len() && digits >= 4 && letters <= 2 && part.starts_with(DIGIT_OR_SIGN))
}

const DIGIT_OR_SIGN: [char; 11] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '-'];

/// UUIDs, also without digits, and digests.
fn is_hex(part: &str) -> bool {
    let hex = part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    let digits = count(part, u8::is_ascii_digit);
    let uuid = part.len() == 36 && part.bytes().filter(|byte| *byte == b'-').count() == 4;
    hex && (uuid || (digits >= 2 && part.len() >= 8) || (digits > 0 && part.len() >= 12))
}

/// Without any separator.
fn class_of_one(part: &str) -> Class {
    let digits = count(part, u8::is_ascii_digit);
    if words::is_technical(part) {
        return Class::Plain;
    }
    if is_random(part) {
        return Class::Id;
    }
    if digits == 0 {
        let odd = part.len() >= 8 && !is_camel(part);
        let loud = odd || part.len() > 1 && part.bytes().all(|byte| byte.is_ascii_uppercase());
        return if loud || part.len() > 24 || is_unspeakable(part) { Class::Loose } else { Class::Plain };
    }
    // `oauth2`, `i18n`; and `fkqz3xwe`, `alice42`
    let inner = part.trim_end_matches(|char: char| char.is_ascii_digit());
    let abbreviated = digits == 2 && part.len() == 4 && runs(part) == 3;
    match digits {
        1 if part.len() <= 5 || inner.len() + 1 == part.len() => Class::Plain,
        _ if abbreviated => Class::Plain,
        0..5 => Class::Loose,
        _ => Class::Id,
    }
}

fn class_of_many(part: &str, tokens: &[&str]) -> Class {
    let is_number = |token: &&&str| token.bytes().all(|byte| byte.is_ascii_digit());
    let numbers = tokens.iter().filter(is_number).count();
    let long = tokens.iter().filter(is_number).any(|number| number.len() >= 3);
    let joined: String = part.split(SEPARATORS).collect();
    if words::is_technical(&joined) {
        return Class::Plain;
    }
    let last = tokens.last().copied().unwrap_or_default();
    let status = tokens.len() == 2 && last.parse().is_ok_and(words::is_status);
    // `cus-1234`, `INV-2024-0001`; not `red-shoe-42`
    if long && !status && (2 * numbers >= tokens.len() || tokens.len() == 2) {
        return Class::Id;
    }
    let random = |token: &&str| is_random(token) || is_hex(token) || (*token == last && is_random_end(token));
    if tokens.iter().filter(|token| !words::is_technical(token)).any(random) {
        return Class::Id;
    }
    let capitals = tokens.iter().all(|token| token.starts_with(|char: char| char.is_ascii_uppercase()));
    let plain = |token: &&str| {
        let class = class_of_one(token);
        class == Class::Plain || is_version(token) || (class == Class::Loose && is_region(token))
    };
    let words = tokens.iter().all(plain) && numbers == 0;
    if words && tokens.len() <= 3 && !capitals { Class::Plain } else { Class::Loose }
}

/// `US` of `en-US`.
fn is_region(token: &str) -> bool {
    token.len() == 2
}

/// What follows a prefix may be shorter: `8fK2` of `ord_8fK2`.
fn is_random_end(token: &str) -> bool {
    let digits = count(token, u8::is_ascii_digit);
    let capitals = count(token, u8::is_ascii_uppercase);
    let small = count(token, u8::is_ascii_lowercase);
    let mixed = capitals > 0 && small > 0 && digits > 0;
    token.len() >= 4 && digits > 0 && digits < token.len() && (mixed || runs(token) >= 3)
}

/// Letters of both cases and digits in no order that anybody would speak.
fn is_random(token: &str) -> bool {
    if token.len() < 6 || !token.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return false;
    }
    let digits = count(token, u8::is_ascii_digit);
    let letters = token.len() - digits;
    let pieces = pieces(token);
    let changes = runs(token) - 1;
    let mixed = count(token, u8::is_ascii_uppercase) > 0 && count(token, u8::is_ascii_lowercase) > 0;
    (digits > 0 && changes >= 3)
        || (digits >= 2 && letters > 0 && token.len() >= 16)
        || (mixed && token.len() >= 8 && 5 * token.len() < 13 * pieces)
        || (mixed && digits > 0 && 2 * token.len() < 5 * pieces)
}

/// Runs of letters and of digits.
fn runs(token: &str) -> usize {
    let bytes = token.as_bytes();
    1 + bytes.windows(2).filter(|pair| pair[0].is_ascii_digit() != pair[1].is_ascii_digit()).count()
}

/// Words that a name is put together from, as in `getUserById`, and numbers.
fn pieces(token: &str) -> usize {
    let bytes = token.as_bytes();
    let begins = |pair: &&[u8]| {
        let (before, after) = (pair[0], pair[1]);
        (!before.is_ascii_uppercase() && after.is_ascii_uppercase())
            || before.is_ascii_digit() != after.is_ascii_digit()
    };
    1 + bytes.windows(2).filter(begins).count()
}

/// Small letters, or words that begin with a capital each, as in `getUserById`.
fn is_camel(part: &str) -> bool {
    let vowel = |byte: &u8| b"aeiouyAEIOUY".contains(byte);
    let bytes = part.as_bytes();
    let capitals: Vec<usize> = (1..bytes.len()).filter(|at| bytes[*at].is_ascii_uppercase()).collect();
    let mut start = 0;
    capitals.iter().copied().chain([bytes.len()]).all(|end| {
        let piece = &bytes[std::mem::replace(&mut start, end)..end];
        capitals.is_empty() || (piece.len() >= 2 && piece.iter().any(vowel))
    })
}

/// Too many consonants for a word.
fn is_unspeakable(part: &str) -> bool {
    let vowel = |byte: &u8| b"aeiouyAEIOUY".contains(byte);
    let (mut run, mut longest) = (0, 0);
    for byte in part.bytes() {
        run = if byte.is_ascii_alphabetic() && !vowel(&byte) { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest >= 6 || (part.len() >= 8 && 10 * count(part, vowel) < part.len())
}

fn count(part: &str, is: impl Fn(&u8) -> bool) -> usize {
    part.as_bytes().iter().filter(|byte| is(byte)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(class_is: Class, parts: &str) {
        for part in parts.split_whitespace() {
            assert_eq!(class(part), class_is, "{part}");
        }
    }

    #[test]
    fn ids_are_known_by_themselves() {
        all(Class::Id, "0 7 4711 20240512 00000000000000000017 -17");
        all(Class::Id, "123e4567-e89b-12d3-a456-426614174000 ABCDEFAB-CDEF-ABCD-EFAB-CDEFABCDEFAB");
        all(Class::Id, "da39a3ee5e6b4b0d3255bfef95601890afd80709 3f2a9c1b 507f1f77bcf86cd799439011");
        all(Class::Id, "01ARZ3NDEKTSV4RRFFQ69G5FAV 0ujtsYcgvSTl8PAuAdqWYSMnLOv dQw4w9WgXcQ kJQpXtRbWzA");
        all(Class::Id, "V1StGXR8_Z5jdHi6B-myT ord_8fK2 cus-1234 INV-2024-0001 pi_3MtwBwLkdIwHu7ix28a3tqPa");
        all(Class::Id, "2024-05-12 2024-05 10:30 2024-05-12T10:00:00Z 20240512T101010Z 2024-W05 12.05.2024");
        all(Class::Id, "alice@example.org +4917012345 10.0.0.7 fe80::1 2001:db8::8a2e 52.5200 1,2,3");
        all(Class::Id, "17.json app.3f2a9c1b.js {id} order-48213 user_000123");
    }

    #[test]
    fn words_are_no_ids() {
        all(Class::Word, "v1 v2 v1beta1 v12 me search favicon.ico robots.txt health");
        all(Class::Plain, "users orders deadbeef decade cafe facade feed bad dad getUserById listAll oauth2");
        all(
            Class::Plain,
            "i18n l10n a11y 2fa s3 k8s sha256 iso8601 base64 mp3 utf8 ipv6 x509 h264 md5 http2",
        );
        all(
            Class::Plain,
            "order-items line_items sha-256 iso-8601 en-US api_v2 oauth2-callback e2e p2p log4j",
        );
        all(Class::Plain, "strengths chat.postMessage .well-known alice alice.smith OAuth2 3d");
    }

    #[test]
    fn some_are_rather_names() {
        all(
            Class::Loose,
            "red-shoe-42 how-to-cook-rice report.pdf EUR alice42 user123 Main_Page top-10 1.2.3",
        );
        all(Class::Loose, "qwxzkvbtrm v1.2.3 caf%C3%A9 @alice error-404");
        all(Class::Status, "404 200 503");
        assert_eq!(class(&"x".repeat(WORD_MAX + 1)), Class::Id);
    }

    #[test]
    fn parts_are_cleaned() {
        assert_eq!(clean("users;page=2").as_deref(), Some("users"));
        assert_eq!(clean("%75sers").as_deref(), Some("users"));
        assert_eq!(clean("a%2Fb").as_deref(), Some("a%2Fb"));
        assert_eq!((clean("%zz").as_deref(), clean("%").as_deref()), (Some("%zz"), Some("%")));
        assert_eq!((clean(""), clean(";x")), (None, None));
        assert_eq!(clean("bob%40example.org").as_deref().map(class), Some(Class::Id));
    }
}
