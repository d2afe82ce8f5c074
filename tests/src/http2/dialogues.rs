//! What clients and servers of HTTP/2 say to each other; those of calls stand in the file beside this one.

use super::{
    ACK, CANCEL, CLIENT, END_STREAM, Fields, INTERNAL_ERROR, NO_ERROR, PADDED, PREFACE, PRIORITY,
    REFUSED_STREAM, SERVER, Talk, acknowledged, calls, data, depends, frame, go_away, headers, hpack::How,
    kind, padded, ping, request, reset, response, settings, window_update,
};
use crate::dialogue::{Dialogue, End, Tail};

/// Short ones, for the laws and for real sockets in every cut.
pub fn dialogues() -> Vec<Dialogue> {
    [streams(), frames(), endings(), tables(), others(), calls::dialogues()].concat()
}

/// Two exchanges that can follow anything.
pub fn tail() -> Tail {
    Talk::bare().tail()
}

fn streams() -> Vec<Dialogue> {
    vec![
        Talk::new()
            .head(
                CLIENT,
                1,
                &request(
                    "GET",
                    "/1?token=secret",
                    &[("user-agent", "test"), ("accept-encoding", "gzip, deflate")],
                ),
                END_STREAM,
            )
            .head(SERVER, 1, &response(200, &[("content-length", "5"), ("server", "test")]), 0)
            .last(SERVER, 1, b"hello")
            .dialogue("a stream", &["GET /1 200 5"]),
        Talk::new()
            .get(1, "/1")
            .get(3, "/3")
            .post(5, "/5")
            .answer(3, 200)
            .data(CLIENT, 5, b"part ")
            .data(SERVER, 3, b"one ")
            .answer(5, 201)
            .last(CLIENT, 5, b"whole")
            .get(7, "/7")
            .close(7, 304)
            .data(SERVER, 3, b"two ")
            .data(SERVER, 5, b"abc")
            .answer(1, 404)
            .last(SERVER, 5, b"def")
            .data(SERVER, 1, b"none")
            .last(SERVER, 3, b"three")
            .last(SERVER, 1, b" of it")
            .dialogue(
                "streams that end in another order",
                &["GET /1 404 10", "GET /3 200 13", "POST /5 201 6", "GET /7 304 0"],
            ),
        Talk::new()
            .get(1, "/at/once/1")
            .get(3, "/at/once/3")
            .post(5, "/at/once/5")
            .last(CLIENT, 5, b"content")
            .at_once(4)
            .answer(5, 200)
            .last(SERVER, 5, b"five!")
            .close(1, 204)
            .answer(3, 500)
            .last(SERVER, 3, b"three")
            .at_once(5)
            .dialogue(
                "streams in one piece",
                &["GET /at/once/1 204 0", "GET /at/once/3 500 5", "POST /at/once/5 200 5"],
            ),
        Talk::new()
            .head(CLIENT, 1, &request("HEAD", "/head", &[]), END_STREAM)
            .head(SERVER, 1, &response(200, &[("content-length", "500")]), END_STREAM)
            .get(3, "/none")
            .close(3, 204)
            .get(5, "/same")
            .close(5, 304)
            .dialogue("no content", &["HEAD /head 200 0", "GET /none 204 0", "GET /same 304 0"]),
        Talk::new()
            .post(1, "/empty")
            .last(CLIENT, 1, b"")
            .answer(1, 200)
            .data(SERVER, 1, b"")
            .last(SERVER, 1, b"")
            .dialogue("empty frames of content", &["POST /empty 200 0"]),
        Talk::new()
            .get(1, "/early")
            .head(SERVER, 1, &response(103, &[("link", "</a>")]), 0)
            .head(SERVER, 1, &response(103, &[("link", "</b>")]), 0)
            .answer(1, 200)
            .head(CLIENT, 3, &request("POST", "/big", &[("expect", "100-continue")]), 0)
            .head(SERVER, 3, &response(100, &[]), 0)
            .last(SERVER, 1, b"ok")
            .last(CLIENT, 3, b"big")
            .close(3, 201)
            .dialogue("interim responses on streams", &["GET /early 200 2", "POST /big 201 0"]),
        Talk::new()
            .post(1, "/trailers")
            .data(CLIENT, 1, b"content")
            .trailers(CLIENT, 1, &[("x-sum", "1")])
            .answer(1, 200)
            .data(SERVER, 1, b"answer")
            .trailers(SERVER, 1, &[("x-sum", "2"), ("x-more", "3")])
            .get(3, "/after")
            .close(3, 204)
            .dialogue("trailers both ways", &["POST /trailers 200 6", "GET /after 204 0"]),
    ]
}

