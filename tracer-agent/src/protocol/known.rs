//! Protocols that are recognised by how they begin, and not read: so that what is not seen has a name.

/// What bytes at the start of a message look like.
pub fn looks_like(bytes: &[u8]) -> Option<&'static str> {
    RECOGNISED.iter().find(|(_, is)| is(bytes)).map(|(name, _)| *name)
}

type Recognise = fn(&[u8]) -> bool;

/// The first that fits.
const RECOGNISED: [(&str, Recognise); 12] = [
    ("TLS", super::is_encrypted),
    ("SSH", |bytes| bytes.starts_with(b"SSH-")),
    ("AMQP", |bytes| bytes.starts_with(b"AMQP\0")),
    ("NATS", |bytes| bytes.starts_with(b"INFO {") || bytes.starts_with(b"CONNECT {")),
    ("MQTT", |bytes| matches!(bytes, [0x10, _, 0, 4, b'M', b'Q', b'T', b'T', ..])),
    ("Redis", is_redis),
    ("PostgreSQL", is_postgres),
    ("MySQL", |bytes| matches!(bytes, [_, _, 0, 0, 10, b'0'..=b'9', ..])),
    ("MongoDB", |bytes| {
        // OP_MSG and OP_QUERY
        bytes.get(12..16).is_some_and(|code| code == 2013u32.to_le_bytes() || code == 2004u32.to_le_bytes())
    }),
    ("memcached", |bytes| {
        [
            &b"get "[..],
            b"gets ",
            b"set ",
            b"add ",
            b"delete ",
            b"incr ",
            b"stats\r\n",
            b"VALUE ",
            b"STORED\r\n",
        ]
        .iter()
        .any(|word| bytes.starts_with(word))
    }),
    ("Kafka", |bytes| {
        // Length, key and version of an ApiVersions request, which opens a connection.
        matches!(bytes, [0, 0, _, _, 0, 18, 0, 0..=5, ..])
    }),
    ("SMTP", |bytes| bytes.starts_with(b"EHLO ") || bytes.starts_with(b"HELO ")),
];

/// RESP: a type, a number or a word, and the end of a line.
fn is_redis(bytes: &[u8]) -> bool {
    let Some((first, rest)) = bytes.split_first() else { return false };
    let line = rest.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if line.len() == rest.len() {
        return false;
    }
    match first {
        b'*' | b'$' | b':' => {
            let digits = line.strip_prefix(b"-").unwrap_or(line);
            !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
        }
        b'+' => matches!(line, b"OK" | b"PONG" | b"QUEUED"),
        b'-' => line.starts_with(b"ERR ") || line.starts_with(b"WRONG") || line.starts_with(b"NOAUTH"),
        _ => false,
    }
}

/// A start-up message with version 3.0 or a request for TLS, or a message with its length.
fn is_postgres(bytes: &[u8]) -> bool {
    let number = |at: usize| {
        let bytes = bytes.get(at..at + 4)?;
        Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    if matches!((number(0), number(4)), (Some(8..=10_000), Some(196_608 | 80_877_103))) {
        return true;
    }
    // Simple and prepared statements of clients.
    matches!(bytes.first(), Some(b'Q' | b'P' | b'B'))
        && number(1)
            .is_some_and(|length| (5..1 << 20).contains(&length) && length as usize >= bytes.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_read_has_a_name() {
        let samples: [(&[u8], Option<&str>); 13] = [
            (b"*1\r\n$4\r\nPING\r\n", Some("Redis")),
            (b"+OK\r\n", Some("Redis")),
            (b"*1", None),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Some("PostgreSQL")),
            (b"Q\x00\x00\x00\x0dSELECT 1;\x00", Some("PostgreSQL")),
            (b"\x4a\x00\x00\x00\x0a8.0.36\x00", Some("MySQL")),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
            (b"\x16\x03\x01\x02\x00\x01", Some("TLS")),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Some("SSH")),
            (b"set a 0 0 1\r\n", Some("memcached")),
            (b"GET / HTTP/1.1\r\n", None),
            (b"hello", None),
            (b"", None),
        ];
        for (bytes, name) in samples {
            assert_eq!(looks_like(bytes), name, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn records_of_tls_are_known_midway_by_what_follows() {
        use crate::protocol::is_encrypted_midway;
        let record = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
        let two = [&record[..], &[21, 3, 3, 0, 26]].concat();
        assert!(
            is_encrypted_midway(&record) && is_encrypted_midway(&two) && is_encrypted_midway(&record[..5])
        );
        assert!(
            !is_encrypted_midway(&record[..20]) && !is_encrypted_midway(&[&record[..], &[9; 30]].concat())
        );
        assert!(!is_encrypted_midway(b"\x16\x03\x01") && !is_encrypted_midway(&[22, 3, 1, 0, 1, 1]));
    }
}
