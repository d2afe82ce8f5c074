//! HTTP/1 as it travels: dialogues with the exchanges that are in them.

use crate::dialogue::{Dialogue, End, Tail};

/// Short ones, for the laws and for real sockets in every cut.
pub fn dialogues() -> Vec<Dialogue> {
    let long_head = format!("GET /long HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(3000));
    let pipeline: String = (0..40).map(|n| format!("GET /deep/{n} HTTP/1.1\r\n\r\n")).collect();
    let answers: String = (0..40)
        .map(|n| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", n % 7, "z".repeat(n % 7)))
        .collect();
    let deep: Vec<String> = (0..40).map(|n| format!("GET /deep/{n} 200 {}", n % 7)).collect();
    let web = format!(
        "POST /shop.Cart/Web HTTP/1.1\r\nContent-Type: application/grpc-web+proto\r\n\
         Content-Length: 7\r\n\r\n{}",
        "\0\0\0\0\x02hi"
    );
    let web_text = "POST /shop.Cart/Text HTTP/1.1\r\nContent-Type: application/grpc-web-text\r\n\
         Content-Length: 12\r\n\r\nAAAAAAJoaQ==";
    let text = "AAAAAAJoaQ==gAAAACJncnBjLXN0YXR1czogNQ0KR1JQQy1NZXNzYWdlOiBubw0K";
    let text_answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/grpc-web-text\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    );
    let mut all = vec![
        Dialogue::server(
            "keep-alive",
            &["GET /1 200 5", "HEAD /2 404 0", "GET /3 204 0"],
            &[
                (
                    "client",
                    b"GET /1?token=secret HTTP/1.1\r\nHost: example.com:8080\r\nUser-Agent: test\r\n\r\n",
                ),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
                ("client", b"HEAD /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
                ("server", b"HTTP/1.1 404 Not Found\r\nContent-Length: 500\r\n\r\n"),
                ("client", b"GET /3 HTTP/1.1\r\nHost: a\r\n\r\n"),
                ("server", b"HTTP/1.1 204 No Content\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "pipelined",
            &["GET /1 200 1", "POST /2 304 0", "GET /3 503 0"],
            &[
                (
                    "client",
                    b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nContent-Length: 4\r\n\r\nbodyGET /3 HTTP/1.1\r\n\r\n",
                ),
                (
                    "server",
                    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n",
                ),
            ],
        ),
        Dialogue::server(
            "pipelined deeply",
            &deep.iter().map(String::as_str).collect::<Vec<_>>(),
            &[("client", pipeline.as_bytes()), ("server", answers.as_bytes())],
        ),
        Dialogue::server(
            "chunked both ways, with trailers",
            &["PUT /up 201 10", "GET /next 200 2"],
            &[
                (
                    "client",
                    b"PUT /up HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4;name=value\r\nwiki\r\n6\r\npedia \r\n0\r\nX-Sum: 1\r\n\r\n",
                ),
                (
                    "server",
                    b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nA; a=\"b\"\r\n0123456789\r\n000\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n",
                ),
                ("client", b"GET /next HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ],
        ),
        Dialogue::server(
            "100-continue",
            &["POST /big 200 2", "GET /after 200 2"],
            &[
                ("client", b"POST /big HTTP/1.1\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n"),
                ("server", b"HTTP/1.1 100 Continue\r\n\r\n"),
                ("client", b"abcdef"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
                ("client", b"GET /after HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ],
        ),
        Dialogue::server(
            "expectation refused",
            &["POST /no 417 2", "GET /after 200 2", "POST /anyway 403 0", "GET /last 200 0"],
            &[
                ("client", b"POST /no HTTP/1.1\r\nContent-Length: 60\r\nExpect: 100-continue\r\n\r\n"),
                ("server", b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno"),
                ("client", b"GET /after HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
                // This one sends its content all the same.
                ("client", b"POST /anyway HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"),
                ("server", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"data"),
                ("client", b"GET /last HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "interim responses of all kinds",
            &["GET /early 200 2", "GET /after 200 0"],
            &[
                ("client", b"GET /early HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
                ("server", b"HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
                ("client", b"GET /after HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "early response",
            &["POST /large 413 2", "GET /after 200 0"],
            &[
                ("client", b"POST /large HTTP/1.1\r\nContent-Length: 12\r\n\r\nfirst"),
                ("server", b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"),
                ("client", b" second"),
                ("client", b"GET /after HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "a tunnel",
            &["GET /before 200 0", "CONNECT - 200 - stream=tunnel"],
            &[
                ("client", b"GET /before HTTP/1.1\r\nHost: a\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"),
                ("server", b"HTTP/1.1 200 Established\r\n\r\n"),
                ("client", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"),
                ("server", b"\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03"),
            ],
        ),
        Dialogue::server(
            "a tunnel refused",
            &["CONNECT - 407 0", "GET /after 200 0"],
            &[
                ("client", b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n"),
                ("server", b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"GET /after HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "websocket",
            &["GET /chat 101 - stream=websocket"],
            &[
                (
                    "client",
                    b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                ),
                (
                    "server",
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05hello",
                ),
                ("client", b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"),
                ("server", b"\x88\x00"),
            ],
        ),
        Dialogue::server(
            "event stream",
            &["GET /events 200 24 stream=event_stream"],
            &[
                ("client", b"GET /events HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n"),
                (
                    "server",
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
                ),
                ("server", b"C\r\ndata: one\n\n\n\r\n"),
                ("server", b"C\r\ndata: two\n\n\n\r\n0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "targets in all forms",
            &["GET /absolute 200 0", "OPTIONS * 200 0", "GET / 200 0", "GET /a%20b 200 0"],
            &[
                ("client", b"GET http://example.com:81/absolute?x=1 HTTP/1.1\r\nHost: example.com\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"GET http://example.com HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"GET /a%20b HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "line feeds alone, blank lines and folded fields",
            &["GET /lf 200 2", "POST /folded 200 0", "GET /blank 200 0"],
            &[
                ("client", b"GET /lf HTTP/1.1\nHost: a\n\n"),
                ("server", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
                (
                    "client",
                    b"POST /folded HTTP/1.1\r\nX-Long: a\r\n  b\r\n\tc\r\nContent-Length: 3\r\n\r\nabc",
                ),
                ("server", b"HTTP/1.1 200 OK\r\nX-Long: a\r\n b\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"\r\n\r\nGET /blank HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "odd methods",
            &["_OTHER /search 200 0", "_OTHER /x 405 0", "PATCH /p 200 0"],
            &[
                ("client", b"M-SEARCH /search HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"x!$'y /x HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"PATCH /p HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "HTTP/1.0 keep-alive",
            &["GET /1 200 2", "GET /2 200 3"],
            &[
                ("client", b"GET /1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
                ("server", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"),
                ("client", b"GET /2 HTTP/1.0\r\n\r\n"),
                ("server", b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nend"),
            ],
        ),
        Dialogue::server(
            "HTTP/1.0 until close",
            &["GET /old 200 13"],
            &[
                ("client", b"GET /old HTTP/1.0\r\n\r\n"),
                ("server", b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end"),
            ],
        ),
        Dialogue::server(
            "until close, and reset",
            &["GET /cut 200 8 outcome=connection_closed"],
            &[
                ("client", b"GET /cut HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\n\r\nuntil th"),
            ],
        )
        .ending(End::Reset)
        .for_clients(&["GET /cut 200 8 outcome=connection_reset"]),
        Dialogue::server(
            "a client that leaves",
            &["GET /slow - - outcome=aborted"],
            &[("client", b"GET /slow HTTP/1.1\r\n\r\n")],
        )
        .ending(End::Client),
        Dialogue::server(
            "a long head, then another",
            &["GET /long 200 0", "GET /short 200 0"],
            &[
                ("client", long_head.as_bytes()),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"GET /short HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "the same length twice",
            &["POST /same 200 2"],
            &[
                ("client", b"POST /same HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3, 3\r\n\r\nabc"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok"),
            ],
        ),
        Dialogue::server(
            "calls of the web over HTTP/1.1",
            &[
                "gRPC shop.Cart/Web OK 1>2",
                "gRPC shop.Cart/Text NOT_FOUND 1>1",
                "gRPC shop.Cart/Web UNIMPLEMENTED 1>0",
                "gRPC shop.Cart/Text - 1>0",
            ],
            &[
                ("client", web.as_bytes()),
                (
                    "server",
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc-web+proto\r\nTransfer-Encoding: chunked\r\n\r\n",
                ),
                ("server", b"8\r\n\0\0\0\0\x03one\r\n5\r\n\0\0\0\0\x03\r\n"),
                ("server", b"17\r\ntwo\x80\0\0\0\x0fgrpc-status:0\r\n\r\n0\r\n\r\n"),
                ("client", web_text.as_bytes()),
                ("server", text_answer.as_bytes()),
                ("client", web.as_bytes()),
                (
                    "server",
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/grpc-web\r\ngrpc-status: 12\r\nContent-Length: 0\r\n\r\n",
                ),
                ("client", web_text.as_bytes()),
                ("server", b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p/>"),
            ],
        ),
    ];
    let ends = ["until close", "a tunnel", "websocket", "leaves"];
    for dialogue in &mut all {
        if dialogue.name == "a tunnel refused" || !ends.iter().any(|end| dialogue.name.contains(end)) {
            dialogue.tail = Some(tail());
        }
    }
    all
}

/// Two exchanges in pieces that are records of their own.
fn tail() -> Tail {
    Tail::new(
        &["GET /tail1 200 2", "GET /tail2 200 2"],
        &[
            ("client", b"GET /tail1 HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ("client", b"GET /tail2 HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ],
    )
}

/// What recipients read in different ways: seen, and marked.
pub fn ambiguous() -> Vec<Dialogue> {
    vec![
        Dialogue::server(
            "two lengths",
            &["POST /twice 400 0 partial=request ambiguous"],
            &[
                ("client", b"POST /twice HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
                ("server", b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "a length and chunks",
            &["POST /both 200 0 ambiguous", "GET /next 200 0"],
            &[
                (
                    "client",
                    b"POST /both HTTP/1.1\r\nContent-Length: 30\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                ),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
                ("client", b"GET /next HTTP/1.1\r\n\r\n"),
                ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "a hidden length",
            &["POST /hidden 400 0 partial=request ambiguous"],
            &[
                ("client", b"POST /hidden HTTP/1.1\r\nContent-Length : 3\r\n\r\nabc"),
                ("server", b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "a coding that nobody knows",
            &["POST /zip 501 0 partial=request ambiguous"],
            &[
                ("client", b"POST /zip HTTP/1.1\r\nTransfer-Encoding: chunked, zip\r\n\r\n"),
                ("server", b"HTTP/1.1 501 No\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "a chunk of no size",
            &["POST /chunk 400 0 partial=request"],
            &[
                ("client", b"POST /chunk HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"),
                ("server", b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
    ]
}

/// What goes through a tunnel is not read, whatever it is.
pub fn inside_a_tunnel() -> Dialogue {
    Dialogue::server(
        "HTTP in a tunnel",
        &["CONNECT - 200 - stream=tunnel"],
        &[
            ("client", b"CONNECT example.com:80 HTTP/1.1\r\nHost: example.com:80\r\n\r\n"),
            ("server", b"HTTP/1.1 200 Established\r\n\r\n"),
            ("client", b"GET /inside HTTP/1.1\r\n\r\n"),
            ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ],
    )
}

/// For real sockets: more than the laws would go through in a reasonable time.
pub fn large() -> Vec<Dialogue> {
    let head = format!("GET /head HTTP/1.1\r\nX-Long: {}\r\n\r\n", "h".repeat(64 << 10));
    let many: String = (0..3000).map(|n| format!("GET /many/{n} HTTP/1.1\r\n\r\n")).collect();
    let answers = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".repeat(3000);
    let lines: Vec<String> = (0..3000).map(|n| format!("GET /many/{n} 200 0")).collect();
    let body = "b".repeat(3 << 20);
    let with_length = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let chunks = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n5\r\nabcde\r\n0\r\n\r\n",
        body.len()
    );
    let upload = format!("POST /up HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    vec![
        Dialogue::server(
            "a head of 64 KiB",
            &["GET /head 200 0"],
            &[("client", head.as_bytes()), ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")],
        ),
        Dialogue::server(
            "3000 requests at once",
            &lines.iter().map(String::as_str).collect::<Vec<_>>(),
            &[("client", many.as_bytes()), ("server", answers.as_bytes())],
        ),
        Dialogue::server(
            "3 MiB each way",
            &["GET /length 200 3145728", "POST /up 204 0", "GET /chunks 200 3145733"],
            &[
                ("client", b"GET /length HTTP/1.1\r\n\r\n"),
                ("server", with_length.as_bytes()),
                ("client", upload.as_bytes()),
                ("server", b"HTTP/1.1 204 No Content\r\n\r\n"),
                ("client", b"GET /chunks HTTP/1.1\r\n\r\n"),
                ("server", chunks.as_bytes()),
            ],
        ),
    ]
}

/// What is no HTTP, and never becomes an exchange.
pub fn others() -> Vec<Dialogue> {
    let noise: Vec<u8> = (0..4000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let png = [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x02\0".as_slice(), &noise].concat();
    vec![
        Dialogue::server("noise", &[], &[("client", &noise), ("server", &noise)]),
        Dialogue::server(
            "TLS",
            &[],
            &[
                ("client", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03GET / HTTP/1.1\r\n\r\n"),
                ("server", b"\x16\x03\x03\0\x7a\x02\0\0\x76\x03\x03HTTP/1.1 200 OK\r\n\r\n"),
            ],
        ),
        Dialogue::server(
            "Redis",
            &[],
            &[("client", b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\nGET k\r\n"), ("server", b"$5\r\nvalue\r\n$-1\r\n")],
        ),
        Dialogue::server(
            "SMTP",
            &[],
            &[
                ("server", b"220 mail.example.com ESMTP\r\n"),
                ("client", b"EHLO client\r\n"),
                ("server", b"250-mail.example.com\r\n250 8BITMIME\r\n"),
                ("client", b"QUIT\r\n"),
                ("server", b"221 Bye\r\n"),
            ],
        ),
        Dialogue::server(
            "HTTP/2",
            &[],
            &[
                ("client", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
                ("server", b"\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0"),
            ],
        ),
        Dialogue::server("PNG", &[], &[("client", &png), ("server", b"ok\n")]),
        Dialogue::server(
            "a request without an answer of HTTP",
            &[],
            &[("client", b"GET / HTTP/1.1\r\n\r\n"), ("server", b"SSH-2.0-OpenSSH_9.2\r\n")],
        ),
        Dialogue::server(
            "an answer without a request",
            &[],
            &[("client", b"hello\r\n"), ("server", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")],
        ),
    ]
}