fn frames() -> Vec<Dialogue> {
    let mut split = Talk::new();
    let more = [("x-long", "a value that goes on for long enough to be split"), ("x-other", "another")];
    let ask = split.block(CLIENT, &request("GET", "/split", &more));
    let answer = split.block(SERVER, &response(200, &more));
    let mut empty = split.ask(headers(1, END_STREAM, &ask, 9)).say(SERVER, headers(1, 0, &answer, 13));
    let trailers = empty.block(SERVER, &vec![("x-trailer", "at the end".to_owned())]);
    // Frames of a block may be empty, also the first.
    let bare = [frame(kind::HEADERS, END_STREAM, 1, b""), frame(kind::CONTINUATION, 0, 1, b"")].concat();
    let rest = frame(kind::CONTINUATION, 4, 1, &trailers);

    let mut pads = Talk::new();
    let ask = pads.block(CLIENT, &request("POST", "/padded", &[]));
    let answer = pads.block(SERVER, &response(200, &[]));
    let pads = pads
        .ask(frame(kind::HEADERS, 4 | PADDED, 1, &padded(&ask, 7)))
        .say(CLIENT, data(1, &padded(b"content", 20), PADDED))
        .say(CLIENT, data(1, &padded(b"", 3), PADDED | END_STREAM))
        .say(SERVER, frame(kind::HEADERS, 4 | PADDED, 1, &padded(&answer, 0)))
        .say(SERVER, data(1, &padded(b"some", 0), PADDED))
        .say(SERVER, data(1, &padded(b"thing", 100), PADDED | END_STREAM));

    let mut weights = Talk::new();
    let first = weights.block(CLIENT, &request("GET", "/weight", &[]));
    let second = weights.block(CLIENT, &request("GET", "/both", &[]));
    let first = [&depends(0x8000_0000, 255)[..], &first].concat();
    let second = [&depends(1, 0)[..], &second].concat();
    let weights = weights
        .say(CLIENT, frame(kind::PRIORITY, 0, 9, &depends(0, 200)))
        .ask(frame(kind::HEADERS, 4 | PRIORITY | END_STREAM, 1, &first))
        .ask(frame(kind::HEADERS, 4 | PRIORITY | PADDED | END_STREAM, 3, &padded(&second, 4)))
        .say(CLIENT, frame(kind::PRIORITY, 0, 1, &depends(3, 16)))
        .close(1, 200)
        .close(3, 201)
        .say(CLIENT, frame(kind::PRIORITY, 0, 1, &depends(0, 1)));

    vec![
        empty
            .say(SERVER, [bare, rest].concat())
            .dialogue("fields over several frames", &["GET /split 200 0"]),
        pads.dialogue("padding", &["POST /padded 200 9"]),
        weights.dialogue("priorities", &["GET /weight 200 0", "GET /both 201 0"]),
        Talk::new()
            .say(CLIENT, frame(0x10, 0, 0, b"\0\0\0\x01u=1"))
            .get(1, "/unknown")
            .say(SERVER, frame(0x0a, 0, 0, b"\0\x0bexample.comh3=\":443\""))
            .say(SERVER, frame(0xfe, 0xff, 1, b"\0\0\0\x01\x05\0\0\0\x07"))
            .answer(1, 200)
            .say(SERVER, frame(0x0c, 0, 0, b""))
            .data(SERVER, 1, b"answer")
            .say(CLIENT, frame(0xaa, 0, 1_000_000, &[0; 40]))
            .last(SERVER, 1, b"")
            .dialogue("frames of types that nobody knows", &["GET /unknown 200 6"]),
        Talk::new()
            .say(CLIENT, ping(0))
            .say(SERVER, ping(ACK))
            .post(1, "/control")
            .say(SERVER, window_update(0, 65_535))
            .say(SERVER, window_update(1, 100))
            .data(CLIENT, 1, b"content")
            .say(SERVER, settings(&[(1, 4096), (3, 50), (5, 16_384)]))
            .say(SERVER, ping(0))
            .say(CLIENT, acknowledged())
            .answer(1, 200)
            .say(CLIENT, ping(ACK))
            .say(CLIENT, window_update(1, 0x7fff_0000))
            .last(CLIENT, 1, b"!")
            .last(SERVER, 1, b"controlled")
            .dialogue("frames of control", &["POST /control 200 10"]),
        Talk::bare()
            .say(SERVER, settings(&[(3, 100), (4, 65_536)]))
            .say(SERVER, window_update(0, 10_000))
            .say(CLIENT, [PREFACE, &settings(&[])].concat())
            .say(SERVER, acknowledged())
            .get(1, "/late")
            .close(1, 200)
            .dialogue("a server that speaks first", &["GET /late 200 0"]),
        // No answer is awaited before the first request.
        Talk::bare()
            .say(CLIENT, PREFACE.to_vec())
            .say(CLIENT, settings(&[(3, 100)]))
            .say(CLIENT, window_update(0, 1_000_000))
            .get(1, "/eager")
            .at_once(4)
            .say(SERVER, [settings(&[]), acknowledged()].concat())
            .say(CLIENT, acknowledged())
            .close(1, 200)
            .dialogue("a client that waits for nothing", &["GET /eager 200 0"]),
    ]
}

