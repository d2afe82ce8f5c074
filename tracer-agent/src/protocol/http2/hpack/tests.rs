//! The examples of RFC 7541, appendix C, and what a listener that came late makes of blocks.

use std::collections::BTreeMap;

use super::*;

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<char> = digits.chars().filter(|digit| !digit.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}

fn shown(field: Field<'_>) -> String {
    format!("{}: {}", field.name.unwrap_or("?"), field.value.text().as_deref().unwrap_or("?"))
}

/// Fields as lines; `?` is what is not known.
fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut lines = Vec::new();
    decoder.decode(block, |field| {
        lines.push(shown(field));
    })?;
    Ok(lines)
}

/// What the table holds, the newest first, and its size.
fn table(decoder: &Decoder) -> (Vec<String>, usize) {
    let entries = decoder.entries.iter().map(|entry| shown(entry.field()));
    (entries.collect(), decoder.size)
}

#[test]
fn integers_have_any_prefix() {
    for (prefix, bytes, number) in [(5, &[10u8][..], 10), (5, &[31, 154, 10], 1337), (7, &[42], 42)] {
        let mut reader = Reader(bytes);
        assert_eq!(reader.number(prefix), Ok(number));
        assert!(reader.0.is_empty());
    }
    for bytes in [&[31u8, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01][..], &[31], &[31, 0x80], &[]] {
        assert_eq!(Reader(bytes).number(5), Err(Malformed), "{bytes:?}");
    }
}

/// C.2.1 to C.2.4.
#[test]
fn every_form_of_a_field() {
    let literal = "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572";
    for (block, line, entries) in [
        (literal, "custom-key: custom-header", 1),
        ("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path", 0),
        ("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret", 0),
        ("82", ":method: GET", 0),
    ] {
        let mut decoder = Decoder::new(None);
        assert_eq!(decode(&mut decoder, &hex(block)), Ok(vec![line.to_owned()]));
        assert_eq!(decoder.entries.len(), entries);
    }
}