fn endings() -> Vec<Dialogue> {
    vec![
        Talk::new()
            .get(1, "/slow")
            .get(3, "/half")
            .answer(3, 200)
            .data(SERVER, 3, b"half")
            .say(CLIENT, reset(1, CANCEL))
            .say(CLIENT, reset(3, CANCEL))
            // The server did not know yet.
            .data(SERVER, 3, b" of it")
            .get(5, "/after")
            .close(5, 204)
            .dialogue(
                "streams that the client resets",
                &[
                    "GET /slow - - outcome=aborted error=CANCEL",
                    "GET /half 200 - outcome=aborted error=CANCEL",
                    "GET /after 204 0",
                ],
            ),
        Talk::new()
            .get(1, "/broken")
            .get(3, "/refused")
            .post(5, "/odd")
            .answer(1, 200)
            .data(SERVER, 1, b"some")
            .say(SERVER, reset(1, INTERNAL_ERROR))
            .say(SERVER, reset(3, REFUSED_STREAM))
            .data(CLIENT, 5, b"content")
            .say(SERVER, reset(5, 0x1234))
            .data(CLIENT, 5, b" that nobody wants")
            .get(7, "/after")
            .close(7, 204)
            .dialogue(
                "streams that the server resets",
                &[
                    "GET /broken 200 - outcome=stream_reset error=INTERNAL_ERROR",
                    "GET /refused - - outcome=stream_reset error=REFUSED_STREAM",
                    "POST /odd - - outcome=stream_reset error=0x1234",
                    "GET /after 204 0",
                ],
            ),
        Talk::new()
            .post(1, "/large")
            .data(CLIENT, 1, b"first")
            .answer(1, 413)
            .last(SERVER, 1, b"no")
            .say(SERVER, reset(1, NO_ERROR))
            .data(CLIENT, 1, b"second")
            .say(CLIENT, reset(1, CANCEL))
            .post(3, "/left")
            .data(CLIENT, 3, b"some")
            .close(3, 403)
            .say(CLIENT, reset(3, CANCEL))
            .post(5, "/all")
            .close(5, 202)
            .data(CLIENT, 5, b"all ")
            .last(CLIENT, 5, b"of it")
            .dialogue("early answers", &["POST /large 413 2", "POST /left 403 0", "POST /all 202 0"]),
        Talk::new()
            .get(1, "/1")
            .get(3, "/3")
            .get(5, "/5")
            .say(SERVER, go_away(0x7fff_ffff, NO_ERROR, b"shutting down"))
            .say(SERVER, go_away(1, NO_ERROR, b""))
            .close(1, 200)
            .dialogue(
                "a server that goes away",
                &[
                    "GET /1 200 0",
                    "GET /3 - - outcome=stream_reset error=GOAWAY",
                    "GET /5 - - outcome=stream_reset error=GOAWAY",
                ],
            )
            .last(),
        Talk::new()
            .get(1, "/1")
            .say(CLIENT, go_away(0, NO_ERROR, b""))
            .answer(1, 200)
            .last(SERVER, 1, b"last")
            .dialogue("a client that goes away", &["GET /1 200 4"]),
        Talk::new()
            .get(1, "/done")
            .get(3, "/none")
            .post(5, "/half")
            .answer(5, 200)
            .close(1, 200)
            .data(SERVER, 5, b"some")
            .data(CLIENT, 5, b"some")
            .dialogue(
                "a client that leaves streams open",
                &["GET /done 200 0", "GET /none - - outcome=aborted", "POST /half 200 - outcome=aborted"],
            )
            .ending(End::Client)
            .last(),
        Talk::new()
            .get(1, "/none")
            .get(3, "/half")
            .answer(3, 200)
            .data(SERVER, 3, b"some")
            .dialogue(
                "a server that leaves streams open",
                &["GET /none - - outcome=connection_closed", "GET /half 200 - outcome=connection_closed"],
            )
            .last(),
        Talk::new()
            .get(1, "/none")
            .dialogue("a connection that is reset", &["GET /none - - outcome=connection_closed"])
            .ending(End::Reset)
            .for_clients(&["GET /none - - outcome=connection_reset"])
            .last(),
    ]
}

fn tables() -> Vec<Dialogue> {
    fn more(id: &str) -> [(&str, &str); 3] {
        [("x-request-id", id), ("x-tenant", "a tenant with a name"), ("user-agent", "test/1.0")]
    }
    let large = "l".repeat(300);
    let mut steady = Talk::new();
    let mut churning = Talk::new().writing(|asking, answering| {
        asking.resize(150);
        answering.resize(120);
    });
    let sizes = [60, 200, 0, 4096, 90, 150];
    for (turn, size) in sizes.into_iter().enumerate() {
        let (stream, id) = (2 * turn as u32 + 1, format!("id-{}", turn / 2));
        let path = format!("/path/{turn}");
        steady = steady.head(CLIENT, stream, &request("GET", &path, &more(&id)), END_STREAM).head(
            SERVER,
            stream,
            &response(200 + turn as u16, &more(&id)),
            END_STREAM,
        );
        churning = churning
            .head(CLIENT, stream, &request("GET", &path, &more(&id)), END_STREAM)
            .head(SERVER, stream, &response(200 + turn as u16, &more(&id)), END_STREAM)
            .writing(|asking, answering| {
                // Two sizes in one block: the smaller, and the one that holds.
                asking.resize(size / 2);
                asking.resize(size);
                answering.resize(size);
                answering.huffman = !answering.huffman;
                asking.huffman = !asking.huffman;
            });
    }
    let lines: Vec<String> =
        (0..sizes.len()).map(|turn| format!("GET /path/{turn} {} 0", 200 + turn)).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut forms = Talk::new().writing(|asking, answering| {
        asking.resize(128);
        answering.how = How::Never;
    });
    for (turn, how) in
        [How::Never, How::Inserting, How::Plain, How::Inserting, How::Indexing].into_iter().enumerate()
    {
        let stream = 2 * turn as u32 + 1;
        // The third is larger than the table, and empties it.
        let value = if turn == 3 { &large[..] } else { "short" };
        forms = forms
            .writing(|asking, _| asking.how = how)
            .head(CLIENT, stream, &request("GET", &format!("/form/{turn}"), &[("x-form", value)]), END_STREAM)
            .head(SERVER, stream, &response(200, &[("x-form", value)]), END_STREAM)
            .writing(|_, answering| answering.how = how);
    }
    let path =
        ["/form/0", "/form/1", "/form/2", "/form/3", "/form/4"].map(|path| format!("GET {path} 200 0"));
    vec![
        steady.dialogue("a table that is used", &lines),
        churning.dialogue("tables of many sizes", &lines),
        forms.dialogue("fields in every form", &path.each_ref().map(String::as_str)),
    ]
}