const REQUESTS: [&[&str]; 3] = [
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"],
    &[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com", "cache-control: no-cache"],
    &[
        ":method: GET",
        ":scheme: https",
        ":path: /index.html",
        ":authority: www.example.com",
        "custom-key: custom-value",
    ],
];

/// C.3 and C.4.
#[test]
fn requests_with_and_without_huffman_coding() {
    for blocks in [
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
    ] {
        let mut decoder = Decoder::new(None);
        for (block, lines) in blocks.into_iter().zip(REQUESTS) {
            assert_eq!(decode(&mut decoder, &hex(block)).unwrap(), lines);
        }
        let (entries, size) = table(&decoder);
        assert_eq!(
            entries,
            ["custom-key: custom-value", "cache-control: no-cache", ":authority: www.example.com"]
        );
        // What is coded is counted by the least that it can stand for.
        assert!(size <= 164 && (size == 164) == (blocks[0].len() == 49), "{size}");
    }
}

/// C.5 and C.6: a table of 256 bytes, from which entries go.
#[test]
fn responses_with_eviction() {
    let date = "date: Mon, 21 Oct 2013 20:13:21 GMT";
    let location = "location: https://www.example.com";
    let cookie = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    let last = "date: Mon, 21 Oct 2013 20:13:22 GMT";
    let expected: [&[&str]; 3] = [
        &[":status: 302", "cache-control: private", date, location],
        &[":status: 307", "cache-control: private", date, location],
        &[":status: 200", "cache-control: private", last, location, "content-encoding: gzip", cookie],
    ];
    for blocks in [
        [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 \
             3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a \
             6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d \
             6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
        ],
        [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d \
             29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d \
             d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 \
             3d50 07",
        ],
    ] {
        // Said by the encoder: the table has 256 bytes.
        let mut decoder = Decoder::new(None);
        assert_eq!(decode(&mut decoder, &hex("3fe1 01")), Ok(vec![]));
        let coded = blocks[1].starts_with("4883");
        let sizes = [222, 222, 215];
        for ((block, lines), size) in blocks.into_iter().zip(expected).zip(sizes) {
            assert_eq!(decode(&mut decoder, &hex(block)).unwrap(), lines);
            let (entries, ours) = table(&decoder);
            // As above: then entries stay for longer than the encoder asks for them.
            assert!(ours == size || coded && ours <= 256 && entries.len() > 3, "{ours}, not {size}");
        }
    }
}

/// Whoever comes late knows what was inserted since, and nothing else.
#[test]
fn what_was_inserted_before_stays_unknown() {
    let mut late = Decoder::new(Some("joined"));
    // The second and the third request of C.3.
    let second = decode(&mut late, &hex("8286 84be 5808 6e6f 2d63 6163 6865")).unwrap();
    assert_eq!(second, [":method: GET", ":scheme: http", ":path: /", "?: ?", "cache-control: no-cache"]);
    let third =
        decode(&mut late, &hex("8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65"));
    let host = "?: ?";
    let lines = [":method: GET", ":scheme: https", ":path: /index.html", host, "custom-key: custom-value"];
    assert_eq!(third.unwrap(), lines);
    // Those two, by their index.
    assert_eq!(
        decode(&mut late, &hex("bebf")).unwrap(),
        ["custom-key: custom-value", "cache-control: no-cache"]
    );
    // A literal with a name that is not known: its value is, and it can be asked for again.
    assert_eq!(decode(&mut late, &hex("7f 21 02 6162 be")).unwrap(), ["?: ab", "?: ab"]);
    // Sent as a literal once more, a slot is known from then on.
    assert_eq!(decode(&mut late, &hex("4101 61 be")).unwrap(), [":authority: a", ":authority: a"]);
}

#[test]
fn after_an_error_nothing_is_taken_for_known() {
    let mut decoder = Decoder::new(None);
    decode(&mut decoder, &hex("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d")).unwrap();
    for wrong in
        ["80", "ff 80 80 80 80 80 01", "c0", "40", "4085", "400a 63", "4081 00 00", "0084 ffff ffff 00"]
    {
        let mut decoder = Decoder::new(None);
        assert_eq!(decode(&mut decoder, &hex(wrong)), Err(Malformed), "{wrong}");
    }
    decoder.forget("gap");
    assert_eq!(decode(&mut decoder, &hex("be")).unwrap(), ["?: ?"]);
    assert_eq!(decoder.missing(), Some("gap"));
}

#[test]
fn no_table_is_larger_than_its_bound() {
    let mut decoder = Decoder::new(None);
    // Two gigabytes, says the encoder.
    assert!(decode(&mut decoder, &hex("3f e1 ff ff 7f")).is_ok());
    let block = [&hex("4001 61 7f e1 03")[..], &vec![b'x'; 608]].concat();
    for _ in 0..2000 {
        decode(&mut decoder, &block).unwrap();
    }
    assert!(decoder.size <= SIZE_MAX && decoder.entries.len() > 90, "{}", decoder.size);
    // Larger than the table: it is empty then.
    decode(&mut decoder, &hex("21")).unwrap();
    assert!(decoder.entries.is_empty() && decoder.size == 0);
    assert_eq!(decode(&mut decoder, &block).unwrap().len(), 1);
    assert!(decoder.entries.is_empty());
}

/// Whatever came before: the same fields, and the same table after it.
#[test]
fn a_block_that_comes_again_is_as_one_that_is_read() {
    const LENGTH: u32 = 5;
    let blocks = ["82be", "bf", "4101 61", "4001 6201 63", "7e01 64", "3f3f"].map(hex);
    for mut sequence in 0..blocks.len().pow(LENGTH) {
        let (mut reads, mut repeats) = (Decoder::new(Some("joined")), Decoder::new(Some("joined")));
        let mut known: BTreeMap<usize, (Vec<String>, Uses)> = BTreeMap::new();
        for _ in 0..LENGTH {
            let place = sequence % blocks.len();
            sequence /= blocks.len();
            let expected = decode(&mut reads, &blocks[place]).unwrap();
            if let Some((lines, _)) = known.get(&place).filter(|(_, uses)| repeats.repeat(uses)) {
                assert_eq!(*lines, expected);
            } else {
                let mut lines = Vec::new();
                let uses = repeats.decode(&blocks[place], |field| lines.push(shown(field))).unwrap();
                known.insert(place, (lines, uses));
            }
            assert_eq!(table(&repeats), table(&reads));
        }
    }
}