fn others() -> Vec<Dialogue> {
    let mut push = Talk::new().get(1, "/page");
    let promise = push.block(SERVER, &request("GET", "/style.css", &[("x-pushed", "1")]));
    let promise = [&2u32.to_be_bytes()[..], &promise].concat();
    let connect: Fields<'_> =
        vec![(":method", "CONNECT".to_owned()), (":authority", "example.com:443".to_owned())];
    let socket = request("CONNECT", "/chat", &[(":protocol", "websocket"), ("sec-websocket-version", "13")]);
    vec![
        push.say(SERVER, frame(kind::PUSH_PROMISE, 4, 1, &promise))
            .head(SERVER, 2, &response(200, &[("x-pushed", "1")]), 0)
            .answer(1, 200)
            .data(SERVER, 1, b"page")
            .last(SERVER, 2, b"style")
            .last(SERVER, 1, b"")
            .get(3, "/after")
            .close(3, 200)
            .dialogue("a response that is pushed", &["GET /page 200 4", "GET /after 200 0"]),
        Talk::new()
            .head(CLIENT, 1, &connect, 0)
            .answer(1, 200)
            .data(CLIENT, 1, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03")
            .data(SERVER, 1, b"\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03")
            .get(3, "/beside")
            .close(3, 200)
            .last(CLIENT, 1, b"")
            .last(SERVER, 1, b"")
            .head(CLIENT, 5, &connect, 0)
            .close(5, 407)
            .say(CLIENT, reset(5, CANCEL))
            .dialogue(
                "a tunnel in a stream",
                &["CONNECT - 200 11 stream=tunnel", "GET /beside 200 0", "CONNECT - 407 0"],
            ),
        Talk::bare()
            .say(CLIENT, [PREFACE, &settings(&[(2, 0)])].concat())
            .say(SERVER, [settings(&[(8, 1)]), acknowledged()].concat())
            .head(CLIENT, 1, &socket, 0)
            .answer(1, 200)
            .data(CLIENT, 1, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58")
            .data(SERVER, 1, b"\x81\x05hello")
            .last(CLIENT, 1, b"\x88\0")
            .last(SERVER, 1, b"\x88\0")
            .dialogue("a websocket in a stream", &["CONNECT /chat 200 9 stream=tunnel"]),
        Talk::bare()
            .ask(
                b"GET /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
                    .to_vec(),
            )
            .say(SERVER, b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".to_vec())
            .say(SERVER, settings(&[(3, 100)]))
            .say(CLIENT, [PREFACE, &settings(&[])].concat())
            .answer(1, 200)
            .get(3, "/next")
            .last(SERVER, 1, b"ok")
            .say(CLIENT, acknowledged())
            .close(3, 204)
            .dialogue("an upgrade to HTTP2", &["GET /up 200 2", "GET /next 204 0"]),
        Talk::bare()
            .ask(
                b"POST /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 4\r\n\r\nbody"
                    .to_vec(),
            )
            .say(
                SERVER,
                [
                    &b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"[..],
                    &settings(&[]),
                    &headers(1, END_STREAM, &[0x89], 100),
                ]
                .concat(),
            )
            .say(CLIENT, [PREFACE, &settings(&[])].concat())
            .get(3, "/next")
            .close(3, 201)
            .dialogue("an upgrade with content", &["POST /up 204 0", "GET /next 201 0"]),
    ]
}
